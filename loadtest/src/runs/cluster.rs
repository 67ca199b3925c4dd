//! On Kafka and Cassandra or ScyllaDB: how fast a backlog is archived, against the bare driver writing the same rows to the same server; how fast objects
//! catch up; and latencies of all roles at a steady rate. What is measured has topics and keyspaces of its own, which stay.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::TryStreamExt;
use futures::future::try_join_all;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::statement::prepared::PreparedStatement;
use scylla::value::{CqlValue, MaybeUnset, Row};

use super::latency;
use crate::books;
use crate::findings::Findings;
use crate::journeys::Day;
use crate::load::{Pace, send};
use crate::process::{INGEST_KEY, READ_TOKEN, Server};

/// Events of one request.
const BATCH: usize = 100;

/// Writes of the bare driver under way at once: as many as contrail's own at their most.
const AT_ONCE: usize = 256;

/// A longer backlog is not compared with the bare driver: its rows are held in memory for that. In a shorter one caches are still filling.
const COMPARED: u64 = 100_000;

/// The archive's tables.
const TABLES: [&str; 15] = [
    "event",
    "event_body",
    "event_by_id",
    "lookup",
    "lookup_at",
    "quarantine",
    "listed_day",
    "listed",
    "cell",
    "orders",
    "checkout",
    "counts_at",
    "label",
    "link",
    "identity",
];

/// The servers, and how much.
pub(crate) struct Plan {
    /// host:port,...
    pub brokers: String,
    /// host:port,...
    pub nodes: String,
    /// Events of the backlog.
    pub events: u64,
    /// Events a second of the steady part, and how long.
    pub rate: f64,
    pub seconds: u64,
}

/// Events of the backlog, and seconds at the steady rate, that warm the servers up: their compilers come to it only after thousands of the same requests.
const WARM: (u64, u64) = (20_000, 30);

/// A new process's first seconds under load, told by themselves: it joins its groups, and its topics and tables are new to the servers.
const SETTLE: Duration = Duration::from_secs(10);

/// All three, first for the servers alone.
pub(crate) async fn run(contrail: &Path, plan: &Plan) -> anyhow::Result<Findings> {
    let mut ignored = Findings::new(String::new());
    backlog(contrail, plan, ("warm_backlog", WARM.0), &mut ignored).await?;
    steady(contrail, plan, ("warm_steady", WARM.1), &mut ignored).await?;
    let mut findings =
        Findings::new(format!("on Kafka and CQL: a backlog of {} events, then {:.0} events/s for {} s", plan.events, plan.rate, plan.seconds));
    backlog(contrail, plan, ("backlog", plan.events), &mut findings).await?;
    steady(contrail, plan, ("steady", plan.seconds), &mut findings).await?;
    Ok(findings)
}

/// Latencies of all roles in one process.
async fn steady(contrail: &Path, plan: &Plan, (name, seconds): (&str, u64), findings: &mut Findings) -> anyhow::Result<()> {
    let settings = plan.settings(name);
    migrate(contrail, &settings)?;
    let limits = latency::Limits { subscriber_ms: 250.0, report_ms: f64::INFINITY, settle: SETTLE };
    latency::measure(contrail, &settings, (plan.rate, seconds), &limits, findings).await
}

impl Plan {
    fn keyspace(name: &str) -> String {
        format!("load_{}_{name}", std::process::id())
    }

    fn settings(&self, name: &str) -> Vec<(&'static str, String)> {
        let url = format!("scylla://{}/{}", self.nodes, Self::keyspace(name));
        vec![
            ("CONTRAIL_LOG", format!("kafka://{}", self.brokers)),
            ("CONTRAIL_STORE", url.clone()),
            ("CONTRAIL_ARCHIVE", url),
            ("CONTRAIL_KAFKA_PREFIX", format!("load-{}-{name}", std::process::id())),
            ("CONTRAIL_KAFKA_REPLICATION", "1".into()),
            ("CONTRAIL_KAFKA_ALLOW_SINGLE_REPLICA", "true".into()),
            ("CONTRAIL_SCYLLA_REPLICATION", "{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}".into()),
        ]
    }
}

fn migrate(contrail: &Path, settings: &[(&'static str, String)]) -> anyhow::Result<()> {
    let mut command = Command::new(contrail);
    command.arg("migrate").envs(settings.iter().map(|(name, value)| (name, value))).stdout(Stdio::null());
    command.env("CONTRAIL_BOOTSTRAP_INGEST_KEY", INGEST_KEY).env("CONTRAIL_BOOTSTRAP_READ_TOKEN", READ_TOKEN);
    ensure!(command.status().context("running contrail migrate")?.success(), "contrail migrate failed");
    Ok(())
}

/// What waits in the log is archived by one process, then its objects are kept by another.
async fn backlog(contrail: &Path, plan: &Plan, (name, events): (&str, u64), findings: &mut Findings) -> anyhow::Result<()> {
    let settings = plan.settings(name);
    migrate(contrail, &settings)?;
    let server = Server::start_with(contrail, &["--roles", "ingest"], &settings, None).await?;
    let (day, requests) = Day::begin(9, events, BATCH);
    let began = Instant::now();
    send(&server.address, requests, 8, Pace::Closed).await?;
    day.tally()?;
    findings.note("backlog taken", format!("{:.0} events/s", events as f64 / began.elapsed().as_secs_f64()));
    server.stop().await?;

    let archived = catch_up(contrail, &settings, "archive", events, findings).await?;
    if events <= COMPARED {
        let session = SessionBuilder::new().known_nodes(plan.nodes.split(',')).build().await?;
        let (rows, bare) = bare(contrail, plan, name, &session).await?;
        let ours = rows as f64 / archived.as_secs_f64();
        findings.note("rows of the archive", format!("{rows}: {ours:.0} rows/s by the archiver"));
        findings.note("the same rows by the bare driver", format!("{:.0} rows/s", rows as f64 / bare.as_secs_f64()));
        findings.at_least("archiver over bare driver, rows a second", ours / (rows as f64 / bare.as_secs_f64()), 0.8, "x");
    }
    catch_up(contrail, &settings, "sync", events, findings).await?;
    Ok(())
}

/// Runs one role until it has passed what is in the log; gives how long it took, joining its group included.
async fn catch_up(
    contrail: &Path,
    settings: &[(&'static str, String)],
    role: &str,
    events: u64,
    findings: &mut Findings,
) -> anyhow::Result<Duration> {
    let readers = if role == "sync" { &["router", "keeper"][..] } else { &["archiver"][..] };
    let server = Server::start_with(contrail, &["--roles", role], settings, None).await?;
    // From when it is ready: a whole backlog may be one batch, of which nothing shows before its end.
    let (began, before) = (Instant::now(), server.usage()?.cpu);
    let all = books::behind(&server, readers).await?;
    let (mut most, mut at_half) = (0, 0);
    loop {
        let left = books::behind(&server, readers).await?;
        let resident = server.usage()?.resident;
        most = most.max(resident);
        if left > all / 2 {
            at_half = most;
        }
        if left == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let took = began.elapsed();
    let cpu = (server.usage()?.cpu - before).as_secs_f64() * 1e6 / events as f64;
    findings.note(format!("`{role}` catching up"), format!("{:.0} events/s, {cpu:.0} us/event of its own CPU", events as f64 / took.as_secs_f64()));
    findings.note(
        format!("`{role}` catching up: resident memory"),
        format!("at most {:.0} MB in the first half, {:.0} MB in all", at_half as f64 / 1e6, most as f64 / 1e6),
    );
    if events > COMPARED {
        findings.at_most(format!("`{role}` catching up: memory in all over that of the first half"), most as f64 / at_half.max(1) as f64, 1.2, "x");
    }
    server.stop().await?;
    Ok(took)
}

/// The rows that stand in the archive's tables, written to fresh ones by prepared statements and nothing else. Gives how many and how long.
async fn bare(contrail: &Path, plan: &Plan, name: &str, session: &Session) -> anyhow::Result<(usize, Duration)> {
    let bare = format!("{name}_bare");
    migrate(contrail, &plan.settings(&bare))?;
    let mut writes = Vec::new();
    for table in TABLES {
        let (from, to) = (Plan::keyspace(name), Plan::keyspace(&bare));
        let found = session.query_iter(format!("SELECT * FROM {from}.{table}"), ()).await?;
        let names: Vec<String> = found.column_specs().iter().map(|column| column.name().to_owned()).collect();
        let insert = format!("INSERT INTO {to}.{table} ({}) VALUES ({})", names.join(", "), vec!["?"; names.len()].join(", "));
        let insert = Arc::new(session.prepare(insert).await?);
        let mut rows = found.rows_stream::<Row>()?;
        while let Some(row) = rows.try_next().await? {
            let values = row.columns.into_iter().map(|value| value.map_or(MaybeUnset::Unset, MaybeUnset::Set)).collect();
            writes.push((Arc::clone(&insert), values));
        }
    }
    let rows = writes.len();
    let began = Instant::now();
    write_all(session, writes).await?;
    Ok((rows, began.elapsed()))
}

type Insert = (Arc<PreparedStatement>, Vec<MaybeUnset<CqlValue>>);

async fn write_all(session: &Session, writes: Vec<Insert>) -> anyhow::Result<()> {
    let left = Arc::new(Mutex::new(writes.into_iter()));
    let writer = || async {
        loop {
            let next = left.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((insert, values)) = next else { return anyhow::Ok(()) };
            session.execute_unpaged(&insert, values).await?;
        }
    };
    try_join_all((0..AT_ONCE).map(|_| writer())).await.map(drop)
}
