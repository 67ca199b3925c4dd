//! The mapped events counted again and compared with `tests/independent/count.py`, which reads the same file and shares nothing
//! with the mapping: on the fixtures always, on the real files where `CONTRAIL_TEST_DATA` names their folder. Needs `python3`.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::{Fault, Mapping, decompressed, read};
use crate::event::{Currency, Item, Money, kind};

const LIMIT: usize = 50;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The fixture, and the real file where there is one.
fn files(fixture: &str, real: &str) -> Vec<PathBuf> {
    let real = std::env::var_os("CONTRAIL_TEST_DATA").map(|folder| PathBuf::from(folder).join(real));
    std::iter::once(root().join("tests/fixtures").join(fixture)).chain(real).collect()
}

fn counted(dataset: &str, file: &Path, more: &[&str]) -> Value {
    let script = root().join("tests/independent/count.py");
    let out = Command::new("python3").arg(script).arg(dataset).arg(file).args(["--limit", &LIMIT.to_string()]).args(more).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn mapped(mapping: &str, file: &Path) -> Vec<Value> {
    let mapping = Mapping::parse(&std::fs::read_to_string(root().join("mappings").join(mapping)).unwrap()).unwrap();
    let reading = read(&mapping, decompressed(File::open(file).unwrap()).unwrap()).unwrap();
    let event = |result: Result<super::MappedEvent, Fault>| match result {
        Ok(event) => Some(serde_json::from_str(&event.json).unwrap()),
        Err(Fault::Line(_)) => None,
        Err(Fault::Read(error)) => panic!("{error}"),
    };
    let events: Vec<Value> = reading.filter_map(event).collect();
    let ids: HashSet<&str> = events.iter().map(|e| e["event_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), events.len(), "event ids are unique in a file");
    events
}

/// An event's lines, each price in minor units.
fn items(event: &Value, part: &str) -> Vec<Item> {
    let amount_to_minor = |item: &Value| {
        let mut item = item.clone();
        if let Some(price) = item.get("price") {
            let currency = Currency::parse(price["currency"].as_str().unwrap()).unwrap();
            item["price"] = json!(Money::from_decimal(price["amount"].as_str().unwrap(), currency).unwrap().0);
        }
        serde_json::from_value(item).unwrap()
    };
    event[part]["items"].as_array().unwrap().iter().map(amount_to_minor).collect()
}

fn ranked(mut rows: Vec<Value>, measure: &str, key: &str) -> Value {
    rows.sort_by_key(|row| (-row[measure].as_i64().unwrap(), row[key].as_str().unwrap().to_owned()));
    rows.truncate(LIMIT);
    rows.into()
}

/// How often each thing was seen, and by how many.
fn seen<'a>(pairs: impl Iterator<Item = (String, &'a Value)>, key: &str, measure: &str) -> Value {
    let mut counts: BTreeMap<String, (u64, BTreeSet<String>)> = BTreeMap::new();
    for (what, event) in pairs {
        let count = counts.entry(what).or_default();
        count.0 += 1;
        count.1.insert(event["customer"]["anonymous_id"].as_str().unwrap().to_owned());
    }
    let row = |(what, (n, who)): (String, (u64, BTreeSet<String>))| json!({key: what, measure: n, "customers": who.len()});
    ranked(counts.into_iter().map(row).collect(), measure, key)
}

#[test]
fn onlineretail_equals_the_independent_count() {
    for file in files("onlineretail.csv", "onlineretail_demo_2010-12_2011-08.csv.zst") {
        let (count, events) = (counted("onlineretail", &file, &[]), mapped("onlineretail.toml", &file));
        let mut products: BTreeMap<String, (i64, i64, u64)> = BTreeMap::new();
        for event in &events {
            let refund = event["type"] == kind::ORDER_REFUNDED;
            let sign = if refund { -1 } else { 1 };
            let mut inside = BTreeSet::new();
            for item in items(event, "order") {
                let product = products.entry(item.product_id.clone()).or_default();
                product.0 += sign * item.quantity;
                product.1 += sign * item.quantity * item.price.unwrap().amount_minor;
                product.2 += u64::from(!refund && inside.insert(item.product_id));
            }
        }
        let row = |(id, (units, revenue, orders)): (&String, &(i64, i64, u64))| json!({"product_id": id, "units": units, "orders": orders, "revenue_minor": revenue});
        let rows: Vec<Value> = products.iter().map(row).collect();
        assert_eq!(ranked(rows.clone(), "units", "product_id"), count["top_units"]);
        assert_eq!(ranked(rows, "revenue_minor", "product_id"), count["top_revenue"]);
        assert_eq!(json!(products.values().map(|p| p.1).sum::<i64>()), count["revenue_minor"]);
        assert_eq!(json!(events.iter().filter(|e| e["type"] == kind::ORDER_COMPLETED).count()), count["orders"]);
        assert_eq!(json!(events.iter().map(|e| items(e, "order").len()).max()), count["most_lines"]);
        assert_eq!(json!(events.iter().filter(|e| e["customer"]["id"].is_null()).count()), count["without_customer"]);
        for timeline in count["timelines"].as_array().unwrap() {
            let mut own: Vec<&Value> = events.iter().filter(|e| e["customer"]["id"] == timeline["customer"]).collect();
            own.sort_by_key(|e| (e["occurred_at"].as_str().unwrap(), e["event_id"].as_str().unwrap()));
            let line = |e: &&Value| {
                let items = items(e, "order");
                let units: i64 = items.iter().map(|item| item.quantity).sum();
                json!({"at": e["occurred_at"], "type": e["type"], "order": e["order"]["id"], "lines": items.len(), "units": units})
            };
            assert_eq!(json!(own.iter().map(line).collect::<Vec<_>>()), timeline["events"]);
        }
    }
}

fn zanbil_view(events: &[&Value]) -> Value {
    let of = |kind: &'static str| events.iter().filter(move |e| e["type"] == kind);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let query = |e: &Value| {
        use unicode_normalization::UnicodeNormalization;
        let composed: String = e["search"]["query"].as_str().unwrap().nfc().collect();
        composed.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
    };
    let reached: BTreeSet<_> = of(kind::CHECKOUT_STEP)
        .map(|e| (text(&e["customer"]["anonymous_id"]), text(&e["checkout"]["step"]), text(&e["checkout"]["status"])))
        .collect();
    let count = |step: &str, status: &str| reached.iter().filter(|r| r.1 == step && r.2 == status).count();
    let steps = ["contact", "address", "shipping"].map(|s| json!({"step": s, "entered": count(s, "entered"), "completed": count(s, "completed")}));
    json!({
        "events": events.len(),
        "top_viewed": seen(of(kind::PRODUCT_VIEWED).map(|e| (text(&e["product"]["id"]), *e)), "product_id", "views"),
        "top_searches": seen(of(kind::PRODUCT_SEARCHED).map(|e| (query(e), *e)), "query", "searches"),
        "suggestions": of("search_suggested").count(),
        "carts": of(kind::CART_UPDATED).count(),
        "checkout_steps": steps,
    })
}

#[test]
fn zanbil_equals_the_independent_count() {
    for file in files("zanbil.ndjson", "zanbil_demo.events.ndjson.zst") {
        let events = mapped("zanbil.toml", &file);
        let agent = |e: &Value| e["client"]["user_agent"].as_str().unwrap().to_owned();
        let crawlers: BTreeSet<String> = events.iter().map(agent).filter(|agent| agent.to_lowercase().contains("bot")).collect();
        let mut list = tempfile::NamedTempFile::new().unwrap();
        crawlers.iter().for_each(|agent| writeln!(list, "{agent}").unwrap());
        let mut count = counted("zanbil", &file, &["--crawlers", list.path().to_str().unwrap()]);
        for view in ["included", "excluded"] {
            // Pages are the business of paths, which the mapping leaves as they are; but it must take as many views.
            let pages = count[view].as_object_mut().unwrap().remove("top_pages").unwrap();
            assert!(!pages.as_array().unwrap().is_empty());
        }
        let people: Vec<&Value> = events.iter().filter(|e| !crawlers.contains(&agent(e))).collect();
        assert!(!crawlers.is_empty() && people.len() < events.len());
        assert_eq!(zanbil_view(&events.iter().collect::<Vec<_>>()), count["included"]);
        assert_eq!(zanbil_view(&people), count["excluded"]);
    }
}

#[test]
fn otto_equals_the_independent_count() {
    for file in files("otto.ndjson", "otto_sample_sessions.jsonl.zst") {
        let (count, events) = (counted("otto", &file, &[]), mapped("otto.toml", &file));
        let of = |kind: &'static str| events.iter().filter(move |e| e["type"] == kind);
        assert_eq!(json!(of(kind::PRODUCT_VIEWED).count()), count["views"]);
        assert_eq!(json!(of(kind::CART_UPDATED).count()), count["carts"]);
        let viewed = of(kind::PRODUCT_VIEWED).map(|e| (e["product"]["id"].as_str().unwrap().to_owned(), e));
        assert_eq!(seen(viewed, "product_id", "views"), count["top_viewed"]);
        let carts = of(kind::CART_UPDATED).flat_map(|e| items(e, "cart").into_iter().map(move |item| (item.product_id, e)));
        assert_eq!(seen(carts, "product_id", "carts"), count["top_carts"]);
        let mut orders: Vec<(String, String, Vec<String>)> = Vec::new();
        for order in of(kind::ORDER_COMPLETED) {
            let (session, ts) = order["order"]["id"].as_str().unwrap().split_once('-').unwrap();
            let mut products: Vec<String> = items(order, "order").into_iter().map(|item| item.product_id).collect();
            products.sort();
            orders.push((session.to_owned(), ts.to_owned(), products));
        }
        orders.sort();
        let row =
            |(session, ts, items): &(String, String, Vec<String>)| json!({"session": session, "ts": ts.parse::<u64>().unwrap(), "items": items});
        assert_eq!(json!(orders.iter().map(row).collect::<Vec<_>>()), count["orders"]);
    }
}
