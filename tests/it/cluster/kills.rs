//! Nodes of every role that are killed, that stand still for longer than their session, that join and that leave, under load.

use std::time::{Duration, Instant};

use rand::Rng;

use super::{Cluster, Load, Membership, SESSION, STANDSTILL, is_long, seeded, signal};
use crate::harness::Server;

/// Two nodes of each role that reads, one of each that answers.
const NODES: [(&str, &str); 6] =
    [("taking", "ingest"), ("keeping", "sync"), ("one", "archive"), ("web", "web"), ("other", "sync"), ("two", "archive")];

#[test]
fn slow_cluster_every_role_killed_and_stopped_past_its_session_under_load_loses_nothing() {
    let cluster = Cluster::up();
    let mut rng = seeded();
    let mut nodes: Vec<Server> = NODES.iter().map(|(name, roles)| cluster.lasting(name, roles)).collect();
    let load = Load::start(&cluster, &nodes[0], &mut rng, 8_000);
    let (kills, stops, still) = if is_long() { (50, 4, Duration::from_secs(90)) } else { (12, 2, SESSION + Duration::from_secs(6)) };
    let parts = kills + 2 * stops;
    for round in 0..kills {
        load.unlock(parts);
        std::thread::sleep(Duration::from_millis(rng.random_range(20..1_500)));
        let at = round % NODES.len();
        nodes.remove(at).kill();
        // Sometimes long enough that another one takes its partitions.
        if rng.random_bool(0.2) {
            std::thread::sleep(SESSION + Duration::from_secs(2));
        }
        nodes.insert(at, cluster.lasting(NODES[at].0, NODES[at].1));
        if at == 0 {
            load.send_to(&nodes[0]);
        }
    }
    for round in 0..stops {
        load.unlock(parts);
        // In the midst of a batch, more often than not.
        std::thread::sleep(Duration::from_millis(rng.random_range(200..1_000)));
        let stopped = if round % 2 == 0 { [&nodes[1], &nodes[5]] } else { [&nodes[4], &nodes[2]] };
        stopped.iter().for_each(|node| signal(node, "STOP"));
        load.unlock(parts);
        std::thread::sleep(still);
        stopped.iter().for_each(|node| signal(node, "CONT"));
        std::thread::sleep(Duration::from_secs(1));
        for node in stopped {
            assert_eq!(node.get("/readyz").status, 200, "it goes on");
        }
    }
    let web = nodes.remove(3);
    // The owner of a partition may be killed several times in turn.
    load.assert_whole(&cluster, web, nodes, 3 * STANDSTILL);
}

#[test]
fn slow_cluster_nodes_join_and_leave_every_second() {
    let cluster = Cluster::up();
    let mut rng = seeded();
    let front = cluster.lasting("front", "ingest,web");
    let load = Load::start(&cluster, &front, &mut rng, 8_000);
    let seconds = if is_long() { 120 } else { 15 };
    let mut lasting: Vec<Server> = Vec::new();
    let mut guests: Vec<Server> = Vec::new();
    let mut round = 0;
    // One stays and up to one other comes and goes; then two, and up to two.
    for others in 1..=2 {
        lasting.push(cluster.lasting(&format!("stays-{others}"), "sync,archive"));
        let began = Instant::now();
        for second in 1..=seconds {
            load.unlock(2 * seconds as usize);
            round += 1;
            // Without a lasting name: whoever joins or leaves moves partitions at once.
            if guests.len() < others && (guests.is_empty() || rng.random_bool(0.5)) {
                let roles = ["sync,archive", "sync", "archive"][rng.random_range(0..3)];
                guests.push(cluster.node(&format!("guest-{round}"), roles, Membership::Dynamic));
            } else {
                let guest = guests.swap_remove(rng.random_range(0..guests.len()));
                assert!(guest.stop().success());
            }
            std::thread::sleep((began + Duration::from_secs(second)).saturating_duration_since(Instant::now()));
        }
        println!("{seconds} joined or left in {:?}", began.elapsed());
    }
    lasting.append(&mut guests);
    load.assert_whole(&cluster, front, lasting, STANDSTILL);
}
