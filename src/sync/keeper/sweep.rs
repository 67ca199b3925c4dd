//! Finds what has expired and what is long gone: called by the keeper's loop on a timer. Removal is itself a change, appended to `changes`; must never
//! remove an object behind the keeper's back.

use std::future::Future;
use std::sync::Arc;

use super::Keeper;
use crate::event::change::{Call, Op, Origin, RequestId, Stamp};
use crate::event::{Change, ObjectKey, Timestamp};
use crate::eventlog::{Append, Topic};
use crate::sync::{Error, Head};

/// The names that may expire.
const EXPIRING: [&str; 4] = ["customer.", "visitor.", "trail.", "page."];
/// Most objects of one sweep and name.
const LIMIT: usize = 2_000;

/// One sweep over the partitions owned: appends a removal for each object that has expired and deletes tombstones that nobody needs. Whether there may be more.
pub(super) fn once(keeper: &Keeper, owned: Vec<u16>) -> impl Future<Output = Result<bool, Error>> + Send + 'static {
    let (log, store, settings, now) = (Arc::clone(&keeper.log), Arc::clone(&keeper.store), keeper.settings.clone(), keeper.clock.now());
    async move {
        let (mut removals, mut more) = (Vec::new(), false);
        for prefix in EXPIRING {
            let Some(ttl) = settings.expiry.ttl_of(prefix) else { continue };
            let expired = store.stale(&owned, prefix, before(now, ttl), LIMIT).await?;
            more |= expired.len() >= LIMIT;
            removals.extend(expired.into_iter().map(|(key, head)| removal(key, &head, now)));
        }
        let expired = store.expiring(&owned, now, LIMIT).await?;
        more |= expired.len() >= LIMIT;
        removals.extend(expired.into_iter().map(|(key, _)| expiry(key, now)));
        if !removals.is_empty() {
            metrics::counter!("contrail_keeper_expired_total").increment(removals.len() as u64);
            log.append(Topic::Changes, removals).await?;
        }
        let starts: Vec<u64> = log.bounds(Topic::Changes).await?.into_iter().map(|bounds| bounds.start).collect();
        let (_, kept) = store.offsets().await?;
        let passed = |key: &ObjectKey, head: &Head| {
            let at = |offsets: &[u64]| offsets.get(usize::from(key.partition())).copied().unwrap_or(0);
            head.upto < at(&kept).min(at(&starts))
        };
        let tombstones = store.tombstones(&owned, before(now, settings.tombstones), LIMIT).await?;
        let gone: Vec<ObjectKey> = tombstones.into_iter().filter(|(key, head)| passed(key, head)).map(|(key, _)| key).collect();
        if !gone.is_empty() {
            store.purge(&gone).await?;
        }
        Ok(more)
    }
}

fn before(now: Timestamp, age: std::time::Duration) -> Timestamp {
    now.plus_micros(-i64::try_from(age.as_micros()).unwrap_or(i64::MAX))
}

/// The change that removes what is past the lifetime that an API client gave it.
fn expiry(key: ObjectKey, now: Timestamp) -> Append {
    let partition = key.partition();
    let origin = Origin::Client { request: RequestId::default(), identity: "system".into() };
    let stamp = Stamp { at: now, id: String::new() };
    let change = Change { key, origin, received_at: now, stamp, ops: vec![Op::Call(Call::Expire)] };
    Append { partition, value: change.to_bytes() }
}

/// The change that removes an object unless something changed it since it was found expired.
fn removal(key: ObjectKey, head: &Head, now: Timestamp) -> Append {
    let partition = key.partition();
    let change = Change {
        key,
        origin: Origin::Expiry { unchanged_since: head.upto },
        received_at: now,
        stamp: Stamp { at: now, id: String::new() },
        ops: vec![Op::Remove],
    };
    Append { partition, value: change.to_bytes() }
}
