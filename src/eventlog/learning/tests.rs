//! The learning log over a real embedded one: what it reads, what it keeps to itself, what it holds back (nothing).

use futures::FutureExt;

use super::*;
use crate::event::{Clock, Timestamp};
use crate::eventlog::contract::{record, text};
use crate::eventlog::embedded::{EmbeddedLog, Settings};

/// A log whose every record is old at once, in segments of a few records.
fn live(dir: &tempfile::TempDir) -> Arc<dyn EventLog> {
    let settings = Settings { segment_bytes: 256, retention: Duration::ZERO, ..Settings::default() };
    Arc::new(EmbeddedLog::open(dir.path(), &settings, &Clock::system()).unwrap())
}

async fn next(reader: &mut dyn Consumer) -> Delivery {
    tokio::time::timeout(Duration::from_secs(30), reader.next(1 << 20)).await.expect("a delivery").unwrap()
}

async fn reader_of(log: &LearningLog, topic: Topic, from: Offset) -> Box<dyn Consumer> {
    let mut reader = log.subscribe(topic, "router").await.unwrap();
    assert!(matches!(next(&mut *reader).await, Delivery::Assigned(all) if all.len() == usize::from(PARTITIONS)));
    assert!(reader.next(1).now_or_never().is_none(), "nothing before a seek");
    (0..PARTITIONS).for_each(|partition| reader.seek(partition, from));
    reader
}

/// The texts of the next `count` records of partition 0; asserts that they are dense from `at` on.
async fn texts(reader: &mut dyn Consumer, mut at: Offset, count: usize) -> Vec<String> {
    let mut found = Vec::new();
    while found.len() < count {
        // Polled once and dropped, then awaited: what a dropped call has read is not lost.
        let delivery = match reader.next(40).now_or_never() {
            Some(delivery) => delivery.unwrap(),
            None => next(reader).await,
        };
        let Delivery::Records { partition: 0, records, .. } = delivery else { panic!("unexpected {delivery:?}") };
        for stored in &records {
            assert_eq!(stored.offset, at);
            at += 1;
            found.push(text(stored).to_owned());
        }
    }
    found
}

#[tokio::test]
async fn learning_reads_what_comes_and_holds_no_retention() {
    let dir = tempfile::tempdir().unwrap();
    let live = live(&dir);
    let mut owner = live.subscribe(Topic::Events, "router").await.unwrap();
    assert!(matches!(next(&mut *owner).await, Delivery::Assigned(_)));
    let learning = LearningLog::open(Arc::clone(&live), true).await.unwrap();
    let mut reader = reader_of(&learning, Topic::Events, 0).await;
    for n in 0..40 {
        live.append(Topic::Events, vec![record(0, format!("event {n}"))]).await.unwrap();
    }
    assert_eq!(texts(&mut *reader, 0, 40).await.last().unwrap(), "event 39");
    reader.commit(0, 40);
    live.append(Topic::Events, vec![record(0, "late")]).await.unwrap();
    assert_eq!(texts(&mut *reader, 40, 1).await, ["late"]);
    assert_eq!(live.committed(Topic::Events, "router").await.unwrap()[0], 0, "the live group of the same name is not told");
    live.retain(Timestamp::MAX).await.unwrap();
    assert_eq!(live.bounds(Topic::Events).await.unwrap()[0].start, 0, "the live reader holds it");

    let mut slow = reader_of(&learning, Topic::Events, 0).await;
    owner.commit(0, 41);
    (1..PARTITIONS).for_each(|partition| owner.commit(partition, 0));
    live.retain(Timestamp::MAX).await.unwrap();
    assert!(live.bounds(Topic::Events).await.unwrap()[0].start > 0, "a learning reader holds nothing");
    let told = next(&mut *slow).await;
    assert!(matches!(told, Delivery::Failed { partition: 0, error: Error::OutOfRange { .. } }), "{told:?}");
    live.close().await.unwrap();
}

#[tokio::test]
async fn what_it_appends_follows_what_stood_there_and_is_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let live = live(&dir);
    live.append(Topic::Changes, vec![record(0, "a"), record(0, "b")]).await.unwrap();
    let learning = LearningLog::open(Arc::clone(&live), true).await.unwrap();
    live.append(Topic::Changes, vec![record(0, "not of the stage's making")]).await.unwrap();
    assert_eq!(learning.append(Topic::Changes, vec![record(0, "c"), record(1, "x"), record(0, "d")]).await.unwrap(), [2, 0, 3]);
    let mut reader = reader_of(&learning, Topic::Changes, 0).await;
    reader.pause(1);
    assert_eq!(texts(&mut *reader, 0, 4).await, ["a", "b", "c", "d"]);
    assert!(reader.next(1 << 20).now_or_never().is_none());
    let waiting = tokio::join!(next(&mut *reader), async { learning.append(Topic::Changes, vec![record(0, "e")]).await.unwrap() });
    assert!(matches!(waiting.0, Delivery::Records { partition: 0, next: 5, .. }), "{waiting:?}");
    assert_eq!((learning.appended(), learning.bounds(Topic::Changes).await.unwrap()[0].next), (4, 5));
    assert_eq!(live.bounds(Topic::Changes).await.unwrap()[0].next, 3, "nothing was appended to the log");

    // Passed, it is forgotten; a keeper that begins again reads from where it stands.
    reader.commit(0, 4);
    reader.seek(0, 4);
    assert_eq!(texts(&mut *reader, 4, 1).await, ["e"]);
    reader.seek(0, 2);
    assert!(matches!(next(&mut *reader).await, Delivery::Failed { partition: 0, error: Error::OutOfRange { .. } }));
    live.close().await.unwrap();
}

#[tokio::test]
async fn what_is_kept_is_bounded() {
    let tail = Arc::new(Tail::after(vec![0; usize::from(PARTITIONS)], Duration::from_millis(50)));
    let big = || vec![Append { partition: 0, value: vec![0; KEPT_BYTES].into() }];
    tail.append(big()).await.unwrap();
    assert!(matches!(tail.append(big()).await, Err(Error::Unavailable(_))), "told after a while");
    let freed = tokio::join!(tail.append(big()), async { tail.free(0, 1) });
    assert_eq!(freed.0.unwrap(), [1]);
    assert_eq!(tail.kept().bytes, KEPT_BYTES);
}
