//! The log on a real Kafka against the suite, and what is its own. The broker is started once for all tests, by `tests/servers/run`, and ends with this
//! process; `CONTRAIL_TEST_KAFKA` names another one.

use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::eventlog::contract::{Subject, contract_tests};

/// The address of a running broker.
fn broker() -> &'static str {
    static BROKER: OnceLock<(String, tempfile::TempDir)> = OnceLock::new();
    let (address, _dir) = BROKER.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/run");
        let up = Command::new(script).args(["up", "kafka", "--dir"]).arg(dir.path()).output().unwrap();
        assert!(up.status.success(), "no Kafka to test with: {}", String::from_utf8_lossy(&up.stderr));
        let told = String::from_utf8(up.stdout).unwrap();
        let address = told.lines().find_map(|line| line.strip_prefix("KAFKA=")).expect("its address").to_owned();
        (address, dir)
    });
    address
}

/// Topics of its own on the one broker.
struct Fresh(Settings);

impl Fresh {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("test-{}-{number}", std::process::id());
        let session_timeout = Duration::from_secs(6);
        Self(Settings { prefix, replication: 1, allow_single_replica: true, session_timeout, ..Settings::default() })
    }

    async fn log(&self) -> Result<KafkaLog, Error> {
        KafkaLog::open(&format!("kafka://{}", broker()), self.0.clone()).await
    }
}

#[async_trait]
impl Subject for Fresh {
    async fn open(&self) -> Arc<dyn EventLog> {
        Arc::new(self.log().await.unwrap())
    }
}

contract_tests!(Fresh::new());
