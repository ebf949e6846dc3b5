//! Capacity, eviction and full disks.

use std::process::Command;

use super::*;

#[test]
fn five_times_the_capacity_goes_through_and_what_is_in_use_stays() {
    let dir = folder();
    let capacity = 20 * MIB;
    let store = open_sized(dir.path(), capacity);
    let size = MIB - 100;
    let held: Vec<_> = (0..3).map(|n| finished(&store, n, &bytes(n, size))).collect();
    let unfinished = store.create(new_task(3, 1, Some(size))).unwrap();
    for n in 4..104 {
        drop(finished(&store, n, &bytes(n, size)));
        let used = store.usage().used_bytes;
        assert!(used <= capacity * 95 / 100, "{used} after {n}");
        let on_disk: u64 =
            store.inventory().iter().map(|e| fs::metadata(path_of_entry(&store, e)).unwrap().size()).sum();
        assert!(on_disk <= used);
    }
    for (n, content) in held.iter().enumerate() {
        assert!(read_all(content) == bytes(n as u64, size));
    }
    assert!(unfinished.write_piece(PieceIndex(0), &[0; 65_536], PieceHash([0; 32])).unwrap());
    assert!(store.get(task_id(103), None).unwrap().is_some(), "the newest is here");
    assert!(store.get(task_id(4), None).unwrap().is_none(), "the oldest is not");
    let files = walk(&dir.path().join("content"));
    assert_eq!(files, store.usage().tasks);
}

fn path_of_entry(store: &Store, entry: &InventoryEntry) -> PathBuf {
    store.inner.folder.content_path(Key { task: entry.task, generation: entry.generation })
}

fn walk(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().map(|group| fs::read_dir(group.unwrap().path()).unwrap().count()).sum()
}

#[test]
fn what_was_used_last_stays_longest() {
    let dir = folder();
    let store = open_sized(dir.path(), 10 * MIB);
    for n in 0..9 {
        drop(finished(&store, n, &bytes(n, MIB)));
    }
    drop(store.get(task_id(0), None).unwrap());
    drop(store);
    // The order survives a restart, to the minute; those made later than it were used later.
    let store = open_sized(dir.path(), 10 * MIB);
    drop(store.get(task_id(0), None).unwrap());
    drop(finished(&store, 20, &bytes(20, MIB)));
    let left: Vec<u64> = (0..9).filter(|n| store.get(task_id(*n), None).unwrap().is_some()).collect();
    assert_eq!(left, [0, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn a_use_lasts_until_it_is_let_go() {
    let dir = folder();
    let store = open_sized(dir.path(), 10 * MIB);
    let long = finished(&store, 0, &bytes(0, MIB));
    for n in 1..9 {
        drop(finished(&store, n, &bytes(n, MIB)));
    }
    drop(long);
    drop(finished(&store, 20, &bytes(20, MIB)));
    assert!(store.get(task_id(0), None).unwrap().is_some());
    assert!(store.get(task_id(1), None).unwrap().is_none());
}

#[test]
fn what_cannot_fit_evicts_nobody() {
    let dir = folder();
    let store = open_sized(dir.path(), 10 * MIB);
    for n in 0..3 {
        drop(finished(&store, n, &bytes(n, MIB)));
    }
    let held = store.get(task_id(0), None).unwrap();
    let error = store.create(new_task(9, 1, Some(9 * MIB + 1))).unwrap_err();
    let StoreError::NoSpace { path, needed_bytes, free_bytes } = &error else { panic!("{error}") };
    assert_eq!((path.as_path(), *needed_bytes, *free_bytes), (dir.path(), 9 * MIB + 1, 9 * MIB));
    assert_eq!(error.kind(), proto::Kind::NoSpace);
    assert_eq!(store.usage().tasks, 3);
    store.create(new_task(9, 1, Some(9 * MIB))).unwrap();
    assert_eq!(store.usage().tasks, 2);
    drop(held);
}

#[test]
fn a_task_of_unknown_length_stops_at_the_capacity() {
    let dir = folder();
    let store = open_sized(dir.path(), 4 * MIB);
    let piece_len = u64::from(proto::PIECE_LEN_UNKNOWN);
    drop(finished(&store, 1, &bytes(1, MIB)));
    let content = store.create(new_task(2, 1, None)).unwrap();
    let data = bytes(2, 5 * piece_len);
    for piece in 0..4 {
        write(&content, piece, &data);
    }
    assert!(store.get(task_id(1), None).unwrap().is_none(), "made room");
    let part = piece_bytes(content.layout(), PieceIndex(4), &data);
    let error = content.write_piece(PieceIndex(4), part, PieceHash([0; 32])).unwrap_err();
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    assert!(!content.has(PieceIndex(4)));
    assert!(matches!(content.set_length(5 * MIB), Err(StoreError::NoSpace { .. })));
    content.set_length(4 * MIB).unwrap();
    content.finish(Root(*blake3::hash(&data[..4 * MIB as usize]).as_bytes())).unwrap();
}

#[test]
fn a_lowered_capacity_is_kept_from_the_start() {
    let dir = folder();
    let store = open_sized(dir.path(), 10 * MIB);
    for n in 0..8 {
        drop(finished(&store, n, &bytes(n, MIB)));
    }
    drop(store);
    let store = open_sized(dir.path(), 4 * MIB);
    assert_eq!(store.inventory().iter().map(|e| e.task).collect::<Vec<_>>(), [5, 6, 7].map(task_id));
}

/// A small filesystem of its own, unmounted at the end. None without root.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Option<Self> {
        if !is_root() {
            eprintln!("skipped: mounting a small filesystem needs root");
            return None;
        }
        let dir = folder();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "skimmer-test"])
            .arg(dir.path())
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("skipped: tmpfs cannot be mounted here");
            return None;
        }
        Some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[test]
fn a_small_disk_is_noticed_before_the_download() {
    let Some(disk) = SmallDisk::mount("24m") else { return };
    let dir = disk.0.path().join("store");
    let store = open_sized(&dir, ROOMY);
    let error = store.create(new_task(1, 1, Some(30 * MIB))).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, StoreError::NoSpace { needed_bytes, .. } if needed_bytes == 30 * MIB), "{text}");
    assert!(text.contains(dir.to_str().unwrap()) && text.contains(&(30 * MIB).to_string()), "{text}");
    // Idle tasks make room on the disk as well.
    for n in 10..20 {
        drop(finished(&store, n, &bytes(n, 3 * MIB)));
    }
    let left = store.usage().tasks;
    assert!((2..8).contains(&left), "{left}");
    assert!(read_all(&store.get(task_id(19), None).unwrap().unwrap()) == bytes(19, 3 * MIB));
}

#[test]
fn a_disk_that_others_fill_leaves_the_store_usable() {
    let Some(disk) = SmallDisk::mount("32m") else { return };
    let dir = disk.0.path().join("store");
    let store = open_sized(&dir, ROOMY);
    let data = bytes(1, 10 * MIB);
    let whole = finished(&store, 7, &data[..MIB as usize]);
    let unknown = store.create(new_task(1, 1, None)).unwrap();
    write(&unknown, 0, &data);
    // Somebody else takes all there is.
    let hog = disk.0.path().join("hog");
    let _ = fs::write(&hog, vec![1; 64 << 20]);
    let mut failed = 0;
    for piece in 1..10 {
        let part = piece_bytes(unknown.layout(), PieceIndex(piece), &data);
        match unknown.write_piece(PieceIndex(piece), part, PieceHash::of(unknown.layout(), PieceIndex(piece), part)) {
            Ok(_) => {}
            Err(error) => {
                assert!(matches!(error, StoreError::NoSpace { .. }), "{error:?}");
                assert!(error.to_string().contains(disk.0.path().to_str().unwrap()), "{error}");
                failed += 1;
            }
        }
    }
    assert!(failed > 0);
    assert!(matches!(store.create(new_task(2, 1, Some(MIB))), Err(StoreError::NoSpace { .. })));
    let output = whole.export(None, &disk.0.path().join("out"), Export { mode: Some(0o644), ..Export::default() });
    assert!(matches!(output, Err(StoreError::NoSpace { needed_bytes: MIB, .. })), "{output:?}");
    assert_eq!(fs::read_dir(disk.0.path()).unwrap().count(), 2, "no output, and no part of it");
    // What is here is still served, and can be discarded.
    assert!(read_all(&whole) == data[..MIB as usize]);
    // Rows may be refused too: thousands of them, until their log needs more room.
    let mut rows_refused = false;
    for n in 0..200_000 {
        if store.inner.rows.put_used(Key { task: task_id(n), generation: Generation::unique(9) }, n).is_err() {
            rows_refused = true;
            break;
        }
    }
    assert!(rows_refused);
    fs::remove_file(&hog).unwrap();
    // RocksDB looks every few seconds whether there is room again.
    let key = Key { task: task_id(1), generation: Generation::unique(9) };
    let is_back = (0..150).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        store.inner.rows.put_used(key, 1).is_ok()
    });
    assert!(is_back, "rows are still refused");
    for piece in 1..10 {
        write(&unknown, piece, &data);
    }
    unknown.set_length(10 * MIB).unwrap();
    unknown.finish(Root(*blake3::hash(&data).as_bytes())).unwrap();
    assert!(read_all(&unknown) == data);
    drop((whole, unknown, store));
    let store = open_sized(&dir, ROOMY);
    assert!(read_all(&store.get(task_id(1), None).unwrap().unwrap()) == data);
}

#[test]
fn shared_outputs_are_counted_as_unreclaimable() {
    let dir = folder();
    let store = open(&dir.path().join("store"));
    let content = finished(&store, 1, &bytes(1, MIB));
    drop(finished(&store, 2, &bytes(2, MIB)));
    assert_eq!(store.usage().unreclaimable_bytes, 0);
    let output = dir.path().join("out");
    content.export(None, &output, Export { force_hard_link: true, ..Export::default() }).unwrap();
    assert_eq!(store.usage().unreclaimable_bytes, MIB);
    assert_eq!(store.usage().used_bytes, 2 * MIB);
    fs::remove_file(output).unwrap();
    assert_eq!(store.usage().unreclaimable_bytes, 0);
}

#[test]
fn what_nobody_used_for_long_is_forgotten() {
    let dir = folder();
    let store = open(dir.path());
    let used = store.create(new_task(1, 1, Some(10))).unwrap();
    drop(store.create(new_task(2, 1, Some(10))).unwrap());
    assert_eq!(store.forget_unused(Duration::from_secs(3600)).unwrap(), 0);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(store.forget_unused(Duration::ZERO).unwrap(), 1);
    assert!(store.get(used.task(), None).unwrap().is_some(), "in use");
    assert!(store.get(task_id(2), None).unwrap().is_none());
}
