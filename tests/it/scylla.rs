//! The whole product with objects and archive on a real Cassandra: the same data as on the embedded stores, and nothing lost or counted twice when either
//! is killed. Once also with its log on a real Kafka.

use std::process::{Command, Output, Stdio};

use crate::foreign::{Foreign, Kills, assert_kills_lose_nothing, assert_same_data_as_embedded, program, serve};
use crate::harness::Server;

fn url(node: &Foreign) -> String {
    format!("scylla://{}/contrail", node.address)
}

/// The program with objects and archive on this node.
fn on(node: &Foreign) -> Command {
    let (url, replication) = (url(node), "{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}");
    program(&[("CONTRAIL_STORE", &url), ("CONTRAIL_ARCHIVE", &url), ("CONTRAIL_SCYLLA_REPLICATION", replication)])
}

fn migrate(mut program: Command) -> Output {
    program.arg("migrate").stderr(Stdio::piped()).output().unwrap()
}

#[test]
fn slow_scylla_gives_the_same_data_as_the_embedded_stores() {
    let node = Foreign::up("cassandra");
    let dir = tempfile::tempdir().unwrap();
    let unmigrated = Server::start(on(&node), &dir.path().join("unmigrated"), &[]);
    assert!(unmigrated.is_err(), "nothing is served before the tables are there");
    for _ in 0..2 {
        let migrated = migrate(on(&node));
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    }
    assert_same_data_as_embedded(15, &url(&node), |data| serve(on(&node), data));
}

#[test]
fn slow_scylla_and_contrail_killed_under_load_lose_nothing() {
    let node = Foreign::up("cassandra");
    assert!(migrate(on(&node)).status.success());
    let kills = Kills { rounds: 12, apart: 1_500, others: 4, objects: Some(url(&node)) };
    assert_kills_lose_nothing(&node, &kills, |data| serve(on(&node), data));
}

#[test]
fn slow_kafka_and_scylla_give_the_same_data_as_one_machine() {
    let (broker, node) = (Foreign::up("kafka"), Foreign::up("cassandra"));
    let contrail = || {
        let mut program = on(&node);
        program.env("CONTRAIL_LOG", format!("kafka://{}", broker.address)).env("CONTRAIL_KAFKA_REPLICATION", "1");
        program.env("CONTRAIL_KAFKA_ALLOW_SINGLE_REPLICA", "true");
        program
    };
    assert!(migrate(contrail()).status.success());
    // In keyspaces of their own.
    let store = format!("scylla://{}/contrail_objects", node.address);
    let apart = || {
        let mut program = contrail();
        program.env("CONTRAIL_STORE", &store);
        program
    };
    let migrated = String::from_utf8(migrate(apart()).stdout).unwrap();
    assert!(migrated.contains("contrail_objects are of version") && migrated.contains("already"), "{migrated}");
    assert_same_data_as_embedded(16, &store, |data| serve(apart(), data));
}
