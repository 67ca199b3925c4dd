//! Scans of event rows, and which reports are kept. Reads lists of partitions first and then only what exists, a bounded number of partitions at
//! once, a page of each at a time. What a row is found by outlives the row: a place without a row is passed over.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::BoxFuture;

use super::events::By;
use super::listing::{Line, Listing, What};
use super::merge::merge;
use super::rows::{FoundEvent, channel, key_kind};
use super::{Scylla, stamp};
use crate::archive::{Error, EventRow, Kept, Scan, ScanBy, Sought};
use crate::cql::Cluster;
use crate::event::{SiteId, Timestamp};

macro_rules! select_event {
    ($rest:literal) => {
        concat!(
            "SELECT occurred_at, pos, event_id, fingerprint, key_kind, type, received_at, verdict, flags, channel, customer, visitor, products, ",
            "objects, body_key, body, chunks FROM event WHERE site = ? AND day = ? AND part = ? AND bucket = ? AND ",
            $rest
        )
    };
}

const ROWS_UP: &str = select_event!("(occurred_at, pos) > (?, ?) AND (occurred_at, pos) < (?, ?) ORDER BY occurred_at ASC, pos ASC LIMIT ?");
const ROWS_DOWN: &str = select_event!("(occurred_at, pos) > (?, ?) AND (occurred_at, pos) < (?, ?) ORDER BY occurred_at DESC, pos DESC LIMIT ?");
const ROW: &str = select_event!("occurred_at = ? AND pos = ?");
const BODY: &str = "SELECT chunk, body FROM event_body WHERE site = ? AND part = ? AND pos = ?";
const PLACES: &str = "SELECT day, part, bucket FROM lookup_at WHERE site = ? AND what = ? AND key = ? AND day >= ? AND day <= ?";
const FOUND_UP: &str = "SELECT occurred_at, pos FROM lookup WHERE site = ? AND what = ? AND key = ? AND day = ? AND part = ? AND bucket = ? \
     AND (occurred_at, pos) > (?, ?) AND (occurred_at, pos) < (?, ?) ORDER BY occurred_at ASC, pos ASC LIMIT ?";
const FOUND_DOWN: &str = "SELECT occurred_at, pos FROM lookup WHERE site = ? AND what = ? AND key = ? AND day = ? AND part = ? AND bucket = ? \
     AND (occurred_at, pos) > (?, ?) AND (occurred_at, pos) < (?, ?) ORDER BY occurred_at DESC, pos DESC LIMIT ?";
const BY_ID: &str = "SELECT part, pos, occurred_at, fingerprint, key_kind, type, channel FROM event_by_id WHERE site = ? AND event_id = ?";
const BY_ID_AND_DAY: &str =
    "SELECT part, pos, occurred_at, fingerprint, key_kind, type, channel FROM event_by_id WHERE site = ? AND event_id = ? AND day = ?";

/// A place in a scan's order: occurred_at, partition, offset.
type Mark = (i64, i32, i64);

/// A partition of the look-up table: by what, key, partition of events, bucket.
type Found<'a> = (By, &'a [u8], u16, i64);

/// Rows fetched by their places at once.
const FETCHED: usize = 200;

/// The open interval of a scan.
#[derive(Clone, Copy, Debug)]
struct Span {
    low: Mark,
    high: Mark,
}

impl Span {
    fn of(scan: &Scan) -> Self {
        let mut span =
            Self { low: (scan.from.map_or(i64::MIN, Timestamp::micros), -1, -1), high: (scan.to.map_or(i64::MAX, Timestamp::micros), -1, -1) };
        if let Some((at, partition, offset)) = scan.after {
            span = span.behind((at.micros(), i32::from(partition), offset as i64), scan.newest_first);
        }
        span
    }

    /// What of it lies behind a mark.
    fn behind(self, mark: Mark, newest_first: bool) -> Self {
        if newest_first { Self { high: self.high.min(mark), ..self } } else { Self { low: self.low.max(mark), ..self } }
    }

    fn has(&self, mark: &Mark) -> bool {
        self.low < *mark && *mark < self.high
    }

    fn days(&self) -> (i32, i32) {
        (Timestamp::from_micros(self.low.0).utc_day(), Timestamp::from_micros(self.high.0).utc_day())
    }

    /// The same as bounds (exclusive) of (occurred_at, offset) within one partition.
    fn within(&self, part: u16) -> [(i64, i64); 2] {
        [self.low, self.high].map(|(at, of, pos)| match i32::from(part).cmp(&of) {
            std::cmp::Ordering::Less => (at, i64::MAX),
            std::cmp::Ordering::Equal => (at, pos),
            std::cmp::Ordering::Greater => (at, -1),
        })
    }
}

impl Scylla {
    /// See [`crate::archive::Archive::scan`].
    pub(super) async fn scan_rows(&self, site: &SiteId, scan: &Scan) -> Result<Vec<EventRow>, Error> {
        let span = Span::of(scan);
        match &scan.by {
            ScanBy::All => self.scan_all(site, span, scan).await,
            ScanBy::People(people) => {
                let keys: BTreeSet<(By, Vec<u8>)> = people.iter().map(|person| (By::Person, person.to_vec())).collect();
                self.scan_lookups(site, span, scan, keys).await
            }
            ScanBy::Product(product) => self.scan_lookups(site, span, scan, BTreeSet::from([(By::Product, product.as_bytes().to_vec())])).await,
            ScanBy::Object(sid) => self.scan_lookups(site, span, scan, BTreeSet::from([(By::Object, sid.as_bytes().to_vec())])).await,
            ScanBy::EventId(id) => {
                let kept = self.by_id(site, id, None).await?;
                let mut marks: Vec<Mark> = kept
                    .iter()
                    .map(|kept| (kept.occurred_at.micros(), i32::from(kept.partition), kept.offset as i64))
                    .filter(|mark| span.has(mark))
                    .collect();
                marks.sort_unstable();
                if scan.newest_first {
                    marks.reverse();
                }
                self.rows_at(site, &marks, scan.limit).await
            }
        }
    }

    /// All rows, an hour after the other, as far as there are partitions with any.
    async fn scan_all(&self, site: &SiteId, span: Span, scan: &Scan) -> Result<Vec<EventRow>, Error> {
        let (first, last) = span.days();
        let mut days: Vec<i32> = Listing::days(&self.cluster, site.as_str(), What::Events, first..=last).await?.into_keys().collect();
        if scan.newest_first {
            days.reverse();
        }
        let mut found = Vec::new();
        for day in days {
            let mut hours: BTreeMap<i32, Vec<Line>> = BTreeMap::new();
            for line in Listing::of_day(&self.cluster, site.as_str(), What::Events, day).await? {
                hours.entry(line.full_hour()).or_default().push(line);
            }
            let mut hours: Vec<_> = hours.into_iter().collect();
            if scan.newest_first {
                hours.reverse();
            }
            for (hour, lines) in hours {
                if found.len() >= scan.limit {
                    return Ok(found);
                }
                let start = i64::from(hour) * 3_600_000_000;
                let of_hour = Span { low: span.low.max((start, -1, -1)), high: span.high.min((start + 3_600_000_000, -1, -1)) };
                if of_hour.low < of_hour.high {
                    found.extend(self.scan_hour(site, of_hour, scan, &lines, scan.limit - found.len()).await?);
                }
            }
        }
        Ok(found)
    }

    async fn scan_hour(&self, site: &SiteId, span: Span, scan: &Scan, lines: &[Line], want: usize) -> Result<Vec<EventRow>, Error> {
        let newest_first = scan.newest_first;
        let fetch = |at: usize, after: Option<Mark>, limit: usize| -> BoxFuture<'_, Result<Vec<(u16, FoundEvent)>, Error>> {
            Box::pin(async move {
                let Some(line) = lines.get(at) else { return Ok(Vec::new()) };
                let span = after.map_or(span, |after| span.behind(after, newest_first));
                let [low, high] = span.within(line.part);
                let cql = if newest_first { ROWS_DOWN } else { ROWS_UP };
                let values = (site.as_str(), line.day, line.part as i16, line.bucket, low.0, low.1, high.0, high.1, limit as i32);
                let rows: Vec<FoundEvent> = self.cluster.rows(cql, values).await?;
                Ok(rows.into_iter().map(|row| (line.part, row)).collect())
            })
        };
        let mark_of = |(part, row): &(u16, FoundEvent)| (row.occurred_at(), i32::from(*part), row.pos());
        // Large bodies are read of what is wanted alone: of each source there is a page, of which most may go to the next call.
        let (mut rest, mut found) = (merge(lines.len(), want, newest_first, mark_of, fetch).await?.into_iter(), Vec::new());
        loop {
            let some: Vec<_> = rest.by_ref().take(FETCHED).map(|(part, row)| self.whole(site, part, row)).collect();
            if some.is_empty() {
                return Ok(found);
            }
            found.extend(Cluster::gather(some).await?);
        }
    }

    /// A row with its body.
    async fn whole(&self, site: &SiteId, part: u16, row: FoundEvent) -> Result<EventRow, Error> {
        let body = match row.chunks() {
            0 => Vec::new(),
            chunks => self.body(site.as_str(), part, row.pos(), chunks).await?,
        };
        row.into_row(site, part, body)
    }

    /// A body that stands in chunks.
    pub(super) async fn body(&self, site: &str, part: u16, pos: i64, chunks: i32) -> Result<Vec<u8>, Error> {
        let found: Vec<(i32, Vec<u8>)> = self.cluster.rows(BODY, (site, part as i16, pos)).await?;
        if found.len() != chunks as usize {
            return Err(Error::Corrupt(format!("the body of partition {part}, offset {pos}")));
        }
        Ok(found.into_iter().flat_map(|(_, chunk)| chunk).collect())
    }

    /// Rows by person, product or object, a day after the other.
    async fn scan_lookups(&self, site: &SiteId, span: Span, scan: &Scan, keys: BTreeSet<(By, Vec<u8>)>) -> Result<Vec<EventRow>, Error> {
        let (first, last) = span.days();
        let places = Cluster::gather(
            keys.iter().map(|(by, key)| self.cluster.rows::<(i32, i16, i64)>(PLACES, (site.as_str(), *by as i8, key, first, last))).collect(),
        );
        let mut days: BTreeMap<i32, Vec<Found<'_>>> = BTreeMap::new();
        for ((by, key), places) in keys.iter().zip(places.await?) {
            for (day, part, bucket) in places {
                days.entry(day).or_default().push((*by, key, part as u16, bucket));
            }
        }
        let mut days: Vec<_> = days.into_iter().collect();
        if scan.newest_first {
            days.reverse();
        }
        let mut found = Vec::new();
        for (day, places) in days {
            let mut rest = span;
            while found.len() < scan.limit {
                let want = (scan.limit - found.len()).max(FETCHED);
                let mut marks = self.marks_of_day(site, rest, scan.newest_first, day, &places, want).await?;
                let more = marks.len() >= want;
                // An event of two of the people stands in the look-up of each.
                marks.dedup();
                found.extend(self.rows_at(site, &marks, scan.limit - found.len()).await?);
                match marks.last() {
                    Some(last) if more => rest = rest.behind(*last, scan.newest_first),
                    _ => break,
                }
            }
        }
        Ok(found)
    }

    /// The places of a day, in order.
    async fn marks_of_day(
        &self,
        site: &SiteId,
        span: Span,
        newest_first: bool,
        day: i32,
        places: &[Found<'_>],
        want: usize,
    ) -> Result<Vec<Mark>, Error> {
        let fetch = |at: usize, after: Option<Mark>, limit: usize| -> BoxFuture<'_, Result<Vec<Mark>, Error>> {
            Box::pin(async move {
                let Some((by, key, part, bucket)) = places.get(at) else { return Ok(Vec::new()) };
                let span = after.map_or(span, |after| span.behind(after, newest_first));
                let [low, high] = span.within(*part);
                let cql = if newest_first { FOUND_DOWN } else { FOUND_UP };
                let values = (site.as_str(), *by as i8, *key, day, *part as i16, *bucket, low.0, low.1, high.0, high.1, limit as i32);
                let rows: Vec<(i64, i64)> = self.cluster.rows(cql, values).await?;
                Ok(rows.into_iter().map(|(at, pos)| (at, i32::from(*part), pos)).collect())
            })
        };
        merge(places.len(), want, newest_first, |mark| *mark, fetch).await
    }

    /// The rows at these places, in their order, at most so many.
    async fn rows_at(&self, site: &SiteId, marks: &[Mark], limit: usize) -> Result<Vec<EventRow>, Error> {
        let (mut rest, mut found) = (marks, Vec::new());
        while !rest.is_empty() && found.len() < limit {
            let (some, more) = rest.split_at(rest.len().min(FETCHED).min(limit - found.len()));
            let rows = Cluster::gather(some.iter().map(|mark| self.row_at(site, *mark)).collect()).await?;
            found.extend(rows.into_iter().flatten());
            rest = more;
        }
        Ok(found)
    }

    async fn row_at(&self, site: &SiteId, (at, part, pos): Mark) -> Result<Option<EventRow>, Error> {
        let day = Timestamp::from_micros(at).utc_day();
        let mut rows: Vec<FoundEvent> = self.cluster.rows(ROW, (site.as_str(), day, part as i16, stamp::bucket(pos as u64), at, pos)).await?;
        match rows.pop() {
            Some(row) => Ok(Some(self.whole(site, part as u16, row).await?)),
            None => Ok(None),
        }
    }

    /// See [`crate::archive::Archive::kept`].
    pub(super) async fn kept_rows(&self, site: &SiteId, sought: &[Sought]) -> Result<Vec<Kept>, Error> {
        let distinct: BTreeSet<(&str, Option<i32>)> = sought.iter().map(|sought| (sought.event_id.as_str(), sought.day)).collect();
        let mut found = Vec::new();
        for some in distinct.into_iter().collect::<Vec<_>>().chunks(FETCHED) {
            for kept in Cluster::gather(some.iter().map(|(id, day)| self.by_id(site, id, *day)).collect()).await? {
                let stand = Cluster::gather(
                    kept.iter().map(|kept| self.stands(site.as_str(), kept.partition, kept.offset, kept.occurred_at.micros())).collect(),
                )
                .await?;
                found.extend(kept.into_iter().zip(stand).filter(|(_, stands)| *stands).map(|(kept, _)| kept));
            }
        }
        found.sort_by(|a, b| (&a.event_id, a.partition, a.offset).cmp(&(&b.event_id, b.partition, b.offset)));
        found.dedup();
        Ok(found)
    }

    /// The reports that an id was ever listed for, of a day or of all.
    async fn by_id(&self, site: &SiteId, event_id: &str, day: Option<i32>) -> Result<Vec<Kept>, Error> {
        type Row = (i16, i64, i64, i64, i8, String, i8);
        let rows: Vec<Row> = match day {
            Some(day) => self.cluster.rows(BY_ID_AND_DAY, (site.as_str(), event_id, day)).await?,
            None => self.cluster.rows(BY_ID, (site.as_str(), event_id)).await?,
        };
        let kept = rows.into_iter().map(|(part, pos, at, fingerprint, kind_of_key, kind, by)| {
            Ok(Kept {
                event_id: event_id.to_owned(),
                fingerprint: fingerprint as u64,
                key_kind: key_kind(kind_of_key)?,
                kind,
                channel: channel(by)?,
                occurred_at: Timestamp::from_micros(at),
                partition: part as u16,
                offset: pos as u64,
            })
        });
        kept.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_of_a_partition_are_those_of_the_whole() {
        let marks: Vec<Mark> = (0..3).flat_map(|at| (0..3).flat_map(move |part| (0..3).map(move |pos| (at, part, pos)))).collect();
        let ends = marks.iter().copied().chain((0..3).map(|at| (at, -1, -1)));
        for low in ends.clone() {
            for high in ends.clone() {
                let span = Span { low, high };
                for mark in &marks {
                    let [from, to] = span.within(mark.1 as u16);
                    let place = (mark.0, mark.2);
                    assert_eq!(from < place && place < to, span.has(mark), "{span:?} {mark:?}");
                }
            }
        }
    }
}
