//! The archive on a Cassandra that answers late or wrongly, or not at all, or breaks connections off.

use scylla_proxy::example_db_errors as errors;
use scylla_proxy::{Condition, Reaction, RequestOpcode, RequestReaction, RequestRule};

use super::*;
use crate::cql::testing::{Faulty, PASSING, statements};

const PUT_IDENTITY: &str = "INSERT INTO identity (key, entry, seen) VALUES (?, ?, ?)";

/// Statements that have this in them are refused for good.
fn invalid(of: &[u8]) -> RequestRule {
    let of = Condition::BodyContainsCaseSensitive(of.into());
    RequestRule(statements().and(of), RequestReaction::forge_with_error(errors::invalid()))
}

/// An archive behind faults.
async fn faulty(settings: &cql::Settings) -> (Keyspace, Faulty, Scylla) {
    let (keyspace, faulty) = (Keyspace::fresh().await, Faulty::up().await);
    let archive = Scylla::open(&faulty.url(&keyspace), settings, Clock::system()).await.unwrap();
    (keyspace, faulty, archive)
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_that_pass_are_tried_again_and_change_nothing() {
    let fill = async |archive: &Scylla| {
        archive.write(sample()).await.unwrap();
        for number in 0..12 {
            archive.write(order_with(&format!("o{number}"), at(10 + number), Some(at(86_400 + number)))).await.unwrap();
        }
        for next in 10..20 {
            archive.write(counted(next, next as i64)).await.unwrap();
        }
    };
    let sound = Fresh::new();
    let one = sound.scylla().await;
    fill(&one).await;
    // A fifth of all answers is an error; what half of them deny was done.
    let (_keyspace, mut faulty, archive) = faulty(&settings()).await;
    faulty.fail(0.2, &PASSING);
    fill(&archive).await;
    let told = snapshot(&archive).await;
    assert!(!told.contains("Err"), "{told}");
    assert_eq!(told, snapshot(&one).await);
    assert!(archive.cluster.at_once() < one.cluster.at_once(), "{} and {}", archive.cluster.at_once(), one.cluster.at_once());
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_connections_send_the_archiver_back_and_lose_nothing() {
    let (keyspace, mut faulty, archive) = faulty(&settings()).await;
    let (mut next, mut broken, mut failures) = (1, 0, 0);
    while next <= 25 {
        // A write's connection breaks with a statement, of each write with another one, and that of what follows on it with one; what is made again goes through.
        let passed = next as usize % 9;
        let breaks = if broken == next { Vec::new() } else { vec![passed, passed % 4] };
        faulty.break_after(&breaks);
        broken = next;
        match archive.write(counted(next, next as i64)).await {
            Ok(()) => next += 1,
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                failures += 1;
                let cursor = loop {
                    match archive.cursor(3).await {
                        Ok(cursor) => break cursor,
                        Err(error) => assert!(error.is_retryable(), "{error}"),
                    }
                };
                // It may have been done all the same.
                assert!([next - 1, next].contains(&cursor.next), "{} after {next}", cursor.next);
                next = cursor.next + 1;
            }
        }
    }
    // With the journal's statement, a cell's, that of what is remembered, and the cursor's: each of these in at least two rounds.
    assert!(failures >= 8, "{failures}");
    let archive = Scylla::open(&keyspace.0, &settings(), Clock::system()).await.unwrap();
    assert_eq!((archive.cursor(3).await.unwrap().next, counts(&archive).await), (25, 25));
    assert_eq!(archive.totals(&site(), Metric::Views, at(0), at(900), Bots::Include).await.unwrap()[0].1.counts[0], 25);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_a_busy_cluster_refuses_at_first_finds_its_tables() {
    let (keyspace, mut faulty) = (Keyspace::fresh().await, Faulty::up().await);
    let busy = Condition::RequestOpcode(RequestOpcode::Query).and(Condition::BodyContainsCaseSensitive(b"USE "[..].into()));
    let refuse = RequestReaction::forge_with_error(errors::overloaded());
    faulty.become_so(vec![RequestRule(busy.and(Condition::TrueForLimitedTimes(9)), refuse)], Vec::new());
    let archive = Scylla::open(&faulty.url(&keyspace), &settings(), Clock::system()).await.unwrap();
    assert_eq!(archive.cursor(3).await.unwrap().next, 0);
    assert!(archive.cluster.at_once() < 128, "it was refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_that_cannot_be_removed_hold_a_batch_up_once_and_not_for_each_partition() {
    let (_keyspace, mut faulty, archive) = faulty(&cql::Settings { patience: Duration::from_secs(6), ..settings() }).await;
    let removing = Condition::RequestOpcode(RequestOpcode::Prepare).and(Condition::BodyContainsCaseSensitive(b"DELETE FROM"[..].into()));
    faulty.become_so(vec![RequestRule(removing, RequestReaction::drop_frame())], Vec::new());
    let began = Instant::now();
    let cursors = (0..PARTITIONS).map(|part| (part, Cursor { next: 5, received_at: at(5) })).collect();
    archive.write(WriteBatch { cursors, ..WriteBatch::default() }).await.unwrap();
    // Two attempts, each given 5 s; for each partition it would be 160 s.
    let took = began.elapsed();
    assert!((Duration::from_secs(5)..Duration::from_secs(60)).contains(&took), "{took:?}");
    assert!(archive.cursors().await.unwrap().iter().all(|cursor| cursor.next == 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_for_good_is_named_where_it_is_a_records_fault_and_waited_for_else() {
    let (_keyspace, mut faulty, archive) = faulty(&settings()).await;
    let row = |offset: u64| EventRow { offset, event_id: format!("e{offset}"), body: format!("body-{offset}-").into(), ..sample().events[0].clone() };
    let batch = || WriteBatch { events: (0..20).map(row).collect(), ..counted(20, 20) };
    // Two records' rows, whatever they go with.
    faulty.become_so(vec![invalid(b"body-7-"), invalid(b"body-11-")], Vec::new());
    let error = archive.write(batch()).await.unwrap_err();
    let Error::Refused(refused) = error else { panic!("{error}") };
    assert_eq!(refused.iter().map(|of| (of.partition, of.offset)).collect::<Vec<_>>(), [(3, 7), (3, 11)]);
    assert_eq!(archive.cursor(3).await.unwrap().next, 0, "nothing is counted yet");
    let mut rest = batch();
    rest.events.retain(|row| ![7, 11].contains(&row.offset));
    archive.write(rest).await.unwrap();
    assert_eq!(archive.cursor(3).await.unwrap().next, 20);
    // Every row of any site: nobody's fault.
    faulty.become_so(vec![invalid(b"demo")], Vec::new());
    let more = || WriteBatch { events: (20..40).map(row).collect(), ..counted(40, 40) };
    let error = archive.write(more()).await.unwrap_err();
    assert!(matches!(error, Error::Store(_)) && error.is_retryable(), "{error}");
    // What is counted, and no record.
    faulty.become_so(
        vec![RequestRule(
            statements().and(Condition::BodyContainsCaseSensitive(b"p1"[..].into())),
            RequestReaction::forge_with_error(errors::unauthorized()),
        )],
        Vec::new(),
    );
    let error = archive.write(counted(41, 41)).await.unwrap_err();
    assert!(matches!(error, Error::Store(_)) && error.is_retryable(), "{error}");
    faulty.become_so(Vec::new(), Vec::new());
    assert!([20, 41].contains(&archive.cursor(3).await.unwrap().next));
    archive.write(more()).await.unwrap();
}

const PUT_SITE: &str = "INSERT INTO site (one, name) VALUES (0, ?)";
const SITES: &str = "SELECT name FROM site WHERE one = 0";

#[tokio::test(flavor = "multi_thread")]
async fn an_overloaded_cluster_gets_less_at_once_and_a_large_batch_through() {
    const ROWS: usize = 500;
    let patience = Duration::from_secs(6);
    let (_keyspace, mut faulty, archive) = faulty(&cql::Settings { patience, ..settings() }).await;
    let put = |n: usize| Write::new(PUT_SITE, (format!("s{n}"),));
    let overloaded = || RequestReaction::forge_with_error_lazy_delay(Box::new(errors::overloaded), Some(Duration::from_millis(200)));
    faulty.become_so(vec![RequestRule(statements(), overloaded())], Vec::new());
    while archive.cluster.at_once() > 4 {
        assert!(archive.cluster.write(vec![put(0)]).await.is_err());
    }
    // Now it gets through, slowly, and a tenth is still too much. What is asked for last waits for far longer than the patience of a call.
    let refuse = RequestRule(statements().and(Condition::RandomWithProbability(0.1)), overloaded());
    let slow = RequestRule(statements(), RequestReaction::delay(Duration::from_millis(200)));
    faulty.become_so(vec![refuse, slow], Vec::new());
    let began = Instant::now();
    archive.cluster.write((0..ROWS).map(put).collect()).await.unwrap();
    assert!(began.elapsed() > patience, "too fast to tell: {:?}", began.elapsed());
    assert!(archive.cluster.at_once() < 16, "{}", archive.cluster.at_once());
    faulty.become_so(Vec::new(), Vec::new());
    assert_eq!(archive.cluster.rows::<(String,)>(SITES, ()).await.unwrap().len(), ROWS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_answers_nothing_is_given_up_in_time_by_all_who_wait() {
    let patience = Duration::from_secs(5);
    let (_keyspace, mut faulty, archive) = faulty(&cql::Settings { patience, ..settings() }).await;
    archive.cluster.write(vec![Write::new(PUT_SITE, ("s",))]).await.unwrap();
    let refuse = RequestReaction::forge_with_error_lazy_delay(Box::new(errors::overloaded), Some(Duration::from_secs(1)));
    faulty.become_so(vec![RequestRule(statements(), refuse)], Vec::new());
    let began = Instant::now();
    let calls = (0..2_000).map(|_| archive.cluster.write(vec![Write::new(PUT_SITE, ("s",))]));
    let told = futures::future::join_all(calls).await;
    assert!(told.iter().all(|told| matches!(told, Err(cql::Error::Unavailable(_)))));
    assert!(began.elapsed() < 5 * patience, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn small_rows_of_many_partitions_are_written_together_and_read_by_lists_of_keys() {
    const ONE: &str = "SELECT key FROM identity WHERE key = ?";
    const MANY: &str = "SELECT key FROM identity WHERE key IN ?";
    let (_keyspace, mut faulty, archive) = faulty(&settings()).await;
    let cluster = &archive.cluster;
    let key = |n: u8| vec![n; 16];
    let put = |n: u8| Write::new(PUT_IDENTITY, (key(n), vec![n], 1i64));
    // One goes by itself; with it the statement is prepared.
    cluster.write(vec![put(0)]).await.unwrap();
    // No more than so many statements by themselves.
    let alone = |most| {
        let beyond = Condition::RequestOpcode(RequestOpcode::Execute).and(Condition::not(Condition::TrueForLimitedTimes(most)));
        vec![RequestRule(statements().and(beyond), RequestReaction::forge_with_error(errors::invalid()))]
    };
    faulty.become_so(alone(0), Vec::new());
    cluster.write((0..30).map(put).collect()).await.unwrap();
    assert!(matches!(cluster.write(vec![put(30)]).await, Err(cql::Error::Refused(_))));
    faulty.become_so(alone(5), Vec::new());
    let mut found: Vec<(Vec<u8>,)> = cluster.rows_of(ONE, MANY, (0..50).map(key)).await.unwrap();
    found.sort_unstable();
    assert_eq!(found, (0..30).map(|n| (key(n),)).collect::<Vec<_>>());
    let none: Vec<(Vec<u8>,)> = cluster.rows_of(ONE, MANY, std::iter::empty()).await.unwrap();
    assert!(none.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_told_however_much_goes_beside_it() {
    let (_keyspace, mut faulty, archive) = faulty(&cql::Settings { patience: Duration::from_secs(6), ..settings() }).await;
    faulty.become_so(vec![invalid(b"refused")], Vec::new());
    // Two of one partition, and far more requests than may be under way at once.
    let bad = || Write::new(PUT_IDENTITY, (vec![255u8; 16], b"refused".to_vec(), 1i64)).beside("bad", 60);
    let row = |n: u32| Write::new(PUT_IDENTITY, (n.to_be_bytes().to_vec(), vec![0u8], 1i64));
    let mut writes: Vec<Write> = [bad(), bad()].into();
    writes.extend((0..10_000).map(row));
    let told = archive.cluster.write(writes).await;
    assert!(matches!(told, Err(cql::Error::Refused(_))), "{told:?}");
}
