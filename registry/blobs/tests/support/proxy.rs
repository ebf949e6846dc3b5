//! A wire to a server that can be told to misbehave.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What happens to new connections. Connections made before are cut when it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// So many requests are answered 503 with `Retry-After: 7`, then all is well.
    SlowDown(usize),
    /// So many ends of multipart uploads are answered 200 with an error in the body, then all is well.
    SlowEnd(usize),
    /// All requests are answered with this status.
    Status(u16),
    /// Requests are taken and not answered.
    Stall,
}

pub(crate) struct Proxy {
    pub(crate) addr: SocketAddr,
    fault: watch::Sender<Fault>,
    faults: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start(upstream: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let (fault, changes) = watch::channel(Fault::None);
        let faults = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&faults);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (mut changes, counter) = (changes.clone(), Arc::clone(&counter));
                tokio::spawn(async move {
                    let fault = *changes.borrow_and_update();
                    tokio::select! {
                        _ = serve(client, upstream, fault, &counter) => {}
                        _ = changes.changed() => {}
                    }
                });
            }
        });
        Ok(Self { addr, fault, faults, task })
    }

    pub(crate) fn set(&self, fault: Fault) {
        self.faults.store(0, Ordering::SeqCst);
        self.fault.send_replace(fault);
    }

    /// Requests that were misserved since the fault was set.
    pub(crate) fn faults(&self) -> usize {
        self.faults.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut client: TcpStream, upstream: SocketAddr, fault: Fault, counter: &AtomicUsize) -> Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        let mut piece = [0; 4096];
        let length = client.read(&mut piece).await?;
        if length == 0 {
            return Ok(());
        }
        head.extend_from_slice(&piece[..length]);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let ends = text.starts_with("POST") && text.lines().next().is_some_and(|line| line.contains("uploadId="));
    let slow = "HTTP/1.1 503 Slow Down\r\nRetry-After: 7\r\n";
    let answer = match fault {
        Fault::SlowDown(times) if counter.load(Ordering::SeqCst) < times => Some(format!("{slow}{}", body("SlowDown"))),
        Fault::SlowEnd(times) if ends && counter.load(Ordering::SeqCst) < times => {
            Some(format!("HTTP/1.1 200 OK\r\n{}", body("SlowDown")))
        }
        Fault::Status(status) => Some(format!("HTTP/1.1 {status} Status\r\n{}", body("Fault"))),
        Fault::Stall => {
            counter.fetch_add(1, Ordering::SeqCst);
            std::future::pending().await
        }
        Fault::None | Fault::SlowDown(_) | Fault::SlowEnd(_) => None,
    };
    match answer {
        Some(answer) => {
            counter.fetch_add(1, Ordering::SeqCst);
            drain(&mut client, &head, &text).await?;
            client.write_all(answer.as_bytes()).await?;
        }
        None if fault == Fault::None => {
            let mut server = TcpStream::connect(upstream).await?;
            server.write_all(&head).await?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await?;
        }
        None => {
            // One request a connection, so that the next is looked at as well.
            let text = text.replacen("\r\n", "\r\nConnection: close\r\n", 1);
            let start = text.find("\r\n\r\n").unwrap_or(text.len()) + 4;
            let raw = head.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(0) + 4;
            let mut server = TcpStream::connect(upstream).await?;
            server.write_all(&text.as_bytes()[..start]).await?;
            server.write_all(&head[raw..]).await?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await?;
        }
    }
    Ok(())
}

fn body(code: &str) -> String {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>of the test</Message></Error>");
    format!("Content-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

/// Takes the request's body, so that the answer is not lost in a reset.
async fn drain(client: &mut TcpStream, head: &[u8], text: &str) -> Result<()> {
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let start = head.windows(4).position(|window| window == b"\r\n\r\n").map_or(head.len(), |at| at + 4);
    let mut left = length.unwrap_or(0).saturating_sub(head.len() - start);
    let mut piece = vec![0; 64 * 1024];
    while left > 0 {
        let read = client.read(&mut piece).await?;
        if read == 0 {
            break;
        }
        left = left.saturating_sub(read);
    }
    Ok(())
}
