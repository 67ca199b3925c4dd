//! Puts in order what is read of the log. What happened to one object lies in all partitions, for an event's partition follows from its own id: so what is read
//! is held until the log was read as far as it went when that was read. By then all that came before it is there too. Owned by the room's loop. Pure.

use std::collections::{BTreeMap, HashMap};

use super::message::Message;
use crate::event::SiteId;
use crate::eventlog::Offset;

/// A message with where it came from.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) site: SiteId,
    pub(super) message: Message,
    pub(super) place: (u16, Offset),
}

/// What is told about one thing of one site.
type Line = (SiteId, String);

/// What is read and not yet to be told.
#[derive(Debug, Default)]
pub(super) struct Gather {
    held: BTreeMap<(Line, u64, u16, Offset), Held>,
    bytes: usize,
    /// By partition that is read, up to where.
    read: BTreeMap<u16, Offset>,
    marked: Option<Marked>,
}

/// What is to be told once the log is read up to its ends.
#[derive(Debug)]
struct Marked {
    /// By line the greatest number.
    upto: HashMap<Line, u64>,
    /// None until they are known.
    ends: Option<Vec<Option<Offset>>>,
}

impl Gather {
    /// Reads a partition from here on.
    pub(super) fn begin(&mut self, partition: u16, from: Offset) {
        self.read.insert(partition, from);
    }

    /// Notes that a partition was read up to here.
    pub(super) fn read_to(&mut self, partition: u16, next: Offset) {
        if let Some(read) = self.read.get_mut(&partition) {
            *read = next;
        }
    }

    /// Takes a message.
    pub(super) fn hold(&mut self, held: Held) {
        self.bytes += held.message.bytes();
        let line = (held.site.clone(), held.message.about.clone());
        self.held.insert((line, held.message.number, held.place.0, held.place.1), held);
    }

    /// Reads these partitions no longer.
    pub(super) fn forget(&mut self, partitions: &[u16]) {
        self.read.retain(|partition, _| !partitions.contains(partition));
        self.held.retain(|_, held| !partitions.contains(&held.place.0));
        self.bytes = self.held.values().map(|held| held.message.bytes()).sum();
    }

    /// Marks what is held, if anything is and nothing is marked: the log's ends are then to be asked for, and told to [`Gather::ends`].
    pub(super) fn mark(&mut self) -> bool {
        if self.marked.is_some() || self.held.is_empty() {
            return false;
        }
        // By number within each line: the last is the greatest.
        let upto = self.held.keys().map(|(line, number, ..)| (line.clone(), *number)).collect();
        self.marked = Some(Marked { upto, ends: None });
        true
    }

    /// Where the partitions end, asked after [`Gather::mark`]; None where that cannot be told, which is not waited for.
    pub(super) fn ends(&mut self, ends: Vec<Option<Offset>>) {
        if let Some(marked) = &mut self.marked {
            marked.ends = Some(ends);
        }
    }

    /// What is to be told now, in order; all there is where that is more than fits.
    pub(super) fn release(&mut self, fits: usize) -> Vec<Held> {
        if self.bytes > fits {
            self.marked = None;
            self.bytes = 0;
            return std::mem::take(&mut self.held).into_values().collect();
        }
        let Some(Marked { ends: Some(ends), .. }) = &self.marked else { return Vec::new() };
        let is_read = |(partition, read): (&u16, &Offset)| ends.get(usize::from(*partition)).copied().flatten().is_none_or(|end| *read >= end);
        if !self.read.iter().all(is_read) {
            return Vec::new();
        }
        let upto = self.marked.take().map(|marked| marked.upto).unwrap_or_default();
        let is_marked = |(line, number, ..): &(Line, u64, u16, Offset)| upto.get(line).is_some_and(|upto| number <= upto);
        let (out, held) = std::mem::take(&mut self.held).into_iter().partition(|(key, _)| is_marked(key));
        self.held = held;
        self.bytes = self.held.values().map(|held| held.message.bytes()).sum();
        let out: BTreeMap<_, Held> = out;
        out.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::message::tests::archived;
    use super::*;

    fn held(number: u64, partition: u16, offset: Offset) -> Held {
        let object = json!({"sid": "ET1", "kind": "document", "event_id": number, "revision": number});
        let (_, record) = archived("demo", "e", &json!({"action": "document_updated", "identity": "alice", "object": object}));
        Held { site: record.site.clone(), message: Message::of(&record).unwrap(), place: (partition, offset) }
    }

    fn numbers(held: &[Held]) -> Vec<u64> {
        held.iter().map(|held| held.message.number).collect()
    }

    #[test]
    fn nothing_is_told_before_what_came_before_it() {
        let mut gather = Gather::default();
        (0..3).for_each(|partition| gather.begin(partition, 0));
        assert!(!gather.mark(), "nothing is held");
        gather.hold(held(3, 1, 0));
        gather.read_to(1, 1);
        assert!(gather.mark() && !gather.mark());
        assert!(gather.release(usize::MAX).is_empty(), "the ends are not known");
        gather.ends(vec![Some(2), Some(1), Some(0)]);
        assert!(gather.release(usize::MAX).is_empty(), "partition 0 has more");
        // Of what comes after it was marked, what is earlier goes first, and what is later waits.
        for (number, offset) in [(2, 0), (4, 1), (1, 2)] {
            gather.hold(held(number, 0, offset));
        }
        gather.read_to(0, 3);
        assert_eq!(numbers(&gather.release(usize::MAX)), [1, 2, 3]);
        assert!(gather.mark());
        gather.ends(vec![None; 3]);
        assert_eq!(numbers(&gather.release(usize::MAX)), [4], "an end that is unknown is not waited for");
        assert_eq!(gather.bytes, 0);
    }

    #[test]
    fn partitions_that_go_are_waited_for_no_longer_and_what_is_too_much_goes_at_once() {
        let mut gather = Gather::default();
        (0..2).for_each(|partition| gather.begin(partition, 0));
        gather.hold(held(1, 0, 0));
        gather.hold(held(2, 1, 0));
        gather.read_to(0, 1);
        assert!(gather.mark());
        gather.ends(vec![Some(1), Some(9)]);
        assert!(gather.release(usize::MAX).is_empty());
        gather.forget(&[1]);
        assert_eq!(numbers(&gather.release(usize::MAX)), [1]);
        gather.hold(held(9, 0, 1));
        gather.hold(held(8, 0, 2));
        assert_eq!(numbers(&gather.release(gather.bytes - 1)), [8, 9]);
    }
}
