//! What happens to a request: the operator's rules, then the built-in one for blobs. Pure.

use http::Method;
use proto::TaskSpec;
use regex::Regex;
use url::Url;

use crate::blob_path::BlobPath;
use crate::config::{Action, ProxyConfig, Rule};

/// The rules of the proxy, compiled.
#[derive(Clone, Debug)]
pub struct Rules {
    rules: Vec<Compiled>,
    registry_blobs: bool,
}

#[derive(Clone, Debug)]
struct Compiled {
    regex: Regex,
    action: Action,
    redirect: Option<String>,
    use_https: bool,
}

/// What to do with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Serve it from this task.
    P2p(Box<TaskSpec>),
    /// Ask the origin; the URL when it is another one than the client's.
    Direct(Option<Box<Url>>),
    /// Do not.
    Refuse {
        /// The rule that says so.
        rule: String,
    },
    /// A redirect made no URL.
    BadRedirect {
        /// The rule that says so.
        rule: String,
    },
}

impl Rules {
    /// Compiles the rules.
    ///
    /// # Errors
    /// When a pattern is no regular expression.
    pub fn new(config: &ProxyConfig) -> Result<Self, regex::Error> {
        let compile = |rule: &Rule| {
            Ok(Compiled {
                regex: Regex::new(&rule.regex)?,
                action: rule.action,
                redirect: rule.redirect.clone(),
                use_https: rule.use_https,
            })
        };
        let rules = config.rules.iter().map(compile).collect::<Result<_, regex::Error>>()?;
        Ok(Self { rules, registry_blobs: config.registry_blobs })
    }

    /// Decides. `has_body` = the request brings a body, which no task can take along.
    #[must_use]
    pub fn decide(&self, method: &Method, url: &Url, has_body: bool) -> Decision {
        let can_be_task = *method == Method::GET && !has_body;
        let mut url = url.clone();
        url.set_fragment(None);
        let mut changed = false;
        for rule in &self.rules {
            if !rule.regex.is_match(url.as_str()) {
                continue;
            }
            if rule.action == Action::Refuse {
                return Decision::Refuse { rule: rule.regex.as_str().to_owned() };
            }
            if let (Action::Redirect, Some(to)) = (rule.action, &rule.redirect) {
                let Some(target) = rule.rewrite(&url, to) else {
                    return Decision::BadRedirect { rule: rule.regex.as_str().to_owned() };
                };
                url = target;
                changed = true;
            }
            if rule.use_https && url.scheme() == "http" {
                // Cannot fail between these two schemes.
                changed |= url.set_scheme("https").is_ok();
            }
            match rule.action {
                Action::P2p if can_be_task => return Decision::P2p(Box::new(task_of(url))),
                Action::P2p | Action::Direct => return Decision::Direct(changed.then(|| Box::new(url))),
                Action::Redirect | Action::Refuse => {}
            }
        }
        if self.registry_blobs && can_be_task && BlobPath::parse(url.path()).is_some() {
            return Decision::P2p(Box::new(task_of(url)));
        }
        Decision::Direct(changed.then(|| Box::new(url)))
    }
}

impl Compiled {
    fn rewrite(&self, url: &Url, to: &str) -> Option<Url> {
        let target = if to.contains("://") || to.contains('$') || to.contains('/') {
            Url::parse(&self.regex.replace(url.as_str(), to)).ok()?
        } else {
            let (host, port) = crate::pattern::split_authority(to)?;
            let mut target = url.clone();
            let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
            target.set_host(Some(&host)).ok()?;
            target.set_port(port).ok()?;
            target
        };
        (matches!(target.scheme(), "http" | "https") && target.host_str().is_some()).then_some(target)
    }
}

/// A blob is named by its digest wherever it is; anything else by its URL.
fn task_of(url: Url) -> TaskSpec {
    match BlobPath::parse(url.path()).map(|blob| blob.digest) {
        Some(digest) => TaskSpec::of_blob(url, digest),
        None => TaskSpec::of_url(url),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Rules {
        Rules::new(&toml::from_str(text).unwrap()).unwrap()
    }

    fn get(rules: &Rules, url: &str) -> Decision {
        rules.decide(&Method::GET, &Url::parse(url).unwrap(), false)
    }

    fn direct(url: &str) -> Decision {
        Decision::Direct(Some(Box::new(Url::parse(url).unwrap())))
    }

    const BLOB: &str = "/v2/a/b/blobs/sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn the_first_match_decides() {
        let rules = rules(
            r#"rules = [
                { regex = '^https?://files\.example/private/', action = "refuse" },
                { regex = '^https?://files\.example/', action = "p2p", use_https = true },
                { regex = '^http://old\.example/(.*)$', action = "redirect", redirect = 'https://new.example/x/$1' },
                { regex = '^http://alias/', action = "redirect", redirect = "new.example:8080" },
                { regex = '^https://new\.example/x/big', action = "p2p" },
                { regex = 'plain', action = "direct" },
            ]"#,
        );
        assert!(matches!(get(&rules, "http://files.example/private/a"), Decision::Refuse { .. }));
        assert!(matches!(get(&rules, "http://files.example/a/../private/a"), Decision::Refuse { .. }));
        let Decision::P2p(spec) = get(&rules, "http://files.example/a?b=c#d") else { panic!() };
        assert_eq!((spec.url.as_str(), spec.content_addressed), ("https://files.example/a?b=c", false));
        assert_eq!(get(&rules, "http://old.example/y?z"), direct("https://new.example/x/y?z"));
        let Decision::P2p(spec) = get(&rules, "http://old.example/big") else { panic!() };
        assert_eq!(spec.url.as_str(), "https://new.example/x/big");
        assert_eq!(get(&rules, "http://alias/q"), direct("http://new.example:8080/q"));
        assert_eq!(get(&rules, "http://elsewhere/"), Decision::Direct(None));
        // A rule for a blob wins over the built-in one.
        assert_eq!(get(&rules, &format!("http://plain{BLOB}")), Decision::Direct(None));
        let Decision::P2p(spec) = get(&rules, &format!("https://r{BLOB}")) else { panic!() };
        assert!(spec.content_addressed);
    }

    #[test]
    fn only_plain_gets_are_tasks() {
        let all = rules("rules = [{ regex = '.', action = 'p2p' }]");
        let url = Url::parse("http://h/f").unwrap();
        for method in [Method::HEAD, Method::POST, Method::PUT, Method::DELETE] {
            assert_eq!(all.decide(&method, &url, false), Decision::Direct(None));
        }
        assert_eq!(all.decide(&Method::GET, &url, true), Decision::Direct(None));
        let off = rules("registry_blobs = false");
        assert_eq!(get(&off, &format!("https://r{BLOB}")), Decision::Direct(None));
    }

    #[test]
    fn redirects_that_make_no_url_are_told() {
        let rules = rules(r#"rules = [{ regex = '^http://h/', action = "redirect", redirect = 'ftp://x/' }]"#);
        assert!(matches!(get(&rules, "http://h/"), Decision::BadRedirect { .. }));
    }
}
