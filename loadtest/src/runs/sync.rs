//! Clients of the Sync API, by its public face and by the SDKs': updates, fan-out, idle connections and reads, each part against a server of its own.

mod crowd;
mod fanout;
mod read;
mod update;

use std::path::Path;

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde_json::Value;
use tokio::sync::mpsc::{Receiver, channel};

use crate::findings::Findings;
use crate::load::Prepared;

/// What is measured, and of how much.
#[derive(Args, Clone, Debug)]
pub(crate) struct Plan {
    /// One part alone.
    #[arg(long)]
    only: Option<Part>,
    /// Updates a second.
    #[arg(long, default_value_t = 1_000.0)]
    rate: f64,
    /// How long they come, and the changes of the object that many are subscribed to.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Objects that are updated, and that idle connections are subscribed to.
    #[arg(long, default_value_t = 1_000)]
    objects: usize,
    /// Subscribers of one object.
    #[arg(long, default_value_t = 2_000)]
    subscribers: usize,
    /// Its changes a second.
    #[arg(long, default_value_t = 20.0)]
    changes: f64,
    /// Idle connections.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// Turns of server and bare handler.
    #[arg(long, default_value_t = 6)]
    rounds: usize,
    /// Seconds of a turn.
    #[arg(long, default_value_t = 4)]
    turn: u64,
}

/// A part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Items updated by REST.
    Update,
    /// One object's changes to all its subscribers.
    Fanout,
    /// Connections that are told nothing.
    Crowd,
    /// CPU of reading an object.
    Read,
}

/// Measures all parts, or the one asked for. Reading comes last: it binds this process to a core.
pub(crate) async fn run(contrail: &Path, plan: &Plan) -> anyhow::Result<Findings> {
    let mut findings = Findings::new("sync: clients of the Sync API");
    for part in [Part::Update, Part::Fanout, Part::Crowd, Part::Read] {
        if plan.only.is_some_and(|only| only != part) {
            continue;
        }
        match part {
            Part::Update => update::measure(contrail, plan, &mut findings).await.context("update")?,
            Part::Fanout => fanout::measure(contrail, plan, &mut findings).await.context("fan-out")?,
            Part::Crowd => crowd::measure(contrail, plan, &mut findings).await.context("crowd")?,
            Part::Read => read::measure(contrail, plan, &mut findings).await.context("read")?,
        }
    }
    Ok(findings)
}

/// Requests as they are taken.
fn requests(each: impl Iterator<Item = Vec<u8>> + Send + 'static) -> Receiver<Prepared> {
    let (sender, receiver) = channel(64);
    std::thread::spawn(move || {
        for bytes in each {
            if sender.blocking_send(Prepared { bytes, events: 1 }).is_err() {
                break;
            }
        }
    });
    receiver
}

/// A text of an answer.
fn text(answer: &[u8], name: &str) -> anyhow::Result<String> {
    let told: Value = serde_json::from_slice(answer)?;
    Ok(told.get(name).and_then(Value::as_str).with_context(|| format!("no {name} in {told}"))?.to_owned())
}
