//! Names and hashes that decide where a record lives and whether it was seen before; used by every room. Pure.

use std::fmt;
use std::sync::Arc;

use ring::digest;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Partitions of each topic, fixed when the topic is created.
pub const PARTITIONS: u16 = 16;

/// A shop. 1 to 64 of `[a-z0-9-]`; taken from the credential, never from a body.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SiteId(Arc<str>);

/// A text that cannot name a site.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a site's name is 1 to 64 of a-z, 0-9 and -")]
pub struct NotASite;

impl SiteId {
    /// Takes a site's name as written.
    pub fn parse(name: &str) -> Result<Self, NotASite> {
        let legal = (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if legal { Ok(Self(name.into())) } else { Err(NotASite) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SiteId({})", self.0)
    }
}

/// SHA-256 over the parts, each preceded by its length as 4 bytes big-endian, so that no two lists of parts collide by shifting.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = digest::Context::new(&digest::SHA256);
    for part in parts {
        hash.update(&(part.len() as u32).to_be_bytes());
        hash.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(hash.finish().as_ref());
    out
}

/// A number that nobody else has: a random UUID, made without asking the system each time.
pub fn fresh_uuid() -> Uuid {
    uuid::Builder::from_random_bytes(rand::random()).into_uuid()
}

/// The first 8 bytes of a hash as a big-endian number.
pub fn first_u64(hash: &[u8; 32]) -> u64 {
    hash.iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b))
}

/// The first 16 bytes of a hash.
pub fn first_16(hash: &[u8; 32]) -> [u8; 16] {
    let mut out = [0; 16];
    out.iter_mut().zip(hash).for_each(|(to, from)| *to = *from);
    out
}

/// First 8 bytes of SHA-256 over canonical JSON text: says whether two records of one id say the same.
pub fn fingerprint(canonical: &[u8]) -> u64 {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, canonical).as_ref());
    first_u64(&out)
}

/// What a record of `events` is partitioned by: all reports of one fact carry the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum KeyKind {
    /// The event's own id.
    Event = 0,
    /// An order id: orders and refunds.
    Order = 1,
    /// A checkout id: checkout steps and the completions derived from orders.
    Checkout = 2,
    /// A session id standing in for a checkout id.
    Session = 3,
    /// An anonymous id standing in for a checkout id.
    Anonymous = 4,
    /// A customer id standing in for a checkout id.
    Customer = 5,
}

impl KeyKind {
    /// Its name in hashes and on the wire of people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Order => "order",
            Self::Checkout => "checkout",
            Self::Session => "session",
            Self::Anonymous => "anonymous",
            Self::Customer => "customer",
        }
    }

    /// The kind stored as `byte`.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Event,
            1 => Self::Order,
            2 => Self::Checkout,
            3 => Self::Session,
            4 => Self::Anonymous,
            5 => Self::Customer,
            _ => return None,
        })
    }
}

/// The partition of `events` for a key: first 8 bytes of SHA-256(site, key kind, key), big-endian, mod [`PARTITIONS`].
pub fn events_partition(site: &SiteId, kind: KeyKind, key: &str) -> u16 {
    partition_of(&[site.as_str().as_bytes(), kind.name().as_bytes(), key.as_bytes()])
}

/// The partition that a hash of these parts falls into.
pub fn partition_of(parts: &[&[u8]]) -> u16 {
    (first_u64(&sha256(parts)) % u64::from(PARTITIONS)) as u16
}

/// The namespace of every UUIDv5 Contrail derives (itself UUIDv5 of the URL namespace and `contrail:events`).
pub fn namespace() -> uuid::Uuid {
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, b"contrail:events")
}

/// UUIDv5 of a delivery id and the event's index in it.
pub fn event_id_in_delivery(delivery: &str, index: usize) -> String {
    uuid::Uuid::new_v5(&namespace(), format!("delivery:{delivery}:{index}").as_bytes()).to_string()
}

/// UUIDv5 of the completion derived from an order event.
pub fn completion_id(order_event_id: &str) -> String {
    uuid::Uuid::new_v5(&namespace(), format!("completion:{order_event_id}").as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_pinned() {
        // Pinned for ever: a stored record stays findable only while these hold.
        let site = SiteId::parse("demo").unwrap();
        let found: Vec<u16> = ["o1", "ch1", "a", "b", "c"].iter().map(|k| events_partition(&site, KeyKind::Order, k)).collect();
        let by_hand: Vec<u16> = ["o1", "ch1", "a", "b", "c"]
            .iter()
            .map(|k| {
                let mut text = Vec::new();
                for part in ["demo", "order", k] {
                    text.extend((part.len() as u32).to_be_bytes());
                    text.extend(part.as_bytes());
                }
                (fingerprint(&text) % 16) as u16
            })
            .collect();
        assert_eq!(found, by_hand);
        assert_ne!(sha256(&[b"ab", b"c"]), sha256(&[b"a", b"bc"]));
    }

    #[test]
    fn sites_are_slugs() {
        assert!(SiteId::parse("my-shop-2").is_ok());
        for bad in ["", "My", "a b", "ü", &"x".repeat(65)] {
            assert_eq!(SiteId::parse(bad), Err(NotASite));
        }
    }
}
