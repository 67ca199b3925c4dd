//! The change: one record of the `changes` topic, all that one event (or API client, or archiver) does to one sync object. Written by
//! router, archiver and the nodes that API clients ask, read by the keeper. Pure data and its wire format (a version byte, then postcard): version 1, and
//! version 2 for what version 1 has no word for, the calls of API clients.

use compact_str::CompactString;
use serde::{Deserialize, Serialize};

use super::ids::{SiteId, partition_of};
use super::{Currency, Timestamp};

/// Version byte that opens changes without calls.
const VERSION: u8 = 1;
/// Version byte that opens changes with calls: the same, with more origins and operations.
const WITH_CALLS: u8 = 2;

/// The four kinds of sync object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum ObjectKind {
    /// One JSON object.
    Document = 0,
    /// Items in the order of their index.
    List = 1,
    /// Items by key.
    Map = 2,
    /// Messages, not kept.
    Stream = 3,
}

/// Names one sync object. Ordered by site, kind, name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    /// The shop, whose Sync service it belongs to.
    pub site: SiteId,
    /// Its kind.
    pub kind: ObjectKind,
    /// Its unique name, encoded as DESIGN's "Names" say, at most 320 bytes.
    pub name: String,
}

impl ObjectKey {
    /// The partition of `changes` that owns the object.
    pub fn partition(&self) -> u16 {
        partition_of(&[self.site.as_str().as_bytes(), b"object", &[self.kind as u8], self.name.as_bytes()])
    }
}

/// Orders competing values: greater time, then greater key (event id, or business key) wins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// min(occurred_at, received_at).
    pub at: Timestamp,
    /// The event's id.
    pub id: String,
}

/// Whose change it is, and so what makes it a repeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// An event's: a record whose (offset, number) is not above the last one read of the same `events` partition is a repeat.
    Event {
        /// Partition of `events`.
        partition: u16,
        /// The event's offset there.
        offset: u64,
        /// The object's number among the event's objects, in key order, from 0.
        number: u16,
    },
    /// The archiver's full replacement of a dashboard document; only a greater version is taken.
    Archive {
        /// Sum of the `events` offsets the data includes.
        version: u64,
    },
    /// Removal of an object that expired: taken only if the object's `upto` is still the one given.
    Expiry {
        /// The offset the object included when it was found expired.
        unchanged_since: u64,
    },
    /// An API client's, or on behalf of none: taken or not as the object stands at this place in the log, each [`Op::Call`] for itself.
    Client {
        /// Names the request, for the answer; nil where nobody waits for one.
        request: RequestId,
        /// Who asks: a token's identity, or `system` for an account's own credentials.
        identity: String,
    },
}

/// Names one request of an API client, over all nodes.
pub type RequestId = [u8; 16];

/// What API clients ask of one object. Lifetimes are seconds from the change's `received_at`, 0 = for ever. Conditions (`if_revision`) name the revision that
/// the object or item must have, as [`crate::sync`] counts: the first is 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Call {
    /// Begins an object that does not exist.
    Create {
        /// A document's data, or a list's context, JSON text.
        data: Option<String>,
        /// The object's lifetime.
        ttl: Option<u32>,
    },
    /// Changes an object that exists: a document's data, its lifetime.
    Update {
        /// See above.
        if_revision: Option<u64>,
        /// A document's new data, JSON text.
        data: Option<String>,
        /// Its new lifetime.
        ttl: Option<u32>,
    },
    /// Removes an object, with all it has.
    Remove {
        /// See above.
        if_revision: Option<u64>,
    },
    /// Puts an item.
    PutItem {
        /// Which, and what must hold of it.
        item: PutItem,
        /// Its new data, JSON text; None leaves it.
        data: Option<String>,
        /// Its lifetime; None leaves it, a new item's is then for ever.
        ttl: Option<u32>,
        /// The object's new lifetime.
        collection_ttl: Option<u32>,
    },
    /// Removes an item.
    RemoveItem {
        /// Key of a map's item; a list's index as 16 hexadecimal digits.
        item: String,
        /// See above.
        if_revision: Option<u64>,
    },
    /// Tells a stream's subscribers; nothing is kept.
    Publish {
        /// The message's SID.
        sid: String,
        /// JSON text.
        data: String,
    },
    /// Says what an identity may do with the object; nothing at all = as one never named.
    Permit {
        /// Whom.
        identity: String,
        /// What.
        rights: Rights,
    },
    /// Removes what is past its lifetime at `received_at`: items, or the object. Asked by its keeper.
    Expire,
}

/// Which item a call puts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PutItem {
    /// A new one behind all that a list ever had.
    Append,
    /// One that a map does not have.
    Add(String),
    /// One that is there, of that revision if one is given.
    Set(String, Option<u64>),
    /// A map's, whether it is there or not; of that revision if one is given.
    Upsert(String, Option<u64>),
}

/// What an identity may do with an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// Read it and its items.
    pub read: bool,
    /// Change a document; add, change and remove items; publish.
    pub write: bool,
    /// Remove the object.
    pub manage: bool,
}

impl Rights {
    /// All of them.
    pub const ALL: Self = Self { read: true, write: true, manage: true };
    /// None of them.
    pub const NONE: Self = Self { read: false, write: false, manage: false };
}

/// All that one origin does to one object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The object.
    pub key: ObjectKey,
    /// Whose change.
    pub origin: Origin,
    /// `received_at` of the event; judges expiry.
    pub received_at: Timestamp,
    /// Competes with other changes' stamps.
    pub stamp: Stamp,
    /// What is done, in this order.
    pub ops: Vec<Op>,
}

/// One operation on one object. All but [`Op::Replace`] and [`Op::Remove`] commute with each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Op {
    /// Merges into one field of one item of a map, or of the document (item empty).
    Merge {
        /// Map item key; empty for a document.
        item: CompactString,
        /// Field of the item's JSON object. An empty field means that the merged value is the item's whole data.
        field: CompactString,
        /// How.
        with: Merge,
    },
    /// Adds a list item at an index that the event itself determines; the list keeps the `keep` greatest indexes.
    Append {
        /// Ordered as the events are: see `sync::mapping`.
        index: u64,
        /// JSON text.
        data: String,
        /// How many items the list keeps.
        keep: u32,
    },
    /// Replaces a document's data whole (JSON text).
    Replace {
        /// JSON text of an object.
        data: String,
    },
    /// Removes the object.
    Remove,
    /// What an API client asks; comes with [`Origin::Client`] alone, and nothing else beside it but more calls.
    Call(Call),
}

/// How a value merges into what is there. Every one gives the same result in any order; only `Add` and `AddMoney` need each change exactly once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Merge {
    /// A counter: adds.
    Add(i64),
    /// Amounts by currency: adds; shown as `[{"currency","amount_minor"}]` in code order, zero amounts left out.
    AddMoney(Currency, i64),
    /// Last writer: the greatest stamp wins. JSON text. `null` removes the value (the stamp stays).
    Last(String),
    /// Last writer among business facts: keyed by the fact, a better report (greater `rank`) of the same fact replaces the worse whatever
    /// its stamp; among facts the greatest (stamp.at, fact) wins.
    LastFact {
        /// The fact's key, such as an order id.
        fact: String,
        /// Better reports are greater: channel, then the complement of the fingerprint, as bytes.
        rank: Vec<u8>,
        /// JSON text.
        value: String,
    },
    /// Keeps the `cap` greatest entries by (stamp.at, key), at most one per key: the better `rank`, then the later, then the greater text.
    Ring {
        /// What makes two entries the same one: product id, fact key, event id.
        key: String,
        /// See `LastFact`; empty for plain entries.
        rank: Vec<u8>,
        /// JSON text.
        value: String,
        /// How many entries are kept.
        cap: u16,
    },
    /// The greatest number seen.
    Max(i64),
    /// The latest time seen; shown as RFC 3339.
    Latest(Timestamp),
    /// Adds a person's hash to a HyperLogLog sketch; shown as the rounded estimate.
    Visitor(u64),
}

/// Why bytes are no change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// A later version wrote it.
    #[error("change version {0} is newer than this build reads ({WITH_CALLS})")]
    Version(u8),
    /// Not a change.
    #[error("change is malformed")]
    Malformed,
}

impl Change {
    /// Its bytes, of the least version that has words for it.
    pub fn to_bytes(&self) -> bytes::Bytes {
        // Serialising plain data into memory cannot fail; an empty record would be refused by every reader.
        let mut out = Vec::with_capacity(256);
        out.push(if matches!(self.origin, Origin::Client { .. }) { WITH_CALLS } else { VERSION });
        postcard::to_extend(self, out).unwrap_or_default().into()
    }

    /// Reads bytes of either version.
    pub fn decode(bytes: &[u8]) -> Result<Self, ChangeError> {
        match bytes.split_first() {
            Some((&(VERSION | WITH_CALLS), rest)) => postcard::from_bytes(rest).map_err(|_| ChangeError::Malformed),
            Some((&other, _)) => Err(ChangeError::Version(other)),
            None => Err(ChangeError::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_version_1() {
        let change = Change {
            key: ObjectKey { site: SiteId::parse("demo").unwrap(), kind: ObjectKind::Map, name: "product.sku-1".into() },
            origin: Origin::Event { partition: 3, offset: 70_000, number: 1 },
            received_at: Timestamp::from_micros(1_790_000_000_000_001),
            stamp: Stamp { at: Timestamp::from_micros(1_790_000_000_000_000), id: "e-1".into() },
            ops: vec![
                Op::Merge { item: "activity".into(), field: "views".into(), with: Merge::Add(1) },
                Op::Merge { item: "price".into(), field: "".into(), with: Merge::Last("{\"amount_minor\":1}".into()) },
                Op::Append { index: 9, data: "{}".into(), keep: 100 },
            ],
        };
        let hex: String = change.to_bytes().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, include_str!("golden/change_v1.hex").trim());
        assert_eq!(Change::decode(&change.to_bytes()), Ok(change));
        assert_eq!(Change::decode(&[3, 0]), Err(ChangeError::Version(3)));
        assert_eq!(Change::decode(&[]), Err(ChangeError::Malformed));
    }

    #[test]
    fn golden_version_2() {
        let change = Change {
            key: ObjectKey { site: SiteId::parse("demo").unwrap(), kind: ObjectKind::Map, name: "calls".into() },
            origin: Origin::Client { request: [7; 16], identity: "alice".into() },
            received_at: Timestamp::from_micros(1_790_000_000_000_001),
            stamp: Stamp { at: Timestamp::from_micros(1_790_000_000_000_001), id: String::new() },
            ops: [
                Call::Create { data: None, ttl: Some(60) },
                Call::Update { if_revision: Some(1), data: Some("{}".into()), ttl: None },
                Call::PutItem { item: PutItem::Append, data: Some("1".into()), ttl: None, collection_ttl: Some(0) },
                Call::PutItem { item: PutItem::Add("a".into()), data: None, ttl: None, collection_ttl: None },
                Call::PutItem { item: PutItem::Set("a".into(), Some(2)), data: None, ttl: None, collection_ttl: None },
                Call::PutItem { item: PutItem::Upsert("a".into(), None), data: None, ttl: None, collection_ttl: None },
                Call::RemoveItem { item: "a".into(), if_revision: None },
                Call::Publish { sid: "TZ1".into(), data: "2".into() },
                Call::Permit { identity: "bob".into(), rights: Rights { read: true, write: false, manage: true } },
                Call::Expire,
                Call::Remove { if_revision: None },
            ]
            .map(Op::Call)
            .to_vec(),
        };
        let hex: String = change.to_bytes().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, include_str!("golden/change_v2.hex").trim());
        assert_eq!(Change::decode(&change.to_bytes()), Ok(change));
    }
}
