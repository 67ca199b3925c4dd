//! A piece of a segment in memory: one group just written, or a block of groups read back. Readers take their records from it, verifying every frame
//! each time, so that neither a disk nor a cache hands out a changed byte. Pure.

use bytes::Bytes;

use super::format::{self, GROUP_HEADER_MAX, GroupHeader, Run};
use super::offsets::Offsets;
use crate::eventlog::{Offset, Stored};

/// Whole groups, back to back, with a list of where each partition's runs are.
#[derive(Debug)]
pub(super) struct Chunk {
    bytes: Bytes,
    /// Sorted by partition, then offset.
    runs: Vec<(Run, usize)>,
    /// The offsets behind its last group.
    ends: Offsets,
}

impl Chunk {
    /// Of one group just written; `ends` are the offsets behind it.
    pub(super) fn of_group(header: &GroupHeader, bytes: Bytes, ends: Offsets) -> Self {
        let mut runs = Vec::with_capacity(header.runs.len());
        list_runs(header, 0, &mut runs);
        Self { bytes, runs, ends }
    }

    /// Of a stretch of a segment that begins with a group. Takes whole, following groups; the flag says whether that was all of it.
    pub(super) fn of_block(bytes: Vec<u8>, salt: u64, starts: Offsets) -> (Self, bool) {
        let (mut runs, mut ends, mut at) = (Vec::new(), starts, 0);
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let Some(header) = GroupHeader::decode(rest.get(..GROUP_HEADER_MAX).unwrap_or(rest), salt) else { break };
            let len = header.header_len() + header.body_len();
            if len > rest.len() || !header.follow(&mut ends) {
                break;
            }
            list_runs(&header, at, &mut runs);
            at += len;
        }
        let whole = at == bytes.len();
        runs.sort_unstable_by_key(|(run, _)| (run.partition, run.first));
        (Self { bytes: bytes.into(), runs, ends }, whole)
    }

    /// The offsets behind its last group.
    pub(super) const fn ends(&self) -> &Offsets {
        &self.ends
    }

    /// Its size in memory, nearly.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() + self.runs.len() * size_of::<(Run, usize)>() + size_of::<Self>()
    }

    /// Adds the partition's records from `from` on to `out`, as long as the values in it stay within `max_bytes`; the first goes in whatever its size.
    /// True when `max_bytes` is reached.
    ///
    /// # Errors
    /// The offset of a bad frame; what precedes it was added.
    pub(super) fn take(&self, partition: u16, from: Offset, max_bytes: usize, out: &mut Taken) -> Result<bool, Offset> {
        let first = self.runs.partition_point(|(run, _)| (run.partition, run.first + u64::from(run.records)) <= (partition, from));
        let mine = self.runs.get(first..).unwrap_or_default().iter().take_while(|(run, _)| run.partition == partition);
        for (run, at) in mine {
            if self.take_run(run, *at, from, max_bytes, out)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn take_run(&self, run: &Run, mut at: usize, from: Offset, max_bytes: usize, out: &mut Taken) -> Result<bool, Offset> {
        let end = at + run.bytes as usize;
        for offset in run.first..run.first + u64::from(run.records) {
            let rest = self.bytes.get(at..end).ok_or(offset.max(from))?;
            if offset < from {
                // Passed over by its length alone: where that is wrong, the next frame does not verify.
                at += format::frame_len(rest).ok_or(from)?;
                continue;
            }
            let frame = format::frame(rest, run.partition, offset).ok_or(offset)?;
            if !out.records.is_empty() && out.bytes + frame.value.len() > max_bytes {
                return Ok(true);
            }
            out.bytes += frame.value.len();
            out.records.push(Stored { offset, value: self.bytes.slice_ref(frame.value) });
            at += frame.len;
        }
        Ok(false)
    }
}

/// What a reader has got so far.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// The records.
    pub(super) records: Vec<Stored>,
    /// The length of their values together.
    pub(super) bytes: usize,
}

fn list_runs(header: &GroupHeader, group_at: usize, runs: &mut Vec<(Run, usize)>) {
    let mut at = group_at + header.header_len();
    for run in &header.runs {
        runs.push((*run, at));
        at += run.bytes as usize;
    }
}
