//! A member of a consumer group of the embedded log. Called by its room's loop; must never deliver a record that is not synced, from a partition it does
//! not own, or across a gap.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use super::groups::Member;
use super::topic::{State, TopicLog};
use crate::event::PARTITIONS;
use crate::eventlog::{Consumer, Delivery, Error, Offset};

/// What a member knows of a partition it owns.
#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    /// Where it reads on; nothing is delivered before the first seek.
    at: Option<Offset>,
    paused: bool,
    /// Whether this seek has already failed.
    failed: bool,
}

/// A member.
pub(super) struct GroupReader {
    log: Arc<TopicLog>,
    group: String,
    member: Member,
    wake: watch::Receiver<()>,
    reading: BTreeMap<u16, Reading>,
    /// Told to give up, and given up with the next call: by then its room has heard of it.
    giving_up: Vec<u16>,
    /// The partition served last; the next one's turn is behind it.
    served: u16,
}

/// What a member does next.
enum Step {
    Deliver(Delivery),
    Read { partition: u16, from: Offset },
    Wait,
}

impl GroupReader {
    /// Joins a group that exists.
    pub(super) fn join(log: Arc<TopicLog>, group: &str, member: Member) -> Self {
        let wake = log.wake.subscribe();
        log.state().groups.entry(group.to_owned()).or_default().join(member);
        log.wake.send_replace(());
        Self { log, group: group.to_owned(), member, wake, reading: BTreeMap::new(), giving_up: Vec::new(), served: PARTITIONS - 1 }
    }

    fn step(&mut self) -> Result<Step, Error> {
        let log = Arc::clone(&self.log);
        log.health.check()?;
        let mut state = log.state();
        if let Some(delivery) = self.rebalance(&mut state) {
            drop(state);
            log.wake.send_replace(());
            return Ok(Step::Deliver(delivery));
        }
        let served = self.served;
        let turns = (1..=PARTITIONS).map(|turn| (served + turn) % PARTITIONS);
        for partition in turns {
            let Some(reading) = self.reading.get_mut(&partition).filter(|reading| !reading.paused && !reading.failed) else { continue };
            let Some(from) = reading.at else { continue };
            if let Err(error) = state.admit(log.topic, partition, from) {
                reading.failed = true;
                return Ok(Step::Deliver(Delivery::Failed { partition, error }));
            }
            if from < state.next.of(partition) {
                return Ok(Step::Read { partition, from });
            }
        }
        Ok(Step::Wait)
    }

    /// Gives up and takes over partitions as the group's membership asks.
    fn rebalance(&mut self, state: &mut State) -> Option<Delivery> {
        let group = state.groups.get_mut(&self.group)?;
        if !self.giving_up.is_empty() {
            group.release(self.member, &self.giving_up);
            self.giving_up.clear();
            self.log.wake.send_replace(());
        }
        let surplus = group.surplus(self.member);
        if !surplus.is_empty() {
            self.reading.retain(|partition, _| !surplus.contains(partition));
            self.giving_up.clone_from(&surplus);
            return Some(Delivery::Revoked(surplus));
        }
        let taken = group.take(self.member);
        self.reading.extend(taken.iter().map(|partition| (*partition, Reading::default())));
        (!taken.is_empty()).then_some(Delivery::Assigned(taken))
    }

    async fn deliver(&mut self, partition: u16, from: Offset, max_bytes: usize) -> Result<Option<Delivery>, Error> {
        let read = self.log.read(partition, from, max_bytes).await;
        self.served = partition;
        let Some(reading) = self.reading.get_mut(&partition) else { return Ok(None) };
        match read {
            Ok((records, next)) => {
                let Some(last) = records.last() else { return Ok(None) };
                reading.at = Some(last.offset + 1);
                Ok(Some(Delivery::Records { partition, records, next }))
            }
            Err(error @ (Error::Damaged { .. } | Error::OutOfRange { .. })) => {
                reading.failed = true;
                Ok(Some(Delivery::Failed { partition, error }))
            }
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl Consumer for GroupReader {
    async fn next(&mut self, max_bytes: usize) -> Result<Delivery, Error> {
        loop {
            // Marked as seen before looking, so that what is published after the look wakes the wait.
            self.wake.borrow_and_update();
            match self.step()? {
                Step::Deliver(delivery) => return Ok(delivery),
                Step::Read { partition, from } => {
                    if let Some(delivery) = self.deliver(partition, from, max_bytes).await? {
                        return Ok(delivery);
                    }
                }
                Step::Wait => {
                    self.wake.changed().await.map_err(|_| Error::Closed("it is gone".to_owned()))?;
                }
            }
        }
    }

    fn seek(&mut self, partition: u16, offset: Offset) {
        if let Some(reading) = self.reading.get_mut(&partition) {
            reading.at = Some(offset);
            reading.failed = false;
        }
    }

    fn pause(&mut self, partition: u16) {
        if let Some(reading) = self.reading.get_mut(&partition) {
            reading.paused = true;
        }
    }

    fn resume(&mut self, partition: u16) {
        if let Some(reading) = self.reading.get_mut(&partition) {
            reading.paused = false;
        }
    }

    fn commit(&mut self, partition: u16, offset: Offset) {
        let mut state = self.log.state();
        let Some(group) = state.groups.get_mut(&self.group).filter(|group| group.owns(self.member, partition)) else { return };
        group.committed.set(partition, offset);
        group.holds = true;
        state.groups_changed = true;
    }
}

impl Drop for GroupReader {
    fn drop(&mut self) {
        let mut state = self.log.state();
        if let Some(group) = state.groups.get_mut(&self.group) {
            group.leave(self.member);
            if group.is_empty() && !group.holds {
                state.groups.remove(&self.group);
            }
        }
        drop(state);
        self.log.wake.send_replace(());
    }
}
