//! The tables of a keyspace: made and changed by `contrail migrate`, checked by whoever connects. Must never take anything away.
//!
//! Safe with several at once: one of them holds a lock (a light-weight transaction), the others wait for it. The table of
//! the lock itself is made without one, so on an empty Cassandra cluster of several nodes start one migration first.

use std::time::Duration;

use scylla::statement::unprepared::Statement;
use scylla::statement::{Consistency, SerialConsistency};

use super::error::Class;
use super::settings::check_replication;
use super::{Address, Attempt, Cluster, Error, Settings};

/// Version of `schemas/*.cql`. Version 1 had no objects, version 2 no SIDs.
const VERSION: i32 = 3;

/// The tables: every keyspace has all, whatever is kept there.
const SCHEMA: [&str; 2] = [include_str!("../../schemas/archive.cql"), include_str!("../../schemas/objects.cql")];

/// Versions by part of the keyspace; the part `lock` is the lock.
const VERSIONS: &str = "CREATE TABLE IF NOT EXISTS schema_version (part text PRIMARY KEY, version int, retention_days int)";

/// How long a migration that died holds the others up, in seconds. Longer than one statement may take: the lock is renewed before each.
const LOCK: i32 = 240;
const _: () = assert!(LOCK as u64 > CHANGE.as_secs() + AGREEMENT.as_secs());

/// What insert-only rows live longer than the retention, in days: a day's rows go together, and one of them may have come so much later than the
/// others.
const SLACK_DAYS: u64 = 31;
/// What their lists live longer still.
const MARKER_DAYS: u64 = 2;

/// What a table takes, 20 years, less what its lists live longer.
const MOST_DAYS: u64 = 7_290;

const DAY: u64 = 86_400;

/// Makes the keyspace and its tables, or changes them to what this build and these settings need. Does nothing where they are so. Gives what was
/// done, in words.
///
/// # Errors
/// [`Error::Schema`] for tables of a later version; [`Error::Settings`], [`Error::Unavailable`], [`Error::Refused`].
pub async fn migrate(address: &Address, settings: &Settings) -> Result<String, Error> {
    let keyspace = &address.keyspace;
    let done_already = async |cluster: &Cluster| cluster.as_it_must_be(keyspace, settings).await;
    migrate_by(address, settings, done_already, async |cluster, owner| cluster.bring_up(keyspace, settings, owner).await).await
}

/// A migration of a keyspace: `done_already` says, in words, that nothing is to be done, where that is so; else `bring_up` does it, for the owner of the lock.
pub(super) async fn migrate_by(
    address: &Address,
    settings: &Settings,
    done_already: impl AsyncFn(&Cluster) -> Result<Option<String>, Error>,
    bring_up: impl AsyncFn(&Cluster, i32) -> Result<String, Error>,
) -> Result<String, Error> {
    check_replication(&settings.replication)?;
    let (cluster, keyspace) = (Cluster::reach(address, settings).await?, &address.keyspace);
    // Where nothing is to be done, nothing is waited for.
    if cluster.has_versions(keyspace).await?
        && let Some(done) = done_already(&cluster).await?
    {
        return Ok(done);
    }
    let owner = cluster.begin_migration(keyspace, settings).await?;
    let migrated = match done_already(&cluster).await {
        Ok(None) => bring_up(&cluster, owner).await,
        Ok(Some(done)) => Ok(done),
        Err(error) => Err(error),
    };
    let ended = cluster.end_migration(owner).await;
    let done = migrated?;
    ended?;
    Ok(done)
}

impl Cluster {
    /// Makes the keyspace where it is missing, and takes its lock. Gives whose it is.
    async fn begin_migration(&self, keyspace: &str, settings: &Settings) -> Result<i32, Error> {
        self.make_keyspace(keyspace, &settings.replication).await?;
        self.use_keyspace(keyspace).await?;
        self.change(VERSIONS).await?;
        self.lock().await
    }

    /// Makes the keyspace where it is missing. On ScyllaDB without tablets, which before 2025.4 have no light-weight transactions.
    async fn make_keyspace(&self, keyspace: &str, replication: &str) -> Result<(), Error> {
        let create = format!("CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {replication}");
        if self.is_scylladb {
            match self.change(&format!("{create} AND tablets = {{'enabled': false}}")).await {
                // A version that knows of none.
                Err(Error::Refused(_)) => {}
                made => return made,
            }
        }
        self.change(&create).await
    }

    /// Gives the lock back, unless it is another's by now.
    async fn end_migration(&self, owner: i32) -> Result<(), Error> {
        self.transact(&format!("DELETE FROM schema_version WHERE part = 'lock' IF version = {owner}")).await.map(drop)
    }

    /// Whether the keyspace is as this build and these settings need it.
    pub(super) async fn check_schema(&self, keyspace: &str, settings: &Settings) -> Result<(), Error> {
        let missing = || Error::Schema(format!("the keyspace {keyspace} has no tables yet: run `contrail migrate` first"));
        let known = if self.has_versions(keyspace).await? { self.version().await? } else { None };
        let (version, days) = known.ok_or_else(missing)?;
        later(keyspace, version)?;
        if version < VERSION || days != retention_days(settings) {
            return Err(Error::Schema(format!(
                "the tables of keyspace {keyspace} are of version {version} for a retention of {days} days, this build and its settings need version \
                 {VERSION} for {}: run `contrail migrate` first",
                retention_days(settings)
            )));
        }
        Ok(())
    }

    /// Whether the keyspace exists and has a table of versions. Where it does, it becomes the one that statements are about.
    pub(super) async fn has_versions(&self, keyspace: &str) -> Result<bool, Error> {
        let tables: Vec<(String,)> =
            self.rows("SELECT table_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = 'schema_version'", (keyspace,)).await?;
        if tables.is_empty() {
            return Ok(false);
        }
        self.use_keyspace(keyspace).await?;
        Ok(true)
    }

    /// Version and retention in days of the tables.
    async fn version(&self) -> Result<Option<(i32, i32)>, Error> {
        Ok(self.rows("SELECT version, retention_days FROM schema_version WHERE part = 'archive'", ()).await?.pop())
    }

    /// Says that the tables are as this build and these settings need them, where they are.
    async fn as_it_must_be(&self, keyspace: &str, settings: &Settings) -> Result<Option<String>, Error> {
        let Some((version, days)) = self.version().await? else { return Ok(None) };
        later(keyspace, version)?;
        let done_already = (version, days) == (VERSION, retention_days(settings));
        Ok(done_already.then(|| format!("the tables of keyspace {keyspace} are of version {VERSION} already")))
    }

    /// Applies what is missing. The lock is held.
    async fn bring_up(&self, keyspace: &str, settings: &Settings, owner: i32) -> Result<String, Error> {
        let (known, days) = (self.version().await?, retention_days(settings));
        let statements = statements(settings);
        for statement in &statements {
            self.change_as(owner, statement).await?;
        }
        if known.is_some_and(|(_, known_days)| known_days != days) {
            for statement in statements.iter().filter_map(|statement| altered(statement)) {
                self.change_as(owner, &statement).await?;
            }
        }
        let put = format!("INSERT INTO schema_version (part, version, retention_days) VALUES ('archive', {VERSION}, {days})");
        self.change_as(owner, &put).await?;
        Ok(format!("the tables of keyspace {keyspace} are of version {VERSION} now"))
    }

    /// Waits for the lock; what a dead one held comes free by itself. Gives whose it is.
    async fn lock(&self) -> Result<i32, Error> {
        let owner: i32 = rand::random();
        let lock = format!("INSERT INTO schema_version (part, version) VALUES ('lock', {owner}) IF NOT EXISTS USING TTL {LOCK}");
        for _ in 0..2 * LOCK {
            // An attempt whose end was not heard is made again, and then finds its own.
            if self.transact(&lock).await? || self.locked_by().await? == Some(owner) {
                return Ok(owner);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Err(Error::Unavailable("another migration does not come to an end".into()))
    }

    async fn locked_by(&self) -> Result<Option<i32>, Error> {
        let found: Vec<(Option<i32>,)> = self.rows_settled("SELECT version FROM schema_version WHERE part = 'lock'", ()).await?;
        Ok(found.into_iter().next().and_then(|(owner,)| owner))
    }

    /// A light-weight transaction; whether it was applied.
    pub(super) async fn transact(&self, cql: &str) -> Result<bool, Error> {
        let mut statement = Statement::new(cql);
        // Among all replicas: somebody may ask another datacenter's at the same time.
        statement.set_serial_consistency(Some(SerialConsistency::Serial));
        statement.set_request_timeout(Some(CHANGE));
        let attempt = || -> Attempt<'_, _> { Box::pin(self.session.query_unpaged(statement.clone(), ())) };
        let answer = self
            .try_until(Class::Lasting, CHANGE, cql, attempt)
            .await?
            .into_rows_result()
            .map_err(|error| Error::Form(format!("{error} ({cql})")))?;
        let applied = answer.column_specs().get_by_name("[applied]").map(|(at, _)| at);
        let row = answer.first_row::<scylla::value::Row>().map_err(|error| Error::Form(format!("{error} ({cql})")))?;
        Ok(applied.and_then(|at| row.columns.get(at)?.as_ref()?.as_boolean()).unwrap_or_default())
    }

    /// A statement that changes the schema, or its version; all nodes that can be reached agree on it when this returns.
    pub(super) async fn change(&self, cql: &str) -> Result<(), Error> {
        let mut statement = Statement::new(cql);
        statement.set_request_timeout(Some(CHANGE));
        statement.set_consistency(Consistency::Quorum);
        let attempt = || -> Attempt<'_, _> {
            Box::pin(async {
                self.session.query_unpaged(statement.clone(), ()).await?;
                // Asked of every attempt: one that is made again finds its change done, and would not be waited for.
                Ok(self.session.await_schema_agreement().await?)
            })
        };
        self.try_until(Class::Lasting, CHANGE + AGREEMENT, cql, attempt).await.map(drop)
    }

    /// The same, by the migration that has the lock, for as long as it takes.
    pub(super) async fn change_as(&self, owner: i32, cql: &str) -> Result<(), Error> {
        let renew = format!("UPDATE schema_version USING TTL {LOCK} SET version = {owner} WHERE part = 'lock' IF version = {owner}");
        if !self.transact(&renew).await? {
            return Err(Error::Unavailable("this migration took too long, and another one may be under way".into()));
        }
        self.change(cql).await
    }

    async fn use_keyspace(&self, keyspace: &str) -> Result<(), Error> {
        let attempt = || -> Attempt<'_, _> { Box::pin(async { Ok(self.session.use_keyspace(keyspace, false).await?) }) };
        self.try_until(Class::Lasting, CHANGE, "USE", attempt).await
    }
}

/// Time for one change of the schema where it is asked for.
const CHANGE: Duration = Duration::from_secs(60);
/// Time for the other nodes to know of it. One of Cassandra's that missed being told asks only a minute later (`cassandra.migration_delay_ms`).
pub(super) const AGREEMENT: Duration = Duration::from_secs(150);

fn later(keyspace: &str, version: i32) -> Result<(), Error> {
    if version > VERSION {
        return Err(Error::Schema(format!(
            "the tables of keyspace {keyspace} are of version {version}, this build knows {VERSION}: use a later build"
        )));
    }
    Ok(())
}

/// Whole days of the retention, rounded up.
fn retention_days(settings: &Settings) -> i32 {
    i32::try_from(settings.retention.as_secs().div_ceil(DAY)).unwrap_or(i32::MAX)
}

/// Days of one compaction window of a table whose rows live so many days: at most 40 windows are alive, as ScyllaDB allows 50.
const fn window_days(ttl_days: u64) -> u64 {
    let days = ttl_days.div_ceil(40);
    if days == 0 { 1 } else { days }
}

/// The schema's statements with this retention's numbers in them.
fn statements(settings: &Settings) -> Vec<String> {
    let days = (u64::from(retention_days(settings).unsigned_abs()) + SLACK_DAYS).min(MOST_DAYS);
    let numbers = [("$TTL", days * DAY), ("$MARKERS", (days + MARKER_DAYS) * DAY), ("$WINDOW", window_days(days + MARKER_DAYS))]
        .map(|(name, n)| (name, n.to_string()));
    SCHEMA
        .iter()
        .flat_map(|text| statements_of(&numbers.iter().fold((*text).to_owned(), |text, (name, number)| text.replace(name, number))))
        .collect()
}

/// The statements of a schema's file.
pub(super) fn statements_of(schema: &str) -> Vec<String> {
    let lines: Vec<&str> = schema.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
    lines.join("\n").split(';').map(str::trim).filter(|statement| !statement.is_empty()).map(str::to_owned).collect()
}

/// The change of a table that exists to the times it is to be made with; None for tables without.
fn altered(create: &str) -> Option<String> {
    let (head, options) = create.split_once(") WITH default_time_to_live")?;
    let table = head.strip_prefix("CREATE TABLE IF NOT EXISTS ")?.split_whitespace().next()?;
    Some(format!("ALTER TABLE {table} WITH default_time_to_live{options}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_a_fortieth_and_never_less() {
        assert_eq!([0, 1, 40, 41, 90, 400, 431].map(window_days), [1, 1, 1, 2, 3, 10, 11]);
        for days in 1..4_000u64 {
            assert!(days.div_ceil(window_days(days)) <= 40, "{days}");
        }
    }

    #[test]
    fn the_schema_becomes_statements() {
        let statements = statements(&Settings { retention: Duration::from_secs(90 * DAY - 5), ..Settings::default() });
        assert!(
            statements.iter().all(|statement| statement.starts_with("CREATE TABLE IF NOT EXISTS ") && !statement.contains(['$', ';'])),
            "{statements:#?}"
        );
        let altered: Vec<String> = statements.iter().filter_map(|statement| altered(statement)).collect();
        assert_eq!(altered.len(), 6);
        let days = 121;
        let compaction = "compaction = {'class': 'TimeWindowCompactionStrategy', 'compaction_window_unit': 'DAYS', 'compaction_window_size': '4'}";
        assert_eq!(altered[0], format!("ALTER TABLE event WITH default_time_to_live = {}\n  AND {compaction}", days * DAY));
        // What the facts say of both servers.
        let all = statements.join("\n").to_lowercase();
        assert!(["counter", "materialized", "index", "null"].iter().all(|word| !all.contains(word)));
    }
}
