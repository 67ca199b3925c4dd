//! Several processes that share a real Kafka and a real Cassandra, each with some of the roles: they join, leave, are killed, are stopped for longer than
//! their session and are restarted one after the other, under load. Nothing acknowledged is lost, nothing counts twice, objects are those of one machine,
//! every partition makes progress.
//!
//! By default each test takes about a minute with the servers' start; `CONTRAIL_TEST_LONG=1` has them take the whole time (two minutes of joining and
//! leaving, 50 kills, 90 s of standing still).

mod calls;
mod feed;
mod kills;
mod roles;
mod rolling;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use contrail::event::Clock;
use contrail::eventlog::{Bounds, Topic};
use contrail::{archive, cql};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::crash::{Shared, start_senders};
use crate::foreign::{self, DRAIN, carry_sites};
use crate::harness::{Server, binary, binary_at};
use crate::inspect::LogPlace;
use crate::same::copy;
use crate::{inspect, shop};

/// How long a group waits for a member that is not heard of: the least that brokers take.
const SESSION: Duration = Duration::from_secs(6);

/// Longer than a partition may stand still while it has records and nodes come and go: a session, and what a rebalance and the machine's load take.
const STANDSTILL: Duration = Duration::from_secs(60);

/// Each has many nodes: one test at a time.
static ONE: Mutex<()> = Mutex::new(());

fn is_long() -> bool {
    std::env::var_os("CONTRAIL_TEST_LONG").is_some()
}

/// The servers, and the nodes' directories.
struct Cluster {
    servers: foreign::Tenant,
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
        let cluster = Self { servers: foreign::Tenant::new(), dir: tempfile::tempdir().unwrap(), _one: one };
        let migrated = cluster.program(Membership::Static).arg("migrate").stderr(Stdio::piped()).output().unwrap();
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        // The single machine that the nodes are held against has the same site, and so the same keyed hashes.
        assert!(Server::on(&cluster.single(), &[]).stop().success());
        carry_sites(&cluster.single(), &cluster.store_url());
        cluster
    }

    fn single(&self) -> PathBuf {
        self.dir.path().join("single")
    }

    fn store_url(&self) -> String {
        self.servers.store()
    }

    /// The program with the settings that all nodes share.
    fn program(&self, membership: Membership) -> Command {
        let mut program = binary();
        self.set(&mut program, membership);
        program
    }

    fn set(&self, program: &mut Command, membership: Membership) {
        program.envs([
            ("CONTRAIL_LOG", &*self.servers.log()),
            ("CONTRAIL_KAFKA_PREFIX", &*self.servers.name),
            ("CONTRAIL_STORE", &*self.store_url()),
            ("CONTRAIL_ARCHIVE", &*self.store_url()),
            ("CONTRAIL_SCYLLA_REPLICATION", "{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}"),
            ("CONTRAIL_KAFKA_REPLICATION", "1"),
            ("CONTRAIL_KAFKA_ALLOW_SINGLE_REPLICA", "true"),
            ("CONTRAIL_KAFKA_SESSION_TIMEOUT", &*format!("{}s", SESSION.as_secs())),
            ("CONTRAIL_SERVER_DRAIN", DRAIN),
            ("CONTRAIL_KAFKA_INSTANCE", if membership == Membership::Dynamic { "none" } else { "" }),
        ]);
    }

    /// A node of a directory of its own, which it finds again after a restart.
    fn node(&self, name: &str, roles: &str, membership: Membership) -> Server {
        self.node_of(self.program(membership), name, roles)
    }

    fn node_of(&self, program: Command, name: &str, roles: &str) -> Server {
        let data = self.dir.path().join(name);
        std::fs::create_dir_all(&data).unwrap();
        Server::start(program, &data, &["--roles", roles]).unwrap_or_else(|status| panic!("node {name} ended at its start: {status}"))
    }

    /// A node with a lasting name, of the build that `CONTRAIL_TEST_BEFORE` names the program of; of this one where it names none.
    fn before(&self, name: &str, roles: &str) -> Server {
        let Some(earlier) = std::env::var_os("CONTRAIL_TEST_BEFORE") else { return self.lasting(name, roles) };
        let mut program = binary_at(&earlier);
        self.set(&mut program, Membership::Static);
        self.node_of(program, name, roles)
    }

    /// The same with a lasting name.
    fn lasting(&self, name: &str, roles: &str) -> Server {
        self.node(name, roles, Membership::Static)
    }
}

/// A reader's place by partition, and the partitions' bounds.
type Places = (Vec<u64>, Vec<Bounds>);

/// Watches every reader of every partition of both topics from beside: its place in its store against the partition's end in the log.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(&'static str, Vec<Duration>)>>,
}

impl Watch {
    fn start(cluster: &Cluster) -> Self {
        let (log_url, prefix, store_url) = (cluster.servers.log(), cluster.servers.name.clone(), cluster.store_url());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let watch = async move {
            let nowhere = Path::new("");
            let log = LogPlace::Kafka { url: &log_url, prefix: &prefix }.open().await;
            let objects = inspect::store_of(nowhere, &store_url).await;
            let settings = archive::Settings { scylla: cql::Settings::default(), ..archive::Settings::default() };
            let archive = archive::open(&store_url, nowhere, &settings, Clock::system()).await.unwrap();
            let mut readers = [Standing::of("router"), Standing::of("keeper"), Standing::of("archiver")];
            while !stopped.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(300)).await;
                // What does not answer now is asked again: it stands still meanwhile.
                let (Ok(events), Ok(changes)) = (log.bounds(Topic::Events).await, log.bounds(Topic::Changes).await) else { continue };
                let (Ok((routed, kept)), Ok(cursors)) = (objects.offsets().await, archive.cursors().await) else { continue };
                let archived = cursors.iter().map(|cursor| cursor.next).collect();
                for (reader, places) in readers.iter_mut().zip([(routed, events.clone()), (kept, changes), (archived, events)]) {
                    reader.look(&places);
                }
            }
            log.close().await.unwrap();
            readers.into_iter().map(|reader| (reader.name, reader.stood)).collect()
        };
        let thread = std::thread::spawn(move || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(watch));
        Self { stop, thread }
    }

    /// No partition stood still for longer while it had records.
    fn assert_progress(self, longest: Duration) {
        self.stop.store(true, Ordering::SeqCst);
        for (name, stood) in self.thread.join().unwrap() {
            println!("{name}: longest standstill by partition {stood:.1?}");
            assert!(stood.iter().all(|time| *time < longest), "a partition of the {name} stood still: {stood:?}");
        }
    }
}

/// How long one reader stood still.
struct Standing {
    name: &'static str,
    /// By partition its place, and since when.
    moved: Vec<(u64, Instant)>,
    /// By partition the longest so far.
    stood: Vec<Duration>,
}

impl Standing {
    fn of(name: &'static str) -> Self {
        Self { name, moved: vec![(0, Instant::now()); 16], stood: vec![Duration::ZERO; 16] }
    }

    fn look(&mut self, (places, bounds): &Places) {
        for (partition, (next, bounds)) in places.iter().zip(bounds).enumerate() {
            if *next != self.moved[partition].0 || *next >= bounds.next {
                self.moved[partition] = (*next, Instant::now());
            }
            self.stood[partition] = self.stood[partition].max(self.moved[partition].1.elapsed());
        }
    }
}

/// A day of events, what the senders share of it, and what must hold of it afterwards.
struct Load {
    day: shop::Day,
    shared: Arc<Shared>,
    senders: Vec<JoinHandle<()>>,
    total: usize,
    watch: Watch,
}

impl Load {
    fn start(cluster: &Cluster, taking: &Server, rng: &mut StdRng, events: u64) -> Self {
        let day = shop::day(rng.random(), events);
        let (shared, total) = Shared::batches(&day.events, 20, rng);
        taking.address.clone_into(&mut shared.address.write().unwrap());
        let (shared, senders) = start_senders(shared);
        Self { day, shared, senders, total, watch: Watch::start(cluster) }
    }

    /// Lets the next of so many equal parts be sent.
    fn unlock(&self, parts: usize) {
        self.shared.unlocked.fetch_add(self.total / parts + 1, Ordering::SeqCst);
    }

    /// Where it is sent from now on.
    fn send_to(&self, taking: &Server) {
        taking.address.clone_into(&mut self.shared.address.write().unwrap());
    }

    /// All is sent, and [`assert_whole`].
    fn assert_whole(self, cluster: &Cluster, web: Server, nodes: Vec<Server>, standstill: Duration) {
        self.shared.unlocked.fetch_add(self.total, Ordering::SeqCst);
        for sender in self.senders {
            sender.join().unwrap();
        }
        web.settle();
        self.watch.assert_progress(standstill);
        assert_whole(cluster, &self.day, web, nodes);
    }
}

/// The day is archived, each event once; reports equal the simulator's tally; the audit is clean; every object has as many revisions as the log has distinct
/// changes of it, and the data it has on a single machine. Ends the nodes.
fn assert_whole(cluster: &Cluster, day: &shop::Day, web: Server, nodes: Vec<Server>) {
    shop::assert_archived_once(&web, day);
    shop::assert_reports_equal_tally(&web, day);
    web.assert_audit();
    for node in nodes {
        assert!(node.stop().success());
    }
    // What archivers told of their counts last, after the keepers had left.
    let keeper = cluster.lasting("keeper-of-the-rest", "sync");
    web.settle();
    for node in [keeper, web] {
        assert!(node.stop().success());
    }
    let single = cluster.dir.path().join("single-after");
    copy(&cluster.single(), &single);
    let server = Server::on(&single, &[]);
    server.accept(&day.events);
    server.settle();
    assert!(server.stop().success());
    let (here, there) = (inspect::objects_of(&single, "embedded", false), inspect::objects_of(&single, &cluster.store_url(), false));
    assert_eq!(here.keys().collect::<Vec<_>>(), there.keys().collect::<Vec<_>>(), "objects");
    for (name, object) in &here {
        assert_eq!(Some(object), there.get(name), "{name}");
    }
    let log = LogPlace::Kafka { url: &cluster.servers.log(), prefix: &cluster.servers.name };
    assert!(inspect::assert_revisions_equal_changes(&single, log, &cluster.store_url()) > 100);
}

fn seeded() -> StdRng {
    let seed = rand::rng().random();
    println!("seed {seed}");
    StdRng::seed_from_u64(seed)
}

fn signal(server: &Server, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &server.pid().to_string()]).status().unwrap().success());
}
