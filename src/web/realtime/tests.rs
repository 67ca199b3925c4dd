//! The protocol over real sockets, before the embedded log and store and a running keeper, by a client of our own.

mod client;

use std::net::SocketAddr;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use self::client::Client;
use super::testing::token;
use super::*;
use crate::event::change::{Call, Rights};
use crate::event::{Clock, ObjectKey, ObjectKind, SiteId};
use crate::sync::api::{self, Api};
use crate::sync::feed::LocalFeed;
use crate::sync::tests::SyncSide;
use crate::sync::{Feed, Verdict};
use crate::web::sync::Fault;
use crate::web::sync::admission::Admission;

struct Server {
    addr: SocketAddr,
    desk: Desk,
    feed: LocalFeed,
    stop: CancellationToken,
    connections: TaskTracker,
    /// Aborted when the test ends, as the listener is.
    _side: SyncSide,
    _dir: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

/// Tokens are `identity:lifetime`; an identity that ends in `+` is of a service that asks for rights, in `!` of a limited one.
fn open(raw: &str) -> Result<Token, TokenFault> {
    let (identity, lifetime) = raw.split_once(':').ok_or(TokenFault::Invalid)?;
    let lifetime: u64 = lifetime.parse().map_err(|_| TokenFault::Expired)?;
    let plain = token("AC1", identity.ends_with('!'));
    Ok(Token {
        caller: Caller { identity: Some(identity.trim_end_matches(['+', '!']).into()), acl: identity.ends_with('+'), ..plain.caller },
        identity: identity.into(),
        expires_at: Clock::system().now().plus_seconds(lifetime as i64),
        lifetime: Duration::from_secs(lifetime),
        ..plain
    })
}

impl Server {
    async fn start() -> Self {
        Self::start_with(Settings::default()).await
    }

    async fn start_with(settings: Settings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let side = SyncSide::open(dir.path(), &clock);
        let feed = side.feed.clone();
        let shared: Arc<dyn Feed> = Arc::new(feed.clone());
        let desk = Desk {
            reader: side.reader.clone(),
            api: Api::new(
                Arc::clone(&side.log),
                Arc::clone(&shared),
                clock.clone(),
                api::Settings { patience: Duration::from_secs(60), ..Default::default() },
            ),
            feed: shared,
            clock,
            admission: Arc::new(Admission::default()),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, connections) = (CancellationToken::new(), TaskTracker::new());
        let (public_url, tokens): (_, Tokens) = (format!("http://{addr}"), Arc::new(open));
        let (desk_too, stop_too, connections_too) = (desk.clone(), stop.clone(), connections.clone());
        let deps = Deps { desk: desk_too, tokens, public_url, presence: None, stop: stop_too, connections: connections_too, settings };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router(deps)).await.unwrap() });
        Self { addr, desk, feed, stop, connections, _side: side, _dir: dir, _tasks: tasks }
    }

    /// Does something on the account's behalf.
    async fn call(&self, kind: ObjectKind, name: &str, call: Call) {
        let answer = self.desk.api.call(&key(kind, name), "system", vec![call]).await.unwrap();
        assert!(matches!(answer.verdicts[..], [Verdict::Done { .. }]), "{answer:?}");
    }

    async fn client(&self, token: &str) -> Client {
        let mut client = Client::connect(self.addr).await;
        assert_eq!(client.init(token, None).await["status"]["code"], 200);
        client
    }
}

fn key(kind: ObjectKind, name: &str) -> ObjectKey {
    ObjectKey { site: SiteId::parse("demo").unwrap(), kind, name: name.into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_is_opened_changed_and_followed() {
    let server = Server::start().await;
    let (mut alice, mut bob) = (server.client("alice:3600").await, server.client("bob:3600").await);
    let (status, missing) = alice.ask("GET", "/v3/Documents/d", None, &Value::Null).await;
    assert_eq!((status, &missing["code"]), (404, &json!(54300)));
    let (status, made) = alice.ask("POST", "/v3/Documents", None, &json!({"unique_name": "d", "data": {"n": 1}})).await;
    assert_eq!((status, &made["revision"], &made["created_by"], made.get("data")), (201, &json!("0"), &json!("alice"), None));
    let (status, again) = alice.ask("POST", "/v3/Documents", None, &json!({"unique_name": "d"})).await;
    assert_eq!((status, &again["code"]), (409, &json!(54301)));
    let (_, read) = bob.ask("GET", "/v3/Documents/d", None, &Value::Null).await;
    assert_eq!((&read["data"], &read["sid"]), (&json!({"n": 1}), &made["sid"]));
    let told = bob.subscribe("document", &read["sid"], read["last_event_id"].as_u64()).await;
    assert_eq!((told.len(), &told[0]["events"][0]["replay_status"]), (1, &json!("completed")));
    assert_eq!(told[0]["events"][0]["last_event_id"], read["last_event_id"]);

    let path = format!("/v3/Documents/{}", made["sid"].as_str().unwrap());
    let (status, set) = alice.ask("POST", &path, Some("0"), &json!({"data": {"n": 2}})).await;
    assert_eq!((status, &set["revision"]), (200, &json!("1")));
    let (kind, event) = bob.event().await;
    assert_eq!((kind.as_str(), &event["document_data"], &event["id"]), ("document_updated", &json!({"n": 2}), &set["last_event_id"]));
    let (status, stale) = alice.ask("POST", &path, Some("0"), &json!({"data": {}})).await;
    assert_eq!((status, &stale["code"]), (412, &json!(54103)));
    let (status, _) = alice.ask("POST", &path, None, &json!({"ttl": 1_000})).await;
    assert_eq!(status, 200);
    let (status, removed) = alice.ask("DELETE", &path, None, &json!("data_sync")).await;
    assert_eq!((status, &removed), (204, &Value::Null));
    assert_eq!(bob.event().await.0, "document_removed");
    let told = bob.subscribe("document", &made["sid"], Some(1)).await;
    assert_eq!((&told[0]["event_type"], &told[0]["events"][0]["error"]["code"]), (&json!("subscription_failed"), &json!(54100)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_are_put_followed_and_made_up_for() {
    let server = Server::start().await;
    let mut alice = server.client("alice:3600").await;
    let (_, map) = alice.ask("POST", "/v3/Maps", None, &json!({"unique_name": "m"})).await;
    let put = async |client: &mut Client, key: &str, revision: Option<&str>, n: u64| {
        let (status, item) = client.ask("PUT", &format!("/v3/Maps/m/Items/{key}"), revision, &json!({"data": {"n": n}})).await;
        (status, item)
    };
    let (status, item) = put(&mut alice, "a%2Fb", Some("-1"), 1).await;
    assert_eq!((status, &item["key"], &item["revision"], item.get("data")), (201, &json!("a/b"), &json!("0"), None));
    assert_eq!(put(&mut alice, "a%2Fb", Some("-1"), 1).await.0, 412);
    assert_eq!(put(&mut alice, "a%2Fb", Some("0"), 2).await.0, 200);
    assert_eq!(put(&mut alice, "c", None, 3).await.0, 201);
    let told = alice.subscribe("map", &map["sid"], map["last_event_id"].as_u64()).await;
    let told: Vec<(&str, &str)> =
        told.iter().map(|told| (told["event_type"].as_str().unwrap(), told["event"]["item_key"].as_str().unwrap_or_default())).collect();
    assert_eq!(told, [("map_item_added", "a/b"), ("map_item_added", "c"), ("subscription_established", "")]);

    let (status, gone) = alice.ask("DELETE", "/v3/Maps/m/Items/c", None, &Value::Null).await;
    assert_eq!((status, &gone["key"]), (200, &json!("c")));
    let (kind, event) = alice.event().await;
    assert_eq!((kind.as_str(), &event["item_data"], &event["id"]), ("map_item_removed", &json!({"n": 3}), &gone["last_event_id"]));
    // The whole again, as a client does whose subscription ended: the same end, nothing twice afterwards.
    let told = alice.subscribe("map", &map["sid"], Some(2)).await;
    assert_eq!(told.iter().filter(|told| told["event_type"] != "subscription_established").count(), 2, "{told:?}");
    put(&mut alice, "d", None, 4).await;
    put(&mut alice, "e", None, 5).await;
    assert_eq!((alice.event().await.1["item_key"].clone(), alice.event().await.1["item_key"].clone()), (json!("d"), json!("e")));
    alice.poke("cancel", 9, json!([{"object_sid": map["sid"], "object_type": "map"}])).await;
    let canceled = alice.notification().await;
    assert_eq!((&canceled["event_type"], &canceled["correlation_id"]), (&json!("subscription_canceled"), &json!(9)));
    put(&mut alice, "f", None, 6).await;
    let (_, list) = alice.ask("POST", "/v3/Lists", None, &json!({})).await;
    alice.subscribe("list", &list["sid"], Some(1)).await;
    let items = format!("/v3/Lists/{}/Items", list["sid"].as_str().unwrap());
    let (status, item) = alice.ask("POST", &items, None, &json!({"data": {"l": 1}})).await;
    assert_eq!((status, &item["index"]), (201, &json!(0)));
    let (kind, event) = alice.event().await;
    assert_eq!((kind.as_str(), &event["item_index"]), ("list_item_added", &json!(0)), "nothing of the map was told any longer");
    let (status, page) = alice.ask("GET", &items, None, &Value::Null).await;
    assert_eq!((status, &page["items"][0]["data"], &page["meta"]["next_token"]), (200, &json!({"l": 1}), &Value::Null));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_and_the_live_tail() {
    let server = Server::start().await;
    let mut alice = server.client("alice:3600").await;
    let (_, stream) = alice.ask("POST", "/v3/Streams", None, &json!({"unique_name": "s"})).await;
    let told = alice.subscribe("stream", &stream["sid"], None).await;
    assert_eq!(told[0]["event_type"], "subscription_established");
    let (status, message) = alice.ask("POST", "/v3/Streams/s/Messages", None, &json!({"data": {"x": 1}})).await;
    assert_eq!(status, 201);
    let (kind, event) = alice.event().await;
    assert_eq!((kind.as_str(), &event["message_sid"], &event["message_data"]), ("stream_message_published", &message["sid"], &json!({"x": 1})));
    let (status, tail) = alice.ask("GET", "/v3/Streams/activity", None, &Value::Null).await;
    assert_eq!(status, 200);
    assert_eq!(alice.subscribe("stream", &tail["sid"], None).await[0]["event_type"], "subscription_established");
    let row = crate::sync::AppliedRow { event_id: 5, data: Some("{}".into()), ..Default::default() };
    let (key, rows) = (key(ObjectKind::Stream, "activity"), vec![row]);
    let at = Timestamp::ZERO;
    let write = crate::sync::Applied {
        key,
        after: 0,
        event_id: 5,
        revision: 5,
        rows,
        removed: false,
        incarnation: 0,
        updated_at: at,
        expires_at: None,
        rights: false,
    };
    server.feed.publish(vec![write]).await.unwrap();
    assert_eq!(alice.event().await.1["message_sid"], "TZ00000000000000000000000000000005");
    let (status, refused) = alice.ask("POST", "/v3/Streams/activity/Messages", None, &json!({"data": {}})).await;
    assert_eq!((status, &refused["code"]), (403, &json!(54007)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_lags_misses_nothing_and_hears_nothing_twice() {
    let server = Server::start().await;
    let mut alice = server.client("alice:3600").await;
    let (_, map) = alice.ask("POST", "/v3/Maps", None, &json!({"unique_name": "m"})).await;
    alice.subscribe("map", &map["sid"], Some(1)).await;
    for n in 0..60 {
        let item = crate::event::change::PutItem::Add(format!("k{n:02}"));
        server.call(ObjectKind::Map, "m", Call::PutItem { item, data: Some("{}".into()), ttl: None, collection_ttl: None }).await;
        server.feed.lag_object(&key(ObjectKind::Map, "m"));
    }
    for n in 0..60 {
        let (kind, event) = alice.event().await;
        assert_eq!((kind.as_str(), &event["item_key"], &event["id"]), ("map_item_added", &json!(format!("k{n:02}")), &json!(n + 2)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_rights_end_a_subscription() {
    let server = Server::start().await;
    let mut bob = server.client("bob+:3600").await;
    server.call(ObjectKind::Map, "m", Call::Create { data: None, ttl: None }).await;
    let (status, refused) = bob.ask("GET", "/v3/Maps/m", None, &Value::Null).await;
    assert_eq!((status, &refused["code"]), (403, &json!(54007)));
    let permit = |rights| Call::Permit { identity: "bob".into(), rights };
    server.call(ObjectKind::Map, "m", permit(Rights { read: true, write: false, manage: false })).await;
    let (_, map) = bob.ask("GET", "/v3/Maps/m", None, &Value::Null).await;
    bob.subscribe("map", &map["sid"], Some(1)).await;
    let (status, _) = bob.ask("PUT", "/v3/Maps/m/Items/a", None, &json!({"data": {}})).await;
    assert_eq!(status, 403);
    // Rights that change without a loss change nothing.
    server.call(ObjectKind::Map, "m", permit(Rights { read: true, write: true, manage: false })).await;
    let (status, _) = bob.ask("PUT", "/v3/Maps/m/Items/a", None, &json!({"data": {}})).await;
    assert_eq!((status, bob.event().await.0.as_str()), (201, "map_item_added"));
    server.call(ObjectKind::Map, "m", permit(Rights::NONE)).await;
    let canceled = bob.notification().await;
    assert_eq!((&canceled["event_type"], &canceled["correlation_id"]), (&json!("subscription_canceled"), &Value::Null));
    let told = bob.subscribe("map", &map["sid"], Some(2)).await;
    assert_eq!((told.len(), &told[0]["events"][0]["error"]["code"]), (1, &json!(54007)));
    // What an identity creates is its own.
    let (status, own) = bob.ask("POST", "/v3/Documents", None, &json!({"unique_name": "own"})).await;
    assert_eq!(status, 201);
    assert_eq!(bob.subscribe("document", &own["sid"], Some(1)).await[0]["event_type"], "subscription_established");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limited_account_has_so_many_connections() {
    let server = Server::start_with(Settings { account: AccountLimits { connections: 2, ..AccountLimits::TWILIO }, ..Settings::default() }).await;
    let (alice, mut bob) = (server.client("alice!:3600").await, server.client("bob!:3600").await);
    let mut carol = Client::connect(server.addr).await;
    let refused = carol.init("carol!:3600", None).await;
    assert_eq!((&refused["status"]["code"], &refused["status"]["errorCode"]), (&json!(429), &json!(51202)));
    assert_eq!(carol.frame().await, None, "the connection ends");
    assert_eq!(bob.ask("POST", "/v3/Documents", None, &json!({"unique_name": "still"})).await.0, 201);
    drop(alice);
    for left in (0..500).rev() {
        let mut carol = Client::connect(server.addr).await;
        if carol.init("carol!:3600", None).await["status"]["code"] == 200 {
            return;
        }
        assert!(left > 0, "the place of one who left comes free");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_sends_everybody_away() {
    let server = Server::start().await;
    let (mut alice, mut bob) = (server.client("alice:3600").await, server.client("bob:3600").await);
    server.stop.cancel();
    server.connections.close();
    for client in [&mut alice, &mut bob] {
        let (header, payload) = client.frame().await.unwrap();
        assert_eq!((&header["method"], &header["status"]["code"]), (&json!("close"), &json!(308)));
        assert!(payload["backoff_policy"]["reconnect_min_ms"].is_u64());
    }
    let (_, head) = Client::try_connect(server.addr).await;
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("retry-after: 5"), "{head}");
    // One says good bye, one just goes.
    let id = alice.post(json!({"method": "close"}), "").await;
    assert_eq!(alice.reply(&id).await.0["status"]["code"], 200);
    assert_eq!(alice.frame().await, None);
    drop(bob);
    tokio::time::timeout(Duration::from_secs(20), server.connections.wait()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_that_stops_sends_everybody_away_too() {
    let server = Server::start().await;
    let mut alice = server.client("alice:3600").await;
    let (_, made) = alice.ask("POST", "/v3/Documents", None, &json!({})).await;
    alice.subscribe("document", &made["sid"], Some(1)).await;
    server.feed.close();
    assert_eq!(alice.frame().await.unwrap().0["status"]["code"], 308);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_frame_and_what_is_too_large_ends_the_connection() {
    let server = Server::start().await;
    for (opcode, bytes) in [(1, &b"hello"[..]), (2, b"TWILSOCK V2.0 2\r\n{}\r\n"), (2, b"")] {
        let mut client = server.client("alice:3600").await;
        client.send(opcode, bytes).await;
        let (header, _) = client.frame().await.unwrap();
        assert_eq!((&header["method"], &header["status"]["code"]), (&json!("close"), &json!(406)));
        client.post(json!({"method": "reply"}), "").await;
        let answer = json!({"method": "reply", "id": header["id"]}).to_string();
        client.send(2, format!("TWILSOCK V3.0 {}\r\n{answer}\r\n", answer.len()).as_bytes()).await;
        assert_eq!(client.frame().await, None);
    }
    let mut client = server.client("alice:3600").await;
    client.send(2, &vec![b'x'; (256 << 10) + 1]).await;
    assert_eq!(client.frame().await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_open_nothing_are_told_so() {
    let server = Server::start().await;
    for (token, code) in [("nothing", 20101), ("alice:x", 20104)] {
        let mut client = Client::connect(server.addr).await;
        assert_eq!(client.init(token, None).await["status"]["errorCode"], code);
        assert_eq!(client.frame().await, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_bounded() {
    let server = Server::start_with(Settings { max_connections: 1, ..Settings::default() }).await;
    let first = server.client("alice:3600").await;
    let (_, head) = Client::try_connect(server.addr).await;
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("retry-after: 5"), "{head}");
    drop(first);
    // Seen as gone before long.
    let back = async {
        while !Client::try_connect(server.addr).await.1.starts_with("HTTP/1.1 101 ") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), back).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_let_go() {
    let server = Server::start_with(Settings { stalled: Duration::from_millis(300), ..Settings::default() }).await;
    let mut client = server.client("alice:3600").await;
    let data = json!({"x": "x".repeat(16_000)});
    let (status, _) = client.ask("POST", "/v3/Documents", None, &json!({"unique_name": "d", "data": data})).await;
    assert_eq!(status, 201);
    let request = json!({"path": "/v3/Documents/d", "method": "GET"});
    let asks = async {
        while server.feed.subscribers() == 0 && !server.connections.is_empty() {
            client.post(json!({"method": "message", "http_request": request}), "").await;
        }
    };
    // Neither side may wait for the other for ever: the client's own writes end when the server lets it go.
    tokio::time::timeout(Duration::from_secs(60), asks).await.unwrap();
}

#[tokio::test]
async fn subscriptions_of_one_connection_are_bounded() {
    let server = Server::start().await;
    let mut subscriptions = subscriptions::Subscriptions::new(server.desk.clone());
    let mut poke = |from: usize, to: usize| {
        let wanted = (from..to).map(|n| json!({"object_sid": format!("MP{n:032x}"), "object_type": "map"})).collect::<Vec<_>>();
        let poke = serde_json::from_value(json!({"action": "establish", "correlation_id": 1, "requests": wanted})).unwrap();
        subscriptions.poke(poke, false);
        let urls = shown::Urls::new("http://h", "IS1");
        let mut told: Vec<Bytes> = Vec::new();
        while let Some(front) = subscriptions.front() {
            match front.next(&urls) {
                Some(frame) => told.push(frame),
                None => subscriptions.pop(),
            }
        }
        told
    };
    assert_eq!((poke(0, 1_000).len(), poke(1_000, 2_000).len()), (0, 0));
    // Those again that are there already.
    assert_eq!(poke(0, 1_000).len(), 0);
    let refused = poke(2_000, 2_001);
    let code = Fault::Subscriptions.told().code.to_string();
    assert!(refused.len() == 1 && String::from_utf8(refused[0].to_vec()).unwrap().contains(&code));
}
