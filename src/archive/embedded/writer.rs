//! The embedded archive's one writer: event rows into the files of their days, then all else with the cursors into `answers.db`. Runs on the
//! archive's own thread. Must never commit a cursor before the rows below it are synced.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::Connection;

use super::answers;
use super::day::{self, DayFile};
use super::readers::Days;
use super::retention::{self, Gone};
use crate::archive::{Cursor, Error, EventRow, WriteBatch};
use crate::event::identity::{EVENT_MEMORY_SECONDS, Entry, IdentityKey};
use crate::event::{SiteId, Timestamp};
use crate::sqlite::{self, Durability, IdentityTables};

/// Day files kept open for writing. An import of many months goes through them roughly in order.
const OPEN_DAYS: usize = 32;

/// Memory for the pages of all open day files, in KiB, shared evenly; one alone takes at most half.
const DAY_PAGES_KIB: i64 = 128 << 10;

/// The writing connections.
pub(super) struct Writer {
    days: Arc<Days>,
    /// Open day files with the number of the write that last used each.
    open: BTreeMap<i32, (DayFile, u64)>,
    writes: u64,
    /// The greatest `received_at` of days' rows, where retention asked for it since the day was last written to.
    taken: BTreeMap<i32, Timestamp>,
    answers: Option<Answers>,
}

/// `answers.db` and what is remembered of it.
struct Answers {
    conn: Connection,
    identities: IdentityTables,
    sites: std::collections::HashSet<SiteId>,
}

impl Writer {
    /// Opens `answers.db` below `dir`, creating what is missing.
    pub(super) fn open(dir: &Path, days: Arc<Days>) -> Result<Self, Error> {
        std::fs::create_dir_all(days.dir()).map_err(|error| Error::Store(format!("{}: {error}", days.dir().display())))?;
        sync_directory(dir)?;
        let path = dir.join("answers.db");
        let conn = sqlite::open(&path, Durability::Replayable)?;
        conn.pragma_update(None, "cache_size", -65_536)?;
        conn.pragma_update(None, "wal_autocheckpoint", 8_000)?;
        conn.set_prepared_statement_cache_capacity(64);
        let known = day::check_version(&conn, answers::VERSION, &path)?;
        answers::create(&conn, known)?;
        let identities = IdentityTables::open(&conn)?;
        let sites = super::read::sites(&conn)?.into_iter().collect();
        Ok(Self { days, open: BTreeMap::new(), writes: 0, taken: BTreeMap::new(), answers: Some(Answers { conn, identities, sites }) })
    }

    /// The writing connection of `answers.db`, for reads that must see every write.
    pub(super) fn answers(&self) -> Result<&Connection, Error> {
        self.answers.as_ref().map(|answers| &answers.conn).ok_or(Error::Closed)
    }

    /// Whether [`Self::close`] was called.
    pub(super) const fn is_closed(&self) -> bool {
        self.answers.is_none()
    }

    /// Identity entries known under these keys.
    pub(super) fn identities(&self, keys: &[IdentityKey]) -> Result<Vec<(IdentityKey, Entry)>, Error> {
        let answers = self.answers.as_ref().ok_or(Error::Closed)?;
        Ok(answers.identities.load(&answers.conn, keys)?.into_iter().collect())
    }

    /// See [`crate::archive::Archive::write`].
    pub(super) fn write(&mut self, batch: WriteBatch) -> Result<(), Error> {
        self.write_events(&batch.events)?;
        self.write_answers(batch)
    }

    /// Event rows, durable when this returns.
    pub(super) fn write_events(&mut self, events: &[EventRow]) -> Result<(), Error> {
        self.writes += 1;
        let mut by_day: BTreeMap<i32, Vec<&EventRow>> = BTreeMap::new();
        for row in events {
            by_day.entry(row.occurred_at.utc_day()).or_default().push(row);
        }
        for (day, mut rows) in by_day {
            self.day(day)?.insert(&mut rows)?;
            self.taken.remove(&day);
        }
        Ok(())
    }

    /// All but the event rows, and the cursors, in one transaction.
    pub(super) fn write_answers(&mut self, mut batch: WriteBatch) -> Result<(), Error> {
        let Answers { conn, identities, sites } = self.answers.as_mut().ok_or(Error::Closed)?;
        let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let new_sites = answers::put_sites(&tx, sites, &batch)?;
        answers::put(&tx, &batch)?;
        save_identities(&tx, identities, std::mem::take(&mut batch.identities), &batch.cursors)?;
        answers::put_cursors(&tx, &batch.cursors)?;
        tx.commit()?;
        sites.extend(new_sites);
        Ok(())
    }

    /// The open file of a day; the one unused for longest makes room for it.
    fn day(&mut self, day: i32) -> Result<&mut DayFile, Error> {
        if !self.open.contains_key(&day) {
            if self.open.len() >= OPEN_DAYS
                && let Some(oldest) = self.open.iter().min_by_key(|(_, (_, used))| *used).map(|(day, _)| *day)
                && let Some((file, _)) = self.open.remove(&oldest)
            {
                file.close()?;
            }
            let file = DayFile::open(&self.days.path(day))?;
            self.days.add(day);
            self.open.insert(day, (file, 0));
            let share = (DAY_PAGES_KIB / self.open.len() as i64).min(DAY_PAGES_KIB / 2);
            for (file, _) in self.open.values() {
                file.keep_pages(share)?;
            }
        }
        let (file, used) = self.open.get_mut(&day).ok_or(Error::Closed)?;
        *used = self.writes;
        Ok(file)
    }

    /// Makes everything committed durable and says how far that is.
    ///
    /// Every commit so far is either in the database file, synced by the checkpoint that put it there, or in the WAL, ahead of the commit
    /// that this makes under `synchronous=FULL`. That does not depend on readers, which can hold a checkpoint back.
    pub(super) fn durable(&mut self) -> Result<Vec<u64>, Error> {
        let conn = self.answers()?;
        let cursors = super::read::cursors(conn)?;
        conn.pragma_update(None, "synchronous", "FULL")?;
        let synced = answers::touch(conn);
        conn.pragma_update(None, "synchronous", "NORMAL")?;
        synced?;
        Ok(cursors.into_iter().map(|cursor| cursor.next).collect())
    }

    /// See [`crate::archive::Archive::retain`]. Whole UTC days, so that event rows and what is counted of them go together.
    pub(super) fn retain(&mut self, before: Timestamp) -> Result<(), Error> {
        let before = before.utc_day();
        let past: Vec<i32> = self.days.all().into_iter().take_while(|day| *day < before).collect();
        let (old, kept): (Vec<i32>, Vec<i32>) = past.into_iter().partition(|day| self.taken(*day).utc_day() < before);
        let gone = Gone { before, kept: kept.into_iter().collect() };
        let Answers { conn, identities, .. } = self.answers.as_mut().ok_or(Error::Closed)?;
        retention::take(conn, identities, &gone, !old.is_empty())?;
        if old.is_empty() {
            return Ok(());
        }
        // Rows go only once it is sure that what counts them is gone.
        self.durable()?;
        let mut failed = None;
        for day in old {
            // One that cannot be removed stays known, and is tried again; the others go all the same.
            if let Err(error) = self.remove(day) {
                failed = Some(error);
            }
        }
        sync_directory(self.days.dir())?;
        failed.map_or(Ok(()), Err)
    }

    /// Removes a day's file.
    fn remove(&mut self, day: i32) -> Result<(), Error> {
        if let Some((file, _)) = self.open.remove(&day) {
            file.close()?;
        }
        // First no longer known: a reader that finds no file asks whether there is to be one.
        self.days.remove(day);
        if let Err(error) = remove_file(&self.days.path(day)) {
            self.days.add(day);
            return Err(error);
        }
        self.taken.remove(&day);
        Ok(())
    }

    /// When the last of a day's rows was taken. A file that does not tell stays.
    fn taken(&mut self, day: i32) -> Timestamp {
        if let Some(known) = self.taken.get(&day) {
            return *known;
        }
        let path = self.days.path(day);
        match sqlite::open_readonly(&path).map_err(Error::from).and_then(|conn| day::taken(&conn)) {
            Ok(taken) => {
                let taken = taken.unwrap_or(Timestamp::from_micros(i64::MIN));
                self.taken.insert(day, taken);
                taken
            }
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "an old day's file cannot be read, and so stays");
                Timestamp::MAX
            }
        }
    }

    /// Closes all files, folding their WALs in.
    pub(super) fn close(&mut self) -> Result<(), Error> {
        let answers = self.answers.take().ok_or(Error::Closed)?;
        for (file, _) in std::mem::take(&mut self.open).into_values() {
            file.close()?;
        }
        answers.conn.close().map_err(|(_, error)| error.into())
    }
}

/// Saves identity entries under the hour of their partition's greatest `received_at`, and drops what every partition has outlived.
fn save_identities(
    tx: &rusqlite::Transaction<'_>,
    identities: &IdentityTables,
    entries: Vec<(u16, IdentityKey, Entry)>,
    cursors: &[(u16, Cursor)],
) -> Result<(), Error> {
    let mut by_partition: BTreeMap<u16, Vec<(IdentityKey, Entry)>> = BTreeMap::new();
    for (partition, key, entry) in entries {
        by_partition.entry(partition).or_default().push((key, entry));
    }
    let mut now = super::read::cursors(tx)?;
    for (partition, cursor) in cursors {
        now.get_mut(usize::from(*partition)).into_iter().for_each(|now| *now = *cursor);
    }
    for (partition, entries) in by_partition {
        let hour = now.get(usize::from(partition)).map_or(Timestamp::ZERO, |cursor| cursor.received_at);
        identities.save(tx, hour, &entries)?;
    }
    if let Some(least) = now.iter().filter(|cursor| cursor.next > 0).map(|cursor| cursor.received_at).min() {
        identities.expire(tx, least.plus_seconds(-EVENT_MEMORY_SECONDS))?;
    }
    Ok(())
}

/// Removes a database with its side files; what is not there is removed.
fn remove_file(path: &Path) -> Result<(), Error> {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match std::fs::remove_file(PathBuf::from(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::Store(format!("{}: {error}", path.display()))),
            _ => {}
        }
    }
    Ok(())
}

/// Makes a directory's entries durable.
fn sync_directory(dir: &Path) -> Result<(), Error> {
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| Error::Store(format!("{}: {error}", dir.display())))
}
