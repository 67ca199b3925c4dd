//! Tests of the handler over a log that fails when told to: what is appended, and what is answered.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::to_bytes;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::super::testing::FakeLog;
use super::super::{Deps, Settings};
use super::*;
use crate::event::{Channel, Clock, Event, Flags, Record, RecordKind, Timestamp, ids};
use crate::site::{self, Change, NewKeys, NewSite, Region, Regions};

struct Shop {
    log: Arc<FakeLog>,
    ingest: Ingest,
    sites: Arc<Sites>,
    keys: NewKeys,
    _dir: tempfile::TempDir,
}

const NOW: &str = "2026-11-20T10:00:00Z";
const PAGE: &str = "https://shop.example";

async fn shop_with(settings: Settings) -> Shop {
    shop_in(Regions::default(), settings).await
}

async fn shop_in(regions: Regions, settings: Settings) -> Shop {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::fixed(Timestamp::parse(NOW).unwrap());
    let store = site::open("embedded", dir.path(), &site::Settings::default()).await.unwrap();
    let sites = Arc::new(Sites::new(store, regions, clock.clone()).await.unwrap());
    let of = |origin: &str| NewSite { origins: vec![origin.into()], ..NewSite::default() };
    let keys = sites.add(&SiteId::parse("demo").unwrap(), of(PAGE)).await.unwrap();
    sites.add(&SiteId::parse("other").unwrap(), of("https://other.example")).await.unwrap();
    let log = Arc::new(FakeLog::default());
    let ingest = Ingest::new(Deps { log: log.clone(), sites: Arc::clone(&sites), clock, settings });
    Shop { log, ingest, sites, keys, _dir: dir }
}

async fn shop() -> Shop {
    shop_with(Settings::default()).await
}

struct Reply {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Shop {
    async fn call(&self, request: Request<Body>) -> Reply {
        let response = self.ingest.router().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = to_bytes(body, 1 << 20).await.unwrap();
        let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
        Reply { status: head.status.as_u16(), headers: head.headers, body }
    }

    async fn post_with(&self, headers: &[(&str, &str)], uri: &str, body: impl Into<Body>) -> Reply {
        let mut request = Request::post(uri).body(body.into()).unwrap();
        for (name, value) in headers {
            let name: axum::http::HeaderName = name.parse().unwrap();
            request.headers_mut().append(name, value.parse().unwrap());
        }
        self.call(request).await
    }

    async fn post(&self, body: impl Into<Body>) -> Reply {
        let bearer = format!("Bearer {}", self.keys.ingest);
        self.post_with(&[("authorization", &bearer)], "/v1/events", body).await
    }

    fn records(&self) -> Vec<Record> {
        self.log.records().into_iter().map(|(_, record)| record).collect()
    }
}

fn viewed(id: &str) -> String {
    json!({"event_id": id, "type": "product_viewed", "occurred_at": NOW, "product": {"id": "sku-1"}}).to_string()
}

#[tokio::test]
async fn one_event_goes_the_whole_way() {
    let shop = shop().await;
    let reply = shop.post(viewed("e-1")).await;
    assert_eq!((reply.status, reply.body), (200, json!({"accepted": 1, "duplicates": 0, "conflicts": 0, "rejected": [], "assigned": []})));
    let (partition, record) = shop.log.records().pop().unwrap();
    assert_eq!((record.kind, record.event_id.as_str(), record.site.as_str()), (RecordKind::Event, "e-1", "demo"));
    assert_eq!(partition, ids::events_partition(&record.site, record.key_kind, &record.key));
    assert_eq!(&record.body[..], br#"{"occurred_at":"2026-11-20T10:00:00Z","product":{"id":"sku-1"},"type":"product_viewed"}"#);
    assert_eq!(record.fingerprint, ids::fingerprint(&record.body));
    assert_eq!(Event::from_body(&record.body).unwrap().partition_key("e-1"), (record.key_kind, "e-1"));
}

#[tokio::test]
async fn bad_events_spoil_themselves_alone() {
    let shop = shop().await;
    let bad = r#"{"event_id":"e-2","type":"page_viewed","page":{"url":7}}"#;
    let reply = shop.post(format!("[{},{bad},{{\"type\":\"x\"}},4]", viewed("e-1"))).await;
    assert_eq!((reply.status, &reply.body["accepted"]), (200, &json!(2)));
    assert_eq!(
        reply.body["rejected"],
        json!([{"index": 1, "code": "type_wrong", "message": "expected a string, found a number", "pointer": "/page/url"},
            {"index": 3, "code": "not_an_object", "message": "expected an object, found a number", "pointer": ""}])
    );
    let assigned: Vec<_> = reply.body["assigned"].as_array().unwrap().iter().map(|a| a["index"].as_u64().unwrap()).collect();
    assert_eq!(assigned, [2, 3]);
    let kinds: Vec<_> = shop.records().iter().map(|record| record.kind).collect();
    assert_eq!(kinds, [RecordKind::Event, RecordKind::Quarantine, RecordKind::Event, RecordKind::Quarantine]);
    assert_eq!(shop.log.calls(), 1, "one append for the whole request");

    let lines = format!("{}\nnot json\n{}\n", viewed("e-3"), viewed("e-4"));
    let reply = shop.post(lines.clone()).await;
    assert_eq!((reply.status, &reply.body["accepted"]), (200, &json!(2)));
    assert_eq!(reply.body["rejected"][0]["code"], "not_json");
    assert_eq!(reply.body["rejected"][0]["offset"], json!(lines.find("not json").unwrap()));
}

/// Headers, query, body; status, code.
type Case<'a> = (Vec<(&'a str, &'a str)>, &'a str, Vec<u8>, u16, &'a str);

#[tokio::test]
async fn every_refusal_of_a_request() {
    let shop = shop().await;
    let key = shop.keys.ingest.clone();
    let bearer = format!("Bearer {key}");
    let auth = ("authorization", bearer.as_str());
    let many = format!("[{}]", vec!["{}"; 10_001].join(","));
    let gzip_bomb = zip_bomb();
    let cases: Vec<Case<'_>> = vec![
        (vec![], "", b"{}".to_vec(), 401, "key_missing"),
        (vec![("authorization", "Bearer nonsense")], "", b"{}".to_vec(), 401, "key_unknown"),
        (vec![("authorization", "Digest x")], "", b"{}".to_vec(), 401, "key_unknown"),
        (vec![("authorization", "Basic !!")], "", b"{}".to_vec(), 401, "key_unknown"),
        (vec![("x-write-key", &shop.keys.read)], "", b"{}".to_vec(), 401, "key_unknown"),
        (vec![auth, ("origin", "https://evil.example")], "", b"{}".to_vec(), 403, "origin_not_allowed"),
        (vec![auth, ("origin", "https://other.example")], "", b"{}".to_vec(), 403, "origin_not_allowed"),
        (vec![("x-write-key", &shop.keys.browser), ("origin", "null")], "", b"{}".to_vec(), 403, "origin_not_allowed"),
        (vec![auth], "?dry_run=maybe", b"{}".to_vec(), 400, "parameter_invalid"),
        (vec![auth, ("idempotency-key", "\"\"")], "", b"{}".to_vec(), 400, "delivery_id_invalid"),
        (vec![auth], "", b" \n".to_vec(), 400, "body_empty"),
        (vec![auth], "", b"[]".to_vec(), 400, "body_empty"),
        (vec![auth], "", b"[{\"type\":\"\xff\"}]".to_vec(), 400, "body_not_utf8"),
        (vec![auth], "", b"[{\"type\":\"x\"},]".to_vec(), 400, "body_not_json"),
        (vec![auth], "", b"type=x".to_vec(), 400, "body_not_json"),
        (vec![auth], "", vec![b' '; MAX_BODY_BYTES + 1], 413, "body_too_large"),
        (vec![auth, ("content-encoding", "gzip")], "", gzip_bomb, 413, "decoded_too_large"),
        (vec![auth], "", many.into_bytes(), 413, "too_many_events"),
        (vec![auth, ("content-encoding", "br")], "", b"{}".to_vec(), 415, "encoding_unsupported"),
        (vec![auth, ("content-encoding", "gzip, zstd")], "", b"{}".to_vec(), 415, "encoding_unsupported"),
        (vec![auth, ("content-encoding", "zstd")], "", b"{}".to_vec(), 400, "encoding_corrupt"),
    ];
    for (headers, query, body, status, code) in cases {
        let reply = shop.post_with(&headers, &format!("/v1/events{query}"), body).await;
        assert_eq!((reply.status, reply.body["code"].as_str()), (status, Some(code)));
        assert_eq!((&reply.body["status"], &reply.body["type"]), (&json!(status), &json!(format!("urn:contrail:problem:{code}"))));
        assert_eq!(reply.headers[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(reply.headers.contains_key(header::WWW_AUTHENTICATE), status == 401);
    }
    assert_eq!(shop.log.calls(), 0, "a refused request appends nothing");
    let reply = shop.call(Request::get("/v1/events").body(Body::empty()).unwrap()).await;
    assert_eq!(
        (reply.status, reply.body["code"].as_str(), &reply.headers[header::ALLOW]),
        (405, Some("method_not_allowed"), &"POST, OPTIONS".parse().unwrap())
    );
}

fn zip_bomb() -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&vec![b' '; MAX_BODY_BYTES + 1]).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn each_way_to_give_the_key() {
    use base64::Engine;
    let shop = shop().await;
    let basic = |user: &str| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(user));
    let key = shop.keys.ingest.clone();
    for (name, value) in [
        ("authorization", format!("bearer  {key}")),
        ("authorization", basic(&format!("{key}:"))),
        ("authorization", basic(&key)),
        ("x-write-key", key.clone()),
        ("x-write-key", shop.keys.browser.clone()),
    ] {
        assert_eq!(shop.post_with(&[(name, &value)], "/v1/events", viewed("e")).await.status, 200, "{name}");
    }
}

#[tokio::test]
async fn failures_of_the_log_keep_the_assigned_ids() {
    let shop = shop().await;
    let damaged = LogError::Damaged { topic: "events", partition: 3, offset: 7, what: "checksum".into() };
    for (error, code, seconds) in [
        (LogError::Full("disk"), "log_full", "5"),
        (LogError::Unavailable("timeout".into()), "log_unavailable", "1"),
        (LogError::Closed("sync failed".into()), "log_closed", "5"),
        (damaged, "log_damaged", "60"),
    ] {
        shop.log.fail_with([error]);
        let reply = shop.post(format!("[{},{{\"type\":\"x\"}}]", viewed("e-1"))).await;
        assert_eq!((reply.status, reply.body["code"].as_str()), (503, Some(code)));
        assert_eq!(reply.headers[header::RETRY_AFTER], seconds);
        let assigned = &reply.body["assigned"][0];
        assert_eq!(assigned["index"], 1);
        let again = shop.post(json!([{"type": "x", "event_id": assigned["event_id"]}]).to_string()).await;
        assert_eq!(again.body, json!({"accepted": 1, "duplicates": 0, "conflicts": 0, "rejected": [], "assigned": []}));
        assert_eq!(shop.records().pop().unwrap().event_id, assigned["event_id"].as_str().unwrap());
    }
}

#[tokio::test]
async fn repeats_are_appended_and_named() {
    let shop = shop().await;
    let other = viewed("e-1").replace("sku-1", "sku-2");
    let counts = |reply: Reply| ["accepted", "duplicates", "conflicts"].map(|key| reply.body[key].as_u64().unwrap());
    assert_eq!(counts(shop.post(viewed("e-1")).await), [1, 0, 0]);
    assert_eq!(counts(shop.post(viewed("e-1")).await), [0, 1, 0]);
    assert_eq!(counts(shop.post(format!("[{other},{}]", viewed("e-2"))).await), [1, 0, 1]);
    assert_eq!(shop.records().len(), 4, "recognising is a courtesy: everything is appended");
    let failed = viewed("e-3");
    shop.log.fail_with([LogError::Unavailable("timeout".into())]);
    shop.post(failed.clone()).await;
    assert_eq!(counts(shop.post(failed).await), [1, 0, 0], "what was not confirmed is not recognised");
}

#[tokio::test]
async fn submitting_from_within_is_a_servers_request() {
    let shop = shop().await;
    let site = SiteId::parse("demo").unwrap();
    let body = r#"{"type":"x","event_id":"e","source":{"channel":"webhook"}}"#;
    assert_eq!(shop.ingest.submit(&site, Bytes::from_static(body.as_bytes())).await.unwrap().accepted, 1);
    assert_eq!(shop.records()[0].channel, Channel::Webhook);
    shop.log.fail_with([LogError::Full("disk")]);
    assert_eq!(shop.ingest.submit(&site, Bytes::from_static(b"{\"type\":\"x\"}")).await.unwrap_err().code, Code::LogFull);
}

#[tokio::test]
async fn a_rehearsal_gives_what_would_be_appended_and_appends_nothing() {
    let shop = shop().await;
    let site = SiteId::parse("demo").unwrap();
    let order = r#"{"type":"order_completed","event_id":"o","order":{"id":"o1"},"checkout":{"id":"c"}}"#;
    let body = Bytes::from(format!("[{},{{\"type\":\"\"}},{order},{}]", viewed("e-1"), viewed("e-2")));
    let rehearsed = shop.ingest.rehearse(&site, body.clone()).await.unwrap();
    assert_eq!((shop.log.calls(), rehearsed.iter().map(|(index, _)| *index).collect::<Vec<_>>()), (0, vec![0, 2, 3]));
    shop.ingest.submit(&site, body).await.unwrap();
    let appended: Vec<Record> = shop.records().into_iter().filter(|record| record.kind == RecordKind::Event).collect();
    assert!(rehearsed.into_iter().map(|(_, record)| record).eq(appended));
    let refused = shop.ingest.rehearse(&site, Bytes::from(vec![b' '; MAX_BODY_BYTES + 1])).await.unwrap_err();
    assert_eq!(refused.code, Code::BodyTooLarge);
}

#[tokio::test]
async fn dry_run_appends_nothing() {
    let shop = shop().await;
    let bearer = format!("Bearer {}", shop.keys.ingest);
    let reply = shop.post_with(&[("authorization", &bearer)], "/v1/events?dry_run=true", r#"[{"type":"x"},{"type":""}]"#).await;
    assert_eq!((reply.status, &reply.body["accepted"], &reply.body["rejected"][0]["pointer"]), (200, &json!(1), &json!("/type")));
    assert_eq!(shop.log.calls(), 0);
}

#[tokio::test]
async fn pages_of_allowed_origins_may_send_and_read_the_answer() {
    let shop = shop().await;
    let event = r#"{"type":"x","event_id":"e","source":{"channel":"webhook"}}"#;
    let headers = [("x-write-key", shop.keys.browser.as_str()), ("origin", PAGE), ("user-agent", "Mozilla/5.0 (compatible; bingbot/2.0)")];
    let reply = shop.post_with(&headers, "/v1/events", event).await;
    assert_eq!((reply.status, &reply.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN]), (200, &PAGE.parse().unwrap()));
    let record = shop.records().pop().unwrap();
    assert_eq!((record.channel, record.flags.has(Flags::CRAWLER)), (Channel::Pixel, true));
    shop.post_with(&headers[..1], "/v1/events", event).await;
    let record = shop.records().pop().unwrap();
    assert_eq!((record.channel, record.flags.has(Flags::CRAWLER)), (Channel::Pixel, false), "a browser key never passes for a server");
    shop.post_with(&[("x-write-key", &shop.keys.ingest), headers[2]], "/v1/events", event).await;
    let record = shop.records().pop().unwrap();
    assert_eq!((record.channel, record.flags.has(Flags::CRAWLER)), (Channel::Webhook, false), "a server's own agent is not its shopper's");

    let preflight = |origin: &str| {
        let request = Request::builder().method("OPTIONS").uri("/v1/events").header("origin", origin);
        request.header("access-control-request-method", "POST").body(Body::empty()).unwrap()
    };
    let reply = shop.call(preflight(PAGE)).await;
    assert_eq!((reply.status, &reply.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN]), (204, &PAGE.parse().unwrap()));
    assert!(reply.headers[header::ACCESS_CONTROL_ALLOW_HEADERS].to_str().unwrap().contains("x-write-key"));
    let reply = shop.call(preflight("https://evil.example")).await;
    assert!(!reply.headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
}

#[tokio::test]
async fn limits_refuse_at_once_and_say_when_to_come_again() {
    let rate = |n| std::num::NonZeroU32::new(n).unwrap();
    let shop = shop_with(Settings { max_in_flight_bytes: 64 << 10, address_requests_per_second: rate(2), ..Settings::default() }).await;
    let reply = shop.post(format!("[{}]", vec![viewed("e"); 1_000].join(","))).await;
    assert_eq!((reply.status, reply.body["code"].as_str(), &reply.headers[header::RETRY_AFTER]), (503, Some("overloaded"), &"1".parse().unwrap()));
    assert_eq!(shop.ingest.0.budget.free(), 64 << 10, "nothing leaks");
    let (began, mut taken) = (Instant::now(), 0);
    let refused = loop {
        let mut request = Request::post("/v1/events").header("x-write-key", &shop.keys.ingest).body(Body::from(viewed("e"))).unwrap();
        request.extensions_mut().insert(PeerAddress("192.0.2.1".parse::<IpAddr>().unwrap()));
        let reply = shop.call(request).await;
        if reply.status != 200 {
            break reply;
        }
        taken += 1;
        assert!(taken < 50, "no limit");
    };
    // Two at once, and two a second since.
    let most = 3 + (2.0 * began.elapsed().as_secs_f64()) as usize;
    assert!((2..=most).contains(&taken), "{taken} of 2 to {most}");
    assert_eq!((refused.status, refused.headers.contains_key(header::RETRY_AFTER)), (429, true));
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up() {
    let body_timeout = std::time::Duration::from_millis(20);
    let shop = shop_with(Settings { body_timeout, ..Settings::default() }).await;
    let started = Instant::now();
    let never = futures::stream::pending::<Result<Bytes, std::io::Error>>();
    let reply = shop.post(Body::from_stream(never)).await;
    assert_eq!((reply.status, reply.body["code"].as_str()), (408, Some("body_timeout")));
    assert!(started.elapsed() >= body_timeout);
    let broken = futures::stream::iter([Ok(Bytes::from_static(b"{\"type\"")), Err(std::io::Error::other("reset"))]);
    assert_eq!(shop.post(Body::from_stream(broken)).await.body["code"], "body_incomplete");
    let pieces = futures::stream::iter(viewed("e").into_bytes().chunks(7).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect::<Vec<_>>());
    assert_eq!(shop.post(Body::from_stream(pieces)).await.body["accepted"], 1);
}

#[tokio::test]
async fn large_bodies_and_compressed_ones_give_the_same_records() {
    let events: Vec<String> = (0..4_000).map(|n| viewed(&format!("e-{n}"))).collect();
    let body = format!("[{}]", events.join(","));
    assert!(body.len() > OFFLOAD_BYTES);
    let plain = shop().await;
    assert_eq!(plain.post(body.clone()).await.body["accepted"], 4_000);
    let zipped = shop().await;
    let packed = zstd::encode_all(body.as_bytes(), 1).unwrap();
    let headers = [("x-write-key", zipped.keys.ingest.as_str()), ("content-encoding", "zstd")];
    assert_eq!(zipped.post_with(&headers, "/v1/events", packed).await.body["accepted"], 4_000);
    assert_eq!(plain.log.records(), zipped.log.records());
}

#[tokio::test]
async fn refusals_are_appended_by_site_and_survive_a_failed_append() {
    let shop = shop().await;
    shop.post("nonsense").await;
    shop.post(format!("{}\nbad\nworse", viewed("e-1"))).await;
    shop.post_with(&[], "/v1/events", "{}").await;
    shop.log.fail_with([LogError::Unavailable("timeout".into())]);
    shop.ingest.0.refusals.flush(&*shop.log, std::future::pending(), Timestamp::ZERO).await;
    assert_eq!(shop.records().len(), 1, "the first flush failed");
    shop.post("nonsense").await;
    let stop = tokio_util::sync::CancellationToken::new();
    stop.cancel();
    shop.ingest.clone().run(stop).await;
    let record = shop.records().pop().unwrap();
    assert_eq!((record.kind, record.site.as_str()), (RecordKind::Refusals, "demo"));
    let refusals: crate::event::record::Refusals = serde_json::from_slice(&record.body).unwrap();
    assert_eq!(refusals.by_code.into_iter().collect::<Vec<_>>(), [("body_not_json".to_owned(), 2), ("not_json".to_owned(), 2)]);
    assert_eq!(shop.records().len(), 2);
}

/// Neither a request nor the stop waits for ever for a log that does not answer.
#[tokio::test]
async fn a_log_that_hangs_is_given_up() {
    let shop = shop_with(Settings { append_timeout: Duration::from_millis(100), ..Settings::default() }).await;
    shop.log.hang();
    let reply = tokio::time::timeout(Duration::from_secs(60), shop.post(viewed("e-1"))).await.unwrap();
    assert_eq!((reply.status, reply.body["code"].as_str()), (503, Some("log_unavailable")));
    shop.post("nonsense").await;
    let (stop, calls) = (tokio_util::sync::CancellationToken::new(), shop.log.calls());
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(60), shop.ingest.clone().run(stop)).await.unwrap();
    assert_eq!(shop.log.calls(), calls + 1);
}

#[tokio::test]
async fn nothing_is_taken_for_a_site_of_another_region() {
    let regions = Regions::new("us", &["eu=https://eu.example".into()]).unwrap();
    let shop = shop_in(regions, Settings::default()).await;
    let to = |name: &str| Change { region: Some(Some(Region::parse(name).unwrap())), leave_data: true, ..Change::default() };
    let key = shop.keys.ingest.clone();
    let body = r#"{"type":"x"}"#;
    shop.sites.set(&SiteId::parse("demo").unwrap(), to("us")).await.unwrap();
    assert_eq!(shop.post_with(&[("x-write-key", &key)], "/v1/events", body).await.status, 200);
    let stored = shop.log.records().len();
    shop.sites.set(&SiteId::parse("demo").unwrap(), to("eu")).await.unwrap();
    for headers in [vec![("x-write-key", key.as_str())], vec![("x-write-key", &key), ("origin", PAGE)], vec![("x-write-key", &shop.keys.browser)]] {
        let refused = shop.post_with(&headers, "/v1/events", body).await;
        assert_eq!((refused.status, &refused.body["code"]), (421, &json!("region_elsewhere")));
        assert_eq!((&refused.body["region"], &refused.body["region_url"]), (&json!("eu"), &json!("https://eu.example")));
        assert!(refused.body["detail"].as_str().unwrap().contains("https://eu.example"));
    }
    // Nor is the refusal, which elsewhere is counted in the site's books.
    shop.ingest.0.refusals.flush(&*shop.log, std::future::pending(), Timestamp::parse(NOW).unwrap()).await;
    assert_eq!(shop.log.records().len(), stored);
}
