//! The change: one record of the `changes` topic, all that one event (or API client, or archiver) does to one sync object. Written by
//! router and archiver, read by the keeper. Pure data and its version 1 wire format (a version byte, then postcard).

use compact_str::CompactString;
use serde::{Deserialize, Serialize};

use super::ids::{SiteId, partition_of};
use super::{Currency, Timestamp};

/// Version byte that opens every change this build writes.
pub const VERSION: u8 = 1;

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
    #[error("change version {0} is newer than this build reads ({VERSION})")]
    Version(u8),
    /// Not a change.
    #[error("change is malformed")]
    Malformed,
}

impl Change {
    /// Version 1 bytes.
    pub fn to_bytes(&self) -> bytes::Bytes {
        // Serialising plain data into memory cannot fail; an empty record would be refused by every reader.
        let mut out = Vec::with_capacity(256);
        out.push(VERSION);
        postcard::to_extend(self, out).unwrap_or_default().into()
    }

    /// Reads version 1 bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, ChangeError> {
        match bytes.split_first() {
            Some((&VERSION, rest)) => postcard::from_bytes(rest).map_err(|_| ChangeError::Malformed),
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
        assert_eq!(Change::decode(&[2, 0]), Err(ChangeError::Version(2)));
        assert_eq!(Change::decode(&[]), Err(ChangeError::Malformed));
    }
}
