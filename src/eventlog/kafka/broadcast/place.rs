//! Where the feed's reader stands in each partition, and when it looks whether that goes on: what was missed is told, what stands still is found. Pure: talks to no
//! broker.

use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::eventlog::{Bounds, Offset};

/// How often the reader looks beside reading.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// How often the brokers are asked where the topic ends. A partition that has records waiting and got none from one time to the next is sought anew: its topic
/// may have been made anew, of which librdkafka need not tell.
const ASK_ENDS: Duration = Duration::from_secs(15);

/// Where that was in vain so often in a row, the client itself stands still: it is to be replaced.
pub(super) const VAIN: u8 = 3;

/// Where a partition is read.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) next: Offset,
    /// Where it stood when it was looked at last, if records were waiting for it.
    behind: Option<Offset>,
    /// How often in a row it had not gone on.
    pub(super) stalls: u8,
}

/// What a record is to its partition.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Had before.
    Had,
    /// The next one.
    Next,
    /// There were others before it.
    After,
}

impl Place {
    pub(super) const fn at(next: Offset) -> Self {
        Self { next, behind: None, stalls: 0 }
    }

    pub(super) fn take(&mut self, offset: Offset) -> Step {
        if offset < self.next {
            return Step::Had;
        }
        let step = if offset == self.next { Step::Next } else { Step::After };
        *self = Self::at(offset + 1);
        step
    }

    /// Looks at it, and moves it to the partition's end where the brokers no longer have it. Why something may have been missed, or nothing.
    pub(super) fn look(&mut self, Bounds { start, next }: Bounds, doubtful: bool) -> Option<&'static str> {
        if !(start..=next).contains(&self.next) {
            *self = Self::at(next);
            return Some("the brokers do not have its place");
        }
        // Records that wait now may have come this moment.
        let behind = (self.next < next).then_some(self.next);
        let stalled = behind.is_some() && behind == self.behind;
        self.behind = behind;
        self.stalls = if stalled { self.stalls.saturating_add(1) } else { 0 };
        (stalled || doubtful).then_some("it did not go on")
    }
}

/// When the brokers are asked where the topic ends.
#[derive(Debug)]
pub(super) struct Looks {
    pub(super) due: Instant,
    /// How long was waited after the last one failed; none where it did not.
    wait: Duration,
    /// Whether places may be such as the brokers no longer have.
    pub(super) doubtful: bool,
}

impl Looks {
    pub(super) fn new(now: Instant) -> Self {
        Self { due: now + ASK_ENDS, wait: Duration::ZERO, doubtful: false }
    }

    /// Something was told that may concern a place: it is looked at soon.
    pub(super) fn doubt(&mut self, now: Instant) {
        if !self.doubtful {
            self.doubtful = true;
            self.due = now;
        }
    }

    /// One was taken.
    pub(super) fn done(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    /// One could not be taken. It held reading up, and goes on doing so: the next one is as long away as this one took, and twice as long from time to time.
    pub(super) fn failed(&mut self, began: Instant, now: Instant) {
        self.wait = now.duration_since(began).max(TICK).max(self.wait * 2).min(ASK_ENDS);
        self.due = now + self.wait;
    }
}

/// Whether an error may concern the place of a partition (which one, it does not tell). By others nothing is lost: reading goes on where it stands, and where it
/// does not, looks find out.
pub(super) fn concerns_places(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::AutoOffsetReset
                | RDKafkaErrorCode::OffsetOutOfRange
                | RDKafkaErrorCode::LogTruncation
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopicId
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_takes_each_record_once_and_tells_of_gaps() {
        let mut place = Place::at(5);
        let steps: Vec<Step> = [4, 5, 5, 6, 9, 8, 10].map(|offset| place.take(offset)).into();
        assert_eq!(steps, [Step::Had, Step::Next, Step::Had, Step::Next, Step::After, Step::Had, Step::Next]);
    }

    #[test]
    fn a_place_that_stands_still_before_records_is_told_and_one_that_they_just_reach_is_not() {
        let bounds = |next| Bounds { start: 0, next };
        let mut place = Place::at(7);
        assert_eq!(place.look(bounds(7), false), None, "at its end, for however long");
        assert_eq!(place.look(bounds(8), false), None, "its record may have come this moment");
        assert_eq!(place.take(7), Step::Next);
        assert_eq!(place.look(bounds(9), false), None, "it went on");
        assert_eq!(place.look(bounds(12), false), Some("it did not go on"));
        assert_eq!((place.look(bounds(13), false), place.stalls), (Some("it did not go on"), 2), "nor when it was read anew");
        assert_eq!((place.take(8), place.look(bounds(13), false), place.stalls), (Step::Next, None, 0));
        assert_eq!(place.look(Bounds { start: 10, next: 12 }, false), Some("the brokers do not have its place"));
        assert_eq!((place.next, place.look(bounds(12), false)), (12, None));
        assert_eq!(place.look(bounds(12), true), Some("it did not go on"), "in doubt");
        assert_eq!(place.look(bounds(3), false), Some("the brokers do not have its place"));
        assert_eq!(place.next, 3);
    }

    #[test]
    fn brokers_that_are_away_cast_no_doubt_on_places() {
        let told = |code| concerns_places(&KafkaError::MessageConsumption(code));
        use RDKafkaErrorCode as Code;
        let away = [Code::Resolve, Code::AllBrokersDown, Code::BrokerTransportFailure, Code::OperationTimedOut, Code::RequestTimedOut];
        assert_eq!(away.map(told), [false; 5]);
        assert_eq!([Code::AutoOffsetReset, Code::UnknownTopicOrPartition, Code::UnknownPartition].map(told), [true; 3]);
    }

    #[test]
    fn a_look_that_cannot_be_taken_is_tried_again_later_and_later() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut looks = Looks::new(at(0));
        assert_eq!(looks.due, at(15));
        looks.doubt(at(2));
        assert_eq!((looks.due, looks.doubtful), (at(2), true));
        let mut now = 2;
        for wait in [3, 6, 12, 15, 15] {
            looks.failed(at(now), at(now + 3));
            looks.doubt(at(now + 4));
            now += 3 + wait;
            assert_eq!(looks.due, at(now), "told again meanwhile, it is no sooner");
        }
        looks.done(at(now));
        assert_eq!((looks.due, looks.doubtful), (at(now + 15), false));
    }
}
