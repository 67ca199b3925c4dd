//! Refusals by site and code, appended once a second, so that the books can show what was turned away. Counted by the handler, flushed by
//! `Ingest::run`. Bounded by sites times codes. A crash loses at most the last second's. What was kept in quarantine is not counted here.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::canonical::{hash_key, new_event_id};
use super::reject::Code;
use crate::event::record::{self, Channel, Flags, RecordKind};
use crate::event::{KeyKind, PARTITIONS, Record, SiteId, Timestamp, ids};
use crate::eventlog::{Append, EventLog, Topic};

/// The counts since the last flush.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<HashMap<SiteId, BTreeMap<Code, u64>>>);

impl Refusals {
    /// Counts one refused event, or one refused request whose events could not be told.
    pub(crate) fn count(&self, site: &SiteId, code: Code) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(site.clone()).or_default().entry(code).or_default() += 1;
    }

    /// Appends what was counted, a record per site. False where the log does not take it, or not before `given_up`: it is kept for the next time. Not to be
    /// given up where there is one, for what is on its way may come to be, and would be counted twice.
    pub(crate) async fn flush(&self, log: &dyn EventLog, given_up: impl Future<Output = ()>, now: Timestamp) -> bool {
        let counts = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if counts.is_empty() {
            return true;
        }
        let appends = counts.iter().map(|(site, by_code)| to_append(site, by_code, now)).collect();
        let why = tokio::select! {
            appended = log.append(Topic::Events, appends) => match appended {
                Ok(_) => return true,
                Err(error) => error.to_string(),
            },
            () = given_up => "the log does not answer".into(),
        };
        tracing::warn!(why, "the last second's refusals could not be appended; kept for the next try");
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (site, by_code) in counts {
            let site = kept.entry(site).or_default();
            by_code.into_iter().for_each(|(code, count)| *site.entry(code).or_default() += count);
        }
        false
    }
}

fn to_append(site: &SiteId, by_code: &BTreeMap<Code, u64>, now: Timestamp) -> Append {
    let by_code = by_code.iter().map(|(code, count)| (code.name().to_owned(), *count)).collect();
    // Plain data always serialises.
    let body = Bytes::from(serde_json::to_vec(&record::Refusals { by_code }).unwrap_or_default());
    let event_id = new_event_id(now);
    let partition = (hash_key(site, KeyKind::Event, &event_id) % u64::from(PARTITIONS)) as u16;
    let record = Record {
        kind: RecordKind::Refusals,
        body_key: 0,
        site: site.clone(),
        fingerprint: ids::fingerprint(&body),
        received_at: now,
        key_kind: KeyKind::Event,
        key: event_id.clone(),
        event_id,
        flags: Flags::default(),
        channel: Channel::Server,
        body,
    };
    Append { partition, value: record.to_bytes() }
}
