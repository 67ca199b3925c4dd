//! SQLite as both embedded stores use it: opening with the right durability, and the identity memory's tables. Called by the embedded
//! ObjectStore and Archive only. Must never decide what an identity means: that is `event::identity`.

mod filter;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use rusqlite::{CachedStatement, Connection, OpenFlags, OptionalExtension, Transaction};

use crate::event::Timestamp;
use crate::event::identity::{Entry, IdentityKey};
use filter::Filter;

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
/// once older than 7 days; filters in memory, one by day of tables, spare the look-ups of unknown ids. Order and checkout entries stand in one
/// lasting table with a filter of its own. All methods run inside the caller's transaction where it has one.
///
/// The tables that exist are told by a table, never from memory, so that a transaction may be rolled back at any point. Readers on other connections
/// wait for no transaction: what one is about to save is unknown to them until it commits.
#[derive(Debug, Default)]
pub struct IdentityTables {
    filters: RwLock<Filters>,
}

#[derive(Debug, Default)]
struct Filters {
    lasting: Filter,
    /// By days since the epoch of the tables' hours.
    days: BTreeMap<i64, Filter>,
}

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS identity_hours (hour INTEGER PRIMARY KEY);
    CREATE TABLE IF NOT EXISTS identity_lasting (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;";

impl Filters {
    fn may_hold(&self, key: &IdentityKey) -> bool {
        self.lasting.may_hold(key) || self.days.values().any(|day| day.may_hold(key))
    }

    /// The days, latest first, whose tables may hold some of `keys`, with those.
    fn days_of(&self, keys: &[IdentityKey]) -> Vec<(i64, Vec<IdentityKey>)> {
        let of_day = |(day, filter): (&i64, &Filter)| (*day, keys.iter().filter(|key| filter.may_hold(key)).copied().collect::<Vec<_>>());
        self.days.iter().rev().map(of_day).filter(|(_, keys)| !keys.is_empty()).collect()
    }
}

impl IdentityTables {
    /// Creates what is missing and loads the filters: reads every key once.
    pub fn open(conn: &Connection) -> rusqlite::Result<Self> {
        conn.execute_batch(SCHEMA)?;
        let mut tables_of: BTreeMap<i64, Vec<String>> = BTreeMap::new();
        for hour in hours(conn)? {
            tables_of.entry(day_of(hour)).or_default().push(table(hour));
        }
        let days = tables_of.into_iter().map(|(day, tables)| Ok((day, read_filter(conn, &tables)?)));
        let filters = Filters { lasting: read_filter(conn, &["identity_lasting".to_owned()])?, days: days.collect::<rusqlite::Result<_>>()? };
        Ok(Self { filters: RwLock::new(filters) })
    }

    /// The filters, for a look: no file is touched while they are held.
    fn filters(&self) -> RwLockReadGuard<'_, Filters> {
        self.filters.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_filters(&self, change: impl FnOnce(&mut Filters)) {
        change(&mut self.filters.write().unwrap_or_else(PoisonError::into_inner));
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
        let (mut lasting, days) = {
            let filters = self.filters();
            (keys.iter().filter(|key| filters.lasting.may_hold(key)).copied().collect(), filters.days_of(keys))
        };
        let mut found = HashMap::new();
        find_all(conn, "identity_lasting", &mut lasting, &mut found)?;
        let hours = if days.is_empty() { Vec::new() } else { hours(conn)? };
        for (day, mut wanted) in days {
            wanted.retain(|key| !found.contains_key(key));
            for hour in hours.iter().filter(|hour| day_of(**hour) == day) {
                find_all(conn, &table(*hour), &mut wanted, &mut found)?;
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
            lasting.iter().for_each(|(key, _)| filters.lasting.insert(key));
        });
        if !lasting.is_empty() {
            let mut put = put_into(tx, "identity_lasting")?;
            for (key, entry) in lasting {
                put.execute((key.0.as_slice(), entry.to_bytes()))?;
            }
        }
        if events.is_empty() {
            return Ok(());
        }
        self.take_known(tx, &events)?;
        self.change_filters(|filters| {
            let filter = filters.days.entry(day_of(hour)).or_default();
            events.iter().for_each(|(key, _)| filter.insert(key));
        });
        create_hour(tx, hour)?;
        let mut put = put_into(tx, &table(hour))?;
        for (key, entry) in events {
            put.execute((key.0.as_slice(), entry.to_bytes()))?;
        }
        Ok(())
    }

    /// Takes event entries out of where they stand. (The filters keep their keys: that only costs look-ups.)
    fn take_known(&self, tx: &Transaction<'_>, entries: &[&(IdentityKey, Entry)]) -> rusqlite::Result<()> {
        let keys: Vec<IdentityKey> = entries.iter().map(|(key, _)| *key).collect();
        let days = self.filters().days_of(&keys);
        if days.is_empty() {
            return Ok(());
        }
        let hours = hours(tx)?;
        for (day, keys) in days {
            for hour in hours.iter().filter(|hour| day_of(**hour) == day) {
                let mut take = tx.prepare_cached(&format!("DELETE FROM {} WHERE key = ?1", table(*hour)))?;
                for key in &keys {
                    take.execute([key.0.as_slice()])?;
                }
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
        self.change_filters(|filters| filters.days.retain(|day, _| kept.iter().any(|hour| day_of(*hour) == *day)));
        Ok(())
    }
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

fn put_into<'c>(tx: &'c Transaction<'_>, table: &str) -> rusqlite::Result<CachedStatement<'c>> {
    tx.prepare_cached(&format!("INSERT OR REPLACE INTO {table} (key, value) VALUES (?1, ?2)"))
}

/// Moves what `table` holds of `wanted` to `found`.
fn find_all(conn: &Connection, table: &str, wanted: &mut Vec<IdentityKey>, found: &mut HashMap<IdentityKey, Entry>) -> rusqlite::Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    wanted.sort_unstable();
    let mut get = conn.prepare_cached(&format!("SELECT value FROM {table} WHERE key = ?1"))?;
    let mut missing = Vec::with_capacity(wanted.len());
    for key in wanted.drain(..) {
        match get.query_row([key.0.as_slice()], |row| entry_of(row.get_ref(0)?.as_blob()?)).optional()? {
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

/// A filter of all keys in these tables, of the right size for them.
fn read_filter(conn: &Connection, tables: &[String]) -> rusqlite::Result<Filter> {
    let mut keys = 0usize;
    for table in tables {
        keys += conn.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, usize>(0))?;
    }
    let mut filter = Filter::with_capacity(keys);
    for table in tables {
        let mut all = conn.prepare(&format!("SELECT key FROM {table}"))?;
        let mut rows = all.query([])?;
        while let Some(row) = rows.next()? {
            filter.insert(&IdentityKey(row.get(0)?));
        }
    }
    Ok(filter)
}

#[cfg(test)]
mod tests;
