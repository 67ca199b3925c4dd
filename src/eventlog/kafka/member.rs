//! What a member of a group holds between its Kafka thread and its reader: records read ahead, where each partition stands, and what the reader asked
//! for. Pure but for its lock: talks to no broker. Every record is checked to be the next one of its partition.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::eventlog::{Delivery, Error, Offset, Stored};

/// Bytes read ahead, over all partitions, beyond which no more is taken from librdkafka.
pub(super) const READ_AHEAD: usize = 16 << 20;

/// A partition that got no record for so long is looked at, and where records wait for it at the brokers, it is read on; so is a group that was not reached.
const STALL: Duration = Duration::from_secs(30);
/// Where that was in vain so often in a row, the client itself stands still: it is to be replaced.
const VAIN: u8 = 3;

/// How long a task that failed is left alone: at least, and at most. In between as long as the attempt took, and twice as long from time to time.
const REST: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));
/// A partition that librdkafka told so often in a row not to fetch is sought anew. (Once may be on its way there.)
const GIVEN_UP: u8 = 2;

/// One owned partition.
#[derive(Debug, Default)]
struct Part {
    /// The next offset to come from Kafka; None before the first seek and after a failure.
    expected: Option<Offset>,
    /// Sought, and not yet sought at Kafka.
    seek: Option<Offset>,
    /// Read ahead.
    buffer: VecDeque<Stored>,
    /// Paused by the reader.
    paused: bool,
    /// The partition's end, as last heard.
    end: Offset,
    /// When it last got a record, or was sought.
    moved: Option<Instant>,
    /// After a task that failed: before when none of its kind is tried again, and how long that is.
    rest: Option<(Instant, Duration)>,
    /// How often in a row librdkafka told that it does not fetch it.
    unfetched: u8,
    /// How often in a row it was read on, as records waited for it and none came.
    stalls: u8,
}

impl Part {
    fn bytes(&self) -> usize {
        self.buffer.iter().map(|stored| stored.value.len()).sum()
    }

    /// What counts as read ahead: of a paused one nothing, as nobody takes it, and the others are to be read meanwhile.
    fn counted(&self) -> usize {
        if self.paused { 0 } else { self.bytes() }
    }
}

/// What the thread has to do for one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Check the offset, and that the group read in this topic, then read from it.
    Seek(u16, Offset),
    /// Check the offset, then read from it.
    Begin(u16, Offset),
    /// Read on from the offset: after a pause.
    ReadOn(u16, Offset),
    /// Read no more for now.
    Pause(u16),
    /// Ask where the partition ends, and read it on where that is later: nothing came for long, and of a partition that is not fetched no end is heard either.
    Look(u16, Offset),
}

impl Task {
    /// The partition it is for.
    pub(super) const fn partition(self) -> u16 {
        let (Self::Seek(partition, _) | Self::Begin(partition, _) | Self::ReadOn(partition, _) | Self::Pause(partition) | Self::Look(partition, _)) =
            self;
        partition
    }
}

/// What the reader has of a partition in its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Everything below.
    Below(Offset),
    /// Nothing of the topic that is there now.
    Nothing,
}

impl Said {
    /// Where its part of the topic ends.
    pub(super) const fn end(self) -> Offset {
        match self {
            Self::Below(offset) => offset,
            Self::Nothing => 0,
        }
    }
}

/// How far a revocation is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Revocation {
    /// None is under way.
    #[default]
    None,
    /// The reader has yet to be told.
    Told(bool),
}

/// The shared state.
#[derive(Debug, Default)]
pub(super) struct Member {
    /// Told before any records.
    control: VecDeque<Delivery>,
    parts: BTreeMap<u16, Part>,
    /// Tasks that the reader's calls made.
    tasks: VecDeque<Task>,
    /// After an attempt that failed: until when records that are there are taken before anything else is tried.
    taking: Option<Instant>,
    /// The partition served last.
    served: u16,
    /// By partition what the reader said is reflected in its store, and whether the brokers may not know it yet.
    pub(super) said: BTreeMap<u16, Said>,
    pub(super) unsaid: bool,
    revocation: Revocation,
    /// Read ahead, but for paused partitions.
    bytes: usize,
    /// Since when its client has not reached the group, or that was last looked after; and how often another one was answered then.
    astray: Option<(Instant, u8)>,
    /// Whether its client is to be replaced.
    pub(super) wedged: bool,
    /// Why it stopped.
    pub(super) stopped: Option<Error>,
}

impl Member {
    /// The next delivery; None while there is none.
    pub(super) fn deliver(&mut self, max_bytes: usize) -> Option<Result<Delivery, Error>> {
        if self.revocation == Revocation::Told(true) {
            // The reader asks again: it has dealt with it.
            self.revocation = Revocation::None;
        }
        if let Some(error) = &self.stopped {
            return Some(Err(error.clone()));
        }
        if let Some(delivery) = self.control.pop_front() {
            if matches!(delivery, Delivery::Revoked(_)) {
                self.revocation = Revocation::Told(true);
            }
            return Some(Ok(delivery));
        }
        let ready = |part: &Part| !part.paused && !part.buffer.is_empty();
        let after = self.parts.range(self.served + 1..).find(|(_, part)| ready(part));
        let partition = *after.or_else(|| self.parts.iter().find(|(_, part)| ready(part)))?.0;
        self.served = partition;
        let part = self.parts.get_mut(&partition)?;
        let (mut records, mut bytes) = (Vec::new(), 0);
        while let Some(next) = part.buffer.front()
            && (records.is_empty() || bytes + next.value.len() <= max_bytes)
        {
            bytes += next.value.len();
            records.extend(part.buffer.pop_front());
        }
        self.bytes -= bytes;
        let next = records.last().map_or(0, |stored| stored.offset + 1).max(part.end);
        Some(Ok(Delivery::Records { partition, records, next }))
    }

    /// See [`crate::eventlog::Consumer::seek`].
    pub(super) fn seek(&mut self, partition: u16, offset: Offset) {
        self.seek_by(Task::Seek(partition, offset), offset);
    }

    /// See [`crate::eventlog::Consumer::begin`].
    pub(super) fn begin(&mut self, partition: u16, offset: Offset) {
        self.seek_by(Task::Begin(partition, offset), offset);
        self.said.remove(&partition);
        self.commit(partition, offset);
    }

    fn seek_by(&mut self, task: Task, offset: Offset) {
        let Some(part) = self.parts.get_mut(&task.partition()) else { return };
        self.bytes -= part.counted();
        part.buffer.clear();
        (part.expected, part.seek) = (None, Some(offset));
        self.tasks.push_back(task);
    }

    /// See [`crate::eventlog::Consumer::pause`].
    pub(super) fn pause(&mut self, partition: u16) {
        if let Some(part) = self.parts.get_mut(&partition)
            && !part.paused
        {
            self.bytes -= part.counted();
            part.paused = true;
            self.tasks.push_back(Task::Pause(partition));
        }
    }

    /// See [`crate::eventlog::Consumer::resume`].
    pub(super) fn resume(&mut self, partition: u16) {
        if let Some(part) = self.parts.get_mut(&partition)
            && part.paused
        {
            part.paused = false;
            self.bytes += part.counted();
            part.moved = None;
            self.tasks.extend(part.expected.map(|offset| Task::ReadOn(partition, offset)));
        }
    }

    /// See [`crate::eventlog::Consumer::commit`].
    pub(super) fn commit(&mut self, partition: u16, offset: Offset) {
        // Of one that is not read, its reader says what it has of it from before.
        let is_read = self.parts.get(&partition).is_some_and(|part| part.expected.is_some() || part.seek.is_some());
        if is_read && self.said.get(&partition) != Some(&Said::Nothing) {
            self.said.insert(partition, Said::Below(offset));
            self.unsaid = true;
        }
    }

    /// What the group read of a partition was of another topic of that name: the brokers are to know that it read nothing of this one.
    pub(super) fn disown(&mut self, partition: u16) {
        self.said.insert(partition, Said::Nothing);
        self.unsaid = true;
    }

    /// What the thread has to do, each partition's latest wish; nothing for a partition that rests, nor while records that are there go first.
    pub(super) fn tasks(&mut self, now: Instant) -> Vec<Task> {
        if self.taking.is_some_and(|until| now < until) {
            return Vec::new();
        }
        let mut tasks: Vec<Task> = self.tasks.drain(..).collect();
        tasks.retain_mut(|task| match task {
            Task::Seek(partition, offset) | Task::Begin(partition, offset) => {
                self.parts.get(partition).is_some_and(|part| part.seek == Some(*offset))
            }
            Task::ReadOn(partition, offset) => {
                // From where it is now: records that came meanwhile must not leave it paused.
                let next = self.parts.get(partition).filter(|part| !part.paused).and_then(|part| part.expected);
                *offset = next.unwrap_or(*offset);
                next.is_some()
            }
            Task::Pause(partition) => self.parts.get(partition).is_some_and(|part| part.paused),
            Task::Look(partition, offset) => self.parts.get(partition).is_some_and(|part| !part.paused && part.expected == Some(*offset)),
        });
        for (partition, part) in &mut self.parts {
            let Some(expected) = part.expected.filter(|_| !part.paused) else { continue };
            let moved = *part.moved.get_or_insert(now);
            if now.duration_since(moved) > STALL {
                part.moved = Some(now);
                // What failed is still to be done.
                if !tasks.iter().any(|task| task.partition() == *partition) {
                    tasks.push(Task::Look(*partition, expected));
                }
            }
        }
        let rests = |task: &Task| self.parts.get(&task.partition()).and_then(|part| part.rest).is_some_and(|(until, _)| now < until);
        let (later, due): (Vec<Task>, Vec<Task>) = tasks.into_iter().partition(|task| !matches!(task, Task::Pause(_)) && rests(task));
        self.tasks.extend(later);
        due
    }

    /// A task that came of the thread's own doing.
    pub(super) fn again(&mut self, task: Task) {
        self.tasks.push_back(task);
    }

    /// Tasks before which records that are there are taken, for as long as those before them took, as is what the group wants.
    pub(super) fn put_behind(&mut self, rest: impl IntoIterator<Item = Task>, (began, now): (Instant, Instant)) {
        self.taking = Some(now + now.duration_since(began).max(REST.0));
        self.tasks.extend(rest);
    }

    /// A task that could not be done at present, from when to when that was tried, and those behind it. One partition that cannot be asked for holds up no other:
    /// what is behind goes first next time, records that are there before all, and the partition rests for longer each time.
    pub(super) fn put_off(&mut self, task: Task, rest: impl IntoIterator<Item = Task>, (began, now): (Instant, Instant)) {
        let (least, most) = REST;
        let took = now.duration_since(began).max(least);
        self.put_behind(rest, (began, now));
        self.tasks.push_back(task);
        if let Some(part) = self.parts.get_mut(&task.partition()) {
            let wait = part.rest.map_or(took, |(_, last)| (last * 2).max(took).min(most));
            part.rest = Some((now + wait, wait));
        }
    }

    /// A task was done. Where the brokers were asked for it, its partition rests no longer.
    pub(super) fn done(&mut self, task: Task) {
        if let Some(part) = self.parts.get_mut(&task.partition()).filter(|_| !matches!(task, Task::Pause(_))) {
            part.rest = None;
        }
    }

    /// Records wait for a partition at its leader, which answers, and none came for long. True where reading on was in vain so often that another client is to
    /// try.
    pub(super) fn count_stall(&mut self, partition: u16) -> bool {
        // While its reader has enough, none is taken.
        let is_full = self.is_full();
        let Some(part) = self.parts.get_mut(&partition).filter(|_| !is_full) else { return false };
        part.stalls += 1;
        part.stalls > VAIN
    }

    /// All records that are there were taken.
    pub(super) fn drained(&mut self) {
        self.taking = None;
    }

    /// Kafka reads a sought partition from here on; `end` is its end. False where the reader has sought elsewhere since.
    pub(super) fn sought(&mut self, partition: u16, offset: Offset, end: Offset) -> bool {
        let Some(part) = self.parts.get_mut(&partition).filter(|part| part.seek == Some(offset)) else { return false };
        (part.seek, part.expected, part.end, part.moved) = (None, Some(offset), end, None);
        if self.said.get(&partition) == Some(&Said::Nothing) {
            self.said.remove(&partition);
        }
        true
    }

    /// Takes a record; one that was not waited for is dropped, one that comes too early fails its partition.
    pub(super) fn take(&mut self, topic: &'static str, partition: u16, stored: Stored, now: Instant) {
        let Some(part) = self.parts.get_mut(&partition) else { return };
        let Some(expected) = part.expected else { return };
        if stored.offset > expected {
            let what = format!("the brokers went on at {}", stored.offset);
            self.fail(partition, Error::Damaged { topic, partition, offset: expected, what });
        } else if stored.offset == expected {
            (part.expected, part.moved, part.stalls) = (Some(expected + 1), Some(now), 0);
            self.bytes += if part.paused { 0 } else { stored.value.len() };
            part.buffer.push_back(stored);
        }
    }

    /// A partition cannot be read on. What was read ahead of it is still delivered by nobody: its reader seeks anew.
    pub(super) fn fail(&mut self, partition: u16, error: Error) {
        let Some(part) = self.parts.get_mut(&partition) else { return };
        self.bytes -= part.counted();
        part.buffer.clear();
        (part.expected, part.seek) = (None, None);
        self.control.push_back(Delivery::Failed { partition, error });
    }

    /// Partitions being read, with the next offset of each.
    pub(super) fn reading(&self) -> Vec<(u16, Offset)> {
        self.parts.iter().filter_map(|(partition, part)| Some((*partition, part.expected?))).collect()
    }

    /// The end of a partition as the brokers tell it.
    pub(super) fn heard_end(&mut self, partition: u16, end: Offset) {
        let Some(part) = self.parts.get_mut(&partition).filter(|part| part.end < end) else { return };
        if part.expected.is_none_or(|expected| expected >= part.end) {
            // It had nothing to wait for until now.
            part.moved = None;
        }
        part.end = end;
    }

    /// Whether librdkafka fetches a partition, as it tells now and then. One that it gave up, as where a leader for a moment did not have an offset that is
    /// there, it never takes up by itself.
    pub(super) fn heard_fetched(&mut self, partition: u16, is_fetched: bool) {
        let Some(part) = self.parts.get_mut(&partition) else { return };
        let Some(expected) = part.expected.filter(|_| !is_fetched && !part.paused) else {
            part.unfetched = 0;
            return;
        };
        part.unfetched += 1;
        if part.unfetched >= GIVEN_UP {
            part.unfetched = 0;
            self.tasks.push_back(Task::ReadOn(partition, expected));
        }
    }

    /// Whether librdkafka reaches the group, as it tells now and then. One that does not gets no partition, and none of what it has moves.
    pub(super) fn heard_group(&mut self, is_reached: bool, now: Instant) {
        if is_reached {
            self.astray = None;
        } else {
            self.astray.get_or_insert((now, 0));
        }
    }

    /// Whether to look after a group that is not reached: each time that was so for long.
    pub(super) fn is_astray(&mut self, now: Instant) -> bool {
        let Some((since, _)) = self.astray.as_mut().filter(|(since, _)| now.duration_since(*since) > STALL) else { return false };
        *since = now;
        true
    }

    /// The brokers answer another client, and this one did not reach its group for long. True where that was so often that another one is to try.
    pub(super) fn count_astray(&mut self) -> bool {
        let Some((_, looks)) = &mut self.astray else { return false };
        *looks = looks.saturating_add(1);
        *looks > VAIN
    }

    /// The group gave it these.
    pub(super) fn assigned(&mut self, mut partitions: Vec<u16>) {
        partitions.sort_unstable();
        partitions.iter().for_each(|partition| drop(self.parts.insert(*partition, Part::default())));
        self.control.push_back(Delivery::Assigned(partitions));
    }

    /// The group takes these away. Until [`Self::is_revoked`], the reader may be writing what it holds of them.
    pub(super) fn revoked(&mut self, mut partitions: Vec<u16>) {
        partitions.sort_unstable();
        partitions.retain(|partition| self.parts.contains_key(partition));
        for part in partitions.iter().filter_map(|partition| self.parts.remove(partition)) {
            self.bytes -= part.counted();
        }
        let gone = |partition: &u16| partitions.contains(partition);
        self.control.retain(|delivery| !matches!(delivery, Delivery::Failed { partition, .. } if gone(partition)));
        if !partitions.is_empty() {
            self.revocation = Revocation::Told(false);
            self.control.push_back(Delivery::Revoked(partitions));
        }
    }

    /// All partitions are another's; nobody waits for the reader to have dealt with it.
    pub(super) fn lost(&mut self) {
        self.tasks.clear();
        self.astray = None;
        self.revoked(self.parts.keys().copied().collect());
    }

    /// Whether the reader has dealt with what was revoked.
    pub(super) fn is_revoked(&self) -> bool {
        self.revocation == Revocation::None || self.stopped.is_some()
    }

    /// Whether enough is read ahead.
    pub(super) const fn is_full(&self) -> bool {
        self.bytes >= READ_AHEAD
    }
}

#[cfg(test)]
mod tests;
