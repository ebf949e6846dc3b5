//! When a failed request is made again, and after how long: a pure decision.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::SourceError;
use super::config::duration;

/// How often and how patiently a failed request is made again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryPolicy {
    /// Requests made in all, the first included.
    pub attempts_max: u32,
    /// The wait before the second attempt; it doubles with each further one.
    #[serde(with = "duration")]
    pub delay_min: Duration,
    /// The longest wait of our own choosing.
    #[serde(with = "duration")]
    pub delay_max: Duration,
    /// The longest `Retry-After` that is waited for; an origin that asks for more is not asked again.
    #[serde(with = "duration")]
    pub retry_after_max: Duration,
}

/// What to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Ask again after this long.
    Retry {
        /// The wait.
        after: Duration,
    },
    /// Report the failure.
    GiveUp,
}

/// 2^20 times the smallest wait is beyond any cap.
const DOUBLINGS_MAX: u32 = 20;

// === impl RetryPolicy ===

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts_max: 4,
            delay_min: Duration::from_millis(200),
            delay_max: Duration::from_secs(10),
            retry_after_max: Duration::from_secs(60),
        }
    }
}

impl RetryPolicy {
    /// Never asks twice.
    #[must_use]
    pub fn once() -> Self {
        Self { attempts_max: 1, ..Self::default() }
    }

    /// What to do after attempt number `attempt` (from 1) failed with `error`. The wait lies between half and the
    /// whole of the exponential step, drawn by `seed`, so that many hosts that failed together do not ask again
    /// together. A `Retry-After` is never undercut.
    #[must_use]
    pub fn decide(&self, attempt: u32, error: &SourceError, seed: u64) -> Decision {
        if attempt >= self.attempts_max || !is_worth_retrying(error) {
            return Decision::GiveUp;
        }
        let step = self.delay_min.saturating_mul(1 << attempt.saturating_sub(1).min(DOUBLINGS_MAX)).min(self.delay_max);
        let own = step / 2 + (step / 2).mul_f64(unit(seed, attempt));
        match error.retry_after() {
            Some(asked) if asked > self.retry_after_max => Decision::GiveUp,
            // The jitter comes on top: all who were turned away were told the same moment.
            Some(asked) => Decision::Retry { after: asked + own.min(asked / 4 + self.delay_min) },
            None => Decision::Retry { after: own },
        }
    }

    pub(super) fn problems(&self, wrong: &mut dyn FnMut(&str, String)) {
        if !(1..=100).contains(&self.attempts_max) {
            wrong("attempts_max", format!("must be 1 to 100, not {}", self.attempts_max));
        }
        if self.delay_min > self.delay_max {
            wrong("delay_min", "is longer than delay_max".to_owned());
        }
    }
}

/// Whether the same request may well succeed a little later.
#[must_use]
pub fn is_worth_retrying(error: &SourceError) -> bool {
    match error {
        SourceError::Throttled { .. }
        | SourceError::Resolve { .. }
        | SourceError::Connect { .. }
        | SourceError::Proxy { .. }
        | SourceError::Timeout { .. }
        | SourceError::Lost { .. }
        | SourceError::BodyCutShort { .. } => true,
        // 501 and 505 say "never".
        SourceError::Server { status, .. } => !matches!(status.as_u16(), 501 | 505),
        // 408 and 425 ask for it.
        SourceError::OtherStatus { status, .. } => matches!(status.as_u16(), 408 | 425),
        // A certificate does not get better; a handshake that was cut off may.
        SourceError::Tls { source, .. } => source.get_ref().is_none_or(|inner| !inner.is::<rustls::Error>()),
        _ => false,
    }
}

/// A number in [0, 1) from the seed and the attempt (SplitMix64's finaliser).
fn unit(seed: u64, attempt: u32) -> f64 {
    let mut z = seed.wrapping_add(u64::from(attempt).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    // 53 bits are what an f64 holds exactly.
    #[allow(clippy::cast_precision_loss, reason = "53 bits fit")]
    let numerator = (z >> 11) as f64;
    numerator / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use proptest::prelude::*;

    use super::super::error::{OriginAnswer, Waiting};
    use super::*;

    fn throttled(seconds: Option<u64>) -> SourceError {
        SourceError::Throttled {
            retry_after: seconds.map(Duration::from_secs),
            answer: OriginAnswer::bare(StatusCode::TOO_MANY_REQUESTS),
        }
    }

    fn server(status: u16) -> SourceError {
        let status = StatusCode::from_u16(status).unwrap();
        SourceError::Server { status, answer: OriginAnswer::bare(status) }
    }

    #[test]
    fn what_is_asked_again() {
        let policy = RetryPolicy::default();
        let again = |error: &SourceError| matches!(policy.decide(1, error, 7), Decision::Retry { .. });
        assert!(again(&throttled(None)) && again(&server(500)) && again(&server(502)) && again(&server(503)));
        assert!(again(&SourceError::Timeout {
            host: "h".into(),
            waiting: Waiting::Headers,
            after: Duration::from_secs(1)
        }));
        assert!(again(&SourceError::BodyCutShort { host: "h".into(), expected: Some(2), got: 1 }));
        assert!(!again(&server(501)));
        for status in [401, 403, 404, 410, 416, 405] {
            let error = SourceError::of_status(OriginAnswer::bare(StatusCode::from_u16(status).unwrap()), None);
            assert!(!again(&error), "{status}");
        }
    }

    #[test]
    fn retry_after_is_obeyed_up_to_the_cap() {
        let policy = RetryPolicy::default();
        let Decision::Retry { after } = policy.decide(1, &throttled(Some(60)), 1) else { panic!("gave up") };
        assert!(after >= Duration::from_secs(60));
        assert_eq!(policy.decide(1, &throttled(Some(61)), 1), Decision::GiveUp);
        assert_eq!(policy.decide(4, &throttled(Some(1)), 1), Decision::GiveUp);
        assert_eq!(RetryPolicy::once().decide(1, &throttled(Some(1)), 1), Decision::GiveUp);
    }

    proptest! {
        #[test]
        fn waits_grow_within_their_bounds(attempt in 1u32..200, seed: u64) {
            let policy = RetryPolicy { attempts_max: 1000, ..RetryPolicy::default() };
            let Decision::Retry { after } = policy.decide(attempt, &server(503), seed) else { panic!("gave up") };
            let step = policy.delay_min.saturating_mul(1 << (attempt - 1).min(20)).min(policy.delay_max);
            prop_assert!(after >= step / 2 && after <= step);
            prop_assert_eq!(policy.decide(attempt, &server(503), seed), Decision::Retry { after });
        }
    }
}
