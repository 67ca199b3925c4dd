//! How long objects live without a change. Called by [`super::object`] (a change to an expired object begins it anew), by readers (an expired object
//! reads as not found) and by the keeper's sweep. Pure: `now` is handed in.

use std::time::Duration;

use crate::event::Timestamp;

/// After how long without a change objects expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// `customer.` and `visitor.`
    pub people: Duration,
    /// `trail.`
    pub trails: Duration,
    /// `page.`
    pub pages: Duration,
}

impl Default for Expiry {
    fn default() -> Self {
        let days = |n: u64| Duration::from_secs(n * 86_400);
        Self { people: days(30), trails: days(7), pages: days(90) }
    }
}

impl Expiry {
    /// How long an object of this name lives after its last change; None = for ever.
    pub fn ttl_of(&self, name: &str) -> Option<Duration> {
        let starts = |prefix: &str| name.starts_with(prefix);
        match () {
            () if starts("customer.") || starts("visitor.") => Some(self.people),
            () if starts("trail.") => Some(self.trails),
            () if starts("page.") => Some(self.pages),
            () => None,
        }
    }

    /// Whether an object last changed at `updated_at` has expired at `now`.
    pub fn expired(&self, name: &str, updated_at: Timestamp, now: Timestamp) -> bool {
        self.ttl_of(name).is_some_and(|ttl| expired(updated_at, ttl, now))
    }
}

/// Whether what was last changed at `updated_at` and lives for `ttl` is past it at `now`.
pub fn expired(updated_at: Timestamp, ttl: Duration, now: Timestamp) -> bool {
    now > updated_at.plus_micros(i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_how_long() {
        let expiry = Expiry::default();
        let days = |name: &str| expiry.ttl_of(name).map(|ttl| ttl.as_secs() / 86_400);
        for (name, want) in [
            ("customer.a", Some(30)),
            ("visitor.a", Some(30)),
            ("trail.customer.a", Some(7)),
            ("page.:", Some(90)),
            ("product.a", None),
            ("checkout.a", None),
            ("index.product", None),
            ("mine", None),
        ] {
            assert_eq!(days(name), want, "{name}");
        }
        let (then, day) = (Timestamp::ZERO, 86_400);
        assert!(!expiry.expired("trail.visitor.a", then, then.plus_seconds(7 * day)));
        assert!(expiry.expired("trail.visitor.a", then, then.plus_seconds(7 * day).plus_micros(1)));
        assert!(!expiry.expired("product.a", then, Timestamp::MAX));
    }
}
