//! What a batch makes of one partition of `events`, and the journal that makes it whole. The store has no transaction over its tables; values are
//! absolute, so that a batch may be written again, but only as the very same batch: cells that include it beside a cursor that does not would be
//! counted on twice.
//!
//! Therefore a batch's part of a partition is first written as one piece, acknowledged, before any of it is. Whoever takes the partition over does
//! again what the journal has behind the cursor, whole, and only then reads the cursor. A piece that was not whole was not begun. Pieces stay for
//! the safety window, and the latest always: after a node was killed, all that are left are done again, see [`super::Scylla::recover`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::listing::{Line, What};
use super::rows::{pack, pack_checkout, pack_order, unpack};
use super::{Scylla, stamp};
use crate::archive::rollup::{cell_number, cell_start};
use crate::archive::{Books, CellKey, CellValue, Cursor, Error, Metric, WriteBatch};
use crate::cql::Write;
use crate::event::identity::{CheckoutView, EVENT_MEMORY_SECONDS, Entry, IdentityKey, OrderView};
use crate::event::{SiteId, Timestamp};

const PUT_CELL: &str = "INSERT INTO cell (site, metric, hour, part, cell, dim, crawler, count0, count1, revenue, people) \
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
const PUT_BOOKS: &str = "INSERT INTO books (site, day, hour, part, books) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?";
const PUT_COUNTS_AT: &str = "INSERT INTO counts_at (site, what, hour, part, at, id) VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
const PUT_IDENTITY: &str = "INSERT INTO identity (key, entry, seen) VALUES (?, ?, ?) USING TIMESTAMP ? AND TTL ?";
const TAKE_IDENTITY: &str = "DELETE FROM identity USING TIMESTAMP ? WHERE key = ?";
const PUT_ORDER: &str = "INSERT INTO orders (site, order_id, part, body) VALUES (?, ?, ?, ?) USING TIMESTAMP ?";
const TAKE_ORDER: &str = "DELETE FROM orders USING TIMESTAMP ? WHERE site = ? AND order_id = ?";
const PUT_CHECKOUT: &str = "INSERT INTO checkout (site, checkout, part, body) VALUES (?, ?, ?, ?) USING TIMESTAMP ?";
const TAKE_CHECKOUT: &str = "DELETE FROM checkout USING TIMESTAMP ? WHERE site = ? AND checkout = ?";
const PUT_CURSOR: &str = "INSERT INTO cursor (part, next, received_at) VALUES (?, ?, ?) USING TIMESTAMP ?";
const PUT_JOURNAL: &str = "INSERT INTO journal (part, next, writer, chunk, chunks, body) VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
const GET_JOURNAL: &str = "SELECT next, writer, chunk, chunks, body FROM journal WHERE part = ? AND next > ?";
const TAKE_JOURNAL: &str = "DELETE FROM journal USING TIMESTAMP ? WHERE part = ? AND next < ?";

/// Bytes of one chunk of a piece.
const CHUNK: usize = 128 << 10;

/// How much longer than identity's memory an event's entry lives, in seconds: the store counts from the write, identity from the partition's latest
/// `received_at`, which stands still while the archiver does. An archiver that was away for longer counts anew what senders repeated meanwhile.
const AWAY: i64 = 30 * 86_400;

/// What a batch, or a correction by retention, makes of one partition. All values absolute.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Part {
    /// Write timestamp of all of it.
    pub(super) stamp: i64,
    /// Where the partition is then: next offset, received_at. None leaves that as it is.
    cursor: Option<(u64, i64)>,
    /// The partition's greatest received_at.
    seen: i64,
    cells: Vec<StoredCell>,
    books: Vec<(SiteId, i64, Vec<u8>)>,
    identities: Vec<([u8; 16], Option<StoredEntry>)>,
    orders: Vec<StoredView>,
    checkouts: Vec<StoredView>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredCell {
    site: SiteId,
    metric: Metric,
    cell: i64,
    dim: String,
    crawler: bool,
    counts: [i64; 2],
    revenue: Vec<u8>,
    people: Vec<u8>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredEntry {
    bytes: Vec<u8>,
    lasting: bool,
}

/// An order or a checkout; without bytes it goes.
#[derive(Debug, Serialize, Deserialize)]
struct StoredView {
    site: SiteId,
    id: String,
    bytes: Option<Vec<u8>>,
    /// When it counts.
    times: Vec<i64>,
    last_at: Option<i64>,
}

/// The parts of a batch, by partition; `stamp` says when each is written, `seen` what its greatest received_at is where the batch does not.
pub(super) fn parts(batch: WriteBatch) -> BTreeMap<u16, Part> {
    let mut parts: BTreeMap<u16, Part> = BTreeMap::new();
    for (part, cursor) in batch.cursors {
        let known = parts.entry(part).or_default();
        known.cursor = Some((cursor.next, cursor.received_at.micros()));
        known.seen = cursor.received_at.micros();
    }
    for (part, key, value) in batch.cells {
        parts.entry(part).or_default().put_cell(key, &value);
    }
    for (part, site, hour, books) in batch.books {
        parts.entry(part).or_default().books.push((site, hour.micros(), pack::<Books>(&books)));
    }
    for (part, key, entry) in batch.identities {
        parts.entry(part).or_default().put_identity(key, Some(&entry));
    }
    for (part, site, order) in batch.orders {
        parts.entry(part).or_default().put_order(site, &order);
    }
    for (part, site, checkout) in batch.checkouts {
        parts.entry(part).or_default().put_checkout(site, &checkout);
    }
    parts
}

impl Part {
    /// Where the partition is then.
    pub(super) fn cursor(&self) -> Option<Cursor> {
        self.cursor.map(|(next, received_at)| Cursor { next, received_at: Timestamp::from_micros(received_at) })
    }

    /// Of a partition that stands at `cursor`, for corrections.
    pub(super) fn at(cursor: Cursor) -> Self {
        Self { seen: cursor.received_at.micros(), ..Self::default() }
    }

    /// Of a partition that comes to stand at `cursor`, and nothing else.
    pub(super) fn ending_at(cursor: Cursor) -> Self {
        Self { cursor: Some((cursor.next, cursor.received_at.micros())), ..Self::at(cursor) }
    }

    /// Takes over what the batch did not say.
    pub(super) fn complete(&mut self, stamp: i64, cursor: Cursor) {
        self.stamp = stamp;
        if self.cursor.is_none() {
            self.seen = cursor.received_at.micros();
        }
    }

    pub(super) fn put_cell(&mut self, key: CellKey, value: &CellValue) {
        let CellKey { site, metric, cell, dim, crawler } = key;
        let revenue = if value.revenue.is_empty() { Vec::new() } else { pack(&value.revenue) };
        self.cells.push(StoredCell {
            site,
            metric,
            cell: cell_number(cell),
            dim,
            crawler,
            counts: value.counts,
            revenue,
            people: value.people.0.clone(),
        });
    }

    pub(super) fn put_identity(&mut self, key: IdentityKey, entry: Option<&Entry>) {
        self.identities.push((key.0, entry.map(|entry| StoredEntry { bytes: entry.to_bytes(), lasting: !matches!(entry, Entry::Event(_)) })));
    }

    pub(super) fn put_order(&mut self, site: SiteId, order: &OrderView) {
        let mut times: Vec<i64> = order.sales.iter().map(|sale| sale.at).chain(order.at).map(Timestamp::micros).collect();
        times.sort_unstable();
        times.dedup();
        if times.is_empty() {
            // One that counts for nothing is still to be found by retention.
            times.push(self.seen);
        }
        self.orders.push(StoredView { site, id: order.order_id.clone(), bytes: Some(pack_order(order)), times, last_at: None });
    }

    pub(super) fn put_checkout(&mut self, site: SiteId, view: &CheckoutView) {
        let mut times: Vec<i64> =
            view.steps.iter().map(|step| step.at).chain(view.completed.map(|completion| completion.at)).map(Timestamp::micros).collect();
        times.sort_unstable();
        times.dedup();
        self.checkouts.push(StoredView {
            site,
            id: view.checkout.clone(),
            bytes: Some(pack_checkout(view)),
            times,
            last_at: Some(view.last_at.micros()),
        });
    }

    pub(super) fn take_order(&mut self, site: SiteId, id: String) {
        self.orders.push(StoredView { site, id, bytes: None, times: Vec::new(), last_at: None });
    }

    pub(super) fn take_checkout(&mut self, site: SiteId, id: String) {
        self.checkouts.push(StoredView { site, id, bytes: None, times: Vec::new(), last_at: None });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.cells.is_empty() && self.identities.is_empty() && self.orders.is_empty() && self.checkouts.is_empty() && self.books.is_empty()
    }

    /// Cells and books, and the times at which orders and checkouts count; with what lists them.
    pub(super) fn counted(&self, part: u16, writes: &mut Vec<Write>, lines: &mut BTreeMap<Line, i64>) {
        let (number, stamp) = (part as i16, self.stamp);
        for StoredCell { site, metric, cell, dim, crawler, counts: [count0, count1], revenue, people } in &self.cells {
            let hour = cell.div_euclid(4) as i32;
            let bytes = 60 + dim.len() + revenue.len() + people.len();
            let name = site.as_str().to_owned();
            let columns =
                (name, *metric as i8, hour, number, *cell as i32, dim.clone(), *crawler, *count0, *count1, revenue.clone(), people.clone(), stamp);
            writes.push(Write::new(PUT_CELL, columns).beside((site, *metric, hour, part), bytes));
            lines.insert(Line::at(site.as_str(), What::Cells(*metric), cell_start(*cell), part, 0, 0), stamp);
        }
        for (site, hour, books) in &self.books {
            let day = Timestamp::from_micros(*hour).utc_day();
            writes.push(Write::new(PUT_BOOKS, (site.as_str().to_owned(), day, *hour, number, books.clone(), stamp)));
            lines.insert(Line { hour: 0, ..Line::at(site.as_str(), What::Books, Timestamp::from_micros(*hour), part, 0, 0) }, stamp);
        }
        let mut counts = |what: What, view: &StoredView, at: i64| {
            let line = Line::at(view.site.as_str(), what, Timestamp::from_micros(at), part, 0, 0);
            let columns = (view.site.as_str().to_owned(), what.number(), line.full_hour(), number, at, view.id.clone(), stamp);
            writes.push(Write::new(PUT_COUNTS_AT, columns).beside((&view.site, what, line.full_hour(), part), 40 + view.id.len()));
            lines.insert(line, stamp);
        };
        self.orders.iter().for_each(|view| view.times.iter().for_each(|at| counts(What::Sales, view, *at)));
        for view in &self.checkouts {
            view.times.iter().for_each(|at| counts(What::Steps, view, *at));
            view.last_at.into_iter().for_each(|at| counts(What::LastSigns, view, at));
        }
    }

    /// Identity, orders and checkouts.
    fn remembered(&self, part: u16, writes: &mut Vec<Write>) {
        let stamp = self.stamp;
        for (key, entry) in &self.identities {
            let key = key.to_vec();
            writes.push(match entry {
                Some(StoredEntry { bytes, lasting }) => {
                    let ttl = if *lasting { 0 } else { (EVENT_MEMORY_SECONDS + AWAY) as i32 };
                    Write::new(PUT_IDENTITY, (key, bytes.clone(), self.seen, stamp, ttl))
                }
                None => Write::new(TAKE_IDENTITY, (stamp, key)),
            });
        }
        for (views, put, take) in [(&self.orders, PUT_ORDER, TAKE_ORDER), (&self.checkouts, PUT_CHECKOUT, TAKE_CHECKOUT)] {
            for StoredView { site, id, bytes, .. } in views {
                let site = site.as_str().to_owned();
                writes.push(match bytes {
                    Some(bytes) => Write::new(put, (site, id.clone(), part as i16, bytes.clone(), stamp)),
                    None => Write::new(take, (stamp, site, id.clone())),
                });
            }
        }
    }

    /// Reads a piece of the journal.
    pub(super) fn read(piece: &[u8]) -> Result<Self, Error> {
        unpack(piece, "the journal")
    }

    /// What makes it whole.
    pub(super) fn journal(&self, part: u16, next: u64, writes: &mut Vec<Write>) {
        let (writer, bytes) = (rand::random::<i64>(), pack(self));
        let chunks: Vec<&[u8]> = bytes.chunks(CHUNK).collect();
        for (number, chunk) in (0i32..).zip(&chunks) {
            writes.push(Write::new(PUT_JOURNAL, (part as i16, next as i64, writer, number, chunks.len() as i32, chunk.to_vec(), self.stamp)));
        }
    }
}

impl Scylla {
    /// Writes parts that are whole in the journal when `journaled` offsets are given: all cells before what is remembered, and that before the
    /// cursors, each step acknowledged before the next.
    pub(super) async fn apply(&self, parts: &BTreeMap<u16, Part>, journaled: &BTreeMap<u16, u64>) -> Result<(), Error> {
        let mut writes = Vec::new();
        for (part, next) in journaled {
            parts.get(part).into_iter().for_each(|of| of.journal(*part, *next, &mut writes));
        }
        self.cluster.write(std::mem::take(&mut writes)).await?;
        let mut lines = BTreeMap::new();
        parts.iter().for_each(|(part, of)| of.counted(*part, &mut writes, &mut lines));
        let lines = self.listing.put(lines, &mut writes);
        self.cluster.write(std::mem::take(&mut writes)).await?;
        self.listing.remember(lines);
        parts.iter().for_each(|(part, of)| of.remembered(*part, &mut writes));
        self.cluster.write(std::mem::take(&mut writes)).await?;
        for (part, of) in parts {
            if let Some((next, received_at)) = of.cursor {
                writes.push(Write::new(PUT_CURSOR, (*part as i16, next as i64, received_at, of.stamp)));
            }
        }
        Ok(self.cluster.write(writes).await?)
    }

    /// The whole pieces of a partition's journal behind an offset, the earliest first, as [`Part::read`] reads them.
    pub(super) async fn journaled(&self, part: u16, behind: i64) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        let rows: Vec<(i64, i64, i32, i32, Vec<u8>)> = self.cluster.rows(GET_JOURNAL, (part as i16, behind)).await?;
        let mut pieces: BTreeMap<(i64, i64), (i32, i32, Vec<u8>)> = BTreeMap::new();
        for (next, writer, chunk, chunks, body) in rows {
            let (found, of, bytes) = pieces.entry((next, writer)).or_insert((0, chunks, Vec::new()));
            // They come in order; after a gap no count is right.
            if chunk == *found && chunks == *of {
                *found += 1;
                bytes.extend(body);
            }
        }
        let whole = pieces.into_iter().filter(|(_, (found, of, _))| found == of);
        Ok(whole.map(|((next, _), (_, _, bytes))| (next as u64, bytes)).collect())
    }
}

/// What removes a partition's pieces below an offset.
pub(super) fn forget(part: u16, below: u64) -> Result<Write, Error> {
    let stamp = stamp::of(stamp::GENERATION, below)?;
    Ok(Write::new(TAKE_JOURNAL, (stamp, part as i16, below as i64)))
}
