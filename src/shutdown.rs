//! Starting and stopping as one: the signal, and the named tasks of a running process. Called by `app`; knows no room.

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Any failure of a task, already told in words.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// SIGTERM and SIGINT, from when it is made: what comes before it is waited for is not lost, and no longer ends the process by itself.
#[derive(Debug)]
pub struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    /// Takes both signals over.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn take() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// The next one's name. Cancel-safe.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

/// Tasks that live and die together: the first to end unasked, or to fail, is told by [`Tasks::first_end`].
#[derive(Debug)]
pub struct Tasks {
    stop: CancellationToken,
    names: Vec<(&'static str, tokio::task::Id)>,
    running: JoinSet<Result<(), Failure>>,
}

/// How a drain went wrong.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// A task failed while stopping, or had failed.
    #[error("{name}: {error}")]
    Failed {
        /// The task.
        name: &'static str,
        /// What it said.
        error: String,
    },
    /// Tasks still running at the deadline; they were aborted.
    #[error("not stopped within {deadline:?}: {}", names.join(", "))]
    Late {
        /// The deadline given.
        deadline: Duration,
        /// Who was late.
        names: Vec<&'static str>,
    },
}

impl Default for Tasks {
    fn default() -> Self {
        Self { stop: CancellationToken::new(), names: Vec::new(), running: JoinSet::new() }
    }
}

impl Tasks {
    /// The token that tells the tasks to stop.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a named task. It is counted from this call on, not from its first poll.
    pub fn spawn<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let handle = self.running.spawn(task);
        self.names.push((name, handle.id()));
    }

    /// Waits until a task ends although nobody asked for it, and says which and how. Pends for ever while there is none.
    pub async fn first_end(&mut self) -> DrainError {
        match self.join_next().await {
            Some((name, Ok(()))) => DrainError::Failed { name, error: "ended unasked".into() },
            Some((name, Err(error))) => DrainError::Failed { name, error },
            None => std::future::pending().await,
        }
    }

    /// Asks all to stop and waits for them, up to the deadline.
    ///
    /// # Errors
    /// The first failure, or who was late.
    pub async fn drain(&mut self, deadline: Duration) -> Result<(), DrainError> {
        self.stop.cancel();
        let mut failure = None;
        let all = async {
            while let Some((name, end)) = self.join_next().await {
                if let Err(error) = end {
                    failure.get_or_insert(DrainError::Failed { name, error });
                }
            }
        };
        if tokio::time::timeout(deadline, all).await.is_err() {
            self.running.abort_all();
            return Err(DrainError::Late { deadline, names: self.names.iter().map(|(name, _)| *name).collect() });
        }
        failure.map_or(Ok(()), Err)
    }

    async fn join_next(&mut self) -> Option<(&'static str, Result<(), String>)> {
        let joined = self.running.join_next_with_id().await?;
        let (id, end) = match joined {
            Ok((id, end)) => (id, end.map_err(|error| error.to_string())),
            Err(error) => (error.id(), Err(format!("panicked or was aborted: {error}"))),
        };
        let at = self.names.iter().position(|(_, known)| *known == id);
        Some((at.map_or("unnamed", |at| self.names.swap_remove(at).0), end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_death_is_told_by_name() {
        let mut tasks = Tasks::default();
        let stop = tasks.stop_token();
        tasks.spawn("steady", async move {
            stop.cancelled().await;
            Ok(())
        });
        tasks.spawn("frail", async { Err("no disk".into()) });
        assert_eq!(tasks.first_end().await.to_string(), "frail: no disk");
        assert!(tasks.drain(Duration::from_secs(5)).await.is_ok());
    }

    #[tokio::test]
    async fn who_is_late_is_named() {
        let mut tasks = Tasks::default();
        tasks.spawn("deaf", std::future::pending());
        let late = tasks.drain(Duration::from_millis(5)).await.unwrap_err().to_string();
        assert_eq!(late, "not stopped within 5ms: deaf");
    }
}
