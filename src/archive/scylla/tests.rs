//! The archive on a real Cassandra against the suite, and what is its own.

mod faults;
mod security;

use std::sync::Arc;

use super::*;
use crate::archive::contract::{self, ALL, Bench, order_with, sample, snapshot};
use crate::archive::{Label, LabelValue};
use crate::cql::Write;
use crate::cql::testing::{Keyspace, settings};
use crate::event::identity::EventEntry;

/// A keyspace of its own on the one server.
struct Fresh(tokio::sync::OnceCell<Keyspace>);

impl Fresh {
    const fn new() -> Self {
        Self(tokio::sync::OnceCell::const_new())
    }

    async fn scylla(&self) -> Scylla {
        let keyspace = self.0.get_or_init(Keyspace::fresh).await;
        Scylla::open(&keyspace.0, &settings(), Clock::system()).await.unwrap()
    }
}

impl Bench for Fresh {
    async fn open(&self) -> Arc<dyn Archive> {
        Arc::new(self.scylla().await)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite() {
    contract::suite(Fresh::new).await;
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::parse("2026-11-20T00:00:00Z").unwrap().plus_seconds(seconds)
}

fn site() -> SiteId {
    SiteId::parse("demo").unwrap()
}

fn views(count: i64) -> (CellKey, CellValue) {
    let key = CellKey { site: site(), metric: Metric::Views, cell: at(0), dim: "p1".into(), crawler: false };
    (key, CellValue { counts: [count, 0], ..CellValue::default() })
}

/// A batch of partition 3 that counts so many views up to an offset.
fn counted(next: u64, count: i64) -> WriteBatch {
    let (key, value) = views(count);
    let entry = Entry::Event(EventEntry { first: next, fingerprints: vec![next] });
    WriteBatch {
        cells: vec![(3, key, value)],
        identities: vec![(3, IdentityKey([7; 16]), entry)],
        cursors: vec![(3, Cursor { next, received_at: at(next as i64) })],
        ..WriteBatch::default()
    }
}

async fn counts(archive: &Scylla) -> i64 {
    let found = archive.cells(3, &[views(0).0]).await.unwrap();
    found.first().map_or(0, |(_, value)| value.counts[0])
}

/// Writes of a batch only what a writer that dies after some steps gets to: the journal, then also cells.
async fn die_after(archive: &Scylla, batch: WriteBatch, cells: bool) {
    let parts = archive.stamped(batch).await.unwrap();
    let part = &parts[&3];
    let mut writes = Vec::new();
    part.journal(3, part.cursor().unwrap().next, &mut writes);
    archive.cluster.write(writes).await.unwrap();
    if cells {
        let (mut writes, mut lines) = (Vec::new(), BTreeMap::new());
        part.counted(3, &mut writes, &mut lines);
        archive.cluster.write(writes).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_cut_short_is_done_whole_before_its_cursor_is_read() {
    let bench = Fresh::new();
    for (round, cells) in [(0, false), (1, true)] {
        let archive = bench.scylla().await;
        let (before, after) = (10 + round * 100, 20 + round * 100);
        archive.cursor(3).await.unwrap();
        archive.write(counted(before, before as i64)).await.unwrap();
        die_after(&archive, counted(after, after as i64), cells).await;
        // The same process, or another.
        let next = if cells { bench.scylla().await } else { archive };
        assert_eq!(next.stored_cursor(3).await.unwrap().next, before);
        assert_eq!(next.cursor(3).await.unwrap(), Cursor { next: after, received_at: at(after as i64) });
        assert_eq!(counts(&next).await, after as i64);
        let known = next.identities(3, &[IdentityKey([7; 16])]).await.unwrap();
        assert_eq!(known[0].1, Entry::Event(EventEntry { first: after, fingerprints: vec![after] }));
        assert_eq!(next.totals(&site(), Metric::Views, at(0), at(900), Bots::Include).await.unwrap()[0].1.counts[0], after as i64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piece_that_was_not_whole_was_not_begun() {
    let bench = Fresh::new();
    let archive = bench.scylla().await;
    archive.write(counted(10, 10)).await.unwrap();
    let mut batch = counted(20, 20);
    // Entries enough for several chunks; the last chunk is not written.
    let entry = |n: u64| (3, IdentityKey(u128::from(n).to_be_bytes()), Entry::Event(EventEntry { first: n, fingerprints: vec![u64::MAX - n; 9] }));
    batch.identities.extend((0..3_000).map(entry));
    let parts = archive.stamped(batch).await.unwrap();
    let mut writes = Vec::new();
    parts[&3].journal(3, 20, &mut writes);
    assert!(writes.len() > 1, "several chunks");
    writes.pop();
    archive.cluster.write(writes).await.unwrap();
    let archive = bench.scylla().await;
    assert_eq!(archive.cursor(3).await.unwrap().next, 10);
    assert_eq!(counts(&archive).await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_former_owner_writes_late_loses() {
    let bench = Fresh::new();
    let former = bench.scylla().await;
    former.cursor(3).await.unwrap();
    former.write(counted(10, 10)).await.unwrap();
    let owner = bench.scylla().await;
    owner.cursor(3).await.unwrap();
    owner.write(counted(30, 30)).await.unwrap();
    former.write(counted(20, 20)).await.unwrap();
    for archive in [former, owner, bench.scylla().await] {
        assert_eq!(archive.cursor(3).await.unwrap(), Cursor { next: 30, received_at: at(30) });
        assert_eq!(counts(&archive).await, 30);
        let known = archive.identities(3, &[IdentityKey([7; 16])]).await.unwrap();
        assert_eq!(known[0].1, Entry::Event(EventEntry { first: 30, fingerprints: vec![30] }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_built_on_what_a_former_owner_wrote_further() {
    let bench = Fresh::new();
    let (former, owner, learning) = (bench.scylla().await, bench.scylla().await, bench.scylla().await.beside_its_archiver());
    former.write(counted(10, 10)).await.unwrap();
    assert_eq!(owner.cursor(3).await.unwrap().next, 10);
    assert_eq!(counts(&learning).await, 10);
    former.write(counted(20, 20)).await.unwrap();
    for refused in [owner.cells(3, &[views(0).0]).await.map(drop), owner.identities(3, &[IdentityKey([7; 16])]).await.map(drop)] {
        assert!(refused.unwrap_err().is_retryable());
    }
    assert_eq!(counts(&learning).await, 20, "who only reads beside it is answered");
    assert_eq!(owner.cursor(3).await.unwrap().next, 20);
    assert_eq!(counts(&owner).await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_builds_on_nothing_that_a_node_may_have_lost() {
    let bench = Fresh::new();
    let archive = bench.scylla().await;
    archive.write(counted(10, 10)).await.unwrap();
    // As though one had begun anew.
    archive.restarts.fetch_add(1, Ordering::SeqCst);
    for _ in 0..2 {
        let told = archive.retain(Timestamp::ZERO, &[3]).await.unwrap_err();
        assert!(matches!(&told, Error::Store(why) if why == BEGAN_ANEW), "{told}");
    }
    assert_eq!(archive.cursor(3).await.unwrap().next, 10);
    archive.retain(Timestamp::ZERO, &[3]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_far_ahead_stamps_nothing_so() {
    const TAKE_LINK: &str = "DELETE FROM link USING TIMESTAMP ? WHERE site = ? AND person = ?";
    const LINKS: &str = "SELECT count(*) FROM link";
    const LABELED: &str = "SELECT writetime(value) FROM label";
    let bench = Fresh::new();
    let archive = bench.scylla().await;
    let now = Clock::system().now();
    let (ahead, later) = (now.plus_seconds(10 * 86_400), now.plus_seconds(2 * 86_400).micros());
    let cursor = Cursor { next: 1, received_at: ahead };
    let label = LabelValue { value: "Mug".into(), at: ahead, event_id: "e".into() };
    let labels = vec![(site(), Label::ProductName, "p1".into(), label)];
    archive.write(WriteBatch { cursors: vec![(3, cursor)], links: vec![(site(), [1; 16], [2; 16])], labels, ..WriteBatch::default() }).await.unwrap();
    let links = async || archive.cluster.rows::<(i64,)>(LINKS, ()).await.unwrap()[0].0;
    assert_eq!(links().await, 2);
    for person in [[1u8; 16], [2; 16]] {
        archive.cluster.write(vec![Write::new(TAKE_LINK, (later, site().as_str().to_owned(), person.to_vec()))]).await.unwrap();
    }
    assert_eq!(links().await, 0, "a cluster refuses what is stamped further ahead");
    let labeled: Vec<(i64,)> = archive.cluster.rows(LABELED, ()).await.unwrap();
    assert!(labeled[0].0 < later);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_node_lost_is_made_good_or_told() {
    const PUT_CURSOR: &str = "INSERT INTO cursor (part, next, received_at) VALUES (3, 20, ?) USING TIMESTAMP ?";
    const LOSE_PIECES: &str = "DELETE FROM journal USING TIMESTAMP ? WHERE part = 3 AND next > ?";
    let bench = Fresh::new();
    let archive = bench.scylla().await;
    archive.write(counted(10, 10)).await.unwrap();
    // All tables but two lost the second batch.
    die_after(&archive, counted(20, 20), false).await;
    let stamp = stamp::of(0, 20).unwrap();
    archive.cluster.write(vec![Write::new(PUT_CURSOR, (at(20).micros(), stamp))]).await.unwrap();
    assert_eq!((archive.stored_cursor(3).await.unwrap().next, counts(&archive).await), (20, 10));
    let next = bench.scylla().await;
    assert_eq!(next.cursor(3).await.unwrap().next, 20);
    assert_eq!(counts(&next).await, 20);
    let known = next.identities(3, &[IdentityKey([7; 16])]).await.unwrap();
    assert_eq!(known[0].1, Entry::Event(EventEntry { first: 20, fingerprints: vec![20] }));
    // The cursor stands, and what it stands for cannot be told.
    next.cluster.write(vec![Write::new(LOSE_PIECES, (stamp + 1, 10i64))]).await.unwrap();
    let refused = bench.scylla().await.cursor(3).await.unwrap_err();
    assert!(matches!(refused, Error::Lost(_)) && refused.to_string().contains("lost in part"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn durable_stays_behind_by_the_safety_window() {
    let keyspace = Keyspace::fresh().await;
    let open = async |window| Scylla::open(&keyspace.0, &cql::Settings { safety_window: window, ..settings() }, Clock::system()).await.unwrap();
    // Long enough for some reads and writes on a busy machine.
    let window = Duration::from_secs(8);
    let archive = open(window).await;
    archive.write(counted(10, 10)).await.unwrap();
    assert_eq!(archive.durable().await.unwrap()[3], 0);
    tokio::time::sleep(window).await;
    archive.write(counted(20, 20)).await.unwrap();
    assert_eq!(archive.durable().await.unwrap()[3], 10);
    // A process that begins does not know how long what it finds has stood.
    assert_eq!(open(Duration::from_secs(60)).await.durable().await.unwrap()[3], 0);
    assert_eq!(open(Duration::ZERO).await.durable().await.unwrap()[3], 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_goes_on_only_from_the_state_that_it_began_with() {
    let bench = Fresh::new();
    let begin = async |next: u64, days: &[i32]| {
        let mut cursors = vec![Cursor::default(); ALL.len()];
        cursors[3] = Cursor { next, received_at: at(next as i64) };
        bench.scylla().await.begin_adopting(&cursors, days).await
    };
    begin(10, &[1, 2]).await.unwrap();
    let (key, value) = views(10);
    let archive = bench.scylla().await;
    archive.adopt(WriteBatch { cells: vec![(3, key, value)], ..WriteBatch::default() }, None).await.unwrap();
    begin(10, &[1, 2]).await.unwrap();
    // It has gone on since; or retention has taken something.
    for gone_on in [begin(11, &[1, 2]).await, begin(10, &[2]).await] {
        let told = gone_on.unwrap_err();
        assert!(told.to_string().contains("use a new keyspace") && !told.is_retryable(), "{told}");
    }
    // No partition takes it for a piece of its journal.
    assert_eq!(archive.cursor(3).await.unwrap(), Cursor::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_and_records_come_back_whole() {
    let bench = Fresh::new();
    let archive = bench.scylla().await;
    let event = |offset: u64, len: usize| EventRow {
        offset,
        event_id: format!("e{offset}"),
        body: vec![b'x'; len].into(),
        ..contract::sample().events[0].clone()
    };
    let lengths = [0, 1, 4 << 10, (4 << 10) + 1, 256 << 10, (256 << 10) + 1, 1 << 20];
    let events: Vec<EventRow> = (0..).zip(lengths).map(|(offset, len)| event(offset, len)).collect();
    let quarantined = |row: &EventRow| crate::archive::QuarantineRow {
        raw: row.body.clone(),
        offset: row.offset + 100,
        ..contract::sample().quarantine[0].clone()
    };
    let quarantine: Vec<_> = events.iter().map(quarantined).collect();
    archive.write(WriteBatch { events: events.clone(), quarantine: quarantine.clone(), ..WriteBatch::default() }).await.unwrap();
    assert_eq!(archive.scan(&site(), &Scan { limit: 99, ..Scan::default() }).await.unwrap(), events);
    assert_eq!(archive.quarantine(&site(), None, 99).await.unwrap(), quarantine);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_label_is_refused_is_named() {
    let bench = Fresh::new();
    let archive = bench.scylla().await;
    let WriteBatch { events, labels, .. } = sample();
    let mut long = labels[0].clone();
    (long.2, long.3.event_id) = ("x".repeat(70_000), "e2".into());
    let batch = WriteBatch { events, labels: vec![labels[0].clone(), long], ..WriteBatch::default() };
    let Err(Error::Refused(refused)) = archive.write(batch.clone()).await else { panic!("it was taken, or by nobody's fault") };
    assert_eq!(refused.iter().map(|refused| (refused.partition, refused.offset)).collect::<Vec<_>>(), [(4, 0)]);
    archive.write(WriteBatch { labels, ..batch }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_forgets_events_as_its_partition_moves_on() {
    let bench = Fresh::new();
    let archive = bench.scylla().await;
    archive.write(counted(10, 10)).await.unwrap();
    let known = async || archive.identities(3, &[IdentityKey([7; 16])]).await.unwrap().len();
    let moved = |seconds| WriteBatch { cursors: vec![(3, Cursor { next: seconds as u64, received_at: at(seconds) })], ..WriteBatch::default() };
    archive.write(moved(EVENT_MEMORY_SECONDS)).await.unwrap();
    assert_eq!(known().await, 1);
    archive.write(moved(EVENT_MEMORY_SECONDS + 3_600)).await.unwrap();
    assert_eq!(known().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn migration_may_be_repeated_and_run_by_several() {
    let keyspace = Keyspace(crate::cql::testing::fresh_url());
    let url = keyspace.0.clone();
    let address = Address::parse(&url).unwrap();
    let refused = Scylla::open(&url, &settings(), Clock::system()).await.err().unwrap().to_string();
    assert!(refused.contains("run `contrail migrate` first"), "{refused}");
    let settings = settings();
    let (one, two, three) = tokio::join!(cql::migrate(&address, &settings), cql::migrate(&address, &settings), cql::migrate(&address, &settings));
    let told = [one, two, three].map(Result::unwrap);
    assert_eq!(told.iter().filter(|told| told.contains("already")).count(), 2, "{told:?}");
    let longer = cql::Settings { retention: Duration::from_secs(900 * 86_400), ..settings };
    let refused = Scylla::open(&url, &longer, Clock::system()).await.err().unwrap().to_string();
    assert!(refused.contains("for a retention of 400 days"), "{refused}");
    cql::migrate(&address, &longer).await.unwrap();
    let archive = Scylla::open(&url, &longer, Clock::system()).await.unwrap();
    archive.write(contract::sample()).await.unwrap();
    let options = "SELECT default_time_to_live FROM system_schema.tables WHERE keyspace_name = ? AND table_name = 'event'";
    let found: Vec<(i32,)> = archive.cluster.rows(options, (&address.keyspace,)).await.unwrap();
    assert_eq!(found, [(931 * 86_400,)]);
    archive.cluster.write(vec![Write::new("UPDATE schema_version SET version = 99 WHERE part = 'archive'", ())]).await.unwrap();
    for refused in [cql::migrate(&address, &longer).await.err().unwrap(), Cluster::connect(&address, &longer).await.err().unwrap()] {
        assert!(refused.to_string().contains("use a later build"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_archivers_of_half_the_partitions_each_take_what_one_of_all_does() {
    const DAY: i64 = 86_400;
    // Orders of every partition, each refunded in part on the day that stays: its cells are corrected.
    let fill = async |archive: &Scylla| {
        archive.write(sample()).await.unwrap();
        for number in 0..60 {
            archive.write(order_with(&format!("o{number}"), at(10 + number), Some(at(DAY + 10 + number)))).await.unwrap();
        }
    };
    let whole = Fresh::new();
    let one = whole.scylla().await;
    fill(&one).await;
    one.retain(at(DAY), &ALL).await.unwrap();

    let shared = Fresh::new();
    let (lower, upper) = (shared.scylla().await, shared.scylla().await);
    fill(&lower).await;
    let before: Vec<Sale> = lower.sales(&site(), at(0), at(DAY)).await.unwrap();
    lower.retain(at(DAY), &ALL[..8]).await.unwrap();
    let after = upper.sales(&site(), at(0), at(DAY)).await.unwrap();
    assert!(!after.is_empty() && after.len() < before.len(), "{} of {} left: the other half's", after.len(), before.len());
    assert_ne!(snapshot(&upper).await, snapshot(&one).await);
    upper.retain(at(DAY), &ALL[8..]).await.unwrap();
    for archive in [&lower, &upper] {
        assert_eq!(snapshot(archive).await, snapshot(&one).await);
    }
    // Again, and of what the other has: nothing more goes.
    lower.retain(at(DAY), &ALL[8..]).await.unwrap();
    upper.retain(at(DAY), &ALL[..8]).await.unwrap();
    assert_eq!(snapshot(&lower).await, snapshot(&one).await);
}
