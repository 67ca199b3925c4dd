//! How stores spell heads and rows, and by which hour they file an object for expiry: the same bytes in each. Used by the ObjectStores; pure.

use serde::{Deserialize, Serialize};

use super::{Error, Head, Row};
use crate::event::{ObjectKey, Timestamp};

/// Version byte that opens every stored head and row this build writes.
const VERSION: u8 = 1;

/// Where an object is filed for expiry beside its name: whether as a tombstone, and the hour of its last change.
pub(super) type Filing = (bool, i64);

/// Where an object with this head is filed.
pub(super) const fn filing_of(head: &Head) -> Filing {
    (head.removed_at.is_some(), hour_of(head.updated_at))
}

/// The hour an object is filed under for expiry.
pub(super) const fn hour_of(at: Timestamp) -> i64 {
    at.micros().div_euclid(3_600_000_000)
}

/// A row's value but for its name and its state, whose bytes follow as they are.
#[derive(Serialize, Deserialize)]
struct Value {
    revision: u64,
    event_id: u64,
    updated_at: Timestamp,
    lives: bool,
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
    let value = Value { revision: row.revision, event_id: row.event_id, updated_at: row.updated_at, lives: state.is_some() };
    let mut out = postcard::to_extend(&value, out).unwrap_or_default();
    out.extend_from_slice(state.unwrap_or_default());
    out
}

/// Reads a head.
pub(super) fn head_from_bytes(key: &ObjectKey, bytes: &[u8]) -> Result<Head, Error> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => postcard::from_bytes(rest).map_err(|_| corrupt(key, "its head is malformed")),
        Some(_) => Err(corrupt(key, "its head is of a later version")),
        None => Err(corrupt(key, "its head is empty")),
    }
}

/// Reads a row of this name.
pub(super) fn row_from_bytes(key: &ObjectKey, item: &str, bytes: &[u8]) -> Result<Row, Error> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => {
            let (value, state): (Value, &[u8]) = postcard::take_from_bytes(rest).map_err(|_| corrupt(key, "a row is malformed"))?;
            Ok(Row {
                item: item.to_owned(),
                revision: value.revision,
                event_id: value.event_id,
                updated_at: value.updated_at,
                state: value.lives.then(|| state.to_vec()),
            })
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

    #[test]
    fn golden_version_1() {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let head = Head { event_id: 7, revision: 5, upto: 300, version: 1, bucket_millis: -20, bytes: 9, ..Head::default() };
        let row = Row { item: "views".into(), revision: 3, event_id: 7, updated_at: Timestamp::from_micros(64), state: Some(vec![1, 2]) };
        let key = ObjectKey { site: SiteId::parse("demo").unwrap(), kind: ObjectKind::Map, name: "p".into() };
        assert_eq!(hex(&head_to_bytes(&head)), "010705ac020100000000270009");
        assert_eq!(hex(&row_to_bytes(&row)), "0103078001010102");
        assert_eq!(head_from_bytes(&key, &head_to_bytes(&head)).unwrap(), head);
        assert_eq!(row_from_bytes(&key, "views", &row_to_bytes(&row)).unwrap(), row);
        assert!(head_from_bytes(&key, &[2]).is_err());
        assert!(row_from_bytes(&key, "views", &[1, 3]).is_err());
    }
}
