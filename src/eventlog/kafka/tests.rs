//! The log on a real Kafka against the suite, and what is its own. The broker is started once for all tests, by `tests/servers/run`, and ends with this
//! process; `CONTRAIL_TEST_KAFKA` names another one.

mod faults;
mod mock;
mod security;
mod way;

use bytes::Bytes;

use super::testing::make_topic;
use super::*;
use crate::eventlog::Delivery;
use crate::eventlog::contract::{Subject, contract_tests};

/// Topics of its own on the one broker.
struct Fresh(Settings);

impl Fresh {
    fn new() -> Self {
        // Up before a test's time counts.
        testing::broker();
        Self(testing::fresh())
    }

    async fn log(&self) -> Result<KafkaLog, Error> {
        KafkaLog::open(&testing::url(), self.0.clone()).await
    }
}

#[async_trait]
impl Subject for Fresh {
    async fn open(&self) -> Arc<dyn EventLog> {
        Arc::new(self.log().await.unwrap())
    }
}

contract_tests!(Fresh::new());

fn record(partition: u16, text: &'static str) -> Append {
    Append { partition, value: Bytes::from_static(text.as_bytes()) }
}

#[tokio::test]
async fn topics_that_contrail_must_not_use_are_refused() {
    let good = [("retention.ms", "-1"), ("retention.bytes", "-1"), ("max.message.bytes", "3000000")];
    for (partitions, settings, told) in [
        (3, good.to_vec(), "has 3 partitions"),
        (16, good[1..].to_vec(), "retention.ms=604800000"),
        (16, [&good[..], &[("cleanup.policy", "compact")]].concat(), "cleanup.policy=compact"),
        (16, good[..2].to_vec(), "max.message.bytes=1048588"),
        (16, [&good[..], &[("unclean.leader.election.enable", "true")]].concat(), "unclean.leader.election.enable=true"),
    ] {
        let fresh = Fresh::new();
        make_topic(&format!("{}.events", fresh.0.prefix), partitions, &settings).await;
        let refused = fresh.log().await.err().expect(told).to_string();
        assert!(refused.contains(told), "{refused}");
    }
    let strict = Fresh::new();
    make_topic(&format!("{}.events", strict.0.prefix), 16, &good).await;
    let settings = Settings { allow_single_replica: false, ..strict.0.clone() };
    let refused = KafkaLog::open(&testing::url(), settings).await.err().unwrap().to_string();
    assert!(refused.contains("1 replicas") && refused.contains("kafka.allow_single_replica"), "{refused}");
    strict.log().await.unwrap().close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_known_group_has_not_passed_stays_though_it_is_not_listed() {
    const fn known(topic: Topic, name: &'static str, needed: bool) -> KnownGroup {
        KnownGroup { topic, name, needed }
    }
    const GROUPS: [KnownGroup; 4] = [
        known(Topic::Events, "slow", true),
        known(Topic::Events, "at-times", false),
        known(Topic::Events, "never", false),
        known(Topic::Changes, "done", true),
    ];
    let fresh = Fresh(Settings { groups: &GROUPS, retention: Duration::ZERO, ..Fresh::new().0 });
    let log = fresh.log().await.unwrap();
    log.append(Topic::Events, vec![record(4, "a"), record(4, "b"), record(4, "c")]).await.unwrap();
    for (group, passed) in [("done", 3), ("slow", 2), ("at-times", 1)] {
        let mut reader = log.subscribe(Topic::Events, group).await.unwrap();
        while !matches!(reader.next(1).await.unwrap(), Delivery::Assigned(partitions) if partitions.contains(&4)) {}
        reader.seek(4, 0);
        reader.commit(4, passed);
    }
    let deletable = async |listed: &[&str]| {
        let (inner, listed) = (Arc::clone(&log.0), listed.iter().map(|group| log.0.group(Topic::Events, group)).collect::<Vec<_>>());
        blocking(move || inner.deletable(Topic::Events, Timestamp::MAX, &listed)).await.unwrap()
    };
    for listed in [&["done", "slow", "at-times"][..], &["done"], &[]] {
        assert_eq!(deletable(listed).await, [(4, 1)], "{listed:?}");
    }
    log.forget_group(Topic::Events, "at-times").await.unwrap();
    assert_eq!(deletable(&["done"]).await, [(4, 2)], "one that is gone, or never was, holds nothing");
    log.forget_group(Topic::Events, "slow").await.unwrap();
    assert_eq!(deletable(&["done"]).await, [], "but one that is needed holds all of it, whatever the brokers forgot");
    assert_eq!(deletable(&[]).await, [], "nobody reads");
    log.close().await.unwrap();
}

#[tokio::test]
async fn brokers_that_do_not_answer_are_told_at_the_start() {
    let started = Instant::now();
    let refused = KafkaLog::open("kafka://127.0.0.1:1", Settings::default()).await.err().unwrap();
    assert!(matches!(&refused, Error::Unavailable(what) if what.contains("kafka")), "{refused}");
    assert!(started.elapsed() < 2 * ASK, "it does not hang");
}

/// The log after its topic of events was deleted, and made anew.
async fn recreated(fresh: &Fresh) -> KafkaLog {
    testing::delete_topic(&format!("{}.events", fresh.0.prefix)).await;
    let asked = Instant::now();
    // The broker deletes a moment later.
    loop {
        match fresh.log().await {
            Ok(log) if log.bounds(Topic::Events).await.is_ok_and(|bounds| bounds[4].next == 0) => return log,
            _ => assert!(asked.elapsed() < Duration::from_secs(120), "the topic does not go"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recreated_topic_that_has_grown_past_its_reader_is_told() {
    let fresh = Fresh::new();
    let log = fresh.log().await.unwrap();
    log.append(Topic::Events, vec![record(4, "a"), record(4, "b"), record(4, "c")]).await.unwrap();
    // Nothing was committed by this reader, and it stands at 3 all the same.
    let mut reader = log.subscribe(Topic::Events, "g").await.unwrap();
    assert!(matches!(reader.next(1).await, Ok(Delivery::Assigned(_))));
    reader.seek(4, 0);
    assert!(matches!(reader.next(99).await, Ok(Delivery::Records { partition: 4, next: 3, .. })));
    log.close().await.unwrap();
    let log = fresh.log().await.unwrap();
    log.append(Topic::Events, vec![record(4, "d")]).await.unwrap();
    let mut reader = log.subscribe(Topic::Events, "g").await.unwrap();
    assert!(matches!(reader.next(1).await, Ok(Delivery::Assigned(_))));
    reader.seek(4, 3);
    assert!(matches!(reader.next(99).await, Ok(Delivery::Records { partition: 4, next: 4, .. })), "the same topic");
    log.close().await.unwrap();

    let log = recreated(&fresh).await;
    log.append(Topic::Events, (0..9).map(|_| record(4, "new")).collect()).await.unwrap();
    for _ in 0..2 {
        let mut reader = log.subscribe(Topic::Events, "g").await.unwrap();
        // The one before may not have left yet.
        while !matches!(reader.next(1).await.unwrap(), Delivery::Assigned(partitions) if partitions.contains(&4)) {}
        reader.seek(4, 4);
        let told = reader.next(1).await;
        let Ok(Delivery::Failed { partition: 4, error: Error::Format(what) }) = &told else { panic!("unexpected {told:?}") };
        assert!(what.contains("made anew") && what.contains("kafka-consumer-groups.sh --bootstrap-server HOST:PORT --group "), "{what}");
        reader.seek(5, 0);
    }
    log.close().await.unwrap();
    // An operator who knows better; and one who moved what the readers stand in.
    let log = fresh.log().await.unwrap();
    log.forget_group(Topic::Events, "g").await.unwrap();
    log.adopt_group(Topic::Events, "g").await.unwrap();
    let mut reader = log.subscribe(Topic::Events, "g").await.unwrap();
    assert!(matches!(reader.next(1).await, Ok(Delivery::Assigned(_))));
    reader.seek(4, 4);
    assert!(matches!(reader.next(99).await, Ok(Delivery::Records { partition: 4, next: 9, .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_recreated_under_its_reader_is_told_once_it_has_grown_past_it() {
    let fresh = Fresh::new();
    let log = fresh.log().await.unwrap();
    let mut reader = log.subscribe(Topic::Events, "g").await.unwrap();
    assert!(matches!(reader.next(1).await, Ok(Delivery::Assigned(_))));
    // As one that read the former topic goes on saying.
    reader.seek(4, 0);
    reader.commit(4, 3);
    let onlooker = fresh.log().await.unwrap();
    let known_as = async |offset| {
        let asked = Instant::now();
        while onlooker.committed(Topic::Events, "g").await.unwrap()[4] != offset {
            assert!(asked.elapsed() < Duration::from_secs(60), "the brokers do not hear of {offset}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    known_as(3).await;
    reader.seek(4, 3);
    let told = reader.next(1).await;
    assert!(matches!(told, Ok(Delivery::Failed { partition: 4, error: Error::OutOfRange { offset: 3, .. } })), "{told:?}");
    reader.commit(4, 3);
    known_as(0).await;
    log.append(Topic::Events, (0..9).map(|_| record(4, "new")).collect()).await.unwrap();
    reader.seek(4, 3);
    let told = reader.next(1).await;
    assert!(matches!(&told, Ok(Delivery::Failed { partition: 4, error: Error::Format(what) }) if what.contains("made anew")), "{told:?}");
    reader.commit(4, 3);
    // With stores as fresh as the topic.
    reader.seek(4, 0);
    assert!(matches!(reader.next(99).await, Ok(Delivery::Records { partition: 4, next: 9, .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recreated_topic_is_told_and_not_read_from_its_start() {
    let fresh = Fresh::new();
    let log = fresh.log().await.unwrap();
    log.append(Topic::Events, vec![record(4, "a"), record(4, "b"), record(4, "c")]).await.unwrap();
    log.close().await.unwrap();
    let log = recreated(&fresh).await;
    log.append(Topic::Events, vec![record(4, "new")]).await.unwrap();
    let mut reader = log.subscribe(Topic::Events, "g").await.unwrap();
    assert!(matches!(reader.next(1).await, Ok(Delivery::Assigned(_))));
    reader.seek(4, 3);
    let told = reader.next(1).await;
    assert!(matches!(told, Ok(Delivery::Failed { partition: 4, error: Error::OutOfRange { offset: 3, start: 0, next: 1, .. } })), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_come_back_holds_a_partition_for_its_time_only() {
    let mut fresh = Fresh::new();
    // A reader has a third of it; the brokers would put out who does not poll after six times as long.
    fresh.0.session_timeout = Duration::from_secs(30);
    let log = fresh.log().await.unwrap();
    let mut one = log.subscribe(Topic::Events, "g").await.unwrap();
    assert!(matches!(one.next(1).await, Ok(Delivery::Assigned(_))));
    let mut two = log.subscribe(Topic::Events, "g").await.unwrap();
    let Ok(Delivery::Revoked(given_back)) = one.next(1).await else { panic!("expected a revocation") };
    // The first one never asks again.
    let got = tokio::time::timeout(Duration::from_secs(60), two.next(1)).await.expect("the second one gets them all the same");
    assert!(matches!(got, Ok(Delivery::Assigned(partitions)) if partitions == given_back));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_under_the_same_name_takes_its_partitions_up_at_once() {
    let mut fresh = Fresh::new();
    fresh.0.instance = "node-1".into();
    // Longer than this test may take: nobody waits for it to pass.
    fresh.0.session_timeout = Duration::from_secs(120);
    for round in 0..3u64 {
        let log = fresh.log().await.unwrap();
        log.append(Topic::Events, vec![record(2, "x")]).await.unwrap();
        let mut reader = log.subscribe(Topic::Events, "g").await.unwrap();
        let assigned = tokio::time::timeout(Duration::from_secs(60), reader.next(1)).await.expect("no wait for a session to end");
        assert!(matches!(assigned, Ok(Delivery::Assigned(partitions)) if partitions.len() == usize::from(PARTITIONS)));
        reader.seek(2, round);
        assert!(matches!(reader.next(1).await, Ok(Delivery::Records { partition: 2, next, .. }) if next == round + 1));
        log.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_are_sought_without_waiting_for_the_fetch_under_way() {
    /// How long a leader holds a fetch back where it has nothing new: librdkafka's `fetch.wait.max.ms`.
    const HELD_BACK: Duration = Duration::from_millis(500);
    let log = Fresh::new().log().await.unwrap();
    log.append(Topic::Events, (0..PARTITIONS).map(|partition| record(partition, "x")).collect()).await.unwrap();
    let mut reader = log.subscribe(Topic::Events, "g").await.unwrap();
    assert!(matches!(reader.next(1).await, Ok(Delivery::Assigned(_))));
    let mut took = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        (0..PARTITIONS).for_each(|partition| reader.seek(partition, 0));
        for _ in 0..PARTITIONS {
            assert!(matches!(reader.next(1).await, Ok(Delivery::Records { next: 1, .. })));
        }
        took.push(began.elapsed());
    }
    // Of the first round the brokers are asked more. Then all was read: a fetch is under way throughout. The machine may be busy in some of them.
    let quickest = took[1..].iter().min().unwrap();
    assert!(*quickest < HELD_BACK * u32::from(PARTITIONS) / 2, "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_another_of_its_name_put_out_gives_up_its_partitions_and_comes_back() {
    let mut fresh = Fresh::new();
    fresh.0.instance = "node-1".into();
    let (here, there) = (fresh.log().await.unwrap(), fresh.log().await.unwrap());
    here.append(Topic::Events, vec![record(2, "x")]).await.unwrap();
    let mut first = here.subscribe(Topic::Events, "g").await.unwrap();
    assert!(matches!(first.next(1).await, Ok(Delivery::Assigned(_))));
    let second = there.subscribe(Topic::Events, "g").await.unwrap();
    let given_up = tokio::time::timeout(Duration::from_secs(120), first.next(1)).await.expect("it learns that it was fenced");
    assert!(matches!(given_up, Ok(Delivery::Revoked(partitions)) if partitions.len() == usize::from(PARTITIONS)));
    drop(second);
    there.close().await.unwrap();
    let back = tokio::time::timeout(Duration::from_secs(120), first.next(1)).await.expect("it joins anew");
    assert!(matches!(back, Ok(Delivery::Assigned(partitions)) if partitions.len() == usize::from(PARTITIONS)));
    first.seek(2, 0);
    assert!(matches!(first.next(1).await, Ok(Delivery::Records { partition: 2, next: 1, .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_log_goes_on_where_another_stands() {
    let log = Fresh::new().log().await.unwrap();
    let starts: Vec<Offset> = (0..Offset::from(PARTITIONS)).map(|partition| partition * 11_000).collect();
    for _ in 0..2 {
        log.begin_at(Topic::Events, &starts, &|_| {}).await.unwrap();
        assert_eq!(log.bounds(Topic::Events).await.unwrap(), starts.iter().map(|at| Bounds { start: *at, next: *at }).collect::<Vec<_>>());
        assert_eq!(log.ends(Topic::Events).await, starts.iter().copied().map(Some).collect::<Vec<_>>());
    }
    let appended = log.append(Topic::Events, vec![record(15, "a"), record(15, "b"), record(0, "c")]).await.unwrap();
    assert_eq!(appended, [165_000, 165_001, 0]);
    let found = log.read(Topic::Events, 15, 165_000, 9_999).await.unwrap();
    assert_eq!(found.iter().map(|stored| (stored.offset, &stored.value[..])).collect::<Vec<_>>(), [(165_000, &b"a"[..]), (165_001, b"b")]);
    // What another call was cut short after is left as it is.
    log.begin_at(Topic::Events, &starts, &|_| {}).await.unwrap();
    assert_eq!(log.bounds(Topic::Events).await.unwrap()[15], Bounds { start: 165_000, next: 165_002 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_reads_all_partitions_in_pieces_goes_on_with_the_consumers_it_has() {
    let log = Fresh::new().log().await.unwrap();
    let texts = ["a", "bb", "ccc"];
    let standing = || log.0.readers.lock().iter().map(|(of, reading)| (*of, reading.at())).collect::<Vec<_>>();
    log.append(Topic::Events, (0..PARTITIONS).flat_map(|partition| texts.map(|text| record(partition, text))).collect()).await.unwrap();
    for round in 0..3u64 {
        for partition in 0..PARTITIONS {
            // One fits, and the next is too large.
            let found = log.read(Topic::Events, partition, round, texts[round as usize].len() + 1).await.unwrap();
            let found: Vec<_> = found.iter().map(|stored| (stored.offset, &stored.value[..])).collect();
            assert_eq!(found, [(round, texts[round as usize].as_bytes())]);
        }
        let expected: Vec<_> = (0..PARTITIONS).map(|partition| ((Topic::Events, partition), round + 1)).collect();
        assert_eq!(standing(), expected);
    }
    let again = log.read(Topic::Events, 7, 0, 4).await.unwrap();
    assert_eq!(again.iter().map(|stored| stored.offset).collect::<Vec<_>>(), [0, 1], "from elsewhere too");
    assert_eq!(standing()[7], ((Topic::Events, 7), 2), "what it has taken and not given is given next");
    log.0.readers.close_idle(Instant::now());
    assert_eq!(standing().len(), usize::from(PARTITIONS));
    log.0.readers.close_idle(Instant::now() + Duration::from_secs(61));
    assert_eq!(standing().len(), 0, "and they are not kept for ever");
}
