//! Whether the brokers take this process's connections, asked once at the start: librdkafka itself tries a refused login for ever, and says no more
//! than that brokers are away. Used by `KafkaLog::open` alone; must never tell a password.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};

use super::topics::{ASK, failed};
use super::{LOOK, PAUSE};
use crate::eventlog::Error;

/// What a connection failed with last.
type Why = Option<(RDKafkaErrorCode, String)>;

/// Keeps why connections fail.
#[derive(Default)]
struct Door(Mutex<Why>);

impl ClientContext for Door {
    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            // Follows the reason of each, and has none of its own.
            None | Some(RDKafkaErrorCode::AllBrokersDown) => {}
            Some(code) => *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((code, reason.to_owned())),
        }
    }
}

impl ProducerContext for Door {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// Waits until a broker answers. Blocking.
///
/// # Errors
/// [`Error::Format`], soon, where brokers refuse the login or the encryption and none answers; [`Error::Unavailable`] after 15 s.
pub(super) fn reach(config: &ClientConfig) -> Result<(), Error> {
    // A producer has a thread that hears of errors, and may be of no group.
    let asking: ThreadedProducer<Door> = config.create_with_context(Door::default()).map_err(|error| Error::Format(format!("kafka: {error}")))?;
    let started = Instant::now();
    loop {
        let patience = LOOK.min(ASK.saturating_sub(started.elapsed())).max(PAUSE);
        let Err(error) = asking.client().fetch_metadata(None, patience) else { return Ok(()) };
        let heard = asking.context().0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(refused) = heard.as_ref().and_then(|(code, why)| refusal(*code, why)) {
            return Err(refused);
        }
        if started.elapsed() >= ASK {
            let why = heard.map_or_else(|| error.to_string(), |(_, why)| why);
            return Err(failed(format!("no broker answers as `log` and kafka.tls have it: {why}")));
        }
        std::thread::sleep(PAUSE);
    }
}

/// What to change where waiting would not help.
fn refusal(code: RDKafkaErrorCode, why: &str) -> Option<Error> {
    let told = match code {
        RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed | RDKafkaErrorCode::UnsupportedSASLMechanism => {
            "the brokers refuse the login (kafka.mechanism, kafka.username, CONTRAIL_KAFKA_PASSWORD)"
        }
        RDKafkaErrorCode::SSL => "no encrypted connection to the brokers (kafka.tls, kafka.ca_file)",
        _ => return None,
    };
    Some(Error::Format(format!("kafka: {told}: {why}")))
}
