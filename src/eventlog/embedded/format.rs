//! The bytes of a segment, version 1: its header, the header of a group, the frame of a record. Used by writer, recovery and
//! readers. Pure: bytes in, values out; must never trust a length before a checksum over it held.
//!
//! All numbers are little-endian, all checksums CRC32C. A segment is its header and then groups back to back. A group is its header and then one *run*
//! per partition: the frames of that partition's records in offset order. The runs are listed in the group header, so a bad frame hides nothing of
//! another partition. A group without runs is a *seal*: it only says that everything before it is synced.
//!
//! | segment header | | group header | | frame | |
//! |---|---|---|---|---|---|
//! | 0 | `CONTRAIL` | 0 | `GRUP` | 0 | crc of 4.. to the frame's end |
//! | 8 | version (u8), topic (u8), partitions (u16) | 4 | crc of salt and 8.. to the header's end | 4 | length of the value (u32) |
//! | 12 | 0 (u32) | 8 | position synced before this group (u64) | 8 | partition (u16), 0 (u16) |
//! | 16 | sequence number (u64) | 16 | written at, microseconds (i64) | 12 | offset (u64) |
//! | 24 | salt (u64) | 24 | length of all runs (u32) | 20 | value |
//! | 32 | length of the previous segment (u64) | 28 | number of runs (u16), 0 (u16) | | |
//! | 40 | created at, microseconds (i64) | 32 | runs: partition (u16), 0 (u16), | | |
//! | 48 | first offset of every partition (16 x u64) | | records (u32), length (u32), first offset (u64) | | |
//! | 176 | crc of 0..176 | | | | |
//!
//! The salt is random for every segment and enters every group's checksum: neither an old block of the disk nor a record made by a sender can pass
//! for a group header.

use std::io::{self, Write};

use super::offsets::{COUNT, Offsets};
use crate::event::{PARTITIONS, Timestamp};
use crate::eventlog::{Append, Offset, Topic};

/// The version this build writes.
pub(super) const VERSION: u8 = 1;
/// Length of a segment header.
pub(super) const SEGMENT_HEADER: usize = 48 + COUNT * 8 + 4;
/// Length of a group header without its runs.
pub(super) const GROUP_HEADER: usize = 32;
/// Length of one run's entry in a group header.
pub(super) const RUN_ENTRY: usize = 20;
/// The longest group header.
pub(super) const GROUP_HEADER_MAX: usize = GROUP_HEADER + COUNT * RUN_ENTRY;
/// Length of a frame before its value.
pub(super) const FRAME_HEADER: usize = 20;
/// What a group begins with.
pub(super) const GROUP_MAGIC: [u8; 4] = *b"GRUP";
const SEGMENT_MAGIC: [u8; 8] = *b"CONTRAIL";

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

fn i64_at(bytes: &[u8], at: usize) -> Option<i64> {
    array(bytes, at).map(i64::from_le_bytes)
}

/// The number a topic has on disk.
pub(super) const fn topic_number(topic: Topic) -> u8 {
    match topic {
        Topic::Events => 0,
        Topic::Changes => 1,
    }
}

/// What a segment says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// Whose records it holds.
    pub(super) topic: Topic,
    /// Its place in the sequence, from 0.
    pub(super) seq: u64,
    /// Enters every group's checksum.
    pub(super) salt: u64,
    /// Length of the segment before it, all of it synced before this one was made; 0 for the first.
    pub(super) previous_end: u64,
    /// When it was made.
    pub(super) created: Timestamp,
    /// The first offset of every partition that is not in an earlier segment.
    pub(super) base: Offsets,
}

/// Why bytes are no segment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotASegment {
    /// Made by a later version.
    Version(u8),
    /// Unreadable.
    Bad,
}

impl SegmentHeader {
    /// Its bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEADER);
        out.extend_from_slice(&SEGMENT_MAGIC);
        out.extend_from_slice(&[VERSION, topic_number(self.topic)]);
        out.extend_from_slice(&PARTITIONS.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.salt.to_le_bytes());
        out.extend_from_slice(&self.previous_end.to_le_bytes());
        out.extend_from_slice(&self.created.micros().to_le_bytes());
        for (_, offset) in self.base.iter() {
            out.extend_from_slice(&offset.to_le_bytes());
        }
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out
    }

    /// Reads the header at the start of `bytes`. A version byte changed by the disk is told from a later version: with version 1 put back the
    /// checksum holds.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, NotASegment> {
        let mut head: [u8; SEGMENT_HEADER] = array(bytes, 0).ok_or(NotASegment::Bad)?;
        let version = head.get(8).copied().ok_or(NotASegment::Bad)?;
        if let Some(byte) = head.get_mut(8) {
            *byte = VERSION;
        }
        let (covered, crc) = head.split_at(SEGMENT_HEADER - 4);
        let whole = covered.starts_with(&SEGMENT_MAGIC) && u32_at(crc, 0) == Some(crc32c::crc32c(covered));
        if version > VERSION && !whole && covered.starts_with(&SEGMENT_MAGIC) {
            return Err(NotASegment::Version(version));
        }
        if version != VERSION || !whole {
            return Err(NotASegment::Bad);
        }
        Self::fields(covered).ok_or(NotASegment::Bad)
    }

    fn fields(head: &[u8]) -> Option<Self> {
        let number = head.get(9).copied()?;
        let topic = Topic::ALL.into_iter().find(|topic| topic_number(*topic) == number)?;
        (u16_at(head, 10)? == PARTITIONS).then_some(())?;
        Some(Self {
            topic,
            seq: u64_at(head, 16)?,
            salt: u64_at(head, 24)?,
            previous_end: u64_at(head, 32)?,
            created: Timestamp::from_micros(i64_at(head, 40)?),
            base: head.get(48..)?.chunks_exact(8).filter_map(|b| u64_at(b, 0)).collect(),
        })
    }
}

/// The frames of one partition within a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Whose.
    pub(super) partition: u16,
    /// How many frames.
    pub(super) records: u32,
    /// Their length together.
    pub(super) bytes: u32,
    /// Offset of the first.
    pub(super) first: Offset,
}

/// What a group says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GroupHeader {
    /// Everything in this segment before this position was synced before the group was written.
    pub(super) synced: u64,
    /// When it was written.
    pub(super) written_at: Timestamp,
    /// Its partitions, ascending, each at most once. Empty: a seal.
    pub(super) runs: Vec<Run>,
}

impl GroupHeader {
    /// Length of the header itself.
    pub(super) fn header_len(&self) -> usize {
        GROUP_HEADER + self.runs.len() * RUN_ENTRY
    }

    /// Length of its runs.
    pub(super) fn body_len(&self) -> usize {
        self.runs.iter().map(|run| run.bytes as usize).sum()
    }

    /// Its bytes.
    pub(super) fn encode(&self, salt: u64) -> Vec<u8> {
        let mut covered = Vec::with_capacity(self.header_len() - 8);
        covered.extend_from_slice(&self.synced.to_le_bytes());
        covered.extend_from_slice(&self.written_at.micros().to_le_bytes());
        covered.extend_from_slice(&(self.body_len() as u32).to_le_bytes());
        covered.extend_from_slice(&(self.runs.len() as u16).to_le_bytes());
        covered.extend_from_slice(&[0; 2]);
        for run in &self.runs {
            covered.extend_from_slice(&run.partition.to_le_bytes());
            covered.extend_from_slice(&[0; 2]);
            covered.extend_from_slice(&run.records.to_le_bytes());
            covered.extend_from_slice(&run.bytes.to_le_bytes());
            covered.extend_from_slice(&run.first.to_le_bytes());
        }
        let mut out = Vec::with_capacity(self.header_len());
        out.extend_from_slice(&GROUP_MAGIC);
        out.extend_from_slice(&salted(salt, &covered).to_le_bytes());
        out.extend_from_slice(&covered);
        out
    }

    /// Reads the header at the start of `bytes`; `None` when it is none, or not whole.
    pub(super) fn decode(bytes: &[u8], salt: u64) -> Option<Self> {
        if !bytes.starts_with(&GROUP_MAGIC) {
            return None;
        }
        let count = usize::from(u16_at(bytes, 28)?);
        if count > COUNT {
            return None;
        }
        let covered = bytes.get(8..GROUP_HEADER + count * RUN_ENTRY)?;
        if u32_at(bytes, 4)? != salted(salt, covered) {
            return None;
        }
        let runs: Option<Vec<Run>> = covered.get(GROUP_HEADER - 8..)?.chunks_exact(RUN_ENTRY).map(run_at).collect();
        let header = Self { synced: u64_at(bytes, 8)?, written_at: Timestamp::from_micros(i64_at(bytes, 16)?), runs: runs? };
        let ascending = header.runs.iter().zip(header.runs.iter().skip(1)).all(|(a, b)| a.partition < b.partition);
        (ascending && u32_at(bytes, 24)? as usize == header.body_len()).then_some(header)
    }

    /// Whether it follows `next` without a gap; if so, `next` is moved behind it.
    pub(super) fn follow(&self, next: &mut Offsets) -> bool {
        let follows = self.runs.iter().all(|run| run.records > 0 && run.first == next.of(run.partition));
        if follows {
            for run in &self.runs {
                next.set(run.partition, run.first.saturating_add(u64::from(run.records)));
            }
        }
        follows
    }
}

fn run_at(entry: &[u8]) -> Option<Run> {
    let partition = u16_at(entry, 0)?;
    (partition < PARTITIONS).then_some(())?;
    Some(Run { partition, records: u32_at(entry, 4)?, bytes: u32_at(entry, 8)?, first: u64_at(entry, 12)? })
}

fn salted(salt: u64, covered: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), covered)
}

/// A record as it lies in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    /// Its value.
    pub(super) value: &'a [u8],
    /// Length of the whole frame.
    pub(super) len: usize,
}

/// The length of the frame at the start of `run`, value included, before anything of it is verified.
pub(super) fn frame_len(run: &[u8]) -> Option<usize> {
    (u32_at(run, 4)? as usize).checked_add(FRAME_HEADER)
}

/// Reads the frame at the start of `run`, which must be that of this partition and offset; `None` for anything else.
pub(super) fn frame(run: &[u8], partition: u16, offset: Offset) -> Option<Frame<'_>> {
    let len = frame_len(run)?;
    let whole = run.get(..len)?;
    let named = u16_at(whole, 8)? == partition && u64_at(whole, 12)? == offset;
    let intact = u32_at(whole, 0)? == crc32c::crc32c(whole.get(4..)?);
    (named && intact).then_some(Frame { value: whole.get(FRAME_HEADER..)?, len })
}

/// Whether every frame of a group's runs is intact; `body` starts at the first.
pub(super) fn runs_intact(header: &GroupHeader, body: &[u8]) -> bool {
    let mut rest = body;
    header.runs.iter().all(|run| {
        let Some((mut frames, after)) = rest.split_at_checked(run.bytes as usize) else { return false };
        rest = after;
        for number in 0..u64::from(run.records) {
            let Some(read) = frame(frames, run.partition, run.first + number) else { return false };
            frames = frames.get(read.len..).unwrap_or_default();
        }
        frames.is_empty()
    })
}

/// A group ready to be written.
#[derive(Debug)]
pub(super) struct Group {
    /// Header and runs.
    pub(super) bytes: Vec<u8>,
    /// The header, as in the bytes.
    pub(super) header: GroupHeader,
    /// For each call its records' offsets, in the order given.
    pub(super) offsets: Vec<Vec<Offset>>,
}

/// Lays out one group from whole append calls, giving offsets from `next` on, which is moved behind them. Partitions must exist and the
/// records' frames together fit `u32`; the append path has checked both.
pub(super) fn encode_group(salt: u64, synced: u64, written_at: Timestamp, next: &mut Offsets, calls: &[&[Append]]) -> io::Result<Group> {
    let mut sizes: [(u32, u32); COUNT] = [(0, 0); COUNT];
    for record in calls.iter().flat_map(|call| call.iter()) {
        if let Some((records, bytes)) = sizes.get_mut(usize::from(record.partition)) {
            *records += 1;
            *bytes += (FRAME_HEADER + record.value.len()) as u32;
        }
    }
    let runs = (0..PARTITIONS).zip(sizes).filter(|(_, (records, _))| *records > 0);
    let runs = runs.map(|(partition, (records, bytes))| Run { partition, records, bytes, first: next.of(partition) }).collect();
    let header = GroupHeader { synced, written_at, runs };
    let mut bytes = vec![0; header.header_len() + header.body_len()];
    let (mut head, mut body) = bytes.split_at_mut(header.header_len());
    head.write_all(&header.encode(salt))?;
    // One cursor per partition into its run, so that every value is copied once.
    let mut cursors: [&mut [u8]; COUNT] = Default::default();
    for run in &header.runs {
        let (mine, rest) = body.split_at_mut(run.bytes as usize);
        if let Some(cursor) = cursors.get_mut(usize::from(run.partition)) {
            *cursor = mine;
        }
        body = rest;
    }
    let mut offsets = Vec::with_capacity(calls.len());
    for call in calls {
        let mut given = Vec::with_capacity(call.len());
        for record in *call {
            let offset = next.of(record.partition);
            next.set(record.partition, offset + 1);
            if let Some(cursor) = cursors.get_mut(usize::from(record.partition)) {
                put_frame(cursor, record, offset)?;
            }
            given.push(offset);
        }
        offsets.push(given);
    }
    Ok(Group { bytes, header, offsets })
}

fn put_frame(cursor: &mut &mut [u8], record: &Append, offset: Offset) -> io::Result<()> {
    let mut head = [0; FRAME_HEADER - 4];
    let mut fields = head.as_mut_slice();
    fields.write_all(&(record.value.len() as u32).to_le_bytes())?;
    fields.write_all(&record.partition.to_le_bytes())?;
    fields.write_all(&[0; 2])?;
    fields.write_all(&offset.to_le_bytes())?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head), &record.value);
    cursor.write_all(&crc.to_le_bytes())?;
    cursor.write_all(&head)?;
    cursor.write_all(&record.value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn golden_segment() -> Vec<u8> {
        let base: Offsets = (0..16).map(|p| p * 10).collect();
        let head = SegmentHeader {
            topic: Topic::Changes,
            seq: 7,
            salt: 0x0123_4567_89ab_cdef,
            previous_end: 4096,
            created: Timestamp::from_micros(1_700_000_000_000_000),
            base,
        };
        let mut bytes = head.encode();
        let mut next = base;
        let call = [
            Append { partition: 3, value: Bytes::from_static(b"third") },
            Append { partition: 0, value: Bytes::from_static(b"") },
            Append { partition: 3, value: Bytes::from_static(b"third again") },
        ];
        let group = encode_group(head.salt, bytes.len() as u64, Timestamp::from_micros(1_700_000_000_000_001), &mut next, &[&call]).unwrap();
        assert_eq!(group.offsets, [[30, 0, 31]]);
        bytes.extend_from_slice(&group.bytes);
        let seal = GroupHeader { synced: bytes.len() as u64, written_at: Timestamp::from_micros(1_700_000_000_000_002), runs: vec![] };
        bytes.extend_from_slice(&seal.encode(head.salt));
        bytes
    }

    /// The fixture is also read, as a whole log, by the recovery tests.
    #[test]
    fn golden_version_1() {
        let hex: String = golden_segment().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, include_str!("golden/segment_v1.hex").trim());
    }

    #[test]
    fn golden_is_read() {
        let text = include_str!("golden/segment_v1.hex").trim();
        let bytes: Vec<u8> = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect();
        let head = SegmentHeader::decode(&bytes).unwrap();
        assert_eq!((head.topic, head.seq, head.previous_end), (Topic::Changes, 7, 4096));
        assert_eq!(head.base.to_vec(), (0..16).map(|p| p * 10).collect::<Vec<u64>>());
        let group = GroupHeader::decode(&bytes[SEGMENT_HEADER..], head.salt).unwrap();
        let body = &bytes[SEGMENT_HEADER + group.header_len()..];
        assert!(runs_intact(&group, body));
        assert_eq!(frame(&body[20..], 3, 30).unwrap().value, b"third");
        let seal = GroupHeader::decode(&body[group.body_len()..], head.salt).unwrap();
        assert_eq!((seal.synced, seal.runs.len()), ((bytes.len() - GROUP_HEADER) as u64, 0));
    }

    #[test]
    fn a_later_version_is_told_from_a_flipped_bit() {
        let mut bytes = golden_segment();
        bytes[8] = 3;
        assert_eq!(SegmentHeader::decode(&bytes), Err(NotASegment::Bad), "the checksum shows that it was version 1");
        let crc = crc32c::crc32c(&bytes[..SEGMENT_HEADER - 4]).to_le_bytes();
        bytes[SEGMENT_HEADER - 4..SEGMENT_HEADER].copy_from_slice(&crc);
        assert_eq!(SegmentHeader::decode(&bytes), Err(NotASegment::Version(3)));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_seen(bit in 0..golden_segment().len() * 8) {
            let mut bytes = golden_segment();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let read = SegmentHeader::decode(&bytes).ok().and_then(|head| {
                let group = GroupHeader::decode(&bytes[SEGMENT_HEADER..], head.salt)?;
                let body = &bytes[SEGMENT_HEADER + group.header_len()..];
                let seal = GroupHeader::decode(body.get(group.body_len()..)?, head.salt)?;
                (runs_intact(&group, body) && seal.runs.is_empty()).then_some(())
            });
            prop_assert!(read.is_none());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), salt: u64) {
            prop_assert!(SegmentHeader::decode(&bytes).is_err());
            prop_assert!(GroupHeader::decode(&bytes, salt).is_none());
            prop_assert!(frame(&bytes, 0, 0).is_none() || bytes.len() >= FRAME_HEADER);
        }
    }
}
