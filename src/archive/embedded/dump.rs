//! All that an embedded archive holds, in batches as an archiver writes them: for moving it elsewhere. Called by the composition root on an archive that
//! nobody writes. Reads the files themselves: an archive's readers cannot ask for identity, nor for records of no site.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

use super::readers::Days;
use super::{day, read, unpack, unplace};
use crate::archive::rollup::cell_start;
use crate::archive::{CellKey, CellValue, Error, Label, LabelValue, Metric, QuarantineRow, WriteBatch};
use crate::event::identity::{Entry, OrderView, checkout_places};
use crate::event::ids::events_partition;
use crate::event::{Currency, KeyKind, Money, SiteId, Timestamp};
use crate::sqlite::{self, IdentityTables};

/// Rows of one batch, at most.
const ROWS: usize = 2_000;
/// Bytes of rows at which a batch ends, whatever their number: bodies may have most of a MiB.
const BYTES: usize = 8 << 20;

/// A part of an archive. The batch names no cursors.
#[derive(Debug, Default)]
pub struct Page {
    /// Rows of it.
    pub batch: WriteBatch,
    /// Start of the hour that identity remembers the batch's events under; None where it holds none.
    pub seen: Option<Timestamp>,
}

impl Page {
    /// Rows of all kinds.
    pub fn rows(&self) -> usize {
        let batch = &self.batch;
        let counted = batch.cells.len() + batch.orders.len() + batch.checkouts.len() + batch.labels.len() + batch.links.len() + batch.books.len();
        batch.events.len() + counted + batch.quarantine.len() + batch.identities.len()
    }
}

/// Hands every row of the archive below `dir` to `take`, page by page, event rows first. Blocking. The partition beside an identity entry says nothing.
///
/// # Errors
/// The first of the files or of `take`; [`Error::Corrupt`] for what cannot be read: nothing is left out.
pub fn each_page(dir: &Path, take: &mut dyn FnMut(Page) -> Result<(), Error>) -> Result<(), Error> {
    let days = Days::list(dir)?;
    for day in days.all() {
        let conn = sqlite::open_readonly(&days.path(day))?;
        let rows = format!("SELECT {} FROM event e ORDER BY e.seq", day::COLUMNS);
        paged(&conn, &rows, take, |row, batch| {
            batch.events.push(day::event_row(row)?);
            Ok(())
        })?;
    }
    let conn = sqlite::open_readonly(&dir.join("answers.db"))?;
    let identities = IdentityTables::open(&conn)?;
    paged(&conn, CELLS, take, |row, batch| {
        batch.cells.push(cell(row)?);
        Ok(())
    })?;
    paged(&conn, ORDERS, take, |row, batch| {
        batch.orders.push(order(row)?);
        Ok(())
    })?;
    paged(&conn, CHECKOUTS, take, |row, batch| {
        let (site, view) = (site_of(row, 10)?.ok_or_else(|| Error::Corrupt("a checkout's site".into()))?, read::checkout_view(row)?);
        let places = checkout_places(&site, &view.checkout);
        let keys: Vec<_> = places.iter().map(|(_, key)| *key).collect();
        // Its name does not tell what it was partitioned by, what identity remembers does.
        let known = identities.load(&conn, &keys)?;
        let place = places.iter().find(|(_, key)| known.contains_key(key)).or_else(|| places.last());
        batch.checkouts.push((place.map_or(0, |(partition, _)| *partition), site, view));
        Ok(())
    })?;
    paged(&conn, LABELS, take, |row, batch| {
        batch.labels.push(label(row)?);
        Ok(())
    })?;
    paged(&conn, LINKS, take, |row, batch| {
        let site = site_of(row, 0)?.ok_or_else(|| Error::Corrupt("a link's site".into()))?;
        let person = |column: usize| row.get::<_, Vec<u8>>(column)?.try_into().map_err(|_| Error::Corrupt("a link".into()));
        batch.links.push((site, person(1)?, person(2)?));
        Ok(())
    })?;
    paged(&conn, BOOKS, take, |row, batch| {
        let site = site_of(row, 0)?.ok_or_else(|| Error::Corrupt("a site of books".into()))?;
        let books = unpack(&row.get::<_, Vec<u8>>(3)?, "books")?;
        batch.books.push((row.get(2)?, site, Timestamp::from_micros(row.get(1)?), books));
        Ok(())
    })?;
    paged(&conn, QUARANTINE, take, |row, batch| {
        batch.quarantine.push(quarantined(row)?);
        Ok(())
    })?;
    each_identity(&conn, take)
}

const CELLS: &str = "SELECT count0, count1, revenue, people, site, metric, cell, dim, crawler, partition FROM cell";
const ORDERS: &str = "SELECT site, order_id, at, person, total_minor, total_currency, units, refunded, sales FROM orders";
const CHECKOUTS: &str = "SELECT checkout, person, steps, completed_at, completed_crawler, value_minor, value_currency, last_step, last_at, crawler, site \
     FROM checkout";
const LABELS: &str = "SELECT site, label, dim, at, event_id, value FROM label";
const LINKS: &str = "SELECT site, person, other FROM link";
const BOOKS: &str = "SELECT site, hour, partition, books FROM books";
const QUARANTINE: &str = "SELECT site, received_at, place, event_id, code, message, pointer, raw FROM quarantine";

/// Puts every row that a statement finds into batches.
fn paged(
    conn: &Connection,
    sql: &str,
    take: &mut dyn FnMut(Page) -> Result<(), Error>,
    mut put: impl FnMut(&Row<'_>, &mut WriteBatch) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut statement = conn.prepare(sql)?;
    let mut rows = statement.query([])?;
    let (mut page, mut held, mut bytes) = (Page::default(), 0, 0);
    while let Some(row) = rows.next()? {
        put(row, &mut page.batch)?;
        held += 1;
        bytes += size(row)?;
        if held == ROWS || bytes >= BYTES {
            take(std::mem::take(&mut page))?;
            (held, bytes) = (0, 0);
        }
    }
    if held > 0 { take(page) } else { Ok(()) }
}

/// Bytes of a row's texts and blobs.
fn size(row: &Row<'_>) -> Result<usize, Error> {
    let mut bytes = 0;
    for column in 0..row.as_ref().column_count() {
        if let ValueRef::Text(held) | ValueRef::Blob(held) = row.get_ref(column)? {
            bytes += held.len();
        }
    }
    Ok(bytes)
}

fn each_identity(conn: &Connection, take: &mut dyn FnMut(Page) -> Result<(), Error>) -> Result<(), Error> {
    let mut by_hour: BTreeMap<Option<Timestamp>, (WriteBatch, usize)> = BTreeMap::new();
    sqlite::each_entry(conn, |hour, key, entry| {
        let (held, bytes) = by_hour.entry(hour).or_default();
        // What is known of an order or a checkout grows with its reports.
        *bytes += if let Entry::Event(_) = &entry { 0 } else { entry.to_bytes().len() };
        held.identities.push((0, key, entry));
        if held.identities.len() < ROWS && *bytes < BYTES {
            return Ok(());
        }
        *bytes = 0;
        take(Page { batch: std::mem::take(held), seen: hour })
    })?;
    by_hour.into_iter().try_for_each(|(seen, (batch, _))| take(Page { batch, seen }))
}

/// The site in a column; None where it is empty.
fn site_of(row: &Row<'_>, column: usize) -> Result<Option<SiteId>, Error> {
    let name = row.get_ref(column)?.as_str().map_err(|_| Error::Corrupt("a site".into()))?;
    if name.is_empty() { Ok(None) } else { SiteId::parse(name).map(Some).map_err(|_| Error::Corrupt("a site".into())) }
}

fn cell(row: &Row<'_>) -> Result<(u16, CellKey, CellValue), Error> {
    let corrupt = |what: &str| Error::Corrupt(format!("a cell's {what}"));
    let mut value = CellValue::default();
    read::add_cell(&mut value, row, 0)?;
    let key = CellKey {
        site: site_of(row, 4)?.ok_or_else(|| corrupt("site"))?,
        metric: Metric::from_number(row.get(5)?).ok_or_else(|| corrupt("metric"))?,
        cell: cell_start(row.get(6)?),
        dim: row.get(7)?,
        crawler: row.get(8)?,
    };
    Ok((row.get(9)?, key, value))
}

fn order(row: &Row<'_>) -> Result<(u16, SiteId, OrderView), Error> {
    let corrupt = |what: &str| Error::Corrupt(format!("an order's {what}"));
    let site = site_of(row, 0)?.ok_or_else(|| corrupt("site"))?;
    let total = match (row.get::<_, Option<i64>>(4)?, row.get::<_, Option<String>>(5)?) {
        (Some(amount_minor), Some(code)) => Some(Money { amount_minor, currency: Currency::parse(&code).map_err(|_| corrupt("currency"))? }),
        _ => None,
    };
    let view = OrderView {
        order_id: row.get(1)?,
        at: row.get::<_, Option<i64>>(2)?.map(Timestamp::from_micros),
        person: row.get(3)?,
        total,
        units: row.get(6)?,
        refunded: unpack(&row.get::<_, Vec<u8>>(7)?, "what an order gave back")?,
        sales: unpack(&row.get::<_, Vec<u8>>(8)?, "an order's sales")?,
    };
    Ok((events_partition(&site, KeyKind::Order, &view.order_id), site, view))
}

fn label(row: &Row<'_>) -> Result<(SiteId, Label, String, LabelValue), Error> {
    let corrupt = |what: &str| Error::Corrupt(format!("a label's {what}"));
    let value = LabelValue { at: Timestamp::from_micros(row.get(3)?), event_id: row.get(4)?, value: row.get(5)? };
    let label = Label::from_number(row.get(1)?).ok_or_else(|| corrupt("kind"))?;
    Ok((site_of(row, 0)?.ok_or_else(|| corrupt("site"))?, label, row.get(2)?, value))
}

fn quarantined(row: &Row<'_>) -> Result<QuarantineRow, Error> {
    let (partition, offset) = unplace(row.get(2)?);
    Ok(QuarantineRow {
        site: site_of(row, 0)?,
        event_id: row.get(3)?,
        received_at: Timestamp::from_micros(row.get(1)?),
        partition,
        offset,
        code: row.get(4)?,
        message: row.get(5)?,
        pointer: row.get(6)?,
        raw: Bytes::from(row.get::<_, Vec<u8>>(7)?),
    })
}
