//! The suite that every [`Store`] must pass. Called by each backend's tests with a way to open it as several nodes, over a place of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::credential::{Credential, Kind};
use super::service::{Limits, ServiceChange, ServiceRow};
use super::store::{KeyRow, Rows, SiteRow, Store};
use super::{Error, Region};
use crate::event::{SiteId, SiteRules, Timestamp};

/// A backend under test, with a place of its own.
pub(super) trait Bench {
    /// Opens it as one more node does, with all that was written before.
    async fn node(&self) -> Arc<dyn Store>;

    /// Opens it after all nodes went away.
    async fn reopened(&self) -> Arc<dyn Store>;
}

/// Every promise of [`Store`], each over a fresh bench.
pub(super) async fn suite<B: Bench>(fresh: impl Fn() -> B) {
    what_is_put_stays(&fresh()).await;
    rows_are_replaced_by_name(&fresh()).await;
    what_is_taken_away_is_gone_and_nothing_else(&fresh()).await;
    one_of_those_made_from_a_version_comes_through(&fresh()).await;
    changes_are_seen_whole_and_none_is_lost(&fresh()).await;
}

fn id(name: &str) -> SiteId {
    SiteId::parse(name).unwrap()
}

fn site(name: &str) -> SiteRow {
    SiteRow {
        id: id(name),
        origins: vec!["https://shop.example".into(), "*".into()],
        rules: SiteRules { hash_key: [1; 32], time_zone: "Europe/Berlin".into(), abandoned_after_seconds: 60, ..SiteRules::default() },
        region: None,
        token_key: [2; 32],
        service: ServiceRow::made(Timestamp::from_micros(7), None),
    }
}

/// A site with a key of each kind.
fn whole(name: &str) -> Rows {
    let keys = [Kind::Server, Kind::Browser, Kind::Read].map(|kind| Credential::generate(&id(name), kind).1.of(&id(name)));
    Rows { sites: vec![site(name)], keys: keys.to_vec(), removed: Vec::new() }
}

/// The same rows in one order.
fn sorted(mut rows: Rows) -> Rows {
    rows.sites.sort_by(|a, b| a.id.cmp(&b.id));
    rows.keys.sort_by_key(|key| key.hash);
    rows
}

async fn put(node: &dyn Store, rows: &Rows) {
    let from = node.load_latest().await.unwrap().version;
    assert!(node.commit(from, rows).await.unwrap().is_some());
}

async fn what_is_put_stays<B: Bench>(bench: &B) {
    let (node, other) = (bench.node().await, bench.node().await);
    let empty = node.load().await.unwrap();
    assert!(empty.rows.is_empty());
    assert_eq!(node.version().await.unwrap(), empty.version);
    let rows = whole("demo");
    let made = node.commit(empty.version, &rows).await.unwrap().unwrap();
    assert_ne!(made, empty.version);
    assert_eq!(node.version().await.unwrap(), made, "what was acknowledged here is read here");
    assert_eq!(sorted(node.load().await.unwrap().rows), sorted(rows.clone()));
    assert_eq!(sorted(other.load_latest().await.unwrap().rows), sorted(rows.clone()), "what was acknowledged to anybody is the latest");
    let put = Instant::now();
    loop {
        // Of a look that takes long it counts when it began.
        let asked = put.elapsed();
        if other.version().await.unwrap() == made {
            break;
        }
        assert!(asked < Duration::from_secs(1), "another node does not see it within a second");
    }
    assert_eq!(other.load().await.unwrap().version, made);
    drop((node, other));
    assert_eq!(sorted(bench.reopened().await.load().await.unwrap().rows), sorted(rows));
}

async fn rows_are_replaced_by_name<B: Bench>(bench: &B) {
    let node = bench.node().await;
    let mut expected = whole("demo");
    put(&*node, &expected).await;
    let mut moved = site("demo");
    moved.origins = Vec::new();
    moved.rules.time_zone = "UTC".into();
    moved.region = Some(Region::parse("eu").unwrap());
    let settings = ServiceChange { friendly_name: Some("Shop \u{e9}".into()), limits: Some(Limits::Twilio), ..ServiceChange::default() };
    moved.service = moved.service.with(&settings, Timestamp::from_micros(1_700_000_000_000_001));
    moved.service.keys = vec!["SK1".into(), "SK2".into()];
    moved.service.token_nonce = u64::MAX;
    let ended = KeyRow { expires_at: Some(Timestamp::parse("2026-11-20T10:00:00.000001Z").unwrap()), ..expected.keys[0].clone() };
    let change = Rows { sites: vec![moved.clone()], keys: vec![ended, whole("demo").keys[0].clone()], removed: Vec::new() };
    expected.put(change.clone());
    put(&*node, &change).await;
    assert_eq!(sorted(node.load().await.unwrap().rows), sorted(expected.clone()));
    // And back: no region, no settings, no end, of another site and kind.
    moved.region = None;
    moved.service = ServiceRow::default();
    let given = KeyRow { expires_at: None, kind: Kind::Read, site: id("other"), ..expected.keys[0].clone() };
    let change = Rows { sites: vec![moved, site("other")], keys: vec![given], removed: Vec::new() };
    expected.put(change.clone());
    put(&*node, &change).await;
    assert_eq!(sorted(node.load().await.unwrap().rows), sorted(expected.clone()));
    drop(node);
    assert_eq!(sorted(bench.reopened().await.load().await.unwrap().rows), sorted(expected));
}

async fn what_is_taken_away_is_gone_and_nothing_else<B: Bench>(bench: &B) {
    let (node, other) = (bench.node().await, bench.node().await);
    let of_demo = |name: &str| SiteRow { service: ServiceRow::made(Timestamp::ZERO, Some(id("demo"))), ..site(name) };
    let mut expected = whole("demo");
    expected.sites.extend([of_demo("demo-1"), of_demo("demo-2")]);
    put(&*node, &expected).await;
    // With something put at once, and a name that is not there.
    let change = Rows { sites: vec![of_demo("demo-3")], removed: vec![id("demo-1"), id("none")], ..Rows::default() };
    expected.put(change.clone());
    assert!(expected.site(&id("demo-1")).is_err() && expected.sites.len() == 3);
    put(&*node, &change).await;
    assert_eq!(sorted(node.load().await.unwrap().rows), sorted(expected.clone()));
    // Not from an older version.
    let from = node.load_latest().await.unwrap().version;
    put(&*other, &Rows { removed: vec![id("demo-2")], ..Rows::default() }).await;
    expected.put(Rows { removed: vec![id("demo-2")], ..Rows::default() });
    assert_eq!(node.commit(from, &Rows { removed: vec![id("demo-3")], ..Rows::default() }).await.unwrap(), None);
    assert_eq!(sorted(other.load_latest().await.unwrap().rows), sorted(expected.clone()));
    // The name can be another's.
    let again = Rows { sites: vec![of_demo("demo-1")], ..Rows::default() };
    expected.put(again.clone());
    put(&*other, &again).await;
    assert_eq!(sorted(node.load_latest().await.unwrap().rows), sorted(expected.clone()));
    drop((node, other));
    assert_eq!(sorted(bench.reopened().await.load().await.unwrap().rows), sorted(expected));
}

async fn one_of_those_made_from_a_version_comes_through<B: Bench>(bench: &B) {
    let nodes = [bench.node().await, bench.node().await, bench.node().await];
    for round in 0..5 {
        let from = nodes[0].load_latest().await.unwrap().version;
        let named = |n: usize| whole(&format!("site-{round}-{n}"));
        let tries = nodes.iter().enumerate().map(|(n, node)| async move { node.commit(from, &named(n)).await.unwrap() });
        let made = futures::future::join_all(tries).await;
        assert_eq!(made.iter().flatten().count(), 1, "{made:?}");
        let winner = made.iter().position(Option::is_some).unwrap();
        for node in &nodes {
            let state = node.load_latest().await.unwrap();
            assert_eq!(Some(state.version), made[winner]);
            assert_eq!(state.rows.sites.len(), round + 1);
            assert!(state.rows.site(&id(&format!("site-{round}-{winner}"))).is_ok());
        }
    }
}

/// Makes a change over whatever there is, until it comes through.
async fn insist(node: &dyn Store, rows: &Rows) -> Result<(), Error> {
    loop {
        let from = node.load_latest().await?.version;
        if node.commit(from, rows).await?.is_some() {
            return Ok(());
        }
    }
}

async fn changes_are_seen_whole_and_none_is_lost<B: Bench>(bench: &B) {
    const SITES: usize = 12;
    let (writers, reader) = ([bench.node().await, bench.node().await], bench.node().await);
    let writing = writers.iter().enumerate().map(|(n, node)| async move {
        for site in 0..SITES {
            insist(&**node, &whole(&format!("w{n}-{site}"))).await.unwrap();
        }
    });
    let mut writing = std::pin::pin!(futures::future::join_all(writing));
    let (mut readings, mut seen) = (0, 0);
    loop {
        let state = tokio::select! {
            _ = &mut writing => break,
            state = reader.load() => state.unwrap(),
        };
        for site in &state.rows.sites {
            let keys = state.rows.keys.iter().filter(|key| key.site == site.id).count();
            assert_eq!(keys, 3, "{} is there in part", site.id);
        }
        assert_eq!(state.rows.keys.len(), 3 * state.rows.sites.len(), "a key without its site");
        assert!(state.rows.sites.len() >= seen, "what was seen is gone");
        seen = state.rows.sites.len();
        readings += 1;
    }
    assert!(readings > 0);
    assert_eq!(reader.load_latest().await.unwrap().rows.sites.len(), 2 * SITES);
}
