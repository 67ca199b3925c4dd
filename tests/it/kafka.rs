//! The whole product with its log on a real Kafka: nothing is lost or counted twice when either is killed.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use contrail::eventlog::Topic;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::crash::{Shared, start_senders};
use crate::drain::{assert_kept, assert_what_was_taken_is_answered};
use crate::foreign::{Foreign, Kills, assert_kills_lose_nothing, program, serve};
use crate::harness::{Server, wait_for};
use crate::inspect::LogPlace;
use crate::outages::append_raw;
use crate::shop;

/// The program with its log on this broker.
fn contrail(broker: &Foreign, data: &Path) -> Server {
    serve(command(broker), data)
}

fn command(broker: &Foreign) -> Command {
    let settings = [
        ("CONTRAIL_LOG", &*format!("kafka://{}", broker.address)),
        ("CONTRAIL_KAFKA_REPLICATION", "1"),
        ("CONTRAIL_KAFKA_ALLOW_SINGLE_REPLICA", "true"),
        ("CONTRAIL_KAFKA_SESSION_TIMEOUT", "10s"),
    ];
    program(&settings)
}

#[test]
fn slow_kafka_and_contrail_killed_under_load_lose_nothing() {
    let broker = Foreign::up("kafka");
    assert_kills_lose_nothing(&broker, &Kills { rounds: 15, apart: 800, others: 7, objects: None }, |data| contrail(&broker, data));
}

#[test]
fn slow_a_broker_that_is_away_stops_nothing_for_good() {
    // Longer than a record may wait for its broker (20 s) and than a session lasts (10 s): appends fail, and readers are made anew.
    const AWAY: Duration = Duration::from_secs(60);
    let broker = Foreign::up("kafka");
    let day = shop::day(15, 4_000);
    let (first, rest) = day.events.split_at(2_000);
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = contrail(&broker, &data);
    let pid = server.pid();
    server.accept(first);
    let (shared, total) = Shared::batches(rest, 20, &mut StdRng::seed_from_u64(15));
    server.address.clone_into(&mut shared.address.write().unwrap());
    let (shared, senders) = start_senders(shared);
    shared.unlocked.store(total / 4, Ordering::SeqCst);
    wait_for("some is sent", Duration::from_secs(60), || shared.sent.load(Ordering::SeqCst) >= total / 4);
    broker.kill();
    let gone = Instant::now();
    // Whoever sends goes on, and is told to come again.
    shared.unlocked.store(total, Ordering::SeqCst);
    let refused = server.post(&serde_json::to_vec(&first[..10]).unwrap());
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{}", refused.text());
    assert_eq!(refused.json()["code"], "log_unavailable");
    // What operators and machines ask is answered within a scrape's usual time.
    let asked = Instant::now();
    assert_eq!(server.get("/metrics").status, 200);
    assert_eq!(server.get("/readyz").status, 200);
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert_eq!(server.get("/v1/reports/top-viewed").status, 503);
    std::thread::sleep(AWAY.saturating_sub(gone.elapsed()));
    assert!(shared.sent.load(Ordering::SeqCst) < total, "nothing is taken meanwhile");
    broker.restart();
    wait_for("all is sent", Duration::from_secs(120), || senders.iter().all(JoinHandle::is_finished));
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    server.settle();
    assert_eq!(server.pid(), pid);
    shop::assert_archived_once(&server, &day);
    shop::assert_reports_equal_tally(&server, &day);
    server.assert_audit();
    let ids = assert_what_was_taken_is_answered(server);
    assert_kept(&contrail(&broker, &data), &ids);
}

/// A reader of a topic.
type Reader = (&'static str, &'static str);

const ROUTER: Reader = ("events", "router");
const KEEPER: Reader = ("changes", "keeper");
const ARCHIVER: Reader = ("events", "archiver");

fn client(broker: &Foreign) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &broker.address);
    config
}

/// What an operator asks of a broker.
fn administer<T>(broker: &Foreign, work: impl AsyncFn(&AdminClient<DefaultClientContext>, &AdminOptions) -> T) -> T {
    let admin = client(broker).create().unwrap();
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work(&admin, &options))
}

/// What `kafka-consumer-groups.sh --reset-offsets --to-earliest --execute` does.
fn reset_offsets(broker: &Foreign) {
    for (topic, group) in [ROUTER, KEEPER, ARCHIVER] {
        let topic = format!("contrail.{topic}");
        let consumer: BaseConsumer = client(broker).set("group.id", format!("{topic}.{group}")).create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_range(&topic, 0, 15);
        list.set_all_offsets(Offset::Offset(0)).unwrap();
        consumer.commit(&list, CommitMode::Sync).unwrap();
    }
}

/// The partitions of a topic that have records, or had.
fn used(broker: &Foreign, topic: Topic) -> BTreeSet<u64> {
    let url = format!("kafka://{}", broker.address);
    let asking = async { LogPlace::Kafka { url: &url, prefix: "contrail" }.open().await.bounds(topic).await.unwrap() };
    let bounds = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(asking);
    (0..).zip(bounds).filter(|(_, bounds)| bounds.next > 0).map(|(partition, _)| partition).collect()
}

/// A server, what it logs going to a file.
fn logging(broker: &Foreign, data: &Path) -> (Server, File) {
    let mut command = command(broker);
    // No name: nobody waits for its session to end.
    command.env("CONTRAIL_KAFKA_INSTANCE", "none");
    let log = tempfile::tempfile().unwrap();
    (Server::logging(command, data, &[], Some(log.try_clone().unwrap())).unwrap(), log)
}

/// Waits until `/readyz` names these partitions and no others, for a reason like this one, and stops the server, which logged the reason too.
fn assert_refused((server, mut log): (Server, File), expected: &[(Reader, &BTreeSet<u64>)], why: &str) {
    let expected: BTreeSet<(&str, bool, u64)> = expected
        .iter()
        .flat_map(|(reader, partitions)| partitions.iter().map(move |partition| (reader.0, *reader == ARCHIVER, *partition)))
        .collect();
    let asked = Instant::now();
    loop {
        let told = server.get("/readyz");
        assert_eq!(told.status, 200, "the others serve");
        let told = told.json();
        let stopped = told["stopped_partitions"].as_array().unwrap();
        let named: BTreeSet<(&str, bool, u64)> =
            stopped.iter().map(|one| (one["topic"].as_str().unwrap(), one["reader"] == "archiver", one["partition"].as_u64().unwrap())).collect();
        assert!(stopped.iter().all(|one| one["why"].as_str().unwrap().contains(why)), "{why}: {stopped:?}");
        assert!(named.is_subset(&expected), "{named:?} of {expected:?}");
        if named == expected {
            break;
        }
        assert!(asked.elapsed() < Duration::from_secs(60), "named are {named:?} of {expected:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(server.stop().success());
    let mut text = String::new();
    log.seek(SeekFrom::Start(0)).unwrap();
    log.read_to_string(&mut text).unwrap();
    let told = text.lines().filter(|line| line.contains("ERROR") && line.contains(why)).count();
    assert!(told >= expected.len(), "{told} of {}: {text}", expected.len());
}

#[test]
fn slow_a_log_that_is_no_longer_its_readers_is_refused_and_an_operator_told_what_to_do() {
    let broker = Foreign::up("kafka");
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let day = shop::day(3, 2_400);
    let (first, rest) = day.events.split_at(800);
    let (then, last) = rest.split_at(800);
    let goes_on = |(server, _): (Server, File), events: &[serde_json::Value]| {
        server.accept(events);
        server.settle();
        assert_eq!(server.get("/readyz").json()["stopped_partitions"], serde_json::json!([]));
        assert!(server.stop().success());
    };
    goes_on(logging(&broker, &data), first);
    // Where reading begins is the readers' own to know: the groups' offsets may be reset at will.
    reset_offsets(&broker);
    goes_on(logging(&broker, &data), then);

    // The brokers forgot the groups: the topic may be another one.
    let (events, changes) = (used(&broker, Topic::Events), used(&broker, Topic::Changes));
    assert!(events.len() > 8 && changes.len() > 8, "{events:?} {changes:?}");
    administer(&broker, async |admin, options| {
        let groups = [ROUTER, KEEPER, ARCHIVER].map(|(topic, group)| format!("contrail.{topic}.{group}"));
        for deleted in admin.delete_groups(&groups.each_ref().map(String::as_str), options).await.unwrap() {
            deleted.unwrap();
        }
    });
    let all = [(ROUTER, &events), (KEEPER, &changes), (ARCHIVER, &events)];
    assert_refused(logging(&broker, &data), &all, "--reset-offsets --to-earliest --execute");
    // As it says.
    reset_offsets(&broker);
    goes_on(logging(&broker, &data), last);
    let (server, _) = logging(&broker, &data);
    shop::assert_archived_once(&server, &day);
    shop::assert_reports_equal_tally(&server, &day);
    server.assert_audit();
    assert!(server.stop().success());

    // Records that nobody read were deleted.
    let cut = *events.iter().next().unwrap();
    append_raw(&broker, "contrail.events", i32::try_from(cut).unwrap(), b"unread");
    administer(&broker, async |admin, options| {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset("contrail.events", i32::try_from(cut).unwrap(), Offset::End).unwrap();
        admin.delete_records(&list, options).await.unwrap();
    });
    let one = BTreeSet::from([cut]);
    assert_refused(logging(&broker, &data), &[(ROUTER, &one), (ARCHIVER, &one)], "or the log was cut");

    // The topic is another one.
    administer(&broker, async |admin, options| {
        admin.delete_topics(&["contrail.events"], options).await.unwrap().remove(0).unwrap();
        while admin.inner().fetch_metadata(None, Duration::from_secs(30)).unwrap().topics().iter().any(|topic| topic.name() == "contrail.events") {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let all = [(ROUTER, &events), (ARCHIVER, &events)];
    assert_refused(logging(&broker, &data), &all, "is outside 0..=0; its reader's store and this log do not belong together");
}
