//! Event rows, and orders and checkouts as they stand, in the form that the tables hold them in. Pure.

use bytes::Bytes;
use scylla::value::MaybeUnset;
use serde::{Deserialize, Serialize};

use super::stamp;
use crate::archive::{Error, EventRow};
use crate::event::identity::{CheckoutView, Completion, OrderView, Sale, StepCount, Verdict};
use crate::event::{Channel, Currency, Flags, KeyKind, Money, SiteId, Timestamp};

/// Bytes of a body that stand in its row.
const BODY_IN_ROW: usize = 4 << 10;
/// Bytes of one chunk of a larger body.
const CHUNK: usize = 256 << 10;

/// Postcard bytes of plain data behind a version byte; serialising into memory cannot fail.
pub(super) fn pack<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![1]).unwrap_or_default()
}

/// Reads what [`pack`] wrote.
pub(super) fn unpack<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, Error> {
    let value = match bytes.split_first() {
        Some((1, rest)) => postcard::from_bytes(rest).ok(),
        _ => None,
    };
    value.ok_or_else(|| Error::Corrupt(what.to_owned()))
}

/// Inserts an [`EventColumns`].
pub(super) const PUT_EVENT: &str = "INSERT INTO event (site, day, part, bucket, occurred_at, pos, event_id, fingerprint, key_kind, type, \
     received_at, verdict, flags, channel, customer, visitor, products, objects, body_key, body, chunks) \
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";

/// The columns of an event row, in the order of [`PUT_EVENT`].
#[derive(scylla::SerializeRow)]
#[scylla(flavor = "enforce_order", skip_name_checks)]
pub(super) struct EventColumns {
    site: String,
    day: i32,
    part: i16,
    bucket: i64,
    occurred_at: i64,
    pos: i64,
    event_id: String,
    fingerprint: i64,
    key_kind: i8,
    kind: String,
    received_at: i64,
    verdict: i8,
    flags: i32,
    channel: i8,
    customer: MaybeUnset<Vec<u8>>,
    visitor: MaybeUnset<Vec<u8>>,
    products: Vec<u8>,
    objects: Vec<u8>,
    body_key: i32,
    body: Vec<u8>,
    chunks: i32,
    stamp: i64,
}

/// The columns of an event row, in the order that `scan` selects them in.
#[derive(scylla::DeserializeRow)]
#[scylla(flavor = "enforce_order", skip_name_checks)]
pub(super) struct FoundEvent {
    occurred_at: i64,
    pos: i64,
    event_id: String,
    fingerprint: i64,
    key_kind: i8,
    kind: String,
    received_at: i64,
    verdict: i8,
    flags: i32,
    channel: i8,
    customer: Option<Vec<u8>>,
    visitor: Option<Vec<u8>>,
    products: Vec<u8>,
    objects: Vec<u8>,
    body_key: i32,
    body: Vec<u8>,
    chunks: i32,
}

/// A body as it is stored: what stands in its row, and the chunks beside it.
pub(super) fn split(body: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    if body.len() <= BODY_IN_ROW { (body.to_vec(), Vec::new()) } else { (Vec::new(), body.chunks(CHUNK).map(<[u8]>::to_vec).collect()) }
}

impl EventColumns {
    /// A row's columns, and the chunks of its body that stand beside it.
    pub(super) fn of(row: &EventRow, now: Timestamp) -> (Self, Vec<Vec<u8>>) {
        let (body, chunks) = split(&row.body);
        let hash = |hash: Option<[u8; 16]>| hash.map_or(MaybeUnset::Unset, |hash| MaybeUnset::Set(hash.to_vec()));
        let columns = Self {
            site: row.site.as_str().to_owned(),
            day: row.occurred_at.utc_day(),
            part: row.partition as i16,
            bucket: stamp::bucket(row.offset),
            occurred_at: row.occurred_at.micros(),
            pos: row.offset as i64,
            event_id: row.event_id.clone(),
            fingerprint: row.fingerprint as i64,
            key_kind: row.key_kind as i8,
            kind: row.kind.clone(),
            received_at: row.received_at.micros(),
            verdict: row.verdict as i8,
            flags: i32::from(row.flags.0),
            channel: row.channel as i8,
            customer: hash(row.customer),
            visitor: hash(row.visitor),
            products: pack(&row.products),
            objects: pack(&row.objects),
            body_key: i32::from(row.body_key),
            body,
            chunks: chunks.len() as i32,
            stamp: stamp::taken(row.received_at, now),
        };
        (columns, chunks)
    }

    /// About how many bytes it takes.
    pub(super) fn size(&self) -> usize {
        200 + self.event_id.len() + self.products.len() + self.objects.len() + self.body.len()
    }
}

impl FoundEvent {
    /// How many chunks of its body stand beside it.
    pub(super) const fn chunks(&self) -> i32 {
        self.chunks
    }

    /// When it happened, in microseconds.
    pub(super) const fn occurred_at(&self) -> i64 {
        self.occurred_at
    }

    /// Its offset.
    pub(super) const fn pos(&self) -> i64 {
        self.pos
    }

    /// The row, with the body of its chunks where it has any.
    pub(super) fn into_row(self, site: &SiteId, partition: u16, chunks: Vec<u8>) -> Result<EventRow, Error> {
        let corrupt = |what: &str| Error::Corrupt(format!("an event row's {what}"));
        let hash = |bytes: Option<Vec<u8>>| bytes.map(|bytes| bytes.try_into().map_err(|_| corrupt("person"))).transpose();
        Ok(EventRow {
            site: site.clone(),
            event_id: self.event_id,
            fingerprint: self.fingerprint as u64,
            key_kind: key_kind(self.key_kind)?,
            kind: self.kind,
            occurred_at: Timestamp::from_micros(self.occurred_at),
            received_at: Timestamp::from_micros(self.received_at),
            partition,
            offset: self.pos as u64,
            verdict: match self.verdict {
                0 => Verdict::Counted,
                1 => Verdict::Report,
                2 => Verdict::Duplicate,
                3 => Verdict::Conflict,
                _ => return Err(corrupt("verdict")),
            },
            flags: Flags(self.flags as u16),
            channel: channel(self.channel)?,
            customer: hash(self.customer)?,
            visitor: hash(self.visitor)?,
            products: unpack(&self.products, "an event row's products")?,
            objects: unpack(&self.objects, "an event row's objects")?,
            body_key: self.body_key as u16,
            body: Bytes::from(if self.chunks == 0 { self.body } else { chunks }),
        })
    }
}

pub(super) fn key_kind(byte: i8) -> Result<KeyKind, Error> {
    u8::try_from(byte).ok().and_then(KeyKind::from_byte).ok_or_else(|| Error::Corrupt("an event row's key kind".into()))
}

pub(super) fn channel(byte: i8) -> Result<Channel, Error> {
    match byte {
        0 => Ok(Channel::Pixel),
        1 => Ok(Channel::Server),
        2 => Ok(Channel::Webhook),
        _ => Err(Error::Corrupt("an event row's channel".into())),
    }
}

/// Tells the reports of one event id apart: the fingerprint, with the key kind xored into bits 60 to 63 and, where the channel is part of what
/// makes a report, 1 + channel into bits 56 to 59. (The key itself is part of what the fingerprint covers.)
pub(super) fn report(row: &EventRow) -> i64 {
    let channel = row.reporting_channel().map_or(0, |channel| channel as u64 + 1);
    (row.fingerprint ^ (row.key_kind as u64) << 60 ^ channel << 56) as i64
}

type Price = Option<(i64, Currency)>;

fn price(money: Option<&Money>) -> Price {
    money.map(|money| (money.amount_minor, money.currency))
}

fn money(price: Price) -> Option<Money> {
    price.map(|(amount_minor, currency)| Money { amount_minor, currency })
}

/// An order as its row holds it.
#[derive(Serialize, Deserialize)]
struct StoredOrder {
    at: Option<i64>,
    person: Option<String>,
    total: Price,
    units: i64,
    refunded: Vec<(Currency, i64)>,
    sales: Vec<Sale>,
}

/// An order's bytes.
pub(super) fn pack_order(view: &OrderView) -> Vec<u8> {
    let OrderView { at, person, total, units, refunded, sales, .. } = view;
    pack(&StoredOrder {
        at: at.map(Timestamp::micros),
        person: person.clone(),
        total: price(total.as_ref()),
        units: *units,
        refunded: refunded.clone(),
        sales: sales.clone(),
    })
}

/// Reads an order.
pub(super) fn unpack_order(order_id: String, bytes: &[u8]) -> Result<OrderView, Error> {
    let StoredOrder { at, person, total, units, refunded, sales } = unpack(bytes, "an order")?;
    Ok(OrderView { order_id, at: at.map(Timestamp::from_micros), person, total: money(total), units, refunded, sales })
}

/// A checkout as its row holds it.
#[derive(Serialize, Deserialize)]
struct StoredCheckout {
    person: Option<String>,
    steps: Vec<StepCount>,
    completed: Option<(i64, bool)>,
    value: Price,
    last_step: Option<String>,
    last_at: i64,
    crawler: bool,
}

/// A checkout's bytes.
pub(super) fn pack_checkout(view: &CheckoutView) -> Vec<u8> {
    let CheckoutView { person, steps, completed, value, last_step, last_at, crawler, .. } = view;
    pack(&StoredCheckout {
        person: person.clone(),
        steps: steps.clone(),
        completed: completed.map(|completion| (completion.at.micros(), completion.crawler)),
        value: price(value.as_ref()),
        last_step: last_step.clone(),
        last_at: last_at.micros(),
        crawler: *crawler,
    })
}

/// Reads a checkout.
pub(super) fn unpack_checkout(checkout: String, bytes: &[u8]) -> Result<CheckoutView, Error> {
    let StoredCheckout { person, steps, completed, value, last_step, last_at, crawler } = unpack(bytes, "a checkout")?;
    let completed = completed.map(|(at, crawler)| Completion { at: Timestamp::from_micros(at), crawler });
    Ok(CheckoutView { checkout, person, steps, completed, value: money(value), last_step, last_at: Timestamp::from_micros(last_at), crawler })
}
