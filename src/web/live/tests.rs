//! Live reads over a real loopback listener, before a feed and a store that the test writes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::*;
use crate::event::Timestamp;
use crate::event::change::{Change, Merge, Op, Origin, Stamp};
use crate::sync::embedded::EmbeddedStore;
use crate::sync::expiry::Expiry;
use crate::sync::feed::{self, LocalFeed};
use crate::sync::object::Object;
use crate::sync::{ObjectStore, ObjectWrite};

struct Server {
    addr: std::net::SocketAddr,
    store: Arc<dyn ObjectStore>,
    feed: LocalFeed,
    clock: Clock,
    offset: u64,
    /// Whether credentials open anything.
    open: Arc<AtomicBool>,
    _dir: tempfile::TempDir,
    /// The server and its clients' connections; aborted when the test ends.
    tasks: Mutex<JoinSet<()>>,
}

const NOW: Timestamp = Timestamp::from_micros(1_790_000_000_000_000);

fn key(kind: ObjectKind, name: &str) -> ObjectKey {
    ObjectKey { site: SiteId::parse("demo").unwrap(), kind, name: name.into() }
}

fn merge(item: &str, field: &str, json: &str) -> Op {
    Op::Merge { item: item.into(), field: field.into(), with: Merge::Last(json.into()) }
}

impl Server {
    async fn start(settings: Settings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn ObjectStore> = Arc::new(EmbeddedStore::open(&dir.path().join("objects.db"), Duration::ZERO).unwrap());
        let feed = LocalFeed::new(feed::Settings { max_writes: 4, max_bytes: 1 << 20 });
        let open = Arc::new(AtomicBool::new(true));
        let opens = Arc::clone(&open);
        let authorise: Authorise = Arc::new(move |parts, _, _| match parts.headers.get("authorization") {
            Some(_) if opens.load(Ordering::Relaxed) => Ok(SiteId::parse("demo").unwrap()),
            _ => Err(Box::new(StatusCode::UNAUTHORIZED.into_response())),
        });
        let clock = Clock::fixed(NOW);
        let router = router(Reader::new(Arc::clone(&store), Expiry::default()), Arc::new(feed.clone()), clock.clone(), authorise, &settings);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { addr, store, feed, clock, offset: 0, open, _dir: dir, tasks: Mutex::new(tasks) }
    }

    /// One change of an object, committed and published as the keeper does.
    async fn change(&mut self, key: &ObjectKey, ops: Vec<Op>) {
        let applied = self.change_unheard(key, ops).await;
        self.feed.publish(vec![applied]).await.unwrap();
    }

    /// One that is committed; gives what is to be published.
    async fn change_unheard(&mut self, key: &ObjectKey, ops: Vec<Op>) -> Applied {
        self.offset += 1;
        let stored = self.store.load(std::slice::from_ref(key)).await.unwrap().pop().unwrap();
        let mut object = stored.map_or_else(|| Object::empty(key.clone()), |stored| Object::from_stored(stored).unwrap());
        let origin = Origin::Event { partition: 0, offset: self.offset, number: 0 };
        let stamp = Stamp { at: NOW, id: format!("{:09}", self.offset) };
        object.apply(&Change { key: key.clone(), origin, received_at: self.clock.now(), stamp, ops }, self.offset, None);
        let (write, applied): (ObjectWrite, Applied) = object.take_write(true);
        self.store.commit_objects(vec![write], vec![]).await.unwrap();
        applied
    }

    async fn request(&self, path: &str, headers: &[(&str, &str)]) -> Response<Incoming> {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        self.tasks.lock().unwrap().spawn(async move { connection.await.unwrap_or_default() });
        let mut request = hyper::Request::get(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        sender.send_request(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    async fn get(&self, path: &str) -> (u16, serde_json::Value) {
        let response = self.request(path, &[("authorization", "Bearer x")]).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    async fn events(&self, path: &str, last: Option<&str>) -> Events {
        let mut headers = vec![("authorization", "Bearer x")];
        headers.extend(last.map(|id| ("last-event-id", id)));
        let response = self.request(path, &headers).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Events { body: response.into_body(), text: String::new() }
    }
}

/// A client's end of a stream of events.
struct Events {
    body: Incoming,
    text: String,
}

impl Events {
    /// The next message: its name, id and data.
    async fn next(&mut self) -> (String, Option<u64>, serde_json::Value) {
        loop {
            let message = self.raw().await;
            let field = |name: &str| message.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            if let Some(name) = field("event: ") {
                return (name, field("id: ").map(|id| id.parse().unwrap()), serde_json::from_str(&field("data: ").unwrap()).unwrap());
            }
        }
    }

    /// The next message or comment as it stands.
    async fn raw(&mut self) -> String {
        loop {
            if let Some((message, rest)) = self.text.split_once("\n\n") {
                let (message, rest) = (message.to_owned(), rest.to_owned());
                self.text = rest;
                return message;
            }
            let frame = tokio::time::timeout(Duration::from_secs(30), self.body.frame()).await.expect("a message").unwrap().unwrap();
            self.text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
    }

    /// Whether it ends before anything but comments.
    async fn ended(&mut self) -> bool {
        loop {
            match tokio::time::timeout(Duration::from_secs(30), self.body.frame()).await.expect("the end") {
                None => return true,
                Some(frame) if frame.as_ref().unwrap().data_ref().is_some_and(|data| data.starts_with(b":")) => {}
                Some(_) => return false,
            }
        }
    }
}

#[tokio::test]
async fn objects_are_shown_as_committed() {
    let mut server = Server::start(Settings::default()).await;
    server.change(&key(ObjectKind::Map, "product.a:b"), vec![merge("price", "", "{\"amount_minor\":1}"), merge("name", "", "\"Mug\"")]).await;
    server.change(&key(ObjectKind::Document, "page.:"), vec![merge("", "title", "\"Start\"")]).await;
    let append = |index, data: &str| Op::Append { index, data: data.into(), keep: 10 };
    let trail = key(ObjectKind::List, "trail.customer.c1");
    server.change(&trail, vec![append(0x20, "{\"n\":2}"), append(0x3, "{\"n\":1}")]).await;

    let (status, product) = server.get("/v1/live/maps/product.a%3Ab").await;
    assert_eq!(status, 200);
    let sid = naming::sid(&SiteId::parse("demo").unwrap(), ObjectKind::Map, "product.a:b", 0);
    assert_eq!(
        product,
        serde_json::json!({"kind": "map", "name": "product.a:b", "sid": sid, "revision": 1, "event_id": 1,
            "items": {"name": {"data": "Mug", "revision": 1}, "price": {"data": {"amount_minor": 1}, "revision": 1}}})
    );
    let (_, page) = server.get("/v1/live/documents/page.:").await;
    assert_eq!((&page["kind"], &page["data"], page.get("items")), (&"document".into(), &serde_json::json!({"title": "Start"}), None));
    let shown = server.request("/v1/live/lists/trail.customer.c1", &[("authorization", "x")]).await;
    let text = String::from_utf8(shown.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    assert!(text.find("\"n\":1").unwrap() < text.find("\"n\":2").unwrap(), "in index order: {text}");

    for missing in ["/v1/live/maps/none", "/v1/live/lists/product.a:b", "/v1/live/things/x", "/v1/live/maps/%ff", "/v1/live/maps/none/events"] {
        let (status, problem) = server.get(missing).await;
        assert_eq!((status, &problem["code"]), (404, &"object_not_found".into()), "{missing}");
    }
    assert_eq!(server.request("/v1/live/documents/page.:", &[]).await.status(), 401);
    server.clock.set(NOW.plus_seconds(91 * 86_400));
    assert_eq!(server.get("/v1/live/documents/page.:").await.0, 404, "expired");
    assert_eq!(server.get("/v1/live/maps/product.a:b").await.0, 200, "products never expire");
}

#[tokio::test]
async fn changes_follow_the_snapshot_and_resume() {
    let mut server = Server::start(Settings::default()).await;
    let product = key(ObjectKind::Map, "product.x");
    server.change(&product, vec![merge("name", "", "\"Mug\"")]).await;
    let mut events = server.events("/v1/live/maps/product.x/events", None).await;
    let (name, id, data) = events.next().await;
    assert_eq!((name.as_str(), id, &data["items"]["name"]["data"], &data["revision"]), ("snapshot", Some(1), &"Mug".into(), &1.into()));

    server.change(&product, vec![merge("name", "", "\"Cup\""), merge("color", "", "\"red\"")]).await;
    assert_eq!(events.next().await, ("change".into(), None, serde_json::json!({"key": "color", "revision": 1, "data": "red"})));
    assert_eq!(events.next().await, ("change".into(), Some(2), serde_json::json!({"key": "name", "revision": 2, "data": "Cup"})));
    drop(events);

    server.change(&product, vec![merge("size", "", "\"L\"")]).await;
    let mut resumed = server.events("/v1/live/maps/product.x/events", Some("2")).await;
    assert_eq!(resumed.next().await, ("change".into(), Some(3), serde_json::json!({"key": "size", "revision": 1, "data": "L"})));
    let mut partly = server.events("/v1/live/maps/product.x/events", Some("1")).await;
    let shown = [partly.next().await, partly.next().await, partly.next().await];
    assert_eq!(
        shown.map(|(name, id, data)| (name, id, data["key"].clone())),
        [("change".into(), None, "color".into()), ("change".into(), Some(2), "name".into()), ("change".into(), Some(3), "size".into()),]
    );
    let mut unknown = server.events("/v1/live/maps/product.x/events", Some("99")).await;
    assert_eq!(unknown.next().await.0, "snapshot");

    server.change(&product, vec![Op::Remove]).await;
    for mut reader in [resumed, partly, unknown] {
        let (name, id, data) = reader.next().await;
        assert_eq!((name.as_str(), id, data.get("key")), ("removed", Some(4), None));
    }
    assert_eq!(server.get("/v1/live/maps/product.x").await.0, 404);
}

/// A subscriber that does not read gets a fresh snapshot once it does, and what it missed holds up nobody.
#[tokio::test]
async fn a_slow_subscriber_gets_a_snapshot_and_delays_nobody() {
    let mut server = Server::start(Settings::default()).await;
    let product = key(ObjectKind::Map, "product.x");
    server.change(&product, vec![merge("n", "", "0")]).await;
    let mut slow = server.events("/v1/live/maps/product.x/events", None).await;
    assert_eq!(slow.next().await.0, "snapshot");
    let mut quick = server.events("/v1/live/maps/product.x/events", None).await;
    assert_eq!(quick.next().await.0, "snapshot");
    // More than sockets and the queue of four hold.
    let big = "x".repeat(200_000);
    for n in 1..=100 {
        server.change(&product, vec![merge("n", "", &n.to_string()), merge("text", "", &format!("\"{big}\""))]).await;
        loop {
            if let (_, Some(id), _) = quick.next().await {
                assert_eq!(id, n + 1);
                break;
            }
        }
    }
    let mut snapshots = 0;
    let mut bytes = 0;
    loop {
        let (name, id, data) = slow.next().await;
        bytes += data.to_string().len();
        snapshots += usize::from(name == "snapshot");
        if id == Some(101) {
            break;
        }
    }
    assert!(snapshots >= 1, "it lagged");
    assert!(bytes < 15_000_000, "{bytes} bytes of 20 MB were kept for it");
    server.feed.close();
    assert!(slow.ended().await && quick.ended().await, "the feed's end is the stream's");
}

/// Whatever became of the write between, nobody goes on without it.
#[tokio::test]
async fn a_write_behind_one_that_did_not_come_sends_to_a_snapshot() {
    let mut server = Server::start(Settings::default()).await;
    let product = key(ObjectKind::Map, "product.x");
    server.change(&product, vec![merge("a", "", "1")]).await;
    let mut events = server.events("/v1/live/maps/product.x/events", None).await;
    assert_eq!(events.next().await.1, Some(1));
    server.change(&product, vec![merge("b", "", "2")]).await;
    assert_eq!((events.next().await.0, server.get("/v1/live/maps/product.x").await.1["event_id"].as_u64()), ("change".into(), Some(2)));
    let row = |item: &str| AppliedRow { item: item.into(), revision: 1, data: Some("4".into()), ..AppliedRow::default() };
    // The store has it all, as ever before something is published; the third write was lost on its way.
    server.change_unheard(&product, vec![merge("c", "", "3")]).await;
    server.change_unheard(&product, vec![merge("d", "", "4")]).await;
    let fourth = Applied { rows: vec![row("d")], ..Applied::new(product.clone(), 3, 4) };
    server.feed.publish(vec![fourth]).await.unwrap();
    let (name, id, data) = events.next().await;
    assert_eq!((&*name, id), ("snapshot", Some(4)), "{data}");
    assert_eq!((&data["items"]["c"]["data"], &data["items"]["d"]["data"]), (&serde_json::json!(3), &serde_json::json!(4)));
    // One that tells more than was missed is as good as any.
    server.change_unheard(&product, vec![merge("e", "", "5")]).await;
    let fifth = Applied { rows: vec![row("c"), row("e")], ..Applied::new(product, 2, 5) };
    server.feed.publish(vec![fifth]).await.unwrap();
    assert_eq!((events.next().await.0, events.next().await.1), ("change".into(), Some(5)));
}

/// A stream's messages are not kept: whoever missed some goes on with the next.
#[tokio::test]
async fn a_stream_that_lagged_goes_on() {
    let server = Server::start(Settings::default()).await;
    let activity = key(ObjectKind::Stream, "activity");
    let mut events = server.events("/v1/live/streams/activity/events", None).await;
    server.feed.lag_object(&activity);
    let row = AppliedRow { revision: 1, data: Some("{\"n\":1}".into()), ..AppliedRow::default() };
    // What comes before it was told that it lagged is missed, too.
    let publishing = async {
        for event_id in 1.. {
            let write = Applied { rows: vec![row.clone()], ..Applied::new(activity.clone(), 0, event_id) };
            server.feed.publish(vec![write]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let (name, _, data) = tokio::select! {
        () = publishing => unreachable!("it goes on"),
        told = events.next() => told,
    };
    assert_eq!((&*name, &data["data"]["n"]), ("change", &serde_json::json!(1)), "{data}");
}

#[tokio::test]
async fn quiet_streams_carry_comments_and_subscribers_are_limited() {
    let mut server = Server::start(Settings { max_subscribers: 1, comment_every: Duration::from_millis(20) }).await;
    server.change(&key(ObjectKind::Document, "page.:"), vec![merge("", "title", "\"a\\rb\"")]).await;
    let mut events = server.events("/v1/live/documents/page.:/events", None).await;
    assert_eq!(events.next().await.2["data"]["title"], "a\rb");
    assert!(events.raw().await.starts_with(':'));
    let refused = server.request("/v1/live/documents/page.:/events", &[("authorization", "x")]).await;
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (503, &"5".parse().unwrap()));
    assert_eq!(server.get("/v1/live/documents/page.:").await.0, 200, "reads need no place");
    drop(events);
    // The place is free again once the server has noticed.
    let freed = async {
        while server.request("/v1/live/documents/page.:/events", &[("authorization", "x")]).await.status() != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), freed).await.unwrap();
}

#[tokio::test]
async fn a_frozen_object_answers_503() {
    let mut server = Server::start(Settings::default()).await;
    let product = key(ObjectKind::Map, "product.x");
    server.change(&product, vec![merge("n", "", "0")]).await;
    let conn = rusqlite::Connection::open(server._dir.path().join("objects.db")).unwrap();
    conn.execute("UPDATE rows SET value = x'01'", []).unwrap();
    let (status, problem) = server.get("/v1/live/maps/product.x").await;
    assert_eq!((status, &problem["code"]), (503, &"object_frozen".into()));
    assert_eq!(server.get("/v1/live/maps/product.x/events").await.0, 503);
}

/// What a stream was opened with may end: nothing more is told then, whether something happens or not.
#[tokio::test]
async fn a_stream_ends_with_its_credential() {
    let mut server = Server::start(Settings::default()).await;
    let product = key(ObjectKind::Map, "product.1");
    server.change(&product, vec![merge("name", "value", "\"A\"")]).await;
    let (mut watched, quiet) = (server.events("/v1/live/maps/product.1/events", None).await, key(ObjectKind::Map, "product.2"));
    assert_eq!(watched.next().await.0, "snapshot");
    server.change(&quiet, vec![merge("name", "value", "\"B\"")]).await;
    let mut idle = server.events("/v1/live/maps/product.2/events", None).await;
    assert_eq!(idle.next().await.0, "snapshot");
    server.open.store(false, Ordering::Relaxed);
    server.change(&product, vec![merge("name", "value", "\"C\"")]).await;
    for events in [&mut watched, &mut idle] {
        let ended = tokio::time::timeout(Duration::from_secs(10), events.ended()).await.expect("ended in time");
        assert!(ended, "told nothing more");
    }
}

/// A document has one row, a map many: either way its removal is one message.
#[tokio::test]
async fn a_removal_is_told_once() {
    let mut server = Server::start(Settings::default()).await;
    for (kind, path) in [(ObjectKind::Document, "documents"), (ObjectKind::Map, "maps")] {
        let object = key(kind, "one");
        let items = if kind == ObjectKind::Map { ["a", "b"] } else { ["", ""] };
        server.change(&object, items.map(|item| merge(item, "value", "1")).to_vec()).await;
        let mut events = server.events(&format!("/v1/live/{path}/one/events"), None).await;
        assert_eq!(events.next().await.0, "snapshot");
        server.change(&object, vec![Op::Remove]).await;
        let (name, id, data) = events.next().await;
        assert_eq!((name.as_str(), id, data.get("key")), ("removed", Some(2), None));
        server.change(&object, items.map(|item| merge(item, "value", "2")).to_vec()).await;
        assert_eq!(events.next().await.0, "change", "and nothing else of it");
    }
}
