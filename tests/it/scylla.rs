//! The whole product with objects and archive on a real Cassandra: nothing is lost or counted twice when either is killed.

use std::process::{Command, Output, Stdio};

use crate::foreign::{Foreign, Kills, assert_kills_lose_nothing, program, serve};

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
fn slow_scylla_and_contrail_killed_under_load_lose_nothing() {
    let node = Foreign::up("cassandra");
    assert!(migrate(on(&node)).status.success());
    let kills = Kills { rounds: 12, apart: 1_500, others: 4, objects: Some(url(&node)) };
    assert_kills_lose_nothing(&node, &kills, |data| serve(on(&node), data));
}
