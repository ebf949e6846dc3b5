//! What a picker knows of one neighbour, and of its own speed.

use std::time::Duration;

use proto::{HostId, PieceSet};

use crate::Time;

/// An answer weighs this much in the averages of speed and waiting time.
const NEW_WEIGHT: f64 = 0.25;
/// What is outstanding at one neighbour should last this long at its speed: longer than a round trip and a burst of
/// its other work, short enough to change one's mind.
pub(super) const HORIZON_S: f64 = 0.12;
/// Requests outstanding at one neighbour always allowed: one being sent, one waiting.
const OUTSTANDING_BASE: u32 = 2;
/// A neighbour's published queue is believed less as it gets older; after this long not at all.
const QUEUE_BELIEVED_S: f64 = 1.0;
/// The first pause after a failed request; it doubles with each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// The longest pause after failed requests.
const BACKOFF_MAX: Duration = Duration::from_secs(4);
/// The first pause after a request that was never answered; it doubles with each further one.
const SILENCE_FIRST: Duration = Duration::from_secs(2);
/// The longest such pause; with nothing else to do silent neighbours are asked in spite of it.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Bounds of the pause after a busy answer.
const BUSY_MIN_S: f64 = 0.01;
const BUSY_MAX_S: f64 = 1.0;

/// One request that was put to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) piece: u32,
    pub(super) at: Time,
    pub(super) deadline: Time,
}

#[derive(Debug)]
pub(super) struct Neighbour {
    pub(super) id: HostId,
    pub(super) seed: bool,
    pub(super) have: PieceSet,
    /// Pieces it has that may be asked for now.
    pub(super) useful: u32,
    pub(super) asked: Vec<Asked>,
    queued_bytes: f64,
    queued_at: Time,
    /// What it sends in all when it is busy; 0 = not known.
    capacity_bytes_per_s: f64,
    /// What it sends to us when it is asked; 0 = not known.
    speed_bytes_per_s: f64,
    last_good: Time,
    pub(super) pause_until: Time,
    failures: u32,
    /// Requests in a row that it never answered.
    pub(super) silences: u32,
}

/// The host's own receiving: speed and how long an answer takes.
#[derive(Debug, Default)]
pub(super) struct Meter {
    bytes: f64,
    at: Time,
    /// The best speed lately, which fades slowly.
    peak_bytes_per_s: f64,
    /// Average time from request to stored piece, 0 = not known.
    pub(super) answer_s: f64,
}

impl Neighbour {
    pub(super) fn new(id: HostId, seed: bool, now: Time) -> Self {
        Self {
            id,
            seed,
            have: PieceSet::new(),
            useful: 0,
            asked: Vec::new(),
            queued_bytes: 0.0,
            queued_at: now,
            capacity_bytes_per_s: 0.0,
            speed_bytes_per_s: 0.0,
            last_good: now,
            pause_until: Time::default(),
            failures: 0,
            silences: 0,
        }
    }

    /// It told how much it has to send and how fast it sends.
    pub(super) fn told_load(&mut self, now: Time, queued_bytes: u64, upload_bytes_per_s: u64) {
        self.queued_bytes = queued_bytes as f64;
        self.queued_at = now;
        // An idle host's speed says nothing of what it could send, so the best it has shown fades only slowly.
        self.capacity_bytes_per_s = (self.capacity_bytes_per_s * 0.98).max(upload_bytes_per_s as f64);
    }

    /// A piece arrived from it.
    pub(super) fn answered(&mut self, now: Time, asked_at: Time, bytes: u32) {
        let began = asked_at.max(self.last_good);
        let sample = f64::from(bytes) / now.since(began).as_secs_f64().max(1e-6);
        self.speed_bytes_per_s = if self.speed_bytes_per_s == 0.0 {
            sample
        } else {
            self.speed_bytes_per_s.mul_add(1.0 - NEW_WEIGHT, sample * NEW_WEIGHT)
        };
        self.last_good = now;
        self.failures = 0;
        self.silences = 0;
    }

    /// Requests that may be outstanding at it.
    pub(super) fn outstanding_max(&self, piece_len: u32, limit: u32) -> u32 {
        let by_speed = self.speed_bytes_per_s * HORIZON_S / f64::from(piece_len.max(1));
        // The sum is far below u32::MAX: it is cut at the limit.
        (OUTSTANDING_BASE + by_speed.min(f64::from(limit)) as u32).min(limit.max(1))
    }

    /// Seconds until it would have sent one more piece, as far as is known. `typical` is the speed taken for a
    /// neighbour of which nothing is known.
    pub(super) fn wait_s(&self, now: Time, piece_len: u32, typical: f64) -> f64 {
        let age = now.since(self.queued_at).as_secs_f64();
        let believed = self.queued_bytes * (1.0 - age / QUEUE_BELIEVED_S).max(0.0);
        let own = self.asked.len() as f64 * f64::from(piece_len);
        let speed = self.capacity_bytes_per_s.max(self.speed_bytes_per_s);
        let speed = if speed > 0.0 { speed } else { typical };
        (believed.max(own) + f64::from(piece_len)) / speed.max(1.0)
    }

    pub(super) fn busy(&mut self, now: Time, queued_bytes: u64, typical: f64) {
        self.queued_bytes = queued_bytes as f64;
        self.queued_at = now;
        let speed = self.capacity_bytes_per_s.max(self.speed_bytes_per_s).max(typical).max(1.0);
        // Half of what is queued: by then there is room again, and others were told to come back as well.
        let pause_s = (self.queued_bytes / speed / 2.0).clamp(BUSY_MIN_S, BUSY_MAX_S);
        self.pause_until = self.pause_until.max(now + Duration::from_secs_f64(pause_s));
    }

    pub(super) fn failed(&mut self, now: Time) {
        let pause = BACKOFF_FIRST.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_MAX);
        self.failures += 1;
        self.pause_until = self.pause_until.max(now + pause);
    }

    /// A request was never answered. All that were put to it at the same time run out together, and count once.
    pub(super) fn silent(&mut self, now: Time) {
        if self.pause_until > now && self.silences > 0 {
            return;
        }
        let pause = SILENCE_FIRST.saturating_mul(1 << self.silences.min(8)).min(SILENCE_MAX);
        self.silences += 1;
        self.pause_until = self.pause_until.max(now + pause);
    }

    pub(super) fn take(&mut self, piece: u32) -> Option<Asked> {
        let at = self.asked.iter().position(|a| a.piece == piece)?;
        Some(self.asked.swap_remove(at))
    }

    pub(super) const fn capacity(&self) -> f64 {
        self.capacity_bytes_per_s
    }
}

impl Meter {
    /// Time in which the speed's memory fades.
    const FADE_S: f64 = 0.5;
    /// Time in which the memory of the best speed fades.
    const PEAK_FADE_S: f64 = 10.0;

    pub(super) fn add(&mut self, now: Time, bytes: u32, took: Duration) {
        let age = now.since(self.at).as_secs_f64();
        self.bytes = self.bytes.mul_add((-age / Self::FADE_S).exp(), f64::from(bytes));
        self.peak_bytes_per_s =
            (self.peak_bytes_per_s * (-age / Self::PEAK_FADE_S).exp()).max(self.bytes / Self::FADE_S);
        self.at = now;
        let took = took.as_secs_f64();
        self.answer_s =
            if self.answer_s == 0.0 { took } else { self.answer_s.mul_add(1.0 - NEW_WEIGHT, took * NEW_WEIGHT) };
    }

    /// An answer came after the request had been given up.
    pub(super) fn late(&mut self, given_up_after: Duration) {
        self.answer_s = self.answer_s.max(given_up_after.as_secs_f64());
    }

    /// Bytes per second received at best, lately. The present speed would not do: who is slow for a moment would ask
    /// for less, and be slower for it.
    pub(super) const fn peak(&self) -> f64 {
        self.peak_bytes_per_s
    }
}
