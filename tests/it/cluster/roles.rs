//! What each role answers for, and what the others say in its place; then the feed between them.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Cluster, feed};
use crate::foreign::program;

#[test]
fn slow_cluster_each_role_answers_for_itself_and_subscribers_anywhere_see_every_change() {
    let cluster = Cluster::up();
    let (web, keeping) = (cluster.lasting("web-a", "web"), cluster.lasting("keeping-c", "sync"));
    let events: Vec<Value> = (0..60)
        .map(|n| json!({"type": "product_viewed", "event_id": format!("v{n}"), "product": {"id": "p1", "name": "Mug"}, "customer": {"id": format!("c{n}")}}))
        .collect();
    // Taken by a node that has nothing but ingest.
    let taking = cluster.lasting("taking", "ingest");
    taking.accept(&events);
    let refused = taking.get("/v1/reports/top-viewed");
    assert_eq!((refused.status, &refused.json()["code"]), (404, &json!("role_missing")), "{}", refused.text());
    assert_eq!(taking.get("/v1/live/maps/product.p1").json()["code"], "role_missing");
    assert_eq!(keeping.get("/v1/live/maps/product.p1").json()["code"], "role_missing");
    assert_eq!(taking.admin("GET", "/admin/audit", b"").json()["code"], "role_missing");
    assert_eq!((taking.get("/readyz").status, taking.get("/metrics").status), (200, 200));
    let progress = taking.admin("GET", "/admin/progress", b"").json();
    let unknown = json!({"router": null, "keeper": null, "archiver": null});
    assert_eq!((&progress["caught_up"], &progress["behind"], &progress["reached"]), (&json!(false), &unknown, &unknown), "it does not know");

    // Nobody archives yet: an answer says how old it is.
    let report = web.read("/v1/reports/top-viewed");
    assert_eq!(report["rows"], json!([]));
    assert!(report["lag_seconds"].as_i64().unwrap() > 1_000, "{report}");
    assert_eq!(web.admin("GET", "/admin/progress", b"").json()["behind"]["archiver"], 60);

    // Two archivers: whoever owns partition 0 also tells of what the other counts.
    let (one, two) = (cluster.lasting("one", "archive"), cluster.lasting("two", "archive"));
    assert_eq!(one.post(b"{}").json()["code"], "role_missing");
    web.settle();
    let report = web.read("/v1/reports/top-viewed");
    assert_eq!((&report["rows"][0]["views"], &report["lag_seconds"]), (&json!(60), &json!(0)), "{report}");
    web.assert_audit();
    assert!(two.audit().0, "a node of the archive can say so too");
    for round in 1..=3u64 {
        taking.accept(
            &(0..40).map(|n| json!({"type": "product_viewed", "event_id": format!("r{round}-{n}"), "product": {"id": "p1"}})).collect::<Vec<_>>(),
        );
        let asked = Instant::now();
        loop {
            let told = web.get("/v1/live/documents/top.viewed");
            if told.status == 200 && told.json()["data"]["rows"][0]["views"] == 60 + round * 40 {
                break;
            }
            assert!(asked.elapsed() < Duration::from_secs(30), "the dashboard lacks what one archiver counted: {}", told.text());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    let (other_web, keepers) = feed::assert_subscribers_anywhere_see_every_change(&cluster, &taking, &web, keeping);
    for node in [taking, one, two, web, other_web].into_iter().chain(keepers) {
        assert!(node.stop().success());
    }
}

#[test]
fn roles_that_cannot_be_split_are_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |settings: &[(&str, &str)], roles: &str, told: &str| {
        let out = program(settings)
            .args(["serve", "--listen", "127.0.0.1:0", "--roles", roles, "--data"])
            .arg(dir.path().join("data"))
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains(told), "{said}");
    };
    // Refused before anybody is asked.
    let log = ("CONTRAIL_LOG", "kafka://127.0.0.1:1");
    refused(&[log], "ingest,web,archive", "store = \"embedded\" is this process's alone");
    refused(&[log], "ingest,sync,web", "archive = \"embedded\" is this process's alone");
}
