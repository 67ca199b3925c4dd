//! Seals what opens somebody else's service, such as the auth token of a Twilio account, where it is kept beside a site: with AES-256-GCM, under a key from
//! outside that is stored nowhere. Called by `site`. Pure but for the random nonces.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::Error;
use crate::event::SiteId;
use crate::event::ids::sha256;

/// What sealed text begins with.
const MARK: &str = "sealed-1:";
/// Shortest key.
const LEAST_KEY: usize = 16;

/// Seals and opens. Without a key it leaves text as it is, and opens nothing that is sealed.
#[derive(Debug, Default)]
pub struct Seal(Option<LessSafeKey>);

impl Seal {
    /// One with this key, of at least 16 bytes; None = without any.
    ///
    /// # Errors
    /// [`Error::SecretKey`] for a shorter one.
    pub fn new(key: Option<&str>) -> Result<Self, Error> {
        let Some(key) = key else { return Ok(Self(None)) };
        if key.len() < LEAST_KEY {
            return Err(Error::SecretKey);
        }
        let derived = sha256(&[b"contrail seal of sites 1", key.as_bytes()]);
        UnboundKey::new(&AES_256_GCM, &derived).map(|key| Self(Some(LessSafeKey::new(key)))).map_err(|_| Error::SecretKey)
    }

    /// The text as it is to be kept of a site.
    pub(super) fn seal(&self, site: &SiteId, plain: &str) -> String {
        let Some(key) = &self.0 else { return plain.to_owned() };
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut sealed = plain.as_bytes().to_vec();
        // It fails for more bytes than any text here has.
        if key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(site.as_str()), &mut sealed).is_err() {
            return String::new();
        }
        format!("{MARK}{}", STANDARD_NO_PAD.encode([&nonce[..], &sealed].concat()))
    }

    /// The text as it was given. What was kept when there was no key is read as it is.
    ///
    /// # Errors
    /// [`Error::Sealed`] where it is sealed under another key, or for another site.
    pub(super) fn open(&self, site: &SiteId, kept: &str) -> Result<String, Error> {
        let Some(sealed) = kept.strip_prefix(MARK) else { return Ok(kept.to_owned()) };
        let opened = || {
            let mut bytes = STANDARD_NO_PAD.decode(sealed).ok()?;
            let (nonce, sealed) = bytes.split_at_mut_checked(NONCE_LEN)?;
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let plain = self.0.as_ref()?.open_in_place(nonce, Aad::from(site.as_str()), sealed).ok()?;
            String::from_utf8(plain.to_vec()).ok()
        };
        opened().ok_or_else(|| Error::Sealed(site.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_for_its_key_and_site_alone() {
        let [site, other] = ["a", "b"].map(|name| SiteId::parse(name).unwrap());
        let [seal, foreign] = ["0123456789abcdef", "0123456789abcdeF"].map(|key| Seal::new(Some(key)).unwrap());
        let none = Seal::new(None).unwrap();
        let kept = seal.seal(&site, "hush");
        assert!(kept.starts_with(MARK) && !kept.contains("hush") && kept != seal.seal(&site, "hush"));
        assert_eq!(seal.open(&site, &kept).unwrap(), "hush");
        for refused in [foreign.open(&site, &kept), none.open(&site, &kept), seal.open(&other, &kept), seal.open(&site, &kept[..kept.len() - 2])] {
            assert!(matches!(refused, Err(Error::Sealed(_))));
        }
        assert!(matches!(seal.open(&site, "sealed-1:"), Err(Error::Sealed(_))));
        assert_eq!((none.seal(&site, "hush"), seal.open(&site, "hush").unwrap()), ("hush".to_owned(), "hush".to_owned()));
        assert!(matches!(Seal::new(Some("short")), Err(Error::SecretKey)));
    }
}
