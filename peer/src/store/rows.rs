//! Rows: what is known of tasks, in RocksDB.
//!
//! | key | row |
//! |---|---|
//! | `h` | [`HostRowV1`] |
//! | `t` task generation | [`TaskRowV1`] |
//! | `p` task generation piece (big-endian) | [`PieceRowV1`], while unfinished |
//! | `f` task generation | [`HashesRowV1`], once finished |
//! | `u` task generation | [`UsedRowV1`] |
//!
//! Rows are written when something changes, never when bytes are read. Writes go to the log without a sync of their
//! own: a killed process loses none of them, a power loss the latest, and `docs/design/piece-store.md` says why that is enough.

use std::path::{Path, PathBuf};

use prost::Message;
use proto::{HostId, PieceHash, PieceIndex};
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, Direction, IteratorMode, LogLevel, Options, ReadOptions,
    WriteBatch, WriteOptions,
};

use super::StoreError;
use super::encoding::{HashesRowV1, HostRowV1, PieceRowV1, TaskRowV1, UsedRowV1};
use super::slot::Key;

/// A memtable, in bytes. A piece row takes about 100, so this is some twenty thousand pieces between flushes.
const WRITE_BUFFER_BYTES: usize = 2 * 1024 * 1024;
/// Blocks kept in memory, in bytes. Rows are read when a task is loaded, which is rare.
const BLOCK_CACHE_BYTES: usize = 1024 * 1024;
/// Table files kept open.
const OPEN_FILES_MAX: i32 = 16;
/// Flush and compaction threads.
const BACKGROUND_JOBS: i32 = 2;
/// RocksDB's own log file, in bytes.
const INFO_LOG_BYTES: usize = 256 * 1024;
/// The file of RocksDB that names its files, in bytes, before it is rewritten.
const MANIFEST_BYTES: usize = 1024 * 1024;
/// Bytes a row write may need on disk, told when there are none.
const ROW_BYTES: u64 = 64 * 1024;

/// The rows of a store.
#[derive(Debug)]
pub(super) struct Rows {
    db: DB,
    path: PathBuf,
}

impl Rows {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let db = DB::open(&options(), path).map_err(|e| StoreError::rows("open rows", path, ROW_BYTES, e))?;
        Ok(Self { db, path: path.to_owned() })
    }

    /// This host's identity: as it was, or drawn now.
    pub(super) fn host_id(&self) -> Result<HostId, StoreError> {
        if let Some(row) = self.read::<HostRowV1>(b"h")? {
            return HostId::from_bytes(&row.host_id).map_err(|_| StoreError::BadRow { what: "host id" });
        }
        let id = HostId::new(rand::random());
        let row = HostRowV1 { host_id: id.to_bytes().to_vec() };
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        self.db.put_opt(b"h", row.encode_to_vec(), &synced).map_err(|e| self.failed("write the host id", e))?;
        Ok(id)
    }

    /// Calls `each` for every task row. A row that cannot be read is passed as an error.
    pub(super) fn each_task(&self, mut each: impl FnMut(Key, Result<TaskRowV1, StoreError>)) -> Result<(), StoreError> {
        self.scan(b"t", |key, value| {
            if let Some(key) = Key::from_bytes(key) {
                each(key, TaskRowV1::decode(value).map_err(|_| StoreError::BadRow { what: "encoding" }));
            }
        })
    }

    pub(super) fn task(&self, key: Key) -> Result<Option<TaskRowV1>, StoreError> {
        self.read(&row_key(b't', key))
    }

    /// The pieces of an unfinished task, with the hashes their rows state.
    pub(super) fn pieces(&self, key: Key) -> Result<Vec<(PieceIndex, PieceHash)>, StoreError> {
        let mut pieces = Vec::new();
        self.scan(&row_key(b'p', key), |rest, value| {
            let index = rest.try_into().ok().map(|bytes| PieceIndex(u32::from_be_bytes(bytes)));
            let hash = PieceRowV1::decode(value).ok().and_then(|row| row.hash().ok());
            // A row that cannot be read is a piece that is not here: it will be fetched again.
            pieces.extend(index.zip(hash));
        })?;
        Ok(pieces)
    }

    /// The hashes of a finished task.
    pub(super) fn hashes(&self, key: Key) -> Result<Vec<PieceHash>, StoreError> {
        self.read::<HashesRowV1>(&row_key(b'f', key))?.ok_or(StoreError::BadRow { what: "list of hashes" })?.hashes()
    }

    pub(super) fn used(&self, key: Key) -> Result<Option<u64>, StoreError> {
        Ok(self.read::<UsedRowV1>(&row_key(b'u', key))?.map(|row| row.unix_ms))
    }

    pub(super) fn put_used(&self, key: Key, unix_ms: u64) -> Result<(), StoreError> {
        let row = UsedRowV1 { unix_ms };
        self.db.put(row_key(b'u', key), row.encode_to_vec()).map_err(|e| self.failed("note a use", e))
    }

    /// Writes the row of a new task, and makes sure that no piece of an earlier one is taken for its.
    pub(super) fn create(&self, key: Key, row: &TaskRowV1) -> Result<(), StoreError> {
        let mut batch = self.removal(key);
        batch.put(row_key(b't', key), row.encode_to_vec());
        self.write("write a new task", batch)
    }

    pub(super) fn put_piece(&self, key: Key, piece: PieceIndex, hash: PieceHash) -> Result<(), StoreError> {
        let row = PieceRowV1::new(hash).encode_to_vec();
        self.db.put(piece_key(key, piece), row).map_err(|e| self.failed("write a piece row", e))
    }

    pub(super) fn remove_pieces(&self, key: Key, pieces: &[PieceIndex]) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        for piece in pieces {
            batch.delete(piece_key(key, *piece));
        }
        self.write("remove piece rows", batch)
    }

    /// Rewrites a task's row, and one piece's with it.
    pub(super) fn update(
        &self,
        key: Key,
        row: &TaskRowV1,
        piece: Option<(PieceIndex, PieceHash)>,
    ) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        batch.put(row_key(b't', key), row.encode_to_vec());
        if let Some((piece, hash)) = piece {
            batch.put(piece_key(key, piece), PieceRowV1::new(hash).encode_to_vec());
        }
        self.write("rewrite a task", batch)
    }

    /// Replaces the piece rows by one. The content must have been synced before.
    pub(super) fn finish(&self, key: Key, row: &TaskRowV1, hashes: &[PieceHash]) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        remove_all_pieces(&mut batch, key);
        batch.put(row_key(b'f', key), HashesRowV1::new(hashes).encode_to_vec());
        batch.put(row_key(b't', key), row.encode_to_vec());
        self.write("finish a task", batch)
    }

    /// Removes everything about a task.
    pub(super) fn remove(&self, key: Key) -> Result<(), StoreError> {
        self.write("remove a task", self.removal(key))
    }

    fn removal(&self, key: Key) -> WriteBatch {
        let mut batch = WriteBatch::default();
        remove_all_pieces(&mut batch, key);
        for table in *b"tfu" {
            batch.delete(row_key(table, key));
        }
        batch
    }

    fn write(&self, action: &'static str, batch: WriteBatch) -> Result<(), StoreError> {
        self.db.write(batch).map_err(|e| self.failed(action, e))
    }

    fn read<M: Message + Default>(&self, key: &[u8]) -> Result<Option<M>, StoreError> {
        let Some(value) = self.db.get_pinned(key).map_err(|e| self.failed("read a row", e))? else { return Ok(None) };
        M::decode(&*value).map(Some).map_err(|_| StoreError::BadRow { what: "encoding" })
    }

    /// Calls `each` with what follows `prefix` in every key that starts with it, and the value.
    fn scan(&self, prefix: &[u8], mut each: impl FnMut(&[u8], &[u8])) -> Result<(), StoreError> {
        let mut once = ReadOptions::default();
        once.fill_cache(false);
        for row in self.db.iterator_opt(IteratorMode::From(prefix, Direction::Forward), once) {
            let (key, value) = row.map_err(|e| self.failed("read rows", e))?;
            let Some(rest) = key.strip_prefix(prefix) else { break };
            each(rest, &value);
        }
        Ok(())
    }

    fn failed(&self, action: &'static str, source: rocksdb::Error) -> StoreError {
        StoreError::rows(action, &self.path, ROW_BYTES, source)
    }
}

fn row_key(table: u8, key: Key) -> Vec<u8> {
    [&[table], &key.to_bytes()[..]].concat()
}

fn piece_key(key: Key, piece: PieceIndex) -> Vec<u8> {
    [b"p", &key.to_bytes()[..], &piece.0.to_be_bytes()].concat()
}

fn remove_all_pieces(batch: &mut WriteBatch, key: Key) {
    let mut end = piece_key(key, PieceIndex(u32::MAX));
    // One byte longer sorts right after: the end of a range is not part of it.
    end.push(0);
    batch.delete_range(row_key(b'p', key), end);
}

/// A few megabytes for a few thousand small rows, instead of the defaults for a database server.
fn options() -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    blocks.set_cache_index_and_filter_blocks(true);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&blocks);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(2);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_max_background_jobs(BACKGROUND_JOBS);
    // Hashes do not compress, and the rest is small.
    options.set_compression_type(DBCompressionType::None);
    options.set_skip_stats_update_on_db_open(true);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(1);
    options.set_max_log_file_size(INFO_LOG_BYTES);
    options.set_max_manifest_file_size(MANIFEST_BYTES);
    options
}

#[cfg(test)]
mod tests {
    use proto::{Generation, TaskId};

    use super::*;

    #[test]
    fn finishing_one_task_leaves_its_neighbours_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let rows = Rows::open(dir.path()).unwrap();
        let key = |generation| Key {
            task: TaskId::from_bytes(&[255; 32]).unwrap(),
            generation: Generation::unique(generation),
        };
        let all = [PieceIndex(0), PieceIndex(255), PieceIndex(256), PieceIndex(u32::MAX)];
        for generation in 0..3 {
            for piece in all {
                rows.put_piece(key(generation), piece, PieceHash([1; 32])).unwrap();
            }
        }
        rows.finish(key(1), &TaskRowV1::default(), &[PieceHash([1; 32])]).unwrap();
        let left = |generation| rows.pieces(key(generation)).unwrap().into_iter().map(|(p, _)| p).collect::<Vec<_>>();
        assert_eq!((left(0), left(1), left(2)), (all.to_vec(), vec![], all.to_vec()));
        assert_eq!(rows.hashes(key(1)).unwrap(), [PieceHash([1; 32])]);
        rows.remove(key(1)).unwrap();
        assert!(rows.task(key(1)).unwrap().is_none() && rows.hashes(key(1)).is_err());
        let id = rows.host_id().unwrap();
        drop(rows);
        assert_eq!(Rows::open(dir.path()).unwrap().host_id().unwrap(), id);
    }
}
