//! The sites on a real Cassandra against the suite, and several nodes over them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::*;
use crate::cql::testing::{Keyspace, fresh_url, settings};
use crate::event::Clock;
use crate::site::contract::{self, Bench};
use crate::site::store::open;
use crate::site::{Bootstrap, Change, NewSite, Regions, Sites};

fn at() -> Settings {
    Settings { scylla: settings(), ..Settings::default() }
}

async fn store(url: &str) -> Arc<dyn Store> {
    open(url, std::path::Path::new("nowhere"), &at()).await.unwrap()
}

/// A keyspace of its own on the one server.
struct Fresh(tokio::sync::OnceCell<Keyspace>);

impl Fresh {
    const fn new() -> Self {
        Self(tokio::sync::OnceCell::const_new())
    }

    async fn url(&self) -> &str {
        let made = async {
            let url = fresh_url();
            migrate(&url, &at()).await.unwrap();
            Keyspace(url)
        };
        &self.0.get_or_init(|| made).await.0
    }
}

impl Bench for Fresh {
    async fn node(&self) -> Arc<dyn Store> {
        store(self.url().await).await
    }

    async fn reopened(&self) -> Arc<dyn Store> {
        self.node().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite() {
    contract::suite(Fresh::new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_made_by_migrate_alone_and_by_several_at_once() {
    let keyspace = Keyspace(fresh_url());
    let refused = open(&keyspace.0, std::path::Path::new("nowhere"), &at()).await.unwrap_err();
    assert!(refused.to_string().contains("run `contrail migrate` first"), "{refused}");
    let settings = at();
    let told = futures::future::join_all((0..3).map(|_| migrate(&keyspace.0, &settings))).await;
    assert_eq!(told.iter().filter(|told| told.as_ref().unwrap().ends_with("are of version 1 now")).count(), 1, "{told:?}");
    let store = store(&keyspace.0).await;
    assert!(store.load().await.unwrap().rows.is_empty());
    let version = store.version().await.unwrap();
    let again = migrate(&keyspace.0, &settings).await.unwrap();
    assert!(again.ends_with("are of version 1 already"), "{again}");
    assert_eq!(store.version().await.unwrap(), version);
    // A later build's tables are left alone.
    let cluster = Cluster::connect_to(&Address::parse(&keyspace.0).unwrap(), &settings.scylla, &PART).await.unwrap();
    cluster.write(vec![Write::new("UPDATE schema_version SET version = 2 WHERE part = 'sites'", ())]).await.unwrap();
    for refused in [open(&keyspace.0, std::path::Path::new("nowhere"), &settings).await.map(drop), migrate(&keyspace.0, &settings).await.map(drop)] {
        assert!(refused.unwrap_err().to_string().contains("use a later build"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_start_at_once_make_one_demo_and_see_each_others_changes_within_a_second() {
    let bench = Fresh::new();
    let url = bench.url().await;
    let given = Bootstrap { ingest_key: Some("ingest-key".into()), read_token: Some("read-token".into()) };
    let start = async || Arc::new(Sites::new(store(url).await, Regions::default(), Clock::system()).await.unwrap());
    let nodes = [start().await, start().await, start().await, start().await];
    let made = futures::future::join_all(nodes.iter().map(|node| node.bootstrap(&given))).await;
    assert_eq!(made.iter().filter(|made| made.as_ref().unwrap().is_some()).count(), 1, "{made:?}");
    for node in &nodes {
        assert_eq!(node.list().len(), 1);
        assert!(node.authenticate_ingest("ingest-key").is_some() && node.authenticate_read("read-token").is_some());
    }
    let stop = CancellationToken::new();
    let mut following = tokio::task::JoinSet::new();
    for node in &nodes {
        let (node, stop) = (Arc::clone(node), stop.clone());
        following.spawn(async move { node.follow(stop).await });
    }
    let shop = SiteId::parse("shop").unwrap();
    let keys = nodes[0].add(&shop, NewSite::default()).await.unwrap();
    let mut took = vec![until(|| nodes[3].authenticate_ingest(&keys.ingest).is_some()).await];
    let new = nodes[1].rotate(&shop, Kind::Server, Clock::system().now()).await.unwrap();
    took.push(until(|| nodes[0].authenticate_ingest(&keys.ingest).is_none() && nodes[0].authenticate_ingest(&new).is_some()).await);
    nodes[2].set(&shop, Change { time_zone: Some("Europe/Berlin".into()), ..Change::default() }).await.unwrap();
    took.push(until(|| nodes[0].rules_of()(&shop).time_zone == "Europe/Berlin").await);
    // Other tests share the server and the processors: the middle one of them.
    took.sort_unstable();
    assert!(took[1] < Duration::from_secs(1), "{took:?}");
    stop.cancel();
    following.join_all().await;

    // And whatever is stored is no key.
    let cluster = Cluster::connect_to(&Address::parse(url).unwrap(), &settings(), &PART).await.unwrap();
    let rows: Vec<(scylla::value::CqlValue,)> = cluster.rows("SELECT name FROM sites_and_keys WHERE one = 0", ()).await.unwrap();
    let secret = &keys.read[8..];
    for (name,) in rows {
        assert!(!name.into_blob().unwrap().windows(secret.len()).any(|part| part == secret.as_bytes()));
    }
}

/// How long it took to be seen.
async fn until(mut seen: impl FnMut() -> bool) -> Duration {
    let asked = Instant::now();
    while !seen() {
        assert!(asked.elapsed() < Duration::from_secs(60), "not seen at all");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    asked.elapsed()
}
