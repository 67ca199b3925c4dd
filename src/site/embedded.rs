//! The sites' file: SQLite with `synchronous=FULL`, for nothing else holds what stands in it. One process at a time; what blocks does so on threads of its
//! own.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use rusqlite::{Connection, Transaction, params};

use super::Error;
use super::credential::Kind;
use super::store::{KeyRow, Rows, SiteRow, State, Store, StoredRules, Version, from_json, json};
use crate::event::{SiteId, Timestamp};

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

const PUT_SITE: &str = "INSERT INTO site (id, origins, rules, hash_key, token_key) VALUES (?1, ?2, ?3, ?4, ?5)
    ON CONFLICT (id) DO UPDATE SET origins = ?2, rules = ?3, hash_key = ?4, token_key = ?5";

const PUT_KEY: &str = "INSERT INTO credential (hash, site, kind, expires_at) VALUES (?1, ?2, ?3, ?4)
    ON CONFLICT (hash) DO UPDATE SET site = ?2, kind = ?3, expires_at = ?4";

const REMOVE_SITE: &str = "DELETE FROM site WHERE id = ?1";

/// `sites.db`. Its versions count this process's changes: nobody else makes any.
#[derive(Debug)]
pub(super) struct SitesFile(Arc<File>);

#[derive(Debug)]
struct File {
    conn: Mutex<Connection>,
    version: AtomicU64,
}

impl SitesFile {
    /// Opens the file in `dir`, making both where missing.
    pub(super) async fn open(dir: &Path) -> Result<Self, Error> {
        let dir = dir.to_owned();
        let conn = blocking(move || connect(&dir)).await?;
        Ok(Self(Arc::new(File { conn: Mutex::new(conn), version: AtomicU64::new(0) })))
    }
}

/// Off the async threads, and to its end whoever stops waiting.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(Error::File(std::io::Error::other(error))))
}

#[async_trait]
impl Store for SitesFile {
    async fn load(&self) -> Result<State, Error> {
        let file = Arc::clone(&self.0);
        blocking(move || {
            let conn = file.conn.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(State { version: file.version(), rows: Rows { sites: sites(&conn)?, keys: keys(&conn)?, removed: Vec::new() } })
        })
        .await
    }

    async fn load_latest(&self) -> Result<State, Error> {
        self.load().await
    }

    async fn version(&self) -> Result<Version, Error> {
        Ok(self.0.version())
    }

    async fn commit(&self, from: Version, change: &Rows) -> Result<Option<Version>, Error> {
        let (file, change) = (Arc::clone(&self.0), change.clone());
        blocking(move || {
            let mut conn = file.conn.lock().unwrap_or_else(PoisonError::into_inner);
            if file.version() != from {
                return Ok(None);
            }
            let tx = conn.transaction()?;
            put(&tx, &change)?;
            tx.commit()?;
            file.version.fetch_add(1, Ordering::SeqCst);
            Ok(Some(file.version()))
        })
        .await
    }
}

impl File {
    fn version(&self) -> Version {
        Version(u128::from(self.version.load(Ordering::SeqCst)))
    }
}

fn connect(dir: &Path) -> Result<Connection, Error> {
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
    Ok(conn)
}

fn sites(conn: &Connection) -> Result<Vec<SiteRow>, Error> {
    let mut found = Vec::new();
    let mut query = conn.prepare("SELECT id, origins, rules, hash_key, token_key FROM site")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let stored: StoredRules = from_json(&row.get::<_, String>(2)?, "site's rules")?;
        let region = stored.region()?;
        let (rules, service) = stored.with_key(row.get(3)?);
        found.push(SiteRow {
            id: SiteId::parse(&row.get::<_, String>(0)?).map_err(|_| Error::Malformed("site"))?,
            origins: from_json(&row.get::<_, String>(1)?, "list of origins")?,
            region,
            rules,
            token_key: row.get(4)?,
            service,
        });
    }
    Ok(found)
}

fn keys(conn: &Connection) -> Result<Vec<KeyRow>, Error> {
    let mut found = Vec::new();
    let mut query = conn.prepare("SELECT hash, site, kind, expires_at FROM credential")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        found.push(KeyRow {
            hash: row.get(0)?,
            site: SiteId::parse(&row.get::<_, String>(1)?).map_err(|_| Error::Malformed("key's site"))?,
            kind: Kind::from_stored(row.get(2)?).ok_or(Error::Malformed("key's kind"))?,
            expires_at: row.get::<_, Option<i64>>(3)?.map(Timestamp::from_micros),
        });
    }
    Ok(found)
}

fn put(tx: &Transaction<'_>, change: &Rows) -> Result<(), Error> {
    for site in &change.removed {
        tx.execute(REMOVE_SITE, params![site.as_str()])?;
    }
    for site in &change.sites {
        let rules = json(&StoredRules::of(site, site.region.as_ref()))?;
        tx.execute(PUT_SITE, params![site.id.as_str(), json(&site.origins)?, rules, site.rules.hash_key, site.token_key])?;
    }
    for key in &change.keys {
        tx.execute(PUT_KEY, params![key.hash, key.site.as_str(), key.kind.stored(), key.expires_at.map(Timestamp::micros)])?;
    }
    Ok(())
}

/// The file holds secrets: nobody but its owner reads it, from its first byte on.
fn make_private(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}
