//! The table of `sync::mapping`, event by event, held against the objects that its changes make.

use super::*;
use crate::event::identity::{Effects, Sale, StepCount};
use crate::event::{Channel, Currency, KeyKind, SiteId};
use crate::sync::object::Object;

const RECEIVED: &str = "2026-11-20T10:00:05Z";

fn time(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap()
}

fn record(id: &str) -> Record {
    Record {
        kind: RecordKind::Event,
        body_key: 0,
        site: SiteId::parse("demo").unwrap(),
        event_id: id.into(),
        fingerprint: 1,
        received_at: time(RECEIVED),
        key_kind: KeyKind::Event,
        key: id.into(),
        flags: Flags::default(),
        channel: Channel::Server,
        body: bytes::Bytes::new(),
    }
}

fn outcome(verdict: Verdict, effects: Effects) -> Outcome {
    Outcome { verdict, effects }
}

fn counted_once() -> Outcome {
    outcome(Verdict::Counted, Effects::default())
}

fn event(body: &str) -> Event {
    Event::from_body(body.as_bytes()).unwrap()
}

fn mapped(record: &Record, event: &Event, outcome: &Outcome, sight: bool) -> Vec<Change> {
    let rules = SiteRules::default();
    let mut first_sight = |_: &ObjectKey| sight;
    map(&mut Mapped { record, offset: 7, partition: 3, event, outcome, rules: &rules, first_sight: &mut first_sight })
}

/// The names alone are those of the changes.
fn assert_names(record: &Record, event: &Event, outcome: &Outcome, changes: &[Change]) {
    let rules = SiteRules::default();
    let mut input = Mapped { record, offset: 7, partition: 3, event, outcome, rules: &rules, first_sight: &mut |_| false };
    let wanted: Vec<_> = changes.iter().map(|change| (change.key.kind, change.key.name.clone())).collect();
    assert_eq!(names(&mut input), wanted);
}

/// Every object that the changes make, as `name` or `name/item`, with its JSON.
fn shown(changes: &[Change]) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for change in changes {
        let mut object = Object::empty(change.key.clone());
        object.apply(change, 0, None);
        let snapshot = object.snapshot().unwrap();
        let name = &change.key.name;
        out.extend(snapshot.data.map(|data| (name.clone(), data.to_string())));
        out.extend(snapshot.items.iter().map(|item| (format!("{name}/{}", item.item), item.data.to_string())));
    }
    out
}

fn check(body: &str, outcome: &Outcome, want: &[(&str, &str)]) {
    let changes = mapped(&record("e-1"), &event(body), outcome, false);
    assert_names(&record("e-1"), &event(body), outcome, &changes);
    let found = shown(&changes);
    assert_eq!(found.iter().map(|(name, json)| (name.as_str(), json.as_str())).collect::<Vec<_>>(), want);
    for (number, change) in changes.iter().enumerate() {
        assert_eq!(change.origin, Origin::Event { partition: 3, offset: 7, number: number as u16 });
    }
    assert!(changes.is_sorted_by(|a, b| a.key < b.key));
    for (_, json) in found {
        assert!(serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&json).is_ok(), "not an object: {json}");
    }
}

#[test]
fn page_viewed() {
    let body = r#"{"type":"page_viewed","occurred_at":"2026-11-20T10:00:00Z","customer":{"anonymous_id":"a 1","location":{"country":"DE"}},
        "page":{"url":"https://s.example/caf%C3%A9?utm=1","title":"About","referrer":"https://find.example/q?term=me"}}"#;
    let trail = format!("trail.visitor.a~201/{:016x}", trail_index(time("2026-11-20T10:00:00Z"), "e-1"));
    check(
        body,
        &counted_once(),
        &[
            (
                "page.:caf~C3~A9",
                r#"{"last_viewed_at":"2026-11-20T10:00:00Z","referrers":["https://find.example/q"],"title":"About","url":"https://s.example/caf%C3%A9","views":1,"visitors":1}"#,
            ),
            (&trail, r#"{"type":"page_viewed","at":"2026-11-20T10:00:00Z","path":"/café","title":"About"}"#),
            ("visitor.a~201/location", r#"{"country":"DE"}"#),
            ("visitor.a~201/now", r#"{"last_seen_at":"2026-11-20T10:00:00Z","online_until":"2026-11-20T10:01:00Z","page":"/café"}"#),
        ],
    );
}

#[test]
fn product_viewed_with_both_ids() {
    let body = r#"{"type":"product_viewed","occurred_at":"2026-11-20T10:00:00Z","customer":{"id":"c1","anonymous_id":"a1"},
        "product":{"id":"sku-1","name":"Mug","price":{"amount_minor":1299,"currency":"EUR"}},"page":{"url":"/p/sku-1"}}"#;
    let trail = format!("trail.customer.c1/{:016x}", trail_index(time("2026-11-20T10:00:00Z"), "e-1"));
    check(
        body,
        &counted_once(),
        &[
            (&trail, r#"{"type":"product_viewed","at":"2026-11-20T10:00:00Z","path":"/p/sku-1","product_id":"sku-1","name":"Mug"}"#),
            ("customer.c1/interests", r#"{"recent":[{"product_id":"sku-1","name":"Mug","at":"2026-11-20T10:00:00Z"}]}"#),
            ("customer.c1/now", r#"{"last_seen_at":"2026-11-20T10:00:00Z","online_until":"2026-11-20T10:01:00Z","page":"/p/sku-1"}"#),
            ("customer.c1/visitors", r#"{"recent":["a1"]}"#),
            ("product.sku-1/activity", r#"{"last_at":"2026-11-20T10:00:00Z","views":1}"#),
            ("product.sku-1/name", r#"{"value":"Mug"}"#),
            ("product.sku-1/price", r#"{"amount_minor":1299,"currency":"EUR"}"#),
            ("visitor.a1/link", r#"{"customer":"c1"}"#),
        ],
    );
}

#[test]
fn product_searched() {
    let body =
        r#"{"type":"product_searched","occurred_at":"2026-11-20T11:00:00Z","customer":{"id":"c1"},"search":{"query":" Blue  MUG ","results":12}}"#;
    // The sender's clock is ahead: what competes is when we received it.
    check(
        body,
        &counted_once(),
        &[
            ("customer.c1/now", r#"{"last_seen_at":"2026-11-20T10:00:05Z","online_until":"2026-11-20T10:01:05Z"}"#),
            ("customer.c1/searches", r#"{"recent":[{"query":"Blue  MUG","results":12,"at":"2026-11-20T10:00:05Z"}]}"#),
        ],
    );
    let changes = mapped(&record("e"), &event(body), &counted_once(), false);
    assert!(matches!(&changes[0].ops[0], Op::Merge { with: Merge::Ring { key, .. }, .. } if key == "blue mug"));
}

#[test]
fn cart_updated() {
    let body = r#"{"type":"cart_updated","occurred_at":"2026-11-20T10:00:00Z","customer":{"id":"c1"},"cart":{"id":"k1","items":[
        {"product_id":"b","quantity":2,"price":{"amount_minor":150,"currency":"EUR"}},{"product_id":"a","quantity":1},
        {"product_id":"b","quantity":1,"price":{"amount_minor":150,"currency":"EUR"}}]}}"#;
    check(
        body,
        &counted_once(),
        &[
            (
                "customer.c1/cart",
                r#"{"id":"k1","items":[{"product_id":"b","quantity":2,"price":{"amount_minor":150,"currency":"EUR"}},{"product_id":"a","quantity":1},{"product_id":"b","quantity":1,"price":{"amount_minor":150,"currency":"EUR"}}],"lines":3,"units":4,"value":{"amount_minor":450,"currency":"EUR"},"at":"2026-11-20T10:00:00Z"}"#,
            ),
            ("customer.c1/now", r#"{"last_seen_at":"2026-11-20T10:00:00Z","online_until":"2026-11-20T10:01:00Z"}"#),
            ("product.a/activity", r#"{"carts":1,"last_at":"2026-11-20T10:00:00Z"}"#),
            ("product.b/activity", r#"{"carts":1,"last_at":"2026-11-20T10:00:00Z"}"#),
        ],
    );
}

const STEP: &str = r#"{"type":"checkout_step","occurred_at":"2026-11-20T10:00:00Z","customer":{"id":"c1"},
    "checkout":{"id":"ch1","step":"shipping","status":"completed","value":{"amount_minor":2598,"currency":"EUR"}}}"#;

fn step_counted(count: i64, crawler: bool) -> Effects {
    let step = StepCount { step: "shipping".into(), status: StepStatus::Completed, at: time(RECEIVED), crawler, count };
    Effects { steps: vec![step], checkout_changed: true, ..Effects::default() }
}

#[test]
fn checkout_step() {
    let mut hash = String::new();
    naming::push_lower_hex(&mut hash, &SiteRules::default().person_hash("c1"));
    let step = format!(r#"{{"completed":1,"customers":["{hash}"],"last_at":"2026-11-20T10:00:00Z"}}"#);
    let checkout =
        r#"{"id":"ch1","step":"shipping","status":"completed","value":{"amount_minor":2598,"currency":"EUR"},"at":"2026-11-20T10:00:00Z"}"#;
    let now = r#"{"last_seen_at":"2026-11-20T10:00:00Z","online_until":"2026-11-20T10:01:00Z"}"#;
    check(
        STEP,
        &outcome(Verdict::Counted, step_counted(1, false)),
        &[("checkout.shipping", &step), ("customer.c1/checkout", checkout), ("customer.c1/now", now)],
    );
}

#[test]
fn a_duplicate_step_moves_last_at_alone() {
    let effects = |checkout_changed| Effects { checkout_changed, ..Effects::default() };
    check(STEP, &outcome(Verdict::Duplicate, effects(true)), &[("checkout.shipping", r#"{"last_at":"2026-11-20T10:00:00Z"}"#)]);
    check(STEP, &outcome(Verdict::Duplicate, effects(false)), &[]);
    check(STEP, &outcome(Verdict::Conflict, effects(true)), &[]);
}

#[test]
fn the_further_step_wins_an_instant() {
    let rules = SiteRules::default();
    let (record, event) = (record("e"), event(STEP));
    let told = Told { record: &record, event: &event, rules: &rules, at: time(RECEIVED) };
    let (entered, completed) = (StepStatus::Entered, StepStatus::Completed);
    let facts = [("unknown", completed), ("contact", entered), ("contact", completed), ("address", entered), ("payment", completed)];
    assert!(facts.map(|(step, status)| told.step_fact("ch1", step, status)).is_sorted());
}

fn sale(product: &str, units: i64, minor: i64, crawler: bool) -> Sale {
    let revenue = vec![(Currency::parse("EUR").unwrap(), minor)];
    Sale { product_id: product.into(), at: time(RECEIVED), crawler, units, orders: units.signum(), revenue }
}

fn sold(sales: Vec<Sale>) -> Outcome {
    outcome(Verdict::Counted, Effects { sales, order_changed: true, ..Effects::default() })
}

const ORDER: &str = r#"{"type":"order_completed","occurred_at":"2026-11-20T10:00:00Z","customer":{"id":"c1"},"checkout":{"id":"ch1"},"order":{"id":"o1",
    "items":[{"product_id":"a","name":"Mug","quantity":2,"price":{"amount_minor":1299,"currency":"EUR"}}],"total":{"amount_minor":3000,"currency":"EUR"}}}"#;

#[test]
fn order_completed() {
    check(
        ORDER,
        &sold(vec![sale("a", 2, 2598, false)]),
        &[
            (
                "customer.c1/orders",
                r#"{"recent":[{"order_id":"o1","total":{"amount_minor":3000,"currency":"EUR"},"units":2,"at":"2026-11-20T10:00:00Z"}]}"#,
            ),
            ("product.a/activity", r#"{"last_at":"2026-11-20T10:00:00Z","revenue":[{"currency":"EUR","amount_minor":2598}],"sold":2}"#),
            ("product.a/name", r#"{"value":"Mug"}"#),
        ],
    );
}

#[test]
fn order_refunded() {
    let body = r#"{"type":"order_refunded","occurred_at":"2026-11-20T10:00:00Z","customer":{"id":"c1"},"refund":{"id":"r1"},
        "order":{"id":"o1","items":[{"product_id":"a","quantity":1,"price":{"amount_minor":1299,"currency":"EUR"}}]}}"#;
    check(
        body,
        &sold(vec![sale("a", -1, -1299, false)]),
        &[
            (
                "customer.c1/orders",
                r#"{"refunds":[{"order_id":"o1","refund_id":"r1","amount":{"amount_minor":1299,"currency":"EUR"},"at":"2026-11-20T10:00:00Z"}]}"#,
            ),
            ("product.a/activity", r#"{"revenue":[{"currency":"EUR","amount_minor":-1299}],"sold":-1}"#),
        ],
    );
}

#[test]
fn product_updated() {
    let body = r#"{"type":"product_updated","occurred_at":"2026-11-20T10:00:00Z","product":{"id":"a","name":"Mug","color":"red","category":"kitchen",
        "quantity":40,"size":"0.3 l","supplier":"S1","margin":0.4,"price":{"amount_minor":1299,"currency":"EUR"},"available_in":["DE","AT"]}}"#;
    check(
        body,
        &counted_once(),
        &[
            ("product.a/available_in", r#"{"value":["DE","AT"]}"#),
            ("product.a/category", r#"{"value":"kitchen"}"#),
            ("product.a/color", r#"{"value":"red"}"#),
            ("product.a/margin", r#"{"value":0.4}"#),
            ("product.a/name", r#"{"value":"Mug"}"#),
            ("product.a/price", r#"{"amount_minor":1299,"currency":"EUR"}"#),
            ("product.a/quantity", r#"{"value":40}"#),
            ("product.a/size", r#"{"value":"0.3 l"}"#),
            ("product.a/supplier", r#"{"value":"S1"}"#),
        ],
    );
}

#[test]
fn customer_updated_and_unknown_types() {
    let body =
        |kind: &str| format!(r#"{{"type":"{kind}","occurred_at":"2026-11-20T10:00:00Z","customer":{{"id":"c1","location":{{"city":"Ulm"}}}}}}"#);
    check(&body("customer_updated"), &counted_once(), &[("customer.c1/location", r#"{"city":"Ulm"}"#)]);
    check(&body("wishlist_shared"), &counted_once(), &[]);
    check(&body("object_changed"), &counted_once(), &[]);
}

#[test]
fn crawlers_and_other_records_change_nothing_but_what_identity_corrects() {
    let mut crawler = record("e-1");
    crawler.flags.set(Flags::CRAWLER);
    let correction = sold(vec![sale("a", -2, -2598, false), sale("b", 2, 2598, true)]);
    let found = shown(&mapped(&crawler, &event(ORDER), &correction, true));
    assert_eq!(found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["index.product/a", "product.a/activity"]);
    for body in [STEP, r#"{"type":"product_viewed","occurred_at":"2026-11-20T10:00:00Z","product":{"id":"a"},"customer":{"id":"c"}}"#] {
        assert_eq!(mapped(&crawler, &event(body), &outcome(Verdict::Counted, step_counted(1, true)), true), []);
    }
    for kind in [RecordKind::Completion, RecordKind::Quarantine, RecordKind::Refusals] {
        let record = Record { kind, ..record("e-1") };
        assert_eq!(mapped(&record, &event(STEP), &outcome(Verdict::Counted, step_counted(1, false)), true), []);
    }
}

#[test]
fn indexes_take_what_is_new() {
    let body = r#"{"type":"cart_updated","occurred_at":"2026-11-20T10:00:00Z","cart":{"items":[{"product_id":"a/b","quantity":1},{"product_id":"c","quantity":1}]}}"#;
    let found = shown(&mapped(&record("e"), &event(body), &counted_once(), true));
    assert_eq!(
        found[..2],
        [
            ("index.product/a:b".to_owned(), r#"{"id":"a/b","object":"product.a:b"}"#.to_owned()),
            ("index.product/c".to_owned(), r#"{"id":"c","object":"product.c"}"#.to_owned())
        ]
    );
    let steps = shown(&mapped(&record("e"), &event(STEP), &outcome(Verdict::Counted, step_counted(1, false)), true));
    assert!(steps.contains(&("index.step/shipping".to_owned(), r#"{"id":"shipping","object":"checkout.shipping"}"#.to_owned())));
}

#[test]
fn better_reports_of_an_order_replace_worse_ones_in_any_order() {
    let report = |channel, fingerprint, at: &str, minor: i64| {
        let body = format!(
            r#"{{"type":"order_completed","occurred_at":"{at}","customer":{{"id":"c1"}},"order":{{"id":"o1","total":{{"amount_minor":{minor},"currency":"EUR"}}}}}}"#
        );
        let record = Record { channel, fingerprint, ..record("e") };
        mapped(&record, &event(&body), &outcome(Verdict::Report, Effects::default()), false).remove(0)
    };
    // Webhook before all; of two webhooks the smaller fingerprint.
    let reports = [
        report(Channel::Pixel, 1, "2026-11-20T10:00:03Z", 1),
        report(Channel::Webhook, 8, "2026-11-20T10:00:00Z", 3),
        report(Channel::Webhook, 9, "2026-11-20T10:00:02Z", 2),
    ];
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [2, 0, 1]] {
        let mut object = Object::empty(reports[0].key.clone());
        for (offset, report) in order.iter().enumerate() {
            object.apply(&reports[*report], offset as u64, None);
        }
        let data = object.snapshot().unwrap().items[0].data.to_string();
        assert_eq!(data, r#"{"recent":[{"order_id":"o1","total":{"amount_minor":3,"currency":"EUR"},"units":0,"at":"2026-11-20T10:00:00Z"}]}"#);
    }
}

#[test]
fn long_texts_are_cut_between_characters() {
    assert_eq!(cut(&"é".repeat(400)).len(), 500);
    assert_eq!(cut(&format!("x{}", "é".repeat(400))).len(), 499);
    let url = format!("/{}", "a".repeat(100_000));
    let body =
        format!(r#"{{"type":"page_viewed","occurred_at":"2026-11-20T10:00:00Z","customer":{{"id":"c"}},"page":{{"url":"{url}","title":"{url}"}}}}"#);
    let bytes: usize = mapped(&record("e"), &event(&body), &counted_once(), false).iter().map(|change| change.to_bytes().len()).sum();
    assert!(bytes < 5_000, "{bytes}");
}

#[test]
fn trail_indexes_follow_time_and_stay_safe() {
    let early = trail_index(time("2026-11-20T10:00:00Z"), "z");
    assert!(early < trail_index(time("2026-11-20T10:00:00.001Z"), "a"));
    assert!(trail_index(time("2068-12-31T00:00:00Z"), "a") < 1 << 53);
    assert_eq!(trail_index(time("1999-01-01T00:00:00Z"), "a") >> 12, 0);
    assert!(trail_index(Timestamp::MAX, "a") < 1 << 53);
}
