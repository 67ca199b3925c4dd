//! Tests of the embedded log as a whole: the contract of every log, and what this one promises beyond it.

mod damage;
mod limits;
mod power_loss;
mod sim;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{EmbeddedLog, Settings};
use crate::event::{Clock, Timestamp};
use crate::eventlog::contract::{Subject, contract_tests, record};
use crate::eventlog::{self, Delivery, EventLog, Topic};

/// Small files, so that little data makes many segments and little memory keeps little of it.
fn small() -> Settings {
    Settings { segment_bytes: 4 << 10, tail_bytes: 2 << 10, seal_after: Duration::from_secs(3600), ..Settings::default() }
}

fn noon() -> Clock {
    Clock::fixed(Timestamp::parse("2026-11-20T12:00:00Z").unwrap())
}

/// A log in a temporary directory of the real file system.
struct InTemp {
    dir: tempfile::TempDir,
    settings: Settings,
}

impl InTemp {
    fn new(settings: Settings) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), settings }
    }

    fn open_embedded(&self) -> EmbeddedLog {
        EmbeddedLog::open(self.dir.path(), &self.settings, &noon()).unwrap()
    }

    /// The segment files of `events`, oldest first.
    fn segments(&self) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(self.dir.path().join("events")).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    }
}

#[async_trait]
impl Subject for InTemp {
    async fn open(&self) -> Arc<dyn EventLog> {
        eventlog::open("embedded", self.dir.path(), eventlog::Settings { embedded: self.settings.clone(), ..Default::default() }, noon())
            .await
            .unwrap()
    }
}

mod contract_with_defaults {
    use super::*;
    contract_tests!(InTemp::new(Settings::default()));
}

mod contract_with_small_segments {
    use super::*;
    contract_tests!(InTemp::new(small()));
}

#[tokio::test]
async fn partitions_that_have_records_take_turns() {
    let subject = InTemp::new(Settings::default());
    let log = subject.open().await;
    for _ in 0..50 {
        log.append(Topic::Events, (0..3).map(|partition| record(partition, "x")).collect()).await.unwrap();
    }
    let mut reader = log.subscribe(Topic::Events, "g").await.unwrap();
    assert!(matches!(reader.next(1).await, Ok(Delivery::Assigned(_))));
    (0..3).for_each(|partition| reader.seek(partition, 0));
    let mut served = Vec::new();
    for _ in 0..9 {
        if let Delivery::Records { partition, records, .. } = reader.next(1).await.unwrap() {
            assert_eq!(records.len(), 1);
            served.push(partition);
        }
    }
    for partition in 0..3 {
        assert!(served.iter().filter(|p| **p == partition).count() >= 2, "{served:?}");
    }
}

#[tokio::test]
async fn an_unknown_url_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let opened = eventlog::open("postgres://h", dir.path(), eventlog::Settings::default(), noon()).await;
    assert!(matches!(opened.err(), Some(eventlog::Error::Format(what)) if what.contains("postgres://h") && what.contains("embedded")));
}
