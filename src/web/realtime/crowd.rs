//! How many realtime connections each account has, and how fast they come and ask: what the limits profile `twilio` allows an account beyond what one
//! connection may do (<https://www.twilio.com/docs/sync/limits>). Asked by [`super::session`] through its gate. Must never wait. Of this process: a second one
//! allows as many again.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::Token;

/// What an account of a limited service may have.
#[derive(Clone, Copy, Debug)]
pub struct AccountLimits {
    /// Connections at a time.
    pub connections: usize,
    /// New connections a second, and at once.
    pub arrivals: NonZeroU32,
    /// Requests a second over all its connections, and at once.
    pub requests: NonZeroU32,
}

impl AccountLimits {
    /// Those of a Twilio subaccount. Those of Twilio as a whole (100,000 and 1,000 a second) are not kept: a process has bounds of its own.
    pub const TWILIO: Self =
        Self { connections: 7_000, arrivals: NonZeroU32::MIN.saturating_add(109), requests: NonZeroU32::MIN.saturating_add(19_999) };
}

/// The connections of every account.
#[derive(Debug)]
pub(super) struct Crowd {
    connected: Mutex<HashMap<Arc<str>, usize>>,
    limits: AccountLimits,
    /// Limiters go by the hash of the account: sites are few.
    hasher: RandomState,
    arrivals: DefaultKeyedRateLimiter<u64>,
    requests: DefaultKeyedRateLimiter<u64>,
}

/// A connection that is counted, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Arc<Crowd>,
    account: Arc<str>,
}

impl Crowd {
    pub(super) fn new(limits: AccountLimits) -> Self {
        let rate = |rate| RateLimiter::dashmap(Quota::per_second(rate));
        Self { connected: Mutex::default(), limits, hasher: RandomState::new(), arrivals: rate(limits.arrivals), requests: rate(limits.requests) }
    }

    /// A place among the connections of a token's account; None where its service is limited and there is none now. All are counted: a service that is
    /// limited later may have too many then, and gets no further ones.
    pub(super) fn enter(self: &Arc<Self>, token: &Token) -> Option<Place> {
        let mut connected = self.connected();
        if token.caller.limited {
            let here = connected.get(token.account_sid.as_str()).copied().unwrap_or(0);
            if here >= self.limits.connections || self.arrivals.check_key(&self.hasher.hash_one(&token.account_sid)).is_err() {
                return None;
            }
        }
        let account =
            connected.get_key_value(token.account_sid.as_str()).map_or_else(|| token.account_sid.as_str().into(), |(known, _)| Arc::clone(known));
        *connected.entry(Arc::clone(&account)).or_default() += 1;
        Some(Place { crowd: Arc::clone(self), account })
    }

    /// Whether the account of a token may ask something more now.
    pub(super) fn admits_request(&self, token: &Token) -> bool {
        !token.caller.limited || self.requests.check_key(&self.hasher.hash_one(&token.account_sid)).is_ok()
    }

    fn connected(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connected = self.crowd.connected();
        if let Some(here) = connected.get_mut(&self.account) {
            *here -= 1;
            if *here == 0 {
                connected.remove(&self.account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::realtime::testing::token;

    #[test]
    fn an_account_has_so_many_connections_and_no_more_until_one_goes() {
        let limits = AccountLimits { connections: 3, ..AccountLimits::TWILIO };
        let crowd = Arc::new(Crowd::new(limits));
        let (open, limited, other) = (token("AC1", false), token("AC1", true), token("AC2", true));
        let mut places: Vec<Place> = [&open, &limited, &limited].into_iter().map(|token| crowd.enter(token).unwrap()).collect();
        assert!(crowd.enter(&limited).is_none());
        assert!(crowd.enter(&other).is_some(), "another account's are its own");
        places.push(crowd.enter(&open).expect("an open service is not limited"));
        places.truncate(2);
        places.push(crowd.enter(&limited).expect("a place came free"));
        drop(places);
        assert!(crowd.connected().is_empty());
    }

    #[test]
    fn connections_and_requests_of_an_account_come_at_its_rates() {
        const RATE: u32 = 50;
        let rate = NonZeroU32::new(RATE).unwrap();
        let crowd = Arc::new(Crowd::new(AccountLimits { connections: usize::MAX, arrivals: rate, requests: rate }));
        let (limited, open) = (token("AC1", true), token("AC2", false));
        let came = |what: &dyn Fn(&Token) -> bool| {
            let begun = std::time::Instant::now();
            let admitted = (0..2 * RATE).filter(|_| what(&limited)).count() as f64;
            let most = f64::from(RATE) * (1.0 + begun.elapsed().as_secs_f64()) + 1.0;
            assert!((f64::from(RATE)..=most).contains(&admitted), "{admitted}");
            assert_eq!((0..2 * RATE).filter(|_| what(&open)).count(), 2 * RATE as usize);
        };
        came(&|token| crowd.enter(token).is_some());
        came(&|token| crowd.admits_request(token));
    }
}
