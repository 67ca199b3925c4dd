//! Typed validation and the schemas under `schemas/events` give the same verdict on valid and on damaged events; and each fault has its place.

use jsonschema::Keyword;
use jsonschema::paths::{LazyLocation, Location};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use serde_json::{Value, json};

use super::super::json::Parser;
use super::*;

/// An event's verdict: its facts, or code and pointer.
fn verdict(event_text: &str) -> Result<Facts, (&'static str, String)> {
    let node = Parser::new(event_text).value(1 << 20).unwrap();
    let Node::Object(mut object) = node else { panic!("not an object: {event_text}") };
    event(&mut object).map_err(|e| (e.code.name(), e.pointer))
}

/// Of `x-maxBytes`: JSON Schema's `maxLength` counts characters.
struct MaxBytes(usize);

impl Keyword for MaxBytes {
    fn validate<'i>(&self, instance: &'i Value, location: &LazyLocation) -> Result<(), jsonschema::ValidationError<'i>> {
        if self.is_valid(instance) {
            return Ok(());
        }
        Err(jsonschema::ValidationError::custom(Location::new(), location.into(), instance, "too many bytes"))
    }
    fn is_valid(&self, instance: &Value) -> bool {
        instance.as_str().is_none_or(|text| text.len() <= self.0)
    }
}

#[expect(clippy::result_large_err, reason = "the library's own error")]
fn schema() -> jsonschema::Validator {
    let mut options = jsonschema::options()
        .should_validate_formats(true)
        .with_format("date-time", |text: &str| Timestamp::parse(text).is_ok())
        .with_keyword("x-maxBytes", |_, value, _| Ok(Box::new(MaxBytes(value.as_u64().unwrap() as usize)) as Box<dyn Keyword>));
    let mut whole = Value::Null;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/events")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert!(jsonschema::meta::is_valid(&value), "{name} is no schema");
        if name == "event.json" {
            whole = value;
        } else {
            let resource = jsonschema::Resource::from_contents(value).unwrap();
            options = options.with_resource(format!("json-schema:///{name}"), resource);
        }
    }
    options.build(&whole).unwrap()
}

fn money() -> impl Strategy<Value = Value> {
    let currency = prop_oneof![Just("EUR"), Just("JPY"), Just("KWD"), Just("CLF"), Just("XXX")];
    let amount = prop_oneof![
        (-1_000_000i64..1_000_000).prop_map(|n| json!({ "amount_minor": n })),
        "-?0{0,3}[0-9]{1,13}(\\.[0-9]{1,5})?".prop_map(|text| json!({ "amount": text })),
        Just(json!({"amount_minor": 2.0})),
        Just(json!({"amount_minor": 5, "amount": null})),
        Just(json!({"amount_minor": 1_000_000_000_000_000i64})),
    ];
    (currency, amount).prop_map(|(currency, mut money)| {
        money["currency"] = json!(currency);
        money
    })
}

fn item() -> impl Strategy<Value = Value> {
    (money(), 1u32..5, "[a-z]{0,3}").prop_map(|(price, quantity, id)| json!({"product_id": id + "x", "quantity": quantity, "price": price}))
}

fn parts() -> impl Strategy<Value = Value> {
    let items = prop::collection::vec(item(), 0..3);
    (money(), items, "\\PC{0,8}", any::<bool>()).prop_map(|(money, items, text, flag)| {
        json!({
            "event_id": text, "occurred_at": "2026-11-20T10:00:00+01:00", "sent_at": "2026-11-20T10:00:00.25Z", "seq": 7,
            "customer": {"id": text, "anonymous_id": "a1", "session_id": null, "location": {"country": "DE", "city": text}},
            "client": {"user_agent": text, "ip": "192.0.2.1", "locale": "de"},
            "page": {"url": "/p", "title": text, "referrer": null},
            "product": {"id": "sku", "name": text, "quantity": 4, "margin": 0.4, "price": money, "available_in": ["DE", text]},
            "search": {"query": text, "results": 3},
            "cart": {"id": "k", "items": items},
            "checkout": {"id": "ch", "step": "pay", "status": if flag { "entered" } else { "completed" }, "value": money},
            "order": {"id": "o1", "items": items, "total": money},
            "refund": {"id": text}, "source": {"channel": "server", "library": text},
            "properties": {"free": [1, null, {"x": text}]}, "site": 3, "extra": {"unknown": true},
        })
    })
}

fn kinds() -> impl Strategy<Value = &'static str> {
    let known = vec![
        kind::PAGE_VIEWED,
        kind::PRODUCT_VIEWED,
        kind::PRODUCT_SEARCHED,
        kind::CART_UPDATED,
        kind::CHECKOUT_STEP,
        kind::ORDER_COMPLETED,
        kind::ORDER_REFUNDED,
        kind::PRODUCT_UPDATED,
        kind::CUSTOMER_UPDATED,
        kind::OBJECT_CHANGED,
        "wishlist_shared",
        "",
    ];
    prop::sample::select(known)
}

/// Events with all parts or some.
pub(in crate::ingest) fn whole_events() -> impl Strategy<Value = Value> {
    (parts(), kinds(), any::<u32>()).prop_map(|(mut event, kind, keep)| {
        let mut place = 0;
        event.as_object_mut().unwrap().retain(|_, _| {
            place += 1;
            keep & (1 << place) != 0 || keep % 3 == 0
        });
        event["type"] = json!(kind);
        event
    })
}

fn junk() -> impl Strategy<Value = Option<Value>> {
    prop_oneof![
        2 => Just(None),
        8 => prop::sample::select(vec![
            json!(null), json!(true), json!(0), json!(-1), json!(2.0), json!(2.5), json!(1e300), json!(9_007_199_254_740_993i64), json!(1_000_001),
            json!(""), json!("x"), json!("entered"), json!("(order)"), json!("eur"), json!("12.5"), json!("1e3"), json!("2026-02-30T00:00:00Z"),
            json!([]), json!([null]), json!([{}]), json!({}), json!({"currency": "EUR"}), json!({"amount": 12.99, "currency": "EUR"}),
            json!("é".repeat(128)), json!("é".repeat(1_024)), json!("x".repeat(1_025)), json!("x".repeat(256)),
        ])
        .prop_map(Some),
    ]
}

/// Puts something else, or nothing, at the place that `path` leads to.
fn damage(value: &mut Value, path: &[usize], with: &Option<Value>) {
    let Some((step, rest)) = path.split_first() else { return };
    match value {
        Value::Object(members) if !members.is_empty() => {
            let key = members.keys().nth(step % members.len()).unwrap().clone();
            if rest.is_empty() || !(members[&key].is_object() || members[&key].is_array()) {
                match with {
                    Some(junk) => members.insert(key, junk.clone()),
                    None => members.remove(&key),
                };
            } else {
                damage(members.get_mut(&key).unwrap(), rest, with);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            let index = step % items.len();
            match (rest.is_empty(), with) {
                (true, Some(junk)) => items[index] = junk.clone(),
                (true, None) => drop(items.remove(index)),
                _ => damage(&mut items[index], rest, with),
            }
        }
        _ => {}
    }
}

#[test]
fn typed_rules_and_schemas_agree() {
    let schema = schema();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(4_000));
    let damages = prop::collection::vec((prop::collection::vec(0usize..40, 1..5), junk()), 0..3);
    let mut verdicts = [0u32; 2];
    runner
        .run(&(whole_events(), damages), |(mut event, damages)| {
            for (path, with) in &damages {
                damage(&mut event, path, with);
            }
            let ours = verdict(&event.to_string());
            let theirs: Vec<String> = schema.iter_errors(&event).map(|e| format!("{}: {e}", e.instance_path)).collect();
            prop_assert_eq!(ours.is_ok(), theirs.is_empty(), "ours: {:?}, schema: {:?}, event: {}", ours, theirs, event);
            Ok(())
        })
        .unwrap();
    let mut tally = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..300 {
        let event = whole_events().new_tree(&mut tally).unwrap().current();
        verdicts[usize::from(verdict(&event.to_string()).is_ok())] += 1;
    }
    assert!(verdicts.iter().all(|count| *count > 20), "both verdicts must be tried: {verdicts:?}");
}

#[test]
fn each_fault_has_its_code_and_place() {
    for (event, code, pointer) in [
        (json!({}), "field_missing", "/type"),
        (json!({"type": null}), "field_missing", "/type"),
        (json!({"type": 3}), "type_wrong", "/type"),
        (json!({"type": ""}), "value_invalid", "/type"),
        (json!({"type": "é".repeat(256)}), "too_long", "/type"),
        (json!({"type": "object_changed"}), "value_invalid", "/type"),
        (json!({"type": "x", "event_id": 3}), "type_wrong", "/event_id"),
        (json!({"type": "x", "event_id": "é".repeat(128)}), "too_long", "/event_id"),
        (json!({"type": "x", "occurred_at": "yesterday"}), "timestamp_invalid", "/occurred_at"),
        (json!({"type": "x", "occurred_at": 1_790_000_000}), "type_wrong", "/occurred_at"),
        (json!({"type": "x", "customer": {"id": 17}}), "type_wrong", "/customer/id"),
        (json!({"type": "x", "customer": {"location": "DE"}}), "type_wrong", "/customer/location"),
        (json!({"type": "page_viewed"}), "field_missing", "/page"),
        (json!({"type": "x", "page": {}}), "field_missing", "/page/url"),
        (json!({"type": "x", "product": {"id": ""}}), "value_invalid", "/product/id"),
        (json!({"type": "x", "product": {"id": "1", "available_in": ["DE", 4]}}), "type_wrong", "/product/available_in/1"),
        (json!({"type": "x", "product": {"id": "1", "margin": "0.4"}}), "type_wrong", "/product/margin"),
        (json!({"type": "x", "product": {"id": "1", "price": {"amount": 12.99, "currency": "EUR"}}}), "money_invalid", "/product/price/amount"),
        (json!({"type": "x", "product": {"id": "1", "price": {"amount": "12,99", "currency": "EUR"}}}), "money_invalid", "/product/price/amount"),
        (json!({"type": "x", "product": {"id": "1", "price": {"amount": "1", "currency": "eur"}}}), "money_invalid", "/product/price/currency"),
        (
            json!({"type": "x", "product": {"id": "1", "price": {"amount": "1", "amount_minor": 100, "currency": "EUR"}}}),
            "money_invalid",
            "/product/price",
        ),
        (json!({"type": "x", "product": {"id": "1", "price": {"currency": "EUR"}}}), "field_missing", "/product/price/amount_minor"),
        (
            json!({"type": "x", "cart": {"items": [{"product_id": "1", "quantity": 1}, {"product_id": "1"}]}}),
            "field_missing",
            "/cart/items/1/quantity",
        ),
        (json!({"type": "x", "order": {"id": "1", "items": [{"product_id": "1", "quantity": 0}]}}), "value_invalid", "/order/items/0/quantity"),
        (json!({"type": "x", "order": {"id": "1", "items": [{"product_id": "1", "quantity": 1.5}]}}), "type_wrong", "/order/items/0/quantity"),
        (json!({"type": "x", "order": {"id": "1", "items": {}}}), "type_wrong", "/order/items"),
        (json!({"type": "checkout_step", "checkout": {"status": "entered"}}), "field_missing", "/checkout/step"),
        (json!({"type": "checkout_step", "checkout": {"step": "pay", "status": "left"}}), "value_invalid", "/checkout/status"),
        (json!({"type": "x", "checkout": {"step": "(order)"}}), "value_invalid", "/checkout/step"),
        (json!({"type": "customer_updated", "customer": {"session_id": "s"}}), "field_missing", "/customer/id"),
        (json!({"type": "x", "source": {"channel": "smoke"}}), "value_invalid", "/source/channel"),
        (json!({"type": "x", "seq": "7"}), "type_wrong", "/seq"),
    ] {
        assert_eq!(verdict(&event.to_string()), Err((code, pointer.to_owned())), "{event}");
    }
}
