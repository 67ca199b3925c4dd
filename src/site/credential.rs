//! Keys and tokens: how they look, how they are hashed, how object tokens are signed. Called by `site` alone. Pure but for random bytes.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRngCore;
use rand::rngs::OsRng;
use ring::{digest, hmac};

use super::Error;
use super::store::KeyRow;
use crate::event::{SiteId, Timestamp};

/// Fewest characters of a key given from outside.
pub(super) const LEAST_LENGTH: usize = 8;

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Sends from a shop's server; may state the channel.
    Server,
    /// Sends from a page, where everybody can read it: always channel `pixel`.
    Browser,
    /// Reads everything of its site.
    Read,
}

impl Kind {
    /// How keys of this kind begin.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Server => "ck",
            Self::Browser => "cb",
            Self::Read => "cr",
        }
    }

    pub(super) const fn stored(self) -> i64 {
        match self {
            Self::Server => 0,
            Self::Browser => 1,
            Self::Read => 2,
        }
    }

    pub(super) const fn from_stored(stored: i64) -> Option<Self> {
        match stored {
            0 => Some(Self::Server),
            1 => Some(Self::Browser),
            2 => Some(Self::Read),
            _ => None,
        }
    }
}

/// A key as it is stored: its hash and what it is for.
pub(super) struct Credential {
    pub(super) kind: Kind,
    pub(super) hash: [u8; 32],
}

impl Credential {
    /// A new key, in plain and as stored.
    pub(super) fn generate(site: &SiteId, kind: Kind) -> (String, Self) {
        let plain = format!("{}_{site}_{}", kind.prefix(), URL_SAFE_NO_PAD.encode(random_key()));
        let hash = hash(&plain);
        (plain, Self { kind, hash })
    }

    /// A key made elsewhere.
    pub(super) fn given(kind: Kind, plain: &str) -> Result<Self, Error> {
        if plain.len() < LEAST_LENGTH || !plain.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::Weak);
        }
        Ok(Self { kind, hash: hash(plain) })
    }

    /// The key as a site's, without an end.
    pub(super) fn of(&self, site: &SiteId) -> KeyRow {
        KeyRow { hash: self.hash, site: site.clone(), kind: self.kind, expires_at: None }
    }
}

/// SHA-256 of a key: enough for 256 random bits, where a slow hash would only cost every request.
pub(super) fn hash(plain: &str) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, plain.as_bytes()).as_ref());
    out
}

/// 32 bytes of the system's randomness.
pub(super) fn random_key() -> [u8; 32] {
    let mut key = [0; 32];
    // The system's generator fails only where nothing else would work either; a second source stands in.
    if OsRng.try_fill_bytes(&mut key).is_err() {
        key = rand::random();
    }
    key
}

/// What an object token opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectGrant {
    /// The shop.
    pub site: SiteId,
    /// The one object's unique name.
    pub object: String,
    /// When it ends.
    pub until: Timestamp,
}

const TAG: usize = 32;

/// `ct_<site>_<base64url(end in microseconds, 8 bytes little-endian; name; HMAC-SHA-256 over site and both)>`.
pub(super) fn sign_object(key: &[u8; 32], site: &SiteId, object: &str, until: Timestamp) -> String {
    let mut payload = until.micros().to_le_bytes().to_vec();
    payload.extend_from_slice(object.as_bytes());
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &signed(site, &payload));
    payload.extend_from_slice(tag.as_ref());
    format!("ct_{site}_{}", URL_SAFE_NO_PAD.encode(payload))
}

/// Checks a token's signature (in constant time) and reads it; its end is the caller's to judge.
pub(super) fn open_object(token: &str, key_of: impl Fn(&SiteId) -> Option<[u8; 32]>) -> Option<ObjectGrant> {
    let (site, encoded) = token.strip_prefix("ct_")?.split_once('_')?;
    let site = SiteId::parse(site).ok()?;
    let bytes = URL_SAFE_NO_PAD.decode(encoded).ok()?;
    let (payload, tag) = bytes.split_at_checked(bytes.len().checked_sub(TAG)?)?;
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, &key_of(&site)?), &signed(&site, payload), tag).ok()?;
    let (until, object) = payload.split_first_chunk::<8>()?;
    let object = std::str::from_utf8(object).ok()?.to_owned();
    Some(ObjectGrant { site, object, until: Timestamp::from_micros(i64::from_le_bytes(*until)) })
}

fn signed(site: &SiteId, payload: &[u8]) -> Vec<u8> {
    [b"contrail object token 1\0", site.as_str().as_bytes(), b"\0", payload].concat()
}
