//! INGEST: checks the sender, translates, validates, identifies, appends, and only then answers. Built by the composition root, which serves
//! `Ingest::router` and runs `Ingest::run`. Stateless but for counters and limits; must never answer 2xx before the log holds
//! every valid event of the request durably, nor decide what counts.

mod admission;
mod batch;
mod canonical;
mod crawler;
mod decode;
mod dialects;
mod json;
mod receive;
mod refusals;
pub mod reject;
mod seen;
mod sender;
#[cfg(test)]
mod testing;
mod validate;
mod webhook;

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use batch::{Assigned, Rejected};
pub use receive::{Answer, Refused};

use crate::event::Clock;
use crate::eventlog::EventLog;
use crate::site::Sites;

/// Most bytes of one event as sent.
pub const MAX_EVENT_BYTES: usize = 1 << 20;
/// Most bytes of a body, as sent and once decoded.
pub const MAX_BODY_BYTES: usize = 8 << 20;
/// Most events of a request.
pub const MAX_EVENTS: usize = 10_000;

/// What an operator may turn.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Memory that all requests in flight may hold together, in bytes; beyond it 503. Each holds about thrice its body.
    pub max_in_flight_bytes: usize,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// How long the log may take to confirm before the answer is 503.
    pub append_timeout: Duration,
    /// Requests a second of one address (of IPv6: one network of 64 bits).
    pub address_requests_per_second: NonZeroU32,
    /// Events a second with one key.
    pub key_events_per_second: NonZeroU32,
    /// Events a second for one site.
    pub site_events_per_second: NonZeroU32,
    /// The URL that senders reach this server by: webhooks are signed for it.
    pub public_url: String,
}

impl Default for Settings {
    fn default() -> Self {
        let rate = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MAX);
        Self {
            max_in_flight_bytes: 256 << 20,
            body_timeout: Duration::from_secs(30),
            append_timeout: Duration::from_secs(10),
            address_requests_per_second: rate(200_000),
            key_events_per_second: rate(500_000),
            site_events_per_second: rate(500_000),
            public_url: String::new(),
        }
    }
}

/// The sender's network address: put among a request's extensions by whoever accepts connections and knows the trusted proxies. Without it
/// no rate per address holds.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub IpAddr);

/// What ingest works with.
#[derive(Clone)]
pub struct Deps {
    /// Where events go.
    pub log: Arc<dyn EventLog>,
    /// Who may send.
    pub sites: Arc<Sites>,
    /// Gives `received_at`.
    pub clock: Clock,
    /// Limits.
    pub settings: Settings,
}

/// The room. Clones share everything. Make it after the metrics recorder is installed: it keeps its counters.
#[derive(Clone)]
pub struct Ingest(Arc<Room>);

struct Room {
    deps: Deps,
    crawlers: Arc<crawler::Crawlers>,
    seen: seen::Seen,
    budget: admission::Budget,
    rates: admission::Rates,
    refusals: refusals::Refusals,
    meters: receive::Meters,
}

impl Ingest {
    /// Makes the room; nothing runs yet.
    pub fn new(deps: Deps) -> Self {
        let Settings { max_in_flight_bytes, address_requests_per_second, key_events_per_second, site_events_per_second, .. } = deps.settings;
        Self(Arc::new(Room {
            crawlers: Arc::default(),
            seen: seen::Seen::default(),
            budget: admission::Budget::new(max_in_flight_bytes),
            rates: admission::Rates::new(address_requests_per_second, key_events_per_second, site_events_per_second),
            refusals: refusals::Refusals::default(),
            meters: receive::Meters::default(),
            deps,
        }))
    }

    /// `POST /v1/events` and its preflight; `POST /webhooks/twilio-sync`.
    pub fn router(&self) -> axum::Router {
        let events = axum::routing::post(receive::receive).options(receive::preflight).fallback(receive::other_method);
        let twilio_sync = axum::routing::post(webhook::twilio_sync).fallback(receive::other_method);
        axum::Router::new().route("/v1/events", events).route("/webhooks/twilio-sync", twilio_sync).with_state(self.clone())
    }

    /// Appends the refusals of each second and sweeps the limits, until stopped; then once more.
    pub async fn run(self, stop: CancellationToken) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ticks = 0u32;
        loop {
            let stopping = tokio::select! {
                () = stop.cancelled() => true,
                _ = second.tick() => false,
            };
            let Room { deps, refusals, rates, .. } = &*self.0;
            let given_up = async {
                stop.cancelled().await;
                tokio::time::sleep(deps.settings.append_timeout).await;
            };
            let flushed = refusals.flush(&*deps.log, given_up, deps.clock.now()).await;
            // A log that did not answer is not waited for once more.
            if stopping || (!flushed && stop.is_cancelled()) {
                return;
            }
            ticks = ticks.wrapping_add(1);
            if ticks.is_multiple_of(60) {
                rates.sweep();
            }
        }
    }
}
