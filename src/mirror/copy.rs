//! Copies of all that a mirror is to hold: which objects there are is read from the store, page by page, as fast as they are mirrored. Stepped by the room's loop.
//!
//! A copy begins once the keeper has passed what was read of the log when it was asked for: what comes later is followed beside it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::event::{ObjectKey, ObjectKind, SiteId};
use crate::eventlog::Offset;
use crate::site::{Mirror, Pattern, Sites};
use crate::sync::{Error, ObjectStore, Seek};

/// Objects of a page, and how many may wait before the next is read.
const PAGE: usize = 500;
const WAITING: usize = 1_000;
/// The pause before what could not be done is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The copies under way.
#[derive(Debug, Default)]
pub(super) struct Copies {
    copies: HashMap<SiteId, Copy>,
    /// Partitions of which changes were passed over: they are copied whatever is noted.
    skipped: HashSet<(SiteId, u16)>,
}

#[derive(Debug)]
struct Copy {
    mirror: u64,
    /// By partition that is copied what the keeper is to pass first.
    partitions: Vec<(u16, Offset)>,
    stage: Stage,
    /// Not before.
    not_before: Instant,
}

#[derive(Clone, Debug)]
enum Stage {
    /// The keeper is behind.
    Waits,
    /// Objects of a pattern and kind after a name.
    Lists { pattern: usize, kind: usize, after: Option<String> },
    /// All are being mirrored, or are.
    Listed,
    /// That is noted.
    Noted,
}

/// What is to be done next of a copy.
pub(super) struct Step {
    site: SiteId,
    mirror: u64,
    work: Work,
}

enum Work {
    /// Looks whether the keeper has passed these.
    Look(Vec<(u16, Offset)>),
    /// Lists objects.
    List { kind: ObjectKind, prefix: String, after: Option<String> },
    /// Notes that these partitions are copied.
    Note(Vec<u16>),
}

/// What came of it.
pub(super) struct Page {
    site: SiteId,
    mirror: u64,
    found: Found,
}

enum Found {
    Passed(bool),
    Objects(Vec<ObjectKey>),
    Noted,
    Failed,
}

impl Step {
    pub(super) async fn run(self, store: Arc<dyn ObjectStore>, sites: Arc<Sites>) -> Page {
        let Self { site, mirror, work } = self;
        let found = match work {
            Work::Look(places) => {
                let passed =
                    |kept: &[Offset]| places.iter().all(|(partition, upto)| kept.get(usize::from(*partition)).is_some_and(|kept| kept >= upto));
                store.offsets().await.map(|(_, kept)| Found::Passed(passed(&kept)))
            }
            Work::List { kind, prefix, after } => {
                let listed = store.list(&site, kind, &prefix, after.as_deref().map_or(Seek::First, Seek::After), PAGE).await;
                listed.map(|listed| Found::Objects(listed.into_iter().map(|(key, _)| key).collect()))
            }
            Work::Note(partitions) => {
                sites.mirror_copied(&site, mirror, &partitions, true).await.map(|()| Found::Noted).map_err(|error| Error::Store(error.to_string()))
            }
        };
        let found = found.unwrap_or_else(|error| {
            tracing::warn!(%error, site.id = %site, "a copy for a mirror does not go on at present; tried again");
            Found::Failed
        });
        Page { site, mirror, found }
    }
}

impl Copies {
    /// What is to be done of a site's copy, if anything is: `owned` are the partitions of this process with how far they are read, `waiting` what of the site
    /// waits, and what of that is copied.
    pub(super) fn next(&mut self, site: &SiteId, mirror: &Mirror, owned: &[(u16, Offset)], waiting: (usize, usize), now: Instant) -> Option<Step> {
        let skipped = &self.skipped;
        let is_copied = |partition: u16| mirror.copied.contains(&partition) && !skipped.contains(&(site.clone(), partition));
        let copy = match self.copies.get_mut(site) {
            Some(copy) => copy,
            None => {
                let partitions: Vec<_> = owned.iter().filter(|(partition, _)| !is_copied(*partition)).copied().collect();
                if partitions.is_empty() {
                    return None;
                }
                let copy = Copy { mirror: mirror.id, partitions, stage: Stage::Waits, not_before: now };
                self.copies.entry(site.clone()).or_insert(copy)
            }
        };
        if copy.not_before > now {
            return None;
        }
        let step = |work| Some(Step { site: site.clone(), mirror: mirror.id, work });
        match &mut copy.stage {
            Stage::Waits => step(Work::Look(copy.partitions.clone())),
            Stage::Lists { .. } if waiting.0 >= WAITING => None,
            Stage::Lists { pattern, kind, after } => loop {
                let Some(named) = mirror.objects.get(*pattern) else {
                    copy.stage = Stage::Listed;
                    return None;
                };
                match Pattern::KINDS.get(*kind).copied() {
                    Some(kind) if named.is_of(kind) => {
                        return step(Work::List { kind, prefix: named.prefix().to_owned(), after: after.clone() });
                    }
                    Some(_) => *kind += 1,
                    None => (*pattern, *kind) = (*pattern + 1, 0),
                }
            },
            Stage::Listed if waiting.1 > 0 => None,
            Stage::Listed => step(Work::Note(copy.partitions.iter().map(|(partition, _)| *partition).collect())),
            Stage::Noted => {
                // As the sites tell it, which follow.
                if copy.partitions.iter().all(|(partition, _)| is_copied(*partition)) {
                    self.copies.remove(site);
                }
                None
            }
        }
    }

    /// Takes what came of a step; gives objects to be copied.
    pub(super) fn take(&mut self, page: Page, now: Instant) -> Vec<ObjectKey> {
        let Some(copy) = self.copies.get_mut(&page.site).filter(|copy| copy.mirror == page.mirror) else { return Vec::new() };
        match page.found {
            Found::Failed | Found::Passed(false) => copy.not_before = now + AGAIN,
            Found::Passed(true) => copy.stage = Stage::Lists { pattern: 0, kind: 0, after: None },
            Found::Noted => {
                for (partition, _) in &copy.partitions {
                    self.skipped.remove(&(page.site.clone(), *partition));
                }
                copy.stage = Stage::Noted;
            }
            Found::Objects(mut keys) => {
                if let Stage::Lists { kind, after, .. } = &mut copy.stage {
                    match keys.last().filter(|_| keys.len() >= PAGE) {
                        Some(last) => *after = Some(last.name.clone()),
                        None => (*kind, *after) = (*kind + 1, None),
                    }
                }
                keys.retain(|key| copy.partitions.iter().any(|(partition, _)| *partition == key.partition()));
                return keys;
            }
        }
        Vec::new()
    }

    /// Ends a site's copy.
    pub(super) fn forget(&mut self, site: &SiteId) {
        self.copies.remove(site);
    }

    /// Begins all anew: other partitions are this process's.
    pub(super) fn start_over(&mut self) {
        self.copies.clear();
    }

    /// Notes that changes of a partition were passed over.
    pub(super) fn skip(&mut self, site: &SiteId, partition: u16) {
        self.skipped.insert((site.clone(), partition));
    }
}
