//! Who may connect to a gRPC listener: so many at a time, and only those who begin to speak.
//!
//! tonic accepts whatever comes, waits for its first byte for ever, and tries again at once when the process has no file
//! descriptor left. Here a connection over the limit is closed, a silent one ends, and a failed accept makes a pause.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

/// The first bytes of a connection must come within this time. What follows is held by HTTP/2's own pings.
const FIRST_BYTES: Duration = Duration::from_secs(5);
/// After a failed accept (usually: no file descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener of either kind.
pub trait Accept: Send + 'static {
    /// Its connections.
    type Io: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static;

    /// The next one.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Io>> + Send;
}

/// A connection that was let in, counted until it is dropped.
#[derive(Debug)]
pub struct Admitted<T> {
    io: T,
    /// Running until the first bytes have come.
    silent: Option<Pin<Box<Sleep>>>,
    _permit: OwnedSemaphorePermit,
}

/// The connections of a listener, at most `max` at a time, and never more than half of the file descriptors that the
/// process may have: the rest is for pieces, rows and health checks.
pub fn admit<L: Accept>(listener: L, max: usize) -> impl Stream<Item = io::Result<Admitted<L::Io>>> {
    let slots = Arc::new(Semaphore::new(max.min(half_of_the_descriptors())));
    futures_util::stream::unfold((listener, slots), |(listener, slots)| async move {
        loop {
            match listener.accept().await {
                Ok(io) => match Arc::clone(&slots).try_acquire_owned() {
                    Ok(permit) => {
                        let silent = Some(Box::pin(tokio::time::sleep(FIRST_BYTES)));
                        return Some((Ok(Admitted { io, silent, _permit: permit }), (listener, slots)));
                    }
                    Err(_) => debug!("too many connections, closing the new one"),
                },
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

fn half_of_the_descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit / 2).unwrap_or(usize::MAX)).clamp(1, Semaphore::MAX_PERMITS)
}

impl Accept for TcpListener {
    type Io = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = Self::accept(self).await?;
        // Failing is harmless: it only delays small packets.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

impl Accept for UnixListener {
    type Io = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        Ok(Self::accept(self).await?.0)
    }
}

// === impl Admitted ===

impl<T: Connected> Connected for Admitted<T> {
    type ConnectInfo = T::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Admitted<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if polled.is_ready() {
            self.silent = None;
        } else if let Some(silent) = &mut self.silent
            && silent.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "a connection that says nothing")));
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Admitted<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn so_many_at_a_time_and_none_that_is_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut admitted = Box::pin(admit(listener, 1));
        let mut first = TcpStream::connect(address).await.unwrap();
        let mut one = admitted.next().await.unwrap().unwrap();
        first.write_all(b"x").await.unwrap();
        assert_eq!(one.read_u8().await.unwrap(), b'x');

        let mut second = TcpStream::connect(address).await.unwrap();
        let mut byte = [0; 1];
        let refused = tokio::select! {
            _ = admitted.next() => panic!("there was no room"),
            read = second.read(&mut byte) => read,
        };
        assert!(refused.is_err() || refused.is_ok_and(|count| count == 0), "it is closed");

        drop(one);
        let _silent = TcpStream::connect(address).await.unwrap();
        let mut silent = admitted.next().await.unwrap().unwrap();
        silent.silent = Some(Box::pin(tokio::time::sleep(Duration::from_millis(50))));
        assert_eq!(silent.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
