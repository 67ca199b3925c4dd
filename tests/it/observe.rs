//! What operators watch: every metric that the dashboard and the alert rules ask for is one that the program shows, or, where only a cluster or a failure brings it
//! about, one that its source names. (That rules and dashboard are right in themselves, `tests/container` asks promtool.)

use std::collections::BTreeSet;
use std::path::Path;

use crate::harness::{READ, Server};
use crate::http::Events;
use crate::shop;

/// Shown only once something is wrong, or told elsewhere; all else must be there after a day like any other.
const SHOWN_WHEN_IT_HAPPENS: [&str; 6] = [
    "contrail_sync_partition_failed",
    "contrail_webhooks_told_total",
    "contrail_webhooks_dropped_total",
    "contrail_mirror_requests_total",
    "contrail_mirror_failures_total",
    "contrail_mirror_left_behind_total",
];

fn file(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The metrics' names in a text, without what a histogram adds to its own.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("contrail_") || word.starts_with("process_"));
    let plain = |name: &str| ["_bucket", "_sum", "_count"].iter().fold(name.to_owned(), |name, end| name.trim_end_matches(end).to_owned());
    ours.map(plain).collect()
}

fn sources(dir: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text += &sources(&path);
        } else {
            text += &std::fs::read_to_string(path).unwrap_or_default();
        }
    }
    text
}

#[test]
fn every_metric_that_is_watched_exists() {
    let day = shop::day(41, 1_000);
    let server = Server::fresh();
    server.accept(&day.events);
    server.accept(&day.events[..10]);
    // One refused request, one event that goes into quarantine.
    assert_eq!(server.call("POST", "/v1/events", &[], b"{}").status, 401);
    assert_eq!(server.post(b"[{\"type\":\"page_viewed\"}]").status, 200);
    server.settle();
    let view = |id: &str| serde_json::json!({"event_id": id, "type": "product_viewed", "product": {"id": "watched"}});
    server.accept(&[view("w-1")]);
    server.settle();
    let mut watching = Events::open(&server.address, "/v1/live/maps/product.watched/events", READ, None);
    assert_eq!(watching.next().event, "snapshot");
    server.accept(&[view("w-2")]);
    assert_eq!(watching.next().event, "change");
    let shown = names(&server.get("/metrics").text());
    assert!(server.stop().success());

    let watched: BTreeSet<String> =
        ["deploy/prometheus/alerts.yml", "deploy/grafana/dashboards/contrail.json"].iter().flat_map(|path| names(&file(path))).collect();
    assert!(watched.len() > 40, "the scan finds names at all: {watched:?}");
    let source = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let exists = |name: &String| shown.contains(name) || (SHOWN_WHEN_IT_HAPPENS.contains(&&**name) && source.contains(&format!("\"{name}\"")));
    let missing: Vec<&String> = watched.iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "watched, and not shown: {missing:?}");

    // And the README's list of what to watch is of metrics that exist.
    let told = names(&file("README.md"));
    let unknown: Vec<&String> = told.iter().filter(|name| !shown.contains(*name) && !source.contains(&format!("\"{name}\""))).collect();
    assert!(unknown.is_empty(), "in the README, and nowhere else: {unknown:?}");
}
