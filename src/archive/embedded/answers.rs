//! The tables of `answers.db` and how a batch is put into them: cells, orders, checkouts, labels, links, books, quarantine, sites, cursors (identity has
//! its own module). Called by the writer inside its transaction; every put is of absolute values or keeps the greater, so that it may be repeated.

use std::collections::{BTreeSet, HashSet};

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::{pack, place, unpack};
use crate::archive::rollup::cell_number;
use crate::archive::{Cursor, Error, WriteBatch};
use crate::event::identity::{CheckoutView, OrderView, Sale, StepCount};
use crate::event::{SiteId, Timestamp};

/// Version of `answers.db`. Until version 2 an hour's identity entries were one run.
pub(super) const VERSION: i32 = 3;

/// Version 1 kept no flag of a completion, and counted it by its checkout's.
const FROM_VERSION_1: &str = "
ALTER TABLE checkout ADD COLUMN completed_crawler INTEGER;
UPDATE checkout SET completed_crawler = crawler WHERE completed_at IS NOT NULL;
";

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS cursor (partition INTEGER PRIMARY KEY, next INTEGER NOT NULL, received_at INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS touched (one INTEGER PRIMARY KEY, times INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS site (name TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cell (site TEXT NOT NULL, metric INTEGER NOT NULL, cell INTEGER NOT NULL, dim TEXT NOT NULL, crawler INTEGER NOT NULL,
  partition INTEGER NOT NULL, count0 INTEGER NOT NULL, count1 INTEGER NOT NULL, revenue BLOB, people BLOB,
  PRIMARY KEY (site, metric, cell, dim, crawler, partition)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS orders (site TEXT NOT NULL, order_id TEXT NOT NULL, at INTEGER, person TEXT, total_minor INTEGER, total_currency TEXT,
  units INTEGER NOT NULL, refunded BLOB NOT NULL, sales BLOB NOT NULL, PRIMARY KEY (site, order_id)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sale_at (site TEXT NOT NULL, at INTEGER NOT NULL, order_id TEXT NOT NULL,
  PRIMARY KEY (site, at, order_id)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS checkout (site TEXT NOT NULL, checkout TEXT NOT NULL, person TEXT, steps BLOB NOT NULL, completed_at INTEGER,
  value_minor INTEGER, value_currency TEXT, last_step TEXT, last_at INTEGER NOT NULL, crawler INTEGER NOT NULL, completed_crawler INTEGER,
  PRIMARY KEY (site, checkout)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS checkout_last (site TEXT NOT NULL, last_at INTEGER NOT NULL, checkout TEXT NOT NULL,
  PRIMARY KEY (site, last_at, checkout)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS step_at (site TEXT NOT NULL, at INTEGER NOT NULL, checkout TEXT NOT NULL,
  PRIMARY KEY (site, at, checkout)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS label (site TEXT NOT NULL, label INTEGER NOT NULL, dim TEXT NOT NULL, at INTEGER NOT NULL, event_id TEXT NOT NULL,
  value TEXT NOT NULL, PRIMARY KEY (site, label, dim)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS link (site TEXT NOT NULL, person BLOB NOT NULL, other BLOB NOT NULL, PRIMARY KEY (site, person, other)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS books (site TEXT NOT NULL, hour INTEGER NOT NULL, partition INTEGER NOT NULL, books BLOB NOT NULL,
  PRIMARY KEY (site, hour, partition)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS quarantine (site TEXT NOT NULL, received_at INTEGER NOT NULL, place INTEGER NOT NULL, event_id TEXT NOT NULL,
  code TEXT NOT NULL, message TEXT NOT NULL, pointer TEXT NOT NULL, raw BLOB NOT NULL, PRIMARY KEY (site, received_at, place)) STRICT, WITHOUT ROWID;
";

/// Creates what is missing in a file of version `known` (0: empty), and brings it to this version: in one transaction, so that a crash leaves either.
pub(super) fn create(conn: &Connection, known: i32) -> Result<(), Error> {
    let migration = if known == 1 { FROM_VERSION_1 } else { "" };
    Ok(conn.execute_batch(&format!("BEGIN IMMEDIATE; {migration} {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;"))?)
}

/// Notes sites not known so far, and gives them.
pub(super) fn put_sites(tx: &Transaction<'_>, known: &HashSet<SiteId>, batch: &WriteBatch) -> Result<BTreeSet<SiteId>, Error> {
    let named = batch.books.iter().map(|(_, site, _, _)| site).chain(batch.events.iter().map(|row| &row.site));
    let fresh: BTreeSet<SiteId> = named.filter(|site| !known.contains(*site)).cloned().collect();
    for site in &fresh {
        tx.execute("INSERT OR IGNORE INTO site (name) VALUES (?)", [site.as_str()])?;
    }
    Ok(fresh)
}

/// Puts everything but identities, sites and cursors, each table in key order.
pub(super) fn put(tx: &Transaction<'_>, batch: &WriteBatch) -> Result<(), Error> {
    put_cells(tx, batch)?;
    let mut orders: Vec<_> = batch.orders.iter().collect();
    orders.sort_by(|a, b| (&a.1, &a.2.order_id).cmp(&(&b.1, &b.2.order_id)));
    for (_, site, order) in orders {
        put_order(tx, site, order)?;
    }
    let mut checkouts: Vec<_> = batch.checkouts.iter().collect();
    checkouts.sort_by(|a, b| (&a.1, &a.2.checkout).cmp(&(&b.1, &b.2.checkout)));
    for (_, site, checkout) in checkouts {
        put_checkout(tx, site, checkout)?;
    }
    put_labels(tx, batch)?;
    put_links(tx, batch)?;
    put_books(tx, batch)?;
    put_quarantine(tx, batch)
}

/// Where each partition now is.
pub(super) fn put_cursors(tx: &Transaction<'_>, cursors: &[(u16, Cursor)]) -> Result<(), Error> {
    let mut put = tx.prepare_cached("INSERT OR REPLACE INTO cursor (partition, next, received_at) VALUES (?, ?, ?)")?;
    for (partition, cursor) in cursors {
        put.execute((partition, cursor.next as i64, cursor.received_at.micros()))?;
    }
    Ok(())
}

/// A commit that changes next to nothing.
pub(super) fn touch(conn: &Connection) -> Result<(), Error> {
    conn.execute("INSERT INTO touched (one, times) VALUES (1, 1) ON CONFLICT DO UPDATE SET times = times + 1", [])?;
    Ok(())
}

/// Puts cells, as their partitions have them.
pub(super) fn put_cells(tx: &Transaction<'_>, batch: &WriteBatch) -> Result<(), Error> {
    let mut cells: Vec<_> = batch.cells.iter().collect();
    cells.sort_unstable_by(|a, b| (&a.1, a.0).cmp(&(&b.1, b.0)));
    let mut put = tx.prepare_cached(
        "INSERT OR REPLACE INTO cell (site, metric, cell, dim, crawler, partition, count0, count1, revenue, people) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    for (partition, key, value) in cells {
        let revenue = (!value.revenue.is_empty()).then(|| pack(&value.revenue));
        let people = (!value.people.0.is_empty()).then_some(value.people.0.as_slice());
        let [count0, count1] = value.counts;
        put.execute(params![
            key.site.as_str(),
            key.metric as u8,
            cell_number(key.cell),
            key.dim,
            key.crawler,
            partition,
            count0,
            count1,
            revenue,
            people
        ])?;
    }
    Ok(())
}

/// An order's row, and an entry for each time at which it counts.
pub(super) fn put_order(tx: &Transaction<'_>, site: &SiteId, order: &OrderView) -> Result<(), Error> {
    let known: Option<Vec<u8>> = tx
        .prepare_cached("SELECT sales FROM orders WHERE site = ? AND order_id = ?")?
        .query_row((site.as_str(), &order.order_id), |row| row.get(0))
        .optional()?;
    let before = match known {
        Some(bytes) => unpack::<Vec<Sale>>(&bytes, "an order's sales")?.iter().map(|sale| sale.at).collect(),
        None => BTreeSet::new(),
    };
    let after = order.sales.iter().map(|sale| sale.at).collect();
    let (drop, add) =
        ("DELETE FROM sale_at WHERE site = ? AND at = ? AND order_id = ?", "INSERT OR IGNORE INTO sale_at (site, at, order_id) VALUES (?, ?, ?)");
    move_entries(tx, drop, add, site, &order.order_id, &before, &after)?;
    let mut put = tx.prepare_cached(
        "INSERT OR REPLACE INTO orders (site, order_id, at, person, total_minor, total_currency, units, refunded, sales) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    put.execute(params![
        site.as_str(),
        order.order_id,
        order.at.map(Timestamp::micros),
        order.person,
        order.total.map(|total| total.amount_minor),
        order.total.as_ref().map(|total| total.currency.code()),
        order.units,
        pack(&order.refunded),
        pack(&order.sales),
    ])?;
    Ok(())
}

/// A checkout's row, its place by `last_at`, and an entry for each time at which a step of it counts.
pub(super) fn put_checkout(tx: &Transaction<'_>, site: &SiteId, view: &CheckoutView) -> Result<(), Error> {
    let known: Option<(Vec<u8>, Option<i64>, i64)> = tx
        .prepare_cached("SELECT steps, completed_at, last_at FROM checkout WHERE site = ? AND checkout = ?")?
        .query_row((site.as_str(), &view.checkout), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let (mut before, mut last_before) = (BTreeSet::new(), BTreeSet::new());
    if let Some((steps, completed_at, last_at)) = known {
        let steps: Vec<StepCount> = unpack(&steps, "a checkout's steps")?;
        before = step_times(&steps, completed_at.map(Timestamp::from_micros));
        last_before.insert(Timestamp::from_micros(last_at));
    }
    let after = step_times(&view.steps, view.completed.map(|completion| completion.at));
    let (drop, add) =
        ("DELETE FROM step_at WHERE site = ? AND at = ? AND checkout = ?", "INSERT OR IGNORE INTO step_at (site, at, checkout) VALUES (?, ?, ?)");
    move_entries(tx, drop, add, site, &view.checkout, &before, &after)?;
    let drop = "DELETE FROM checkout_last WHERE site = ? AND last_at = ? AND checkout = ?";
    let add = "INSERT OR IGNORE INTO checkout_last (site, last_at, checkout) VALUES (?, ?, ?)";
    move_entries(tx, drop, add, site, &view.checkout, &last_before, &BTreeSet::from([view.last_at]))?;
    let mut put = tx.prepare_cached(
        "INSERT OR REPLACE INTO checkout (site, checkout, person, steps, completed_at, completed_crawler, value_minor, value_currency, last_step, last_at,
         crawler) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    put.execute(params![
        site.as_str(),
        view.checkout,
        view.person,
        pack(&view.steps),
        view.completed.map(|completion| completion.at.micros()),
        view.completed.map(|completion| completion.crawler),
        view.value.map(|value| value.amount_minor),
        view.value.as_ref().map(|value| value.currency.code()),
        view.last_step,
        view.last_at.micros(),
        view.crawler,
    ])?;
    Ok(())
}

/// The times at which a checkout's steps and its completion count.
fn step_times(steps: &[StepCount], completed_at: Option<Timestamp>) -> BTreeSet<Timestamp> {
    steps.iter().map(|step| step.at).chain(completed_at).collect()
}

/// Moves the entries of one order or checkout in a table by time from one set of times to another.
fn move_entries(
    tx: &Transaction<'_>,
    drop: &str,
    add: &str,
    site: &SiteId,
    id: &str,
    before: &BTreeSet<Timestamp>,
    after: &BTreeSet<Timestamp>,
) -> Result<(), Error> {
    for at in before.difference(after) {
        tx.prepare_cached(drop)?.execute((site.as_str(), at.micros(), id))?;
    }
    for at in after.difference(before) {
        tx.prepare_cached(add)?.execute((site.as_str(), at.micros(), id))?;
    }
    Ok(())
}

fn put_labels(tx: &Transaction<'_>, batch: &WriteBatch) -> Result<(), Error> {
    let mut labels: Vec<_> = batch.labels.iter().collect();
    labels.sort_by(|a, b| (&a.0, a.1, &a.2).cmp(&(&b.0, b.1, &b.2)));
    let mut put = tx.prepare_cached(
        "INSERT INTO label (site, label, dim, at, event_id, value) VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT DO UPDATE SET at = excluded.at, event_id = excluded.event_id, value = excluded.value
         WHERE (excluded.at, excluded.event_id, excluded.value) > (at, event_id, value)",
    )?;
    for (site, label, dim, value) in labels {
        put.execute((site.as_str(), *label as u8, dim, value.at.micros(), &value.event_id, &value.value))?;
    }
    Ok(())
}

fn put_links(tx: &Transaction<'_>, batch: &WriteBatch) -> Result<(), Error> {
    let both = batch.links.iter().flat_map(|(site, visitor, customer)| [(site, visitor, customer), (site, customer, visitor)]);
    let mut put = tx.prepare_cached("INSERT OR IGNORE INTO link (site, person, other) VALUES (?, ?, ?)")?;
    for (site, person, other) in both.collect::<BTreeSet<_>>() {
        put.execute((site.as_str(), person.as_slice(), other.as_slice()))?;
    }
    Ok(())
}

fn put_books(tx: &Transaction<'_>, batch: &WriteBatch) -> Result<(), Error> {
    let mut put = tx.prepare_cached("INSERT OR REPLACE INTO books (site, hour, partition, books) VALUES (?, ?, ?, ?)")?;
    for (partition, site, hour, books) in &batch.books {
        put.execute((site.as_str(), hour.micros(), partition, pack(books)))?;
    }
    Ok(())
}

fn put_quarantine(tx: &Transaction<'_>, batch: &WriteBatch) -> Result<(), Error> {
    let mut put = tx.prepare_cached(
        "INSERT OR REPLACE INTO quarantine (site, received_at, place, event_id, code, message, pointer, raw) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    for row in &batch.quarantine {
        put.execute(params![
            row.site.as_ref().map_or("", |site| site.as_str()),
            row.received_at.micros(),
            place(row.partition, row.offset),
            row.event_id,
            row.code,
            row.message,
            row.pointer,
            row.raw.as_ref(),
        ])?;
    }
    Ok(())
}
