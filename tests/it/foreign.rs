//! A real Kafka or Cassandra, of one test or shared by several, brought up by `tests/servers/run`, and what must hold on either.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use contrail::site;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::metadata::MetadataTopic;
use scylla::client::session_builder::SessionBuilder;

use crate::crash::{Shared, start_senders};
use crate::harness::{Server, binary};
use crate::{inspect, shop};

/// One server, of the test's own: it is killed and started again at will, and ends with the test.
pub(crate) struct Foreign {
    dir: tempfile::TempDir,
    name: String,
    /// host:port.
    pub(crate) address: String,
}

fn run(arguments: &[&str], dir: &Path) -> String {
    let out = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/run")).args(arguments).arg("--dir").arg(dir).output().unwrap();
    assert!(out.status.success(), "tests/servers/run {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

impl Foreign {
    /// `kafka` or `cassandra`.
    pub(crate) fn up(kind: &str) -> Self {
        Self::up_with(kind, &[])
    }

    /// The same, with more arguments. Of several servers this is the first, and their addresses are separated by commas.
    pub(crate) fn up_with(kind: &str, arguments: &[&str]) -> Self {
        Self::begin(kind, &[&["--own"], arguments].concat())
    }

    fn begin(kind: &str, arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let told = run(&[&["up", kind], arguments].concat(), dir.path());
        let key = format!("{}=", kind.to_uppercase());
        let address = told.lines().find_map(|line| line.strip_prefix(&key)).unwrap().to_owned();
        Self { dir, name: format!("{kind}-1"), address }
    }

    /// As a process dies, with the last of what it acknowledged where it had not even given that to the kernel.
    pub(crate) fn kill(&self) {
        self.kill_named(&self.name);
    }

    /// The same of one of several.
    pub(crate) fn kill_named(&self, name: &str) {
        run(&["stop", name, "--kill"], self.dir.path());
    }

    /// Sends its process a signal by name: "STOP" has it stand still with its connections open, "CONT" go on.
    pub(crate) fn signal(&self, name: &str) {
        let told = std::fs::read_to_string(self.dir.path().join(&self.name).join("pid")).unwrap();
        let (pid, _started) = told.split_once(' ').unwrap();
        assert!(Command::new("kill").args([&format!("-{name}"), pid]).status().unwrap().success());
    }

    /// What all its servers keep, each in a directory of its name.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Back on the same directory.
    pub(crate) fn restart(&self) {
        self.restart_named(&self.name);
    }

    /// The same of one of several.
    pub(crate) fn restart_named(&self, name: &str) {
        run(&["start", name], self.dir.path());
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        run(&["down", "--kill"], self.dir.path());
    }
}

static BROKER: OnceLock<Foreign> = OnceLock::new();
static NODE: OnceLock<Foreign> = OnceLock::new();

/// A test that works on servers which others use, too, and leaves them as they are. `CONTRAIL_TEST_KAFKA` and `CONTRAIL_TEST_SCYLLA` name them; else they are
/// brought up when first asked for, and end with this process.
pub(crate) struct Tenant {
    /// Topics of this prefix, and keyspaces whose names begin with it, are nobody else's, and go with this.
    pub(crate) name: String,
}

impl Tenant {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Self { name: format!("it_{}_{}_", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)) }
    }

    /// The URL of the log.
    pub(crate) fn log(&self) -> String {
        format!("kafka://{}", BROKER.get_or_init(|| Foreign::begin("kafka", &["--passing"])).address)
    }

    /// The URL of the store.
    pub(crate) fn store(&self) -> String {
        self.store_of("contrail")
    }

    /// The same of one of several.
    pub(crate) fn store_of(&self, which: &str) -> String {
        format!("scylla://{}/{}{which}", NODE.get_or_init(|| Foreign::begin("cassandra", &["--unkilled", "--passing"])).address, self.name)
    }

    async fn leave(&self) -> anyhow::Result<()> {
        if let Some(Foreign { address, .. }) = BROKER.get() {
            let admin: AdminClient<DefaultClientContext> = ClientConfig::new().set("bootstrap.servers", address).create()?;
            let metadata = admin.inner().fetch_metadata(None, Duration::from_secs(30))?;
            let ours: Vec<&str> = metadata.topics().iter().map(MetadataTopic::name).filter(|topic| topic.starts_with(&self.name)).collect();
            admin.delete_topics(&ours, &AdminOptions::new()).await?;
        }
        if let Some(Foreign { address, .. }) = NODE.get() {
            let session = SessionBuilder::new().known_nodes(address.split(',')).build().await?;
            let keyspaces = session.query_unpaged("SELECT keyspace_name FROM system_schema.keyspaces", ()).await?.into_rows_result()?;
            for row in keyspaces.rows::<(String,)>()? {
                let (keyspace,) = row?;
                if keyspace.starts_with(&self.name) {
                    session.query_unpaged(format!("DROP KEYSPACE {keyspace}"), ()).await?;
                }
            }
        }
        Ok(())
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        if let Err(error) = runtime.block_on(self.leave()) {
            eprintln!("something of {} stays: {error}", self.name);
        }
    }
}

/// Time to end in: whoever does waits for servers that share its processors with those of other tests.
pub(crate) const DRAIN: &str = "90s";

/// The program with settings of its environment.
pub(crate) fn program(settings: &[(&str, &str)]) -> Command {
    let mut command = binary();
    command.env("CONTRAIL_SERVER_DRAIN", DRAIN).envs(settings.iter().copied());
    command
}

/// That program, serving.
pub(crate) fn serve(program: Command, data: &Path) -> Server {
    Server::start(program, data, &[]).unwrap_or_else(|status| panic!("the server ended at its start: {status}"))
}

/// Rows of a statement, asked of one node of those at these addresses.
pub(crate) fn rows_of(address: &str, statement: &str) -> String {
    let script = "import sys; sys.path.insert(0, sys.argv[1]); sys.dont_write_bytecode = True; import cql\n\
                  with cql.Connection(sys.argv[2]) as c: print([[(v or b'').decode(errors='replace') for v in row] for row in c.query(sys.argv[3])])";
    let tools = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers");
    let out = Command::new("python3").args(["-c", script, tools, address, statement]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Puts the sites of a data directory where a store on a cluster has them.
pub(crate) fn carry_sites(data: &Path, store: &str) {
    if store == "embedded" {
        return;
    }
    let carrying = async {
        let settings = site::Settings::default();
        let (here, there) = (site::open("embedded", data, &settings).await.unwrap(), site::open(store, data, &settings).await.unwrap());
        assert_eq!(site::carry(&*here, &*there).await.unwrap(), 1);
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(carrying);
}

/// How [`assert_kills_lose_nothing`] kills.
pub(crate) struct Kills {
    pub(crate) rounds: usize,
    /// Longest time between two, in milliseconds.
    pub(crate) apart: u64,
    /// One in so many is the other server's, the rest are the program's.
    pub(crate) others: usize,
    /// Where objects are kept, if their revisions are to be held against a log in the data directory.
    pub(crate) objects: Option<String>,
}

/// The program and the server it stands on are killed in turns under load: every acknowledged event is archived once, reports equal the simulator's tally, and the
/// audit is clean.
pub(crate) fn assert_kills_lose_nothing(foreign: &Foreign, kills: &Kills, serve: impl Fn(&Path) -> Server) {
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let day = shop::day(seed, 10_000);
    let (shared, total) = Shared::batches(&day.events, 40, &mut rng);
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut server = serve(&data);
    server.address.clone_into(&mut shared.address.write().unwrap());
    let (shared, senders) = start_senders(shared);
    for round in 0..kills.rounds {
        shared.unlocked.fetch_add(total / kills.rounds + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(rng.random_range(5..kills.apart)));
        if round % kills.others == 3 {
            foreign.kill();
            foreign.restart();
        } else {
            server.kill();
            server = serve(&data);
            server.address.clone_into(&mut shared.address.write().unwrap());
        }
    }
    for sender in senders {
        sender.join().unwrap();
    }
    server.settle();
    shop::assert_archived_once(&server, &day);
    shop::assert_reports_equal_tally(&server, &day);
    server.assert_audit();
    assert!(server.stop().success());
    if let Some(store) = &kills.objects {
        assert!(inspect::assert_revisions_equal_changes(&data, inspect::LogPlace::Embedded(&data), store) > 100);
    }
}
