//! The record: one event as it stands in the `events` log, envelope and body; written by ingest, read by router and archiver.
//! Version 1 of the wire format is pinned by a golden file.

use bytes::{BufMut, Bytes};
use serde::{Deserialize, Serialize};

use super::ids::{KeyKind, SiteId};
use super::time::Timestamp;

/// Version byte that opens every record this build writes.
pub const VERSION: u8 = 1;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum RecordKind {
    /// A valid event.
    Event = 0,
    /// The completion `(order)` of a checkout, derived from an order: no object, no event row; the books count it apart.
    Completion = 1,
    /// An authenticated, parsed, invalid event. Body: [`Quarantined`] as JSON.
    Quarantine = 2,
    /// Refusals of about one second, by code. Body: [`Refusals`] as JSON. Not an appended event in the books.
    Refusals = 3,
}

/// How an event reached its sender's side; the better one wins among reports of one business fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Channel {
    /// A request from a browser (Origin or Sec-Fetch-* present).
    Pixel = 0,
    /// A shop's server, or an import.
    Server = 1,
    /// A webhook with a verified signature.
    Webhook = 2,
}

/// Facts about an event found at arrival.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Flags(pub u16);

impl Flags {
    /// The shopper is a crawler.
    pub const CRAWLER: u16 = 1;
    /// `occurred_at` was more than 24 h ahead, or a browser's more than 30 days behind, and was clamped.
    pub const CLAMPED: u16 = 1 << 1;
    /// An amount was rounded to the minor unit.
    pub const ROUNDED: u16 = 1 << 2;
    /// The sender gave no `occurred_at`; it is `received_at`.
    pub const NO_OCCURRED_AT: u16 = 1 << 3;
    /// The sender gave no id; it was made at the edge.
    pub const ASSIGNED_ID: u16 = 1 << 4;

    /// Whether a flag stands.
    pub const fn has(self, flag: u16) -> bool {
        self.0 & flag != 0
    }

    /// Raises a flag.
    pub const fn set(&mut self, flag: u16) {
        self.0 |= flag;
    }
}

/// One record of the `events` topic.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// What it is.
    pub kind: RecordKind,
    /// Id of the key that the body is sealed with; 0 = not sealed, the only value version 1 writes.
    pub body_key: u16,
    /// The shop.
    pub site: SiteId,
    /// The event's id, at most 255 bytes.
    pub event_id: String,
    /// See [`super::ids::fingerprint`].
    pub fingerprint: u64,
    /// Our clock when ingest took it.
    pub received_at: Timestamp,
    /// What it was partitioned by.
    pub key_kind: KeyKind,
    /// The partition key.
    pub key: String,
    /// Found at arrival.
    pub flags: Flags,
    /// How it came.
    pub channel: Channel,
    /// Canonical JSON (keys sorted, no nulls) of an event, or what [`RecordKind`] says.
    pub body: Bytes,
}

/// Body of a quarantine record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Quarantined {
    /// The refusal's code.
    pub code: String,
    /// What is wrong, for people.
    pub message: String,
    /// JSON pointer to the offending place.
    pub pointer: String,
    /// The event as it came.
    pub event: Box<serde_json::value::RawValue>,
}

/// Body of a refusals record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Refusals {
    /// Refused events (or requests where no events could be told) by code.
    pub by_code: std::collections::BTreeMap<String, u64>,
}

/// Why bytes are no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A later version wrote it.
    #[error("record version {0} is newer than this build reads ({VERSION})")]
    Version(u8),
    /// It ends early or a field is out of its range.
    #[error("record is malformed: {0}")]
    Malformed(&'static str),
}

/// A record's envelope with borrowed names, for writers that hold no [`Record`].
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// See [`Record`].
    pub kind: RecordKind,
    /// See [`Record`].
    pub body_key: u16,
    /// See [`Record`].
    pub site: &'a SiteId,
    /// See [`Record`].
    pub event_id: &'a str,
    /// See [`Record`].
    pub fingerprint: u64,
    /// See [`Record`].
    pub received_at: Timestamp,
    /// See [`Record`].
    pub key_kind: KeyKind,
    /// See [`Record`].
    pub key: &'a str,
    /// See [`Record`].
    pub flags: Flags,
    /// See [`Record`].
    pub channel: Channel,
}

impl Envelope<'_> {
    /// Appends the version 1 bytes of a record with this envelope and body to `out`. All numbers little-endian:
    /// `version u8, kind u8, body_key u16, fingerprint u64, received_at i64 (us), flags u16, channel u8, key_kind u8,
    /// site len u8, event id len u8, key len u16, site, event id, key, body (the rest)`.
    pub fn encode(&self, body: &[u8], out: &mut impl BufMut) {
        let site = self.site.as_str().as_bytes();
        out.put_u8(VERSION);
        out.put_u8(self.kind as u8);
        out.put_u16_le(self.body_key);
        out.put_u64_le(self.fingerprint);
        out.put_i64_le(self.received_at.micros());
        out.put_u16_le(self.flags.0);
        out.put_u8(self.channel as u8);
        out.put_u8(self.key_kind as u8);
        out.put_u8(site.len() as u8);
        out.put_u8(self.event_id.len() as u8);
        out.put_u16_le(self.key.len() as u16);
        out.put_slice(site);
        out.put_slice(self.event_id.as_bytes());
        out.put_slice(self.key.as_bytes());
        out.put_slice(body);
    }
}

impl Record {
    /// Appends the record's version 1 bytes to `out`; see [`Envelope::encode`].
    pub fn encode(&self, out: &mut impl BufMut) {
        let Self { kind, body_key, fingerprint, received_at, key_kind, flags, channel, .. } = *self;
        let (site, event_id, key) = (&self.site, self.event_id.as_str(), self.key.as_str());
        Envelope { kind, body_key, site, event_id, fingerprint, received_at, key_kind, key, flags, channel }.encode(&self.body, out);
    }

    /// The record's bytes alone.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = Vec::with_capacity(FIXED + 64 + self.event_id.len() + self.key.len() + self.body.len());
        self.encode(&mut out);
        out.into()
    }

    /// Reads a record; the body shares the bytes.
    pub fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        use bytes::Buf;
        let mut head = bytes.clone();
        match head.first() {
            Some(&VERSION) => {}
            Some(&other) => return Err(RecordError::Version(other)),
            None => return Err(RecordError::Malformed("empty")),
        }
        if head.len() < FIXED {
            return Err(RecordError::Malformed("header ends early"));
        }
        head.advance(1);
        let kind = match head.get_u8() {
            0 => RecordKind::Event,
            1 => RecordKind::Completion,
            2 => RecordKind::Quarantine,
            3 => RecordKind::Refusals,
            _ => return Err(RecordError::Malformed("kind")),
        };
        let body_key = head.get_u16_le();
        let fingerprint = head.get_u64_le();
        let received_at = Timestamp::from_micros(head.get_i64_le());
        let flags = Flags(head.get_u16_le());
        let channel = match head.get_u8() {
            0 => Channel::Pixel,
            1 => Channel::Server,
            2 => Channel::Webhook,
            _ => return Err(RecordError::Malformed("channel")),
        };
        let key_kind = KeyKind::from_byte(head.get_u8()).ok_or(RecordError::Malformed("key kind"))?;
        let lengths = [usize::from(head.get_u8()), usize::from(head.get_u8()), usize::from(head.get_u16_le())];
        if head.len() < lengths.iter().sum() {
            return Err(RecordError::Malformed("names end early"));
        }
        let mut text = |len: usize| std::str::from_utf8(&head.split_to(len)).map(str::to_owned).map_err(|_| RecordError::Malformed("not UTF-8"));
        let [site, event_id, key] = [text(lengths[0])?, text(lengths[1])?, text(lengths[2])?];
        let site = SiteId::parse(&site).map_err(|_| RecordError::Malformed("site"))?;
        Ok(Self { kind, body_key, site, event_id, fingerprint, received_at, key_kind, key, flags, channel, body: head })
    }
}

/// Bytes before the names.
const FIXED: usize = 28;

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn sample() -> Record {
        Record {
            kind: RecordKind::Event,
            body_key: 0,
            site: SiteId::parse("demo").unwrap(),
            event_id: "e-1".into(),
            fingerprint: 0x0102_0304_0506_0708,
            received_at: Timestamp::from_micros(1_790_000_000_000_001),
            key_kind: KeyKind::Order,
            key: "o1".into(),
            flags: Flags(Flags::ROUNDED),
            channel: Channel::Webhook,
            body: Bytes::from_static(b"{\"type\":\"x\"}"),
        }
    }

    #[test]
    fn golden_version_1() {
        let hex: String = sample().to_bytes().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, include_str!("golden/record_v1.hex").trim());
        assert_eq!(Record::decode(&sample().to_bytes()), Ok(sample()));
    }

    #[test]
    fn every_prefix_is_refused_or_shorter() {
        let whole = sample().to_bytes();
        let body_at = whole.len() - sample().body.len();
        for end in 0..whole.len() {
            let read = Record::decode(&whole.slice(..end));
            assert_eq!(read.is_ok(), end >= body_at, "prefix of {end}");
        }
        let mut newer = whole.to_vec();
        newer[0] = 2;
        assert_eq!(Record::decode(&newer.into()), Err(RecordError::Version(2)));
    }
}
