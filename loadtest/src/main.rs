//! `loadtest`: measures Contrail against its targets. Every run starts its own server on loopback with a fresh directory, prints a table, and ends with
//! a nonzero exit status where a target is missed or the books do not balance.

mod account;
mod baseline;
mod books;
mod control;
mod findings;
mod floor;
mod http;
mod journeys;
mod load;
mod probe;
mod process;
mod runs;
mod twilsock;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use runs::{cluster, hot, idle, ingest, latency, saturate, smoke, sustain, sync};

#[derive(Parser)]
#[command(name = "loadtest", about = "Open-loop load for contrail, with an audit at the end")]
struct Arguments {
    #[command(subcommand)]
    run: Run,
}

#[derive(Args, Clone)]
struct Server {
    /// The contrail binary under test.
    #[arg(long, default_value = "target/release/contrail")]
    contrail: PathBuf,
}

#[derive(Subcommand)]
enum Run {
    /// A minute of everything, ending in the books.
    Smoke {
        #[command(flatten)]
        server: Server,
        /// How long the whole run may take, about.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// CPU of ingest alone against the bare handler.
    Ingest {
        #[command(flatten)]
        server: Server,
        /// Turns of either program.
        #[arg(long, default_value_t = 6)]
        rounds: usize,
        /// Seconds of a turn.
        #[arg(long, default_value_t = 4)]
        seconds: u64,
    },
    /// CPU of ingest with its log on Kafka against the bare handler that sends there too.
    Kafka {
        #[command(flatten)]
        server: Server,
        /// The brokers: host:port,host:port.
        #[arg(long)]
        brokers: String,
        /// Turns of either program.
        #[arg(long, default_value_t = 6)]
        rounds: usize,
        /// Seconds of a turn.
        #[arg(long, default_value_t = 4)]
        seconds: u64,
    },
    /// A backlog and a steady rate with everything on Kafka and Cassandra or ScyllaDB.
    Cluster {
        #[command(flatten)]
        server: Server,
        /// The brokers: host:port,host:port.
        #[arg(long)]
        brokers: String,
        /// The nodes: host:port,host:port.
        #[arg(long)]
        nodes: String,
        /// Events of the backlog; an hour's outage at 300 events/s leaves 1,080,000.
        #[arg(long, default_value_t = 100_000)]
        events: u64,
        /// Events a second of the steady part.
        #[arg(long, default_value_t = 500.0)]
        rate: f64,
        /// How long that lasts.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// CPU of all roles, by stage.
    Saturate {
        #[command(flatten)]
        server: Server,
        /// Events of the day sent.
        #[arg(long, default_value_t = 300_000)]
        events: u64,
    },
    /// A steady rate for minutes.
    Sustain {
        #[command(flatten)]
        server: Server,
        /// Events a second.
        #[arg(long, default_value_t = 8_000.0)]
        rate: f64,
        /// How long.
        #[arg(long, default_value_t = 600)]
        seconds: u64,
    },
    /// From an event to its subscriber and its report.
    Latency {
        #[command(flatten)]
        server: Server,
        /// Events a second beside the probes.
        #[arg(long, default_value_t = 2_000.0)]
        rate: f64,
        /// How long.
        #[arg(long, default_value_t = 30)]
        seconds: u64,
    },
    /// Two objects far beyond their budget.
    Hot {
        #[command(flatten)]
        server: Server,
        /// Changes a second on each.
        #[arg(long, default_value_t = 5_000)]
        rate: u64,
        /// How long.
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
    /// Clients of the Sync API: items updated, many subscribers of one object, many idle connections, objects read.
    Sync {
        #[command(flatten)]
        server: Server,
        #[command(flatten)]
        plan: sync::Plan,
    },
    /// Memory at rest.
    Idle {
        #[command(flatten)]
        server: Server,
    },
    /// Every run, written as a baseline.
    All {
        #[command(flatten)]
        server: Server,
        /// Where to.
        #[arg(long, default_value = "loadtest/BASELINE.md")]
        out: PathBuf,
        /// Length of the sustained run.
        #[arg(long, default_value_t = 600)]
        sustain_seconds: u64,
        /// What else ran on the machine, for the file.
        #[arg(long, default_value = "nothing")]
        beside: String,
    },
    /// The bare handler that ingest is measured against; prints its address.
    Floor {
        /// Sends each request to these brokers, too.
        #[arg(long)]
        brokers: Option<String>,
        /// Sends to all partitions in turn, as what belongs to many customers must, and not to one after the other.
        #[arg(long)]
        spread: bool,
        /// Answers everything with what stands in this file instead.
        #[arg(long)]
        body: Option<PathBuf>,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Run::Floor { brokers, spread, body } = &arguments.run {
        floor::run(brokers.as_deref(), *spread, body.as_deref())?;
        return Ok(ExitCode::SUCCESS);
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(arguments.run))
}

async fn run(run: Run) -> anyhow::Result<ExitCode> {
    let found = match run {
        Run::Smoke { server, seconds } => smoke::run(&server.contrail, seconds).await?,
        Run::Ingest { server, rounds, seconds } => ingest::run(&server.contrail, rounds, seconds).await?,
        Run::Kafka { server, brokers, rounds, seconds } => ingest::kafka(&server.contrail, brokers, rounds, seconds).await?,
        Run::Cluster { server, brokers, nodes, events, rate, seconds } => {
            cluster::run(&server.contrail, &cluster::Plan { brokers, nodes, events, rate, seconds }).await?
        }
        Run::Saturate { server, events } => saturate::run(&server.contrail, events).await?,
        Run::Sustain { server, rate, seconds } => sustain::run(&server.contrail, rate, seconds).await?,
        Run::Latency { server, rate, seconds } => latency::run(&server.contrail, rate, seconds).await?,
        Run::Hot { server, rate, seconds } => hot::run(&server.contrail, rate, seconds).await?,
        Run::Sync { server, plan } => sync::run(&server.contrail, &plan).await?,
        Run::Idle { server } => idle::run(&server.contrail).await?,
        Run::All { server, out, sustain_seconds, beside } => return baseline::run(&server.contrail, &out, sustain_seconds, &beside).await,
        Run::Floor { .. } => return Ok(ExitCode::SUCCESS),
    };
    println!("{}", found.markdown());
    Ok(verdict(found.hold()))
}

fn verdict(holds: bool) -> ExitCode {
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
