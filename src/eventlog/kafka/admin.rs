//! The client that administers topics and looks on. One that found no broker any longer is replaced: where metadata names no broker at all, as while all of them
//! are fenced after a pause, librdkafka 2.12 forgets those it knew (`rd_kafka_metadata_decommission_unavailable_brokers`), and may then never ask one again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::{self, DefaultClientContext};
use rdkafka::error::KafkaResult;

use super::{lost_connection, retire};
use crate::eventlog::Error;

/// The least age of a client that is replaced: where brokers are away, none is made for each question.
const LEAST_AGE: Duration = Duration::from_secs(10);

pub(super) type Client = Arc<AdminClient<DefaultClientContext>>;

/// The present client, and what the next one is made of.
pub(super) struct Admin {
    config: ClientConfig,
    current: Mutex<Current>,
}

struct Current {
    client: Client,
    since: Instant,
}

impl Admin {
    pub(super) fn new(config: ClientConfig) -> Result<Self, Error> {
        let client = create(&config)?;
        Ok(Self { config, current: Mutex::new(Current { client, since: Instant::now() }) })
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client to ask.
    pub(super) fn client(&self) -> Client {
        Arc::clone(&self.current().client)
    }

    /// Asks something by it. Where it finds no broker, whoever asks next asks by another one. Blocking.
    pub(super) fn ask<T>(&self, question: impl FnOnce(&client::Client) -> KafkaResult<T>) -> KafkaResult<T> {
        let client = self.client();
        let answer = question(client.inner());
        if answer.as_ref().is_err_and(lost_connection) {
            self.replace(&client);
        }
        answer
    }

    /// Makes another client in place of this one, unless that was done, or this one is young.
    fn replace(&self, client: &Client) {
        let is_due = |current: &Current| Arc::ptr_eq(&current.client, client) && current.since.elapsed() >= LEAST_AGE;
        if !is_due(&self.current()) {
            return;
        }
        // Not while others wait for the present one.
        let made = match create(&self.config) {
            Ok(made) => made,
            Err(error) => return tracing::warn!(%error, "no new client to look at the brokers by"),
        };
        let mut current = self.current();
        if is_due(&current) {
            let former = std::mem::replace(&mut *current, Current { client: made, since: Instant::now() });
            drop(current);
            tracing::warn!("the client that looks at the brokers found none of them; another one asks");
            retire(former.client, |_| ());
        }
    }
}

fn create(config: &ClientConfig) -> Result<Client, Error> {
    config.create().map(Arc::new).map_err(|error| Error::Format(format!("kafka: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_found_no_broker_is_replaced_but_not_at_once() {
        let mut config = ClientConfig::new();
        // Nobody listens there.
        config.set("bootstrap.servers", "127.0.0.1:1");
        let admin = Admin::new(config).unwrap();
        let first = admin.client();
        let asked = || admin.ask(|client| client.fetch_metadata(None, Duration::from_millis(300))).unwrap_err();
        let age = || admin.current().since = Instant::now().checked_sub(LEAST_AGE).unwrap();
        admin.current().since = Instant::now();
        let error = asked();
        assert!(lost_connection(&error), "{error}");
        assert!(Arc::ptr_eq(&admin.client(), &first), "it is young");
        age();
        asked();
        let second = admin.client();
        assert!(!Arc::ptr_eq(&second, &first));
        age();
        admin.replace(&first);
        assert!(Arc::ptr_eq(&admin.client(), &second), "it was replaced already");
    }
}
