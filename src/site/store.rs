//! The sites' file: SQLite with `synchronous=FULL`, for nothing else holds what stands in it. Called by `site` alone, by one writer at a time.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::credential::{Credential, Kind, random_key};
use super::{Error, Grant, Site, Snapshot};
use crate::event::{SiteId, SiteRules, Timestamp, ids};

/// Version 1 of the tables.
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS site (
        id TEXT PRIMARY KEY, origins TEXT NOT NULL, rules TEXT NOT NULL, hash_key BLOB NOT NULL, token_key BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS credential (
        hash BLOB PRIMARY KEY, site TEXT NOT NULL REFERENCES site (id), kind INTEGER NOT NULL, expires_at INTEGER
    ) WITHOUT ROWID;
    PRAGMA user_version = 1;
";

/// [`SiteRules`] as stored, without its secret.
#[derive(Serialize, Deserialize)]
struct StoredRules {
    time_zone: String,
    checkout_steps: Vec<String>,
    page_parameters: Vec<String>,
    abandoned_after_seconds: i64,
}

#[derive(Debug)]
pub(super) struct Store(Connection);

impl Store {
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(dir)?;
        let path = dir.join("sites.db");
        make_private(&path)?;
        let conn = Connection::open(&path)?;
        conn.pragma_update(None, "journal_mode", "WAL")?;
        conn.pragma_update(None, "synchronous", "FULL")?;
        conn.pragma_update(None, "foreign_keys", true)?;
        match conn.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))? {
            0 => conn.execute_batch(TABLES)?,
            1 => {}
            _ => return Err(Error::Malformed("version 1 file")),
        }
        Ok(Self(conn))
    }

    pub(super) fn load(&self) -> Result<Snapshot, Error> {
        let mut snapshot = Snapshot::default();
        let mut query = self.0.prepare("SELECT id, origins, rules, hash_key, token_key FROM site")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let id = SiteId::parse(&row.get::<_, String>(0)?).map_err(|_| Error::Malformed("site"))?;
            let origins = serde_json::from_str(&row.get::<_, String>(1)?).map_err(|_| Error::Malformed("list of origins"))?;
            let rules: StoredRules = serde_json::from_str(&row.get::<_, String>(2)?).map_err(|_| Error::Malformed("site's rules"))?;
            let rules = Arc::new(SiteRules {
                hash_key: row.get(3)?,
                time_zone: rules.time_zone,
                checkout_steps: rules.checkout_steps,
                page_parameters: rules.page_parameters,
                abandoned_after_seconds: rules.abandoned_after_seconds,
            });
            snapshot.token_keys.insert(id.clone(), row.get(4)?);
            snapshot.sites.insert(id.clone(), Arc::new(Site { hash: ids::first_u64(&ids::sha256(&[id.as_str().as_bytes()])), id, origins, rules }));
        }
        snapshot.grants = self.load_grants(&snapshot)?;
        Ok(snapshot)
    }

    fn load_grants(&self, snapshot: &Snapshot) -> Result<HashMap<[u8; 32], Arc<Grant>>, Error> {
        let mut grants = HashMap::new();
        let mut query = self.0.prepare("SELECT hash, site, kind, expires_at FROM credential")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let hash: [u8; 32] = row.get(0)?;
            let site = SiteId::parse(&row.get::<_, String>(1)?).ok().and_then(|id| snapshot.sites.get(&id).cloned());
            let site = site.ok_or(Error::Malformed("key's site"))?;
            let kind = Kind::from_stored(row.get(2)?).ok_or(Error::Malformed("key's kind"))?;
            let expires_at = row.get::<_, Option<i64>>(3)?.map(Timestamp::from_micros);
            grants.insert(hash, Arc::new(Grant { site, kind, key: ids::first_u64(&hash), expires_at }));
        }
        Ok(grants)
    }

    pub(super) fn add_site(&mut self, id: &SiteId, origins: &[String], rules: &SiteRules, keys: &[Credential]) -> Result<(), Error> {
        let tx = self.0.transaction()?;
        let known: Option<i64> = tx.query_row("SELECT 1 FROM site WHERE id = ?1", [id.as_str()], |row| row.get(0)).optional()?;
        if known.is_some() {
            return Err(Error::Exists(id.clone()));
        }
        tx.execute(
            "INSERT INTO site (id, origins, rules, hash_key, token_key) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![id.as_str(), json(&origins)?, json(&StoredRules::of(rules))?, rules.hash_key, random_key()],
        )?;
        for key in keys {
            insert_key(&tx, id, key)?;
        }
        Ok(tx.commit()?)
    }

    pub(super) fn update_site(&mut self, id: &SiteId, origins: &[String], rules: &SiteRules) -> Result<(), Error> {
        let sql = "UPDATE site SET origins = ?2, rules = ?3 WHERE id = ?1";
        match self.0.execute(sql, params![id.as_str(), json(&origins)?, json(&StoredRules::of(rules))?])? {
            0 => Err(Error::Unknown(id.clone())),
            _ => Ok(()),
        }
    }

    pub(super) fn add_credential(&mut self, id: &SiteId, key: &Credential) -> Result<(), Error> {
        insert_key(&self.0, id, key)
    }

    pub(super) fn rotate(&mut self, id: &SiteId, key: &Credential, old_until: Timestamp) -> Result<(), Error> {
        let tx = self.0.transaction()?;
        let known: Option<i64> = tx.query_row("SELECT 1 FROM site WHERE id = ?1", [id.as_str()], |row| row.get(0)).optional()?;
        if known.is_none() {
            return Err(Error::Unknown(id.clone()));
        }
        tx.execute(
            "UPDATE credential SET expires_at = min(coalesce(expires_at, ?3), ?3) WHERE site = ?1 AND kind = ?2",
            params![id.as_str(), key.kind.stored(), old_until.micros()],
        )?;
        insert_key(&tx, id, key)?;
        Ok(tx.commit()?)
    }
}

fn insert_key(conn: &Connection, id: &SiteId, key: &Credential) -> Result<(), Error> {
    let sql =
        "INSERT INTO credential (hash, site, kind) VALUES (?1, ?2, ?3) ON CONFLICT (hash) DO UPDATE SET site = ?2, kind = ?3, expires_at = NULL";
    conn.execute(sql, params![key.hash, id.as_str(), key.kind.stored()])?;
    Ok(())
}

impl StoredRules {
    fn of(rules: &SiteRules) -> Self {
        Self {
            time_zone: rules.time_zone.clone(),
            checkout_steps: rules.checkout_steps.clone(),
            page_parameters: rules.page_parameters.clone(),
            abandoned_after_seconds: rules.abandoned_after_seconds,
        }
    }
}

fn json(value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|_| Error::Malformed("value"))
}

/// The file holds secrets: nobody but its owner reads it, from its first byte on.
fn make_private(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}
