//! Where sites and keys are kept for good: the seam, and what goes over it. Opened by the composition root; called by `site` alone.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::credential::Kind;
use super::service::ServiceRow;
use super::{Error, Region};
use crate::event::{SiteId, SiteRules, Timestamp};

/// Sites and keys, kept for good; on a cluster one for all nodes, any of which may change them at any time.
///
/// * A [`State`] is whole: it holds of each change all or nothing, as of one [`Version`].
/// * A change is a compare-and-set: of all that are made from one version, on whichever node, one comes through. Changes so have one order.
/// * Nothing is ever taken away but by a change that says so: a store that cannot be read gives an error, never less than it has.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug {
    /// All there is: every change acknowledged to this node, and those of other nodes at the latest a moment after they are acknowledged there.
    ///
    /// # Errors
    /// [`Error::Unavailable`] may pass; all others are as they are.
    async fn load(&self) -> Result<State, Error>;

    /// All there is: every change acknowledged to anybody. On a cluster it takes a majority of all replicas, wherever they are.
    ///
    /// # Errors
    /// As for [`Store::load`].
    async fn load_latest(&self) -> Result<State, Error>;

    /// The version that [`Store::load`] would give. Cheap: asked several times a second.
    ///
    /// # Errors
    /// As for [`Store::load`].
    async fn version(&self) -> Result<Version, Error>;

    /// Puts all of the change's rows, each in place of the one of its name, and takes away the sites that it says, if `from` is still the version; gives the
    /// version it made. `None`: another change came first, and nothing is changed. To be taken away a site is there or not, has no keys, and is not put. `Some` is durable: synced to the disk, on a cluster acknowledged by a quorum of the replicas.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: the change may have been made, or be made yet, whole. After any other it was not.
    async fn commit(&self, from: Version, change: &Rows) -> Result<Option<Version>, Error>;
}

/// Names one state of a store. Two different states never have the same; which is the later one it does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version(pub(super) u128);

/// All that a store holds.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// As of when.
    pub version: Version,
    /// Its rows.
    pub rows: Rows,
}

/// Sites and keys: all of them, or those that a change puts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    pub(super) sites: Vec<SiteRow>,
    pub(super) keys: Vec<KeyRow>,
    /// Sites that a change takes away; none in what a store holds.
    pub(super) removed: Vec<SiteId>,
}

/// A site as it is kept.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct SiteRow {
    pub(super) id: SiteId,
    pub(super) origins: Vec<String>,
    pub(super) rules: SiteRules,
    pub(super) region: Option<Region>,
    /// Signs its object tokens, and is what the secrets of its account are derived from.
    pub(super) token_key: [u8; 32],
    /// What it is as a Sync service.
    pub(super) service: ServiceRow,
}

impl std::fmt::Debug for SiteRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SiteRow").field("id", &self.id).field("region", &self.region).finish_non_exhaustive()
    }
}

/// A key as it is kept: its hash and what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyRow {
    pub(super) hash: [u8; 32],
    pub(super) site: SiteId,
    pub(super) kind: Kind,
    pub(super) expires_at: Option<Timestamp>,
}

impl Rows {
    pub(super) fn is_empty(&self) -> bool {
        self.sites.is_empty() && self.keys.is_empty() && self.removed.is_empty()
    }

    pub(super) fn site(&self, id: &SiteId) -> Result<&SiteRow, Error> {
        self.sites.iter().find(|site| site.id == *id).ok_or_else(|| Error::Unknown(id.clone()))
    }

    /// A site with rules and keys of its own, which the further services of an account have not.
    pub(super) fn owner(&self, id: &SiteId) -> Result<&SiteRow, Error> {
        let site = self.site(id)?;
        if site.service.account.is_none() { Ok(site) } else { Err(Error::IsService(id.clone())) }
    }

    pub(super) fn key(&self, hash: &[u8; 32]) -> Option<&KeyRow> {
        self.keys.iter().find(|key| key.hash == *hash)
    }

    /// Puts a change's rows in place of those of their names, and takes away what it says, as a store does.
    pub(super) fn put(&mut self, change: Self) {
        self.sites.retain(|site| !change.removed.contains(&site.id));
        for site in change.sites {
            match self.sites.iter_mut().find(|known| known.id == site.id) {
                Some(known) => *known = site,
                None => self.sites.push(site),
            }
        }
        for key in change.keys {
            match self.keys.iter_mut().find(|known| known.hash == key.hash) {
                Some(known) => *known = key,
                None => self.keys.push(key),
            }
        }
    }
}

/// Settings of whichever backend a URL names.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Of `scylla://`.
    #[cfg(feature = "scylla")]
    pub scylla: crate::cql::Settings,
    /// The keyspace in place of the one that the URL names; empty = that one.
    pub keyspace: String,
}

/// Opens the sites beside the object store that `url` names: `embedded`, the file `sites.db` in `dir` (made if missing; one process at a time), or
/// `scylla://host:port,.../keyspace`, whose tables `contrail migrate` made.
///
/// # Errors
/// [`Error::Refused`] for an unknown URL and a keyspace that has yet to be migrated; [`Error::Unavailable`]; of the file [`Error::Store`], [`Error::File`].
pub async fn open(url: &str, dir: &Path, settings: &Settings) -> Result<Arc<dyn Store>, Error> {
    #[cfg(feature = "scylla")]
    if url.starts_with("scylla:") {
        return Ok(Arc::new(super::scylla::ScyllaSites::open(url, settings).await?));
    }
    #[cfg(not(feature = "scylla"))]
    let _: &Settings = settings;
    if url != "embedded" {
        return Err(Error::Refused(format!("no store of sites is known by `{url}`")));
    }
    Ok(Arc::new(super::embedded::SitesFile::open(dir).await?))
}

/// Makes or changes the tables of the sites beside the object store that `url` names; says what was done. None where it has none.
///
/// # Errors
/// What the cluster says.
#[cfg(feature = "scylla")]
pub async fn migrate(url: &str, settings: &Settings) -> Result<Option<String>, Error> {
    if url.starts_with("scylla:") { Ok(Some(super::scylla::migrate(url, settings).await?)) } else { Ok(None) }
}

/// [`SiteRules`] as stored, without its secret, and what else has no column.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredRules {
    time_zone: String,
    checkout_steps: Vec<String>,
    page_parameters: Vec<String>,
    abandoned_after_seconds: i64,
    /// The site's region, where there is no column for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    region: Option<String>,
    /// What the site is as a Sync service.
    #[serde(default, skip_serializing_if = "ServiceRow::is_default")]
    service: ServiceRow,
}

impl StoredRules {
    /// What a row has, its region where that is given.
    pub(super) fn of(SiteRow { rules, service, .. }: &SiteRow, region: Option<&Region>) -> Self {
        Self {
            time_zone: rules.time_zone.clone(),
            checkout_steps: rules.checkout_steps.clone(),
            page_parameters: rules.page_parameters.clone(),
            abandoned_after_seconds: rules.abandoned_after_seconds,
            region: region.map(|region| region.as_str().to_owned()),
            service: service.clone(),
        }
    }

    pub(super) fn region(&self) -> Result<Option<Region>, Error> {
        self.region.as_deref().map(Region::parse).transpose()
    }

    pub(super) fn with_key(self, hash_key: [u8; 32]) -> (SiteRules, ServiceRow) {
        let rules = SiteRules {
            hash_key,
            time_zone: self.time_zone,
            checkout_steps: self.checkout_steps,
            page_parameters: self.page_parameters,
            abandoned_after_seconds: self.abandoned_after_seconds,
            takes_events: true,
        };
        (rules, self.service)
    }
}

pub(super) fn json(value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|_| Error::Malformed("value"))
}

pub(super) fn from_json<T: for<'a> Deserialize<'a>>(text: &str, what: &'static str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|_| Error::Malformed(what))
}

/// Puts all that one store holds into another, in place of what is there under the same names. Gives how many sites.
///
/// # Errors
/// Those of either store; safe to repeat.
pub async fn carry(from: &dyn Store, to: &dyn Store) -> Result<usize, Error> {
    let rows = from.load_latest().await?.rows;
    loop {
        let there = to.load_latest().await?.version;
        if to.commit(there, &rows).await?.is_some() {
            return Ok(rows.sites.len());
        }
    }
}
