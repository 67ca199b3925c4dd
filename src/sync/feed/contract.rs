//! The suite that every Feed must pass. A backend's tests say how its nodes are opened ([`Subject`]) and run all of it by [`contract_tests`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::event::{ObjectKey, ObjectKind, SiteId};
use crate::sync::{Answer, Applied, AppliedRow, Feed, Refusal, Subscription, Update, Verdict};

/// A feed under test, by its nodes: embedded there is one process, so that each is the same.
#[async_trait]
pub(crate) trait Subject: Send + Sync {
    async fn node(&self) -> Arc<dyn Feed>;
}

/// Runs every test of the suite as one of the caller's module, over `$subject`, an expression that makes a fresh [`Subject`].
macro_rules! contract_tests {
    ($subject:expr) => {
        crate::sync::feed::contract::contract_tests! { $subject;
            writes_reach_every_subscriber_of_their_object_in_order, what_is_published_after_attaching_is_delivered, what_came_before_is_not,
            a_subscriber_anywhere_is_wanted_everywhere, a_slow_subscriber_lags_alone_and_goes_on_after, a_large_write_stops_nothing,
            closing_ends_subscribers_and_not_publishing, answers_reach_who_waits_wherever_that_is
        }
    };
    ($subject:expr; $($test:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let subject = $subject;
                let run = crate::sync::feed::contract::$test(&subject);
                tokio::time::timeout(std::time::Duration::from_secs(60), run).await.expect("no progress");
            }
        )+
    };
}
pub(crate) use contract_tests;

pub(crate) fn key(name: &str) -> ObjectKey {
    ObjectKey { site: SiteId::parse("demo").unwrap(), kind: ObjectKind::Map, name: name.into() }
}

pub(crate) fn write(name: &str, event_id: u64, bytes: usize) -> Applied {
    let data = Some(format!("\"{}\"", "x".repeat(bytes)).into());
    let row = AppliedRow { item: "i".into(), revision: event_id, event_id, data, ..AppliedRow::default() };
    Applied { rows: vec![row], ..Applied::new(key(name), event_id.saturating_sub(1), event_id) }
}

/// The next updates: event ids, None where it lagged.
pub(crate) async fn ids(subscription: &mut Subscription, count: usize) -> Vec<Option<u64>> {
    let mut out = Vec::new();
    for _ in 0..count {
        out.push(match subscription.next().await {
            Update::Write(write) => Some(write.event_id),
            Update::Lagged => None,
            Update::Closed => Some(u64::MAX),
        });
    }
    out
}

pub(crate) async fn writes_reach_every_subscriber_of_their_object_in_order(subject: &dyn Subject) {
    let (here, there) = (subject.node().await, subject.node().await);
    let mut first = here.subscribe(&key("a")).await.unwrap();
    let mut second = there.subscribe(&key("a")).await.unwrap();
    let mut other = there.subscribe(&key("b")).await.unwrap();
    for round in 0..10 {
        let from = round * 3;
        here.publish(vec![write("a", from + 1, 1), write("b", from + 1, 1), write("a", from + 2, 1), write("a", from + 3, 10)]).await.unwrap();
    }
    let all: Vec<_> = (1..=30).map(Some).collect();
    assert_eq!(ids(&mut first, 30).await, all);
    assert_eq!(ids(&mut second, 30).await, all);
    assert_eq!(ids(&mut other, 10).await, (0..10).map(|round| Some(round * 3 + 1)).collect::<Vec<_>>());
    let removal = Applied { rows: Vec::new(), removed: true, ..write("a", 31, 0) };
    there.publish(vec![removal.clone()]).await.unwrap();
    assert!(matches!(first.next().await, Update::Write(write) if *write == removal), "whole, whoever published it");
}

pub(crate) async fn what_is_published_after_attaching_is_delivered(subject: &dyn Subject) {
    let (here, there) = (subject.node().await, subject.node().await);
    for round in 1..=50 {
        let mut subscription = there.subscribe(&key("a")).await.unwrap();
        here.publish(vec![write("a", round, 1)]).await.unwrap();
        // What was under way when it attached may come too.
        while ids(&mut subscription, 1).await != [Some(round)] {}
    }
}

pub(crate) async fn what_came_before_is_not(subject: &dyn Subject) {
    let here = subject.node().await;
    here.publish(vec![write("a", 1, 1)]).await.unwrap();
    let there = subject.node().await;
    let mut late = there.subscribe(&key("a")).await.unwrap();
    here.publish(vec![write("a", 2, 1)]).await.unwrap();
    assert_eq!(ids(&mut late, 1).await, [Some(2)]);
}

pub(crate) async fn a_subscriber_anywhere_is_wanted_everywhere(subject: &dyn Subject) {
    let (here, there) = (subject.node().await, subject.node().await);
    let subscription = there.subscribe(&key("a")).await.unwrap();
    assert!(here.wanted(&key("a")) && there.wanted(&key("a")));
    drop(subscription);
    let again = here.subscribe(&key("a")).await.unwrap();
    assert!(here.wanted(&key("a")) && there.wanted(&key("a")));
    drop(again);
}

pub(crate) async fn a_slow_subscriber_lags_alone_and_goes_on_after(subject: &dyn Subject) {
    let (here, there) = (subject.node().await, subject.node().await);
    let mut slow = there.subscribe(&key("a")).await.unwrap();
    let mut quick = there.subscribe(&key("a")).await.unwrap();
    for id in 1..=100 {
        here.publish(vec![write("a", id, 1)]).await.unwrap();
        assert_eq!(ids(&mut quick, 1).await, [Some(id)]);
    }
    // It has either been told so, or is told first.
    assert_eq!(ids(&mut slow, 1).await, [None]);
    here.publish(vec![write("a", 101, 1)]).await.unwrap();
    while ids(&mut slow, 1).await != [Some(101)] {}
}

pub(crate) async fn a_large_write_stops_nothing(subject: &dyn Subject) {
    let (here, there) = (subject.node().await, subject.node().await);
    let mut subscription = there.subscribe(&key("a")).await.unwrap();
    here.publish(vec![write("a", 1, 1), write("a", 2, 5 << 20), write("a", 3, 1)]).await.unwrap();
    here.publish(vec![write("a", 4, 1)]).await.unwrap();
    // Told whole, or sent to a snapshot.
    let mut seen = Vec::new();
    while !matches!(seen.last(), Some(Some(4) | None)) {
        seen.extend(ids(&mut subscription, 1).await);
    }
    assert!(seen.contains(&Some(2)) || seen.contains(&None), "{seen:?}");
    here.publish(vec![write("a", 5, 1)]).await.unwrap();
    while ids(&mut subscription, 1).await != [Some(5)] {}
}

pub(crate) async fn answers_reach_who_waits_wherever_that_is(subject: &dyn Subject) {
    let (here, there) = (subject.node().await, subject.node().await);
    let answer = |n: u8| Answer { request: [n; 16], partition: 3, verdicts: vec![Verdict::Refused(Refusal::Revision)], object: None };
    let (mut first, mut second) = (there.expect([1; 16]).unwrap(), here.expect([2; 16]).unwrap());
    let given_up = there.expect([3; 16]).unwrap();
    drop(given_up);
    // Nobody waits for some, and of some there are two.
    here.answer([4, 3, 2, 1, 1].map(answer).to_vec()).await.unwrap();
    assert_eq!(first.answer().await, Some(answer(1)));
    assert_eq!(second.answer().await, Some(answer(2)));
}

pub(crate) async fn closing_ends_subscribers_and_not_publishing(subject: &dyn Subject) {
    let feed = subject.node().await;
    let mut waiting = feed.subscribe(&key("a")).await.unwrap();
    let (update, ()) = tokio::join!(waiting.next(), async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        feed.close();
    });
    assert!(matches!(update, Update::Closed));
    let mut later = feed.subscribe(&key("a")).await.unwrap();
    assert!(matches!(later.next().await, Update::Closed));
    feed.publish(vec![write("a", 1, 1)]).await.unwrap();
}
