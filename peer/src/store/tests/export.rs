//! Outputs of every kind.

use std::os::unix::fs::{PermissionsExt, symlink};

use proto::{ByteRange, Kind};

use super::*;

/// The folder is last, so that nobody writes to it any more when it is removed.
struct Fixture {
    content: Arc<Content>,
    store: Store,
    data: Vec<u8>,
    dir: TempDir,
}

fn fixture() -> Fixture {
    let dir = folder();
    let store = open(&dir.path().join("store"));
    let data = bytes(1, 3 * MIB + 7);
    let content = finished(&store, 1, &data);
    Fixture { content, store, data, dir }
}

impl Fixture {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn export(&self, name: &str, how: Export) -> Result<Exported, StoreError> {
        self.content.export(None, &self.path(name), how)
    }

    /// The folder holds the store, these, and nothing else.
    fn holds(&self, names: &[&str]) {
        let mut found: Vec<_> =
            fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        found.sort();
        let mut expected: Vec<_> = names.iter().copied().chain(["store"]).collect();
        expected.sort_unstable();
        assert_eq!(found, expected);
    }
}

const COPY: Export = Export { overwrite: false, force_hard_link: false, offset: None, owner: None, mode: Some(0o640) };
const LINK: Export = Export { overwrite: false, force_hard_link: true, offset: None, owner: None, mode: None };

#[test]
fn a_whole_content_is_shared_where_it_can_be() {
    let f = fixture();
    let made = f.export("a", Export::default()).unwrap();
    assert_eq!(made.bytes, f.data.len() as u64);
    assert!(fs::read(f.path("a")).unwrap() == f.data);
    // ext4 and tmpfs share by link, XFS and btrfs by blocks; nothing is copied within a filesystem.
    assert_ne!(made.way, Way::Copy);
    if made.way == Way::HardLink {
        assert_eq!(fs::metadata(f.path("a")).unwrap().permissions().mode() & 0o222, 0, "read-only, as the content is");
    }
    f.holds(&["a"]);
}

#[test]
fn an_output_that_can_be_written_to_is_not_the_contents_file() {
    let f = fixture();
    assert_ne!(f.export("a", COPY).unwrap().way, Way::HardLink);
    assert_eq!(fs::metadata(f.path("a")).unwrap().permissions().mode() & MODE, 0o640);
    scribble(&f.path("a"), 0, b"mine now");
    assert!(read_all(&f.content) == f.data);
    if is_root() {
        let made = f.export("b", Export { owner: Some((12_345, 54_321)), ..Export::default() }).unwrap();
        assert_ne!(made.way, Way::HardLink);
        let metadata = fs::metadata(f.path("b")).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (12_345, 54_321));
    }
}

const MODE: u32 = 0o7777;

#[test]
fn writing_to_a_linked_output_is_noticed_before_anything_is_served() {
    let f = fixture();
    assert_eq!(f.export("a", LINK).unwrap().way, Way::HardLink);
    fs::set_permissions(f.path("a"), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(read_all(&f.content) == f.data, "permissions are no bytes");
    scribble(&f.path("a"), 70_000, b"mine now");
    assert!(matches!(f.content.read(0, &mut [0; 9]), Err(StoreError::Modified { .. })));
    assert!(matches!(f.export("b", Export::default()), Err(StoreError::Modified { .. })));
    assert!(f.store.get(task_id(1), None).unwrap().is_none());
    let mine = fs::read(f.path("a")).unwrap();
    drop(finished(&f.store, 1, &f.data));
    assert!(fs::read(f.path("a")).unwrap() == mine, "the user's file is left alone");
}

/// A crash between the output and the finished row, and the output edited since: going on would write into it.
#[test]
fn an_unfinished_content_shared_with_an_output_is_not_written_to() {
    let dir = folder();
    let data = bytes(1, 2 * PIECE);
    let output = dir.path().join("out");
    let store = open(&dir.path().join("store"));
    let content = store.create(new_task(1, 1, Some(2 * PIECE))).unwrap();
    assert!(matches!(content.export(None, &output, LINK), Err(StoreError::Incomplete { .. })));
    write_all(&content, &data);
    content.export(None, &output, LINK).unwrap();
    drop((content, store));
    scribble(&output, 3, b"mine now");
    let store = open(&dir.path().join("store"));
    assert!(store.get(task_id(1), None).unwrap().is_none());
    assert!(fs::read(&output).unwrap()[3..].starts_with(b"mine now"));
}

#[test]
fn an_existing_output_is_replaced_only_when_told_and_whole() {
    let f = fixture();
    fs::write(f.path("a"), "precious").unwrap();
    for how in [Export::default(), COPY, LINK] {
        let error = f.export("a", how).unwrap_err();
        assert!(matches!(error, StoreError::OutputExists { .. }) && error.kind() == Kind::Conflict);
        assert!(error.to_string().contains("/a is there already"), "{error}");
    }
    assert_eq!(fs::read(f.path("a")).unwrap(), b"precious");
    for how in [Export::default(), COPY, LINK, LINK] {
        f.export("a", Export { overwrite: true, ..how }).unwrap();
        assert!(fs::read(f.path("a")).unwrap() == f.data);
        f.holds(&["a"]);
    }
    fs::write(f.path("b"), "precious").unwrap();
    let content = f.store.create(new_task(2, 1, Some(10))).unwrap();
    assert!(content.export(None, &f.path("b"), Export { overwrite: true, ..COPY }).is_err());
    assert_eq!(fs::read(f.path("b")).unwrap(), b"precious");
}

#[test]
fn ranges_are_copied() {
    let f = fixture();
    for (start, end) in [(0, 1), (5, 70_000), (65_536, 131_072), (MIB, 3 * MIB + 7), (0, 3 * MIB + 7)] {
        let range = ByteRange::new(start, end);
        let made = f.content.export(range, &f.path("a"), Export { overwrite: true, ..COPY }).unwrap();
        assert_eq!(made.bytes, end - start);
        assert!(fs::read(f.path("a")).unwrap() == f.data[start as usize..end as usize]);
    }
    let beyond = f.content.export(ByteRange::new(0, 3 * MIB + 8), &f.path("b"), COPY);
    assert!(matches!(beyond, Err(StoreError::NoSuchPiece { .. })));
    let linked = f.content.export(ByteRange::new(0, 8), &f.path("b"), LINK).unwrap_err();
    assert!(linked.to_string().contains("only a part"), "{linked}");
    f.holds(&["a"]);
}

#[test]
fn a_range_needs_its_own_pieces_only() {
    let dir = folder();
    let store = open(&dir.path().join("store"));
    let data = bytes(1, 4 * PIECE);
    let content = store.create(new_task(1, 1, Some(4 * PIECE))).unwrap();
    write(&content, 1, &data);
    let output = dir.path().join("out");
    content.export(ByteRange::new(PIECE + 1, 2 * PIECE), &output, COPY).unwrap();
    assert!(fs::read(&output).unwrap() == data[PIECE as usize + 1..2 * PIECE as usize]);
    let lacking = content.export(ByteRange::new(PIECE, 2 * PIECE + 1), &output, Export { overwrite: true, ..COPY });
    assert!(matches!(lacking, Err(StoreError::Absent { piece: PieceIndex(2) })));
}

#[test]
fn at_an_offset_the_rest_of_the_file_stays() {
    let f = fixture();
    let at = |offset| Export { offset: Some(offset), mode: Some(0o600), ..Export::default() };
    fs::write(f.path("a"), vec![b'-'; 100]).unwrap();
    f.content.export(ByteRange::new(10, 20), &f.path("a"), at(50)).unwrap();
    let mut expected = vec![b'-'; 100];
    expected[50..60].copy_from_slice(&f.data[10..20]);
    assert_eq!(fs::read(f.path("a")).unwrap(), expected);
    assert_ne!(fs::metadata(f.path("a")).unwrap().permissions().mode() & MODE, 0o600, "it was there before");
    f.content.export(ByteRange::new(10, 20), &f.path("b"), at(5)).unwrap();
    assert_eq!(fs::read(f.path("b")).unwrap(), [&[0; 5], &f.data[10..20]].concat());
    assert_eq!(fs::metadata(f.path("b")).unwrap().permissions().mode() & MODE, 0o600);
    assert!(f.content.export(None, &f.path("b"), at(u64::MAX)).is_err());
    assert!(matches!(f.export("b", Export { force_hard_link: true, ..at(0) }), Err(StoreError::NoHardLink { .. })));
    // Our own content under another name must not be written to, whoever asks.
    f.export("linked", LINK).unwrap();
    let error = f.content.export(ByteRange::new(10, 20), &f.path("linked"), at(0)).unwrap_err();
    assert!(matches!(error.kind(), Kind::Conflict | Kind::Forbidden), "{error}");
    assert!(read_all(&f.content) == f.data);
}

#[test]
fn what_is_no_file_is_named() {
    let f = fixture();
    fs::create_dir(f.path("folder")).unwrap();
    for how in [COPY, LINK, Export { overwrite: true, ..COPY }, Export { offset: Some(0), ..COPY }] {
        let error = f.export("folder", how).unwrap_err();
        assert!(error.to_string().contains("/folder is a folder"), "{error}");
    }
    let error = f.export("no/such/folder/a", COPY).unwrap_err();
    assert!(error.kind() == Kind::NotFound && error.to_string().contains("no/such/folder/a"), "{error}");
    assert!(f.content.export(None, Path::new("/"), COPY).is_err());
    assert!(f.content.export(None, Path::new(".."), COPY).is_err());
    let device = f.content.export(None, Path::new("/dev/null"), Export { overwrite: true, ..COPY }).unwrap();
    assert_eq!(device.bytes, f.data.len() as u64);
    assert!(!fs::metadata("/dev/null").unwrap().is_file(), "written to, not replaced");
    let other = Export { owner: Some((0, 0)), ..COPY };
    assert!(matches!(f.content.export(None, Path::new("/dev/null"), other), Err(StoreError::OutputNotAFile { .. })));
}

#[test]
fn links_are_followed_for_oneself_and_refused_for_others() {
    let f = fixture();
    fs::write(f.path("target"), "old").unwrap();
    symlink(f.path("target"), f.path("link")).unwrap();
    assert!(matches!(f.export("link", COPY), Err(StoreError::OutputExists { .. })));
    let other = Export { owner: Some((0, 0)), overwrite: true, ..COPY };
    assert!(matches!(f.export("link", other), Err(StoreError::OutputNotAFile { .. })));
    assert!(matches!(f.export("link", Export { offset: Some(0), ..other }), Err(StoreError::OutputNotAFile { .. })));
    assert_eq!(fs::read(f.path("target")).unwrap(), b"old");
    f.export("link", Export { overwrite: true, ..COPY }).unwrap();
    assert!(f.path("link").is_symlink());
    assert!(fs::read(f.path("target")).unwrap() == f.data);
    symlink(f.path("nowhere"), f.path("dangling")).unwrap();
    assert!(f.export("dangling", COPY).unwrap_err().to_string().contains("a symbolic link to nothing"));
}

#[test]
fn onto_another_filesystem_it_is_a_copy() {
    let f = fixture();
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else { return };
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    if device(other.path()) == device(f.dir.path()) {
        return;
    }
    let output = other.path().join("out");
    let forced = f.content.export(None, &output, LINK).unwrap_err();
    assert!(forced.to_string().contains("another filesystem"), "{forced}");
    let made = f.content.export(None, &output, Export::default()).unwrap();
    assert_eq!(made.way, Way::Copy);
    assert!(fs::read(&output).unwrap() == f.data);
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 1);
}

#[test]
fn empty_contents_and_long_names() {
    let f = fixture();
    let empty = f.store.create(new_task(2, 1, Some(0))).unwrap();
    for how in [Export::default(), COPY] {
        let made = empty.export(None, &f.path("empty"), Export { overwrite: true, ..how }).unwrap();
        assert_eq!((made.bytes, fs::metadata(f.path("empty")).unwrap().len()), (0, 0));
    }
    f.export(&"x".repeat(255), COPY).unwrap();
    assert!(f.export(&"x".repeat(256), COPY).is_err());
    f.holds(&["empty", &"x".repeat(255)]);
}

#[test]
fn an_evicted_content_leaves_its_outputs() {
    let f = fixture();
    f.export("a", LINK).unwrap();
    f.store.condemn(task_id(1), Generation::unique(1), "wrong").unwrap();
    assert!(fs::read(f.path("a")).unwrap() == f.data);
    assert!(matches!(f.export("b", COPY), Err(StoreError::Condemned { .. })));
}
