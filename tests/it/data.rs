//! Imports: the shipped mapping files over the fixtures always, over the real data sets where `CONTRAIL_TEST_DATA` names their folder, each against an
//! independent count in Python (`tests/independent/count.py`). Importing twice changes no answer.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Server, binary};

/// Start of time for reports over everything.
const FROM: &str = "2000-01-01T00:00:00Z";
const TO: &str = "2030-01-01T00:00:00Z";

struct Set {
    name: &'static str,
    fixture: &'static str,
    real: &'static str,
}

const SETS: [Set; 3] = [
    Set { name: "onlineretail", fixture: "onlineretail.csv", real: "onlineretail_demo_2010-12_2011-08.csv.zst" },
    Set { name: "zanbil", fixture: "zanbil.ndjson", real: "zanbil_demo.events.ndjson.zst" },
    Set { name: "otto", fixture: "otto.ndjson", real: "otto_sample_sessions.jsonl.zst" },
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn set(name: &str) -> &'static Set {
    SETS.iter().find(|set| set.name == name).unwrap()
}

/// The data set in full, where the data sets are at hand.
pub(crate) fn real_file(name: &str) -> Option<PathBuf> {
    std::env::var_os("CONTRAIL_TEST_DATA").map(|dir| Path::new(&dir).join(set(name).real))
}

fn files(name: &str) -> Vec<PathBuf> {
    let mut found = vec![root().join("tests/fixtures").join(set(name).fixture)];
    found.extend(real_file(name));
    found
}

fn import(server: &Server, name: &str, file: &Path) -> String {
    let mapping = root().join("mappings").join(format!("{name}.toml"));
    let out = binary().arg("import").arg(file).arg("--map").arg(mapping).arg("--data").arg(&server.data).output().unwrap();
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn count(name: &str, file: &Path, crawlers: Option<&Path>) -> Value {
    let mut command = Command::new("python3");
    command.arg(root().join("tests/independent/count.py")).arg(name).arg(file);
    if let Some(crawlers) = crawlers {
        command.arg("--crawlers").arg(crawlers);
    }
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn rows(server: &Server, report: &str, more: &str) -> Vec<Value> {
    server.read(&format!("/v1/reports/{report}?from={FROM}&to={TO}{more}"))["rows"].as_array().unwrap().clone()
}

/// Every answer there is, as one value.
fn answers(server: &Server) -> Value {
    let reports = ["top-searches", "searches-without-results", "top-viewed", "top-sold", "top-pages", "checkout-funnel", "unfinished-purchases"];
    reports
        .iter()
        .map(|report| {
            // An age is counted from the moment of asking, unless that is given.
            let as_of = if *report == "unfinished-purchases" { format!("&as_of={TO}") } else { String::new() };
            (report.to_string(), json!(rows(server, report, &format!("&bots=include&limit=10000{as_of}"))))
        })
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn imported_twice(name: &str, file: &Path) -> Server {
    let server = Server::fresh();
    import(&server, name, file);
    server.settle();
    let once = answers(&server);
    import(&server, name, file);
    server.settle();
    assert_eq!(answers(&server), once, "{}: importing again changes nothing", file.display());
    server.assert_audit();
    server
}

#[test]
fn slow_onlineretail_equals_the_independent_count() {
    for file in files("onlineretail") {
        let server = imported_twice("onlineretail", &file);
        let counted = count("onlineretail", &file, None);
        for (by, top) in [("units", "top_units"), ("revenue", "top_revenue")] {
            let told: Vec<Value> = rows(&server, "top-sold", &format!("&by={by}&limit=50"))
                .iter()
                .map(|row| {
                    json!([row["product_id"], row["units"], row["orders"], row["revenue"].get(0).map_or(json!(0), |r| r["amount_minor"].clone())])
                })
                .collect();
            assert_eq!(told, columns(&counted[top], &["product_id", "units", "orders", "revenue_minor"]), "{} by {by}", file.display());
        }
        let customers = counted["timelines"].as_array().unwrap();
        assert!(!customers.is_empty());
        for customer in customers {
            let id = customer["customer"].as_str().unwrap();
            assert_eq!(json!(timeline(&server, id)), customer["events"], "{}: customer {id}", file.display());
        }
        let largest = counted["most_lines"].as_u64().unwrap();
        let exported = server.get(&format!("/v1/export?format=ndjson&from={FROM}&to={TO}")).text();
        let lines =
            exported.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["event"]["order"]["items"].as_array().map_or(0, Vec::len));
        assert_eq!(lines.max().unwrap() as u64, largest, "the largest invoice is kept whole");
    }
}

/// A customer's orders and refunds as `count.py` tells them, from the server's timeline, page by page.
fn timeline(server: &Server, customer: &str) -> Vec<Value> {
    let mut events = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = server.read(&format!("/v1/customers/{customer}/timeline?limit=20{cursor}"));
        for view in page["events"].as_array().unwrap() {
            let event = &view["event"];
            let items = event["order"]["items"].as_array().unwrap();
            events.push(json!({
                "at": event["occurred_at"], "type": view["type"], "order": event["order"]["id"],
                "lines": items.len(), "units": items.iter().map(|item| item["quantity"].as_i64().unwrap()).sum::<i64>(),
            }));
        }
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let key = |event: &Value| (event["at"].to_string(), event["order"].to_string());
    events.sort_by_key(key);
    events
}

#[test]
fn slow_zanbil_equals_the_independent_count_with_and_without_crawlers() {
    for file in files("zanbil") {
        let server = imported_twice("zanbil", &file);
        // The same verdicts for both: the agents that the archive flags as crawlers.
        let exported = server.get(&format!("/v1/export?format=ndjson&from={FROM}&to={TO}")).text();
        let events: Vec<Value> = exported.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let flagged = |event: &&Value| event["flags"].as_array().is_some_and(|flags| flags.contains(&json!("crawler")));
        let agents: std::collections::BTreeSet<&str> =
            events.iter().filter(flagged).filter_map(|e| e["event"]["client"]["user_agent"].as_str()).collect();
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("crawlers");
        std::fs::write(&list, agents.iter().map(|agent| format!("{agent}\n")).collect::<String>()).unwrap();
        let counted = count("zanbil", &file, Some(&list));
        for bots in ["included", "excluded"] {
            let choice = format!("&bots={}&limit=50", bots.trim_end_matches('d'));
            for (report, top, columns_of) in [
                ("top-viewed", "top_viewed", ["product_id", "views"]),
                ("top-searches", "top_searches", ["query", "searches"]),
                ("top-pages", "top_pages", ["path", "views"]),
            ] {
                let told = json!(rows(&server, report, &choice));
                // Answers show a search as last typed, the count names it in lower case.
                let folded = |rows: &Value| json!(columns(rows, &columns_of)).to_string().to_lowercase();
                assert_eq!(folded(&told), folded(&counted[bots][top]), "{}: {report}, {bots}", file.display());
            }
        }
        let funnel = json!(rows(&server, "checkout-funnel", "&bots=include"));
        let reached = |rows: &Value| -> Vec<Value> {
            columns(rows, &["step", "entered", "completed"]).into_iter().filter(|row| row[1] != 0 || row[2] != 0).collect()
        };
        assert_eq!(reached(&funnel), reached(&counted["included"]["checkout_steps"]), "{}: the checkout shows in the funnel", file.display());
        assert!(!reached(&funnel).is_empty());
    }
}

#[test]
fn slow_otto_carts_and_orders_equal_the_independent_count() {
    for file in files("otto") {
        let server = imported_twice("otto", &file);
        let counted = count("otto", &file, None);
        let told = json!(rows(&server, "top-viewed", "&bots=include&limit=50"));
        assert_eq!(columns(&told, &["product_id", "views"]), columns(&counted["top_viewed"], &["product_id", "views"]), "{}", file.display());
        let exported = server.get(&format!("/v1/export?format=ndjson&from={FROM}&to={TO}")).text();
        let of = |kind: &str| exported.lines().filter(|line| line.contains(&format!("\"type\":\"{kind}\""))).count();
        assert_eq!(of("cart_updated") as u64, counted["carts"].as_u64().unwrap());
        assert_eq!(of("order_completed"), counted["orders"].as_array().unwrap().len());
    }
}

/// Some columns of rows.
fn columns(rows: &Value, names: &[&str]) -> Vec<Value> {
    rows.as_array().unwrap().iter().map(|row| names.iter().map(|name| row[*name].clone()).collect()).collect()
}

#[test]
fn a_bad_line_is_reported_with_its_number_and_stops_nothing() {
    let server = Server::fresh();
    let told = import(&server, "onlineretail", &root().join("tests/fixtures/onlineretail_broken.csv"));
    assert!(told.contains("line "), "{told}");
    server.settle();
    assert!(!rows(&server, "top-sold", "").is_empty(), "{told}");
}
