//! `contrail import`: a file through a mapping to the server of the data directory, which is started for the command where none runs.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http_body_util::BodyExt;
use hyper::{Method, StatusCode, header};

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

/// One batch, sent again as long as the server asks for it: the same ids count once.
async fn post(client: &Client, body: String) -> Result<Answer, String> {
    loop {
        let answer = client.send(Method::POST, "/v1/events?import=true", body.clone()).await.map_err(|error| format!("{error:#}"))?;
        let status = answer.status();
        let wait = answer.headers().get(header::RETRY_AFTER).and_then(|wait| wait.to_str().ok()).and_then(|wait| wait.parse().ok()).unwrap_or(1);
        let body = answer.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
        match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => tokio::time::sleep(Duration::from_secs(wait)).await,
            status if status.is_success() => return serde_json::from_slice(&body).map_err(|error| error.to_string()),
            status => return Err(format!("{status}: {}", String::from_utf8_lossy(&body))),
        }
    }
}
