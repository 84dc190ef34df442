//! The database files: opening, creating, and the snapshot that every read goes through.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io::Write as _;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch as WriteBatch, PersistMode,
    Readable, Snapshot,
};

use super::codec::{self, Entry, LOG_ENTRY, LOG_OLD, Stored};
use super::{EmbeddedOptions, journal};
use crate::history::{self, Undo, WATCH_BATCH_MAX};
use crate::{Event, EventBatch, ListPage, ListRequest, Record, StoreError, Version};

/// Memory for blocks of tables. The API server reads from its own cache, so this stays small.
const CACHE_BYTES: u64 = 32 << 20;
/// Journals that may wait for their tables; bounds what start-up replays.
const JOURNALS_BYTES: u64 = 256 << 20;

const META_FORMAT: &[u8] = b"format";
const META_INCARNATION: &[u8] = b"incarnation";
const META_VERSION: &[u8] = b"version";
const META_COMPACTED: &[u8] = b"compacted";

/// The open database. Dropping it closes the files.
#[derive(Clone)]
pub(super) struct Disk {
    db: Database,
    pub cur: Keyspace,
    pub log: Keyspace,
    pub meta: Keyspace,
}

/// One consistent state: everything acknowledged up to `version`.
pub(super) struct View {
    pub disk: Disk,
    snapshot: Snapshot,
    pub version: Version,
    pub compacted: Version,
}

/// What the directory holds besides the database.
pub(super) struct Layout {
    dir: PathBuf,
    /// Held for the life of the store; the kernel lets go of it however the process ends.
    _lock: File,
}

fn io_error(what: &str, path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Unavailable(format!("cannot {what} {}: {error}", path.display()))
}

/// What a failed database call means to a reader.
pub(super) fn db_error(error: fjall::Error) -> StoreError {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => {
            StoreError::Unavailable(format!("embedded store: {error}"))
        }
        fjall::Error::Poisoned | fjall::Error::Locked => {
            StoreError::Unavailable(format!("embedded store: {error}"))
        }
        error => StoreError::Corrupt(format!("embedded store: {error}")),
    }
}

impl Layout {
    /// Locks the directory, creating it if needed.
    pub(super) fn lock(dir: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(|e| io_error("create", dir, &e))?;
        let path = dir.join("LOCK");
        let mut lock = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| io_error("open", &path, &e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = std::fs::read_to_string(&path).unwrap_or_default();
                return Err(StoreError::Unavailable(format!(
                    "{} is in use by another process (pid {}): stop it or choose another data directory",
                    dir.display(),
                    holder.trim()
                )));
            }
            Err(TryLockError::Error(e)) => return Err(io_error("lock", &path, &e)),
        }
        // The pid only helps a person; a failure to note it is no reason not to start.
        let noted = lock
            .set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()));
        if let Err(error) = noted {
            tracing::debug!(%error, "cannot note the pid in the lock file");
        }
        Ok(Self {
            dir: dir.to_owned(),
            _lock: lock,
        })
    }

    fn db(&self) -> PathBuf {
        self.dir.join("db")
    }

    fn acknowledged_path(&self) -> PathBuf {
        self.dir.join("acknowledged")
    }

    /// A version that was surely acknowledged (a lower bound, written now and then), so that a
    /// database that comes back with less is seen to be damaged.
    fn acknowledged(&self) -> Version {
        let text = std::fs::read_to_string(self.acknowledged_path()).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Notes such a version.
    pub(super) fn note_acknowledged(&self, version: Version) -> std::io::Result<()> {
        let temporary = self.dir.join("acknowledged.new");
        let mut file = File::create(&temporary)?;
        writeln!(file, "{version}")?;
        file.sync_all()?;
        std::fs::rename(&temporary, self.acknowledged_path())
    }

    /// Free bytes of the file system that holds the store.
    pub(super) fn free_bytes(&self) -> u64 {
        match rustix::fs::statvfs(&self.dir) {
            Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
            // Unknown is not full.
            Err(_) => u64::MAX,
        }
    }

    /// Opens the database, creating it if there is none. Nothing may hold it open.
    pub(super) fn open(&self, options: &EmbeddedOptions) -> Result<(View, String), StoreError> {
        let path = self.db();
        if !path.exists() {
            if self.acknowledged() > 0 {
                return Err(StoreError::Corrupt(format!(
                    "{} is missing although {} says that it held data",
                    path.display(),
                    self.acknowledged_path().display()
                )));
            }
            self.create(&path, options)?;
        }
        journal::mend(&path)?;
        let disk = Disk::open(&path, options)?;
        let (view, incarnation) = disk.start(options)?;
        let acknowledged = self.acknowledged();
        if view.version < acknowledged {
            return Err(StoreError::Corrupt(format!(
                "{} ends at version {}, but {acknowledged} was acknowledged: restore a backup",
                path.display(),
                view.version
            )));
        }
        Ok((view, incarnation))
    }

    /// Builds an empty database beside its place and moves it there, so that a half-made one is never opened.
    fn create(&self, path: &Path, options: &EmbeddedOptions) -> Result<(), StoreError> {
        let fresh = self.dir.join("db.new");
        if fresh.exists() {
            std::fs::remove_dir_all(&fresh).map_err(|e| io_error("remove", &fresh, &e))?;
        }
        {
            let disk = Disk::open(&fresh, options)?;
            let mut batch = disk.batch(4);
            batch.insert(&disk.meta, META_FORMAT, codec::FORMAT);
            let incarnation = uuid::Uuid::new_v4().to_string();
            batch.insert(&disk.meta, META_INCARNATION, incarnation.as_str());
            batch.insert(&disk.meta, META_VERSION, 0u64.to_le_bytes());
            batch.insert(&disk.meta, META_COMPACTED, 0u64.to_le_bytes());
            batch.commit().map_err(db_error)?;
        }
        std::fs::rename(&fresh, path).map_err(|e| io_error("rename", &fresh, &e))?;
        let dir = File::open(&self.dir).and_then(|dir| dir.sync_all());
        dir.map_err(|e| io_error("sync", &self.dir, &e))
    }
}

impl Disk {
    fn open(path: &Path, options: &EmbeddedOptions) -> Result<Self, StoreError> {
        let db = Database::builder(path)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNALS_BYTES)
            .journal_compression(fjall::CompressionType::None)
            .open()
            .map_err(db_error)?;
        let memtable = options.memtable_bytes;
        let table = |name: &str, hits: bool| {
            let create = move || {
                KeyspaceCreateOptions::default()
                    .max_memtable_size(memtable)
                    .expect_point_read_hits(hits)
            };
            db.keyspace(name, create).map_err(db_error)
        };
        let (cur, log, meta) = (
            table("cur", false)?,
            table("log", true)?,
            table("meta", true)?,
        );
        Ok(Self { db, cur, log, meta })
    }

    /// A batch that is on disk when its commit returns, and only then visible.
    pub(super) fn batch(&self, capacity: usize) -> WriteBatch {
        WriteBatch::with_capacity(self.db.clone(), capacity).durability(Some(PersistMode::SyncData))
    }

    fn number(&self, key: &[u8]) -> Result<u64, StoreError> {
        match self.meta.get(key).map_err(db_error)? {
            Some(bytes) => codec::decode_number(&bytes),
            None => Err(StoreError::Corrupt(format!(
                "embedded store: table meta has no {}",
                String::from_utf8_lossy(key)
            ))),
        }
    }

    pub(super) fn put_version(&self, batch: &mut WriteBatch, version: Version) {
        batch.insert(&self.meta, META_VERSION, version.to_le_bytes());
    }

    pub(super) fn put_compacted(&self, batch: &mut WriteBatch, version: Version) {
        batch.insert(&self.meta, META_COMPACTED, version.to_le_bytes());
    }

    /// Reads the meta table and applies what the options ask for.
    fn start(self, options: &EmbeddedOptions) -> Result<(View, String), StoreError> {
        let format = self.meta.get(META_FORMAT).map_err(db_error)?;
        if format.as_deref() != Some(codec::FORMAT) {
            return Err(StoreError::Corrupt(format!(
                "embedded store: unknown format {:?}, this version reads {:?}",
                format.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
                String::from_utf8_lossy(codec::FORMAT)
            )));
        }
        let mut version = self.number(META_VERSION)?;
        let mut compacted = self.number(META_COMPACTED)?;
        let incarnation = self.meta.get(META_INCARNATION).map_err(db_error)?;
        let mut incarnation =
            String::from_utf8_lossy(&incarnation.unwrap_or_default()).into_owned();
        if options.version_floor > version {
            version = options.version_floor;
            compacted = version;
            incarnation = uuid::Uuid::new_v4().to_string();
            let mut batch = self.batch(3);
            self.put_version(&mut batch, version);
            self.put_compacted(&mut batch, compacted);
            batch.insert(&self.meta, META_INCARNATION, incarnation.as_str());
            batch.commit().map_err(db_error)?;
        }
        Ok((self.view(version, compacted), incarnation))
    }

    /// The state after the last commit.
    pub(super) fn view(self, version: Version, compacted: Version) -> View {
        View {
            snapshot: self.db.snapshot(),
            disk: self,
            version,
            compacted,
        }
    }

    /// Bytes that the log table takes on disk.
    pub(super) fn log_bytes(&self) -> u64 {
        self.log.disk_space()
    }
}

impl View {
    pub(super) fn get(&self, key: &str) -> Result<Option<Stored>, StoreError> {
        let found = self.snapshot.get(&self.disk.cur, key).map_err(db_error)?;
        found.map(|bytes| codec::decode_cur(&bytes)).transpose()
    }

    pub(super) fn check_readable(&self, wanted: Version) -> Result<(), StoreError> {
        if wanted < self.compacted {
            let oldest = self.compacted;
            return Err(StoreError::Compacted { wanted, oldest });
        }
        if wanted > self.version {
            let current = self.version;
            return Err(StoreError::Future { wanted, current });
        }
        Ok(())
    }

    /// Walks the log after `from`: each entry with the value its version left behind if it was
    /// replaced since.
    fn log_after(
        &self,
        from: Version,
    ) -> impl Iterator<Item = Result<(Version, Entry), StoreError>> + '_ {
        let start = codec::log_key(from, u8::MAX);
        let end = codec::log_key(self.version, u8::MAX);
        let range = (Bound::Excluded(start), Bound::Included(end));
        self.snapshot
            .range(&self.disk.log, range)
            .filter_map(|guard| {
                let (key, value) = match guard.into_inner() {
                    Ok(pair) => pair,
                    Err(error) => return Some(Err(db_error(error))),
                };
                match codec::decode_log_key(&key) {
                    Ok((_, LOG_OLD)) => None,
                    Ok((version, _)) => {
                        Some(codec::decode_entry(&value).map(|entry| (version, entry)))
                    }
                    Err(error) => Some(Err(error)),
                }
            })
    }

    /// The value that a replaced version held.
    fn old(&self, key: &Arc<str>, version: Version) -> Result<Record, StoreError> {
        let log_key = codec::log_key(version, LOG_OLD);
        let found = self.snapshot.get(&self.disk.log, log_key);
        match found.map_err(db_error)? {
            Some(bytes) => Ok(record(key.clone(), codec::decode_old(version, &bytes)?)),
            None => Err(StoreError::Corrupt(format!(
                "embedded store: the value of {key} at version {version} is missing"
            ))),
        }
    }

    pub(super) fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let version = request.at.unwrap_or(self.version);
        self.check_readable(version)?;
        let mut undo = Undo::new();
        if version < self.version {
            for item in self.log_after(version) {
                let (_, entry) = item?;
                if history::wanted(request, &entry.key) {
                    let older = (entry.previous != 0).then_some(entry.previous);
                    undo.entry(entry.key).or_insert(older);
                }
            }
        }
        let start = match &request.after {
            Some(after) if after.as_str() >= request.prefix.as_str() => {
                Bound::Excluded(after.as_bytes())
            }
            _ => Bound::Included(request.prefix.as_bytes()),
        };
        let newest = self
            .snapshot
            .range::<&[u8], _>(&self.disk.cur, (start, Bound::Unbounded))
            .map(|guard| {
                let (key, value) = guard.into_inner().map_err(db_error)?;
                Ok((codec::decode_key(&key)?, value))
            })
            .take_while(|item: &Result<_, StoreError>| {
                item.as_ref()
                    .map_or(true, |(key, _)| key.starts_with(&request.prefix))
            })
            .map(|item| {
                let (key, value) = item?;
                Ok(record(key, codec::decode_cur(&value)?))
            });
        let (items, more) =
            history::merge_page(newest, undo, request.limit, |key, v| self.old(key, v))?;
        Ok(ListPage {
            items,
            version,
            more,
        })
    }

    /// Whole transactions after `from`, about [`WATCH_BATCH_MAX`] events.
    pub(super) fn read_after(&self, from: Version) -> Result<EventBatch, StoreError> {
        self.check_readable(from)?;
        let mut events = Vec::new();
        for item in self.log_after(from) {
            let (version, entry) = item?;
            let value = if entry.put {
                // Still current, or kept by the write that replaced it.
                Some(match self.get(&entry.key)? {
                    Some(stored) if stored.version == version => stored.value,
                    _ => self.old(&entry.key, version)?.value,
                })
            } else {
                None
            };
            events.push(Event {
                version,
                key: entry.key,
                value,
                expires_at: entry.expires_at,
            });
            if entry.ends_txn && events.len() >= WATCH_BATCH_MAX {
                break;
            }
        }
        let version = events.last().map_or(from, |event| event.version);
        Ok(EventBatch { events, version })
    }

    /// The end of the first transaction at or after `version`.
    pub(super) fn txn_boundary(&self, version: Version) -> Result<Version, StoreError> {
        if version <= self.compacted {
            return Ok(self.compacted);
        }
        for item in self.log_after(version - 1) {
            let (at, entry) = item?;
            if entry.ends_txn {
                return Ok(at);
            }
        }
        Ok(self.version)
    }

    /// The next `max` entries at or below the compacted version that are still on disk, as a batch
    /// that removes them and what they kept alive. `None` when there are none.
    pub(super) fn trim(&self, max: usize) -> Result<Option<WriteBatch>, StoreError> {
        let end = codec::log_key(self.compacted, LOG_ENTRY);
        let mut batch = self.disk.batch(2 * max);
        let mut count = 0;
        for guard in self.snapshot.range(&self.disk.log, ..=end) {
            let (key, value) = guard.into_inner().map_err(db_error)?;
            let (version, kind) = codec::decode_log_key(&key)?;
            if kind != LOG_ENTRY {
                continue;
            }
            let entry = codec::decode_entry(&value)?;
            batch.remove(&self.disk.log, codec::log_key(version, LOG_ENTRY));
            if entry.previous != 0 {
                batch.remove(&self.disk.log, codec::log_key(entry.previous, LOG_OLD));
            }
            count += 1;
            if count == max {
                break;
            }
        }
        Ok((count > 0).then_some(batch))
    }
}

pub(super) fn record(key: Arc<str>, stored: Stored) -> Record {
    Record {
        key,
        value: stored.value,
        version: stored.version,
        expires_at: stored.expires_at,
    }
}

/// What a group of transactions has changed or looked up so far.
#[derive(Default)]
pub(super) struct Overlay {
    keys: HashMap<Arc<str>, Slot>,
}

struct Slot {
    stored: Option<Stored>,
    dirty: bool,
}

impl Overlay {
    /// What a key holds, the group's earlier writes included.
    pub(super) fn look(
        &mut self,
        view: &View,
        key: &Arc<str>,
    ) -> Result<Option<&Stored>, StoreError> {
        if !self.keys.contains_key(key) {
            let stored = view.get(key)?;
            let dirty = false;
            self.keys.insert(key.clone(), Slot { stored, dirty });
        }
        Ok(self.keys.get(key).and_then(|slot| slot.stored.as_ref()))
    }

    /// Replaces what a key holds and hands back what it held. The key was looked up before.
    pub(super) fn set(&mut self, key: &Arc<str>, stored: Option<Stored>) -> Option<Stored> {
        let slot = Slot {
            stored,
            dirty: true,
        };
        self.keys.insert(key.clone(), slot)?.stored
    }

    /// Writes what changed to table `cur`, each key once: a batch may not name a key twice.
    pub(super) fn write(&self, disk: &Disk, batch: &mut WriteBatch) {
        for (key, slot) in self.keys.iter().filter(|(_, slot)| slot.dirty) {
            match &slot.stored {
                Some(stored) => {
                    batch.insert(&disk.cur, key.as_bytes(), codec::encode_cur(stored));
                }
                None => batch.remove(&disk.cur, key.as_bytes()),
            }
        }
    }
}
