//! The rates of the limits profile `twilio`, as Twilio enforces them (<https://www.twilio.com/docs/sync/limits>): per object and per service, each with ten
//! seconds' worth at once. Asked by [`super::Desk`] before anything is appended or read. Must never wait, nor grow with the number of objects.

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;

use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{Quota, RateLimiter};

use crate::event::{ObjectKey, SiteId};

/// Keys per limiter: hashes are folded onto as many, and two that meet share a rate.
const MOST_KEYS: u64 = 1 << 20;
/// Seconds' worth that may come at once.
const BURST: u32 = 10;
/// Bytes up to which a write costs one token.
const FULL_RATE_BYTES: usize = 1 << 10;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    /// Writes of an object's data or items: 20 a second of up to 1 KiB, 2 a second from 10 KiB on.
    Write,
    /// Reads of an object.
    Read,
    /// A stream's messages: 30 a second of up to 1 KiB, 7 above 3 KiB.
    Message,
    /// Rights of an object, read and written: 80 a second.
    Permission,
}

type Keyed<C> = RateLimiter<u64, DefaultKeyedStateStore<u64>, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// The rates.
#[derive(Debug)]
pub struct Admission<C: Clock = DefaultClock> {
    /// Not to be guessed from outside, or one could aim at another's rate.
    keyed: RandomState,
    writes: Keyed<C>,
    reads: Keyed<C>,
    messages: Keyed<C>,
    permissions: Keyed<C>,
    creations: Keyed<C>,
}

impl Default for Admission {
    fn default() -> Self {
        Self::by(&DefaultClock::default())
    }
}

impl<C: Clock + Clone> Admission<C> {
    fn by(clock: &C) -> Self {
        let rate = |rate: u32| {
            let of = |rate| NonZeroU32::new(rate).unwrap_or(NonZeroU32::MIN);
            let quota = Quota::per_second(of(rate)).allow_burst(of(rate * BURST));
            Keyed::new(quota, DefaultKeyedStateStore::default(), clock.clone())
        };
        Self { keyed: RandomState::new(), writes: rate(20), reads: rate(20), messages: rate(30), permissions: rate(80), creations: rate(20) }
    }

    /// Whether something of so many bytes may be done with an object now.
    pub fn admits(&self, what: Limited, key: &ObjectKey, bytes: usize) -> bool {
        let (limiter, cost) = match what {
            Limited::Write => (&self.writes, bytes.div_ceil(FULL_RATE_BYTES).clamp(1, 10)),
            Limited::Read => (&self.reads, 1),
            // 30 a second over 7 a second.
            Limited::Message if bytes > 3 * FULL_RATE_BYTES => (&self.messages, 4),
            Limited::Message => (&self.messages, bytes.div_ceil(FULL_RATE_BYTES).max(1)),
            Limited::Permission => (&self.permissions, 1),
        };
        let cost = u32::try_from(cost).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
        matches!(limiter.check_key_n(&(self.keyed.hash_one(key) % MOST_KEYS), cost), Ok(Ok(())))
    }

    /// Whether an object may be created or removed in a service now; 20 a second, all kinds together.
    pub fn admits_creation(&self, site: &SiteId) -> bool {
        self.creations.check_key(&(self.keyed.hash_one(site) % MOST_KEYS)).is_ok()
    }

    /// Forgets keys that were quiet long enough to have their whole rate back.
    pub fn sweep(&self) {
        for limiter in [&self.writes, &self.reads, &self.messages, &self.permissions, &self.creations] {
            limiter.retain_recent();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use governor::clock::FakeRelativeClock;

    use super::*;
    use crate::event::ObjectKind;

    #[test]
    fn large_writes_cost_more_and_each_object_has_its_own() {
        let clock = FakeRelativeClock::default();
        let admission = Admission::by(&clock);
        let key = |name: &str| ObjectKey { site: SiteId::parse("demo").unwrap(), kind: ObjectKind::Map, name: name.into() };
        // What is asked for a thousand times at once, and again ten seconds later.
        let rates = [
            ("small", Limited::Write, 1_024, 200),
            ("middle", Limited::Write, 2_048, 100),
            ("large", Limited::Write, 16_000, 20),
            ("small", Limited::Read, 16_000, 200),
            ("small", Limited::Message, 10, 300),
            ("large", Limited::Message, 4_000, 75),
            ("small", Limited::Permission, 0, 800),
        ];
        for wait in [Duration::ZERO, Duration::from_secs(10)] {
            clock.advance(wait);
            for (name, what, bytes, admitted) in rates {
                let of = (0..1_000).filter(|_| admission.admits(what, &key(name), bytes)).count();
                assert_eq!(of, admitted, "{what:?} of {name}");
            }
            assert_eq!((0..1_000).filter(|_| admission.admits_creation(&key("a").site)).count(), 200);
        }
        clock.advance(Duration::from_secs(1));
        assert_eq!((0..1_000).filter(|_| admission.admits(Limited::Write, &key("small"), 1)).count(), 20);
        admission.sweep();
        assert!(!admission.admits(Limited::Write, &key("small"), 1), "a sweep gives nothing back");
    }
}
