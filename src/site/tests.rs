//! Tests of the sites: keys, rotation, tokens, and that all of it survives reopening.

mod accounts;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;

use super::contract::Bench;
use super::*;

fn site(name: &str) -> SiteId {
    SiteId::parse(name).unwrap()
}

async fn file(dir: &Path) -> Arc<dyn Store> {
    store::open("embedded", dir, &Settings::default()).await.unwrap()
}

async fn node(store: &Arc<dyn Store>) -> Arc<Sites> {
    let clock = Clock::fixed(Timestamp::parse("2026-11-20T10:00:00Z").unwrap());
    Arc::new(Sites::new(Arc::clone(store), Regions::default(), clock).await.unwrap())
}

async fn open(dir: &Path) -> (Arc<Sites>, Clock) {
    let sites = node(&file(dir).await).await;
    let clock = sites.clock.clone();
    (sites, clock)
}

fn of(origins: &[&str]) -> NewSite {
    NewSite { origins: origins.iter().map(|&origin| origin.to_owned()).collect(), ..NewSite::default() }
}

#[tokio::test]
async fn keys_open_what_they_are_for_and_survive_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let keys = open(dir.path()).await.0.add(&site("my-shop"), of(&["https://shop.example"])).await.unwrap();
    let (sites, _) = open(dir.path()).await;
    assert!(keys.ingest.starts_with("ck_my-shop_") && keys.browser.starts_with("cb_my-shop_") && keys.read.starts_with("cr_my-shop_"));
    assert_eq!(sites.authenticate_ingest(&keys.ingest).unwrap().kind, Kind::Server);
    assert_eq!(sites.authenticate_ingest(&keys.browser).unwrap().kind, Kind::Browser);
    assert_eq!(sites.authenticate_read(&keys.read).unwrap().site.id, site("my-shop"));
    assert!(sites.authenticate_ingest(&keys.read).is_none());
    assert!(sites.authenticate_read(&keys.ingest).is_none());
    assert!(sites.authenticate_ingest("").is_none());
    assert!(sites.authenticate_ingest(&format!("{}x", keys.ingest)).is_none());
    assert!(sites.any_allows_origin("HTTPS://shop.example") && !sites.any_allows_origin("https://shop.example.evil"));
    assert_ne!(sites.rules_of()(&site("my-shop")).hash_key, [0; 32]);
    assert!(matches!(sites.add(&site("my-shop"), of(&[])).await, Err(Error::Exists(_))));
}

#[tokio::test]
async fn nothing_in_the_file_is_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let (sites, _) = open(dir.path()).await;
    let keys = sites.add(&site("demo"), of(&[])).await.unwrap();
    drop(sites);
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        for key in [&keys.ingest, &keys.browser, &keys.read] {
            let secret = key.rsplit_once('_').map_or(&key[8..], |_| &key[8..]).as_bytes();
            assert!(!bytes.windows(secret.len()).any(|window| window == secret));
        }
    }
    assert!(!format!("{keys:?}").contains(&keys.read));
}

#[tokio::test]
async fn a_rotated_key_ends_when_said() {
    let dir = tempfile::tempdir().unwrap();
    let (sites, clock) = open(dir.path()).await;
    let demo = site("demo");
    let old = sites.add(&demo, of(&[])).await.unwrap();
    let new = sites.rotate(&demo, Kind::Server, clock.now().plus_seconds(60)).await.unwrap();
    assert!(sites.authenticate_ingest(&old.ingest).is_some() && sites.authenticate_ingest(&new).is_some());
    clock.set(clock.now().plus_seconds(60));
    assert!(sites.authenticate_ingest(&old.ingest).is_none() && sites.authenticate_ingest(&new).is_some());
    assert!(sites.authenticate_ingest(&old.browser).is_some(), "other kinds stay");
    assert!(matches!(sites.rotate(&site("none"), Kind::Read, clock.now()).await, Err(Error::Unknown(_))));
}

#[tokio::test]
async fn object_tokens_open_one_object_until_their_end() {
    let dir = tempfile::tempdir().unwrap();
    let (sites, clock) = open(dir.path()).await;
    let demo = site("demo");
    sites.add(&demo, of(&[])).await.unwrap();
    sites.add(&site("other"), of(&[])).await.unwrap();
    let until = clock.now().plus_seconds(3600);
    let token = sites.object_token(&demo, "product.sku-1", until).unwrap();
    assert_eq!(sites.open_object_token(&token), Some(ObjectGrant { site: demo, object: "product.sku-1".into(), until }));
    assert!(sites.open_object_token(&token.replace("ct_demo_", "ct_other_")).is_none(), "signed for its site");
    for at in 8..token.len() {
        let mut forged = token.clone().into_bytes();
        forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
        assert!(sites.open_object_token(std::str::from_utf8(&forged).unwrap()).is_none(), "byte {at}");
    }
    clock.set(until);
    assert!(sites.open_object_token(&token).is_none());
    assert!(sites.open_object_token("ct_demo_").is_none() && sites.open_object_token("").is_none());
}

#[tokio::test]
async fn the_first_start_makes_demo_and_later_ones_keep_it() {
    let dir = tempfile::tempdir().unwrap();
    let made = open(dir.path()).await.0.bootstrap(&Bootstrap::default()).await.unwrap().unwrap();
    let (sites, _) = open(dir.path()).await;
    assert_eq!(sites.bootstrap(&Bootstrap::default()).await.unwrap(), None);
    let given = Bootstrap { ingest_key: Some("ingest-key".into()), read_token: Some("read-token".into()) };
    assert_eq!(sites.bootstrap(&given).await.unwrap(), None);
    for key in [&made.ingest, "ingest-key"] {
        assert_eq!(sites.authenticate_ingest(key).unwrap().site.id, site("demo"));
    }
    assert!(sites.authenticate_read("read-token").is_some());
    let weak = Bootstrap { ingest_key: Some("short".into()), read_token: None };
    assert!(matches!(sites.bootstrap(&weak).await, Err(Error::Weak)));
}

#[tokio::test]
async fn origins_are_kept_as_browsers_send_them() {
    let dir = tempfile::tempdir().unwrap();
    let (sites, _) = open(dir.path()).await;
    for (name, given, kept) in [
        ("slash", "https://shop.example/", "https://shop.example"),
        ("case", "HTTPS://Shop.Example", "https://shop.example"),
        ("port", "https://shop.example:443", "https://shop.example"),
        ("other-port", "http://localhost:3000", "http://localhost:3000"),
        ("international", "https://b\u{fc}cher.example", "https://xn--bcher-kva.example"),
        ("every", "*", "*"),
    ] {
        sites.add(&site(name), of(&[given])).await.unwrap();
        assert_eq!(sites.list().iter().find(|s| s.id == site(name)).unwrap().origins, [kept], "{given}");
    }
    for given in [
        "",
        "null",
        "shop.example",
        "shop.example/x",
        "shop.example:443",
        "https://",
        "https://shop.example/x",
        "https://shop.example//",
        "https://shop.example/?q",
        "https://shop.example#x",
        "https://me@shop.example",
        "https://*.shop.example",
        "ftp://shop.example",
    ] {
        let refused = sites.add(&site("never"), of(&[given])).await;
        assert!(matches!(&refused, Err(Error::Origin(origin)) if origin == given), "{given}: {refused:?}");
    }
}

#[tokio::test]
async fn a_change_replaces_what_it_names_and_keeps_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let (sites, _) = open(dir.path()).await;
    let keys = sites.add(&site("demo"), of(&["https://shop.example"])).await.unwrap();
    let hash_key = sites.rules_of()(&site("demo")).hash_key;
    let berlin = Change { time_zone: Some("Europe/Berlin".into()), ..Change::default() };
    let set = sites.set(&site("demo"), berlin).await.unwrap();
    assert_eq!((set.origins[0].as_str(), set.rules.time_zone.as_str()), ("https://shop.example", "Europe/Berlin"));
    assert!(sites.set(&site("demo"), Change { origins: Some(vec!["x".into()]), time_zone: Some("UTC".into()), ..Change::default() }).await.is_err());
    sites.set(&site("demo"), Change { origins: Some(vec![]), ..Change::default() }).await.unwrap();
    for sites in [&sites, &open(dir.path()).await.0] {
        assert!(!sites.any_allows_origin("https://shop.example"));
        assert_eq!(sites.rules_of()(&site("demo")).time_zone, "Europe/Berlin");
        assert_eq!(sites.rules_of()(&site("demo")).hash_key, hash_key);
        assert!(sites.authenticate_ingest(&keys.ingest).is_some());
    }
    assert!(matches!(sites.set(&site("none"), Change::default()).await, Err(Error::Unknown(_))));
}

/// `sites.db` in a directory of its own; its nodes are of one process.
struct File(tempfile::TempDir, tokio::sync::OnceCell<Arc<dyn Store>>);

impl Bench for File {
    async fn node(&self) -> Arc<dyn Store> {
        Arc::clone(self.1.get_or_init(|| file(self.0.path())).await)
    }

    async fn reopened(&self) -> Arc<dyn Store> {
        file(self.0.path()).await
    }
}

#[tokio::test]
async fn the_file_keeps_the_stores_promises() {
    contract::suite(|| File(tempfile::tempdir().unwrap(), tokio::sync::OnceCell::const_new())).await;
}

/// A store that fails when told to.
#[derive(Debug)]
struct Scripted {
    inner: Arc<dyn Store>,
    silent: AtomicBool,
    /// The next change is made, and said not to be.
    denies: AtomicBool,
}

impl Scripted {
    async fn over(dir: &Path) -> Arc<Self> {
        Arc::new(Self { inner: file(dir).await, silent: AtomicBool::default(), denies: AtomicBool::default() })
    }

    fn answers(&self) -> Result<(), Error> {
        if self.silent.load(Ordering::SeqCst) { Err(Error::Unavailable("told to".into())) } else { Ok(()) }
    }
}

#[async_trait]
impl Store for Scripted {
    async fn load(&self) -> Result<State, Error> {
        self.answers()?;
        self.inner.load().await
    }

    async fn load_latest(&self) -> Result<State, Error> {
        self.load().await
    }

    async fn version(&self) -> Result<Version, Error> {
        self.answers()?;
        self.inner.version().await
    }

    async fn commit(&self, from: Version, change: &Rows) -> Result<Option<Version>, Error> {
        self.answers()?;
        let made = self.inner.commit(from, change).await;
        if self.denies.swap(false, Ordering::SeqCst) { made.map(|_| None) } else { made }
    }
}

#[tokio::test]
async fn a_change_on_one_node_is_in_force_on_the_other_once_it_looks() {
    let dir = tempfile::tempdir().unwrap();
    let store = file(dir.path()).await;
    let (one, other) = (node(&store).await, node(&store).await);
    let keys = one.add(&site("demo"), of(&[])).await.unwrap();
    assert!(other.authenticate_ingest(&keys.ingest).is_none());
    other.look().await.unwrap();
    assert!(other.authenticate_ingest(&keys.ingest).is_some());
    let new = other.rotate(&site("demo"), Kind::Server, other.clock.now()).await.unwrap();
    assert!(one.authenticate_ingest(&keys.ingest).is_some());
    one.look().await.unwrap();
    assert!(one.authenticate_ingest(&keys.ingest).is_none() && one.authenticate_ingest(&new).is_some());
    // One that has not looked changes over what there is, not over what it knows.
    one.set(&site("demo"), Change { time_zone: Some("Europe/Berlin".into()), ..Change::default() }).await.unwrap();
    let set = other.set(&site("demo"), Change { origins: Some(vec!["*".into()]), ..Change::default() }).await.unwrap();
    assert_eq!(set.rules.time_zone, "Europe/Berlin");
}

#[tokio::test]
async fn changes_at_once_all_come_through_and_first_starts_make_one_demo() {
    let dir = tempfile::tempdir().unwrap();
    let store = file(dir.path()).await;
    let nodes = futures::future::join_all((0..8).map(|_| node(&store))).await;
    let given = Bootstrap { ingest_key: Some("ingest-key".into()), read_token: Some("read-token".into()) };
    let made = futures::future::join_all(nodes.iter().map(|node| node.bootstrap(&given))).await;
    assert_eq!(made.iter().filter(|made| made.as_ref().unwrap().is_some()).count(), 1);
    let adding = nodes.iter().enumerate().map(|(n, node)| async move { node.add(&site(&format!("site-{n}")), of(&[])).await });
    let keys = futures::future::join_all(adding).await;
    let last = node(&store).await;
    assert_eq!(last.list().len(), 1 + nodes.len());
    for key in keys {
        assert!(last.authenticate_ingest(&key.unwrap().ingest).is_some());
    }
    assert_eq!(last.list().iter().filter(|known| known.id == site("demo")).count(), 1);
    assert!(last.authenticate_ingest("ingest-key").is_some() && last.authenticate_read("read-token").is_some());
}

#[tokio::test]
async fn a_change_that_was_made_and_is_made_again_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = Scripted::over(dir.path()).await;
    let sites = node(&(Arc::clone(&store) as Arc<dyn Store>)).await;
    let denied = || store.denies.store(true, Ordering::SeqCst);
    denied();
    let made = sites.bootstrap(&Bootstrap::default()).await.unwrap().expect("it did make the site");
    assert!(sites.authenticate_ingest(&made.ingest).is_some());
    denied();
    let keys = sites.add(&site("shop"), of(&[])).await.unwrap();
    denied();
    let new = sites.rotate(&site("shop"), Kind::Server, sites.clock.now()).await.unwrap();
    assert!(sites.authenticate_ingest(&keys.ingest).is_none() && sites.authenticate_ingest(&new).is_some());
    denied();
    sites.set(&site("shop"), Change { time_zone: Some("UTC".into()), ..Change::default() }).await.unwrap();
    assert!(matches!(sites.add(&site("shop"), of(&[])).await, Err(Error::Exists(_))), "but another's site is another's");
}

#[tokio::test]
async fn without_its_store_a_node_goes_on_with_what_it_knows_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = Scripted::over(dir.path()).await;
    let sites = node(&(Arc::clone(&store) as Arc<dyn Store>)).await;
    let keys = sites.add(&site("demo"), of(&[])).await.unwrap();
    sites.note(sites.look().await);
    assert_eq!(sites.unanswered_for(), None);
    store.silent.store(true, Ordering::SeqCst);
    sites.note(sites.look().await);
    assert!(sites.unanswered_for().is_some());
    assert!(sites.authenticate_ingest(&keys.ingest).is_some(), "no key is forgotten");
    assert!(matches!(sites.rotate(&site("demo"), Kind::Server, sites.clock.now()).await, Err(Error::Unavailable(_))));
    assert!(sites.authenticate_ingest(&keys.ingest).is_some(), "what is not durable is not in force");
    store.silent.store(false, Ordering::SeqCst);
    sites.note(sites.look().await);
    assert_eq!(sites.unanswered_for(), None);
}

#[tokio::test]
async fn a_start_that_has_nothing_to_change_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Scripted::over(dir.path()).await;
    let given = Bootstrap { ingest_key: Some("ingest-key".into()), read_token: Some("read-token".into()) };
    node(&(Arc::clone(&store) as Arc<dyn Store>)).await.bootstrap(&given).await.unwrap();
    let again = node(&(Arc::clone(&store) as Arc<dyn Store>)).await;
    // It can be read, and not changed: a datacenter is away.
    store.silent.store(true, Ordering::SeqCst);
    assert_eq!(again.bootstrap(&given).await.unwrap(), None);
    let other = Bootstrap { ingest_key: Some("other-key".into()), ..given };
    assert!(matches!(again.bootstrap(&other).await, Err(Error::Unavailable(_))));
}

#[tokio::test]
async fn a_given_key_that_was_rotated_away_stays_so() {
    let dir = tempfile::tempdir().unwrap();
    let (sites, clock) = open(dir.path()).await;
    let given = Bootstrap { ingest_key: Some("ingest-key".into()), read_token: Some("read-token".into()) };
    sites.bootstrap(&given).await.unwrap();
    sites.rotate(&site("demo"), Kind::Server, clock.now()).await.unwrap();
    let (sites, _) = open(dir.path()).await;
    assert_eq!(sites.bootstrap(&given).await.unwrap(), None);
    assert!(sites.authenticate_ingest("ingest-key").is_none(), "a start with the old settings gives no key back");
    assert!(sites.authenticate_read("read-token").is_some());
}

#[tokio::test]
async fn a_pinned_site_is_elsewhere_everywhere_but_in_its_region() {
    let dir = tempfile::tempdir().unwrap();
    let store = file(dir.path()).await;
    let in_region = async |own: &str| {
        let regions = Regions::new(own, &["us=https://us.example".into()]).unwrap();
        Arc::new(Sites::new(Arc::clone(&store), regions, Clock::system()).await.unwrap())
    };
    let eu = in_region("eu").await;
    let pinned = NewSite { region: Some(Region::parse("eu").unwrap()), ..NewSite::default() };
    eu.add(&site("shop"), pinned.clone()).await.unwrap();
    eu.add(&site("open"), of(&[])).await.unwrap();
    assert!(matches!(eu.add(&site("far"), NewSite { region: Some(Region::parse("asia").unwrap()), ..pinned }).await, Err(Error::RegionUnknown(_))));
    let (us, none) = (in_region("us").await, node(&store).await);
    assert_eq!(eu.elsewhere_of(&site("shop")), None);
    assert_eq!(us.elsewhere_of(&site("shop")).unwrap().region.as_str(), "eu");
    assert!(none.elsewhere_of(&site("shop")).is_some());
    assert!([&eu, &us, &none].iter().all(|node| node.elsewhere_of(&site("open")).is_none()));
    // Its data does not go with it: that must be meant.
    let to_us = Change { region: Some(Some(Region::parse("us").unwrap())), ..Change::default() };
    assert!(matches!(eu.set(&site("shop"), to_us.clone()).await, Err(Error::LeavesData(_))));
    eu.set(&site("shop"), Change { region: Some(Some(Region::parse("eu").unwrap())), ..Change::default() }).await.unwrap();
    eu.set(&site("shop"), Change { leave_data: true, ..to_us }).await.unwrap();
    assert_eq!(eu.elsewhere_of(&site("shop")).unwrap().url.as_deref(), Some("https://us.example"));
    us.look().await.unwrap();
    assert_eq!(us.elsewhere_of(&site("shop")), None);
    // The pin is in the file.
    assert_eq!(open(dir.path()).await.0.elsewhere_of(&site("shop")).unwrap().region.as_str(), "us");
}
