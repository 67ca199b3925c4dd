//! The whole product with its log on a real Kafka: the same data as on the embedded log, and nothing lost or counted twice when either is killed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::crash::{SENDERS, Shared, sender};
use crate::foreign::{Foreign, program, serve};
use crate::harness::Server;
use crate::same::{assert_same, copy, told};
use crate::shop;
use rand::{Rng, SeedableRng};

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
fn slow_kafka_gives_the_same_data_as_the_embedded_log() {
    let broker = Foreign::up("kafka");
    let day = shop::day(14, 6_000);
    let dir = tempfile::tempdir().unwrap();
    let (embedded, kafka) = (dir.path().join("embedded"), dir.path().join("kafka"));
    assert!(Server::on(&embedded, &[]).stop().success());
    // Both have the same site, and so the same keyed hashes.
    copy(&embedded, &kafka);
    let server = Server::on(&embedded, &[]);
    server.accept(&day.events);
    let on_embedded = told(server, &day, true);

    let server = contrail(&broker, &kafka);
    server.accept(&day.events);
    server.settle();
    // Stores survive a stop; the group's partitions are taken up again at once.
    assert!(server.stop().success());
    let server = contrail(&broker, &kafka);
    server.accept(&day.events[..100]);
    shop::assert_reports_equal_tally(&server, &day);
    let on_kafka = told(server, &day, true);
    assert_same(&on_embedded, &on_kafka, "embedded and kafka");
}

#[test]
fn slow_kafka_and_contrail_killed_under_load_lose_nothing() {
    const ROUNDS: usize = 15;
    let broker = Foreign::up("kafka");
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let day = shop::day(seed, 10_000);
    let (shared, total) = Shared::batches(&day.events, 40, &mut rng);
    let shared = Arc::new(shared);
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut server = contrail(&broker, &data);
    server.address.clone_into(&mut shared.address.write().unwrap());
    let senders: Vec<_> = (0..SENDERS)
        .map(|_| {
            std::thread::spawn({
                let shared = Arc::clone(&shared);
                move || sender(&shared, |_| ())
            })
        })
        .collect();
    for round in 0..ROUNDS {
        shared.unlocked.fetch_add(total / ROUNDS + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(rng.random_range(5..800)));
        if round % 7 == 3 {
            broker.kill();
            broker.restart();
        } else {
            server.kill();
            server = contrail(&broker, &data);
            server.address.clone_into(&mut shared.address.write().unwrap());
        }
    }
    for sender in senders {
        sender.join().unwrap();
    }
    server.settle();
    let sent: BTreeMap<String, usize> = day.events.iter().map(|e| (e["event_id"].as_str().unwrap().to_owned(), 1)).collect();
    assert_eq!(shop::archived(&server, &day), sent, "every acknowledged event is archived exactly once");
    shop::assert_reports_equal_tally(&server, &day);
    server.assert_audit();
    assert!(server.stop().success());
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
    let sent: BTreeMap<String, usize> = day.events.iter().map(|e| (e["event_id"].as_str().unwrap().to_owned(), 1)).collect();
    assert_eq!(shop::archived(&server, &day), sent);
    shop::assert_reports_equal_tally(&server, &day);
    server.assert_audit();
    assert!(server.stop().success());
}
