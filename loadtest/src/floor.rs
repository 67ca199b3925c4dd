//! The floor that ingest is measured against: the bare handler, axum and serde_json typed parsing and nothing else, on one worker.

use std::collections::HashMap;

use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
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

async fn take(body: Bytes) -> StatusCode {
    let parsed = if body.first() == Some(&b'[') {
        serde_json::from_slice::<Vec<Event>>(&body).map(|events| events.len())
    } else {
        serde_json::from_slice::<Event>(&body).map(|_| 1)
    };
    if parsed.is_ok() { StatusCode::ACCEPTED } else { StatusCode::BAD_REQUEST }
}

/// Serves on a free loopback port, prints the address, runs until killed.
pub(crate) fn run() -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        axum::serve(listener, axum::Router::new().route("/v1/events", post(take))).await?;
        Ok(())
    })
}
