//! Sites and keys on ScyllaDB or Cassandra: one partition, and every change of it a light-weight transaction that asks for the version it was made from.
//! Whoever reads the partition sees a change whole, and a change acknowledged here is what this datacenter's quorum gives from then on.

use async_trait::async_trait;
use uuid::Uuid;

use super::credential::Kind;
use super::store::{KeyRow, Rows, Settings, SiteRow, State, Store, StoredRules, Version, from_json, json};
use super::{Error, Region};
use crate::cql::{self, Address, Cluster, Outcome, Part, Write};
use crate::event::{SiteId, Timestamp};

const PART: Part = Part { name: "sites", version: 1, schema: include_str!("../../schemas/sites.cql") };

const VERSION: &str = "SELECT DISTINCT one, version FROM sites_and_keys WHERE one = 0";
const ALL: &str = "SELECT version, what, name, site, kind, expires_at, origins, rules, region, hash_key, token_key FROM sites_and_keys WHERE one = 0";
const TURN: &str = "UPDATE sites_and_keys SET version = ? WHERE one = 0 IF version = ?";
const PUT_SITE: &str = "INSERT INTO sites_and_keys (one, what, name, origins, rules, region, hash_key, token_key) VALUES (0, 0, ?, ?, ?, ?, ?, ?)";
const PUT_KEY: &str = "INSERT INTO sites_and_keys (one, what, name, site, kind, expires_at) VALUES (0, 1, ?, ?, ?, ?)";
const REMOVE_SITE: &str = "DELETE FROM sites_and_keys WHERE one = 0 AND what = 0 AND name = ?";

/// The values of `what`.
const SITE: i8 = 0;
const KEY: i8 = 1;

/// How often a state is read that changes while it is read, before that is taken for a trouble of the cluster.
const READINGS: usize = 20;

/// The sites of a keyspace.
pub(super) struct ScyllaSites {
    cluster: Cluster,
}

impl std::fmt::Debug for ScyllaSites {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScyllaSites").finish_non_exhaustive()
    }
}

/// Where the sites are.
fn address(url: &str, settings: &Settings) -> Result<Address, Error> {
    let address = Address::parse(url)?;
    if settings.keyspace.is_empty() { Ok(address) } else { Ok(address.with_keyspace(&settings.keyspace)?) }
}

/// See [`super::store::migrate`].
pub(super) async fn migrate(url: &str, settings: &Settings) -> Result<String, Error> {
    Ok(cql::migrate_part(&address(url, settings)?, &settings.scylla, &PART).await?)
}

impl ScyllaSites {
    pub(super) async fn open(url: &str, settings: &Settings) -> Result<Self, Error> {
        Ok(Self { cluster: Cluster::connect_to(&address(url, settings)?, &settings.scylla, &PART).await? })
    }

    /// Reads until a whole reading is of one version: pages are of different moments.
    async fn read(&self, settled: bool) -> Result<State, Error> {
        for _ in 0..READINGS {
            let rows = if settled { self.cluster.rows_settled(ALL, ()).await? } else { self.cluster.rows::<Row>(ALL, ()).await? };
            if let Some(state) = whole(rows)? {
                return Ok(state);
            }
        }
        Err(Error::Unavailable("the sites change faster than they can be read".into()))
    }
}

#[async_trait]
impl Store for ScyllaSites {
    async fn load(&self) -> Result<State, Error> {
        self.read(false).await
    }

    async fn load_latest(&self) -> Result<State, Error> {
        self.read(true).await
    }

    async fn version(&self) -> Result<Version, Error> {
        let found: Vec<(i8, Uuid)> = self.cluster.rows(VERSION, ()).await?;
        found.first().map(|(_, version)| Version(version.as_u128())).ok_or(Error::Malformed("version"))
    }

    async fn commit(&self, from: Version, change: &Rows) -> Result<Option<Version>, Error> {
        let version = Uuid::new_v4();
        let mut writes = Vec::with_capacity(change.sites.len() + change.keys.len() + change.removed.len());
        for site in &change.sites {
            let rules = json(&StoredRules::of(site, None))?;
            let region = site.region.as_ref().map_or_else(String::new, |region| region.as_str().to_owned());
            let (name, hash_key, token_key) = (site.id.as_str().as_bytes().to_vec(), site.rules.hash_key.to_vec(), site.token_key.to_vec());
            writes.push(Write::new(PUT_SITE, (name, json(&site.origins)?, rules, region, hash_key, token_key)));
        }
        for key in &change.keys {
            let kind = i8::try_from(key.kind.stored()).map_err(|_| Error::Malformed("key's kind"))?;
            let expires_at = key.expires_at.unwrap_or(Timestamp::MAX).micros();
            writes.push(Write::new(PUT_KEY, (key.hash.to_vec(), key.site.as_str().to_owned(), kind, expires_at)));
        }
        for site in &change.removed {
            writes.push(Write::new(REMOVE_SITE, (site.as_str().as_bytes().to_vec(),)));
        }
        let turn = Write::new(TURN, (version, Uuid::from_u128(from.0)));
        match self.cluster.write_if(turn, writes, "version").await? {
            Outcome::Applied => Ok(Some(Version(version.as_u128()))),
            // An attempt whose answer got lost had been made.
            Outcome::Found(Some(found)) if found == version => Ok(Some(Version(version.as_u128()))),
            Outcome::Found(_) => Ok(None),
        }
    }
}

/// A row; all but the version is absent in a partition without rows, and of each kind of row what is of the other.
#[derive(scylla::DeserializeRow)]
struct Row {
    version: Uuid,
    what: Option<i8>,
    name: Option<Vec<u8>>,
    site: Option<String>,
    kind: Option<i8>,
    expires_at: Option<i64>,
    origins: Option<String>,
    rules: Option<String>,
    region: Option<String>,
    hash_key: Option<Vec<u8>>,
    token_key: Option<Vec<u8>>,
}

/// The state that rows are of; None where they are of several.
fn whole(rows: Vec<Row>) -> Result<Option<State>, Error> {
    let Some(version) = rows.first().map(|row| row.version) else { return Err(Error::Malformed("version")) };
    let mut state = State { version: Version(version.as_u128()), rows: Rows::default() };
    for row in rows {
        match row.what {
            _ if row.version != version => return Ok(None),
            None => {}
            Some(SITE) => state.rows.sites.push(row.into_site()?),
            Some(KEY) => state.rows.keys.push(row.into_key()?),
            Some(_) => return Err(Error::Malformed("site or a key")),
        }
    }
    Ok(Some(state))
}

fn secret(bytes: Option<Vec<u8>>) -> Result<[u8; 32], Error> {
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or(Error::Malformed("secret or a hash"))
}

impl Row {
    fn into_site(self) -> Result<SiteRow, Error> {
        let name = self.name.and_then(|name| String::from_utf8(name).ok());
        let stored: StoredRules = from_json(&self.rules.unwrap_or_default(), "site's rules")?;
        let (rules, service) = stored.with_key(secret(self.hash_key)?);
        Ok(SiteRow {
            id: name.and_then(|name| SiteId::parse(&name).ok()).ok_or(Error::Malformed("site"))?,
            origins: from_json(&self.origins.unwrap_or_default(), "list of origins")?,
            rules,
            region: self.region.filter(|region| !region.is_empty()).as_deref().map(Region::parse).transpose()?,
            token_key: secret(self.token_key)?,
            service,
        })
    }

    fn into_key(self) -> Result<KeyRow, Error> {
        Ok(KeyRow {
            hash: secret(self.name)?,
            site: self.site.and_then(|site| SiteId::parse(&site).ok()).ok_or(Error::Malformed("key's site"))?,
            kind: self.kind.and_then(|kind| Kind::from_stored(kind.into())).ok_or(Error::Malformed("key's kind"))?,
            expires_at: self.expires_at.map(Timestamp::from_micros).filter(|at| *at < Timestamp::MAX),
        })
    }
}

#[cfg(test)]
mod tests;
