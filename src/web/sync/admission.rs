//! The rates of the limits profile `twilio`, as Twilio enforces them (<https://www.twilio.com/docs/sync/limits>): per object and per service, each with ten
//! seconds' worth at once. Asked by [`super::Desk`] before anything is appended or read. Must never wait, nor grow with the number of objects.

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

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

/// The rates.
#[derive(Debug)]
pub struct Admission {
    /// Not to be guessed from outside, or one could aim at another's rate.
    keyed: RandomState,
    writes: DefaultKeyedRateLimiter<u64>,
    reads: DefaultKeyedRateLimiter<u64>,
    messages: DefaultKeyedRateLimiter<u64>,
    permissions: DefaultKeyedRateLimiter<u64>,
    creations: DefaultKeyedRateLimiter<u64>,
}

impl Default for Admission {
    fn default() -> Self {
        let rate = |rate: u32| {
            let per_second = NonZeroU32::new(rate).unwrap_or(NonZeroU32::MIN);
            RateLimiter::dashmap(
                Quota::per_second(per_second).allow_burst(per_second.saturating_mul(NonZeroU32::new(BURST).unwrap_or(NonZeroU32::MIN))),
            )
        };
        Self { keyed: RandomState::new(), writes: rate(20), reads: rate(20), messages: rate(30), permissions: rate(80), creations: rate(20) }
    }
}

impl Admission {
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
    use std::time::Instant;

    use super::*;
    use crate::event::ObjectKind;

    #[test]
    fn large_writes_cost_more_and_each_object_has_its_own() {
        let admission = Admission::default();
        let key = |name: &str| ObjectKey { site: SiteId::parse("demo").unwrap(), kind: ObjectKind::Map, name: name.into() };
        // So many at once, and so many a second for as long as asking takes.
        let assert_rate = |at_once: usize, per_second: f64, is_admitted: &dyn Fn() -> bool| {
            let began = Instant::now();
            let admitted = (0..1_000).filter(|_| is_admitted()).count();
            let most = at_once + 1 + (began.elapsed().as_secs_f64() * per_second) as usize;
            assert!((at_once..=most).contains(&admitted), "{admitted} of {at_once} to {most}");
        };
        for (name, what, bytes, at_once, per_second) in [
            ("small", Limited::Write, 1_024, 200, 20.0),
            ("large", Limited::Write, 16_000, 20, 2.0),
            ("small", Limited::Read, 16_000, 200, 20.0),
            ("small", Limited::Message, 10, 300, 30.0),
            ("large", Limited::Message, 4_000, 75, 7.5),
            ("small", Limited::Permission, 0, 800, 80.0),
        ] {
            assert_rate(at_once, per_second, &|| admission.admits(what, &key(name), bytes));
        }
        assert_rate(200, 20.0, &|| admission.admits_creation(&key("a").site));
    }
}
