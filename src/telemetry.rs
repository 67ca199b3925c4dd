//! What operators see: the log on standard error and the Prometheus registry. Called once by the command line; knows no room.

use std::io::IsTerminal;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error. `filter` is in `tracing`'s directive syntax, such as `info` or `contrail=debug`.
///
/// # Errors
/// When the filter cannot be read. A second call changes nothing.
pub fn start_logging(filter: &str, format: LogFormat) -> Result<(), tracing_subscriber::filter::ParseError> {
    let lines = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(filter)?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A process that already logs (a test) goes on as it does.
    drop(match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().try_init(),
    });
    Ok(())
}

/// Histogram bounds of everything measured in seconds: 0.1 ms to 10 s.
const SECONDS: [f64; 14] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];

/// Installs the process's metrics registry and gives the handle that renders it.
///
/// # Errors
/// When bounds are refused. Where a registry stands already (a test), its handle is a fresh, empty one.
pub fn start_metrics() -> Result<PrometheusHandle, BuildError> {
    let recorder = PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?.build_recorder();
    let handle = recorder.handle();
    drop(metrics::set_global_recorder(recorder));
    Ok(handle)
}
