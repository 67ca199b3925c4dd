//! A shop that posts to a real embedded archive, for the tests of what reads archives: identity's fold and the rollup's table, without log and batches.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use tempfile::TempDir;

use super::embedded::Embedded;
use super::rollup::{Additions, Judged, Labels, hour_of, is_taken};
use super::*;
use crate::event::identity;
use crate::event::ids::{completion_id, events_partition, fingerprint};
use crate::event::{Event, ObjectKind, Record, RecordKind, SiteRules, kind};

/// Archive and log of one test.
pub(crate) struct Shop {
    pub(crate) rules: SiteRules,
    pub(crate) archive: Arc<Embedded>,
    pub(crate) log: BTreeMap<u16, Vec<Bytes>>,
    entries: HashMap<(u16, IdentityKey), Entry>,
    cells: HashMap<(u16, CellKey), CellValue>,
    books: BTreeMap<(u16, SiteId, Timestamp), Books>,
    received_at: BTreeMap<u16, Timestamp>,
    _dir: TempDir,
}

/// One post, with what ingest would have found.
#[derive(Clone, Debug)]
pub(crate) struct Post {
    pub(crate) id: String,
    pub(crate) received_at: Timestamp,
    pub(crate) channel: Channel,
    pub(crate) crawler: bool,
    pub(crate) body: Value,
}

pub(crate) fn site() -> SiteId {
    SiteId::parse("demo").unwrap()
}

pub(crate) fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap()
}

/// A post of one event of a person at `occurred_at`, received a second later.
pub(crate) fn post(id: &str, occurred_at: &str, person: &str, mut body: Value) -> Post {
    body["occurred_at"] = occurred_at.into();
    if !person.is_empty() {
        body["customer"]["id"] = person.into();
    }
    Post { id: id.into(), received_at: at(occurred_at).plus_seconds(1), channel: Channel::Server, crawler: false, body }
}

impl Post {
    pub(crate) fn crawler(mut self) -> Self {
        self.crawler = true;
        self
    }
}

impl Shop {
    /// An archive that holds these posts, written at once.
    pub(crate) fn new(posts: &[Post]) -> Self {
        let dir = TempDir::new().unwrap();
        let archive = Arc::new(Embedded::open(dir.path()).unwrap());
        let mut shop = Self {
            rules: SiteRules::default(),
            archive,
            log: BTreeMap::new(),
            entries: HashMap::new(),
            cells: HashMap::new(),
            books: BTreeMap::new(),
            received_at: BTreeMap::new(),
            _dir: dir,
        };
        let batch = shop.batch(posts);
        shop.write(batch);
        shop
    }

    pub(crate) fn write(&self, batch: WriteBatch) {
        wait(self.archive.write(batch)).unwrap();
    }

    /// What the archiver would write for these posts.
    pub(crate) fn batch(&mut self, posts: &[Post]) -> WriteBatch {
        let mut batch = WriteBatch::default();
        let (mut additions, mut labels) = (Additions::default(), Labels::default());
        for post in posts {
            for (record, event) in records(post) {
                self.take(&mut batch, &mut additions, &mut labels, &record, &event);
            }
        }
        batch.cells = additions.apply(|key| self.cells.get(key).cloned());
        self.cells.extend(batch.cells.iter().map(|(partition, key, value)| ((*partition, key.clone()), value.clone())));
        batch.labels = labels.into_rows();
        batch.books = self.books.iter().map(|((partition, site, hour), books)| (*partition, site.clone(), *hour, books.clone())).collect();
        let next = |partition: &u16| self.log.get(partition).map_or(0, |log| log.len() as u64);
        batch.cursors = self.received_at.iter().map(|(p, received_at)| (*p, Cursor { next: next(p), received_at: *received_at })).collect();
        batch
    }

    fn take(&mut self, batch: &mut WriteBatch, additions: &mut Additions, labels: &mut Labels, record: &Record, event: &Event) {
        let partition = events_partition(&record.site, record.key_kind, &record.key);
        let log = self.log.entry(partition).or_default();
        let offset = log.len() as u64;
        log.push(record.to_bytes());
        let received = self.received_at.entry(partition).or_default();
        *received = (*received).max(record.received_at);
        let key = (partition, identity::key_of(record, event));
        let mut entry = self.entries.remove(&key);
        let outcome = identity::fold(&mut entry, record, event, offset);
        let entry = entry.unwrap();
        batch.orders.extend(entry.order().map(|order| (partition, record.site.clone(), order)));
        batch.checkouts.extend(entry.checkout().map(|mut checkout| {
            checkout.person = checkout.person.map(|id| hex(&self.rules.person_hash(&id)));
            (partition, record.site.clone(), checkout)
        }));
        self.entries.insert(key, entry);
        let books = self.books.entry((partition, record.site.clone(), hour_of(record.received_at))).or_default();
        let row = row(&self.rules, record, event, (partition, offset), outcome.verdict);
        let person = row.customer.or(row.visitor);
        additions.count(Judged { partition, record, event, outcome: &outcome, rules: &self.rules }, person.as_ref());
        match (record.kind, outcome.verdict) {
            (RecordKind::Completion, _) => books.derived += 1,
            (_, Verdict::Duplicate) => (books.appended, books.duplicate) = (books.appended + 1, books.duplicate + 1),
            _ => {
                (books.appended, books.archived) = (books.appended + 1, books.archived + 1);
                if is_taken(outcome.verdict) {
                    labels.take(record, event, &self.rules);
                    batch.links.extend(row.visitor.zip(row.customer).map(|(visitor, customer)| (site(), visitor, customer)));
                }
                batch.events.push(row);
            }
        }
    }
}

/// The event's record, and the completion's where an order names its checkout.
fn records(post: &Post) -> Vec<(Record, Event)> {
    let body: Bytes = serde_json::to_vec(&post.body).unwrap().into();
    let event = Event::from_body(&body).unwrap();
    let (key_kind, key) = event.partition_key(&post.id);
    let mut flags = Flags::default();
    if post.crawler {
        flags.set(Flags::CRAWLER);
    }
    let record = Record {
        kind: RecordKind::Event,
        body_key: 0,
        site: site(),
        event_id: post.id.clone(),
        fingerprint: fingerprint(&body),
        received_at: post.received_at,
        key_kind,
        key: key.to_owned(),
        flags,
        channel: post.channel,
        body,
    };
    let party = event.checkout_party().filter(|_| event.kind == kind::ORDER_COMPLETED);
    let derived = party.map(|(key_kind, key)| {
        let derived = Record { kind: RecordKind::Completion, event_id: completion_id(&post.id), key_kind, key: key.to_owned(), ..record.clone() };
        (derived, event.clone())
    });
    [(record, event.clone())].into_iter().chain(derived).collect()
}

fn row(rules: &SiteRules, record: &Record, event: &Event, (partition, offset): (u16, u64), verdict: Verdict) -> EventRow {
    let customer = event.customer.as_ref();
    let hash = |id: Option<&String>| id.map(|id| rules.person_hash(id));
    let items = event.order.iter().filter_map(|order| order.items.as_ref()).flatten().map(|item| item.product_id.clone());
    EventRow {
        site: record.site.clone(),
        event_id: record.event_id.clone(),
        fingerprint: record.fingerprint,
        key_kind: record.key_kind,
        kind: event.kind.clone(),
        occurred_at: event.occurred_at,
        received_at: record.received_at,
        partition,
        offset,
        verdict,
        flags: record.flags,
        channel: record.channel,
        customer: hash(customer.and_then(|c| c.id.as_ref())),
        visitor: hash(customer.and_then(|c| c.anonymous_id.as_ref())),
        products: event.product.iter().map(|p| p.id.clone()).chain(items).collect::<std::collections::BTreeSet<_>>().into_iter().collect(),
        objects: event.product.iter().map(|p| (ObjectKind::Map, format!("product.{}", p.id))).collect(),
        body_key: 0,
        body: record.body.clone(),
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Runs a future to its end.
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}
