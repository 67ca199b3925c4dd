//! Consumer groups within the one process: who owns which partition, what each group has committed, and the `groups` file that keeps the commits.
//! Membership is pure and stepped by [`super::consumer`]; must never let two live members own one partition.

use std::io;
use std::path::Path;

use super::disk::{Disk, Mode, read_range};
use super::format::topic_number;
use super::offsets::{COUNT, Offsets};
use crate::event::PARTITIONS;
use crate::eventlog::{Error, Topic};

/// A member of a group, by number; numbers rise in the order of joining.
pub(super) type Member = u64;

/// One group of one topic.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// What it committed, 0 where nothing.
    pub(super) committed: Offsets,
    /// Whether it holds retention back: from its first subscription until it is forgotten.
    pub(super) holds: bool,
    members: Vec<Member>,
    owner: [Option<Member>; COUNT],
}

impl Group {
    /// A group known from the `groups` file.
    pub(super) fn kept(committed: Offsets) -> Self {
        Self { committed, holds: true, ..Self::default() }
    }

    /// A member joins; the others give up part of their partitions as they next ask.
    pub(super) fn join(&mut self, member: Member) {
        self.members.push(member);
    }

    /// A member leaves; its partitions are free at once.
    pub(super) fn leave(&mut self, member: Member) {
        self.members.retain(|other| *other != member);
        for owner in self.owner.iter_mut().filter(|owner| **owner == Some(member)) {
            *owner = None;
        }
    }

    /// Whether nobody is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether the member owns the partition now.
    pub(super) fn owns(&self, member: Member, partition: u16) -> bool {
        self.owner.get(usize::from(partition)) == Some(&Some(member))
    }

    /// What the member owns and should not.
    pub(super) fn surplus(&self, member: Member) -> Vec<u16> {
        (0..PARTITIONS).filter(|partition| self.owns(member, *partition) && self.intended(*partition) != Some(member)).collect()
    }

    /// Frees partitions that the member has been told to give up and has.
    pub(super) fn release(&mut self, member: Member, partitions: &[u16]) {
        for partition in partitions {
            if let Some(owner) = self.owner.get_mut(usize::from(*partition)).filter(|owner| **owner == Some(member)) {
                *owner = None;
            }
        }
    }

    /// Gives the member what is meant for it and free; says what.
    pub(super) fn take(&mut self, member: Member) -> Vec<u16> {
        let free: Vec<u16> =
            (0..PARTITIONS).filter(|p| self.owner.get(usize::from(*p)) == Some(&None) && self.intended(*p) == Some(member)).collect();
        for partition in &free {
            if let Some(owner) = self.owner.get_mut(usize::from(*partition)) {
                *owner = Some(member);
            }
        }
        free
    }

    /// Even, contiguous shares in the order of joining.
    fn intended(&self, partition: u16) -> Option<Member> {
        self.members.get(usize::from(partition) * self.members.len() / COUNT).copied()
    }
}

const MAGIC: [u8; 8] = *b"CTRLGRPS";
const VERSION: u8 = 1;
const FILE: &str = "groups";

/// What the `groups` file holds of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// Of which topic.
    pub(super) topic: Topic,
    /// Its name.
    pub(super) name: String,
    /// What it committed.
    pub(super) committed: Offsets,
}

/// The file's bytes: `CTRLGRPS`, version (u8), groups (u32), each topic (u8), length of the name (u16), name, 16 offsets (u64); CRC32C of it all.
pub(super) fn encode(groups: &[Kept]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.push(VERSION);
    out.extend_from_slice(&(groups.len() as u32).to_le_bytes());
    for group in groups {
        out.push(topic_number(group.topic));
        out.extend_from_slice(&(group.name.len() as u16).to_le_bytes());
        out.extend_from_slice(group.name.as_bytes());
        for (_, offset) in group.committed.iter() {
            out.extend_from_slice(&offset.to_le_bytes());
        }
    }
    out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
    out
}

/// Reads the file's bytes.
///
/// # Errors
/// [`Error::Format`] for a later version or a changed file: without it nobody knows what retention must keep.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<Kept>, Error> {
    match bytes.strip_prefix(&MAGIC).and_then(|rest| rest.first()) {
        Some(version) if *version > VERSION => {
            Err(Error::Format(format!("the log's `groups` file is of version {version}; this build reads up to {VERSION}")))
        }
        _ => decode_v1(bytes).ok_or_else(|| {
            Error::Format("the log's `groups` file is damaged: removed, every group holds retention back anew from its next start on".to_owned())
        }),
    }
}

fn decode_v1(bytes: &[u8]) -> Option<Vec<Kept>> {
    let (covered, crc) = bytes.split_last_chunk::<4>()?;
    (crc32c::crc32c(covered) == u32::from_le_bytes(*crc)).then_some(())?;
    let rest = covered.strip_prefix(&MAGIC)?.strip_prefix(&[VERSION])?;
    let (count, mut rest) = rest.split_first_chunk::<4>()?;
    let mut groups = Vec::new();
    for _ in 0..u32::from_le_bytes(*count) {
        let (number, after) = rest.split_first()?;
        let (len, after) = after.split_first_chunk::<2>()?;
        let (name, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
        let (offsets, after) = after.split_at_checked(COUNT * 8)?;
        rest = after;
        groups.push(Kept {
            topic: Topic::ALL.into_iter().find(|topic| topic_number(*topic) == *number)?,
            name: String::from_utf8(name.to_vec()).ok()?,
            committed: offsets.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect(),
        });
    }
    rest.is_empty().then_some(groups)
}

/// Loads the groups of a log's directory; none when there is no file yet.
pub(super) fn load(disk: &dyn Disk, dir: &Path) -> Result<Vec<Kept>, Error> {
    let unreadable = |error: io::Error| Error::Unavailable(format!("the log's `groups` file cannot be read: {error}"));
    match disk.open(&dir.join(FILE), Mode::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(unreadable(error)),
        Ok(file) => {
            let len = file.len().map_err(unreadable)?;
            decode(&read_range(&*file, 0, len as usize).map_err(unreadable)?)
        }
    }
}

/// Puts the groups in the file's place, whole or not at all, durably.
pub(super) fn save(disk: &dyn Disk, dir: &Path, groups: &[Kept]) -> io::Result<()> {
    let (new, path) = (dir.join("groups.new"), dir.join(FILE));
    let file = disk.open(&new, Mode::Create)?;
    file.write_at(&encode(groups), 0)?;
    file.sync_data()?;
    disk.rename(&new, &path)?;
    disk.sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<Kept> {
        let committed: Offsets = (0..16).map(|p| p * 1000 + 1).collect();
        vec![
            Kept { topic: Topic::Events, name: "archiver".to_owned(), committed },
            Kept { topic: Topic::Changes, name: "keeper".to_owned(), committed: Offsets::default() },
        ]
    }

    #[test]
    fn golden_version_1() {
        let text = include_str!("golden/groups_v1.hex").trim();
        let hex: String = encode(&sample()).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, text);
        let bytes: Vec<u8> = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect();
        assert_eq!(decode(&bytes), Ok(sample()));
        let mut newer = bytes;
        newer[8] = 2;
        assert!(matches!(decode(&newer), Err(Error::Format(what)) if what.contains("version 2")));
    }

    proptest! {
        #[test]
        fn a_changed_or_cut_file_is_refused(bit in 0..2400usize, cut in 0..300usize) {
            let whole = encode(&sample());
            let mut flipped = whole.clone();
            flipped[bit / 8 % whole.len()] ^= 1 << (bit % 8);
            prop_assert!(decode(&flipped).is_err());
            prop_assert!(decode(&whole[..cut.min(whole.len() - 1)]).is_err());
        }

        /// Whatever joins, leaves and asks: no partition has two owners, and once all have asked twice every partition has one.
        #[test]
        fn every_partition_finds_one_owner(steps in proptest::collection::vec((0..3u8, 0..6u64), 1..60)) {
            let mut group = Group::default();
            for (what, member) in steps {
                let live = group.members.contains(&member);
                match what {
                    0 if !live => group.join(member),
                    1 => group.leave(member),
                    _ if live => { let give = group.surplus(member); group.release(member, &give); group.take(member); }
                    _ => {}
                }
                prop_assert!(group.owner.iter().flatten().all(|owner| group.members.contains(owner)));
            }
            for member in group.members.clone().into_iter().chain(group.members.clone()) {
                let give = group.surplus(member);
                group.release(member, &give);
                group.take(member);
            }
            prop_assert!(group.is_empty() || group.owner.iter().all(Option::is_some));
        }
    }
}
