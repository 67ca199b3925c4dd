//! Faults of the protocol, given by librdkafka's mock cluster while records are appended and read: every append is acknowledged and found at its offset, or
//! refused as one to be repeated, within its time; the reader goes on by itself on every partition.

#![expect(clippy::disallowed_methods, reason = "every handle is awaited or aborted in the test that spawns it")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::MutexGuard;

use bytes::Bytes;
use rdkafka::bindings::rd_kafka_resp_err_t as Code;
use rdkafka::types::RDKafkaApiKey as Api;
use tokio::task::JoinHandle;

use super::mock::{BROKERS, Mock};
use super::way::Way;
use crate::eventlog::Delivery;
use crate::eventlog::kafka::*;

const TOPIC: Topic = Topic::Events;

/// Longer than an append may take: a record's time at the brokers, what a producer may be late with telling of it, and what a loaded machine adds.
const APPEND: Duration = Duration::from_secs(35);

/// Longer than anything here takes: a partition that stands still is looked after within half a minute, and its client replaced where that is in vain for two.
const LONGEST: Duration = Duration::from_secs(240);

/// Callers at the same time.
const CALLERS: usize = 4;

/// What callers and the reader were told so far.
#[derive(Default)]
struct Told {
    sent: BTreeSet<Bytes>,
    /// By place what was acknowledged.
    acknowledged: BTreeMap<(u16, Offset), Bytes>,
    refusals: Vec<String>,
    /// By partition what was read, from its start.
    read: BTreeMap<u16, Vec<Bytes>>,
    assignments: usize,
    failures: Vec<String>,
}

impl Told {
    /// By partition how many records were acknowledged, and read.
    fn progress(&self) -> Vec<(usize, usize)> {
        let taken = |partition: u16| self.acknowledged.range((partition, 0)..=(partition, Offset::MAX)).count();
        (0..PARTITIONS).map(|partition| (taken(partition), self.read.get(&partition).map_or(0, Vec::len))).collect()
    }
}

/// A log over a mock cluster under load.
struct Load {
    mock: Mock,
    log: Arc<KafkaLog>,
    told: Arc<Mutex<Told>>,
    stop: Arc<AtomicBool>,
    callers: Vec<JoinHandle<()>>,
    reader: JoinHandle<()>,
}

impl Load {
    async fn start(instance: &str) -> Self {
        let mock = Mock::up();
        let url = mock.url();
        Self::start_by(mock, &url, instance, &[]).await
    }

    /// The same with clients that find the cluster elsewhere, with these settings of librdkafka over the product's.
    async fn start_by(mock: Mock, url: &str, instance: &str, over: &[(&str, &str)]) -> Self {
        let log = Arc::new(log_over(&mock, url, instance, over));
        let (told, stop) = (Arc::<Mutex<Told>>::default(), Arc::<AtomicBool>::default());
        let callers = (0..CALLERS).map(|caller| tokio::spawn(call(Arc::clone(&log), Arc::clone(&told), Arc::clone(&stop), caller))).collect();
        let consumer = log.subscribe(TOPIC, "g").await.unwrap();
        let reader = tokio::spawn(read(consumer, Arc::clone(&told)));
        let load = Self { mock, log, told, stop, callers, reader };
        load.goes_on("at first").await;
        load
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        lock(&self.told)
    }

    fn name(&self) -> &str {
        self.log.0.name(TOPIC)
    }

    async fn wait(&self, what: &str, mut there: impl FnMut(&Told) -> bool) {
        let asked = Instant::now();
        while !there(&self.told()) {
            assert!(self.callers.iter().all(|caller| !caller.is_finished()) && !self.reader.is_finished(), "{what}: a caller or the reader ended");
            assert!(asked.elapsed() < LONGEST, "{what}: no progress: {:?}", self.told().progress());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!("{what}: {:?}", asked.elapsed());
    }

    /// Every partition takes more records, and the reader gets more of each.
    async fn goes_on(&self, what: &str) {
        let before = self.told().progress();
        // More than what was on its way when this was asked.
        let more = |now: &Told| now.progress().iter().zip(&before).all(|(now, before)| now.0 > before.0 + CALLERS && now.1 > before.1 + 2 * CALLERS);
        self.wait(what, more).await;
    }

    /// Refusals since the last call.
    fn refusals(&self) -> Vec<String> {
        std::mem::take(&mut self.told().refusals)
    }

    /// What librdkafka tries again by itself is refused in one case: a later batch was acknowledged first, which tells of the former one that it is there and
    /// not where. (Here it need not even be there: see `mock.rs`.)
    fn assert_few_refusals(&self) {
        let refusals = self.refusals();
        assert!(refusals.iter().all(|why| why.contains("without an offset")), "{refusals:?}");
    }

    /// Ends the load: what was acknowledged is where it was told to be, and nothing is there that was not sent.
    async fn settle(self) {
        self.stop.store(true, Ordering::SeqCst);
        for caller in self.callers {
            tokio::time::timeout(APPEND + APPEND, caller).await.expect("callers come to their end").unwrap();
        }
        let bounds = self.log.bounds(TOPIC).await.unwrap();
        let asked = Instant::now();
        while (0..PARTITIONS).zip(&bounds).any(|(partition, bounds)| lock(&self.told).read[&partition].len() as u64 != bounds.next) {
            assert!(asked.elapsed() < LONGEST, "read to the end: {:?} of {bounds:?}", lock(&self.told).progress());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let there = self.log.read(TOPIC, 3, 0, usize::MAX).await.unwrap();
        self.log.close().await.unwrap();
        self.reader.await.unwrap();
        let told = lock(&self.told);
        assert_eq!(told.failures, [""; 0]);
        assert!(told.acknowledged.len() > 100, "{}", told.acknowledged.len());
        for ((partition, offset), value) in &told.acknowledged {
            assert_eq!(told.read[partition].get(*offset as usize), Some(value), "acknowledged at {offset} of {partition}");
        }
        assert!(told.read.values().flatten().all(|value| told.sent.contains(value)), "nothing but what was sent");
        assert!(there.iter().map(|stored| &stored.value).eq(&told.read[&3]), "outside of groups the same is read");
    }
}

/// A log over topics that the cluster makes for it.
fn log_over(mock: &Mock, url: &str, instance: &str, over: &[(&str, &str)]) -> KafkaLog {
    let settings = Settings { instance: instance.to_owned(), session_timeout: Duration::from_secs(6), ..Settings::default() };
    names(&settings).iter().for_each(|name| mock.make_topic(name, PARTITIONS));
    let mut client = settings::client(&settings::brokers(url).unwrap(), &settings).unwrap();
    for (key, value) in over {
        client.set(*key, *value);
    }
    KafkaLog::over(client.clone(), Arc::new(Admin::new(client.clone()).unwrap()), settings).unwrap()
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One caller: three records to three partitions, until they are taken, then the next.
async fn call(log: Arc<KafkaLog>, told: Arc<Mutex<Told>>, stop: Arc<AtomicBool>, caller: usize) {
    let mut round = caller as u16;
    while !stop.load(Ordering::SeqCst) {
        round = round.wrapping_add(1);
        let records: Vec<Append> =
            (0..3u16).map(|k| Append { partition: (round * 3 + k) % PARTITIONS, value: format!("{caller} {round} {k}").into() }).collect();
        lock(&told).sent.extend(records.iter().map(|record| record.value.clone()));
        loop {
            let answer = tokio::time::timeout(APPEND, log.append(TOPIC, records.clone())).await.expect("an append is answered in its time");
            match answer {
                Ok(offsets) => {
                    let mut told = lock(&told);
                    for (record, offset) in records.iter().zip(offsets) {
                        let before = told.acknowledged.insert((record.partition, offset), record.value.clone());
                        assert!(before.is_none(), "an offset is given once");
                    }
                    break;
                }
                Err(error) => {
                    assert!(error.is_retryable(), "{error}");
                    lock(&told).refusals.push(error.to_string());
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The reader: goes on where it was whenever partitions are given to it, until the log is closed.
async fn read(mut consumer: Box<dyn Consumer>, told: Arc<Mutex<Told>>) {
    loop {
        let delivery = consumer.next(1 << 20).await;
        let mut told = lock(&told);
        match delivery {
            Ok(Delivery::Assigned(partitions)) => {
                told.assignments += 1;
                for partition in partitions {
                    consumer.seek(partition, told.read.entry(partition).or_default().len() as u64);
                }
            }
            Ok(Delivery::Revoked(_)) => {}
            Ok(Delivery::Records { partition, records, .. }) => {
                let read = told.read.entry(partition).or_default();
                for stored in records {
                    assert_eq!(stored.offset, read.len() as u64, "dense, and nothing twice");
                    read.push(stored.value);
                }
                consumer.commit(partition, read.len() as u64);
            }
            Ok(Delivery::Failed { partition, error }) => told.failures.push(format!("{partition}: {error}")),
            Err(Error::Closed(_)) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_are_acknowledged_or_refused_whatever_brokers_answer() {
    use Code::*;
    let load = Load::start("").await;
    for code in [
        RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
        RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
        RD_KAFKA_RESP_ERR__TRANSPORT,
    ] {
        load.mock.fail(Api::Produce, &[code; 4]);
        load.goes_on(&format!("{code:?}")).await;
        load.assert_few_refusals();
    }
    // The brokers lost track of the producer, or put it out; took what they give no offset of; or take nothing of it. It is told, and overcome.
    for (code, told) in [
        (RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER, "OutOfOrderSequenceNumber"),
        (RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH, "InvalidProducerEpoch"),
        (RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER, "without an offset"),
        (RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, "TopicAuthorizationFailed"),
    ] {
        load.mock.fail(Api::Produce, &[code; 4]);
        load.wait(told, |now| now.refusals.iter().any(|why| why.contains(told))).await;
        load.goes_on(&format!("{code:?}")).await;
        load.told().refusals.clear();
    }
    load.mock.fail(Api::Produce, &[RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID; 4]);
    load.goes_on("a producer that is not known").await;
    // Those that follow get no id for a while.
    load.mock.fail(Api::InitProducerId, &[RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED; 2]);
    load.mock.fail(Api::Produce, &[RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER]);
    load.wait("no new producer", |now| now.refusals.iter().any(|why| why.contains("ClusterAuthorizationFailed"))).await;
    load.goes_on("a new producer").await;
    load.settle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_move_and_their_readers_follow() {
    use Code::*;
    let load = Load::start("").await;
    for round in 0..3 {
        for partition in 0..PARTITIONS {
            load.mock.lead(load.name(), partition, (i32::from(partition) + round) % BROKERS + 1);
        }
        load.goes_on(&format!("leaders moved {round}")).await;
    }
    for code in [
        RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        RD_KAFKA_RESP_ERR_FENCED_LEADER_EPOCH,
        RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
        RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
        RD_KAFKA_RESP_ERR__TRANSPORT,
        RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE,
    ] {
        load.mock.fail(Api::Fetch, &[code; 4]);
        load.goes_on(&format!("{code:?}")).await;
    }
    load.settle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coordinators_move_and_their_members_follow() {
    assert_members_follow("", Code::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coordinators_move_and_members_of_a_lasting_name_follow() {
    assert_members_follow("node-1", Code::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID).await;
}

async fn assert_members_follow(instance: &str, out: Code) {
    use Code::*;
    const MOVES: [Code; 3] =
        [RD_KAFKA_RESP_ERR_NOT_COORDINATOR, RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE, RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS];
    let load = Load::start(instance).await;
    for api in [Api::Heartbeat, Api::OffsetCommit, Api::FindCoordinator, Api::ListOffsets, Api::Metadata] {
        load.mock.fail(api, &MOVES);
        load.goes_on(&format!("{api:?}")).await;
    }
    for broker in 1..=BROKERS {
        load.mock.coordinate(&load.log.0.group(TOPIC, "g"), broker);
        load.goes_on(&format!("coordinator {broker}")).await;
    }
    // What puts a member out of its group, and all that it meets on its way back.
    load.mock.fail(Api::JoinGroup, &MOVES);
    load.mock.fail(Api::SyncGroup, &MOVES[..1]);
    load.mock.fail(Api::OffsetFetch, &MOVES);
    load.mock.fail(Api::ListOffsets, &MOVES);
    let before = load.told().assignments;
    load.mock.fail(Api::Heartbeat, &[out]);
    load.wait("it comes back", |told| told.assignments > before).await;
    load.goes_on("after it came back").await;
    load.assert_few_refusals();
    load.settle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_and_absent_brokers_hold_up_their_own_partitions_only() {
    let load = Load::start("").await;
    let leader = |partition: u16| i32::from(partition) % BROKERS + 1;
    (0..PARTITIONS).for_each(|partition| load.mock.lead(load.name(), partition, leader(partition)));
    for broker in 1..=BROKERS {
        load.mock.delay(broker, Duration::from_millis(150));
        load.goes_on(&format!("broker {broker} is slow")).await;
        load.mock.delay(broker, Duration::ZERO);
        load.mock.reachable(broker, false);
        for partition in (0..PARTITIONS).filter(|partition| leader(*partition) != broker) {
            let value = Bytes::from(format!("{partition} without {broker}"));
            load.told().sent.insert(value.clone());
            let appended = load.log.append(TOPIC, vec![Append { partition, value: value.clone() }]).await.unwrap();
            load.told().acknowledged.insert((partition, appended[0]), value);
            load.wait("it is read", |told| told.read[&partition].len() as u64 > appended[0]).await;
        }
        load.mock.reachable(broker, true);
        load.goes_on(&format!("broker {broker} is back")).await;
    }
    load.assert_few_refusals();
    load.settle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_that_hang_refuse_in_time_and_are_found_again() {
    let load = Load::start("").await;
    load.mock.signal("STOP");
    let asked = Instant::now();
    assert!(matches!(load.log.bounds(TOPIC).await, Err(Error::Unavailable(_))));
    assert!(asked.elapsed() < 3 * LOOK, "{:?}", asked.elapsed());
    load.wait("refusals", |told| told.refusals.len() >= CALLERS).await;
    load.mock.signal("CONT");
    load.goes_on("going on").await;
    load.settle().await;
}

/// After a pause all brokers may be fenced: they answer, and tell of no broker. Where that is told in between, librdkafka may lose every broker for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_were_told_of_no_broker_now_and_then_go_on() {
    let mock = Mock::up();
    let way = Way::to(&mock).await;
    // Much is asked of the brokers, as while their leaders move.
    let load = Load::start_by(mock, &way.url(), "", &[("topic.metadata.refresh.interval.ms", "300")]).await;
    for (share, seconds) in [(0.5, 4), (1.0, 12), (0.5, 10)] {
        let before = way.blanks();
        way.blank(share);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        load.wait("they were told of none", |_| way.blanks() > before).await;
        way.blank(0.0);
        load.goes_on(&format!("a share of {share} for {seconds} s")).await;
    }
    load.settle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_group_read_is_not_forgotten_for_an_error_of_one_partition() {
    let mock = Mock::up();
    // Of these versions errors come by partition.
    mock.speak(Api::OffsetFetch, 1);
    let log = log_over(&mock, &mock.url(), "", &[]);
    log.adopt_group(TOPIC, "g").await.unwrap();
    let group = log.0.group(TOPIC, "g");
    let committing = Arc::clone(&log.0);
    let read = move || {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(committing.name(TOPIC), 2, At::Offset(7)).map_err(failed)?;
        committing.onlooker(&group)?.commit(&list, CommitMode::Sync).map_err(failed)
    };
    blocking(read).await.unwrap();
    for code in [Code::RD_KAFKA_RESP_ERR_UNSTABLE_OFFSET_COMMIT, Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED] {
        mock.fail(Api::OffsetFetch, &[code; 2]);
        // Whether it tells or asks again: it does not take the group for a new one.
        if let Ok(offsets) = log.committed(TOPIC, "g").await {
            assert_eq!(offsets[2], 7, "{code:?}");
        }
        drop(log.adopt_group(TOPIC, "g").await);
        assert_eq!(log.committed(TOPIC, "g").await.unwrap()[2], 7, "{code:?}");
    }
}
