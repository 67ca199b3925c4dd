//! The feed over Kafka: a topic that every process reads whole, from when it starts; what it reads goes to its own subscribers. Opened by the composition
//! root (`app::backends`). Must never lose a write silently: where one may have been missed, subscribers are sent to a fresh snapshot.
//!
//! * Every write is published, whoever is subscribed here: others may be elsewhere, and only their processes know of them.
//! * A write's partition is its object's among `changes`, so that an object's writes keep their order.
//! * A write that the brokers take no record of that size for goes without its rows; it stops nobody.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::wire::{self, Told};
use super::{Expected, LocalFeed, Settings};
use crate::event::change::RequestId;
use crate::event::{ObjectKey, PARTITIONS};
use crate::eventlog::kafka::{self, Broadcast, Heard, Tail};
use crate::eventlog::{self, Append};
use crate::sync::{Address, Answer, Applied, Attached, Error, Feed};

/// The topic's name, behind the prefix.
const TOPIC: &str = "feed";

/// How often at most a partition's subscribers are sent to a snapshot for records that this build cannot read: while processes of a later version write such,
/// there are many.
const UNREADABLE_EVERY: Duration = Duration::from_secs(1);

/// The feed of a process among others.
pub struct KafkaFeed {
    topic: Broadcast,
    local: LocalFeed,
    /// None where nobody can subscribe.
    tail: Option<Tail>,
}

impl KafkaFeed {
    /// Connects, makes or checks the topic, and reads all that is published from now on.
    ///
    /// # Errors
    /// Those of the log: brokers that do not answer, a topic that must not be used.
    pub async fn open(url: &str, settings: &kafka::Settings, queues: Settings) -> Result<Self, Error> {
        let publishing = Self::publishing(url, settings).await?;
        let local = LocalFeed::new(queues);
        let mut deliver = Delivery { local: local.clone(), unreadable: BTreeMap::new() };
        let tail = publishing.topic.tail(move |heard| deliver.hear(heard, Instant::now())).await?;
        Ok(Self { local, tail: Some(tail), ..publishing })
    }

    /// The same for a process that only publishes: nobody can subscribe, and nothing is read.
    ///
    /// # Errors
    /// As [`KafkaFeed::open`].
    pub async fn publishing(url: &str, settings: &kafka::Settings) -> Result<Self, Error> {
        let topic = Broadcast::open(url, settings, TOPIC).await?;
        Ok(Self { topic, local: LocalFeed::new(Settings::default()), tail: None })
    }

    /// Sends writes and gives those that were too large for the brokers.
    async fn send(&self, writes: &[Applied], encode: impl Fn(&Applied) -> bytes::Bytes) -> Result<Vec<Applied>, Error> {
        let records: Vec<Append> = writes.iter().map(|write| Append { partition: write.key.partition(), value: encode(write) }).collect();
        let mut large = Vec::new();
        for (write, sent) in writes.iter().zip(self.topic.send(&records).await?) {
            match sent {
                Ok(_) => {}
                Err(eventlog::Error::TooLarge { .. }) => large.push(write.clone()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(large)
    }
}

#[async_trait]
impl Feed for KafkaFeed {
    fn wanted(&self, _: &ObjectKey) -> bool {
        true
    }

    async fn publish(&self, writes: Vec<Applied>) -> Result<(), Error> {
        let published = async {
            let large = self.send(&writes, wire::whole).await?;
            if large.is_empty() {
                return Ok(());
            }
            metrics::counter!("contrail_feed_shed_total").increment(large.len() as u64);
            tracing::warn!(count = large.len(), "writes too large for the feed go without their rows; subscribers read the objects");
            match self.send(&large, wire::shed).await?.first() {
                None => Ok(()),
                Some(_) => Err(Error::Store("the brokers take no record of the feed, however small".into())),
            }
        };
        let outcome = published.await;
        match &outcome {
            Ok(()) => metrics::counter!("contrail_feed_published_total").increment(writes.len() as u64),
            Err(_) => metrics::counter!("contrail_feed_publish_errors_total").increment(1),
        }
        outcome
    }

    async fn attach(&self, key: &ObjectKey, to: Address) -> Result<Attached, Error> {
        if self.tail.is_none() {
            return Err(Error::Closed);
        }
        self.local.attach(key, to).await
    }

    async fn answer(&self, answers: Vec<Answer>) -> Result<(), Error> {
        let records: Vec<Append> =
            answers.iter().map(|answer| Append { partition: answer.partition % PARTITIONS, value: wire::answer(answer) }).collect();
        for sent in self.topic.send(&records).await? {
            match sent {
                Ok(_) => {}
                // Who waits is told in time that nothing was heard.
                Err(eventlog::Error::TooLarge { .. }) => tracing::warn!("an answer too large for the feed is not given"),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn expect(&self, request: RequestId) -> Result<Expected, Error> {
        if self.tail.is_none() {
            return Err(Error::Closed);
        }
        self.local.expect(request)
    }

    fn close(&self) {
        self.local.close();
    }
}

/// Hands what is read to the subscribers here.
struct Delivery {
    local: LocalFeed,
    /// By partition that has unreadable records when its subscribers were last told, and whether they are to be told again.
    unreadable: BTreeMap<u16, (Instant, bool)>,
}

impl Delivery {
    fn hear(&mut self, heard: Heard, now: Instant) {
        match heard {
            Heard::Record { partition, value } => match wire::decode(&value) {
                Some(Told::Write(write)) => self.local.deliver(vec![write]),
                Some(Told::Changed(key)) => self.local.lag_object(&key),
                Some(Told::Answer(answer)) => self.local.give(vec![answer]),
                None => self.unreadable(partition, now),
            },
            Heard::Missed(partition) => self.local.lag_partition(partition),
            Heard::Tick => {
                let Self { local, unreadable } = self;
                for (partition, told) in unreadable.iter_mut().filter(|(_, (_, owed))| *owed) {
                    *told = (now, false);
                    local.lag_partition(*partition);
                }
            }
        }
    }

    fn unreadable(&mut self, partition: u16, now: Instant) {
        metrics::counter!("contrail_feed_unreadable_total").increment(1);
        match self.unreadable.get_mut(&partition) {
            Some((at, owed)) if now.duration_since(*at) < UNREADABLE_EVERY => *owed = true,
            _ => {
                tracing::warn!(partition, "a record of the feed that this build cannot read; subscribers are sent to a fresh snapshot");
                self.unreadable.insert(partition, (now, false));
                self.local.lag_partition(partition);
            }
        }
    }
}

#[cfg(test)]
mod tests;
