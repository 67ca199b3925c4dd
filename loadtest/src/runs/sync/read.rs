//! CPU of reading an object by REST, against a bare handler that returns the same body: both on core 0 and the load on core 1, in turns of a few seconds.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;

use super::Plan;
use crate::account::Account;
use crate::findings::Findings;
use crate::http::{self, Connection};
use crate::load::{hammer, ms};
use crate::process::{Server, has_taskset, pin_self};
use crate::runs::ingest::{least, median};

const CONNECTIONS: usize = 64;

/// What a round gave.
struct Round {
    /// CPU microseconds a request.
    cpu: f64,
    rate: f64,
    p99: f64,
}

/// Reads one document, in turns with the floor.
pub(super) async fn measure(contrail: &Path, plan: &Plan, findings: &mut Findings) -> anyhow::Result<()> {
    pin_self(1)?;
    let dir = tempfile::tempdir()?;
    let (mut ours, mut floors) = (Vec::new(), Vec::new());
    let mut bytes = 0;
    for _ in 0..plan.rounds {
        let server = Server::start(contrail, &[], Some(0)).await?;
        let Account { basic, .. } = Account::of(contrail, &server)?;
        let data = r#"{"status":"waiting","agent":"agent-17","queue":["sales","support"],"since":"2026-11-20T09:00:00Z"}"#;
        let mut connection = Connection::open(&server.address).await?;
        let made = connection.call(&http::sync("POST", "/Documents", &basic, &[("UniqueName", "board"), ("Data", data)])).await?;
        ensure!(made.status == 201, "the object was refused: {}", made.status);
        let request = http::sync("GET", "/Documents/board", &basic, &[]);
        let answer = connection.call(&request).await?;
        ensure!(answer.status == 200, "a read was refused: {}", answer.status);
        let body = dir.path().join("body.json");
        std::fs::write(&body, &answer.body)?;
        bytes = answer.body.len();
        ours.push(round(&server, &request, plan.turn).await?);
        server.stop().await?;
        let floor = Server::floor_of(&body, Some(0))?;
        floors.push(round(&floor, &request, plan.turn).await?);
    }
    let cores = if has_taskset() { "server on core 0, load on core 1" } else { "not bound to cores: taskset is missing" };
    findings.note(format!("read: {bytes} bytes, {} rounds of {} s in turns", plan.rounds, plan.turn), cores);
    for (name, rounds) in [("contrail", &ours), ("floor", &floors)] {
        let middle = |of: fn(&Round) -> f64| median(rounds.iter().map(of).collect());
        findings.note(
            format!("read: {name}"),
            format!(
                "min {:.2}, median {:.2} us of CPU each; {:.0}/s, p99 {:.2} ms",
                least(rounds.iter().map(|round| round.cpu)),
                middle(|round| round.cpu),
                middle(|round| round.rate),
                middle(|round| round.p99)
            ),
        );
    }
    let ratio = median(ours.iter().zip(&floors).map(|(ours, floor)| ours.cpu / floor.cpu).collect());
    findings.at_most("read: contrail over floor, median of the rounds' ratios", ratio, 2.0, "x");
    Ok(())
}

async fn round(server: &Server, request: &[u8], seconds: u64) -> anyhow::Result<Round> {
    let next = || {
        let request = request.to_vec();
        move || request.clone()
    };
    hammer(&server.address, CONNECTIONS, Duration::from_millis(500), next()).await?;
    let before = server.usage()?.cpu;
    let (requests, latency) = hammer(&server.address, CONNECTIONS, Duration::from_secs(seconds), next()).await?;
    let spent = server.usage()?.cpu - before;
    Ok(Round { cpu: spent.as_secs_f64() * 1e6 / requests.max(1) as f64, rate: requests as f64 / seconds as f64, p99: ms(&latency, 0.99) })
}
