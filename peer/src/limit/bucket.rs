//! The arithmetic of one level. Time is an argument.
//!
//! A bucket is two counters that only grow: the bytes *allowed* so far, which grow with time, and the bytes
//! *reserved* so far. Whoever reserves gets a position, the reserved count with its own bytes in it, and passes once
//! the allowed count has reached it. That makes the order first come, first served without any queue, and a changed
//! rate a changed slope for everyone, those who wait included.

use std::time::Duration;

/// What a bucket holds when nobody takes, in milliseconds of its rate.
const BURST_MS: u64 = 50;
/// What it holds at least, in bytes: less would break up pieces without making the link smoother.
const BURST_MIN_BYTES: u64 = 64 * 1024;
const NANOS_PER_S: u128 = 1_000_000_000;

/// One level's state.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Bytes per second; `None` = all may pass.
    rate: Option<u64>,
    /// Bytes reserved since the start, given back ones subtracted.
    reserved: u64,
    /// Bytes allowed since the start.
    allowed: u64,
    /// The part of a byte that time has allowed beyond `allowed`, in billionths.
    fraction: u64,
    /// Up to when `allowed` was counted.
    counted: Duration,
}

/// The count of allowed bytes at which a reservation passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position(u64);

/// Bytes that may pass at once after a pause, at this rate.
pub(super) fn burst_bytes(rate_bytes_per_s: u64) -> u64 {
    (rate_bytes_per_s / (1000 / BURST_MS)).max(BURST_MIN_BYTES)
}

impl Bucket {
    /// A bucket that is full at time zero.
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self { rate, reserved: 0, allowed: rate.map_or(0, burst_bytes), fraction: 0, counted: Duration::ZERO }
    }

    /// Asks for bytes. They count from now on; see [`Self::wait`] for when they pass.
    pub(super) fn reserve(&mut self, now: Duration, bytes: u64) -> Position {
        self.count(now);
        self.reserved = self.reserved.saturating_add(bytes);
        Position(self.reserved)
    }

    /// How long until a position passes; zero = it does, `None` = never at this rate.
    pub(super) fn wait(&mut self, now: Duration, Position(position): Position) -> Option<Duration> {
        self.count(now);
        let Some(rate) = self.rate else { return Some(Duration::ZERO) };
        let Some(missing) = position.checked_sub(self.allowed).filter(|&missing| missing > 0) else {
            return Some(Duration::ZERO);
        };
        let billionths = u128::from(missing) * NANOS_PER_S - u128::from(self.fraction);
        let nanos =
            billionths.checked_div(u128::from(rate)).map(|n| n + u128::from(n * u128::from(rate) < billionths))?;
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// Takes back a reservation that has not passed.
    ///
    /// Those behind it keep their positions. So the bytes that pass up to any count of allowed bytes never exceed it:
    /// the latest of them had, when it reserved, all the others before it in its position.
    pub(super) fn give_back(&mut self, bytes: u64) {
        self.reserved = self.reserved.saturating_sub(bytes);
    }

    /// Changes the rate. Without one, all who wait pass; what passes then is not counted.
    pub(super) fn set_rate(&mut self, now: Duration, rate: Option<u64>) {
        self.count(now);
        self.rate = rate;
        self.count(now);
    }

    fn count(&mut self, now: Duration) {
        let elapsed = now.saturating_sub(self.counted);
        self.counted = self.counted.max(now);
        let Some(rate) = self.rate else {
            // Nobody is in debt, and a rate set later starts with an empty bucket: what just passed was burst enough.
            self.allowed = self.allowed.max(self.reserved);
            self.fraction = 0;
            return;
        };
        let billionths = elapsed.as_nanos() * u128::from(rate) + u128::from(self.fraction);
        let bytes = u64::try_from(billionths / NANOS_PER_S).unwrap_or(u64::MAX);
        self.fraction = u64::try_from(billionths % NANOS_PER_S).expect("a remainder is less than its divisor");
        self.allowed = self.allowed.saturating_add(bytes);
        let full = self.reserved.saturating_add(burst_bytes(rate));
        if self.allowed >= full {
            self.allowed = full;
            self.fraction = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Take(u64),
        Drop(usize),
        Wait(u64),
        Rate(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (1u64..300_000).prop_map(Step::Take),
            1 => (0usize..8).prop_map(Step::Drop),
            4 => (0u64..200_000_000).prop_map(Step::Wait),
            1 => (1u64..100_000_000).prop_map(Step::Rate),
        ];
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        /// Over any run, what passed is at most what the rates allowed plus one burst.
        #[test]
        fn never_more_than_the_rate(steps in steps(), first_rate in 1u64..100_000_000) {
            let mut bucket = Bucket::new(Some(first_rate));
            let (mut now, mut rate) = (Duration::ZERO, first_rate);
            let mut integral = 0u128; // of rate over time, in billionths
            let mut burst_max = burst_bytes(first_rate);
            let mut waiting: Vec<(Position, u64)> = Vec::new();
            let mut passed = 0u64;
            for step in steps {
                match step {
                    Step::Take(bytes) => waiting.push((bucket.reserve(now, bytes), bytes)),
                    Step::Drop(at) if at < waiting.len() => {
                        let (_, bytes) = waiting.remove(at);
                        bucket.give_back(bytes);
                    }
                    Step::Drop(_) => {}
                    Step::Wait(nanos) => {
                        now += Duration::from_nanos(nanos);
                        integral += u128::from(rate) * u128::from(nanos);
                    }
                    Step::Rate(new) => {
                        bucket.set_rate(now, Some(new));
                        rate = new;
                        burst_max = burst_max.max(burst_bytes(new));
                    }
                }
                waiting.retain(|&(position, bytes)| {
                    let passes = bucket.wait(now, position) == Some(Duration::ZERO);
                    if passes {
                        passed += bytes;
                    }
                    !passes
                });
                let allowed = u64::try_from(integral / NANOS_PER_S).unwrap() + burst_max;
                prop_assert!(passed <= allowed, "{passed} passed, {allowed} were allowed");
            }
        }

        /// Waiting exactly as long as told suffices, and a nanosecond less does not.
        #[test]
        fn the_wait_is_exact(rate in 1u64..20_000_000_000, bytes in 1u64..10_000_000, offset in 0u64..1_000_000_007) {
            let mut bucket = Bucket::new(Some(rate));
            let start = Duration::from_nanos(offset);
            let position = bucket.reserve(start, bytes);
            let wait = bucket.wait(start, position).expect("a rate is set");
            if let Some(less) = wait.checked_sub(Duration::from_nanos(1)) {
                prop_assert_ne!(bucket.wait(start + less, position), Some(Duration::ZERO));
            }
            prop_assert_eq!(bucket.wait(start + wait, position), Some(Duration::ZERO));
        }

        /// A busy bucket loses nothing to looks in between.
        #[test]
        fn counting_often_or_seldom_is_the_same(rate in 1u64..1_000_000_000, looks in proptest::collection::vec(1u64..1_000_000, 1..100)) {
            let (mut often, mut seldom) = (Bucket::new(Some(rate)), Bucket::new(Some(rate)));
            let position = often.reserve(Duration::ZERO, u64::MAX / 2);
            seldom.reserve(Duration::ZERO, u64::MAX / 2);
            let mut now = Duration::ZERO;
            for nanos in looks {
                now += Duration::from_nanos(nanos);
                often.wait(now, position);
            }
            prop_assert_eq!(often.wait(now, position), seldom.wait(now, position));
            prop_assert_eq!((often.allowed, often.fraction), (seldom.allowed, seldom.fraction));
        }
    }

    #[test]
    fn a_rate_of_zero_never_passes_until_changed() {
        let mut bucket = Bucket::new(Some(0));
        let first = bucket.reserve(Duration::ZERO, BURST_MIN_BYTES);
        assert_eq!(bucket.wait(Duration::ZERO, first), Some(Duration::ZERO));
        let second = bucket.reserve(Duration::ZERO, 1);
        assert_eq!(bucket.wait(Duration::from_secs(1000), second), None);
        bucket.set_rate(Duration::from_secs(1000), Some(1));
        assert_eq!(bucket.wait(Duration::from_secs(1000), second), Some(Duration::from_secs(1)));
        bucket.set_rate(Duration::from_secs(1000), None);
        assert_eq!(bucket.wait(Duration::from_secs(1000), second), Some(Duration::ZERO));
    }

    #[test]
    fn a_clock_that_steps_back_gives_nothing() {
        let mut bucket = Bucket::new(Some(1_000_000));
        let position = bucket.reserve(Duration::from_secs(5), 1_000_000);
        let wait = bucket.wait(Duration::from_secs(5), position);
        assert_eq!(bucket.wait(Duration::from_secs(1), position), wait);
    }
}
