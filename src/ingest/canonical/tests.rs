//! What stands in the log for an event: body, fingerprint, key, flags, channel; for an order its completion.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::json::Parser;
use super::super::reject::Code;
use super::super::validate;
use super::*;
use crate::event::{Event, Record};

const NOW: &str = "2026-11-20T10:00:00Z";

#[derive(Default)]
struct Records(Vec<(u64, Record)>);

impl Sink for Records {
    fn record(&mut self, key_hash: u64, envelope: &Envelope<'_>, body: &[u8]) {
        let mut bytes = Vec::new();
        envelope.encode(body, &mut bytes);
        self.0.push((key_hash, Record::decode(&bytes.into()).unwrap()));
    }
}

fn server() -> Sender {
    let site = SiteId::parse("demo").unwrap();
    Sender { site, received_at: Timestamp::parse(NOW).unwrap(), browser: false, agent: None, delivery: None }
}

fn browser() -> Sender {
    Sender { browser: true, agent: Some("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)".into()), ..server() }
}

fn object(text: &str) -> Object<'_> {
    match Parser::new(text).value(1 << 20).unwrap() {
        Node::Object(object) => object,
        other => panic!("{other:?}"),
    }
}

/// The records of one valid event.
fn records(text: &str, sender: &Sender) -> Vec<Record> {
    let mut tree = object(text);
    let facts = validate::event(&mut tree).unwrap();
    let mut sink = Records::default();
    event(tree, facts, 0, sender, &Crawlers::default(), &mut Scratch::default(), &mut sink);
    for (hash, record) in &sink.0 {
        assert_eq!((hash % 16) as u16, ids::events_partition(&record.site, record.key_kind, &record.key));
    }
    sink.0.into_iter().map(|(_, record)| record).collect()
}

fn record(event: &Value, sender: &Sender) -> Record {
    records(&event.to_string(), sender).remove(0)
}

fn body(record: &Record) -> Value {
    serde_json::from_slice(&record.body).unwrap()
}

#[test]
fn the_fingerprint_sees_content_alone() {
    let base = json!({"type": "x", "event_id": "e", "occurred_at": NOW, "customer": {"id": "c"}, "client": {"locale": "de"}, "a": [1, {"b": 2}]});
    let print = record(&base, &server()).fingerprint;
    let with = |key: &str, value: Value| {
        let mut event = base.clone();
        event[key] = value;
        event
    };
    for same in [
        with("event_id", json!("other")),
        with("sent_at", json!("2026-11-20T10:00:01Z")),
        with("received_at", json!("2026-11-20T10:00:01Z")),
        with("site", json!("elsewhere")),
        with("source", json!({"channel": "webhook", "library": "x"})),
        with("occurred_at", json!("2026-11-20T11:00:00+01:00")),
        with("nothing", json!(null)),
        with("customer", json!({"id": "c", "anonymous_id": "", "session_id": null})),
    ] {
        assert_eq!(record(&same, &server()).fingerprint, print, "{same}");
        assert_eq!(record(&same, &browser()).fingerprint, print, "{same}");
    }
    for other in [with("seq", json!(1)), with("occurred_at", json!("2026-11-20T10:00:01Z")), with("client", json!({})), with("a", json!([1]))] {
        assert_ne!(record(&other, &server()).fingerprint, print, "{other}");
    }
    let spaced = r#"{ "a":[ 1,{"b":2} ], "client":{"locale":"de"}, "customer":{"id":"c"}, "occurred_at":"2026-11-20T10:00:00.000Z", "type":"x" }"#;
    assert_eq!(records(spaced, &server())[0].fingerprint, print);
}

#[test]
fn defaults_of_arrival_stay_out_of_the_fingerprint() {
    let event = json!({"type": "x", "z": 1});
    let first = record(&event, &browser());
    let later = Sender { received_at: server().received_at.plus_seconds(60), ..server() };
    let mut again = event.clone();
    again["event_id"] = json!(first.event_id);
    let second = record(&again, &later);
    assert_eq!((second.event_id, second.fingerprint), (first.event_id.clone(), first.fingerprint));
    assert_eq!(body(&first)["occurred_at"], NOW);
    assert_eq!(body(&first)["client"]["user_agent"].as_str(), browser().agent.as_deref());
    assert_eq!(first.flags.0, Flags::ASSIGNED_ID | Flags::NO_OCCURRED_AT | Flags::CRAWLER);
    assert_eq!(second.flags.0, Flags::NO_OCCURRED_AT);

    let ahead = json!({"type": "x", "occurred_at": "2026-11-21T10:00:00.000001Z"});
    let (one, two) = (record(&ahead, &server()), record(&ahead, &later));
    assert_eq!((one.fingerprint, one.flags.has(Flags::CLAMPED), two.flags.has(Flags::CLAMPED)), (two.fingerprint, true, false));
    assert_eq!((&body(&one)["occurred_at"], &body(&two)["occurred_at"]), (&json!("2026-11-21T10:00:00Z"), &json!("2026-11-21T10:00:00.000001Z")));
}

#[test]
fn a_servers_history_is_taken_and_a_browsers_is_not() {
    let old = json!({"type": "x", "event_id": "e", "occurred_at": "2010-12-01T08:26:00Z"});
    let (told, claimed) = (record(&old, &server()), record(&old, &browser()));
    assert_eq!((body(&told)["occurred_at"].as_str(), told.flags.has(Flags::CLAMPED)), (Some("2010-12-01T08:26:00Z"), false));
    let earliest = browser().received_at.plus_seconds(-30 * 86_400);
    assert_eq!((body(&claimed)["occurred_at"].clone(), claimed.flags.has(Flags::CLAMPED)), (json!(earliest.to_string()), true));
    assert_eq!(told.fingerprint, claimed.fingerprint, "what the sender said is the same");
    let late = json!({"type": "x", "occurred_at": earliest.to_string()});
    assert!(!record(&late, &browser()).flags.has(Flags::CLAMPED));
}

#[test]
fn money_is_minor_units_and_rounding_is_flagged() {
    let priced = |price: Value| record(&json!({"type": "x", "event_id": "e", "occurred_at": NOW, "product": {"id": "p", "price": price}}), &server());
    let exact = priced(json!({"amount": "12.990", "currency": "EUR", "net": true}));
    assert_eq!(body(&exact)["product"]["price"], json!({"amount_minor": 1299, "currency": "EUR", "net": true}));
    assert_eq!(exact.flags.0, 0);
    let rounded = priced(json!({"amount": "12.985", "currency": "EUR"}));
    assert_eq!(body(&rounded)["product"]["price"]["amount_minor"], 1298);
    assert_eq!(rounded.flags.0, Flags::ROUNDED);
    assert_eq!(rounded.fingerprint, priced(json!({"amount_minor": 1298.0, "currency": "EUR"})).fingerprint);
}

#[test]
fn the_channel_is_the_senders_to_state_but_not_a_browsers() {
    for (sender, source, channel) in [
        (server(), json!(null), Channel::Server),
        (server(), json!({"library": "x"}), Channel::Server),
        (server(), json!({"channel": "webhook"}), Channel::Webhook),
        (server(), json!({"channel": "pixel"}), Channel::Pixel),
        (browser(), json!(null), Channel::Pixel),
        (browser(), json!({"channel": "webhook"}), Channel::Pixel),
    ] {
        let record = record(&json!({"type": "x", "source": source}), &sender);
        assert_eq!(record.channel, channel, "{source}");
        assert!(!sender.browser || body(&record)["source"]["channel"].is_null());
    }
}

#[test]
fn ids_come_from_sender_delivery_or_edge() {
    let delivered = Sender { delivery: Some("d-1".into()), ..server() };
    let empty = json!({"type": "x", "event_id": ""});
    assert_eq!(record(&json!({"type": "x", "event_id": "mine"}), &delivered).event_id, "mine");
    assert_eq!(record(&empty, &delivered).event_id, ids::event_id_in_delivery("d-1", 0));
    let made = record(&empty, &server()).event_id;
    let uuid = uuid::Uuid::parse_str(&made).unwrap();
    assert_eq!((uuid.get_version_num(), uuid.get_timestamp().unwrap().to_unix().0), (7, 1_795_168_800));
    assert_ne!(made, record(&empty, &server()).event_id);
}

#[test]
fn an_order_completes_its_checkout() {
    let order = json!({"type": "order_completed", "event_id": "e", "occurred_at": NOW, "customer": {"id": "c", "session_id": "s"},
        "checkout": {"id": "ch1", "extra": 1}, "order": {"id": "o1", "total": {"amount": "25.98", "currency": "EUR"}}});
    let both = records(&order.to_string(), &server());
    assert_eq!(both.len(), 2);
    assert_eq!((both[0].kind, both[0].key_kind, both[0].key.as_str()), (RecordKind::Event, KeyKind::Order, "o1"));
    let done = &both[1];
    assert_eq!((done.kind, done.key_kind, done.key.as_str()), (RecordKind::Completion, KeyKind::Checkout, "ch1"));
    assert_eq!((done.event_id.as_str(), done.fingerprint), (ids::completion_id("e").as_str(), both[0].fingerprint));
    assert_eq!(
        std::str::from_utf8(&done.body).unwrap(),
        r#"{"checkout":{"id":"ch1","status":"completed","step":"(order)","value":{"amount_minor":2598,"currency":"EUR"}},"#.to_owned()
            + r#""customer":{"id":"c","session_id":"s"},"occurred_at":"2026-11-20T10:00:00Z","type":"checkout_step"}"#
    );
    let sessions = records(r#"{"type":"order_completed","event_id":"e","customer":{"session_id":"s"},"order":{"id":"o1"}}"#, &server());
    assert_eq!((sessions[1].key_kind, sessions[1].key.as_str()), (KeyKind::Session, "s"));
    assert_eq!(&body(&sessions[1])["checkout"], &json!({"status": "completed", "step": "(order)"}));
    assert_eq!(records(r#"{"type":"order_completed","event_id":"e","order":{"id":"o1"}}"#, &server()).len(), 1, "nobody's checkout");
}

#[test]
fn quarantine_keeps_the_event_as_it_came() {
    let raw = r#"{ "type":"page_viewed", "event_id":"e-7", "page":{"url":7}, "x":"\ud83d\ude00 \u2028" }"#;
    let why = Invalid::new(Code::TypeWrong, "a \"quoted\" message").within("url").within("page");
    let mut sink = Records::default();
    quarantine(raw, Some(object(raw)), &why, 0, &server(), &mut Scratch::default(), &mut sink);
    let record = &sink.0[0].1;
    assert_eq!((record.kind, record.event_id.as_str(), record.key_kind, record.key.as_str()), (RecordKind::Quarantine, "e-7", KeyKind::Event, "e-7"));
    let kept: crate::event::record::Quarantined = serde_json::from_slice(&record.body).unwrap();
    assert_eq!((kept.code.as_str(), kept.message.as_str(), kept.pointer.as_str()), ("type_wrong", "a \"quoted\" message", "/page/url"));
    assert_eq!(kept.event.get(), raw);
}

proptest! {
    /// Every body that validation lets through parses as an event, has its partition key, and is canonical.
    #[test]
    fn accepted_bodies_are_events(value in validate::tests::whole_events(), from_browser in any::<bool>()) {
        let text = value.to_string();
        let mut tree = object(&text);
        if let Ok(facts) = validate::event(&mut tree) {
            let sender = if from_browser { browser() } else { server() };
            let mut sink = Records::default();
            event(tree, facts, 0, &sender, &Crawlers::default(), &mut Scratch::default(), &mut sink);
            for (_, record) in &sink.0 {
                let parsed = Event::from_body(&record.body).unwrap();
                let key = match record.kind {
                    RecordKind::Completion => parsed.checkout_party().unwrap(),
                    _ => parsed.partition_key(&record.event_id),
                };
                prop_assert_eq!(key, (record.key_kind, record.key.as_str()));
                let mut again = Vec::new();
                object(std::str::from_utf8(&record.body).unwrap()).write(&mut again);
                prop_assert_eq!(&again[..], &record.body[..]);
            }
            let completes = value["type"] == "order_completed" && Event::from_body(&sink.0[0].1.body).unwrap().checkout_party().is_some();
            prop_assert_eq!(sink.0.len(), 1 + usize::from(completes));
        }
    }
}
