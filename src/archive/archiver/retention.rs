//! Retention as the archiver meets it: what goes, what stays, and that nothing of what went comes back. For tests.

use super::tests::{DAY, World, assert_clean, at, record, site, viewed};
use super::*;
use crate::archive::contract::ALL;
use crate::archive::{Bots, Metric, Scan};
use crate::event::identity::{Sale, order_key};
use crate::event::{Record, RecordKind, Timestamp};

/// Before and after everything.
const EVER: (Timestamp, Timestamp) = (Timestamp::from_micros(0), Timestamp::from_micros(253_402_128_000_000_000));

fn lines(units: i64) -> serde_json::Value {
    serde_json::json!([{"product_id": "p1", "quantity": units, "price": {"amount_minor": 100, "currency": "EUR"}}])
}

fn order(event_id: &str, order_id: &str, occurred_at: Timestamp, received_at: Timestamp) -> Vec<Record> {
    let body = serde_json::json!({"type": "order_completed", "occurred_at": occurred_at, "customer": {"id": "c1", "session_id": "s1"},
        "order": {"id": order_id, "items": lines(3)}, "checkout": {"id": format!("ch-{order_id}")}});
    let order = record(event_id, received_at, body);
    let completion = Record {
        kind: RecordKind::Completion,
        event_id: crate::event::ids::completion_id(event_id),
        key_kind: crate::event::KeyKind::Checkout,
        key: format!("ch-{order_id}"),
        ..order.clone()
    };
    vec![order, completion]
}

fn refund(event_id: &str, order_id: &str, items: Option<i64>, occurred_at: Timestamp) -> Record {
    let mut body = serde_json::json!({"type": "order_refunded", "occurred_at": occurred_at, "refund": {"id": event_id}, "order": {"id": order_id}});
    if let Some(units) = items {
        body["order"]["items"] = lines(units);
    }
    record(event_id, occurred_at.plus_seconds(1), body)
}

/// A step of a checkout without an id: of the session and the day.
fn step(event_id: &str, session: &str, name: &str, occurred_at: Timestamp) -> Record {
    let body = serde_json::json!({"type": "checkout_step", "occurred_at": occurred_at, "customer": {"session_id": session},
        "checkout": {"step": name, "status": "entered", "value": {"amount_minor": 7, "currency": "EUR"}}});
    record(event_id, occurred_at.plus_seconds(1), body)
}

/// A step of the checkout of that id.
fn step_of(event_id: &str, checkout: &str, name: &str, occurred_at: Timestamp) -> Record {
    let body = serde_json::json!({"type": "checkout_step", "occurred_at": occurred_at, "customer": {"id": "c1"},
        "checkout": {"id": checkout, "step": name, "status": "entered"}});
    record(event_id, occurred_at.plus_seconds(1), body)
}

/// Units sold by day since the first one, as cells and as rows.
async fn sold(world: &World) -> Vec<(i64, i64)> {
    let mut by_day: BTreeMap<i64, i64> = BTreeMap::new();
    let sales: Vec<Sale> = world.archive.sales(&site(), EVER.0, EVER.1).await.unwrap();
    for sale in &sales {
        *by_day.entry(i64::from(sale.at.utc_day() - at(0).utc_day())).or_default() += sale.units;
    }
    for (day, units) in &by_day {
        let from = at(day * DAY).floor_to_seconds(DAY);
        let cells = world.archive.totals(&site(), Metric::Sold, from, from.plus_seconds(DAY), Bots::Include).await.unwrap();
        assert_eq!(cells.iter().map(|(_, value)| value.counts[0]).sum::<i64>(), *units, "cells and rows of day {day}");
    }
    by_day.into_iter().collect()
}

async fn assert_empty(world: &World) {
    let archive = world.archive.as_ref();
    for metric in [Metric::Searches, Metric::Views, Metric::Pages, Metric::Sold, Metric::Steps] {
        assert_eq!(archive.totals(&site(), metric, EVER.0, EVER.1, Bots::Include).await.unwrap(), []);
    }
    assert!(archive.sales(&site(), EVER.0, EVER.1).await.unwrap().is_empty());
    assert!(archive.steps(&site(), EVER.0, EVER.1).await.unwrap().is_empty());
    assert!(archive.checkouts(&site(), EVER.0, EVER.1, None, 9).await.unwrap().is_empty());
    assert!(archive.scan(&site(), &Scan { limit: 9, ..Scan::default() }).await.unwrap().is_empty());
    assert!(archive.days().await.unwrap().is_empty());
    assert_clean(world).await;
}

#[tokio::test]
async fn history_imported_today_stays_as_long_as_what_happened_today() {
    let world = World::new().await;
    let history = at(-5_000 * DAY);
    let mut records = order("e1", "o1", history, at(1));
    records.push(record("e2", at(1), viewed("p1", "c1", history)));
    records.push(record("e3", at(2), viewed("p1", "c1", at(0))));
    records.push(Record { received_at: at(3), ..step("e4", "s9", "contact", history) });
    world.append(&records).await;
    world.catch_up().await;
    let before = recount::as_answered(world.archive.as_ref(), &site()).await;
    for day in [-400, 0] {
        world.archive.retain(at(day * DAY), &ALL).await.unwrap();
        assert_eq!(recount::as_answered(world.archive.as_ref(), &site()).await, before);
        assert_eq!(sold(&world).await, [(-5_000, 3)]);
        assert_clean(&world).await;
    }
    world.archive.retain(at(DAY), &ALL).await.unwrap();
    assert_empty(&world).await;
}

#[tokio::test]
async fn a_day_stays_for_what_was_taken_last_of_it() {
    let world = World::new().await;
    world.append(&[record("e1", at(1), viewed("p1", "c1", at(0))), record("e2", at(-9 * DAY), viewed("p1", "c1", at(-9 * DAY)))]).await;
    world.catch_up().await;
    // A late one of the first day, and one that was known.
    world.append(&[record("e3", at(5 * DAY), viewed("p1", "c1", at(2))), record("e2", at(5 * DAY), viewed("p1", "c1", at(-9 * DAY)))]).await;
    world.catch_up().await;
    world.archive.retain(at(5 * DAY), &ALL).await.unwrap();
    assert_eq!(world.archive.days().await.unwrap(), [at(0).utc_day()]);
    let views = world.archive.totals(&site(), Metric::Views, EVER.0, EVER.1, Bots::Include).await.unwrap();
    assert_eq!((views.len(), views[0].1.counts[0]), (1, 2));
    assert_clean(&world).await;
    world.archive.retain(at(6 * DAY), &ALL).await.unwrap();
    assert_empty(&world).await;
}

#[tokio::test]
async fn a_late_refund_of_a_removed_order_adds_only_itself() {
    let world = World::new().await;
    world.append(&order("e1", "o1", at(0), at(1))).await;
    world.append(&order("e2", "o2", at(5 * DAY), at(5 * DAY))).await;
    world.catch_up().await;
    assert_eq!(sold(&world).await, [(0, 3), (5, 3)]);
    world.archive.retain(at(3 * DAY), &ALL).await.unwrap();
    assert_eq!(sold(&world).await, [(5, 3)]);
    let key = order_key(&site(), "o1");
    assert!(world.archive.identities(append_partition("o1"), &[key]).await.unwrap().is_empty(), "its identity goes with it");
    assert_clean(&world).await;
    world.append(&[refund("r1", "o1", Some(2), at(5 * DAY + 60))]).await;
    world.catch_up().await;
    assert_eq!(sold(&world).await, [(5, 1)]);
    assert_clean(&world).await;
}

fn append_partition(order_id: &str) -> u16 {
    crate::event::ids::events_partition(&site(), crate::event::KeyKind::Order, order_id)
}

#[tokio::test]
async fn what_lies_on_both_sides_keeps_the_later_one() {
    let world = World::new().await;
    let mut records = order("e1", "o1", at(0), at(1));
    records.extend([
        refund("r1", "o1", Some(1), at(DAY)),
        refund("r2", "o1", None, at(DAY + 1)),
        step_of("k1", "k", "contact", at(0)),
        step_of("k2", "k", "address", at(DAY)),
        step_of("k3", "ch-o1", "address", at(DAY)),
        step("s1", "s9", "contact", at(0)),
        // An order without lines, and a whole refund of one that never came: neither counts for anything.
        record("e5", at(1), serde_json::json!({"type": "order_completed", "occurred_at": at(0), "order": {"id": "o5"}})),
        refund("r6", "o6", None, at(0)),
        // A conflict, whose first report goes.
        record("v1", at(1), viewed("p1", "c1", at(0))),
        record("v1", at(2), viewed("p1", "c1", at(DAY))),
    ]);
    world.append(&records).await;
    world.catch_up().await;
    assert_eq!(sold(&world).await, [(0, 3), (1, -3)]);
    world.archive.retain(at(DAY), &ALL).await.unwrap();
    // A whole refund of an order that is not known gives back nothing.
    assert_eq!(sold(&world).await, [(1, -1)]);
    let steps = world.archive.steps(&site(), EVER.0, EVER.1).await.unwrap();
    assert_eq!(steps.iter().map(|step| step.step.as_str()).collect::<Vec<_>>(), ["address", "address"]);
    let checkouts = world.archive.checkouts(&site(), EVER.0, EVER.1, None, 9).await.unwrap();
    assert_eq!(checkouts.iter().map(|view| view.checkout.as_str()).collect::<Vec<_>>(), ["ch-o1", "k"]);
    for order_id in ["o5", "o6"] {
        assert!(world.archive.identities(append_partition(order_id), &[order_key(&site(), order_id)]).await.unwrap().is_empty(), "{order_id}");
    }
    assert_clean(&world).await;
    world
        .append(&[refund("r3", "o1", Some(1), at(2 * DAY)), step_of("k4", "k", "payment", at(2 * DAY)), step("s2", "s9", "contact", at(2 * DAY))])
        .await;
    world.catch_up().await;
    assert_eq!(sold(&world).await, [(1, -1), (2, -1)]);
    assert_clean(&world).await;
    world.archive.retain(at(3 * DAY), &ALL).await.unwrap();
    assert_empty(&world).await;
}

#[tokio::test]
async fn an_archiver_at_work_brings_nothing_back() {
    let mut world = World::new().await;
    world.settings.retain_every = Duration::from_millis(1);
    let stop = CancellationToken::new();
    let archiving = world.archiver().run(stop.clone());
    let shop = async {
        let caught_up = async || {
            while !world.is_caught_up().await {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let mut records = order("e1", "o1", at(0), at(1));
        records.extend([record("e2", at(1), viewed("p1", "c1", at(0))), step_of("k1", "k", "contact", at(0))]);
        world.append(&records).await;
        caught_up().await;
        assert_eq!(sold(&world).await, [(0, 3)]);
        world.clock.set(at(400 * DAY));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(sold(&world).await, [(0, 3)], "taken 400 days ago");
        world.clock.set(at(401 * DAY));
        while !world.archive.days().await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Of the same cells, the same order and the same checkout.
        let late = at(401 * DAY);
        world.append(&[refund("r1", "o1", Some(1), late), record("e3", late, viewed("p1", "c2", at(3))), step_of("k2", "k", "address", late)]).await;
        caught_up().await;
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(archiving, shop);
    ended.unwrap();
    assert_eq!(sold(&world).await, [(401, -1)]);
    let views = world.archive.totals(&site(), Metric::Views, EVER.0, EVER.1, Bots::Include).await.unwrap();
    assert_eq!((views.len(), views[0].1.counts[0]), (1, 1));
    let steps = world.archive.steps(&site(), EVER.0, EVER.1).await.unwrap();
    assert_eq!(steps.iter().map(|step| step.step.as_str()).collect::<Vec<_>>(), ["address"]);
    assert_clean(&world).await;
}
