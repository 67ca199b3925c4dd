//! Audits of an archive as the archiver leaves it, and of one that was tampered with in every way an audit must notice.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::WriteBatch;
use super::super::shop::{Post, Shop, at, post, wait};
use super::*;
use crate::event::identity::Verdict;
use crate::event::{Channel, Clock};
use crate::eventlog::{Append, Topic};

fn posts() -> Vec<Post> {
    let line = |product: &str, quantity: i64| json!({"product_id": product, "quantity": quantity, "price": {"amount_minor": 100, "currency": "EUR"}});
    let view = |id: &str, when: &str, who: &str| post(id, when, who, json!({"type": "product_viewed", "product": {"id": "a"}}));
    let step = |id: &str, when: &str, step: &str, status: &str| {
        post(id, when, "c1", json!({"type": "checkout_step", "checkout": {"id": "k", "step": step, "status": status}}))
    };
    let order = |id: &str, when: &str, items: &[Value]| {
        post(id, when, "c1", json!({"type": "order_completed", "order": {"id": "o", "items": items}, "checkout": {"id": "k"}}))
    };
    vec![
        view("v1", "2026-11-20T09:00:00Z", "c1"),
        view("v2", "2026-11-20T09:01:00Z", "c2").crawler(),
        view("v1", "2026-11-20T09:00:00Z", "c1"),
        view("v1", "2026-11-20T09:00:30Z", "c1"),
        post("s1", "2026-11-20T09:02:00Z", "c1", json!({"type": "product_searched", "search": {"query": "Mug", "results": 0}})),
        post("p1", "2026-11-20T09:03:00Z", "c1", json!({"type": "page_viewed", "page": {"url": "/x"}})),
        step("k1", "2026-11-20T09:04:00Z", "contact", "entered"),
        step("k2", "2026-11-20T10:04:00Z", "contact", "completed"),
        step("k3", "2026-11-20T10:05:00Z", "contact", "completed"),
        Post { channel: Channel::Pixel, ..order("o1", "2026-11-20T10:06:00Z", &[line("a", 9)]) },
        Post { channel: Channel::Webhook, ..order("o2", "2026-11-20T10:06:05Z", &[line("a", 3), line("b", 1)]) },
        post(
            "r1",
            "2026-11-21T10:06:05Z",
            "c1",
            json!({"type": "order_refunded", "refund": {"id": "r"}, "order": {"id": "o", "items": [line("a", 1)]}}),
        ),
    ]
}

fn audited(shop: &Shop, log: Option<&dyn EventLog>) -> Audit {
    let rules = Arc::new(shop.rules.clone());
    let rules: RulesOf = Arc::new(move |_| Arc::clone(&rules));
    wait(audit(&*shop.archive, log, &rules)).unwrap()
}

/// The differences that an audit names after `change` was done to what the archiver would have written.
fn after(change: impl FnOnce(&mut WriteBatch)) -> Vec<String> {
    let mut shop = Shop::new(&[]);
    let mut batch = shop.batch(&posts());
    change(&mut batch);
    shop.write(batch);
    let audit = audited(&shop, None);
    assert_eq!(audit.found, audit.differences.len() as u64);
    audit.differences.iter().map(|difference| difference.what.clone()).collect()
}

#[test]
fn an_untouched_archive_is_clean() {
    let audit = audited(&Shop::new(&posts()), None);
    assert!(audit.is_clean(), "{:#?}", audit.differences);
    assert_eq!((audit.events, audit.hours, audit.records, audit.moved), (11, 3, 0, false));
    assert!(audit.cells >= 9, "{}", audit.cells);
    assert!(audited(&Shop::new(&[]), None).is_clean());
}

#[test]
fn a_tampered_cell_shows() {
    let views = |batch: &mut WriteBatch| batch.cells.iter().position(|(_, key, _)| key.metric == Metric::Views && !key.crawler).unwrap();
    let more = after(|batch| {
        let at = views(batch);
        batch.cells[at].2.counts[0] += 1;
    });
    assert_eq!(more, ["views of \"a\" in 2026-11-20T09:00:00Z", "all views of \"a\""]);
    let moved = after(|batch| {
        let at = views(batch);
        batch.cells[at].1.cell = batch.cells[at].1.cell.plus_seconds(CELL * 7);
    });
    assert_eq!(moved, ["views of \"a\" in 2026-11-20T09:00:00Z", "views of \"a\" in 2026-11-20T10:45:00Z"]);
    let elsewhere = after(|batch| {
        let at_views = views(batch);
        let mut stray = batch.cells[at_views].clone();
        stray.1.cell = at("2024-01-01T00:00:00Z");
        batch.cells.push(stray);
    });
    assert_eq!(elsewhere, ["all views of \"a\""]);
    let people = after(|batch| {
        let at = views(batch);
        batch.cells[at].2.people.add(&[9; 16]);
    });
    assert_eq!(people.len(), 2);
}

const CELL: i64 = super::super::CELL_SECONDS;

#[test]
fn lost_and_changed_rows_show() {
    let lost = after(|batch| batch.events.retain(|row| row.event_id != "s1"));
    assert!(lost.contains(&"events archived of 2026-11-20T09:00:00Z".into()), "{lost:?}");
    assert!(lost.contains(&"searches of \"mug\" in 2026-11-20T09:00:00Z".into()), "{lost:?}");
    let order = after(|batch| batch.orders.clear());
    assert!(order.contains(&"orders' sales of \"a\" at 2026-11-20T10:06:05Z".into()), "{order:?}");
    let checkout = after(|batch| batch.checkouts.iter_mut().for_each(|(_, _, checkout)| checkout.completed = None));
    assert!(checkout.contains(&"checkout \"k\"".into()), "{checkout:?}");
    let by_crawlers = after(|batch| {
        let completions = batch.checkouts.iter_mut().filter_map(|(_, _, checkout)| checkout.completed.as_mut());
        completions.for_each(|completion| completion.crawler = true);
    });
    let completion = "checkouts' \"(order)\" Completed at 2026-11-20T10:06:05Z";
    assert_eq!(by_crawlers, [format!("{completion} by crawlers"), completion.into(), "checkout \"k\"".into()]);
    let verdict = after(|batch| batch.events.iter_mut().filter(|row| row.event_id == "o2").for_each(|row| row.verdict = Verdict::Conflict));
    assert_eq!(verdict, ["the verdict on event o2"]);
    let sealed = after(|batch| batch.events.iter_mut().filter(|row| row.event_id == "p1").for_each(|row| row.body_key = 1));
    assert!(sealed.contains(&"event rows".into()), "{sealed:?}");
}

#[test]
fn an_id_counts_again_only_where_the_archive_could_not_know_it() {
    let counted_again = |day: &str| {
        let moved = format!("2026-11-{day}T09:00:30Z");
        after(|batch| {
            for row in batch.events.iter_mut().filter(|row| row.event_id == "v1" && row.verdict == Verdict::Conflict) {
                let body = String::from_utf8(row.body.to_vec()).unwrap().replace("2026-11-20T09:00:30Z", &moved);
                (row.body, row.occurred_at, row.verdict) = (body.into(), at(&moved), Verdict::Counted);
                row.received_at = row.received_at.plus_seconds(8 * 86_400);
            }
        })
    };
    let named = "the verdict on event v1".to_owned();
    assert!(counted_again("20").contains(&named), "the archive knew the id of that day");
    assert!(!counted_again("19").contains(&named), "of that day it knew nothing");
}

#[test]
fn unbalanced_books_show() {
    let balance = after(|batch| batch.books.iter_mut().take(1).for_each(|(.., books)| books.appended += 1));
    assert_eq!(balance.len(), 1);
    assert!(balance[0].starts_with("the books' balance of 2026-11-20T"), "{balance:?}");
    let claimed = after(|batch| batch.books.iter_mut().take(1).for_each(|(.., books)| (books.appended, books.quarantined) = (books.appended + 1, 1)));
    assert!(claimed[0].starts_with("records quarantined of "), "{claimed:?}");
    let without = after(|batch| batch.books.retain(|(_, _, hour, _)| *hour != at("2026-11-21T10:00:00Z")));
    assert_eq!(without, ["rows of 2026-11-21T10:00:00Z"]);
}

#[test]
fn the_log_is_compared_record_by_record() {
    let shop = Shop::new(&posts());
    let dir = tempfile::TempDir::new().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let log = runtime.block_on(crate::eventlog::open("embedded", dir.path(), Default::default(), Clock::system())).unwrap();
    let records = shop.log.iter().flat_map(|(partition, log)| log.iter().map(|value| Append { partition: *partition, value: value.clone() }));
    let mut records: Vec<Append> = records.collect();
    let lost = records.iter().position(|append| append.value == *shop.log[&append.partition].last().unwrap()).unwrap();
    let one = records.remove(lost);
    let rules: RulesOf = Arc::new(|_| Arc::new(crate::event::SiteRules::default()));
    runtime.block_on(log.append(Topic::Events, records)).unwrap();
    let short = runtime.block_on(audit(&*shop.archive, Some(&*log), &rules)).unwrap();
    assert!(short.differences.iter().any(|d| d.what == format!("the log's partition {}", one.partition)), "{short:#?}");
    runtime.block_on(log.append(Topic::Events, vec![one])).unwrap();
    let whole = runtime.block_on(audit(&*shop.archive, Some(&*log), &rules)).unwrap();
    assert!(whole.is_clean(), "{:#?}", whole.differences);
    assert_eq!(whole.records, 14, "12 events and 2 completions");
    runtime.block_on(log.close()).unwrap();
}

#[test]
fn what_one_id_says_by_several_channels_is_recounted_in_any_order() {
    let told = |id: &str, channel, quantity: i64| {
        let items = [json!({"product_id": "a", "quantity": quantity, "price": {"amount_minor": 100, "currency": "EUR"}})];
        let body = json!({"type": "order_completed", "order": {"id": "o", "items": items}, "checkout": {"id": "k"}});
        Post { channel, ..post(id, "2026-11-20T10:06:00Z", "c1", body) }
    };
    let step = |channel| {
        let body = json!({"type": "checkout_step", "checkout": {"id": "k", "step": "contact", "status": "entered"}});
        Post { channel, ..post("s", "2026-11-20T10:05:00Z", "c1", body) }
    };
    let refund = |channel| {
        let body = json!({"type": "order_refunded", "refund": {"id": "r"}, "order": {"id": "o", "items": [{"product_id": "a", "quantity": 1}]}});
        Post { channel, ..post("r", "2026-11-21T10:06:00Z", "c1", body) }
    };
    // A competing report stands between the two channels of the first.
    let reports = [told("e1", Channel::Pixel, 1), told("e2", Channel::Server, 2), told("e1", Channel::Webhook, 1)];
    let mut rows_of_all = None;
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut posts: Vec<Post> = order.iter().map(|index| reports[*index].clone()).collect();
        posts.extend([step(Channel::Pixel), refund(Channel::Server), step(Channel::Webhook), refund(Channel::Webhook)]);
        posts.extend(reports.clone());
        posts.extend([step(Channel::Pixel), refund(Channel::Webhook)]);
        let shop = Shop::new(&posts);
        let audit = audited(&shop, None);
        assert!(audit.is_clean(), "{order:?}: {:#?}", audit.differences);
        let rows = wait(shop.archive.scan(&crate::archive::shop::site(), &Scan { limit: 99, ..Scan::default() })).unwrap();
        let mut words: Vec<_> = rows.iter().map(|row| (row.event_id.clone(), row.fingerprint, row.channel)).collect();
        words.sort();
        assert_eq!(words.len(), 7, "{order:?}");
        assert_eq!(&words, rows_of_all.get_or_insert_with(|| words.clone()), "{order:?}");
    }
}

/// Events of few ids, products, orders and checkouts, so that repeats, the same words by other channels, conflicts, further reports, refunds and completions meet often.
fn random_posts(seed: u64, number: usize) -> Vec<Post> {
    use rand::{Rng, SeedableRng};
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let one = |rng: &mut rand::rngs::StdRng| {
        let when = at("2026-11-20T08:00:00Z").plus_seconds(rng.random_range(0..40) * 300).to_string();
        let (id, few, who) = (rng.random_range(0..400), rng.random_range(0..5), format!("c{}", rng.random_range(0..4)));
        let items = [json!({"product_id": format!("p{few}"), "quantity": rng.random_range(1..4), "price": {"amount_minor": 250, "currency": "EUR"}})];
        let body = match id % 6 {
            0 => json!({"type": "product_viewed", "product": {"id": format!("p{few}")}}),
            1 => json!({"type": "product_searched", "search": {"query": format!(" Term {few}"), "results": few}}),
            2 => json!({"type": "page_viewed", "page": {"url": format!("/p/{few}")}}),
            3 => {
                let (step, status) = (["contact", "address", "wrap"][few % 3], ["entered", "completed"][id % 4 / 2]);
                json!({"type": "checkout_step", "checkout": {"id": format!("k{few}"), "step": step, "status": status}})
            }
            4 => json!({"type": "order_completed", "order": {"id": format!("o{}", id % 40), "items": items}, "checkout": {"id": format!("k{few}")}}),
            _ => json!({"type": "order_refunded", "order": {"id": format!("o{}", id % 40), "items": items}, "refund": {"id": format!("r{few}")}}),
        };
        Post { crawler: id % 7 == 0, ..post(&format!("e{id}"), &when, &who, body) }
    };
    let mut posts: Vec<Post> = Vec::new();
    for _ in 0..number {
        let again = rng.random_bool(0.3) && !posts.is_empty();
        let made = if again { posts[rng.random_range(0..posts.len())].clone() } else { one(&mut rng) };
        let channel = [Channel::Pixel, Channel::Server, Channel::Webhook][rng.random_range(0..3)];
        posts.push(Post { channel, crawler: made.crawler ^ (again && rng.random_bool(0.2)), ..made });
    }
    posts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_archiver_leaves_is_clean() {
    use tokio_util::sync::CancellationToken;
    let dir = tempfile::TempDir::new().unwrap();
    let log = crate::eventlog::open("embedded", &dir.path().join("log"), Default::default(), Clock::system()).await.unwrap();
    let archive: Arc<dyn Archive> = Arc::new(crate::archive::embedded::Embedded::open(dir.path()).unwrap());
    let rules: RulesOf = Arc::new(|_| Arc::new(crate::event::SiteRules::default()));
    let records = tokio::task::spawn_blocking(|| Shop::new(&random_posts(7, 3_000)).log).await.unwrap();
    let appends = records.into_iter().flat_map(|(partition, log)| log.into_iter().map(move |value| Append { partition, value })).collect();
    log.append(Topic::Events, appends).await.unwrap();
    let archiver = crate::archive::archiver::Archiver {
        log: Arc::clone(&log),
        archive: Arc::clone(&archive),
        rules: Arc::clone(&rules),
        clock: Clock::fixed(at("2026-11-21T10:00:00Z")),
        objects_of: Arc::new(|_| Vec::new()),
        progress: Arc::default(),
        settings: crate::archive::archiver::Settings { max_events: 700, ..Default::default() },
    };
    let stop = CancellationToken::new();
    let caught_up = async {
        loop {
            let (bounds, cursors) = (log.bounds(Topic::Events).await.unwrap(), archive.cursors().await.unwrap());
            if bounds.iter().zip(cursors).all(|(bounds, cursor)| bounds.next == cursor.next) {
                return stop.cancel();
            }
            tokio::task::yield_now().await;
        }
    };
    let (ended, ()) = tokio::join!(archiver.run(stop.clone()), caught_up);
    ended.unwrap();
    let audit = audit(&*archive, Some(&*log), &rules).await.unwrap();
    assert!(audit.is_clean(), "{:#?}", audit.differences.iter().map(ToString::to_string).take(10).collect::<Vec<_>>());
    assert!(audit.events > 1_000 && audit.records > 3_000, "{audit:?}");
    log.close().await.unwrap();
}
