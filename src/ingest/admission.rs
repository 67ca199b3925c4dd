//! How much is let in: a budget of bytes in flight over all requests, and rates per address, key and site. Called by the handler. Must never
//! wait: at a limit the caller is refused at once; and never grow with the number of senders.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::MAX_EVENTS;
use super::reject::Code;

/// Keys per limiter. Hashes are folded onto as many, so that a flood of addresses takes no more memory than this; two that meet share a rate.
const MOST_KEYS: u64 = 1 << 16;

/// Bytes of one permit.
const UNIT: usize = 1 << 10;

/// The rates.
#[derive(Debug)]
pub(crate) struct Rates {
    /// Not to be guessed from outside, or a sender could aim at another's rate.
    keyed: RandomState,
    address: DefaultKeyedRateLimiter<u64>,
    key: DefaultKeyedRateLimiter<u64>,
    site: DefaultKeyedRateLimiter<u64>,
}

impl Rates {
    /// Requests a second by address; events a second by key and by site.
    pub(crate) fn new(address: NonZeroU32, key: NonZeroU32, site: NonZeroU32) -> Self {
        // A whole request of the most events must pass at once, or it never would.
        let events = |rate: NonZeroU32| Quota::per_second(rate).allow_burst(rate.max(NonZeroU32::new(MAX_EVENTS as u32).unwrap_or(rate)));
        Self {
            keyed: RandomState::new(),
            address: RateLimiter::dashmap(Quota::per_second(address)),
            key: RateLimiter::dashmap(events(key)),
            site: RateLimiter::dashmap(events(site)),
        }
    }

    /// Admits a request of an address; of IPv6 the network of 64 bits counts.
    pub(crate) fn request(&self, address: IpAddr) -> Result<(), Code> {
        let hash = match address {
            IpAddr::V4(v4) => self.keyed.hash_one(v4.to_bits()),
            IpAddr::V6(v6) => self.keyed.hash_one((v6.to_bits() >> 64) as u64),
        };
        self.address.check_key(&(hash % MOST_KEYS)).map_err(|_| Code::RateAddress)
    }

    /// Admits events of a key and its site, both named by hashes.
    pub(crate) fn events(&self, key: u64, site: u64, count: usize) -> Result<(), Code> {
        let Some(count) = u32::try_from(count).ok().and_then(NonZeroU32::new) else { return Ok(()) };
        let admitted = |limiter: &DefaultKeyedRateLimiter<u64>, hash: u64| matches!(limiter.check_key_n(&(hash % MOST_KEYS), count), Ok(Ok(())));
        if !admitted(&self.key, key) {
            return Err(Code::RateKey);
        }
        if admitted(&self.site, site) { Ok(()) } else { Err(Code::RateSite) }
    }

    /// Forgets keys that were quiet long enough to have their whole rate back.
    pub(crate) fn sweep(&self) {
        for limiter in [&self.address, &self.key, &self.site] {
            limiter.retain_recent();
        }
    }
}

/// All bytes that requests in flight may hold.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Arc<Semaphore>);

impl Budget {
    /// A budget of so many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new((bytes / UNIT).clamp(1, Semaphore::MAX_PERMITS))))
    }

    /// A share of nothing yet.
    pub(crate) fn share(&self) -> Share {
        Share { budget: self.clone(), held: None }
    }

    /// Bytes nobody holds.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.0.available_permits() * UNIT
    }
}

/// What one request holds of the budget; given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Budget,
    held: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// Holds at least so many bytes from now on.
    pub(crate) fn grow_to(&mut self, bytes: usize) -> Result<(), Code> {
        let have = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let Some(more) = bytes.div_ceil(UNIT).checked_sub(have).filter(|more| *more > 0) else { return Ok(()) };
        let more = u32::try_from(more).map_err(|_| Code::Overloaded)?;
        let permit = Arc::clone(&self.budget.0).try_acquire_many_owned(more).map_err(|_| Code::Overloaded)?;
        match &mut self.held {
            Some(held) => held.merge(permit),
            None => self.held = Some(permit),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).unwrap()
    }

    #[test]
    fn a_share_is_given_back_whole() {
        let budget = Budget::new(64 << 10);
        let mut one = budget.share();
        one.grow_to(10_000).unwrap();
        one.grow_to(5_000).unwrap();
        one.grow_to(60 << 10).unwrap();
        assert_eq!(budget.free(), 4 << 10);
        assert_eq!(budget.share().grow_to(5 << 10), Err(Code::Overloaded));
        drop(one);
        assert_eq!(budget.free(), 64 << 10);
    }

    #[test]
    fn each_rate_refuses_by_its_own_name() {
        let rates = Rates::new(rate(2), rate(20_000), rate(10_000));
        let (near, far) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        assert_eq!((rates.request(near), rates.request(far)), (Ok(()), Ok(())));
        assert_eq!(rates.request(near), Err(Code::RateAddress), "one network of 64 bits is one sender");
        assert_eq!(rates.request("192.0.2.1".parse().unwrap()), Ok(()));
        assert_eq!(rates.events(1, 1, 10_000), Ok(()));
        assert_eq!(rates.events(1, 1, 10_000), Err(Code::RateSite));
        assert_eq!(rates.events(1, 2, 10_000), Err(Code::RateKey));
        rates.sweep();
        assert_eq!(rates.events(1, 2, 10_000), Err(Code::RateKey), "sweeping forgives nothing");
    }
}
