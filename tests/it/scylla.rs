//! The whole product with its archive on a real Cassandra: the same data as on the embedded archive, and nothing lost or counted twice when either
//! is killed.

use std::collections::BTreeMap;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::{Rng, SeedableRng};

use crate::crash::{SENDERS, Shared, sender};
use crate::foreign::{Foreign, program, serve};
use crate::harness::Server;
use crate::same::{assert_same, copy, told};
use crate::shop;

/// The program with its archive on this node.
fn on(node: &Foreign) -> Command {
    let replication = "{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}";
    program(&[("CONTRAIL_ARCHIVE", &format!("scylla://{}/contrail", node.address)), ("CONTRAIL_SCYLLA_REPLICATION", replication)])
}

fn migrate(node: &Foreign) -> Output {
    on(node).arg("migrate").stderr(Stdio::piped()).output().unwrap()
}

#[test]
fn slow_scylla_gives_the_same_data_as_the_embedded_archive() {
    let node = Foreign::up("cassandra");
    let day = shop::day(15, 6_000);
    let dir = tempfile::tempdir().unwrap();
    let (embedded, scylla) = (dir.path().join("embedded"), dir.path().join("scylla"));
    assert!(Server::on(&embedded, &[]).stop().success());
    // Both have the same site, and so the same keyed hashes.
    copy(&embedded, &scylla);
    let server = Server::on(&embedded, &[]);
    server.accept(&day.events);
    let on_embedded = told(server, &day, true);

    let unmigrated = Server::start(on(&node), &dir.path().join("unmigrated"), &[]);
    assert!(unmigrated.is_err(), "nothing is served before the tables are there");
    for _ in 0..2 {
        let migrated = migrate(&node);
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    }
    let server = serve(on(&node), &scylla);
    server.accept(&day.events);
    server.settle();
    assert!(server.stop().success());
    let server = serve(on(&node), &scylla);
    server.accept(&day.events[..100]);
    shop::assert_reports_equal_tally(&server, &day);
    let on_scylla = told(server, &day, true);
    assert_same(&on_embedded, &on_scylla, "embedded and scylla");
}

#[test]
fn slow_scylla_and_contrail_killed_under_load_lose_nothing() {
    const ROUNDS: usize = 12;
    let node = Foreign::up("cassandra");
    assert!(migrate(&node).status.success());
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let day = shop::day(seed, 10_000);
    let (shared, total) = Shared::batches(&day.events, 40, &mut rng);
    let shared = Arc::new(shared);
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut server = serve(on(&node), &data);
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
        std::thread::sleep(Duration::from_millis(rng.random_range(5..1_500)));
        if round % 4 == 3 {
            node.kill();
            node.restart();
        } else {
            server.kill();
            server = serve(on(&node), &data);
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
