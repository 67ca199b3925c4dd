//! Makes Contrail's topics where they are missing, and refuses ones that could lose or reorder records. Called once for each, when the log or the feed is
//! opened.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::RDKafkaErrorCode;

use super::admin::Client;
use super::producer::MAX_MESSAGE;
use super::settings::Settings;
use crate::event::PARTITIONS;
use crate::eventlog::Error;

/// How long a single question to the brokers may take.
pub(super) const ASK: Duration = Duration::from_secs(15);

/// How long a new topic may take until it is told of, with a leader of every partition and its settings.
pub(super) const SETTLE: Duration = Duration::from_secs(30);

/// How long records of the feed stay: readers are never far behind, and who is reads a snapshot.
const FEED_RETENTION: Duration = Duration::from_secs(3_600);

/// Retentions of the feed that are taken, in milliseconds.
const FEED_RETENTIONS: std::ops::RangeInclusive<i64> = 600_000..=86_400_000;

/// What a topic is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Records that Contrail itself deletes.
    Log,
    /// Records that every process reads as they come, and Kafka deletes.
    Feed,
}

pub(super) fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ASK)).operation_timeout(Some(ASK))
}

pub(super) fn failed(error: impl std::fmt::Display) -> Error {
    Error::Unavailable(format!("kafka: {error}"))
}

/// What the brokers say of a topic.
struct Found {
    partitions: usize,
    replicas: usize,
    led: bool,
}

/// Makes what is missing and checks what is there.
///
/// # Errors
/// [`Error::Format`] for a topic that Contrail must not use, with what to change; [`Error::Unavailable`] where the brokers do not answer.
pub(super) async fn ensure(admin: &Client, name: &str, purpose: Purpose, settings: &Settings) -> Result<(), Error> {
    let asked = Instant::now();
    // From the start each time: one that was just deleted may still be told of at first.
    let (found, settings_of) = loop {
        let why = match find(admin, name).await? {
            None => {
                create(admin, name, purpose, settings).await?;
                "is not told of by the brokers"
            }
            Some(found) if found.led => match describe(admin, name).await? {
                Some(settings_of) => break (found, settings_of),
                None => "has no settings that the brokers tell",
            },
            Some(_) => "has partitions without a leader",
        };
        if asked.elapsed() > SETTLE {
            return Err(failed(format!("topic `{name}` {why}")));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    check_layout(name, &found, settings)?;
    check_settings(name, &settings_of, purpose, settings)
}

async fn create(admin: &Client, name: &str, purpose: Purpose, settings: &Settings) -> Result<(), Error> {
    let (replication, max) = (i32::from(settings.replication), MAX_MESSAGE.to_string());
    let (retention, segment) = match purpose {
        Purpose::Log => (None, None),
        // A segment goes as a whole.
        Purpose::Feed => (Some(FEED_RETENTION), Some(FEED_RETENTION / 6)),
    };
    let retention = retention.map_or_else(|| "-1".to_owned(), |span| span.as_millis().to_string());
    let segment = segment.map(|span| span.as_millis().to_string());
    let mut topic = NewTopic::new(name, i32::from(PARTITIONS), TopicReplication::Fixed(replication))
        .set("cleanup.policy", "delete")
        .set("retention.ms", &retention)
        .set("retention.bytes", "-1")
        .set("max.message.bytes", &max)
        .set("unclean.leader.election.enable", "false")
        .set("min.insync.replicas", if settings.replication >= 3 { "2" } else { "1" });
    if let Some(segment) = &segment {
        topic = topic.set("segment.ms", segment);
    }
    let made = admin.create_topics([&topic], &options()).await.map_err(failed)?;
    match made.into_iter().next() {
        Some(Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
        Some(Err((_, RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed))) => Err(Error::Format(format!(
            "kafka topic `{name}` is missing and this user may not create it; make it with {PARTITIONS} partitions, retention.ms={retention}, retention.bytes=-1, \
             max.message.bytes={max}, unclean.leader.election.enable=false"
        ))),
        Some(Err((_, code))) => Err(Error::Format(format!("kafka topic `{name}` cannot be created with {replication} replicas: {code}"))),
        None => Err(failed("no answer to creating a topic")),
    }
}

/// None where there is no such topic.
async fn find(admin: &Client, name: &str) -> Result<Option<Found>, Error> {
    // Metadata of all topics: asked for one by its name, a broker may create it.
    let client = Arc::clone(admin);
    let metadata = super::blocking(move || client.inner().fetch_metadata(None, ASK).map_err(failed)).await?;
    Ok(metadata.topics().iter().find(|topic| topic.name() == name).map(|topic| Found {
        partitions: topic.partitions().len(),
        replicas: topic.partitions().iter().map(|partition| partition.replicas().len()).min().unwrap_or(0),
        led: topic.error().is_none() && topic.partitions().iter().all(|partition| partition.leader() >= 0),
    }))
}

/// The settings of a topic, by name; None from a broker that has yet to hear of a new one.
async fn describe(admin: &Client, name: &str) -> Result<Option<Vec<(String, String)>>, Error> {
    let answers = admin.describe_configs([&ResourceSpecifier::Topic(name)], &options()).await.map_err(failed)?;
    let told: Vec<(String, String)> = match answers.into_iter().next() {
        Some(Ok(resource)) => resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect(),
        Some(Err(RDKafkaErrorCode::UnknownTopicOrPartition)) => return Ok(None),
        Some(Err(code)) => return Err(failed(code)),
        None => return Err(failed("no answer to describing a topic")),
    };
    Ok(told.iter().any(|(key, _)| key == "cleanup.policy").then_some(told))
}

fn check_layout(name: &str, found: &Found, settings: &Settings) -> Result<(), Error> {
    if found.partitions != usize::from(PARTITIONS) {
        return Err(Error::Format(format!(
            "kafka topic `{name}` has {} partitions; Contrail needs {PARTITIONS}, for good: events are found by their partition",
            found.partitions
        )));
    }
    if found.replicas < 3 && !settings.allow_single_replica {
        return Err(Error::Format(format!(
            "kafka topic `{name}` has {} replicas: fewer than 3 can lose what was acknowledged; raise it, or set kafka.allow_single_replica",
            found.replicas
        )));
    }
    Ok(())
}

fn check_settings(name: &str, entries: &[(String, String)], purpose: Purpose, settings: &Settings) -> Result<(), Error> {
    let value = |key: &str| entries.iter().find(|(name, _)| name == key).map_or("", |(_, value)| value.as_str());
    let wrong = |key: &str, why: &str| Err(Error::Format(format!("kafka topic `{name}` has {key}={}: {why}", value(key))));
    let number = |key: &str| value(key).parse::<i64>().unwrap_or(0);
    if value("cleanup.policy") != "delete" {
        return wrong("cleanup.policy", "it must be delete, as every record counts");
    }
    match purpose {
        Purpose::Log => {
            for key in ["retention.ms", "retention.bytes"] {
                if number(key) != -1 {
                    return wrong(key, "it must be -1: Contrail itself deletes what every reader has passed");
                }
            }
            if number("max.message.bytes") < MAX_MESSAGE as i64 {
                return wrong("max.message.bytes", &format!("it must be at least {MAX_MESSAGE}"));
            }
        }
        // Larger records than it takes are shed.
        Purpose::Feed => {
            if !FEED_RETENTIONS.contains(&number("retention.ms")) {
                return wrong(
                    "retention.ms",
                    "it must be 10 minutes to a day (600000 to 86400000): long enough for a reader that is late, and then it goes",
                );
            }
        }
    }
    // Of a single replica there is none to elect that lacks records; of more it costs nothing.
    if value("unclean.leader.election.enable") != "false" {
        return wrong("unclean.leader.election.enable", "it must be false: a replica that lacks acknowledged records would lead");
    }
    if number("min.insync.replicas") < 2 && !settings.allow_single_replica {
        return wrong("min.insync.replicas", "below 2, what was acknowledged can be lost; raise it, or set kafka.allow_single_replica");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(changed: (&str, &str)) -> Vec<(String, String)> {
        let max = MAX_MESSAGE.to_string();
        [
            ("cleanup.policy", "delete"),
            ("retention.ms", "-1"),
            ("retention.bytes", "-1"),
            ("max.message.bytes", max.as_str()),
            ("min.insync.replicas", "2"),
            ("unclean.leader.election.enable", "false"),
        ]
        .map(|(key, value)| (key.to_owned(), if key == changed.0 { changed.1 } else { value }.to_owned()))
        .to_vec()
    }

    #[test]
    fn topics_that_could_lose_records_are_refused() {
        let strict = Settings::default();
        check_settings("t", &entries(("", "")), Purpose::Log, &strict).unwrap();
        for changed in [
            ("cleanup.policy", "compact"),
            ("cleanup.policy", "compact,delete"),
            ("retention.ms", "604800000"),
            ("retention.bytes", "1"),
            ("max.message.bytes", "1048588"),
            ("min.insync.replicas", "1"),
            ("unclean.leader.election.enable", "true"),
        ] {
            let error = check_settings("t", &entries(changed), Purpose::Log, &strict).unwrap_err().to_string();
            assert!(error.contains(&format!("`t` has {}={}", changed.0, changed.1)), "{error}");
        }
        let lenient = Settings { allow_single_replica: true, ..strict.clone() };
        check_settings("t", &entries(("min.insync.replicas", "1")), Purpose::Log, &lenient).unwrap();

        for (retention, taken) in [("-1", false), ("60000", false), ("3600000", true), ("604800000", false)] {
            let checked = check_settings("t", &entries(("retention.ms", retention)), Purpose::Feed, &lenient);
            assert_eq!(checked.is_ok(), taken, "{retention}");
        }

        let found = |partitions, replicas| Found { partitions, replicas, led: true };
        check_layout("t", &found(16, 3), &strict).unwrap();
        assert!(check_layout("t", &found(17, 3), &strict).unwrap_err().to_string().contains("17 partitions"));
        assert!(check_layout("t", &found(16, 1), &strict).unwrap_err().to_string().contains("1 replicas"));
        check_layout("t", &found(16, 1), &lenient).unwrap();
    }
}
