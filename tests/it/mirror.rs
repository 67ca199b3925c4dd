//! Objects of one server mirrored to another one's Sync API, which has Twilio's limits, over a line that fails now and then.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::line::{Line, Mishap};
use crate::harness::{Server, binary};
use crate::rest::Client;

mod line;

/// The other side: a server with a service that has Twilio's limits, and the line to it.
pub(crate) struct Elsewhere {
    _server: Server,
    client: Client,
    /// `/IS...`
    service: String,
    line: Line,
}

impl Elsewhere {
    pub(crate) fn new() -> Self {
        let server = Server::fresh();
        let client = Client::of_demo(&server);
        let made = client.call("POST", "", &[("FriendlyName", "mirror")], 201);
        let sid = made["sid"].as_str().unwrap().to_owned();
        let shown = server.admin("GET", "/admin/sites/demo/sync", b"").json();
        let site = shown["services"].as_array().unwrap().iter().find(|service| service["sid"] == sid.as_str()).unwrap()["site"].clone();
        let limits = json!({"limits": "twilio"}).to_string();
        let set = server.admin("PATCH", &format!("/admin/sites/{}/sync", site.as_str().unwrap()), limits.as_bytes());
        assert_eq!((set.status, &set.json()["limits"]), (200, &json!("twilio")));
        let line = Line::to(&server.address);
        Self { _server: server, client, service: format!("/{sid}"), line }
    }

    /// The URL that mirrors go by.
    pub(crate) fn url(&self) -> String {
        format!("twilio+http://{}@{}{}", self.client.user(), self.line.address(), self.service)
    }

    /// All there is, beside what a kind of object is there.
    fn objects(&self) -> BTreeMap<String, Value> {
        objects(&self.client, &self.service)
    }
}

/// By kind and name all objects of a service: a document's data, a map's items by key, a list's in their order.
pub(crate) fn objects(client: &Client, service: &str) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for document in client.all(&format!("{service}/Documents"), "documents") {
        all.insert(format!("document {}", document["unique_name"].as_str().unwrap_or("(unnamed)")), document["data"].clone());
    }
    for (path, of, key) in [("Maps", "maps", Some("key")), ("Lists", "lists", None)] {
        for object in client.all(&format!("{service}/{path}"), of) {
            let items = client.all_if_there(&format!("{service}/{path}/{}/Items", object["sid"].as_str().unwrap()), "items");
            let Some(items) = items else { continue };
            let data = match key {
                Some(key) => items.iter().map(|item| (item[key].as_str().unwrap().to_owned(), item["data"].clone())).collect(),
                None => items.iter().map(|item| item["data"].clone()).collect(),
            };
            all.insert(format!("{of} {}", object["unique_name"].as_str().unwrap_or("(unnamed)")), data);
        }
    }
    all
}

/// A list's items in no order: what was changed while nobody knew which was which comes last there.
fn unordered(mut objects: BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    for object in objects.values_mut() {
        if let Some(items) = object.as_array_mut() {
            items.sort_by_key(Value::to_string);
        }
    }
    objects
}

/// A server that waits for others for so long at most.
fn mirroring(data: &Path, timeout: &str) -> Server {
    let mut command = binary();
    command.env("CONTRAIL_SYNC_MIRROR_TIMEOUT", timeout);
    Server::start(command, data, &[]).unwrap()
}

/// Sets a site's mirror by the command.
fn set_mirror(server: &Server, url: &str, objects: &[&str]) -> Value {
    let file = server.data.join("mirror.url");
    std::fs::write(&file, format!("{url}\n")).unwrap();
    let mut command = binary();
    command.args(["site", "mirror", "demo", "--to-file"]).arg(&file);
    for pattern in objects {
        command.args(["--object", pattern]);
    }
    let out = command.arg("--data").arg(&server.data).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Waits until both sides have the same.
pub(crate) fn assert_same(here: impl Fn() -> BTreeMap<String, Value>, elsewhere: &Elsewhere, longest: Duration) {
    let began = Instant::now();
    loop {
        let (wanted, found) = (unordered(here()), unordered(elsewhere.objects()));
        if wanted == found {
            return;
        }
        if began.elapsed() > longest {
            let differing = wanted.keys().chain(found.keys()).filter(|name| wanted.get(*name) != found.get(*name));
            let differing: Vec<_> =
                differing.map(|name| (name, missing(wanted.get(name), found.get(name)), missing(found.get(name), wanted.get(name)))).collect();
            panic!("after {longest:?} these differ: {differing:?}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// What one of two has and the other has not.
fn missing(one: Option<&Value>, other: Option<&Value>) -> Value {
    match (one, other) {
        (Some(Value::Array(one)), Some(Value::Array(other))) => one.iter().filter(|item| !other.contains(item)).cloned().collect(),
        (Some(Value::Object(one)), Some(Value::Object(other))) => {
            one.iter().filter(|(key, data)| other.get(*key) != Some(data)).map(|(key, data)| (key.clone(), data.clone())).collect()
        }
        (one, _) => one.cloned().unwrap_or_default(),
    }
}

/// Those that patterns name.
fn chosen(all: BTreeMap<String, Value>, prefixes: &[&str]) -> BTreeMap<String, Value> {
    all.into_iter().filter(|(name, _)| prefixes.iter().any(|prefix| name.starts_with(prefix))).collect()
}

fn viewed(customer: usize, product: usize, round: usize) -> Value {
    json!({"type": "product_viewed", "event_id": format!("{customer}-{product}-{round}"), "customer": {"id": format!("c{customer}")},
           "product": {"id": format!("p{product}"), "name": format!("Product {product}")}, "page": {"url": format!("/p/{product}")}})
}

#[test]
fn chosen_objects_are_elsewhere_as_they_are_here() {
    let elsewhere = Elsewhere::new();
    let dir = tempfile::tempdir().unwrap();
    let server = mirroring(&dir.path().join("data"), "20s");
    let client = Client::of_demo(&server);
    // Before there is a mirror, of all kinds.
    server.accept(&(0..40).map(|n| viewed(n % 4, n % 5, n)).collect::<Vec<_>>());
    client.call("POST", "/default/Documents", &[("UniqueName", "board"), ("Data", r#"{"n":0,"f":1.50}"#)], 201);
    client.call("POST", "/default/Documents", &[("UniqueName", "private"), ("Data", "{}")], 201);
    client.call("POST", "/default/Documents", &[("Data", "{}")], 201);
    client.call("POST", "/default/Lists", &[("UniqueName", "calls")], 201);
    for n in 0..3 {
        client.call("POST", "/default/Lists/calls/Items", &[("Data", &json!({"n": n % 2}).to_string())], 201);
    }
    client.call("POST", "/default/Maps", &[("UniqueName", "agents")], 201);
    for key in ["a/b", "q?z", "é"] {
        client.call("POST", "/default/Maps/agents/Items", &[("Key", key), ("Data", r#"{"v":"x y&z"}"#)], 201);
    }
    server.settle();
    let patterns = ["product.*", "trail.customer.c1", "board", "list:calls", "map:agents", "none*"];
    let shown = set_mirror(&server, &elsewhere.url(), &patterns);
    assert_eq!(shown["objects"], json!(patterns));
    assert!(!shown.to_string().contains(&elsewhere.client.user()), "{shown}");
    let prefixes = ["maps product.", "lists trail.customer.c1", "document board", "lists calls", "maps agents", "document none", "document later"];
    let here = || chosen(objects(&client, "/default"), &prefixes);
    assert_same(here, &elsewhere, Duration::from_secs(60));
    let (found, wanted) = (elsewhere.objects(), here());
    assert_eq!(found["lists trail.customer.c1"], wanted["lists trail.customer.c1"], "in order");
    assert_eq!(found["lists calls"], json!([{"n": 0}, {"n": 1}, {"n": 0}]));
    assert!(found.contains_key("maps product.p1") && found.len() == 5 + 4, "{:?}", found.keys());

    // What changes is followed, whoever changes it.
    server.accept(&(0..40).map(|n| viewed(n % 4, n % 7, 100 + n)).collect::<Vec<_>>());
    client.call("POST", "/default/Documents/board", &[("Data", r#"{"n":1}"#)], 200);
    client.call("POST", "/default/Documents", &[("UniqueName", "none-before"), ("Data", "{}")], 201);
    client.call("POST", "/default/Maps/agents/Items/a%2Fb", &[("Data", r#"{"v":2}"#)], 200);
    client.call("DELETE", "/default/Maps/agents/Items/q%3Fz", &[], 204);
    client.call("POST", "/default/Lists/calls/Items/1", &[("Data", r#"{"n":"changed"}"#)], 200);
    client.call("DELETE", "/default/Lists/calls/Items/0", &[], 204);
    client.call("POST", "/default/Lists/calls/Items", &[("Data", r#"{"n":9}"#)], 201);
    server.settle();
    assert_same(here, &elsewhere, Duration::from_secs(60));
    assert_eq!(elsewhere.objects()["lists calls"], json!([{"n": "changed"}, {"n": 0}, {"n": 9}]), "in its place");
    client.call("DELETE", "/default/Documents/board", &[], 204);
    client.call("DELETE", "/default/Maps/agents", &[], 204);
    client.call("POST", "/default/Maps", &[("UniqueName", "agents")], 201);
    server.settle();
    assert_same(here, &elsewhere, Duration::from_secs(60));
    assert!(!elsewhere.objects().contains_key("document board"));

    // Whoever mirrors again finds all as it is, and asks for nothing but that.
    let written = elsewhere.line.writes();
    let off = server.admin("DELETE", "/admin/sites/demo/mirror", b"");
    assert_eq!(off.json(), json!({"site": "demo", "to": null}));
    client.call("POST", "/default/Documents", &[("UniqueName", "none-after"), ("Data", "{}")], 201);
    set_mirror(&server, &elsewhere.url(), &patterns);
    assert_same(here, &elsewhere, Duration::from_secs(60));
    let again: Vec<_> = elsewhere.line.writes().split_off(written.len());
    assert_eq!(again.len(), 1, "{again:?}");
    assert_eq!(elsewhere.line.statuses(429), 0, "it keeps within the limits");
    let metrics = server.call("GET", "/metrics", &[], b"").text();
    for name in ["contrail_mirror_lag_seconds", "contrail_mirror_waiting_objects", "contrail_mirror_requests_total"] {
        assert!(metrics.contains(name), "{name} in {metrics}");
    }
}

#[test]
fn a_mirror_that_cannot_be_is_refused() {
    let server = Server::fresh();
    let refused = |body: Value, code: &str| {
        let answer = server.admin("PUT", "/admin/sites/demo/mirror", body.to_string().as_bytes());
        assert_eq!((answer.status, answer.json()["code"].as_str().unwrap()), (400, code), "{body}: {}", answer.text());
        assert!(!answer.text().contains("hush"), "{}", answer.text());
    };
    for url in ["https://AC1:hush@sync.example/IS1", "twilio://AC1@sync.example/IS1", "twilio://AC1:hush@sync.example/"] {
        refused(json!({"to": url, "objects": ["*"]}), "sync_invalid");
    }
    for objects in [json!([]), json!(["a*b"]), json!([""])] {
        refused(json!({"to": "twilio://AC1:hush@sync.example/IS1", "objects": objects}), "sync_invalid");
    }
    assert_eq!(server.admin("GET", "/admin/sites/none/mirror", b"").status, 404);
}

/// Answers are lost, requests refused, the line is cut, and this side killed: in the end all is there once.
#[test]
fn slow_a_mirror_over_a_failing_line_and_killed_holds_everything_once() {
    let elsewhere = Elsewhere::new();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut server = mirroring(&data, "2s");
    let mut client = Client::of_demo(&server);
    for list in 0..4 {
        client.call("POST", "/default/Lists", &[("UniqueName", &format!("list-{list}"))], 201);
        client.call("POST", "/default/Documents", &[("UniqueName", &format!("document-{list}")), ("Data", "{}")], 201);
    }
    for name in ["lapses", "stays"] {
        client.call("POST", "/default/Maps", &[("UniqueName", name), ("Ttl", if name == "stays" { "0" } else { "15" })], 201);
        client.call("POST", &format!("/default/Maps/{name}/Items"), &[("Key", "a"), ("Data", "{}"), ("ItemTtl", "20")], 201);
    }
    set_mirror(&server, &elsewhere.url(), &["*"]);
    elsewhere.line.mishaps(&[
        (Mishap::Delayed, 71),
        (Mishap::Late, 83),
        (Mishap::Lost, 37),
        (Mishap::Cut, 41),
        (Mishap::Failed, 23),
        (Mishap::Refused, 19),
    ]);
    for round in 0..5 {
        for n in 0..24 {
            let list = n % 4;
            let item = json!({"round": round, "n": n}).to_string();
            client.call("POST", &format!("/default/Lists/list-{list}/Items"), &[("Data", &item)], 201);
            client.call("POST", &format!("/default/Documents/document-{list}"), &[("Data", &item)], 200);
            server.accept(&[viewed(n % 3, n % 4, round * 100 + n)]);
        }
        std::thread::sleep(Duration::from_secs(1));
        server.kill();
        server = mirroring(&data, "2s");
        client = Client::of_demo(&server);
    }
    server.settle();
    let everything = || objects(&client, "/default");
    // Lists wait for what may be under way, after each loss.
    assert_same(everything, &elsewhere, Duration::from_secs(600));
    elsewhere.line.mishaps(&[]);
    let lists = elsewhere.objects();
    for list in 0..4 {
        let items = lists[&format!("lists list-{list}")].as_array().unwrap();
        let once: std::collections::BTreeSet<String> = items.iter().map(Value::to_string).collect();
        assert_eq!(once.len(), items.len(), "each item once");
    }
    for (mishap, times) in elsewhere.line.happened() {
        assert!(times > 0, "{mishap:?} never happened");
    }
    assert_eq!(elsewhere.line.statuses(429), 0, "it keeps within the limits: what was refused, the line refused");
    elsewhere.line.assert_budget();
}
