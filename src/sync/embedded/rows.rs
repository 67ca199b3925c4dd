//! How `objects.db` spells keys: pure bytes in, values out. Used by the embedded ObjectStore alone; must never touch a connection.

use crate::event::{ObjectKey, ObjectKind, SiteId};
use crate::sync::Error;
use crate::sync::stored::{Filing, Shelf, corrupt};

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

/// A SID as stored: its kind and its number.
pub(super) fn sid_bytes(kind: ObjectKind, number: &[u8; 16]) -> Vec<u8> {
    [&[kind as u8][..], number].concat()
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

/// What objects with lifetimes are filed under; sorts so too.
pub(super) const EXPIRING: &str = "+";

/// What a living object is filed under for expiry: `=` and the name up to its first dot, `=` alone where it has none.
pub(super) fn family_of(name: &str) -> String {
    format!("={}", name.split_once('.').map_or("", |(family, _)| family))
}

/// The family in which an object is filed.
pub(super) fn filed_as(name: &str, (shelf, _): Filing) -> String {
    match shelf {
        Shelf::Removed => REMOVED.to_owned(),
        Shelf::Expiring => EXPIRING.to_owned(),
        Shelf::Living => family_of(name),
    }
}

/// Reads [`item_bytes`] back.
pub(super) fn item_of<'a>(key: &ObjectKey, bytes: &'a [u8]) -> Result<&'a str, Error> {
    bytes.get(1..).and_then(|name| std::str::from_utf8(name).ok()).ok_or_else(|| corrupt(key, "an item's name is malformed"))
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
    fn families_are_what_stands_before_the_first_dot() {
        assert_eq!(family_of("trail.customer.c1"), "=trail");
        assert_eq!(family_of("funnel"), "=");
        assert!(*REMOVED < *family_of("") && *EXPIRING < *family_of(""));
    }
}
