//! How `objects.db` spells keys and rows: pure bytes in, values out. Used by the embedded ObjectStore alone; must never touch a connection.

use serde::{Deserialize, Serialize};

use crate::event::{ObjectKey, ObjectKind, SiteId, Timestamp};
use crate::sync::{Error, Head, Row};

/// Version byte that opens every stored head and row this build writes.
const VERSION: u8 = 1;

/// `item` of a head: sorts before every row, so that an object's rows lie together with the head in front.
pub(super) const HEAD: &[u8] = &[];

/// An object's key as stored: site, NUL, kind, name. Sorts as [`ObjectKey`] does (no site holds a NUL).
pub(super) fn key_bytes(key: &ObjectKey) -> Vec<u8> {
    let mut out = prefix_bytes(&key.site, key.kind, &key.name);
    out.shrink_to_fit();
    out
}

/// What the keys of a site, kind and name prefix begin with.
pub(super) fn prefix_bytes(site: &SiteId, kind: ObjectKind, prefix: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(site.as_str().len() + prefix.len() + 2);
    out.extend_from_slice(site.as_str().as_bytes());
    out.push(0);
    out.push(kind as u8);
    out.extend_from_slice(prefix.as_bytes());
    out
}

/// Reads [`key_bytes`] back.
pub(super) fn key_of(bytes: &[u8]) -> Option<ObjectKey> {
    let end = bytes.iter().position(|b| *b == 0)?;
    let site = SiteId::parse(std::str::from_utf8(bytes.get(..end)?).ok()?).ok()?;
    let kind = match bytes.get(end + 1)? {
        0 => ObjectKind::Document,
        1 => ObjectKind::List,
        2 => ObjectKind::Map,
        3 => ObjectKind::Stream,
        _ => return None,
    };
    let name = std::str::from_utf8(bytes.get(end + 2..)?).ok()?.to_owned();
    Some(ObjectKey { site, kind, name })
}

/// An item's name as stored: one byte above every head, then the name.
pub(super) fn item_bytes(item: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(item.len() + 1);
    out.push(1);
    out.extend_from_slice(item.as_bytes());
    out
}

/// What tombstones are filed under for purging; sorts before every [`family_of`].
pub(super) const REMOVED: &str = "-";

/// What a living object is filed under for expiry: `=` and the name up to its first dot, `=` alone where it has none.
pub(super) fn family_of(name: &str) -> String {
    format!("={}", name.split_once('.').map_or("", |(family, _)| family))
}

/// Where an object is filed for expiry beside its name: whether as a tombstone, and the hour of its last change.
pub(super) type Filing = (bool, i64);

/// Where an object with this head is filed.
pub(super) const fn filing_of(head: &Head) -> Filing {
    (head.removed_at.is_some(), hour_of(head.updated_at))
}

/// The family in which an object is filed.
pub(super) fn filed_as(name: &str, (removed, _): Filing) -> String {
    if removed { REMOVED.to_owned() } else { family_of(name) }
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

/// Reads a row from its stored name and value.
pub(super) fn row_from_bytes(key: &ObjectKey, item: &[u8], bytes: &[u8]) -> Result<Row, Error> {
    let item = item.get(1..).and_then(|name| std::str::from_utf8(name).ok()).ok_or_else(|| corrupt(key, "an item's name is malformed"))?;
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

    fn key(site: &str, kind: ObjectKind, name: &str) -> ObjectKey {
        ObjectKey { site: SiteId::parse(site).unwrap(), kind, name: name.into() }
    }

    #[test]
    fn keys_sort_as_objects_do_and_come_back() {
        let mut keys = Vec::new();
        for site in ["a", "a-b", "b"] {
            for kind in [ObjectKind::Document, ObjectKind::List, ObjectKind::Map, ObjectKind::Stream] {
                for name in ["page.", "page./a", "page./é", "x"] {
                    keys.push(key(site, kind, name));
                }
            }
        }
        keys.sort();
        let bytes: Vec<Vec<u8>> = keys.iter().map(key_bytes).collect();
        assert!(bytes.is_sorted());
        assert_eq!(bytes.iter().map(|b| key_of(b).unwrap()).collect::<Vec<_>>(), keys);
        assert_eq!(key_of(b"demo"), None);
        assert_eq!(key_of(b"demo\0\x09x"), None);
    }

    #[test]
    fn golden_version_1() {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let head = Head { event_id: 7, revision: 5, upto: 300, version: 1, bucket_millis: -20, bytes: 9, ..Head::default() };
        let row = Row { item: "views".into(), revision: 3, event_id: 7, updated_at: Timestamp::from_micros(64), state: Some(vec![1, 2]) };
        let key = key("demo", ObjectKind::Map, "p");
        assert_eq!(hex(&head_to_bytes(&head)), "010705ac020100000000270009");
        assert_eq!(hex(&row_to_bytes(&row)), "0103078001010102");
        assert_eq!(head_from_bytes(&key, &head_to_bytes(&head)).unwrap(), head);
        assert_eq!(row_from_bytes(&key, &item_bytes("views"), &row_to_bytes(&row)).unwrap(), row);
        assert!(head_from_bytes(&key, &[2]).is_err());
        assert!(row_from_bytes(&key, &item_bytes("views"), &[1, 3]).is_err());
    }

    #[test]
    fn families_are_what_stands_before_the_first_dot() {
        assert_eq!(family_of("trail.customer.c1"), "=trail");
        assert_eq!(family_of("funnel"), "=");
        assert!(*REMOVED < *family_of(""));
    }
}
