//! One day's file: its event rows in time order and the look-up tables over them. Written by the writer thread, read by `readers`. Must never hold an
//! event of another day.
//!
//! Look-ups are (hash, time, place, seq) tables without rowid rather than SQL indexes, their rows put in key order within a transaction: random
//! pages touched are what costs. Hashes are 8 bytes; a reader checks the row itself.

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;
use rusqlite::{CachedStatement, Connection, Row, Transaction, params};

use super::{pack, place, unpack, unplace};
use crate::archive::{Error, EventRow, Kept, Scan, ScanBy};
use crate::event::identity::Verdict;
use crate::event::{Channel, Flags, KeyKind, SiteId, Timestamp};
use crate::sqlite::{self, Durability};

/// Version of a day's file. Version 1 did not say when it was taken.
const VERSION: i32 = 2;

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
CREATE TABLE IF NOT EXISTS taken (one INTEGER PRIMARY KEY, received_at INTEGER NOT NULL) STRICT;
";

/// The greatest `received_at` of a file of version 1, read from its rows once.
const FROM_VERSION_1: &str = "INSERT INTO taken (one, received_at) SELECT 1, max(received_at) FROM event HAVING max(received_at) IS NOT NULL;";

/// A day's file, open for its one writer.
pub(super) struct DayFile {
    conn: Connection,
    /// The next row's number.
    next: i64,
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
        let migration = if check_version(&conn, VERSION, path)? == 1 { FROM_VERSION_1 } else { "" };
        conn.execute_batch(&format!("BEGIN IMMEDIATE; {SCHEMA} {migration} PRAGMA user_version = {VERSION}; COMMIT;"))?;
        let next = conn.query_row("SELECT coalesce(max(seq), 0) + 1 FROM event", [], |row| row.get(0))?;
        Ok(Self { conn, next })
    }

    /// Writes the rows not yet there, in one durable transaction. A row known by (site, event id, [`report`]) keeps what it has.
    pub(super) fn insert(&mut self, rows: &mut [&EventRow]) -> Result<(), Error> {
        rows.sort_unstable_by_key(|row| (row.occurred_at, row.partition, row.offset));
        let first = self.next;
        let tx = self.conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let fresh = insert_ids(&tx, rows, first)?;
        insert_rows(&tx, rows, &fresh, first)?;
        let numbered = || rows.iter().zip(first..).zip(&fresh).filter(|(_, fresh)| **fresh).map(|(pair, _)| pair);
        let people = numbered()
            .flat_map(|(row, seq)| [row.customer, row.visitor].into_iter().flatten().map(move |person| (row, person_hash(row, &person), seq)));
        insert_lookups(&tx, "by_person", people)?;
        let products = numbered().flat_map(|(row, seq)| row.products.iter().map(move |product| (row, product_hash(&row.site, product), seq)));
        insert_lookups(&tx, "by_product", products)?;
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

/// Puts the ids, in key order; says of each row whether it is new.
fn insert_ids(tx: &Transaction<'_>, rows: &[&EventRow], first: i64) -> Result<Vec<bool>, Error> {
    let mut ids: Vec<(i64, i64, usize)> =
        rows.iter().enumerate().map(|(index, row)| (id_hash(&row.site, &row.event_id), report(row), index)).collect();
    ids.sort_unstable();
    let mut fresh = vec![false; rows.len()];
    let mut insert = tx.prepare_cached("INSERT OR IGNORE INTO by_id (id, report, at, place, seq) VALUES (?, ?, ?, ?, ?)")?;
    for (id, report, index) in ids {
        let (Some(row), Some(fresh)) = (rows.get(index), fresh.get_mut(index)) else { continue };
        *fresh = insert.execute((id, report, row.occurred_at.micros(), place(row.partition, row.offset), first + index as i64))? == 1;
    }
    Ok(fresh)
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
fn insert_lookups<'a>(tx: &Transaction<'_>, table: &str, entries: impl Iterator<Item = (&'a &'a EventRow, i64, i64)>) -> Result<(), Error> {
    let mut sorted: Vec<_> = entries.map(|(row, hash, seq)| (hash, row.occurred_at.micros(), place(row.partition, row.offset), seq)).collect();
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

const COLUMNS: &str =
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
    let by_hash = |table: &str, key: &str, hash: i64, wanted: &dyn Fn(&EventRow) -> bool| {
        let mut statement = conn.prepare_cached(&over(table, key))?;
        collect(&mut statement, params![hash, low.0, low.1, high.0, high.1], limit, |row| row.site == *site && wanted(row))
    };
    match &scan.by {
        ScanBy::All => {
            let mut statement = conn.prepare_cached(&over("by_time", "site"))?;
            collect(&mut statement, params![site.as_str(), low.0, low.1, high.0, high.1], limit, |_| true)
        }
        ScanBy::Product(product) => by_hash("by_product", "hash", product_hash(site, product), &|row| row.products.contains(product)),
        ScanBy::EventId(id) => {
            // Few, and ordered by report: sorted here.
            let mut statement = conn.prepare_cached(&over("by_id", "id"))?;
            collect(&mut statement, params![id_hash(site, id), low.0, low.1, high.0, high.1], limit, |row| row.site == *site && row.event_id == *id)
        }
        ScanBy::People(people) => {
            let mut found = Vec::new();
            for person in people {
                let hash = hash64(&[site.as_str().as_bytes(), person]);
                found.extend(by_hash("by_person", "hash", hash, &|row| row.customer == Some(*person) || row.visitor == Some(*person))?);
            }
            found.sort_by_key(|row| (row.occurred_at, row.partition, row.offset));
            found.dedup_by_key(|row| (row.partition, row.offset));
            if scan.newest_first {
                found.reverse();
            }
            found.truncate(limit);
            Ok(found)
        }
    }
}

/// The reports kept of these events, the look-ups in key order.
pub(super) fn kept(conn: &Connection, site: &SiteId, ids: &BTreeSet<&str>) -> Result<Vec<Kept>, Error> {
    let mut sorted: Vec<(i64, &str)> = ids.iter().map(|id| (id_hash(site, id), *id)).collect();
    sorted.sort_unstable();
    let mut statement = conn.prepare_cached(
        "SELECT e.site, e.event_id, e.fingerprint, e.key_kind, e.type, e.channel, e.occurred_at, e.place FROM by_id t JOIN event e ON e.seq = t.seq
         WHERE t.id = ?1",
    )?;
    let corrupt = |what: &str| Error::Corrupt(format!("an event row's {what}"));
    let mut found = Vec::new();
    for (hash, id) in sorted {
        let mut rows = statement.query([hash])?;
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
fn event_row(row: &Row<'_>) -> Result<EventRow, Error> {
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
