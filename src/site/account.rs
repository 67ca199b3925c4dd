//! The accounts of the Sync API: each site has one, with its credentials, its own service and further ones; and the access tokens of all of these.
//!
//! Secrets are not stored but derived from the site's signing key: signatures have to be made with them, so that hashes would not do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::Rng;
use ring::hmac;
use subtle::ConstantTimeEq;

use super::access_token::{self, LONGEST_ACCESS, New, Opened, Signer, TokenError};
use super::credential::random_key;
use super::mirror::{Mirror, MirrorRow};
use super::service::{AuthTokens, DEFAULT, ServiceChange, ServiceRow, sid};
use super::snapshot::Owned;
use super::store::{Rows, SiteRow};
use super::{Error, Site, Sites};
use crate::event::{SiteId, SiteRules, Timestamp, ids};

/// Most services of an account, its own among them.
pub(super) const MOST_SERVICES: usize = 100;
/// Most API keys of an account.
pub(super) const MOST_KEYS: usize = 20;
/// Bytes of an account's name that the names of its further services begin with.
const STEM: usize = 64 - 9;

/// Who asks by REST: an account, by one of its credentials.
#[derive(Clone, Debug)]
pub struct Account {
    /// The site that has the account.
    pub site: Arc<Site>,
    /// Names the credential in counters and limits, without saying anything about it.
    pub key: u64,
}

/// A new API key: its secret is shown once.
#[derive(Clone, PartialEq, Eq)]
pub struct SyncKey {
    /// `SK` and 32 lower-case hexadecimal digits.
    pub sid: String,
    /// Opens REST, and signs access tokens.
    pub secret: String,
}

/// What opens an account, for its administrator.
#[derive(Clone, PartialEq, Eq)]
pub struct SyncCredentials {
    /// `AC...`.
    pub account_sid: String,
    /// `IS...` of the service asked for.
    pub service_sid: String,
    /// Opens REST, and signs webhooks.
    pub auth_token: String,
    /// SIDs of the API keys.
    pub keys: Vec<String>,
}

impl std::fmt::Debug for SyncKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SyncKey").field("sid", &self.sid).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for SyncCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SyncCredentials").field("account_sid", &self.account_sid).field("service_sid", &self.service_sid).finish_non_exhaustive()
    }
}

/// What an access token opens.
#[derive(Clone, Debug)]
pub struct AccessToken {
    /// The service.
    pub site: Arc<Site>,
    /// The account that it is of.
    pub account_sid: String,
    /// Who holds the token: 1 to 256 characters.
    pub identity: String,
    /// Which of their clients it is for, where it says: 1 to 256 characters.
    pub endpoint: Option<String>,
    /// The API key that signed it.
    pub key_sid: String,
    /// When it ends.
    pub expires_at: Timestamp,
    /// From when it was issued until then; at most 24 hours.
    pub lifetime: Duration,
}

/// A credential as it is compared and signed with.
pub(super) struct Secret {
    pub(super) plain: String,
    pub(super) account: Account,
}

/// The secrets of one account, derived: by whose SID they are.
pub(super) struct Secrets {
    pub(super) auth_token: String,
    /// The key that tokens are signed with where no other is named. It is there always; nobody is told its secret, and a rotated auth token takes another.
    pub(super) own_key: SyncKey,
    pub(super) keys: Vec<SyncKey>,
}

impl Secrets {
    pub(super) fn of(row: &SiteRow) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &row.token_key);
        let nonce = row.service.token_nonce.to_le_bytes();
        let derived = |label: &str, of: &[u8]| hmac::sign(&key, &[label.as_bytes(), b"\0", of].concat());
        let with_secret = |sid: String| SyncKey { secret: hex(derived("contrail sync key secret 1", sid.as_bytes()).as_ref()), sid };
        Self {
            auth_token: hex(half(derived("contrail sync auth token 1", &nonce).as_ref())),
            own_key: with_secret(format!("SK{}", hex(half(derived("contrail sync own key 1", &nonce).as_ref())))),
            keys: row.service.keys.iter().cloned().map(with_secret).collect(),
        }
    }
}

fn half(bytes: &[u8]) -> &[u8] {
    bytes.split_at_checked(16).map_or(bytes, |(half, _)| half)
}

fn hex(bytes: &[u8]) -> String {
    let digit = |of: u8| char::from_digit(of.into(), 16);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).flatten().collect()
}

impl Account {
    /// The account of a site, by a credential's SID.
    pub(super) fn by(site: &Arc<Site>, sid: &str) -> Self {
        Self { site: Arc::clone(site), key: ids::first_u64(&ids::sha256(&[b"contrail sync credential 1", sid.as_bytes()])) }
    }
}

impl Sites {
    /// Who asks with these as of HTTP's `Basic`: an account by its SID and auth token, or by the SID and the secret of one of its API keys. Compared in
    /// constant time, whether there is such a user or not.
    pub fn authenticate_account(&self, user: &str, password: &str) -> Option<Account> {
        const NOBODY: [u8; 64] = [b'0'; 64];
        let snapshot = self.snapshot();
        let known = snapshot.secrets.get(user);
        let nobodys = if user.starts_with("AC") { half(half(&NOBODY)) } else { &NOBODY };
        let secret = known.map_or(nobodys, |secret| secret.plain.as_bytes());
        let is_right = bool::from(secret.ct_eq(password.as_bytes()));
        known.filter(|_| is_right).map(|secret| secret.account.clone())
    }

    /// The account that a site has, or of which it is a service.
    pub fn account_of(&self, site: &SiteId) -> Option<Account> {
        let snapshot = self.snapshot();
        let owned = snapshot.owned_of(site)?;
        Some(Account::by(owned.own()?, &owned.sid))
    }

    /// All services of an account: its own first, the others as they were made.
    pub fn services(&self, account: &Account) -> Vec<Arc<Site>> {
        self.snapshot().accounts.get(&account.site.id).map(|owned| owned.services.clone()).unwrap_or_default()
    }

    /// A service of an account by its SID, or its own as `default`.
    pub fn service(&self, account: &Account, sid_or_name: &str) -> Option<Arc<Site>> {
        self.snapshot().accounts.get(&account.site.id)?.service(sid_or_name)
    }

    /// Makes a further service of an account: a site without keys of its own, read by the rules and served in the region of the account's.
    ///
    /// # Errors
    /// [`Error::Service`], [`Error::TooManyServices`]; [`Error::Unknown`] where the account is none; the store's.
    pub async fn add_service(&self, account: &Account, change: ServiceChange) -> Result<Arc<Site>, Error> {
        change.check()?;
        let owner = &account.site.id;
        let now = self.clock.now();
        let site = SiteRow {
            id: further_name(owner)?,
            origins: Vec::new(),
            rules: SiteRules { hash_key: random_key(), ..SiteRules::default() },
            region: None,
            token_key: random_key(),
            service: ServiceRow::made(now, Some(owner.clone())).with(&change, now),
        };
        let plan = |state: &Rows| match state.site(&site.id) {
            Ok(known) if known.token_key == site.token_key => Ok(Rows::default()),
            Ok(_) => Err(Error::Exists(site.id.clone())),
            Err(_) => {
                state.owner(owner)?;
                let further = state.sites.iter().filter(|known| known.service.account.as_ref() == Some(owner)).count();
                if further + 1 >= MOST_SERVICES { Err(Error::TooManyServices) } else { Ok(Rows { sites: vec![site.clone()], ..Rows::default() }) }
            }
        };
        self.change(plan).await?;
        self.site(&site.id)
    }

    /// Changes a service, in force here at once, and gives it as it is then.
    ///
    /// # Errors
    /// [`Error::Service`], [`Error::Unknown`]; the store's.
    pub async fn set_service(&self, id: &SiteId, change: ServiceChange) -> Result<Arc<Site>, Error> {
        change.check()?;
        let now = self.clock.now();
        self.change_row(id, |present| Ok(present.with(&change, now))).await?;
        self.site(id)
    }

    /// Deletes a further service of an account. Its objects stay where they are, and are nobody's from then on: they are the sync room's.
    ///
    /// # Errors
    /// [`Error::OwnService`] for the service that an account has by itself; [`Error::Unknown`]; the store's.
    pub async fn remove_service(&self, id: &SiteId) -> Result<(), Error> {
        let was_there = AtomicBool::new(false);
        let plan = |state: &Rows| match state.site(id) {
            Ok(row) if row.service.account.is_none() => Err(Error::OwnService(id.clone())),
            Ok(_) => {
                was_there.store(true, Ordering::Relaxed);
                Ok(Rows { removed: vec![id.clone()], ..Rows::default() })
            }
            // Made, and said not to be.
            Err(_) if was_there.load(Ordering::Relaxed) => Ok(Rows::default()),
            Err(error) => Err(error),
        };
        self.change(plan).await
    }

    /// The auth token of a service's account, which its webhooks are signed with.
    pub fn webhook_secret(&self, id: &SiteId) -> Option<String> {
        Some(self.snapshot().owned_of(id)?.secrets.auth_token.clone())
    }

    /// What webhooks of a real Sync service that come for a site are signed with; none where none are taken.
    pub fn twilio_auth_tokens(&self, id: &SiteId) -> Vec<String> {
        self.snapshot().twilio_auth_tokens.get(id).cloned().unwrap_or_default()
    }

    /// Replaces these: at most two, so that both work while Twilio's is changed.
    ///
    /// # Errors
    /// [`Error::Service`], [`Error::Unknown`]; the store's.
    pub async fn set_twilio_auth_tokens(&self, id: &SiteId, tokens: Vec<String>) -> Result<(), Error> {
        let twilio = AuthTokens::of(&tokens, id, &self.seal)?;
        self.change_row(id, |present| Ok(ServiceRow { twilio: twilio.clone(), ..present.clone() })).await
    }

    /// The mirrors of all sites.
    pub fn mirrors(&self) -> Vec<(SiteId, Arc<Mirror>)> {
        self.snapshot().mirrors.iter().map(|(site, mirror)| (site.clone(), Arc::clone(mirror))).collect()
    }

    /// A site's mirror.
    pub fn mirror(&self, id: &SiteId) -> Option<Arc<Mirror>> {
        self.snapshot().mirrors.get(id).cloned()
    }

    /// Mirrors those objects of a site that any of the patterns names to the service that a `twilio://` URL names, or none any more. What is there already is
    /// mirrored first, anew with every change of either.
    ///
    /// # Errors
    /// [`Error::Mirror`], [`Error::Unknown`], [`Error::IsService`]; the store's.
    pub async fn set_mirror(&self, id: &SiteId, to: Option<(&str, &[String])>) -> Result<(), Error> {
        let new = to.map(|(url, objects)| MirrorRow::new(rand::rng().random(), url, objects, id, &self.seal)).transpose()?;
        let (wanted, new) = new.unzip();
        self.change_row(&self.own(id)?, |present| {
            let is_as = |kept: &&MirrorRow| kept.open(id, &self.seal).is_ok_and(|kept| wanted.as_ref().is_some_and(|wanted| kept.is_as(wanted)));
            let kept = present.mirror.as_ref().filter(is_as);
            Ok(ServiceRow { mirror: kept.or(new.as_ref()).cloned(), ..present.clone() })
        })
        .await
    }

    /// Notes of a mirror, if that is still the one of this id, whether all objects of these partitions were mirrored once.
    ///
    /// # Errors
    /// [`Error::Unknown`]; the store's.
    pub async fn mirror_copied(&self, id: &SiteId, mirror: u64, partitions: &[u16], copied: bool) -> Result<(), Error> {
        self.change_row(id, |present| {
            let mut row = present.clone();
            if let Some(kept) = row.mirror.as_mut().filter(|kept| kept.id == mirror) {
                kept.copied.retain(|partition| !partitions.contains(partition));
                if copied {
                    kept.copied.extend(partitions);
                    kept.copied.sort_unstable();
                }
            }
            Ok(row)
        })
        .await
    }

    /// A site that has an account of its own.
    fn own(&self, id: &SiteId) -> Result<SiteId, Error> {
        let owner = self.owner(id)?;
        if owner == *id { Ok(owner) } else { Err(Error::IsService(id.clone())) }
    }

    /// What opens the account of a site, or of a service.
    pub fn sync_credentials(&self, id: &SiteId) -> Option<SyncCredentials> {
        let snapshot = self.snapshot();
        let (site, owned) = (snapshot.sites.get(id)?, snapshot.owned_of(id)?);
        Some(SyncCredentials {
            account_sid: owned.sid.clone(),
            service_sid: site.service.sid.clone(),
            auth_token: owned.secrets.auth_token.clone(),
            keys: owned.secrets.keys.iter().map(|key| key.sid.clone()).collect(),
        })
    }

    /// A new API key of the account of a site, or of a service.
    ///
    /// # Errors
    /// [`Error::TooManyKeys`], [`Error::Unknown`]; the store's.
    pub async fn add_sync_key(&self, id: &SiteId) -> Result<SyncKey, Error> {
        let new = sid("SK", rand::rng().random());
        let with_key = |present: &ServiceRow| {
            let mut row = present.clone();
            if !row.keys.contains(&new) {
                row.keys.push(new.clone());
            }
            if row.keys.len() > MOST_KEYS { Err(Error::TooManyKeys) } else { Ok(row) }
        };
        let owner = self.owner(id)?;
        self.change_row(&owner, with_key).await?;
        let snapshot = self.snapshot();
        let made = snapshot.accounts.get(&owner).and_then(|owned| owned.secrets.keys.iter().find(|key| key.sid == new));
        made.cloned().ok_or_else(|| Error::Unknown(id.clone()))
    }

    /// Ends an API key of the account of a site, or of a service, at once, and with it whatever it signed.
    ///
    /// # Errors
    /// [`Error::KeyUnknown`], [`Error::Unknown`]; the store's.
    pub async fn remove_sync_key(&self, id: &SiteId, sid: &str) -> Result<(), Error> {
        let was_there = AtomicBool::new(false);
        let without_key = |present: &ServiceRow| {
            let mut row = present.clone();
            row.keys.retain(|key| key != sid);
            let is_there = row.keys.len() < present.keys.len();
            if was_there.fetch_or(is_there, Ordering::Relaxed) || is_there { Ok(row) } else { Err(Error::KeyUnknown(sid.to_owned())) }
        };
        self.change_row(&self.owner(id)?, without_key).await
    }

    /// Replaces the auth token of the account of a site, or of a service, and gives the new one. The old one ends at once, and so do tokens that were minted
    /// here without naming a key.
    ///
    /// # Errors
    /// [`Error::Unknown`]; the store's.
    pub async fn rotate_auth_token(&self, id: &SiteId) -> Result<String, Error> {
        let nonce = rand::rng().random();
        let owner = self.owner(id)?;
        self.change_row(&owner, |present| Ok(ServiceRow { token_nonce: nonce, ..present.clone() })).await?;
        self.webhook_secret(&owner).ok_or_else(|| Error::Unknown(id.clone()))
    }

    /// What an access token opens.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn open_access_token(&self, token: &str) -> Result<AccessToken, TokenError> {
        let snapshot = self.snapshot();
        let key = |sid: &str| snapshot.secrets.get(sid).filter(|_| sid.starts_with("SK"));
        let signer = |sid: &str| key(sid).map(|secret| Signer { secret: &secret.plain, account_sid: &secret.account.site.service.account_sid });
        let Opened { key_sid, identity, service, endpoint, expires_at, lifetime } = access_token::open(token, self.clock.now(), signer)?;
        let account = &key(&key_sid).ok_or(TokenError::Invalid)?.account.site;
        let site = snapshot.accounts.get(&account.id).and_then(|owned| owned.service(&service)).ok_or(TokenError::NoGrant)?;
        Ok(AccessToken { account_sid: site.service.account_sid.clone(), site, identity, endpoint, key_sid, expires_at, lifetime })
    }

    /// Mints an access token for a service, good for whole seconds, signed with an API key of its account, or with one that signs for this alone.
    ///
    /// # Errors
    /// [`Error::Identity`]; [`Error::Lifetime`] for less than a second and more than 24 hours; [`Error::KeyUnknown`], [`Error::Unknown`].
    pub fn mint_access_token(&self, id: &SiteId, identity: &str, ttl: Duration, key_sid: Option<&str>) -> Result<String, Error> {
        if !access_token::is_identity(identity) {
            return Err(Error::Identity);
        }
        if !(1..=LONGEST_ACCESS).contains(&ttl.as_secs()) || ttl > Duration::from_secs(LONGEST_ACCESS) {
            return Err(Error::Lifetime);
        }
        let snapshot = self.snapshot();
        let unknown = || Error::Unknown(id.clone());
        let (site, owned) = (snapshot.sites.get(id).ok_or_else(unknown)?, snapshot.owned_of(id).ok_or_else(unknown)?);
        let key = match key_sid {
            None => &owned.secrets.own_key,
            Some(sid) => owned.secrets.keys.iter().find(|key| key.sid == sid).ok_or_else(|| Error::KeyUnknown(sid.to_owned()))?,
        };
        let new = New {
            key_sid: &key.sid,
            account_sid: &owned.sid,
            service_sid: &site.service.sid,
            identity,
            now: self.clock.now(),
            seconds: i64::try_from(ttl.as_secs()).map_err(|_| Error::Lifetime)?,
        };
        access_token::mint(&new, &key.secret).ok_or(Error::Malformed("token"))
    }

    /// The site that has the account of this one.
    fn owner(&self, id: &SiteId) -> Result<SiteId, Error> {
        self.site(id).map(|site| site.owner().clone())
    }

    /// Changes what a site's row has of its service.
    async fn change_row(&self, id: &SiteId, with: impl Fn(&ServiceRow) -> Result<ServiceRow, Error> + Send + Sync) -> Result<(), Error> {
        let plan = |state: &Rows| {
            let present = state.site(id)?;
            let service = with(&present.service)?;
            let sites = if service == present.service { Vec::new() } else { vec![SiteRow { service, ..present.clone() }] };
            Ok(Rows { sites, ..Rows::default() })
        };
        self.change(plan).await
    }
}

impl Owned {
    /// A service of the account by its SID, or its own as `default`.
    fn service(&self, sid_or_name: &str) -> Option<Arc<Site>> {
        if sid_or_name == DEFAULT { self.own() } else { self.services.iter().find(|site| site.service.sid == sid_or_name) }.cloned()
    }

    /// The site that has the account.
    fn own(&self) -> Option<&Arc<Site>> {
        self.services.first()
    }
}

/// The name of one more service of an account.
fn further_name(owner: &SiteId) -> Result<SiteId, Error> {
    let owner = owner.as_str();
    let stem = owner.split_at_checked(STEM).map_or(owner, |(stem, _)| stem);
    SiteId::parse(&format!("{stem}-{:08x}", rand::rng().random::<u32>())).map_err(|_| Error::Malformed("site"))
}
