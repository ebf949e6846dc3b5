//! Stands between a registry and its database or its object storage, and makes trouble on demand.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Result;

/// A peer that is gone is noticed by the end of its stream; this is for one that is stopped.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// No header of an S3 request is longer.
const HEAD_MAX: usize = 64 * 1024;
/// How many requests are refused when it is to go on for ever.
pub(crate) const FOR_EVER: u32 = u32::MAX;
const SLOW_DOWN: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>SlowDown</Code>\
                         <Message>Please reduce your request rate.</Message></Error>";

/// A listener that passes bytes on. Ends with its handle.
#[derive(Debug)]
pub(crate) struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    /// So many requests are answered with `SlowDown`.
    slow: AtomicU32,
    refused: AtomicU32,
    /// The next COMMIT is passed on, and its answer is not.
    cut: AtomicBool,
    cuts: AtomicU32,
    ended: AtomicBool,
    /// Both sides of what is open.
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    pub(crate) fn start(upstream: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((upstream.ip(), 0))?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream,
            slow: AtomicU32::new(0),
            refused: AtomicU32::new(0),
            cut: AtomicBool::new(false),
            cuts: AtomicU32::new(0),
            ended: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.ended.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                // A connection that breaks is what this is for.
                thread::spawn(move || drop(shared.serve(client)));
            }
        });
        Ok(Self { addr, shared })
    }

    pub(crate) const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The next requests are answered with S3's `SlowDown`. What is open is closed.
    pub(crate) fn slow_down(&self, requests: u32) {
        self.shared.slow_down(requests);
    }

    /// How many were.
    pub(crate) fn slowed(&self) -> u32 {
        self.shared.refused.swap(0, Ordering::Relaxed)
    }

    /// The database does what the next COMMIT says, and whoever said it never learns.
    pub(crate) fn lose_next_commit(&self) {
        self.shared.cut.store(true, Ordering::Relaxed);
    }

    /// How many answers were lost.
    pub(crate) fn lost(&self) -> u32 {
        self.shared.cut.store(false, Ordering::Relaxed);
        self.shared.cuts.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        // Wakes the listener.
        let _ = TcpStream::connect_timeout(&self.addr, CONNECT_TIMEOUT);
        self.shared.slow_down(0);
    }
}

impl Shared {
    fn slow_down(&self, requests: u32) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        self.slow.store(requests, Ordering::Relaxed);
        for stream in open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Whether the requests of a new connection are passed on. Decided once and for all, so that none slips through.
    fn admits(&self, client: &TcpStream) -> io::Result<bool> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.push(client.try_clone()?);
        Ok(self.slow.load(Ordering::Relaxed) == 0)
    }

    fn serve(self: &Arc<Self>, client: TcpStream) -> io::Result<()> {
        if !self.admits(&client)? {
            return self.refuse(client);
        }
        let upstream = TcpStream::connect_timeout(&self.upstream, CONNECT_TIMEOUT)?;
        for stream in [&client, &upstream] {
            stream.set_nodelay(true)?;
        }
        let (mut from_server, mut to_client) = (upstream.try_clone()?, client.try_clone()?);
        let is_cut = Arc::new(AtomicBool::new(false));
        let (shared, cut) = (Arc::clone(self), Arc::clone(&is_cut));
        let back = thread::spawn(move || -> io::Result<()> {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let count = from_server.read(&mut buffer)?;
                if cut.load(Ordering::SeqCst) {
                    shared.cuts.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                if count == 0 {
                    return Ok(());
                }
                to_client.write_all(&buffer[..count])?;
            }
        });
        let forth = self.forward(client.try_clone()?, upstream.try_clone()?, &is_cut);
        if !is_cut.load(Ordering::SeqCst) {
            let _ = upstream.shutdown(Shutdown::Write);
        }
        let _ = back.join();
        let _ = (upstream.shutdown(Shutdown::Both), client.shutdown(Shutdown::Both));
        forth
    }

    fn forward(&self, mut from: TcpStream, mut to: TcpStream, is_cut: &AtomicBool) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = from.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            if commits(&buffer[..count]) && self.cut.swap(false, Ordering::SeqCst) {
                is_cut.store(true, Ordering::SeqCst);
                to.write_all(&buffer[..count])?;
                // The other thread waits for the answer, and ends the connection.
                return Ok(());
            }
            to.write_all(&buffer[..count])?;
        }
    }

    /// Reads one request and answers it. A client that made a connection too many does not count.
    fn refuse(&self, mut client: TcpStream) -> io::Result<()> {
        client.set_read_timeout(Some(CONNECT_TIMEOUT))?;
        let mut head = Vec::new();
        let mut buffer = [0; 64 * 1024];
        let end = loop {
            if let Some(at) = head.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            let count = client.read(&mut buffer)?;
            if count == 0 || head.len() > HEAD_MAX {
                return Ok(());
            }
            head.extend_from_slice(&buffer[..count]);
        };
        let text = String::from_utf8_lossy(&head[..end]).to_ascii_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        let mut left = length.unwrap_or(0).saturating_sub(head.len() - end);
        while left > 0 {
            let count = client.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            left = left.saturating_sub(count);
        }
        let take = |left: u32| left.checked_sub(u32::from(left != FOR_EVER)).filter(|_| left > 0);
        if self.slow.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            // It came when enough had been refused; a closed connection is tried again.
            return Ok(());
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        let body = if text.starts_with("head") { "" } else { SLOW_DOWN };
        let answer = format!(
            "HTTP/1.1 503 Slow Down\r\ncontent-type: application/xml\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            SLOW_DOWN.len()
        );
        client.write_all(answer.as_bytes())
    }
}

/// Whether it says COMMIT, and not `committed`, which connections begin with.
fn commits(bytes: &[u8]) -> bool {
    const WORD: &[u8] = b"commit";
    let goes_on = |at: usize| bytes.get(at + WORD.len()).is_some_and(u8::is_ascii_alphabetic);
    let mut words = bytes.windows(WORD.len()).enumerate();
    words.any(|(at, window)| window.eq_ignore_ascii_case(WORD) && !goes_on(at))
}
