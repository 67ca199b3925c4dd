//! IDENTIFY: a valid event and its sender to the records that stand for it in the log: id, times, channel, partition key, canonical body and
//! fingerprint; for an order also its checkout's completion; for an invalid event its quarantine record. Called by `ingest::batch`. Pure but
//! for random bits of ids made here; must never let a default made at arrival into a fingerprint.

use rand::Rng;

use super::crawler::Crawlers;
use super::json::{self, Node, Object, Text};
use super::reject::Invalid;
use super::validate::{Facts, MAX_EVENT_ID_BYTES};
use crate::event::identity::ORDER_STEP;
use crate::event::identity::has_business_key;
use crate::event::{Channel, Envelope, Flags, KeyKind, RecordKind, SiteId, Timestamp, ids, kind};

/// How far ahead of `received_at` a sender's clock may be.
const MOST_AHEAD_SECONDS: i64 = 86_400;

/// How far behind `received_at` a browser's clock may be. Its key is read by everybody who sees the page, and every day of the past that it named would
/// be a file of the archive; a shop's server may tell history.
const BROWSER_MOST_BEHIND_SECONDS: i64 = 30 * 86_400;

/// Who sends, as far as its events show it.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    /// The shop, from the credential.
    pub(crate) site: SiteId,
    /// Our clock at arrival.
    pub(crate) received_at: Timestamp,
    /// A browser's request (Origin, Sec-Fetch-* or a browser key): channel `pixel`, and it may not state another.
    pub(crate) browser: bool,
    /// The browser's own User-Agent; stands in for a missing `client.user_agent`. None for servers.
    pub(crate) agent: Option<String>,
    /// What names the request (`Idempotency-Key`, `webhook-id`).
    pub(crate) delivery: Option<String>,
}

/// One record made ready.
#[derive(Debug)]
pub(crate) struct Ready<'a> {
    /// Its id.
    pub(crate) event_id: Text<'a>,
    /// Whether the id was made here.
    pub(crate) assigned: bool,
    /// How it came, where a business key and not the event id decides what it counts for: there the channel is part of what makes a report.
    pub(crate) business: Option<Channel>,
    /// See [`ids::fingerprint`].
    pub(crate) fingerprint: u64,
    /// First 8 bytes of SHA-256(site, key kind, key).
    pub(crate) key_hash: u64,
}

/// Buffers used again from event to event.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    body: Vec<u8>,
    print: Vec<u8>,
    /// The last event's agent and the verdict on it: a request's events are often one shopper's.
    agent: (String, bool),
}

impl Scratch {
    /// Buffers for events of about so many bytes; longer ones make them grow.
    pub(crate) fn sized(bytes: usize) -> Self {
        Self { body: Vec::with_capacity(bytes + bytes / 4), ..Self::default() }
    }

    fn is_crawler(&mut self, agent: &str, crawlers: &Crawlers) -> bool {
        if self.agent.0 != agent {
            self.agent = (agent.to_owned(), crawlers.is_crawler(agent));
        }
        self.agent.1
    }
}

/// Takes records' bytes: partition and what to append there.
pub(crate) trait Sink {
    /// Appends one record; `write` puts its bytes.
    fn record(&mut self, key_hash: u64, envelope: &Envelope<'_>, body: &[u8]);
}

/// Turns a validated event into its record, and an order's into that and its checkout's completion.
pub(crate) fn event<'a>(
    mut event: Object<'a>,
    facts: Facts,
    index: usize,
    sender: &Sender,
    crawlers: &Crawlers,
    scratch: &mut Scratch,
    sink: &mut impl Sink,
) -> Ready<'a> {
    let (event_id, assigned) = take_id(&mut event, index, sender);
    event.remove("site");
    event.remove("received_at");
    let mut flags = Flags::default();
    for (raised, flag) in [(assigned, Flags::ASSIGNED_ID), (facts.rounded, Flags::ROUNDED)] {
        if raised {
            flags.set(flag);
        }
    }
    let channel = channel_of(&mut event, sender);
    let arrival = Arrival { occurred: set_occurred_at(&mut event, facts, sender, &mut flags), client: set_agent(&mut event, sender) };
    if event.object("client").and_then(|c| c.text("user_agent")).is_some_and(|agent| scratch.is_crawler(agent, crawlers)) {
        flags.set(Flags::CRAWLER);
    }
    scratch.body.clear();
    let fingerprint = arrival.write(&event, &mut scratch.body, &mut scratch.print);
    let (key_kind, key) = partition_key(&event, &event_id);
    let key_hash = hash_key(&sender.site, key_kind, key);
    let site = &sender.site;
    let mut envelope = Envelope {
        kind: RecordKind::Event,
        body_key: 0,
        site,
        event_id: &event_id,
        fingerprint,
        received_at: sender.received_at,
        key_kind,
        key,
        flags,
        channel,
    };
    sink.record(key_hash, &envelope, &scratch.body);
    if event.text("type") == Some(kind::ORDER_COMPLETED)
        && let Some((key_kind, key)) = checkout_party(&event)
    {
        let completion = ids::completion_id(&event_id);
        // The completion is a function of its order's report, so it is the same report exactly when that is: same fingerprint, same channel.
        envelope = Envelope { kind: RecordKind::Completion, event_id: &completion, key_kind, key, ..envelope };
        scratch.body.clear();
        write_completion(&event, &mut scratch.body);
        sink.record(hash_key(site, key_kind, key), &envelope, &scratch.body);
    }
    let business = event.text("type").is_some_and(has_business_key).then_some(channel);
    Ready { event_id, assigned, business, fingerprint, key_hash }
}

/// Turns an event that cannot be taken into its quarantine record, keyed by its id.
pub(crate) fn quarantine<'a>(
    raw: &str,
    event: Option<Object<'a>>,
    why: &Invalid,
    index: usize,
    sender: &Sender,
    scratch: &mut Scratch,
    sink: &mut impl Sink,
) -> Ready<'a> {
    let (event_id, assigned) = take_id(&mut event.unwrap_or_default(), index, sender);
    let body = &mut scratch.body;
    body.clear();
    for (before, text) in [("{\"code\":", why.code.name()), (",\"message\":", &why.message), (",\"pointer\":", &why.pointer)] {
        body.extend_from_slice(before.as_bytes());
        json::write_string(text, body);
    }
    body.extend_from_slice(b",\"event\":");
    body.extend_from_slice(raw.as_bytes());
    body.push(b'}');
    let fingerprint = ids::fingerprint(raw.as_bytes());
    let key_hash = hash_key(&sender.site, KeyKind::Event, &event_id);
    let envelope = Envelope {
        kind: RecordKind::Quarantine,
        body_key: 0,
        site: &sender.site,
        event_id: &event_id,
        fingerprint,
        received_at: sender.received_at,
        key_kind: KeyKind::Event,
        key: &event_id,
        flags: Flags(if assigned { Flags::ASSIGNED_ID } else { 0 }),
        channel: if sender.browser { Channel::Pixel } else { Channel::Server },
    };
    sink.record(key_hash, &envelope, body);
    Ready { event_id, assigned, business: None, fingerprint, key_hash }
}

/// SHA-256 of (site, key kind, key), its first 8 bytes.
pub(crate) fn hash_key(site: &SiteId, kind: KeyKind, key: &str) -> u64 {
    ids::first_u64(&ids::sha256(&[site.as_str().as_bytes(), kind.name().as_bytes(), key.as_bytes()]))
}

/// A UUIDv7 of `now`.
pub(crate) fn new_event_id(now: Timestamp) -> String {
    let millis = u64::try_from(now.micros() / 1_000).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(millis, &rand::rng().random()).into_uuid().to_string()
}

/// The sender's id, else one made from the delivery's, else a new one; and whether it was made.
fn take_id<'a>(event: &mut Object<'a>, index: usize, sender: &Sender) -> (Text<'a>, bool) {
    if let Some(Node::String(id)) = event.remove("event_id")
        && (1..=MAX_EVENT_ID_BYTES).contains(&id.len())
    {
        return (id, false);
    }
    let made = match &sender.delivery {
        Some(delivery) => ids::event_id_in_delivery(delivery, index),
        None => new_event_id(sender.received_at),
    };
    (Text::Owned(made), true)
}

fn channel_of(event: &mut Object<'_>, sender: &Sender) -> Channel {
    let Some(Node::Object(source)) = event.get_mut("source") else {
        return if sender.browser { Channel::Pixel } else { Channel::Server };
    };
    if sender.browser {
        source.remove("channel");
        return Channel::Pixel;
    }
    match source.text("channel") {
        Some("webhook") => Channel::Webhook,
        Some("pixel") => Channel::Pixel,
        _ => Channel::Server,
    }
}

/// How `occurred_at` as it stands came about.
enum Occurred {
    /// The sender said it.
    Stated,
    /// It is `received_at`.
    Missing,
    /// It was too far ahead or behind: what the sender said, as canonical JSON.
    Clamped(String),
}

fn set_occurred_at(event: &mut Object<'_>, facts: Facts, sender: &Sender, flags: &mut Flags) -> Occurred {
    let latest = sender.received_at.plus_seconds(MOST_AHEAD_SECONDS);
    let earliest = sender.browser.then(|| sender.received_at.plus_seconds(-BROWSER_MOST_BEHIND_SECONDS));
    let Some(stated) = facts.occurred_at else {
        flags.set(Flags::NO_OCCURRED_AT);
        event.insert("occurred_at", Node::String(Text::Owned(sender.received_at.to_string())));
        return Occurred::Missing;
    };
    let taken = earliest.map_or(stated, |earliest| stated.max(earliest)).min(latest);
    if taken != stated {
        flags.set(Flags::CLAMPED);
        event.insert("occurred_at", Node::String(Text::Owned(taken.to_string())));
        return Occurred::Clamped(format!("\"{stated}\""));
    }
    if !event.text("occurred_at").is_some_and(is_canonical_time) {
        event.insert("occurred_at", Node::String(Text::Owned(stated.to_string())));
    }
    Occurred::Stated
}

/// Whether a legal time is written as [`Timestamp`] writes it: spares the writing in most events.
fn is_canonical_time(text: &str) -> bool {
    match text.as_bytes() {
        [_, _, _, _, b'-', _, _, b'-', _, _, b'T', _, _, b':', _, _, b':', _, _, b'Z'] => true,
        [_, _, _, _, b'-', _, _, b'-', _, _, b'T', _, _, b':', _, _, b':', _, _, b'.', rest @ .., b'Z'] => {
            rest.len() <= 6 && rest.last().is_some_and(|digit| *digit != b'0') && rest.iter().all(u8::is_ascii_digit)
        }
        _ => false,
    }
}

/// What `client` was before the request's own agent was put in.
enum ClientBefore {
    /// As it is: nothing was put in.
    Same,
    /// There was none.
    None,
    /// This text.
    Text(Vec<u8>),
}

fn set_agent(event: &mut Object<'_>, sender: &Sender) -> ClientBefore {
    let Some(agent) = &sender.agent else { return ClientBefore::Same };
    let agent = Node::String(Text::Owned(agent.clone()));
    match event.get_mut("client") {
        Some(Node::Object(client)) if client.get("user_agent").is_some() => ClientBefore::Same,
        Some(Node::Object(client)) => {
            let mut before = Vec::new();
            client.write(&mut before);
            client.insert("user_agent", agent);
            ClientBefore::Text(before)
        }
        _ => {
            let mut client = Object::default();
            client.insert("user_agent", agent);
            event.insert("client", Node::Object(client));
            ClientBefore::None
        }
    }
}

/// What was put into the event at arrival, and so stays out of its fingerprint.
struct Arrival {
    occurred: Occurred,
    client: ClientBefore,
}

impl Arrival {
    /// Appends the canonical event to `body` and gives its fingerprint, over the same text without `sent_at`, `source` and
    /// everything put in at arrival (`event_id` and `received_at` are gone already).
    fn write(&self, event: &Object<'_>, body: &mut Vec<u8>, print: &mut Vec<u8>) -> u64 {
        let nothing_left_out = matches!(self, Self { occurred: Occurred::Stated, client: ClientBefore::Same });
        if nothing_left_out && event.get("sent_at").is_none() && event.get("source").is_none() {
            event.write(body);
            return ids::fingerprint(body);
        }
        print.clear();
        body.push(b'{');
        print.push(b'{');
        for (key, node) in event.iter() {
            if body.len() > 1 {
                body.push(b',');
            }
            let start = body.len();
            json::write_key(key, body);
            let value = body.len();
            node.write(body);
            let printed = match (key, &self.occurred, &self.client) {
                ("sent_at" | "source", ..) | ("occurred_at", Occurred::Missing, _) | ("client", _, ClientBefore::None) => continue,
                ("occurred_at", Occurred::Clamped(stated), _) => stated.as_bytes(),
                ("client", _, ClientBefore::Text(before)) => before,
                _ => body.get(value..).unwrap_or_default(),
            };
            if print.len() > 1 {
                print.push(b',');
            }
            print.extend_from_slice(body.get(start..value).unwrap_or_default());
            print.extend_from_slice(printed);
        }
        body.push(b'}');
        print.push(b'}');
        ids::fingerprint(print)
    }
}

/// As [`crate::event::Event::partition_key`] (a test holds them together), read from the tree.
fn partition_key<'e>(event: &'e Object<'_>, event_id: &'e str) -> (KeyKind, &'e str) {
    let by_id = (KeyKind::Event, event_id);
    match event.text("type") {
        Some(kind::ORDER_COMPLETED | kind::ORDER_REFUNDED) => {
            event.object("order").and_then(|order| order.text("id")).map_or(by_id, |id| (KeyKind::Order, id))
        }
        Some(kind::CHECKOUT_STEP) => checkout_party(event).unwrap_or(by_id),
        _ => by_id,
    }
}

/// As [`crate::event::Event::checkout_party`], read from the tree.
fn checkout_party<'e>(event: &'e Object<'_>) -> Option<(KeyKind, &'e str)> {
    if let Some(id) = event.object("checkout").and_then(|checkout| checkout.text("id")) {
        return Some((KeyKind::Checkout, id));
    }
    let customer = event.object("customer")?;
    let ids = [(KeyKind::Session, "session_id"), (KeyKind::Anonymous, "anonymous_id"), (KeyKind::Customer, "id")];
    ids.into_iter().find_map(|(kind, key)| customer.text(key).map(|id| (kind, id)))
}

/// The body of the completion that an order gives its checkout.
fn write_completion(order: &Object<'_>, body: &mut Vec<u8>) {
    body.extend_from_slice(b"{\"checkout\":{");
    if let Some(id) = order.object("checkout").and_then(|checkout| checkout.get("id")) {
        body.extend_from_slice(b"\"id\":");
        id.write(body);
        body.push(b',');
    }
    body.extend_from_slice(b"\"status\":\"completed\",\"step\":");
    json::write_string(ORDER_STEP, body);
    if let Some(total) = order.object("order").and_then(|order| order.get("total")) {
        body.extend_from_slice(b",\"value\":");
        total.write(body);
    }
    body.push(b'}');
    for key in ["customer", "occurred_at"] {
        if let Some(node) = order.get(key) {
            body.push(b',');
            json::write_key(key, body);
            node.write(body);
        }
    }
    body.extend_from_slice(b",\"type\":");
    json::write_string(kind::CHECKOUT_STEP, body);
    body.push(b'}');
}

#[cfg(test)]
mod tests;
