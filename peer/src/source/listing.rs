//! What lies under a folder's URL, read from the pages that nginx (`autoindex`) and Apache (`mod_autoindex`) make of folders.
//!
//! A page is an origin's word and nothing more: only links to children of the very folder count, and a name that
//! would lead a writer of files anywhere else ends the whole listing with an error.

mod html;

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use percent_encoding::percent_decode_str;
use url::Url;

use super::{Guard, OriginRequest, RedactedUrl, Source, SourceError, redact_url};

/// What to list.
#[derive(Clone)]
pub struct ListRequest {
    /// The folder; a missing `/` at its end is added.
    pub url: Url,
    /// The caller's own headers.
    pub headers: HeaderMap,
    /// Which addresses may be reached.
    pub guard: Guard,
    /// Files to take; all when empty.
    pub include: Globs,
    /// Files and folders to leave out.
    pub exclude: Globs,
    /// How deep to go: 0 for the files of the folder itself.
    pub depth_max: usize,
    /// Files to take before it is too many.
    pub files_max: usize,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The folder as it was found after redirects, without user information.
    pub root: Option<Url>,
    /// The files, folder by folder, in the order of the pages.
    pub files: Vec<ListedFile>,
    /// Folders deeper than was asked for, which were not looked into.
    pub beyond_depth: Vec<PathBuf>,
}

/// A file under the folder.
#[derive(Clone, PartialEq, Eq)]
pub struct ListedFile {
    /// Where it belongs below the output folder: one or more plain names, never absolute, never `..`.
    pub path: PathBuf,
    /// Where it is fetched from, with the user information of the URL that was asked for and without its query.
    pub url: Url,
}

/// A set of glob patterns over relative paths. `*` and `?` stop at `/`, `**` does not; a pattern without `/` is
/// about the last name of a path.
#[derive(Clone, Debug, Default)]
pub struct Globs {
    paths: GlobSet,
    names: GlobSet,
}

/// Why a folder could not be listed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListingError {
    /// A page could not be read.
    #[error("cannot list {url}")]
    Source {
        /// Of which folder.
        url: RedactedUrl,
        /// Why.
        source: SourceError,
    },
    /// The answer is no list of files.
    #[error("{url} is no listing of a folder: {what}")]
    NotAListing {
        /// What was read.
        url: RedactedUrl,
        /// What it is instead.
        what: &'static str,
    },
    /// A link whose name cannot be a file's below the output folder.
    #[error("the listing of {url} holds an unsafe name: {name:?}")]
    UnsafeName {
        /// In which listing.
        url: RedactedUrl,
        /// The name, decoded.
        name: String,
    },
    /// A folder's page was redirected out of the folder that is being listed.
    #[error("a listing was redirected out of the folder, to {url}")]
    Left {
        /// Where to.
        url: RedactedUrl,
    },
    /// The folder was redirected to another origin, where the caller's credentials may not go.
    #[error("the folder is now at {url}, another origin; ask for that one, with credentials of its own")]
    Moved {
        /// Where to.
        url: RedactedUrl,
    },
    /// More than may be.
    #[error("more than {limit} {what} under {url}")]
    TooMany {
        /// The folder asked for.
        url: RedactedUrl,
        /// Files or folders.
        what: &'static str,
        /// How many may be.
        limit: usize,
    },
    /// A pattern makes no sense.
    #[error("bad pattern {pattern:?}")]
    Glob {
        /// Which.
        pattern: String,
        /// Why.
        source: globset::Error,
    },
}

/// About 100,000 entries of nginx, or 40,000 of Apache.
const PAGE_BYTES_MAX: usize = 16 << 20;
/// Pages read for one listing; a tree with more folders is fetched in parts.
const FOLDERS_MAX: usize = 10_000;
/// Folders named in [`Listing::beyond_depth`]; more are not remembered.
const BEYOND_MAX: usize = 1_000;
/// What file systems allow for one name.
const NAME_LEN_MAX: usize = 255;

/// A link to a child of the folder whose page it stands on.
#[derive(Debug, PartialEq, Eq)]
struct Child {
    name: Vec<u8>,
    is_folder: bool,
    url: Url,
}

/// Lists the files under a folder. Pages are read one after the other, each with the source's own retries, drawn by `seed`.
///
/// # Errors
/// See [`ListingError`]; nothing is left out silently but what the patterns leave out.
pub async fn list(source: &Source, request: ListRequest, seed: u64) -> Result<Listing, ListingError> {
    let mut root = request.url.clone();
    root.set_query(None);
    root.set_fragment(None);
    if !root.path().ends_with('/') {
        let path = format!("{}/", root.path());
        root.set_path(&path);
    }
    let asked = RedactedUrl::of(&root);
    let mut listing = Listing::default();
    let mut waiting = VecDeque::from([(PathBuf::new(), root, 0usize)]);
    let mut seen = HashSet::new();
    while let Some((path, url, depth)) = waiting.pop_front() {
        let (found_at, page, used_credentials) = read_page(source, &request, url, seed).await?;
        if listing.root.is_none() && used_credentials && found_at.origin() != request.url.origin() {
            return Err(ListingError::Moved { url: RedactedUrl::of(&found_at) });
        }
        let root = listing.root.get_or_insert_with(|| found_at.clone());
        if !is_below(root, &found_at) {
            return Err(ListingError::Left { url: RedactedUrl::of(&found_at) });
        }
        let mut empty = true;
        for mut child in children_of(&found_at, &page) {
            empty = false;
            let path = path.join(safe_name(&child.name, &found_at)?);
            // A page may name a child twice: once by its icon, once by its name.
            if request.exclude.matches(&path) || !seen.insert((path.clone(), child.is_folder)) {
                continue;
            }
            child.url = with_userinfo(child.url, &request.url, root);
            if !child.is_folder {
                if !request.include.is_empty() && !request.include.matches(&path) {
                    continue;
                }
                if listing.files.len() >= request.files_max {
                    return Err(ListingError::TooMany { url: asked, what: "files", limit: request.files_max });
                }
                listing.files.push(ListedFile { path, url: child.url });
            } else if depth < request.depth_max {
                waiting.push_back((path, child.url, depth + 1));
            } else if listing.beyond_depth.len() < BEYOND_MAX {
                listing.beyond_depth.push(path);
            }
            if seen.len() > FOLDERS_MAX + request.files_max.saturating_mul(4) || waiting.len() > FOLDERS_MAX {
                return Err(ListingError::TooMany { url: asked, what: "entries", limit: FOLDERS_MAX });
            }
        }
        if empty && !html::looks_like_a_listing(&page) {
            let what = "it has no links to anything below it";
            return Err(ListingError::NotAListing { url: RedactedUrl::of(&found_at), what });
        }
    }
    tracing::debug!(url = %asked, files = listing.files.len(), beyond_depth = listing.beyond_depth.len(), "folder listed");
    Ok(listing)
}

/// The caller's user information goes to children of the origin the caller named, and to no other's.
fn with_userinfo(mut child: Url, asked: &Url, root: &Url) -> Url {
    if asked.origin() == root.origin() {
        // Both fail only for URLs that cannot have credentials.
        let _ = child.set_username(asked.username());
        let _ = child.set_password(asked.password());
    }
    child
}

/// A page, where it was found, and whether the caller's credentials were shown for it.
async fn read_page(
    source: &Source,
    request: &ListRequest,
    url: Url,
    seed: u64,
) -> Result<(Url, String, bool), ListingError> {
    let shown = RedactedUrl::of(&url);
    let mut page = OriginRequest { headers: request.headers.clone(), ..OriginRequest::new(url, request.guard.clone()) };
    page.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let failed = |source| ListingError::Source { url: shown.clone(), source };
    let response = source.get_with_retry(page, &source.config().retry, seed).await.map_err(failed)?;
    let not = |what| ListingError::NotAListing { url: shown.clone(), what };
    let kind =
        response.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
    if !kind.starts_with("text/html") && !kind.starts_with("application/xhtml+xml") {
        return Err(not("it is no HTML"));
    }
    if response.headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return Err(not("it is compressed although that was not asked for"));
    }
    let mut base = response.url.clone();
    base.set_query(None);
    if !base.path().ends_with('/') {
        return Err(not("it was redirected to something that is no folder"));
    }
    let page =
        response.body.collect(PAGE_BYTES_MAX).await.map_err(failed)?.map_err(|_| not("it is larger than 16 MiB"))?;
    Ok((base, String::from_utf8_lossy(&page).into_owned(), response.used_credentials))
}

/// The links of a page that lead to a child of its folder, in order.
fn children_of<'a>(base: &'a Url, page: &'a str) -> impl Iterator<Item = Child> + 'a {
    html::links(page).filter_map(|href| child_of(base, &href))
}

/// Only what lies directly below counts: sort links (`?C=N;O=D`), the parent, other hosts and deeper links do not.
fn child_of(base: &Url, href: &str) -> Option<Child> {
    if href.is_empty() || href.starts_with(['#', '?']) {
        return None;
    }
    let mut url = base.join(href).ok()?;
    url.set_query(None);
    url.set_fragment(None);
    if !is_below(base, &url) {
        return None;
    }
    let rest = url.path().strip_prefix(base.path())?;
    let (segment, is_folder) = rest.strip_suffix('/').map_or((rest, false), |segment| (segment, true));
    if segment.is_empty() || segment.contains('/') {
        return None;
    }
    let name = percent_decode_str(segment).collect();
    // Whatever a link says of user information is not the caller's.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    Some(Child { name, is_folder, url })
}

fn is_below(folder: &Url, url: &Url) -> bool {
    url.origin() == folder.origin() && url.path().starts_with(folder.path())
}

/// The name as a path of exactly one plain component.
fn safe_name<'n>(name: &'n [u8], url: &Url) -> Result<&'n Path, ListingError> {
    let unsafe_name = name.is_empty()
        || name.len() > NAME_LEN_MAX
        || name == b"."
        || name == b".."
        // Control characters have no place in a file's name, and play tricks on terminals.
        || name.iter().any(|b| matches!(b, b'/' | 0..=31 | 127));
    if unsafe_name {
        return Err(ListingError::UnsafeName {
            url: RedactedUrl::of(url),
            name: String::from_utf8_lossy(name).into_owned(),
        });
    }
    Ok(Path::new(OsStr::from_bytes(name)))
}

// === impl ListRequest ===

impl ListRequest {
    /// The whole of a folder, as deep and as large as dfget takes it unless told otherwise.
    #[must_use]
    pub fn new(url: Url, guard: Guard) -> Self {
        Self {
            url,
            headers: HeaderMap::new(),
            guard,
            include: Globs::default(),
            exclude: Globs::default(),
            depth_max: 5,
            files_max: 1_000,
        }
    }
}

impl fmt::Debug for ListRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, headers: _, guard: _, include, exclude, depth_max, files_max } = self;
        f.debug_struct("ListRequest")
            .field("url", &redact_url(url))
            .field("include", include)
            .field("exclude", exclude)
            .field("depth_max", depth_max)
            .field("files_max", files_max)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ListedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListedFile").field("path", &self.path).field("url", &redact_url(&self.url)).finish()
    }
}

// === impl Globs ===

impl Globs {
    /// Compiles patterns.
    ///
    /// # Errors
    /// [`ListingError::Glob`] for the first that makes no sense.
    pub fn new<P: AsRef<str>>(patterns: impl IntoIterator<Item = P>) -> Result<Self, ListingError> {
        let (mut paths, mut names) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        let mut all = String::new();
        for pattern in patterns {
            let text = pattern.as_ref();
            let bad = |source| ListingError::Glob { pattern: text.to_owned(), source };
            let (bare, set) = match text.strip_prefix('/') {
                Some(anchored) => (anchored, &mut paths),
                None if text.contains('/') => (text, &mut paths),
                None => (text, &mut names),
            };
            let glob = GlobBuilder::new(bare.trim_end_matches('/'))
                .literal_separator(true)
                .backslash_escape(true)
                .build()
                .map_err(bad)?;
            set.add(glob);
            all.push_str(text);
            all.push(' ');
        }
        let bad = |source| ListingError::Glob { pattern: all.trim_end().to_owned(), source };
        Ok(Self { paths: paths.build().map_err(bad)?, names: names.build().map_err(bad)? })
    }

    /// Whether there is no pattern.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty() && self.names.is_empty()
    }

    /// Whether one of the patterns fits this relative path.
    #[must_use]
    pub fn matches(&self, path: &Path) -> bool {
        self.paths.is_match(path) || path.file_name().is_some_and(|name| self.names.is_match(name))
    }
}

// === impl ListingError ===

impl ListingError {
    /// The sort of failure.
    #[must_use]
    pub fn kind(&self) -> proto::Kind {
        match self {
            Self::Source { source, .. } => source.kind(),
            Self::NotAListing { .. } | Self::TooMany { .. } | Self::Glob { .. } => proto::Kind::Invalid,
            Self::UnsafeName { .. } | Self::Left { .. } | Self::Moved { .. } => proto::Kind::Forbidden,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn base() -> Url {
        "http://h:81/pub/a%20b/".parse().unwrap()
    }

    fn name_of(href: &str) -> Option<(String, bool)> {
        child_of(&base(), href).map(|child| (String::from_utf8_lossy(&child.name).into_owned(), child.is_folder))
    }

    #[test]
    fn only_children_count() {
        let file = |name: &str| Some((name.to_owned(), false));
        assert_eq!(name_of("x.txt"), file("x.txt"));
        assert_eq!(name_of("./x:y"), file("x:y"));
        assert_eq!(name_of("x%3Ay"), file("x:y"));
        assert_eq!(name_of("dir/"), Some(("dir".into(), true)));
        assert_eq!(name_of("/pub/a%20b/x"), file("x"));
        assert_eq!(name_of("http://h:81/pub/a%20b/x?download=1#top"), file("x"));
        assert_eq!(name_of("http://u:p@h:81/pub/a%20b/x"), file("x"));
        assert_eq!(name_of("%E4%BD%A0%20%25.txt"), file("你 %.txt"));
        assert_eq!(name_of("...x"), file("...x"));
        for outside in [
            "",
            "#a",
            "?C=N;O=D",
            "?C=M&O=A",
            "../",
            "..",
            ".",
            "./",
            "/",
            "/pub/",
            "/pub/x",
            "/pub/a%20b/",
            "http://h/pub/a%20b/x",
            "https://h:81/pub/a%20b/x",
            "//evil/pub/a%20b/x",
            "mailto:x@y",
            "javascript:x()",
            "%2e%2e/",
            "%2E%2E/%2e%2e/etc/passwd",
            "a/b",
            "../../x",
            "/pub/a%20bc",
            "http://h:81/pub/a%20b/../x",
            "..\\x",
            "data:,x",
        ] {
            assert_eq!(name_of(outside), None, "{outside}");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_end_the_listing() {
        for bad in ["%2Fetc%2Fpasswd", "..%2f..%2fetc%2fpasswd", "a%00b", "a%0ab", "a%2Fb", "%1b[2J"] {
            let child = child_of(&base(), bad).unwrap_or_else(|| panic!("{bad} is a link to a child"));
            assert!(matches!(safe_name(&child.name, &base()), Err(ListingError::UnsafeName { .. })), "{bad}");
        }
        assert!(
            safe_name(b"..", &base()).is_err()
                && safe_name(b"", &base()).is_err()
                && safe_name(&[b'a'; 256], &base()).is_err()
        );
        assert_eq!(safe_name(b"\xe9t\xe9", &base()).unwrap().as_os_str().as_bytes(), b"\xe9t\xe9");
    }

    #[test]
    fn patterns() {
        let globs = Globs::new(["*.rpm", "docs/**/*.html", "/top.txt"]).unwrap();
        let fits = |path: &str| globs.matches(Path::new(path));
        assert!(
            fits("a.rpm") && fits("x/y/a.rpm") && fits("docs/a.html") && fits("docs/x/y/a.html") && fits("top.txt")
        );
        assert!(!fits("a.html") && !fits("x/docs/a.html") && !fits("x/top.txt") && !fits("a.rpm.sig"));
        assert!(matches!(Globs::new(["a[", "b"]), Err(ListingError::Glob { pattern, .. }) if pattern == "a["));
        assert!(Globs::default().is_empty());
    }

    proptest! {
        /// Whatever a page holds, a path made from it stays one plain name below its folder.
        #[test]
        fn no_page_leads_out(page in "(<a href=[\"']?[./%2eEfF:a-z?#&;\\\\ -]{0,24}[\"']?>?|.{0,20}){0,8}") {
            for child in children_of(&base(), &page) {
                prop_assert!(child.url.path().starts_with(base().path()));
                if let Ok(name) = safe_name(&child.name, &base()) {
                    let joined = Path::new("out").join(name);
                    prop_assert_eq!(joined.components().count(), 2);
                    prop_assert!(joined.components().all(|c| matches!(c, std::path::Component::Normal(_))));
                }
            }
        }
    }
}
