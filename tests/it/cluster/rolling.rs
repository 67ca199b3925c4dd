//! Two nodes of each role, restarted one after the other while events are sent and reports are asked for: by the same build, or, where `CONTRAIL_TEST_BEFORE`
//! names the program of an earlier one, from that to this, as an upgrade goes.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::Rng;
use serde_json::Value;

use super::{Cluster, STANDSTILL, Watch, assert_whole, seeded};
use crate::harness::{KEY, READ, Server};
use crate::http::{Answer, Connection};
use crate::shop;

/// Two nodes that serve the same, as whoever sends to them knows them: one that does not take a request is not asked until the other has.
#[derive(Default)]
struct Pair {
    addresses: [RwLock<String>; 2],
    /// While its node is being restarted.
    restarting: [AtomicBool; 2],
    /// How often the restart of one was felt.
    felt: AtomicUsize,
}

impl Pair {
    /// Asks one, then the other, until one says 200.
    ///
    /// # Panics
    /// Where a node that is not being restarted does not answer, or answers anything but 200 or a 503 that says when to come again.
    fn ask(&self, first: usize, method: &str, path: &str, bearer: &str, body: &[u8]) -> Answer {
        let asked = Instant::now();
        for at in (0..2).cycle().skip(first % 2) {
            let restarting = || self.restarting[at].load(Ordering::SeqCst);
            let before = restarting();
            // A connection of its own: what a server does with one that is kept is the sender's to bear.
            let answer = Connection::open(&self.addresses[at].read().unwrap())
                .and_then(|mut connection| connection.call(method, path, &[("authorization", &format!("Bearer {bearer}"))], body));
            match answer {
                Ok(answer) if answer.status == 200 => return answer,
                Ok(answer) => {
                    assert!(answer.status == 503 && answer.header("retry-after").is_some(), "{path}: {} {}", answer.status, answer.text());
                }
                Err(error) => {
                    assert!(before || restarting(), "{path}: node {at} is up, and a request broke off: {error}");
                    self.felt.fetch_add(1, Ordering::SeqCst);
                }
            }
            assert!(asked.elapsed() < Duration::from_secs(30), "{path}: neither takes it");
            std::thread::sleep(Duration::from_millis(5));
        }
        unreachable!("it asks for ever")
    }
}

/// Everybody who asks.
struct Callers {
    taking: Pair,
    web: Pair,
    batches: Mutex<VecDeque<Vec<Value>>>,
    /// Batches for each restart.
    pace: AtomicUsize,
    /// Set at the end of the restarts.
    done: AtomicBool,
}

impl Callers {
    /// Sends batches, as fast as restarts go; all that is left at their end.
    fn send(&self) {
        for number in 0.. {
            while self.pace.load(Ordering::SeqCst) == 0 && !self.done.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(2));
            }
            self.pace.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some(left.saturating_sub(1))).unwrap();
            let Some(batch) = self.batches.lock().unwrap().pop_front() else { return };
            let answer = self.taking.ask(number, "POST", "/v1/events", KEY, &serde_json::to_vec(&batch).unwrap());
            assert_eq!(answer.json()["rejected"], Value::Array(vec![]));
        }
    }

    fn read(&self) {
        for number in 0.. {
            if self.done.load(Ordering::SeqCst) {
                return;
            }
            self.web.ask(number, "GET", "/v1/reports/top-viewed", READ, b"");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn start(callers: &Arc<Callers>, work: fn(&Callers)) -> JoinHandle<()> {
    let callers = Arc::clone(callers);
    std::thread::spawn(move || work(&callers))
}

#[test]
fn slow_cluster_rolling_restart_of_all_roles_fails_no_request() {
    let cluster = Cluster::up();
    let mut rng = seeded();
    let names = ["ingest", "sync", "archive", "web"].map(|role| [format!("{role}-a"), format!("{role}-b")]);
    let mut nodes: Vec<[Option<Server>; 2]> =
        names.iter().map(|pair| pair.each_ref().map(|name| Some(cluster.before(name, name.split_once('-').unwrap().0)))).collect();
    let day = shop::day(rng.random(), 6_000);
    let batches: VecDeque<Vec<Value>> = day.events.chunks(10).map(<[Value]>::to_vec).collect();
    let restarts = names.len() * 2;
    let part = batches.len() / restarts;
    let callers = Arc::new(Callers {
        taking: Pair::default(),
        web: Pair::default(),
        batches: Mutex::new(batches),
        pace: AtomicUsize::new(0),
        done: AtomicBool::new(false),
    });
    let pairs = |role: usize| match role {
        0 => Some(&callers.taking),
        3 => Some(&callers.web),
        _ => None,
    };
    for role in [0, 3] {
        for (at, node) in nodes[role].iter().enumerate() {
            node.as_ref().unwrap().address.clone_into(&mut pairs(role).unwrap().addresses[at].write().unwrap());
        }
    }
    let watch = Watch::start(&cluster);
    let threads = [start(&callers, Callers::send), start(&callers, Callers::send), start(&callers, Callers::send), start(&callers, Callers::read)];
    for (role, pair) in names.iter().enumerate() {
        for (at, name) in pair.iter().enumerate() {
            callers.pace.fetch_add(part / 2, Ordering::SeqCst);
            let restarting = |is: bool| pairs(role).into_iter().for_each(|pair| pair.restarting[at].store(is, Ordering::SeqCst));
            restarting(true);
            assert!(nodes[role][at].take().unwrap().stop().success(), "{name}");
            // Some to be sent for sure while it is away.
            callers.pace.fetch_add(part - part / 2, Ordering::SeqCst);
            let node = cluster.lasting(name, name.split_once('-').unwrap().0);
            pairs(role).into_iter().for_each(|pair| node.address.clone_into(&mut pair.addresses[at].write().unwrap()));
            restarting(false);
            nodes[role][at] = Some(node);
        }
    }
    callers.done.store(true, Ordering::SeqCst);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    println!("felt by {} senders and {} readers", callers.taking.felt.load(Ordering::SeqCst), callers.web.felt.load(Ordering::SeqCst));
    assert!(callers.taking.felt.load(Ordering::SeqCst) > 0, "requests met a node that was away");
    let mut nodes: Vec<Server> = nodes.into_iter().flatten().flatten().collect();
    let web = nodes.pop().unwrap();
    web.settle();
    watch.assert_progress(STANDSTILL);
    assert_whole(&cluster, &day, web, nodes);
}
