//! The archive over encrypted connections and with a login, on a real Cassandra of its own, and what is told where the node refuses either.

use std::time::{Duration, Instant};

use super::*;
use crate::cql::testing::Servers;
use crate::cql::{Address, Settings, migrate};

/// A node that takes encrypted connections of those who name themselves, and no others.
struct Guarded(Servers);

impl Guarded {
    fn up() -> Self {
        Self(Servers::up(&["cassandra", "--unkilled", "--tls", "--password", "--own"]))
    }

    fn told(&self, name: &str) -> &str {
        self.0.told(name)
    }

    fn settings(&self) -> Settings {
        let (username, password) = self.told("CASSANDRA_LOGIN").split_once(':').unwrap();
        Settings { tls: true, ca_file: self.told("TLS_CA").into(), username: username.into(), password: password.into(), ..settings() }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_archive_works_encrypted_and_with_a_login_and_says_which_setting_is_refused() {
    let node = Guarded::up();
    let (url, good) = (format!("scylla://{}/guarded", node.told("CASSANDRA")), node.settings());
    migrate(&Address::parse(&url).unwrap(), &good).await.unwrap();
    let archive = Scylla::open(&url, &good, Clock::system()).await.unwrap();
    archive.write(counted(5, 5)).await.unwrap();
    assert_eq!(counts(&archive).await, 5);
    drop(archive);

    let dir = tempfile::tempdir().unwrap();
    let stranger = {
        let key = openssl::pkey::PKey::from_rsa(openssl::rsa::Rsa::generate(2_048).unwrap()).unwrap();
        let mut made = openssl::x509::X509::builder().unwrap();
        made.set_pubkey(&key).unwrap();
        made.set_not_before(&openssl::asn1::Asn1Time::days_from_now(0).unwrap()).unwrap();
        made.set_not_after(&openssl::asn1::Asn1Time::days_from_now(1).unwrap()).unwrap();
        made.sign(&key, openssl::hash::MessageDigest::sha256()).unwrap();
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, made.build().to_pem().unwrap()).unwrap();
        path.to_string_lossy().into_owned()
    };
    let login = "scylla.username, CONTRAIL_SCYLLA_PASSWORD";
    for (settings, told) in [
        (Settings { password: "wrong-secret".into(), ..good.clone() }, login),
        (Settings { username: "somebody".into(), ..good.clone() }, login),
        (Settings { username: String::new(), ..good.clone() }, login),
        (Settings { ca_file: String::new(), ..good.clone() }, "scylla.tls needs scylla.ca_file"),
        // An authority that has not signed this node's certificate.
        (Settings { ca_file: stranger.clone(), ..good.clone() }, "scylla.tls, scylla.ca_file"),
        (Settings { ca_file: "/nowhere/ca.pem".into(), ..good.clone() }, "scylla.ca_file `/nowhere/ca.pem`"),
        (Settings { tls: false, ..good.clone() }, "scylla.tls"),
    ] {
        let started = Instant::now();
        let refused = Scylla::open(&url, &settings, Clock::system()).await.err().expect(told).to_string();
        assert!(started.elapsed() < Duration::from_secs(30), "{told}: {:?}", started.elapsed());
        assert!(refused.contains(told), "{told}: {refused}");
        // The user is called the same as its password is here.
        assert!(settings.password == "cassandra" || !refused.contains(&settings.password), "{refused}");
    }
}
