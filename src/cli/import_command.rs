//! `contrail import`: a file through a mapping to the server of the data directory, which is started for the command where none runs.

use std::process::ExitCode;

use clap::Args;

use super::client::{Alone, Client};
use super::import::{self, Answer, ImportArgs};
use crate::config::Config;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// The shop.
    #[arg(long)]
    site: Option<String>,
    #[command(flatten)]
    import: ImportArgs,
}

/// Imports, waits until all of it is archived, and says what was taken.
pub(super) async fn run(config: Config, arguments: Arguments) -> anyhow::Result<ExitCode> {
    let client = Client::connect(&config, arguments.site, Alone::All).await?;
    let summary = import::run(&arguments.import, async |body| post(&client, body).await, None, &mut std::io::stdout()).await?;
    client.settle().await?;
    client.close().await?;
    Ok(ExitCode::from(summary.exit_status(arguments.import.strict)))
}

/// One batch.
async fn post(client: &Client, body: String) -> Result<Answer, String> {
    let answer = client.deliver("/v1/events", body).await.map_err(|error| format!("{error:#}"))?;
    serde_json::from_slice(&answer).map_err(|error| error.to_string())
}
