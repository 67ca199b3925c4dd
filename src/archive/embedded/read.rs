//! Questions to `answers.db`, over any connection of it: the readers' own, or the writer's where every write must be seen. Must never write.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{place, unpack, unplace};
use crate::archive::rollup::add_money;
use crate::archive::rollup::{cell_number, counted_steps};
use crate::archive::{Books, Bots, CellKey, CellValue, Cursor, Error, Label, LabelValue, Metric, QuarantineRow};
use crate::event::identity::{CheckoutView, Completion, Sale, StepCount};
use crate::event::{Currency, Money, PARTITIONS, SiteId, Timestamp};

/// Where a partition is; the default where it never was.
pub(super) fn cursor(conn: Result<&Connection, Error>, partition: u16) -> Result<Cursor, Error> {
    let found = conn?.query_row("SELECT next, received_at FROM cursor WHERE partition = ?", [partition], read_cursor).optional()?;
    Ok(found.unwrap_or_default())
}

/// Where every partition is.
pub(super) fn cursors(conn: &Connection) -> Result<Vec<Cursor>, Error> {
    let mut all = vec![Cursor::default(); usize::from(PARTITIONS)];
    let mut statement = conn.prepare_cached("SELECT next, received_at, partition FROM cursor")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if let Some(cursor) = all.get_mut(usize::from(row.get::<_, u16>(2)?)) {
            *cursor = read_cursor(row)?;
        }
    }
    Ok(all)
}

fn read_cursor(row: &Row<'_>) -> rusqlite::Result<Cursor> {
    Ok(Cursor { next: row.get::<_, i64>(0)? as u64, received_at: Timestamp::from_micros(row.get(1)?) })
}

/// One partition's cells.
pub(super) fn cells(conn: Result<&Connection, Error>, partition: u16, mut keys: Vec<CellKey>) -> Result<Vec<(CellKey, CellValue)>, Error> {
    keys.sort_unstable();
    let mut statement = conn?.prepare_cached(
        "SELECT count0, count1, revenue, people FROM cell WHERE site = ? AND metric = ? AND cell = ? AND dim = ? AND crawler = ? AND partition = ?",
    )?;
    let mut found = Vec::new();
    for key in keys {
        let mut rows = statement.query(params![key.site.as_str(), key.metric as u8, cell_number(key.cell), key.dim, key.crawler, partition])?;
        if let Some(row) = rows.next()? {
            let mut value = CellValue::default();
            add_cell(&mut value, row, 0)?;
            drop(rows);
            found.push((key, value));
        }
    }
    Ok(found)
}

/// Adds the cell in a row (count0, count1, revenue, people, from column `at` on) to a value.
pub(super) fn add_cell(value: &mut CellValue, row: &Row<'_>, at: usize) -> Result<(), Error> {
    let [count0, count1] = &mut value.counts;
    *count0 = count0.saturating_add(row.get(at)?);
    *count1 = count1.saturating_add(row.get(at + 1)?);
    if let Some(bytes) = row.get_ref(at + 2)?.as_blob_or_null().map_err(|_| Error::Corrupt("a cell's revenue".into()))? {
        for (currency, amount) in unpack::<BTreeMap<Currency, i64>>(bytes, "a cell's revenue")? {
            add_money(&mut value.revenue, currency, amount);
        }
    }
    if let Some(bytes) = row.get_ref(at + 3)?.as_blob_or_null().map_err(|_| Error::Corrupt("a cell's people".into()))? {
        value.people.merge(bytes);
    }
    Ok(())
}

/// See [`crate::archive::Archive::totals`].
pub(super) fn totals(
    conn: &Connection,
    site: &SiteId,
    metric: Metric,
    from: Timestamp,
    to: Timestamp,
    bots: Bots,
) -> Result<Vec<(String, CellValue)>, Error> {
    let mut sums: HashMap<String, CellValue> = HashMap::new();
    let mut statement = conn
        .prepare_cached("SELECT dim, crawler, count0, count1, revenue, people FROM cell WHERE site = ? AND metric = ? AND cell >= ? AND cell < ?")?;
    let mut rows = statement.query(params![site.as_str(), metric as u8, cell_number(from), cell_number(to)])?;
    while let Some(row) = rows.next()? {
        let wanted = match bots {
            Bots::Include => true,
            Bots::Exclude => !row.get::<_, bool>(1)?,
            Bots::Only => row.get::<_, bool>(1)?,
        };
        if !wanted {
            continue;
        }
        let dim = row.get_ref(0)?.as_str().map_err(|_| Error::Corrupt("a cell's dim".into()))?;
        match sums.get_mut(dim) {
            Some(sum) => add_cell(sum, row, 2)?,
            None => add_cell(sums.entry(dim.to_owned()).or_default(), row, 2)?,
        }
    }
    let mut all: Vec<_> = sums.into_iter().collect();
    all.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(all)
}

/// See [`crate::archive::Archive::sales`].
pub(super) fn sales(conn: &Connection, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<Sale>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT sales FROM orders WHERE site = ?1 AND order_id IN (SELECT order_id FROM sale_at WHERE site = ?1 AND at >= ?2 AND at < ?3)",
    )?;
    let mut rows = statement.query((site.as_str(), from.micros(), to.micros()))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let bytes = row.get_ref(0)?.as_blob().map_err(|_| Error::Corrupt("an order's sales".into()))?;
        found.extend(unpack::<Vec<Sale>>(bytes, "an order's sales")?.into_iter().filter(|sale| from <= sale.at && sale.at < to));
    }
    Ok(found)
}

/// See [`crate::archive::Archive::steps`].
pub(super) fn steps(conn: &Connection, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<StepCount>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT steps, completed_at, completed_crawler FROM checkout
         WHERE site = ?1 AND checkout IN (SELECT checkout FROM step_at WHERE site = ?1 AND at >= ?2 AND at < ?3)",
    )?;
    let mut rows = statement.query((site.as_str(), from.micros(), to.micros()))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let bytes = row.get_ref(0)?.as_blob().map_err(|_| Error::Corrupt("a checkout's steps".into()))?;
        let all = counted_steps(unpack(bytes, "a checkout's steps")?, completion(row, 1)?);
        found.extend(all.into_iter().filter(|step| from <= step.at && step.at < to));
    }
    Ok(found)
}

/// See [`crate::archive::Archive::checkouts`].
pub(super) fn checkouts(
    conn: &Connection,
    site: &SiteId,
    from: Timestamp,
    to: Timestamp,
    after: Option<(Timestamp, String)>,
    limit: usize,
) -> Result<Vec<CheckoutView>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT c.checkout, c.person, c.steps, c.completed_at, c.completed_crawler, c.value_minor, c.value_currency, c.last_step, c.last_at, c.crawler
         FROM checkout_last l CROSS JOIN checkout c ON c.site = l.site AND c.checkout = l.checkout
         WHERE l.site = ?1 AND l.last_at >= ?2 AND l.last_at < ?3 AND (l.last_at, l.checkout) > (?4, ?5) ORDER BY l.last_at, l.checkout LIMIT ?6",
    )?;
    let (after_at, after_id) = after.unwrap_or((Timestamp::from_micros(i64::MIN), String::new()));
    // The greater of both lower bounds is the one that the search starts from.
    let from = from.max(after_at);
    let mut rows = statement.query(params![site.as_str(), from.micros(), to.micros(), after_at.micros(), after_id, limit as i64])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(checkout_view(row)?);
    }
    Ok(found)
}

pub(super) fn checkout_view(row: &Row<'_>) -> Result<CheckoutView, Error> {
    let corrupt = || Error::Corrupt("a checkout".into());
    let value = match (row.get::<_, Option<i64>>(5)?, row.get::<_, Option<String>>(6)?) {
        (Some(amount_minor), Some(code)) => Some(Money { amount_minor, currency: Currency::parse(&code).map_err(|_| corrupt())? }),
        _ => None,
    };
    Ok(CheckoutView {
        checkout: row.get(0)?,
        person: row.get(1)?,
        steps: unpack(row.get_ref(2)?.as_blob().map_err(|_| corrupt())?, "a checkout's steps")?,
        completed: completion(row, 3)?,
        value,
        last_step: row.get(7)?,
        last_at: Timestamp::from_micros(row.get(8)?),
        crawler: row.get(9)?,
    })
}

/// The completion in a row (completed_at, completed_crawler, from column `at` on).
fn completion(row: &Row<'_>, at: usize) -> Result<Option<Completion>, Error> {
    match (row.get::<_, Option<i64>>(at)?, row.get(at + 1)?) {
        (Some(at), Some(crawler)) => Ok(Some(Completion { at: Timestamp::from_micros(at), crawler })),
        (None, None) => Ok(None),
        _ => Err(Error::Corrupt("a checkout's completion".into())),
    }
}

/// See [`crate::archive::Archive::labels`].
pub(super) fn labels(conn: &Connection, site: &SiteId, label: Label, dims: Vec<String>) -> Result<Vec<(String, LabelValue)>, Error> {
    let mut statement = conn.prepare_cached("SELECT at, event_id, value FROM label WHERE site = ? AND label = ? AND dim = ?")?;
    let mut found = Vec::new();
    for dim in dims {
        let value = statement
            .query_row((site.as_str(), label as u8, &dim), |row| {
                Ok(LabelValue { at: Timestamp::from_micros(row.get(0)?), event_id: row.get(1)?, value: row.get(2)? })
            })
            .optional()?;
        found.extend(value.map(|value| (dim, value)));
    }
    Ok(found)
}

/// See [`crate::archive::Archive::linked`].
pub(super) fn linked(conn: &Connection, site: &SiteId, person: [u8; 16]) -> Result<Vec<[u8; 16]>, Error> {
    let mut statement = conn.prepare_cached("SELECT other FROM link WHERE site = ? AND person = ?")?;
    let mut rows = statement.query((site.as_str(), person.as_slice()))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let bytes = row.get_ref(0)?.as_blob().map_err(|_| Error::Corrupt("a link".into()))?;
        found.push(bytes.try_into().map_err(|_| Error::Corrupt("a link".into()))?);
    }
    Ok(found)
}

/// One partition's books.
pub(super) fn books_of(
    conn: Result<&Connection, Error>,
    partition: u16,
    keys: Vec<(SiteId, Timestamp)>,
) -> Result<Vec<(SiteId, Timestamp, Books)>, Error> {
    let mut statement = conn?.prepare_cached("SELECT books FROM books WHERE site = ? AND hour = ? AND partition = ?")?;
    let mut found = Vec::new();
    for (site, hour) in keys {
        let bytes: Option<Vec<u8>> = statement.query_row((site.as_str(), hour.micros(), partition), |row| row.get(0)).optional()?;
        if let Some(bytes) = bytes {
            found.push((site, hour, unpack(&bytes, "books")?));
        }
    }
    Ok(found)
}

/// See [`crate::archive::Archive::books`].
pub(super) fn books(conn: &Connection, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<(Timestamp, Books)>, Error> {
    let mut statement = conn.prepare_cached("SELECT hour, books FROM books WHERE site = ? AND hour >= ? AND hour < ?")?;
    let mut rows = statement.query((site.as_str(), from.micros(), to.micros()))?;
    let mut sums: BTreeMap<Timestamp, Books> = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let books: Books = unpack(row.get_ref(1)?.as_blob().map_err(|_| Error::Corrupt("books".into()))?, "books")?;
        sums.entry(Timestamp::from_micros(row.get(0)?)).or_default().add(&books);
    }
    Ok(sums.into_iter().collect())
}

/// See [`crate::archive::Archive::quarantine`].
pub(super) fn quarantine(conn: &Connection, site: &SiteId, after: Option<(Timestamp, u16, u64)>, limit: usize) -> Result<Vec<QuarantineRow>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT received_at, place, event_id, code, message, pointer, raw FROM quarantine
         WHERE site = ? AND (received_at, place) > (?, ?) ORDER BY received_at, place LIMIT ?",
    )?;
    let (at, after) = after.map_or((i64::MIN, -1), |(at, partition, offset)| (at.micros(), place(partition, offset)));
    let mut rows = statement.query((site.as_str(), at, after, limit as i64))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let (partition, offset) = unplace(row.get(1)?);
        found.push(QuarantineRow {
            site: Some(site.clone()),
            event_id: row.get(2)?,
            received_at: Timestamp::from_micros(row.get(0)?),
            partition,
            offset,
            code: row.get(3)?,
            message: row.get(4)?,
            pointer: row.get(5)?,
            raw: Bytes::from(row.get::<_, Vec<u8>>(6)?),
        });
    }
    Ok(found)
}

/// See [`crate::archive::Archive::sites`].
pub(super) fn sites(conn: &Connection) -> Result<Vec<SiteId>, Error> {
    let mut statement = conn.prepare_cached("SELECT name FROM site ORDER BY name")?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let name = row.get_ref(0)?.as_str().map_err(|_| Error::Corrupt("a site".into()))?;
        found.push(SiteId::parse(name).map_err(|_| Error::Corrupt("a site".into()))?);
    }
    Ok(found)
}
