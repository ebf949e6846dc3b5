//! One rate for all downloads that ask to share it (`--totallimit`), and a floor for each (`--minrate`).

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use peer::engine::Task;

/// The downloads of this process that run at this moment. Clones are the same ones.
#[derive(Clone, Debug, Default)]
pub struct Shares(Arc<Mutex<Running>>);

#[derive(Debug, Default)]
struct Running {
    next: u64,
    downloads: BTreeMap<u64, (Share, Task)>,
}

/// What one download asks for, in bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// For all downloads that name a total, together; the smallest named counts.
    pub(super) total: Option<u64>,
    /// For this one at most.
    pub(super) own: Option<u64>,
    /// For this one at least, of what is shared.
    pub(super) min: Option<u64>,
}

/// A download takes part until this is dropped.
#[derive(Debug)]
pub(super) struct Member {
    shares: Shares,
    number: u64,
}

impl Shares {
    /// Lets a download take part.
    pub(super) fn join(&self, share: Share, task: &Task) -> Member {
        let mut running = self.0.lock();
        let number = running.next;
        running.next += 1;
        running.downloads.insert(number, (share, task.clone()));
        running.apply();
        Member { shares: self.clone(), number }
    }
}

impl Running {
    fn apply(&self) {
        let asked: Vec<Share> = self.downloads.values().map(|(share, _)| *share).collect();
        for ((_, task), rate) in self.downloads.values().zip(rates(&asked)) {
            task.set_rate(rate);
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let gone = {
            let mut running = self.shares.0.lock();
            let gone = running.downloads.remove(&self.number);
            running.apply();
            gone
        };
        // The task's end takes other locks.
        drop(gone);
    }
}

/// What each gets: an equal part of the total, but not less than its floor nor more than its own limit.
fn rates(asked: &[Share]) -> Vec<Option<u64>> {
    let sharing = asked.iter().filter(|share| share.total.is_some()).count() as u64;
    let total = asked.iter().filter_map(|share| share.total).min();
    asked
        .iter()
        .map(|share| {
            let part = share.total.and(total).map(|total| (total / sharing.max(1)).max(share.min.unwrap_or(0)).max(1));
            [part, share.own].into_iter().flatten().min()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(total: u64, own: u64, min: u64) -> Share {
        let given = |value| (value > 0).then_some(value);
        Share { total: given(total), own: given(own), min: given(min) }
    }

    #[test]
    fn a_total_is_shared_by_those_that_name_it() {
        assert_eq!(rates(&[of(0, 0, 0)]), [None]);
        assert_eq!(rates(&[of(100, 0, 0)]), [Some(100)]);
        assert_eq!(rates(&[of(100, 0, 0), of(100, 0, 0), of(0, 7, 0)]), [Some(50), Some(50), Some(7)]);
        assert_eq!(rates(&[of(100, 10, 0), of(80, 0, 0)]), [Some(10), Some(40)]);
        assert_eq!(rates(&[of(100, 0, 60), of(100, 0, 0)]), [Some(60), Some(50)]);
        assert_eq!(rates(&[of(1, 0, 0), of(1, 0, 0)]), [Some(1), Some(1)], "never nothing");
    }
}
