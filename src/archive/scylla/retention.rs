//! What retention takes, by whole UTC days as the embedded archive does: all that counts in days whose rows are gone, and what identity remembers
//! of it; then the rows. Called by the archiver between its batches.
//!
//! Rows that are only ever inserted also have a time to live, a month longer than the retention, so that none outlives it for long whatever
//! happens: look-ups, which are not removed here, go by that alone, and a place without its row is passed over. (So a day's rows stay together only
//! where the last of them was taken within a month of the first: of a day to which something came later than that, the earlier rows go before it,
//! while what they count for stays until the day goes.)
//!
//! Everything removed is removed USING TIMESTAMP of the moment it belongs to, so that what comes of the same days later is not touched: rows before
//! the first day that stays, values before the partition's next batch. What is corrected goes through the journal, so that it is done whole.
//!
//! An archiver corrects and removes what is of its own partitions alone; the others do the same with theirs. A correction is a function of when it is
//! made, not of the log alone: of one that an archiver makes after it lost the partition, what the next owner wrote meanwhile stays. An archiver therefore
//! stops as soon as it hears that a partition goes. (One that is stopped in the midst of a correction, for longer than its session, may leave a cell of a day
//! that stays without it: `contrail audit` tells.)

use std::collections::{BTreeMap, BTreeSet};

use super::Scylla;
use super::journal::Part;
use super::listing::{ALL_DAYS, Line, Listing, What};
use super::read::Stood;
use super::stamp;
use crate::archive::rollup::Additions;
use crate::archive::{CellKey, CellValue, Cursor, Error, Metric};
use crate::cql::{Cluster, Write};
use crate::event::identity::{CheckoutView, Entry, IdentityKey, OrderView, checkout_keys, forget, order_key};
use crate::event::{SiteId, Timestamp};

const TAKE_CELLS: &str = "DELETE FROM cell USING TIMESTAMP ? WHERE site = ? AND metric = ? AND hour = ? AND part = ?";
const TAKE_COUNTS_AT: &str = "DELETE FROM counts_at USING TIMESTAMP ? WHERE site = ? AND what = ? AND hour = ? AND part = ?";
const TAKE_BOOKS: &str = "DELETE FROM books USING TIMESTAMP ? WHERE site = ? AND day = ? AND hour = ? AND part = ?";
const TAKE_EVENTS: &str = "DELETE FROM event USING TIMESTAMP ? WHERE site = ? AND day = ? AND part = ? AND bucket = ?";
const TAKE_QUARANTINE: &str = "DELETE FROM quarantine USING TIMESTAMP ? WHERE site = ? AND day = ? AND part = ? AND bucket = ?";

/// All metrics.
const METRICS: [Metric; 6] = [Metric::Searches, Metric::EmptySearches, Metric::Views, Metric::Pages, Metric::Sold, Metric::Steps];

/// Seconds of a UTC day.
const DAY: i64 = 86_400;

/// Orders or checkouts corrected at once.
const CORRECTED: usize = 500;

/// What goes: of these partitions, the days of which nothing stays: those before a day, but for some.
struct Gone {
    before: i32,
    kept: BTreeSet<i32>,
    parts: BTreeSet<u16>,
}

impl Gone {
    fn has_part(&self, line: &Line) -> bool {
        self.parts.contains(&line.part)
    }

    fn has_day(&self, day: i32) -> bool {
        day < self.before && !self.kept.contains(&day)
    }

    fn has(&self, at: Timestamp) -> bool {
        self.has_day(at.utc_day())
    }

    /// Start of the first day that stays whatever was taken of it.
    fn until(&self) -> Timestamp {
        Timestamp::ZERO.plus_seconds(i64::from(self.before) * DAY)
    }
}

/// What is corrected of each partition of `events`, and when the latest of what is corrected was written.
struct Corrections<'a> {
    cursors: &'a [Cursor],
    parts: BTreeMap<u16, (Part, i64)>,
    additions: Additions,
}

impl<'a> Corrections<'a> {
    fn new(cursors: &'a [Cursor]) -> Self {
        Self { cursors, parts: BTreeMap::new(), additions: Additions::default() }
    }

    /// The part of a partition that something written at `written` is corrected of.
    fn of(&mut self, part: u16, written: i64) -> &mut Part {
        let cursor = self.cursors.get(usize::from(part)).copied().unwrap_or_default();
        let (known, latest) = self.parts.entry(part).or_insert_with(|| (Part::at(cursor), 0));
        *latest = written.max(*latest);
        known
    }
}

impl Scylla {
    /// See [`crate::archive::Archive::retain`].
    pub(super) async fn take_before(&self, before: Timestamp, partitions: &[u16]) -> Result<(), Error> {
        let before = before.utc_day();
        let days = self.all_days().await?;
        let (old, kept): (Vec<_>, Vec<_>) = days.into_iter().filter(|(day, _)| *day < before).partition(|(_, taken)| *taken < before);
        let gone = Gone { before, kept: kept.into_iter().map(|(day, _)| day).collect(), parts: partitions.iter().copied().collect() };
        let cursors = self.stored_cursors().await?;
        let sites = self.all_sites().await?;
        for site in &sites {
            self.take_cells(site, &gone, &cursors).await?;
            self.take_orders(site, &gone, &cursors).await?;
            self.take_checkouts(site, &gone, &cursors).await?;
            self.take_books(site, &gone, &cursors).await?;
        }
        for site in sites.iter().map(SiteId::as_str).chain([""]) {
            let days = Listing::days(&self.cluster, site, What::Quarantine, i32::MIN..=before - 1).await?.into_keys().collect();
            self.take_rows(site, What::Quarantine, days, &gone).await?;
        }
        // Rows go only once what counts them is gone.
        for site in &sites {
            let days = old.iter().map(|(day, _)| *day).collect();
            self.take_rows(site.as_str(), What::Events, days, &gone).await?;
        }
        Ok(())
    }

    /// The lines of a kind in days that are gone, of the caller's partitions.
    async fn gone_lines(&self, site: &str, what: What, gone: &Gone) -> Result<Vec<Line>, Error> {
        let days = Listing::days(&self.cluster, site, what, ALL_DAYS).await?.into_keys().filter(|day| gone.has_day(*day));
        let lines = Cluster::gather(days.map(|day| Listing::of_day(&self.cluster, site, what, day)).collect()).await?;
        Ok(lines.into_iter().flatten().filter(|line| gone.has_part(line)).collect())
    }

    async fn take_cells(&self, site: &SiteId, gone: &Gone, cursors: &[Cursor]) -> Result<(), Error> {
        for metric in METRICS {
            let lines = self.gone_lines(site.as_str(), What::Cells(metric), gone).await?;
            let stamps = whole(cursors)?;
            let take = |line: &Line| Write::new(TAKE_CELLS, (stamps(line.part), line.site.clone(), metric as i8, line.full_hour(), line.part as i16));
            self.cluster.write(lines.iter().map(take).collect()).await?;
            self.cluster.write(Listing::take(&lines, stamps)).await?;
        }
        Ok(())
    }

    async fn take_orders(&self, site: &SiteId, gone: &Gone, cursors: &[Cursor]) -> Result<(), Error> {
        let lines = self.gone_lines(site.as_str(), What::Sales, gone).await?;
        let orders = self.named(site, What::Sales, &lines).await?;
        for ids in orders.into_iter().collect::<Vec<_>>().chunks(CORRECTED) {
            let known = Cluster::gather(ids.iter().map(|id| self.stored_order(site, id)).collect()).await?;
            let entries = Cluster::gather(ids.iter().map(|id| self.entries(vec![order_key(site, id)])).collect()).await?;
            let mut corrections = Corrections::new(cursors);
            for (order, entries) in known.into_iter().zip(entries) {
                let ours = order.into_iter().filter(|order| gone.parts.contains(&order.part));
                ours.for_each(|order| forget_order(site, order, entries.clone(), gone, &mut corrections));
            }
            self.correct(corrections).await?;
        }
        self.take_counts_at(What::Sales, &lines, cursors).await
    }

    async fn take_checkouts(&self, site: &SiteId, gone: &Gone, cursors: &[Cursor]) -> Result<(), Error> {
        let mut names = BTreeSet::new();
        let mut taken = Vec::new();
        for what in [What::Steps, What::LastSigns] {
            let lines = self.gone_lines(site.as_str(), what, gone).await?;
            names.extend(self.named(site, what, &lines).await?);
            taken.push((what, lines));
        }
        for names in names.into_iter().collect::<Vec<_>>().chunks(CORRECTED) {
            let known = Cluster::gather(names.iter().map(|name| self.stored_checkout(site, name)).collect()).await?;
            let entries = Cluster::gather(names.iter().map(|name| self.entries(checkout_keys(site, name))).collect()).await?;
            let mut corrections = Corrections::new(cursors);
            for (checkout, entries) in known.into_iter().zip(entries) {
                let ours = checkout.into_iter().filter(|checkout| gone.parts.contains(&checkout.part));
                ours.for_each(|checkout| forget_checkout(site, checkout, entries.clone(), gone, &mut corrections));
            }
            self.correct(corrections).await?;
        }
        for (what, lines) in taken {
            self.take_counts_at(what, &lines, cursors).await?;
        }
        Ok(())
    }

    /// The orders or checkouts that these partitions name.
    async fn named(&self, site: &SiteId, what: What, lines: &[Line]) -> Result<BTreeSet<String>, Error> {
        let mut named = BTreeSet::new();
        let hours: BTreeSet<i32> = lines.iter().map(Line::full_hour).collect();
        for hour in hours {
            let start = Timestamp::ZERO.plus_seconds(i64::from(hour) * 3_600);
            named.extend(self.counting(site, what, start, start.plus_seconds(3_600)).await?);
        }
        Ok(named)
    }

    async fn take_counts_at(&self, what: What, lines: &[Line], cursors: &[Cursor]) -> Result<(), Error> {
        let stamps = whole(cursors)?;
        let take =
            |line: &Line| Write::new(TAKE_COUNTS_AT, (stamps(line.part), line.site.clone(), what.number(), line.full_hour(), line.part as i16));
        self.cluster.write(lines.iter().map(take).collect()).await?;
        Ok(self.cluster.write(Listing::take(lines, stamps)).await?)
    }

    async fn take_books(&self, site: &SiteId, gone: &Gone, cursors: &[Cursor]) -> Result<(), Error> {
        let days: Vec<i32> = Listing::days(&self.cluster, site.as_str(), What::Books, i32::MIN..=gone.before - 1).await?.into_keys().collect();
        let lines = Cluster::gather(days.iter().map(|day| Listing::of_day(&self.cluster, site.as_str(), What::Books, *day)).collect()).await?;
        let lines: Vec<Line> = lines.into_iter().flatten().filter(|line| gone.has_part(line)).collect();
        let stamps = whole(cursors)?;
        // Books are kept by the hour, and listed by the day.
        let hours = |line: &Line| {
            let start = i64::from(line.day) * DAY;
            (0..24).map(move |hour| Timestamp::ZERO.plus_seconds(start + hour * 3_600).micros())
        };
        let take =
            |(line, hour): (&Line, i64)| Write::new(TAKE_BOOKS, (stamps(line.part), site.as_str().to_owned(), line.day, hour, line.part as i16));
        self.cluster.write(lines.iter().flat_map(|line| hours(line).map(move |hour| (line, hour))).map(take).collect()).await?;
        Ok(self.cluster.write(Listing::take(&lines, stamps)).await?)
    }

    /// Event rows or quarantined records of these days, all of them taken before the first day that stays.
    async fn take_rows(&self, site: &str, what: What, days: Vec<i32>, gone: &Gone) -> Result<(), Error> {
        let cql = if what == What::Events { TAKE_EVENTS } else { TAKE_QUARANTINE };
        let stamp = gone.until().micros() - 1;
        for day in days {
            let mut lines = Listing::of_day(&self.cluster, site, what, day).await?;
            lines.retain(|line| gone.has_part(line));
            let buckets: BTreeSet<(u16, i64)> = lines.iter().map(|line| (line.part, line.bucket)).collect();
            let take = |(part, bucket): (u16, i64)| Write::new(cql, (stamp, site.to_owned(), day, part as i16, bucket));
            self.cluster.write(buckets.into_iter().map(take).collect()).await?;
            self.cluster.write(Listing::take(&lines, |_| stamp)).await?;
        }
        Ok(())
    }

    /// The entries known under these keys, with when each was written.
    async fn entries(&self, keys: Vec<IdentityKey>) -> Result<Vec<(IdentityKey, Entry, i64)>, Error> {
        let found = self.stored_identities(&keys).await?;
        Ok(found.into_iter().map(|(key, entry, _, written)| (key, entry, written)).collect())
    }

    /// Writes corrections, each partition's whole.
    async fn correct(&self, mut corrections: Corrections<'_>) -> Result<(), Error> {
        let keys: Vec<(u16, CellKey)> = corrections.additions.keys().cloned().collect();
        let cells = Cluster::gather(keys.iter().map(|(part, key)| self.stored_cell(*part, key)).collect()).await?;
        let mut known: BTreeMap<(u16, CellKey), Stood<CellValue>> =
            keys.into_iter().zip(cells).filter_map(|(key, cell)| Some((key, cell?))).collect();
        let written: BTreeMap<(u16, CellKey), i64> = known.iter().map(|(key, cell)| (key.clone(), cell.written)).collect();
        let additions = std::mem::take(&mut corrections.additions);
        for (part, key, value) in additions.apply(|key| known.remove(key).map(|cell| cell.value)) {
            let written = written.get(&(part, key.clone())).copied().unwrap_or_default();
            corrections.of(part, written).put_cell(key, &value);
        }
        let (mut parts, mut journaled) = (BTreeMap::new(), BTreeMap::new());
        for (part, (mut of, latest)) in corrections.parts {
            let cursor = corrections.cursors.get(usize::from(part)).copied().unwrap_or_default();
            of.complete(stamp::correcting(stamp::of(stamp::GENERATION, cursor.next)?, latest)?, cursor);
            if !of.is_empty() {
                journaled.insert(part, cursor.next);
                parts.insert(part, of);
            }
        }
        // What was read may lack what a node lost: the correction would stand for good before what is then written again.
        self.check_nodes(parts.keys().copied()).await?;
        self.apply(&parts, &journaled).await
    }
}

/// The write timestamps that remove all that a partition wrote so far, and nothing of its next batch.
fn whole(cursors: &[Cursor]) -> Result<impl Fn(u16) -> i64 + Send + Sync + use<>, Error> {
    let stamps = cursors.iter().map(|cursor| stamp::of(stamp::GENERATION, cursor.next).map(stamp::whole)).collect::<Result<Vec<i64>, Error>>()?;
    Ok(move |part: u16| stamps.get(usize::from(part)).copied().unwrap_or_else(|| stamp::whole(0)))
}

fn forget_order(site: &SiteId, order: Stood<OrderView>, entries: Vec<(IdentityKey, Entry, i64)>, gone: &Gone, corrections: &mut Corrections<'_>) {
    let Stood { part, written, value: known } = order;
    let mut left = None;
    for (key, entry, written) in entries {
        let mut entry = Some(entry);
        for sale in forget(&mut entry, &|at| gone.has(at)) {
            corrections.additions.sell(part, site, &sale);
        }
        corrections.of(part, written).put_identity(key, entry.as_ref());
        left = entry;
    }
    let part = corrections.of(part, written);
    match left.as_ref().and_then(Entry::order) {
        // An entry knows the plain person, the row the keyed hash.
        Some(view) => part.put_order(site.clone(), &OrderView { person: view.person.and(known.person), order_id: known.order_id, ..view }),
        None => part.take_order(site.clone(), known.order_id),
    }
}

fn forget_checkout(
    site: &SiteId,
    checkout: Stood<CheckoutView>,
    entries: Vec<(IdentityKey, Entry, i64)>,
    gone: &Gone,
    corrections: &mut Corrections<'_>,
) {
    let Stood { part, written, value: known } = checkout;
    let mut left = None;
    for (key, entry, written) in entries {
        let mut entry = Some(entry);
        forget(&mut entry, &|at| gone.has(at));
        corrections.of(part, written).put_identity(key, entry.as_ref());
        left = left.or(entry);
    }
    let part = corrections.of(part, written);
    match left.as_ref().and_then(Entry::checkout) {
        Some(view) => part.put_checkout(site.clone(), &CheckoutView { person: view.person.and(known.person), checkout: known.checkout, ..view }),
        None => part.take_checkout(site.clone(), known.checkout),
    }
}
