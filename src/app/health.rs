//! `/livez`, `/readyz` and `/metrics`: what operators and their machines ask. Must never need a token, nor tell anything of a shop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};

use crate::archive::progress::Progress;
use crate::config::Role;
use crate::event::PARTITIONS;
use crate::eventlog::{EventLog, Offset, Topic};
use crate::site::Sites;
use crate::sync::status::Status;
use crate::telemetry;

/// Whether this process takes requests: false before everything is open and from the first moment of a drain.
#[derive(Clone, Debug, Default)]
pub(super) struct Readiness(Arc<AtomicBool>);

impl Readiness {
    pub(super) fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::SeqCst);
    }
}

/// What health is told from.
#[derive(Clone)]
pub(super) struct Health {
    pub(super) ready: Readiness,
    pub(super) metrics: PrometheusHandle,
    pub(super) log: Arc<dyn EventLog>,
    pub(super) sites: Arc<Sites>,
    pub(super) status: Arc<Status>,
    pub(super) progress: Arc<Progress>,
    /// Whether the log is on Kafka and taken even where losing a broker can lose what was acknowledged.
    pub(super) single_replica: bool,
    /// What this process does.
    pub(super) roles: Vec<Role>,
    /// Stages that write nothing live.
    pub(super) learning: Vec<&'static str>,
}

impl Health {
    pub(super) fn router(self) -> Router {
        let (ready, scraped) = (self.clone(), self);
        Router::new()
            .route("/livez", get(|| async { "alive\n" }))
            .route("/readyz", get(move || async move { ready.readyz() }))
            .route("/metrics", get(move || async move { scraped.scrape().await }))
    }

    /// Ready while it takes requests. Partitions that stand still are shown, and a sites' store that does not answer, and are no reason to send a load balancer
    /// away: the others serve.
    fn readyz(&self) -> (StatusCode, Json<Value>) {
        let ready = self.ready.0.load(Ordering::SeqCst);
        let stopped: Vec<Value> = self
            .status
            .failed()
            .into_iter()
            .map(|(topic, partition, why)| json!({"topic": topic, "partition": partition, "why": why}))
            .chain(
                self.progress
                    .failed()
                    .into_iter()
                    .map(|(partition, why)| json!({"topic": "events", "reader": "archiver", "partition": partition, "why": why})),
            )
            .collect();
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let told = json!({
            "ready": ready,
            "learning": self.learning,
            "frozen_objects": self.status.frozen(),
            "stopped_partitions": stopped,
            "archiver_waits_for": self.progress.waits(),
            "sites_unanswered_seconds": self.sites.unanswered_for().map(|time| time.as_secs()),
            "allow_single_replica": self.single_replica,
        });
        (status, Json(told))
    }

    /// Lags are those of the partitions this process owns: over all processes they add up.
    async fn scrape(&self) -> impl IntoResponse + use<> {
        telemetry::show_process();
        let (events, changes) = tokio::join!(self.log.ends(Topic::Events), self.log.ends(Topic::Changes));
        // Of what this process does: another's lag is for that one to tell.
        if self.roles.contains(&Role::Sync) {
            show_lag("contrail_router_lag_records", lag(&events, &self.status.routed()));
            show_lag("contrail_keeper_lag_records", lag(&changes, &self.status.kept()));
        }
        if self.roles.contains(&Role::Archive) {
            let owned = self.progress.all();
            let archived: Vec<u64> = (0..PARTITIONS).map(|partition| owned.get(&partition).map_or(u64::MAX, |at| at.cursor.next)).collect();
            show_lag("contrail_archiver_lag_records", lag(&events, &archived));
            metrics::gauge!("contrail_archiver_failed_partitions").set(self.progress.failed().len() as f64);
        }
        let unanswered = self.sites.unanswered_for().unwrap_or_default();
        metrics::gauge!("contrail_sites_unanswered_seconds").set(unanswered.as_secs_f64());
        ([("content-type", "text/plain; version=0.0.4")], self.metrics.render())
    }
}

/// Records between where readers are and where partitions end, of those whose end is known; None where none is.
fn lag(ends: &[Option<Offset>], at: &[Offset]) -> Option<u64> {
    let behind = ends.iter().zip(at).filter_map(|(end, at)| Some((*end)?.saturating_sub(*at)));
    behind.fold(None, |sum, behind| Some(sum.unwrap_or(0) + behind))
}

/// What is not known stands as it was.
fn show_lag(name: &'static str, lag: Option<u64>) {
    if let Some(lag) = lag {
        metrics::gauge!(name).set(lag as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_whose_end_is_not_known_hides_no_other_lag() {
        assert_eq!(lag(&[Some(9), None, Some(5)], &[4, 0, u64::MAX]), Some(5));
        assert_eq!(lag(&[Some(4)], &[4]), Some(0));
        assert_eq!(lag(&[None, None], &[0, 0]), None);
    }
}
