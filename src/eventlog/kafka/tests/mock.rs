//! librdkafka's mock cluster in a process of its own, for errors of the protocol that real brokers give at their own time only. Used by the tests of
//! faults (`faults.rs`); it ends with them.
//!
//! It knows no CreateTopics, DescribeConfigs, DeleteRecords, ListGroups, DescribeGroups and DeleteGroups: topics are made on order, and a log over it is put
//! together, not opened. It does not check an idempotent producer's sequence numbers: a batch that is sent again after its connection broke may be there twice.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::bindings::rd_kafka_resp_err_t as Code;
use rdkafka::mocking::{MockCluster, MockCoordinator};
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::RDKafkaApiKey as Api;

/// Brokers are numbered from 1.
pub(super) const BROKERS: i32 = 3;

/// The requests that can be made to fail.
const APIS: [Api; 11] = [
    Api::Produce,
    Api::Fetch,
    Api::ListOffsets,
    Api::Metadata,
    Api::OffsetCommit,
    Api::OffsetFetch,
    Api::FindCoordinator,
    Api::JoinGroup,
    Api::Heartbeat,
    Api::SyncGroup,
    Api::InitProducerId,
];

/// Set for the process that is the cluster.
const ORDERED: &str = "CONTRAIL_TEST_MOCK_CLUSTER";

/// Before everything that the cluster answers: the test runner writes beside it.
const ANSWER: &str = "mock cluster: ";

/// The running cluster. Dropped, it ends.
pub(super) struct Mock {
    child: Child,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    servers: String,
}

impl Mock {
    pub(super) fn up() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "eventlog::kafka::tests::mock::a_cluster_where_one_is_ordered", "--nocapture", "--test-threads=1"]);
        command.env(ORDERED, "1").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut pipes = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let servers = answer(&mut pipes.1);
        Self { child, pipes: Mutex::new(pipes), servers }
    }

    /// Where its brokers are, in the order of their numbers.
    pub(super) fn servers(&self) -> &str {
        &self.servers
    }

    /// The same.
    pub(super) fn url(&self) -> String {
        format!("kafka://{}", self.servers)
    }

    fn order(&self, order: &str) {
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(pipes.0, "{order}").unwrap();
        assert_eq!(answer(&mut pipes.1), "done", "{order}");
    }

    /// Makes a topic, with a replica on every broker.
    pub(super) fn make_topic(&self, name: &str, partitions: u16) {
        self.order(&format!("topic {name} {partitions}"));
    }

    /// The next requests of a kind are answered so, one after the other, whichever broker takes them.
    pub(super) fn fail(&self, api: Api, codes: &[Code]) {
        let codes: Vec<String> = codes.iter().map(|code| (*code as i32).to_string()).collect();
        self.order(&format!("fail {} {}", i16::from(api), codes.join(" ")));
    }

    /// Requests of a kind are spoken in versions up to this one.
    pub(super) fn speak(&self, api: Api, max: i16) {
        self.order(&format!("speak {} {max}", i16::from(api)));
    }

    pub(super) fn lead(&self, topic: &str, partition: u16, broker: i32) {
        self.order(&format!("lead {topic} {partition} {broker}"));
    }

    pub(super) fn coordinate(&self, group: &str, broker: i32) {
        self.order(&format!("coordinate {group} {broker}"));
    }

    /// A broker that cannot be reached goes on leading its partitions.
    pub(super) fn reachable(&self, broker: i32, reachable: bool) {
        self.order(&format!("{} {broker}", if reachable { "up" } else { "down" }));
    }

    /// How long a broker keeps each answer.
    pub(super) fn delay(&self, broker: i32, delay: Duration) {
        self.order(&format!("delay {broker} {}", delay.as_millis()));
    }

    /// STOP: its connections stay open and nothing answers; CONT: it goes on.
    pub(super) fn signal(&self, name: &str) {
        let signalled = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(signalled.success());
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn answer(answers: &mut impl BufRead) -> String {
    loop {
        let mut line = String::new();
        assert!(answers.read_line(&mut line).unwrap() > 0, "the mock cluster ended");
        if let Some((_, answer)) = line.split_once(ANSWER) {
            return answer.trim_end().to_owned();
        }
    }
}

/// The other process: a cluster that does as it is told until nobody tells it any more.
#[test]
fn a_cluster_where_one_is_ordered() {
    if std::env::var_os(ORDERED).is_none() {
        return;
    }
    let cluster = MockCluster::new(BROKERS).unwrap();
    println!("{ANSWER}{}", cluster.bootstrap_servers());
    for order in std::io::stdin().lines() {
        obey(&cluster, &order.unwrap());
        println!("{ANSWER}done");
    }
}

fn obey(cluster: &MockCluster<'_, DefaultProducerContext>, order: &str) {
    let words: Vec<&str> = order.split(' ').collect();
    let number = |at: usize| words[at].parse::<i32>().unwrap();
    let api = |at: usize| APIS.into_iter().find(|api| i32::from(i16::from(*api)) == number(at)).unwrap();
    match words[0] {
        "topic" => cluster.create_topic(words[1], number(2), BROKERS).unwrap(),
        "fail" => {
            let codes: Vec<Code> = (2..words.len()).map(|at| Code::try_from(number(at)).unwrap()).collect();
            cluster.request_errors(api(1), &codes);
        }
        "speak" => cluster.apiversion(api(1), Some(0), Some(number(2).try_into().unwrap())).unwrap(),
        "lead" => cluster.partition_leader(words[1], number(2), Some(number(3))).unwrap(),
        "coordinate" => cluster.coordinator(MockCoordinator::Group(words[1].to_owned()), number(2)).unwrap(),
        "up" => cluster.broker_up(number(1)).unwrap(),
        "down" => cluster.broker_down(number(1)).unwrap(),
        "delay" => cluster.broker_round_trip_time(number(1), Duration::from_millis(number(2).try_into().unwrap())).unwrap(),
        other => panic!("no such order: {other}"),
    }
}
