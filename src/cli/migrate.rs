//! `contrail migrate`: makes or changes the tables of the clusters that the settings name (serving never does: it refuses to start until they are right).
//! `contrail migrate-data`: carries an embedded data directory into them.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::app;
use crate::config::Config;

/// Migrates and says what was done.
pub(super) async fn run(config: Config) -> anyhow::Result<ExitCode> {
    for done in app::migrate(&config).await? {
        println!("{done}");
    }
    Ok(ExitCode::SUCCESS)
}

/// What is moved.
#[derive(clap::Args, Debug)]
pub(super) struct DataArguments {
    /// The data directory to carry over; nothing may run on it.
    from: PathBuf,
}

/// Carries a data directory over, says how far it is, and audits what is there then.
#[cfg(all(feature = "kafka", feature = "scylla"))]
pub(super) async fn data(config: Config, arguments: DataArguments) -> anyhow::Result<ExitCode> {
    use std::sync::Arc;

    use indicatif::{ProgressBar, ProgressStyle};

    app::migrate(&config).await?;
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{elapsed} {msg} {pos}")?);
    let shown = bar.clone();
    let told: app::Told = Arc::new(move |moved: app::Moved| {
        shown.set_message(moved.what);
        shown.set_position(moved.count);
    });
    let audit = app::migrate_data(&arguments.from, &config, told).await?;
    bar.finish_and_clear();
    println!("{}", serde_json::to_string_pretty(&serde_json::json!({"clean": audit.is_clean(), "audit": audit}))?);
    Ok(if audit.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Such a build has no cluster to carry it to.
#[cfg(not(all(feature = "kafka", feature = "scylla")))]
pub(super) async fn data(_config: Config, arguments: DataArguments) -> anyhow::Result<ExitCode> {
    anyhow::bail!("this build knows no cluster to carry {} to: build it with the features kafka and scylla", arguments.from.display())
}
