//! Event rows, what they are found by, and all else that is only ever inserted: labels, links, quarantined records, sites. Written first of a
//! batch. Every row is a function of its record, and so may be written again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use super::listing::{Line, What};
use super::rows::{EventColumns, PUT_EVENT, report, split};
use super::{Scylla, label, stamp};
use crate::archive::changed::Changed;
use crate::archive::recall::can_be_forgotten;
use crate::archive::{Cursor, Error, EventRow, Label, LabelValue, QuarantineRow, Refused, WriteBatch};
use crate::cql::{self, Cluster, Write};
use crate::event::identity::Verdict;
use crate::event::{Channel, Flags, KeyKind, SiteId, Timestamp};

const PUT_BODY: &str = "INSERT INTO event_body (site, part, pos, chunk, body) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?";
const PUT_BY_ID: &str = "INSERT INTO event_by_id (site, event_id, day, report, part, pos, occurred_at, fingerprint, key_kind, type, channel) \
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
const GET_BY_ID: &str = "SELECT part, pos, occurred_at FROM event_by_id WHERE site = ? AND event_id = ? AND day = ? AND report = ?";
const STANDS: &str = "SELECT pos FROM event WHERE site = ? AND day = ? AND part = ? AND bucket = ? AND occurred_at = ? AND pos = ?";
const PUT_LOOKUP: &str =
    "INSERT INTO lookup (site, what, key, day, part, bucket, occurred_at, pos) VALUES (?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
const PUT_LOOKUP_AT: &str = "INSERT INTO lookup_at (site, what, key, day, part, bucket) VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
const PUT_LABEL: &str = "INSERT INTO label (site, label, dim, value) VALUES (?, ?, ?, ?) USING TIMESTAMP ?";
const PUT_LINK: &str = "INSERT INTO link (site, person, other) VALUES (?, ?, ?) USING TIMESTAMP ?";
const PUT_SITE: &str = "INSERT INTO site (one, name) VALUES (0, ?) USING TIMESTAMP 1";
const PUT_QUARANTINE: &str = "INSERT INTO quarantine (site, day, part, bucket, received_at, pos, event_id, code, message, pointer, raw, chunks) \
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";

/// Rows looked for at once.
const LOOKED_FOR: usize = 1_000;
/// Places remembered, at most; beyond, it starts anew.
const REMEMBERED: usize = 100_000;

/// What a look-up is by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum By {
    Person = 0,
    Product = 1,
    Object = 2,
}

/// A partition of the look-up table, and the day on which what it is listed for was taken: lists live as long as what they list only if that is so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Place {
    site: String,
    by: By,
    key: Vec<u8>,
    day: i32,
    part: u16,
    bucket: i64,
    taken: i32,
}

/// What is known to be written.
#[derive(Default)]
pub(super) struct Remembered {
    places: Mutex<HashSet<Place>>,
    sites: Mutex<HashSet<String>>,
}

/// A label as a batch has it.
type LabelRow = (SiteId, Label, String, LabelValue);

/// What is to be remembered once it is acknowledged.
#[derive(Default)]
struct Fresh {
    lines: Vec<Line>,
    places: BTreeSet<Place>,
    sites: BTreeSet<String>,
}

impl Remembered {
    /// Forgets all: it may be lost.
    pub(super) fn forget(&self) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.sites.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Scylla {
    /// Writes what a batch only inserts, each row acknowledged when this returns.
    pub(super) async fn insert(&self, batch: &mut WriteBatch) -> Result<(), Error> {
        let events = self.unknown(std::mem::take(&mut batch.events), &batch.cursors).await?;
        let now = self.clock.now();
        let (mut writes, mut fresh, mut lines) = (Vec::new(), Fresh::default(), BTreeMap::new());
        let mut bodies = Vec::new();
        for row in &events {
            self.put_event(row, now, &mut bodies, &mut writes, &mut fresh.places);
            let bucket = stamp::bucket(row.offset);
            let line = Line::at(row.site.as_str(), What::Events, row.occurred_at, row.partition, bucket, row.received_at.utc_day());
            raise(&mut lines, line, stamp::taken(row.received_at, now));
        }
        // Before the rows: where a row is, its body is whole.
        self.write_events(&events, &batch.labels, now, bodies).await?;
        self.write_raw(&mut batch.quarantine, now).await?;
        for row in &batch.quarantine {
            let line = put_quarantined(row, now, &mut writes);
            raise(&mut lines, line, stamp::taken(row.received_at, now));
        }
        fresh.sites.extend(events.iter().map(|row| row.site.as_str().to_owned()));
        fresh.sites.extend(batch.books.iter().map(|(_, site, _, _)| site.as_str().to_owned()));
        fresh.sites.retain(|site| !self.remembered.sites.lock().unwrap_or_else(PoisonError::into_inner).contains(site));
        writes.extend(fresh.sites.iter().map(|site| Write::new(PUT_SITE, (site.clone(),))));
        writes.extend(batch.labels.iter().map(|label| put_label(label, now)));
        put_links(batch, now, &mut writes);
        fresh.lines = self.listing.put(lines, &mut writes);
        self.write_events(&events, &batch.labels, now, writes).await?;
        self.remember(fresh);
        Ok(())
    }

    /// Writes what a batch's events make. Where that is refused, it tells whose it is: see [`Self::refused`].
    async fn write_events(&self, events: &[EventRow], labels: &[LabelRow], now: Timestamp, writes: Vec<Write>) -> Result<(), Error> {
        match self.cluster.write(writes).await {
            Err(error @ cql::Error::Refused(_)) => {
                let refused = self.refused(events, labels, now).await?;
                Err(if refused.is_empty() { error.into() } else { Error::Refused(refused) })
            }
            written => Ok(written?),
        }
    }

    /// Those of these events whose rows or labels are refused, each by itself, while an ordinary event's are taken: it is for what they are, say their size.
    /// Where that one is refused too (no room, no right to write), it is not for these.
    async fn refused(&self, events: &[EventRow], labels: &[LabelRow], now: Timestamp) -> Result<Vec<Refused>, Error> {
        let Some(first) = events.first() else { return Ok(Vec::new()) };
        let ordinary = ordinary(first.site.clone(), now);
        self.write_alone(&ordinary, now, vec![b"{}".to_vec()], Vec::new()).await?;
        let mut of_event: HashMap<(&SiteId, &str), Vec<&LabelRow>> = HashMap::new();
        for label in labels {
            of_event.entry((&label.0, &label.3.event_id)).or_default().push(label);
        }
        let of_event = &of_event;
        let each = events.iter().map(|row| async move {
            let labels = of_event.get(&(&row.site, row.event_id.as_str())).into_iter().flatten().map(|label| put_label(label, now)).collect();
            match self.write_alone(row, now, Vec::new(), labels).await {
                Ok(()) => Ok(None),
                Err(cql::Error::Refused(why)) => Ok(Some(Refused { partition: row.partition, offset: row.offset, why })),
                Err(other) => Err(other),
            }
        });
        Ok(Cluster::gather(each.collect()).await?.into_iter().flatten().collect())
    }

    /// Writes one event by itself, and these chunks of a body and labels with it.
    async fn write_alone(&self, row: &EventRow, now: Timestamp, chunks: Vec<Vec<u8>>, labels: Vec<Write>) -> Result<(), cql::Error> {
        let (mut bodies, mut writes) = (Vec::new(), labels);
        self.put_event(row, now, &mut bodies, &mut writes, &mut BTreeSet::new());
        put_body(row.site.as_str(), row.partition as i16, row.offset as i64, chunks, stamp::taken(row.received_at, now), &mut bodies);
        self.cluster.write(bodies).await?;
        self.cluster.write(writes).await
    }

    /// Writes the large ones of quarantined records' bytes. Those that are refused are left out of their rows: the log has them.
    async fn write_raw(&self, rows: &mut [QuarantineRow], now: Timestamp) -> Result<(), Error> {
        let of = |row: &QuarantineRow| {
            let (site, mut writes) = (row.site.as_ref().map_or("", |site| site.as_str()), Vec::new());
            put_body(site, row.partition as i16, row.offset as i64, split(&row.raw).1, stamp::taken(row.received_at, now), &mut writes);
            writes
        };
        match self.cluster.write(rows.iter().flat_map(of).collect()).await {
            Err(cql::Error::Refused(_)) => {}
            written => return Ok(written?),
        }
        for row in rows {
            match self.cluster.write(of(row)).await {
                Err(cql::Error::Refused(_)) => {
                    row.raw = bytes::Bytes::new();
                    row.message.push_str(" (the store does not take its bytes either)");
                }
                written => written?,
            }
        }
        Ok(())
    }

    /// The rows that are to be written: those whose report stands nowhere else. One that stands at its own place is written again, as what belongs
    /// to it may be missing. Not asked for are those that identity, which let them through, cannot have forgotten by where their partition then is.
    async fn unknown(&self, mut events: Vec<EventRow>, cursors: &[(u16, Cursor)]) -> Result<Vec<EventRow>, Error> {
        events.sort_by_key(|row| (row.occurred_at, row.partition, row.offset));
        let mut seen = HashSet::new();
        events.retain(|row| seen.insert((row.site.clone(), row.event_id.clone(), row.occurred_at.utc_day(), report(row))));
        let until: HashMap<u16, Timestamp> = cursors.iter().map(|(part, cursor)| (*part, cursor.received_at)).collect();
        let is_in_doubt = |row: &EventRow| until.get(&row.partition).is_none_or(|until| can_be_forgotten(row.occurred_at, *until));
        let mut elsewhere = HashSet::new();
        let doubtful: Vec<&EventRow> = events.iter().filter(|row| is_in_doubt(row)).collect();
        for rows in doubtful.chunks(LOOKED_FOR) {
            let answers = Cluster::gather(rows.iter().map(|row| self.stands_elsewhere(row)).collect()).await?;
            elsewhere.extend(rows.iter().zip(answers).filter(|(_, elsewhere)| *elsewhere).map(|(row, _)| (row.partition, row.offset)));
        }
        events.retain(|row| !elsewhere.contains(&(row.partition, row.offset)));
        Ok(events)
    }

    async fn stands_elsewhere(&self, row: &EventRow) -> Result<bool, Error> {
        let day = row.occurred_at.utc_day();
        let found: Vec<(i16, i64, i64)> = self.cluster.rows(GET_BY_ID, (row.site.as_str(), &row.event_id, day, report(row))).await?;
        match found.first() {
            Some((part, pos, at)) if (*part as u16, *pos as u64) != (row.partition, row.offset) => {
                self.stands(row.site.as_str(), *part as u16, *pos as u64, *at).await
            }
            _ => Ok(false),
        }
    }

    /// Whether an event's row is there: what it is found by outlives it.
    pub(super) async fn stands(&self, site: &str, part: u16, offset: u64, occurred_at: i64) -> Result<bool, Error> {
        let day = Timestamp::from_micros(occurred_at).utc_day();
        let place = (site, day, part as i16, stamp::bucket(offset), occurred_at, offset as i64);
        Ok(!self.cluster.rows::<(i64,)>(STANDS, place).await?.is_empty())
    }

    /// An event's row, its body, and what it is found by.
    fn put_event(&self, row: &EventRow, now: Timestamp, bodies: &mut Vec<Write>, writes: &mut Vec<Write>, places: &mut BTreeSet<Place>) {
        let (site, day, part, pos) = (row.site.as_str().to_owned(), row.occurred_at.utc_day(), row.partition as i16, row.offset as i64);
        let (at, stamp) = (row.occurred_at.micros(), stamp::taken(row.received_at, now));
        let (columns, chunks) = EventColumns::of(row, now);
        let bytes = columns.size();
        writes.push(Write::new(PUT_EVENT, columns).beside((&row.site, day, part, stamp::bucket(row.offset)), bytes));
        put_body(&site, part, pos, chunks, stamp, bodies);
        let (fingerprint, key_kind, channel) = (row.fingerprint as i64, row.key_kind as i8, row.channel as i8);
        let kept = (site.clone(), row.event_id.clone(), day, report(row), part, pos, at, fingerprint, key_kind, row.kind.clone(), channel, stamp);
        writes.push(Write::new(PUT_BY_ID, kept));
        let people: BTreeSet<[u8; 16]> = [row.customer, row.visitor].into_iter().flatten().collect();
        let people = people.into_iter().map(|person| (By::Person, person.to_vec()));
        let bucket = stamp::lookup_bucket(row.offset);
        let products = row.products.iter().map(|product| (By::Product, product.as_bytes().to_vec()));
        let object = Changed::of(row).map(|changed| (By::Object, changed.sid.into_bytes()));
        for (by, key) in people.chain(products).chain(object) {
            let found = (site.clone(), by as i8, key.clone(), day, part, bucket, at, pos, stamp);
            writes.push(Write::new(PUT_LOOKUP, found).beside((&row.site, by, &key, day, part, bucket), 60 + key.len()));
            let place = Place { site: site.clone(), by, key: key.clone(), day, part: row.partition, bucket, taken: row.received_at.utc_day() };
            if !self.remembered.places.lock().unwrap_or_else(PoisonError::into_inner).contains(&place) && places.insert(place) {
                writes.push(Write::new(PUT_LOOKUP_AT, (site.clone(), by as i8, key, day, part, bucket, stamp)));
            }
        }
    }

    fn remember(&self, fresh: Fresh) {
        self.listing.remember(fresh.lines);
        self.remembered.sites.lock().unwrap_or_else(PoisonError::into_inner).extend(fresh.sites);
        let mut places = self.remembered.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.len() > REMEMBERED {
            places.clear();
        }
        places.extend(fresh.places);
    }
}

/// Keeps the greatest stamp of each line.
fn raise(lines: &mut BTreeMap<Line, i64>, line: Line, stamp: i64) {
    let known = lines.entry(line).or_insert(stamp);
    *known = stamp.max(*known);
}

fn put_body(site: &str, part: i16, pos: i64, chunks: Vec<Vec<u8>>, stamp: i64, writes: &mut Vec<Write>) {
    for (number, chunk) in (0i32..).zip(chunks) {
        writes.push(Write::new(PUT_BODY, (site.to_owned(), part, pos, number, chunk, stamp)));
    }
}

/// An event of no size, where no event stands and nobody looks for one.
fn ordinary(site: SiteId, now: Timestamp) -> EventRow {
    EventRow {
        site,
        event_id: String::new(),
        fingerprint: 0,
        key_kind: KeyKind::Event,
        kind: String::new(),
        occurred_at: Timestamp::ZERO,
        received_at: now,
        partition: u16::MAX,
        offset: 0,
        verdict: Verdict::Counted,
        flags: Flags::default(),
        channel: Channel::Server,
        customer: Some([0; 16]),
        visitor: None,
        products: vec![String::new()],
        objects: Vec::new(),
        body_key: 0,
        body: bytes::Bytes::new(),
    }
}

/// A quarantined record, whose chunks are there; gives the line it is listed by.
fn put_quarantined(row: &QuarantineRow, now: Timestamp, writes: &mut Vec<Write>) -> Line {
    let site = row.site.as_ref().map_or("", |site| site.as_str());
    let (day, part, pos, stamp) = (row.received_at.utc_day(), row.partition as i16, row.offset as i64, stamp::taken(row.received_at, now));
    let bucket = stamp::bucket(row.offset);
    let (raw, chunks) = split(&row.raw);
    let bytes = 200 + row.event_id.len() + row.message.len() + row.pointer.len() + raw.len();
    let count = chunks.len() as i32;
    let (event_id, code, message, pointer) = (row.event_id.clone(), row.code.clone(), row.message.clone(), row.pointer.clone());
    let columns = (site.to_owned(), day, part, bucket, row.received_at.micros(), pos, event_id, code, message, pointer, raw, count, stamp);
    writes.push(Write::new(PUT_QUARANTINE, columns).beside((site, day, part, bucket), bytes));
    Line::at(site, What::Quarantine, row.received_at, row.partition, bucket, 0)
}

fn put_label((site, label, dim, value): &LabelRow, now: Timestamp) -> Write {
    Write::new(PUT_LABEL, (site.as_str().to_owned(), *label as i8, dim.clone(), label::pack(value), stamp::taken(value.at, now)))
}

fn put_links(batch: &WriteBatch, now: Timestamp, writes: &mut Vec<Write>) {
    // Nothing takes a link away but an erasure, and what comes after one is to stand.
    let latest = batch.cursors.iter().map(|(_, cursor)| cursor.received_at).max();
    let stamp = latest.map_or(1, |at| stamp::taken(at, now)).max(1);
    let both = batch.links.iter().flat_map(|(site, visitor, customer)| [(site, visitor, customer), (site, customer, visitor)]);
    for (site, person, other) in both.collect::<BTreeSet<_>>() {
        writes.push(Write::new(PUT_LINK, (site.as_str().to_owned(), person.to_vec(), other.to_vec(), stamp)));
    }
}
