//! Tokens of tests.

use std::time::Duration;

use super::Token;
use crate::event::{SiteId, Timestamp};
use crate::web::sync::Caller;

/// A token of this account that never ends, and whether its service is limited.
pub(super) fn token(account: &str, limited: bool) -> Token {
    let caller = Caller { site: SiteId::parse("demo").unwrap(), identity: Some("alice".into()), acl: false, limited, mapped: true };
    Token {
        caller,
        account_sid: account.into(),
        service_sid: "IS1".into(),
        identity: "alice".into(),
        endpoint: None,
        expires_at: Timestamp::MAX,
        lifetime: Duration::from_secs(3_600),
    }
}
