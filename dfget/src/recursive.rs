//! A folder: list it, choose, and download several files at a time.

use std::collections::HashSet;
use std::path::{Component, Path};

use futures_util::StreamExt as _;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use proto::{Kind, TaskSpec};
use regex::Regex;
use tracing::warn;
use url::Url;

use crate::Parts;
use crate::download::{Engines, FileJob, Finished};
use crate::exit::{Cause, Failure};
use crate::lister::{ListRequest, ListedFile};
use crate::options::{Job, Recursive, compile, is_plain_name};
use crate::report::{Reporter, shown};

/// Files to list at most when regular expressions choose among them afterwards.
const LISTED_MAX: usize = 100_000;

/// The files' own results, added up.
#[derive(Debug, Default)]
pub struct Folder {
    /// What succeeded.
    pub finished: Vec<Finished>,
    /// What did not.
    pub failures: Vec<Failure>,
}

/// Which files to take.
struct Filter {
    names: GlobSet,
    paths: GlobSet,
    any: bool,
    accept: Option<Regex>,
    reject: Option<Regex>,
}

/// Downloads the folder of the job, or lists it. Dropping the future cancels all of it.
///
/// # Errors
/// When it cannot be listed, or a name in it is unsafe. Files that fail are in the result instead.
pub async fn run(
    engines: &Engines,
    recursive: &Recursive,
    parts: &dyn Parts,
    reporter: &Reporter,
) -> Result<Folder, Failure> {
    let job = engines.job();
    let files = find(job, recursive, parts).await?;
    reporter.listed(files.len());
    if recursive.list {
        reporter.list(&files);
        return Ok(Folder::default());
    }
    // One task for all: they wait for the daemon most of the time, and end together when this one is dropped.
    let downloads = futures_util::stream::iter(files.into_iter().enumerate()).map(async |(number, file)| {
        let file = file_job(job, number, file);
        let result = engines.download(&file, reporter).await;
        reporter.file(&file, &result);
        result
    });
    let mut results = std::pin::pin!(downloads.buffer_unordered(recursive.parallel));
    let mut folder = Folder::default();
    while let Some(result) = results.next().await {
        match result {
            Ok(finished) => folder.finished.push(finished),
            Err(failure) => folder.failures.push(failure),
        }
    }
    Ok(folder)
}

async fn find(job: &Job, recursive: &Recursive, parts: &dyn Parts) -> Result<Vec<ListedFile>, Failure> {
    let filter = Filter::new(recursive)?;
    let chosen_afterwards = filter.accept.is_some() || filter.reject.is_some();
    let request = ListRequest {
        url: job.spec.url.clone(),
        headers: job.headers.clone(),
        include: recursive.include.clone(),
        depth_max: recursive.depth_max,
        files_max: if chosen_afterwards { LISTED_MAX.max(recursive.files_max) } else { recursive.files_max },
    };
    let listed = parts.lister(&job.local)?.list(request).await?;
    if listed.beyond_depth > 0 {
        warn!(folders = listed.beyond_depth, "folders are deeper than --level");
    }
    let mut seen = HashSet::new();
    let mut files = Vec::new();
    for file in listed.files {
        if !is_safe(&file.path) {
            return Err(Failure::new(
                Cause::Kind(Kind::Forbidden),
                format!("the listing holds an unsafe name: {:?}", file.path),
            ));
        }
        if filter.takes(&file) && seen.insert(file.path.clone()) {
            files.push(file);
        }
    }
    if files.len() > recursive.files_max {
        let message = format!(
            "{} files under {}, more than --max-files {}",
            files.len(),
            shown(&job.spec.url),
            recursive.files_max
        );
        return Err(Failure::new(Cause::Kind(Kind::Invalid), message));
    }
    Ok(files)
}

/// Whether a path leads below the folder it is joined to, and nowhere else.
fn is_safe(path: &Path) -> bool {
    let mut components = path.components().peekable();
    components.peek().is_some() && components.all(|part| matches!(part, Component::Normal(name) if is_plain_name(name)))
}

fn file_job(job: &Job, number: usize, file: ListedFile) -> FileJob {
    let asked = &job.spec.url;
    let mut url = file.url;
    // Whoever else a listing leads to gets no credentials.
    let same = url.origin() == asked.origin();
    if same {
        // Both fail only for URLs that cannot have credentials.
        let _ = url.set_username(asked.username());
        let _ = url.set_password(asked.password());
    }
    let headers = if same { job.headers.clone() } else { Vec::new() };
    let output = job.output.join(&file.path);
    FileJob { number, spec: TaskSpec { url, ..job.spec.clone() }, headers, output }
}

// === impl Filter ===

impl Filter {
    fn new(recursive: &Recursive) -> Result<Self, Failure> {
        let usage = |what: String| Failure::new(Cause::Usage, what);
        let (mut names, mut paths) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        for pattern in &recursive.include {
            let glob =
                GlobBuilder::new(pattern).literal_separator(true).build().map_err(|error| usage(error.to_string()))?;
            if pattern.contains('/') {
                paths.add(glob)
            } else {
                names.add(glob)
            };
        }
        let regex = |text: &Option<String>| text.as_deref().map(compile).transpose().map_err(usage);
        Ok(Self {
            names: names.build().map_err(|error| usage(error.to_string()))?,
            paths: paths.build().map_err(|error| usage(error.to_string()))?,
            any: recursive.include.is_empty(),
            accept: regex(&recursive.accept)?,
            reject: regex(&recursive.reject)?,
        })
    }

    fn takes(&self, file: &ListedFile) -> bool {
        let name = file.path.file_name().map(Path::new).unwrap_or_else(|| Path::new(""));
        let url = plain(&file.url);
        (self.any || self.names.is_match(name) || self.paths.is_match(&file.path))
            && self.accept.as_ref().is_none_or(|regex| regex.is_match(&url))
            && self.reject.as_ref().is_none_or(|regex| !regex.is_match(&url))
    }
}

/// The URL as regular expressions see it: people write names as they read them.
fn plain(url: &Url) -> String {
    percent_encoding::percent_decode_str(url.as_str()).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> ListedFile {
        ListedFile { path: path.into(), url: format!("http://h/d/{path}").parse().unwrap() }
    }

    fn takes(include: &[&str], accept: Option<&str>, reject: Option<&str>, path: &str) -> bool {
        let recursive = Recursive {
            include: include.iter().map(|s| (*s).to_owned()).collect(),
            accept: accept.map(Into::into),
            reject: reject.map(Into::into),
            depth_max: 4,
            files_max: 10,
            parallel: 1,
            list: false,
        };
        Filter::new(&recursive).unwrap().takes(&file(path))
    }

    #[test]
    fn globs_and_regexes() {
        assert!(takes(&[], None, None, "a/b"));
        assert!(takes(&["*.gz"], None, None, "a/b.gz"));
        assert!(!takes(&["a/*.gz"], None, None, "a/c/b.gz"));
        assert!(takes(&["a/**/*.gz", "x"], None, None, "a/c/b.gz"));
        assert!(!takes(&["*.gz"], None, None, "a.txt"));
        assert!(takes(&[], Some("a b$"), None, "a b"));
        assert!(!takes(&[], Some("^x"), None, "x"));
        assert!(!takes(&["*"], Some("d/"), Some("tmp"), "x.tmp"));
    }

    #[test]
    fn unsafe_paths() {
        for good in ["a", "a/b", "..a/b"] {
            assert!(is_safe(good.as_ref()), "{good}");
        }
        for bad in ["", "/a", "../a", "a/../b", "./a", "a/.."] {
            assert!(!is_safe(bad.as_ref()), "{bad}");
        }
        assert!(!is_safe(Path::new(&"x".repeat(300))));
    }
}
