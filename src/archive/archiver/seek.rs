//! Where the archiver begins, and begins again: every partition where the archive says it stands. Called by the archiver's loop. Must never let a record be
//! read that the archive's cursor has not been asked for since the last failure.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{ANSWER, Owned, Pending, RETAIN_AGAIN, Run};
use crate::archive::{Error, Refused};

/// Partitions of which the archive is asked at once where it stands: each may have a journal of some MiB to be done again.
const SOUGHT: usize = 4;
/// Records set aside that are remembered once they are written.
const ASIDE: usize = 10_000;

impl Run {
    /// Begins, or begins again, to read partitions where the archive stands. One of which it cannot tell that stops alone. Where it does not answer now, it is
    /// asked again later, and the others are read meanwhile.
    pub(super) async fn seek(&mut self) -> Result<(), Error> {
        let began = Instant::now();
        self.seek_at = None;
        // What is past its age of them goes soon.
        self.retain_at = self.retain_at.min(Instant::now() + RETAIN_AGAIN);
        let archive = &self.job.archive;
        let partitions: Vec<u16> = self.unsought.iter().copied().collect();
        // Several at once: the others of this archiver wait meanwhile.
        let calls: Vec<_> = partitions.iter().map(|partition| archive.cursor(*partition)).collect();
        let progress = &self.job.progress;
        let wait = progress.wait(ANSWER, self.job.settings.told_after);
        // At once: of a cluster that does nothing each answer takes its whole patience.
        let tell = |cursor: &Result<_, Error>| {
            wait.goes_on();
            if let Some(error) = cursor.as_ref().err().filter(|error| error.is_retryable()) {
                progress.stands_still(Some(error.to_string()));
            }
        };
        let cursors: Vec<_> = stream::iter(calls).buffered(SOUGHT).inspect(tell).collect().await;
        drop(wait);
        let mut unanswered = None;
        for (partition, written) in partitions.into_iter().zip(cursors) {
            let written = match written {
                Ok(written) => written,
                Err(Error::Closed) => return Err(Error::Closed),
                Err(error) if error.is_retryable() => {
                    self.consumer.pause(partition);
                    unanswered = Some(error);
                    continue;
                }
                Err(error) => {
                    self.fail(partition, &error.to_string());
                    continue;
                }
            };
            self.consumer.seek(partition, written.next);
            self.consumer.resume(partition);
            self.unsought.remove(&partition);
            self.owned.insert(partition, Owned { written, expected: written.next });
            self.job.progress.update(partition, |progress| {
                progress.cursor = written;
                progress.failed = None;
            });
            self.touched.own(partition, true);
        }
        if let Some(error) = unanswered {
            // At most half of the time is spent on asking: the others wait for it.
            self.seek_at = Some(Instant::now() + self.failed(&error).max(began.elapsed()));
        }
        Ok(())
    }

    /// After a failure: a pause, and everything from the archive's own cursors again; nothing of a partition is read before it was sent back.
    pub(super) async fn start_over(&mut self, error: Error, stop: &CancellationToken) -> Result<(), Error> {
        if let Error::Refused(records) = &error {
            self.set_aside(records);
        }
        self.recent.clear();
        self.pending = Pending::default();
        self.unsought.extend(std::mem::take(&mut self.owned).into_keys());
        let pause = self.failed(&error);
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            () = tokio::time::sleep(pause) => self.seek().await,
        }
    }

    /// Tells of a failure that may pass. Gives how long to wait.
    fn failed(&mut self, error: &Error) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let pause = self.job.settings.pause(self.failures);
        tracing::warn!(%error, failures = self.failures, pause_ms = pause.as_millis() as u64, "archiving failed; going back to the last cursors");
        metrics::counter!("contrail_archiver_retries_total").increment(1);
        self.job.progress.stands_still(Some(error.to_string()));
        pause
    }

    /// Stops one partition for good; what was delivered of it before is still written.
    pub(super) fn fail(&mut self, partition: u16, why: &str) {
        tracing::error!(partition, why, "the archiver stops reading a partition of events; the others go on");
        metrics::counter!("contrail_archiver_partition_failures_total").increment(1);
        self.consumer.pause(partition);
        if let Some(owned) = self.owned.get_mut(&partition) {
            owned.expected = u64::MAX;
        }
        self.job.progress.update(partition, |progress| progress.failed = Some(why.to_owned()));
    }

    /// Has records that the archive refuses quarantined, whenever they are read.
    fn set_aside(&mut self, records: &[Refused]) {
        let aside = Arc::make_mut(&mut self.aside);
        for Refused { partition, offset, why } in records {
            tracing::error!(partition, offset, why, "the archive cannot keep an event; it goes to quarantine");
            aside.insert((*partition, *offset), why.clone());
        }
        if aside.len() > ASIDE {
            aside.retain(|(partition, offset), _| self.owned.get(partition).is_some_and(|owned| *offset >= owned.written.next));
        }
    }
}

#[cfg(test)]
mod tests;
