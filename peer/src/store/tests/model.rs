//! Random operations against a model of what the store promises.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const TASKS: u64 = 4;

#[derive(Clone, Debug)]
enum Op {
    Create(u64),
    Write(u64, u32),
    Learn(u64),
    Finish(u64),
    LetGo(u64),
    Get(u64),
    Discard(u64),
    Export(u64),
    /// Another program, or a power loss, changes a byte while the store is closed.
    Damage(u64, u32),
    Reopen,
}

/// What a task must look like.
#[derive(Default)]
struct Expected {
    is_here: bool,
    knows_length: bool,
    pieces: BTreeSet<u32>,
    finished: bool,
}

fn op() -> impl Strategy<Value = Op> {
    let task = 0..TASKS;
    prop_oneof![
        3 => task.clone().prop_map(Op::Create),
        8 => (task.clone(), 0u32..4).prop_map(|(t, p)| Op::Write(t, p)),
        2 => task.clone().prop_map(Op::Learn),
        3 => task.clone().prop_map(Op::Finish),
        2 => task.clone().prop_map(Op::LetGo),
        2 => task.clone().prop_map(Op::Get),
        1 => task.clone().prop_map(Op::Discard),
        1 => task.clone().prop_map(Op::Export),
        1 => (task, 0u32..4).prop_map(|(t, p)| Op::Damage(t, p)),
        1 => Just(Op::Reopen),
    ]
}

struct World {
    held: BTreeMap<u64, Arc<Content>>,
    store: Option<Store>,
    expected: BTreeMap<u64, Expected>,
    dir: TempDir,
}

/// Even tasks know their length from the start, odd ones learn it; task 2 has one piece, task 3 ends on a piece's end.
fn data(n: u64) -> Vec<u8> {
    let unknown = u64::from(proto::PIECE_LEN_UNKNOWN);
    bytes(n, [3 * PIECE + 9, 2 * unknown + 1, 100, unknown][usize::try_from(n).unwrap()])
}

impl World {
    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn content(&mut self, n: u64) -> Option<Arc<Content>> {
        if let Some(content) = self.held.get(&n) {
            return Some(Arc::clone(content));
        }
        let found = self.store().get(task_id(n), None).unwrap();
        assert_eq!(found.is_some(), self.expected.get(&n).is_some_and(|e| e.is_here), "task {n}");
        if let Some(content) = &found {
            self.held.insert(n, Arc::clone(content));
        }
        found
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Create(n) => {
                let data = data(n);
                let content = self.store().create(new_task(n, 1, (n % 2 == 0).then_some(data.len() as u64))).unwrap();
                let expected = self.expected.entry(n).or_default();
                if !expected.is_here {
                    *expected = Expected { is_here: true, knows_length: n % 2 == 0, ..Expected::default() };
                }
                self.held.insert(n, content);
            }
            Op::Write(n, piece) => {
                let Some(content) = self.content(n) else { return };
                let (data, layout) = (data(n), content.layout());
                let fits = layout.range(PieceIndex(piece)).is_some_and(|r| r.end() <= data.len() as u64);
                if fits {
                    let fresh = self.expected.get_mut(&n).unwrap().pieces.insert(piece);
                    assert_eq!(write(&content, piece, &data), fresh);
                }
            }
            Op::Learn(n) => {
                let Some(content) = self.content(n) else { return };
                content.set_length(data(n).len() as u64).unwrap();
                self.expected.get_mut(&n).unwrap().knows_length = true;
            }
            Op::Finish(n) => {
                let Some(content) = self.content(n) else { return };
                let expected = self.expected.get_mut(&n).unwrap();
                let is_full =
                    expected.knows_length && content.layout().count() == u32::try_from(expected.pieces.len()).ok();
                let result = content.finish(Root(*blake3::hash(&data(n)).as_bytes()));
                assert_eq!(result.is_ok(), is_full, "{result:?}");
                expected.finished |= is_full;
            }
            Op::LetGo(n) => drop(self.held.remove(&n)),
            Op::Get(n) => drop(self.content(n)),
            Op::Discard(n) => {
                self.store().condemn(task_id(n), Generation::unique(1), "wrong").unwrap();
                self.held.remove(&n);
                self.expected.remove(&n);
            }
            Op::Export(n) => {
                let Some(content) = self.content(n) else { return };
                let output = self.dir.path().join("output");
                if content.export(None, &output, Export { overwrite: true, ..Export::default() }).is_ok() {
                    assert!(fs::read(&output).unwrap() == data(n));
                    fs::remove_file(output).unwrap();
                } else {
                    assert!(!content.is_full());
                }
            }
            Op::Damage(n, piece) => {
                let path = path_of(self.store(), n, 1);
                self.close();
                let Some(expected) = self.expected.get_mut(&n) else { return self.open() };
                let piece_len = if n % 2 == 0 { PIECE } else { u64::from(proto::PIECE_LEN_UNKNOWN) };
                if expected.pieces.contains(&piece) {
                    let at = u64::from(piece) * piece_len;
                    scribble(&path, at, &[!data(n)[usize::try_from(at).unwrap()]]);
                    expected.pieces.remove(&piece);
                    if expected.finished {
                        self.expected.remove(&n);
                    }
                }
                self.open();
            }
            Op::Reopen => {
                self.close();
                self.open();
            }
        }
    }

    fn close(&mut self) {
        self.held.clear();
        self.store = None;
    }

    fn open(&mut self) {
        self.store = Some(open(&self.dir.path().join("store")));
    }

    fn check(&mut self) {
        for n in 0..TASKS {
            let Some(content) = self.content(n) else { continue };
            let (expected, data) = (&self.expected[&n], data(n));
            assert_eq!(content.have().iter().map(|p| p.0).collect::<BTreeSet<_>>(), expected.pieces, "task {n}");
            assert_eq!(content.is_complete(), expected.finished, "task {n}");
            assert_eq!(content.layout().length().is_some(), expected.knows_length);
            for piece in content.have().iter() {
                let part = piece_bytes(content.layout(), piece, &data);
                let mut buf = vec![0; part.len()];
                let start = content.layout().range(piece).unwrap().start();
                assert_eq!(content.read(start, &mut buf).unwrap(), part.len());
                assert!(buf == part);
                assert_eq!(content.hash_of(piece), Some(PieceHash::of(content.layout(), piece, part)));
            }
        }
        let here = self.expected.values().filter(|e| e.is_here).count();
        assert_eq!(self.store().inventory().len(), here);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_what_the_model_says(ops in proptest::collection::vec(op(), 1..60)) {
        let dir = folder();
        let store = open(&dir.path().join("store"));
        let mut world = World { held: BTreeMap::new(), store: Some(store), expected: BTreeMap::new(), dir };
        for op in &ops {
            world.apply(op);
        }
        world.check();
        world.close();
        world.open();
        world.check();
    }
}
