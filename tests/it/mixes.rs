//! The four mixes of {embedded, Kafka} and {embedded, Cassandra}: the same events, taken at the same moment, give the same reports, objects and revisions.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use contrail::app::{self, Options, Running};
use contrail::config::Config;
use contrail::event::{Clock, Timestamp};
use contrail::site::Bootstrap;
use serde_json::{Map, Value};
use tokio::runtime::Runtime;

use crate::data::real_file;
use crate::foreign::{Tenant, carry_sites, program};
use crate::harness::{KEY, READ, Server, binary};
use crate::http::{Answer, Connection, again};
use crate::same::{assert_same, copy};
use crate::{inspect, shop};

/// Where one mix keeps what.
struct Mix {
    name: &'static str,
    /// Of its topics.
    prefix: String,
    /// Log, objects and archive.
    urls: [String; 3],
}

impl Mix {
    fn settings(&self) -> Vec<(&'static str, &str)> {
        let [log, store, archive] = &self.urls;
        vec![
            ("CONTRAIL_LOG", log),
            ("CONTRAIL_STORE", store),
            ("CONTRAIL_ARCHIVE", archive),
            ("CONTRAIL_KAFKA_PREFIX", &self.prefix),
            ("CONTRAIL_KAFKA_REPLICATION", "1"),
            ("CONTRAIL_KAFKA_ALLOW_SINGLE_REPLICA", "true"),
            ("CONTRAIL_KAFKA_SESSION_TIMEOUT", "10s"),
            ("CONTRAIL_SCYLLA_REPLICATION", "{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}"),
        ]
    }

    fn on_cassandra(&self) -> bool {
        self.urls[1] != "embedded"
    }

    fn migrate(&self) -> Output {
        program(&self.settings()).arg("migrate").stderr(Stdio::piped()).output().unwrap()
    }
}

/// The product within this process, so that its clock is the test's. It stands while events are taken.
struct Held {
    running: Running,
    runtime: Runtime,
    clock: Clock,
    data: PathBuf,
}

impl Held {
    fn start(mix: &Mix, data: &Path, at: Timestamp) -> Self {
        let given = [("CONTRAIL_DATA", data.to_str().unwrap()), ("CONTRAIL_LISTEN", "127.0.0.1:0")];
        let variables = mix.settings().into_iter().chain(given).map(|(key, value)| (key.to_owned(), value.to_owned()));
        let config = Config::load(None, variables, toml::Table::new()).unwrap();
        let bootstrap = Bootstrap { ingest_key: Some(KEY.into()), read_token: Some(READ.into()) };
        let clock = Clock::fixed(at);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let running = runtime.block_on(app::start(config, Options { bootstrap, clock: clock.clone() })).unwrap();
        Self { running, runtime, clock, data: data.to_owned() }
    }

    fn call(&self, method: &str, path: &str, token: &str, body: &[u8]) -> Answer {
        let mut connection = Connection::open(&self.running.address().to_string()).unwrap();
        connection.call(method, path, &[("authorization", &format!("Bearer {token}"))], body).unwrap()
    }

    fn accept(&self, events: &[Value]) {
        for chunk in events.chunks(1000) {
            let answer = again(|| self.call("POST", "/v1/events", KEY, &serde_json::to_vec(chunk).unwrap()));
            assert_eq!((answer.status, &answer.json()["rejected"]), (200, &Value::Array(vec![])), "{}", answer.text());
        }
    }

    /// Sends what `contrail import` makes of a data set. It ends once all of that has arrived, for which the clock has to go: from when everything was taken.
    fn import(&self, name: &str, file: &Path) {
        let mapping = Path::new(env!("CARGO_MANIFEST_DIR")).join("mappings").join(format!("{name}.toml"));
        let mut import =
            binary().arg("import").arg(file).arg("--map").arg(mapping).arg("--data").arg(&self.data).stdout(Stdio::piped()).spawn().unwrap();
        let mut told = BufReader::new(import.stdout.take().unwrap()).lines();
        assert!(told.by_ref().any(|line| line.unwrap().starts_with("accepted ")), "import did not take all of {name}");
        self.go_on_until(|| import.try_wait().unwrap().map(|status| assert!(status.success(), "{name}: {status}")).is_some());
    }

    /// Waits until router, keeper and archiver have passed all of it.
    fn settle(&self) {
        self.go_on_until(|| self.progress().json()["caught_up"] == Value::Bool(true));
    }

    /// Has the clock go meanwhile: writes of objects wait for theirs.
    fn go_on_until(&self, mut done: impl FnMut() -> bool) {
        let (from, began) = (self.clock.now(), Instant::now());
        while !done() {
            self.clock.set(from.plus_micros(began.elapsed().as_micros() as i64));
            assert!(began.elapsed() < LONGEST, "not settled after {LONGEST:?}: {}", self.progress().text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn progress(&self) -> Answer {
        let progress = again(|| self.call("GET", "/admin/progress", self.running.admin_token(), b""));
        assert_eq!(progress.status, 200, "{}", progress.text());
        progress
    }

    /// The books balance. Whatever asks for that waits for what is still to be written, such as what the archive tells the live objects of its reports.
    fn audit(&self, name: &str) {
        let audit = binary().args(["audit", "--data"]).arg(&self.data).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let audit = std::thread::spawn(|| audit.wait_with_output().unwrap());
        self.go_on_until(|| audit.is_finished());
        let told = audit.join().unwrap();
        assert!(told.status.success(), "{name}: {}{}", String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    }

    /// Every report's rows over all time, with each choice of bots.
    fn reports(&self, as_of: Timestamp) -> Value {
        let mut all = Map::new();
        for report in shop::REPORTS {
            for bots in ["exclude", "include", "only"] {
                let judged = matches!(report, "checkout-funnel" | "unfinished-purchases");
                let more = if judged { format!("&as_of={as_of}") } else { String::new() };
                let path = format!("/v1/reports/{report}?from=2000-01-01&to=2100-01-01&bots={bots}&limit=10000{more}");
                let answer = again(|| self.call("GET", &path, READ, b""));
                assert_eq!(answer.status, 200, "{path}: {}", answer.text());
                all.insert(format!("{report} {bots}"), answer.json()["rows"].clone());
            }
        }
        assert!(all.values().filter(|rows| rows.as_array().unwrap().len() > 3).count() >= REPORTS_THAT_TELL, "there is something to compare");
        all.into()
    }

    fn stop(self) {
        self.runtime.block_on(self.running.stop()).unwrap();
    }
}

/// Longer than anything sent at once may take to arrive.
const LONGEST: Duration = Duration::from_secs(600);

/// From one start to the next, by the product's clock: each begins later than it can have come before.
const HOUR: i64 = 3_600;

/// Answers of more than a few rows that the input makes, of 21.
const REPORTS_THAT_TELL: usize = 12;

/// The data sets whose events are sent; as the fixtures have them, and in full where these are at hand.
const SETS: [&str; 2] = ["onlineretail", "zanbil"];

fn fixture(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format!("{name}.events.ndjson"));
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What a mix makes of the input: sent, settled, stopped, started anew, and some of it sent again.
fn told(mix: &Mix, data: &Path, day: &shop::Day, at: Timestamp) -> (Value, Map<String, Value>) {
    let fixtures: Vec<Value> = SETS.into_iter().flat_map(fixture).collect();
    let mut began = at;
    let mut held = Held::start(mix, data, began);
    let mut anew = |former: Held| {
        former.settle();
        former.stop();
        began = began.plus_seconds(HOUR);
        Held::start(mix, data, began)
    };
    held.accept(&day.events);
    held.accept(&fixtures);
    for (name, file) in SETS.into_iter().filter_map(|name| Some((name, real_file(name)?))) {
        held = anew(held);
        held.import(name, &file);
    }
    held = anew(held);
    held.accept(&day.events[..100]);
    held.accept(&fixtures);
    held.settle();
    let reports = held.reports(at);
    held.audit(mix.name);
    held.stop();
    (reports, inspect::objects_of(data, &mix.urls[1], true))
}

#[test]
fn slow_kafka_and_scylla_in_every_mix_give_the_same_data() {
    let servers = Tenant::new();
    let (kafka, embedded) = (|| servers.log(), || "embedded".to_owned());
    let mix = |name, urls| Mix { name, prefix: format!("{}{name}", servers.name), urls };
    let mixes = [
        mix("embedded", [embedded(), embedded(), embedded()]),
        mix("kafka", [kafka(), embedded(), embedded()]),
        mix("scylla", [embedded(), servers.store_of("one"), servers.store_of("one")]),
        mix("both", [kafka(), servers.store_of("objects"), servers.store_of("archive")]),
    ];
    let day = shop::day(14, 6_000);
    let at = day.to.plus_seconds(1_800);
    let dir = tempfile::tempdir().unwrap();
    // All have the same site, and so the same keyed hashes.
    let first = dir.path().join("first");
    assert!(Server::on(&first, &[]).stop().success());
    let mut expected = None;
    for mix in &mixes {
        let data = dir.path().join(mix.name);
        copy(&first, &data);
        if mix.on_cassandra() {
            let unmigrated: Command = program(&mix.settings());
            assert!(Server::start(unmigrated, &data, &[]).is_err(), "nothing is served before the tables are there");
            for done in ["of version", "already"] {
                let migrated = mix.migrate();
                assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
                assert!(String::from_utf8_lossy(&migrated.stdout).contains(done), "{}", String::from_utf8_lossy(&migrated.stdout));
            }
            carry_sites(&first, &mix.urls[1]);
        }
        let told = told(mix, &data, &day, at);
        match &expected {
            None => expected = Some(told),
            Some(expected) => assert_same(expected, &told, &format!("embedded and {}", mix.name)),
        }
    }
}
