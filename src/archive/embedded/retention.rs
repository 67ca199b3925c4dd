//! What retention takes from `answers.db`: all that counts in days whose rows are gone, and what identity remembers of it. Called by the writer, in one
//! transaction, before the days' files go; whatever stopped it in between, the next call takes the same again.
//!
//! Orders and checkouts lie in several days. Their identity entries forget what counts in days that are gone, and their rows become what the rest of the
//! entry says: as though what is gone had never been told. So the archive's answers stay what a recount of the remaining rows gives, and nothing
//! that comes later brings back what is gone.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension, Transaction};

use super::{answers, read};
use crate::archive::rollup::{Additions, cell_number};
use crate::archive::{CellKey, CellValue, Error, Metric, WriteBatch};
use crate::event::identity::{self, CheckoutEntry, Entry, IdentityKey, OrderEntry};
use crate::event::ids::events_partition;
use crate::event::{KeyKind, SiteId, Timestamp};
use crate::sqlite::IdentityTables;

/// Seconds of a UTC day.
const DAY: i64 = 86_400;

/// The days of which nothing stays: those before a day, but for some.
pub(super) struct Gone {
    /// The first day that stays whatever was taken of it.
    pub(super) before: i32,
    /// Days before it that stay.
    pub(super) kept: BTreeSet<i32>,
}

impl Gone {
    /// Whether what counts at this time goes.
    fn has(&self, at: Timestamp) -> bool {
        let day = at.utc_day();
        day < self.before && !self.kept.contains(&day)
    }

    /// The same as spans of time: from (inclusive), to (exclusive).
    fn spans(&self) -> Vec<(Timestamp, Timestamp)> {
        let start = |day: i32| Timestamp::ZERO.plus_seconds(i64::from(day) * DAY);
        let mut spans = Vec::new();
        let mut from = Timestamp::from_micros(i64::MIN);
        for day in self.kept.iter().copied().chain([self.before]) {
            if from < start(day) {
                spans.push((from, start(day)));
            }
            from = start(day).plus_seconds(DAY);
        }
        spans
    }
}

/// Takes what counts in days that are gone, and the books and quarantined records of before. `thorough` also finds orders that count for nothing, which takes a
/// look at every order.
pub(super) fn take(conn: &mut Connection, identities: &IdentityTables, gone: &Gone, thorough: bool) -> Result<(), Error> {
    let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let before = Timestamp::ZERO.plus_seconds(i64::from(gone.before) * DAY);
    for site in read::sites(&tx)? {
        take_cells(&tx, &site, gone)?;
        take_orders(&tx, identities, &site, gone, thorough)?;
        take_checkouts(&tx, identities, &site, gone)?;
        tx.execute("DELETE FROM books WHERE site = ? AND hour < ?", (site.as_str(), before.micros()))?;
    }
    tx.execute("DELETE FROM quarantine WHERE received_at < ?", [before.micros()])?;
    // Where nothing came for long, identity still knows events whose rows are gone.
    identities.expire(&tx, before)?;
    Ok(tx.commit()?)
}

fn take_cells(tx: &Transaction<'_>, site: &SiteId, gone: &Gone) -> Result<(), Error> {
    let mut take = tx.prepare_cached("DELETE FROM cell WHERE site = ? AND metric = ? AND cell >= ? AND cell < ?")?;
    for (from, to) in gone.spans() {
        for metric in 0..=Metric::Steps as u8 {
            take.execute((site.as_str(), metric, cell_number(from), cell_number(to)))?;
        }
    }
    Ok(())
}

/// The orders or checkouts that `sql` finds between two times.
fn found_between(tx: &Transaction<'_>, sql: &str, site: &SiteId, gone: &Gone) -> Result<BTreeSet<String>, Error> {
    let mut statement = tx.prepare_cached(sql)?;
    let mut found = BTreeSet::new();
    for (from, to) in gone.spans() {
        let mut rows = statement.query((site.as_str(), from.micros(), to.micros()))?;
        while let Some(row) = rows.next()? {
            found.insert(row.get(0)?);
        }
    }
    Ok(found)
}

fn take_orders(tx: &Transaction<'_>, identities: &IdentityTables, site: &SiteId, gone: &Gone, thorough: bool) -> Result<(), Error> {
    let mut orders = found_between(tx, "SELECT order_id FROM sale_at WHERE site = ? AND at >= ? AND at < ?", site, gone)?;
    if thorough {
        let mut statement = tx.prepare_cached("SELECT order_id, at FROM orders WHERE site = ? AND (at IS NULL OR at < ?)")?;
        let before = Timestamp::ZERO.plus_seconds(i64::from(gone.before) * DAY);
        let mut rows = statement.query((site.as_str(), before.micros()))?;
        while let Some(row) = rows.next()? {
            if row.get::<_, Option<i64>>(1)?.is_none_or(|at| gone.has(Timestamp::from_micros(at))) {
                orders.insert(row.get(0)?);
            }
        }
    }
    let mut additions = Additions::default();
    for order_id in orders {
        take_order(tx, identities, site, &order_id, gone, &mut additions)?;
    }
    correct_cells(tx, additions)
}

/// Takes what is gone of one order; `additions` get what that changes on other days.
fn take_order(
    tx: &Transaction<'_>,
    identities: &IdentityTables,
    site: &SiteId,
    order_id: &str,
    gone: &Gone,
    additions: &mut Additions,
) -> Result<(), Error> {
    let key = identity::order_key(site, order_id);
    let mut entry = identities.load(tx, &[key])?.remove(&key);
    let partition = events_partition(site, KeyKind::Order, order_id);
    for sale in identity::forget(&mut entry, &|at| gone.has(at)) {
        additions.sell(partition, site, &sale);
    }
    let left = entry.is_some();
    if let Some(mut view) = entry.clone().unwrap_or_else(|| Entry::Order(OrderEntry::default())).order() {
        let sql = "SELECT person FROM orders WHERE site = ? AND order_id = ?";
        view.person = view.person.and(person_of(tx, sql, site, order_id)?);
        view.order_id = order_id.to_owned();
        answers::put_order(tx, site, &view)?;
    }
    if !left {
        tx.prepare_cached("DELETE FROM orders WHERE site = ? AND order_id = ?")?.execute((site.as_str(), order_id))?;
    }
    put_back(tx, identities, key, entry)
}

fn take_checkouts(tx: &Transaction<'_>, identities: &IdentityTables, site: &SiteId, gone: &Gone) -> Result<(), Error> {
    let mut checkouts = found_between(tx, "SELECT checkout FROM step_at WHERE site = ? AND at >= ? AND at < ?", site, gone)?;
    let by_last = "SELECT checkout FROM checkout_last WHERE site = ? AND last_at >= ? AND last_at < ?";
    checkouts.extend(found_between(tx, by_last, site, gone)?);
    for name in checkouts {
        take_checkout(tx, identities, site, &name, gone)?;
    }
    Ok(())
}

fn take_checkout(tx: &Transaction<'_>, identities: &IdentityTables, site: &SiteId, name: &str, gone: &Gone) -> Result<(), Error> {
    let mut left = None;
    for (key, entry) in identities.load(tx, &identity::checkout_keys(site, name))? {
        let mut entry = Some(entry);
        identity::forget(&mut entry, &|at| gone.has(at));
        left = left.or_else(|| entry.clone());
        put_back(tx, identities, key, entry)?;
    }
    let gone_whole = left.is_none();
    if let Some(mut view) = left.unwrap_or_else(|| Entry::Checkout(CheckoutEntry::default())).checkout() {
        let sql = "SELECT person FROM checkout WHERE site = ? AND checkout = ?";
        view.person = view.person.and(person_of(tx, sql, site, name)?);
        view.checkout = name.to_owned();
        answers::put_checkout(tx, site, &view)?;
        if gone_whole {
            let drop_last = "DELETE FROM checkout_last WHERE site = ? AND last_at = ? AND checkout = ?";
            tx.prepare_cached(drop_last)?.execute((site.as_str(), view.last_at.micros(), name))?;
            tx.prepare_cached("DELETE FROM checkout WHERE site = ? AND checkout = ?")?.execute((site.as_str(), name))?;
        }
    }
    Ok(())
}

/// The person of a row, hashed as it stands there: an entry knows the plain id, and this store no key to hash it with.
fn person_of(tx: &Transaction<'_>, sql: &str, site: &SiteId, id: &str) -> Result<Option<String>, Error> {
    Ok(tx.prepare_cached(sql)?.query_row((site.as_str(), id), |row| row.get(0)).optional()?.flatten())
}

fn put_back(tx: &Transaction<'_>, identities: &IdentityTables, key: IdentityKey, entry: Option<Entry>) -> Result<(), Error> {
    match entry {
        // Lasting entries stand in no hour's table.
        Some(entry) => identities.save(tx, Timestamp::ZERO, &[(key, entry)])?,
        None => identities.remove_lasting(tx, &key)?,
    }
    Ok(())
}

/// Adds differences to cells as they stand.
fn correct_cells(tx: &Transaction<'_>, additions: Additions) -> Result<(), Error> {
    let mut keys: BTreeMap<u16, Vec<CellKey>> = BTreeMap::new();
    additions.keys().for_each(|(partition, key)| keys.entry(*partition).or_default().push(key.clone()));
    let mut known: BTreeMap<(u16, CellKey), CellValue> = BTreeMap::new();
    for (partition, keys) in keys {
        known.extend(read::cells(Ok(tx), partition, keys)?.into_iter().map(|(key, value)| ((partition, key), value)));
    }
    let cells = additions.apply(|key| known.remove(key));
    answers::put_cells(tx, &WriteBatch { cells, ..WriteBatch::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gone_is_what_lies_before_and_between_the_days_that_stay() {
        let start = |day: i64| Timestamp::ZERO.plus_seconds(day * DAY);
        let gone = Gone { before: 10, kept: BTreeSet::from([-3, 4, 5, 9]) };
        assert_eq!(gone.spans(), [(Timestamp::from_micros(i64::MIN), start(-3)), (start(-2), start(4)), (start(6), start(9))]);
        for day in -9..15 {
            for at in [start(day), start(day + 1).plus_micros(-1)] {
                let in_span = gone.spans().iter().any(|(from, to)| *from <= at && at < *to);
                assert_eq!((gone.has(at), in_span), (day < 10 && ![-3, 4, 5, 9].contains(&day), gone.has(at)), "day {day}");
            }
        }
    }
}
