//! What is measured, and what each figure has to be.

use serde::Serialize;

/// Blobs that come and go in the tests, in megabytes of 10^6 bytes.
pub(super) const SIZES_MB: [u64; 3] = [1, 10, 100];
/// Clients at a time.
pub(super) const CLIENTS: [usize; 2] = [2, 10];
/// What a promise at two clients becomes at ten.
const MANY_CLIENTS_SHARE: f64 = 0.75;
/// A push may take so many times what hashing and writing its bytes takes.
const FLOORS_MAX: f64 = 3.0;

/// What a row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// Uploads.
    Push,
    /// Downloads of blobs.
    Pull,
    /// Manifests by tag.
    Manifest,
    /// Pages of tags and of repositories.
    List,
    /// Sizes, or both ways, in turn.
    Mixed,
}

/// Whether each blob of a round is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Blobs {
    /// Each is.
    Unique,
    /// They are the same again and again.
    Repeated,
}

/// What a client does once; sizes in MB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Uploads a new blob: POST and PUT.
    Push(u64),
    /// Uploads a new blob: POST, PATCH and PUT.
    PushChunked(u64),
    /// Uploads a blob that is there, into one repository after the other.
    PushAgain(u64),
    /// Downloads the same blob as ever.
    Pull(u64),
    /// Downloads a blob that was not asked for lately.
    PullUnique(u64),
    /// Asks for a manifest by its tag.
    Manifest,
    /// Asks for the tags of a repository.
    Tags,
    /// Asks for the repositories.
    Catalog,
}

/// One test: actions that clients take in turn.
#[derive(Debug, Clone)]
pub(super) struct Test {
    /// Its name.
    pub(super) name: &'static str,
    /// What it is about.
    pub(super) kind: Kind,
    /// Whether its blobs are.
    pub(super) blobs: Blobs,
    /// A round ends after a whole number of these.
    pub(super) actions: Vec<Action>,
    /// The ratio to Distribution that it has to reach with two clients, if there is a promise.
    pub(super) ratio_min: Option<f64>,
    /// More is promised about it.
    pub(super) more: Option<Promise>,
}

/// A promise beside the ratio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Promise {
    /// Half of the pushes take at most [`FLOORS_MAX`] times the floor; with two clients, who have a core each.
    NearFloor,
    /// No more processor time for each GB than Distribution needs.
    CpuOfPeer,
}

/// The figures of a row that promises are about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Figures {
    pub(super) ratio: f64,
    pub(super) p50_ms: f64,
    pub(super) floor_ms: Option<f64>,
    pub(super) ours_cpu: Option<f64>,
    pub(super) peer_cpu: Option<f64>,
}

/// All tests, those that only read first.
pub(super) fn tests() -> Vec<Test> {
    use Action::{Catalog, Manifest, Pull, PullUnique, Push, PushAgain, PushChunked, Tags};
    use Blobs::{Repeated, Unique};
    let test = |name, kind, blobs, actions: &[Action], ratio_min| Test {
        name,
        kind,
        blobs,
        actions: actions.to_vec(),
        ratio_min,
        more: None,
    };
    let more = |test: Test, more| Test { more: Some(more), ..test };
    // 20 % of 1 MB, 70 % of 10 MB, 10 % of 100 MB; the largest early, so that nothing is left over at the end.
    let sizes = [10, 100, 10, 1, 10, 10, 10, 1, 10, 10];
    let three_to_one = |mb| [Pull(mb), Push(mb), Pull(mb), Pull(mb)];
    vec![
        test("pull-1mb", Kind::Pull, Repeated, &[Pull(1)], Some(4.0)),
        test("pull-10mb", Kind::Pull, Repeated, &[Pull(10)], Some(1.5)),
        more(test("pull-100mb", Kind::Pull, Repeated, &[Pull(100)], Some(1.0)), Promise::CpuOfPeer),
        test("pull-1mb-unique", Kind::Pull, Unique, &[PullUnique(1)], Some(4.0)),
        test("pull-mixed", Kind::Mixed, Repeated, &sizes.map(Pull), Some(2.0)),
        test("manifest-by-tag", Kind::Manifest, Repeated, &[Manifest], Some(3.0)),
        test("tags-list", Kind::List, Repeated, &[Tags], Some(1.0)),
        test("catalog", Kind::List, Repeated, &[Catalog], Some(1.0)),
        more(test("push-1mb", Kind::Push, Unique, &[Push(1)], Some(4.0)), Promise::NearFloor),
        test("push-10mb", Kind::Push, Unique, &[Push(10)], Some(2.0)),
        test("push-100mb", Kind::Push, Unique, &[Push(100)], Some(1.5)),
        more(test("push-1mb-chunked", Kind::Push, Unique, &[PushChunked(1)], Some(4.0)), Promise::NearFloor),
        test("push-10mb-chunked", Kind::Push, Unique, &[PushChunked(10)], Some(2.0)),
        test("push-100mb-chunked", Kind::Push, Unique, &[PushChunked(100)], Some(1.5)),
        test("push-1mb-repeated", Kind::Push, Repeated, &[PushAgain(1)], None),
        test("push-mixed", Kind::Mixed, Unique, &sizes.map(Push), Some(2.0)),
        test("pull-push-1mb", Kind::Mixed, Unique, &three_to_one(1), Some(2.0)),
        test("pull-push-10mb", Kind::Mixed, Unique, &three_to_one(10), Some(2.0)),
        test("pull-push-100mb", Kind::Mixed, Unique, &three_to_one(100), Some(2.0)),
    ]
}

impl Action {
    /// The size of its blob, in MB; 0 when it has none.
    pub(super) const fn size_mb(self) -> u64 {
        match self {
            Self::Push(mb) | Self::PushChunked(mb) | Self::PushAgain(mb) | Self::Pull(mb) | Self::PullUnique(mb) => mb,
            Self::Manifest | Self::Tags | Self::Catalog => 0,
        }
    }

    /// Whether it writes.
    pub(super) const fn writes(self) -> bool {
        matches!(self, Self::Push(_) | Self::PushChunked(_) | Self::PushAgain(_))
    }

    /// Whether nginx can do it as well.
    pub(super) const fn is_pull(self) -> bool {
        matches!(self, Self::Pull(_) | Self::PullUnique(_))
    }
}

impl Test {
    /// The mean of its blobs' sizes.
    pub(super) fn size_mb(&self) -> f64 {
        let sum: u64 = self.actions.iter().map(|action| action.size_mb()).sum();
        sum as f64 / self.actions.len() as f64
    }

    /// Whether any action writes.
    pub(super) fn writes(&self) -> bool {
        self.actions.iter().any(|action| action.writes())
    }

    /// The promises that these figures break, in words.
    pub(super) fn missed(&self, clients: usize, figures: &Figures) -> Vec<String> {
        let mut missed = Vec::new();
        let name = format!("{} with {clients} clients", self.name);
        let share = if clients > CLIENTS[0] { MANY_CLIENTS_SHARE } else { 1.0 };
        if let Some(least) = self.ratio_min.map(|least| least * share)
            && figures.ratio < least
        {
            missed.push(format!("{name}: ratio {:.2} is below {least}", figures.ratio));
        }
        let &Figures { p50_ms, floor_ms, ours_cpu, peer_cpu, .. } = figures;
        match self.more {
            Some(Promise::NearFloor) if clients == CLIENTS[0] => {
                let over = floor_ms.filter(|floor| p50_ms > FLOORS_MAX * floor);
                missed.extend(
                    over.map(|floor| format!("{name}: p50 {p50_ms:.2} ms is above {FLOORS_MAX} times {floor:.2} ms")),
                );
            }
            Some(Promise::CpuOfPeer) => {
                let over = ours_cpu.zip(peer_cpu).filter(|(ours, peer)| ours > peer);
                missed.extend(over.map(|(ours, peer)| {
                    format!("{name}: {ours:.3} CPU-s per GB are more than Distribution's {peer:.3}")
                }));
            }
            _ => {}
        }
        missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(ratio: f64) -> Figures {
        Figures { ratio, p50_ms: 3.0, floor_ms: Some(1.0), ours_cpu: Some(0.5), peer_cpu: Some(0.5) }
    }

    fn named(name: &str) -> Test {
        tests().into_iter().find(|test| test.name == name).unwrap()
    }

    #[test]
    fn with_more_clients_three_quarters_are_promised() {
        let test = named("push-1mb");
        assert_eq!(test.missed(2, &figures(4.0)), Vec::<String>::new());
        assert_eq!(test.missed(2, &figures(3.9)).len(), 1);
        assert_eq!(test.missed(10, &figures(3.0)), Vec::<String>::new());
        assert_eq!(test.missed(10, &figures(2.9)).len(), 1);
        assert!(named("push-1mb-repeated").missed(2, &figures(0.1)).is_empty());
    }

    #[test]
    fn floors_and_processor_time_are_promised_too() {
        let slow = Figures { p50_ms: 3.1, ..figures(9.0) };
        assert_eq!(named("push-1mb").missed(2, &slow).len(), 1);
        assert!(named("push-1mb").missed(10, &slow).is_empty());
        assert!(named("push-10mb").missed(2, &slow).is_empty());
        let hot = Figures { ours_cpu: Some(0.6), ..figures(9.0) };
        assert_eq!(named("pull-100mb").missed(10, &hot).len(), 1);
        assert!(named("pull-10mb").missed(2, &hot).is_empty());
    }

    #[test]
    fn mixes_have_the_shares_they_are_named_by() {
        let mixed = named("pull-mixed");
        let of = |mb| mixed.actions.iter().filter(|action| **action == Action::Pull(mb)).count();
        assert_eq!((of(1), of(10), of(100)), (2, 7, 1));
        assert_eq!(mixed.size_mb(), 17.2);
        let both = named("pull-push-10mb");
        assert_eq!(both.actions.iter().filter(|action| action.writes()).count() * 4, both.actions.len());
        let names: std::collections::HashSet<_> = tests().iter().map(|test| test.name).collect();
        assert_eq!(names.len(), tests().len());
    }

    #[test]
    fn all_sizes_are_pushed_and_pulled() {
        let actions: Vec<Action> = tests().into_iter().flat_map(|test| test.actions).collect();
        for mb in SIZES_MB {
            for action in [Action::Push(mb), Action::PushChunked(mb), Action::Pull(mb)] {
                assert!(actions.contains(&action), "{action:?}");
            }
        }
    }
}
