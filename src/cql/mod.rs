//! ScyllaDB or Apache Cassandra as the stores use it: statements prepared once and sent to a replica of what they touch, few enough at once, again
//! until they are through or a time is up. Used by the stores that keep what they have there; knows nothing of what that is.
//!
//! * `Ok` of a write: a quorum of the replicas (of the datacenter asked) has it. They sync it within seconds, not at once: what the last
//!   replicas acknowledged before all of them lose power is lost. Whoever builds on this keeps what made the writes for so long, see
//!   [`Settings::safety_window`].
//! * Every statement may be repeated: it carries its own write timestamp. After an error it may have been done all the same.
//! * The driver repeats nothing by itself: it would not a write that timed out, and knows nothing of the whole call's time.

mod boots;
mod conditional;
mod error;
mod limiter;
mod migrate;
mod part;
mod read;
mod route;
mod settings;
mod stamp;
#[cfg(test)]
pub(crate) mod testing;
mod together;
mod write;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::future::BoxFuture;
use rand::Rng;
use scylla::client::PoolSize;
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::{OpenSsl010Config, Session};
use scylla::client::session_builder::SessionBuilder;
use scylla::cluster::ClusterState;
use scylla::errors::ExecutionError;
use scylla::policies::load_balancing::{DefaultPolicy, LoadBalancingPolicy};
use scylla::policies::retry::FallthroughRetryPolicy;
use scylla::serialize::row::SerializeRow;
use scylla::statement::Consistency;
use scylla::statement::prepared::PreparedStatement;
use scylla::statement::unprepared::Statement;
use tokio::time::Instant;

pub use conditional::Outcome;
pub use error::Error;
use error::{Class, class_of};
use limiter::Limiter;
pub use migrate::migrate;
pub use part::{Part, migrate_part};
use route::Replica;
pub use settings::{Address, Settings};
pub use stamp::{STAMP_LOW_BITS, stamp};
pub use together::Write;

/// Time for one attempt, above the time that a node gives its replicas (2 s).
const ATTEMPT: Duration = Duration::from_secs(5);
/// How often a connection is tried, and how long that may take: a node that stands still is told from one that is slow.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// First pause between attempts; doubles.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Rows of a page: at most a few MiB of the largest there are.
const PAGE: i32 = 500;
/// Requests of one call under way at once, before the cluster's own limit.
const AT_ONCE: usize = 256;

/// A connected cluster with its prepared statements.
pub struct Cluster {
    session: Session,
    /// To which node a request goes.
    policy: Arc<dyn LoadBalancingPolicy>,
    /// Where the nodes are that are asked; empty where it does not matter.
    datacenter: String,
    is_scylladb: bool,
    keyspace: String,
    prepared: RwLock<HashMap<&'static str, PreparedStatement>>,
    limiter: Limiter,
    patience: Duration,
    boots: boots::Boots,
}

impl Cluster {
    /// Connects, and checks that the keyspace has the tables of this build, made for these settings.
    ///
    /// # Errors
    /// [`Error::Schema`] where they are to be made or changed by `contrail migrate` first; [`Error::Settings`], [`Error::Unavailable`].
    pub async fn connect(address: &Address, settings: &Settings) -> Result<Self, Error> {
        let cluster = Self::reach(address, settings).await?;
        cluster.check_schema(&address.keyspace, settings).await?;
        cluster.learn_boots().await;
        Ok(cluster)
    }

    /// Requests that may be under way at once.
    #[cfg(test)]
    pub(crate) fn at_once(&self) -> usize {
        self.limiter.limit()
    }

    /// Connects, whatever is there.
    async fn reach(address: &Address, settings: &Settings) -> Result<Self, Error> {
        let mut policy = DefaultPolicy::builder().token_aware(true);
        if !settings.datacenter.is_empty() {
            policy = policy.prefer_datacenter(settings.datacenter.clone());
        }
        let policy = policy.build();
        let profile = ExecutionProfile::builder()
            .consistency(Consistency::LocalQuorum)
            .request_timeout(Some(ATTEMPT))
            .retry_policy(Arc::new(FallthroughRetryPolicy::new()))
            .load_balancing_policy(Arc::clone(&policy))
            .build();
        let mut builder = SessionBuilder::new()
            .known_nodes(&address.nodes)
            .default_execution_profile_handle(profile.into_handle())
            .connection_timeout(ATTEMPT)
            .schema_agreement_timeout(migrate::AGREEMENT)
            // Whoever changes the schema is about to leave; those who work with it connect after that.
            .refresh_metadata_on_auto_schema_agreement(false)
            .keepalive_interval(KEEPALIVE)
            .keepalive_timeout(KEEPALIVE);
        if !settings.username.is_empty() {
            builder = builder.user(&settings.username, &settings.password);
        }
        if settings.tls {
            builder = builder.tls_context(Some(OpenSsl010Config::new(tls(&settings.ca_file)?)));
        }
        let failed = |error| error::of_connecting(&address.nodes, &error);
        let mut session = Box::pin(builder.clone().build()).await.map_err(failed)?;
        // By default there is one connection to each shard. Cassandra has none, and takes more by several connections to a node.
        let shards = session.get_cluster_state().get_nodes_info().iter().any(|node| node.sharder().is_some());
        if !shards {
            session = Box::pin(builder.pool_size(PoolSize::PerHost(CONNECTIONS)).build()).await.map_err(failed)?;
        }
        check_datacenter(&session, &settings.datacenter).await?;
        Ok(Self {
            session,
            policy,
            datacenter: settings.datacenter.clone(),
            is_scylladb: shards,
            keyspace: address.keyspace.clone(),
            prepared: RwLock::new(HashMap::new()),
            limiter: Limiter::new(),
            patience: settings.patience,
            boots: boots::Boots::default(),
        })
    }

    /// The replicas that have what a statement touches, always in one order; none where that is not known.
    fn replicas(&self, statement: &PreparedStatement, values: &impl SerializeRow) -> Vec<Replica> {
        let token = statement.calculate_token(values).ok().flatten();
        let (Some(table), Some(token)) = (statement.get_table_spec(), token) else { return Vec::new() };
        let mut replicas = self.session.get_cluster_state().get_token_endpoints(table.ks_name(), table.table_name(), token);
        replicas.sort_unstable_by_key(|(node, shard)| (node.host_id, *shard));
        replicas
    }

    /// The prepared form of a statement; prepared when first asked for.
    async fn prepare(&self, cql: &'static str) -> Result<PreparedStatement, Error> {
        if let Some(known) = self.prepared.read().unwrap_or_else(PoisonError::into_inner).get(cql) {
            return Ok(known.clone());
        }
        let statement = Statement::new(qualified(cql, &self.keyspace)).with_page_size(PAGE);
        let attempt = || -> Attempt<'_, PreparedStatement> { Box::pin(async { Ok(self.session.prepare(statement.clone()).await?) }) };
        let mut statement = self.try_again(cql, attempt).await?;
        statement.set_is_idempotent(true);
        self.prepared.write().unwrap_or_else(PoisonError::into_inner).insert(cql, statement.clone());
        Ok(statement)
    }

    /// Attempts until one succeeds, one is refused for good, or time is up: where the attempts have taken the patience together, and where the cluster has done
    /// nothing at all for so long. Time spent waiting for others is no reason: where there is much to do and few may do it at once, it takes its time.
    async fn try_again<'a, T>(&self, cql: &str, attempt: impl FnMut() -> Attempt<'a, T> + Send) -> Result<T, Error> {
        self.try_until(Class::Lasting, ATTEMPT, cql, attempt).await
    }

    /// The same, giving up at once after an error of this class too; each attempt takes so long at most.
    async fn try_until<'a, T>(
        &self,
        gives_up: Class,
        longest: Duration,
        cql: &str,
        mut attempt: impl FnMut() -> Attempt<'a, T> + Send,
    ) -> Result<T, Error> {
        let (begun, patience) = (Instant::now(), self.patience);
        let (mut spent, mut pause) = (Duration::ZERO, PAUSE);
        loop {
            let Some(permit) = self.limiter.acquire(begun, patience).await else {
                return Err(Error::Unavailable("no request has succeeded for long".into()));
            };
            let attempted = Instant::now();
            // The driver gives a statement that is being prepared no time of its own: it would wait for as long as the connection is taken for whole.
            let error = match tokio::time::timeout(longest, attempt()).await {
                Ok(Ok(done)) => {
                    permit.succeeded();
                    return Ok(done);
                }
                Ok(Err(error)) => error,
                Err(_) => ExecutionError::RequestTimeout(longest),
            };
            let class = class_of(&error);
            match class {
                Class::Lasting => {
                    drop(permit);
                    metrics::counter!("contrail_cql_refusals_total").increment(1);
                    tracing::error!(%error, statement = cql, "the cluster refuses a statement");
                    return Err(Error::Refused(error.to_string()));
                }
                Class::Overload => permit.overloaded(),
                Class::Passing | Class::Cut => drop(permit),
            }
            if class == gives_up {
                return Err(Error::Unavailable(error.to_string()));
            }
            metrics::counter!("contrail_cql_retries_total").increment(1);
            spent += attempted.elapsed() + pause;
            if spent > patience || Instant::now() + pause > self.limiter.heard_since(begun) + patience {
                return Err(Error::Unavailable(error.to_string()));
            }
            let wait = pause.mul_f64(rand::rng().random_range(0.5..1.0));
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// One attempt of a request.
type Attempt<'a, T> = BoxFuture<'a, Result<T, ExecutionError>>;

/// Connections to each node of Cassandra.
const CONNECTIONS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(3);

/// A statement with its table's keyspace before its name, where it names none: what a prepared statement means must not hang on what its connection used last.
fn qualified(cql: &str, keyspace: &str) -> String {
    let named = ["INTO ", "FROM ", "UPDATE ", "TRUNCATE "].iter().filter_map(|before| Some(cql.find(before)? + before.len())).min();
    match named.and_then(|at| cql.split_at_checked(at)) {
        Some((before, table)) if !table.split(' ').next().is_some_and(|name| name.contains('.')) => format!("{before}{keyspace}.{table}"),
        _ => cql.to_owned(),
    }
}

/// The datacenter that is set against those of the nodes. The driver begins, too, where it could not ask for these.
async fn check_datacenter(session: &Session, chosen: &str) -> Result<(), Error> {
    let names_all = |state: &ClusterState| state.get_nodes_info().iter().all(|node| node.datacenter.is_some());
    if !names_all(&session.get_cluster_state()) {
        session.refresh_metadata().await.map_err(|error| Error::Unavailable(format!("the nodes do not tell where they are: {error}")))?;
    }
    let state = session.get_cluster_state();
    settings::check_datacenter(chosen, &state.get_nodes_info().iter().filter_map(|node| node.datacenter.as_deref()).collect())
}

fn form(cql: &str, error: &dyn std::error::Error) -> Error {
    Error::Form(format!("{error} ({cql})"))
}

fn tls(ca_file: &str) -> Result<openssl::ssl::SslConnectorBuilder, Error> {
    if ca_file.is_empty() {
        // The driver does not compare names: any certificate of a public authority would do, and be told the password.
        return Err(Error::Settings(
            "scylla.tls needs scylla.ca_file, the certificate of the authority that signs nodes of this cluster alone".into(),
        ));
    }
    let failed = |error: openssl::error::ErrorStack| Error::Settings(format!("scylla.ca_file `{ca_file}`: {error}"));
    let mut builder = openssl::ssl::SslConnector::builder(openssl::ssl::SslMethod::tls_client()).map_err(failed)?;
    // That one alone, not those of the system.
    let mut trusted = openssl::x509::store::X509StoreBuilder::new().map_err(failed)?;
    let pem = std::fs::read(ca_file).map_err(|error| Error::Settings(format!("scylla.ca_file `{ca_file}`: {error}")))?;
    for certificate in openssl::x509::X509::stack_from_pem(&pem).map_err(failed)? {
        trusted.add_cert(certificate).map_err(failed)?;
    }
    builder.set_cert_store(trusted.build());
    Ok(builder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_names_its_keyspace() {
        let of = |cql| qualified(cql, "shop");
        assert_eq!(of("SELECT a FROM event WHERE b = ?"), "SELECT a FROM shop.event WHERE b = ?");
        assert_eq!(of("INSERT INTO event (a) VALUES (?) USING TIMESTAMP ?"), "INSERT INTO shop.event (a) VALUES (?) USING TIMESTAMP ?");
        assert_eq!(of("DELETE FROM event WHERE a = ?"), "DELETE FROM shop.event WHERE a = ?");
        assert_eq!(of("UPDATE event SET a = ?"), "UPDATE shop.event SET a = ?");
        assert_eq!(of("TRUNCATE event"), "TRUNCATE shop.event");
        let system = "SELECT a FROM system_schema.tables WHERE b = 'event'";
        assert_eq!(of(system), system);
    }
}
