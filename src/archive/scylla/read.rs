//! Questions to all that is counted. Reads which partitions there are first, then those, a bounded number at once, paged. Must never write.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, stream};

use super::listing::{ALL_DAYS, Line, Listing, What};
use super::merge::merge;
use super::rows::{unpack, unpack_checkout, unpack_order};
use super::{Scylla, label, stamp};
use crate::archive::rollup::{cell_number, counted_steps};
use crate::archive::{Books, Bots, CellKey, CellValue, Cursor, Error, Label, LabelValue, Metric, People, QuarantineRow};
use crate::cql::Cluster;
use crate::event::identity::{CheckoutView, Entry, IdentityKey, OrderView, Sale, StepCount};
use crate::event::{PARTITIONS, SiteId, Timestamp};

const CURSOR: &str = "SELECT next, received_at FROM cursor WHERE part = ?";
const IDENTITY: &str = "SELECT key, entry, seen, WRITETIME(entry) FROM identity WHERE key = ?";
const IDENTITIES: &str = "SELECT key, entry, seen, WRITETIME(entry) FROM identity WHERE key IN ?";
const CELL: &str = "SELECT count0, count1, revenue, people, WRITETIME(count0) FROM cell \
     WHERE site = ? AND metric = ? AND hour = ? AND part = ? AND cell = ? AND dim = ? AND crawler = ?";
const CELLS: &str = "SELECT dim, crawler, count0, count1, revenue, people FROM cell \
     WHERE site = ? AND metric = ? AND hour = ? AND part = ? AND cell >= ? AND cell < ?";
const BOOKS_OF: &str = "SELECT books, WRITETIME(books) FROM books WHERE site = ? AND day = ? AND hour = ? AND part = ?";
const BOOKS: &str = "SELECT hour, books FROM books WHERE site = ? AND day = ? AND hour >= ? AND hour < ?";
const ORDER: &str = "SELECT part, body, WRITETIME(body) FROM orders WHERE site = ? AND order_id = ?";
const CHECKOUT: &str = "SELECT part, body, WRITETIME(body) FROM checkout WHERE site = ? AND checkout = ?";
const COUNTS_AT: &str = "SELECT at, id FROM counts_at WHERE site = ? AND what = ? AND hour = ? AND part = ? AND at >= ? AND at < ?";
const COUNTS_AFTER: &str =
    "SELECT at, id FROM counts_at WHERE site = ? AND what = ? AND hour = ? AND part = ? AND (at, id) > (?, ?) AND (at, id) < (?, ?) LIMIT ?";
const LABEL: &str = "SELECT value FROM label WHERE site = ? AND label = ? AND dim = ?";
const LINKED: &str = "SELECT other FROM link WHERE site = ? AND person = ?";
const SITES: &str = "SELECT name FROM site WHERE one = 0";
const QUARANTINE: &str = "SELECT received_at, pos, event_id, code, message, pointer, raw, chunks FROM quarantine \
     WHERE site = ? AND day = ? AND part = ? AND bucket = ? AND (received_at, pos) > (?, ?) LIMIT ?";

/// Partitions whose rows are summed at once.
const SUMMED: usize = 32;
/// Orders or checkouts fetched at once.
const FETCHED: usize = 500;

/// A row with what it is to be corrected by: its partition and when it was written.
pub(super) struct Stood<T> {
    pub(super) part: u16,
    pub(super) written: i64,
    pub(super) value: T,
}

type StoredCounts = (i64, i64, Vec<u8>, Vec<u8>);

impl Scylla {
    /// Where a partition is, as stored.
    pub(super) async fn stored_cursor(&self, part: u16) -> Result<Cursor, Error> {
        let rows: Vec<(i64, i64)> = self.cluster.rows(CURSOR, (part as i16,)).await?;
        Ok(rows.first().map_or_else(Cursor::default, |(next, at)| Cursor { next: *next as u64, received_at: Timestamp::from_micros(*at) }))
    }

    pub(super) async fn stored_cursors(&self) -> Result<Vec<Cursor>, Error> {
        Cluster::gather((0..PARTITIONS).map(|part| self.stored_cursor(part)).collect()).await
    }

    /// The identity entries of keys, in their order, each with the received_at it was written at, and when.
    pub(super) async fn stored_identities(&self, keys: &[IdentityKey]) -> Result<Vec<(IdentityKey, Entry, Timestamp, i64)>, Error> {
        let rows: Vec<(Vec<u8>, Vec<u8>, i64, i64)> = self.cluster.rows_of(IDENTITY, IDENTITIES, keys.iter().map(|key| key.0.to_vec())).await?;
        let mut found = HashMap::with_capacity(rows.len());
        for (key, bytes, seen, written) in rows {
            let known = key.try_into().ok().map(IdentityKey).zip(Entry::from_bytes(&bytes));
            // Taken for unknown, it would be counted again.
            let (key, entry) = known.ok_or_else(|| Error::Corrupt("an identity entry".into()))?;
            found.insert(key, (entry, Timestamp::from_micros(seen), written));
        }
        let ordered = keys.iter().filter_map(|key| found.remove(key).map(|(entry, seen, written)| (*key, entry, seen, written)));
        Ok(ordered.collect())
    }

    /// A partition's cell.
    pub(super) async fn stored_cell(&self, part: u16, key: &CellKey) -> Result<Option<Stood<CellValue>>, Error> {
        let hour = stamp::hour(key.cell);
        let named = (key.site.as_str(), key.metric as i8, hour, part as i16, cell_number(key.cell) as i32, &key.dim, key.crawler);
        type Row = (i64, i64, Vec<u8>, Vec<u8>, i64);
        let mut rows: Vec<Row> = self.cluster.rows(CELL, named).await?;
        let Some((count0, count1, revenue, people, written)) = rows.pop() else { return Ok(None) };
        Ok(Some(Stood { part, written, value: value_of((count0, count1, revenue, people))? }))
    }

    pub(super) async fn stored_books(&self, part: u16, site: &SiteId, hour: Timestamp) -> Result<Option<(Books, i64)>, Error> {
        let rows: Vec<(Vec<u8>, i64)> = self.cluster.rows(BOOKS_OF, (site.as_str(), hour.utc_day(), hour.micros(), part as i16)).await?;
        rows.first().map(|(bytes, written)| Ok((unpack(bytes, "books")?, *written))).transpose()
    }

    pub(super) async fn stored_order(&self, site: &SiteId, id: &str) -> Result<Option<Stood<OrderView>>, Error> {
        let mut rows: Vec<(i16, Vec<u8>, i64)> = self.cluster.rows(ORDER, (site.as_str(), id)).await?;
        let Some((part, bytes, written)) = rows.pop() else { return Ok(None) };
        Ok(Some(Stood { part: part as u16, written, value: unpack_order(id.to_owned(), &bytes)? }))
    }

    pub(super) async fn stored_checkout(&self, site: &SiteId, id: &str) -> Result<Option<Stood<CheckoutView>>, Error> {
        let mut rows: Vec<(i16, Vec<u8>, i64)> = self.cluster.rows(CHECKOUT, (site.as_str(), id)).await?;
        let Some((part, bytes, written)) = rows.pop() else { return Ok(None) };
        Ok(Some(Stood { part: part as u16, written, value: unpack_checkout(id.to_owned(), &bytes)? }))
    }

    /// See [`crate::archive::Archive::totals`].
    pub(super) async fn sum(
        &self,
        site: &SiteId,
        metric: Metric,
        from: Timestamp,
        to: Timestamp,
        bots: Bots,
    ) -> Result<Vec<(String, CellValue)>, Error> {
        let lines = Listing::between(&self.cluster, site.as_str(), What::Cells(metric), from, to).await?;
        let bounds = [from, to].map(|at| cell_number(at).clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32);
        let asked = lines.into_iter().map(|line| self.counts_of(site, metric, line, bounds));
        let mut answers = stream::iter(asked.collect::<Vec<_>>()).buffer_unordered(SUMMED);
        let mut sums: HashMap<String, CellValue> = HashMap::new();
        while let Some(rows) = answers.next().await {
            for (dim, crawler, count0, count1, revenue, people) in rows? {
                let wanted = match bots {
                    Bots::Include => true,
                    Bots::Exclude => !crawler,
                    Bots::Only => crawler,
                };
                if wanted {
                    sums.entry(dim).or_default().merge(&value_of((count0, count1, revenue, people))?);
                }
            }
        }
        let mut all: Vec<_> = sums.into_iter().collect();
        all.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(all)
    }

    async fn counts_of(
        &self,
        site: &SiteId,
        metric: Metric,
        line: Line,
        [first, end]: [i32; 2],
    ) -> Result<Vec<(String, bool, i64, i64, Vec<u8>, Vec<u8>)>, Error> {
        Ok(self.cluster.rows(CELLS, (site.as_str(), metric as i8, line.full_hour(), line.part as i16, first, end)).await?)
    }

    /// The orders or checkouts that count, or did, at times in `from..to`.
    pub(super) async fn counting(&self, site: &SiteId, what: What, from: Timestamp, to: Timestamp) -> Result<BTreeSet<String>, Error> {
        let lines = Listing::between(&self.cluster, site.as_str(), what, from, to).await?;
        let asked = lines.iter().map(|line| {
            let values = (site.as_str(), what.number(), line.full_hour(), line.part as i16, from.micros(), to.micros());
            self.cluster.rows::<(i64, String)>(COUNTS_AT, values)
        });
        Ok(Cluster::gather(asked.collect()).await?.into_iter().flatten().map(|(_, id)| id).collect())
    }

    /// See [`crate::archive::Archive::sales`].
    pub(super) async fn sales_between(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<Sale>, Error> {
        let ids: Vec<String> = self.counting(site, What::Sales, from, to).await?.into_iter().collect();
        let mut found = Vec::new();
        for ids in ids.chunks(FETCHED) {
            let orders = Cluster::gather(ids.iter().map(|id| self.stored_order(site, id)).collect()).await?;
            let sales = orders.into_iter().flatten().flat_map(|order| order.value.sales);
            found.extend(sales.filter(|sale| from <= sale.at && sale.at < to));
        }
        Ok(found)
    }

    /// See [`crate::archive::Archive::steps`].
    pub(super) async fn steps_between(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<StepCount>, Error> {
        let ids: Vec<String> = self.counting(site, What::Steps, from, to).await?.into_iter().collect();
        let mut found = Vec::new();
        for ids in ids.chunks(FETCHED) {
            let checkouts = Cluster::gather(ids.iter().map(|id| self.stored_checkout(site, id)).collect()).await?;
            for CheckoutView { steps, completed, .. } in checkouts.into_iter().flatten().map(|checkout| checkout.value) {
                found.extend(counted_steps(steps, completed).into_iter().filter(|step| from <= step.at && step.at < to));
            }
        }
        Ok(found)
    }

    /// See [`crate::archive::Archive::checkouts`].
    pub(super) async fn checkouts_between(
        &self,
        site: &SiteId,
        from: Timestamp,
        to: Timestamp,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<CheckoutView>, Error> {
        let after = after.filter(|(at, _)| *at >= from).map(|(at, id)| (at.micros(), id));
        // No checkout is without a name.
        let mut rest = after.unwrap_or((from.micros(), String::new()));
        let mut hours: BTreeMap<i32, Vec<Line>> = BTreeMap::new();
        for line in Listing::between(&self.cluster, site.as_str(), What::LastSigns, Timestamp::from_micros(rest.0), to).await? {
            hours.entry(line.full_hour()).or_default().push(line);
        }
        let mut found = Vec::new();
        for lines in hours.values() {
            loop {
                let want = (limit - found.len()).clamp(64, FETCHED);
                let signs = self.last_signs(site, lines, &rest, to, want).await?;
                let views = Cluster::gather(signs.iter().map(|(_, id)| self.stored_checkout(site, id)).collect()).await?;
                // Where a later sign was seen, this one is no longer the last.
                let last =
                    signs.iter().zip(views).filter_map(|((at, _), view)| view.map(|view| view.value).filter(|view| view.last_at.micros() == *at));
                found.extend(last);
                if found.len() >= limit {
                    found.truncate(limit);
                    return Ok(found);
                }
                let more = signs.len() >= want;
                rest = signs.into_iter().next_back().unwrap_or(rest);
                if !more {
                    break;
                }
            }
        }
        Ok(found)
    }

    async fn last_signs(
        &self,
        site: &SiteId,
        lines: &[Line],
        after: &(i64, String),
        to: Timestamp,
        want: usize,
    ) -> Result<Vec<(i64, String)>, Error> {
        let fetch = |at: usize, behind: Option<(i64, String)>, limit: usize| -> BoxFuture<'_, Result<Vec<(i64, String)>, Error>> {
            Box::pin(async move {
                let Some(line) = lines.get(at) else { return Ok(Vec::new()) };
                let (at, id) = behind.unwrap_or_else(|| after.clone());
                let values = (site.as_str(), What::LastSigns.number(), line.full_hour(), line.part as i16, at, id, to.micros(), "", limit as i32);
                Ok(self.cluster.rows(COUNTS_AFTER, values).await?)
            })
        };
        merge(lines.len(), want, false, Clone::clone, fetch).await
    }

    /// See [`crate::archive::Archive::labels`].
    pub(super) async fn labels_of(&self, site: &SiteId, label: Label, dims: &[String]) -> Result<Vec<(String, LabelValue)>, Error> {
        let mut found = Vec::new();
        for dims in dims.chunks(FETCHED) {
            let asked = dims.iter().map(|dim| self.cluster.rows::<(Vec<u8>,)>(LABEL, (site.as_str(), label as i8, dim)));
            for (dim, rows) in dims.iter().zip(Cluster::gather(asked.collect()).await?) {
                if let Some((bytes,)) = rows.first() {
                    found.push((dim.clone(), label::unpack(bytes)?));
                }
            }
        }
        Ok(found)
    }

    pub(super) async fn linked_to(&self, site: &SiteId, person: [u8; 16]) -> Result<Vec<[u8; 16]>, Error> {
        let rows: Vec<(Vec<u8>,)> = self.cluster.rows(LINKED, (site.as_str(), person.as_slice())).await?;
        rows.into_iter().map(|(other,)| other.try_into().map_err(|_| Error::Corrupt("a link".into()))).collect()
    }

    /// See [`crate::archive::Archive::books`].
    pub(super) async fn books_between(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<(Timestamp, Books)>, Error> {
        let (first, last) = (from.utc_day(), to.utc_day());
        let days = Listing::days(&self.cluster, site.as_str(), What::Books, first..=last).await?.into_keys();
        let asked = days.map(|day| self.cluster.rows::<(i64, Vec<u8>)>(BOOKS, (site.as_str(), day, from.micros(), to.micros())));
        let mut sums: BTreeMap<Timestamp, Books> = BTreeMap::new();
        for (hour, bytes) in Cluster::gather(asked.collect()).await?.into_iter().flatten() {
            sums.entry(Timestamp::from_micros(hour)).or_default().add(&unpack(&bytes, "books")?);
        }
        Ok(sums.into_iter().collect())
    }

    /// See [`crate::archive::Archive::quarantine`].
    pub(super) async fn quarantined(&self, site: &SiteId, after: Option<(Timestamp, u16, u64)>, limit: usize) -> Result<Vec<QuarantineRow>, Error> {
        let after = after.map_or((i64::MIN, -1, -1), |(at, part, offset)| (at.micros(), i32::from(part), offset as i64));
        let first = Timestamp::from_micros(after.0).utc_day();
        let days = Listing::days(&self.cluster, site.as_str(), What::Quarantine, first..=i32::MAX).await?.into_keys();
        let mut found = Vec::new();
        for day in days {
            if found.len() >= limit {
                break;
            }
            let mut lines = Listing::of_day(&self.cluster, site.as_str(), What::Quarantine, day).await?;
            // Listed by hour, and each bucket is read whole.
            lines.iter_mut().for_each(|line| line.hour = 0);
            lines.sort_unstable();
            lines.dedup();
            let fetch = |at: usize, behind: Option<(i64, i32, i64)>, limit: usize| -> BoxFuture<'_, Result<Vec<QuarantineRow>, Error>> {
                let line = lines.get(at).cloned();
                Box::pin(async move {
                    match line {
                        Some(line) => self.quarantined_in(site, &line, behind.unwrap_or(after), limit).await,
                        None => Ok(Vec::new()),
                    }
                })
            };
            let key = |row: &QuarantineRow| (row.received_at.micros(), i32::from(row.partition), row.offset as i64);
            found.extend(merge(lines.len(), limit - found.len(), false, key, fetch).await?);
        }
        Ok(found)
    }

    async fn quarantined_in(&self, site: &SiteId, line: &Line, (at, part, pos): (i64, i32, i64), limit: usize) -> Result<Vec<QuarantineRow>, Error> {
        type Row = (i64, i64, String, String, String, String, Vec<u8>, i32);
        let pos = match i32::from(line.part).cmp(&part) {
            std::cmp::Ordering::Less => i64::MAX,
            std::cmp::Ordering::Equal => pos,
            std::cmp::Ordering::Greater => -1,
        };
        let values = (site.as_str(), line.day, line.part as i16, line.bucket, at, pos, limit as i32);
        let rows: Vec<Row> = self.cluster.rows(QUARANTINE, values).await?;
        let mut found = Vec::with_capacity(rows.len());
        for (received_at, pos, event_id, code, message, pointer, raw, chunks) in rows {
            let raw = if chunks == 0 { raw } else { self.body(site.as_str(), line.part, pos, chunks).await? };
            let (received_at, partition, offset) = (Timestamp::from_micros(received_at), line.part, pos as u64);
            found.push(QuarantineRow {
                site: Some(site.clone()),
                event_id,
                received_at,
                partition,
                offset,
                code,
                message,
                pointer,
                raw: Bytes::from(raw),
            });
        }
        Ok(found)
    }

    pub(super) async fn all_sites(&self) -> Result<Vec<SiteId>, Error> {
        let rows: Vec<(String,)> = self.cluster.rows(SITES, ()).await?;
        rows.into_iter().map(|(name,)| SiteId::parse(&name).map_err(|_| Error::Corrupt("a site".into()))).collect()
    }

    /// The days that hold event rows of any site, each with the greatest day that any of them was taken on.
    pub(super) async fn all_days(&self) -> Result<BTreeMap<i32, i32>, Error> {
        let sites = self.all_sites().await?;
        let mut days: BTreeMap<i32, i32> = BTreeMap::new();
        for of_site in Cluster::gather(sites.iter().map(|site| Listing::days(&self.cluster, site.as_str(), What::Events, ALL_DAYS)).collect()).await?
        {
            for (day, taken) in of_site {
                let known = days.entry(day).or_insert(taken);
                *known = taken.max(*known);
            }
        }
        Ok(days)
    }
}

fn value_of((count0, count1, revenue, people): StoredCounts) -> Result<CellValue, Error> {
    let revenue = if revenue.is_empty() { BTreeMap::new() } else { unpack(&revenue, "a cell's revenue")? };
    Ok(CellValue { counts: [count0, count1], revenue, people: People(people) })
}
