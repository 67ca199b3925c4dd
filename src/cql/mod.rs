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
mod settings;
mod stamp;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::HashMap;
use std::hash::Hasher;
use std::num::NonZeroUsize;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt, stream};
use rand::Rng;
use scylla::client::PoolSize;
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::{OpenSsl010Config, Session};
use scylla::client::session_builder::SessionBuilder;
use scylla::deserialize::row::DeserializeRow;
use scylla::errors::ExecutionError;
use scylla::policies::load_balancing::DefaultPolicy;
use scylla::policies::retry::FallthroughRetryPolicy;
use scylla::response::PagingState;
use scylla::serialize::row::SerializeRow;
use scylla::statement::Consistency;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use scylla::statement::unprepared::Statement;
use tokio::time::Instant;

pub use conditional::Outcome;
pub use error::Error;
use error::{Class, class_of};
use limiter::Limiter;
pub use migrate::migrate;
pub use part::{Part, migrate_part};
pub use settings::{Address, Settings};
pub use stamp::{STAMP_LOW_BITS, stamp};

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
/// Most rows of a batch, all of one partition.
const BATCH_ROWS: usize = 100;
/// Most bytes of a batch.
const BATCH_BYTES: usize = 32 << 10;
/// Requests of one call under way at once, before the cluster's own limit.
const AT_ONCE: usize = 256;

/// A connected cluster with its prepared statements.
pub struct Cluster {
    session: Session,
    is_scylladb: bool,
    keyspace: String,
    prepared: RwLock<HashMap<&'static str, PreparedStatement>>,
    limiter: Limiter,
    patience: Duration,
    boots: boots::Boots,
}

/// One row to be written, by a statement that may be repeated.
pub struct Write {
    cql: &'static str,
    /// Rows of one statement whose partition is known to be the same may go together.
    partition: Option<u64>,
    bytes: usize,
    values: Box<dyn SerializeRow + Send + Sync>,
}

impl Write {
    /// A row that goes alone.
    pub fn new(cql: &'static str, values: impl SerializeRow + Send + Sync + 'static) -> Self {
        Self { cql, partition: None, bytes: 0, values: Box::new(values) }
    }

    /// Says which partition of its table the row is of (its key), and about how large it is. Rows of one statement and partition go together.
    #[must_use]
    pub fn beside(self, partition: impl std::hash::Hash, bytes: usize) -> Self {
        // Two partitions that meet in one number would be written together: slower, and as right.
        let mut hasher = std::hash::DefaultHasher::new();
        partition.hash(&mut hasher);
        Self { partition: Some(hasher.finish()), bytes, ..self }
    }
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
        let profile = ExecutionProfile::builder()
            .consistency(Consistency::LocalQuorum)
            .request_timeout(Some(ATTEMPT))
            .retry_policy(Arc::new(FallthroughRetryPolicy::new()))
            .load_balancing_policy(policy.build())
            .build();
        let mut builder = SessionBuilder::new()
            .known_nodes(&address.nodes)
            .default_execution_profile_handle(profile.into_handle())
            .connection_timeout(ATTEMPT)
            .schema_agreement_timeout(migrate::AGREEMENT)
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
        Ok(Self {
            session,
            is_scylladb: shards,
            keyspace: address.keyspace.clone(),
            prepared: RwLock::new(HashMap::new()),
            limiter: Limiter::new(),
            patience: settings.patience,
            boots: boots::Boots::default(),
        })
    }

    /// Writes all of these rows, in any order, and returns when each is acknowledged. Where a connection breaks it fails at once: a node that
    /// begins anew may have lost rows that came before these, see [`Cluster::restarts`]. Rows that went together and are refused together go each alone.
    ///
    /// # Errors
    /// The first; any of the rows may then be there or not.
    pub async fn write(&self, writes: Vec<Write>) -> Result<(), Error> {
        let together = gather(writes);
        let mut sending = stream::iter(together.into_iter().map(|writes| self.send_some(writes))).buffer_unordered(AT_ONCE);
        while let Some(sent) = sending.next().await {
            sent?;
        }
        Ok(())
    }

    /// Writes rows and removals of one partition of one table: all of it is there or nothing, whoever reads, for they are one mutation.
    ///
    /// # Errors
    /// As for [`Cluster::write`]; [`Error::Refused`] where it is too large, some MiB.
    pub async fn write_whole(&self, writes: Vec<Write>) -> Result<(), Error> {
        self.send(&writes).await
    }

    /// All rows that a statement finds, page by page.
    ///
    /// # Errors
    /// As for writes, and [`Error::Form`].
    pub async fn rows<R>(&self, cql: &'static str, values: impl SerializeRow + Send + Sync) -> Result<Vec<R>, Error>
    where
        R: for<'f> DeserializeRow<'f, 'f> + Send,
    {
        Ok(self.paged(cql, values).await?.0)
    }

    /// The same, and in how many pages: of one partition a page shows one moment, several may show several.
    ///
    /// # Errors
    /// As for writes, and [`Error::Form`].
    pub async fn paged<R>(&self, cql: &'static str, values: impl SerializeRow + Send + Sync) -> Result<(Vec<R>, usize), Error>
    where
        R: for<'f> DeserializeRow<'f, 'f> + Send,
    {
        let statement = self.prepare(cql).await?;
        self.pages(cql, &statement, values).await
    }

    /// All pages of a prepared statement's rows, and how many.
    async fn pages<R>(
        &self,
        cql: &'static str,
        statement: &PreparedStatement,
        values: impl SerializeRow + Send + Sync,
    ) -> Result<(Vec<R>, usize), Error>
    where
        R: for<'f> DeserializeRow<'f, 'f> + Send,
    {
        let (mut found, mut pages) = (Vec::new(), 0);
        let mut state = PagingState::start();
        loop {
            let attempt = || -> Attempt<'_, _> { Box::pin(self.session.execute_single_page(statement, &values, state.clone())) };
            let (page, next) = self.try_again(cql, attempt).await?;
            let page = page.into_rows_result().map_err(|error| form(cql, &error))?;
            pages += 1;
            found.reserve(page.rows_num());
            for row in page.rows::<R>().map_err(|error| form(cql, &error))? {
                found.push(row.map_err(|error| form(cql, &error))?);
            }
            match next.into_paging_control_flow() {
                std::ops::ControlFlow::Continue(next) => state = next,
                std::ops::ControlFlow::Break(()) => return Ok((found, pages)),
            }
        }
    }

    /// The answers of many calls, a bounded number of them at once, in the calls' order.
    ///
    /// # Errors
    /// The first.
    pub async fn gather<T, F: Future<Output = Result<T, E>> + Send, E>(calls: Vec<F>) -> Result<Vec<T>, E> {
        stream::iter(calls).buffered(AT_ONCE).try_collect().await
    }

    /// Sends rows of one partition, together unless that is refused.
    async fn send_some(&self, writes: Vec<Write>) -> Result<(), Error> {
        match self.send(&writes).await {
            Err(Error::Refused(_)) if writes.len() > 1 => {
                for write in &writes {
                    self.send(std::slice::from_ref(write)).await?;
                }
                Ok(())
            }
            sent => sent,
        }
    }

    /// Sends rows of one partition.
    async fn send(&self, writes: &[Write]) -> Result<(), Error> {
        let attempted = match writes {
            [] => return Ok(()),
            [Write { cql, values, .. }] => {
                let statement = self.prepare(cql).await?;
                let attempt = || -> Attempt<'_, _> { Box::pin(self.session.execute_unpaged(&statement, values)) };
                self.try_until(Class::Cut, ATTEMPT, cql, attempt).await
            }
            [Write { cql, .. }, ..] => {
                let mut batch = Batch::new(BatchType::Unlogged);
                batch.set_is_idempotent(true);
                for write in writes {
                    batch.append_statement(self.prepare(write.cql).await?);
                }
                let values: Vec<_> = writes.iter().map(|write| &write.values).collect();
                let attempt = || -> Attempt<'_, _> { Box::pin(self.session.batch(&batch, &values)) };
                self.try_until(Class::Cut, ATTEMPT, cql, attempt).await
            }
        };
        attempted.map(drop)
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

/// Puts rows that may go together beside one another, and the others each alone.
fn gather(writes: Vec<Write>) -> Vec<Vec<Write>> {
    let mut gathered: Vec<Vec<Write>> = Vec::with_capacity(writes.len());
    let mut open: HashMap<(&'static str, u64), (usize, usize)> = HashMap::new();
    for write in writes {
        let Some(partition) = write.partition else {
            gathered.push(vec![write]);
            continue;
        };
        let key = (write.cql, partition);
        let room = open.get_mut(&key).and_then(|(at, bytes)| {
            let group = gathered.get_mut(*at)?;
            let fits = group.len() < BATCH_ROWS && *bytes + write.bytes <= BATCH_BYTES;
            fits.then(|| {
                *bytes += write.bytes;
                group
            })
        });
        match room {
            Some(group) => group.push(write),
            None => {
                open.insert(key, (gathered.len(), write.bytes));
                gathered.push(vec![write]);
            }
        }
    }
    gathered
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

    #[test]
    fn only_rows_of_one_partition_go_together() {
        let row = |cql: &'static str, partition: Option<u64>, bytes: usize| match partition {
            Some(partition) => Write::new(cql, ()).beside(partition, bytes),
            None => Write::new(cql, ()),
        };
        let mut writes = vec![row("a", None, 0), row("a", None, 0), row("b", Some(1), 1), row("c", Some(1), 1), row("b", Some(2), 1)];
        writes.extend((0..BATCH_ROWS).map(|_| row("b", Some(1), 1)));
        writes.extend([row("d", Some(1), BATCH_BYTES + 1), row("d", Some(1), 9), row("d", Some(1), 9)]);
        let groups = gather(writes);
        let shape: Vec<(&str, usize)> = groups.iter().map(|group| (group[0].cql, group.len())).collect();
        assert_eq!(shape, [("a", 1), ("a", 1), ("b", BATCH_ROWS), ("c", 1), ("b", 1), ("b", 1), ("d", 1), ("d", 2)]);
    }
}
