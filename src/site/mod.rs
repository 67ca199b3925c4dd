//! Sites: shops, their rules, keys and tokens; who may do what. Opened by the composition root; asked by ingest and web on every request, changed by
//! the `site` commands. Kept by a [`Store`], each change durable before it is answered; read from memory, which follows what other nodes change. Must never
//! hold, log or give out a key after the one answer that made it.

mod access_token;
mod account;
#[cfg(test)]
mod contract;
mod credential;
mod embedded;
mod follow;
mod mirror;
mod origin;
mod region;
#[cfg(feature = "scylla")]
mod scylla;
mod seal;
mod service;
mod snapshot;
mod store;

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rand::Rng;

use crate::event::{Clock, RulesOf, SiteId, SiteRules, Timestamp};

pub use access_token::{LONGEST_ACCESS, TokenError};
pub use account::{AccessToken, Account, SyncCredentials, SyncKey};
use credential::{Credential, hash};
pub use credential::{Kind, ObjectGrant};
pub use mirror::{Mirror, MirrorFault, Pattern, Target};
pub use region::{Elsewhere, Region, Regions};
pub use seal::Seal;
use service::ServiceRow;
pub use service::{Limits, Service, ServiceChange, ServiceFault};
use snapshot::Snapshot;
#[cfg(feature = "scylla")]
pub use store::migrate;
use store::{KeyRow, SiteRow};
pub use store::{Rows, Settings, State, Store, Version, carry, open};

/// How long a change may take, in contention with others and with a store that does not answer at once.
const CHANGE: Duration = Duration::from_secs(15);
/// Longest pause before a change is made again that another one came before.
const CONTENTION: Duration = Duration::from_millis(100);

/// What can go wrong with sites.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written.
    #[error("the sites' file: {0}")]
    Store(#[from] rusqlite::Error),
    /// The directory or file cannot be made.
    #[error("the sites' file: {0}")]
    File(#[from] std::io::Error),
    /// The store does not answer. What was asked may have been done, or be done yet.
    #[error("the sites' store: {0}")]
    Unavailable(String),
    /// The store refuses, and would again.
    #[error("the sites' store: {0}")]
    Refused(String),
    /// What it holds cannot be read.
    #[error("the sites' store holds something else than a {0}")]
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
    /// A text that cannot name a region.
    #[error("`{0}` names no region: a region's name is 1 to 32 of a-z, 0-9 and -")]
    RegionName(String),
    /// A setting that says of no region where it is.
    #[error("`{0}` says of no region where it is: give name=URL, such as eu=https://eu.contrail.example")]
    RegionUrl(String),
    /// A pin where there are no regions.
    #[error("this installation has no regions: set `region` on its nodes first")]
    NoRegions,
    /// A pin to a region that is not listed.
    #[error("there is no region {0}: it is neither this node's nor among `region_urls`")]
    RegionUnknown(Region),
    /// A site's region is changed, which leaves its data behind.
    #[error(
        "site {0} would be taken and served elsewhere from then on, and what is kept of it stays where it is, read by nobody: nothing is carried over. \
         Say that this is meant (--leave-data)"
    )]
    LeavesData(SiteId),
    /// What a service cannot be set to.
    #[error(transparent)]
    Service(#[from] ServiceFault),
    /// What a mirror cannot be set to.
    #[error(transparent)]
    Mirror(#[from] MirrorFault),
    /// A key that is too easily guessed to seal anything under.
    #[error("a secret key has at least 16 bytes")]
    SecretKey,
    /// A secret that was sealed under a key that this node has not.
    #[error("what opens another service for site {0} is sealed: CONTRAIL_SECRET_KEY is not the key that it was sealed under")]
    Sealed(SiteId),
    /// A further service of an account is taken for a site with settings and keys of its own.
    #[error("{0} is a service of another site's account, and has the settings and keys of that site")]
    IsService(SiteId),
    /// The service that an account has by itself is to be deleted.
    #[error("{0} is the service that its account has by itself: it stays")]
    OwnService(SiteId),
    /// One more service than an account may have.
    #[error("an account has at most {} services", account::MOST_SERVICES)]
    TooManyServices,
    /// One more API key than an account may have.
    #[error("an account has at most {} API keys", account::MOST_KEYS)]
    TooManyKeys,
    /// No API key of this SID.
    #[error("there is no API key {0}")]
    KeyUnknown(String),
    /// Somebody that no token can be for.
    #[error("an identity has 1 to 256 characters")]
    Identity,
    /// An access token that would work for too long, or not at all.
    #[error("an access token works for 1 second to {} hours", LONGEST_ACCESS / 3_600)]
    Lifetime,
}

#[cfg(feature = "scylla")]
impl From<crate::cql::Error> for Error {
    fn from(error: crate::cql::Error) -> Self {
        if error.is_retryable() { Self::Unavailable(error.to_string()) } else { Self::Refused(error.to_string()) }
    }
}

/// A shop as its readers see it, or a further Sync service of its account.
#[derive(Clone, Debug)]
pub struct Site {
    /// Its name.
    pub id: SiteId,
    /// Names it in limits.
    pub hash: u64,
    /// Of a further service the site that has the account, whose origins, rules and region it has too.
    pub account: Option<SiteId>,
    /// What it is in the Sync API.
    pub service: Service,
    /// Origins whose pages may send and read, such as `https://shop.example`; `*` allows every one.
    pub origins: Vec<String>,
    /// How its events are read.
    pub rules: Arc<SiteRules>,
    /// The one region that takes and serves it; None = every one.
    pub region: Option<Region>,
}

impl Site {
    /// The site that has the account which this is a service of: mostly itself.
    pub fn owner(&self) -> &SiteId {
        self.account.as_ref().unwrap_or(&self.id)
    }

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

/// What a new site is to be.
#[derive(Clone, Debug, Default)]
pub struct NewSite {
    /// Its origins.
    pub origins: Vec<String>,
    /// Its rules; their `hash_key` is replaced by a random one.
    pub rules: SiteRules,
    /// Its region.
    pub region: Option<Region>,
}

/// What to replace of a site; None stays as it is.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// All its origins.
    pub origins: Option<Vec<String>>,
    /// Its rules' time zone, which must be one that exists.
    pub time_zone: Option<String>,
    /// Its region.
    pub region: Option<Option<Region>>,
    /// Whether the data that the site has may be left behind: a change of the region carries none.
    pub leave_data: bool,
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

/// All sites of an installation, as one node knows them. Changes wait for the store; all else is asked of memory.
#[derive(Debug)]
pub struct Sites {
    store: Arc<dyn Store>,
    now: RwLock<Arc<Snapshot>>,
    /// Held from reading the store to showing what was read, so that nothing older is shown after it.
    turn: tokio::sync::Mutex<()>,
    watch: Mutex<follow::Watch>,
    regions: Regions,
    clock: Clock,
    seal: Seal,
    /// Hash of the token that opens every site to commands on this machine, once the process has announced itself.
    admin: RwLock<Option<[u8; 32]>>,
}

impl Sites {
    /// Reads what a store holds, where nothing is sealed. `regions` as this node knows them.
    ///
    /// # Errors
    /// [`Error::Sealed`]; the store's.
    pub async fn new(store: Arc<dyn Store>, regions: Regions, clock: Clock) -> Result<Self, Error> {
        Self::sealed(store, regions, clock, Seal::default()).await
    }

    /// The same where `seal` opens what is sealed, and seals what is kept from now on.
    ///
    /// # Errors
    /// [`Error::Sealed`] where it is not the one that something was sealed with; the store's.
    pub async fn sealed(store: Arc<dyn Store>, regions: Regions, clock: Clock, seal: Seal) -> Result<Self, Error> {
        let now = RwLock::new(Arc::new(Snapshot::of(&store.load().await?, &seal, true)?));
        Ok(Self { store, now, turn: tokio::sync::Mutex::default(), watch: Mutex::default(), regions, clock, seal, admin: RwLock::default() })
    }

    /// On an installation without sites makes site `demo` and gives its keys, generated or as given; otherwise makes sure that given
    /// keys are known for `demo` and gives None. A given key that was rotated away stays so. Of several first starts at once, one makes the site.
    ///
    /// # Errors
    /// [`Error::Weak`]; the store's.
    pub async fn bootstrap(&self, given: &Bootstrap) -> Result<Option<NewKeys>, Error> {
        let demo = SiteId::parse("demo").map_err(|_| Error::Malformed("site"))?;
        let (site, keys, made) = draft(&demo, NewSite::default(), given, self.clock.now())?;
        let fixed = [(Kind::Server, &given.ingest_key), (Kind::Read, &given.read_token)];
        let fixed = fixed.into_iter().filter_map(|(kind, plain)| Some(Credential::given(kind, plain.as_ref()?)));
        let fixed: Vec<KeyRow> = fixed.map(|credential| Ok(credential?.of(&demo))).collect::<Result<_, Error>>()?;
        let present = self.snapshot();
        let is_there = |key: &KeyRow| present.grants.get(&key.hash).is_some_and(|known| known.site.id == key.site && known.kind == key.kind);
        if !present.sites.is_empty() && (!present.sites.contains_key(&demo) || fixed.iter().all(is_there)) {
            // Nothing is to be changed: a store that can be read but not changed at present is no reason not to start.
            return Ok(None);
        }
        let plan = |state: &Rows| {
            if state.sites.is_empty() {
                return Ok(Rows { sites: vec![site.clone()], keys: keys.clone(), removed: Vec::new() });
            }
            let known = |key: &KeyRow| state.key(&key.hash).is_some_and(|known| known.site == key.site && known.kind == key.kind);
            let missing = fixed.iter().filter(|key| state.site(&demo).is_ok() && !known(key));
            Ok(Rows { keys: missing.cloned().collect(), ..Rows::default() })
        };
        self.change(plan).await?;
        // Another node may have made another one.
        let is_mine = self.snapshot().token_keys.get(&demo) == Some(&site.token_key);
        Ok(is_mine.then_some(made))
    }

    /// Adds a site and gives its keys.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::Origin`], [`Error::NoRegions`], [`Error::RegionUnknown`]; the store's.
    pub async fn add(&self, id: &SiteId, new: NewSite) -> Result<NewKeys, Error> {
        self.regions.check_pin(new.region.as_ref())?;
        let (site, keys, made) = draft(id, new, &Bootstrap::default(), self.clock.now())?;
        let plan = |state: &Rows| match state.site(id) {
            Ok(known) if known.token_key == site.token_key => Ok(Rows::default()),
            Ok(_) => Err(Error::Exists(id.clone())),
            Err(_) => Ok(Rows { sites: vec![site.clone()], keys: keys.clone(), removed: Vec::new() }),
        };
        self.change(plan).await.map(|()| made)
    }

    /// Changes a site, in force here at once, and gives it as it is then.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::IsService`], [`Error::Origin`], [`Error::NoRegions`], [`Error::RegionUnknown`], [`Error::LeavesData`]; the store's.
    pub async fn set(&self, id: &SiteId, change: Change) -> Result<Arc<Site>, Error> {
        let origins = change.origins.as_deref().map(origin::parse_all).transpose()?;
        self.regions.check_pin(change.region.as_ref().and_then(Option::as_ref))?;
        let plan = |state: &Rows| {
            let present = state.owner(id)?;
            let mut site = present.clone();
            site.origins = origins.clone().unwrap_or(site.origins);
            site.rules.time_zone = change.time_zone.clone().unwrap_or(site.rules.time_zone);
            site.region = change.region.clone().unwrap_or(site.region);
            if site.region != present.region && !change.leave_data {
                return Err(Error::LeavesData(id.clone()));
            }
            let sites = if site == *present { Vec::new() } else { vec![site] };
            Ok(Rows { sites, ..Rows::default() })
        };
        self.change(plan).await?;
        self.site(id)
    }

    /// All sites, by name; not the further services of their accounts, which [`Sites::services`] gives.
    pub fn list(&self) -> Vec<Arc<Site>> {
        let mut sites: Vec<_> = self.snapshot().sites.values().filter(|site| site.account.is_none()).cloned().collect();
        sites.sort_by(|a, b| a.id.cmp(&b.id));
        sites
    }

    /// A new key of one kind; those before it stay valid until `old_until` (now: at once invalid).
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::IsService`]; the store's.
    pub async fn rotate(&self, id: &SiteId, kind: Kind, old_until: Timestamp) -> Result<String, Error> {
        let (plain, credential) = Credential::generate(id, kind);
        let new = credential.of(id);
        let plan = |state: &Rows| {
            state.owner(id)?;
            if state.key(&new.hash).is_some() {
                return Ok(Rows::default());
            }
            let old = state.keys.iter().filter(|key| key.site == *id && key.kind == kind && key.expires_at.is_none_or(|until| until > old_until));
            let ended = old.map(|key| KeyRow { expires_at: Some(old_until), ..key.clone() });
            Ok(Rows { keys: ended.chain([new.clone()]).collect(), ..Rows::default() })
        };
        self.change(plan).await.map(|()| plain)
    }

    /// The region that a site is pinned to, where that is not this node's: then nothing of the site is to be taken or served here.
    pub fn elsewhere(&self, site: &Site) -> Option<Elsewhere> {
        self.regions.elsewhere(site.region.as_ref())
    }

    /// The same of a site by its name; None too where there is none.
    pub fn elsewhere_of(&self, id: &SiteId) -> Option<Elsewhere> {
        self.snapshot().sites.get(id).and_then(|site| self.elsewhere(site))
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

    /// A site by its name, or a further service of an account.
    pub fn get(&self, id: &SiteId) -> Option<Arc<Site>> {
        self.snapshot().sites.get(id).cloned()
    }

    fn site(&self, id: &SiteId) -> Result<Arc<Site>, Error> {
        self.snapshot().sites.get(id).cloned().ok_or_else(|| Error::Unknown(id.clone()))
    }

    fn authenticate(&self, plain: &str) -> Option<Arc<Grant>> {
        // The map is asked by the key's hash, which nobody can steer byte by byte: no comparison leaks the key.
        let grant = self.snapshot().grants.get(&hash(plain)).cloned()?;
        grant.expires_at.is_none_or(|until| until > self.clock.now()).then_some(grant)
    }

    /// Changes the store, then what readers see here. `plan` says what is to be put over a state, and is asked again where another change came first: over a
    /// state that has its own effect it must say nothing, as a change whose answer got lost is made again.
    async fn change(&self, plan: impl Fn(&Rows) -> Result<Rows, Error> + Send + Sync) -> Result<(), Error> {
        let changing = async {
            let _turn = self.turn.lock().await;
            loop {
                let mut state = self.store.load_latest().await?;
                let change = plan(&state.rows)?;
                if !change.is_empty() {
                    let Some(version) = self.store.commit(state.version, &change).await? else {
                        let pause = CONTENTION.mul_f64(rand::rng().random_range(0.1..1.0));
                        tokio::time::sleep(pause).await;
                        continue;
                    };
                    state.rows.put(change);
                    state.version = version;
                }
                return self.show(&state);
            }
        };
        let late =
            || Error::Unavailable(format!("not done within {} s; it may have been, or be done yet: look before asking again", CHANGE.as_secs()));
        tokio::time::timeout(CHANGE, changing).await.unwrap_or_else(|_| Err(late()))
    }

    /// Makes a state what readers see. To be called in turn.
    fn show(&self, state: &State) -> Result<(), Error> {
        let snapshot = Arc::new(Snapshot::of(state, &self.seal, false)?);
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = snapshot;
        Ok(())
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A new site's rows, and its keys in plain.
fn draft(id: &SiteId, new: NewSite, given: &Bootstrap, now: Timestamp) -> Result<(SiteRow, Vec<KeyRow>, NewKeys), Error> {
    let key = |kind, fixed: Option<&String>| match fixed {
        Some(plain) => Credential::given(kind, plain).map(|credential| (plain.clone(), credential)),
        None => Ok(Credential::generate(id, kind)),
    };
    let (ingest, server) = key(Kind::Server, given.ingest_key.as_ref())?;
    let (browser, page) = key(Kind::Browser, None)?;
    let (read, reader) = key(Kind::Read, given.read_token.as_ref())?;
    let site = SiteRow {
        id: id.clone(),
        origins: origin::parse_all(&new.origins)?,
        rules: SiteRules { hash_key: credential::random_key(), ..new.rules },
        region: new.region,
        token_key: credential::random_key(),
        service: ServiceRow::made(now, None),
    };
    Ok((site, [server, page, reader].map(|credential| credential.of(id)).to_vec(), NewKeys { site: id.clone(), ingest, browser, read }))
}

#[cfg(test)]
mod tests;
