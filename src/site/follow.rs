//! Follows what other nodes change: asks the store for its version, and reads it again where that is another. Run by the composition root as a task.

use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

use super::{Error, Sites};

/// How often the store is asked. A change is so known everywhere within a second.
const EVERY: Duration = Duration::from_millis(300);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(2);

/// When the store was last found to hold what is shown here, and whether it answers.
#[derive(Debug)]
pub(super) struct Watch {
    agreed: Instant,
    silent: bool,
}

impl Default for Watch {
    fn default() -> Self {
        Self { agreed: Instant::now(), silent: false }
    }
}

impl Sites {
    /// Follows the store until stopped. While it does not answer, what is known stays in force.
    pub async fn follow(&self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                looked = self.look() => self.note(looked),
            }
        }
    }

    /// For how long the store has not answered, and what others change is not known here; None while it answers.
    pub fn unanswered_for(&self) -> Option<Duration> {
        let watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        watch.silent.then(|| watch.agreed.elapsed())
    }

    /// Asks once, and shows what is new.
    pub(super) async fn look(&self) -> Result<(), Error> {
        let late = |_| Error::Unavailable(format!("no answer within {} s", ANSWER.as_secs()));
        if timeout(ANSWER, self.store.version()).await.map_err(late)?? == self.snapshot().version {
            return Ok(());
        }
        let reading = async {
            let _turn = self.turn.lock().await;
            self.show(&self.store.load().await?)
        };
        timeout(ANSWER, reading).await.map_err(late)?
    }

    /// Remembers how it went, and tells when that changes.
    pub(super) fn note(&self, looked: Result<(), Error>) {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        match looked {
            Ok(()) => {
                if watch.silent {
                    tracing::info!(seconds = watch.agreed.elapsed().as_secs(), "the sites' store answers again");
                }
                *watch = Watch::default();
            }
            Err(error) => {
                metrics::counter!("contrail_sites_failed_looks_total").increment(1);
                if !watch.silent {
                    tracing::warn!(%error, "the sites' store cannot be read; known sites and keys stay in force");
                }
                watch.silent = true;
            }
        }
    }
}
