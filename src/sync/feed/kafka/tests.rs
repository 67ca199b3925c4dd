//! The feed on a real Kafka against the suite, and what is its own.

use std::sync::Arc;

use super::*;
use crate::event::PARTITIONS;
use crate::eventlog::kafka::testing::{delete_topic, fresh, make_topic, url};
use crate::sync::Update;
use crate::sync::feed::contract::{Subject, contract_tests, ids, key, write};

/// A topic of its own.
struct Fresh(kafka::Settings);

impl Fresh {
    fn new() -> Self {
        Self(fresh())
    }

    fn topic(&self) -> String {
        format!("{}.feed", self.0.prefix)
    }

    async fn open(&self) -> Result<KafkaFeed, Error> {
        KafkaFeed::open(&url(), &self.0, Settings::default()).await
    }
}

#[async_trait]
impl Subject for Fresh {
    async fn node(&self) -> Arc<dyn Feed> {
        Arc::new(self.open().await.unwrap())
    }
}

contract_tests!(Fresh::new());

const RETENTION: (&str, &str) = ("retention.ms", "3600000");

#[tokio::test]
async fn topics_that_keep_for_ever_or_forget_at_once_are_refused() {
    for (settings, told) in [([("retention.ms", "-1")], "retention.ms=-1"), ([("retention.ms", "1000")], "retention.ms=1000")] {
        let fresh = Fresh::new();
        make_topic(&fresh.topic(), i32::from(PARTITIONS), &settings).await;
        let refused = fresh.open().await.err().expect(told).to_string();
        assert!(refused.contains(told), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_too_large_for_the_brokers_sends_to_a_snapshot() {
    let fresh = Fresh::new();
    make_topic(&fresh.topic(), i32::from(PARTITIONS), &[RETENTION, ("max.message.bytes", "20000")]).await;
    let (here, there) = (fresh.open().await.unwrap(), fresh.open().await.unwrap());
    let (mut large, mut small) = (there.subscribe(&key("a")).await.unwrap(), there.subscribe(&key("b")).await.unwrap());
    // Of several sizes, so that compression does not make them small.
    let mut write_of_a = write("a", 1, 0);
    let noise: String = (0..100_000u32).map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 24) as u8 % 26)).collect();
    write_of_a.rows[0].data = Some(format!("\"{noise}{}\"", uuid::Uuid::new_v4()).into());
    for part in 0..2_000 {
        let row = crate::sync::AppliedRow {
            item: format!("i{part}"),
            revision: 1,
            data: Some(format!("\"{}\"", uuid::Uuid::new_v4()).into()),
            ..Default::default()
        };
        write_of_a.rows.push(row);
    }
    here.publish(vec![write_of_a, write("b", 1, 10)]).await.unwrap();
    assert_eq!(ids(&mut large, 1).await, [None]);
    assert!(matches!(small.next().await, Update::Write(_) | Update::Lagged), "it may have gone with the large one");
    here.publish(vec![write("a", 2, 10)]).await.unwrap();
    assert_eq!(ids(&mut large, 1).await, [Some(2)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_a_later_version_send_to_a_snapshot_and_are_passed_over() {
    let fresh = Fresh::new();
    let feed = fresh.open().await.unwrap();
    let mut subscription = feed.subscribe(&key("a")).await.unwrap();
    let partition = key("a").partition();
    let other = (0..).map(|n| format!("o{n}")).find(|name| key(name).partition() != partition).unwrap();
    let mut elsewhere = feed.subscribe(&key(&other)).await.unwrap();
    let later = Append { partition, value: bytes::Bytes::from_static(&[9, 1, 2, 3]) };
    for _ in 0..3 {
        feed.topic.send(&[later.clone(), later.clone()]).await.unwrap().remove(0).unwrap();
    }
    feed.publish(vec![write(&other, 1, 1)]).await.unwrap();
    assert_eq!(ids(&mut subscription, 1).await, [None]);
    assert_eq!(ids(&mut elsewhere, 1).await, [Some(1)], "objects of other partitions are not concerned");
    for id in 1.. {
        feed.publish(vec![write("a", id, 1)]).await.unwrap();
        // It may be told of the gap once more in between; then what was published comes behind that.
        if let Some(read) = ids(&mut subscription, 1).await[0] {
            let rest: Vec<_> = (read + 1..=id).map(Some).collect();
            assert_eq!(ids(&mut subscription, rest.len()).await, rest, "all from there on");
            break;
        }
    }
}

#[tokio::test]
async fn many_unreadable_records_send_to_a_snapshot_once_a_second() {
    let local = LocalFeed::new(Settings::default());
    let mut subscription = local.subscribe(&key("a")).await.unwrap();
    let mut delivery = Delivery { local, unreadable: BTreeMap::new() };
    let (partition, began) = (key("a").partition(), Instant::now());
    let later = || Heard::Record { partition, value: bytes::Bytes::from_static(&[9]) };
    let at = |millis| began + Duration::from_millis(millis);
    let mut told = Vec::new();
    for millis in 0..2_500 {
        delivery.hear(later(), at(millis));
        if millis % 1_000 == 999 {
            delivery.hear(Heard::Tick, at(millis));
        }
        // Whether it is told now: a write behind it comes next otherwise.
        delivery.hear(Heard::Record { partition, value: wire::whole(&write("a", millis + 1, 1)) }, at(millis));
        match ids(&mut subscription, 1).await[0] {
            None => told.push(millis),
            Some(id) => assert_eq!(id, millis + 1),
        }
    }
    assert_eq!(told, [0, 999, 1_999], "at once, and then once a second");
    delivery.hear(Heard::Tick, at(4_000));
    assert_eq!(ids(&mut subscription, 1).await, [None], "what came last is told");
    delivery.hear(Heard::Tick, at(6_000));
    delivery.hear(Heard::Record { partition, value: wire::whole(&write("a", 9_999, 1)) }, at(6_000));
    assert_eq!(ids(&mut subscription, 1).await, [Some(9_999)], "and nothing twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_made_anew_is_read_on_and_the_gap_told() {
    let fresh = Fresh::new();
    let feed = fresh.open().await.unwrap();
    let mut subscription = feed.subscribe(&key("a")).await.unwrap();
    feed.publish((1..=20).map(|id| write("a", id, 1)).collect()).await.unwrap();
    assert_eq!(ids(&mut subscription, 20).await, (1..=20).map(Some).collect::<Vec<_>>());
    delete_topic(&fresh.topic()).await;
    while make_again(&fresh).await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let other = fresh.open().await.unwrap();
    let published = async {
        let mut id = 21;
        loop {
            // A producer that knew the former topic may refuse for a moment: its owner repeats.
            if other.publish(vec![write("a", id, 1)]).await.is_ok() {
                id += 1;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let heard = async {
        let mut lagged = false;
        loop {
            match ids(&mut subscription, 1).await[0] {
                None => lagged = true,
                Some(id) if id > 20 && lagged => return,
                Some(id) => assert!(id > 20 && !lagged, "{id} without being told of the gap"),
            }
        }
    };
    tokio::select! {
        () = published => {}
        done = tokio::time::timeout(Duration::from_secs(60), heard) => done.expect("the new topic is not read"),
    }
}

async fn make_again(fresh: &Fresh) -> Result<(), ()> {
    let made = tokio::task::JoinSet::from_iter([{
        let topic = fresh.topic();
        async move { make_topic(&topic, i32::from(PARTITIONS), &[RETENTION]).await }
    }]);
    let mut made = made;
    made.join_next().await.unwrap().map_err(drop)
}
