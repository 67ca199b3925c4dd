//! How to reach Kafka and what its topics must be. Read by the rest of this folder; knows nothing of records.

use std::time::Duration;

use rdkafka::ClientConfig;

use crate::eventlog::{Error, Topic};

/// Settings of the log on Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Topics are `<prefix>.events` and `<prefix>.changes`, groups `<prefix>.<topic>.<group>`.
    pub prefix: String,
    /// Replicas of topics that Contrail creates.
    pub replication: u16,
    /// Whether topics of fewer than three replicas, or acknowledged by fewer than two, are taken.
    pub allow_single_replica: bool,
    /// How the connection is protected.
    pub security: Security,
    /// How long a group waits for a member that is not heard of.
    pub session_timeout: Duration,
    /// This process's name in its groups (`group.instance.id`), so that a restart within the session timeout moves no partition; empty = none.
    pub instance: String,
    /// How long records stay that every group has passed.
    pub retention: Duration,
    /// The readers that the product has.
    pub groups: &'static [KnownGroup],
}

/// A reader that the product has: once it has subscribed, what it has not passed stays, though brokers may leave its group out of their list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownGroup {
    /// What it reads.
    pub topic: Topic,
    /// Its name, without prefix and topic.
    pub name: &'static str,
    /// Whether no installation does without it. While brokers know no place of it (it is still to come, or they forgot it), nothing of its topic is deleted.
    pub needed: bool,
}

/// How a connection to a broker is protected.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Security {
    /// Whether connections are encrypted.
    pub tls: bool,
    /// The authority's certificate, a PEM file; empty = the system's.
    pub ca_file: String,
    /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`; empty = no login.
    pub mechanism: String,
    /// The user.
    pub username: String,
    /// Its password.
    pub password: String,
}

impl std::fmt::Debug for Security {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Security").field("tls", &self.tls).field("mechanism", &self.mechanism).finish_non_exhaustive()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            prefix: "contrail".into(),
            replication: 3,
            allow_single_replica: false,
            security: Security::default(),
            session_timeout: Duration::from_secs(45),
            instance: String::new(),
            retention: Duration::from_secs(7 * 86_400),
            groups: &[],
        }
    }
}

/// The brokers that a URL `kafka://host:port,host:port` names.
pub(super) fn brokers(url: &str) -> Result<String, Error> {
    let wrong = |what: &str| Error::Format(format!("`log` is to be kafka://host:port,host:port: {what}"));
    let list = url.strip_prefix("kafka://").ok_or_else(|| wrong("it does not begin with kafka://"))?;
    if list.contains(['/', '?', '@']) {
        return Err(wrong("it names brokers only; all else is set under [kafka]"));
    }
    for broker in list.split(',') {
        let port = broker.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none_or(|port| port == 0) {
            return Err(wrong(&format!("`{broker}` is no host:port")));
        }
    }
    Ok(list.to_owned())
}

/// What every client has in common.
pub(super) fn client(brokers: &str, settings: &Settings) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::new();
    let security = &settings.security;
    let protocol = match (security.tls, security.mechanism.is_empty()) {
        (false, true) => "plaintext",
        (true, true) => "ssl",
        (false, false) => "sasl_plaintext",
        (true, false) => "sasl_ssl",
    };
    config.set("bootstrap.servers", brokers).set("client.id", "contrail").set("security.protocol", protocol);
    config.set("socket.keepalive.enable", "true").set("reconnect.backoff.max.ms", "2000");
    // By default a client that once heard of no leader may wait five minutes until it asks again.
    config.set("topic.metadata.refresh.interval.ms", "10000");
    // Topics are made as `topics` has them, not by whoever asks for one.
    config.set("allow.auto.create.topics", "false");
    if security.tls && !security.ca_file.is_empty() {
        std::fs::File::open(&security.ca_file).map_err(|error| Error::Format(format!("kafka.ca_file `{}`: {error}", security.ca_file)))?;
        config.set("ssl.ca.location", &security.ca_file);
    }
    match security.mechanism.as_str() {
        "" => {}
        "PLAIN" | "SCRAM-SHA-256" | "SCRAM-SHA-512" => {
            config.set("sasl.mechanism", &security.mechanism).set("sasl.username", &security.username).set("sasl.password", &security.password);
        }
        other => return Err(Error::Format(format!("kafka.mechanism `{other}` is none of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512"))),
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_brokers_and_nothing_else() {
        assert_eq!(brokers("kafka://a:9092,b:9093").unwrap(), "a:9092,b:9093");
        assert_eq!(brokers("kafka://[::1]:9092").unwrap(), "[::1]:9092");
        for (url, told) in [
            ("kafka://", "`` is no host:port"),
            ("kafka://a", "`a` is no host:port"),
            ("kafka://a:0", "`a:0` is no host:port"),
            ("kafka://a:9092,", "`` is no host:port"),
            ("kafka://u:p@a:9092", "set under [kafka]"),
            ("kafka://a:9092/topic", "set under [kafka]"),
            ("redpanda://a:1", "does not begin"),
        ] {
            let error = brokers(url).unwrap_err().to_string();
            assert!(error.contains(told), "{url}: {error}");
        }
    }

    #[test]
    fn an_unknown_mechanism_is_refused_and_no_password_shown() {
        let security = Security { mechanism: "GSSAPI".into(), password: "hidden".into(), ..Security::default() };
        let settings = Settings { security, ..Settings::default() };
        assert!(client("a:1", &settings).unwrap_err().to_string().contains("GSSAPI"));
        assert!(!format!("{settings:?}").contains("hidden"));
    }
}
