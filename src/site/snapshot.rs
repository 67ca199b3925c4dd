//! Sites and keys as readers find them: a state of the store, by name and by hash. Made by `site` with each change. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use super::store::{State, Version};
use super::{Error, Grant, Site};
use crate::event::{SiteId, ids};

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    pub(super) version: Version,
    pub(super) sites: HashMap<SiteId, Arc<Site>>,
    pub(super) grants: HashMap<[u8; 32], Arc<Grant>>,
    pub(super) token_keys: HashMap<SiteId, [u8; 32]>,
}

impl Snapshot {
    pub(super) fn of(state: &State) -> Result<Self, Error> {
        let mut snapshot = Self { version: state.version, ..Self::default() };
        for row in &state.rows.sites {
            let site = Site {
                hash: ids::first_u64(&ids::sha256(&[row.id.as_str().as_bytes()])),
                id: row.id.clone(),
                origins: row.origins.clone(),
                rules: Arc::new(row.rules.clone()),
                region: row.region.clone(),
            };
            snapshot.token_keys.insert(row.id.clone(), row.token_key);
            snapshot.sites.insert(row.id.clone(), Arc::new(site));
        }
        for row in &state.rows.keys {
            let site = Arc::clone(snapshot.sites.get(&row.site).ok_or(Error::Malformed("key's site"))?);
            let grant = Grant { site, kind: row.kind, key: ids::first_u64(&row.hash), expires_at: row.expires_at };
            snapshot.grants.insert(row.hash, Arc::new(grant));
        }
        Ok(snapshot)
    }
}
