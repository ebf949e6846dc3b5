//! Telling the service manager that we are ready, or stopping (systemd's `sd_notify` protocol).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Where to tell it; without a `NOTIFY_SOCKET` in the environment nothing is sent.
#[derive(Clone, Debug, Default)]
pub struct Notifier {
    socket: Option<OsString>,
}

impl Notifier {
    /// As the service manager says in `NOTIFY_SOCKET`.
    #[must_use]
    pub fn from_env() -> Self {
        Self::new(std::env::var_os("NOTIFY_SOCKET"))
    }

    /// A path, or a name in the abstract namespace after `@`.
    #[must_use]
    pub fn new(socket: Option<OsString>) -> Self {
        Self { socket: socket.filter(|socket| !socket.is_empty()) }
    }

    /// We serve now.
    pub fn ready(&self) {
        self.tell("READY=1");
    }

    /// We are ending.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// One line for `systemctl status`.
    pub fn status(&self, line: &str) {
        self.tell(&format!("STATUS={}", line.replace('\n', " ")));
    }

    /// A service manager that does not listen must not stop the service, so this only logs.
    fn tell(&self, message: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = send(socket, message) {
            tracing::warn!(%error, message, "the service manager could not be told");
        }
    }
}

/// The notifier of this process's environment says that we are ready.
pub fn notify() {
    Notifier::from_env().ready();
}

fn send(socket: &OsStr, message: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(socket)?,
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "NOTIFY_SOCKET is neither a path nor an abstract name",
            ));
        }
    };
    let datagram = UnixDatagram::unbound()?;
    // A full queue must not hold up the service.
    datagram.set_nonblocking(true)?;
    datagram.send_to_addr(message.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut buffer = [0; 256];
        let len = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    #[test]
    fn by_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::new(Some(path.into_os_string()));
        notifier.ready();
        assert_eq!(received(&socket), "READY=1");
        notifier.status("two\nlines");
        assert_eq!(received(&socket), "STATUS=two lines");
        notifier.stopping();
        assert_eq!(received(&socket), "STOPPING=1");
    }

    #[test]
    fn by_abstract_name() {
        let name = format!("skimmer-ready-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Notifier::new(Some(format!("@{name}").into())).ready();
        assert_eq!(received(&socket), "READY=1");
    }

    #[test]
    fn nobody_listens() {
        Notifier::new(None).ready();
        Notifier::new(Some("/nowhere/at/all".into())).ready();
        Notifier::new(Some("relative".into())).ready();
    }
}
