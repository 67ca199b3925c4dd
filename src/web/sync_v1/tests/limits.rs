//! Rates, reserved names, and what happens where something underneath fails.

use std::time::Instant;

use serde_json::json;

use super::super::testing::{Answer, Server, demo};
use crate::event::change::{Change, Merge, Op, Origin, Stamp};
use crate::event::{ObjectKey, ObjectKind};
use crate::sync::naming;

/// A request, how often it is sent, how many of it pass at once and each second, and what the refusal names.
type Limited<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], usize, usize, usize, &'a str);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_with_twilios_limits_is_limited_as_there() {
    let server = Server::start().await;
    server.limit().await;
    server.post("/Documents", &[("UniqueName", "d")]).await.of(201);
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(12_000));
    let asked: [Limited<'_>; 5] = [
        ("GET", "/Documents/d", &[], 600, 200, 20, "read-document-d"),
        ("POST", "/Documents/d", &[("Data", &large)], 60, 20, 2, "write-document-d"),
        ("POST", "/Lists", &[], 600, 199, 20, "create-delete-objects"),
        ("DELETE", "/Streams/none", &[], 600, 0, 20, "create-delete-objects"),
        ("GET", "/Documents/d/Permissions", &[], 2_400, 800, 80, "permission-document-d"),
    ];
    let began = Instant::now();
    for (method, path, params, times, at_once, per_second, what) in asked {
        let mut answers = Vec::new();
        // On a machine too slow for that rate the second round finds the burst spent.
        while answers.len() < 20 * times && !answers.iter().any(|answer: &Answer| answer.status == 429) {
            answers.extend(futures::future::join_all((0..times).map(|_| server.ask(method, path, params))).await);
        }
        let most = at_once + 1 + (began.elapsed().as_secs_f64() * per_second as f64) as usize;
        let passed = answers.iter().filter(|answer| answer.status != 429).count();
        assert!((at_once..=most).contains(&passed), "{passed} of {at_once} to {most}: {method} {path}");
        let refused = answers.iter().find(|answer| answer.status == 429).expect(path);
        refused.refused(429, 54009);
        assert_eq!((refused.header("retry-after"), &refused.json["message"]), ("1", &json!(format!("Rate limit exceeded for {what}"))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_service_is_not_limited() {
    let server = Server::start().await;
    server.post("/Documents", &[("UniqueName", "d")]).await.of(201);
    for _ in 0..250 {
        server.get("/Documents/d").await.of(200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_mapping_writes_is_shown_and_only_its_rest_is_the_clients() {
    let server = Server::start().await;
    let key = ObjectKey { site: demo(), kind: ObjectKind::Map, name: "product.sku-1".into() };
    let now = server.clock.now();
    let change = Change {
        key: key.clone(),
        origin: Origin::Event { partition: 0, offset: 1, number: 0 },
        received_at: now,
        stamp: Stamp { at: now, id: "e".into() },
        ops: vec![Op::Merge { item: "name".into(), field: "".into(), with: Merge::Last("\"Mug\"".into()) }],
    };
    server.append(&change).await;
    let sid = naming::sid(&demo(), ObjectKind::Map, "product.sku-1", 0);
    let listed = server.get("/Maps").await.of(200);
    let shown = &listed["maps"][0];
    assert_eq!((&shown["sid"], &shown["unique_name"], &shown["created_by"]), (&json!(sid), &json!("product.sku-1"), &json!("system")));
    let item = server.get(&format!("/Maps/{sid}/Items/name")).await.of(200);
    assert_eq!((&item["data"], &item["created_by"], &item["revision"]), (&json!("Mug"), &json!("system"), &json!("0")));
    for at in ["product.sku-1", &sid] {
        server.post(&format!("/Maps/{at}/Items/name"), &[("Data", "{}")]).await.refused(403, 54007);
        server.ask("PUT", &format!("/Maps/{at}/Items/price"), &[("Data", "{}")]).await.refused(403, 54007);
        server.delete(&format!("/Maps/{at}/Items/name")).await.refused(403, 54007);
        server.post(&format!("/Maps/{at}"), &[("Ttl", "5")]).await.refused(403, 54007);
        server.ask("PUT", &format!("/Maps/{at}/Items/mine"), &[("Data", "{}")]).await;
        assert_eq!(server.get(&format!("/Maps/{at}/Items/mine")).await.of(200)["data"], json!({}));
    }
    let told = server.batch("/Maps/product.sku-1/Batch", &json!({"items": [{"key": "name", "data": {}}, {"key": "mine", "data": {}}]})).await.of(200);
    assert_eq!((&told["items"][0]["code"], &told["items"][1]["status"]), (&json!(54007), &json!(200)));
    server.delete("/Maps/product.sku-1").await.of(204);
    server.get(&format!("/Maps/{sid}")).await.refused(404, 20404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_not_answered_says_so_and_a_log_that_is_closed_too() {
    let mut server = Server::start().await;
    server.post("/Documents", &[("UniqueName", "d")]).await.of(201);
    server.stop_keeping().await;
    server.be_impatient();
    let late = server.post("/Documents", &[("UniqueName", "e")]).await;
    late.refused(503, 20503);
    assert_eq!(late.header("retry-after"), "1");
    let (one, other) = tokio::join!(server.post("/Documents/d", &[("Data", "{}")]), server.post("/Documents/d", &[("Data", "{}")]));
    one.refused(503, 20503);
    other.refused(503, 20503);
    assert_ne!(one.json["message"], other.json["message"], "one of them did not even begin");
    let documents = json!({"documents": [{"unique_name": "f", "data": {}}]});
    assert_eq!(server.batch("/Batch", &documents).await.of(200)["documents"][0]["code"], 20503);
    server.close_log().await;
    server.post("/Documents/d", &[("Data", "{}")]).await.refused(503, 20503);
}
