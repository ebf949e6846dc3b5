//! `CONNECT`: tunnels to allowed hosts, and interception of named ones.

use std::pin::Pin;
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use proto::Kind;
use rustls::server::Acceptor;
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tracing::{debug, warn};

use super::answers::{self, Style};
use super::handle::connected;
use super::{Scope, Server, Via};
use crate::body::Body;
use crate::ca::Authority;
use crate::io::{Break, IdleIo};
use crate::metrics::{BytesFrom, Outcome, Way};

/// Bytes buffered per direction of a tunnel.
const TUNNEL_BUFFER_BYTES: usize = 64 * 1024;

impl Server {
    pub(super) async fn connect(&self, mut request: Request<Incoming>, via: Via) -> Response<Body> {
        let target = request.uri().authority().and_then(|a| Some((a.host().to_owned(), a.port_u16()?)));
        let Some((host, port)) = target else {
            return self.own(400, Kind::Invalid, "CONNECT needs host:port", Style::Text);
        };
        let connect = &self.0.config.proxy.connect;
        if !connect.ports.contains(&port) {
            return self.own(403, Kind::Forbidden, &format!("port {port} is not in proxy.connect.ports"), Style::Text);
        }
        if !self.0.connect_hosts.iter().any(|pattern| pattern.matches(&host, port)) {
            return self.own(403, Kind::Forbidden, &format!("{host} is not in proxy.connect.hosts"), Style::Text);
        }
        let upgrade = hyper::upgrade::on(&mut request);
        let (tracker, cut) = (via.tracker.clone(), via.cut.clone());
        let server = self.clone();
        if self.is_intercepted(&host, port) {
            tracker.spawn(async move {
                tokio::select! {
                    () = cut.cancelled() => {}
                    () = server.intercept(upgrade, host, port, via) => {}
                }
            });
            self.0.metrics.count(Way::Intercept, Outcome::Ok);
            return connected();
        }
        match self.0.passthrough.dialer().connect(&host, port).await {
            Ok(origin) => {
                tracker.spawn(async move {
                    tokio::select! {
                        () = cut.cancelled() => {}
                        () = server.tunnel(upgrade, origin, via) => {}
                    }
                });
                self.0.metrics.count(Way::Tunnel, Outcome::Ok);
                connected()
            }
            Err(error) => {
                debug!(host, port, %error, "no tunnel");
                let response = answers::problem(error.http_status(), error.kind(), &error.to_string(), Style::Text);
                self.0.metrics.count(Way::Tunnel, Outcome::of(response.status()));
                response
            }
        }
    }

    fn is_intercepted(&self, host: &str, port: u16) -> bool {
        self.0.intercept_hosts.iter().any(|pattern| pattern.matches(host, port))
    }

    /// Copies both ways until both ends are done, or nothing moves any more.
    async fn tunnel(&self, upgrade: OnUpgrade, origin: TcpStream, via: Via) {
        let Ok(client) = upgrade.await else { return };
        let mut client = TokioIo::new(client);
        let mut origin = IdleIo::new(origin, self.0.config.limits.idle_timeout);
        let copied = tokio::io::copy_bidirectional_with_sizes(
            &mut client,
            &mut origin,
            TUNNEL_BUFFER_BYTES,
            TUNNEL_BUFFER_BYTES,
        )
        .await;
        match copied {
            Ok((up, down)) => {
                self.0.metrics.bytes_counter(BytesFrom::Tunnel).inc_by(up + down);
            }
            Err(error) => debug!(peer = %via.peer, %error, "a tunnel broke"),
        }
        drop(via.slot);
    }

    /// Ends the client's TLS with a certificate of our own, and serves what is inside.
    ///
    /// A boxed future of a named type: requests inside of the connection end up in the same functions again.
    fn intercept(
        self,
        upgrade: OnUpgrade,
        host: String,
        port: u16,
        via: Via,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move { self.intercept_inner(upgrade, host, port, via).await })
    }

    async fn intercept_inner(&self, upgrade: OnUpgrade, host: String, port: u16, via: Via) {
        let Some(authority) = &self.0.authority else { return };
        let Ok(client) = upgrade.await else { return };
        let peer = via.peer;
        let handshake = self.handshake(client, authority, &host, port);
        let (stream, name) = match tokio::time::timeout(self.0.config.limits.handshake_timeout, handshake).await {
            Ok(Ok(accepted)) => accepted,
            Ok(Err(error)) => {
                warn!(%peer, host, error = %error, "a client does not take our certificate: does it trust the ca?");
                return;
            }
            Err(_) => {
                debug!(%peer, host, "a tls handshake took too long");
                return;
            }
        };
        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let scope = Scope::Intercepted { host: host.into(), name: name.into(), port };
        let via = Via { scope, ..via };
        if is_h2 { self.http2(stream, via).await } else { self.http1(stream, via, &Break::default()).await }
    }

    async fn handshake(
        &self,
        client: Upgraded,
        authority: &Authority,
        host: &str,
        port: u16,
    ) -> Result<(tokio_rustls::server::TlsStream<TokioIo<Upgraded>>, String), Arc<dyn std::error::Error + Send + Sync>>
    {
        let told = |error: std::io::Error| -> Arc<dyn std::error::Error + Send + Sync> { Arc::new(error) };
        let start = LazyConfigAcceptor::new(Acceptor::default(), TokioIo::new(client)).await.map_err(told)?;
        // A client may connect to an address and ask for a name; a name we may not read is not ours to certify.
        let name = match start.client_hello().server_name() {
            Some(name) if self.is_intercepted(name, port) => name.to_owned(),
            _ => host.to_owned(),
        };
        let config = authority
            .server_config(&name)
            .await
            .map_err(|error| -> Arc<dyn std::error::Error + Send + Sync> { error })?;
        let stream = start.into_stream(config).await.map_err(told)?;
        Ok((stream, name))
    }
}
