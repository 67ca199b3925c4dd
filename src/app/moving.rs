//! `contrail migrate-data`: carries an embedded data directory into a cluster, whole. Nothing else may run on either meanwhile.
//!
//! * Offsets keep their meaning: the topics are made to begin and to go on where the embedded log does (`eventlog::kafka`, "adopt"), so that archive, objects
//!   and identity are carried as they stand, and what the log holds that they have not applied yet is applied by the cluster's own readers.
//! * Order: archive and objects, then where their readers are, then the log, then the sites. Whoever serves too early meets readers beyond the log's end and
//!   refuses. Cut short anywhere, the move may be run again; it refuses a cluster that has gone on since, or that it began to fill from another state of the
//!   directory: one that has gone on since moves into a new keyspace.
//! * The data directory is only read, but for what opening it puts in order.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use tokio::runtime::Handle;

use super::{At, Error, backends, data};
use crate::archive::audit::{Audit, audit};
use crate::archive::{self, Archive, Cursor, archiver};
use crate::config::Config;
use crate::event::{Clock, PARTITIONS};
use crate::eventlog::kafka::KafkaLog;
use crate::eventlog::{Append, EventLog, Topic};
use crate::site::{self, Sites};
use crate::sync::embedded::EmbeddedStore;
use crate::sync::{self, ObjectStore, keeper, router};
use crate::webhooks;

/// Bytes of the log read at once.
const READ: usize = 4 << 20;

/// How far a move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// What is being carried.
    pub what: &'static str,
    /// How many of it were, so far.
    pub count: u64,
}

/// Told how far the move is, about once a page.
pub type Told = Arc<dyn Fn(Moved) + Send + Sync>;

/// Carries the data directory `from` into the cluster that the settings name, and audits what is there then, against its log.
///
/// # Errors
/// Where a setting names no cluster, a process runs on the directory, the cluster holds anything else, or either fails. Safe to repeat.
pub async fn migrate_data(from: &Path, config: &Config, told: Told) -> Result<Audit, Error> {
    check_targets(config)?;
    let _taken = data::DataDir::take(from).at("taking the data directory")?;
    let clock = Clock::system();
    let source = Config { data: from.to_owned(), log: "embedded".into(), archive: "embedded".into(), store: "embedded".into(), ..config.clone() };
    let source_log = backends::log(&source, clock.clone()).await?;
    let (cursors, days) = bring_up(&source, clock.clone()).await?;

    let kafka = KafkaLog::open(&config.log, backends::kafka_settings(config)?).await.at("opening the log")?;
    let settings = backends::scylla_settings(config)?;
    let archive = archive::scylla::Scylla::open(&config.archive, &settings, clock.clone()).await.at("opening the archive")?;
    let objects = sync::scylla::Scylla::open(&config.store, &settings, clock.clone()).await.at("opening the objects")?;
    check_untouched(&cursors, &archive, &objects, &*source_log, &kafka).await?;
    archive.begin_adopting(&cursors, &days).await.at("looking at the cluster")?;

    let archive = carry_archive(from.to_owned(), archive, &cursors, &told).await?;
    carry_objects(from.join("objects.db"), objects, &told).await?;
    carry_log(&*source_log, &kafka, &told).await?;
    let sites = carry_sites(&source, config, clock, &told).await?;
    source_log.close().await.at("closing the data directory")?;
    told(Moved { what: "auditing", count: 0 });
    let audited = audit(&archive, Some(&kafka), &sites.rules_of()).await.at("auditing")?;
    kafka.close().await.at("closing the log")?;
    Ok(audited)
}

fn check_targets(config: &Config) -> Result<(), Error> {
    let targets = [("log", &config.log, "kafka:"), ("store", &config.store, "scylla:"), ("archive", &config.archive, "scylla:")];
    match targets.into_iter().find(|(_, url, scheme)| !url.starts_with(scheme)) {
        Some((name, url, scheme)) => {
            let told = format!("`{name}` is `{url}`: a move carries log, objects and archive together, to {scheme}//...");
            Err(Error { stage: "reading the settings", source: told.into() })
        }
        None => Ok(()),
    }
}

/// Brings the files of archive and objects to this version, as a start does. Gives where the archive is, and the days it holds.
async fn bring_up(source: &Config, clock: Clock) -> Result<(Vec<Cursor>, Vec<i32>), Error> {
    let archive = backends::archive(source, clock).await?;
    let cursors = archive.cursors().await.at("reading the archive")?;
    let days = archive.days().await.at("reading the archive")?;
    archive.close().await.at("reading the archive")?;
    let objects = EmbeddedStore::open(&source.data.join("objects.db"), std::time::Duration::ZERO).at("reading the objects")?;
    objects.close().await.at("reading the objects")?;
    Ok((cursors, days))
}

/// Refuses a cluster that holds something else, or that has gone on since an earlier move.
async fn check_untouched(
    cursors: &[Cursor],
    archive: &archive::scylla::Scylla,
    objects: &sync::scylla::Scylla,
    source: &dyn EventLog,
    kafka: &KafkaLog,
) -> Result<(), Error> {
    const STAGE: &str = "looking at the cluster";
    let refuse = |what: &str| Err(Error { stage: STAGE, source: format!("{what} hold something else already: a move needs fresh ones").into() });
    let there = archive.cursors().await.at(STAGE)?;
    if there.iter().zip(cursors).any(|(there, ours)| there.next > 0 && there != ours) {
        return refuse("the archive's tables");
    }
    let (routed, kept) = objects.offsets().await.at(STAGE)?;
    for (topic, at) in [(Topic::Events, routed), (Topic::Changes, kept)] {
        let ours = source.bounds(topic).await.at("reading the log")?;
        if at.iter().zip(&ours).any(|(at, ours)| *at > ours.next) {
            return refuse("the objects' tables");
        }
        let there = kafka.bounds(topic).await.at(STAGE)?;
        if there.iter().zip(&ours).any(|(there, ours)| there.next > ours.next) {
            return refuse("the topics");
        }
    }
    Ok(())
}

async fn carry_archive(dir: PathBuf, archive: archive::scylla::Scylla, cursors: &[Cursor], told: &Told) -> Result<archive::scylla::Scylla, Error> {
    const STAGE: &str = "carrying the archive";
    let told = Arc::clone(told);
    let carrying = tokio::task::spawn_blocking(move || {
        let (handle, mut count) = (Handle::current(), 0);
        let carried = archive::embedded::dump::each_page(&dir, &mut |page| {
            count += page.rows() as u64;
            handle.block_on(archive.adopt(page.batch, page.seen))?;
            told(Moved { what: "archive rows", count });
            Ok(())
        });
        carried.map(|()| archive)
    });
    let archive = carrying.await.at(STAGE)?.at(STAGE)?;
    archive.adopted(cursors).await.at(STAGE)?;
    Ok(archive)
}

async fn carry_objects(path: PathBuf, objects: sync::scylla::Scylla, told: &Told) -> Result<(), Error> {
    const STAGE: &str = "carrying the objects";
    let told = Arc::clone(told);
    let carrying = tokio::task::spawn_blocking(move || {
        let (handle, mut count) = (Handle::current(), 0);
        sync::embedded::dump::each_page(&path, &mut |page| {
            count += page.objects.len() as u64;
            let refused = handle.block_on(objects.commit_objects(page.objects, page.checkpoints))?;
            if let Some((_, error)) = refused.into_iter().next() {
                return Err(error);
            }
            handle.block_on(objects.commit_router(page.commits))?;
            told(Moved { what: "objects", count });
            Ok(())
        })?;
        // Their log begins in the midst: readers may never go back before these places.
        handle.block_on(objects.adopted())
    });
    carrying.await.at(STAGE)?.at(STAGE)
}

async fn carry_log(source: &dyn EventLog, kafka: &KafkaLog, told: &Told) -> Result<(), Error> {
    const STAGE: &str = "carrying the log";
    for topic in Topic::ALL {
        let bounds = source.bounds(topic).await.at(STAGE)?;
        let starts: Vec<u64> = bounds.iter().map(|bounds| bounds.start).collect();
        kafka.begin_at(topic, &starts, &|count| told(Moved { what: "offsets before the log", count })).await.at(STAGE)?;
        let there = kafka.bounds(topic).await.at(STAGE)?;
        let mut count = 0;
        for ((partition, ours), there) in (0..PARTITIONS).zip(bounds).zip(there) {
            let mut at = there.next;
            while at < ours.next {
                let records = source.read(topic, partition, at, READ).await.at(STAGE)?;
                let Some(last) = records.last() else { break };
                let next = last.offset + 1;
                count += records.len() as u64;
                let appends = records.into_iter().map(|record| Append { partition, value: record.value }).collect();
                let appended = kafka.append_gapless(topic, appends).await.at(STAGE)?;
                if appended.first() != Some(&at) || appended.last() != Some(&(next - 1)) {
                    let wrong =
                        format!("{} partition {partition}: {at} came to stand at {:?}: somebody else writes there", topic.name(), appended.first());
                    return Err(Error { stage: STAGE, source: wrong.into() });
                }
                at = next;
                told(Moved { what: topic.name(), count });
            }
        }
    }
    // Their readers stand in the midst of these topics before they first subscribe.
    for (topic, group) in [(Topic::Events, router::GROUP), (Topic::Events, archiver::GROUP), (Topic::Changes, keeper::GROUP)] {
        kafka.adopt_group(topic, group).await.at(STAGE)?;
    }
    // And one has no other place than what the log knows.
    let places = source.committed(Topic::Events, webhooks::GROUP).await.at(STAGE)?;
    kafka.adopt_group_at(Topic::Events, webhooks::GROUP, places).await.at(STAGE)
}

async fn carry_sites(source: &Config, config: &Config, clock: Clock, told: &Told) -> Result<Arc<Sites>, Error> {
    const STAGE: &str = "carrying the sites";
    let here = site::open("embedded", &source.data, &backends::site_settings(source)?).await.at(STAGE)?;
    let there = site::open(&config.store, &config.data, &backends::site_settings(config)?).await.at(STAGE)?;
    let count = site::carry(&*here, &*there).await.at(STAGE)? as u64;
    told(Moved { what: "sites", count });
    Ok(Arc::new(backends::sites(config, clock).await?))
}
