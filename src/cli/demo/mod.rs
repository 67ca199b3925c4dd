//! `contrail demo`: serves on loopback with a fresh data directory, sends it a simulated shop day through its own front door, prints the answers and
//! checks them against the simulator's own tally.

pub mod check;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};

use super::client::{Alone, Client};
use super::{format, query, serve};
use crate::app;
use crate::archive::report::{Answer, ReportName};
use crate::config::Config;
use crate::event::Timestamp;
use crate::shutdown::Signals;
use crate::simulate::{Settings, Simulation};

/// Events of one request.
const BATCH: usize = 500;

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// How many events the day has.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    events: u64,
    /// Which day: the same seed gives the same customers doing the same things.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// End after the answers instead of serving on.
    #[arg(long)]
    exit: bool,
}

/// Runs the day. The exit status is 1 where an answer differs from the simulator's tally.
pub(super) async fn run(config: Config, arguments: Arguments) -> anyhow::Result<ExitCode> {
    let (config, temporary) = fresh(config)?;
    let data = config.data.clone();
    let mut running = app::start(config.clone(), app::Options::default()).await?;
    println!("This is a simulation: a made-up shop with made-up customers, seed {}, {} events in 24 hours.\n", arguments.seed, arguments.events);
    serve::greet(&running);
    let client = Client::connect(&config, None, Alone::Readers).await?;
    // The whole day lies in the past, so that nothing in it is from the future.
    let start = app_now().plus_seconds(-25 * 3600).floor_to_seconds(3600);
    let mut day = Simulation::new(Settings { seed: arguments.seed, events: arguments.events, start });
    let began = Instant::now();
    send(&client, &mut day, arguments.events).await?;
    client.settle().await?;
    println!("\n{} events sent, routed, kept and archived in {:.1} s.\n", arguments.events, began.elapsed().as_secs_f64());
    let end = Settings { seed: arguments.seed, events: arguments.events, start }.end();
    let differences = answers(&client, &day, start, end).await?;
    for difference in &differences {
        println!("DIFFERS  {difference}");
    }
    if differences.is_empty() {
        println!("Every row of every report equals the simulator's own tally.");
    }
    if !arguments.exit {
        println!("\nStill serving on {} (data in {}). Ctrl-C ends it.", running.public_url(), data.display());
        let mut signals = Signals::take()?;
        tokio::select! {
            _ = signals.next() => {}
            failed = running.failed() => bail!("stopped because a part failed: {failed}"),
        }
    }
    running.stop().await?;
    if temporary {
        std::fs::remove_dir_all(&data).with_context(|| format!("removing {}", data.display()))?;
    }
    Ok(if differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The same settings on a directory where nothing is yet: the one given if it is empty, else one of its own that goes with the demo.
fn fresh(config: Config) -> anyhow::Result<(Config, bool)> {
    let default = PathBuf::from("./contrail-data");
    if config.data != default {
        let used = config.data.read_dir().is_ok_and(|mut entries| entries.next().is_some());
        if used {
            bail!("{} is not empty; the demo wants a fresh directory", config.data.display());
        }
        return Ok((config, false));
    }
    let data = std::env::temp_dir().join(format!("contrail-demo-{}", std::process::id()));
    Ok((Config { data, ..config }, true))
}

fn app_now() -> Timestamp {
    crate::event::Clock::system().now()
}

async fn send(client: &Client, day: &mut Simulation, events: u64) -> anyhow::Result<()> {
    let bar = ProgressBar::new(events);
    bar.set_style(ProgressStyle::with_template("{bar:40} {human_pos} of {human_len} events, simulated time {msg}, {eta} left")?);
    bar.enable_steady_tick(Duration::from_millis(200));
    loop {
        let mut body = Vec::with_capacity(BATCH * 600);
        let (mut count, mut at) = (0u64, None);
        for event in day.by_ref().take(BATCH) {
            serde_json::to_writer(&mut body, &event)?;
            body.push(b'\n');
            count += 1;
            at = Some(event.send_at);
        }
        let Some(at) = at else { break };
        client.deliver("/v1/events", body).await?;
        bar.inc(count);
        bar.set_message(at.to_string().chars().skip(11).take(5).collect::<String>());
    }
    bar.finish_and_clear();
    Ok(())
}

/// Prints every report and tells where one differs from the tally.
async fn answers(client: &Client, day: &Simulation, from: Timestamp, to: Timestamp) -> anyhow::Result<Vec<String>> {
    let mut differences = Vec::new();
    for report in ReportName::ALL {
        let ask = |limit: usize| {
            let parameters = [("from", Some(from.to_string())), ("to", Some(to.to_string())), ("limit", Some(limit.to_string()))];
            query::path(&format!("/v1/reports/{}", report.name()), &parameters)
        };
        println!("{}", format::answer(&Answer::from_json(&client.get(&ask(10)).await?)?));
        let whole = Answer::from_json(&client.get(&ask(crate::archive::report::MAX_LIMIT)).await?)?;
        differences.extend(check::differences(&whole, day.tally()));
    }
    Ok(differences)
}
