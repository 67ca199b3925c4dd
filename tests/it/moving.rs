//! Moving up: what an embedded data directory holds goes on in a cluster as though it had always been there.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::foreign::{Tenant, program, serve};
use crate::harness::Server;
use crate::same::{assert_same, copy, told, told_from};
use crate::shop;

/// The program with everything on these servers.
fn clustered(servers: &Tenant) -> Command {
    let url = servers.store();
    program(&[
        ("CONTRAIL_LOG", &*servers.log()),
        ("CONTRAIL_KAFKA_PREFIX", &*servers.name),
        ("CONTRAIL_STORE", &*url),
        ("CONTRAIL_ARCHIVE", &*url),
        ("CONTRAIL_SCYLLA_REPLICATION", "{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}"),
        ("CONTRAIL_KAFKA_REPLICATION", "1"),
        ("CONTRAIL_KAFKA_ALLOW_SINGLE_REPLICA", "true"),
    ])
}

fn migrate_data(mut program: Command, from: &Path) -> Output {
    program.arg("migrate-data").arg(from).stderr(Stdio::piped()).stdout(Stdio::piped()).output().unwrap()
}

#[test]
fn slow_scylla_and_kafka_take_over_a_data_directory_and_go_on_from_there() {
    let servers = Tenant::new();
    let day = shop::day(17, 6_000);
    let (before, after) = day.events.split_at(3_500);
    let dir = tempfile::tempdir().unwrap();
    let (stays, moves) = (dir.path().join("stays"), dir.path().join("moves"));
    assert!(Server::on(&stays, &[]).stop().success());
    copy(&stays, &moves);

    // Killed under what it has not applied yet.
    let server = Server::on(&moves, &[]);
    server.accept(before);
    server.kill();
    let server = Server::on(&moves, &[]);
    let running = migrate_data(clustered(&servers), &moves);
    assert!(!running.status.success() && String::from_utf8_lossy(&running.stderr).contains("is in use"), "{running:?}");
    server.accept(&before[..40]);
    server.kill();
    for _ in 0..2 {
        // Run again, it carries the same.
        let moved = migrate_data(clustered(&servers), &moves);
        assert!(moved.status.success(), "{}{}", String::from_utf8_lossy(&moved.stdout), String::from_utf8_lossy(&moved.stderr));
        let told: serde_json::Value = serde_json::from_slice(&moved.stdout).unwrap();
        assert_eq!(told["clean"], true, "{told}");
    }

    let server = serve(clustered(&servers), &dir.path().join("node"));
    // Some of what was told before is told again.
    server.accept(&before[3_000..]);
    server.accept(after);
    server.settle();
    shop::assert_archived_once(&server, &day);
    shop::assert_reports_equal_tally(&server, &day);
    server.assert_audit();
    let on_cluster = told_from(server, &servers.store(), &day, true);

    let server = Server::on(&stays, &[]);
    server.accept(&day.events);
    assert_same(&told(server, &day, true), &on_cluster, "stayed and moved");

    let late = migrate_data(clustered(&servers), &moves);
    assert!(!late.status.success() && String::from_utf8_lossy(&late.stderr).contains("a move needs fresh ones"), "{late:?}");
}
