//! Sites: shops, their rules, keys and tokens; who may do what. Opened by the composition root; asked by ingest and web on every request, changed by
//! the `site` commands. Stored in a file of its own, each change durable before it is answered; read from memory. Must never hold, log or
//! give out a key after the one answer that made it.

mod credential;
mod origin;
mod store;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::event::{Clock, RulesOf, SiteId, SiteRules, Timestamp};

use credential::{Credential, hash};
pub use credential::{Kind, ObjectGrant};

/// What can go wrong with the sites' store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written.
    #[error("the sites' file: {0}")]
    Store(#[from] rusqlite::Error),
    /// The directory or file cannot be made.
    #[error("the sites' file: {0}")]
    File(#[from] std::io::Error),
    /// What it holds cannot be read.
    #[error("the sites' file holds something else than a {0}")]
    Malformed(&'static str),
    /// A site of this name exists.
    #[error("site {0} exists already")]
    Exists(SiteId),
    /// No site of this name.
    #[error("there is no site {0}")]
    Unknown(SiteId),
    /// A given key that is too easily guessed.
    #[error("a key or token has at least {} visible ASCII characters", credential::LEAST_LENGTH)]
    Weak,
    /// An object's name that cannot be granted.
    #[error("an object's name has 1 to 320 bytes")]
    ObjectName,
    /// Given as a page's origin, but no browser sends it as one.
    #[error("`{0}` is no origin: give scheme and host (and port), such as https://shop.example, or * for every origin")]
    Origin(String),
}

/// A shop as its readers see it.
#[derive(Clone, Debug)]
pub struct Site {
    /// Its name.
    pub id: SiteId,
    /// Names it in limits.
    pub hash: u64,
    /// Origins whose pages may send and read, such as `https://shop.example`; `*` allows every one.
    pub origins: Vec<String>,
    /// How its events are read.
    pub rules: Arc<SiteRules>,
}

impl Site {
    /// Whether a page of this origin may send and read.
    pub fn allows_origin(&self, origin: &str) -> bool {
        self.origins.iter().any(|allowed| allowed == origin::EVERY || allowed.eq_ignore_ascii_case(origin))
    }
}

/// What a key opens.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The shop.
    pub site: Arc<Site>,
    /// What the key is for.
    pub kind: Kind,
    /// Names the key in counters and limits, without saying anything about it.
    pub key: u64,
    expires_at: Option<Timestamp>,
}

/// What to replace of a site; None stays as it is.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// All its origins.
    pub origins: Option<Vec<String>>,
    /// Its rules' time zone, which must be one that exists.
    pub time_zone: Option<String>,
}

/// Keys of a new site or a rotation, in plain: shown once, stored nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct NewKeys {
    /// The shop.
    pub site: SiteId,
    /// For servers: `ck_<site>_...`.
    pub ingest: String,
    /// For browsers, fit to stand in a page: `cb_<site>_...`.
    pub browser: String,
    /// For reading: `cr_<site>_...`.
    pub read: String,
}

impl std::fmt::Debug for NewKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewKeys").field("site", &self.site).finish_non_exhaustive()
    }
}

/// Keys fixed from outside (containers, tests) for the first site.
#[derive(Clone, Default)]
pub struct Bootstrap {
    /// `CONTRAIL_BOOTSTRAP_INGEST_KEY`.
    pub ingest_key: Option<String>,
    /// `CONTRAIL_BOOTSTRAP_READ_TOKEN`.
    pub read_token: Option<String>,
}

/// All sites of an installation. Methods that change something block on the disk: call them off the async threads.
#[derive(Debug)]
pub struct Sites {
    store: Mutex<store::Store>,
    now: RwLock<Arc<Snapshot>>,
    clock: Clock,
    /// Hash of the token that opens every site to commands on this machine, once the process has announced itself.
    admin: RwLock<Option<[u8; 32]>>,
}

/// All of it, as readers find it.
#[derive(Debug, Default)]
struct Snapshot {
    sites: HashMap<SiteId, Arc<Site>>,
    grants: HashMap<[u8; 32], Arc<Grant>>,
    token_keys: HashMap<SiteId, [u8; 32]>,
}

impl Sites {
    /// Opens `sites.db` in `dir`, making both where missing.
    pub fn open(dir: &Path, clock: Clock) -> Result<Self, Error> {
        let store = store::Store::open(dir)?;
        let now = RwLock::new(Arc::new(store.load()?));
        Ok(Self { store: Mutex::new(store), now, clock, admin: RwLock::default() })
    }

    /// On an installation without sites makes site `demo` and gives its keys, generated or as given; otherwise makes sure that given
    /// keys are valid for `demo` and gives None.
    pub fn bootstrap(&self, given: &Bootstrap) -> Result<Option<NewKeys>, Error> {
        let demo = SiteId::parse("demo").map_err(|_| Error::Malformed("site"))?;
        let first = self.snapshot().sites.is_empty();
        let made = if first { Some(self.insert(&demo, Vec::new(), SiteRules::default(), given)?) } else { None };
        if !first && self.snapshot().sites.contains_key(&demo) {
            let fixed = [(Kind::Server, &given.ingest_key), (Kind::Read, &given.read_token)];
            for (kind, plain) in fixed {
                if let Some(plain) = plain {
                    self.change(|store| store.add_credential(&demo, &Credential::given(kind, plain)?))?;
                }
            }
        }
        Ok(made)
    }

    /// Adds a site and gives its keys. `rules.hash_key` is replaced by a random one.
    pub fn add(&self, id: &SiteId, origins: Vec<String>, rules: SiteRules) -> Result<NewKeys, Error> {
        self.insert(id, origins, rules, &Bootstrap::default())
    }

    /// Changes a site, in force at once, and gives it as it is then.
    pub fn set(&self, id: &SiteId, change: Change) -> Result<Arc<Site>, Error> {
        let origins = change.origins.as_deref().map(origin::parse_all).transpose()?;
        self.change(|store| {
            // Read under the store's lock: of two changes at once, neither undoes the other.
            let present = self.site(id)?;
            let mut rules = SiteRules::clone(&present.rules);
            if let Some(time_zone) = change.time_zone {
                rules.time_zone = time_zone;
            }
            store.update_site(id, origins.as_ref().unwrap_or(&present.origins), &rules)
        })?;
        self.site(id)
    }

    /// All sites, by name.
    pub fn list(&self) -> Vec<Arc<Site>> {
        let mut sites: Vec<_> = self.snapshot().sites.values().cloned().collect();
        sites.sort_by(|a, b| a.id.cmp(&b.id));
        sites
    }

    /// A new key of one kind; those before it stay valid until `old_until` (now: at once invalid).
    pub fn rotate(&self, id: &SiteId, kind: Kind, old_until: Timestamp) -> Result<String, Error> {
        let (plain, credential) = Credential::generate(id, kind);
        self.change(|store| store.rotate(id, &credential, old_until))?;
        Ok(plain)
    }

    /// Who sends with this key; None for unknown, expired and reading ones.
    pub fn authenticate_ingest(&self, key: &str) -> Option<Arc<Grant>> {
        self.authenticate(key).filter(|grant| matches!(grant.kind, Kind::Server | Kind::Browser))
    }

    /// Who reads with this token; None for unknown, expired and sending ones.
    pub fn authenticate_read(&self, token: &str) -> Option<Arc<Grant>> {
        self.authenticate(token).filter(|grant| grant.kind == Kind::Read)
    }

    /// Makes a token the administrator's, in place of any before it, for as long as this process lives.
    pub fn set_admin(&self, token: &str) {
        *self.admin.write().unwrap_or_else(PoisonError::into_inner) = Some(hash(token));
    }

    /// Whether a token is the administrator's.
    pub fn is_admin(&self, token: &str) -> bool {
        let admin = *self.admin.read().unwrap_or_else(PoisonError::into_inner);
        // Hashes are compared: what time the comparison takes says nothing of the token.
        admin.is_some_and(|admin| admin == hash(token))
    }

    /// The administrator as a sender and reader of one site: the one named, else `demo`, else the only one.
    pub fn authenticate_admin(&self, token: &str, site: Option<&str>) -> Option<Arc<Grant>> {
        if !self.is_admin(token) {
            return None;
        }
        let sites = self.list();
        let site = match (site, sites.as_slice()) {
            (Some(name), _) => sites.iter().find(|site| site.id.as_str() == name),
            (None, [only]) => Some(only),
            (None, _) => sites.iter().find(|site| site.id.as_str() == "demo"),
        }?;
        Some(Arc::new(Grant { site: Arc::clone(site), kind: Kind::Server, key: 0, expires_at: None }))
    }

    /// A token for reading one object until a time: `ct_<site>_...`, fit for a URL. Signed, not stored.
    pub fn object_token(&self, id: &SiteId, object: &str, until: Timestamp) -> Result<String, Error> {
        if !(1..=320).contains(&object.len()) {
            return Err(Error::ObjectName);
        }
        let snapshot = self.snapshot();
        let key = snapshot.token_keys.get(id).ok_or_else(|| Error::Unknown(id.clone()))?;
        Ok(credential::sign_object(key, id, object, until))
    }

    /// What an object token opens; None where it was not made here or is over.
    pub fn open_object_token(&self, token: &str) -> Option<ObjectGrant> {
        let snapshot = self.snapshot();
        let grant = credential::open_object(token, |site| snapshot.token_keys.get(site).copied())?;
        (grant.until > self.clock.now()).then_some(grant)
    }

    /// Whether any site allows pages of this origin: all that a preflight request can be asked.
    pub fn any_allows_origin(&self, origin: &str) -> bool {
        self.snapshot().sites.values().any(|site| site.allows_origin(origin))
    }

    /// The rules by site, always the present ones.
    pub fn rules_of(self: &Arc<Self>) -> RulesOf {
        let sites = Arc::clone(self);
        let unknown = Arc::new(SiteRules::default());
        Arc::new(move |id| sites.snapshot().sites.get(id).map_or_else(|| Arc::clone(&unknown), |site| Arc::clone(&site.rules)))
    }

    fn site(&self, id: &SiteId) -> Result<Arc<Site>, Error> {
        self.snapshot().sites.get(id).cloned().ok_or_else(|| Error::Unknown(id.clone()))
    }

    fn authenticate(&self, plain: &str) -> Option<Arc<Grant>> {
        // The map is asked by the key's hash, which nobody can steer byte by byte: no comparison leaks the key.
        let grant = self.snapshot().grants.get(&hash(plain)).cloned()?;
        grant.expires_at.is_none_or(|until| until > self.clock.now()).then_some(grant)
    }

    fn insert(&self, id: &SiteId, origins: Vec<String>, mut rules: SiteRules, given: &Bootstrap) -> Result<NewKeys, Error> {
        let origins = origin::parse_all(&origins)?;
        rules.hash_key = credential::random_key();
        let new = |kind, fixed: Option<&String>| match fixed {
            Some(plain) => Credential::given(kind, plain).map(|credential| (plain.clone(), credential)),
            None => Ok(Credential::generate(id, kind)),
        };
        let (ingest, server) = new(Kind::Server, given.ingest_key.as_ref())?;
        let (browser, page) = new(Kind::Browser, None)?;
        let (read, reader) = new(Kind::Read, given.read_token.as_ref())?;
        self.change(|store| store.add_site(id, &origins, &rules, &[server, page, reader]))?;
        Ok(NewKeys { site: id.clone(), ingest, browser, read })
    }

    /// Changes the file, then what readers see.
    fn change(&self, change: impl FnOnce(&mut store::Store) -> Result<(), Error>) -> Result<(), Error> {
        let mut store: MutexGuard<'_, _> = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut store)?;
        let snapshot = Arc::new(store.load()?);
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = snapshot;
        Ok(())
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests;
