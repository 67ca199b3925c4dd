//! One day's file: its event rows in time order and the look-up tables over them. Written by the writer thread, read by `readers`. Must never hold an
//! event of another day.
//!
//! Look-ups are (hash, time, place, seq) tables without rowid rather than SQL indexes, their rows put in key order within a transaction: random
//! pages touched are what costs. For the same reason they grow in runs, see [`Keys`]. A reader checks the row itself, as hashes may meet.

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;
use rusqlite::{CachedStatement, Connection, Row, Transaction, params};

use super::{pack, place, unpack, unplace};
use crate::archive::changed::Changed;
use crate::archive::{Error, EventRow, Kept, Scan, ScanBy};
use crate::event::identity::Verdict;
use crate::event::{Channel, Flags, KeyKind, SiteId, Timestamp};
use crate::sqlite::{self, Durability, Filter, Grade};

/// Version of a day's file. Version 1 did not say when it was taken; a file begun before version 3 has no runs, and stays so, of version 2. Until version 4
/// there was nothing to look objects up by, and no event that would stand there.
const VERSION: i32 = 4;

/// A run of look-ups belongs to 2^16 rows: some hundred pages, which all fit the page cache while they are written.
const RUN_BITS: u32 = 16;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS event (
  seq INTEGER PRIMARY KEY, site TEXT NOT NULL, event_id TEXT NOT NULL, fingerprint INTEGER NOT NULL, key_kind INTEGER NOT NULL, type TEXT NOT NULL,
  occurred_at INTEGER NOT NULL, received_at INTEGER NOT NULL, place INTEGER NOT NULL, verdict INTEGER NOT NULL, flags INTEGER NOT NULL,
  channel INTEGER NOT NULL, customer BLOB, visitor BLOB, products BLOB NOT NULL, objects BLOB NOT NULL, body_key INTEGER NOT NULL, body BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS by_id (id INTEGER NOT NULL, report INTEGER NOT NULL, at INTEGER NOT NULL, place INTEGER NOT NULL, seq INTEGER NOT NULL,
  PRIMARY KEY (id, report)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS by_time (site TEXT NOT NULL, at INTEGER NOT NULL, place INTEGER NOT NULL, seq INTEGER NOT NULL,
  PRIMARY KEY (site, at, place)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS by_person (hash INTEGER NOT NULL, at INTEGER NOT NULL, place INTEGER NOT NULL, seq INTEGER NOT NULL,
  PRIMARY KEY (hash, at, place)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS by_product (hash INTEGER NOT NULL, at INTEGER NOT NULL, place INTEGER NOT NULL, seq INTEGER NOT NULL,
  PRIMARY KEY (hash, at, place)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS by_object (hash INTEGER NOT NULL, at INTEGER NOT NULL, place INTEGER NOT NULL, seq INTEGER NOT NULL,
  PRIMARY KEY (hash, at, place)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS taken (one INTEGER PRIMARY KEY, received_at INTEGER NOT NULL) STRICT;
";

/// The greatest `received_at` of a file of version 1, read from its rows once.
const FROM_VERSION_1: &str = "INSERT INTO taken (one, received_at) SELECT 1, max(received_at) FROM event HAVING max(received_at) IS NOT NULL;";

/// A day's file, open for its one writer.
pub(super) struct DayFile {
    conn: Connection,
    /// The next row's number.
    next: i64,
    keys: Keys,
    /// Of the rows' ids, where runs keep the table itself from telling known ones.
    known: Filter,
}

/// How the hashes of a file's look-ups are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    /// Whole: each new one touches some page of a table that is as large as the day.
    Whole,
    /// The run of the row (its number over 2^16) above 48 bits of the hash: a run's entries lie together, and its pages are not touched again once
    /// the next one has begun. Who looks something up asks every run.
    Runs,
}

impl Keys {
    const fn of(version: i32) -> Self {
        if version < 3 { Self::Whole } else { Self::Runs }
    }

    /// A hash as stored for the row of this number.
    const fn stored(self, hash: i64, seq: i64) -> i64 {
        match self {
            Self::Whole => hash,
            Self::Runs => Self::in_run(hash, seq >> RUN_BITS),
        }
    }

    /// All that a hash may be stored as, where the last row has this number.
    fn all(self, hash: i64, last: i64) -> Vec<i64> {
        match self {
            Self::Whole => vec![hash],
            Self::Runs => (0..=last >> RUN_BITS).map(|run| Self::in_run(hash, run)).collect(),
        }
    }

    const fn in_run(hash: i64, run: i64) -> i64 {
        run << 48 | hash & HASH_BITS
    }
}

/// The part of a hash that is stored beside its run.
const HASH_BITS: i64 = (1 << 48) - 1;

/// What the filter of ids knows a report by: from the stored form, whichever it is.
fn known_as(id: i64, report: i64) -> u128 {
    let (id, report) = ((id & HASH_BITS) as u64, report as u64);
    let (high, low) = (id.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ report, id.wrapping_mul(0xc2b2_ae3d_27d4_eb4f) ^ report.rotate_left(32));
    u128::from(high) << 64 | u128::from(low)
}

impl DayFile {
    /// Opens or creates a day's file.
    ///
    /// Its commits are `synchronous=FULL`: SQLite then syncs the WAL on its own handle as part of the commit (header included where the WAL
    /// begins anew), and the first sync of a WAL it created also syncs the directory, which holds the entries of both files. That is one `fdatasync`
    /// per file and transaction, as a sync from outside would be, without having to know when a header or a directory entry is new.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let conn = sqlite::open(path, Durability::Full)?;
        conn.pragma_update(None, "wal_autocheckpoint", 4_000)?;
        let (migration, version) = match check_version(&conn, VERSION, path)? {
            0 => ("", VERSION),
            1 => (FROM_VERSION_1, 2),
            2 => ("", 2),
            _ => ("", VERSION),
        };
        conn.execute_batch(&format!("BEGIN IMMEDIATE; {SCHEMA} {migration} PRAGMA user_version = {version}; COMMIT;"))?;
        let last = last(&conn)?;
        let keys = Keys::of(version);
        let mut known = Filter::with_capacity(Grade::Fine, last as usize);
        if keys == Keys::Runs {
            let mut ids = conn.prepare("SELECT id, report FROM by_id")?;
            let mut rows = ids.query([])?;
            while let Some(row) = rows.next()? {
                known.insert(known_as(row.get(0)?, row.get(1)?));
            }
        }
        Ok(Self { conn, next: last + 1, keys, known })
    }

    /// Writes the rows not yet there, in one durable transaction. A row known by (site, event id, [`report`]) keeps what it has.
    pub(super) fn insert(&mut self, rows: &mut [&EventRow]) -> Result<(), Error> {
        rows.sort_unstable_by_key(|row| (row.occurred_at, row.partition, row.offset));
        let first = self.next;
        let tx = self.conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let fresh = insert_ids(&tx, self.keys, &mut self.known, rows, first)?;
        insert_rows(&tx, rows, &fresh, first)?;
        let numbered = || rows.iter().zip(first..).zip(&fresh).filter(|(_, fresh)| **fresh).map(|(pair, _)| pair);
        let people = numbered()
            .flat_map(|(row, seq)| [row.customer, row.visitor].into_iter().flatten().map(move |person| (row, person_hash(row, &person), seq)));
        insert_lookups(&tx, self.keys, "by_person", people)?;
        let products = numbered().flat_map(|(row, seq)| row.products.iter().map(move |product| (row, product_hash(&row.site, product), seq)));
        insert_lookups(&tx, self.keys, "by_product", products)?;
        let objects = numbered().filter_map(|(row, seq)| Changed::of(row).map(|changed| (row, object_hash(&row.site, &changed.sid), seq)));
        insert_lookups(&tx, self.keys, "by_object", objects)?;
        if let Some(taken) = numbered().map(|(row, _)| row.received_at).max() {
            let raise =
                "INSERT INTO taken (one, received_at) VALUES (1, ?) ON CONFLICT DO UPDATE SET received_at = max(received_at, excluded.received_at)";
            tx.prepare_cached(raise)?.execute([taken.micros()])?;
        }
        tx.commit()?;
        self.next = first + rows.len() as i64;
        Ok(())
    }

    /// Lets the file keep so many KiB of pages in memory. A transaction that touches more than fit writes and reads some of them twice.
    pub(super) fn keep_pages(&self, kib: i64) -> Result<(), Error> {
        Ok(self.conn.pragma_update(None, "cache_size", -kib)?)
    }

    /// Closes the file, folding its WAL in.
    pub(super) fn close(self) -> Result<(), Error> {
        self.conn.close().map_err(|(_, error)| error.into())
    }
}

/// Refuses a file of a later version; gives its version, 0 where nothing is in it yet.
pub(super) fn check_version(conn: &Connection, ours: i32, path: &Path) -> Result<i32, Error> {
    let version: i32 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version > ours {
        return Err(Error::Corrupt(format!("{} of version {version} (this build reads {ours})", path.display())));
    }
    Ok(version)
}

/// The greatest `received_at` of a file's rows; None where it has none.
pub(super) fn taken(conn: &Connection) -> Result<Option<Timestamp>, Error> {
    let version: i32 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let table = match version {
        0 => return Ok(None),
        1 => "event",
        _ => "taken",
    };
    let greatest: Option<i64> = conn.query_row(&format!("SELECT max(received_at) FROM {table}"), [], |row| row.get(0))?;
    Ok(greatest.map(Timestamp::from_micros))
}

/// The number of the last row; 0 where there is none.
fn last(conn: &Connection) -> Result<i64, Error> {
    Ok(conn.prepare_cached("SELECT coalesce(max(seq), 0) FROM event")?.query_row([], |row| row.get(0))?)
}

/// Puts the ids, in key order; says of each row whether it is new. The filter changes at once: a transaction rolled back leaves it only too cautious.
fn insert_ids(tx: &Transaction<'_>, keys: Keys, known: &mut Filter, rows: &[&EventRow], first: i64) -> Result<Vec<bool>, Error> {
    let hashed = |(index, row): (usize, &&EventRow)| {
        let (hash, seq) = (id_hash(&row.site, &row.event_id), first + index as i64);
        (keys.stored(hash, seq), report(row), seq, hash, index)
    };
    let mut ids: Vec<(i64, i64, i64, i64, usize)> = rows.iter().enumerate().map(hashed).collect();
    ids.sort_unstable();
    let mut fresh = vec![false; rows.len()];
    let mut find = tx.prepare_cached("SELECT 1 FROM by_id WHERE id = ? AND report = ?")?;
    let mut insert = tx.prepare_cached("INSERT OR IGNORE INTO by_id (id, report, at, place, seq) VALUES (?, ?, ?, ?, ?)")?;
    for (id, report, seq, hash, index) in ids {
        let (Some(row), Some(fresh)) = (rows.get(index), fresh.get_mut(index)) else { continue };
        if keys == Keys::Runs {
            if known.may_hold(known_as(id, report)) && is_known(&mut find, &keys.all(hash, seq), report)? {
                continue;
            }
            known.insert(known_as(id, report));
        }
        *fresh = insert.execute((id, report, row.occurred_at.micros(), place(row.partition, row.offset), seq))? == 1;
    }
    Ok(fresh)
}

/// Whether a report stands under one of these ids; latest first, as a replay repeats the latest.
fn is_known(find: &mut CachedStatement<'_>, ids: &[i64], report: i64) -> Result<bool, Error> {
    for id in ids.iter().rev() {
        if find.exists((id, report))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Puts the new rows, in time order.
fn insert_rows(tx: &Transaction<'_>, rows: &[&EventRow], fresh: &[bool], first: i64) -> Result<(), Error> {
    let mut insert = tx.prepare_cached(
        "INSERT INTO event (seq, site, event_id, fingerprint, key_kind, type, occurred_at, received_at, place, verdict, flags, channel, customer, visitor,
         products, objects, body_key, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    let mut times: Vec<(&str, i64, i64, i64)> = Vec::with_capacity(rows.len());
    for ((row, seq), _) in rows.iter().zip(first..).zip(fresh).filter(|(_, fresh)| **fresh) {
        let place = place(row.partition, row.offset);
        insert.execute(params![
            seq,
            row.site.as_str(),
            row.event_id,
            row.fingerprint as i64,
            row.key_kind as u8,
            row.kind,
            row.occurred_at.micros(),
            row.received_at.micros(),
            place,
            row.verdict as u8,
            row.flags.0,
            row.channel as u8,
            row.customer.as_ref().map(|hash| hash.as_slice()),
            row.visitor.as_ref().map(|hash| hash.as_slice()),
            pack(&row.products),
            pack(&row.objects),
            row.body_key,
            row.body.as_ref(),
        ])?;
        times.push((row.site.as_str(), row.occurred_at.micros(), place, seq));
    }
    times.sort_unstable();
    let mut insert = tx.prepare_cached("INSERT OR IGNORE INTO by_time (site, at, place, seq) VALUES (?, ?, ?, ?)")?;
    for entry in times {
        insert.execute(entry)?;
    }
    Ok(())
}

/// Puts look-up rows of one table, in key order.
fn insert_lookups<'a>(
    tx: &Transaction<'_>,
    keys: Keys,
    table: &str,
    entries: impl Iterator<Item = (&'a &'a EventRow, i64, i64)>,
) -> Result<(), Error> {
    let mut sorted: Vec<_> =
        entries.map(|(row, hash, seq)| (keys.stored(hash, seq), row.occurred_at.micros(), place(row.partition, row.offset), seq)).collect();
    sorted.sort_unstable();
    let mut insert = tx.prepare_cached(&format!("INSERT OR IGNORE INTO {table} (hash, at, place, seq) VALUES (?, ?, ?, ?)"))?;
    for entry in sorted {
        insert.execute(entry)?;
    }
    Ok(())
}

/// Stable 64-bit hash (FNV-1a) of length-prefixed parts. Speed only: whoever looks something up by it checks the row.
fn hash64(parts: &[&[u8]]) -> i64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in (part.len() as u32).to_le_bytes().iter().chain(*part) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash as i64
}

fn id_hash(site: &SiteId, event_id: &str) -> i64 {
    hash64(&[site.as_str().as_bytes(), event_id.as_bytes()])
}

fn person_hash(row: &EventRow, person: &[u8; 16]) -> i64 {
    hash64(&[row.site.as_str().as_bytes(), person])
}

fn product_hash(site: &SiteId, product: &str) -> i64 {
    hash64(&[site.as_str().as_bytes(), product.as_bytes()])
}

fn object_hash(site: &SiteId, sid: &str) -> i64 {
    hash64(&[site.as_str().as_bytes(), sid.as_bytes()])
}

/// Tells the reports of one event id apart, as the file's `by_id.report` has it: the fingerprint, with the key kind xored into bits 60 to 63 and,
/// where the channel is part of what makes a report, 1 + channel into bits 56 to 59. (The key itself is part of what the fingerprint covers.)
fn report(row: &EventRow) -> i64 {
    let channel = row.reporting_channel().map_or(0, |channel| channel as u64 + 1);
    (row.fingerprint ^ (row.key_kind as u64) << 60 ^ channel << 56) as i64
}

/// A place in a scan's order.
pub(super) type Mark = (i64, i64);

/// The open interval of (occurred_at, place) that a scan covers.
pub(super) fn span(scan: &Scan) -> (Mark, Mark) {
    let mut low = (scan.from.map_or(i64::MIN, Timestamp::micros), -1);
    let mut high = (scan.to.map_or(i64::MAX, Timestamp::micros), -1);
    if let Some((at, partition, offset)) = scan.after {
        let after = (at.micros(), place(partition, offset));
        if scan.newest_first {
            high = high.min(after);
        } else {
            low = low.max(after);
        }
    }
    (low, high)
}

pub(super) const COLUMNS: &str =
    "e.site, e.event_id, e.fingerprint, e.key_kind, e.type, e.occurred_at, e.received_at, e.place, e.verdict, e.flags, e.channel, e.customer,
  e.visitor, e.products, e.objects, e.body_key, e.body";

/// At most `limit` rows of this day that a scan looks for, in its order.
pub(super) fn scan(conn: &Connection, site: &SiteId, scan: &Scan, limit: usize) -> Result<Vec<EventRow>, Error> {
    let direction = if scan.newest_first { "DESC" } else { "ASC" };
    let (low, high) = span(scan);
    let over = |table: &str, key: &str| {
        format!(
            "SELECT {COLUMNS} FROM {table} t JOIN event e ON e.seq = t.seq WHERE t.{key} = ?1 AND (t.at, t.place) > (?2, ?3) AND (t.at, t.place) < (?4, ?5)
             ORDER BY t.at {direction}, t.place {direction}"
        )
    };
    let lookups = Lookups::of(conn)?;
    let by_hash = |table: &str, key: &str, hash: i64, wanted: &dyn Fn(&EventRow) -> bool| -> Result<Vec<EventRow>, Error> {
        let mut statement = conn.prepare_cached(&over(table, key))?;
        let mut found = Vec::new();
        for stored in lookups.all(hash) {
            let bounds = params![stored, low.0, low.1, high.0, high.1];
            found.extend(collect(&mut statement, bounds, limit, |row| row.site == *site && wanted(row))?);
        }
        Ok(found)
    };
    let mut found = match &scan.by {
        ScanBy::All => {
            let mut statement = conn.prepare_cached(&over("by_time", "site"))?;
            return collect(&mut statement, params![site.as_str(), low.0, low.1, high.0, high.1], limit, |_| true);
        }
        ScanBy::Product(product) => by_hash("by_product", "hash", product_hash(site, product), &|row| row.products.contains(product))?,
        ScanBy::Object(_) if !has_objects(conn)? => Vec::new(),
        ScanBy::Object(sid) => {
            by_hash("by_object", "hash", object_hash(site, sid), &|row| Changed::of(row).is_some_and(|changed| changed.sid == *sid))?
        }
        ScanBy::EventId(id) => by_hash("by_id", "id", id_hash(site, id), &|row| row.event_id == *id)?,
        ScanBy::People(people) => {
            let mut found = Vec::new();
            for person in people {
                let hash = hash64(&[site.as_str().as_bytes(), person]);
                found.extend(by_hash("by_person", "hash", hash, &|row| row.customer == Some(*person) || row.visitor == Some(*person))?);
            }
            found
        }
    };
    found.sort_by_key(|row| (row.occurred_at, row.partition, row.offset));
    found.dedup_by_key(|row| (row.partition, row.offset));
    if scan.newest_first {
        found.reverse();
    }
    found.truncate(limit);
    Ok(found)
}

/// Whether objects can be looked up: a file that nothing was written to since version 4 has no table for it.
fn has_objects(conn: &Connection) -> Result<bool, Error> {
    Ok(conn.prepare_cached("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'by_object'")?.exists([])?)
}

/// How to look something up in a file as it stands.
struct Lookups {
    keys: Keys,
    last: i64,
}

impl Lookups {
    fn of(conn: &Connection) -> Result<Self, Error> {
        let version: i32 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
        Ok(Self { keys: Keys::of(version), last: last(conn)? })
    }

    fn all(&self, hash: i64) -> Vec<i64> {
        self.keys.all(hash, self.last)
    }
}

/// The reports kept of these events, the look-ups in key order.
pub(super) fn kept<'a>(conn: &Connection, site: &SiteId, ids: &BTreeSet<&'a str>) -> Result<Vec<Kept>, Error> {
    let lookups = Lookups::of(conn)?;
    let stored = |id: &&'a str| lookups.all(id_hash(site, id)).into_iter().map(|stored| (stored, *id)).collect::<Vec<_>>();
    let mut sorted: Vec<(i64, &str)> = ids.iter().flat_map(stored).collect();
    sorted.sort_unstable();
    let mut statement = conn.prepare_cached(
        "SELECT e.site, e.event_id, e.fingerprint, e.key_kind, e.type, e.channel, e.occurred_at, e.place FROM by_id t JOIN event e ON e.seq = t.seq
         WHERE t.id = ?1",
    )?;
    let corrupt = |what: &str| Error::Corrupt(format!("an event row's {what}"));
    let mut found = Vec::new();
    for (stored, id) in sorted {
        let mut rows = statement.query([stored])?;
        while let Some(row) = rows.next()? {
            let text = |column: usize| row.get_ref(column)?.as_str().map_err(rusqlite::Error::from);
            if text(0)? != site.as_str() || text(1)? != id {
                continue;
            }
            let (partition, offset) = unplace(row.get(7)?);
            found.push(Kept {
                event_id: id.to_owned(),
                fingerprint: row.get::<_, i64>(2)? as u64,
                key_kind: KeyKind::from_byte(row.get(3)?).ok_or_else(|| corrupt("key kind"))?,
                kind: row.get(4)?,
                channel: channel(row.get(5)?).ok_or_else(|| corrupt("channel"))?,
                occurred_at: Timestamp::from_micros(row.get(6)?),
                partition,
                offset,
            });
        }
    }
    Ok(found)
}

/// The first `limit` rows of a statement that are wanted.
fn collect(
    statement: &mut CachedStatement<'_>,
    values: impl rusqlite::Params,
    limit: usize,
    wanted: impl Fn(&EventRow) -> bool,
) -> Result<Vec<EventRow>, Error> {
    let mut rows = statement.query(values)?;
    let mut found = Vec::new();
    while found.len() < limit
        && let Some(row) = rows.next()?
    {
        let row = event_row(row)?;
        if wanted(&row) {
            found.push(row);
        }
    }
    Ok(found)
}

fn channel(byte: u8) -> Option<Channel> {
    match byte {
        0 => Some(Channel::Pixel),
        1 => Some(Channel::Server),
        2 => Some(Channel::Webhook),
        _ => None,
    }
}

/// Reads a row selected by [`COLUMNS`].
pub(super) fn event_row(row: &Row<'_>) -> Result<EventRow, Error> {
    let corrupt = |what: &str| Error::Corrupt(format!("an event row's {what}"));
    let (partition, offset) = unplace(row.get(7)?);
    let hash = |column: usize| -> Result<Option<[u8; 16]>, Error> {
        let bytes = row.get_ref(column)?.as_blob_or_null().map_err(|_| corrupt("person"))?;
        bytes.map(|bytes| bytes.try_into().map_err(|_| corrupt("person"))).transpose()
    };
    Ok(EventRow {
        site: SiteId::parse(row.get_ref(0)?.as_str().map_err(|_| corrupt("site"))?).map_err(|_| corrupt("site"))?,
        event_id: row.get(1)?,
        fingerprint: row.get::<_, i64>(2)? as u64,
        key_kind: KeyKind::from_byte(row.get(3)?).ok_or_else(|| corrupt("key kind"))?,
        kind: row.get(4)?,
        occurred_at: Timestamp::from_micros(row.get(5)?),
        received_at: Timestamp::from_micros(row.get(6)?),
        partition,
        offset,
        verdict: match row.get::<_, u8>(8)? {
            0 => Verdict::Counted,
            1 => Verdict::Report,
            2 => Verdict::Duplicate,
            3 => Verdict::Conflict,
            _ => return Err(corrupt("verdict")),
        },
        flags: Flags(row.get(9)?),
        channel: channel(row.get(10)?).ok_or_else(|| corrupt("channel"))?,
        customer: hash(11)?,
        visitor: hash(12)?,
        products: unpack(row.get_ref(13)?.as_blob().map_err(|_| corrupt("products"))?, "an event row's products")?,
        objects: unpack(row.get_ref(14)?.as_blob().map_err(|_| corrupt("objects"))?, "an event row's objects")?,
        body_key: row.get(15)?,
        body: Bytes::copy_from_slice(row.get_ref(16)?.as_blob().map_err(|_| corrupt("body"))?),
    })
}
