//! What is left after a process or a machine stopped at a bad moment, or another program meddled.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// Half a task of 8 pieces, left behind unfinished.
fn half_done(dir: &Path, data: &[u8]) {
    let store = open(dir);
    let content = store.create(new_task(1, 1, Some(data.len() as u64))).unwrap();
    for piece in 0..4 {
        write(&content, piece, data);
    }
}

#[test]
fn an_unfinished_task_goes_on_where_it_was() {
    let dir = folder();
    let data = bytes(5, 7 * PIECE + 1);
    half_done(dir.path(), &data);
    let store = open(dir.path());
    let entry = &store.inventory()[0];
    assert_eq!((entry.complete, entry.pieces, entry.bytes), (false, 4, 4 * PIECE));
    let content = store.get(task_id(1), None).unwrap().unwrap();
    assert_eq!(content.have(), PieceSet::full(4));
    write_all(&content, &data);
    content.finish(root(content.layout(), &data)).unwrap();
    assert_eq!(read_all(&content), data);
}

#[test]
fn a_corrupted_piece_is_dropped_and_the_others_kept() {
    let dir = folder();
    let data = bytes(5, 7 * PIECE + 1);
    half_done(dir.path(), &data);
    let store = open(dir.path());
    scribble(&path_of(&store, 1, 1), 2 * PIECE + 100, b"flipped");
    let content = store.get(task_id(1), None).unwrap().unwrap();
    assert_eq!(content.have(), [0, 1, 3].into_iter().map(PieceIndex).collect());
    assert!(content.read(2 * PIECE, &mut [0; 9]).is_err());
    assert!(write(&content, 2, &data), "it is fetched again");
    drop((content, store));
    assert_eq!(open(dir.path()).get(task_id(1), None).unwrap().unwrap().have(), PieceSet::full(4));
}

/// Rows reached the disk and content pages did not: they read as zeros, or the file ends before them.
#[test]
fn after_a_power_loss_no_bad_piece_is_served() {
    let dir = folder();
    let data = bytes(5, 7 * PIECE + 1);
    let losses: [fn(&Path); 4] = [
        |path| scribble(path, 0, &vec![0; PIECE as usize]),
        |path| scribble(path, PIECE + 4096, &[0; 4096]),
        |path| OpenOptions::new().write(true).open(path).unwrap().set_len(PIECE + 10).unwrap(),
        |path| OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap(),
    ];
    for (lose, left) in losses.into_iter().zip([3, 3, 1, 0]) {
        half_done(dir.path(), &data);
        let store = open(dir.path());
        lose(&path_of(&store, 1, 1));
        let content = store.get(task_id(1), None).unwrap().unwrap();
        assert_eq!(content.have().len(), left);
        for piece in content.have().iter() {
            let range = content.layout().range(piece).unwrap();
            let mut buf = vec![0; range.len() as usize];
            content.read(range.start(), &mut buf).unwrap();
            assert!(buf == piece_bytes(content.layout(), piece, &data));
        }
        write_all(&content, &data);
        content.finish(root(content.layout(), &data)).unwrap();
        assert!(read_all(&content) == data);
        drop(content);
        store.condemn(task_id(1), Generation::unique(1), "wrong").unwrap();
    }
}

/// All pieces had come, but the finished row was not written.
#[test]
fn a_whole_but_unfinished_content_is_hashed_again() {
    for lose in [false, true] {
        let dir = folder();
        let data = bytes(6, 3 * PIECE);
        let store = open(dir.path());
        let content = store.create(new_task(1, 1, Some(3 * PIECE))).unwrap();
        write_all(&content, &data);
        let path = path_of(&store, 1, 1);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o222, 0, "whole is read-only");
        drop((content, store));
        if lose {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            scribble(&path, PIECE, &[0; 4096]);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        }
        let store = open(dir.path());
        let content = store.get(task_id(1), None).unwrap().unwrap();
        assert_eq!(content.have().len(), if lose { 2 } else { 3 });
        assert!(!content.is_complete());
        write_all(&content, &data);
        content.finish(root(content.layout(), &data)).unwrap();
        assert!(read_all(&content) == data);
    }
}

#[test]
fn a_finished_content_that_somebody_wrote_to_is_noticed() {
    let dir = folder();
    let data = bytes(6, 3 * PIECE);
    let store = open(dir.path());
    drop(finished(&store, 1, &data));
    let path = path_of(&store, 1, 1);

    // The same bytes again: hashed, and kept.
    scribble(&path, 5, &data[5..10]);
    let content = store.get(task_id(1), None).unwrap().unwrap();
    assert!(read_all(&content) == data);

    // Other bytes, while it is held: reading stops, and the next one who asks finds nothing.
    scribble(&path, 5, b"x");
    assert!(matches!(content.read(0, &mut [0; 9]), Err(StoreError::Modified { .. })));
    assert!(store.get(task_id(1), None).unwrap().is_none());
    assert!(matches!(content.read(0, &mut [0; 9]), Err(StoreError::Discarded)));
    drop(content);

    // The same with nobody holding it, and over a restart.
    drop(finished(&store, 2, &data));
    drop(finished(&store, 3, &data));
    scribble(&path_of(&store, 2, 1), 5, b"x");
    scribble(&path_of(&store, 3, 1), 3 * PIECE, b"longer");
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.inventory().len(), 1, "a wrong length shows at once");
    assert!(store.get(task_id(2), None).unwrap().is_none());
    assert!(!path_of(&store, 2, 1).try_exists().unwrap());
    assert_eq!(store.usage().used_bytes, 0);
}

#[test]
fn leftovers_are_removed_at_start() {
    let dir = folder();
    let data = bytes(6, 2 * PIECE);
    let store = open(dir.path());
    for n in 1..=3 {
        drop(finished(&store, n, &data));
    }
    let (lost, cut) = (path_of(&store, 1, 1), path_of(&store, 2, 1));
    let (kept, stray) = (path_of(&store, 3, 1), path_of(&store, 4, 1));
    drop(store);
    fs::remove_file(lost).unwrap();
    OpenOptions::new().write(true).open(&cut).unwrap().set_len(PIECE).unwrap();
    fs::create_dir_all(stray.parent().unwrap()).unwrap();
    fs::write(&stray, "no row").unwrap();
    fs::write(kept.with_file_name("junk"), "no task").unwrap();
    let store = open(dir.path());
    let left: Vec<_> = store.inventory().into_iter().map(|e| e.task).collect();
    assert_eq!(left, [task_id(3)]);
    assert!(kept.try_exists().unwrap() && !stray.try_exists().unwrap() && !cut.try_exists().unwrap());
    assert!(!kept.with_file_name("junk").try_exists().unwrap());
    assert_eq!(store.inner.rows.task(Key { task: task_id(1), generation: Generation::unique(1) }).unwrap(), None);
    assert_eq!(store.usage().used_bytes, 2 * PIECE);
}

#[test]
fn a_file_that_vanishes_meanwhile_is_a_task_that_is_not_here() {
    let dir = folder();
    let store = open(dir.path());
    drop(finished(&store, 1, &bytes(6, PIECE)));
    fs::remove_file(path_of(&store, 1, 1)).unwrap();
    assert!(store.get(task_id(1), None).unwrap().is_none());
    assert!(store.inventory().is_empty());
    drop(finished(&store, 1, &bytes(6, PIECE)));
}

#[test]
fn rows_that_cannot_be_read_cost_their_task_only() {
    let dir = folder();
    let store = open(dir.path());
    drop(finished(&store, 1, &bytes(6, PIECE)));
    drop(finished(&store, 2, &bytes(7, PIECE)));
    let key = Key { task: task_id(1), generation: Generation::unique(1) };
    let mut row = store.inner.rows.task(key).unwrap().unwrap();
    row.piece_len = 3;
    store.inner.rows.update(key, &row, None).unwrap();
    drop(store);
    let store = open(dir.path());
    assert!(store.get(task_id(1), None).unwrap().is_none());
    assert!(store.get(task_id(2), None).unwrap().is_some());
}

/// Dropping the handles and taking the content up again in one process reads no byte: this process knows what it wrote.
#[test]
fn within_a_process_nothing_is_hashed_twice() {
    let dir = folder();
    let data = bytes(6, 3 * PIECE);
    let store = open(dir.path());
    let content = store.create(new_task(1, 1, Some(3 * PIECE))).unwrap();
    write(&content, 1, &data);
    drop(content);
    scribble(&path_of(&store, 1, 1), PIECE, b"not looked at");
    assert!(store.get(task_id(1), None).unwrap().unwrap().has(PieceIndex(1)));
    drop(store);
    assert!(open(dir.path()).get(task_id(1), None).unwrap().unwrap().have().is_empty());
}

#[test]
fn another_version_and_a_second_process_are_told() {
    let dir = folder();
    let store = open(dir.path());
    let error = Store::open(StoreConfig::new(dir.path(), ROOMY)).unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    let content = store.create(new_task(1, 1, Some(1))).unwrap();
    drop(store);
    assert!(Store::open(StoreConfig::new(dir.path(), ROOMY)).is_err(), "a content keeps the folder");
    drop(content);
    drop(open(dir.path()));
    fs::write(dir.path().join("VERSION"), "2\n").unwrap();
    let error = Store::open(StoreConfig::new(dir.path(), ROOMY)).unwrap_err();
    assert!(error.to_string().contains("format version 2, this program reads version 1"), "{error}");
}

/// Names the folder to the process that is going to be killed.
const VICTIM_DIR: &str = "SKIMMER_TEST_STORE_VICTIM_DIR";

/// Not a test of its own: what the killed process does. Tells of every piece it has, and then goes on until it is killed.
#[test]
fn victim() {
    let Ok(dir) = std::env::var(VICTIM_DIR) else { return };
    let store = open(Path::new(&dir));
    for n in 0.. {
        let data = bytes(n, 20 * PIECE);
        let content = store.create(new_task(n, 1, Some(20 * PIECE))).unwrap();
        for piece in 0..20 {
            write(&content, piece, &data);
            // Not captured, unlike what is printed.
            std::io::Write::write_all(&mut std::io::stderr().lock(), format!("has {n} {piece}\n").as_bytes()).unwrap();
        }
        content.finish(root(content.layout(), &data)).unwrap();
    }
}

#[test]
fn a_killed_process_loses_no_piece_it_had() {
    use std::io::BufRead;
    use std::process::{Command, Stdio};
    for pieces in [1, 19, 20, 33, 75] {
        let dir = folder();
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::crash::victim", "--nocapture"])
            .env(VICTIM_DIR, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut told = std::io::BufReader::new(victim.stderr.take().unwrap()).lines().map(Result::unwrap);
        let mut had: Vec<String> = told.by_ref().filter(|line| line.starts_with("has ")).take(pieces).collect();
        assert!(matches!(Store::open(StoreConfig::new(dir.path(), ROOMY)), Err(StoreError::Locked { .. })));
        victim.kill().unwrap();
        victim.wait().unwrap();
        had.extend(told.filter(|line| line.starts_with("has ")));
        let store = open(dir.path());
        for line in had {
            let mut numbers = line.split(' ').skip(1).map(|n| n.parse::<u64>().unwrap());
            let (n, piece) = (numbers.next().unwrap(), PieceIndex(u32::try_from(numbers.next().unwrap()).unwrap()));
            let content = store.get(task_id(n), None).unwrap().unwrap();
            assert!(content.has(piece), "{line}");
            let mut buf = vec![0; PIECE as usize];
            content.read(u64::from(piece.0) * PIECE, &mut buf).unwrap();
            assert!(buf == piece_bytes(content.layout(), piece, &bytes(n, 20 * PIECE)));
        }
    }
}

/// A disk that flips bits changes no time stamp: only hashing tells.
#[test]
fn a_rotten_copy_is_found_when_it_is_hashed_again() {
    let dir = folder();
    let data = bytes(5, 3 * PIECE + 1);
    let store = open(dir.path());
    let content = store.create(new_task(1, 1, Some(data.len() as u64))).unwrap();
    write_all(&content, &data);
    content.finish(root(content.layout(), &data)).unwrap();
    let (task, generation) = (content.task(), content.generation());
    assert!(store.verify(task, generation).unwrap());
    let path = path_of(&store, 1, 1);
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    scribble(&path, PIECE + 7, b"flipped");
    OpenOptions::new().read(true).open(&path).unwrap().set_modified(modified).unwrap();
    assert!(!store.verify(task, generation).unwrap());
    content.discard().unwrap();
    assert!(store.verify(task, generation).unwrap(), "what is not there is not wrong");
}

/// A content made anew under the name of one that is thrown away stays.
#[test]
fn a_content_discards_itself_and_no_later_one() {
    let dir = folder();
    let store = open(dir.path());
    let old = store.create(new_task(1, 1, Some(10))).unwrap();
    old.discard().unwrap();
    let new = store.create(new_task(1, 1, Some(20))).unwrap();
    old.discard().unwrap();
    assert_eq!(store.get(task_id(1), None).unwrap().unwrap().layout(), new.layout());
}
