//! Requests made of the simulator's journeys: a whole day in its order for runs that end in an audit, and a pool of single events, whose ids are
//! stamped anew at every use, for runs that only measure ingest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::Context;
use contrail::event::{Clock, Timestamp};
use contrail::simulate::{Settings, Simulation, Tally};
use tokio::sync::mpsc::{Receiver, channel};

use crate::http;
use crate::load::Prepared;
use crate::process::INGEST_KEY;

/// Requests made ahead of their sending.
const AHEAD: usize = 64;

/// A day that is being sent.
pub(crate) struct Day {
    /// Which day.
    pub settings: Settings,
    made: JoinHandle<anyhow::Result<Tally>>,
}

impl Day {
    /// Begins a day of so many events in requests of `batch`, made on a thread of its own as they are taken. It lies wholly in the past, so that
    /// no event is from the future.
    pub(crate) fn begin(seed: u64, events: u64, batch: usize) -> (Self, Receiver<Prepared>) {
        let start = Clock::system().now().plus_seconds(-25 * 3600).floor_to_seconds(3600);
        let settings = Settings { seed, events, start };
        let (sender, receiver) = channel(AHEAD);
        let mut day = Simulation::new(settings.clone());
        let made = std::thread::spawn(move || {
            loop {
                let mut body = b"[".to_vec();
                let mut count = 0;
                for event in day.by_ref().take(batch) {
                    serde_json::to_writer(&mut body, &event)?;
                    body.push(b',');
                    count += 1;
                }
                if count == 0 {
                    return Ok(day.tally().clone());
                }
                body.pop();
                body.push(b']');
                let request = Prepared { bytes: http::post("/v1/events", INGEST_KEY, &body), events: count };
                if sender.blocking_send(request).is_err() {
                    anyhow::bail!("the senders ended before the day did");
                }
            }
        });
        (Self { settings, made }, receiver)
    }

    /// The day's end.
    pub(crate) fn end(&self) -> Timestamp {
        self.settings.end()
    }

    /// What the simulator counted, once all is sent.
    pub(crate) fn tally(self) -> anyhow::Result<Tally> {
        self.made.join().ok().context("the simulator panicked")?
    }
}

/// Events that are sent over and over under new ids.
pub(crate) struct Pool {
    events: Vec<Stamped>,
    next: AtomicU64,
}

/// One event's bytes and where its id's digits stand.
struct Stamped {
    bytes: Vec<u8>,
    digits: usize,
}

/// An id whose digits are overwritten.
const ID: &str = "load-0000000000000000";
const DIGITS: usize = 16;

impl Pool {
    /// A pool of so many events of a day.
    pub(crate) fn new(seed: u64, events: usize) -> anyhow::Result<Arc<Self>> {
        let start = Clock::system().now().plus_seconds(-25 * 3600).floor_to_seconds(3600);
        let mut pool = Vec::new();
        for mut event in Simulation::new(Settings { seed, events: 100_000, start }).skip(20_000).take(events) {
            ID.clone_into(&mut event.event_id);
            let bytes = serde_json::to_vec(&event)?;
            let at = bytes.windows(ID.len()).position(|window| window == ID.as_bytes()).context("no id in an event")?;
            pool.push(Stamped { bytes, digits: at + ID.len() - DIGITS });
        }
        Ok(Arc::new(Self { events: pool, next: AtomicU64::new(0) }))
    }

    /// Mean bytes of an event.
    pub(crate) fn mean_bytes(&self) -> usize {
        self.events.iter().map(|event| event.bytes.len()).sum::<usize>() / self.events.len().max(1)
    }

    /// Some events' bodies, for the control.
    pub(crate) fn bodies(&self, count: usize) -> Vec<Vec<u8>> {
        self.events.iter().take(count).map(|event| event.bytes.clone()).collect()
    }

    /// The next request of so many events, into `body`'s and `request`'s memory.
    pub(crate) fn request(&self, batch: usize, body: &mut Vec<u8>) -> Vec<u8> {
        body.clear();
        if batch > 1 {
            body.push(b'[');
        }
        for index in 0..batch {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(event) = self.events.get(number as usize % self.events.len().max(1)) else { break };
            if index > 0 {
                body.push(b',');
            }
            let at = body.len() + event.digits;
            body.extend_from_slice(&event.bytes);
            if let Some(digits) = body.get_mut(at..at + DIGITS) {
                let mut rest = number;
                for digit in digits.iter_mut().rev() {
                    *digit = b'0' + (rest % 10) as u8;
                    rest /= 10;
                }
            }
        }
        if batch > 1 {
            body.push(b']');
        }
        http::post("/v1/events", INGEST_KEY, body)
    }
}
