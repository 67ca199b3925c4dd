//! The one thread that writes `objects.db`. It takes jobs from a bounded queue, joins those that wait into one transaction, and answers each
//! when that transaction has been committed. Started by the embedded ObjectStore alone; must never be given a second connection that writes to
//! the same file.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::checkpointer::Checkpointer;
use super::queries::{Offsets, failed, stored_offsets};
use super::rows;
use crate::event::identity::{EVENT_MEMORY_SECONDS, Entry, IdentityKey};
use crate::event::{ObjectKey, Timestamp};
use crate::sqlite::IdentityTables;
use crate::sync::naming;
use crate::sync::recent::Recent;
use crate::sync::stored::{Filing, filing_of, head_from_bytes, head_to_bytes, hour_of, row_to_bytes};
use crate::sync::{Checkpoint, Error, ObjectWrite, RouterCommit};

/// Most jobs joined in one transaction.
const MAX_JOINED: usize = 64;

/// Pages of WAL at which a commit itself carries into the database what the [`Checkpointer`] has not. Only then, with nothing left to carry, does SQLite
/// begin the WAL anew: beside a busy writer the checkpointer is always a little behind.
pub(super) const LONG_WAL: i64 = 16_000;

/// How often a checkpoint that meets another is tried, and the pause between: objects wait meanwhile.
const CHECKPOINT_TRIES: usize = 5;
const CHECKPOINT_PAUSE: Duration = Duration::from_millis(5);

/// How long one transaction saves router state, and how many entries it puts between two looks at the clock.
const SAVE_FOR: Duration = Duration::from_millis(5);
const SAVE_AT_ONCE: usize = 64;

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
    /// Shared with the readers.
    pub(super) identity: Arc<IdentityTables>,
    /// How long router state waits for company.
    pub(super) linger: Duration,
    pub(super) durable: Offsets,
    /// Where objects written lately are filed for expiry, as committed: spares a read per write.
    pub(super) filed: Recent<Vec<u8>, Filing>,
    /// The hour up to which identity tables were last dropped.
    pub(super) expired_to: i64,
    pub(super) checkpointer: Option<Checkpointer>,
    /// Router states in the order they came; the first one is being saved.
    pub(super) saving: VecDeque<Saving>,
}

impl Writer {
    /// Works until it is closed or every sender is gone.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        while let Some(batch) = self.next(jobs) {
            if let Some(closing) = self.work(batch) {
                drop(self.checkpointer.take());
                let synced = self.make_durable().map(drop).map_err(failed);
                let closed = self.conn.close().map_err(|(_, error)| failed(error));
                closing.send(synced.and(closed)).ok();
                return;
            }
        }
    }

    /// The jobs to join; none of them is waited for while router state is being saved. None at the end.
    fn next(&self, jobs: &Receiver<Job>) -> Option<Vec<Job>> {
        let mut batch = Vec::new();
        if self.saving.is_empty() {
            batch.push(jobs.recv().ok()?);
        }
        self.gather(jobs, &mut batch);
        Some(batch)
    }

    /// Does what is joined and some of what is being saved, in one transaction, and answers. Gives the one to be told of the end, where it is asked for.
    fn work(&mut self, batch: Vec<Job>) -> Option<oneshot::Sender<Result<(), Error>>> {
        let (mut work, mut done, mut asked, mut closing) = (Work::default(), Vec::new(), Vec::new(), None);
        // Permits are held until the answers are out.
        let mut permits = Vec::with_capacity(batch.len());
        for Job { what, permit } in batch {
            match what {
                What::Objects(objects, checkpoints, answer) => {
                    work.objects.extend(objects);
                    work.checkpoints.extend(checkpoints);
                    done.push(answer);
                }
                What::Router(commits, answer) => {
                    self.saving.push_back(Saving::of(commits, answer, permit));
                    continue;
                }
                What::Purge(keys, answer) => {
                    work.purge.extend(keys);
                    done.push(answer);
                }
                What::Durable(answer) => asked.push(answer),
                What::Close(answer) => closing = Some(answer),
            }
            permits.push(permit);
        }
        if !done.is_empty() || !self.saving.is_empty() {
            let result = self.commit(work).map_err(failed);
            for answer in done {
                answer.send(result.clone()).ok();
            }
        }
        while closing.is_some() && !self.saving.is_empty() {
            // What fails is answered; it leaves the queue either way.
            self.commit(Work::default()).ok();
        }
        if !asked.is_empty() {
            let result = self.make_durable().map_err(failed);
            for answer in asked {
                answer.send(result.clone()).ok();
            }
        }
        closing
    }

    /// Joins what waits. Router state alone waits up to `linger` for company, for nobody waits for it.
    fn gather(&self, jobs: &Receiver<Job>, batch: &mut Vec<Job>) {
        let until = Instant::now() + self.linger;
        while batch.len() < MAX_JOINED {
            let patient = self.saving.is_empty() && batch.iter().all(|job| matches!(job.what, What::Router(..)));
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

    /// All of it in one transaction, in key order, with as much of the router state being saved as fits in a moment: objects that come meanwhile need not
    /// wait for the whole of it. Answers the router where its state is saved or failed.
    fn commit(&mut self, work: Work) -> rusqlite::Result<()> {
        let began = Instant::now();
        let written = work.objects.len();
        let result = self.transact(work);
        match &result {
            Ok(()) => {
                self.checkpointer.iter().for_each(Checkpointer::committed);
                if self.saving.front().is_some_and(Saving::is_saved)
                    && let Some(saved) = self.saving.pop_front()
                {
                    saved.answer.send(Ok(())).ok();
                }
                metrics::histogram!("contrail_objects_commit_seconds").record(began.elapsed().as_secs_f64());
                metrics::counter!("contrail_objects_written_total").increment(written as u64);
            }
            Err(error) => {
                self.filed.clear();
                for saving in self.saving.drain(..) {
                    saving.answer.send(Err(Error::Store(error.to_string()))).ok();
                }
            }
        }
        result
    }

    fn transact(&mut self, work: Work) -> rusqlite::Result<()> {
        let tx = self.conn.transaction()?;
        put_objects(&tx, &mut self.filed, work.objects)?;
        put_checkpoints(&tx, work.checkpoints)?;
        purge(&tx, &mut self.filed, &work.purge)?;
        if let Some(saving) = self.saving.front_mut() {
            saving.put_some(&tx, &self.identity)?;
            if saving.is_saved() {
                expire_identity(&tx, &self.identity, &mut self.expired_to)?;
            }
        }
        tx.commit()
    }

    /// Checkpoints the WAL into the database, both synced, and reads the offsets that are in it. While readers hold old pages, or the [`Checkpointer`] stays at
    /// work, the checkpoint is incomplete; then what the last complete one covered is all that is sure.
    fn make_durable(&mut self) -> rusqlite::Result<Offsets> {
        for _ in 0..CHECKPOINT_TRIES {
            let offsets = stored_offsets(&self.conn)?;
            let (busy, wal, done): (i64, i64, i64) =
                self.conn.query_row("PRAGMA wal_checkpoint(FULL)", [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            if busy == 0 && wal == done {
                self.durable = offsets;
                break;
            }
            std::thread::sleep(CHECKPOINT_PAUSE);
        }
        Ok(self.durable.clone())
    }
}

/// What one transaction does.
#[derive(Default)]
struct Work {
    objects: Vec<ObjectWrite>,
    checkpoints: Vec<(u16, Checkpoint)>,
    purge: Vec<ObjectKey>,
}

/// Router state on its way: first sights first, then its entries over as many transactions as they take, and the offsets in the last. Replayed from an older
/// offset, a record then finds what it once saw or more: never an object more to change than it had.
pub(super) struct Saving {
    /// What is left, in the order of the tables they go to and in key order within each, so that no page is touched by two transactions.
    entries: VecDeque<(Timestamp, IdentityKey, Entry)>,
    /// Sights, empty once they are put; and offsets, gone once they are put.
    commits: Vec<RouterCommit>,
    answer: oneshot::Sender<Result<(), Error>>,
    _permit: OwnedSemaphorePermit,
}

impl Saving {
    fn of(mut commits: Vec<RouterCommit>, answer: oneshot::Sender<Result<(), Error>>, permit: OwnedSemaphorePermit) -> Self {
        let mut by_hour: BTreeMap<i64, (Timestamp, BTreeMap<IdentityKey, Entry>)> = BTreeMap::new();
        for commit in &mut commits {
            let (_, entries) = by_hour.entry(hour_of(commit.received_at)).or_insert((commit.received_at, BTreeMap::new()));
            entries.extend(std::mem::take(&mut commit.entries));
        }
        let of_hour = |(at, entries): (Timestamp, BTreeMap<IdentityKey, Entry>)| entries.into_iter().map(move |(key, entry)| (at, key, entry));
        Self { entries: by_hour.into_values().flat_map(of_hour).collect(), commits, answer, _permit: permit }
    }

    fn is_saved(&self) -> bool {
        self.entries.is_empty() && self.commits.is_empty()
    }

    /// Puts entries for at most [`SAVE_FOR`], and once none is left the offsets.
    fn put_some(&mut self, tx: &Transaction<'_>, identity: &IdentityTables) -> rusqlite::Result<()> {
        put_sights(tx, &mut self.commits)?;
        let until = Instant::now() + SAVE_FOR;
        while let Some((at, ..)) = self.entries.front()
            && Instant::now() < until
        {
            let at = *at;
            let same = self.entries.iter().take(SAVE_AT_ONCE).take_while(|(other, ..)| *other == at).count();
            let some: Vec<(IdentityKey, Entry)> = self.entries.drain(..same).map(|(_, key, entry)| (key, entry)).collect();
            identity.save(tx, at, &some)?;
        }
        if self.entries.is_empty() {
            put_offsets(tx, std::mem::take(&mut self.commits))?;
        }
        Ok(())
    }
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
        let to = filing_of(&write.head);
        if filed.get(object) != Some(&to) {
            let before: Option<Vec<u8>> = head_of.query_row([&*object], |row| row.get(0)).optional()?;
            let from = before.and_then(|bytes| head_from_bytes(&write.key, &bytes).ok()).map(|head| filing_of(&head));
            refile(tx, &write.key.name, object, from, Some(to))?;
            filed.take(object);
            filed.insert(object.clone(), to);
        }
        put_sids(tx, object, write)?;
        put.execute(params![&*object, rows::HEAD, head_to_bytes(&write.head)])?;
        if write.clear {
            clear.execute([&*object])?;
        }
        for item in &write.purge {
            delete.execute(params![&*object, rows::item_bytes(item)])?;
        }
        write.rows.sort_by(|a, b| a.item.cmp(&b.item));
        for row in &write.rows {
            put.execute(params![&*object, rows::item_bytes(&row.item), row_to_bytes(row)])?;
        }
    }
    Ok(())
}

/// Lists an object under its SID, where it is to be, and those that it had before no longer.
fn put_sids(tx: &Transaction<'_>, object: &[u8], write: &ObjectWrite) -> rusqlite::Result<()> {
    let stored = |incarnation| rows::sid_bytes(write.key.kind, &naming::sid_number(&write.key, incarnation));
    for incarnation in &write.ended {
        tx.prepare_cached("DELETE FROM sids WHERE sid = ?1")?.execute([stored(*incarnation)])?;
    }
    if write.list {
        let mut list = tx.prepare_cached("INSERT OR REPLACE INTO sids (sid, object) VALUES (?1, ?2)")?;
        list.execute(params![stored(write.head.incarnation), object])?;
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
        let Some(head) = before.and_then(|bytes| head_from_bytes(key, &bytes).ok()) else { continue };
        if head.removed_at.is_some() {
            delete.execute([&object])?;
            let sid = rows::sid_bytes(key.kind, &naming::sid_number(key, head.incarnation));
            tx.prepare_cached("DELETE FROM sids WHERE sid = ?1")?.execute([sid])?;
            filed.take(&object);
            refile(tx, &key.name, &object, Some(filing_of(&head)), None)?;
        }
    }
    Ok(())
}

fn put_offsets(tx: &Transaction<'_>, commits: Vec<RouterCommit>) -> rusqlite::Result<()> {
    let mut next = tx.prepare_cached(
        "INSERT INTO router (partition, next, received_at) VALUES (?1, ?2, ?3)
         ON CONFLICT DO UPDATE SET next = excluded.next, received_at = max(received_at, excluded.received_at)",
    )?;
    for commit in commits {
        next.execute(params![commit.partition, commit.next.cast_signed(), commit.received_at.micros()])?;
    }
    Ok(())
}

fn put_sights(tx: &Transaction<'_>, commits: &mut [RouterCommit]) -> rusqlite::Result<()> {
    let mut sight = tx.prepare_cached("INSERT OR IGNORE INTO sighted (partition, hash) VALUES (?1, ?2)")?;
    for commit in commits {
        for hash in std::mem::take(&mut commit.sighted) {
            sight.execute(params![commit.partition, hash])?;
        }
    }
    Ok(())
}

/// Drops the identity tables that no partition needs any longer; looked at once an hour of the slowest partition's time.
fn expire_identity(tx: &Transaction<'_>, identity: &IdentityTables, expired_to: &mut i64) -> rusqlite::Result<()> {
    let slowest: Option<i64> = tx.prepare_cached("SELECT min(received_at) FROM router WHERE received_at > 0")?.query_row([], |row| row.get(0))?;
    let Some(slowest) = slowest.map(Timestamp::from_micros) else { return Ok(()) };
    if hour_of(slowest) > *expired_to {
        identity.expire(tx, slowest.plus_seconds(-EVENT_MEMORY_SECONDS))?;
        *expired_to = hour_of(slowest);
    }
    Ok(())
}
