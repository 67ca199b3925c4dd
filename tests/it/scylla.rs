//! The whole product with its archive on a real Cassandra: the same data as on the embedded archive, and nothing lost or counted twice when either
//! is killed.

use std::process::{Command, Output, Stdio};

use crate::foreign::{Foreign, Kills, assert_kills_lose_nothing, assert_same_data_as_embedded, program, serve};
use crate::harness::Server;

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
    let dir = tempfile::tempdir().unwrap();
    let unmigrated = Server::start(on(&node), &dir.path().join("unmigrated"), &[]);
    assert!(unmigrated.is_err(), "nothing is served before the tables are there");
    for _ in 0..2 {
        let migrated = migrate(&node);
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    }
    assert_same_data_as_embedded(15, |data| serve(on(&node), data));
}

#[test]
fn slow_scylla_and_contrail_killed_under_load_lose_nothing() {
    let node = Foreign::up("cassandra");
    assert!(migrate(&node).status.success());
    assert_kills_lose_nothing(&node, &Kills { rounds: 12, apart: 1_500, others: 4 }, |data| serve(on(&node), data));
}
