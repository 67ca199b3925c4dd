//! Learning mode: what a stage reports that only learns is what it then does live, and until then nothing of it is to be found anywhere.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::foreign::{Tenant, program, serve};
use crate::harness::{Server, wait_for};
use crate::http::again;
use crate::{inspect, shop};

/// Every file but the log's events, which are not a stage's to write, and what names the running process.
fn files(data: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, dir: &Path, into: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            if path.is_dir() && name != "log/events" {
                walk(root, &path, into);
            } else if path.is_file() && !["contrail.lock", "admin.token"].contains(&&*name) && !name.starts_with("sites.db") {
                into.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(data, data, &mut found);
    found
}

/// Whether a byte is of SQLite's own counter of changes, which opening a database may move (file format, 1.3.7 and 1.3.18).
fn is_counter(name: &str, at: usize) -> bool {
    name.ends_with(".db") && ((24..28).contains(&at) || (92..96).contains(&at))
}

/// Has the archive's file note which cells are written from here on.
fn note_cells(data: &Path) {
    let note =
        "CREATE TABLE noted (site, metric, cell, dim, crawler, partition, PRIMARY KEY (site, metric, cell, dim, crawler, partition)) WITHOUT ROWID;
         CREATE TRIGGER note AFTER INSERT ON cell BEGIN
           INSERT OR IGNORE INTO noted VALUES (new.site, new.metric, new.cell, new.dim, new.crawler, new.partition);
         END;";
    rusqlite::Connection::open(data.join("answers.db")).unwrap().execute_batch(note).unwrap();
}

/// How many were, each counted once: those too that came to be as they were.
fn noted_cells(data: &Path) -> u64 {
    let answers = rusqlite::Connection::open(data.join("answers.db")).unwrap();
    answers.query_row("SELECT count(*) FROM noted", [], |row| row.get(0)).unwrap()
}

/// What a learning server reports once its stages have passed everything.
fn learned(server: &Server) -> Value {
    let asked = Instant::now();
    loop {
        let told = again(|| server.admin("GET", "/admin/learning", b""));
        assert_eq!(told.status, 200, "{}", told.text());
        let told = told.json();
        if told["behind"] == 0 {
            return told["learned"].clone();
        }
        assert!(asked.elapsed() < Duration::from_secs(120), "not learned after 120 s: {told}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The sum of a metric's samples.
fn metric(server: &Server, name: &str) -> u64 {
    let text = server.get("/metrics").text();
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}

/// What a learning archiver's report says it wrote: event rows, repeats, derived completions, records in quarantine.
fn reported(learned: &Value) -> [u64; 4] {
    let archive = &learned["archive"];
    let rows = archive["events"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    [rows, archive["duplicates"].as_u64().unwrap(), archive["derived"].as_u64().unwrap(), archive["quarantined"].as_u64().unwrap()]
}

/// Objects but for the dashboards', which a learning archiver does not publish, by kind: how many changed since `before`, and by how many changes.
fn changed(before: &BTreeMap<(&'static str, String), u64>, after: &BTreeMap<(&'static str, String), u64>) -> Value {
    let mut by_kind = BTreeMap::<&str, (u64, u64)>::new();
    for ((kind, name), event_id) in after.iter().filter(|((_, name), _)| !name.starts_with("top.") && name != "funnel") {
        let changes = event_id - before.get(&(*kind, name.clone())).copied().unwrap_or(0);
        if changes > 0 {
            let sums = by_kind.entry(*kind).or_default();
            *sums = (sums.0 + 1, sums.1 + changes);
        }
    }
    by_kind.into_iter().map(|(kind, (objects, changes))| (kind.to_owned(), json!({"objects": objects, "changes": changes}))).collect()
}

#[test]
fn what_was_learned_is_what_is_then_done() {
    let day = shop::day(33, 4_000);
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (early, late) = day.events.split_at(1_000);
    let server = Server::on(&data, &[]);
    server.accept(early);
    server.settle();
    assert!(server.stop().success());
    let (before, objects, booked) = (files(&data), inspect::event_ids(&data), inspect::booked(&data));

    let server = serve(program(&[("CONTRAIL_LEARNING", r#"["sync", "archive"]"#)]), &data);
    assert_eq!(server.read("/readyz")["learning"], json!(["sync", "archive"]));
    // With some of it sent again, and some of what the live stages have seen.
    server.accept(late);
    server.accept(&late[..200]);
    server.accept(&early[900..]);
    let learned = learned(&server);
    assert_eq!(server.admin("GET", "/admin/progress", b"").json()["caught_up"], json!(false), "nothing live has moved");
    assert!(data.join("learning").exists());
    assert!(server.stop().success());
    let after = files(&data);
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (name, bytes) in &before {
        let differs = |at: &usize| bytes.get(*at) != after[name].get(*at) && !is_counter(name, *at);
        let differ: Vec<usize> = (0..bytes.len().max(after[name].len())).filter(differs).take(20).collect();
        assert!(differ.is_empty(), "{name} was changed at {differ:?}");
    }

    note_cells(&data);
    let server = Server::on(&data, &[]);
    server.settle();
    assert_eq!(learned["sync"]["stored"]["records"], metric(&server, "contrail_router_records_total"), "{learned:#}");
    // Settled is what stands in the stores; the archiver counts it a moment later, and then come the dashboards.
    let archived = || metric(&server, "contrail_archiver_events_total");
    wait_for("all are counted", Duration::from_secs(60), || learned["archive"]["records"].as_u64() <= Some(archived()));
    assert_eq!(learned["archive"]["records"], archived(), "{learned:#}");
    wait_for("dashboards", Duration::from_secs(60), || metric(&server, "contrail_archiver_top_documents_total") > 0);
    assert_eq!(learned["sync"]["changes"], metric(&server, "contrail_router_changes_total"), "{learned:#}");
    shop::assert_reports_equal_tally(&server, &day);
    server.assert_audit();
    assert!(server.stop().success());

    let now = inspect::booked(&data);
    assert_eq!(reported(&learned), std::array::from_fn(|n| now[n] - booked[n]), "{learned:#}");
    let mut told = learned["sync"]["stored"]["objects"].clone();
    for kind in told.as_object_mut().unwrap().values_mut() {
        assert!(kind["writes"].as_u64() >= kind["objects"].as_u64() && kind["rows"].as_u64() > Some(0), "{kind}");
        kind.as_object_mut().unwrap().retain(|name, _| ["objects", "changes"].contains(&&**name));
    }
    assert_eq!(told, changed(&objects, &inspect::event_ids(&data)));
    let told: u64 = learned["archive"]["cells"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(told, noted_cells(&data), "{learned:#}");
    assert!(!data.join("learning").exists(), "what was learned is gone");
}

#[test]
fn slow_kafka_learning_beside_a_live_process_reports_what_that_one_does() {
    let servers = Tenant::new();
    let day = shop::day(32, 4_000);
    let dir = tempfile::tempdir().unwrap();
    let address = servers.log();
    let settings = |more: &[(&'static str, &'static str)]| {
        let mut command = program(&[
            ("CONTRAIL_LOG", &*address),
            ("CONTRAIL_KAFKA_PREFIX", &*servers.name),
            ("CONTRAIL_KAFKA_REPLICATION", "1"),
            ("CONTRAIL_KAFKA_ALLOW_SINGLE_REPLICA", "true"),
        ]);
        command.envs(more.iter().copied());
        command
    };
    let live = serve(settings(&[]), &dir.path().join("live"));
    live.accept(&day.events[..1_000]);
    let more = [("CONTRAIL_ROLES", r#"["sync", "archive", "web"]"#), ("CONTRAIL_LEARNING", r#"["sync", "archive"]"#)];
    let other = serve(settings(&more), &dir.path().join("learning"));
    live.accept(&day.events[1_000..]);
    live.accept(&day.events[..100]);
    live.settle();
    let learned = learned(&other);
    assert_eq!(learned["sync"]["stored"]["records"], metric(&live, "contrail_router_records_total"), "{learned:#}");
    assert_eq!(learned["sync"]["changes"], metric(&live, "contrail_router_changes_total"), "{learned:#}");
    assert!(other.stop().success());
    shop::assert_reports_equal_tally(&live, &day);
    live.assert_audit();
    assert!(live.stop().success());
    assert_eq!(reported(&learned), inspect::booked(&dir.path().join("live")), "{learned:#}");
}
