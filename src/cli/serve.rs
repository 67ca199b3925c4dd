//! `contrail serve`: runs until a signal, then drains.

use std::io::Write;
use std::process::ExitCode;

use anyhow::bail;

use crate::app;
use crate::config::Config;
use crate::shutdown::Signals;
use crate::site::NewKeys;

/// Serves until SIGTERM or SIGINT, or until a part fails.
pub(super) async fn run(config: Config) -> anyhow::Result<ExitCode> {
    config.check_roles()?;
    let mut signals = Signals::take()?;
    let mut running = tokio::select! {
        started = app::start(config, app::Options::from_environment()?) => started?,
        signal = signals.next() => {
            tracing::info!(signal, "stopped before anything was served");
            return Ok(ExitCode::SUCCESS);
        }
    };
    greet(&running);
    let ended = tokio::select! {
        signal = signals.next() => {
            tracing::info!(signal, "stopping");
            None
        }
        failed = running.failed() => Some(failed),
    };
    let stopped = running.stop().await;
    if let Some(failed) = ended {
        bail!("stopped because a part failed: {failed}");
    }
    stopped?;
    tracing::info!("stopped; everything accepted is in the log");
    Ok(ExitCode::SUCCESS)
}

/// Says where it serves and, once, with which keys.
pub(super) fn greet(running: &app::Running) {
    let url = running.public_url();
    let mut told = format!("contrail serves on {url}\n");
    if let Some(keys @ NewKeys { ingest, read, .. }) = running.first_keys() {
        told.push_str(&format!("\n{}", listed(keys)));
        told.push_str(&format!("\nSend a first event:\n\n{}\n\nand ask for it:\n\n", curl(url, ingest)));
        told.push_str(&format!("curl -H 'Authorization: Bearer {read}' '{url}/v1/reports/top-viewed'\n\n"));
    }
    // Nobody may be reading, which is no reason not to serve.
    let mut out = std::io::stdout().lock();
    out.write_all(told.as_bytes()).and_then(|()| out.flush()).unwrap_or_default();
}

/// The keys of the first site, for the one time that they are shown.
pub(super) fn listed(NewKeys { site, ingest, browser, read }: &NewKeys) -> String {
    format!(
        "These keys of site `{site}` are shown once; only their hashes are kept:\n  ingest key   {ingest}\n  browser key  {browser}\n  read token   {read}\n"
    )
}

/// A line that works when pasted.
pub(super) fn curl(url: &str, key: &str) -> String {
    format!(
        "curl '{url}/v1/events' -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\\n  -d '{{\"type\":\"product_viewed\",\"customer\":{{\"id\":\"c1\"}},\"product\":{{\"id\":\"sku-1\",\"name\":\"Mug\"}}}}'"
    )
}

/// `contrail healthy`: 0 when the server of the data directory is ready.
pub(super) async fn healthy(config: Config) -> anyhow::Result<ExitCode> {
    let Some(found) = app::data::running(&config.data)? else { bail!("nothing runs on {}", config.data.display()) };
    // A wildcard listener is reached by loopback.
    let port = found.address.rsplit(':').next().unwrap_or_default().to_owned();
    let client =
        hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http::<http_body_util::Empty<bytes::Bytes>>();
    let answer = client.get(format!("http://127.0.0.1:{port}/readyz").parse()?).await?;
    if !answer.status().is_success() {
        bail!("not ready: {}", answer.status());
    }
    Ok(ExitCode::SUCCESS)
}
