//! Who asks: `Authorization: Basic` with an account's SID and auth token, or an API key's SID and secret. Called by the handler before anything else.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::site::{Account, Sites};
use crate::web::sync::Fault;

/// Whose request it is.
///
/// # Errors
/// [`Fault::Unauthorized`], whatever is wrong.
pub(super) fn account(sites: &Sites, headers: &HeaderMap) -> Result<Account, Fault> {
    let (user, password) = headers.get(header::AUTHORIZATION).and_then(|value| credentials(value.to_str().ok()?)).ok_or(Fault::Unauthorized)?;
    sites.authenticate_account(&user, &password).ok_or(Fault::Unauthorized)
}

/// User and password of the header's value.
fn credentials(value: &str) -> Option<(String, String)> {
    let (scheme, given) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let plain = String::from_utf8(STANDARD.decode(given.trim()).ok()?).ok()?;
    let (user, password) = plain.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// Counts each account's requests under way. Holds no more than there are requests.
#[derive(Debug, Default)]
pub(super) struct Running(Mutex<HashMap<u64, usize>>);

/// One request under way; ends when dropped.
pub(super) struct Run<'a> {
    running: &'a Running,
    account: u64,
    /// How many the account has now, this one among them.
    pub(super) count: usize,
}

impl Running {
    /// Begins a request of an account.
    pub(super) fn begin(&self, account: u64) -> Run<'_> {
        let mut counts = self.counts();
        let count = counts.entry(account).or_default();
        *count += 1;
        Run { running: self, account, count: *count }
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<u64, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        let mut counts = self.running.counts();
        if let Entry::Occupied(mut count) = counts.entry(self.account) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_from_the_header() {
        // QUMxOnQ6dA== is "AC1:t:t".
        for value in ["Basic QUMxOnQ6dA==", "basic QUMxOnQ6dA=="] {
            assert_eq!(credentials(value), Some(("AC1".into(), "t:t".into())), "{value}");
        }
        for value in ["", "Basic", "Basic ", "Basic !", "Bearer QUMxOnQ6dA==", "Basic QUMx", "Basic /w=="] {
            assert_eq!(credentials(value), None, "{value}");
        }
    }

    #[test]
    fn requests_under_way_are_counted_by_account() {
        let running = Running::default();
        let first = running.begin(1);
        let (second, other) = (running.begin(1), running.begin(2));
        assert_eq!((first.count, second.count, other.count), (1, 2, 1));
        drop((first, other));
        assert_eq!(running.begin(1).count, 2);
        drop(second);
        assert!(running.counts().is_empty());
    }
}
