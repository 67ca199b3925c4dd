//! What a write of the keeper does to the outside: what API clients did is appended to `events`, the objects are committed, then all is published. Called by the keeper's loop, which never has two commits, nor two publications,
//! under way at once; so each object's writes are published in their order.

use std::sync::Arc;

use tokio::time::Instant;

use super::state::Flight;
use crate::event::ObjectKey;
use crate::eventlog::{EventLog, Topic};
use crate::sync::api::archived;
use crate::sync::object::Object;
use crate::sync::{Answer, Applied, AppliedRow, Error, Feed, ObjectStore, StoredObject};

/// Loads objects; one that cannot be read comes as an error of its own and fails no other.
pub(super) async fn load(store: &dyn ObjectStore, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, Result<Option<StoredObject>, Error>)>, Error> {
    match store.load(keys).await {
        Ok(found) => Ok(keys.iter().cloned().zip(found.into_iter().map(Ok)).collect()),
        Err(Error::Corrupt { .. }) => {
            let mut out = Vec::with_capacity(keys.len());
            for key in keys {
                let one = match store.load(std::slice::from_ref(key)).await {
                    Ok(mut found) => Ok(found.pop().flatten()),
                    Err(error @ Error::Corrupt { .. }) => Err(error),
                    Err(error) => return Err(error),
                };
                out.push((key.clone(), one));
            }
            Ok(out)
        }
        Err(error) => Err(error),
    }
}

/// Archives what API clients did, then commits a flight. What the store refuses for good of it is not told to subscribers.
pub(super) async fn commit(log: Arc<dyn EventLog>, store: Arc<dyn ObjectStore>, mut flight: Flight) -> Result<Flight, Error> {
    let began = Instant::now();
    if !flight.done.is_empty() {
        let records = std::mem::take(&mut flight.done).iter().flat_map(|(key, done)| done.iter().map(|done| archived(key, done))).collect();
        log.append(Topic::Events, records).await?;
    }
    let refused = store.commit_objects(std::mem::take(&mut flight.writes), std::mem::take(&mut flight.checkpoints)).await?;
    flight.applied.retain(|(applied, _)| !refused.iter().any(|(key, _)| *key == applied.key));
    flight.refused = refused;
    metrics::histogram!("contrail_keeper_write_seconds").record(began.elapsed().as_secs_f64());
    Ok(flight)
}

/// Tells the subscribers of committed flights.
pub(super) async fn publish(store: Arc<dyn ObjectStore>, feed: Arc<dyn Feed>, mut flights: Vec<Flight>) -> Result<Vec<Flight>, Error> {
    let began = Instant::now();
    let (mut rendered, mut late) = (Vec::new(), Vec::new());
    for (applied, whole) in flights.iter_mut().flat_map(|flight| std::mem::take(&mut flight.applied)) {
        if whole {
            rendered.push(applied);
        } else if feed.wanted(&applied.key) {
            late.push(applied);
        }
    }
    // First: each is the whole object as it now is, and of what is published after something newer a subscriber takes nothing.
    let mut publish = rendered_late(store.as_ref(), late).await?;
    publish.extend(rendered);
    let answers: Vec<Answer> = flights.iter_mut().flat_map(|flight| std::mem::take(&mut flight.answers)).collect();
    if !publish.is_empty() {
        feed.publish(publish).await?;
        metrics::histogram!("contrail_keeper_publish_seconds").record(began.elapsed().as_secs_f64());
    }
    // After it: who is answered reads what it wrote, from copies too.
    if !answers.is_empty() {
        feed.answer(answers).await?;
    }
    Ok(flights)
}

/// Renders from the store what had no subscriber when it was taken but has one now, who may have read the object before the commit.
async fn rendered_late(store: &dyn ObjectStore, late: Vec<Applied>) -> Result<Vec<Applied>, Error> {
    let mut out = Vec::with_capacity(late.len());
    for mut applied in late {
        let stored = load(store, std::slice::from_ref(&applied.key)).await?.pop();
        if let Some((_, Ok(Some(stored)))) = stored
            && let Ok(object) = Object::from_stored(stored)
        {
            let head = object.head();
            let oldest = head.purged.max(head.event_id.saturating_sub(head.revision));
            let rows = object.since(oldest).unwrap_or_default();
            applied.rows = rows.into_iter().map(|(_, row): (u64, AppliedRow)| row).collect();
            (applied.after, applied.event_id, applied.revision) = (oldest, head.event_id, head.revision);
        }
        out.push(applied);
    }
    Ok(out)
}
