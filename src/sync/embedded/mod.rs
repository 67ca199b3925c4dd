//! The embedded ObjectStore: one SQLite file, `objects.db`, an index over what the log already holds durably. Opened by the composition root;
//! must never be opened for writing twice.
//!
//! One thread writes (`writer`); reads go through a small pool of read-only connections. Objects lie in one table by (object, item), the head in
//! front of its items, so that an object's rows share a page; a transaction writes in key order. Expiry has its own table, filed by the hour of an
//! object's last change: an object that changes within the same hour costs nothing there, and a sweep reads only the hours that are over.
//! `synchronous=NORMAL`: after power loss the file is older but consistent, and the log replays.

mod checkpointer;
pub mod dump;
mod queries;
mod rows;
mod writer;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::Connection;
use tokio::sync::{Semaphore, oneshot};

use self::checkpointer::Checkpointer;
use self::queries::failed;
use self::writer::{Job, LONG_WAL, What, Writer};
use super::recent::Recent;
use super::{Checkpoint, Error, Head, ObjectStore, ObjectWrite, RouterCommit, Seek, StoredObject};
use crate::event::identity::{Entry, IdentityKey};
use crate::event::{ObjectKey, ObjectKind, PARTITIONS, SiteId, Timestamp};
use crate::sqlite::{self, Durability, IdentityTables};

/// Jobs that may wait for the writer; callers wait beyond.
const QUEUE: usize = 64;
/// Reads at a time, and connections kept for them.
const READERS: usize = 4;
/// Most keys of one load.
const MAX_KEYS: usize = 10_000;

/// Objects written lately whose expiry entries the writer remembers; up to twice as many.
const FILED: usize = 30_000;

/// Version of `objects.db`. In version 1 an hour's identity entries were one run; version 2 had no SIDs: an object of it is found by its SID from its next
/// change on.
const VERSION: i64 = 3;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS rows (object BLOB NOT NULL, item BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (object, item)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS expiry (family TEXT NOT NULL, hour INTEGER NOT NULL, object BLOB NOT NULL, PRIMARY KEY (family, hour, object)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sids (sid BLOB PRIMARY KEY, object BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS router (partition INTEGER PRIMARY KEY, next INTEGER NOT NULL, received_at INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS sighted (partition INTEGER NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (partition, hash)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS keeper (partition INTEGER PRIMARY KEY, next INTEGER NOT NULL, value BLOB NOT NULL);
";

/// Objects in one SQLite file. Dropping it finishes what was queued and waits for its thread.
pub struct EmbeddedStore {
    /// None only while it is dropped.
    jobs: Option<SyncSender<Job>>,
    writer: Option<JoinHandle<()>>,
    queue: Arc<Semaphore>,
    readers: Readers,
    identity: Arc<IdentityTables>,
}

/// The read-only connections.
#[derive(Clone)]
struct Readers {
    path: Arc<PathBuf>,
    idle: Arc<Mutex<Vec<Connection>>>,
    permits: Arc<Semaphore>,
}

impl EmbeddedStore {
    /// Opens `path`, creating it where missing. Router state waits up to `linger` for other writes to share a transaction with (objects never
    /// wait here: their keeper has gathered them).
    ///
    /// # Errors
    /// [`Error::Store`] where the file cannot be opened or is of a later version.
    pub fn open(path: &Path, linger: Duration) -> Result<Self, Error> {
        let conn = sqlite::open(path, Durability::Replayable).map_err(failed)?;
        let version: i64 = conn.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
        if version > VERSION {
            return Err(Error::Store(format!("{} is of version {version}, newer than this build reads ({VERSION})", path.display())));
        }
        conn.execute_batch(SCHEMA).and_then(|()| conn.pragma_update(None, "user_version", VERSION)).map_err(failed)?;
        conn.pragma_update_and_check(None, "wal_autocheckpoint", LONG_WAL, |_| Ok(())).map_err(failed)?;
        let identity = Arc::new(IdentityTables::open(&conn).map_err(failed)?);
        let none = vec![0; usize::from(PARTITIONS)];
        let writer = Writer {
            conn,
            identity: Arc::clone(&identity),
            linger,
            durable: (none.clone(), none),
            filed: Recent::new(FILED),
            expired_to: 0,
            checkpointer: Some(Checkpointer::start(path)?),
            saving: VecDeque::new(),
        };
        let (jobs, inbox) = mpsc::sync_channel(QUEUE);
        let named = std::thread::Builder::new().name("objects-writer".into());
        let writer = named.spawn(move || writer.run(&inbox)).map_err(|error| Error::Store(error.to_string()))?;
        let readers = Readers { path: Arc::new(path.to_owned()), idle: Arc::default(), permits: Arc::new(Semaphore::new(READERS)) };
        Ok(Self { jobs: Some(jobs), writer: Some(writer), queue: Arc::new(Semaphore::new(QUEUE)), readers, identity })
    }

    /// Queues a job and waits for its answer. The semaphore lets in no more jobs than the channel holds, so that sending never blocks.
    async fn ask<T>(&self, what: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> What) -> Result<T, Error> {
        let permit = Arc::clone(&self.queue).acquire_owned().await.map_err(|_| Error::Closed)?;
        let (answer, answered) = oneshot::channel();
        self.jobs.as_ref().ok_or(Error::Closed)?.try_send(Job { what: what(answer), permit }).map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)?
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(writer) = self.writer.take() {
            writer.join().ok();
        }
    }
}

impl Readers {
    /// Runs one read on a connection of the pool.
    async fn read<T: Send + 'static>(&self, read: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| Error::Closed)?;
        let (path, idle) = (Arc::clone(&self.path), Arc::clone(&self.idle));
        let task = tokio::task::spawn_blocking(move || {
            let kept = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let conn = match kept {
                Some(conn) => conn,
                None => sqlite::open_readonly(&path).map_err(failed)?,
            };
            let result = read(&conn);
            idle.lock().unwrap_or_else(PoisonError::into_inner).push(conn);
            drop(permit);
            result
        });
        task.await.map_err(|error| Error::Store(error.to_string()))?
    }
}

#[async_trait]
impl ObjectStore for EmbeddedStore {
    async fn router_next(&self, partition: u16) -> Result<u64, Error> {
        self.readers.read(move |conn| queries::router_next(conn, partition)).await
    }

    async fn identities(&self, _partition: u16, keys: &[IdentityKey]) -> Result<Vec<(IdentityKey, Entry)>, Error> {
        // Most keys of a busy shop are new, and the filters tell so.
        if !self.identity.may_hold_any(keys) {
            return Ok(Vec::new());
        }
        // A key already names its partition: it hashes what the partition is made of.
        let (keys, identity) = (keys.to_vec(), Arc::clone(&self.identity));
        self.readers.read(move |conn| identity.load(conn, &keys).map(|found| found.into_iter().collect()).map_err(failed)).await
    }

    async fn sighted(&self, partition: u16, hashes: &[[u8; 16]]) -> Result<Vec<[u8; 16]>, Error> {
        let hashes = hashes.to_vec();
        self.readers.read(move |conn| queries::sighted(conn, partition, &hashes)).await
    }

    async fn commit_router(&self, commits: Vec<RouterCommit>) -> Result<(), Error> {
        self.ask(|answer| What::Router(commits, answer)).await
    }

    async fn checkpoint(&self, partition: u16) -> Result<Checkpoint, Error> {
        self.readers.read(move |conn| queries::checkpoint(conn, partition)).await
    }

    async fn offsets(&self) -> Result<(Vec<u64>, Vec<u64>), Error> {
        self.readers.read(queries::offsets).await
    }

    async fn load(&self, keys: &[ObjectKey]) -> Result<Vec<Option<StoredObject>>, Error> {
        if keys.len() > MAX_KEYS {
            return Err(Error::Store(format!("{} keys in one load, at most {MAX_KEYS}", keys.len())));
        }
        let keys = keys.to_vec();
        self.readers.read(move |conn| queries::load(conn, &keys)).await
    }

    async fn commit_objects(&self, objects: Vec<ObjectWrite>, checkpoints: Vec<(u16, Checkpoint)>) -> Result<Vec<(ObjectKey, Error)>, Error> {
        self.ask(|answer| What::Objects(objects, checkpoints, answer)).await.map(|()| Vec::new())
    }

    async fn list(&self, site: &SiteId, kind: ObjectKind, prefix: &str, seek: Seek<&str>, limit: usize) -> Result<Vec<(ObjectKey, Head)>, Error> {
        let (site, prefix, seek) = (site.clone(), prefix.to_owned(), seek.to_owned());
        self.readers.read(move |conn| queries::list(conn, &site, kind, &prefix, seek.as_deref(), limit)).await
    }

    async fn by_sid(&self, site: &SiteId, kind: ObjectKind, number: &[u8; 16]) -> Result<Option<ObjectKey>, Error> {
        let sid = rows::sid_bytes(kind, number);
        let found = self.readers.read(move |conn| queries::by_sid(conn, &sid)).await?;
        Ok(found.filter(|key| key.site == *site))
    }

    async fn expiring(&self, partitions: &[u16], now: Timestamp, limit: usize) -> Result<Vec<(ObjectKey, Head)>, Error> {
        let partitions = partitions.to_vec();
        self.readers.read(move |conn| queries::expiring(conn, &partitions, now, limit)).await
    }

    async fn stale(&self, partitions: &[u16], prefix: &str, before: Timestamp, limit: usize) -> Result<Vec<(ObjectKey, Head)>, Error> {
        let (partitions, prefix) = (partitions.to_vec(), prefix.to_owned());
        self.readers.read(move |conn| queries::stale(conn, &partitions, &prefix, before, limit)).await
    }

    async fn tombstones(&self, partitions: &[u16], before: Timestamp, limit: usize) -> Result<Vec<(ObjectKey, Head)>, Error> {
        let partitions = partitions.to_vec();
        self.readers.read(move |conn| queries::tombstones(conn, &partitions, before, limit)).await
    }

    async fn purge(&self, keys: &[ObjectKey]) -> Result<(), Error> {
        let keys = keys.to_vec();
        self.ask(|answer| What::Purge(keys, answer)).await
    }

    async fn durable(&self) -> Result<(Vec<u64>, Vec<u64>), Error> {
        self.ask(What::Durable).await
    }

    async fn close(&self) -> Result<(), Error> {
        // Readers first, so that the last checkpoint is complete.
        let _all = self.readers.permits.acquire_many(READERS as u32).await.map_err(|_| Error::Closed)?;
        self.readers.permits.close();
        self.readers.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let closed = self.ask(What::Close).await;
        self.queue.close();
        closed
    }
}

#[cfg(test)]
mod tests;
