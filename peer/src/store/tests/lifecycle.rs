//! Making, filling, finishing and finding contents.

use std::sync::atomic::AtomicUsize;

use super::*;

#[test]
fn a_content_is_filled_in_any_order_finished_and_found_again() {
    let dir = folder();
    let data = bytes(1, 5 * PIECE + 17);
    let store = open(dir.path());
    let id = store.host_id();
    let mut new = new_task(1, 7, Some(data.len() as u64));
    new.guarded = true;
    new.digest = Some(Digest::of(proto::Algorithm::Sha256, &data));
    let content = store.create(new.clone()).unwrap();
    assert!(!content.is_complete() && content.have().is_empty() && content.root().is_none());
    for piece in [5, 0, 3, 1, 4] {
        assert!(write(&content, piece, &data));
    }
    assert!(!content.has(PieceIndex(2)) && content.hash_of(PieceIndex(2)).is_none());
    let early = content.finish(root(content.layout(), &data)).unwrap_err();
    assert!(matches!(early, StoreError::Incomplete { present: 5, expected: Some(6) }));
    assert!(write(&content, 2, &data));
    assert!(content.is_full() && !content.is_complete());
    assert!(matches!(content.finish(Root([1; 32])), Err(StoreError::WrongRoot { .. })));
    content.finish(Root(*blake3::hash(&data).as_bytes())).unwrap();
    content.finish(Root(*blake3::hash(&data).as_bytes())).unwrap();
    assert!(content.finish(Root([1; 32])).is_err());
    assert!(content.is_complete());
    assert_eq!(read_all(&content), data);
    let hashes = content.hashes(0, 100);
    drop((content, store));

    let store = open(dir.path());
    assert_eq!(store.host_id(), id);
    let content = store.get(task_id(1), None).unwrap().unwrap();
    assert_eq!(content.generation(), Generation::unique(7));
    assert_eq!(read_all(&content), data);
    assert_eq!(content.hashes(0, 100), hashes);
    assert_eq!((hashes.len(), content.hashes(4, 1).len(), content.hashes(9, 9).len()), (6, 1, 0));
    assert_eq!((content.guarded(), content.digest(), content.headers()), (true, new.digest.as_ref(), &new.headers[..]));
    assert_eq!(content.spec(), &new.spec);
    assert_eq!(content.root(), Some(Root(*blake3::hash(&data).as_bytes())));
    assert!(!write(&content, 0, &data), "a piece is never overwritten");
    let entry = &store.inventory()[0];
    assert!(entry.complete && entry.in_use && entry.pieces == 6 && entry.bytes == data.len() as u64);
    assert_eq!((store.usage().used_bytes, store.usage().tasks), (data.len() as u64, 1));
}

#[test]
fn one_task_is_one_content_and_generations_are_apart() {
    let dir = folder();
    let store = open(dir.path());
    let a = store.create(new_task(1, 1, Some(PIECE))).unwrap();
    assert!(Arc::ptr_eq(&a, &store.create(new_task(1, 1, None)).unwrap()));
    let b = store.create(new_task(1, 2, Some(PIECE))).unwrap();
    assert!(!Arc::ptr_eq(&a, &b));
    assert!(Arc::ptr_eq(&b, &store.get(task_id(1), None).unwrap().unwrap()), "the newest");
    assert!(Arc::ptr_eq(&a, &store.get(task_id(1), Some(Generation::unique(1))).unwrap().unwrap()));
    assert!(store.get(task_id(1), Some(Generation::unique(3))).unwrap().is_none());
    assert!(store.get(task_id(2), None).unwrap().is_none());
    drop((a, b, store));
    let store = open(dir.path());
    assert_eq!(store.get(task_id(1), None).unwrap().unwrap().generation(), Generation::unique(2), "the newest");
}

#[test]
fn what_does_not_fit_the_layout_is_refused() {
    let dir = folder();
    let store = open(dir.path());
    let content = store.create(new_task(1, 1, Some(PIECE + 5))).unwrap();
    let put = |piece, len: u64| content.write_piece(PieceIndex(piece), &bytes(1, len), PieceHash([0; 32]));
    assert!(matches!(put(2, 5), Err(StoreError::NoSuchPiece { .. })));
    assert!(matches!(put(u32::MAX, 5), Err(StoreError::NoSuchPiece { .. })));
    assert!(matches!(put(1, 6), Err(StoreError::WrongLength { expected_bytes: 5, found_bytes: 6, .. })));
    assert!(matches!(put(0, 0), Err(StoreError::WrongLength { .. })));
    assert!(matches!(content.set_length(PIECE), Err(StoreError::LengthConflict { .. })));
    content.set_length(PIECE + 5).unwrap();
    let mut headers = new_task(2, 1, Some(1));
    headers.headers.push(("x".into(), vec![0; HEADERS_BYTES_MAX]));
    assert!(matches!(store.create(headers), Err(StoreError::HeadersTooLong { .. })));
}

#[test]
fn reads_end_where_pieces_lack() {
    let dir = folder();
    let store = open(dir.path());
    let data = bytes(1, 4 * PIECE);
    let content = store.create(new_task(1, 1, Some(4 * PIECE))).unwrap();
    write(&content, 0, &data);
    write(&content, 1, &data);
    write(&content, 3, &data);
    let mut buf = vec![0; 4 * PIECE as usize];
    assert_eq!(content.read(10, &mut buf).unwrap() as u64, 2 * PIECE - 10);
    assert_eq!(buf[..100], data[10..110]);
    assert!(matches!(content.read(2 * PIECE, &mut buf), Err(StoreError::Absent { piece: PieceIndex(2) })));
    assert_eq!(content.read(3 * PIECE + 1, &mut buf).unwrap() as u64, PIECE - 1);
    assert_eq!(content.read(4 * PIECE, &mut buf).unwrap(), 0);
    assert_eq!(content.read(u64::MAX, &mut buf).unwrap(), 0);
    assert_eq!(content.read(2 * PIECE, &mut []).unwrap(), 0);
}

#[test]
fn an_empty_content_is_finished_at_once() {
    let dir = folder();
    let store = open(dir.path());
    let known = store.create(new_task(1, 1, Some(0))).unwrap();
    let told = store.create(new_task(2, 1, None)).unwrap();
    told.set_length(0).unwrap();
    for content in [known, told] {
        assert!(content.is_complete());
        assert_eq!(content.root(), Some(Root(*blake3::hash(b"").as_bytes())));
        content.finish(content.root().unwrap()).unwrap();
        assert_eq!(read_all(&content), b"");
    }
    assert_eq!(store.usage().used_bytes, 0);
    drop(store);
    assert!(open(dir.path()).get(task_id(2), None).unwrap().unwrap().is_complete());
}

#[test]
fn a_lone_piece_is_hashed_anew_when_the_length_shows_that_it_is_alone() {
    let dir = folder();
    let store = open(dir.path());
    let piece_len = u64::from(proto::PIECE_LEN_UNKNOWN);
    let data = bytes(3, piece_len);
    for (n, told_first) in [(1, false), (2, true)] {
        let content = store.create(new_task(n, 1, None)).unwrap();
        let unknown = content.layout();
        let early = PieceHash::of(unknown, PieceIndex(0), &data);
        if told_first {
            content.set_length(piece_len).unwrap();
        }
        // Hashed by somebody who did not know the length yet.
        assert!(content.write_piece(PieceIndex(0), &data, early).unwrap());
        if !told_first {
            assert_eq!(content.hash_of(PieceIndex(0)), Some(early));
            content.set_length(piece_len).unwrap();
        }
        assert_ne!(content.hash_of(PieceIndex(0)), Some(early));
        drop(content);
        let content = store.get(task_id(n), None).unwrap().unwrap();
        content.finish(Root(*blake3::hash(&data).as_bytes())).unwrap();
        assert_eq!(read_all(&content), data);
    }
    // Not finished, and read back by another process: the row must have been rewritten.
    let content = store.create(new_task(3, 1, None)).unwrap();
    content.write_piece(PieceIndex(0), &data, PieceHash::of(content.layout(), PieceIndex(0), &data)).unwrap();
    content.set_length(piece_len).unwrap();
    drop((content, store));
    let store = open(dir.path());
    assert_eq!(store.get(task_id(3), None).unwrap().unwrap().have().len(), 1);
}

#[test]
fn an_unknown_length_becomes_known() {
    let dir = folder();
    let store = open(dir.path());
    let piece_len = u64::from(proto::PIECE_LEN_UNKNOWN);
    let data = bytes(3, 20 * piece_len + 5);
    let content = store.create(new_task(1, 1, None)).unwrap();
    for piece in 0..20 {
        write(&content, piece, &data);
    }
    assert!(store.usage().used_bytes >= 20 * piece_len);
    assert!(content.part_of_it_is_no_whole(&data));
    let short = content.set_length(20 * piece_len - 1).unwrap_err();
    assert!(matches!(short, StoreError::LengthConflict { known_bytes, .. } if known_bytes == 20 * piece_len));
    assert!(matches!(content.set_length(u64::MAX), Err(StoreError::LengthConflict { .. })));
    content.set_length(data.len() as u64).unwrap();
    assert_eq!(store.usage().used_bytes, data.len() as u64);
    write(&content, 20, &data);
    content.finish(Root(*blake3::hash(&data).as_bytes())).unwrap();
    drop((content, store));
    assert_eq!(read_all(&open(dir.path()).get(task_id(1), None).unwrap().unwrap()), data);
}

impl Content {
    fn part_of_it_is_no_whole(&self, data: &[u8]) -> bool {
        !self.is_full() && self.finish(Root(*blake3::hash(data).as_bytes())).is_err()
    }
}

#[test]
fn of_many_writers_of_a_piece_one_writes() {
    let dir = folder();
    let store = open(dir.path());
    let data = bytes(9, 40 * PIECE + 1);
    let content = store.create(new_task(1, 1, Some(data.len() as u64))).unwrap();
    let written = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8u32 {
            let (content, data, written) = (&content, &data, &written);
            scope.spawn(move || {
                for at in 0..41 {
                    let piece = (at + thread * 5) % 41;
                    written.fetch_add(usize::from(write(content, piece, data)), Ordering::Relaxed);
                    assert!(content.has(PieceIndex(piece)), "false means that it is here");
                }
            });
        }
    });
    assert_eq!(written.into_inner(), 41);
    content.finish(root(content.layout(), &data)).unwrap();
    assert_eq!(read_all(&content), data);
}

#[test]
fn the_length_becomes_known_among_writers() {
    let dir = folder();
    let store = open(dir.path());
    let piece_len = u64::from(proto::PIECE_LEN_UNKNOWN);
    let data = bytes(4, 6 * piece_len);
    let content = store.create(new_task(1, 1, None)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (content, data) = (&content, &data);
            scope.spawn(move || {
                for piece in 0..6 {
                    write(content, (piece + thread) % 6, data);
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| content.set_length(6 * piece_len).unwrap());
        }
    });
    content.finish(Root(*blake3::hash(&data).as_bytes())).unwrap();
}

#[test]
fn discarding_stops_those_who_hold_it() {
    let dir = folder();
    let store = open(dir.path());
    let data = bytes(1, 3 * PIECE);
    let content = store.create(new_task(1, 1, Some(3 * PIECE))).unwrap();
    write(&content, 0, &data);
    let path = path_of(&store, 1, 1);
    store.condemn(task_id(1), Generation::unique(1), "wrong").unwrap();
    store.condemn(task_id(1), Generation::unique(1), "wrong").unwrap();
    assert!(!path.try_exists().unwrap());
    assert!(store.get(task_id(1), None).unwrap().is_none() && store.inventory().is_empty());
    assert!(!content.has(PieceIndex(0)) && content.have().is_empty() && content.hash_of(PieceIndex(0)).is_none());
    assert!(matches!(content.read(0, &mut [0; 9]), Err(StoreError::Condemned { .. })));
    let late =
        content.write_piece(PieceIndex(1), piece_bytes(content.layout(), PieceIndex(1), &data), PieceHash([0; 32]));
    assert!(matches!(late, Err(StoreError::Condemned { .. })));
    assert!(content.set_length(3 * PIECE).is_err() && content.finish(Root([0; 32])).is_err());
    assert_eq!(store.usage().used_bytes, 3 * PIECE, "still on disk while it is open");
    let again = store.create(new_task(1, 1, Some(3 * PIECE))).unwrap();
    assert!(again.have().is_empty());
    drop((content, again));
    assert_eq!(store.usage().used_bytes, 3 * PIECE);
}

/// What a supernode says of a content may come before the content is made, while it is, and after.
#[test]
fn a_content_condemned_while_it_is_being_made_says_why_and_leaves_nothing() {
    let dir = folder();
    let store = open(dir.path());
    for _ in 0..200 {
        let content = std::thread::scope(|scope| {
            let making = scope.spawn(|| store.create(new_task(1, 1, Some(PIECE))).unwrap());
            while store.inventory().is_empty() {
                std::hint::spin_loop();
            }
            store.condemn(task_id(1), Generation::unique(1), "wrong").unwrap();
            making.join().unwrap()
        });
        let read = content.read(0, &mut [0; 9]);
        assert!(matches!(read, Err(StoreError::Condemned { why }) if why == "wrong"));
        assert!(store.inventory().is_empty() && !path_of(&store, 1, 1).try_exists().unwrap());
    }
}

#[test]
fn everything_at_once_from_many_threads() {
    let dir = folder();
    let store = open_sized(dir.path(), 20 * PIECE);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let store = store.clone();
            scope.spawn(move || {
                for round in 0..60u64 {
                    let n = (round * 7 + thread) % 9;
                    let data = bytes(n, 3 * PIECE);
                    let content = match store.create(new_task(n, 1, Some(3 * PIECE))) {
                        Ok(content) => content,
                        // Everything else is in use right now, or another thread discarded it.
                        Err(StoreError::NoSpace { .. } | StoreError::Condemned { .. }) => continue,
                        Err(error) => panic!("{error}"),
                    };
                    let used = || -> Result<(), StoreError> {
                        for piece in 0..3 {
                            let (layout, piece) = (content.layout(), PieceIndex(piece));
                            let part = piece_bytes(layout, piece, &data);
                            content.write_piece(piece, part, PieceHash::of(layout, piece, part))?;
                        }
                        content.finish(root(content.layout(), &data))?;
                        let mut buf = vec![0; data.len()];
                        assert_eq!(content.read(0, &mut buf)?, data.len());
                        assert!(buf == data);
                        Ok(())
                    };
                    match used() {
                        Ok(()) | Err(StoreError::Condemned { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                    if round % 11 == thread {
                        store.condemn(task_id(n), Generation::unique(1), "wrong").unwrap();
                    }
                }
            });
        }
    });
    assert!(store.usage().used_bytes <= 20 * PIECE);
    let left = store.inventory();
    drop(store);
    let store = open_sized(dir.path(), 20 * PIECE);
    assert_eq!(store.inventory().len(), left.len());
    for entry in left {
        let content = store.get(entry.task, None).unwrap().unwrap();
        assert!(content.is_complete() && content.have().len() == 3);
    }
}

#[test]
fn confirming_is_kept() {
    let dir = folder();
    let store = open(dir.path());
    let mut new = new_task(1, 1, Some(1));
    new.confirmed = false;
    let content = store.create(new).unwrap();
    assert!(!content.is_confirmed());
    content.confirm().unwrap();
    drop((content, store));
    assert!(open(dir.path()).get(task_id(1), None).unwrap().unwrap().is_confirmed());
}

#[test]
fn a_bad_configuration_is_refused() {
    for (high, low, capacity) in [(0.5, 0.6, 1), (1.1, 0.5, 1), (f64::NAN, 0.5, 1), (0.9, 0.0, 1), (0.9, 0.8, 0)] {
        let mut config = StoreConfig::new("/nowhere", capacity);
        (config.high_watermark, config.low_watermark) = (high, low);
        assert!(matches!(Store::open(config), Err(StoreError::Config { .. })));
    }
}
