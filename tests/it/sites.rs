//! Sites and keys in the object store: what one process changes is in force in all, and a site of one region is neither taken nor served in another.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::foreign::{Foreign, program, rows_of, serve};
use crate::harness::{KEY, Server, binary};
use crate::http::{Answer, again};

/// `contrail site ...` beside the process of a data directory.
fn site(server: &Server, arguments: &[&str]) -> Value {
    let (ok, told) = try_site(server, arguments);
    assert!(ok, "site {arguments:?}: {told}");
    serde_json::from_str(&told).unwrap()
}

fn try_site(server: &Server, arguments: &[&str]) -> (bool, String) {
    let out = binary().arg("site").args(arguments).arg("--data").arg(&server.data).output().unwrap();
    (out.status.success(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
}

fn send(server: &Server, key: &str, event: &Value) -> Answer {
    server.call("POST", "/v1/events", &[("x-write-key", key), ("content-type", "application/json")], event.to_string().as_bytes())
}

fn takes(server: &Server, key: &str) -> bool {
    let answer = again(|| send(server, key, &json!({"type": "probe"})));
    assert!(matches!(answer.status, 200 | 401), "{}", answer.text());
    answer.status == 200
}

/// Gives how long it takes: a machine may have no time for it.
fn soon(what: &str, mut seen: impl FnMut() -> bool) -> Duration {
    let asked = Instant::now();
    while !seen() {
        assert!(asked.elapsed() < Duration::from_secs(30), "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    asked.elapsed()
}

fn text<'a>(answer: &'a Value, field: &str) -> &'a str {
    answer[field].as_str().unwrap_or_else(|| panic!("no {field} in {answer}"))
}

fn migrate(mut program: Command) {
    let done = program.arg("migrate").stderr(Stdio::piped()).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn slow_sites_changed_on_one_process_are_in_force_on_the_other_within_a_second() {
    let (broker, node) = (Foreign::up("kafka"), Foreign::up("cassandra"));
    let contrail = || {
        program(&[
            ("CONTRAIL_LOG", &format!("kafka://{}", broker.address)),
            ("CONTRAIL_KAFKA_REPLICATION", "1"),
            ("CONTRAIL_KAFKA_ALLOW_SINGLE_REPLICA", "true"),
            ("CONTRAIL_STORE", &format!("scylla://{}/contrail", node.address)),
            ("CONTRAIL_SCYLLA_REPLICATION", "{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}"),
            ("CONTRAIL_ROLES", "[\"ingest\"]"),
        ])
    };
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    assert!(Server::start(contrail(), &place("early"), &[]).is_err(), "nothing is served before the tables are there");
    migrate(contrail());

    // Both first starts at once.
    let (one, other) = std::thread::scope(|scope| {
        let start = |name: &str| {
            let (program, data) = (contrail(), place(name));
            scope.spawn(move || serve(program, &data))
        };
        let (one, other) = (start("one"), start("other"));
        (one.join().unwrap(), other.join().unwrap())
    });
    let names = |server: &Server| -> Vec<String> {
        site(server, &["list"])["sites"].as_array().unwrap().iter().map(|site| text(site, "site").to_owned()).collect()
    };
    for server in [&one, &other] {
        assert_eq!(names(server), ["demo"]);
        assert!(takes(server, KEY));
        assert!(!server.data.join("sites.db").exists(), "nothing of it is kept beside");
    }
    let ready = || one.call("GET", "/readyz", &[], b"").json();
    assert_eq!(ready()["allow_single_replica"], json!(true));
    soon("the store of the sites answers", || ready()["sites_unanswered_seconds"].is_null());

    let keys = site(&one, &["add", "shop", "--time-zone", "Europe/Berlin"]);
    let old = text(&keys, "ingest_key").to_owned();
    let mut took = vec![soon("the new key works", || takes(&other, &old))];
    let rotated = site(&other, &["rotate", "shop"]);
    let new = text(&rotated, "key").to_owned();
    assert!(!takes(&other, &old), "at once where it was rotated");
    took.push(soon("the rotated key stops", || !takes(&one, &old)));
    assert!(takes(&one, &new));
    for n in 1..=3 {
        let origin = format!("https://shop-{n}.example");
        site(&other, &["set", "shop", "--origin", &origin]);
        took.push(soon("the origin is known", || site(&one, &["list"])["sites"][1]["origins"] == json!([origin])));
    }
    // Other servers share the processors: the middle one of them.
    took.sort_unstable();
    assert!(took[2] < Duration::from_secs(1), "{took:?}");
    assert_eq!(site(&one, &["list"]), site(&other, &["list"]));
    assert!(text(&site(&other, &["token", "shop", "--object", "product.x"]), "token").starts_with("ct_shop_"));

    // Without the store, what is known stays; changes are refused, and it says so.
    std::thread::sleep(Duration::from_secs(1));
    node.kill();
    let gone = Instant::now();
    while one.call("GET", "/readyz", &[], b"").json()["sites_unanswered_seconds"].is_null() {
        assert!(gone.elapsed() < Duration::from_secs(10), "it does not say that the store is gone");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(one.call("GET", "/readyz", &[], b"").status, 200);
    let scraped = one.call("GET", "/metrics", &[], b"").text();
    let silent = scraped.lines().find_map(|line| line.strip_prefix("contrail_sites_unanswered_seconds ")).unwrap();
    assert!(silent.parse::<f64>().unwrap() > 0.0, "{silent}");
    for server in [&one, &other] {
        assert!(takes(server, &new) && takes(server, KEY) && !takes(server, &old));
    }
    let (done, told) = try_site(&one, &["rotate", "shop"]);
    assert!(!done && told.contains("503"), "{told}");
    node.restart();
    let back = Instant::now();
    while !one.call("GET", "/readyz", &[], b"").json()["sites_unanswered_seconds"].is_null() {
        assert!(back.elapsed() < Duration::from_secs(30), "it does not find the store again");
        std::thread::sleep(Duration::from_millis(50));
    }
    let newest = text(&site(&one, &["rotate", "shop"]), "key").to_owned();
    assert!(takes(&one, &newest) && !takes(&one, &new));
}

fn files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, into);
        } else {
            into.push(path);
        }
    }
}

/// Whether any file of a directory holds these bytes.
fn anywhere(dir: &Path, mark: &str) -> bool {
    let mut found = Vec::new();
    files(dir, &mut found);
    let finder = |bytes: Vec<u8>| bytes.windows(mark.len()).any(|window| window == mark.as_bytes());
    // What is removed meanwhile is nowhere.
    found.iter().any(|path| std::fs::read(path).is_ok_and(finder))
}

#[test]
fn slow_scylla_a_site_of_a_region_is_neither_taken_nor_served_nor_stored_in_another() {
    const PLACE: &str = "https://eu.contrail.example";
    let nodes = Foreign::up_with("cassandra", &["--unkilled", "--datacenters", "2"]);
    let brokers = [Foreign::up("kafka"), Foreign::up("kafka")];
    let addresses: Vec<&str> = nodes.address.split(',').collect();
    let contrail = |region: &str, n: usize| {
        let url = format!("scylla://{}/contrail_{region}", addresses[n - 1]);
        program(&[
            ("CONTRAIL_LOG", &format!("kafka://{}", brokers[n - 1].address)),
            ("CONTRAIL_KAFKA_PREFIX", &format!("contrail-{region}")),
            ("CONTRAIL_KAFKA_REPLICATION", "1"),
            ("CONTRAIL_KAFKA_ALLOW_SINGLE_REPLICA", "true"),
            ("CONTRAIL_REGION", region),
            ("CONTRAIL_REGION_URLS", &format!("[\"eu={PLACE}\", \"us=https://us.contrail.example\"]")),
            ("CONTRAIL_STORE", &url),
            ("CONTRAIL_ARCHIVE", &url),
            ("CONTRAIL_SCYLLA_DATACENTER", &format!("dc{n}")),
            ("CONTRAIL_SCYLLA_REPLICATION", &format!("{{'class': 'NetworkTopologyStrategy', 'dc{n}': 1}}")),
            ("CONTRAIL_SCYLLA_SITES_KEYSPACE", "contrail_sites"),
            ("CONTRAIL_SCYLLA_SITES_REPLICATION", "{'class': 'NetworkTopologyStrategy', 'dc1': 1, 'dc2': 1}"),
            ("CONTRAIL_SCYLLA_SAFETY_WINDOW", "0s"),
        ])
    };
    for (chosen, told) in [("", "one of dc1, dc2"), ("dc3", "not `dc3`")] {
        let mut program = contrail("eu", 1);
        let refused = program.env("CONTRAIL_SCYLLA_DATACENTER", chosen).arg("migrate").output().unwrap();
        let error = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && error.contains("scylla.datacenter") && error.contains(told), "{error}");
    }
    for (region, n) in [("eu", 1), ("us", 2)] {
        migrate(contrail(region, n));
        let placed =
            rows_of(addresses[0], &format!("SELECT JSON replication FROM system_schema.keyspaces WHERE keyspace_name = 'contrail_{region}'"));
        let (own, other) = (format!("dc{n}"), format!("dc{}", 3 - n));
        assert!(placed.contains(&own) && !placed.contains(&other), "{region}: {placed}");
    }
    let dir = tempfile::tempdir().unwrap();
    let eu = serve(contrail("eu", 1), &dir.path().join("eu"));
    let us = serve(contrail("us", 2), &dir.path().join("us"));
    assert!(takes(&eu, KEY) && takes(&us, KEY), "a site that is pinned to no region is of every one");

    // Made by a node of the other region: sites are shared.
    let keys = site(&us, &["add", "pinned-shop", "--region", "eu"]);
    let (key, token) = (text(&keys, "ingest_key"), format!("Bearer {}", text(&keys, "read_token")));
    assert!(!try_site(&us, &["add", "typo-shop", "--region", "euu"]).0);
    soon("the site is known in its region", || takes(&eu, key));
    let event = |mark: &str| json!({"event_id": mark, "type": "product_viewed", "product": {"id": "p1"}, "properties": {"mark": mark}});
    let taken = send(&eu, key, &event("mark-of-what-eu-takes"));
    assert_eq!((taken.status, &taken.json()["accepted"]), (200, &json!(1)), "{}", taken.text());
    let refused = send(&us, key, &event("mark-of-what-us-refuses"));
    let assert_misdirected = |answer: &Answer| {
        let told = answer.json();
        assert_eq!(
            (answer.status, &told["code"], &told["region"], &told["region_url"]),
            (421, &json!("region_elsewhere"), &json!("eu"), &json!(PLACE))
        );
    };
    assert_misdirected(&refused);
    eu.settle();
    us.settle();
    let read = |server: &Server, path: &str| server.call("GET", path, &[("authorization", &token)], b"");
    let object = text(&site(&us, &["token", "pinned-shop", "--object", "product.p1"]), "token").to_owned();
    let by_object = format!("/v1/live/maps/product.p1?token={object}");
    for path in ["/v1/reports/top-viewed", "/v1/export", "/v1/events/mark-of-what-eu-takes", "/v1/live/maps/product.p1", &by_object] {
        let answer = read(&eu, path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert_misdirected(&read(&us, path));
    }

    // Where it lies: what each node of the cluster keeps, its commit log included, and the brokers of each region.
    let kept = |n: usize| nodes.dir().join(format!("cassandra-{n}"));
    let logged = |n: usize| brokers[n - 1].dir().to_owned();
    assert!(anywhere(&kept(1), "mark-of-what-eu-takes") && anywhere(&logged(1), "mark-of-what-eu-takes"));
    for place in [kept(2), logged(2), eu.data.clone(), us.data.clone()] {
        assert!(!anywhere(&place, "mark-of-what-eu-takes"), "{}", place.display());
    }
    for place in [kept(1), kept(2), logged(1), logged(2), eu.data.clone(), us.data.clone()] {
        assert!(!anywhere(&place, "mark-of-what-us-refuses"), "{}", place.display());
    }
    assert!(anywhere(&kept(1), "pinned-shop") && anywhere(&kept(2), "pinned-shop"), "the sites themselves are in both");
    assert!(!anywhere(&us.data, "pinned-shop"), "nor is the refusal counted in its books there");

    // A move carries no data: it must be meant.
    let (done, told) = try_site(&eu, &["set", "pinned-shop", "--region", "us"]);
    assert!(!done && told.contains("--leave-data"), "{told}");
    assert_eq!(site(&eu, &["list"])["sites"][1]["region"], json!("eu"));
    let rotated = text(&site(&us, &["rotate", "pinned-shop"]), "key").to_owned();
    soon("a key rotated in another region stops", || !takes(&eu, key));
    assert!(takes(&eu, &rotated));
    eu.settle();
    eu.assert_audit();

    // A region that is away takes nothing from the others but the changes of sites.
    assert!(us.stop().success());
    nodes.kill_named("cassandra-2");
    let data = eu.data.clone();
    assert!(eu.stop().success());
    let eu = serve(contrail("eu", 1), &data);
    assert!(takes(&eu, &rotated) && takes(&eu, KEY));
    let (done, told) = try_site(&eu, &["rotate", "pinned-shop"]);
    assert!(!done && told.contains("503"), "{told}");
    assert!(takes(&eu, &rotated), "what was not changed stays in force");
}
