//! The floor that ingest is measured against: the bare handler on one worker, axum and serde_json typed parsing and nothing else; with brokers given,
//! an acknowledged send to them beside. And the one that reads are measured against: a body that is always the same.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::routing::post;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde::Deserialize;

/// A typed event as a plain handler would declare it.
#[derive(Deserialize)]
#[expect(dead_code, reason = "parsing it is the point")]
struct Event {
    event_id: Option<String>,
    #[serde(rename = "type")]
    kind: String,
    occurred_at: Option<String>,
    customer: Option<Customer>,
    client: Option<HashMap<String, String>>,
    page: Option<Page>,
    product: Option<Product>,
    search: Option<Search>,
    cart: Option<Lines>,
    checkout: Option<Checkout>,
    order: Option<Lines>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "parsing it is the point")]
struct Customer {
    id: Option<String>,
    anonymous_id: Option<String>,
    session_id: Option<String>,
    location: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "parsing it is the point")]
struct Page {
    url: String,
    title: Option<String>,
    referrer: Option<String>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "parsing it is the point")]
struct Money {
    amount_minor: Option<i64>,
    amount: Option<String>,
    currency: String,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "parsing it is the point")]
struct Product {
    id: String,
    name: Option<String>,
    category: Option<String>,
    price: Option<Money>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "parsing it is the point")]
struct Search {
    query: String,
    results: Option<u64>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "parsing it is the point")]
struct Checkout {
    id: Option<String>,
    step: Option<String>,
    status: Option<String>,
    value: Option<Money>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "parsing it is the point")]
struct Lines {
    id: Option<String>,
    items: Option<Vec<Item>>,
    total: Option<Money>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "parsing it is the point")]
struct Item {
    product_id: String,
    quantity: i64,
    price: Option<Money>,
}

/// Parses one event, or an array; how many.
fn parse(body: &[u8]) -> Option<usize> {
    if body.first() == Some(&b'[') {
        serde_json::from_slice::<Vec<Event>>(body).ok().map(|events| events.len())
    } else {
        serde_json::from_slice::<Event>(body).ok().map(|_| 1)
    }
}

async fn take(body: Bytes) -> StatusCode {
    if parse(&body).is_some() { StatusCode::ACCEPTED } else { StatusCode::BAD_REQUEST }
}

/// How the bare handler sends.
#[derive(Clone)]
struct Sending {
    producer: FutureProducer,
    /// The next partition; none where the client chooses, which fills one after the other.
    spread: Option<Arc<AtomicI32>>,
}

/// Answers when the brokers have acknowledged.
async fn produce(State(sending): State<Sending>, body: Bytes) -> StatusCode {
    if parse(&body).is_none() {
        return StatusCode::BAD_REQUEST;
    }
    let mut record = FutureRecord::<(), [u8]>::to(TOPIC).payload(&body);
    if let Some(next) = &sending.spread {
        record = record.partition(next.fetch_add(1, Ordering::Relaxed).rem_euclid(PARTITIONS));
    }
    match sending.producer.send(record, Duration::ZERO).await {
        Ok(_) => StatusCode::ACCEPTED,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

const TOPIC: &str = "floor";
const PARTITIONS: i32 = 16;

/// The producer as a plain handler would have it, with the durability that contrail promises.
async fn producer(brokers: &str) -> anyhow::Result<FutureProducer> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    let admin: AdminClient<DefaultClientContext> = config.create()?;
    // It may be there from an earlier round.
    admin.create_topics([&NewTopic::new(TOPIC, PARTITIONS, TopicReplication::Fixed(1))], &AdminOptions::new()).await?;
    config.set("enable.idempotence", "true").set("acks", "all").set("linger.ms", "5").set("compression.type", "lz4");
    Ok(config.create()?)
}

/// Serves on a free loopback port, prints the address, runs until killed.
pub(crate) fn run(brokers: Option<&str>, spread: bool, body: Option<&Path>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?.block_on(async {
        let events = |handler| axum::Router::new().route("/v1/events", handler);
        let router = match (brokers, body) {
            (_, Some(body)) => {
                let body = Bytes::from(std::fs::read(body)?);
                axum::Router::new().fallback(async move || ([(header::CONTENT_TYPE, "application/json")], body.clone()))
            }
            (Some(brokers), None) => {
                let spread = spread.then(Arc::default);
                events(post(produce).with_state(Sending { producer: producer(brokers).await?, spread }))
            }
            (None, None) => events(post(take)),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        axum::serve(listener, router).await?;
        Ok(())
    })
}
