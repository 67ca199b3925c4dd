//! `contrail report`, `trace`, `export` and `audit`: questions to the server of the data directory, answers on standard output.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use http_body_util::BodyExt;
use hyper::Method;

use super::client::{Alone, Client, whole};
use super::format;
use crate::archive::report::Answer;
use crate::config::Config;

/// How an answer is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// A table for people.
    #[default]
    Table,
    /// The server's JSON.
    Json,
    /// Comma-separated values.
    Csv,
}

/// How events are exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ExportFormat {
    /// One row an event; the body in the last column.
    Csv,
    /// One JSON object a line.
    Ndjson,
}

#[derive(Args, Debug)]
pub(super) struct ReportArguments {
    /// top-searches, searches-without-results, top-viewed, top-sold, top-pages, checkout-funnel or unfinished-purchases.
    name: String,
    /// The shop (default: the only one, or `demo`).
    #[arg(long)]
    site: Option<String>,
    /// From this time (inclusive): RFC 3339, or a date in the shop's time zone. Default: 24 hours ago.
    #[arg(long)]
    from: Option<String>,
    /// To this time (exclusive).
    #[arg(long)]
    to: Option<String>,
    /// At most so many rows.
    #[arg(long)]
    limit: Option<usize>,
    /// exclude, include or only.
    #[arg(long)]
    bots: Option<String>,
    /// Only products available in this country.
    #[arg(long)]
    available_in: Option<String>,
    /// Order of top-sold: units or revenue.
    #[arg(long)]
    by: Option<String>,
    /// Currency that top-sold is ranked by, with --by revenue.
    #[arg(long)]
    currency: Option<String>,
    /// When an unfinished purchase is judged; default: the watermark.
    #[arg(long)]
    as_of: Option<String>,
    /// How to print it.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Args, Debug)]
pub(super) struct TraceArguments {
    /// The event's id.
    event_id: String,
    /// The shop.
    #[arg(long)]
    site: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct ExportArguments {
    /// The shop.
    #[arg(long)]
    site: Option<String>,
    /// From this time (inclusive).
    #[arg(long)]
    from: Option<String>,
    /// To this time (exclusive).
    #[arg(long)]
    to: Option<String>,
    /// How.
    #[arg(long, value_enum, default_value = "ndjson")]
    format: ExportFormat,
}

/// A path with its query, values percent-encoded.
pub(super) fn path(base: &str, parameters: &[(&str, Option<String>)]) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in parameters {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    let query = query.finish();
    if query.is_empty() { base.to_owned() } else { format!("{base}?{query}") }
}

pub(super) async fn report(config: Config, arguments: ReportArguments) -> anyhow::Result<ExitCode> {
    let client = Client::connect(&config, arguments.site, Alone::Readers).await?;
    let format = (arguments.format == Format::Csv).then(|| "csv".to_owned());
    let asked = path(
        &format!("/v1/reports/{}", segment(&arguments.name)),
        &[
            ("from", arguments.from),
            ("to", arguments.to),
            ("limit", arguments.limit.map(|limit| limit.to_string())),
            ("bots", arguments.bots),
            ("available_in", arguments.available_in),
            ("by", arguments.by),
            ("currency", arguments.currency),
            ("as_of", arguments.as_of),
            ("format", format),
        ],
    );
    let body = client.get(&asked).await?;
    match arguments.format {
        Format::Table => print(format::answer(&Answer::from_json(&body).context("the server's answer")?).as_bytes())?,
        Format::Json | Format::Csv => print(&body)?,
    }
    client.close().await?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn trace(config: Config, arguments: TraceArguments) -> anyhow::Result<ExitCode> {
    let client = Client::connect(&config, arguments.site, Alone::Readers).await?;
    let body = client.get(&format!("/v1/events/{}", segment(&arguments.event_id))).await?;
    let told: serde_json::Value = serde_json::from_slice(&body)?;
    print(serde_json::to_string_pretty(&told)?.as_bytes())?;
    client.close().await?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn export(config: Config, arguments: ExportArguments) -> anyhow::Result<ExitCode> {
    let client = Client::connect(&config, arguments.site, Alone::Readers).await?;
    let format = match arguments.format {
        ExportFormat::Csv => "csv",
        ExportFormat::Ndjson => "ndjson",
    };
    let asked = path("/v1/export", &[("from", arguments.from), ("to", arguments.to), ("format", Some(format.to_owned()))]);
    let answer = client.send(Method::GET, &asked, Vec::new()).await?;
    if !answer.status().is_success() {
        whole(answer).await?;
        return Ok(ExitCode::FAILURE);
    }
    let mut out = std::io::stdout().lock();
    let mut body = answer.into_body();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.context("the export broke off; what was printed is not whole")?.into_data() {
            out.write_all(&data)?;
        }
    }
    out.flush()?;
    drop(out);
    client.close().await?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn audit(config: Config) -> anyhow::Result<ExitCode> {
    let client = Client::connect(&config, None, Alone::Readers).await?;
    let told: serde_json::Value = serde_json::from_slice(&client.get("/admin/audit").await?)?;
    print(serde_json::to_string_pretty(&told)?.as_bytes())?;
    client.close().await?;
    let clean = told.get("clean").and_then(serde_json::Value::as_bool) == Some(true);
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn segment(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// Prints an answer with a line's end; a reader that has gone (`| head`) is no error.
fn print(bytes: &[u8]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let end: &[u8] = if bytes.ends_with(b"\n") { b"" } else { b"\n" };
    match out.write_all(bytes).and_then(|()| out.write_all(end)).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
