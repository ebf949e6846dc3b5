//! When and what an actor reads from the origin itself: what nobody else has, in runs of pieces.

use std::sync::Arc;
use std::time::Duration;

use proto::{ByteRange, Kind, PieceIndex, PieceSet};
use swarm::{AnnounceEvent, PickerEvent};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::super::origin::{self, Caller, OriginBytes, OriginEvent};
use super::super::seed::News;
use super::super::shared::Shared;
use super::authority::Authority;
use super::{Actor, TaskError};

/// Hosts that may hold pieces get so long to tell of them before the origin is read.
const CLAIMS_GRACE: Duration = Duration::from_millis(700);
/// After a takeover the hosts of the task come one by one, each with what it holds: they are waited for so long.
const TAKEOVER_GRACE: Duration = Duration::from_secs(2);
/// While neighbours are expected to deliver, whether they do is looked at so often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Failed reads in a row, without a single piece, before the origin is given up.
const ATTEMPTS_MAX: u32 = 6;

/// The state of reading the origin.
#[derive(Debug)]
pub(crate) struct OriginTurn {
    body: Option<OriginBytes>,
    running: Option<AbortHandle>,
    not_before: Option<Instant>,
    attempts: u32,
    waits_for_credentials: bool,
    orphan: bool,
    ignores_claims: bool,
    started: Instant,
}

impl OriginTurn {
    pub(super) fn new(body: Option<OriginBytes>, orphan: bool) -> Self {
        Self {
            body,
            running: None,
            not_before: None,
            attempts: 0,
            waits_for_credentials: false,
            orphan,
            ignores_claims: false,
            started: Instant::now(),
        }
    }

    pub(super) const fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub(super) const fn is_orphan(&self) -> bool {
        self.orphan
    }

    pub(super) const fn wake(&self) -> Option<Instant> {
        self.not_before
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.not_before.is_some_and(|at| at <= now)
    }

    pub(super) const fn is_allowed(&self, authority: &Authority) -> bool {
        authority.is_own() || self.orphan
    }

    pub(super) const fn allow_orphan(&mut self) {
        self.orphan = true;
    }

    /// A supernode answers again: it decides who reads the origin.
    pub(super) fn withdraw(&mut self) {
        if std::mem::take(&mut self.orphan) {
            self.stop();
        }
    }

    pub(super) const fn trust_no_claims(&mut self) {
        self.ignores_claims = true;
    }

    pub(super) const fn credentials_came(&mut self) {
        self.waits_for_credentials = false;
        self.attempts = 0;
        self.not_before = None;
    }

    pub(super) fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
        self.body = None;
    }
}

impl Actor {
    /// Starts reading the origin when that is allowed and nobody else has what is missing.
    pub(super) fn origin_turn(&mut self) {
        self.origin.not_before.take_if(|at| *at <= Instant::now());
        if !self.origin.is_allowed(&self.authority)
            || self.origin.running.is_some()
            || self.origin.waits_for_credentials
            || self.origin.not_before.is_some()
            || self.shared.ended().is_some()
            || self.finishing
        {
            return;
        }
        let body = self.origin.body.take();
        if body.is_none() && !self.connecting.is_empty() && self.origin.started.elapsed() < CLAIMS_GRACE {
            self.origin.not_before = Some(self.origin.started + CLAIMS_GRACE);
            return;
        }
        // Hashes of pieces that are not here were told by a supernode that had them, so hosts may have them, too.
        let taken_over =
            self.authority.has_listener() && self.shared.known_hashes().len() > self.shared.content.have().len();
        if body.is_none() && taken_over && self.origin.started.elapsed() < TAKEOVER_GRACE {
            self.origin.not_before = Some(self.origin.started + TAKEOVER_GRACE);
            return;
        }
        let claimed = if self.origin.ignores_claims || body.is_some() { PieceSet::new() } else { self.claimed() };
        match next_run(&self.shared, &claimed) {
            Some((from, to)) => {
                debug!(task = ?self.shared.task, from = from.0, to = ?to.map(|to| to.0), "reading the origin");
                let limit = self.origin.orphan.then(|| self.inner.orphan_limit.clone());
                let reading = origin::read(
                    Arc::clone(&self.inner),
                    Arc::clone(&self.shared),
                    Caller {
                        spec: self.spec.clone(),
                        headers: self.headers.clone(),
                        limit,
                        read: self.authority.origin_bytes(),
                    },
                    body,
                    from,
                    to,
                );
                self.origin.running = Some(self.inner.tracker.spawn(reading).abort_handle());
            }
            // Neighbours say they have all that is missing: whether they deliver is looked at again.
            None => self.origin.not_before = Some(Instant::now() + LOOK_AGAIN),
        }
    }

    /// Pieces that neighbours say they have and that can be checked.
    fn claimed(&self) -> PieceSet {
        let mut claimed = PieceSet::new();
        for neighbour in self.neighbours.values() {
            claimed.union(&neighbour.have);
        }
        // Without a hash to check it against, a neighbour's piece is of no use.
        let known = self.shared.known_hashes();
        claimed.iter().filter(|piece| known.contains(*piece)).collect()
    }

    pub(super) fn origin_says(&mut self, event: OriginEvent) {
        match event {
            OriginEvent::Piece { piece, hash } => {
                self.origin.attempts = 0;
                if self.shared.expected(piece).is_some_and(|expected| expected != hash) {
                    return self.discard("the origin's bytes are not those that were vouched for");
                }
                self.shared.expect(piece.0, &[hash]);
                self.pick(PickerEvent::Verifiable { pieces: [piece].into_iter().collect() });
                self.pick(PickerEvent::Stored { piece });
                self.news(News::Hashes { first: piece.0, hashes: vec![hash] });
                self.announce(AnnounceEvent::Stored { piece });
                self.shared.changed();
                self.after_store();
            }
            OriginEvent::Length(length) => {
                self.length_known(length);
                if self.shared.layout().length() != Some(length) {
                    return;
                }
                self.news(News::Length { length });
                // A lone piece has another hash now, which has to be told before the task is complete.
                if self.shared.layout().count() == Some(1)
                    && let Some(hash) = self.shared.content.hash_of(PieceIndex(0))
                {
                    self.shared.expect(0, &[hash]);
                    self.news(News::Hashes { first: 0, hashes: vec![hash] });
                }
                self.shared.changed();
                self.after_store();
            }
            OriginEvent::Ended(result) => {
                self.origin.running = None;
                match result {
                    Ok(()) => self.origin_turn(),
                    Err(error) => self.origin_failed(error),
                }
            }
        }
    }

    fn origin_failed(&mut self, error: TaskError) {
        self.origin.attempts += 1;
        let refused = matches!(error.kind(), Kind::Unauthorized | Kind::Forbidden);
        if refused && self.authority.has_listener() {
            warn!(task = ?self.shared.task, %error, "the origin refuses these credentials");
            self.origin.waits_for_credentials = true;
            return self.news(News::Failed { error, credentials_refused: true, waits: true });
        }
        if error.kind().is_transient() && self.origin.attempts < ATTEMPTS_MAX {
            let backoff = Duration::from_millis(200 << self.origin.attempts.min(6));
            let after = error.retry_after().unwrap_or(backoff).min(Duration::from_secs(60));
            warn!(task = ?self.shared.task, %error, retry_in_ms = after.as_millis() as u64, "reading the origin failed");
            self.origin.not_before = Some(Instant::now() + after);
            return;
        }
        warn!(task = ?self.shared.task, %error, "the origin is given up");
        if error.kind() == Kind::Conflict {
            return self.discard(&error.to_string());
        }
        self.fail(error);
    }
}

/// The first run of pieces that are neither here nor claimed by a neighbour; without an end when it reaches the
/// content's end.
fn next_run(shared: &Shared, claimed: &PieceSet) -> Option<(PieceIndex, Option<PieceIndex>)> {
    let mut taken = shared.content.have();
    taken.union(claimed);
    let from = taken.first_absent(PieceIndex(0));
    let count = shared.layout().count();
    if count.is_some_and(|count| from.0 >= count) {
        return None;
    }
    let end = taken.iter().find(|piece| *piece > from);
    Some((from, end))
}

/// The bytes of pieces `from` to `to`, the latter not included.
pub(crate) fn run_range(shared: &Shared, from: PieceIndex, to: Option<PieceIndex>) -> Option<ByteRange> {
    let layout = shared.layout();
    let start = u64::from(from.0) * u64::from(layout.piece_len());
    let end = match (to, layout.length()) {
        (Some(to), _) => u64::from(to.0) * u64::from(layout.piece_len()),
        (None, Some(length)) => length,
        (None, None) => return None,
    };
    ByteRange::new(start, end)
}
