//! MIRROR: keeps chosen objects of sites in a Sync service elsewhere, Twilio's or another Contrail's, as they are here: the latest state wins, what changed
//! meanwhile is never told. Reads `changes` to learn which objects changed, and the object store for what they are; run by the composition root beside the
//! keeper. Must never pass a change that is not there yet, append twice what is a list's item once, nor let a service that does not answer hold up others or the log.
//!
//! ```text
//! changes ─► queue ─► round ─► the other service
//!              ▲        └─► places ─► committed
//! store ─► copy┘
//! ```
//!
//! How far it is, its group of the log says: what is read again after a crash is looked at again. A mirror that is new, or was left behind for too long, begins
//! with a copy of all that it is to mirror; that a partition's objects were copied is noted beside the site.

mod budget;
mod copy;
mod plan;
mod queue;
mod remote;
mod round;
mod run;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::run::Run;
use crate::event::Clock;
use crate::eventlog::{Error, EventLog};
use crate::outbound::Client;
use crate::site::Sites;
use crate::sync::ObjectStore;
use crate::sync::expiry::Expiry;

pub use queue::Settings as QueueSettings;

/// The room's consumer group of `changes`.
pub const GROUP: &str = "mirror";

/// How the room works.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long the other service may take to answer.
    pub timeout: Duration,
    /// How long a request whose end is not known may still be under way: nothing is appended to a list before that is over.
    pub settle: Duration,
    /// Bounds and pauses of what waits.
    pub queue: QueueSettings,
    /// Bytes read of the log at once.
    pub read: usize,
    /// How often it is committed how far the room is, and looked for mirrors that were set.
    pub commit_every: Duration,
    /// The pause before what of the log cannot be read is tried again.
    pub again_after: Duration,
    /// A change that waits for longer is let go, and all objects of its site are copied anew once that goes: the log is not held for ever.
    pub longest: Duration,
    /// How long rounds under way may take once the room stops.
    pub finish_within: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            settle: Duration::from_secs(10),
            queue: QueueSettings::default(),
            read: 1 << 20,
            commit_every: Duration::from_secs(1),
            again_after: Duration::from_secs(30),
            longest: Duration::from_secs(600),
            finish_within: Duration::from_secs(5),
        }
    }
}

/// The room with all it works on.
pub struct Mirroring {
    /// Holds the changes.
    pub log: Arc<dyn EventLog>,
    /// Holds what they came to.
    pub store: Arc<dyn ObjectStore>,
    /// When objects lapse; the keeper's.
    pub expiry: Expiry,
    /// Know which of them are mirrored, and where to.
    pub sites: Arc<Sites>,
    /// Asks there.
    pub client: Client,
    /// Tells the time.
    pub clock: Clock,
    /// How.
    pub settings: Settings,
}

impl Mirroring {
    /// Mirrors until `stop`, as a member of [`GROUP`] while there is anything to mirror. Then lets what is under way end, and commits.
    ///
    /// # Errors
    /// When the log is closed.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let mut run = Run::new(self);
        let outcome = run.until(&stop).await;
        run.finish().await;
        outcome
    }
}

#[cfg(test)]
mod testing;
