//! How stores spell heads and rows, and by which hour they file an object for expiry: the same bytes in each. Used by the ObjectStores; pure.

use serde::{Deserialize, Serialize};

use super::{Error, Head, Life, Row};
use crate::event::{ObjectKey, Timestamp};

/// Version byte that opens every stored head and row this build writes. In version 1 nothing was an API client's: neither lifetimes nor who created what.
const VERSION: u8 = 2;

/// Where an object is filed for expiry beside its name: on which shelf, and under which hour.
pub(super) type Filing = (Shelf, i64);

/// What an object's filing says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Shelf {
    /// It lives; the hour is that of its last change.
    Living,
    /// It is a tombstone; the hour is that of its removal.
    Removed,
    /// It, or an item of it, has a lifetime; the hour is that of the next end of one.
    Expiring,
}

/// Where an object with this head is filed.
pub(super) const fn filing_of(head: &Head) -> Filing {
    match (head.removed_at, head.next_expiry) {
        (Some(_), _) => (Shelf::Removed, hour_of(head.updated_at)),
        (None, Some(at)) => (Shelf::Expiring, hour_of(at)),
        (None, None) => (Shelf::Living, hour_of(head.updated_at)),
    }
}

/// Whether an object on that shelf is asked for: when it last changed, or its next lifetime ends, before or at a time.
pub(super) fn is_asked_for(shelf: Shelf, head: &Head, at: Timestamp) -> bool {
    match shelf {
        Shelf::Living | Shelf::Removed => head.updated_at < at,
        Shelf::Expiring => head.next_expiry.is_some_and(|next| next <= at),
    }
}

/// The hour an object is filed under for expiry.
pub(super) const fn hour_of(at: Timestamp) -> i64 {
    at.micros().div_euclid(3_600_000_000)
}

/// A row's value but for its name and its state, whose bytes follow as they are.
#[derive(Serialize, Deserialize)]
struct Value {
    first: Value1,
    life: Life,
}

/// What version 1 has.
#[derive(Serialize, Deserialize)]
struct Value1 {
    revision: u64,
    event_id: u64,
    updated_at: Timestamp,
    lives: bool,
}

/// What a head of version 1 has.
#[derive(Serialize, Deserialize)]
struct Head1 {
    event_id: u64,
    revision: u64,
    upto: u64,
    version: u64,
    created_at: Timestamp,
    updated_at: Timestamp,
    removed_at: Option<Timestamp>,
    purged: u64,
    bucket_millis: i64,
    bucket_at: Timestamp,
    bytes: u64,
}

impl From<Head1> for Head {
    fn from(head: Head1) -> Self {
        let Head1 { event_id, revision, upto, version, created_at, updated_at, removed_at, purged, bucket_millis, bucket_at, bytes } = head;
        Self { event_id, revision, upto, version, created_at, updated_at, removed_at, purged, bucket_millis, bucket_at, bytes, ..Self::default() }
    }
}

/// A head's bytes.
pub(super) fn head_to_bytes(head: &Head) -> Vec<u8> {
    // Serialising plain data into memory cannot fail; an empty head is refused by the reader.
    postcard::to_extend(head, vec![VERSION]).unwrap_or_default()
}

/// A row's bytes.
pub(super) fn row_to_bytes(row: &Row) -> Vec<u8> {
    let state = row.state.as_deref();
    let mut out = Vec::with_capacity(32 + state.map_or(0, <[u8]>::len));
    out.push(VERSION);
    let first = Value1 { revision: row.revision, event_id: row.event_id, updated_at: row.updated_at, lives: state.is_some() };
    let value = Value { first, life: row.life.clone() };
    let mut out = postcard::to_extend(&value, out).unwrap_or_default();
    out.extend_from_slice(state.unwrap_or_default());
    out
}

/// Reads a head.
pub(super) fn head_from_bytes(key: &ObjectKey, bytes: &[u8]) -> Result<Head, Error> {
    match bytes.split_first() {
        Some((&1, rest)) => postcard::from_bytes::<Head1>(rest).map(Head::from).map_err(|_| corrupt(key, "its head is malformed")),
        Some((&VERSION, rest)) => postcard::from_bytes(rest).map_err(|_| corrupt(key, "its head is malformed")),
        Some(_) => Err(corrupt(key, "its head is of a later version")),
        None => Err(corrupt(key, "its head is empty")),
    }
}

/// Reads a row of this name.
pub(super) fn row_from_bytes(key: &ObjectKey, item: &str, bytes: &[u8]) -> Result<Row, Error> {
    let malformed = |_| corrupt(key, "a row is malformed");
    let row = |Value1 { revision, event_id, updated_at, lives }, life, state: &[u8]| {
        let state = lives.then(|| state.to_vec());
        Ok(Row { item: item.to_owned(), revision, event_id, updated_at, life, state })
    };
    match bytes.split_first() {
        Some((&1, rest)) => {
            let (first, state): (Value1, _) = postcard::take_from_bytes(rest).map_err(malformed)?;
            // When it was made was not kept: not after its last change.
            let life = Life { created_at: first.updated_at, ..Life::default() };
            row(first, life, state)
        }
        Some((&VERSION, rest)) => {
            let (Value { first, life }, state) = postcard::take_from_bytes(rest).map_err(malformed)?;
            row(first, life, state)
        }
        Some(_) => Err(corrupt(key, "a row is of a later version")),
        None => Err(corrupt(key, "a row is empty")),
    }
}

/// Says that an object cannot be read.
pub(super) fn corrupt(key: &ObjectKey, what: &str) -> Error {
    Error::Corrupt { kind: key.kind, name: key.name.clone(), what: what.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{ObjectKind, SiteId};

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn key() -> ObjectKey {
        ObjectKey { site: SiteId::parse("demo").unwrap(), kind: ObjectKind::Map, name: "p".into() }
    }

    #[test]
    fn version_1_is_read() {
        let head = Head { event_id: 7, revision: 5, upto: 300, version: 1, bucket_millis: -20, bytes: 9, ..Head::default() };
        let at = Timestamp::from_micros(64);
        let life = Life { created_at: at, ..Life::default() };
        let row = Row { item: "views".into(), revision: 3, event_id: 7, updated_at: at, life, state: Some(vec![1, 2]) };
        assert_eq!(head_from_bytes(&key(), &[1, 7, 5, 0xac, 2, 1, 0, 0, 0, 0, 0x27, 0, 9]).unwrap(), head);
        assert_eq!(row_from_bytes(&key(), "views", &[1, 3, 7, 0x80, 1, 1, 1, 2]).unwrap(), row);
    }

    #[test]
    fn golden_version_2() {
        let at = Timestamp::from_micros(64);
        let first = Head { event_id: 7, revision: 5, upto: 300, version: 1, bucket_millis: -20, bytes: 9, ..Head::default() };
        let head =
            Head { incarnation: 3, created_by: "al".into(), expires_at: Some(at), next_expiry: Some(at), next_index: 4, listed: true, ..first };
        let life = Life { began: 6, created_at: at, created_by: "bo".into(), expires_at: Some(at) };
        let row = Row { item: "views".into(), revision: 3, event_id: 7, updated_at: at, life, state: Some(vec![1, 2]) };
        assert_eq!(hex(&head_to_bytes(&head)), HEAD);
        assert_eq!(hex(&row_to_bytes(&row)), ROW);
        assert_eq!(head_from_bytes(&key(), &head_to_bytes(&head)).unwrap(), head);
        assert_eq!(row_from_bytes(&key(), "views", &row_to_bytes(&row)).unwrap(), row);
        assert!(head_from_bytes(&key(), &[3]).is_err());
        assert!(row_from_bytes(&key(), "views", &[2, 3]).is_err());
    }

    const HEAD: &str = "020705ac0201000000002700090302616c0180010180010401";
    const ROW: &str = "02030780010106800102626f0180010102";
}
