//! Tests of the accounts: what opens them, their services and access tokens, and that every node and every restart knows the same.

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn named(name: &str) -> ServiceChange {
    ServiceChange { friendly_name: Some(name.to_owned()), ..ServiceChange::default() }
}

/// Sites `demo` and `other`.
async fn two(dir: &Path) -> (Arc<Sites>, Clock) {
    let (sites, clock) = open(dir).await;
    for name in ["demo", "other"] {
        sites.add(&site(name), of(&["https://shop.example"])).await.unwrap();
    }
    (sites, clock)
}

fn account(sites: &Sites, name: &str) -> Account {
    sites.account_of(&site(name)).unwrap()
}

fn credentials(sites: &Sites) -> SyncCredentials {
    sites.sync_credentials(&site("demo")).unwrap()
}

#[tokio::test]
async fn an_account_opens_by_its_token_and_its_keys_alone() {
    let dir = tempfile::tempdir().unwrap();
    let key = two(dir.path()).await.0.add_sync_key(&site("demo")).await.unwrap();
    let (sites, _) = open(dir.path()).await;
    let (mine, others) = (credentials(&sites), sites.sync_credentials(&site("other")).unwrap());
    let is_sid = |sid: &str, prefix: &str| sid.len() == 34 && sid.starts_with(prefix) && sid[2..].bytes().all(|b| b"0123456789abcdef".contains(&b));
    assert!(is_sid(&mine.account_sid, "AC") && is_sid(&mine.service_sid, "IS") && is_sid(&key.sid, "SK"));
    assert!(mine.auth_token.len() == 32 && key.secret.len() == 64 && mine.keys == [key.sid.clone()]);
    let opens = |user: &str, password: &str| sites.authenticate_account(user, password);
    let (by_token, by_key) = (opens(&mine.account_sid, &mine.auth_token).unwrap(), opens(&key.sid, &key.secret).unwrap());
    assert!(by_token.site.id == site("demo") && by_key.site.id == site("demo") && by_token.key != by_key.key);
    assert_eq!(account(&sites, "demo").key, by_token.key);
    let nobody = "0".repeat(64);
    for (user, password) in [
        (&*mine.account_sid, &*others.auth_token),
        (&others.account_sid, &mine.auth_token),
        (&mine.account_sid, &key.secret),
        (&key.sid, &mine.auth_token),
        (&key.sid, &key.secret[..63]),
        (&mine.account_sid, ""),
        ("", ""),
        ("AC", &nobody[..32]),
        (&key.sid.replace("SK", "AC"), &nobody[..32]),
        ("SK", &nobody),
        (&mine.service_sid, &mine.auth_token),
    ] {
        assert!(opens(user, password).is_none(), "{user}");
    }
    sites.remove_sync_key(&site("demo"), &key.sid).await.unwrap();
    assert!(opens(&key.sid, &key.secret).is_none() && credentials(&sites).keys.is_empty());
    assert!(matches!(sites.remove_sync_key(&site("demo"), &key.sid).await, Err(Error::KeyUnknown(sid)) if sid == key.sid));
    assert!(matches!(sites.add_sync_key(&site("none")).await, Err(Error::Unknown(_))));
}

#[tokio::test]
async fn a_rotated_auth_token_ends_at_once_and_with_it_what_it_stood_for() {
    let dir = tempfile::tempdir().unwrap();
    let (sites, _) = two(dir.path()).await;
    let demo = site("demo");
    let (key, old) = (sites.add_sync_key(&demo).await.unwrap(), credentials(&sites));
    let minted = |key: Option<&str>| sites.mint_access_token(&demo, "alice", HOUR, key).unwrap();
    let (by_none, by_key) = (minted(None), minted(Some(&key.sid)));
    let new = sites.rotate_auth_token(&demo).await.unwrap();
    assert_ne!(new, old.auth_token);
    let (sites, _) = open(dir.path()).await;
    assert_eq!((sites.webhook_secret(&demo), credentials(&sites).auth_token), (Some(new.clone()), new.clone()));
    assert!(sites.authenticate_account(&old.account_sid, &old.auth_token).is_none());
    assert!(sites.authenticate_account(&old.account_sid, &new).is_some());
    assert_eq!(sites.open_access_token(&by_none).unwrap_err(), TokenError::Invalid);
    assert!(sites.open_access_token(&by_key).is_ok() && sites.authenticate_account(&key.sid, &key.secret).is_some());
}

#[tokio::test]
async fn an_account_has_further_services_without_keys_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let (sites, clock) = two(dir.path()).await;
    let (demo, other) = (account(&sites, "demo"), account(&sites, "other"));
    assert_eq!(sites.service(&demo, "default").unwrap().service.unique_name.as_deref(), Some("default"));
    let mut made = Vec::new();
    for name in ["b", "a"] {
        clock.set(clock.now().plus_seconds(1));
        made.push(sites.add_service(&demo, named(name)).await.unwrap());
    }
    let first = &made[0];
    assert!(first.id.as_str().starts_with("demo-") && first.id.as_str().len() == 13 && first.account == Some(site("demo")));
    assert_eq!((first.service.unique_name.as_deref(), first.service.friendly_name.as_deref()), (None, Some("b")));
    assert_eq!(first.service.account_sid, demo.site.service.account_sid);
    assert_eq!(first.service.created_at, clock.now().plus_seconds(-1));
    let (sites, _) = open(dir.path()).await;
    let names = |account| sites.services(account).iter().map(|service| service.id.clone()).collect::<Vec<_>>();
    assert_eq!(names(&demo), [site("demo"), made[0].id.clone(), made[1].id.clone()], "its own, then as they were made");
    assert_eq!(names(&other), [site("other")]);
    assert_eq!(sites.service(&demo, &first.service.sid).unwrap().id, first.id);
    assert!(sites.service(&other, &first.service.sid).is_none() && sites.service(&demo, &other.site.service.sid).is_none());
    assert_eq!(account(&sites, first.id.as_str()).site.id, site("demo"));
    assert_eq!(sites.webhook_secret(&first.id), sites.webhook_secret(&site("demo")));
    // It is read and served as its account's site is.
    assert!(first.allows_origin("https://shop.example"));
    sites.set(&site("demo"), Change { time_zone: Some("Europe/Berlin".into()), ..Change::default() }).await.unwrap();
    assert_eq!(sites.rules_of()(&first.id).time_zone, "Europe/Berlin");
    assert!(matches!(sites.set(&first.id, Change::default()).await, Err(Error::IsService(_))));
    assert!(matches!(sites.rotate(&first.id, Kind::Read, clock.now()).await, Err(Error::IsService(_))));
    assert!(!sites.list().iter().any(|listed| listed.id == first.id));
    // Keys made for it are its account's.
    let key = sites.add_sync_key(&first.id).await.unwrap();
    assert_eq!(credentials(&sites).keys, [key.sid]);
}

#[tokio::test]
async fn a_service_is_set_and_deleted_and_the_accounts_own_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (sites, clock) = two(dir.path()).await;
    let demo = account(&sites, "demo");
    let further = sites.add_service(&demo, ServiceChange::default()).await.unwrap();
    let was = further.service.clone();
    assert_eq!((was.reachability_debouncing_window, was.acl_enabled, was.limits), (5000, false, Limits::Open));
    clock.set(clock.now().plus_seconds(5));
    let change = ServiceChange { limits: Some(Limits::Twilio), acl_enabled: Some(true), ..named("Shop") };
    let set = sites.set_service(&further.id, change).await.unwrap();
    let expected = Service { limits: Limits::Twilio, acl_enabled: true, friendly_name: Some("Shop".into()), updated_at: clock.now(), ..was };
    assert_eq!(set.service, expected);
    assert_eq!(open(dir.path()).await.0.service(&demo, &expected.sid).unwrap().service, expected);
    for fault in [
        ServiceChange { webhook_url: Some(Some("nowhere".into())), ..ServiceChange::default() },
        ServiceChange { reachability_debouncing_window: Some(0), ..ServiceChange::default() },
        named(""),
    ] {
        assert!(matches!(sites.set_service(&further.id, fault.clone()).await, Err(Error::Service(_))));
        assert!(matches!(sites.add_service(&demo, fault).await, Err(Error::Service(_))));
    }
    assert!(matches!(sites.remove_service(&site("demo")).await, Err(Error::OwnService(_))));
    sites.remove_service(&further.id).await.unwrap();
    assert!(matches!(sites.remove_service(&further.id).await, Err(Error::Unknown(_))));
    assert!(matches!(sites.set_service(&further.id, named("gone")).await, Err(Error::Unknown(_))));
    assert!(sites.service(&demo, &expected.sid).is_none() && sites.sync_credentials(&further.id).is_none());
    assert_eq!(open(dir.path()).await.0.services(&demo).len(), 1);
    let of_nobody = Account { site: further, key: 0 };
    assert!(matches!(sites.add_service(&of_nobody, ServiceChange::default()).await, Err(Error::Unknown(_))));
}

#[tokio::test]
async fn an_account_has_so_many_services_and_keys() {
    let dir = tempfile::tempdir().unwrap();
    let long = site(&"a".repeat(64));
    let (sites, _) = open(dir.path()).await;
    sites.add(&long, of(&[])).await.unwrap();
    let account = sites.account_of(&long).unwrap();
    for _ in 1..crate::site::account::MOST_SERVICES {
        let made = sites.add_service(&account, ServiceChange::default()).await.unwrap();
        assert_eq!(made.id.as_str().len(), 64);
    }
    assert!(matches!(sites.add_service(&account, ServiceChange::default()).await, Err(Error::TooManyServices)));
    for _ in 0..crate::site::account::MOST_KEYS {
        sites.add_sync_key(&long).await.unwrap();
    }
    assert!(matches!(sites.add_sync_key(&long).await, Err(Error::TooManyKeys)));
    // A command on this machine still finds the one site.
    sites.set_admin("admin-token");
    assert_eq!(sites.authenticate_admin("admin-token", None).unwrap().site.id, long);
}

#[tokio::test]
async fn an_access_token_opens_one_service_to_one_identity() {
    let dir = tempfile::tempdir().unwrap();
    let (sites, clock) = two(dir.path()).await;
    let (demo, key) = (account(&sites, "demo"), sites.add_sync_key(&site("demo")).await.unwrap());
    let further = sites.add_service(&demo, ServiceChange::default()).await.unwrap();
    let minted = |of: &SiteId, key: Option<&str>| sites.mint_access_token(of, "alice", HOUR, key);
    for (of, signed_by) in [(site("demo"), None), (site("demo"), Some(&*key.sid)), (further.id.clone(), Some(&*key.sid))] {
        let opened = sites.open_access_token(&minted(&of, signed_by).unwrap()).unwrap();
        assert_eq!((&opened.site.id, &*opened.identity, &opened.account_sid), (&of, "alice", &demo.site.service.account_sid));
        assert_eq!((opened.expires_at, opened.lifetime), (clock.now().plus_seconds(3600), HOUR));
        assert!(signed_by.is_none_or(|sid| sid == opened.key_sid));
    }
    assert!(matches!(minted(&site("none"), None), Err(Error::Unknown(_))));
    assert!(matches!(minted(&site("other"), Some(&key.sid)), Err(Error::KeyUnknown(_))));
    let of = |identity: &str, ttl| sites.mint_access_token(&site("demo"), identity, ttl, None);
    assert!(matches!((of("", HOUR), of(&"a".repeat(257), HOUR)), (Err(Error::Identity), Err(Error::Identity))));
    let day = HOUR * 24;
    assert!(of("alice", day).is_ok() && of("alice", Duration::from_secs(1)).is_ok());
    for wrong in [day + Duration::from_nanos(1), Duration::from_millis(999), Duration::ZERO] {
        assert!(matches!(of("alice", wrong), Err(Error::Lifetime)), "{wrong:?}");
    }

    // Signed with a key of this account for a service of another, and for one that is gone.
    let forged = |service_sid: &str| {
        let (key_sid, account_sid) = (&*key.sid, &*demo.site.service.account_sid);
        let new = access_token::New { key_sid, account_sid, service_sid, identity: "alice", now: clock.now(), seconds: 60 };
        sites.open_access_token(&access_token::mint(&new, &key.secret).unwrap()).map(|opened| opened.site.id.clone())
    };
    assert_eq!(forged("default"), Ok(site("demo")));
    assert_eq!(forged(&account(&sites, "other").site.service.sid), Err(TokenError::NoGrant));
    let token = minted(&further.id, None).unwrap();
    sites.remove_service(&further.id).await.unwrap();
    assert_eq!(sites.open_access_token(&token).unwrap_err(), TokenError::NoGrant);
    // And with what is no API key: the auth token.
    let mine = credentials(&sites);
    let (key_sid, account_sid) = (&*mine.account_sid, &*mine.account_sid);
    let new = access_token::New { key_sid, account_sid, service_sid: "default", identity: "alice", now: clock.now(), seconds: 60 };
    assert_eq!(sites.open_access_token(&access_token::mint(&new, &mine.auth_token).unwrap()).unwrap_err(), TokenError::Invalid);

    let token = minted(&site("demo"), Some(&key.sid)).unwrap();
    assert!(sites.open_access_token(&token).is_ok());
    sites.remove_sync_key(&site("demo"), &key.sid).await.unwrap();
    assert_eq!(sites.open_access_token(&token).unwrap_err(), TokenError::Invalid);
    let token = minted(&site("demo"), None).unwrap();
    clock.set(clock.now().plus_seconds(3600));
    assert_eq!(sites.open_access_token(&token).unwrap_err(), TokenError::Expired);
}

#[tokio::test]
async fn what_is_changed_of_an_account_on_one_node_is_in_force_on_the_other_once_it_looks() {
    let dir = tempfile::tempdir().unwrap();
    let store = file(dir.path()).await;
    let (one, other) = (node(&store).await, node(&store).await);
    one.add(&site("demo"), of(&[])).await.unwrap();
    let further = one.add_service(&account(&one, "demo"), ServiceChange::default()).await.unwrap();
    let key = one.add_sync_key(&site("demo")).await.unwrap();
    let token = one.mint_access_token(&further.id, "alice", HOUR, Some(&key.sid)).unwrap();
    assert!(other.authenticate_account(&key.sid, &key.secret).is_none() && other.open_access_token(&token).is_err());
    other.look().await.unwrap();
    assert!(other.authenticate_account(&key.sid, &key.secret).is_some());
    assert_eq!(other.open_access_token(&token).unwrap().site.id, further.id);
    assert_eq!(credentials(&one), credentials(&other));
    let old = credentials(&one);
    other.rotate_auth_token(&site("demo")).await.unwrap();
    other.remove_service(&further.id).await.unwrap();
    other.remove_sync_key(&site("demo"), &key.sid).await.unwrap();
    one.look().await.unwrap();
    assert!(one.authenticate_account(&old.account_sid, &old.auth_token).is_none() && one.authenticate_account(&key.sid, &key.secret).is_none());
    assert_eq!(one.services(&account(&one, "demo")).len(), 1);
}

#[tokio::test]
async fn a_change_of_an_account_that_was_made_and_is_made_again_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = Scripted::over(dir.path()).await;
    let sites = node(&(Arc::clone(&store) as Arc<dyn Store>)).await;
    let demo = site("demo");
    sites.add(&demo, of(&[])).await.unwrap();
    let denied = || store.denies.store(true, Ordering::SeqCst);
    denied();
    let key = sites.add_sync_key(&demo).await.unwrap();
    assert_eq!(credentials(&sites).keys, std::slice::from_ref(&key.sid));
    denied();
    let further = sites.add_service(&account(&sites, "demo"), ServiceChange::default()).await.unwrap();
    assert_eq!(sites.services(&account(&sites, "demo")).len(), 2);
    denied();
    assert_eq!(sites.set_service(&further.id, named("Shop")).await.unwrap().service.friendly_name.as_deref(), Some("Shop"));
    denied();
    let new = sites.rotate_auth_token(&demo).await.unwrap();
    assert_eq!(credentials(&sites).auth_token, new);
    denied();
    sites.remove_service(&further.id).await.unwrap();
    denied();
    sites.remove_sync_key(&demo, &key.sid).await.unwrap();
    assert!(credentials(&sites).keys.is_empty() && sites.services(&account(&sites, "demo")).len() == 1);
    assert!(!store.denies.load(Ordering::SeqCst), "each was made again");
}

#[tokio::test]
async fn secrets_stay_the_same_for_ever_and_are_shown_by_nothing_but_the_answer() {
    let rules = SiteRules::default();
    let service = ServiceRow { keys: vec!["SK1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b".into()], token_nonce: 7, ..ServiceRow::default() };
    let row = SiteRow { id: site("demo"), origins: Vec::new(), rules, region: None, token_key: [2; 32], service };
    let secrets = crate::site::account::Secrets::of(&row);
    assert_eq!(
        [&*secrets.auth_token, &secrets.keys[0].secret, &secrets.own_key.sid, &secrets.own_key.secret],
        [
            "3a1213b3949f054e49be4ad02119cd31",
            "16b720d442aedbb3d4e0daabb6d695a644b8cdd94068ced4945f6b84e70645f7",
            "SK6c19285f29bc59e571e4c9a6e9677f7f",
            "16407a565d6652dc87671e6c7d4ff399be37c97fd16d365629f827af738c83dd"
        ]
    );
    let dir = tempfile::tempdir().unwrap();
    let (sites, _) = two(dir.path()).await;
    let (key, mine) = (sites.add_sync_key(&site("demo")).await.unwrap(), credentials(&sites));
    let account = sites.authenticate_account(&key.sid, &key.secret).unwrap();
    let shown = format!("{sites:?} {key:?} {mine:?} {account:?} {:?}", sites.store.load().await.unwrap());
    drop(sites);
    for secret in [&key.secret, &mine.auth_token] {
        assert!(!shown.contains(secret));
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
        }
    }
}

#[tokio::test]
async fn a_site_of_an_earlier_build_has_an_account() {
    let dir = tempfile::tempdir().unwrap();
    two(dir.path()).await;
    let conn = rusqlite::Connection::open(dir.path().join("sites.db")).unwrap();
    let stripped = conn.execute("UPDATE site SET rules = json_remove(rules, '$.service')", []).unwrap();
    assert_eq!(stripped, 2);
    drop(conn);
    let (sites, _) = open(dir.path()).await;
    let mine = credentials(&sites);
    let account = sites.authenticate_account(&mine.account_sid, &mine.auth_token).unwrap();
    assert_eq!(account.site.service.created_at, Timestamp::ZERO);
    assert_eq!(account.site.service.reachability_debouncing_window, 5000);
    assert!(sites.open_access_token(&sites.mint_access_token(&site("demo"), "alice", HOUR, None).unwrap()).is_ok());
}

#[tokio::test]
async fn a_further_service_is_of_the_region_of_its_account() {
    let dir = tempfile::tempdir().unwrap();
    let regions = Regions::new("eu", &["us=https://us.example".into()]).unwrap();
    let sites = Sites::new(file(dir.path()).await, regions, Clock::system()).await.unwrap();
    let pinned = NewSite { region: Some(Region::parse("us").unwrap()), ..NewSite::default() };
    sites.add(&site("shop"), pinned).await.unwrap();
    let further = sites.add_service(&account(&sites, "shop"), ServiceChange::default()).await.unwrap();
    assert_eq!(sites.elsewhere(&further).unwrap().region.as_str(), "us");
    assert_eq!(sites.elsewhere_of(&further.id).unwrap().region.as_str(), "us");
}

/// What opens other services stands nowhere as it is; without the key nothing starts, and what was kept before there was one is read on.
#[tokio::test]
async fn secrets_of_other_services_are_sealed_under_the_key_from_outside() {
    let dir = tempfile::tempdir().unwrap();
    let open = async |key: Option<&str>| Sites::sealed(file(dir.path()).await, Regions::default(), Clock::system(), Seal::new(key).unwrap()).await;
    let (key, token, url) = ("a key of some length", "0123456789abcdef0123456789abcdef", "twilio://SK1:hush-hush@/IS2");
    let sites = open(None).await.unwrap();
    sites.add(&site("demo"), NewSite::default()).await.unwrap();
    sites.set_twilio_auth_tokens(&site("demo"), vec![token.into()]).await.unwrap();
    drop(sites);
    let sites = open(Some(key)).await.unwrap();
    assert_eq!(sites.twilio_auth_tokens(&site("demo")), [token], "kept before there was a key");
    sites.set_twilio_auth_tokens(&site("demo"), vec![token.into()]).await.unwrap();
    sites.set_mirror(&site("demo"), Some((url, &["*".into()]))).await.unwrap();
    let id = sites.mirror(&site("demo")).unwrap().id;
    sites.mirror_copied(&site("demo"), id, &[3, 1], true).await.unwrap();
    sites.set_mirror(&site("demo"), Some((url, &["*".into()]))).await.unwrap();
    let mirror = sites.mirror(&site("demo")).unwrap();
    assert_eq!((mirror.id, &mirror.copied[..], &*mirror.target.secret), (id, &[1, 3][..], "hush-hush"), "set again it is the same");
    sites.mirror_copied(&site("demo"), id + 1, &[1], false).await.unwrap();
    sites.mirror_copied(&site("demo"), id, &[3], false).await.unwrap();
    assert_eq!(sites.mirror(&site("demo")).unwrap().copied, [1]);
    drop(sites);
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(9).any(|part| part == b"hush-hush"));
    }
    for wrong in [None, Some("another key of some length")] {
        assert!(matches!(open(wrong).await, Err(Error::Sealed(_))), "{wrong:?}");
    }
    let sites = open(Some(key)).await.unwrap();
    assert_eq!(sites.twilio_auth_tokens(&site("demo")), [token]);
    sites.set_mirror(&site("demo"), Some((url, &["product.*".into()]))).await.unwrap();
    assert_ne!(sites.mirror(&site("demo")).unwrap().id, id, "of other objects it is another one");
}
