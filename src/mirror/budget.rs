//! The rates that a mirror keeps within, below those of Twilio (<https://www.twilio.com/docs/sync/limits>), so that it is refused nothing: of an object 17 writes
//! a second of up to 1 KiB, 1.7 from 10 KiB on, as many reads, two seconds' worth at once; of a service 20 objects made or removed a second. Where several
//! processes mirror one service, each has the share of it that it has of the partitions. Must never wait.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::state::{InMemoryState, NotKeyed};
use governor::{NotUntil, Quota, RateLimiter};

use crate::event::{ObjectKey, PARTITIONS};

/// Rates are counted in thousandths.
const UNIT: u32 = 1_000;
/// Of an object, a second; and how many seconds' worth may come at once.
const OBJECT: u32 = 17;
const BURST: u32 = 2;
/// Of a service, a second.
const SERVICE: u32 = 20;
/// Bytes up to which a write costs one, and what it costs at most.
const FULL_RATE_BYTES: usize = 1 << 10;
const MOST: usize = 10 * UNIT as usize;

type Keyed<C> = RateLimiter<ObjectKey, DefaultKeyedStateStore<ObjectKey>, C, NoOpMiddleware<<C as Clock>::Instant>>;
type Direct<C> = RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// The rates of one mirror.
#[derive(Debug)]
pub(super) struct Budget<C: Clock = DefaultClock> {
    objects: Arc<Objects<C>>,
    service: Direct<C>,
    clock: C,
}

#[derive(Debug)]
struct Objects<C: Clock> {
    writes: Keyed<C>,
    reads: Keyed<C>,
}

fn quota(per_second: u32, burst: u32) -> Quota {
    let of = |rate: u32| NonZeroU32::new(rate).unwrap_or(NonZeroU32::MIN);
    Quota::per_second(of(per_second)).allow_burst(of(burst))
}

/// What a write of so many bytes costs.
fn cost(bytes: usize) -> u32 {
    u32::try_from((bytes * UNIT as usize / FULL_RATE_BYTES).clamp(UNIT as usize, MOST)).unwrap_or(UNIT)
}

impl Budget {
    /// That of a process that has so many of the partitions.
    pub(super) fn new(partitions: usize) -> Self {
        Self::by(DefaultClock::default(), partitions)
    }
}

impl<C: Clock + Clone> Budget<C> {
    fn by(clock: C, partitions: usize) -> Self {
        let object = || Keyed::new(quota(OBJECT * UNIT, BURST * OBJECT * UNIT), DefaultKeyedStateStore::default(), clock.clone());
        Self::of(Arc::new(Objects { writes: object(), reads: object() }), partitions, clock.clone())
    }

    /// The same once it has so many of them: no object may be written more often for that.
    pub(super) fn with_partitions(&self, partitions: usize) -> Self {
        Self::of(Arc::clone(&self.objects), partitions, self.clock.clone())
    }

    fn of(objects: Arc<Objects<C>>, partitions: usize, clock: C) -> Self {
        let share = SERVICE * UNIT * u32::try_from(partitions).unwrap_or_default().clamp(1, u32::from(PARTITIONS)) / u32::from(PARTITIONS);
        // Whatever the share: one at once.
        let service = RateLimiter::direct_with_clock(quota(share, share.max(UNIT)), clock.clone());
        Self { objects, service, clock }
    }

    /// Takes what a write of an object costs, or says in how long there will be that.
    pub(super) fn write(&self, key: &ObjectKey, bytes: usize) -> Result<(), Duration> {
        Self::taken(self.objects.writes.check_key_n(key, cells(cost(bytes))), &self.clock)
    }

    /// Likewise for a read.
    pub(super) fn read(&self, key: &ObjectKey) -> Result<(), Duration> {
        Self::taken(self.objects.reads.check_key_n(key, cells(UNIT)), &self.clock)
    }

    /// Likewise for making or removing an object.
    pub(super) fn service(&self) -> Result<(), Duration> {
        Self::taken(self.service.check_n(cells(UNIT)), &self.clock)
    }

    fn taken<E>(said: Result<Result<(), NotUntil<C::Instant>>, E>, clock: &C) -> Result<(), Duration> {
        match said {
            Ok(Ok(())) => Ok(()),
            Ok(Err(until)) => Err(until.wait_time_from(clock.now()).max(Duration::from_millis(1))),
            // More than ever comes at once: no cost is.
            Err(_) => Err(Duration::from_secs(1)),
        }
    }

    /// Forgets objects that have their whole rate back.
    pub(super) fn sweep(&self) {
        self.objects.writes.retain_recent();
        self.objects.reads.retain_recent();
    }
}

const fn cells(cost: u32) -> NonZeroU32 {
    match NonZeroU32::new(cost) {
        Some(cost) => cost,
        None => NonZeroU32::MIN,
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;
    use crate::event::{ObjectKind, SiteId};

    fn key(name: &str) -> ObjectKey {
        ObjectKey { site: SiteId::parse("demo").unwrap(), kind: ObjectKind::Map, name: name.into() }
    }

    #[test]
    fn two_seconds_worth_come_at_once_and_large_writes_cost_more() {
        let clock = FakeRelativeClock::default();
        let budget = Budget::by(clock.clone(), 16);
        let at_once = |name: &str, bytes| (0..1_000).take_while(|_| budget.write(&key(name), bytes).is_ok()).count();
        assert_eq!(at_once("small", 1_000), 34);
        assert_eq!(at_once("empty", 0), 34);
        assert_eq!(at_once("middle", 2_048), 17);
        assert_eq!(at_once("large", 10_240), 3);
        assert_eq!(at_once("small", 1_000), 0, "each object has its own");
        let wait = budget.write(&key("small"), 1_000).unwrap_err();
        assert!((58..60).contains(&wait.as_millis()), "{wait:?}");
        let wait = budget.write(&key("large"), 16 << 10).unwrap_err();
        assert!((352..354).contains(&wait.as_millis()), "{wait:?}");
        assert!(budget.read(&key("small")).is_ok(), "reads are counted apart");
        assert!(budget.with_partitions(3).write(&key("small"), 1).is_err(), "the same objects");
        clock.advance(wait);
        assert_eq!((at_once("large", 16 << 10), at_once("small", 1)), (1, 6), "and it comes back");
    }

    #[test]
    fn a_process_has_its_share_of_the_services_rate() {
        let at_once = |partitions| {
            let budget = Budget::by(FakeRelativeClock::default(), partitions);
            (0..1_000).take_while(|_| budget.service().is_ok()).count()
        };
        assert_eq!([at_once(16), at_once(8), at_once(1), at_once(0)], [20, 10, 1, 1]);
    }
}
