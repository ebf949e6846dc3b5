//! Where things lie, and how a small file gets there whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use oci::upload::UploadId;

use crate::clock::now_ms;
use crate::error::StoreError;
use crate::identity;
use crate::name::{RecordId, Shard, StoreEntry, StoredBlob, TagRecordName};

/// The folders of a store.
pub(super) struct Layout {
    root: PathBuf,
}

const UPLOADS: &str = "uploads";
/// Each has the 256 folders.
const SHARDED: [&str; 3] = ["blobs", "records/manifests", "records/tags"];

impl Layout {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn identity(&self) -> PathBuf {
        self.root.join(identity::NAME)
    }

    pub(super) fn uploads(&self) -> PathBuf {
        self.root.join(UPLOADS)
    }

    pub(super) fn upload(&self, id: UploadId) -> PathBuf {
        self.root.join(format!("{UPLOADS}/{id}"))
    }

    pub(super) fn blobs(&self, shard: Shard) -> PathBuf {
        self.root.join(format!("{}/{shard}", SHARDED[0]))
    }

    pub(super) fn blob(&self, blob: &StoredBlob) -> PathBuf {
        self.root.join(format!("{}/{}/{blob}", SHARDED[0], blob.shard()))
    }

    pub(super) fn manifest_records(&self, shard: Shard) -> PathBuf {
        self.root.join(format!("{}/{shard}", SHARDED[1]))
    }

    pub(super) fn manifest_record(&self, id: RecordId) -> PathBuf {
        self.manifest_records(id.shard()).join(id.to_string())
    }

    pub(super) fn tag_records(&self, shard: Shard) -> PathBuf {
        self.root.join(format!("{}/{shard}", SHARDED[2]))
    }

    pub(super) fn tag_record(&self, name: TagRecordName) -> PathBuf {
        self.tag_records(name.shard()).join(name.to_string())
    }

    /// `None` for what a folder cannot hold: here, bytes and their name are one.
    pub(super) fn entry(&self, entry: &StoreEntry) -> Option<PathBuf> {
        match entry {
            StoreEntry::Blob(blob) => Some(self.blob(blob)),
            StoreEntry::Bytes(_) => None,
            StoreEntry::ManifestRecord(id) => Some(self.manifest_record(*id)),
            StoreEntry::TagRecord(name) => Some(self.tag_record(*name)),
        }
    }

    /// A path relative to the store, for people.
    pub(super) fn relative(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }

    /// Makes the folders that are not there yet, durable.
    pub(super) fn prepare(&self) -> Result<(), StoreError> {
        fs::create_dir_all(&self.root).map_err(|error| StoreError::io("make", &self.root, error))?;
        make_folders(&self.root, &["uploads", "blobs", "records"])?;
        make_folders(&self.root.join("records"), &["manifests", "tags"])?;
        let shards: Vec<String> = Shard::all().map(|shard| shard.to_string()).collect();
        let device = device(&self.uploads())?;
        for sharded in SHARDED {
            let folder = self.root.join(sharded);
            make_folders(&folder, &shards)?;
            // A rename cannot cross filesystems; better to say so now than at the first push.
            if self::device(&folder)? != device {
                let why = format!("{} and {} are on different filesystems", self.uploads().display(), folder.display());
                return Err(StoreError::Setup { why, source: None });
            }
        }
        Ok(())
    }

    /// Puts a small file there, whole or not at all, durable when it returns.
    pub(super) fn put(&self, path: &Path, content: &[u8]) -> Result<(), StoreError> {
        // An upload's name, so that what a crash leaves is reclaimed like any other unfinished upload.
        let temporary = self.upload(UploadId::new(now_ms(), rand::random()));
        let put = || {
            let fail = |doing| move |error| StoreError::io(doing, path, error);
            let mut file = OpenOptions::new().write(true).create_new(true).open(&temporary).map_err(fail("make"))?;
            file.write_all(content).map_err(fail("write"))?;
            file.sync_data().map_err(fail("sync"))?;
            fs::rename(&temporary, path).map_err(fail("rename"))?;
            sync_folder(parent(path))
        };
        let done = put();
        if done.is_err() {
            // Gone if it was renamed already; else it only took room.
            let _ = fs::remove_file(&temporary);
        }
        done
    }
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    let sync = || File::open(folder)?.sync_all();
    sync().map_err(|error| StoreError::io("sync", folder, error))
}

pub(super) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

fn make_folders(parent: &Path, names: &[impl AsRef<str>]) -> Result<(), StoreError> {
    let mut made = false;
    for name in names {
        let path = parent.join(name.as_ref());
        match fs::create_dir(&path) {
            Ok(()) => made = true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(StoreError::io("make", path, error)),
        }
    }
    if made { sync_folder(parent) } else { Ok(()) }
}

fn device(path: &Path) -> Result<u64, StoreError> {
    Ok(fs::metadata(path).map_err(|error| StoreError::io("look at", path, error))?.dev())
}
