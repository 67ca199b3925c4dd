//! Many writes by one request.

use std::time::Instant;

use serde_json::{Value, json};

use super::super::testing::Server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_of_a_map_are_put_each_with_its_verdict() {
    let server = Server::start().await;
    server.post("/Maps", &[("UniqueName", "m")]).await.of(201);
    server.post("/Maps/m/Items", &[("Key", "there"), ("Data", "{}")]).await.of(201);
    let told = server
        .batch(
            "/Maps/m/Batch",
            &json!({"items": [
                {"key": "new", "data": {"n": 1}, "ttl": 60},
                {"key": "there", "data": {"n": 2}, "if_match": "0"},
                {"key": "there", "data": {"n": 3}, "if_match": 0},
                {"key": "there", "data": {"n": 4}, "if_match": 1},
                {"key": "none", "data": {}, "if_match": "*"},
                {"key": "bad", "data": []},
                {"key": "", "data": {}},
                {"data": {}},
                {"key": "large", "data": {"a": "x".repeat(16 << 10)}},
            ]}),
        )
        .await
        .of(200);
    let refused = |key: &str, status: u16, code: u32| (Some(key.to_owned()), status, Some(code), None::<String>);
    let done = |key: &str, status: u16, revision: &str| (Some(key.to_owned()), status, None, Some(revision.to_owned()));
    let verdicts: Vec<_> = told["items"].as_array().unwrap().iter().map(verdict).collect();
    assert_eq!(
        verdicts,
        [
            done("new", 201, "0"),
            done("there", 200, "1"),
            refused("there", 412, 54205),
            done("there", 200, "2"),
            refused("none", 404, 20404),
            refused("bad", 400, 54008),
            refused("", 400, 54209),
            (None, 400, Some(20001), None),
            refused("large", 413, 54006),
        ]
    );
    assert_eq!(told["items"][0], json!({"key": "new", "status": 201, "revision": "0"}));
    assert_eq!(server.get("/Maps/m/Items/new").await.of(200)["date_expires"], "2026-11-20T10:01:00Z");
    assert_eq!(server.get("/Maps/m/Items/there").await.of(200)["data"], json!({"n": 4}));
}

fn verdict(told: &Value) -> (Option<String>, u16, Option<u32>, Option<String>) {
    let text = |field: &str| told[field].as_str().map(str::to_owned);
    (
        text("key").or_else(|| text("unique_name")),
        told["status"].as_u64().unwrap() as u16,
        told["code"].as_u64().map(|code| code as u32),
        text("revision"),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_larger_than_one_record_of_the_log_is_done_whole() {
    let server = Server::start().await;
    server.post("/Maps", &[("UniqueName", "m")]).await.of(201);
    let items: Vec<Value> = (0..200).map(|n| json!({"key": format!("k{n:03}"), "data": {"a": "x".repeat(15_000)}})).collect();
    let told = server.batch("/Maps/m/Batch", &json!({"items": items})).await.of(200);
    let told = told["items"].as_array().unwrap();
    assert_eq!(told.len(), 200);
    assert!(told.iter().enumerate().all(|(n, told)| *told == json!({"key": format!("k{n:03}"), "status": 201, "revision": "0"})));
    assert_eq!(server.get("/Maps/m").await.of(200)["revision"], "200", "each is one change of the map");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_are_put_each_with_its_verdict() {
    let server = Server::start().await;
    let there = server.post("/Documents", &[("UniqueName", "there"), ("Data", "{\"a\":1}")]).await.of(201);
    let told = server
        .batch(
            "/Batch",
            &json!({"documents": [
                {"unique_name": "new", "data": {"n": 1}, "ttl": 60},
                {"unique_name": "there", "data": {"n": 2}},
                {"unique_name": "page.x", "data": {}},
                {"unique_name": "ET00000000000000000000000000000000", "data": {}},
                {"unique_name": "a", "data": null},
                {"unique_name": "a", "data": {}, "ttl": -1},
                {"unique_name": "a"},
            ]}),
        )
        .await
        .of(200);
    let told = told["documents"].as_array().unwrap();
    let new = server.get("/Documents/new").await.of(200);
    assert_eq!(told[0], json!({"unique_name": "new", "sid": new["sid"], "status": 201, "revision": "0"}));
    assert_eq!((&new["data"], &new["date_expires"]), (&json!({"n": 1}), &json!("2026-11-20T10:01:00Z")));
    assert_eq!(told[1], json!({"unique_name": "there", "sid": there["sid"], "status": 200, "revision": "1"}));
    assert_eq!(server.get("/Documents/there").await.of(200)["data"], json!({"n": 2}));
    let codes: Vec<_> = told[2..].iter().map(|told| (told["status"].as_u64().unwrap(), told["code"].as_u64().unwrap())).collect();
    assert_eq!(codes, [(403, 54007), (400, 54302), (400, 54101), (400, 54011), (400, 20001)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_batch_is_refused_whole() {
    let server = Server::start().await;
    server.post("/Maps", &[("UniqueName", "m")]).await.of(201);
    let entry = json!({"key": "a", "data": {}});
    for path in ["/Maps/m/Batch", "/Batch"] {
        server.batch(path, &json!([])).await.refused(400, 54008);
        server.batch(path, &json!({"items": [], "documents": []})).await.refused(400, 54008);
        server.get(path).await.refused(405, 20004);
    }
    server.batch("/Maps/m/Batch", &json!({"items": []})).await.refused(400, 20001);
    server.batch("/Batch", &json!({"documents": []})).await.refused(400, 20001);
    server.batch("/Maps/m/Batch", &json!({"items": vec![entry.clone(); 1_001]})).await.refused(400, 20001);
    server.batch("/Maps/none/Batch", &json!({"items": [entry]})).await.refused(404, 20404);
    server.batch("/Maps/m/Batch", &json!({"items": [{"key": "a", "data": {"a": "x".repeat(4 << 20)}}]})).await.refused(413, 54006);
    assert_eq!(server.get("/Maps/m/Items").await.of(200)["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_charged_entry_by_entry() {
    let server = Server::start().await;
    server.limit().await;
    server.post("/Maps", &[("UniqueName", "m")]).await.of(201);
    let began = Instant::now();
    let most = || 201 + (began.elapsed().as_secs_f64() * 20.0) as usize;
    let items: Vec<Value> = (0..1_000).map(|n| json!({"key": format!("k{n}"), "data": {}})).collect();
    let told = server.batch("/Maps/m/Batch", &json!({"items": items})).await.of(200);
    let taken = told["items"].as_array().unwrap().iter().filter(|told| told["status"] == 201).count();
    assert!((200..=most()).contains(&taken), "{taken}");
    assert_eq!((&told["items"][999]["status"], &told["items"][999]["code"]), (&json!(429), &json!(54009)));
    let documents: Vec<Value> = (0..1_000).map(|n| json!({"unique_name": format!("d{n}"), "data": {}})).collect();
    let told = server.batch("/Batch", &json!({"documents": documents})).await.of(200);
    let taken = told["documents"].as_array().unwrap().iter().filter(|told| told["status"] == 201).count();
    // One creation was the map's.
    assert!((199..=most()).contains(&taken), "{taken}");
}
