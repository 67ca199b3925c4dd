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

/// Counters of what should not happen, shown from the start: of one that first appears with its first event, nobody would see that it rose.
const QUIET: [&str; 27] = [
    "contrail_archive_lost_acknowledgements_total",
    "contrail_archiver_partition_failures_total",
    "contrail_archiver_quarantined_total",
    "contrail_archiver_retries_total",
    "contrail_archiver_top_failures_total",
    "contrail_cql_node_restarts_total",
    "contrail_cql_overloads_total",
    "contrail_cql_refusals_total",
    "contrail_cql_retries_total",
    "contrail_feed_lagged_total",
    "contrail_feed_missed_total",
    "contrail_feed_publish_errors_total",
    "contrail_feed_read_errors_total",
    "contrail_feed_shed_total",
    "contrail_feed_unreadable_total",
    "contrail_kafka_consumers_replaced_total",
    "contrail_kafka_fenced_total",
    "contrail_kafka_producers_replaced_total",
    "contrail_keeper_frozen_total",
    "contrail_keeper_restarts_total",
    "contrail_mirror_left_behind_total",
    "contrail_objects_refused_total",
    "contrail_objects_rewinds_total",
    "contrail_router_malformed_total",
    "contrail_router_restarts_total",
    "contrail_sites_failed_looks_total",
    "contrail_webhooks_restarts_total",
];

/// Sets the gauges of what this process takes of the machine, under the names that Prometheus' own libraries use. Where the system does not tell (`/proc`), they
/// are left out.
pub fn show_process() {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the command's name, which may hold blanks: user and system time are fields 14 and 15 of all, in hundredths of a second (proc(5)).
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    if let (Some(user), Some(system)) = (ticks(11), ticks(12)) {
        metrics::gauge!("process_cpu_seconds_total").set((user + system) / 100.0);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    if let Some(kilobytes) = resident {
        metrics::gauge!("process_resident_memory_bytes").set(kilobytes * 1024.0);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        metrics::gauge!("process_open_fds").set(open.count() as f64);
    }
}

/// Installs the process's metrics registry and gives the handle that renders it.
///
/// # Errors
/// When bounds are refused. Where a registry stands already (a test), its handle is a fresh, empty one.
pub fn start_metrics() -> Result<PrometheusHandle, BuildError> {
    let recorder = PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?.build_recorder();
    let handle = recorder.handle();
    drop(metrics::set_global_recorder(recorder));
    for name in QUIET {
        metrics::counter!(name).increment(0);
    }
    metrics::counter!("contrail_keeper_changes_total", "result" => "malformed").increment(0);
    for reason in ["full", "late", "private", "refused", "url"] {
        metrics::counter!("contrail_webhooks_dropped_total", "reason" => reason).increment(0);
    }
    Ok(handle)
}
