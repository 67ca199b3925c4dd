//! Stages that learn: opens what stands between them and the live log, objects and archive, and tells what they would have done (`GET /admin/learning`, a
//! line a minute, `/metrics`). What they write is kept below `DATA/learning` as long as the process runs. Must never hand a stage what it could write live.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router, middleware};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::access::Access;
use super::admin::{self, Answer, Refused, unanswered};
use super::{At, Error};
use crate::archive::learning::LearningArchive;
use crate::archive::{self, Archive};
use crate::config::{Config, Stage};
use crate::eventlog::learning::LearningLog;
use crate::eventlog::{Bounds, EventLog, Topic};
use crate::shutdown::Failure;
use crate::sync::ObjectStore;
use crate::sync::embedded::EmbeddedStore;
use crate::sync::feed::LocalFeed;
use crate::sync::learning::LearningStore;

/// How often the scratch space is measured; every sixth time what was learned is logged.
const MEASURE_EVERY: Duration = Duration::from_secs(10);

/// The stages of this process that learn.
pub(super) struct Learning {
    dir: PathBuf,
    max_bytes: u64,
    has_room: Arc<AtomicBool>,
    /// Under it, router and keeper.
    pub(super) sync: Option<LearningSync>,
    /// Under it, the archiver.
    pub(super) archive: Option<LearningArchiver>,
}

/// What a learning router and keeper work on. Nobody subscribes to their feed.
pub(super) struct LearningSync {
    pub(super) log: Arc<LearningLog>,
    pub(super) store: Arc<LearningStore>,
    pub(super) feed: LocalFeed,
}

/// What a learning archiver works on.
pub(super) struct LearningArchiver {
    pub(super) log: Arc<LearningLog>,
    pub(super) archive: Arc<LearningArchive>,
}

impl Learning {
    /// Opens what the settings say is to learn, over what is live. What a former process learned is removed.
    pub(super) async fn open(
        config: &Config,
        log: &Arc<dyn EventLog>,
        objects: Option<&Arc<dyn ObjectStore>>,
        archive: Option<&Arc<dyn Archive>>,
    ) -> Result<Self, Error> {
        let dir = config.data.join("learning");
        if dir.exists() {
            std::fs::remove_dir_all(&dir).at("removing what was learned before")?;
        }
        let mut learning = Self { dir, max_bytes: config.learning_bytes.0, has_room: Arc::new(AtomicBool::new(true)), sync: None, archive: None };
        for stage in &config.learning {
            std::fs::create_dir_all(&learning.dir).at("making room to learn")?;
            // A stage that is no role of this process has nothing open.
            match (stage, objects, archive) {
                (Stage::Sync, Some(objects), _) => learning.sync = Some(learning.open_sync(log, objects).await?),
                (Stage::Archive, _, Some(archive)) => learning.archive = Some(learning.open_archive(log, archive).await?),
                _ => {}
            }
        }
        Ok(learning)
    }

    async fn open_sync(&self, log: &Arc<dyn EventLog>, objects: &Arc<dyn ObjectStore>) -> Result<LearningSync, Error> {
        let log = LearningLog::open(Arc::clone(log), true).await.at("opening the log to learn")?;
        let ends = log.bounds(Topic::Changes).await.at("opening the log to learn")?.into_iter().map(|bounds| bounds.next).collect();
        let scratch = EmbeddedStore::open(&self.dir.join("objects.db"), Duration::from_millis(10)).at("making room to learn")?;
        let store = LearningStore::open(Arc::clone(objects), Arc::new(scratch), ends, self.room()).await.at("opening the objects to learn")?;
        Ok(LearningSync { log: Arc::new(log), store: Arc::new(store), feed: LocalFeed::new(crate::sync::feed::Settings::default()) })
    }

    async fn open_archive(&self, log: &Arc<dyn EventLog>, archive: &Arc<dyn Archive>) -> Result<LearningArchiver, Error> {
        let log = LearningLog::open(Arc::clone(log), false).await.at("opening the log to learn")?;
        let dir = self.dir.clone();
        let opened = tokio::task::spawn_blocking(move || archive::embedded::Embedded::open(&dir)).await.at("making room to learn")?;
        let scratch = Arc::new(opened.at("making room to learn")?);
        let archive = LearningArchive::open(Arc::clone(archive), scratch, self.room()).await.at("opening the archive to learn")?;
        Ok(LearningArchiver { log: Arc::new(log), archive: Arc::new(archive) })
    }

    fn room(&self) -> Arc<dyn Fn() -> bool + Send + Sync> {
        let has_room = Arc::clone(&self.has_room);
        Arc::new(move || has_room.load(Ordering::Relaxed))
    }

    /// Names of the stages that learn.
    pub(super) fn stages(&self) -> Vec<&'static str> {
        let sync = self.sync.as_ref().map(|_| "sync");
        sync.into_iter().chain(self.archive.as_ref().map(|_| "archive")).collect()
    }

    /// What the stages would have done by now.
    fn learned(&self) -> Value {
        let mut told = serde_json::Map::new();
        if let Some(sync) = &self.sync {
            told.insert("sync".into(), json!({"changes": sync.log.appended(), "stored": sync.store.learned()}));
        }
        if let Some(archive) = &self.archive {
            told.insert("archive".into(), json!(archive.archive.learned()));
        }
        Value::Object(told)
    }

    /// Records that the stages have yet to pass.
    async fn behind(&self, log: &dyn EventLog) -> Result<u64, Refused> {
        let events = log.bounds(Topic::Events).await.map_err(unanswered)?;
        let mut behind = 0;
        if let Some(LearningSync { log, store, .. }) = &self.sync {
            let (routers, keepers) = store.offsets().await.map_err(unanswered)?;
            let of =
                |bounds: &[Bounds], reached: &[u64]| bounds.iter().zip(reached).map(|(bounds, next)| bounds.next.saturating_sub(*next)).sum::<u64>();
            let changes = log.bounds(Topic::Changes).await.map_err(unanswered)?;
            behind += of(&events, &routers) + of(&changes, &keepers);
        }
        if let Some(LearningArchiver { archive, .. }) = &self.archive {
            let cursors = archive.cursors().await.map_err(unanswered)?;
            behind += events.iter().zip(cursors).map(|(bounds, cursor)| bounds.next.saturating_sub(cursor.next)).sum::<u64>();
        }
        Ok(behind)
    }

    /// Measures the scratch space, and logs what was learned once a minute and at the end.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<(), Failure> {
        for round in 1u64.. {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(MEASURE_EVERY) => {}
            }
            let dir = self.dir.clone();
            let bytes = tokio::task::spawn_blocking(move || size_of(&dir)).await?;
            self.has_room.store(bytes < self.max_bytes, Ordering::Relaxed);
            metrics::gauge!("contrail_learning_scratch_bytes").set(bytes as f64);
            if round % 6 == 0 {
                self.tell();
            }
        }
        self.tell();
        Ok(())
    }

    fn tell(&self) {
        let learned = self.learned();
        tracing::info!(%learned, "learning: what would have been done since the start");
    }

    /// Closes what the stages wrote to and removes it. Nothing of it is missed.
    pub(super) async fn close(&self) -> Result<(), Failure> {
        if let Some(sync) = &self.sync {
            sync.store.close().await?;
        }
        if let Some(archive) = &self.archive {
            archive.archive.close().await?;
        }
        if self.dir.exists() {
            std::fs::remove_dir_all(&self.dir)?;
        }
        Ok(())
    }
}

/// Bytes of all files below a directory; what goes meanwhile does not count.
fn size_of(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.metadata().map_or(0, |of| if of.is_dir() { size_of(&entry.path()) } else { of.len() })).sum()
}

/// Tells what was learned.
pub(super) fn router(learning: Arc<Learning>, log: Arc<dyn EventLog>, access: Access) -> Router {
    Router::new().route("/admin/learning", get(told)).layer(middleware::from_fn_with_state(access, admin::guard)).with_state((learning, log))
}

async fn told(State((learning, log)): State<(Arc<Learning>, Arc<dyn EventLog>)>) -> Answer {
    // In this order: what is told to be passed is counted by then.
    let behind = learning.behind(&*log).await?;
    Ok(Json(json!({"learning": learning.stages(), "behind": behind, "learned": learning.learned()})))
}
