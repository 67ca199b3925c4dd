//! Names and SIDs of sync objects. Called by mapping, by readers that look objects up by id, and by whatever shows SIDs. Pure.

use ring::digest;

use crate::event::ids::sha256;
use crate::event::naming::push_hex;
use crate::event::{ObjectKey, ObjectKind, SiteId};

/// Most bytes of an object's name.
pub const MAX_NAME: usize = 320;

/// Bytes of an encoded id kept in front of its hash where the whole would pass [`MAX_NAME`].
const KEPT: usize = 250;

/// The map that lists which products exist.
pub const INDEX_PRODUCT: &str = "index.product";
/// The map that lists which checkout steps exist.
pub const INDEX_STEP: &str = "index.step";

/// The prefixes of names that the mapping owns.
const MAPPED: [&str; 9] = ["product.", "page.", "checkout.", "customer.", "visitor.", "trail.customer.", "trail.visitor.", "top.", "index."];

/// An id as it stands in a name: `[A-Za-z0-9_.-]` as is, `/` as `:`, other bytes as `~XX`; beyond 320 bytes the first 250, `~h` and
/// 32 hexadecimal digits of the id's SHA-256.
pub fn encode(id: &str) -> String {
    named("", id)
}

/// `product.<id>`.
pub fn product(id: &str) -> String {
    named("product.", id)
}

/// `page.<path>`, of a path as [`crate::event::naming::page_path`] gives it.
pub fn page(path: &str) -> String {
    named("page.", path)
}

/// `checkout.<step>`.
pub fn step(step: &str) -> String {
    named("checkout.", step)
}

/// `customer.<id>`.
pub fn customer(id: &str) -> String {
    named("customer.", id)
}

/// `visitor.<anonymous_id>`.
pub fn visitor(id: &str) -> String {
    named("visitor.", id)
}

/// `trail.customer.<id>`.
pub fn customer_trail(id: &str) -> String {
    named("trail.customer.", id)
}

/// `trail.visitor.<anonymous_id>`.
pub fn visitor_trail(id: &str) -> String {
    named("trail.visitor.", id)
}

/// Whether a name is reserved for what the mapping and the archiver write.
pub fn is_mapped(name: &str) -> bool {
    name == "funnel" || name == "activity" || MAPPED.iter().any(|prefix| name.starts_with(prefix))
}

/// Items that the mapping writes of maps that begin so.
const MAPPED_ITEMS: [(&str, &[&str]); 3] = [
    ("product.", &["name", "color", "category", "quantity", "size", "supplier", "margin", "price", "available_in", "activity"]),
    ("customer.", PERSON_ITEMS),
    ("visitor.", PERSON_ITEMS),
];
const PERSON_ITEMS: &[&str] = &["searches", "interests", "location", "cart", "checkout", "orders", "now", "visitors", "link"];

/// Whether an item of a mapped map is the mapping's. Where none of its items is known to be another's, all are.
pub fn maps_item(name: &str, item: &str) -> bool {
    let own = MAPPED_ITEMS.iter().find(|(prefix, _)| name.starts_with(prefix));
    own.is_none_or(|(_, items)| items.contains(&item))
}

/// The SID of an object: its kind's two letters and 32 hexadecimal digits of SHA-256 over site, kind, name and incarnation (0 for
/// every mapped object), the kind as one byte, the incarnation as eight, big-endian.
pub fn sid(site: &SiteId, kind: ObjectKind, name: &str, incarnation: u64) -> String {
    let prefix = match kind {
        ObjectKind::Document => "ET",
        ObjectKind::List => "ES",
        ObjectKind::Map => "MP",
        ObjectKind::Stream => "TO",
    };
    let mut out = String::with_capacity(34);
    out.push_str(prefix);
    push_lower_hex(&mut out, &number_of(site, kind, name, incarnation));
    out
}

/// What the name of an object begins with that its creator gave none: no client may give such a one.
const UNNAMED: char = '\u{1}';

/// A name for an object without one, made of a number that nobody else has.
pub fn unnamed(number: &[u8; 16]) -> String {
    let mut out = String::from(UNNAMED);
    push_lower_hex(&mut out, number);
    out
}

/// The name that an object's creator gave it; None where none was given.
pub fn unique_name(name: &str) -> Option<&str> {
    (!name.starts_with(UNNAMED)).then_some(name)
}

/// The number in an object's SID.
pub fn sid_number(key: &ObjectKey, incarnation: u64) -> [u8; 16] {
    number_of(&key.site, key.kind, &key.name, incarnation)
}

fn number_of(site: &SiteId, kind: ObjectKind, name: &str, incarnation: u64) -> [u8; 16] {
    let hash = sha256(&[site.as_str().as_bytes(), &[kind as u8], name.as_bytes(), &incarnation.to_be_bytes()]);
    hash.first_chunk().copied().unwrap_or_default()
}

/// Reads a SID of an object: its kind and number. None for what is none, in upper case say.
pub fn parse_sid(sid: &str) -> Option<(ObjectKind, [u8; 16])> {
    let (prefix, digits) = sid.split_at_checked(2)?;
    let kind = match prefix {
        "ET" => ObjectKind::Document,
        "ES" => ObjectKind::List,
        "MP" => ObjectKind::Map,
        "TO" => ObjectKind::Stream,
        _ => return None,
    };
    let is_number = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let number = u128::from_str_radix(digits, 16).ok().filter(|_| is_number)?;
    Some((kind, number.to_be_bytes()))
}

/// Appends bytes as lower-case hexadecimal digits.
pub fn push_lower_hex(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            out.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
}

fn named(prefix: &str, id: &str) -> String {
    let mut out = String::with_capacity(prefix.len() + id.len() + 8);
    out.push_str(prefix);
    for byte in id.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' => out.push(char::from(byte)),
            b'/' => out.push(':'),
            other => push_hex(&mut out, '~', other),
        }
    }
    if out.len() > MAX_NAME {
        out.truncate(prefix.len() + KEPT);
        out.push_str("~h");
        push_lower_hex(&mut out, digest::digest(&digest::SHA256, id.as_bytes()).as_ref().get(..16).unwrap_or_default());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_encoded_byte_by_byte() {
        for (id, name) in [
            ("sku-1", "sku-1"),
            ("A_b.C-9", "A_b.C-9"),
            ("/p/x", ":p:x"),
            ("a:b~c d", "a~3Ab~7Ec~20d"),
            ("é", "~C3~A9"),
            ("", ""),
            ("\0\n", "~00~0A"),
        ] {
            assert_eq!(encode(id), name);
        }
        assert_eq!(product("a/b"), "product.a:b");
    }

    #[test]
    fn long_names_end_in_a_hash() {
        assert_eq!(encode(&"x".repeat(320)), "x".repeat(320));
        let long = encode(&"x".repeat(321));
        assert_eq!(long.len(), 250 + 2 + 32);
        assert!(long.starts_with(&"x".repeat(250)));
        assert_ne!(long, encode(&"x".repeat(322)));
        // SHA-256 of 321 times "x", by sha256sum.
        assert!(long.ends_with(SHA_OF_321), "{long}");
        for name in [customer_trail(&"é".repeat(105)), customer_trail(&"é".repeat(400))] {
            assert!(name.len() <= MAX_NAME && name.starts_with("trail.customer.~C3~A9") && name.contains("~h"), "{name}");
        }
    }

    const SHA_OF_321: &str = "c71e728cbe8f8ffc6bcf6c48a2754961";

    #[test]
    fn sids_are_pinned() {
        let site = SiteId::parse("demo").unwrap();
        let sids: Vec<String> =
            [ObjectKind::Document, ObjectKind::List, ObjectKind::Map, ObjectKind::Stream].iter().map(|k| sid(&site, *k, "a", 0)).collect();
        // Computed apart from this code, with Python's hashlib.
        assert_eq!(
            sids,
            [
                "ETb8a4c911d465e2fc96ad862771e7e803",
                "ES1a6ea5accfb3fdff86e077cdd560f1e9",
                "MP75e8387e6409bae308d241b4ff761a9b",
                "TO5d4993cd0e6cb2654a187f8c3dabc5dd",
            ]
        );
        assert_ne!(sid(&site, ObjectKind::Map, "a", 1), sid(&site, ObjectKind::Map, "a", 0));
    }

    #[test]
    fn sids_are_read_back() {
        let key = ObjectKey { site: SiteId::parse("demo").unwrap(), kind: ObjectKind::Map, name: "a".into() };
        assert_eq!(parse_sid("MP75e8387e6409bae308d241b4ff761a9b"), Some((ObjectKind::Map, sid_number(&key, 0))));
        for wrong in ["", "MP", "MP75e8387e6409bae308d241b4ff761a9", "MP75E8387e6409bae308d241b4ff761a9b", "XX75e8387e6409bae308d241b4ff761a9b", "é"]
        {
            assert_eq!(parse_sid(wrong), None, "{wrong}");
        }
        assert_eq!(parse_sid("MP+5e8387e6409bae308d241b4ff761a9b"), None);
    }

    #[test]
    fn mapped_names_are_told() {
        for name in ["product.x", "page.:", "index.step", "funnel", "top.sold", "trail.visitor.a"] {
            assert!(is_mapped(name), "{name}");
        }
        for name in ["products", "my.list", "trail", "trail.mine"] {
            assert!(!is_mapped(name), "{name}");
        }
    }
}
