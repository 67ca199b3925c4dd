//! The objects on a Cassandra that answers wrongly, or breaks connections off.

use std::collections::BTreeMap;

use scylla_proxy::example_db_errors as errors;
use scylla_proxy::{Condition, RequestReaction, RequestRule};

use super::*;
use crate::cql::testing::{Faulty, PASSING, statements};

async fn faulty() -> (Keyspace, Faulty, Scylla) {
    let (keyspace, faulty) = (Keyspace::fresh().await, Faulty::up().await);
    let store = Scylla::open(&faulty.url(&keyspace), &settings(), Clock::system()).await.unwrap();
    (keyspace, faulty, store)
}

/// What the keeper does of changes `1..=last`: each adds a row, every seventh to a large object, and the checkpoint goes with it.
fn step(n: u64) -> (Vec<ObjectWrite>, Vec<(u16, Checkpoint)>) {
    let mut writes = vec![nth("a", n, &[("last", &n.to_string()), (&format!("{:02}", n % 10), &n.to_string())])];
    if n.is_multiple_of(7) {
        writes.push(large(n, 30));
    }
    (writes, vec![(3, Checkpoint { next: n, seen: vec![Some((n, 1))] })])
}

async fn assert_as_of(store: &Scylla, last: u64) {
    let mut expected: Vec<(String, String)> = (last - 9..=last).map(|n| (format!("{:02}", n % 10), n.to_string())).collect();
    expected.sort();
    expected.push(("last".into(), last.to_string()));
    assert_eq!(stored(store, "a").await, (last, expected));
    let found = store.load(&[map("large")]).await.unwrap().remove(0).unwrap();
    assert_eq!((found.head.event_id, found.rows), (last / 7 * 7, large(last / 7 * 7, 30).rows));
    assert_eq!(store.checkpoint(3).await.unwrap().next, last);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_that_pass_are_tried_again_and_change_nothing() {
    let (keyspace, mut faulty, store) = faulty().await;
    // A fifth of all answers is an error; what half of them deny was done.
    faulty.fail(0.2, &PASSING);
    let known = |n: u64| IdentityKey(u128::from(n).to_be_bytes());
    let entry = |n| Entry::Event(EventEntry { first: n, fingerprints: vec![n] });
    for n in 1..=20 {
        let (writes, checkpoints) = step(n);
        assert_eq!(store.commit_objects(writes, checkpoints).await.unwrap().len(), 0);
        store
            .commit_router(vec![RouterCommit { partition: 3, next: n, entries: vec![(known(n), entry(n))], ..RouterCommit::default() }])
            .await
            .unwrap();
    }
    for store in [&store, &open(&keyspace).await] {
        assert_as_of(store, 20).await;
        assert_eq!(store.router_next(3).await.unwrap(), 20);
        let keys: Vec<IdentityKey> = (1..=20).map(known).collect();
        let found: BTreeMap<IdentityKey, Entry> = store.identities(3, &keys).await.unwrap().into_iter().collect();
        assert_eq!(found, (1..=20).map(|n| (known(n), entry(n))).collect());
        assert_eq!(store.list(&map("").site, ObjectKind::Map, "", Seek::First, 9).await.unwrap().len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_connections_send_the_keeper_back_and_lose_nothing() {
    let (keyspace, mut faulty, store) = faulty().await;
    let (mut n, mut broken, mut failures) = (1, 0, 0);
    while n <= 25 {
        // A commit's connection breaks with a statement, of each commit with another one, and that of what follows on it with one; what is made again goes through.
        let passed = n as usize % 9;
        let breaks = if broken == n { Vec::new() } else { vec![passed, passed % 4] };
        faulty.break_after(&breaks);
        broken = n;
        let (writes, checkpoints) = step(n);
        match store.commit_objects(writes, checkpoints).await {
            Ok(refused) => {
                assert_eq!(refused.len(), 0);
                n += 1;
            }
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                failures += 1;
                // What it remembers of its objects may be there or not, and is written again.
                let stored = loop {
                    match store.checkpoint(3).await {
                        Ok(checkpoint) => break checkpoint.next,
                        Err(error) => assert!(error.is_retryable(), "{error}"),
                    }
                };
                assert!([n - 1, n].contains(&stored), "{stored} after {n}");
                n = stored + 1;
            }
        }
    }
    // With the statement of the object's rows, and the checkpoint's: each of these in at least two rounds.
    assert!(failures >= 4, "{failures}");
    assert_as_of(&open(&keyspace).await, 25).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_for_good_freezes_one_object_and_fails_the_call_where_nothing_is_taken() {
    let (keyspace, mut faulty, store) = faulty().await;
    let refuse = |of: &[u8]| {
        let of = Condition::BodyContainsCaseSensitive(of.into());
        RequestRule(statements().and(of), RequestReaction::forge_with_error(errors::invalid()))
    };
    let both = |n| vec![nth("bad", n, &[("x", "bad-value")]), nth("good", n, &[("x", "1")])];
    faulty.become_so(vec![refuse(b"bad-value")], Vec::new());
    let refused = store.commit_objects(both(1), Vec::new()).await.unwrap();
    assert_eq!(refused.iter().map(|(key, _)| &*key.name).collect::<Vec<_>>(), ["bad"]);
    assert_eq!(stored(&store, "good").await.0, 1);
    // Where the mark is refused too, none is frozen, and no checkpoint stored.
    faulty.become_so(vec![refuse(b"good")], Vec::new());
    let checkpoint = (3, Checkpoint { next: 9, seen: Vec::new() });
    let error = store.commit_objects(vec![nth("good", 2, &[("x", "2")])], vec![checkpoint]).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    faulty.become_so(Vec::new(), Vec::new());
    assert_eq!(store.checkpoint(3).await.unwrap().next, 0);
    put(&store, vec![nth("good", 2, &[("x", "2")])]).await;
    for store in [&store, &open(&keyspace).await] {
        assert_eq!(stored(store, "good").await.0, 2);
        assert!(matches!(store.load(&[map("bad")]).await, Err(Error::Corrupt { .. })));
    }
}
