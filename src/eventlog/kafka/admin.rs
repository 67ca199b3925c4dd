//! The client that administers topics and looks on. One that found no broker any longer is replaced: where metadata names no broker at all, as while all of them
//! are fenced after a pause, librdkafka 2.12 forgets those it knew (`rd_kafka_metadata_decommission_unavailable_brokers`), and may then never ask one again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::{self, DefaultClientContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use crate::eventlog::Error;

/// The least age of a client that is replaced: where brokers are away, none is made for each question.
const LEAST_AGE: Duration = Duration::from_secs(10);

type Client = Arc<AdminClient<DefaultClientContext>>;

/// The present client, and what the next one is made of.
pub(super) struct Admin {
    config: ClientConfig,
    /// Since when, too.
    current: Mutex<(Client, Instant)>,
}

/// Whether a client found no broker to ask.
pub(super) fn found_no_broker(error: &KafkaError) -> bool {
    matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure))
}

impl Admin {
    pub(super) fn new(config: ClientConfig) -> Result<Self, Error> {
        let first = create(&config)?;
        Ok(Self { config, current: Mutex::new((first, Instant::now())) })
    }

    /// The client to ask.
    pub(super) fn client(&self) -> Client {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Asks something by it. Where it finds no broker, whoever asks next asks by another one. Blocking.
    pub(super) fn ask<T>(&self, question: impl FnOnce(&client::Client) -> KafkaResult<T>) -> KafkaResult<T> {
        let client = self.client();
        let answer = question(client.inner());
        if answer.as_ref().is_err_and(found_no_broker) {
            self.replace(&client);
        }
        answer
    }

    /// Makes another client in place of this one, unless that was done, or this one is young.
    fn replace(&self, client: &Client) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&current.0, client) || current.1.elapsed() < LEAST_AGE {
            return;
        }
        match create(&self.config) {
            Ok(made) => {
                let (former, _) = std::mem::replace(&mut *current, (made, Instant::now()));
                drop(current);
                // Ending one takes a moment.
                drop(std::thread::Builder::new().name("kafka-retired".into()).spawn(move || drop(former)));
            }
            Err(error) => tracing::warn!(%error, "no new client to look at the brokers by"),
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
        let age = || admin.current.lock().unwrap().1 = Instant::now().checked_sub(LEAST_AGE).unwrap();
        admin.current.lock().unwrap().1 = Instant::now();
        let error = asked();
        assert!(found_no_broker(&error), "{error}");
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
