//! Ingest alone against the bare handler: both on core 0 and the load on core 1, in turns of a few seconds, CPU time of the server process over the
//! events it answered with 2xx. The log's writer thread is part of that process; where the log is on Kafka, librdkafka's threads are, and the bare handler
//! sends to the same brokers.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::control::Control;
use crate::findings::Findings;
use crate::journeys::Pool;
use crate::load::{flood, ms};
use crate::process::{Server, has_taskset, pin_self};

/// What is measured: against which floor, and what is asked of it.
struct Plan {
    brokers: Option<String>,
    connections: usize,
    /// Most of contrail's CPU over the floor's, one event per request.
    ratio: f64,
    /// Most microseconds of CPU an event, 100 per request.
    micros: f64,
}

/// What a round gave.
#[derive(Clone, Copy)]
struct Round {
    /// CPU microseconds an event.
    cpu: f64,
    /// Microseconds of a parse in the same seconds.
    control: f64,
    rate: f64,
    p99: f64,
}

/// Measures singles and batches of 100 on the embedded log.
pub(crate) async fn run(contrail: &Path, rounds: usize, seconds: u64) -> anyhow::Result<Findings> {
    measure(contrail, rounds, seconds, &Plan { brokers: None, connections: 64, ratio: 1.5, micros: 6.0 }).await
}

/// The same with the log on Kafka.
pub(crate) async fn kafka(contrail: &Path, brokers: String, rounds: usize, seconds: u64) -> anyhow::Result<Findings> {
    measure(contrail, rounds, seconds, &Plan { brokers: Some(brokers), connections: 256, ratio: 1.2, micros: 10.0 }).await
}

async fn measure(contrail: &Path, rounds: usize, seconds: u64, plan: &Plan) -> anyhow::Result<Findings> {
    let pool = Pool::new(7, 4_000)?;
    let log = if plan.brokers.is_some() { "to Kafka" } else { "alone" };
    let mut findings = Findings::new(format!("ingest {log}, {} connections, {rounds} rounds of {seconds} s in turns", plan.connections));
    findings.note("mean event", format!("{} bytes", pool.mean_bytes()));
    findings.note("server on core 0, load on core 1", if has_taskset() { "yes" } else { "no: taskset is missing" });
    pin_self(1)?;
    let control = Control::start(pool.bodies(40));
    for batch in [1, 100] {
        let (mut ours, mut floors, mut spread) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..rounds {
            let settings = plan.settings(&format!("{batch}-{number}"));
            let server = Server::start_with(contrail, &["--roles", "ingest"], &settings, Some(0)).await?;
            ours.push(round(&server, &pool, batch, seconds, plan, &control).await?);
            server.stop().await?;
            let floor = Server::floor(plan.brokers.as_deref(), false, Some(0))?;
            floors.push(round(&floor, &pool, batch, seconds, plan, &control).await?);
            drop(floor);
            if plan.brokers.is_some() && batch == 1 {
                let floor = Server::floor(plan.brokers.as_deref(), true, Some(0))?;
                spread.push(round(&floor, &pool, batch, seconds, plan, &control).await?);
            }
        }
        if !spread.is_empty() {
            let ratio = median(ours.iter().zip(&spread).map(|(a, b)| a.cpu / b.cpu).collect());
            let least = least(spread.iter().map(|round| round.cpu));
            findings.note("1 per request: contrail over a floor that sends to 16 partitions, too", format!("{ratio:.2} x ({least:.2} us/event)"));
        }
        tell(&mut findings, batch, plan, &ours, &floors);
    }
    Ok(findings)
}

impl Plan {
    /// Each round has topics of its own.
    fn settings(&self, round: &str) -> Vec<(&'static str, String)> {
        let Some(brokers) = &self.brokers else { return Vec::new() };
        vec![
            ("CONTRAIL_LOG", format!("kafka://{brokers}")),
            ("CONTRAIL_KAFKA_PREFIX", format!("load-{}-{round}", std::process::id())),
            ("CONTRAIL_KAFKA_REPLICATION", "1".into()),
            ("CONTRAIL_KAFKA_ALLOW_SINGLE_REPLICA", "true".into()),
        ]
    }
}

async fn round(server: &Server, pool: &Arc<Pool>, batch: usize, seconds: u64, plan: &Plan, control: &Control) -> anyhow::Result<Round> {
    flood(&server.address, pool, batch, plan.connections, Duration::from_millis(500)).await?;
    control.read();
    let before = server.usage()?.cpu;
    let (events, latency) = flood(&server.address, pool, batch, plan.connections, Duration::from_secs(seconds)).await?;
    let spent = server.usage()?.cpu - before;
    let cpu = spent.as_secs_f64() * 1e6 / events.max(1) as f64;
    Ok(Round { cpu, control: control.read(), rate: events as f64 / seconds as f64, p99: ms(&latency, 0.99) })
}

/// The middle one.
pub(super) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The smallest one.
pub(super) fn least(figures: impl Iterator<Item = f64>) -> f64 {
    figures.fold(f64::INFINITY, f64::min)
}

fn tell(findings: &mut Findings, batch: usize, plan: &Plan, ours: &[Round], floors: &[Round]) {
    // The fastest control of all rounds is this machine at its best: figures are told as they would be there.
    let fast = least(ours.iter().chain(floors).map(|round| round.control));
    for (name, rounds) in [("contrail", ours), ("floor", floors)] {
        let cpu = || rounds.iter().map(|round| round.cpu);
        let norm = median(rounds.iter().map(|round| round.cpu * fast / round.control).collect());
        let figure = format!("min {:.2}, median {:.2}, norm {norm:.2} us/event", least(cpu()), median(cpu().collect()));
        findings.note(format!("{name}, {batch} per request: CPU"), figure);
        let (rate, p99) = (median(rounds.iter().map(|round| round.rate).collect()), median(rounds.iter().map(|round| round.p99).collect()));
        findings.note(format!("{name}, {batch} per request: rate"), format!("{rate:.0} events/s, p99 {p99:.2} ms"));
    }
    // The rounds are in turns, so that plain figures compare. The control does not decide: it shares its core with the load, which one program keeps
    // busier than the other.
    let ratio = median(ours.iter().zip(floors).map(|(a, b)| a.cpu / b.cpu).collect());
    if batch == 1 {
        findings.at_most("1 per request: contrail over floor, median of the rounds' ratios", ratio, plan.ratio, "x");
    } else {
        findings.note(format!("{batch} per request: contrail over floor"), format!("{ratio:.2} x"));
        findings.at_most(
            format!("{batch} per request: CPU, least of the rounds"),
            least(ours.iter().map(|round| round.cpu)),
            plan.micros,
            "us/event",
        );
    }
}
