//! The suite that every Archive must pass. Called by each backend's tests with a way to open it, again and again, over what it holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::archiver::tests::record;
use super::rollup::{Additions, Judged, Labels};
use super::{
    Archive, Books, Bots, CellKey, CellValue, Cursor, EventRow, Kept, Label, LabelValue, Metric, People, QuarantineRow, Scan, ScanBy, Sought,
    WriteBatch,
};
use crate::event::identity::{
    CheckoutView, Completion, Entry, EventEntry, IdentityKey, ORDER_STEP, OrderView, Sale, StepCount, Verdict, checkout_keys, fold, order_key,
};
use crate::event::ids::events_partition;
use crate::event::{Channel, Currency, Event, Flags, KeyKind, Money, ObjectKind, Record, RecordKind, SiteId, SiteRules, StepStatus, Timestamp, kind};

/// A backend under test, with a place of its own.
pub(crate) trait Bench {
    /// Opens it, with all that was written before.
    async fn open(&self) -> Arc<dyn Archive>;
}

/// Every promise of [`Archive`], each over a fresh bench.
pub(crate) async fn suite<B: Bench>(fresh: impl Fn() -> B) {
    repeating_a_batch_changes_nothing(&fresh()).await;
    a_rewritten_event_keeps_its_first_row(&fresh()).await;
    each_channel_of_a_business_fact_has_its_row(&fresh()).await;
    cursors_stay(&fresh()).await;
    identities_and_cells_are_found_by_key(&fresh()).await;
    scans_are_ordered_and_paged(&fresh()).await;
    what_clients_did_to_an_object_is_found_by_its_sid(&fresh()).await;
    what_is_kept_is_told_by_id_and_day(&fresh()).await;
    totals_sum_cells_and_partitions(&fresh()).await;
    sales_count_at_their_times(&fresh()).await;
    steps_count_at_their_times(&fresh()).await;
    checkouts_are_paged_by_their_last_sign(&fresh()).await;
    the_last_label_wins(&fresh()).await;
    a_term_of_any_length_is_counted_and_shown(&fresh()).await;
    books_links_and_quarantine(&fresh()).await;
    retention_takes_whole_days(&fresh()).await;
    retention_spares_what_was_taken_lately(&fresh()).await;
    retention_takes_the_part_of_an_order_that_is_gone(&fresh()).await;
}

fn site() -> SiteId {
    SiteId::parse("demo").unwrap()
}

fn other_site() -> SiteId {
    SiteId::parse("other").unwrap()
}

fn eur() -> Currency {
    Currency::parse("EUR").unwrap()
}

/// Seconds after the start of a day, which is also the start of a cell.
fn at(seconds: i64) -> Timestamp {
    Timestamp::parse("2026-11-20T00:00:00Z").unwrap().plus_seconds(seconds)
}

const DAY: i64 = 86_400;

/// All partitions of `events`.
pub(crate) const ALL: [u16; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

fn event(event_id: &str, occurred_at: Timestamp, partition: u16, offset: u64) -> EventRow {
    EventRow {
        site: site(),
        event_id: event_id.into(),
        fingerprint: u64::MAX - offset,
        key_kind: KeyKind::Event,
        kind: "product_viewed".into(),
        occurred_at,
        received_at: occurred_at.plus_seconds(1),
        partition,
        offset,
        verdict: Verdict::Counted,
        flags: Flags(Flags::CRAWLER),
        channel: Channel::Webhook,
        customer: Some([1; 16]),
        visitor: None,
        products: vec!["p1".into()],
        objects: vec![(ObjectKind::Map, "product.p1".into()), (ObjectKind::List, "trail.customer.c".into())],
        body_key: 3,
        body: Bytes::from_static(b"{\"type\":\"product_viewed\"}"),
    }
}

fn cell(metric: Metric, at: Timestamp, dim: &str, crawler: bool) -> CellKey {
    CellKey { site: site(), metric, cell: at, dim: dim.into(), crawler }
}

fn value(counts: [i64; 2], amount: i64, people: &[u8]) -> CellValue {
    let mut sketch = People::default();
    people.iter().for_each(|person| sketch.add(&[*person; 16]));
    CellValue { counts, revenue: (amount != 0).then_some((eur(), amount)).into_iter().collect(), people: sketch }
}

fn sale(product: &str, at: Timestamp, units: i64) -> Sale {
    Sale { product_id: product.into(), at, crawler: false, units, orders: 1, revenue: vec![(eur(), units * 100)] }
}

fn order(id: &str, sales: Vec<Sale>) -> OrderView {
    let at = sales.first().map(|sale| sale.at);
    let total = Some(Money { amount_minor: 5, currency: eur() });
    OrderView { order_id: id.into(), at, person: Some("00ff".into()), total, units: 1, refunded: vec![(eur(), 7)], sales }
}

fn step(name: &str, status: StepStatus, at: Timestamp) -> StepCount {
    StepCount { step: name.into(), status, at, crawler: false, count: 1 }
}

fn checkout(id: &str, steps: Vec<StepCount>, last_at: Timestamp) -> CheckoutView {
    CheckoutView {
        checkout: id.into(),
        person: Some("00ff".into()),
        last_step: steps.last().map(|step| step.step.clone()),
        steps,
        completed: None,
        value: Some(Money { amount_minor: 42, currency: eur() }),
        last_at,
        crawler: false,
    }
}

fn label(at: Timestamp, event_id: &str, value: &str) -> LabelValue {
    LabelValue { at, event_id: event_id.into(), value: value.into() }
}

fn quarantined(site: Option<SiteId>, received_at: Timestamp, partition: u16, offset: u64) -> QuarantineRow {
    QuarantineRow {
        site,
        event_id: format!("q{offset}"),
        received_at,
        partition,
        offset,
        code: "bad".into(),
        message: "it is bad".into(),
        pointer: "/type".into(),
        raw: Bytes::from_static(b"{}"),
    }
}

/// A batch with something of everything, at partitions 3 and 4.
pub(crate) fn sample() -> WriteBatch {
    WriteBatch {
        events: vec![event("e1", at(10), 3, 0), event("e2", at(DAY + 10), 4, 0)],
        cells: vec![
            (3, cell(Metric::Views, at(0), "p1", false), value([1, 0], 0, &[1])),
            (4, cell(Metric::Sold, at(900), "p1", false), value([2, 1], 200, &[])),
        ],
        orders: vec![(4, site(), order("o1", vec![sale("p1", at(901), 2)]))],
        checkouts: vec![(3, site(), checkout("ch1", vec![step("contact", StepStatus::Entered, at(5))], at(6)))],
        identities: vec![(3, IdentityKey([7; 16]), Entry::Event(EventEntry { first: 0, fingerprints: vec![1] }))],
        labels: vec![(site(), Label::ProductName, "p1".into(), label(at(5), "e1", "Mug"))],
        links: vec![(site(), [2; 16], [1; 16])],
        books: vec![(3, site(), at(0), Books { appended: 2, archived: 1, duplicate: 1, ..Books::default() })],
        quarantine: vec![quarantined(Some(site()), at(20), 3, 1)],
        cursors: vec![(3, Cursor { next: 2, received_at: at(20) }), (4, Cursor { next: 1, received_at: at(11) })],
    }
}

/// All that an archive answers, as text.
pub(crate) async fn snapshot(archive: &dyn Archive) -> String {
    let (site, from, to) = (site(), at(-9 * DAY), at(9 * DAY));
    let mut all = format!("{:?}\n{:?}\n{:?}\n", archive.cursors().await, archive.sites().await, archive.days().await);
    for metric in [Metric::Searches, Metric::EmptySearches, Metric::Views, Metric::Pages, Metric::Sold, Metric::Steps] {
        all += &format!("{:?}\n", archive.totals(&site, metric, from, to, Bots::Include).await);
    }
    all += &format!("{:?}\n{:?}\n", archive.sales(&site, from, to).await, archive.steps(&site, from, to).await);
    all += &format!("{:?}\n", archive.checkouts(&site, from, to, None, 1_000).await);
    all += &format!("{:?}\n", archive.labels(&site, Label::ProductName, &["p1".into()]).await);
    all += &format!("{:?}\n", archive.scan(&site, &Scan { limit: 1_000, ..Scan::default() }).await);
    all += &format!("{:?}\n{:?}\n", archive.linked(&site, [1; 16]).await, archive.books(&site, from, to).await);
    all + &format!("{:?}\n", archive.quarantine(&site, None, 1_000).await)
}

async fn repeating_a_batch_changes_nothing(bench: &impl Bench) {
    let archive = bench.open().await;
    archive.write(sample()).await.unwrap();
    let once = snapshot(archive.as_ref()).await;
    assert!(!once.contains("Err"), "{once}");
    archive.write(sample()).await.unwrap();
    let WriteBatch { events, cells, orders, checkouts, labels, .. } = sample();
    archive.write(WriteBatch { events, ..WriteBatch::default() }).await.unwrap();
    archive.write(WriteBatch { cells, labels, ..WriteBatch::default() }).await.unwrap();
    archive.write(WriteBatch { orders, checkouts, ..WriteBatch::default() }).await.unwrap();
    archive.write(WriteBatch::default()).await.unwrap();
    assert_eq!(snapshot(archive.as_ref()).await, once);
    archive.close().await.unwrap();
    let archive = bench.open().await;
    assert_eq!(snapshot(archive.as_ref()).await, once, "reopened");
    archive.close().await.unwrap();
    assert!(matches!(archive.write(sample()).await, Err(super::Error::Closed)));
    assert!(matches!(archive.cursors().await, Err(super::Error::Closed)));
}

async fn a_rewritten_event_keeps_its_first_row(bench: &impl Bench) {
    let archive = bench.open().await;
    let first = event("e1", at(10), 3, 0);
    let again = EventRow { partition: 9, offset: 77, verdict: Verdict::Report, body: Bytes::from_static(b"{}"), ..first.clone() };
    let conflict = EventRow { fingerprint: 5, offset: 1, verdict: Verdict::Conflict, ..first.clone() };
    let as_order = EventRow { key_kind: KeyKind::Order, offset: 2, ..first.clone() };
    let elsewhere = EventRow { site: other_site(), offset: 3, ..first.clone() };
    // Of an event without a business key the channel tells no reports apart.
    let by_pixel = EventRow { channel: Channel::Pixel, offset: 4, ..first.clone() };
    archive.write(WriteBatch { events: vec![first.clone()], ..WriteBatch::default() }).await.unwrap();
    archive
        .write(WriteBatch { events: vec![again, conflict.clone(), as_order.clone(), elsewhere.clone(), by_pixel], ..WriteBatch::default() })
        .await
        .unwrap();
    let by_id = Scan { by: ScanBy::EventId("e1".into()), limit: 10, ..Scan::default() };
    assert_eq!(archive.scan(&site(), &by_id).await.unwrap(), [first.clone(), conflict.clone(), as_order.clone()]);
    assert_eq!(archive.scan(&site(), &Scan { limit: 10, ..Scan::default() }).await.unwrap(), [first, conflict, as_order]);
    assert_eq!(archive.scan(&other_site(), &by_id).await.unwrap(), [elsewhere]);
    archive.close().await.unwrap();
}

async fn each_channel_of_a_business_fact_has_its_row(bench: &impl Bench) {
    let archive = bench.open().await;
    let facts = [(kind::ORDER_COMPLETED, KeyKind::Order), (kind::ORDER_REFUNDED, KeyKind::Order), (kind::CHECKOUT_STEP, KeyKind::Checkout)];
    let mut expected = Vec::new();
    for (fact, (kind, key_kind)) in (0..).zip(facts.into_iter().chain([(kind::CHECKOUT_STEP, KeyKind::Event)])) {
        let first = EventRow { kind: kind.into(), key_kind, ..event(&format!("e{fact}"), at(10), 3, fact * 10) };
        let told = |n: u64, channel| EventRow { offset: fact * 10 + n, channel, ..first.clone() };
        let rows = [told(0, Channel::Webhook), told(1, Channel::Pixel), told(2, Channel::Server)];
        let again = rows.iter().map(|row| EventRow { offset: row.offset + 3, received_at: at(99), ..row.clone() });
        archive.write(WriteBatch { events: rows.iter().cloned().chain(again).collect(), ..WriteBatch::default() }).await.unwrap();
        expected.extend(rows);
    }
    assert_eq!(archive.scan(&site(), &Scan { limit: 99, ..Scan::default() }).await.unwrap(), expected);
    archive.close().await.unwrap();
}

async fn cursors_stay(bench: &impl Bench) {
    let archive = bench.open().await;
    assert_eq!(archive.cursor(3).await.unwrap(), Cursor::default());
    let cursor = Cursor { next: 9, received_at: at(3) };
    archive.write(WriteBatch { cursors: vec![(3, cursor)], ..WriteBatch::default() }).await.unwrap();
    assert_eq!((archive.cursor(3).await.unwrap(), archive.cursor(4).await.unwrap()), (cursor, Cursor::default()));
    let all = archive.cursors().await.unwrap();
    assert_eq!((all.len(), all[3], all[4]), (usize::from(crate::event::PARTITIONS), cursor, Cursor::default()));
    let durable = archive.durable().await.unwrap();
    assert_eq!((durable.len(), durable[3], durable[4]), (all.len(), 9, 0));
    archive.close().await.unwrap();
}

async fn identities_and_cells_are_found_by_key(bench: &impl Bench) {
    let archive = bench.open().await;
    archive.write(sample()).await.unwrap();
    let known = archive.identities(3, &[IdentityKey([8; 16]), IdentityKey([7; 16])]).await.unwrap();
    assert_eq!(known, [(IdentityKey([7; 16]), sample().identities[0].2.clone())]);
    let (views, sold) = (cell(Metric::Views, at(0), "p1", false), cell(Metric::Sold, at(900), "p1", false));
    let found = archive.cells(3, &[sold.clone(), cell(Metric::Views, at(0), "p1", true), views.clone()]).await.unwrap();
    assert_eq!(found, [(views.clone(), value([1, 0], 0, &[1]))], "of this partition alone");
    let newer = WriteBatch { cells: vec![(3, views.clone(), value([5, 0], 1, &[1, 2]))], ..WriteBatch::default() };
    archive.write(newer).await.unwrap();
    assert_eq!(archive.cells(3, std::slice::from_ref(&views)).await.unwrap(), [(views, value([5, 0], 1, &[1, 2]))], "absolute values");
    archive.close().await.unwrap();
}

async fn scans_are_ordered_and_paged(bench: &impl Bench) {
    let archive = bench.open().await;
    let mut rng = StdRng::seed_from_u64(7);
    let mut rows: Vec<EventRow> = (0..120)
        .map(|n| {
            // Few distinct times, so that partition and offset decide often; three days.
            let mut row = event(&format!("e{}", n % 50), at(DAY - 2 + rng.random_range(0..5) + DAY * (n % 2)), rng.random_range(0..3), n as u64);
            row.customer = rng.random_bool(0.7).then(|| [rng.random_range(1..4); 16]);
            row.visitor = rng.random_bool(0.5).then(|| [rng.random_range(3..6); 16]);
            row.products = vec![format!("p{}", rng.random_range(0..3)), "p7".into()];
            row.site = if rng.random_bool(0.9) { site() } else { other_site() };
            row
        })
        .collect();
    for chunk in rows.chunks(17) {
        archive.write(WriteBatch { events: chunk.to_vec(), ..WriteBatch::default() }).await.unwrap();
    }
    rows.shuffle(&mut rng);
    rows.retain(|row| row.site == site());
    rows.sort_by_key(|row| (row.occurred_at, row.partition, row.offset));
    let people = vec![[2; 16], [3; 16], [9; 16]];
    let by = [ScanBy::All, ScanBy::People(people.clone()), ScanBy::Product("p1".into()), ScanBy::Product("p7".into()), ScanBy::EventId("e3".into())];
    let spans = [(None, None), (Some(at(DAY)), Some(at(DAY + 1))), (Some(at(DAY - 2)), None), (None, Some(at(DAY + 2)))];
    for (by, (from, to)) in by.iter().flat_map(|by| spans.map(|span| (by, span))) {
        let mut expected: Vec<EventRow> = rows.clone();
        expected.retain(|row| from.is_none_or(|from| from <= row.occurred_at) && to.is_none_or(|to| row.occurred_at < to));
        expected.retain(|row| match by {
            ScanBy::All => true,
            ScanBy::People(people) => people.iter().any(|person| row.customer == Some(*person) || row.visitor == Some(*person)),
            ScanBy::Product(product) => row.products.contains(product),
            ScanBy::Object(_) => false,
            ScanBy::EventId(id) => row.event_id == *id,
        });
        for newest_first in [false, true] {
            let scan = Scan { from, to, by: by.clone(), newest_first, after: None, limit: 1_000 };
            assert_eq!(archive.scan(&site(), &scan).await.unwrap(), expected, "{scan:?}");
            let mut paged = Vec::new();
            let mut scan = Scan { limit: 7, ..scan };
            loop {
                let page = archive.scan(&site(), &scan).await.unwrap();
                scan.after = page.last().map(|row| (row.occurred_at, row.partition, row.offset));
                let last = page.len() < scan.limit;
                paged.extend(page);
                if last {
                    break;
                }
            }
            assert_eq!(paged, expected, "paged, {scan:?}");
            expected.reverse();
        }
    }
    assert_eq!(archive.days().await.unwrap(), [at(0).utc_day(), at(DAY).utc_day(), at(2 * DAY).utc_day()]);
    archive.close().await.unwrap();
}

/// What an API client did to the object of this SID.
fn changed(sid: &str, event_id: &str, occurred_at: Timestamp, partition: u16, offset: u64) -> EventRow {
    let object = serde_json::json!({"sid": sid, "kind": "document", "name": "d", "event_id": 1, "revision": offset});
    let body = serde_json::json!({"properties": {"action": "document_updated", "object": object}, "type": "object_changed"});
    EventRow {
        kind: kind::OBJECT_CHANGED.into(),
        received_at: occurred_at,
        products: Vec::new(),
        objects: Vec::new(),
        customer: None,
        body_key: 0,
        body: Bytes::from(body.to_string()),
        ..event(event_id, occurred_at, partition, offset)
    }
}

async fn what_clients_did_to_an_object_is_found_by_its_sid(bench: &impl Bench) {
    let archive = bench.open().await;
    let [first, anew, foreign] = ["a", "b", "c"].map(|digit| format!("ET{}", digit.repeat(32)));
    let mut rows: Vec<EventRow> = (0..9).map(|n| changed(&first, &format!("e{n}"), at(DAY - 2 + n), (n % 3) as u16, n as u64)).collect();
    let of_first = rows.clone();
    let like_it = |n: u64, kind: &str| EventRow { kind: kind.into(), ..changed(&first, &format!("x{n}"), at(DAY), 4, n) };
    rows.extend([changed(&anew, "e9", at(DAY + 20), 0, 9), changed(&foreign, "e10", at(5), 0, 10)]);
    // Of another type, sealed, without a whole SID, and of another site.
    rows.push(like_it(0, "page_viewed"));
    rows.push(EventRow { body_key: 1, ..like_it(1, kind::OBJECT_CHANGED) });
    rows.push(changed("ET0a", "x2", at(DAY), 4, 2));
    rows.push(EventRow { site: other_site(), ..like_it(3, kind::OBJECT_CHANGED) });
    for chunk in rows.chunks(4) {
        archive.write(WriteBatch { events: chunk.to_vec(), ..WriteBatch::default() }).await.unwrap();
    }
    let by = |sid: &str| Scan { by: ScanBy::Object(sid.to_owned()), newest_first: true, limit: 4, ..Scan::default() };
    let mut scan = by(&first);
    let mut found = Vec::new();
    while found.len() < of_first.len() {
        let page = archive.scan(&site(), &scan).await.unwrap();
        assert!(!page.is_empty(), "{found:?}");
        scan.after = page.last().map(|row| (row.occurred_at, row.partition, row.offset));
        found.extend(page);
    }
    assert!(found.iter().eq(of_first.iter().rev()), "{found:?}");
    assert!(archive.scan(&site(), &scan).await.unwrap().is_empty());
    let ids = async |sid: &str| {
        let rows = archive.scan(&site(), &by(sid)).await.unwrap();
        rows.into_iter().map(|row| row.event_id).collect::<Vec<_>>()
    };
    assert_eq!((ids(&anew).await, ids(&foreign).await), (vec!["e9".to_owned()], vec!["e10".to_owned()]));
    assert_eq!((ids("ET0a").await, ids(&first.to_uppercase()).await, ids("").await), (vec![], vec![], vec![]));
    assert_eq!(archive.scan(&other_site(), &by(&first)).await.unwrap().len(), 1);
    archive.retain(at(DAY + 100), &ALL).await.unwrap();
    assert_eq!((ids(&foreign).await, ids(&first).await.len()), (vec![], 4), "what is gone is not found");
    assert!(
        archive.scan(&site(), &Scan { newest_first: false, limit: 99, ..by(&first) }).await.unwrap().iter().all(|row| row.occurred_at >= at(DAY))
    );
    archive.close().await.unwrap();
}

async fn what_is_kept_is_told_by_id_and_day(bench: &impl Bench) {
    let archive = bench.open().await;
    let sought = |id: &str, day: Option<i64>| Sought { event_id: id.into(), day: day.map(|n| at(n * DAY).utc_day()) };
    let everything = [sought("e1", Some(0)), sought("e1", None)];
    assert!(archive.kept(&site(), &everything).await.unwrap().is_empty(), "an empty archive keeps nothing");
    let first = event("e1", at(10), 3, 8);
    let conflict = EventRow { fingerprint: 5, offset: 9, verdict: Verdict::Conflict, ..first.clone() };
    let order = EventRow { key_kind: KeyKind::Order, kind: "order_completed".into(), channel: Channel::Pixel, partition: 2, ..first.clone() };
    let by_webhook = EventRow { channel: Channel::Webhook, offset: 9, ..order.clone() };
    let next_day = EventRow { fingerprint: 6, offset: 10, occurred_at: at(DAY), ..first.clone() };
    let other = event("e2", at(20), 1, 0);
    let elsewhere = EventRow { site: other_site(), offset: 11, ..first.clone() };
    let events = vec![conflict.clone(), first.clone(), by_webhook.clone(), order.clone(), next_day.clone(), other.clone(), elsewhere.clone()];
    archive.write(WriteBatch { events, ..WriteBatch::default() }).await.unwrap();
    let kept = |row: &EventRow| Kept {
        event_id: row.event_id.clone(),
        fingerprint: row.fingerprint,
        key_kind: row.key_kind,
        kind: row.kind.clone(),
        channel: row.channel,
        occurred_at: row.occurred_at,
        partition: row.partition,
        offset: row.offset,
    };
    let ask = async |sought: &[Sought]| archive.kept(&site(), sought).await.unwrap();
    let of_day: Vec<Kept> = [&order, &by_webhook, &first, &conflict].into_iter().map(kept).collect();
    assert_eq!(ask(&[sought("e1", Some(0))]).await, of_day, "by place, whatever the content");
    assert_eq!(ask(&[sought("e1", Some(0)), sought("e9", Some(0)), sought("e1", Some(0)), sought("e1", Some(7))]).await, of_day, "each once");
    let all: Vec<Kept> = [&order, &by_webhook, &first, &conflict, &next_day, &other].into_iter().map(kept).collect();
    assert_eq!(ask(&[sought("e2", Some(0)), sought("e1", Some(1)), sought("e1", Some(0))]).await, all);
    assert_eq!(ask(&[sought("e2", Some(0)), sought("e1", None)]).await, all, "in whatever day");
    assert!(ask(&[sought("e2", Some(1)), sought("", None)]).await.is_empty());
    assert!(ask(&[]).await.is_empty());
    assert_eq!(archive.kept(&other_site(), &[sought("e1", None)]).await.unwrap(), [kept(&elsewhere)]);
    archive.close().await.unwrap();
}

async fn totals_sum_cells_and_partitions(bench: &impl Bench) {
    let archive = bench.open().await;
    let cells = vec![
        (0, cell(Metric::Views, at(0), "a", false), value([1, 0], 10, &[1, 2])),
        (1, cell(Metric::Views, at(0), "a", false), value([2, 0], 10, &[2, 3])),
        (0, cell(Metric::Views, at(900), "a", false), value([4, 0], -5, &[1])),
        (0, cell(Metric::Views, at(900), "a", true), value([8, 0], 0, &[9])),
        (0, cell(Metric::Views, at(1_800), "a", false), value([16, 0], 0, &[7])),
        (0, cell(Metric::Views, at(0), "Ä", true), value([32, 3], 1, &[])),
        (0, cell(Metric::Pages, at(0), "a", false), value([64, 0], 0, &[])),
        (0, CellKey { site: other_site(), ..cell(Metric::Views, at(0), "a", false) }, value([128, 0], 0, &[])),
    ];
    archive.write(WriteBatch { cells, ..WriteBatch::default() }).await.unwrap();
    let ask = async |from, to, bots| {
        let totals = archive.totals(&site(), Metric::Views, from, to, bots).await.unwrap();
        let read = totals.into_iter().map(|(dim, value)| (dim, value.counts, value.revenue.values().sum::<i64>(), value.people.estimate()));
        read.collect::<Vec<_>>()
    };
    let (a, other) = ("a".to_owned(), "Ä".to_owned());
    assert_eq!(ask(at(0), at(1_800), Bots::Exclude).await, [(a.clone(), [7, 0], 15, 3)]);
    assert_eq!(ask(at(0), at(1_800), Bots::Include).await, [(a.clone(), [15, 0], 15, 4), (other.clone(), [32, 3], 1, 0)]);
    assert_eq!(ask(at(0), at(1_800), Bots::Only).await, [(a.clone(), [8, 0], 0, 1), (other, [32, 3], 1, 0)]);
    assert_eq!(ask(at(900), at(2_700), Bots::Exclude).await, [(a, [20, 0], -5, 2)]);
    assert!(ask(at(900), at(900), Bots::Include).await.is_empty());
    archive.close().await.unwrap();
}

async fn sales_count_at_their_times(bench: &impl Bench) {
    let archive = bench.open().await;
    let write = async |order: OrderView| archive.write(WriteBatch { orders: vec![(0, site(), order)], ..WriteBatch::default() }).await.unwrap();
    write(order("o1", vec![sale("a", at(10), 2), sale("b", at(10), 1), sale("a", at(50), -1)])).await;
    write(order("o2", vec![sale("a", at(20), 4)])).await;
    let ask = async |from, to| {
        let mut sales = archive.sales(&site(), from, to).await.unwrap();
        sales.sort_by_key(|sale| (sale.at, sale.product_id.clone()));
        sales
    };
    assert_eq!(ask(at(10), at(20)).await, [sale("a", at(10), 2), sale("b", at(10), 1)]);
    assert_eq!(ask(at(11), at(51)).await, [sale("a", at(20), 4), sale("a", at(50), -1)]);
    // A better report says that it was later, and something else.
    write(order("o1", vec![sale("c", at(12), 3)])).await;
    assert_eq!(ask(at(0), at(100)).await, [sale("c", at(12), 3), sale("a", at(20), 4)]);
    assert!(ask(at(10), at(12)).await.is_empty());
    write(order("o2", Vec::new())).await;
    assert_eq!(ask(at(0), at(100)).await, [sale("c", at(12), 3)]);
    archive.close().await.unwrap();
}

async fn steps_count_at_their_times(bench: &impl Bench) {
    let archive = bench.open().await;
    let write = async |view: CheckoutView| archive.write(WriteBatch { checkouts: vec![(0, site(), view)], ..WriteBatch::default() }).await.unwrap();
    let (entered, completed) = (step("contact", StepStatus::Entered, at(10)), step("contact", StepStatus::Completed, at(20)));
    write(checkout("ch1", vec![entered.clone(), completed.clone()], at(20))).await;
    // A checkout and its completion may be of different sorts of shoppers.
    let by = |crawler, at| Some(Completion { at, crawler });
    write(CheckoutView { completed: by(false, at(30)), crawler: true, ..checkout("ch2", vec![entered.clone()], at(30)) }).await;
    write(CheckoutView { completed: by(true, at(31)), ..checkout("ch3", Vec::new(), at(31)) }).await;
    let ask = async |from, to| {
        let mut steps = archive.steps(&site(), from, to).await.unwrap();
        steps.sort_by_key(|step| step.at);
        steps
    };
    assert_eq!(ask(at(10), at(20)).await, [entered.clone(), entered.clone()]);
    let (by_human, by_crawler) = (step(ORDER_STEP, StepStatus::Completed, at(30)), step(ORDER_STEP, StepStatus::Completed, at(31)));
    assert_eq!(ask(at(11), at(32)).await, [completed, by_human.clone(), StepCount { crawler: true, ..by_crawler.clone() }]);
    write(CheckoutView { completed: by(false, at(31)), ..checkout("ch3", Vec::new(), at(31)) }).await;
    assert_eq!(ask(at(30), at(32)).await, [by_human, by_crawler]);
    write(checkout("ch1", vec![step("contact", StepStatus::Entered, at(12))], at(40))).await;
    assert_eq!(ask(at(10), at(30)).await, [entered, step("contact", StepStatus::Entered, at(12))]);
    archive.close().await.unwrap();
}

async fn checkouts_are_paged_by_their_last_sign(bench: &impl Bench) {
    let archive = bench.open().await;
    let mut all: Vec<CheckoutView> = (0..20).map(|n| checkout(&format!("ch{n:02}"), Vec::new(), at(n / 3))).collect();
    let batch =
        |views: &[CheckoutView]| WriteBatch { checkouts: views.iter().map(|view| (0, site(), view.clone())).collect(), ..WriteBatch::default() };
    archive.write(batch(&all)).await.unwrap();
    // Moved on.
    all[4].last_at = at(99);
    all[5].completed = Some(Completion { at: at(5), crawler: true });
    archive.write(batch(&all[4..6])).await.unwrap();
    all.sort_by_key(|view| (view.last_at, view.checkout.clone()));
    for (from, to) in [(at(0), at(1_000)), (at(1), at(5)), (at(5), at(5))] {
        let expected: Vec<_> = all.iter().filter(|view| from <= view.last_at && view.last_at < to).cloned().collect();
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = archive.checkouts(&site(), from, to, after.clone(), 3).await.unwrap();
            after = page.last().map(|view| (view.last_at, view.checkout.clone())).or(after);
            let last = page.len() < 3;
            found.extend(page);
            if last {
                break;
            }
        }
        assert_eq!(found, expected);
    }
    archive.close().await.unwrap();
}

async fn a_term_of_any_length_is_counted_and_shown(bench: &impl Bench) {
    let archive = bench.open().await;
    let rules = SiteRules::default();
    let long = format!("Mug {}", "é".repeat(300_000));
    let (mut additions, mut labels) = (Additions::default(), Labels::default());
    let bodies = [
        serde_json::json!({"type": "product_searched", "occurred_at": at(10), "search": {"query": long, "results": 7}}),
        serde_json::json!({"type": "product_searched", "occurred_at": at(10), "search": {"query": long.to_uppercase(), "results": 0}}),
        serde_json::json!({"type": "page_viewed", "occurred_at": at(10), "page": {"url": format!("/{long}"), "title": "Mugs"}}),
    ];
    for (number, body) in bodies.into_iter().enumerate() {
        let record = record(&format!("e{number}"), at(11), body);
        let event = Event::from_body(&record.body).unwrap();
        let outcome = fold(&mut None, &record, &event, 0);
        additions.count(Judged { partition: 3, record: &record, event: &event, outcome: &outcome, rules: &rules }, None);
        labels.take(&record, &event, &rules);
    }
    archive.write(WriteBatch { cells: additions.apply(|_| None), labels: labels.into_rows(), ..WriteBatch::default() }).await.unwrap();
    let mut dims = Vec::new();
    for (metric, count) in [(Metric::Searches, 2), (Metric::EmptySearches, 1), (Metric::Pages, 1)] {
        let totals = archive.totals(&site(), metric, at(0), at(900), Bots::Exclude).await.unwrap();
        assert_eq!(totals.iter().map(|(_, value)| value.counts).collect::<Vec<_>>(), [[count, 0]], "{metric:?}");
        dims.extend(totals.into_iter().map(|(dim, _)| dim));
    }
    assert!(dims[0] == dims[1] && dims.iter().all(|dim| (4_000..=4_096).contains(&dim.len())), "{dims:?}");
    let ask = async |label, dim: &String| archive.labels(&site(), label, std::slice::from_ref(dim)).await.unwrap().remove(0).1.value;
    let (spelling, results, title) =
        (ask(Label::Spelling, &dims[0]).await, ask(Label::Results, &dims[0]).await, ask(Label::PageTitle, &dims[2]).await);
    assert!(long.to_uppercase().starts_with(&spelling) && spelling.len() > 4_000, "{spelling}");
    assert_eq!((results.as_str(), title.as_str()), ("0", "Mugs"));
    archive.close().await.unwrap();
}

async fn the_last_label_wins(bench: &impl Bench) {
    let archive = bench.open().await;
    let mut versions = vec![label(at(1), "e9", "one"), label(at(2), "e1", "two"), label(at(2), "e2", "three"), label(at(0), "e3", "zero")];
    for round in 0..4 {
        versions.rotate_left(1);
        let dim = format!("p{round}");
        for version in &versions {
            let labels = vec![(site(), Label::ProductName, dim.clone(), version.clone())];
            archive.write(WriteBatch { labels, ..WriteBatch::default() }).await.unwrap();
        }
        let found = archive.labels(&site(), Label::ProductName, &["none".into(), dim.clone()]).await.unwrap();
        assert_eq!(found, [(dim, label(at(2), "e2", "three"))]);
    }
    assert!(archive.labels(&site(), Label::PageTitle, &["p0".into()]).await.unwrap().is_empty());
    archive.close().await.unwrap();
}

async fn books_links_and_quarantine(bench: &impl Bench) {
    let archive = bench.open().await;
    let books = |appended| Books { appended, archived: appended, refused: BTreeMap::from([("bad".into(), 1)]), ..Books::default() };
    let written = vec![(0, site(), at(0), books(1)), (1, site(), at(0), books(2)), (0, site(), at(3_600), books(4))];
    let rows =
        [(at(5), 1, 0), (at(5), 0, 1), (at(4), 2, 2), (at(9), 0, 3)].map(|(at, partition, offset)| quarantined(Some(site()), at, partition, offset));
    let mut quarantine = rows.to_vec();
    quarantine.push(quarantined(None, at(5), 3, 4));
    let links = vec![(site(), [2; 16], [1; 16]), (site(), [3; 16], [1; 16]), (other_site(), [4; 16], [1; 16])];
    archive.write(WriteBatch { books: written, quarantine, links, ..WriteBatch::default() }).await.unwrap();
    let summed = archive.books(&site(), at(0), at(3_600)).await.unwrap();
    assert_eq!(summed, [(at(0), Books { refused: BTreeMap::from([("bad".into(), 2)]), ..books(3) })]);
    let of_one = archive.books_of(1, &[(site(), at(3_600)), (site(), at(0))]).await.unwrap();
    assert_eq!(of_one, [(site(), at(0), books(2))]);
    let mut all = archive.linked(&site(), [1; 16]).await.unwrap();
    all.sort_unstable();
    assert_eq!(all, [[2; 16], [3; 16]]);
    assert_eq!(archive.linked(&site(), [3; 16]).await.unwrap(), [[1; 16]]);
    let ids = |rows: Vec<QuarantineRow>| rows.into_iter().map(|row| row.event_id).collect::<Vec<_>>();
    let page = archive.quarantine(&site(), None, 3).await.unwrap();
    let last = page.last().map(|row| (row.received_at, row.partition, row.offset));
    assert_eq!(page[0], rows[2]);
    assert_eq!(ids(page), ["q2", "q1", "q0"]);
    assert_eq!(ids(archive.quarantine(&site(), last, 3).await.unwrap()), ["q3"]);
    assert_eq!(archive.sites().await.unwrap(), [site()]);
    archive.close().await.unwrap();
}

async fn retention_takes_whole_days(bench: &impl Bench) {
    let archive = bench.open().await;
    archive.write(sample()).await.unwrap();
    let kept = WriteBatch {
        events: vec![event("e5", at(DAY + 11), 5, 0)],
        cells: vec![(5, cell(Metric::Views, at(DAY), "p1", false), value([3, 0], 0, &[4]))],
        orders: vec![(5, site(), order("o5", vec![sale("p1", at(DAY + 11), 1)]))],
        checkouts: vec![(5, site(), checkout("ch5", vec![step("contact", StepStatus::Entered, at(DAY + 5))], at(DAY + 6)))],
        ..WriteBatch::default()
    };
    archive.write(kept).await.unwrap();
    assert_eq!(archive.scan(&site(), &Scan { limit: 9, ..Scan::default() }).await.unwrap().len(), 3);
    archive.retain(at(DAY + 3_000), &ALL).await.unwrap();
    for _ in 0..2 {
        let rows = archive.scan(&site(), &Scan { limit: 9, ..Scan::default() }).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.event_id.as_str()).collect::<Vec<_>>(), ["e2", "e5"]);
        assert_eq!(archive.days().await.unwrap(), [at(DAY).utc_day()]);
        let (from, to) = (at(-9 * DAY), at(9 * DAY));
        let views = archive.totals(&site(), Metric::Views, from, to, Bots::Include).await.unwrap();
        assert_eq!(views, [("p1".to_owned(), value([3, 0], 0, &[4]))]);
        assert_eq!(archive.sales(&site(), from, to).await.unwrap(), [sale("p1", at(DAY + 11), 1)]);
        assert_eq!(archive.steps(&site(), from, to).await.unwrap(), [step("contact", StepStatus::Entered, at(DAY + 5))]);
        assert_eq!(archive.checkouts(&site(), from, to, None, 9).await.unwrap().len(), 1);
        assert!(archive.quarantine(&site(), None, 9).await.unwrap().is_empty());
        assert_eq!(archive.cursor(3).await.unwrap().next, 2, "cursors stay");
        archive.retain(at(DAY), &ALL).await.unwrap();
    }
    archive.close().await.unwrap();
}

/// An order's or a checkout's entry, of these events.
fn entry_of(bodies: &[serde_json::Value]) -> Entry {
    let mut entry = None;
    for (body, offset) in bodies.iter().zip(0u64..) {
        let event: Event = serde_json::from_value(body.clone()).unwrap();
        let event_id = format!("e{offset}");
        let (key_kind, key) = event.partition_key(&event_id);
        let record = Record {
            kind: RecordKind::Event,
            body_key: 0,
            site: site(),
            fingerprint: offset,
            received_at: event.occurred_at,
            key_kind,
            key: key.to_owned(),
            flags: Flags::default(),
            channel: Channel::Server,
            body: Bytes::new(),
            event_id: event_id.clone(),
        };
        fold(&mut entry, &record, &event, offset);
    }
    entry.unwrap()
}

/// An order of two pieces, and a refund of one where `refunded` says when.
pub(crate) fn order_with(id: &str, at: Timestamp, refunded: Option<Timestamp>) -> WriteBatch {
    let items = |units| serde_json::json!([{"product_id": "p1", "quantity": units, "price": {"amount_minor": 100, "currency": "EUR"}}]);
    let mut bodies =
        vec![serde_json::json!({"type": "order_completed", "occurred_at": at, "customer": {"id": "c"}, "order": {"id": id, "items": items(2)}})];
    bodies.extend(refunded.map(|at| serde_json::json!({"type": "order_refunded", "occurred_at": at, "order": {"id": id, "items": items(1)}})));
    let entry = entry_of(&bodies);
    let partition = events_partition(&site(), KeyKind::Order, id);
    let view = OrderView { person: Some("00ff".into()), ..entry.order().unwrap() };
    let cells = view.sales.iter().map(|sale| {
        let key = cell(Metric::Sold, sale.at.floor_to_seconds(900), "p1", false);
        (partition, key, value([sale.units, sale.orders], sale.units * 100, &[]))
    });
    let (cells, identities) = (cells.collect(), vec![(partition, order_key(&site(), id), entry)]);
    WriteBatch { cells, orders: vec![(partition, site(), view)], identities, ..WriteBatch::default() }
}

async fn retention_spares_what_was_taken_lately(bench: &impl Bench) {
    let archive = bench.open().await;
    // History taken on the second day, and what was taken a month ago on a day in between.
    let (long_ago, month_ago) = (at(-900 * DAY), at(-30 * DAY));
    let taken = EventRow { received_at: at(DAY), ..event("h", long_ago, 3, 0) };
    let events = vec![taken.clone(), event("h2", long_ago.plus_seconds(5), 3, 1), event("m", month_ago, 3, 2)];
    let views = |at, count| (3, cell(Metric::Views, at, "p1", false), value([count, 0], 0, &[]));
    archive.write(WriteBatch { events, cells: vec![views(long_ago, 2), views(month_ago, 4)], ..WriteBatch::default() }).await.unwrap();
    let step_body = |at| serde_json::json!({"type": "checkout_step", "occurred_at": at, "customer": {"session_id": "s"}, "checkout": {"step": "contact", "status": "entered"}});
    let mut checkout_key = Vec::new();
    for (id, at) in [("old", long_ago), ("month", month_ago)] {
        archive.write(order_with(id, at, None)).await.unwrap();
        let entry = entry_of(&[step_body(at)]);
        let view = entry.checkout().unwrap();
        checkout_key.push(checkout_keys(&site(), &view.checkout)[2]);
        let identities = vec![(5, checkout_keys(&site(), &view.checkout)[2], entry)];
        archive.write(WriteBatch { checkouts: vec![(5, site(), view)], identities, ..WriteBatch::default() }).await.unwrap();
    }
    let (from, to) = (at(-999 * DAY), at(9 * DAY));
    for _ in 0..2 {
        archive.retain(at(DAY + 100), &ALL).await.unwrap();
        let rows = archive.scan(&site(), &Scan { limit: 9, ..Scan::default() }).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.event_id.as_str()).collect::<Vec<_>>(), ["h", "h2"], "a day goes as a whole");
        let counts = archive.totals(&site(), Metric::Views, from, to, Bots::Include).await.unwrap();
        assert_eq!((counts.len(), counts[0].1.counts), (1, [2, 0]));
        assert_eq!(archive.sales(&site(), from, to).await.unwrap(), [sale("p1", long_ago, 2)]);
        assert_eq!(archive.steps(&site(), from, to).await.unwrap(), [step("contact", StepStatus::Entered, long_ago)]);
        assert_eq!(archive.checkouts(&site(), from, to, None, 9).await.unwrap().len(), 1);
        let keys = ["old", "month"].map(|id| order_key(&site(), id));
        let known = async |id: &str, keys: &[IdentityKey]| {
            let entries = archive.identities(events_partition(&site(), KeyKind::Order, id), keys).await.unwrap();
            entries.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        assert_eq!((known("old", &keys[..1]).await, known("month", &keys[1..]).await), (vec![keys[0]], vec![]));
        let checkouts = archive.identities(5, &checkout_key).await.unwrap();
        assert_eq!(checkouts.into_iter().map(|(key, _)| key).collect::<Vec<_>>(), checkout_key[..1]);
    }
    archive.retain(at(2 * DAY), &ALL).await.unwrap();
    assert!(archive.days().await.unwrap().is_empty());
    assert!(archive.sales(&site(), from, to).await.unwrap().is_empty());
    archive.close().await.unwrap();
}

async fn retention_takes_the_part_of_an_order_that_is_gone(bench: &impl Bench) {
    let archive = bench.open().await;
    let batch = order_with("o1", at(10), Some(at(DAY + 10)));
    let (partition, key) = (batch.orders[0].0, batch.identities[0].1);
    archive.write(WriteBatch { events: vec![event("e0", at(10), 3, 0), event("e1", at(DAY + 10), 3, 1)], ..batch }).await.unwrap();
    archive.retain(at(DAY), &ALL).await.unwrap();
    let left = Sale { orders: 0, ..sale("p1", at(DAY + 10), -1) };
    assert_eq!(archive.sales(&site(), at(-DAY), at(9 * DAY)).await.unwrap(), [left]);
    let cells = archive.totals(&site(), Metric::Sold, at(-DAY), at(9 * DAY), Bots::Include).await.unwrap();
    assert_eq!(cells, [("p1".to_owned(), value([-1, 0], -100, &[]))]);
    let known = archive.identities(partition, &[key]).await.unwrap();
    let known = known[0].1.order().unwrap();
    assert_eq!((known.at, known.person, known.sales.len()), (None, None, 1), "the order itself is not known any more");
    archive.close().await.unwrap();
}
