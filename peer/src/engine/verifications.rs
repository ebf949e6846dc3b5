//! Which contents are being hashed again, or were lately, because somebody complained.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proto::{Generation, TaskId};
use tokio::time::Instant;

/// A content is not hashed again on a complaint within this time.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Contents remembered at most.
const REMEMBERED_MAX: usize = 1024;

/// Turns taken so far.
#[derive(Debug, Default)]
pub(crate) struct Verifications {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    busy: bool,
    begun: HashMap<(TaskId, Generation), Instant>,
}

/// The right to hash one content, given back when dropped.
#[derive(Debug)]
pub(crate) struct Turn(Arc<Verifications>);

impl Verifications {
    /// A turn for this content; none while another one has it, or when it had one lately.
    pub(crate) fn begin(self: &Arc<Self>, key: (TaskId, Generation)) -> Option<Turn> {
        let mut state = self.state.lock();
        state.begun.retain(|_, at| at.elapsed() < AGAIN_AFTER);
        if state.busy || state.begun.contains_key(&key) || state.begun.len() >= REMEMBERED_MAX {
            return None;
        }
        state.busy = true;
        state.begun.insert(key, Instant::now());
        Some(Turn(Arc::clone(self)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.state.lock().busy = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_and_each_once_in_a_while() {
        let turns = Arc::new(Verifications::default());
        let key = |n: u8| (TaskId::from_bytes(&[n; 32]).unwrap(), Generation::unique(1));
        let first = turns.begin(key(1)).unwrap();
        assert!(turns.begin(key(2)).is_none(), "another one is being hashed");
        drop(first);
        assert!(turns.begin(key(1)).is_none(), "it was hashed just now");
        drop(turns.begin(key(2)).unwrap());
        tokio::time::advance(AGAIN_AFTER).await;
        assert!(turns.begin(key(1)).is_some());
    }
}
