//! Opening a topic's segments: follows the group headers, tells a torn tail (cut, nothing acknowledged was in it) from damage (refused, nothing touched),
//! and hands over a log in which everything is synced. Called once per topic at the start; must never cut what a later synced position covers.
//!
//! What is proved synced: every segment that has a successor, whole; in the last one everything before its last group, since a group is written only
//! after all before it was synced. So one group is verified frame by frame here, the last; all others when they are read. What was found
//! valid is synced again before anyone reads it: after a mere kill it may never have left the page cache.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;

use super::disk::{Disk, DiskFile, Mode, read_range};
use super::format::{GROUP_HEADER_MAX, GROUP_MAGIC, GroupHeader, NotASegment, SEGMENT_HEADER, SegmentHeader, runs_intact};
use super::offsets::Offsets;
use super::topic::{Damage, Segment, State, segment_name};
use super::writer::Tail;
use crate::event::{PARTITIONS, Timestamp};
use crate::eventlog::{Error, Topic};

/// A topic as found.
pub(super) struct Recovered {
    /// For the readers.
    pub(super) state: State,
    /// For the writer; none where damage hides how far the log went.
    pub(super) tail: Option<Tail>,
}

/// Opens the topic's directory, making it when there is none.
///
/// # Errors
/// [`Error::Format`] for segments of a later version, [`Error::Unavailable`] when the disk refuses. Damage is no error here: it is in the state.
pub(super) fn recover(disk: &dyn Disk, dir: &Path, topic: Topic, now: Timestamp) -> Result<Recovered, Error> {
    let mut scan = Scan { disk, dir, topic, next: Offsets::default(), segments: VecDeque::new(), last: None, salt: rand::random() };
    match scan.run(now) {
        Ok(tail) => Ok(Recovered { state: State::recovered(scan.segments, scan.next, BTreeMap::new()), tail: Some(tail) }),
        Err(Stop::Damage(what)) => {
            tracing::error!(log.topic = topic.name(), "synced data of the log changed on disk, all its partitions refuse from there: {what}");
            let damage = (0..PARTITIONS).map(|p| (p, Damage { from: scan.next.of(p), what: what.clone() })).collect();
            Ok(Recovered { state: State::recovered(scan.segments, scan.next, damage), tail: None })
        }
        Err(Stop::Error(error)) => Err(error),
    }
}

/// Why following the log ended early.
enum Stop {
    Damage(String),
    Error(Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Error(Error::Unavailable(format!("the log cannot be opened: {error}")))
    }
}

/// A log being followed from its first segment on.
struct Scan<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    topic: Topic,
    /// The offsets behind what was followed so far.
    next: Offsets,
    segments: VecDeque<Segment>,
    last: Option<LastSegment>,
    salt: u64,
}

/// The segment followed last, with what is needed to cut its tail.
struct LastSegment {
    file: Box<dyn DiskFile>,
    created: Timestamp,
    len: u64,
    last_group: Option<LastGroup>,
}

/// A segment's last group, and the segment and offsets before it.
struct LastGroup {
    at: u64,
    header: GroupHeader,
    segment_before: Segment,
    next_before: Offsets,
}

impl Scan<'_> {
    fn run(&mut self, now: Timestamp) -> Result<Tail, Stop> {
        self.disk.create_dir(self.dir)?;
        let names = self.disk.list(self.dir)?;
        let mut seqs: Vec<u64> = names.iter().filter_map(|name| name.strip_suffix(".seg")?.parse().ok()).collect();
        seqs.sort_unstable();
        for (place, seq) in seqs.iter().enumerate() {
            let is_last = place + 1 == seqs.len();
            if !self.follow_segment(*seq, is_last)? {
                return self.create_segment(*seq, now);
            }
        }
        match self.last.take() {
            None => self.create_segment(0, now),
            Some(last) => self.settle(last),
        }
    }

    /// Follows one segment; false when it is the last and was never finished, so that everything before it is synced and it holds nothing.
    fn follow_segment(&mut self, seq: u64, is_last: bool) -> Result<bool, Stop> {
        let name = segment_name(seq);
        let previous = self.segments.back().map(|segment| (segment.seq, segment.end));
        if let Some((before, _)) = previous.filter(|(before, _)| before + 1 != seq) {
            return Err(Stop::Damage(format!("segment {} is missing", segment_name(before + 1))));
        }
        let file = self.disk.open(&self.dir.join(&name), Mode::Write)?;
        let len = file.len()?;
        let header = match SegmentHeader::decode(&read_range(&*file, 0, SEGMENT_HEADER)?) {
            Ok(header) => header,
            Err(NotASegment::Version(version)) => {
                return Err(Stop::Error(Error::Format(format!(
                    "segment {name} is of version {version}; this build reads up to {}",
                    super::format::VERSION
                ))));
            }
            Err(NotASegment::Bad) if is_last && len <= SEGMENT_HEADER as u64 && (previous.is_some() || seq == 0) => {
                self.all_of_previous()?;
                return Ok(false);
            }
            Err(NotASegment::Bad) => return Err(Stop::Damage(format!("the header of segment {name} does not verify"))),
        };
        if header.topic != self.topic || header.seq != seq {
            return Err(Stop::Damage(format!("segment {name} is another one's copy")));
        }
        match previous {
            None => self.next = header.base,
            Some((before, end)) if header.previous_end != end || header.base != self.next => {
                let what = format!("segment {} is unreadable from position {end} of {}", segment_name(before), header.previous_end);
                return Err(Stop::Damage(what));
            }
            Some(_) => {}
        }
        self.follow_groups(file, len, &header)?;
        Ok(true)
    }

    /// A file was begun after the last segment, so that one was synced to its end.
    fn all_of_previous(&self) -> Result<(), Stop> {
        match (&self.last, self.segments.back()) {
            (Some(last), Some(segment)) if last.len != segment.end => {
                Err(Stop::Damage(format!("segment {} is unreadable from position {} of {}", segment_name(segment.seq), segment.end, last.len)))
            }
            _ => Ok(()),
        }
    }

    fn follow_groups(&mut self, file: Box<dyn DiskFile>, len: u64, head: &SegmentHeader) -> Result<(), Stop> {
        let mut segment = Segment::empty(head.seq, head.salt, head.base, head.created);
        let mut last_group = None;
        let mut window = Window { file: &*file, bytes: Vec::new(), from: 0 };
        while let Some(header) = GroupHeader::decode(window.at(segment.end)?, head.salt) {
            let (at, before) = (segment.end, self.next);
            let group_len = (header.header_len() + header.body_len()) as u64;
            if header.synced != at || at + group_len > len || !header.follow(&mut self.next) {
                break;
            }
            let segment_before = Segment { blocks: Vec::new(), ..segment };
            let begun = segment.blocks.len();
            segment.extend(group_len, header.written_at, before);
            last_group = Some((LastGroup { at, header, segment_before, next_before: before }, begun));
        }
        let last_group = last_group.map(|(mut group, begun)| {
            group.segment_before.blocks = segment.blocks.iter().take(begun).copied().collect();
            group
        });
        self.segments.push_back(segment);
        self.last = Some(LastSegment { file, created: head.created, len, last_group });
        Ok(())
    }

    /// Ends the log at its last whole group and syncs it; everything cut was never acknowledged.
    fn settle(&mut self, last: LastSegment) -> Result<Tail, Stop> {
        let Some(segment) = self.segments.back_mut() else { return Err(Stop::Damage("no segment".to_owned())) };
        let unread = read_range(&*last.file, segment.end, last.len.saturating_sub(segment.end) as usize)?;
        if proves_more(&unread, segment.end, segment.salt) {
            return Err(Stop::Damage(format!("a group header of segment {} does not verify at position {}", segment_name(segment.seq), segment.end)));
        }
        let mut sealed = last.last_group.is_none();
        if let Some(group) = last.last_group {
            sealed = group.header.runs.is_empty();
            let body = read_range(&*last.file, group.at + group.header.header_len() as u64, group.header.body_len())?;
            if !runs_intact(&group.header, &body) {
                *segment = group.segment_before;
                self.next = group.next_before;
                sealed = false;
            }
        }
        let (seq, salt, end) = (segment.seq, segment.salt, segment.end);
        if end < last.len {
            tracing::info!(
                log.topic = self.topic.name(),
                log.segment = seq,
                log.bytes = last.len - end,
                "cut the unfinished end of the log; nothing of it was acknowledged"
            );
            last.file.set_len(end)?;
        }
        last.file.sync_data()?;
        self.disk.sync_dir(self.dir)?;
        Ok(Tail { file: last.file, seq, salt, created: last.created, end, next: self.next, sealed })
    }

    /// Makes the segment that the log goes on with.
    fn create_segment(&mut self, seq: u64, now: Timestamp) -> Result<Tail, Stop> {
        let previous_end = self.segments.back().map_or(0, |segment| segment.end);
        let header = SegmentHeader { topic: self.topic, seq, salt: self.salt, previous_end, created: now, base: self.next };
        let file = create_segment(self.disk, self.dir, &header)?;
        let segment = Segment::empty(seq, header.salt, header.base, now);
        let tail = Tail { file, seq, salt: segment.salt, created: now, end: segment.end, next: self.next, sealed: true };
        self.segments.push_back(segment);
        Ok(tail)
    }
}

/// Makes a segment that holds nothing yet; it and its name are durable.
pub(super) fn create_segment(disk: &dyn Disk, dir: &Path, header: &SegmentHeader) -> io::Result<Box<dyn DiskFile>> {
    let file = disk.open(&dir.join(segment_name(header.seq)), Mode::Create)?;
    file.write_at(&header.encode(), 0)?;
    file.sync_data()?;
    disk.sync_dir(dir)?;
    Ok(file)
}

/// Whether anything in `unread`, which begins at position `at`, shows that the log was once synced beyond `at`.
fn proves_more(unread: &[u8], at: u64, salt: u64) -> bool {
    let begins = unread.windows(GROUP_MAGIC.len()).enumerate().skip(1).filter(|(_, bytes)| *bytes == GROUP_MAGIC);
    let mut groups = begins.filter_map(|(from, _)| Some((at + from as u64, GroupHeader::decode(unread.get(from..)?, salt)?)));
    groups.any(|(position, group)| group.synced == position)
}

/// A file read in stretches, for headers close to each other.
struct Window<'a> {
    file: &'a dyn DiskFile,
    bytes: Vec<u8>,
    from: u64,
}

impl Window<'_> {
    /// The bytes from `at` on: a whole group header, unless the file ends before.
    fn at(&mut self, at: u64) -> io::Result<&[u8]> {
        let inside = at >= self.from && at + GROUP_HEADER_MAX as u64 <= self.from + self.bytes.len() as u64;
        if !inside {
            self.bytes = read_range(self.file, at, 16 << 10)?;
            self.from = at;
        }
        Ok(self.bytes.get((at - self.from) as usize..).unwrap_or_default())
    }
}
