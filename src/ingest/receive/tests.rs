//! Tests of the handler over a log that fails when told to: what is appended, and what is answered.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::to_bytes;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::super::testing::FakeLog;
use super::super::{Deps, Settings};
use super::*;
use crate::event::{Channel, Clock, Event, Flags, Record, RecordKind, SiteRules, Timestamp, ids};
use crate::site::NewKeys;

struct Shop {
    log: Arc<FakeLog>,
    ingest: Ingest,
    keys: NewKeys,
    _dir: tempfile::TempDir,
}

const NOW: &str = "2026-11-20T10:00:00Z";
const PAGE: &str = "https://shop.example";

fn shop_with(settings: Settings) -> Shop {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::fixed(Timestamp::parse(NOW).unwrap());
    let sites = Arc::new(Sites::open(dir.path(), clock.clone()).unwrap());
    let keys = sites.add(&SiteId::parse("demo").unwrap(), vec![PAGE.into()], SiteRules::default()).unwrap();
    sites.add(&SiteId::parse("other").unwrap(), vec!["https://other.example".into()], SiteRules::default()).unwrap();
    let log = Arc::new(FakeLog::default());
    let ingest = Ingest::new(Deps { log: log.clone(), sites, clock, settings });
    Shop { log, ingest, keys, _dir: dir }
}

fn shop() -> Shop {
    shop_with(Settings::default())
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
    let shop = shop();
    let reply = shop.post(viewed("e-1")).await;
    assert_eq!((reply.status, reply.body), (200, json!({"accepted": 1, "duplicates": 0, "conflicts": 0, "rejected": [], "assigned": []})));
    let (partition, record) = shop.log.records().pop().unwrap();
    assert_eq!((record.kind, record.event_id.as_str(), record.site.as_str()), (RecordKind::Event, "e-1", "demo"));
    assert_eq!(partition, ids::events_partition(&record.site, record.key_kind, &record.key));
    assert_eq!(&record.body[..], br#"{"occurred_at":"2026-11-20T10:00:00Z","product":{"id":"sku-1"},"type":"product_viewed"}"#);
    assert_eq!(record.fingerprint, ids::fingerprint(&record.body));
    assert_eq!(Event::from_body(&record.body).unwrap().partition_key("e-1"), (record.key_kind, "e-1"));
}
