//! The first frames: who is there, what for, and in which version of the protocol.

use std::ops::RangeInclusive;
use std::time::Duration;

use proto::frame::{Frame, HELLO_LEN_MAX};
use proto::{InvalidMessage, wire};
use tokio::time::timeout;
use wire::frame::Body;

use super::Purpose;
use super::channel::{Receiver, Sender};
use super::error::HandshakeError;

/// What this side says of itself.
#[derive(Clone, Debug)]
pub(super) struct Local {
    pub(super) host: wire::HostInfo,
    pub(super) versions: RangeInclusive<u32>,
    /// For the whole exchange.
    pub(super) timeout: Duration,
}

/// What a dialer asked for, before it was answered.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) remote: wire::HostInfo,
    pub(super) purpose: Purpose,
    pub(super) version: u32,
}

/// What an acceptor answered.
#[derive(Debug)]
pub(super) enum Answer {
    Welcome { remote: wire::HostInfo, version: u32 },
    Refused { remote: wire::HostInfo, reason: String },
}

impl Local {
    /// The dialer's part.
    pub(super) async fn hello(
        &self,
        sender: &mut Sender,
        receiver: &mut Receiver,
        purpose: Purpose,
    ) -> Result<Answer, HandshakeError> {
        let hello = wire::Hello {
            version_min: *self.versions.start(),
            version_max: *self.versions.end(),
            host: Some(self.host.clone()),
            purpose: match purpose {
                Purpose::Control => wire::hello::Purpose::Control,
                Purpose::Data => wire::hello::Purpose::Data,
            }
            .into(),
        };
        let exchange = async {
            sender.send(&Frame { body: Some(Body::Hello(hello)) }).await?;
            let Some(Body::HelloAck(ack)) = receiver.recv_within(HELLO_LEN_MAX).await?.body else {
                return Err(HandshakeError::NotHello);
            };
            let remote = ack.host.ok_or(InvalidMessage::new("host"))?;
            remote.id()?;
            match ack.version {
                0 => Ok(Answer::Refused { remote, reason: ack.refused }),
                version if self.versions.contains(&version) => Ok(Answer::Welcome { remote, version }),
                version => Err(HandshakeError::Version { version }),
            }
        };
        self.in_time(exchange).await
    }

    /// The acceptor's part. `admit` holds a place for the channel, so that nobody is welcomed who cannot be served;
    /// what it gives is handed back.
    pub(super) async fn hear<T>(
        &self,
        sender: &mut Sender,
        receiver: &mut Receiver,
        admit: impl Future<Output = Option<T>> + Send,
    ) -> Result<(Asked, T), HandshakeError> {
        let exchange = async {
            let Some(Body::Hello(hello)) = receiver.recv_within(HELLO_LEN_MAX).await?.body else {
                return Err(HandshakeError::NotHello);
            };
            match self.judge(hello) {
                Ok(asked) => {
                    let admitted = admit.await.ok_or(HandshakeError::Backlog)?;
                    sender.send(&self.ack(asked.version, String::new())).await?;
                    Ok((asked, admitted))
                }
                Err(reason) => {
                    sender.send(&self.ack(0, reason.clone())).await?;
                    Err(HandshakeError::Refused { reason })
                }
            }
        };
        self.in_time(exchange).await
    }

    /// The answer that turns a dialer away.
    pub(super) fn ack(&self, version: u32, refused: String) -> Frame {
        Frame { body: Some(Body::HelloAck(wire::HelloAck { version, host: Some(self.host.clone()), refused })) }
    }

    fn judge(&self, hello: wire::Hello) -> Result<Asked, String> {
        let purpose = match hello.purpose() {
            wire::hello::Purpose::Control if hello.purpose == 0 => Purpose::Control,
            wire::hello::Purpose::Data => Purpose::Data,
            wire::hello::Purpose::Control => return Err(format!("purpose {} is not known here", hello.purpose)),
        };
        let (ours_min, ours_max) = (*self.versions.start(), *self.versions.end());
        let version = hello.version_max.min(ours_max);
        if version < ours_min.max(hello.version_min) || hello.version_min > hello.version_max {
            return Err(format!(
                "versions {} to {} are offered, {ours_min} to {ours_max} are spoken here",
                hello.version_min, hello.version_max
            ));
        }
        let remote = hello.host.ok_or("hello names no host")?;
        let id = remote.id().map_err(|error| error.to_string())?;
        if self.host.id().is_ok_and(|own| own == id) {
            return Err("this is the host that dials".into());
        }
        Ok(Asked { remote, purpose, version })
    }

    async fn in_time<T>(&self, exchange: impl Future<Output = Result<T, HandshakeError>>) -> Result<T, HandshakeError> {
        timeout(self.timeout, exchange).await.map_err(|_| HandshakeError::Timeout { after: self.timeout })?
    }
}

#[cfg(test)]
mod tests {
    use proto::HostId;

    use super::*;

    fn host(id: u128) -> wire::HostInfo {
        wire::HostInfo { host_id: HostId::new(id).to_bytes().to_vec().into(), ..Default::default() }
    }

    fn local(versions: RangeInclusive<u32>) -> Local {
        Local { host: host(1), versions, timeout: Duration::from_secs(1) }
    }

    fn hello(version_min: u32, version_max: u32) -> wire::Hello {
        wire::Hello { version_min, version_max, host: Some(host(2)), purpose: 1 }
    }

    #[test]
    fn transport_handshake_takes_the_highest_common_version() {
        for (ours, theirs, expected) in [
            (1..=2, (1, 2), Some(2)),
            (1..=2, (1, 1), Some(1)),
            (1..=2, (2, 9), Some(2)),
            (2..=3, (1, 1), None),
            (1..=2, (3, 4), None),
            (1..=4, (3, 2), None),
            (1..=2, (0, 0), None),
            (1..=2, (0, u32::MAX), Some(2)),
        ] {
            let asked = local(ours.clone()).judge(hello(theirs.0, theirs.1));
            assert_eq!(asked.as_ref().ok().map(|a| a.version), expected, "{ours:?} {theirs:?}");
        }
    }

    #[test]
    fn transport_handshake_refuses_nonsense_with_a_reason() {
        let nobody = wire::Hello { host: None, ..hello(1, 2) };
        let short = wire::Hello { host: Some(wire::HostInfo::default()), ..hello(1, 2) };
        let itself = wire::Hello { host: Some(host(1)), ..hello(1, 2) };
        let purpose = wire::Hello { purpose: 7, ..hello(1, 2) };
        for bad in [nobody, short, itself, purpose] {
            assert!(!local(1..=2).judge(bad).expect_err("refused").is_empty());
        }
    }
}
