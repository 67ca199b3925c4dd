//! Live objects over HTTP and Server-Sent Events.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{KEY, READ, Server};
use crate::http::{Connection, Events};

fn view(id: &str, product: &str) -> Value {
    json!({"type": "product_viewed", "event_id": id, "product": {"id": product, "name": "Mug"}, "customer": {"id": "c1"},
           "page": {"url": "https://shop.example/p"}})
}

#[test]
fn a_subscriber_gets_the_snapshot_then_every_change_and_resumes() {
    let server = Server::fresh();
    server.accept(&[view("1", "sku-1")]);
    server.settle();
    let path = "/v1/live/maps/product.sku-1/events";
    let mut events = Events::open(&server.address, path, READ, None);
    let snapshot = events.next();
    assert_eq!(snapshot.event, "snapshot");
    server.accept(&[view("2", "sku-1")]);
    let views = |data: &Value| data["data"]["views"].as_u64();
    let mut last = loop {
        let message = events.next();
        assert_eq!(message.event, "change");
        if message.data["key"] == "activity" && views(&message.data) == Some(2) {
            break message.id;
        }
    };
    while last.is_none() {
        last = events.next().id;
    }
    drop(events);
    server.accept(&[view("3", "sku-1")]);
    server.settle();
    let mut resumed = Events::open(&server.address, path, READ, last);
    let message = resumed.next();
    assert_eq!(message.event, "change", "what was missed is replayed, not a snapshot");
    let mut found = views(&message.data);
    while found != Some(3) {
        found = views(&resumed.next().data);
    }
}

#[test]
fn objects_read_as_the_design_says() {
    let server = Server::fresh();
    server.accept(&[
        view("1", "a/b"),
        json!({"type": "page_viewed", "event_id": "2", "customer": {"id": "c1"}, "page": {"url": "https://shop.example/%C3%BCber?x=1#f", "title": "Über"}}),
        json!({"type": "product_updated", "event_id": "3", "product": {"id": "a/b", "color": "red", "quantity": 40, "price": {"amount": "12.99", "currency": "EUR"}, "available_in": ["DE"]}}),
    ]);
    server.settle();
    let product = server.read("/v1/live/maps/product.a:b");
    assert_eq!((&product["kind"], &product["name"]), (&json!("map"), &json!("product.a:b")));
    assert!(product["sid"].as_str().unwrap().starts_with("MP"), "{product}");
    assert_eq!(product["items"]["price"]["data"], json!({"amount_minor": 1299, "currency": "EUR"}));
    let page = server.read("/v1/live/documents/page.:~C3~BCber");
    assert_eq!((&page["data"]["title"], &page["data"]["views"]), (&json!("Über"), &json!(1)), "{page}");
    let trail = server.read("/v1/live/lists/trail.customer.c1");
    assert_eq!(trail["items"].as_object().unwrap().len(), 2, "{trail}");
    assert_eq!(server.get("/v1/live/maps/product.none").status, 404);
    assert_eq!(server.get("/v1/live/documents/product.a:b").status, 404, "kinds are told apart");
    assert_eq!(server.call("GET", "/v1/live/maps/product.a:b", &[], b"").status, 401);
    assert_eq!(server.call("GET", "/v1/live/maps/product.a:b", &[("authorization", "Bearer cr_demo_wrong")], b"").status, 401);
}

#[test]
fn a_token_opens_one_object_alone() {
    let server = Server::fresh();
    server.accept(&[view("1", "p1"), view("2", "p2")]);
    server.settle();
    let answer = server.admin("POST", "/admin/sites/demo/tokens", br#"{"object":"product.p1","ttl_seconds":60}"#);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let token = answer.json()["token"].as_str().unwrap().to_owned();
    let status = |path: &str| server.call("GET", &format!("{path}?token={token}"), &[], b"").status;
    assert_eq!(status("/v1/live/maps/product.p1"), 200);
    assert_eq!(status("/v1/live/maps/product.p2"), 403);
    assert_eq!(status("/v1/reports/top-viewed"), 401);
    let tampered = format!("/v1/live/maps/product.p1?token={token}x");
    assert_eq!(server.call("GET", &tampered, &[], b"").status, 401);
}

#[test]
fn a_subscriber_that_does_not_read_delays_nobody_and_gets_a_fresh_snapshot() {
    let server = Server::fresh();
    server.accept(&[view("first", "hot")]);
    server.settle();
    let path = "/v1/live/maps/product.hot/events";
    // It reads its head and nothing more, until everybody else has seen the end.
    let mut deaf = Connection::open(&server.address).unwrap();
    deaf.send("GET", path, &[("authorization", &format!("Bearer {READ}"))], b"").unwrap();
    let mut keen = Events::open(&server.address, path, READ, None);
    let total = 300;
    let mut sender = server.connect();
    for number in 0..total {
        let body = view(&format!("n{number}"), "hot").to_string();
        let answer = sender.call("POST", "/v1/events", &[("authorization", &format!("Bearer {KEY}"))], body.as_bytes()).unwrap();
        assert_eq!(answer.status, 200);
        std::thread::sleep(Duration::from_millis(2));
    }
    loop {
        let message = keen.next();
        let activity = if message.event == "snapshot" { &message.data["items"]["activity"] } else { &message.data };
        if activity["data"]["views"] == json!(total + 1) {
            break;
        }
    }
    let (status, _) = deaf.head().unwrap();
    assert_eq!(status, 200);
    let mut text = String::new();
    while !text.contains(&format!("\"views\":{}", total + 1)) {
        text.push_str(&deaf.line().unwrap());
    }
}

#[test]
fn pages_of_allowed_origins_alone_may_read() {
    let server = Server::fresh();
    let added = server.admin("POST", "/admin/sites", br#"{"site":"shop","origins":["https://shop.example"]}"#);
    assert_eq!(added.status, 200, "{}", added.text());
    let allowed = |origin: &str| {
        let answer = server.call("GET", "/v1/live/maps/product.p1", &[("origin", origin)], b"");
        answer.header("access-control-allow-origin").map(str::to_owned)
    };
    assert_eq!(allowed("https://shop.example").as_deref(), Some("https://shop.example"));
    assert_eq!(allowed("https://elsewhere.example"), None);
}

#[test]
fn the_live_tail_shows_what_happens_and_nobodys_id() {
    let server = Server::fresh();
    let mut tail = Events::open(&server.address, "/v1/live/streams/activity/events", READ, None);
    // The subscription stands before the event is sent: the head has been answered.
    server.accept(&[view("1", "sku-1")]);
    let message = tail.next();
    assert_eq!(message.data["data"]["type"], "product_viewed", "{message:?}");
    assert_eq!(message.data["data"]["product"]["id"], "sku-1");
    assert!(!message.data.to_string().contains("c1"), "{message:?}");
}
