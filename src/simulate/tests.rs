//! The day against its description, and its tally against a recount of the stream by other means.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;
use unicode_normalization::UnicodeNormalization;

use super::*;
use crate::event::identity::{self, Entry, ORDER_STEP};
use crate::event::{Currency, Flags, Record, RecordKind, SiteId, StepStatus, ids, kind};

fn start() -> Timestamp {
    Timestamp::parse("2026-11-19T06:30:00Z").unwrap()
}

fn day(seed: u64, events: u64) -> (Vec<SimEvent>, Tally) {
    let mut simulation = Simulation::new(Settings { seed, events, start: start() });
    let sent: Vec<SimEvent> = simulation.by_ref().collect();
    (sent, simulation.tally().clone())
}

fn texts(sent: &[SimEvent]) -> Vec<String> {
    sent.iter().map(|event| serde_json::to_string(event).unwrap()).collect()
}

#[test]
fn the_first_thousand_events_are_pinned() {
    let (sent, _) = day(42, 1_000);
    let text = texts(&sent).join("\n");
    let hash: String = ids::sha256(&[text.as_bytes()]).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(
        hash, "64a6b11c2b0eb89f1d6c8652a45eec1e23e7e729f3f8461cb7f0c47a74df0e20",
        "the simulated day changed: every documented figure of it does too"
    );
    assert_ne!(texts(&day(43, 1_000).0), texts(&sent));
}

#[test]
fn a_day_is_as_described() {
    let (sent, tally) = day(7, 20_000);
    let end = Settings { seed: 7, events: 20_000, start: start() }.end();
    assert_eq!((sent.len(), tally.sent), (20_000, 20_000));
    assert!(sent.is_sorted_by_key(|event| event.send_at));
    let mut first: HashMap<&str, &SimEvent> = HashMap::new();
    for event in &sent {
        assert!(start() <= event.event.occurred_at && event.event.occurred_at <= event.send_at && event.send_at < end);
        match first.get(event.event_id.as_str()) {
            Some(before) => assert!(event.repeat && before.event == event.event && before.channel == event.channel),
            None => assert!(!event.repeat),
        }
        first.entry(&event.event_id).or_insert(event);
    }
    let count = |wanted: &dyn Fn(&SimEvent) -> bool| sent.iter().filter(|event| wanted(event)).count();
    let is = |event: &SimEvent, kind: &str| event.event.kind == kind;
    let late = |event: &SimEvent| !event.repeat && event.event.occurred_at.plus_seconds(3_000) < event.send_at;
    let agent = |event: &SimEvent| event.event.client.as_ref().and_then(|client| client.user_agent.clone()).unwrap_or_default();
    let bots = isbot::Bots::default();
    for (what, found, least, most) in [
        ("repeats", count(&|e| e.repeat), 200, 400),
        ("late", count(&late), 100, 300),
        ("of crawlers", count(&|e| bots.is_bot(&agent(e))), 1_000, 4_000),
        ("orders", tally.orders(), 100, 1_000),
        ("checkouts", tally.checkouts(), 300, 1_500),
        ("refunds", count(&|e| is(e, kind::ORDER_REFUNDED)), 30, 300),
        ("whole refunds", count(&|e| is(e, kind::ORDER_REFUNDED) && e.event.order.as_ref().unwrap().items.is_none()), 10, 100),
        ("webhooks", count(&|e| e.channel == Channel::Webhook), 100, 1_000),
        ("catalogue", count(&|e| is(e, kind::PRODUCT_UPDATED)), 90, 400),
        ("customers", count(&|e| is(e, kind::CUSTOMER_UPDATED)), 20, 200),
        ("carts", count(&|e| is(e, kind::CART_UPDATED)), 1_000, 4_000),
        ("in dollars", count(&|e| e.event.order.as_ref().and_then(|o| o.total).is_some_and(|t| t.currency == Currency::USD)), 10, 150),
        ("checkouts without id", count(&|e| is(e, kind::CHECKOUT_STEP) && e.event.checkout.as_ref().unwrap().id.is_none()), 20, 300),
        ("unfinished", tally.unfinished(end, 1_800).len(), 50, 800),
    ] {
        assert!((least..=most).contains(&found), "{found} {what}, expected {least} to {most}");
    }
    let busiest = |from: i64, to: i64| count(&|e| (start().plus_seconds(from * 60)..start().plus_seconds(to * 60)).contains(&e.event.occurred_at));
    assert!(busiest(735, 745) > 2 * busiest(715, 725), "a burst: {} against {}", busiest(735, 745), busiest(715, 725));
}

#[test]
fn any_number_of_events_is_met() {
    for events in [0, 1, 2, 10, 137, 999] {
        let (sent, tally) = day(3, events);
        assert_eq!((sent.len() as u64, tally.sent), (events, events));
    }
}

/// What a report row is made of: count, people, latest label and number.
type Recount = BTreeMap<String, (u64, BTreeSet<String>, (Timestamp, String), String, u64)>;

fn recount(events: &[Value], bots: bool, kind: &str, key: impl Fn(&Value) -> (String, String, u64)) -> Recount {
    let judge = isbot::Bots::default();
    let mut rows = Recount::new();
    let mut seen = BTreeSet::new();
    for event in events {
        let agent = event["client"]["user_agent"].as_str().unwrap_or_default();
        if !seen.insert(event["event_id"].as_str().unwrap()) || event["type"] != kind || judge.is_bot(agent) != bots {
            continue;
        }
        let (key, label, number) = key(event);
        let row = rows.entry(key).or_default();
        row.0 += 1;
        let person = ["id", "anonymous_id"].iter().find_map(|id| event["customer"][id].as_str());
        row.1.extend(person.map(str::to_owned));
        let stamp = (Timestamp::parse(event["occurred_at"].as_str().unwrap()).unwrap(), event["event_id"].as_str().unwrap().to_owned());
        if stamp > row.2 {
            (row.2, row.3, row.4) = (stamp, label, number);
        }
    }
    rows
}

fn assert_rows(rows: &[LookRow], expected: &Recount) {
    assert!(rows.is_sorted_by(|a, b| (std::cmp::Reverse(a.count), &a.key) <= (std::cmp::Reverse(b.count), &b.key)));
    assert_eq!(rows.len(), expected.len());
    for row in rows {
        let (count, people, _, label, number) = &expected[&row.key];
        assert_eq!((row.count, row.customers, &row.label, row.results_last), (*count, people.len() as u64, label, *number), "{}", row.key);
    }
}

#[test]
fn what_was_looked_at_agrees_with_a_recount_of_the_text() {
    let (sent, tally) = day(11, 12_000);
    let events: Vec<Value> = texts(&sent).iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let viewed = |event: &Value| (text(&event["product"]["id"]), text(&event["product"]["name"]), 0);
    let page = |event: &Value| {
        let url = url::Url::parse(event["page"]["url"].as_str().unwrap()).unwrap();
        let path = percent_encoding::percent_decode_str(url.path()).decode_utf8().unwrap().into_owned();
        (path, text(&event["page"]["title"]), 0)
    };
    let search = |event: &Value| {
        let composed: String = event["search"]["query"].as_str().unwrap().nfc().collect();
        let spelling = composed.split_whitespace().collect::<Vec<_>>().join(" ");
        (spelling.to_lowercase(), spelling, event["search"]["results"].as_u64().unwrap())
    };
    for (bots, looks) in [(false, &tally.humans), (true, &tally.crawlers)] {
        assert_rows(&looks.top_viewed(), &recount(&events, bots, kind::PRODUCT_VIEWED, viewed));
        assert_rows(&looks.top_pages(), &recount(&events, bots, kind::PAGE_VIEWED, page));
        let searches = recount(&events, bots, kind::PRODUCT_SEARCHED, search);
        assert_rows(&looks.top_searches(), &searches);
        let none: Recount = searches.into_iter().filter(|(_, row)| row.4 == 0).collect();
        assert_rows(&looks.searches_without_results(), &none);
        assert_eq!(none.is_empty(), bots);
    }
    let distinct: BTreeSet<&str> = sent.iter().map(|event| event.event_id.as_str()).collect();
    assert_eq!((tally.distinct, tally.by_type.values().sum::<u64>()), (distinct.len() as u64, distinct.len() as u64));
}

/// The stream through the fold, completions and all: the entries it ends with.
fn fold_all(sent: &[SimEvent]) -> Vec<Entry> {
    let mut entries: HashMap<identity::IdentityKey, Option<Entry>> = HashMap::new();
    for (offset, one) in (0..).zip(sent) {
        let canonical = serde_json::to_vec(&one.event).unwrap();
        let (key_kind, key) = one.event.partition_key(&one.event_id);
        let mut record = Record {
            kind: RecordKind::Event,
            body_key: 0,
            site: SiteId::parse("demo").unwrap(),
            event_id: one.event_id.clone(),
            fingerprint: ids::fingerprint(&canonical),
            received_at: one.send_at,
            key_kind,
            key: key.to_owned(),
            flags: Flags::default(),
            channel: one.channel,
            body: canonical.into(),
        };
        let mut fold = |record: &Record| {
            let entry = entries.entry(identity::key_of(record, &one.event)).or_default();
            identity::fold(entry, record, &one.event, offset);
        };
        fold(&record);
        if let (kind::ORDER_COMPLETED, Some((key_kind, key))) = (one.event.kind.as_str(), one.event.checkout_party()) {
            (record.kind, record.event_id) = (RecordKind::Completion, ids::completion_id(&one.event_id));
            (record.key_kind, record.key) = (key_kind, key.to_owned());
            fold(&record);
        }
    }
    entries.into_values().flatten().collect()
}

#[test]
fn sales_and_checkouts_agree_with_the_fold() {
    let (sent, tally) = day(5, 30_000);
    let entries = fold_all(&sent);

    let mut sold: BTreeMap<String, SoldRow> = BTreeMap::new();
    for sale in entries.iter().filter_map(Entry::order).flat_map(|order| order.sales) {
        let row = sold.entry(sale.product_id.clone()).or_insert_with(|| SoldRow { product_id: sale.product_id, ..SoldRow::default() });
        row.units += sale.units;
        row.orders += sale.orders;
        sale.revenue.iter().for_each(|(currency, amount)| *row.revenue.entry(*currency).or_default() += amount);
        row.revenue.retain(|_, amount| *amount != 0);
    }
    let mut told = tally.top_sold();
    assert!(told.is_sorted_by_key(|row| (-row.units, row.product_id.clone())));
    told.sort_by(|a, b| a.product_id.cmp(&b.product_id));
    assert_eq!(told, sold.into_values().collect::<Vec<_>>());
    let dollars = tally.top_sold_by_revenue(Currency::USD);
    assert!(!dollars.is_empty() && dollars.is_sorted_by_key(|row| -row.revenue[&Currency::USD]));

    let checkouts: Vec<_> = entries.iter().filter_map(Entry::checkout).collect();
    let as_of = start().plus_seconds(86_400);
    let entered = |step: &str, status| checkouts.iter().flat_map(|c| &c.steps).filter(|s| s.step == step && s.status == status).count() as u64;
    let funnel = tally.funnel(as_of, 1_800);
    for row in &funnel {
        let counts = (entered(&row.step, StepStatus::Entered), entered(&row.step, StepStatus::Completed));
        assert_eq!((row.entered, row.completed), counts, "{}", row.step);
        assert!(row.entered > 50 && row.abandoned > 3 && row.value_left[&Currency::EUR] > 0);
    }
    // Whoever left completed the steps in their order, so the number of those is the place where they stopped.
    let left_after = |steps| {
        let left = checkouts.iter().filter(|c| c.completed.is_none() && c.last_at.plus_seconds(1_800) < as_of);
        left.filter(|c| c.steps.iter().filter(|s| s.status == StepStatus::Completed).count() == steps).count() as u64
    };
    assert_eq!(funnel.iter().map(|row| row.abandoned).collect::<Vec<_>>(), (0..4).map(left_after).collect::<Vec<_>>());
    let left: BTreeMap<_, _> = checkouts
        .iter()
        .filter(|c| c.completed.is_none() && c.last_at.plus_seconds(1_800) < as_of)
        .map(|c| (c.checkout.clone(), (c.person.clone(), c.last_step.clone(), c.value, c.last_at)))
        .collect();
    let unfinished = tally.unfinished(as_of, 1_800);
    assert_eq!(unfinished.len() as u64, funnel.iter().map(|row| row.abandoned).sum::<u64>());
    let told: BTreeMap<_, _> =
        unfinished.into_iter().map(|row| (row.checkout, (row.customer, Some(row.last_step), row.value, row.last_at))).collect();
    assert_eq!(told, left);
    assert!(checkouts.iter().all(|c| c.last_step.as_deref() != Some(ORDER_STEP) || c.completed.is_some()));
}
