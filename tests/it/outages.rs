//! Faults of the servers underneath: brokers that die, a store that is gone, slow or refuses, records that are none. Nothing acknowledged is lost, nothing counts
//! twice, and the product goes on by itself.

use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use contrail::archive::{self, QuarantineRow};
use contrail::cql;
use contrail::event::{Clock, SiteId};
use contrail::eventlog::Topic;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use scylla_proxy::{Condition, DoorkeeperError, Node, Proxy, Reaction, RequestOpcode, RequestReaction, RequestRule, RunningProxy, ShardAwareness};
use serde_json::{Value, json};

use crate::crash::{Shared, start_senders};
use crate::foreign::{Foreign, program, rows_of, serve};
use crate::harness::{Server, wait_for};
use crate::http::Answer;
use crate::inspect::LogPlace;
use crate::shop;

fn is_long() -> bool {
    std::env::var_os("CONTRAIL_TEST_LONG").is_some()
}

fn url(node: &Foreign) -> String {
    url_at(&node.address)
}

fn url_at(address: &str) -> String {
    format!("scylla://{address}/contrail")
}

/// The program with its log on these brokers.
fn on_brokers(brokers: &Foreign, replication: u8) -> Command {
    let mut program = program(&[
        ("CONTRAIL_LOG", &*format!("kafka://{}", brokers.address)),
        ("CONTRAIL_KAFKA_REPLICATION", &*replication.to_string()),
        ("CONTRAIL_KAFKA_SESSION_TIMEOUT", "10s"),
    ]);
    if replication == 1 {
        program.env("CONTRAIL_KAFKA_ALLOW_SINGLE_REPLICA", "true");
    }
    program
}

/// The program with its log on a broker, and objects and archive on a node, whose tables are there.
fn on_both(broker: &Foreign, node: &Foreign) -> Command {
    on_node(|| on_brokers(broker, 1), &node.address)
}

/// A program with objects and archive on a node at this address, whose tables are there.
fn on_node(program: impl Fn() -> Command, address: &str) -> Command {
    let made = || {
        let mut program = program();
        program.env("CONTRAIL_STORE", url_at(address)).env("CONTRAIL_ARCHIVE", url_at(address));
        program.env("CONTRAIL_SCYLLA_REPLICATION", "{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}");
        program
    };
    let migrated = made().arg("migrate").stderr(Stdio::piped()).output().unwrap();
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    made()
}

/// A number that `/metrics` shows, 0 where it does not.
fn metric(server: &Server, name: &str) -> f64 {
    let text = server.get("/metrics").text();
    text.lines().filter_map(|line| line.strip_prefix(name)).filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Appends bytes to a topic beside the product.
pub(crate) fn append_raw(broker: &Foreign, topic: &str, partition: i32, bytes: &[u8]) {
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", &broker.address).create().unwrap();
    producer.send(BaseRecord::<(), [u8]>::to(topic).partition(partition).payload(bytes)).map_err(|(error, _)| error).unwrap();
    producer.flush(Duration::from_secs(30)).unwrap();
}

/// What the archive has in quarantine of the shop.
fn quarantined(node: &Foreign) -> Vec<QuarantineRow> {
    let url = url(node);
    let asking = async {
        let settings = archive::Settings { scylla: cql::Settings::default(), ..archive::Settings::default() };
        let archive = archive::open(&url, std::path::Path::new(""), &settings, Clock::system()).await.unwrap();
        archive.quarantine(&SiteId::parse("demo").unwrap(), None, 100).await.unwrap()
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(asking)
}

/// Of each partition of events one record of no site is in quarantine, by the offset at which the log has these bytes.
fn assert_quarantined_where_it_stands(broker: &Foreign, node: &Foreign, bytes: &[u8]) {
    let told = rows_of(node.address.as_str(), "SELECT JSON site, part, pos FROM contrail.quarantine");
    let rows: Vec<Value> = told.split('\'').filter(|piece| piece.starts_with('{')).map(|row| serde_json::from_str(row).unwrap()).collect();
    let url = format!("kafka://{}", broker.address);
    let reading = async {
        let log = LogPlace::Kafka { url: &url, prefix: "contrail" }.open().await;
        let mut found = Vec::new();
        for row in rows.iter().filter(|row| row["site"] == "") {
            let (part, pos) = (u16::try_from(row["part"].as_u64().unwrap()).unwrap(), row["pos"].as_u64().unwrap());
            assert_eq!(log.read(Topic::Events, part, pos, 1).await.unwrap()[0].value, bytes, "{row}");
            found.push(part);
        }
        found.sort_unstable();
        found
    };
    let found = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(reading);
    assert_eq!(found, (0..16).collect::<Vec<_>>(), "{told}");
}

#[test]
fn slow_poison_and_what_the_store_cannot_keep_go_to_quarantine_and_the_partition_goes_on() {
    // Nothing that the product writes by itself is as large as this, but for pieces of large bodies.
    let (broker, node) = (Foreign::up("kafka"), Foreign::up_with("cassandra", &["--unkilled", "--set", "max_mutation_size=200KiB"]));
    let dir = tempfile::tempdir().unwrap();
    let server = serve(on_both(&broker, &node), &dir.path().join("data"));
    let view =
        |n: usize| json!({"type": "product_viewed", "event_id": format!("v{n}"), "product": {"id": "p1", "name": "Mug"}, "customer": {"id": "c1"}});
    let large: Value = json!({"type": "product_viewed", "event_id": "large", "product": {"id": "p2"}, "customer": {"id": "c1"},
        "properties": {"text": "x".repeat(900_000)}});
    server.accept(&(0..50).map(view).collect::<Vec<_>>());
    for partition in 0..16 {
        append_raw(&broker, "contrail.events", partition, b"\x07this is no record");
        append_raw(&broker, "contrail.changes", partition, b"\x07this is no change");
    }
    server.accept(std::slice::from_ref(&large));
    server.accept(&(50..100).map(view).collect::<Vec<_>>());
    server.settle();
    let report = server.read("/v1/reports/top-viewed");
    assert_eq!((&report["rows"][0]["views"], report["rows"].as_array().unwrap().len()), (&json!(100), 1), "{report}");
    assert_eq!(server.get("/readyz").json()["stopped_partitions"], json!([]));
    assert!(metric(&server, "contrail_cql_refusals_total") > 0.0);
    // One in each partition, and what is too large; counted once it is written.
    wait_for("they are counted", Duration::from_secs(60), || metric(&server, "contrail_archiver_quarantined_total") >= 17.0);
    assert_eq!(metric(&server, "contrail_archiver_quarantined_total"), 17.0);
    assert_quarantined_where_it_stands(&broker, &node, b"\x07this is no record");
    let kept = quarantined(&node);
    assert_eq!(kept.iter().map(|row| (&*row.event_id, &*row.code)).collect::<Vec<_>>(), [("large", "refused_by_store")], "{:?}", kept[0].message);
    server.assert_audit();
    // Another process makes the same of it; a repeat is judged anew, and what is not too large is taken.
    assert!(server.stop().success());
    let server = serve(on_both(&broker, &node), &dir.path().join("data"));
    server.accept(&[large, view(7), view(100)]);
    server.settle();
    assert_eq!(server.read("/v1/reports/top-viewed")["rows"][0]["views"], 101);
    assert_eq!(quarantined(&node).len(), 2);
    server.assert_audit();
    assert!(server.stop().success());
}

#[test]
fn slow_of_three_brokers_one_may_die_and_of_two_nothing_is_taken() {
    let brokers = Foreign::up_with("kafka", &["--brokers", "3"]);
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let day = shop::day(seed, 6_000);
    let (shared, total) = Shared::batches(&day.events, 20, &mut rng);
    let dir = tempfile::tempdir().unwrap();
    let server = serve(on_brokers(&brokers, 3), &dir.path().join("data"));
    assert_eq!(server.get("/readyz").json()["allow_single_replica"], false);
    server.address.clone_into(&mut shared.address.write().unwrap());
    let (shared, senders) = start_senders(shared);
    // The share of what is sent that was taken up so far.
    let sent = |parts: usize| {
        shared.unlocked.store(total * parts / 10, Ordering::SeqCst);
        wait_for("batches are taken", Duration::from_secs(240), || shared.sent.load(Ordering::SeqCst) >= total * parts / 10);
    };
    sent(2);
    // Each broker leads a third of the partitions.
    brokers.kill_named("kafka-1");
    sent(5);
    brokers.restart_named("kafka-1");
    sent(6);
    brokers.kill_named("kafka-2");
    brokers.kill_named("kafka-3");
    let asked = Instant::now();
    // Its bearer repeats it later with the same ids.
    let refused = server.post(&serde_json::to_vec(&day.events[..5]).unwrap());
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{}", refused.text());
    assert!(asked.elapsed() < Duration::from_secs(40), "a refusal within the time a record may wait: {:?}", asked.elapsed());
    let asked = Instant::now();
    assert_eq!((server.get("/readyz").status, server.get("/metrics").status), (200, 200));
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    brokers.restart_named("kafka-2");
    brokers.restart_named("kafka-3");
    sent(10);
    for sender in senders {
        sender.join().unwrap();
    }
    server.accept(&day.events[..5]);
    server.settle();
    shop::assert_archived_once(&server, &day);
    shop::assert_reports_equal_tally(&server, &day);
    server.assert_audit();
    assert!(server.stop().success());
}

/// What is read of a store that does not answer says so, and when to come again.
fn assert_reads_are_refused_in_time(server: &Server) {
    let ask = |path: &str| {
        let asked = Instant::now();
        let answer = server.get(path);
        let took = asked.elapsed();
        let again = answer.header("retry-after").and_then(|seconds| seconds.parse().ok());
        assert!(answer.status == 503 && matches!(again, Some(1..=5)), "{path}: {} {again:?} {}", answer.status, answer.text());
        // A call to the store is tried again for 30 s, and its last attempt may take 5 s.
        assert!(took < Duration::from_secs(50), "{path} took {took:?}");
    };
    std::thread::scope(|scope| {
        for path in ["/v1/live/maps/product.p1", "/v1/reports/top-viewed", "/v1/export?format=ndjson", "/v1/export?format=csv"] {
            scope.spawn(move || ask(path));
        }
    });
}

#[test]
fn slow_a_store_that_stands_still_or_is_gone_loses_nothing() {
    let away = Duration::from_secs(if is_long() { 60 } else { 15 });
    let (broker, node) = (Foreign::up("kafka"), Foreign::up("cassandra"));
    let day = shop::day(21, 4_000);
    let (first, rest) = day.events.split_at(2_000);
    let dir = tempfile::tempdir().unwrap();
    let server = serve(on_both(&broker, &node), &dir.path().join("data"));
    // Router, keeper and archiver have their partitions, however long the broker takes to give them out; then they are in the midst of things.
    let (few, many) = first.split_at(100);
    server.accept(few);
    server.settle();
    server.accept(many);
    for (killed, sent) in [(false, &rest[..1_000]), (true, &rest[1_000..])] {
        let gone = Instant::now();
        if killed {
            node.kill();
        } else {
            node.signal("STOP");
        }
        // The log takes what is sent all the while.
        let (early, late) = sent.split_at(500);
        server.accept(early);
        assert_reads_are_refused_in_time(&server);
        wait_for("the archiver says that it waits", Duration::from_secs(120), || server.get("/readyz").json()["archiver_waits_for"].is_string());
        server.accept(late);
        std::thread::sleep(away.saturating_sub(gone.elapsed()));
        if killed {
            node.restart();
        } else {
            node.signal("CONT");
        }
        server.settle();
        // Settled is what stands in the stores; their writers hear of it a moment later.
        wait_for("it waits no longer", Duration::from_secs(10), || server.get("/readyz").json()["archiver_waits_for"].is_null());
        let ready = server.get("/readyz");
        assert_eq!((ready.status, &ready.json()["stopped_partitions"]), (200, &json!([])));
    }
    shop::assert_archived_once(&server, &day);
    shop::assert_reports_equal_tally(&server, &day);
    server.assert_audit();
    assert!(server.stop().success());
}

/// What is asked beside events is answered within a scrape's usual time, whatever the brokers do.
fn assert_responsive(server: &Server) {
    for (path, status) in [("/livez", 200), ("/readyz", 200), ("/metrics", 200), ("/v1/live/maps/product.none", 404)] {
        let asked = Instant::now();
        assert_eq!(server.get(path).status, status, "{path}");
        assert!(asked.elapsed() < Duration::from_secs(10), "{path}: {:?}", asked.elapsed());
    }
}

#[test]
fn slow_a_broker_that_stands_still_now_and_then_delays_what_it_must_and_loses_nothing() {
    /// So many requests of so many bytes are more than may wait for the brokers.
    const LARGE: (usize, usize) = (26, 6_300_000);
    let broker = Foreign::up("kafka");
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let day = shop::day(seed, 4_000);
    let (shared, total) = Shared::batches(&day.events, 20, &mut rng);
    let dir = tempfile::tempdir().unwrap();
    let mut program = on_brokers(&broker, 1);
    // Room for all of these at once: it is the queue that is to be full.
    program.env("CONTRAIL_INGEST_IN_FLIGHT_BYTES", "2GiB");
    let server = serve(program, &dir.path().join("data"));
    server.address.clone_into(&mut shared.address.write().unwrap());
    let (shared, senders) = start_senders(shared);
    const PULSES: usize = 3;
    for pulse in 1..=PULSES {
        shared.unlocked.store(total * pulse / PULSES, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(rng.random_range(10..400)));
        broker.signal("STOP");
        let stopped = Instant::now();
        let still = Duration::from_millis(rng.random_range(3_000..8_000));
        assert_responsive(&server);
        std::thread::sleep(still.saturating_sub(stopped.elapsed()));
        broker.signal("CONT");
        wait_for("batches are taken", Duration::from_secs(180), || shared.sent.load(Ordering::SeqCst) >= total * pulse / PULSES);
    }
    for sender in senders {
        sender.join().unwrap();
    }

    let text = "x".repeat(LARGE.1 / 7);
    let long_ago = day.from.plus_seconds(-3 * 86_400).to_string();
    let large = |n: usize| -> Vec<u8> {
        let event = |k: usize| {
            json!({"type": "product_viewed", "event_id": format!("large {n} {k}"), "occurred_at": long_ago, "product": {"id": "p1"},
            "customer": {"id": "c1"}, "properties": {"text": text}})
        };
        serde_json::to_vec(&(0..7).map(event).collect::<Vec<_>>()).unwrap()
    };
    let bodies: Vec<Vec<u8>> = (0..LARGE.0).map(large).collect();
    broker.signal("STOP");
    std::thread::scope(|scope| {
        let (answers, answered) = mpsc::channel();
        for body in &bodies {
            let (answers, server) = (answers.clone(), &server);
            scope.spawn(move || drop(answers.send(server.post(body))));
        }
        drop(answers);
        let is_full = |answer: &Answer| answer.status == 503 && answer.json()["code"] == "log_full";
        // Others wait for the broker, until their time is over.
        let full = answered.iter().find(is_full).expect("what is beyond the queue to the brokers is refused");
        assert_eq!(full.header("retry-after"), Some("5"));
        assert_responsive(&server);
        broker.signal("CONT");
        for answer in answered {
            assert!(answer.status == 200 || answer.status == 503 && answer.header("retry-after").is_some(), "{}", answer.text());
        }
    });
    wait_for("an event is taken", Duration::from_secs(180), || server.post(&serde_json::to_vec(&day.events[..5]).unwrap()).status == 200);
    server.settle();
    shop::assert_archived_once(&server, &day);
    shop::assert_reports_equal_tally(&server, &day);
    server.assert_audit();
    assert!(server.stop().success());
}

/// A way to a node, straight through until it is told otherwise, and its address.
async fn way_to(node: &Foreign) -> (RunningProxy, SocketAddr) {
    let real: SocketAddr = node.address.parse().unwrap();
    loop {
        // A node is where its own tables say, at the port that the session began with: so beside it.
        let address = TcpListener::bind((real.ip(), 0)).unwrap().local_addr().unwrap();
        match Proxy::new([Node::new(real, address, ShardAwareness::Unaware, None, None)]).run().await {
            Ok(way) => return (way, address),
            // Somebody else took the port meanwhile.
            Err(DoorkeeperError::Listen(..)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// As [`Server::settle`], however long it takes while no stage stands still. A stage moves by whole batches.
fn settle_while_it_goes_on(server: &Server) {
    let (mut last, mut moved) = (Vec::new(), Instant::now());
    while server.admin("GET", "/admin/progress", b"").json()["caught_up"] != true {
        let lags = ["router", "keeper", "archiver"].map(|stage| metric(server, &format!("contrail_{stage}_lag_records")));
        if lags != *last {
            (last, moved) = (lags.to_vec(), Instant::now());
        }
        assert!(moved.elapsed() < Duration::from_secs(240), "it stands still: {last:?} {}", server.get("/readyz").text());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn slow_a_store_that_is_slow_and_overloaded_is_asked_for_less_and_loses_nothing() {
    let node = Foreign::up_with("cassandra", &["--unkilled"]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (mut way, address) = runtime.block_on(way_to(&node));
    let day = shop::day(23, if is_long() { 3_000 } else { 250 });
    let dir = tempfile::tempdir().unwrap();
    let server = serve(on_node(|| program(&[]), &address.to_string()), &dir.path().join("data"));
    // Every statement takes a while; some time out, some are too much, some find no replica.
    let statement = || Condition::any([RequestOpcode::Execute, RequestOpcode::Batch].map(Condition::RequestOpcode));
    let fails = |how: RequestReaction| RequestRule(statement().and(Condition::RandomWithProbability(0.004)), how);
    let forge = RequestReaction::forge;
    let slow = RequestRule(statement(), RequestReaction::delay(Duration::from_millis(10)));
    let first = RequestRule(statement().and(Condition::TrueForLimitedTimes(1)), forge().overloaded());
    let rules = vec![first, fails(forge().overloaded()), fails(forge().write_timeout()), fails(forge().unavailable()), slow];
    way.running_nodes[0].change_request_rules(Some(rules));
    server.accept(&day.events);
    settle_while_it_goes_on(&server);
    assert!(metric(&server, "contrail_cql_overloads_total") > 0.0 && metric(&server, "contrail_cql_retries_total") > 0.0);
    assert_eq!(metric(&server, "contrail_archiver_retries_total"), 0.0, "no batch was given up");
    shop::assert_archived_once(&server, &day);
    // Of the short day the reports tell too little.
    if is_long() {
        shop::assert_reports_equal_tally(&server, &day);
    }
    server.assert_audit();
    assert!(server.stop().success());
}
