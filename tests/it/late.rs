//! What time does. Eight days later, when identity has forgotten it, the same file is imported and the same events are sent; after 401 days retention takes what was
//! taken, and only that.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use contrail::app;
use contrail::config::Config;
use contrail::event::{Clock, Timestamp};
use contrail::site::Bootstrap;
use serde_json::{Map, Value, json};

use crate::harness::{KEY, READ, Server, binary};

const DAY: i64 = 86_400;

/// Runs `work` while a server whose clock goes on from `now` serves `data`; then stops it.
fn at_another_time(data: &Path, now: Timestamp, work: impl FnOnce()) {
    let (began, clock) = (Instant::now(), Clock::fixed(now));
    let flags = toml::toml! { listen = "127.0.0.1:0" };
    let mut config = Config::load(None, [], flags).unwrap();
    config.data = data.to_owned();
    let bootstrap = Bootstrap { ingest_key: Some(KEY.into()), read_token: Some(READ.into()) };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let options = app::Options { bootstrap, clock: clock.clone() };
    let running = runtime.block_on(app::start(config, options)).unwrap();
    runtime.spawn(async move {
        loop {
            clock.set(now.plus_micros(began.elapsed().as_micros() as i64));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    work();
    runtime.block_on(running.stop()).unwrap();
    runtime.shutdown_timeout(Duration::from_secs(10));
}

/// Rows of every type that identity remembers for seven days only, and one without a time.
fn write_file(path: &Path, start: Timestamp) {
    let row = |n: i64| {
        let (kind, _) = SETS[n as usize % SETS.len()];
        json!({"id": n, "type": kind, "at": start.plus_seconds(n * 60).to_string()})
    };
    let mut rows: Vec<Value> = (0..40).map(row).collect();
    rows.push(json!({"id": "timeless", "type": "product_viewed"}));
    std::fs::write(path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
}

/// What a row of each type sets beside its id, time and customer.
const SETS: [(&str, &str); 4] = [
    ("page_viewed", "set.\"page.url\" = \"/p\""),
    ("product_viewed", "set.\"product.id\" = \"p1\""),
    ("product_searched", "set.\"search.query\" = \"mug\""),
    ("cart_updated", "set.\"cart.id\" = \"k1\"\n[event.items]\nproduct_id = \"p1\"\nquantity = \"1\""),
];

/// A mapping of such rows.
fn mapping() -> String {
    let of_type = |(kind, sets): &(&str, &str)| {
        format!(
            "[[event]]\nwhen = {{ type = \"^{kind}$\" }}\ntype = \"{kind}\"\nevent_id = \"row-{{id}}\"\nset.occurred_at = \"{{at}}\"\n\
             set.\"customer.id\" = \"c1\"\n{sets}\n"
        )
    };
    format!("format = \"ndjson\"\n{}", SETS.iter().map(of_type).collect::<String>())
}

/// What the command printed.
fn import(data: &Path, file: &Path, mapping: &Path) -> String {
    let out = binary().arg("import").arg(file).arg("--map").arg(mapping).arg("--data").arg(data).output().unwrap();
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// A file imported eight days ago, and the server of its data directory now, in which every partition has moved on by more than identity remembers.
struct EightDaysLater {
    file: PathBuf,
    mapping: PathBuf,
    /// Start of the file's rows.
    start: Timestamp,
    server: Server,
    _dir: tempfile::TempDir,
}

impl EightDaysLater {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (data, file, mapping) = (dir.path().join("data"), dir.path().join("rows.ndjson"), dir.path().join("rows.toml"));
        let then = Clock::system().now().plus_seconds(-8 * DAY);
        let start = then.plus_seconds(-DAY);
        write_file(&file, start);
        std::fs::write(&mapping, self::mapping()).unwrap();
        at_another_time(&data, then, || {
            let said = import(&data, &file, &mapping);
            assert!(said.contains("accepted 41 (duplicates 0, conflicts 0), already archived 0, refused 0"), "{said}");
        });
        let server = Server::on(&data, &[]);
        let passing: Vec<Value> =
            (0..300).map(|n| json!({"type": "page_viewed", "event_id": format!("today-{n}"), "page": {"url": "/today"}})).collect();
        server.accept(&passing);
        server.settle();
        Self { file, mapping, start, server, _dir: dir }
    }

    /// Reports of everything that the file said, and the objects that its events touch.
    fn told(&self) -> Map<String, Value> {
        let to = self.start.plus_seconds(3 * DAY);
        let reports = ["top-pages", "top-viewed", "top-searches"].map(|name| {
            let path = format!("/v1/reports/{name}?from=2000-01-01T00:00:00Z&to={to}");
            (name.to_owned(), self.server.read(&path)["rows"].clone())
        });
        let objects = ["maps/product.p1", "documents/page.:p", "maps/customer.c1"];
        let objects = objects.map(|name| (name.to_owned(), self.server.read(&format!("/v1/live/{name}"))));
        reports.into_iter().chain(objects).collect()
    }
}

#[test]
fn importing_again_after_eight_days_changes_nothing() {
    let later = EightDaysLater::new();
    let server = &later.server;
    let once = later.told();
    assert_eq!(once["maps/product.p1"]["items"]["activity"]["data"]["views"], 11, "{once:?}");
    assert_eq!(once["maps/product.p1"]["items"]["activity"]["data"]["carts"], 10, "{once:?}");
    assert_eq!(once["top-searches"][0]["searches"], 10, "{once:?}");
    let said = import(&server.data, &later.file, &later.mapping);
    server.settle();
    assert_eq!(later.told(), once, "{said}");
    assert!(said.contains("accepted 0 (duplicates 0, conflicts 0), already archived 41, refused 0"), "{said}");
    let timeless = server.read("/v1/events/row-timeless");
    assert_eq!(timeless["events"].as_array().unwrap().len(), 1, "{timeless}");
    server.assert_audit();
}

#[test]
fn sending_again_after_eight_days_changes_no_report() {
    let later = EightDaysLater::new();
    let server = &later.server;
    let reports = || ["top-pages", "top-viewed", "top-searches"].map(|name| later.told()[name].clone());
    let once = reports();
    // The rows as the mapping sends them.
    let rows = std::fs::read_to_string(&later.file).unwrap();
    let rows = rows.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).filter(|row| row["at"].is_string());
    let events: Vec<Value> = rows.map(|row| mapped(&row)).collect();
    assert_eq!(events.len(), 40);
    server.accept(&events);
    server.accept(&events);
    server.settle();
    assert_eq!(reports(), once);
    assert_eq!(server.read("/v1/events/row-1")["events"].as_array().unwrap().len(), 1, "the same report, not another one");
    server.assert_audit();
}

/// The event that [`mapping`] makes of a row.
fn mapped(row: &Value) -> Value {
    let mut event = json!({"type": row["type"], "event_id": format!("row-{}", row["id"]), "occurred_at": row["at"], "customer": {"id": "c1"}});
    match row["type"].as_str().unwrap() {
        "page_viewed" => event["page"] = json!({"url": "/p"}),
        "product_viewed" => event["product"] = json!({"id": "p1"}),
        "product_searched" => event["search"] = json!({"query": "mug"}),
        _ => event["cart"] = json!({"id": "k1", "items": [{"product_id": "p1", "quantity": 1}]}),
    }
    event
}

#[test]
fn what_was_taken_401_days_ago_goes_and_history_imported_today_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (data, file, mapping) = (dir.path().join("data"), dir.path().join("rows.ndjson"), dir.path().join("rows.toml"));
    let then = Clock::system().now().plus_seconds(-401 * DAY);
    write_file(&file, then.plus_seconds(-DAY));
    std::fs::write(&mapping, self::mapping()).unwrap();
    let path = format!("/v1/reports/top-searches?from=2000-01-01T00:00:00Z&to={}", Clock::system().now());
    let searches = |server: &Server| server.read(&path)["rows"].as_array().unwrap().first().map_or(json!(0), |row| row["searches"].clone());
    at_another_time(&data, then, || drop(import(&data, &file, &mapping)));

    let server = Server::on(&data, &[]);
    let asked = Instant::now();
    while searches(&server) != 0 {
        assert!(asked.elapsed() < Duration::from_secs(120), "still there: {}", searches(&server));
        std::thread::sleep(Duration::from_millis(10));
    }
    // Cells go before rows: until all went, they do not add up.
    loop {
        let (clean, told) = server.audit();
        if clean {
            break;
        }
        assert!(asked.elapsed() < Duration::from_secs(180), "{told}");
        std::thread::sleep(Duration::from_millis(100));
    }
    // The same rows once more: the archive has none of them now.
    import(&data, &file, &mapping);
    server.settle();
    assert_eq!(searches(&server), 10);
    assert!(server.stop().success());
    let server = Server::on(&data, &[]);
    server.accept(&[json!({"type": "page_viewed", "event_id": "after", "page": {"url": "/after"}})]);
    server.settle();
    assert_eq!(searches(&server), 10, "taken today, it stays, however long ago it happened");
    server.assert_audit();
}
