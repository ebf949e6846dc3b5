use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use proto::{Generation, HostId, PieceIndex, TaskId};
use swarm::{RefuseUpload, Time, UploadAction, UploadConfig, UploadEvent, Uploader, invariants};

fn request(from: u128, id: u64, piece: u32, expires_ms: u64) -> UploadEvent {
    UploadEvent::Request {
        from: HostId::new(from),
        id,
        task: TaskId::from_bytes(&[7; 32]).expect("32 bytes"),
        generation: Generation::unique(1),
        piece: PieceIndex(piece),
        bytes: 1_000,
        expires: Duration::from_millis(expires_ms),
    }
}

#[derive(Clone, Debug)]
enum Op {
    Request(u128, u32, u64),
    Cancel(usize),
    Sent(usize),
    Left(u128),
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0u128..5, 0u32..10, 0u64..500).prop_map(|(h, p, e)| Op::Request(h, p, e)),
        1 => any::<usize>().prop_map(Op::Cancel),
        5 => any::<usize>().prop_map(Op::Sent),
        1 => (0u128..5).prop_map(Op::Left),
        2 => (0u64..300).prop_map(Op::Pass),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Waiting(Time),
    Sending,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_request_gets_one_answer_within_the_limits(ops in proptest::collection::vec(op(), 1..200)) {
        let config = UploadConfig { slots: 3, queue_per_peer_max: 4, queue_max: 10 };
        let mut uploader = Uploader::new(config);
        let mut open: BTreeMap<(HostId, u64), State> = BTreeMap::new();
        let mut now = Time::default();
        let mut next_id = 0;
        for op in ops {
            let pick = |at: usize, sending: bool| {
                let keys: Vec<_> = open.iter().filter(|(_, s)| (**s == State::Sending) == sending).map(|(k, _)| *k).collect();
                (!keys.is_empty()).then(|| keys[at % keys.len()])
            };
            let event = match op {
                Op::Request(from, piece, expires) => {
                    next_id += 1;
                    open.insert((HostId::new(from), next_id), State::Waiting(now + Duration::from_millis(expires)));
                    request(from, next_id, piece, expires)
                }
                Op::Cancel(at) => {
                    let Some((from, id)) = pick(at, false) else { continue };
                    UploadEvent::Cancel { from, id }
                }
                Op::Sent(at) => {
                    let Some((to, id)) = pick(at, true) else { continue };
                    open.remove(&(to, id));
                    UploadEvent::Sent { to, id }
                }
                Op::Left(peer) => {
                    let peer = HostId::new(peer);
                    open.retain(|(from, _), state| *from != peer || *state == State::Sending);
                    UploadEvent::Left { peer }
                }
                Op::Pass(ms) => {
                    now = now + Duration::from_millis(ms);
                    UploadEvent::Tick
                }
            };
            let mut actions = Vec::new();
            uploader.handle(now, event, &mut actions);
            for action in actions {
                match action {
                    UploadAction::Send { to, id, .. } => {
                        let old = open.insert((to, id), State::Sending);
                        prop_assert!(matches!(old, Some(State::Waiting(until)) if until > now), "{old:?}");
                    }
                    UploadAction::Refuse { to, id, why } => {
                        let old = open.remove(&(to, id));
                        prop_assert!(matches!(old, Some(State::Waiting(_))));
                        if why == RefuseUpload::Expired {
                            prop_assert!(matches!(old, Some(State::Waiting(until)) if until <= now));
                        }
                    }
                    UploadAction::WakeAt(at) => prop_assert!(at > now),
                }
            }
            prop_assert_eq!(invariants::uploader(&uploader), Ok(()));
            let sending = open.values().filter(|s| **s == State::Sending).count();
            prop_assert_eq!((uploader.active(), uploader.waiting()), (sending, open.len() - sending));
            prop_assert_eq!(uploader.queued_bytes(), open.len() as u64 * 1_000);
        }
    }
}

#[test]
fn neighbours_take_turns() {
    let mut uploader = Uploader::new(UploadConfig { slots: 1, ..UploadConfig::default() });
    let mut actions = Vec::new();
    for (id, from) in [1, 1, 1, 1, 2, 2, 3].into_iter().enumerate() {
        uploader.handle(Time::default(), request(from, id as u64, id as u32, 1_000), &mut actions);
    }
    let mut order = Vec::new();
    let mut at = 0;
    while let Some(action) = actions.get(at).cloned() {
        if let UploadAction::Send { to, id, .. } = action {
            order.push((to.bits(), id));
            uploader.handle(Time::default(), UploadEvent::Sent { to, id }, &mut actions);
        }
        at += 1;
    }
    assert_eq!(order, [(1, 0), (1, 1), (2, 4), (3, 6), (1, 2), (2, 5), (1, 3)]);
}

#[test]
fn a_wanted_piece_goes_out_in_few_copies_at_a_time() {
    let mut uploader = Uploader::new(UploadConfig { slots: 16, ..UploadConfig::default() });
    let mut actions = Vec::new();
    for from in 0..10 {
        uploader.handle(Time::default(), request(from, 1, 0, 1_000), &mut actions);
    }
    assert_eq!((uploader.active(), uploader.waiting()), (4, 6));
    uploader.handle(Time::default(), request(0, 2, 1, 1_000), &mut actions);
    assert_eq!((uploader.active(), uploader.waiting()), (5, 6));
    uploader.handle(Time::default(), UploadEvent::Sent { to: HostId::new(0), id: 1 }, &mut actions);
    assert_eq!((uploader.active(), uploader.waiting()), (5, 5));
}
