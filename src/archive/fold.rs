//! From records to what is written: each record read, judged by identity and counted, in offset order per partition. Called by the archiver on a
//! blocking thread; pure (records, memory and rules in, values out), so that a batch folded again gives the same.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

use super::recall::Recalled;
use super::rollup::{Additions, Judged, Labels, hour_of, is_taken};
use super::{Books, CellValue, Cursor, EventRow, QuarantineRow, WriteBatch};
use crate::event::identity::{Entry, IdentityKey, Verdict, fold, key_of};
use crate::event::record::{Quarantined, Refusals};
use crate::event::{Event, ObjectKind, Record, RecordKind, RulesOf, SiteId, SiteRules, Timestamp};
use crate::eventlog::Stored;

/// Most products an event row can be found by.
const MAX_PRODUCTS: usize = 64;

/// Code of a record that could not be read.
pub const UNREADABLE: &str = "unreadable_record";

/// Code of an event whose rows the store refuses.
pub const REFUSED: &str = "refused_by_store";

/// Gives the names of the objects an event touches, in order. Asked for events that count or report; wired to the mapping by the composition root.
pub type ObjectsOf = std::sync::Arc<dyn Fn(&Touching<'_>) -> Vec<(ObjectKind, String)> + Send + Sync>;

/// An event whose objects are asked for.
pub struct Touching<'a> {
    /// Record, event, rules and what identity made of it.
    pub judged: Judged<'a>,
    /// The record's offset.
    pub offset: u64,
}

/// One record of the log as far as it could be read.
#[derive(Debug)]
pub(super) struct Taken {
    partition: u16,
    offset: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    Judged {
        record: Record,
        event: Box<Event>,
        key: IdentityKey,
    },
    Quarantine(Record, Box<Quarantined>),
    Refusals(Record, Refusals),
    /// Its envelope was read, and what it holds is not to be taken: by which code, and why.
    Bad(Record, &'static str, String),
    /// Not even its envelope was read.
    Unreadable(Bytes, String),
}

/// Reads a partition's records. None is passed over: what cannot be read is taken as that.
pub(super) fn take(partition: u16, records: Vec<Stored>) -> impl Iterator<Item = Taken> {
    records.into_iter().map(move |Stored { offset, value }| Taken { partition, offset, what: What::read(value) })
}

impl What {
    fn read(bytes: Bytes) -> Self {
        let record = match Record::decode(&bytes) {
            Ok(record) => record,
            Err(error) => return Self::Unreadable(bytes, error.to_string()),
        };
        let error = match record.kind {
            RecordKind::Event | RecordKind::Completion => match Event::from_body(&record.body) {
                Ok(event) => return Self::Judged { key: key_of(&record, &event), event: Box::new(event), record },
                Err(error) => error,
            },
            RecordKind::Quarantine => match serde_json::from_slice(&record.body) {
                Ok(quarantined) => return Self::Quarantine(record, Box::new(quarantined)),
                Err(error) => error,
            },
            RecordKind::Refusals => match serde_json::from_slice(&record.body) {
                Ok(refusals) => return Self::Refusals(record, refusals),
                Err(error) => error,
            },
        };
        // What the parser says may quote the body.
        Self::Bad(record, UNREADABLE, format!("the body is not what its kind says (line {}, column {})", error.line(), error.column()))
    }
}

impl Taken {
    /// Sets an event aside that the archive cannot keep.
    pub(super) fn set_aside(self, why: &str) -> Self {
        let what = match self.what {
            What::Judged { record, .. } if record.kind == RecordKind::Event => What::Bad(record, REFUSED, why.to_owned()),
            other => other,
        };
        Self { what, ..self }
    }

    /// Where it stands.
    pub(super) const fn place(&self) -> (u16, u64) {
        (self.partition, self.offset)
    }

    /// The identity entry that decides on it.
    pub(super) fn key(&self) -> Option<(u16, IdentityKey)> {
        self.judged().map(|(partition, _, _, key)| (partition, key))
    }

    /// Its partition, record, event and identity entry, where identity decides on it.
    pub(super) fn judged(&self) -> Option<(u16, &Record, &Event, IdentityKey)> {
        match &self.what {
            What::Judged { record, event, key } => Some((self.partition, record, event, *key)),
            _ => None,
        }
    }
}

/// What a batch of records adds and changes.
#[derive(Default)]
pub(super) struct Folded {
    /// Cells, as differences.
    pub(super) additions: Additions,
    /// Books, as differences.
    pub(super) books: HashMap<(u16, SiteId, Timestamp), Books>,
    /// Entries read or made, with what is to be saved of them.
    pub(super) entries: HashMap<IdentityKey, Entry>,
    recalled: Recalled,
    changed: BTreeMap<IdentityKey, Changed>,
    events: Vec<EventRow>,
    labels: Labels,
    links: BTreeSet<(SiteId, [u8; 16], [u8; 16])>,
    quarantine: Vec<QuarantineRow>,
    cursors: BTreeMap<u16, Cursor>,
    people: Hashes,
    /// How many records of each verdict.
    pub(super) verdicts: [u64; 4],
}

/// Keyed hashes of a batch's people: each costs as much as reading the event, and most people do several things.
#[derive(Default)]
struct Hashes(HashMap<SiteId, HashMap<String, [u8; 16]>>);

impl Hashes {
    fn hash(&mut self, site: &SiteId, id: &str, rules: &SiteRules) -> [u8; 16] {
        if let Some(known) = self.0.get(site).and_then(|of_site| of_site.get(id)) {
            return *known;
        }
        let hash = rules.person_hash(id);
        self.0.entry(site.clone()).or_default().insert(id.to_owned(), hash);
        hash
    }
}

/// An identity entry to save.
struct Changed {
    partition: u16,
    site: SiteId,
    /// Whether the order or checkout it holds is to be written too.
    view: bool,
}

/// Folds records, in offset order per partition. `entries` are the identity entries known of all their keys, `recalled` what the archive knows beyond them,
/// `cursors` where their partitions were.
pub(super) fn fold_all(
    taken: Vec<Taken>,
    entries: HashMap<IdentityKey, Entry>,
    recalled: Recalled,
    cursors: BTreeMap<u16, Cursor>,
    rules: &RulesOf,
    objects_of: &ObjectsOf,
) -> Folded {
    let mut folded = Folded { entries, recalled, cursors, ..Folded::default() };
    for Taken { partition, offset, what } in taken {
        let received_at = match &what {
            What::Judged { record, .. } | What::Quarantine(record, _) | What::Refusals(record, _) | What::Bad(record, ..) => record.received_at,
            What::Unreadable(..) => Timestamp::from_micros(i64::MIN),
        };
        let cursor = folded.cursors.entry(partition).or_default();
        *cursor = Cursor { next: offset + 1, received_at: cursor.received_at.max(received_at) };
        let unreadable_at = cursor.received_at;
        match what {
            What::Judged { record, event, key } => folded.judge(partition, offset, &record, &event, key, rules, objects_of),
            What::Quarantine(record, quarantined) => folded.quarantine(partition, offset, &record, *quarantined),
            What::Refusals(record, refusals) => {
                let books = folded.books(partition, &record);
                for (code, count) in refusals.by_code {
                    *books.refused.entry(code).or_default() += count;
                }
            }
            What::Bad(record, code, message) => folded.bad(partition, offset, record, code, message),
            What::Unreadable(raw, message) => folded.quarantine.push(QuarantineRow {
                site: None,
                event_id: String::new(),
                received_at: unreadable_at,
                partition,
                offset,
                code: UNREADABLE.into(),
                message,
                pointer: String::new(),
                raw,
            }),
        }
    }
    folded
}

impl Folded {
    fn books(&mut self, partition: u16, record: &Record) -> &mut Books {
        self.books.entry((partition, record.site.clone(), hour_of(record.received_at))).or_default()
    }

    #[expect(clippy::too_many_arguments, reason = "one record with all that it is judged by")]
    fn judge(&mut self, partition: u16, offset: u64, record: &Record, event: &Event, key: IdentityKey, rules: &RulesOf, objects_of: &ObjectsOf) {
        let rules = rules(&record.site);
        let mut entry = self.entries.remove(&key);
        let recalled = self.recalled.add_to(&mut entry, record, event);
        let outcome = fold(&mut entry, record, event, offset);
        let judged = Judged { partition, record, event, outcome: &outcome, rules: &rules };
        let mut hash = |id: Option<&String>| id.map(|id| self.people.hash(&record.site, id, &rules));
        let customer = hash(event.customer.as_ref().and_then(|customer| customer.id.as_ref()));
        let visitor = hash(event.customer.as_ref().and_then(|customer| customer.anonymous_id.as_ref()));
        self.additions.count(judged, customer.as_ref().or(visitor.as_ref()));
        if let Some(count) = self.verdicts.get_mut(outcome.verdict as usize) {
            *count += 1;
        }
        let completion = record.kind == RecordKind::Completion;
        let books = self.books(partition, record);
        match outcome.verdict {
            _ if completion => books.derived += 1,
            Verdict::Duplicate => books.duplicate += 1,
            Verdict::Counted | Verdict::Report | Verdict::Conflict => books.archived += 1,
        }
        books.appended += u64::from(!completion);
        let taken = is_taken(outcome.verdict);
        if taken {
            self.labels.take(record, event, &rules);
            if let (Some(visitor), Some(customer)) = (visitor, customer) {
                self.links.insert((record.site.clone(), visitor, customer));
            }
        }
        if !completion && outcome.verdict != Verdict::Duplicate {
            let objects = if taken { objects_of(&Touching { judged, offset }) } else { Vec::new() };
            self.events.push(event_row(judged, offset, customer, visitor, objects));
        }
        self.remember(judged, key, entry, recalled);
    }

    /// Keeps an entry for the next record of its key, and notes what of it is to be written.
    fn remember(&mut self, judged: Judged<'_>, key: IdentityKey, entry: Option<Entry>, recalled: bool) {
        let Some(entry) = entry else { return };
        let effects = &judged.outcome.effects;
        // A repeat leaves an entry as it was, but for what was recalled and for a checkout's signs of life.
        if recalled || judged.outcome.verdict != Verdict::Duplicate || matches!(entry, Entry::Checkout(_)) {
            let new = Changed { partition: judged.partition, site: judged.record.site.clone(), view: false };
            self.changed.entry(key).or_insert(new).view |= effects.order_changed || effects.checkout_changed;
        }
        self.entries.insert(key, entry);
    }

    fn quarantine(&mut self, partition: u16, offset: u64, record: &Record, quarantined: Quarantined) {
        let books = self.books(partition, record);
        books.appended += 1;
        books.quarantined += 1;
        let raw = Bytes::copy_from_slice(quarantined.event.get().as_bytes());
        let Quarantined { code, message, pointer, .. } = quarantined;
        self.quarantine.push(QuarantineRow {
            site: Some(record.site.clone()),
            event_id: record.event_id.clone(),
            received_at: record.received_at,
            partition,
            offset,
            code,
            message,
            pointer,
            raw,
        });
    }

    fn bad(&mut self, partition: u16, offset: u64, record: Record, code: &'static str, message: String) {
        let counted = record.kind == RecordKind::Event || record.kind == RecordKind::Quarantine;
        let books = self.books(partition, &record);
        books.appended += u64::from(counted);
        books.quarantined += u64::from(counted);
        self.quarantine.push(QuarantineRow {
            // What no books count is in nobody's list.
            site: counted.then_some(record.site),
            event_id: record.event_id,
            received_at: record.received_at,
            partition,
            offset,
            code: code.into(),
            message,
            pointer: String::new(),
            raw: record.body,
        });
    }

    /// The batch to write, in which differences become absolute values over what was known before; and the orders and checkouts as they now are.
    pub(super) fn into_batch(
        mut self,
        rules: &RulesOf,
        known_cell: impl FnMut(&(u16, super::CellKey)) -> Option<CellValue>,
        mut known_books: impl FnMut(&(u16, SiteId, Timestamp)) -> Option<Books>,
    ) -> (WriteBatch, HashMap<IdentityKey, Entry>) {
        let mut batch = WriteBatch {
            events: self.events,
            cells: self.additions.apply(known_cell),
            labels: self.labels.into_rows(),
            links: self.links.into_iter().collect(),
            quarantine: self.quarantine,
            cursors: self.cursors.into_iter().collect(),
            ..WriteBatch::default()
        };
        for (key, Changed { partition, site, view }) in self.changed {
            let Some(entry) = self.entries.remove(&key) else { continue };
            if view {
                let hashed = |person: Option<String>| person.map(|id| hex(&rules(&site).person_hash(&id)));
                batch.orders.extend(entry.order().map(|mut order| {
                    order.person = hashed(order.person);
                    (partition, site.clone(), order)
                }));
                batch.checkouts.extend(entry.checkout().map(|mut checkout| {
                    checkout.person = hashed(checkout.person);
                    (partition, site.clone(), checkout)
                }));
            }
            if !matches!(entry, Entry::Event(_)) {
                self.entries.insert(key, entry.clone());
            }
            batch.identities.push((partition, key, entry));
        }
        for (key, books) in self.books {
            let mut sum = known_books(&key).unwrap_or_default();
            sum.add(&books);
            batch.books.push((key.0, key.1, key.2, sum));
        }
        (batch, self.entries)
    }
}

/// The row that keeps an event.
fn event_row(judged: Judged<'_>, offset: u64, customer: Option<[u8; 16]>, visitor: Option<[u8; 16]>, objects: Vec<(ObjectKind, String)>) -> EventRow {
    let Judged { partition, record, event, outcome, .. } = judged;
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
        verdict: outcome.verdict,
        flags: record.flags,
        channel: record.channel,
        customer,
        visitor,
        products: products_of(event),
        objects,
        body_key: record.body_key,
        body: record.body.clone(),
    }
}

/// The first distinct products an event names, sorted.
fn products_of(event: &Event) -> Vec<String> {
    let cart = event.cart.iter().flat_map(|cart| &cart.items);
    let order = event.order.iter().filter_map(|order| order.items.as_ref()).flatten();
    let named = event.product.iter().map(|product| &product.id).chain(cart.chain(order).map(|item| &item.product_id));
    let mut distinct = BTreeSet::new();
    for product in named {
        if distinct.len() >= MAX_PRODUCTS {
            break;
        }
        distinct.insert(product);
    }
    distinct.into_iter().cloned().collect()
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}
