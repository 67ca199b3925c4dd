//! Identity: the pure fold that decides what a record counts for. Router and archiver both run it over each partition of
//! `events`, each with its own memory kept beside its own offset, and so reach the same verdicts. Reads no clock and no store.
//!
//! Scope of an identity is (site, partition key kind, partition key, its own key), so that one partition decides alone:
//!
//! * **Event** entries (every event without a business key). The first report of an event id counts. An id's whole set of
//!   fingerprints is remembered; a repeat of any of them is a duplicate; a new one under a known id is kept as an event row,
//!   flagged `conflict`, and not counted. The entry stores the offset of its first report, so that the record at that very offset,
//!   replayed, is the report itself. Kept 7 days of the partition's greatest `received_at`.
//! * **Order** entries (one per order id, its refunds within) and **Checkout** entries (one per checkout, see
//!   [`Event::checkout_name`]; every step, and the completion, within) have the business key decide instead, and are kept as long
//!   as the archive: each (event id, fingerprint, channel) is one report, with an event row of its own; what a record adds = f(reports up
//!   to it) - f(reports before it), where f takes the best report of each fact. Best: channel webhook, then server, then pixel; then the
//!   smaller fingerprint; then the smaller event id. Arrival order therefore does not matter, and a replay gives the same verdict. The same
//!   content under the same id by a second channel is a further report: were it a repeat, the row would keep the first channel, and no
//!   recount of the rows could find what the better one counts for.
//!
//! Two records of one report may still differ in what arrival filled in: `occurred_at` and the crawler flag. The report's first appearance in the
//! partition decides, as it is the one that has a row. A repeat never changes what counts; it is a sign of life of its checkout, no more.
//!
//! **Replay.** A reader starts at its stored offset with its stored memory. Both are stored at once, or the memory after the sums and before
//! the offset; so the memory is never older than the offset, and it may be newer. A newer memory meets records it holds already: each is told by
//! the offset of its first appearance and gets the verdict it got then; its effects, which stand in the sums since before the memory was
//! stored, are not given again. (A conflict of an event id, and a repeat, read as a duplicate: their rows stand already.)
//!
//! **The archive's own time.** It keeps the rows of events for longer than their entries: what these tell, [`recall`] adds before the fold. It lets days of rows go at
//! last: what orders and checkouts count for then, [`forget`] takes out of their entries.

mod checkouts;
mod orders;
mod reports;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use super::ids::{events_partition, first_16, sha256};
use super::record::{Record, RecordKind};
use super::{Currency, Event, KeyKind, SiteId, Timestamp, kind};

pub use checkouts::CheckoutEntry;
pub use orders::OrderEntry;

/// 16 bytes that name an entry of a partition's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IdentityKey(pub [u8; 16]);

/// How long an event entry is kept, counted back from its partition's greatest `received_at`. Longer than every sender's retries.
pub const EVENT_MEMORY_SECONDS: i64 = 7 * 86_400;

/// Most reports an order, refund or step remembers (and most fingerprints an event id); a further new one is a [`Verdict::Conflict`].
pub const MAX_REPORTS: usize = 1_000;

/// Most refunds of one order, and most (step, status) pairs of one checkout; the report of a further one is a [`Verdict::Conflict`].
pub const MAX_FACTS: usize = 1_000;

/// What a partition remembers under one [`IdentityKey`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Entry {
    /// An event without a business key.
    Event(EventEntry),
    /// An order with its refunds.
    Order(OrderEntry),
    /// A checkout with its steps and completion.
    Checkout(CheckoutEntry),
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Verdict {
    /// The first report of its id or fact: archived, and its [`Effects`] are what it adds.
    Counted = 0,
    /// A further report of a known order, refund or step: archived; its [`Effects`] are the difference it makes, often none.
    Report = 1,
    /// A repeat: no row, no count, and no effect but on the signs of life of its checkout (`last_at`, `last_step`, `value`), which take every
    /// appearance.
    Duplicate = 2,
    /// A known event id with new content, or a report past [`MAX_REPORTS`] or [`MAX_FACTS`]: archived and flagged, no effect.
    Conflict = 3,
}

/// One product's part in a change of sales. Numbers are differences; negative for refunds and corrections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sale {
    /// The product.
    pub product_id: String,
    /// When it counts: `occurred_at` of the best report of the order or of the refund.
    pub at: Timestamp,
    /// Whether that report came from a crawler.
    pub crawler: bool,
    /// Pieces.
    pub units: i64,
    /// Orders that hold the product (refunds do not lower it).
    pub orders: i64,
    /// Money by currency, in code order, no zero amounts.
    pub revenue: Vec<(Currency, i64)>,
}

/// A change in how often a checkout step was reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepCount {
    /// The step; [`ORDER_STEP`] for a completion by an order.
    pub step: String,
    /// Entered or completed.
    pub status: super::StepStatus,
    /// When it counts: `occurred_at` of the best report.
    pub at: Timestamp,
    /// Whether that report came from a crawler.
    pub crawler: bool,
    /// +1 or -1.
    pub count: i64,
}

/// The step name of a completion derived from an order.
pub const ORDER_STEP: &str = "(order)";

/// What a record adds to everything that counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effects {
    /// Changes of products' sales, by (product, at).
    pub sales: Vec<Sale>,
    /// Changes of steps' counts.
    pub steps: Vec<StepCount>,
    /// For order records: whether the order (or refund) as it stands changed with this record.
    pub order_changed: bool,
    /// For checkout records: whether the checkout as it stands (including `last_at`) changed with this record.
    pub checkout_changed: bool,
}

/// The verdict on a record and what it adds.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// What became of it.
    pub verdict: Verdict,
    /// What it adds.
    pub effects: Effects,
}

/// Memory of an event without a business key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventEntry {
    /// Offset of the first report.
    pub first: u64,
    /// Fingerprints seen; the first one first, the rest sorted.
    pub fingerprints: Vec<u64>,
}

/// An order as its reports stand: what the archive keeps a row of and `customer.<id>` shows.
#[derive(Clone, Debug, PartialEq)]
pub struct OrderView {
    /// The order's id.
    pub order_id: String,
    /// `occurred_at` of the best report; None while only refunds are known.
    pub at: Option<Timestamp>,
    /// The person of the best report (customer id, else anonymous id).
    pub person: Option<String>,
    /// What the best report says was paid; the sum of its lines by their first currency where it says nothing.
    pub total: Option<super::Money>,
    /// Pieces sold, before refunds.
    pub units: i64,
    /// Money given back by currency.
    pub refunded: Vec<(Currency, i64)>,
    /// All that this order and its refunds count for, as absolute values: the rows that `top-sold` sums. By (at, product).
    pub sales: Vec<Sale>,
}

/// A checkout as its reports stand.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckoutView {
    /// See [`Event::checkout_name`].
    pub checkout: String,
    /// The person of the latest best report that names one (customer id, else anonymous id).
    pub person: Option<String>,
    /// Steps reached, each once, by (step, status), with the time each counts at; the completion by an order is not among them.
    pub steps: Vec<StepCount>,
    /// Its completion by an order.
    pub completed: Option<Completion>,
    /// Value of the latest report (by occurred_at) that states one.
    pub value: Option<super::Money>,
    /// Step of the latest report (by occurred_at, then the order entered < completed).
    pub last_step: Option<String>,
    /// Greatest `occurred_at` of all reports of all steps, repeats included.
    pub last_at: Timestamp,
    /// Whether the latest best report came from a crawler.
    pub crawler: bool,
}

/// The completion of a checkout by an order. Its shopper need not be of the sort that the checkout was last seen with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// When it counts: `occurred_at` of the order's best report.
    pub at: Timestamp,
    /// Whether that report came from a crawler.
    pub crawler: bool,
}

/// Whether a business key, not the event id, decides on events of this type: on orders, refunds and checkout steps. The channel is then part
/// of what makes a report.
pub fn has_business_key(event_kind: &str) -> bool {
    matches!(event_kind, kind::ORDER_COMPLETED | kind::ORDER_REFUNDED | kind::CHECKOUT_STEP)
}

/// The key of the entry that decides on a record of kind [`RecordKind::Event`] or [`RecordKind::Completion`].
pub fn key_of(record: &Record, event: &Event) -> IdentityKey {
    let (own_kind, own): (&str, std::borrow::Cow<'_, str>) = match (record.kind, event.kind.as_str()) {
        (RecordKind::Completion, _) | (_, kind::CHECKOUT_STEP) => {
            ("checkout", event.checkout_name().map_or(record.event_id.as_str().into(), Into::into))
        }
        (_, kind::ORDER_COMPLETED | kind::ORDER_REFUNDED) => ("order", record.key.as_str().into()),
        _ => ("event", record.event_id.as_str().into()),
    };
    named(&record.site, record.key_kind, &record.key, own_kind, &own)
}

/// The key of an order's entry.
pub fn order_key(site: &SiteId, order_id: &str) -> IdentityKey {
    named(site, KeyKind::Order, order_id, "order", order_id)
}

/// The keys that the entry of a checkout of this name can have, see [`Event::checkout_name`]: the name alone does not tell what gave it.
pub fn checkout_keys(site: &SiteId, name: &str) -> Vec<IdentityKey> {
    checkout_places(site, name).into_iter().map(|(_, key)| key).collect()
}

/// The same, each with the partition that an entry of this key belongs to.
pub fn checkout_places(site: &SiteId, name: &str) -> Vec<(u16, IdentityKey)> {
    let days = [KeyKind::Session, KeyKind::Anonymous, KeyKind::Customer].into_iter().filter_map(|kind| {
        let (id, _day) = name.strip_prefix(kind.name())?.strip_prefix(':')?.rsplit_once(':')?;
        Some((kind, id))
    });
    let kinds = [(KeyKind::Checkout, name), (KeyKind::Event, name)].into_iter().chain(days);
    kinds.map(|(kind, key)| (events_partition(site, kind, key), named(site, kind, key, "checkout", name))).collect()
}

fn named(site: &SiteId, key_kind: KeyKind, key: &str, own_kind: &str, own: &str) -> IdentityKey {
    let parts = [site.as_str(), key_kind.name(), key, own_kind, own].map(str::as_bytes);
    IdentityKey(first_16(&sha256(&parts)))
}

/// Folds one record of kind [`RecordKind::Event`] or [`RecordKind::Completion`] into the entry found under its [`key_of`] (None = unknown)
/// and says what it adds. `offset` is the record's. Records of one partition are folded in offset order; see "Replay" above.
pub fn fold(entry: &mut Option<Entry>, record: &Record, event: &Event, offset: u64) -> Outcome {
    let known = entry.get_or_insert_with(|| match (record.kind, event.kind.as_str()) {
        (RecordKind::Completion, _) | (_, kind::CHECKOUT_STEP) => Entry::Checkout(CheckoutEntry::default()),
        (_, kind::ORDER_COMPLETED | kind::ORDER_REFUNDED) => Entry::Order(OrderEntry::default()),
        _ => Entry::Event(EventEntry { first: offset, fingerprints: vec![record.fingerprint] }),
    });
    match known {
        Entry::Event(entry) => Outcome { verdict: entry.fold(record, offset), effects: Effects::default() },
        Entry::Order(entry) => entry.fold(record, event, offset),
        Entry::Checkout(entry) => entry.fold(record, event, offset),
    }
}

/// Adds to an event's entry (None = unknown) a report that is known from elsewhere, judged at `offset`; whether the entry changed. For a memory that
/// may have forgotten what its archive keeps.
pub fn recall(entry: &mut Option<Entry>, fingerprint: u64, offset: u64) -> bool {
    match entry {
        None => {
            *entry = Some(Entry::Event(EventEntry { first: offset, fingerprints: vec![fingerprint] }));
            true
        }
        Some(Entry::Event(known)) => known.learn(fingerprint),
        Some(Entry::Order(_) | Entry::Checkout(_)) => false,
    }
}

/// Forgets what an order or checkout counts for at times that are `gone`, fact by fact, so that the rest counts as though that had never been told; None is left where
/// there is no rest. Gives what that changes at the times that stay. An event's entry has its own time to live.
pub fn forget(entry: &mut Option<Entry>, gone: &dyn Fn(Timestamp) -> bool) -> Vec<Sale> {
    let (left, changed) = match entry {
        Some(Entry::Order(order)) => order.forget(gone),
        Some(Entry::Checkout(checkout)) => (checkout.forget(gone), Vec::new()),
        Some(Entry::Event(_)) | None => return Vec::new(),
    };
    if !left {
        *entry = None;
    }
    changed
}

impl EventEntry {
    /// The entry of an unknown id already names this record as its first report.
    fn fold(&mut self, record: &Record, offset: u64) -> Verdict {
        if self.first == offset {
            return Verdict::Counted;
        }
        if self.learn(record.fingerprint) { Verdict::Conflict } else { Verdict::Duplicate }
    }

    /// Remembers a fingerprint, as far as there is room; whether it is new.
    fn learn(&mut self, fingerprint: u64) -> bool {
        let Some((first, rest)) = self.fingerprints.split_first() else { return true };
        match rest.binary_search(&fingerprint) {
            _ if *first == fingerprint => false,
            Ok(_) => false,
            Err(at) => {
                if self.fingerprints.len() < MAX_REPORTS {
                    self.fingerprints.insert(at + 1, fingerprint);
                }
                true
            }
        }
    }
}

impl Entry {
    /// Version 1 bytes: a version byte, then postcard.
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![1]).unwrap_or_default()
    }

    /// Reads version 1 bytes; None where they are none.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first() {
            Some((1, rest)) => postcard::from_bytes(rest).ok(),
            _ => None,
        }
    }

    /// The order, if it is one.
    pub fn order(&self) -> Option<OrderView> {
        match self {
            Self::Order(entry) => Some(entry.view()),
            Self::Event(_) | Self::Checkout(_) => None,
        }
    }

    /// The checkout, if it is one.
    pub fn checkout(&self) -> Option<CheckoutView> {
        match self {
            Self::Checkout(entry) => Some(entry.view()),
            Self::Event(_) | Self::Order(_) => None,
        }
    }
}
