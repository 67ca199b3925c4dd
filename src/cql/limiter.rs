//! How many requests are under way at once: more as long as all goes well, half as many when the cluster shows that it is too much (additive
//! increase, multiplicative decrease). Every request of a [`super::Cluster`] passes here.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// Requests at once at the start.
const FIRST: usize = 128;
/// Never fewer.
const LEAST: usize = 4;
/// Never more: far below what one connection can tell apart.
const MOST: usize = 1_024;
/// A burst of refusals within this time is one sign.
const ONE_SIGN: Duration = Duration::from_millis(200);

/// Bounds the requests under way.
#[derive(Debug)]
pub(super) struct Limiter {
    permits: Semaphore,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: usize,
    /// Permits that are to vanish when they come back.
    owed: usize,
    /// Successes since the limit last grew.
    successes: usize,
    /// When a request last succeeded.
    succeeded: Option<Instant>,
    halved: Option<Instant>,
}

/// Leave to make a request; to be told how it went.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    limiter: &'a Limiter,
    permit: Option<SemaphorePermit<'a>>,
}

impl Limiter {
    pub(super) fn new() -> Self {
        Self { permits: Semaphore::new(FIRST), state: Mutex::new(State { limit: FIRST, owed: 0, successes: 0, succeeded: None, halved: None }) }
    }

    /// Waits for leave, in the order of those who wait; None once no request at all has succeeded for so long, counted from `begun` at the earliest.
    pub(super) async fn acquire(&self, begun: Instant, patience: Duration) -> Option<Permit<'_>> {
        let mut acquiring = std::pin::pin!(self.permits.acquire());
        loop {
            let until = self.heard_since(begun) + patience;
            tokio::select! {
                biased;
                permit = &mut acquiring => return Some(Permit { limiter: self, permit: permit.ok() }),
                () = tokio::time::sleep_until(until) => if self.heard_since(begun) + patience <= until {
                    return None;
                },
            }
        }
    }

    /// When a request last succeeded, or the time given where none did since.
    pub(super) fn heard_since(&self, begun: Instant) -> Instant {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.succeeded.map_or(begun, |succeeded| succeeded.max(begun))
    }

    /// Requests that may be under way at once.
    #[cfg(test)]
    pub(super) fn limit(&self) -> usize {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).limit
    }
}

impl Permit<'_> {
    /// The request succeeded.
    pub(super) fn succeeded(self) {
        let mut state = self.limiter.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.succeeded = Some(Instant::now());
        state.successes += 1;
        if state.successes >= state.limit && state.limit < MOST {
            state.limit += 1;
            state.successes = 0;
            if state.owed > 0 {
                state.owed -= 1;
            } else {
                self.limiter.permits.add_permits(1);
            }
        }
    }

    /// The cluster has too much to do.
    pub(super) fn overloaded(self) {
        self.overloaded_at(Instant::now());
    }

    fn overloaded_at(self, now: Instant) {
        let mut state = self.limiter.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.halved.is_some_and(|halved| now.duration_since(halved) < ONE_SIGN) {
            return;
        }
        let halved = (state.limit / 2).max(LEAST);
        state.owed += state.limit - halved;
        (state.limit, state.successes, state.halved) = (halved, 0, Some(now));
        metrics::counter!("contrail_cql_overloads_total").increment(1);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else { return };
        let mut state = self.limiter.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.owed > 0 {
            state.owed -= 1;
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn acquire(limiter: &Limiter) -> Permit<'_> {
        limiter.acquire(Instant::now(), Duration::from_secs(30)).await.unwrap()
    }

    #[tokio::test]
    async fn halves_on_a_sign_and_grows_slowly() {
        let limiter = Limiter::new();
        let mut now = Instant::now();
        let (first, second) = (acquire(&limiter).await, acquire(&limiter).await);
        first.overloaded_at(now);
        second.overloaded_at(now + ONE_SIGN / 2);
        assert_eq!(limiter.limit(), FIRST / 2, "one burst is one sign");
        now += ONE_SIGN;
        acquire(&limiter).await.overloaded_at(now);
        assert_eq!(limiter.limit(), FIRST / 4);
        for _ in 0..FIRST / 4 {
            acquire(&limiter).await.succeeded();
        }
        assert_eq!(limiter.limit(), FIRST / 4 + 1);
        for _ in 0..40 {
            now += ONE_SIGN;
            acquire(&limiter).await.overloaded_at(now);
        }
        assert_eq!(limiter.limit(), LEAST);
        // What is owed vanishes as it comes back.
        for _ in 0..2 * FIRST {
            drop(acquire(&limiter).await);
        }
        assert_eq!(limiter.permits.available_permits(), LEAST);
    }
}
