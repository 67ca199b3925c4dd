//! One real Cassandra for all tests that need it, started by `tests/servers/run` when first asked for; it ends with this process.
//! `CONTRAIL_TEST_SCYLLA` names another one.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rand::Rng;
use scylla::errors::DbError;
use scylla_proxy::example_db_errors as errors;
use scylla_proxy::{Condition, Node, Proxy, Reaction, RequestOpcode, RequestReaction, RequestRule, ResponseFrame, ResponseReaction, ResponseRule};
use scylla_proxy::{DoorkeeperError, RunningProxy, ShardAwareness};

use super::{Address, Cluster, Settings, migrate};
pub(crate) use crate::testing::Servers;

/// The addresses of running nodes.
pub(crate) fn nodes() -> &'static str {
    static NODES: OnceLock<Servers> = OnceLock::new();
    NODES.get_or_init(|| Servers::up(&["cassandra", "--unkilled", "--passing"])).told("CASSANDRA")
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

/// A way to the node on which answers are forged and held up, and connections cut: of a session that has begun, but for its control connection. It goes through
/// until it is told to do otherwise, and ends with the runtime.
pub(crate) struct Faulty {
    proxy: RunningProxy,
    address: SocketAddr,
}

/// What a node answers that cannot do it now.
pub(crate) const PASSING: [fn() -> DbError; 8] = [
    errors::overloaded,
    errors::write_timeout,
    errors::read_timeout,
    errors::unavailable,
    errors::unprepared,
    errors::write_failure,
    errors::is_bootstrapping,
    errors::server_error,
];

/// The kinds of a Result that end a statement: nothing, or rows. (Others tell of a keyspace, and of what was prepared.)
const ENDS: [[u8; 4]; 2] = [[0, 0, 0, 1], [0, 0, 0, 2]];

impl Faulty {
    pub(crate) async fn up() -> Self {
        let real: SocketAddr = nodes().split(',').next().unwrap().parse().unwrap();
        loop {
            // A node is where its own tables say, at the port that the session began with: so beside it.
            let address = TcpListener::bind((real.ip(), 0)).unwrap().local_addr().unwrap();
            let node = Node::new(real, address, ShardAwareness::Unaware, None, None);
            match Proxy::new([node]).run().await {
                Ok(proxy) => return Self { proxy, address },
                // Somebody else took the port meanwhile.
                Err(DoorkeeperError::Listen(..)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The same keyspace, by this way.
    pub(crate) fn url(&self, keyspace: &Keyspace) -> String {
        format!("scylla://{}/{}", self.address, Address::parse(&keyspace.0).unwrap().keyspace)
    }

    /// From now on so, and else straight through.
    pub(crate) fn become_so(&mut self, requests: Vec<RequestRule>, responses: Vec<ResponseRule>) {
        let node = self.proxy.running_nodes.first_mut().unwrap();
        node.change_request_rules(Some(requests));
        node.change_response_rules(Some(responses));
    }

    /// So many statements go through, and the connection of the next one breaks; after so many more that of another; and so on.
    pub(crate) fn break_after(&mut self, passed: &[usize]) {
        let mut before = 0;
        let cuts = passed.iter().map(|passed| {
            before += passed;
            // Each rule counts what those before it let through.
            let this = Condition::not(Condition::TrueForLimitedTimes(before)).and(Condition::TrueForLimitedTimes(1));
            RequestRule(statements().and(this), RequestReaction::drop_connection())
        });
        let cuts = cuts.collect();
        self.become_so(cuts, Vec::new());
    }

    /// Of all statements this share is answered with one of these errors: half of them are not done, half are.
    pub(crate) fn fail(&mut self, share: f64, errors: &'static [fn() -> DbError]) {
        let any = || errors[rand::rng().random_range(0..errors.len())]();
        let undone = RequestReaction::forge_with_error_lazy(Box::new(any));
        let done = ResponseReaction::transform_frame(Arc::new(move |answer: ResponseFrame| {
            let ends = answer.body.get(..4).is_some_and(|kind| ENDS.iter().any(|end| end == kind));
            let lies = ends && rand::rng().random_bool(share / 2.0);
            if lies { ResponseFrame::forged_error(answer.params, any(), None).unwrap() } else { answer }
        }));
        let requests = vec![RequestRule(statements().and(Condition::RandomWithProbability(share / 2.0)), undone)];
        self.become_so(requests, vec![ResponseRule(not_control(), done)]);
    }
}

/// Statements, and what prepares them.
pub(crate) fn statements() -> Condition {
    let of = [RequestOpcode::Execute, RequestOpcode::Batch, RequestOpcode::Prepare].map(Condition::RequestOpcode);
    Condition::any(of).and(not_control())
}

fn not_control() -> Condition {
    Condition::not(Condition::ConnectionRegisteredAnyEvent)
}
