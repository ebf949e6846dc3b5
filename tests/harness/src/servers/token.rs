//! A token server as docker-registry trusts it (Distribution's "token authentication").

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use parking_lot::Mutex;
use rcgen::{KeyPair, SigningKey};
use serde_json::json;

use super::rogue::Served;
use crate::{
    Authority, Host, Run, basic_auth,
    tls::{Alphabet, base64, raw_signature},
};

/// docker-registry accepts a token this long after its end (`Leeway` in its token package).
const REGISTRY_LEEWAY: Duration = Duration::from_secs(60);

/// Gives tokens to one user; they last as long as they should, the registry's leeway counted in.
#[derive(Debug)]
pub struct TokenServer {
    shared: Arc<Shared>,
    served: Served,
    trust: PathBuf,
}

struct Shared {
    user: String,
    password: String,
    lifetime: Mutex<Duration>,
    key: KeyPair,
    cert: Vec<u8>,
    issued: Mutex<Vec<String>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("user", &self.user).finish_non_exhaustive()
    }
}

impl TokenServer {
    /// The audience of its tokens.
    pub const SERVICE: &'static str = "origin";
    /// Who its tokens say made them.
    pub const ISSUER: &'static str = "token-server";

    /// Starts it in this process, listening on the host.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(host: &Host, run: &Run, user: &str, password: &str, lifetime: Duration) -> Result<Self> {
        let authority = Authority::new(&run.data_dir("tokens")?)?;
        let key = KeyPair::generate()?;
        let cert = authority.issue_for("token-server", &["token-server"], &[], &key)?;
        let shared = Arc::new(Shared {
            user: user.to_owned(),
            password: password.to_owned(),
            lifetime: Mutex::new(lifetime),
            key,
            cert: cert.der().to_vec(),
            issued: Mutex::default(),
        });
        let answering = Arc::clone(&shared);
        let served = Served::start(host, move |request, _| {
            let answer = answering.answer(&request);
            async move { answer.map(http_body_util::Either::Left) }
        })?;
        Ok(Self { shared, served, trust: authority.path().to_owned() })
    }

    /// Where clients get their tokens.
    #[must_use]
    pub fn realm(&self) -> String {
        format!("http://{}/token", self.addr())
    }

    /// Where it listens.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.served.addr()
    }

    /// The PEM file a registry has to trust.
    #[must_use]
    pub fn trust(&self) -> &Path {
        &self.trust
    }

    pub(crate) fn credentials(&self) -> (String, String) {
        (self.shared.user.clone(), self.shared.password.clone())
    }

    /// Changes how long later tokens last.
    pub fn set_lifetime(&self, lifetime: Duration) {
        *self.shared.lifetime.lock() = lifetime;
    }

    /// The scopes tokens were given for so far, oldest first.
    #[must_use]
    pub fn issued(&self) -> Vec<String> {
        self.shared.issued.lock().clone()
    }
}

impl Shared {
    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let reply = |status: StatusCode, body: String| {
            let mut response = Response::new(Full::new(Bytes::from(body)));
            *response.status_mut() = status;
            response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
            response
        };
        let expected = basic_auth(&self.user, &self.password);
        let given = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        if given != Some(expected.as_str()) {
            return reply(StatusCode::UNAUTHORIZED, json!({"details": "wrong user or password"}).to_string());
        }
        let query = url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes());
        let scopes: Vec<String> = query
            .filter(|(name, _)| name == "scope")
            .flat_map(|(_, value)| value.split(' ').map(ToOwned::to_owned).collect::<Vec<_>>())
            .collect();
        match self.token(&scopes) {
            Ok(body) => reply(StatusCode::OK, body.to_string()),
            Err(error) => {
                reply(StatusCode::INTERNAL_SERVER_ERROR, json!({"details": format!("{error:#}")}).to_string())
            }
        }
    }

    fn token(&self, scopes: &[String]) -> Result<serde_json::Value> {
        let lifetime = *self.lifetime.lock();
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let access: Vec<_> = scopes
            .iter()
            .filter_map(|scope| {
                // repository:name/with:port:pull,push
                let (kind, rest) = scope.split_once(':')?;
                let (name, actions) = rest.rsplit_once(':')?;
                Some(json!({"type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>()}))
            })
            .collect();
        let id: u64 = rand::random();
        let claims = json!({
            "iss": TokenServer::ISSUER, "sub": self.user, "aud": TokenServer::SERVICE, "jti": format!("{id:x}"),
            // In the past, on purpose: the registry adds its leeway.
            "exp": (now + lifetime).saturating_sub(REGISTRY_LEEWAY).as_secs(),
            "nbf": now.as_secs().saturating_sub(10), "iat": now.as_secs(), "access": access,
        });
        let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [base64(&self.cert, Alphabet::Standard)]});
        let encode = |value: &serde_json::Value| base64(value.to_string().as_bytes(), Alphabet::Url);
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = raw_signature(&self.key.sign(signed.as_bytes())?)?;
        let token = format!("{signed}.{}", base64(&signature, Alphabet::Url));
        self.issued.lock().push(scopes.join(" "));
        Ok(json!({"token": token, "access_token": token, "expires_in": lifetime.as_secs()}))
    }
}
