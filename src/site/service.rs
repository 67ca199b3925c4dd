//! A site as a Sync service: what of it can be set, how that is checked, and how it is kept. Called by `site`. Pure.

use serde::{Deserialize, Serialize};
use url::Url;
use uuid::Uuid;

use super::Error;
use super::mirror::MirrorRow;
use super::seal::Seal;
use super::store::SiteRow;
use crate::event::{SiteId, Timestamp, ids};

/// What an account calls the service that it has by itself.
pub(super) const DEFAULT: &str = "default";

/// Fewest and most milliseconds for which a connection may be away before it is told so.
const WINDOW: std::ops::RangeInclusive<u32> = 1_000..=30_000;
/// Most characters of a webhook's URL.
const LONGEST_URL: usize = 512;
/// Most characters of a friendly name.
const LONGEST_NAME: usize = 255;

/// Most auth tokens that a site's webhooks may be signed with: the one before and the one after a change.
const MOST_AUTH_TOKENS: usize = 2;

/// Which limits a service has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Limits {
    /// Only those that protect the server.
    #[default]
    Open,
    /// Those of Twilio too, so that what runs here runs there.
    Twilio,
}

impl Limits {
    /// The profile's name in commands and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Twilio => "twilio",
        }
    }
}

/// A site as the Sync API shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `IS` and 32 lower-case hexadecimal digits; follows from the site's name.
    pub sid: String,
    /// `AC` and 32 such digits; follows from the name of the site that has the account.
    pub account_sid: String,
    /// `default` of the service that an account has by itself, none of its others.
    pub unique_name: Option<String>,
    /// Its name for people.
    pub friendly_name: Option<String>,
    /// Where its changes are told to.
    pub webhook_url: Option<String>,
    /// Whether changes that came by REST are told to the webhook too.
    pub webhooks_from_rest_enabled: bool,
    /// Whether the webhook is told who connects and disconnects.
    pub reachability_webhooks_enabled: bool,
    /// Whether identities need permissions.
    pub acl_enabled: bool,
    /// Whether short absences are kept from the webhook.
    pub reachability_debouncing_enabled: bool,
    /// How long a short absence lasts at most: 1,000 to 30,000 milliseconds.
    pub reachability_debouncing_window: u32,
    /// When it was made; [`Timestamp::ZERO`] where that was not yet noted.
    pub created_at: Timestamp,
    /// When it was last set.
    pub updated_at: Timestamp,
    /// Its limits.
    pub limits: Limits,
}

/// What to replace of a service; None stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceChange {
    /// 1 to 255 characters.
    pub friendly_name: Option<String>,
    /// An `http` or `https` URL of at most 512 characters, or none any more.
    pub webhook_url: Option<Option<String>>,
    /// See [`Service`], as for all that follow.
    pub webhooks_from_rest_enabled: Option<bool>,
    /// Likewise.
    pub reachability_webhooks_enabled: Option<bool>,
    /// Likewise.
    pub acl_enabled: Option<bool>,
    /// Likewise.
    pub reachability_debouncing_enabled: Option<bool>,
    /// Milliseconds, 1,000 to 30,000.
    pub reachability_debouncing_window: Option<u32>,
    /// Likewise.
    pub limits: Option<Limits>,
}

/// What a service cannot be set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceFault {
    /// Twilio's 54051.
    #[error("a webhook's URL is http or https, names a host, and has at most {LONGEST_URL} characters")]
    WebhookUrl,
    /// Twilio's 54053.
    #[error("a friendly name has 1 to {LONGEST_NAME} characters")]
    FriendlyName,
    /// Tokens that nobody signs with, or too many.
    #[error("a site has at most {MOST_AUTH_TOKENS} auth tokens, each of 16 to 128 visible ASCII characters")]
    AuthTokens,
    /// Outside of what is allowed.
    #[error("a debouncing window is {} to {} ms", WINDOW.start(), WINDOW.end())]
    Window,
}

impl ServiceChange {
    /// Whether a service can be set so.
    pub(super) fn check(&self) -> Result<(), ServiceFault> {
        if !self.webhook_url.iter().flatten().all(|url| is_webhook(url)) {
            return Err(ServiceFault::WebhookUrl);
        }
        if !self.friendly_name.iter().all(|name| (1..=LONGEST_NAME).contains(&name.chars().count())) {
            return Err(ServiceFault::FriendlyName);
        }
        if !self.reachability_debouncing_window.iter().all(|window| WINDOW.contains(window)) {
            return Err(ServiceFault::Window);
        }
        Ok(())
    }
}

fn is_webhook(given: &str) -> bool {
    given.len() <= LONGEST_URL && is_uri(given) && Url::parse(given).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

/// Whether a text has no characters but those of URIs, and names an authority. What a parser would mend is refused: it is shown, and signed, as it was given.
fn is_uri(given: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte);
    let escaped = given.split('%').skip(1).all(|rest| rest.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2);
    given.bytes().all(legal) && escaped && given.split_once("://").is_some_and(|(scheme, _)| scheme.bytes().all(|byte| byte.is_ascii_alphabetic()))
}

/// What is kept of a service beside the rules of its site. What is missing has its default: rows of earlier builds have none of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct ServiceRow {
    /// The site whose account this is a further service of; None where it has an account of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) account: Option<SiteId>,
    pub(super) friendly_name: Option<String>,
    pub(super) webhook_url: Option<String>,
    pub(super) webhooks_from_rest_enabled: bool,
    pub(super) reachability_webhooks_enabled: bool,
    pub(super) acl_enabled: bool,
    pub(super) reachability_debouncing_enabled: bool,
    pub(super) reachability_debouncing_window: u32,
    pub(super) created_at: Timestamp,
    pub(super) updated_at: Timestamp,
    pub(super) limits: Limits,
    /// What the account's token is made from beside its key: another with each rotation.
    pub(super) token_nonce: u64,
    /// SIDs of the account's API keys.
    pub(super) keys: Vec<String>,
    /// What webhooks of a real Sync service are signed with.
    #[serde(skip_serializing_if = "AuthTokens::is_none")]
    pub(super) twilio: AuthTokens,
    /// Where its objects are mirrored to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mirror: Option<MirrorRow>,
}

/// Auth tokens of a Twilio account, sealed where there is a key.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct AuthTokens(Vec<String>);

impl AuthTokens {
    /// Tokens of a site, to be kept sealed.
    pub(super) fn of(tokens: &[String], site: &SiteId, seal: &Seal) -> Result<Self, ServiceFault> {
        let is_legal = |token: &String| (16..=128).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic());
        if tokens.len() > MOST_AUTH_TOKENS || !tokens.iter().all(is_legal) {
            return Err(ServiceFault::AuthTokens);
        }
        Ok(Self(tokens.iter().map(|token| seal.seal(site, token)).collect()))
    }

    pub(super) fn open(&self, site: &SiteId, seal: &Seal) -> Result<Vec<String>, Error> {
        self.0.iter().map(|kept| seal.open(site, kept)).collect()
    }

    fn is_none(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Debug for AuthTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthTokens").field("count", &self.0.len()).finish()
    }
}

impl Default for ServiceRow {
    fn default() -> Self {
        Self {
            account: None,
            friendly_name: None,
            webhook_url: None,
            webhooks_from_rest_enabled: false,
            reachability_webhooks_enabled: false,
            acl_enabled: false,
            reachability_debouncing_enabled: false,
            reachability_debouncing_window: 5_000,
            created_at: Timestamp::ZERO,
            updated_at: Timestamp::ZERO,
            limits: Limits::Open,
            token_nonce: 0,
            keys: Vec::new(),
            twilio: AuthTokens::default(),
            mirror: None,
        }
    }
}

impl ServiceRow {
    /// One made now, of the account of `account`, or with an account of its own.
    pub(super) fn made(now: Timestamp, account: Option<SiteId>) -> Self {
        Self { account, created_at: now, updated_at: now, ..Self::default() }
    }

    /// Whether nothing of it was ever set.
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The row with a change; with its time only where that does change something, so that a change made again is one.
    #[must_use]
    pub(super) fn with(&self, change: &ServiceChange, now: Timestamp) -> Self {
        let change = change.clone();
        let mut row = self.clone();
        row.friendly_name = change.friendly_name.or(row.friendly_name);
        row.webhook_url = change.webhook_url.unwrap_or(row.webhook_url);
        row.webhooks_from_rest_enabled = change.webhooks_from_rest_enabled.unwrap_or(row.webhooks_from_rest_enabled);
        row.reachability_webhooks_enabled = change.reachability_webhooks_enabled.unwrap_or(row.reachability_webhooks_enabled);
        row.acl_enabled = change.acl_enabled.unwrap_or(row.acl_enabled);
        row.reachability_debouncing_enabled = change.reachability_debouncing_enabled.unwrap_or(row.reachability_debouncing_enabled);
        row.reachability_debouncing_window = change.reachability_debouncing_window.unwrap_or(row.reachability_debouncing_window);
        row.limits = change.limits.unwrap_or(row.limits);
        if row != *self {
            row.updated_at = now;
        }
        row
    }
}

impl Service {
    /// What a row says.
    pub(super) fn of(row: &SiteRow) -> Self {
        let SiteRow { id, service: kept, .. } = row;
        Self {
            sid: service_sid(id),
            account_sid: account_sid(kept.account.as_ref().unwrap_or(id)),
            unique_name: kept.account.is_none().then(|| DEFAULT.to_owned()),
            friendly_name: kept.friendly_name.clone(),
            webhook_url: kept.webhook_url.clone(),
            webhooks_from_rest_enabled: kept.webhooks_from_rest_enabled,
            reachability_webhooks_enabled: kept.reachability_webhooks_enabled,
            acl_enabled: kept.acl_enabled,
            reachability_debouncing_enabled: kept.reachability_debouncing_enabled,
            reachability_debouncing_window: kept.reachability_debouncing_window,
            created_at: kept.created_at,
            updated_at: kept.updated_at,
            limits: kept.limits,
        }
    }
}

/// The SID of a site's account.
fn account_sid(site: &SiteId) -> String {
    sid("AC", ids::first_16(&ids::sha256(&[b"contrail sync account 1", site.as_str().as_bytes()])))
}

/// The SID of a site as a service.
fn service_sid(site: &SiteId) -> String {
    sid("IS", ids::first_16(&ids::sha256(&[b"contrail sync service 1", site.as_str().as_bytes()])))
}

/// A SID as Twilio's look.
pub(super) fn sid(prefix: &str, bytes: [u8; 16]) -> String {
    format!("{prefix}{}", Uuid::from_bytes(bytes).simple())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_service_cannot_be_set_to_is_told() {
        let name = |name: String| ServiceChange { friendly_name: Some(name), ..ServiceChange::default() }.check();
        assert_eq!(name("\u{e9}".repeat(255)), Ok(()));
        assert_eq!(name("a".repeat(256)), Err(ServiceFault::FriendlyName));
        assert_eq!(name(String::new()), Err(ServiceFault::FriendlyName));
        let url = |url: &str| ServiceChange { webhook_url: Some(Some(url.to_owned())), ..ServiceChange::default() }.check();
        let long = |length: usize| format!("https://shop.example/{}", "a".repeat(length - 21));
        for legal in ["https://shop.example/hook?site=1", "http://127.0.0.1:8080", "https://a:b@shop.example", &long(512)] {
            assert_eq!(url(legal), Ok(()), "{legal}");
        }
        for illegal in ["", "shop.example/hook", "/hook", "ftp://shop.example", "https://", "javascript:alert(1)", &long(513)] {
            assert_eq!(url(illegal), Err(ServiceFault::WebhookUrl), "{illegal}");
        }
        for illegal in [
            "https://\u{cf}",
            "https:shop.example",
            "https:\\\\shop.example",
            " https://shop.example",
            "https://shop.example/{a}",
            "https://shop.example/%4",
        ] {
            assert_eq!(url(illegal), Err(ServiceFault::WebhookUrl), "{illegal}");
        }
        assert_eq!(ServiceChange { webhook_url: Some(None), ..ServiceChange::default() }.check(), Ok(()));
        for (window, fits) in [(999, false), (1_000, true), (30_000, true), (30_001, false)] {
            let change = ServiceChange { reachability_debouncing_window: Some(window), ..ServiceChange::default() };
            assert_eq!(change.check(), if fits { Ok(()) } else { Err(ServiceFault::Window) }, "{window}");
        }
    }

    #[test]
    fn a_change_made_again_is_one() {
        let at = |seconds| Timestamp::ZERO.plus_seconds(seconds);
        let row = ServiceRow::made(at(1), None);
        let change = ServiceChange { acl_enabled: Some(true), webhook_url: Some(Some("https://shop.example".into())), ..ServiceChange::default() };
        let changed = row.with(&change, at(2));
        assert_eq!((changed.created_at, changed.updated_at, changed.acl_enabled), (at(1), at(2), true));
        assert_eq!(changed.with(&change, at(3)), changed);
        assert_eq!(changed.with(&ServiceChange::default(), at(3)), changed);
        let without = changed.with(&ServiceChange { webhook_url: Some(None), ..ServiceChange::default() }, at(4));
        assert_eq!((without.webhook_url, without.updated_at), (None, at(4)));
    }

    #[test]
    fn sids_follow_from_names_and_never_change() {
        let id = SiteId::parse("demo").unwrap();
        assert_eq!(account_sid(&id), "AC22a02326204f1645fee01de865103a13");
        assert_eq!(service_sid(&id), "ISe7cfb0ee701ee7db5a556d2555b41e77");
    }

    #[test]
    fn a_row_without_anything_is_the_default() {
        assert_eq!(serde_json::from_str::<ServiceRow>("{}").unwrap(), ServiceRow::default());
        let full = ServiceRow { keys: vec!["SK1".into()], token_nonce: u64::MAX, limits: Limits::Twilio, ..ServiceRow::default() };
        assert_eq!(serde_json::from_str::<ServiceRow>(&serde_json::to_string(&full).unwrap()).unwrap(), full);
    }
}
