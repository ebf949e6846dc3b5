//! Who calls, and what the caller may do. The one place where "may this caller do this to this repository?" is asked.

mod htpasswd;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use moka::future;
use oci::RepositoryName;
use parking_lot::RwLock;
use tokio::sync::Semaphore;

use crate::active::PerClient;
use crate::client::Client;
use crate::config::AuthConfig;
pub(crate) use htpasswd::{Htpasswd, HtpasswdError};

/// Whoever calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Nobody said who; only where no one has to.
    Anonymous,
    /// A name whose password was right.
    Named(Arc<str>),
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Ask whether this is a registry, and whether one is let in.
    Ping,
    /// List all repositories.
    Catalog,
    /// Read from a repository.
    Pull,
    /// Write to a repository.
    Push,
    /// Remove from a repository.
    Delete,
}

/// Why somebody is not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Say who you are; the value of `WWW-Authenticate`.
    Challenge(String),
    /// Too many passwords are being checked at the moment, in all or of this client.
    Busy,
}

/// A right password is not hashed again for this time; a changed file takes effect at once.
const REMEMBERED_FOR: Duration = Duration::from_secs(300);
const REMEMBERED_MAX: u64 = 10_000;
/// bcrypt takes a processor for a tenth of a second, so that guessing must not take all of them.
const CHECKS_AT_A_TIME: usize = 2;
const CHECK_WAIT: Duration = Duration::from_secs(10);
/// Different names and passwords of one client that wait or are being checked: so many are before another client's, not more.
const CHECKS_PER_CLIENT: u32 = 4;
/// A header longer than that is no name and password.
const AUTHORIZATION_BYTES_MAX: usize = 4096;

/// The gate.
#[derive(Debug)]
pub(crate) struct Access {
    realm: String,
    people: Option<RwLock<Arc<Htpasswd>>>,
    /// Headers whose password was right, by their text and the file's edition.
    known: future::Cache<(u64, Box<[u8]>), Arc<str>>,
    checks: Semaphore,
    waiting: PerClient,
}

impl Access {
    /// Reads the file of passwords, if there is one.
    pub(crate) fn new(config: &AuthConfig) -> Result<Self, HtpasswdError> {
        let people = config.htpasswd.as_deref().map(Htpasswd::read).transpose()?;
        Ok(Self {
            realm: config.realm.clone(),
            people: people.map(|people| RwLock::new(Arc::new(people))),
            known: future::Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(REMEMBERED_FOR).build(),
            checks: Semaphore::new(CHECKS_AT_A_TIME),
            waiting: PerClient::default(),
        })
    }

    /// Reads the file again; on an error the old people stay.
    pub(crate) fn reload(&self) -> Result<(), HtpasswdError> {
        if let Some(people) = &self.people {
            let fresh = people.read().reread()?;
            *people.write() = Arc::new(fresh);
        }
        Ok(())
    }

    /// Who sent this request.
    pub(crate) async fn caller(&self, headers: &HeaderMap, client: Option<Client>) -> Result<Caller, Refusal> {
        let Some(people) = self.people.as_ref().map(|people| Arc::clone(&people.read())) else {
            return Ok(Caller::Anonymous);
        };
        let Some(value) = headers.get(AUTHORIZATION).map(http::HeaderValue::as_bytes) else {
            return Err(self.challenge());
        };
        if value.len() > AUTHORIZATION_BYTES_MAX {
            return Err(self.challenge());
        }
        let key = (people.edition(), Box::from(value));
        if let Some(name) = self.known.get(&key).await {
            return Ok(Caller::Named(name));
        }
        let Some((name, password)) = basic(value) else {
            return Err(self.challenge());
        };
        // What many requests say at once, as those of a pull do, is checked once.
        let checked = self.known.try_get_with(key, self.check(people, name, password, client)).await;
        checked.map(Caller::Named).map_err(|refusal| Refusal::clone(&refusal))
    }

    /// The name, if this is its password.
    async fn check(
        &self,
        people: Arc<Htpasswd>,
        name: String,
        password: String,
        client: Option<Client>,
    ) -> Result<Arc<str>, Refusal> {
        let _counted = self.waiting.enter(client, CHECKS_PER_CLIENT).ok_or(Refusal::Busy)?;
        let Ok(Ok(_permit)) = tokio::time::timeout(CHECK_WAIT, self.checks.acquire()).await else {
            return Err(Refusal::Busy);
        };
        let checked = tokio::task::spawn_blocking(move || people.check(&name, &password).then_some(name)).await;
        match checked {
            Ok(Some(name)) => Ok(name.into()),
            _ => Err(self.challenge()),
        }
    }

    /// May this caller do this to this repository?
    ///
    /// Whoever is let in may do everything; projects and roles will be asked here.
    #[allow(clippy::unused_self, reason = "the seam for roles, which will be asked of the gate")]
    pub(crate) const fn may(
        &self,
        _caller: &Caller,
        _action: Action,
        _repository: Option<&RepositoryName>,
    ) -> Result<(), Refusal> {
        Ok(())
    }

    fn challenge(&self) -> Refusal {
        Refusal::Challenge(format!("Basic realm=\"{}\"", self.realm))
    }
}

/// Name and password of a `Basic` header.
fn basic(value: &[u8]) -> Option<(String, String)> {
    let (scheme, rest) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(rest.trim()).ok()?;
    let (name, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some((name.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(name: &str, password: &str) -> HeaderMap {
        let text = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"));
        HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::try_from(format!("Basic {text}")).unwrap())])
    }

    #[tokio::test]
    async fn without_a_file_everybody_is_let_in() {
        let access = Access::new(&AuthConfig::default()).unwrap();
        assert_eq!(access.caller(&HeaderMap::new(), None).await, Ok(Caller::Anonymous));
    }

    #[tokio::test]
    async fn with_a_file_the_password_counts_and_a_changed_file_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("htpasswd");
        let write = |password: &str| {
            std::fs::write(&path, format!("# people\n\nann:{}\n", bcrypt::hash(password, 4).unwrap())).unwrap();
        };
        write("secret");
        let config = AuthConfig { htpasswd: Some(path.clone()), realm: "here".to_owned(), ..AuthConfig::default() };
        let access = Access::new(&config).unwrap();
        let refused = Err(Refusal::Challenge("Basic realm=\"here\"".to_owned()));
        let ann = Ok(Caller::Named("ann".into()));
        assert_eq!(access.caller(&HeaderMap::new(), None).await, refused);
        assert_eq!(access.caller(&headers("ann", "wrong"), None).await, refused);
        assert_eq!(access.caller(&headers("bob", "secret"), None).await, refused);
        for _ in 0..2 {
            assert_eq!(access.caller(&headers("ann", "secret"), None).await, ann);
        }
        write("other");
        access.reload().unwrap();
        assert_eq!(access.caller(&headers("ann", "secret"), None).await, refused);
        assert_eq!(access.caller(&headers("ann", "other"), None).await, ann);
        std::fs::write(&path, "ann:{SHA}abc\n").unwrap();
        access.reload().unwrap_err();
        assert_eq!(access.caller(&headers("ann", "other"), None).await, ann);
    }

    fn client(address: [u8; 4]) -> Option<Client> {
        Some(Client::at(address.into()))
    }

    #[tokio::test]
    async fn guesses_of_one_client_are_not_before_all_others() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("ann:{}\n", bcrypt::hash("secret", 4).unwrap())).unwrap();
        let config = AuthConfig { htpasswd: Some(file.path().to_owned()), ..AuthConfig::default() };
        let access = Arc::new(Access::new(&config).unwrap());
        let ann = Ok(Caller::Named("ann".into()));
        let ask = |password: &str, from: [u8; 4]| {
            let (access, headers) = (Arc::clone(&access), headers("ann", password));
            tokio::spawn(async move { access.caller(&headers, client(from)).await })
        };
        // As if these were being checked.
        let all = access.checks.acquire_many(u32::try_from(CHECKS_AT_A_TIME).unwrap()).await.unwrap();
        let (guesser, honest) = ([192, 0, 2, 1], [192, 0, 2, 2]);
        let mut guesses: Vec<_> = (0..50).map(|number| ask(&format!("guess {number}"), guesser)).collect();
        // One that many requests make at once is one.
        let logins: Vec<_> = (0..50).map(|_| ask("secret", honest)).collect();
        while access.waiting.enter(client(guesser), CHECKS_PER_CLIENT).is_some() {
            tokio::task::yield_now().await;
        }
        let refused = guesses.split_off(usize::try_from(CHECKS_PER_CLIENT).unwrap());
        for guess in refused {
            assert_eq!(guess.await.unwrap(), Err(Refusal::Busy), "at once");
        }
        drop(all);
        for login in logins {
            assert_eq!(login.await.unwrap(), ann);
        }
        for guess in guesses {
            assert!(matches!(guess.await.unwrap(), Err(Refusal::Challenge(_))));
        }
        // Who is known waits for nobody.
        let _all = access.checks.acquire_many(u32::try_from(CHECKS_AT_A_TIME).unwrap()).await.unwrap();
        assert_eq!(access.caller(&headers("ann", "secret"), client(guesser)).await, ann);
    }
}
