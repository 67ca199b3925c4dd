//! Several processes that share a real Kafka and a real Cassandra, each with some of the roles: they join, leave, are killed and are stopped for longer than
//! their session, under load. Nothing acknowledged is lost, nothing counts twice, every partition makes progress.
//!
//! By default each test takes well under a minute beside the servers' start; `CONTRAIL_TEST_LONG=1` has them take the whole time (two minutes of joining
//! and leaving, 50 kills, 90 s of standing still).

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use contrail::event::Clock;
use contrail::eventlog::{EventLog, Topic};
use contrail::{archive, cql, eventlog};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::crash::{Shared, start_senders};
use crate::foreign::{Foreign, program};
use crate::harness::Server;
use crate::shop;

/// How long a group waits for a member that is not heard of: the least that brokers take.
const SESSION: Duration = Duration::from_secs(6);

/// Longer than a partition may stand still while it has records and nodes come and go: a session, and what a rebalance and the machine's load take.
const STANDSTILL: Duration = Duration::from_secs(60);

/// Servers of these tests are large: one test at a time.
static ONE: Mutex<()> = Mutex::new(());

fn is_long() -> bool {
    std::env::var_os("CONTRAIL_TEST_LONG").is_some()
}

/// The servers, and the nodes' directories.
struct Cluster {
    kafka: Foreign,
    cassandra: Foreign,
    dir: tempfile::TempDir,
    _one: MutexGuard<'static, ()>,
}

/// A name that is kept over restarts, or none.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Membership {
    Static,
    Dynamic,
}

impl Cluster {
    fn up() -> Self {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster = Self { kafka: Foreign::up("kafka"), cassandra: Foreign::up("cassandra"), dir: tempfile::tempdir().unwrap(), _one: one };
        let migrated = cluster.program(Membership::Static).arg("migrate").stderr(Stdio::piped()).output().unwrap();
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        // Every node has the same sites, and so the same keyed hashes.
        assert!(Server::on(&cluster.dir.path().join("sites"), &[]).stop().success());
        cluster
    }

    fn archive_url(&self) -> String {
        format!("scylla://{}/contrail", self.cassandra.address)
    }

    fn log_url(&self) -> String {
        format!("kafka://{}", self.kafka.address)
    }

    /// The program with the settings that all nodes share.
    fn program(&self, membership: Membership) -> Command {
        program(&[
            ("CONTRAIL_LOG", &*self.log_url()),
            ("CONTRAIL_ARCHIVE", &*self.archive_url()),
            ("CONTRAIL_SCYLLA_REPLICATION", "{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}"),
            ("CONTRAIL_KAFKA_REPLICATION", "1"),
            ("CONTRAIL_KAFKA_ALLOW_SINGLE_REPLICA", "true"),
            ("CONTRAIL_KAFKA_SESSION_TIMEOUT", &*humantime(SESSION)),
            ("CONTRAIL_KAFKA_INSTANCE", if membership == Membership::Dynamic { "none" } else { "" }),
        ])
    }

    /// A node's own directory.
    fn data(&self, name: &str) -> PathBuf {
        let data = self.dir.path().join(name);
        if !data.exists() {
            std::fs::create_dir(&data).unwrap();
            std::fs::copy(self.dir.path().join("sites/sites.db"), data.join("sites.db")).unwrap();
        }
        data
    }

    fn node(&self, name: &str, roles: &str, membership: Membership) -> Server {
        Server::start(self.program(membership), &self.data(name), &["--roles", roles])
            .unwrap_or_else(|status| panic!("node {name} ended at its start: {status}"))
    }

    /// All but the archive: objects are in its own directory.
    fn front(&self) -> Server {
        self.node("front", "ingest,sync,web", Membership::Static)
    }

    fn archiver(&self, name: &str) -> Server {
        self.node(name, "archive", Membership::Static)
    }
}

fn humantime(span: Duration) -> String {
    format!("{}s", span.as_secs())
}

/// Watches every partition of `events` from beside: its cursor in the archive against its end in the log.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Duration>>,
}

impl Watch {
    fn start(cluster: &Cluster) -> Self {
        let (log_url, archive_url) = (cluster.log_url(), cluster.archive_url());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let watch = async move {
            let kafka = eventlog::kafka::Settings { replication: 1, allow_single_replica: true, ..eventlog::kafka::Settings::default() };
            let settings = eventlog::Settings { kafka, ..eventlog::Settings::default() };
            let nowhere = std::path::Path::new("");
            let log: Arc<dyn EventLog> = eventlog::open(&log_url, nowhere, settings, Clock::system()).await.unwrap();
            let settings = archive::Settings { scylla: cql::Settings::default(), ..archive::Settings::default() };
            let archive = archive::open(&archive_url, nowhere, &settings, Clock::system()).await.unwrap();
            let mut moved = vec![(0, Instant::now()); 16];
            let mut stood = vec![Duration::ZERO; 16];
            while !stopped.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(300)).await;
                // What does not answer now is asked again: it stands still meanwhile.
                let (Ok(bounds), Ok(cursors)) = (log.bounds(Topic::Events).await, archive.cursors().await) else { continue };
                for (partition, (bounds, cursor)) in bounds.iter().zip(cursors).enumerate() {
                    if cursor.next != moved[partition].0 || cursor.next >= bounds.next {
                        moved[partition] = (cursor.next, Instant::now());
                    }
                    stood[partition] = stood[partition].max(moved[partition].1.elapsed());
                }
            }
            log.close().await.unwrap();
            stood
        };
        let thread = std::thread::spawn(move || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(watch));
        Self { stop, thread }
    }

    /// No partition stood still for longer while it had records.
    fn assert_progress(self, longest: Duration) {
        self.stop.store(true, Ordering::SeqCst);
        let stood = self.thread.join().unwrap();
        println!("longest standstill by partition: {stood:?}");
        assert!(stood.iter().all(|time| *time < longest), "a partition stood still: {stood:?}");
    }
}

/// A day of events sent to the front while something happens, and what must hold of it afterwards.
struct Load {
    day: shop::Day,
    shared: Arc<Shared>,
    senders: Vec<JoinHandle<()>>,
    total: usize,
    watch: Watch,
}

impl Load {
    fn start(cluster: &Cluster, front: &Server, rng: &mut StdRng, events: u64) -> Self {
        let day = shop::day(rng.random(), events);
        let (shared, total) = Shared::batches(&day.events, 20, rng);
        front.address.clone_into(&mut shared.address.write().unwrap());
        let (shared, senders) = start_senders(shared);
        Self { day, shared, senders, total, watch: Watch::start(cluster) }
    }

    /// Lets the next of so many equal parts be sent.
    fn unlock(&self, parts: usize) {
        self.shared.unlocked.fetch_add(self.total / parts + 1, Ordering::SeqCst);
    }

    /// All is sent and archived, each event once; reports equal the simulator's tally; the audit is clean; no partition stood still.
    fn assert_whole(self, front: &Server, standstill: Duration) {
        self.shared.unlocked.fetch_add(self.total, Ordering::SeqCst);
        for sender in self.senders {
            sender.join().unwrap();
        }
        front.settle();
        self.watch.assert_progress(standstill);
        shop::assert_archived_once(front, &self.day);
        shop::assert_reports_equal_tally(front, &self.day);
        front.assert_audit();
    }
}

fn seeded() -> StdRng {
    let seed = rand::rng().random();
    println!("seed {seed}");
    StdRng::seed_from_u64(seed)
}

fn signal(server: &Server, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &server.pid().to_string()]).status().unwrap().success());
}

#[test]
fn slow_cluster_each_role_answers_for_itself_and_freshness_is_told_anywhere() {
    let cluster = Cluster::up();
    let front = cluster.front();
    let events: Vec<Value> = (0..60)
        .map(|n| json!({"type": "product_viewed", "event_id": format!("v{n}"), "product": {"id": "p1", "name": "Mug"}, "customer": {"id": format!("c{n}")}}))
        .collect();
    // Taken by a node that has nothing but ingest.
    let taking = cluster.node("taking", "ingest", Membership::Static);
    taking.accept(&events);
    let refused = taking.get("/v1/reports/top-viewed");
    assert_eq!((refused.status, &refused.json()["code"]), (404, &json!("role_missing")), "{}", refused.text());
    assert_eq!(taking.get("/v1/live/maps/product.p1").json()["code"], "role_missing");
    assert_eq!(taking.admin("GET", "/admin/audit", b"").json()["code"], "role_missing");
    assert_eq!((taking.get("/readyz").status, taking.get("/metrics").status), (200, 200));
    let progress = taking.admin("GET", "/admin/progress", b"").json();
    assert_eq!(progress, json!({"caught_up": false, "behind": {"router": null, "keeper": null, "archiver": null}}), "it does not know");

    // Nobody archives yet: an answer says how old it is.
    let report = front.read("/v1/reports/top-viewed");
    assert_eq!(report["rows"], json!([]));
    assert!(report["lag_seconds"].as_i64().unwrap() > 1_000, "{report}");
    assert_eq!(front.admin("GET", "/admin/progress", b"").json()["behind"]["archiver"], 60);

    // Two archivers: whoever owns partition 0 also tells of what the other counts.
    let (one, two) = (cluster.archiver("one"), cluster.archiver("two"));
    assert_eq!(one.post(b"{}").json()["code"], "role_missing");
    front.settle();
    let report = front.read("/v1/reports/top-viewed");
    assert_eq!((&report["rows"][0]["views"], &report["lag_seconds"]), (&json!(60), &json!(0)), "{report}");
    front.assert_audit();
    assert!(two.audit().0, "a node of the archive can say so too");
    for round in 1..=3u64 {
        taking.accept(
            &(0..40).map(|n| json!({"type": "product_viewed", "event_id": format!("r{round}-{n}"), "product": {"id": "p1"}})).collect::<Vec<_>>(),
        );
        let asked = Instant::now();
        loop {
            let told = front.get("/v1/live/documents/top.viewed");
            if told.status == 200 && told.json()["data"]["rows"][0]["views"] == 60 + round * 40 {
                break;
            }
            assert!(asked.elapsed() < Duration::from_secs(30), "the dashboard lacks what one archiver counted: {}", told.text());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    for node in [taking, one, two, front] {
        assert!(node.stop().success());
    }
}

#[test]
fn roles_that_cannot_be_split_are_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |settings: &[(&str, &str)], roles: &str, told: &str| {
        let out = program(settings)
            .args(["serve", "--listen", "127.0.0.1:0", "--roles", roles, "--data"])
            .arg(dir.path().join("data"))
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains(told), "{said}");
    };
    refused(&[], "ingest", "log = \"embedded\" is this process's alone");
    // Refused before anybody is asked.
    let log = ("CONTRAIL_LOG", "kafka://127.0.0.1:1");
    refused(&[log], "ingest,web,archive", "store = \"embedded\" is this process's alone");
    refused(&[log], "ingest,sync,web", "archive = \"embedded\" is this process's alone");
}

/// So many archivers stay while up to so many others join or leave every second.
fn come_and_go(lasting: usize, others: usize) {
    let cluster = Cluster::up();
    let mut rng = seeded();
    let front = cluster.front();
    let seconds = if is_long() { 120 } else { 20 };
    let load = Load::start(&cluster, &front, &mut rng, 8_000);
    let stays: Vec<Server> = (0..lasting).map(|n| cluster.archiver(&format!("stays-{n}"))).collect();
    let mut guests: Vec<Server> = Vec::new();
    let began = Instant::now();
    let mut round = 0;
    while began.elapsed() < Duration::from_secs(seconds) {
        load.unlock(seconds as usize);
        let next = began + Duration::from_secs(round + 1);
        round += 1;
        // Without a lasting name: whoever joins or leaves moves partitions at once.
        if guests.len() < others && (guests.is_empty() || rng.random_bool(0.5)) {
            guests.push(cluster.node(&format!("guest-{round}"), "archive", Membership::Dynamic));
        } else {
            let guest = guests.swap_remove(rng.random_range(0..guests.len()));
            assert!(guest.stop().success());
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    println!("{round} joined or left in {:?}", began.elapsed());
    load.assert_whole(&front, STANDSTILL);
    for node in stays.into_iter().chain(guests).chain([front]) {
        assert!(node.stop().success());
    }
}

#[test]
fn slow_cluster_archivers_join_and_leave_every_second() {
    come_and_go(1, 1);
}

#[test]
fn slow_cluster_archivers_join_and_leave_every_second_beside_two() {
    come_and_go(2, 2);
}

#[test]
fn slow_cluster_archivers_killed_under_load_lose_nothing() {
    let cluster = Cluster::up();
    let mut rng = seeded();
    let front = cluster.front();
    let load = Load::start(&cluster, &front, &mut rng, 8_000);
    let rounds = if is_long() { 50 } else { 10 };
    let names = ["one", "two", "three"];
    let mut nodes: Vec<Server> = names.iter().map(|name| cluster.archiver(name)).collect();
    for _ in 0..rounds {
        load.unlock(rounds);
        std::thread::sleep(Duration::from_millis(rng.random_range(20..1_500)));
        let at = rng.random_range(0..nodes.len());
        let node = nodes.remove(at);
        node.kill();
        // Sometimes long enough that the others take its partitions.
        if rng.random_bool(0.2) {
            std::thread::sleep(SESSION + Duration::from_secs(2));
        }
        nodes.insert(at, cluster.archiver(names[at]));
    }
    // Its owner may be killed several times in turn.
    load.assert_whole(&front, 3 * STANDSTILL);
    for node in nodes.into_iter().chain([front]) {
        assert!(node.stop().success());
    }
}

#[test]
fn slow_cluster_an_archiver_that_stood_still_past_its_session_writes_nothing_over() {
    let cluster = Cluster::up();
    let mut rng = seeded();
    let front = cluster.front();
    let load = Load::start(&cluster, &front, &mut rng, 8_000);
    let nodes = [cluster.archiver("one"), cluster.archiver("two")];
    let (rounds, still) = if is_long() { (4, Duration::from_secs(90)) } else { (3, SESSION + Duration::from_secs(8)) };
    for round in 0..rounds {
        load.unlock(2 * rounds);
        // In the midst of a batch, more often than not.
        std::thread::sleep(Duration::from_millis(rng.random_range(200..1_000)));
        let stopped = &nodes[round % 2];
        signal(stopped, "STOP");
        load.unlock(2 * rounds);
        std::thread::sleep(still);
        signal(stopped, "CONT");
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(stopped.get("/readyz").status, 200, "it goes on");
    }
    load.assert_whole(&front, STANDSTILL);
    for node in nodes.into_iter().chain([front]) {
        assert!(node.stop().success());
    }
}
