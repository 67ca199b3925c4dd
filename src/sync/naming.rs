//! Names and SIDs of sync objects. Called by mapping, by readers that look objects up by id, and by whatever shows SIDs. Pure.

use ring::digest;

use crate::event::ids::sha256;
use crate::event::naming::push_hex;
use crate::event::{ObjectKind, SiteId};

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

/// The SID of an object: its kind's two letters and 32 hexadecimal digits of SHA-256 over site, kind, name and incarnation (0 for
/// every mapped object), the kind as one byte, the incarnation as eight, big-endian.
pub fn sid(site: &SiteId, kind: ObjectKind, name: &str, incarnation: u64) -> String {
    let prefix = match kind {
        ObjectKind::Document => "ET",
        ObjectKind::List => "ES",
        ObjectKind::Map => "MP",
        ObjectKind::Stream => "TO",
    };
    let hash = sha256(&[site.as_str().as_bytes(), &[kind as u8], name.as_bytes(), &incarnation.to_be_bytes()]);
    let mut out = String::with_capacity(34);
    out.push_str(prefix);
    push_lower_hex(&mut out, hash.get(..16).unwrap_or_default());
    out
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
        assert_eq!(sids, ["ET", "ES", "MP", "TO"]);
        assert_ne!(sid(&site, ObjectKind::Map, "a", 1), sid(&site, ObjectKind::Map, "a", 0));
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
