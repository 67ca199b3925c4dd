//! One real Cassandra for all tests that need it, started by `tests/servers/run` when first asked for; it ends with this process.
//! `CONTRAIL_TEST_SCYLLA` names another one.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{Address, Cluster, Settings, migrate};
pub(crate) use crate::testing::Servers;

/// The addresses of running nodes.
pub(crate) fn nodes() -> &'static str {
    static NODES: OnceLock<Servers> = OnceLock::new();
    NODES.get_or_init(|| Servers::up(&["cassandra"])).told("CASSANDRA")
}

/// The URL of a keyspace that nobody else uses.
pub(crate) fn fresh_url() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("scylla://{}/test_{}_{}", nodes(), std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Settings for one node.
pub(crate) fn settings() -> Settings {
    let replication = "{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}".into();
    Settings { replication, safety_window: Duration::ZERO, ..Settings::default() }
}

/// A keyspace with its tables. It goes with this: a small server holds some hundred tables at once.
pub(crate) struct Keyspace(pub(crate) String);

impl Keyspace {
    pub(crate) async fn fresh() -> Self {
        let fresh = Self(fresh_url());
        migrate(&Address::parse(&fresh.0).unwrap(), &settings()).await.unwrap();
        fresh
    }
}

impl Drop for Keyspace {
    fn drop(&mut self) {
        let address = Address::parse(&self.0).unwrap();
        // Not on the runtime that is being left.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                Cluster::reach(&address, &settings()).await?.change(&format!("DROP KEYSPACE IF EXISTS {}", address.keyspace)).await
            })
        });
        if let Err(error) = dropping.join().unwrap() {
            eprintln!("{} stays: {error}", self.0);
        }
    }
}
