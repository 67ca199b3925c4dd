//! Access tokens of the Sync API, as Twilio's libraries mint them: JSON Web Tokens signed with the secret of an API key. Called by `site`. Pure: no clock, no
//! look-ups of its own. Must never say of a token that nobody here signed more than that it is invalid.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use std::time::Duration;

use crate::event::Timestamp;

/// Seconds that an access token works for at most.
pub const LONGEST_ACCESS: u64 = 86_400;
/// The same, to reckon with.
const LONGEST: i64 = LONGEST_ACCESS as i64;
/// Most bytes of a token.
const LARGEST: usize = 8 << 10;
/// Seconds that the clock of who minted may be ahead of ours.
const SKEW: i64 = 30;
/// What says that a token is one of these, at the beginning of its content type.
const CONTENT: &str = "twilio-fpa;v=1";
/// Most characters of an identity.
const LONGEST_IDENTITY: usize = 256;
/// Stands in for the secret of a key that there is not, so that the answer takes as long.
const NOBODY: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Why a token opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is no access token, or signed in a way that is not accepted.
    #[error("that is no access token")]
    Malformed,
    /// No key of ours signed it, or not one of the account that it names.
    #[error("the access token is signed by nobody known here")]
    Invalid,
    /// It is over.
    #[error("the access token has expired")]
    Expired,
    /// Its time is yet to come.
    #[error("the access token is not valid yet")]
    NotYet,
    /// It would work for longer than any may.
    #[error("an access token works for {} hours at most", LONGEST_ACCESS / 3_600)]
    TooLong,
    /// It names no identity of 1 to 256 characters, or no Sync service of its account.
    #[error("the access token grants no Sync service to an identity")]
    NoGrant,
}

impl TokenError {
    /// Twilio's number of it.
    pub const fn code(self) -> u32 {
        match self {
            Self::Expired => 20_104,
            Self::Malformed | Self::Invalid | Self::NotYet | Self::TooLong | Self::NoGrant => 20_101,
        }
    }
}

/// What a token that may be trusted says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Opened {
    /// The API key that signed it.
    pub(super) key_sid: String,
    /// Whom it is for.
    pub(super) identity: String,
    /// The service's SID, or `default`.
    pub(super) service: String,
    /// Which of their clients it is for, where it says.
    pub(super) endpoint: Option<String>,
    /// When it ends.
    pub(super) expires_at: Timestamp,
    /// From when it was issued until then.
    pub(super) lifetime: Duration,
}

/// An API key that may sign.
#[derive(Clone, Copy)]
pub(super) struct Signer<'a> {
    pub(super) secret: &'a str,
    /// Whose it is.
    pub(super) account_sid: &'a str,
}

#[derive(Deserialize)]
struct Header {
    alg: Algorithm,
    cty: String,
    /// Extensions that whoever opens the token must know: we know none.
    #[serde(default)]
    crit: Option<IgnoredAny>,
}

/// How a token may be signed.
#[derive(Clone, Copy, Deserialize)]
enum Algorithm {
    HS256,
    HS384,
    HS512,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    exp: i64,
    #[serde(default)]
    iat: Option<i64>,
    #[serde(default)]
    nbf: Option<i64>,
    grants: Grants,
}

#[derive(Deserialize)]
struct Grants {
    #[serde(default)]
    identity: Option<String>,
    #[serde(default)]
    data_sync: Option<SyncGrant>,
}

#[derive(Deserialize)]
struct SyncGrant {
    #[serde(default)]
    service_sid: Option<String>,
    #[serde(default)]
    endpoint_id: Option<String>,
}

/// Opens a token as of `now`. `signer_of` gives the key of a SID, where it is live. Whether the service is there is the caller's to judge.
///
/// Nothing that a token says is told of before its signature is found right, in constant time, whether there is such a key or not.
pub(super) fn open<'a>(token: &str, now: Timestamp, signer_of: impl FnOnce(&str) -> Option<Signer<'a>>) -> Result<Opened, TokenError> {
    let (signed, header, claims, tag) = read(token).ok_or(TokenError::Malformed)?;
    let signer = signer_of(&claims.iss);
    let key = hmac::Key::new(header.alg.hmac(), signer.map_or(NOBODY, |signer| signer.secret).as_bytes());
    let is_signed = hmac::verify(&key, signed.as_bytes(), &tag).is_ok();
    if !signer.is_some_and(|signer| is_signed && signer.account_sid == claims.sub) {
        return Err(TokenError::Invalid);
    }
    let (expires_at, lifetime) = claims.term(now)?;
    let identity = claims.grants.identity.filter(|identity| is_identity(identity)).ok_or(TokenError::NoGrant)?;
    let SyncGrant { service_sid, endpoint_id } = claims.grants.data_sync.ok_or(TokenError::NoGrant)?;
    let service = service_sid.ok_or(TokenError::NoGrant)?;
    let endpoint = endpoint_id.filter(|endpoint| is_identity(endpoint));
    Ok(Opened { key_sid: claims.iss, identity, service, endpoint, expires_at, lifetime })
}

/// The signed part of a token, what it says, and its signature, all unproved.
fn read(token: &str) -> Option<(&str, Header, Claims, Vec<u8>)> {
    if token.len() > LARGEST {
        return None;
    }
    let (signed, tag) = token.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    let decoded = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
    let header: Header = serde_json::from_slice(&decoded(header)?).ok()?;
    let claims: Claims = serde_json::from_slice(&decoded(claims)?).ok()?;
    let is_ours = header.cty.starts_with(CONTENT) && header.crit.is_none();
    is_ours.then_some((signed, header, claims, decoded(tag)?))
}

impl Algorithm {
    const fn hmac(self) -> hmac::Algorithm {
        match self {
            Self::HS256 => hmac::HMAC_SHA256,
            Self::HS384 => hmac::HMAC_SHA384,
            Self::HS512 => hmac::HMAC_SHA512,
        }
    }
}

impl Claims {
    /// When it ends, and how long it works in all.
    fn term(&self, now: Timestamp) -> Result<(Timestamp, Duration), TokenError> {
        let expires_at = Timestamp::ZERO.plus_seconds(self.exp);
        if expires_at <= now {
            return Err(TokenError::Expired);
        }
        let now = now.micros().div_euclid(1_000_000);
        if [self.iat, self.nbf].iter().flatten().any(|begin| *begin > now.saturating_add(SKEW)) {
            return Err(TokenError::NotYet);
        }
        // From what it says of itself, which might be long ago, and from now, for it may say nothing.
        let lifetime = self.exp.saturating_sub(self.iat.or(self.nbf).unwrap_or(now));
        if lifetime > LONGEST || self.exp.saturating_sub(now) > LONGEST + SKEW {
            return Err(TokenError::TooLong);
        }
        Ok((expires_at, Duration::from_secs(u64::try_from(lifetime).unwrap_or_default())))
    }
}

/// Whether somebody can be called so.
pub(super) fn is_identity(identity: &str) -> bool {
    (1..=LONGEST_IDENTITY).contains(&identity.chars().count())
}

/// A token of one identity for one service.
pub(super) struct New<'a> {
    pub(super) key_sid: &'a str,
    pub(super) account_sid: &'a str,
    pub(super) service_sid: &'a str,
    pub(super) identity: &'a str,
    /// Works from this whole second on.
    pub(super) now: Timestamp,
    /// For so many seconds.
    pub(super) seconds: i64,
}

/// Mints a token with the secret of its key.
pub(super) fn mint(new: &New<'_>, secret: &str) -> Option<String> {
    let issued = new.now.micros().div_euclid(1_000_000);
    let claims = NewClaims {
        jti: format!("{}-{issued}", new.key_sid),
        iss: new.key_sid,
        sub: new.account_sid,
        iat: issued,
        exp: issued.saturating_add(new.seconds),
        grants: NewGrants { identity: new.identity, data_sync: NewSyncGrant { service_sid: new.service_sid } },
    };
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT","cty":"twilio-fpa;v=1"}"#);
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims).ok()?));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), signed.as_bytes());
    Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag)))
}

#[derive(Serialize)]
struct NewClaims<'a> {
    jti: String,
    iss: &'a str,
    sub: &'a str,
    iat: i64,
    exp: i64,
    grants: NewGrants<'a>,
}

#[derive(Serialize)]
struct NewGrants<'a> {
    identity: &'a str,
    data_sync: NewSyncGrant<'a>,
}

#[derive(Serialize)]
struct NewSyncGrant<'a> {
    service_sid: &'a str,
}

#[cfg(test)]
mod tests;
