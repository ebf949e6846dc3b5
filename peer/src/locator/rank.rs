//! Rendezvous hashing: every host ranks the supernodes of a task the same way, without asking anybody.

use proto::TaskId;
use proto::api::SupernodeEntry;

/// Keeps these hashes apart from all others; changing it moves every task.
const CONTEXT: &[u8] = b"skimmer rendezvous v1";

/// The supernodes in the order in which they own the task. When one goes, only its tasks move, each to the next in its own
/// order; when one comes, only the tasks it now owns move. Depends on the ids alone, not on endpoints nor on the order given.
#[must_use]
pub fn rank(task: TaskId, supernodes: &[SupernodeEntry]) -> Vec<SupernodeEntry> {
    let mut weighed: Vec<(u64, &SupernodeEntry)> =
        supernodes.iter().map(|entry| (weight(task, &entry.id), entry)).collect();
    weighed.sort_by(|(a, x), (b, y)| b.cmp(a).then_with(|| x.id.cmp(&y.id)));
    weighed.into_iter().map(|(_, entry)| entry.clone()).collect()
}

fn weight(task: TaskId, id: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(CONTEXT).update(&task.to_bytes()).update(id.as_bytes());
    let mut first = [0; 8];
    hasher.finalize_xof().fill(&mut first);
    u64::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn entries(n: usize) -> Vec<SupernodeEntry> {
        (0..n).map(|i| SupernodeEntry { id: format!("s{i}"), endpoint: format!("http://10.0.0.{i}:1") }).collect()
    }

    fn task(n: u64) -> TaskId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        TaskId::from_bytes(&bytes).unwrap()
    }

    #[test]
    fn golden() {
        // Hosts of all versions must agree: this order may never change.
        let ids: Vec<_> = rank(task(1), &entries(5)).into_iter().map(|entry| entry.id).collect();
        assert_eq!(ids, GOLDEN);
    }

    const GOLDEN: [&str; 5] = ["s4", "s2", "s0", "s3", "s1"];

    #[test]
    fn tasks_are_spread() {
        let mut owned = HashMap::new();
        for n in 0..4000 {
            *owned.entry(rank(task(n), &entries(4))[0].id.clone()).or_insert(0) += 1;
        }
        assert!(owned.len() == 4 && owned.values().all(|n| (850..1150).contains(n)), "{owned:?}");
    }

    proptest! {
        #[test]
        fn one_that_goes_moves_only_its_tasks(n: u64, count in 1usize..12, gone: prop::sample::Index) {
            let all = entries(count);
            let gone = gone.index(count);
            let before = rank(task(n), &all);
            let mut rest = all.clone();
            let gone = rest.remove(gone);
            let expected: Vec<_> = before.into_iter().filter(|entry| *entry != gone).collect();
            prop_assert_eq!(rank(task(n), &rest), expected);
        }

        #[test]
        fn order_and_endpoints_do_not_matter(n: u64, count in 0usize..12, turn in 0usize..12) {
            let all = entries(count);
            let mut turned = all.clone();
            turned.rotate_left(turn % count.max(1));
            for entry in &mut turned {
                entry.endpoint.push_str("/moved");
            }
            let ids = |list: Vec<SupernodeEntry>| list.into_iter().map(|entry| entry.id).collect::<Vec<_>>();
            prop_assert_eq!(ids(rank(task(n), &turned)), ids(rank(task(n), &all)));
        }
    }
}
