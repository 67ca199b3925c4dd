//! `contrail import`: a file through a mapping to the server of the data directory, which is started for the command where none runs.

use std::process::ExitCode;

use clap::Args;
use serde::Deserialize;

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
    let (already, post) = (async |body| already(&client, body).await, async |body| post(&client, body).await);
    let summary = import::run(&arguments.import, already, post, &mut std::io::stdout()).await?;
    client.settle().await?;
    client.close().await?;
    Ok(ExitCode::from(summary.exit_status(arguments.import.strict)))
}

/// Which events of a batch the archive holds.
async fn already(client: &Client, body: String) -> Result<Vec<usize>, String> {
    let answer = client.deliver("/admin/known", body).await.map_err(|error| format!("{error:#}"))?;
    serde_json::from_slice(&answer).map(|Known { known }| known).map_err(|error| error.to_string())
}

/// The answer of `POST /admin/known`.
#[derive(Deserialize)]
struct Known {
    known: Vec<usize>,
}

/// One batch.
async fn post(client: &Client, body: String) -> Result<Answer, String> {
    let answer = client.deliver("/v1/events", body).await.map_err(|error| format!("{error:#}"))?;
    serde_json::from_slice(&answer).map_err(|error| error.to_string())
}
