//! The simulated day as the tests send it, and the answers held against the simulator's own tally, over HTTP.

use std::collections::BTreeMap;

use contrail::event::{Clock, Currency, Timestamp};
use contrail::simulate::{Settings, Simulation, Tally};
use serde_json::{Value, json};

use crate::harness::Server;
use crate::http::again;

/// A day and what must come of it.
pub(crate) struct Day {
    pub(crate) events: Vec<Value>,
    pub(crate) tally: Tally,
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
    /// The product with most views.
    pub(crate) hottest_product: String,
}

pub(crate) const REPORTS: [&str; 7] =
    ["top-searches", "searches-without-results", "top-viewed", "top-sold", "top-pages", "checkout-funnel", "unfinished-purchases"];

/// A day of the recent past, complete two hours ago, so that every checkout in it is judged.
pub(crate) fn day(seed: u64, events: u64) -> Day {
    let start = Clock::system().now().plus_seconds(-26 * 3600).floor_to_seconds(3600);
    let settings = Settings { seed, events, start };
    let mut simulation = Simulation::new(settings.clone());
    let events = simulation.by_ref().map(|event| serde_json::to_value(&event).unwrap()).collect();
    let tally = simulation.tally().clone();
    let hottest_product = tally.humans.top_viewed()[0].key.clone();
    Day { events, tally, from: start, to: settings.end(), hottest_product }
}

/// How often the archive has each event of the day.
pub(crate) fn archived(server: &Server, day: &Day) -> BTreeMap<String, usize> {
    let mut rows = BTreeMap::new();
    for line in again(|| server.get(&format!("/v1/export?format=ndjson&from={}&to={}", day.from, day.to))).text().lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        *rows.entry(row["event_id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    rows
}

/// Every event of the day is archived, exactly once.
pub(crate) fn assert_archived_once(server: &Server, day: &Day) {
    let sent: BTreeMap<String, usize> = day.events.iter().map(|event| (event["event_id"].as_str().unwrap().to_owned(), 1)).collect();
    let rows = archived(server, day);
    assert_eq!(rows.len(), sent.len(), "every acknowledged event is archived");
    assert_eq!(rows, sent, "exactly once");
}

/// Every report's rows for the day, with each choice of bots, judged at the day's end.
pub(crate) fn reports(server: &Server, day: &Day) -> Value {
    let mut all = BTreeMap::new();
    for report in REPORTS {
        for bots in ["exclude", "include", "only"] {
            all.insert(format!("{report} {bots}"), rows(server, day, report, bots));
        }
    }
    json!(all)
}

/// A report's rows for the day; abandonment is judged an hour after it.
fn rows(server: &Server, day: &Day, report: &str, bots: &str) -> Value {
    let judged = matches!(report, "checkout-funnel" | "unfinished-purchases");
    let as_of = if judged { format!("&as_of={}", day.to.plus_seconds(3600)) } else { String::new() };
    server.read(&format!("/v1/reports/{report}?from={}&to={}&bots={bots}&limit=10000{as_of}", day.from, day.to))["rows"].clone()
}

fn money(revenue: &BTreeMap<Currency, i64>) -> Value {
    revenue.iter().map(|(currency, amount)| json!({"currency": currency, "amount_minor": amount})).collect()
}

/// Every row of every report equals what the simulator counted while it made the day.
pub(crate) fn assert_reports_equal_tally(server: &Server, day: &Day) {
    let as_of = day.to.plus_seconds(3600);
    let ask = |report: &str, bots: &str| rows(server, day, report, bots).as_array().unwrap().clone();
    let pick = |rows: Vec<Value>, columns: &[&str]| -> Vec<Value> {
        rows.iter().map(|row| columns.iter().map(|column| row[*column].clone()).collect()).collect()
    };
    for (bots, looks) in [("exclude", &day.tally.humans), ("only", &day.tally.crawlers)] {
        let told = |rows: Vec<contrail::simulate::LookRow>, by_label: bool| -> Vec<Value> {
            rows.into_iter().take(10_000).map(|row| json!([if by_label { row.label } else { row.key }, row.count])).collect()
        };
        assert_eq!(pick(ask("top-searches", bots), &["query", "searches"]), told(looks.top_searches(), true), "{bots}");
        assert_eq!(pick(ask("searches-without-results", bots), &["query", "searches"]), told(looks.searches_without_results(), true), "{bots}");
        assert_eq!(pick(ask("top-viewed", bots), &["product_id", "views"]), told(looks.top_viewed(), false), "{bots}");
        assert_eq!(pick(ask("top-pages", bots), &["path", "views"]), told(looks.top_pages(), false), "{bots}");
    }
    let sold: Vec<Value> = day.tally.top_sold().iter().map(|row| json!([row.product_id, row.units, row.orders, money(&row.revenue)])).collect();
    assert_eq!(pick(ask("top-sold", "exclude"), &["product_id", "units", "orders", "revenue"]), sold);
    let funnel: Vec<Value> = day
        .tally
        .funnel(as_of, 1800)
        .iter()
        .map(|row| json!([row.step, row.entered, row.completed, row.abandoned, money(&row.value_left)]))
        .collect();
    let mut steps = pick(ask("checkout-funnel", "exclude"), &["step", "entered", "completed", "abandoned", "value_left"]);
    let orders = steps.pop().unwrap();
    assert_eq!(orders[0], "(order)", "the last row tells of the orders themselves");
    assert_eq!(steps, funnel);
    let unfinished: Vec<Value> =
        day.tally.unfinished(as_of, 1800).iter().map(|row| json!([row.checkout, row.last_step, row.value, row.last_at])).collect();
    assert_eq!(pick(ask("unfinished-purchases", "exclude"), &["checkout_id", "last_step", "value", "last_at"]), unfinished);
    let something = [sold.len(), funnel.len(), unfinished.len()];
    assert!(sold.len() > 20 && funnel.len() >= 4 && unfinished.len() > 5, "the day has something to compare: {something:?}");
}
