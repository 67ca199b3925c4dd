//! Tests of signed webhooks over a log that fails when told to: what is appended, and what is answered.

use axum::body::to_bytes;
use serde_json::json;
use tower::ServiceExt;

use super::super::testing::FakeLog;
use super::super::{Deps, Settings};
use super::*;
use crate::event::{Channel, Clock, Event, Record, RecordKind, Timestamp};
use crate::eventlog::Error;
use crate::site::{self, NewSite, Regions, Sites};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const OLD: &str = "fedcba9876543210fedcba9876543210";

struct Shop {
    log: Arc<FakeLog>,
    ingest: Ingest,
    _dir: tempfile::TempDir,
}

async fn shop() -> Shop {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::fixed(Timestamp::parse("2026-11-20T10:00:00Z").unwrap());
    let store = site::open("embedded", dir.path(), &site::Settings::default()).await.unwrap();
    let sites = Arc::new(Sites::new(store, Regions::default(), clock.clone()).await.unwrap());
    let named = |name| SiteId::parse(name).unwrap();
    for name in ["demo", "bare"] {
        sites.add(&named(name), NewSite::default()).await.unwrap();
    }
    sites.set_twilio_auth_tokens(&named("demo"), vec![TOKEN.into(), OLD.into()]).await.unwrap();
    let log = Arc::new(FakeLog::default());
    let settings = Settings { public_url: "https://contrail.example/".into(), ..Settings::default() };
    let ingest = Ingest::new(Deps { log: log.clone(), sites, clock, settings });
    Shop { log, ingest, _dir: dir }
}

const PATH: &str = "/webhooks/twilio-sync?site=demo&x=%C3%A9";

fn document(revision: &str) -> Vec<(&str, &str)> {
    vec![
        ("AccountSid", "AC1"),
        ("ServiceSid", "IS1"),
        ("EventType", "document_updated"),
        ("Identity", "alice"),
        ("DocumentSid", "ET1"),
        ("DocumentUniqueName", "d"),
        ("DocumentRevision", revision),
        ("DocumentData", "{\"\u{e9}\":\"\u{260e} + &=\",\"n\":null}"),
    ]
}

impl Shop {
    async fn send(&self, path: &str, signature: Option<&str>, body: impl Into<Body>) -> (u16, Value) {
        let mut request = Request::post(path).body(body.into()).unwrap();
        if let Some(signature) = signature {
            request.headers_mut().insert(signature::HEADER, signature.parse().unwrap());
        }
        let response = self.ingest.router().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_slice(&to_bytes(response.into_body(), 1 << 20).await.unwrap()).unwrap())
    }

    /// As Twilio sends it, signed for this URL with this token.
    async fn signed(&self, url: &str, token: &str, params: &[(&str, &str)]) -> (u16, Value) {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(params).finish();
        let path = url.split_once("://").and_then(|(_, rest)| rest.find('/').and_then(|at| rest.get(at..))).unwrap();
        self.send(path, Some(&signature::of(token, url, params)), body).await
    }

    fn records(&self) -> Vec<Record> {
        self.log.records().into_iter().map(|(_, record)| record).collect()
    }
}

fn url(path: &str) -> String {
    format!("https://contrail.example{path}")
}

#[tokio::test]
async fn a_webhook_is_archived_as_what_happened_to_an_object() {
    let shop = shop().await;
    let (status, answer) = shop.signed(&url(PATH), TOKEN, &document("3")).await;
    assert_eq!((status, &answer["accepted"]), (200, &json!(1)), "{answer}");
    let record = shop.records().pop().unwrap();
    assert_eq!((record.kind, record.channel, record.site.as_str()), (RecordKind::Event, Channel::Webhook, "demo"));
    let event: Event = serde_json::from_slice(&record.body).unwrap();
    assert_eq!(event.kind, "object_changed");
    let body: Value = serde_json::from_slice(&record.body).unwrap();
    assert_eq!(body["source"], json!({"channel": "webhook", "dialect": "twilio_sync"}));
    assert_eq!(body["properties"]["object"], json!({"sid": "ET1", "kind": "document", "name": "d", "revision": 3}));
    assert_eq!(body["properties"]["data"], "{\"\u{e9}\":\"\u{260e} + &=\",\"n\":null}");
}

#[tokio::test]
async fn told_again_it_counts_once() {
    let shop = shop().await;
    let answers = [shop.signed(&url(PATH), TOKEN, &document("3")).await.1, shop.signed(&url(PATH), OLD, &document("3")).await.1];
    assert_eq!((&answers[0]["accepted"], &answers[1]["accepted"], &answers[1]["duplicates"]), (&json!(1), &json!(0), &json!(1)));
    let records = shop.records();
    assert_eq!((&records[0].event_id, records[0].fingerprint), (&records[1].event_id, records[1].fingerprint));
    assert_eq!(shop.signed(&url(PATH), TOKEN, &document("4")).await.1["accepted"], 1);
}

#[tokio::test]
async fn what_is_not_signed_for_this_url_with_a_token_of_the_site_is_refused() {
    let shop = shop().await;
    let refused = |(status, answer): (u16, Value), why: &str| assert_eq!((status, &answer["code"]), (403, &json!("signature_invalid")), "{why}");
    let params = document("3");
    let body = "EventType=document_updated&ServiceSid=IS1&DocumentSid=ET1";
    refused(shop.send(PATH, None, body).await, "no signature");
    refused(shop.send(PATH, Some("no base64!"), body).await, "none that is one");
    refused(shop.signed(&url(PATH), "0123456789abcdef0123456789abcdee", &params).await, "another token");
    refused(shop.signed(&url("/webhooks/twilio-sync?site=bare"), TOKEN, &params).await, "another site's");
    refused(shop.signed(&url("/webhooks/twilio-sync?site=bare"), "", &params).await, "a site without a token");
    refused(shop.signed(&url("/webhooks/twilio-sync?site=none"), TOKEN, &params).await, "no such site");
    refused(shop.signed(&url("/webhooks/twilio-sync"), TOKEN, &params).await, "no site");
    refused(shop.signed(&format!("https://elsewhere.example{PATH}"), TOKEN, &params).await, "another URL");
    let changed = signature::of(TOKEN, &url(PATH), &document("4"));
    let sent = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(&params).finish();
    refused(shop.send(PATH, Some(&changed), sent).await, "other parameters");
    assert!(shop.records().is_empty());
}

#[tokio::test]
async fn what_cannot_be_read_or_kept_is_refused_by_name() {
    let shop = shop().await;
    let mut params = document("3");
    params[2] = ("EventType", "call_completed");
    let (status, answer) = shop.signed(&url(PATH), TOKEN, &params).await;
    assert_eq!((status, &answer["code"]), (400, &json!("webhook_unreadable")));
    assert!(answer["detail"].as_str().unwrap().contains("EventType"), "{answer}");
    assert_eq!(shop.send(PATH, None, &b"A=%ff"[..]).await.0, 400);
    shop.log.fail_with([Error::Unavailable("by the script".into())]);
    let (status, answer) = shop.signed(&url(PATH), TOKEN, &document("3")).await;
    assert_eq!((status, &answer["code"]), (503, &json!("log_unavailable")));
    assert_eq!(shop.signed(&url(PATH), TOKEN, &document("3")).await.0, 200);
    let other = shop.ingest.router().oneshot(Request::get(PATH).body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(other.status().as_u16(), 405);
}

#[tokio::test]
async fn a_schemes_own_port_may_be_written_or_left_out() {
    let shop = shop().await;
    for host in ["https://contrail.example", "https://contrail.example:443"] {
        assert_eq!(shop.signed(&format!("{host}{PATH}"), TOKEN, &document("3")).await.0, 200, "{host}");
    }
    assert_eq!(configured("http://a:80/b", "/c"), ["http://a:80/b/c", "http://a/b/c"]);
    assert_eq!(configured("http://[::1]", "/c"), ["http://[::1]/c", "http://[::1]:80/c"]);
    assert_eq!(configured("http://a:8080", "/c"), ["http://a:8080/c"]);
    assert_eq!(configured("https://[::1]:443", "/c"), ["https://[::1]:443/c", "https://[::1]/c"]);
}
