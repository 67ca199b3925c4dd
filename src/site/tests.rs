//! Tests of the sites: keys, rotation, tokens, and that all of it survives reopening.

use super::*;

fn site(name: &str) -> SiteId {
    SiteId::parse(name).unwrap()
}

fn open(dir: &Path) -> (Arc<Sites>, Clock) {
    let clock = Clock::fixed(Timestamp::parse("2026-11-20T10:00:00Z").unwrap());
    (Arc::new(Sites::open(dir, clock.clone()).unwrap()), clock)
}

#[test]
fn keys_open_what_they_are_for_and_survive_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let keys = open(dir.path()).0.add(&site("my-shop"), vec!["https://shop.example".into()], SiteRules::default()).unwrap();
    let (sites, _) = open(dir.path());
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
    assert!(matches!(sites.add(&site("my-shop"), vec![], SiteRules::default()), Err(Error::Exists(_))));
}

#[test]
fn nothing_in_the_file_is_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let (sites, _) = open(dir.path());
    let keys = sites.add(&site("demo"), vec![], SiteRules::default()).unwrap();
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

#[test]
fn a_rotated_key_ends_when_said() {
    let dir = tempfile::tempdir().unwrap();
    let (sites, clock) = open(dir.path());
    let demo = site("demo");
    let old = sites.add(&demo, vec![], SiteRules::default()).unwrap();
    let new = sites.rotate(&demo, Kind::Server, clock.now().plus_seconds(60)).unwrap();
    assert!(sites.authenticate_ingest(&old.ingest).is_some() && sites.authenticate_ingest(&new).is_some());
    clock.set(clock.now().plus_seconds(60));
    assert!(sites.authenticate_ingest(&old.ingest).is_none() && sites.authenticate_ingest(&new).is_some());
    assert!(sites.authenticate_ingest(&old.browser).is_some(), "other kinds stay");
    assert!(matches!(sites.rotate(&site("none"), Kind::Read, clock.now()), Err(Error::Unknown(_))));
}

#[test]
fn object_tokens_open_one_object_until_their_end() {
    let dir = tempfile::tempdir().unwrap();
    let (sites, clock) = open(dir.path());
    let demo = site("demo");
    sites.add(&demo, vec![], SiteRules::default()).unwrap();
    sites.add(&site("other"), vec![], SiteRules::default()).unwrap();
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

#[test]
fn the_first_start_makes_demo_and_later_ones_keep_it() {
    let dir = tempfile::tempdir().unwrap();
    let made = open(dir.path()).0.bootstrap(&Bootstrap::default()).unwrap().unwrap();
    let (sites, _) = open(dir.path());
    assert_eq!(sites.bootstrap(&Bootstrap::default()).unwrap(), None);
    let given = Bootstrap { ingest_key: Some("ingest-key".into()), read_token: Some("read-token".into()) };
    assert_eq!(sites.bootstrap(&given).unwrap(), None);
    for key in [&made.ingest, "ingest-key"] {
        assert_eq!(sites.authenticate_ingest(key).unwrap().site.id, site("demo"));
    }
    assert!(sites.authenticate_read("read-token").is_some());
    let weak = Bootstrap { ingest_key: Some("short".into()), read_token: None };
    assert!(matches!(sites.bootstrap(&weak), Err(Error::Weak)));
}

#[test]
fn origins_are_kept_as_browsers_send_them() {
    let dir = tempfile::tempdir().unwrap();
    let (sites, _) = open(dir.path());
    for (name, given, kept) in [
        ("slash", "https://shop.example/", "https://shop.example"),
        ("case", "HTTPS://Shop.Example", "https://shop.example"),
        ("port", "https://shop.example:443", "https://shop.example"),
        ("other-port", "http://localhost:3000", "http://localhost:3000"),
        ("international", "https://b\u{fc}cher.example", "https://xn--bcher-kva.example"),
        ("every", "*", "*"),
    ] {
        sites.add(&site(name), vec![given.into()], SiteRules::default()).unwrap();
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
        let refused = sites.add(&site("never"), vec![given.into()], SiteRules::default());
        assert!(matches!(&refused, Err(Error::Origin(origin)) if origin == given), "{given}: {refused:?}");
    }
}

#[test]
fn a_change_replaces_what_it_names_and_keeps_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let (sites, _) = open(dir.path());
    let keys = sites.add(&site("demo"), vec!["https://shop.example".into()], SiteRules::default()).unwrap();
    let hash_key = sites.rules_of()(&site("demo")).hash_key;
    let berlin = Change { time_zone: Some("Europe/Berlin".into()), ..Change::default() };
    let set = sites.set(&site("demo"), berlin).unwrap();
    assert_eq!((set.origins[0].as_str(), set.rules.time_zone.as_str()), ("https://shop.example", "Europe/Berlin"));
    assert!(sites.set(&site("demo"), Change { origins: Some(vec!["x".into()]), time_zone: Some("UTC".into()) }).is_err());
    sites.set(&site("demo"), Change { origins: Some(vec![]), ..Change::default() }).unwrap();
    for sites in [&sites, &open(dir.path()).0] {
        assert!(!sites.any_allows_origin("https://shop.example"));
        assert_eq!(sites.rules_of()(&site("demo")).time_zone, "Europe/Berlin");
        assert_eq!(sites.rules_of()(&site("demo")).hash_key, hash_key);
        assert!(sites.authenticate_ingest(&keys.ingest).is_some());
    }
    assert!(matches!(sites.set(&site("none"), Change::default()), Err(Error::Unknown(_))));
}
