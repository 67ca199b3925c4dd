//! When an object may be written: its budget ([`Bucket`]) and the queue of objects that wait ([`Scheduler`]). Stepped by the keeper. Pure: `now` is
//! handed in.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::Head;
use crate::event::{ObjectKey, Timestamp};

/// One write, in the bucket's unit.
const WRITE: i64 = 1_000;
/// Writes a second of an object whose writes are up to [`FULL_RATE_BYTES`], in thousandths.
const MAX_RATE: i64 = 20 * WRITE;
/// Writes a second of the largest objects, in thousandths.
const MIN_RATE: i64 = 2 * WRITE;
/// Bytes of a write up to which the full rate holds.
const FULL_RATE_BYTES: i64 = 1024;
/// Seconds in which an empty bucket fills, whatever the rate.
const FILL_SECONDS: i64 = 10;
/// Longer than any bucket makes a write wait: what is due later than this from now was put there by a clock that has since been set back.
const HORIZON_MICROS: i64 = 2_000_000;

/// An object's write budget: a write of `size` bytes costs one token; tokens come at r = clamp(20 x 1 KiB / size, 2, 20) a second up to 10 r. So there
/// are at most 200 + 20 t writes in any t seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Tokens left at `at`, in thousandths of a write.
    pub tokens_millis: i64,
    /// When they were counted.
    pub at: Timestamp,
}

impl Bucket {
    /// The bucket as stored with the object; full for an object never written.
    pub const fn of(head: &Head) -> Self {
        Self { tokens_millis: head.bucket_millis, at: head.bucket_at }
    }

    /// Takes one token for a write of `size` bytes, or says when there will be one (never more than half a second ahead). A refusal changes nothing
    /// but the time base of a clock that was set back, so that polling costs no tokens; such a clock neither adds tokens nor starves the object.
    pub fn try_take(&mut self, now: Timestamp, size: usize) -> Result<(), Timestamp> {
        let rate = rate_millis(size);
        self.at = self.at.min(now);
        let waited = now.micros().saturating_sub(self.at.micros()).min((FILL_SECONDS + 1) * 1_000_000);
        let tokens = self.tokens_millis.saturating_add(rate * waited / 1_000_000).min(rate * FILL_SECONDS);
        if tokens < WRITE {
            let missing = WRITE - self.tokens_millis;
            return Err(self.at.plus_micros((missing * 1_000_000 + rate - 1) / rate));
        }
        *self = Self { tokens_millis: tokens - WRITE, at: now };
        Ok(())
    }

    /// Puts the bucket where it is stored.
    pub const fn store(self, head: &mut Head) {
        head.bucket_millis = self.tokens_millis;
        head.bucket_at = self.at;
    }
}

/// Thousandths of a write a second that an object of such writes may take.
fn rate_millis(size: usize) -> i64 {
    let size = i64::try_from(size).unwrap_or(i64::MAX).max(1);
    (MAX_RATE.saturating_mul(FULL_RATE_BYTES) / size).clamp(MIN_RATE, MAX_RATE)
}

/// The objects that have changes not yet written, by when each is due. Bounded by bytes: at the bound the keeper stops reading.
#[derive(Debug)]
pub struct Scheduler {
    gather: Duration,
    max_bytes: usize,
    bytes: usize,
    waiting: HashMap<Arc<ObjectKey>, Waiting>,
    /// By when they are due, those of one moment in the order they came: many come at one moment, and numbers compare faster than names.
    queue: BTreeMap<Place, Arc<ObjectKey>>,
    /// The number of the next object to come.
    next: u64,
    awaited: bool,
}

/// A place in the queue.
type Place = (Timestamp, u64);

#[derive(Clone, Copy, Debug)]
struct Waiting {
    place: Place,
    bytes: usize,
}

impl Scheduler {
    /// An empty queue. A first change waits `gather` for others; [`Scheduler::is_full`] says when `max_bytes` of changes wait.
    pub fn new(gather: Duration, max_bytes: usize) -> Self {
        Self { gather, max_bytes, bytes: 0, waiting: HashMap::new(), queue: BTreeMap::new(), next: 0, awaited: false }
    }

    /// Notes that `bytes` more of changes wait for the object. It becomes due `gather` after the first of them and no later for more.
    pub fn touch(&mut self, key: &ObjectKey, bytes: usize, now: Timestamp) {
        self.touch_within(key, bytes, now, self.gather);
    }

    /// The same for a change that somebody waits for: what waits for others only becomes due now, and what waits for its budget when it did.
    pub fn touch_now(&mut self, key: &ObjectKey, bytes: usize, now: Timestamp) {
        self.awaited = true;
        self.touch_within(key, bytes, now, Duration::ZERO);
    }

    /// Whether a change that somebody waits for came since [`Scheduler::due`] was last asked.
    pub const fn is_awaited(&self) -> bool {
        self.awaited
    }

    fn touch_within(&mut self, key: &ObjectKey, bytes: usize, now: Timestamp, gather: Duration) {
        self.bytes = self.bytes.saturating_add(bytes);
        let due = after(now, gather);
        let Some(waiting) = self.waiting.get_mut(key) else {
            self.insert(Arc::new(key.clone()), bytes, due);
            return;
        };
        waiting.bytes = waiting.bytes.saturating_add(bytes);
        let (old, bytes) = (waiting.place, waiting.bytes);
        if due < old.0
            && old.0 <= after(now, self.gather)
            && let Some(key) = self.queue.remove(&old)
        {
            self.waiting.remove(&key);
            self.insert(key, bytes, due);
        }
    }

    /// Takes the objects due at `now` from the queue, the longest due first, at most `limit`; their bytes count until [`Scheduler::written`]
    /// or [`Scheduler::defer`].
    pub fn due(&mut self, now: Timestamp, limit: usize) -> Vec<Due> {
        self.awaited = false;
        let mut out = Vec::new();
        while out.len() < limit
            && let Some(key) = self.pop(now)
        {
            let bytes = self.waiting.remove(&key).map_or(0, |w| w.bytes);
            out.push(Due { key, bytes });
        }
        out
    }

    /// Puts an object back whose budget said `next`.
    pub fn defer(&mut self, due: Due, next: Timestamp) {
        match self.waiting.get_mut(&due.key) {
            // Touched again in between: it keeps one place, the later.
            Some(waiting) => {
                let old = waiting.place;
                let bytes = waiting.bytes.saturating_add(due.bytes);
                self.queue.remove(&old);
                self.waiting.remove(&due.key);
                self.insert(due.key, bytes, next.max(old.0));
            }
            None => self.insert(due.key, due.bytes, next),
        }
    }

    /// Frees the bytes of an object that was written.
    pub fn written(&mut self, due: &Due) {
        self.bytes = self.bytes.saturating_sub(due.bytes);
    }

    /// Forgets objects that wait, with their bytes.
    pub fn forget(&mut self, gone: impl Fn(&ObjectKey) -> bool) {
        let Self { waiting, queue, bytes, .. } = self;
        waiting.retain(|key, Waiting { place, bytes: waited }| {
            let stays = !gone(key);
            if !stays {
                queue.remove(place);
                *bytes = bytes.saturating_sub(*waited);
            }
            stays
        });
    }

    /// When the next object is due; None where none waits.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    /// Whether so much waits that no more is to be read.
    pub const fn is_full(&self) -> bool {
        self.bytes >= self.max_bytes
    }

    /// Bytes of changes that wait or are being written.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Objects that wait.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    fn insert(&mut self, key: Arc<ObjectKey>, bytes: usize, due: Timestamp) {
        let place = (due, self.next);
        self.next += 1;
        self.queue.insert(place, Arc::clone(&key));
        self.waiting.insert(key, Waiting { place, bytes });
    }

    fn pop(&mut self, now: Timestamp) -> Option<Arc<ObjectKey>> {
        if self.queue.first_key_value()?.0.0 <= now {
            return self.queue.pop_first().map(|(_, key)| key);
        }
        let horizon = after(now, self.gather).plus_micros(HORIZON_MICROS);
        if self.queue.last_key_value()?.0.0 > horizon { self.queue.pop_last().map(|(_, key)| key) } else { None }
    }
}

/// An object taken from the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The object.
    pub key: Arc<ObjectKey>,
    /// Bytes of changes that waited for it.
    pub bytes: usize,
}

fn after(now: Timestamp, wait: Duration) -> Timestamp {
    now.plus_micros(i64::try_from(wait.as_micros()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::{ObjectKind, SiteId};

    const SECOND: i64 = 1_000_000;

    fn fresh() -> Bucket {
        Bucket::of(&Head::default())
    }

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(1_790_000_000 * SECOND + micros)
    }

    #[test]
    fn a_hammered_object_gets_its_whole_budget_and_no_more() {
        for (size, burst, rate) in [(1, 200, 20), (1024, 200, 20), (2048, 100, 10), (1 << 20, 20, 2)] {
            let mut bucket = fresh();
            let tries = (0..=20 * 5_000).filter(|n| bucket.try_take(at(n * 200), size).is_ok()).count();
            // Thousandths of tokens are rounded down, against the object.
            assert!((burst + rate * 20 - 1..=burst + rate * 20).contains(&tries), "{tries} of {size} bytes");
        }
    }

    #[test]
    fn a_clock_set_back_neither_feeds_nor_starves() {
        let mut bucket = fresh();
        while bucket.try_take(at(0), 100).is_ok() {}
        let back = at(-3_600 * SECOND);
        let next = bucket.try_take(back, 100).unwrap_err();
        assert_eq!(next, back.plus_micros(50_000));
        assert_eq!(bucket.try_take(next, 100), Ok(()));
    }

    #[test]
    fn a_quiet_object_is_due_after_the_gather_window() {
        let mut queue = Scheduler::new(Duration::from_millis(10), 1_000);
        let key = |name: &str| ObjectKey { site: SiteId::parse("demo").unwrap(), kind: ObjectKind::Map, name: name.into() };
        queue.touch(&key("a"), 600, at(0));
        queue.touch(&key("b"), 100, at(4_000));
        assert!(!queue.is_full());
        queue.touch(&key("a"), 300, at(9_000));
        assert!(queue.is_full());
        assert_eq!((queue.next_due(), queue.len()), (Some(at(10_000)), 2));
        assert_eq!(queue.due(at(9_999), 10), vec![]);
        let due = queue.due(at(10_000), 10);
        assert_eq!(due.iter().map(|d| (d.key.name.as_str(), d.bytes)).collect::<Vec<_>>(), [("a", 900)]);
        // Refused by its budget, and touched meanwhile: one place, all its bytes.
        queue.touch(&key("a"), 5, at(11_000));
        queue.defer(due.into_iter().next().unwrap(), at(60_000));
        assert_eq!((queue.len(), queue.bytes(), queue.next_due()), (2, 1_005, Some(at(14_000))));
        let due = queue.due(at(60_000), 10);
        assert_eq!(due.iter().map(|d| (d.key.name.as_str(), d.bytes)).collect::<Vec<_>>(), [("b", 100), ("a", 905)]);
        due.iter().for_each(|due| queue.written(due));
        assert_eq!((queue.bytes(), queue.is_empty(), queue.next_due()), (0, true, None));
    }

    #[test]
    fn what_somebody_waits_for_is_awaited_until_it_is_taken() {
        let mut queue = Scheduler::new(Duration::from_millis(10), 1_000);
        let key = |name: &str| ObjectKey { site: SiteId::parse("demo").unwrap(), kind: ObjectKind::Map, name: name.into() };
        queue.touch(&key("a"), 1, at(0));
        assert!(!queue.is_awaited());
        queue.touch_now(&key("b"), 1, at(0));
        assert!(queue.is_awaited());
        assert_eq!(queue.due(at(0), 10).len(), 1);
        assert!(!queue.is_awaited(), "what is left, nobody waits for");
    }

    #[test]
    fn a_clock_set_back_leaves_nothing_waiting() {
        let mut queue = Scheduler::new(Duration::from_millis(10), 1_000);
        queue.touch(&ObjectKey { site: SiteId::parse("demo").unwrap(), kind: ObjectKind::Map, name: "a".into() }, 1, at(0));
        assert_eq!(queue.due(at(-3_600 * SECOND), 10).len(), 1);
    }

    /// One try: how far real time and the clock move before it, how large the write is, whether another owner makes it.
    fn tries() -> impl Strategy<Value = Vec<(i64, i64, usize, bool)>> {
        let pause = prop_oneof![8 => Just(0), 4 => 0..2_000_i64, 4 => 0..60_000_i64, 1 => 0..15 * SECOND];
        let back = prop_oneof![20 => Just(0), 1 => 0..20 * SECOND];
        let size = prop_oneof![4 => 1..1_200_usize, 1 => 1..20_000_usize];
        proptest::collection::vec((pause, back, size, prop::bool::weighted(0.05)), 1..1_500)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        /// P3, against real time, whatever sizes, owners, and clocks set back.
        #[test]
        fn at_most_200_and_20_a_second(tries in tries()) {
            let mut head = Head::default();
            let mut bucket = Bucket::of(&head);
            let (mut real, mut lag) = (0_i64, 0_i64);
            // Least of 20 t - n over the writes so far; a window that ends now holds at most 200 + 20 t writes while n - 20 t + least <= 200.
            let (mut written, mut least) = (0_i64, 0_i64);
            for (pause, back, size, hand_over) in tries {
                real += pause;
                lag += back;
                if hand_over {
                    bucket.store(&mut head);
                    bucket = Bucket::of(&head);
                }
                let now = at(real - lag);
                match bucket.try_take(now, size) {
                    Ok(()) => {
                        least = least.min(real * 20 - written * SECOND);
                        written += 1;
                        prop_assert!(written * SECOND - real * 20 + least <= 200 * SECOND);
                    }
                    Err(next) => {
                        prop_assert!(next > now && next <= now.plus_micros(SECOND / 2));
                        let (mut then, mut before) = (bucket, bucket);
                        prop_assert!(then.try_take(next, size).is_ok());
                        prop_assert!(before.try_take(next.plus_micros(-1), size).is_err());
                    }
                }
            }
        }
    }
}
