//! What the log forgets: whole segments older than the retention age that every group has passed. Called by the log's owner on a timer; must never remove
//! a record that some group has not durably taken in.

use std::io;
use std::sync::atomic::Ordering;

use super::offsets::Offsets;
use super::topic::{State, TopicLog, segment_name};
use crate::event::Timestamp;

/// Removes what may go, oldest first, each removal durable before the next: a power loss never leaves a gap.
pub(super) fn retain(log: &TopicLog, now: Timestamp) -> io::Result<()> {
    let age = i64::try_from(log.settings.retention.as_micros()).unwrap_or(i64::MAX);
    let oldest_kept = now.plus_micros(age.saturating_neg());
    loop {
        let mut state = log.state();
        if state.doomed.is_empty()
            && let Some(bytes) = drop_oldest(&mut state, oldest_kept)
        {
            log.disk_bytes.fetch_sub(bytes, Ordering::Relaxed);
            log.show_disk_bytes();
        }
        let Some(seq) = state.doomed.front().copied() else { return Ok(()) };
        drop(state);
        match log.disk.remove(&log.dir.join(segment_name(seq))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => log.disk.sync_dir(&log.dir)?,
        }
        tracing::info!(log.topic = log.topic.name(), log.segment = seq, "removed a segment that every group has passed");
        log.state().doomed.pop_front();
    }
}

/// Takes the oldest segment out of the readers' sight, if nobody needs it; says its size. A reader asking for it from now on is out of range.
fn drop_oldest(state: &mut State, oldest_kept: Timestamp) -> Option<u64> {
    let first = state.segments.front()?;
    // The segment being written stays: it is never passed, and the log's offsets live in it.
    let behind = state.segments.get(1)?.base;
    // A topic that nobody reads yet keeps everything: its readers are still to come.
    let holding = state.groups.values().filter(|group| group.holds).map(|group| group.committed);
    let passed: Offsets = holding.reduce(|lowest, committed| lowest.min(&committed))?;
    // A partition without records in this segment has nothing to pass.
    let needed = behind.iter().any(|(partition, end)| first.base.of(partition) < end && passed.of(partition) < end);
    if first.newest > oldest_kept || needed {
        return None;
    }
    let gone = state.segments.pop_front()?;
    state.doomed.push_back(gone.seq);
    Some(gone.end)
}
