//! The whole product with its log on a real Kafka: nothing is lost or counted twice when either is killed.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::foreign::{Foreign, Kills, assert_kills_lose_nothing, program, serve};
use crate::harness::Server;
use crate::shop;

/// The program with its log on this broker.
fn contrail(broker: &Foreign, data: &Path) -> Server {
    let settings = [
        ("CONTRAIL_LOG", &*format!("kafka://{}", broker.address)),
        ("CONTRAIL_KAFKA_REPLICATION", "1"),
        ("CONTRAIL_KAFKA_ALLOW_SINGLE_REPLICA", "true"),
        ("CONTRAIL_KAFKA_SESSION_TIMEOUT", "10s"),
    ];
    serve(program(&settings), data)
}

#[test]
fn slow_kafka_and_contrail_killed_under_load_lose_nothing() {
    let broker = Foreign::up("kafka");
    assert_kills_lose_nothing(&broker, &Kills { rounds: 15, apart: 800, others: 7, objects: None }, |data| contrail(&broker, data));
}

#[test]
fn slow_a_broker_that_is_away_stops_nothing_for_good() {
    // Longer than a record may wait for its broker (20 s) and than a session lasts (10 s): appends fail, and readers are made anew.
    const AWAY: Duration = Duration::from_secs(45);
    let broker = Foreign::up("kafka");
    let day = shop::day(15, 4_000);
    let (first, rest) = day.events.split_at(2_000);
    let dir = tempfile::tempdir().unwrap();
    let server = contrail(&broker, &dir.path().join("data"));
    let pid = server.pid();
    server.accept(first);
    broker.kill();
    let gone = Instant::now();
    let refused = server.post(&serde_json::to_vec(&rest[..10]).unwrap());
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{}", refused.text());
    assert_eq!(refused.json()["code"], "log_unavailable");
    // What operators and machines ask is answered within a scrape's usual time.
    let asked = Instant::now();
    assert_eq!(server.get("/metrics").status, 200);
    assert_eq!(server.get("/readyz").status, 200);
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert_eq!(server.get("/v1/reports/top-viewed").status, 503);
    std::thread::sleep(AWAY.saturating_sub(gone.elapsed()));
    broker.restart();
    let back = Instant::now();
    while server.post(&serde_json::to_vec(&rest[..10]).unwrap()).status != 200 {
        assert!(back.elapsed() < Duration::from_secs(60), "no event is taken");
    }
    server.accept(rest);
    server.settle();
    assert_eq!(server.pid(), pid);
    shop::assert_archived_once(&server, &day);
    shop::assert_reports_equal_tally(&server, &day);
    server.assert_audit();
    assert!(server.stop().success());
}
