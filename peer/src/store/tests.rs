//! The store as its users see it.

mod crash;
mod export;
mod lifecycle;
mod model;
mod space;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use proto::{Generation, PieceHash, PieceIndex, PieceLayout, Root, TaskId, TaskSpec, root_of};
use tempfile::TempDir;

use super::*;

pub(super) const PIECE: u64 = 65_536;
pub(super) const MIB: u64 = 1024 * 1024;
const ROOMY: u64 = 1 << 30;

pub(super) fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

pub(super) fn open(dir: &Path) -> Store {
    open_sized(dir, ROOMY)
}

pub(super) fn open_sized(dir: &Path, capacity_bytes: u64) -> Store {
    Store::open(StoreConfig::new(dir, capacity_bytes)).unwrap()
}

/// Bytes that differ between seeds and between places.
pub(super) fn bytes(seed: u64, len: u64) -> Vec<u8> {
    let mut out = vec![0; usize::try_from(len).unwrap()];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

pub(super) fn task_id(n: u64) -> TaskId {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&n.to_be_bytes());
    id[0] = u8::try_from(n % 256).unwrap();
    TaskId::from_bytes(&id).unwrap()
}

pub(super) fn new_task(n: u64, generation: u128, length: Option<u64>) -> NewTask {
    NewTask {
        task: task_id(n),
        generation: Generation::unique(generation),
        layout: PieceLayout::of_length(length),
        digest: None,
        guarded: false,
        headers: vec![("content-type".into(), b"text/plain".to_vec())],
        spec: TaskSpec::of_url(format!("http://origin/{n}").parse().unwrap()),
        confirmed: true,
    }
}

pub(super) fn piece_bytes(layout: PieceLayout, piece: PieceIndex, data: &[u8]) -> &[u8] {
    let range = layout.range(piece).unwrap();
    &data[usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap()]
}

pub(super) fn write(content: &Content, piece: u32, data: &[u8]) -> bool {
    let (layout, piece) = (content.layout(), PieceIndex(piece));
    let bytes = piece_bytes(layout, piece, data);
    content.write_piece(piece, bytes, PieceHash::of(layout, piece, bytes)).unwrap()
}

pub(super) fn write_all(content: &Content, data: &[u8]) {
    for piece in 0..content.layout().count().unwrap() {
        write(content, piece, data);
    }
}

pub(super) fn root(layout: PieceLayout, data: &[u8]) -> Root {
    let hashes: Vec<_> = (0..layout.count().unwrap())
        .map(PieceIndex)
        .map(|p| PieceHash::of(layout, p, piece_bytes(layout, p, data)))
        .collect();
    root_of(layout, &hashes).unwrap()
}

/// A finished content of these bytes.
pub(super) fn finished(store: &Store, n: u64, data: &[u8]) -> Arc<Content> {
    let content = store.create(new_task(n, 1, Some(data.len() as u64))).unwrap();
    write_all(&content, data);
    content.finish(root(content.layout(), data)).unwrap();
    content
}

pub(super) fn read_all(content: &Content) -> Vec<u8> {
    let mut out = Vec::new();
    let mut buf = vec![0; 100_000];
    loop {
        match content.read(out.len() as u64, &mut buf).unwrap() {
            0 => return out,
            n => out.extend_from_slice(&buf[..n]),
        }
    }
}

pub(super) fn path_of(store: &Store, n: u64, generation: u128) -> PathBuf {
    store.inner.folder.content_path(Key { task: task_id(n), generation: Generation::unique(generation) })
}

/// Overwrites bytes of a file as another program would.
pub(super) fn scribble(path: &Path, at: u64, with: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(with, at).unwrap();
}

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
