//! The log over encrypted connections and with a login, on a real Kafka of its own, and what is told where the brokers refuse either.

use super::testing::Servers;
use super::*;

/// A broker that takes connections in every way, each at an address of its own.
struct Guarded(Servers);

impl Guarded {
    fn up() -> Self {
        Self(Servers::up(&["kafka", "--tls", "--password", "--own"]))
    }

    fn told(&self, name: &str) -> &str {
        self.0.told(name)
    }

    fn security(&self, tls: bool, mechanism: &str) -> Security {
        let (username, password) = self.told("KAFKA_LOGIN").split_once(':').unwrap();
        let ca_file = if tls { self.told("TLS_CA").to_owned() } else { String::new() };
        Security { tls, ca_file, mechanism: mechanism.into(), username: username.into(), password: password.into() }
    }

    async fn log(&self, address: &str, security: Security) -> Result<KafkaLog, Error> {
        KafkaLog::open(&format!("kafka://{}", self.told(address)), Settings { security, ..testing::fresh() }).await
    }
}

/// Whoever this is to be, the log works.
async fn assert_works(log: KafkaLog) {
    log.append(Topic::Events, vec![record(2, "a")]).await.unwrap();
    assert_eq!(log.read(Topic::Events, 2, 0, 99).await.unwrap().len(), 1);
    let mut reader = log.subscribe(Topic::Events, "g").await.unwrap();
    assert!(matches!(reader.next(1).await, Ok(Delivery::Assigned(_))));
    reader.seek(2, 0);
    assert!(matches!(reader.next(1).await, Ok(Delivery::Records { partition: 2, next: 1, .. })));
    log.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_works_encrypted_and_with_a_login_and_says_which_setting_is_refused() {
    let broker = Guarded::up();
    let ways = [("KAFKA_TLS", ""), ("KAFKA_SASL_TLS", "SCRAM-SHA-512"), ("KAFKA_SASL_TLS", "SCRAM-SHA-256"), ("KAFKA_SASL_TLS", "PLAIN")];
    let working = ways.map(|(address, mechanism)| async { assert_works(broker.log(address, broker.security(true, mechanism)).await.unwrap()).await });
    futures::future::join_all(working).await;

    let good = broker.security(true, "SCRAM-SHA-512");
    let login = "kafka.mechanism, kafka.username, CONTRAIL_KAFKA_PASSWORD";
    let mechanisms = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"].map(|mechanism| {
        let security = Security { mechanism: mechanism.into(), password: "wrong-secret".into(), ..good.clone() };
        ("KAFKA_SASL_TLS", security, login)
    });
    let others = [
        ("KAFKA_SASL_TLS", Security { username: "somebody".into(), ..good.clone() }, login),
        // The system's authorities have not signed this broker's certificate.
        ("KAFKA_SASL_TLS", Security { ca_file: String::new(), ..good.clone() }, "kafka.tls, kafka.ca_file"),
        ("KAFKA_SASL_TLS", Security { ca_file: "/nowhere/ca.pem".into(), ..good.clone() }, "kafka.ca_file `/nowhere/ca.pem`"),
        ("KAFKA_SASL", good, "kafka.tls"),
        ("KAFKA_TLS", Security::default(), "kafka.tls"),
    ];
    let asking = mechanisms.into_iter().chain(others).map(|(address, security, told)| {
        let broker = &broker;
        async move {
            let (password, started) = (security.password.clone(), Instant::now());
            let refused = broker.log(address, security).await.err().expect(told).to_string();
            // 15 s; more only where the machine is busy.
            assert!(started.elapsed() < 2 * ASK, "{told}: {:?}", started.elapsed());
            assert!(refused.contains(told), "{told}: {refused}");
            assert!(password.is_empty() || !refused.contains(&password), "{refused}");
        }
    });
    futures::future::join_all(asking).await;
}
