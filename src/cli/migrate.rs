//! `contrail migrate`: makes or changes the tables of the clusters that the settings name. Serving never does: it refuses to start until they are
//! right.

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
