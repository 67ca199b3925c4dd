//! Sites and keys as readers find them: a state of the store, by name, by hash and by account. Made by `site` with each change. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use super::account::{Account, Secret, Secrets};
use super::mirror::Mirror;
use super::seal::Seal;
use super::service::Service;
use super::store::{SiteRow, State, Version};
use super::{Error, Grant, Site};
use crate::event::{SiteId, SiteRules, ids};

/// All of it.
#[derive(Default)]
pub(super) struct Snapshot {
    pub(super) version: Version,
    pub(super) sites: HashMap<SiteId, Arc<Site>>,
    pub(super) grants: HashMap<[u8; 32], Arc<Grant>>,
    pub(super) token_keys: HashMap<SiteId, [u8; 32]>,
    /// What webhooks that come for a site are signed with.
    pub(super) twilio_auth_tokens: HashMap<SiteId, Vec<String>>,
    /// Where sites are mirrored to.
    pub(super) mirrors: HashMap<SiteId, Arc<Mirror>>,
    /// By the site that has the account.
    pub(super) accounts: HashMap<SiteId, Owned>,
    /// What opens accounts, by its SID: an account's auth token by that of the account.
    pub(super) secrets: HashMap<String, Secret>,
}

/// An account, and what is of it.
pub(super) struct Owned {
    pub(super) sid: String,
    /// The site that has the account, then its further services as they were made.
    pub(super) services: Vec<Arc<Site>>,
    pub(super) secrets: Secrets,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("version", &self.version).field("sites", &self.sites.len()).finish_non_exhaustive()
    }
}

impl Snapshot {
    /// All of a state. What is sealed under another key is an error where that is `strict`; else it is told and left out, and all else is taken.
    pub(super) fn of(state: &State, seal: &Seal, strict: bool) -> Result<Self, Error> {
        let mut snapshot = Self { version: state.version, ..Self::default() };
        let (mut further, own): (Vec<_>, Vec<_>) = state.rows.sites.iter().partition(|row| row.service.account.is_some());
        for row in own {
            snapshot.add_account(row);
        }
        further.sort_by(|a, b| (a.service.created_at, &a.id).cmp(&(b.service.created_at, &b.id)));
        for row in further {
            snapshot.add_further(row).ok_or(Error::Malformed("service's account"))?;
        }
        for row in &state.rows.sites {
            match snapshot.open(row, seal) {
                Err(error @ Error::Sealed(_)) if !strict => tracing::error!(%error, "what is sealed of a site is left out"),
                opened => opened?,
            }
        }
        for row in &state.rows.keys {
            let site = Arc::clone(snapshot.sites.get(&row.site).ok_or(Error::Malformed("key's site"))?);
            let grant = Grant { site, kind: row.kind, key: ids::first_u64(&row.hash), expires_at: row.expires_at };
            snapshot.grants.insert(row.hash, Arc::new(grant));
        }
        Ok(snapshot)
    }

    /// What opens other services for a site.
    fn open(&mut self, row: &SiteRow, seal: &Seal) -> Result<(), Error> {
        let tokens = row.service.twilio.open(&row.id, seal)?;
        if !tokens.is_empty() {
            self.twilio_auth_tokens.insert(row.id.clone(), tokens);
        }
        if let Some(kept) = &row.service.mirror {
            self.mirrors.insert(row.id.clone(), kept.open(&row.id, seal)?);
        }
        Ok(())
    }

    /// The account that a site has, or of which it is a service.
    pub(super) fn owned_of(&self, site: &SiteId) -> Option<&Owned> {
        self.accounts.get(self.sites.get(site)?.owner())
    }

    /// A site that has an account of its own.
    fn add_account(&mut self, row: &SiteRow) {
        let site = Arc::new(Site {
            hash: hash_of(row),
            id: row.id.clone(),
            account: None,
            service: Service::of(row),
            origins: row.origins.clone(),
            rules: Arc::new(row.rules.clone()),
            region: row.region.clone(),
        });
        let (sid, secrets) = (site.service.account_sid.clone(), Secrets::of(row));
        let with_keys = secrets.keys.iter().chain([&secrets.own_key]).map(|key| (&key.sid, &key.secret));
        for (sid, plain) in with_keys.chain([(&sid, &secrets.auth_token)]) {
            self.secrets.insert(sid.clone(), Secret { plain: plain.clone(), account: Account::by(&site, sid) });
        }
        self.accounts.insert(row.id.clone(), Owned { sid, services: vec![Arc::clone(&site)], secrets });
        self.add(row, site);
    }

    /// A further service of an account, if that is there.
    fn add_further(&mut self, row: &SiteRow) -> Option<()> {
        let owned = self.accounts.get_mut(row.service.account.as_ref()?)?;
        let owner = owned.services.first()?;
        let site = Arc::new(Site {
            hash: hash_of(row),
            id: row.id.clone(),
            account: row.service.account.clone(),
            service: Service::of(row),
            origins: owner.origins.clone(),
            rules: Arc::new(SiteRules { takes_events: false, ..(*owner.rules).clone() }),
            region: owner.region.clone(),
        });
        owned.services.push(Arc::clone(&site));
        self.add(row, site);
        Some(())
    }

    fn add(&mut self, row: &SiteRow, site: Arc<Site>) {
        self.token_keys.insert(row.id.clone(), row.token_key);
        self.sites.insert(row.id.clone(), site);
    }
}

fn hash_of(row: &SiteRow) -> u64 {
    ids::first_u64(&ids::sha256(&[row.id.as_str().as_bytes()]))
}
