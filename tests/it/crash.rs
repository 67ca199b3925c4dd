//! kill -9 at random moments under load: nothing acknowledged is lost, nothing counts twice, revisions equal changes, budgets hold.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use crate::harness::{KEY, READ, Server};
use crate::http::Connection;
use crate::{inspect, shop};

const ROUNDS: usize = 100;
const SENDERS: usize = 4;

/// What the senders share with the killer.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) address: RwLock<String>,
    batches: Mutex<VecDeque<Vec<Value>>>,
    /// Batches that may be sent so far; each round adds some.
    pub(crate) unlocked: AtomicUsize,
    pub(crate) sent: AtomicUsize,
    /// Set once every batch is acknowledged, or none will be any more.
    pub(crate) done: AtomicBool,
}

impl Shared {
    /// Events in batches of at most `most`; how many batches they make.
    pub(crate) fn batches(mut rest: &[Value], most: usize, rng: &mut StdRng) -> (Self, usize) {
        let mut batches = VecDeque::new();
        while !rest.is_empty() {
            let (batch, more) = rest.split_at(rng.random_range(1..=most).min(rest.len()));
            batches.push_back(batch.to_vec());
            rest = more;
        }
        let count = batches.len();
        (Self { batches: Mutex::new(batches), ..Self::default() }, count)
    }
}

/// Posts batches until each has its 200, whatever dies meanwhile, always with the same ids; tells of each that has it.
pub(crate) fn sender(shared: &Shared, acknowledged: impl Fn(&[Value])) {
    let mut connection = None;
    loop {
        if shared.sent.load(Ordering::SeqCst) >= shared.unlocked.load(Ordering::SeqCst) {
            if shared.done.load(Ordering::SeqCst) || shared.batches.lock().unwrap().is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        let Some(batch) = shared.batches.lock().unwrap().pop_front() else { return };
        shared.sent.fetch_add(1, Ordering::SeqCst);
        let body = serde_json::to_vec(&batch).unwrap();
        while !shared.done.load(Ordering::SeqCst) {
            if connection.is_none() {
                connection = Connection::open(&shared.address.read().unwrap()).ok();
            }
            let bearer = format!("Bearer {KEY}");
            let answer = connection.as_mut().and_then(|c| c.call("POST", "/v1/events", &[("authorization", &bearer)], &body).ok());
            match answer {
                Some(answer) if answer.status == 200 => {
                    assert_eq!(answer.json()["rejected"], Value::Array(vec![]));
                    acknowledged(&batch);
                    break;
                }
                Some(answer) => assert!(matches!(answer.status, 429 | 503), "{}: {}", answer.status, answer.text()),
                None => connection = None,
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Starts what posts the batches.
pub(crate) fn start_senders(shared: Shared) -> (Arc<Shared>, Vec<JoinHandle<()>>) {
    let shared = Arc::new(shared);
    let start = |_| {
        let shared = Arc::clone(&shared);
        std::thread::spawn(move || sender(&shared, |_| {}))
    };
    let senders = (0..SENDERS).map(start).collect();
    (shared, senders)
}

/// Watches an object through every crash and notes when each new event id was seen: at most as often as it was written.
fn watcher(shared: &Shared, path: &str) -> Vec<Instant> {
    let (mut seen, mut times) = (0, Vec::new());
    let bearer = format!("Bearer {READ}");
    while !shared.done.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(3));
        let address = shared.address.read().unwrap().clone();
        let Ok(mut connection) = Connection::open(&address) else { continue };
        while let Ok(answer) = connection.call("GET", path, &[("authorization", &bearer)], b"") {
            let id = if answer.status == 200 { answer.json()["event_id"].as_u64().unwrap() } else { 0 };
            if id > seen {
                seen = id;
                times.push(Instant::now());
            }
            std::thread::sleep(Duration::from_millis(3));
            if shared.done.load(Ordering::SeqCst) {
                break;
            }
        }
    }
    times
}

/// In any t seconds at most 200 + 20 t, and so many that were held up on their way.
pub(crate) fn assert_budget(times: &[Instant], late: usize) {
    for (i, from) in times.iter().enumerate() {
        for (j, to) in times.iter().enumerate().skip(i) {
            let allowed = 200.0 + 20.0 * to.duration_since(*from).as_secs_f64();
            assert!((j - i) as f64 <= allowed + late as f64, "{} writes in {:?}", j - i + 1, to.duration_since(*from));
        }
    }
}

#[test]
fn slow_killed_a_hundred_times_under_load() {
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let day = shop::day(seed, 20_000);
    let (shared, total) = Shared::batches(&day.events, 40, &mut rng);
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut server = Server::on(&data, &[]);
    server.address.clone_into(&mut shared.address.write().unwrap());
    let (shared, senders) = start_senders(shared);
    let hot = [format!("/v1/live/maps/product.{}", day.hottest_product), "/v1/live/documents/checkout.contact".to_owned()];
    let watchers: Vec<_> = hot
        .into_iter()
        .map(|path| {
            std::thread::spawn({
                let shared = Arc::clone(&shared);
                move || watcher(&shared, &path)
            })
        })
        .collect();
    for _ in 0..ROUNDS {
        shared.unlocked.fetch_add(total / ROUNDS + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(rng.random_range(5..150)));
        server.kill();
        server = Server::on(&data, &[]);
        server.address.clone_into(&mut shared.address.write().unwrap());
    }
    for sender in senders {
        sender.join().unwrap();
    }
    server.settle();
    shared.done.store(true, Ordering::SeqCst);
    for watcher in watchers {
        assert_budget(&watcher.join().unwrap(), 1);
    }
    shop::assert_archived_once(&server, &day);
    shop::assert_reports_equal_tally(&server, &day);
    server.assert_audit();
    assert!(server.stop().success());
    assert!(inspect::assert_revisions_equal_changes(&data, inspect::LogPlace::Embedded(&data), "embedded") > 10, "the day made objects");
}
