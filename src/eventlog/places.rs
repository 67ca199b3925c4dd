//! How far what a reader read of a topic is dealt with: by partition the place below which nothing is left. Owned by rooms that deal with records out of
//! order. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::Offset;

/// Of the partitions that are read.
#[derive(Debug, Default)]
pub struct Places(BTreeMap<u16, Part>);

#[derive(Debug, Default)]
struct Part {
    /// Up to where it was read.
    read: Offset,
    /// Read and not dealt with.
    open: BTreeSet<Offset>,
    /// What was committed last.
    committed: Offset,
}

impl Places {
    /// Reads a partition from here on.
    pub fn begin(&mut self, partition: u16, from: Offset) {
        self.0.insert(partition, Part { read: from, open: BTreeSet::new(), committed: from });
    }

    /// Where a partition that is read is read on.
    pub fn read(&self, partition: u16) -> Option<Offset> {
        self.0.get(&partition).map(|part| part.read)
    }

    /// Notes that a partition was read up to here.
    pub fn read_to(&mut self, partition: u16, next: Offset) {
        if let Some(part) = self.0.get_mut(&partition) {
            part.read = next;
        }
    }

    /// Notes that a record waits.
    pub fn open(&mut self, (partition, offset): (u16, Offset)) {
        if let Some(part) = self.0.get_mut(&partition) {
            part.open.insert(offset);
        }
    }

    /// Notes that it does no longer.
    pub fn close(&mut self, (partition, offset): (u16, Offset)) {
        if let Some(part) = self.0.get_mut(&partition) {
            part.open.remove(&offset);
        }
    }

    /// Reads these partitions no longer.
    pub fn forget(&mut self, partitions: &[u16]) {
        self.0.retain(|partition, _| !partitions.contains(partition));
    }

    /// All that are read.
    pub fn all(&self) -> Vec<u16> {
        self.0.keys().copied().collect()
    }

    /// What is to be committed since this was asked last.
    pub fn commits(&mut self) -> Vec<(u16, Offset)> {
        let moved = |(partition, part): (&u16, &mut Part)| {
            let upto = part.open.first().copied().unwrap_or(part.read);
            (std::mem::replace(&mut part.committed, upto) != upto).then_some((*partition, upto))
        };
        self.0.iter_mut().filter_map(moved).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_waits_is_passed() {
        let mut places = Places::default();
        places.begin(3, 10);
        assert_eq!(places.commits(), []);
        places.read_to(3, 15);
        places.open((3, 11));
        places.open((3, 13));
        assert_eq!(places.commits(), [(3, 11)]);
        places.close((3, 13));
        assert_eq!(places.commits(), []);
        places.close((3, 11));
        assert_eq!((places.commits(), places.commits()), (vec![(3, 15)], vec![]));
        places.open((4, 1));
        places.forget(&[3]);
        places.close((3, 1));
        assert_eq!((places.commits(), places.all()), (vec![], vec![]));
    }
}
