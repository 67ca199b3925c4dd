//! The one thread that writes `objects.db`. It takes jobs from a bounded queue, joins those that wait into one transaction, and answers each
//! when that transaction has been committed. Started by the embedded ObjectStore alone; must never be given a second connection that writes or
//! checkpoints the same file.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::queries::failed;
use super::rows::{self, Filing};
use crate::event::identity::{EVENT_MEMORY_SECONDS, Entry, IdentityKey};
use crate::event::{ObjectKey, PARTITIONS, Timestamp};
use crate::sqlite::IdentityTables;
use crate::sync::recent::Recent;
use crate::sync::{Checkpoint, Error, ObjectWrite, RouterCommit};

/// Most jobs joined in one transaction.
const MAX_JOINED: usize = 64;

/// Objects of a transaction that counts as large.
const MANY_OBJECTS: usize = 500;

/// Pages of WAL that are carried into the database at once while transactions are small, and while they are large.
const FEW_PAGES: i64 = 2_000;
const MANY_PAGES: i64 = 32_000;

/// The identity memory, shared with the readers: they look up while no transaction saves.
pub(super) type SharedIdentity = Arc<RwLock<IdentityTables>>;

/// What durable() tells: next offsets of `events` and of `changes` by partition.
pub(super) type Offsets = (Vec<u64>, Vec<u64>);

/// A job with its place in the queue, which is free again once the job is done.
pub(super) struct Job {
    pub(super) what: What,
    pub(super) permit: OwnedSemaphorePermit,
}

/// What the thread is asked for.
pub(super) enum What {
    /// Objects and checkpoints.
    Objects(Vec<ObjectWrite>, Vec<(u16, Checkpoint)>, oneshot::Sender<Result<(), Error>>),
    /// Router state; may wait for company.
    Router(Vec<RouterCommit>, oneshot::Sender<Result<(), Error>>),
    /// Tombstones to delete.
    Purge(Vec<ObjectKey>, oneshot::Sender<Result<(), Error>>),
    /// A WAL checkpoint and the offsets it covers.
    Durable(oneshot::Sender<Result<Offsets, Error>>),
    /// The end.
    Close(oneshot::Sender<Result<(), Error>>),
}

/// The thread's state.
pub(super) struct Writer {
    pub(super) conn: Connection,
    pub(super) identity: SharedIdentity,
    /// How long router state waits for company.
    pub(super) linger: Duration,
    pub(super) durable: Offsets,
    /// Where objects written lately are filed for expiry, as committed: spares a read per write.
    pub(super) filed: Recent<Vec<u8>, Filing>,
    /// The hour up to which identity tables were last dropped.
    pub(super) expired_to: i64,
    /// From how many pages of WAL on a commit carries them into the database now.
    pub(super) checkpoint_pages: i64,
}

impl Writer {
    /// Works until it is closed or every sender is gone.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let mut batch = vec![first];
            self.gather(jobs, &mut batch);
            let mut closing = None;
            let mut done = Vec::new();
            let mut asked = Vec::new();
            let mut work = Work::default();
            // Permits are held until the answers are out.
            let mut permits = Vec::with_capacity(batch.len());
            for job in batch {
                permits.push(job.permit);
                match job.what {
                    What::Objects(objects, checkpoints, answer) => {
                        work.objects.extend(objects);
                        work.checkpoints.extend(checkpoints);
                        done.push(answer);
                    }
                    What::Router(commits, answer) => {
                        work.router.extend(commits);
                        done.push(answer);
                    }
                    What::Purge(keys, answer) => {
                        work.purge.extend(keys);
                        done.push(answer);
                    }
                    What::Durable(answer) => asked.push(answer),
                    What::Close(answer) => closing = Some(answer),
                }
            }
            if !done.is_empty() {
                let result = self.commit(work).map_err(failed);
                if result.is_err() {
                    self.filed.clear();
                }
                for answer in done {
                    answer.send(result.clone()).ok();
                }
            }
            if !asked.is_empty() {
                let result = self.make_durable().map_err(failed);
                for answer in asked {
                    answer.send(result.clone()).ok();
                }
            }
            drop(permits);
            if let Some(answer) = closing {
                let synced = self.make_durable().map(drop).map_err(failed);
                let closed = self.conn.close().map_err(|(_, error)| failed(error));
                answer.send(synced.and(closed)).ok();
                return;
            }
        }
    }

    /// Joins what waits. Router state alone waits up to `linger` for company, for nobody waits for it.
    fn gather(&self, jobs: &Receiver<Job>, batch: &mut Vec<Job>) {
        let until = Instant::now() + self.linger;
        while batch.len() < MAX_JOINED {
            let patient = batch.iter().all(|job| matches!(job.what, What::Router(..)));
            let ended = batch.last().is_some_and(|job| matches!(job.what, What::Durable(_) | What::Close(_)));
            if ended {
                return;
            }
            let next = if patient {
                jobs.recv_timeout(until.saturating_duration_since(Instant::now()))
            } else {
                jobs.try_recv().map_err(|_| RecvTimeoutError::Timeout)
            };
            match next {
                Ok(job) => batch.push(job),
                Err(_) => return,
            }
        }
    }

    /// All of it in one transaction, in key order.
    fn commit(&mut self, work: Work) -> rusqlite::Result<()> {
        let began = Instant::now();
        self.checkpoint_after(if work.objects.len() > MANY_OBJECTS { MANY_PAGES } else { FEW_PAGES })?;
        let tx = self.conn.transaction()?;
        let written = work.objects.len();
        put_objects(&tx, &mut self.filed, work.objects)?;
        put_checkpoints(&tx, work.checkpoints)?;
        purge(&tx, &mut self.filed, &work.purge)?;
        if !work.router.is_empty() {
            put_router(&tx, &self.identity, work.router)?;
            expire_identity(&tx, &self.identity, &mut self.expired_to)?;
        }
        tx.commit()?;
        metrics::histogram!("contrail_objects_commit_seconds").record(began.elapsed().as_secs_f64());
        metrics::counter!("contrail_objects_written_total").increment(written as u64);
        Ok(())
    }

    /// From how many pages of WAL on a commit carries them into the database: few while commits are small, so that none takes long; many while they are
    /// large, so that a page that each of them touches is not written back by each.
    fn checkpoint_after(&mut self, pages: i64) -> rusqlite::Result<()> {
        if self.checkpoint_pages != pages {
            self.conn.pragma_update_and_check(None, "wal_autocheckpoint", pages, |_| Ok(()))?;
            self.checkpoint_pages = pages;
        }
        Ok(())
    }

    /// Checkpoints the WAL into the database, both synced, and reads the offsets that are in it. While readers hold old pages the checkpoint stays
    /// incomplete; then what the last complete one covered is all that is sure.
    fn make_durable(&mut self) -> rusqlite::Result<Offsets> {
        let offsets = offsets(&self.conn)?;
        let (busy, wal, done): (i64, i64, i64) =
            self.conn.query_row("PRAGMA wal_checkpoint(FULL)", [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        if busy == 0 && wal == done {
            self.durable = offsets;
        }
        Ok(self.durable.clone())
    }
}

/// What one transaction does.
#[derive(Default)]
struct Work {
    objects: Vec<ObjectWrite>,
    checkpoints: Vec<(u16, Checkpoint)>,
    router: Vec<RouterCommit>,
    purge: Vec<ObjectKey>,
}

fn put_objects(tx: &Transaction<'_>, filed: &mut Recent<Vec<u8>, Filing>, objects: Vec<ObjectWrite>) -> rusqlite::Result<()> {
    let mut keyed: Vec<(Vec<u8>, ObjectWrite)> = objects.into_iter().map(|object| (rows::key_bytes(&object.key), object)).collect();
    // Stable: writes of one object keep their order.
    keyed.sort_by(|a, b| a.0.cmp(&b.0));
    let mut head_of = tx.prepare_cached("SELECT value FROM rows WHERE object = ?1 AND item = x''")?;
    let mut put = tx.prepare_cached("INSERT OR REPLACE INTO rows (object, item, value) VALUES (?1, ?2, ?3)")?;
    let mut delete = tx.prepare_cached("DELETE FROM rows WHERE object = ?1 AND item = ?2")?;
    let mut clear = tx.prepare_cached("DELETE FROM rows WHERE object = ?1 AND item > x''")?;
    for (object, write) in &mut keyed {
        let to = rows::filing_of(&write.head);
        if filed.get(object) != Some(&to) {
            let before: Option<Vec<u8>> = head_of.query_row([&*object], |row| row.get(0)).optional()?;
            let from = before.and_then(|bytes| rows::head_from_bytes(&write.key, &bytes).ok()).map(|head| rows::filing_of(&head));
            refile(tx, &write.key.name, object, from, Some(to))?;
            filed.take(object);
            filed.insert(object.clone(), to);
        }
        put.execute(params![&*object, rows::HEAD, rows::head_to_bytes(&write.head)])?;
        if write.clear {
            clear.execute([&*object])?;
        }
        for item in &write.purge {
            delete.execute(params![&*object, rows::item_bytes(item)])?;
        }
        write.rows.sort_by(|a, b| a.item.cmp(&b.item));
        for row in &write.rows {
            put.execute(params![&*object, rows::item_bytes(&row.item), rows::row_to_bytes(row)])?;
        }
    }
    Ok(())
}

/// Moves an object's expiry entry; nothing while it stays in its hour, so that a busy object costs no page here.
fn refile(tx: &Transaction<'_>, name: &str, object: &[u8], from: Option<Filing>, to: Option<Filing>) -> rusqlite::Result<()> {
    if from == to {
        return Ok(());
    }
    if let Some(filing) = from {
        let mut delete = tx.prepare_cached("DELETE FROM expiry WHERE family = ?1 AND hour = ?2 AND object = ?3")?;
        delete.execute(params![rows::filed_as(name, filing), filing.1, object])?;
    }
    if let Some(filing) = to {
        let mut insert = tx.prepare_cached("INSERT OR IGNORE INTO expiry (family, hour, object) VALUES (?1, ?2, ?3)")?;
        insert.execute(params![rows::filed_as(name, filing), filing.1, object])?;
    }
    Ok(())
}

fn put_checkpoints(tx: &Transaction<'_>, checkpoints: Vec<(u16, Checkpoint)>) -> rusqlite::Result<()> {
    let mut put = tx.prepare_cached("INSERT OR REPLACE INTO keeper (partition, next, value) VALUES (?1, ?2, ?3)")?;
    for (partition, checkpoint) in checkpoints {
        let bytes = postcard::to_extend(&checkpoint, vec![1]).unwrap_or_default();
        put.execute(params![partition, checkpoint.next.cast_signed(), bytes])?;
    }
    Ok(())
}

/// Deletes objects whose heads are tombstones, with what is left of them.
fn purge(tx: &Transaction<'_>, filed: &mut Recent<Vec<u8>, Filing>, keys: &[ObjectKey]) -> rusqlite::Result<()> {
    let mut head_of = tx.prepare_cached("SELECT value FROM rows WHERE object = ?1 AND item = x''")?;
    let mut delete = tx.prepare_cached("DELETE FROM rows WHERE object = ?1")?;
    for key in keys {
        let object = rows::key_bytes(key);
        let before: Option<Vec<u8>> = head_of.query_row([&object], |row| row.get(0)).optional()?;
        let Some(head) = before.and_then(|bytes| rows::head_from_bytes(key, &bytes).ok()) else { continue };
        if head.removed_at.is_some() {
            delete.execute([&object])?;
            filed.take(&object);
            refile(tx, &key.name, &object, Some(rows::filing_of(&head)), None)?;
        }
    }
    Ok(())
}

fn put_router(tx: &Transaction<'_>, identity: &SharedIdentity, commits: Vec<RouterCommit>) -> rusqlite::Result<()> {
    let mut by_hour: BTreeMap<i64, (Timestamp, BTreeMap<IdentityKey, Entry>)> = BTreeMap::new();
    let mut next = tx.prepare_cached(
        "INSERT INTO router (partition, next, received_at) VALUES (?1, ?2, ?3)
         ON CONFLICT DO UPDATE SET next = excluded.next, received_at = max(received_at, excluded.received_at)",
    )?;
    let mut sight = tx.prepare_cached("INSERT OR IGNORE INTO sighted (partition, hash) VALUES (?1, ?2)")?;
    for commit in commits {
        next.execute(params![commit.partition, commit.next.cast_signed(), commit.received_at.micros()])?;
        for hash in &commit.sighted {
            sight.execute(params![commit.partition, hash])?;
        }
        let (_, entries) = by_hour.entry(rows::hour_of(commit.received_at)).or_insert((commit.received_at, BTreeMap::new()));
        entries.extend(commit.entries);
    }
    let mut tables = identity.write().unwrap_or_else(PoisonError::into_inner);
    for (at, entries) in by_hour.into_values() {
        let entries: Vec<(IdentityKey, Entry)> = entries.into_iter().collect();
        tables.save(tx, at, &entries)?;
    }
    Ok(())
}

/// Drops the identity tables that no partition needs any longer; looked at once an hour of the slowest partition's time.
fn expire_identity(tx: &Transaction<'_>, identity: &SharedIdentity, expired_to: &mut i64) -> rusqlite::Result<()> {
    let slowest: Option<i64> = tx.prepare_cached("SELECT min(received_at) FROM router WHERE received_at > 0")?.query_row([], |row| row.get(0))?;
    let Some(slowest) = slowest.map(Timestamp::from_micros) else { return Ok(()) };
    if rows::hour_of(slowest) > *expired_to {
        identity.write().unwrap_or_else(PoisonError::into_inner).expire(tx, slowest.plus_seconds(-EVENT_MEMORY_SECONDS))?;
        *expired_to = rows::hour_of(slowest);
    }
    Ok(())
}

/// The offsets stored now.
fn offsets(conn: &Connection) -> rusqlite::Result<Offsets> {
    let of = |table: &str| -> rusqlite::Result<Vec<u64>> {
        let mut all = vec![0; usize::from(PARTITIONS)];
        let mut statement = conn.prepare_cached(table)?;
        let mut cursor = statement.query([])?;
        while let Some(row) = cursor.next()? {
            let (partition, next): (usize, i64) = (row.get(0)?, row.get(1)?);
            if let Some(slot) = all.get_mut(partition) {
                *slot = next.cast_unsigned();
            }
        }
        Ok(all)
    };
    Ok((of("SELECT partition, next FROM router")?, of("SELECT partition, next FROM keeper")?))
}
