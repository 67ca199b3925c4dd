//! One real Kafka for all tests that need it, started by `tests/servers/run` when first asked for; it ends with this process. `CONTRAIL_TEST_KAFKA` names
//! another one.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;

use super::{Settings, topics};
pub(super) use crate::testing::Servers;

/// The address of a running broker.
pub(crate) fn broker() -> &'static str {
    static BROKER: OnceLock<Servers> = OnceLock::new();
    BROKER.get_or_init(|| Servers::up(&["kafka", "--passing"])).told("KAFKA")
}

/// The URL of the broker.
pub(crate) fn url() -> String {
    format!("kafka://{}", broker())
}

/// Settings for topics that nobody else uses.
pub(crate) fn fresh() -> Settings {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let prefix = format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    Settings { prefix, replication: 1, allow_single_replica: true, session_timeout: Duration::from_secs(20), ..Settings::default() }
}

pub(crate) fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", broker()).create().unwrap()
}

/// Makes a topic as an administrator might.
pub(crate) async fn make_topic(name: &str, partitions: i32, settings: &[(&str, &str)]) {
    let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    for (key, value) in settings {
        topic = topic.set(key, value);
    }
    admin().create_topics([&topic], &topics::options()).await.unwrap().remove(0).unwrap();
}

/// Deletes a topic; the broker does so a moment later.
pub(crate) async fn delete_topic(name: &str) {
    admin().delete_topics(&[name], &topics::options()).await.unwrap().remove(0).unwrap();
}
