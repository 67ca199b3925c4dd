//! The producer without brokers: what its callers are told, and when it is replaced.

use super::*;

#[tokio::test]
async fn a_call_is_answered_once_when_all_its_records_are_settled() {
    let (call, mut answered) = Call::new(3);
    call.settle(2, Ok(9));
    call.settle(0, Ok(7));
    assert!(answered.try_recv().is_err());
    call.settle(1, Ok(8));
    assert_eq!(answered.await.unwrap(), [Ok(7), Ok(8), Ok(9)]);

    let (call, answered) = Call::new(2);
    call.settle(0, Err(Error::Unavailable("lost".into())));
    call.settle(1, Ok(1));
    assert_eq!(answered.await.unwrap(), [Err(Error::Unavailable("lost".into())), Ok(1)]);
}

#[test]
fn numbers_that_are_no_offsets_are_not_told() {
    let reports = Reports::default();
    let told: Vec<_> = [(3, 7), (3, -1), (3, 0), (3, 1), (3, 8), (4, 0), (3, -1001), (3, -1001), (3, 9), (3, -1), (4, 0)]
        .into_iter()
        .map(|(partition, offset)| reports.place(partition, offset))
        .collect();
    assert_eq!(told, [Some(7), None, None, None, Some(8), Some(0), None, None, Some(9), None, Some(0)]);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_frees_its_room() {
    // Nobody listens there: what is queued stays queued until its time is over.
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", "127.0.0.1:1");
    let producer = Arc::new(Producer::new(&config, LINGER, Late::Dropped).unwrap());
    let records = |count: usize| vec![Append { partition: 0, value: bytes::Bytes::from_static(b"x") }; count];
    let waiting = {
        let (producer, many) = (Arc::clone(&producer), records(MAX_WAITING_RECORDS));
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move { producer.append("t", &many).await });
        tasks
    };
    while producer.waiting.records.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(producer.append("t", &records(1)).await, Err(Error::Full("the queue to the brokers is full")));
    assert_eq!(producer.waiting.records.load(Ordering::Relaxed), MAX_WAITING_RECORDS, "what was refused takes no room");
    drop(waiting);
}

/// One that keeps what is late, and is soon told so: nobody listens there.
fn kept() -> Producer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", "127.0.0.1:1");
    let producer = Producer::new(&config, LINGER, Late::Kept).unwrap();
    Producer { timeout: Duration::from_millis(100), ..producer }
}

fn record(bytes: usize) -> Append {
    Append { partition: 0, value: vec![b'x'; bytes].into() }
}

/// Makes its client as old as that.
fn age(producer: &Producer, by: Duration) {
    producer.current.write().unwrap().since = Instant::now().checked_sub(by).unwrap();
}

#[tokio::test]
async fn one_that_gave_records_up_is_replaced() {
    let mut producer = kept();
    producer.late = Late::Dropped;
    producer.config.set("message.timeout.ms", "50");
    producer.current = RwLock::new(create(&producer.config).unwrap());
    let former = producer.current().unwrap();
    producer.append("t", &[record(1)]).await.unwrap_err();
    age(&producer, APART);
    assert!(!Arc::ptr_eq(&producer.current().unwrap(), &former), "it may never send again");
}

#[tokio::test]
async fn one_that_tells_nothing_of_what_it_should_have_given_up_is_replaced() {
    // Its client has no time limit.
    let producer = Producer { late: Late::Dropped, ..kept() };
    let former = producer.current().unwrap();
    let refused = producer.append("t", &[record(1)]).await.unwrap_err();
    assert!(matches!(&refused, Error::Unavailable(what) if what.contains("tells nothing")), "{refused}");
    assert!(!Arc::ptr_eq(&producer.current().unwrap(), &former));
    settled(&producer).await;
}

#[tokio::test]
async fn one_that_tells_nothing_is_replaced_whoever_still_waits_for_it() {
    for late in [Late::Dropped, Late::Kept] {
        let producer = Producer { late, timeout: LONG, ..kept() };
        let former = producer.current().unwrap();
        for _ in 0..3 {
            // Its caller goes away long before.
            tokio::time::timeout(Duration::from_millis(10), producer.append("t", &[record(1)])).await.unwrap_err();
        }
        assert!(Arc::ptr_eq(&producer.current().unwrap(), &former));
        age(&producer, LONG);
        former.context().watched.lock().unwrap().as_mut().unwrap().0 -= producer.timeout + GRACE;
        assert!(!Arc::ptr_eq(&producer.current().unwrap(), &former), "{late:?}");
        settled(&producer).await;
    }
}

/// Waits until nothing takes room any longer.
async fn settled(producer: &Producer) {
    let asked = Instant::now();
    while producer.waiting.records.load(Ordering::Relaxed) > 0 {
        assert!(asked.elapsed() < TIMEOUT, "the room of what was given up does not come back");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn one_that_keeps_what_is_late_is_replaced_once_that_is_so_for_long() {
    let producer = Producer { timeout: Duration::from_secs(1), ..kept() };
    let former = producer.current().unwrap();
    for _ in 0..2 {
        producer.append("t", &[record(1)]).await.unwrap_err();
        assert!(Arc::ptr_eq(&producer.current().unwrap(), &former));
    }
    age(&producer, LONG);
    // Making the next one, and the former one's reports, take a moment that is not the brokers'.
    drop(producer.current().unwrap());
    settled(&producer).await;
    let refused = producer.append("t", &[record(1)]).await.unwrap_err();
    assert!(matches!(&refused, Error::Unavailable(what) if what.contains("what was to be appended")), "{refused}");
    assert!(!Arc::ptr_eq(&producer.current().unwrap(), &former));
    assert_eq!(producer.waiting.records.load(Ordering::Relaxed), 1, "what the former one kept is given up");
}

#[tokio::test]
async fn nothing_of_a_call_goes_behind_what_is_refused_at_once() {
    let producer = kept();
    producer.append("t", &[record(1), record(MAX_MESSAGE + 1), record(1)]).await.unwrap_err();
    assert_eq!(producer.waiting.records.load(Ordering::Relaxed), 1, "the first one alone is on its way");
}

#[tokio::test]
async fn a_late_record_that_is_kept_holds_up_what_would_be_sent_behind_it() {
    let producer = kept();
    assert_eq!(producer.config.get("message.timeout.ms"), Some("0"), "the brokers' answer alone settles a record");
    let waiting = || producer.waiting.records.load(Ordering::Relaxed);
    for told in ["what was to be appended", "what an earlier call left", "what an earlier call left"] {
        let refused = producer.append("t", &[record(1)]).await.unwrap_err();
        assert!(matches!(&refused, Error::Unavailable(what) if what.contains(told)), "{refused}");
        assert_eq!(waiting(), 1, "it is on its way still, and nothing piles up behind it");
    }
    // Closing does not wait for it once more.
    let closing = Instant::now();
    producer.flush(closing + 3 * TIMEOUT).unwrap();
    assert!(closing.elapsed() < TIMEOUT);
    while waiting() > 0 {
        assert!(closing.elapsed() < 3 * TIMEOUT, "it is not given up");
        tokio::task::yield_now().await;
    }
}
