//! SQLite as both embedded stores use it: opening with the right durability, and the identity memory's tables. Called by the embedded
//! ObjectStore and Archive only. Must never decide what an identity means: that is `event::identity`.

mod filter;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction};

use crate::event::Timestamp;
use crate::event::identity::{Entry, IdentityKey};
pub(crate) use filter::{Filter, Grade};

/// How long a connection waits for another's lock before it fails.
const BUSY: Duration = Duration::from_secs(10);

/// Most memory of a writer's page cache, in KiB; taken as pages are touched.
const WRITER_CACHE_KIB: i64 = 64 * 1024;

/// Most memory of a reader's page cache, in KiB: readers come by the dozen.
const READER_CACHE_KIB: i64 = 4 * 1024;

/// Pages of WAL after which a commit carries them into the database. Larger than SQLite's own 1,000, as a page touched by several
/// transactions is then written back once.
const CHECKPOINT_PAGES: i64 = 8_000;

/// How a file's commits meet power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// WAL, `synchronous=NORMAL`: after power loss older but consistent; for what the log can replay.
    Replayable,
    /// WAL, `synchronous=FULL`: every commit is durable; for what the log does not hold.
    Full,
}

/// Opens (creating it where missing) a database for its one writer. No mmap: an I/O error would then be a signal, not an error.
pub fn open(path: &Path, durability: Durability) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    prepare(&conn, WRITER_CACHE_KIB)?;
    conn.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    let synchronous = match durability {
        Durability::Replayable => "NORMAL",
        Durability::Full => "FULL",
    };
    conn.pragma_update(None, "synchronous", synchronous)?;
    conn.pragma_update(None, "foreign_keys", true)?;
    conn.pragma_update_and_check(None, "wal_autocheckpoint", CHECKPOINT_PAGES, |_| Ok(()))?;
    conn.pragma_update_and_check(None, "journal_size_limit", 64 << 20, |_| Ok(()))?;
    Ok(conn)
}

/// Opens a database read-only for queries beside its writer. Fails where the file is missing.
pub fn open_readonly(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    prepare(&conn, READER_CACHE_KIB)?;
    conn.pragma_update(None, "query_only", true)?;
    Ok(conn)
}

/// What readers and writers have in common.
fn prepare(conn: &Connection, cache_kib: i64) -> rusqlite::Result<()> {
    conn.busy_timeout(BUSY)?;
    conn.set_prepared_statement_cache_capacity(256);
    conn.pragma_update(None, "cache_size", -cache_kib)?;
    conn.pragma_update(None, "temp_store", "MEMORY")
}

/// The identity memory of all partitions in one database. Event entries stand in tables by hour of the partition's greatest `received_at`, dropped whole
/// once older than 7 days. Order and checkout entries stand in one lasting table. Filters in memory spare the look-ups of unknown ids. All methods run
/// inside the caller's transaction where it has one.
///
/// Keys are hashes, so each new one would touch another page of a large table. Therefore an hour's table grows in runs of 65,536 entries, each of which lies
/// together: a run's pages are written while they are hot, and never again but for a take. A look-up asks every run, latest first; the filters make it rare.
///
/// The tables that exist are told by a table, never from memory, so that a transaction may be rolled back at any point. Readers on other connections
/// wait for no transaction: what one is about to save is unknown to them until it commits.
#[derive(Debug, Default)]
pub struct IdentityTables {
    filters: RwLock<Filters>,
}

/// Entries of one run. Small enough that all its pages are touched by a second of a busy shop's events, and stay in the page cache.
const RUN: usize = 1 << 16;

/// What is remembered of the tables. It may know of more than they hold, never of less.
#[derive(Debug)]
struct Filters {
    lasting: Filter,
    /// By days since the epoch of the tables' hours.
    days: BTreeMap<i64, Filter>,
    hours: BTreeMap<i64, Hour>,
}

/// One hour's table.
#[derive(Debug)]
struct Hour {
    /// Of its keys; asked only where its day's says "perhaps".
    filter: Filter,
    /// The run that takes new entries, and how many it took.
    run: u16,
    taken: usize,
}

/// A table that may hold some keys: its hour, its last run, and those keys.
type Perhaps = (i64, u16, Vec<IdentityKey>);

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS identity_hours (hour INTEGER PRIMARY KEY);
    CREATE TABLE IF NOT EXISTS identity_lasting (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;";

impl Default for Filters {
    fn default() -> Self {
        Self { lasting: Filter::new(Grade::Fine), days: BTreeMap::new(), hours: BTreeMap::new() }
    }
}

impl Default for Hour {
    fn default() -> Self {
        Self { filter: Filter::new(Grade::Coarse), run: 0, taken: 0 }
    }
}

impl Filters {
    /// Reads every key once.
    fn read(conn: &Connection) -> rusqlite::Result<Self> {
        let lasting = Filter::with_capacity(Grade::Fine, count(conn, "identity_lasting")?);
        let mut filters = Self { lasting, ..Self::default() };
        each_key(conn, "identity_lasting", |key| filters.lasting.insert(hash_of(key)))?;
        let mut by_day: BTreeMap<i64, Vec<(i64, usize)>> = BTreeMap::new();
        for hour in hours(conn)? {
            by_day.entry(day_of(hour)).or_default().push((hour, count(conn, &table(hour))?));
        }
        for (day, hours) in by_day {
            let mut of_day = Filter::with_capacity(Grade::Fine, hours.iter().map(|(_, keys)| keys).sum());
            for (hour, keys) in hours {
                let mut of_hour = Hour { filter: Filter::with_capacity(Grade::Coarse, keys), ..Hour::default() };
                each_key(conn, &table(hour), |key| {
                    of_day.insert(hash_of(key));
                    of_hour.filter.insert(hash_of(key));
                    of_hour.count(run_of(key));
                })?;
                filters.hours.insert(hour, of_hour);
            }
            filters.days.insert(day, of_day);
        }
        Ok(filters)
    }

    fn may_hold(&self, key: &IdentityKey) -> bool {
        let hash = hash_of(&key.0);
        self.lasting.may_hold(hash) || self.days.values().any(|day| day.may_hold(hash))
    }

    /// The hours, latest first, whose tables may hold some of `keys`.
    fn hours_of(&self, keys: &[IdentityKey]) -> Vec<Perhaps> {
        let mut found = Vec::new();
        for (day, filter) in self.days.iter().rev() {
            let of_day: Vec<IdentityKey> = keys.iter().filter(|key| filter.may_hold(hash_of(&key.0))).copied().collect();
            if of_day.is_empty() {
                continue;
            }
            for (hour, Hour { filter, run, .. }) in self.hours.range(day * 24..(day + 1) * 24).rev() {
                let of_hour: Vec<IdentityKey> = of_day.iter().filter(|key| filter.may_hold(hash_of(&key.0))).copied().collect();
                if !of_hour.is_empty() {
                    found.push((*hour, *run, of_hour));
                }
            }
        }
        found
    }

    /// Takes keys of an hour; gives the run they go to.
    fn take(&mut self, hour: i64, keys: impl Iterator<Item = IdentityKey>) -> u16 {
        let (of_day, of_hour) = (self.days.entry(day_of(hour)).or_insert_with(|| Filter::new(Grade::Fine)), self.hours.entry(hour).or_default());
        if of_hour.taken >= RUN && of_hour.run < u16::MAX {
            (of_hour.run, of_hour.taken) = (of_hour.run + 1, 0);
        }
        for key in keys {
            of_day.insert(hash_of(&key.0));
            of_hour.filter.insert(hash_of(&key.0));
            of_hour.taken += 1;
        }
        of_hour.run
    }
}

impl Hour {
    /// Counts an entry read from a run.
    fn count(&mut self, run: u16) {
        if run > self.run {
            (self.run, self.taken) = (run, 0);
        }
        self.taken += usize::from(run == self.run);
    }
}

impl IdentityTables {
    /// Creates what is missing and loads the filters: reads every key once.
    pub fn open(conn: &Connection) -> rusqlite::Result<Self> {
        conn.execute_batch(SCHEMA)?;
        Ok(Self { filters: RwLock::new(Filters::read(conn)?) })
    }

    /// The filters, for a look: no file is touched while they are held.
    fn filters(&self) -> RwLockReadGuard<'_, Filters> {
        self.filters.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_filters<T>(&self, change: impl FnOnce(&mut Filters) -> T) -> T {
        change(&mut self.filters.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether any of these keys may be known: answered from memory alone. False is sure.
    pub fn may_hold_any(&self, keys: &[IdentityKey]) -> bool {
        let filters = self.filters();
        keys.iter().any(|key| filters.may_hold(key))
    }

    /// The entries known under these keys. An entry that cannot be read fails the call: taken for unknown, it would be counted again.
    pub fn load(&self, conn: &Connection, keys: &[IdentityKey]) -> rusqlite::Result<HashMap<IdentityKey, Entry>> {
        // One moment's tables, or one of them might be dropped on the way.
        let _moment = if conn.is_autocommit() { Some(conn.unchecked_transaction()?) } else { None };
        let (mut lasting, perhaps) = {
            let filters = self.filters();
            (keys.iter().filter(|key| filters.lasting.may_hold(hash_of(&key.0))).copied().collect(), filters.hours_of(keys))
        };
        let mut found = HashMap::new();
        find_all(conn, "identity_lasting", 0, &mut lasting, &mut found)?;
        let there = if perhaps.is_empty() { Vec::new() } else { hours(conn)? };
        for (hour, last_run, mut wanted) in perhaps {
            wanted.retain(|key| !found.contains_key(key));
            if there.contains(&hour) {
                (0..=last_run).rev().try_for_each(|run| find_all(conn, &table(hour), run, &mut wanted, &mut found))?;
            }
        }
        Ok(found)
    }

    /// Writes entries, in key order; event entries go to the table of `hour`'s hour and are no longer in any other: an id is remembered from its last news.
    /// The filters change at once; a transaction rolled back leaves them only too cautious.
    pub fn save(&self, tx: &Transaction<'_>, hour: Timestamp, entries: &[(IdentityKey, Entry)]) -> rusqlite::Result<()> {
        let mut sorted: Vec<&(IdentityKey, Entry)> = entries.iter().collect();
        sorted.sort_by_key(|(key, _)| *key);
        let (events, lasting): (Vec<_>, Vec<_>) = sorted.into_iter().partition(|(_, entry)| matches!(entry, Entry::Event(_)));
        let hour = hour_of(hour);
        self.change_filters(|filters| {
            lasting.iter().for_each(|(key, _)| filters.lasting.insert(hash_of(&key.0)));
        });
        put_into(tx, "identity_lasting", 0, &lasting)?;
        if events.is_empty() {
            return Ok(());
        }
        self.take_known(tx, &events)?;
        let run = self.change_filters(|filters| filters.take(hour, events.iter().map(|(key, _)| *key)));
        create_hour(tx, hour)?;
        put_into(tx, &table(hour), run, &events)
    }

    /// Takes event entries out of where they stand. (The filters keep their keys: that only costs look-ups.)
    fn take_known(&self, tx: &Transaction<'_>, entries: &[&(IdentityKey, Entry)]) -> rusqlite::Result<()> {
        let keys: Vec<IdentityKey> = entries.iter().map(|(key, _)| *key).collect();
        let perhaps = self.filters().hours_of(&keys);
        let there = if perhaps.is_empty() { Vec::new() } else { hours(tx)? };
        for (hour, last_run, mut keys) in perhaps {
            if !there.contains(&hour) {
                continue;
            }
            let mut take = tx.prepare_cached(&format!("DELETE FROM {} WHERE key = ?1", table(hour)))?;
            for run in (0..=last_run).rev() {
                let mut left = Vec::with_capacity(keys.len());
                for key in keys {
                    if take.execute([stored(run, &key)])? == 0 {
                        left.push(key);
                    }
                }
                keys = left;
            }
        }
        Ok(())
    }

    /// Removes the entry of an order or a checkout. The filter keeps its key: that only costs a look-up.
    pub fn remove_lasting(&self, tx: &Transaction<'_>, key: &IdentityKey) -> rusqlite::Result<()> {
        tx.prepare_cached("DELETE FROM identity_lasting WHERE key = ?1")?.execute([key.0.as_slice()]).map(drop)
    }

    /// Drops the tables that lie wholly before `oldest`. Rolled back, their entries stay unknown all the same.
    pub fn expire(&self, tx: &Transaction<'_>, oldest: Timestamp) -> rusqlite::Result<()> {
        let oldest = hour_of(oldest);
        let (expired, kept): (Vec<i64>, Vec<i64>) = hours(tx)?.into_iter().partition(|hour| *hour < oldest);
        for hour in expired {
            tx.execute_batch(&format!("DROP TABLE {}", table(hour)))?;
            tx.execute("DELETE FROM identity_hours WHERE hour = ?1", [hour])?;
        }
        self.change_filters(|filters| {
            filters.hours.retain(|hour, _| kept.contains(hour));
            filters.days.retain(|day, _| kept.iter().any(|hour| day_of(*hour) == *day));
        });
        Ok(())
    }
}

/// Every entry of a database's identity memory, those of events last, by the hour they stand under: for moving it elsewhere. Blocking.
///
/// # Errors
/// The first of the file or of `take`; an entry that cannot be read is one.
pub fn each_entry<E: From<rusqlite::Error>>(
    conn: &Connection,
    mut take: impl FnMut(Option<Timestamp>, IdentityKey, Entry) -> Result<(), E>,
) -> Result<(), E> {
    let hours = hours(conn)?.into_iter().rev().map(|hour| (Some(Timestamp::ZERO.plus_seconds(hour * 3_600)), table(hour)));
    for (hour, table) in [(None, "identity_lasting".to_owned())].into_iter().chain(hours) {
        let mut all = conn.prepare(&format!("SELECT key, value FROM {table}"))?;
        let mut rows = all.query([])?;
        while let Some(row) = rows.next()? {
            let blob = |column: usize| row.get_ref(column)?.as_blob().map_err(rusqlite::Error::from);
            let key = IdentityKey(hash_of(blob(0)?).to_be_bytes());
            take(hour, key, entry_of(blob(1)?)?)?;
        }
    }
    Ok(())
}

/// A key as its table has it: 16 bytes in an hour's first run and among the lasting, behind the run's number (2 bytes, big-endian) in the further runs.
///
/// [`run_of`] and [`hash_of`] read it.
fn stored(run: u16, key: &IdentityKey) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(18);
    if run > 0 {
        bytes.extend(run.to_be_bytes());
    }
    bytes.extend(key.0);
    bytes
}

fn run_of(stored: &[u8]) -> u16 {
    stored.len().checked_sub(16).and_then(|at| stored.get(..at)?.try_into().ok()).map_or(0, u16::from_be_bytes)
}

fn hash_of(stored: &[u8]) -> u128 {
    stored.last_chunk().map_or(0, |key| u128::from_be_bytes(*key))
}

/// Hours since the epoch.
fn hour_of(at: Timestamp) -> i64 {
    at.micros().div_euclid(3_600_000_000).max(0)
}

fn day_of(hour: i64) -> i64 {
    hour.div_euclid(24)
}

fn table(hour: i64) -> String {
    format!("identity_hour_{hour}")
}

/// The hours that have a table, newest first.
fn hours(conn: &Connection) -> rusqlite::Result<Vec<i64>> {
    conn.prepare_cached("SELECT hour FROM identity_hours ORDER BY hour DESC")?.query_map([], |row| row.get(0))?.collect()
}

fn create_hour(tx: &Transaction<'_>, hour: i64) -> rusqlite::Result<()> {
    if tx.prepare_cached("INSERT OR IGNORE INTO identity_hours (hour) VALUES (?1)")?.execute([hour])? > 0 {
        tx.execute_batch(&format!("CREATE TABLE {} (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID", table(hour)))?;
    }
    Ok(())
}

/// Puts entries into a run of a table.
fn put_into(tx: &Transaction<'_>, table: &str, run: u16, entries: &[&(IdentityKey, Entry)]) -> rusqlite::Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let mut put = tx.prepare_cached(&format!("INSERT OR REPLACE INTO {table} (key, value) VALUES (?1, ?2)"))?;
    for (key, entry) in entries {
        put.execute((stored(run, key), entry.to_bytes()))?;
    }
    Ok(())
}

/// Moves what a run of `table` holds of `wanted` to `found`.
fn find_all(
    conn: &Connection,
    table: &str,
    run: u16,
    wanted: &mut Vec<IdentityKey>,
    found: &mut HashMap<IdentityKey, Entry>,
) -> rusqlite::Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    wanted.sort_unstable();
    let mut get = conn.prepare_cached(&format!("SELECT value FROM {table} WHERE key = ?1"))?;
    let mut missing = Vec::with_capacity(wanted.len());
    for key in wanted.drain(..) {
        match get.query_row([stored(run, &key)], |row| entry_of(row.get_ref(0)?.as_blob()?)).optional()? {
            Some(entry) => {
                found.insert(key, entry);
            }
            None => missing.push(key),
        }
    }
    *wanted = missing;
    Ok(())
}

fn entry_of(value: &[u8]) -> rusqlite::Result<Entry> {
    let damaged = || rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Blob, "not an identity entry of version 1".into());
    Entry::from_bytes(value).ok_or_else(damaged)
}

fn count(conn: &Connection, table: &str) -> rusqlite::Result<usize> {
    conn.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))
}

fn each_key(conn: &Connection, table: &str, mut take: impl FnMut(&[u8])) -> rusqlite::Result<()> {
    let mut all = conn.prepare(&format!("SELECT key FROM {table}"))?;
    let mut rows = all.query([])?;
    while let Some(row) = rows.next()? {
        take(row.get_ref(0)?.as_blob()?);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
