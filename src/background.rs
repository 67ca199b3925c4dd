//! Work beside its owner's loop. Threads that step back, so that those who serve requests get the processor first: used by the archive and by the embedded
//! stores; must never be given work that a request waits for. And tasks that go on while their owner does something else: used by router, keeper and archiver;
//! must never outlive their owner.

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// How far such a thread steps back (`nice`): beside one busy thread of the others it still gets a quarter of a core, so that it cannot starve.
#[cfg(target_os = "linux")]
const STEP: i32 = 5;

type Job = Box<dyn FnOnce() + Send>;

/// Lowers the calling thread's priority for as long as it lives. Where the system refuses, or knows only whole processes, it stays as it was.
pub fn step_back() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(STEP) {
        tracing::debug!(%error, "a background thread keeps its priority");
    }
}

/// One such thread, computing one job after another. Dropping it lets the thread end with the job under way.
#[derive(Debug)]
pub struct Worker {
    jobs: mpsc::Sender<Job>,
}

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(name: &str) -> std::io::Result<Self> {
        let (jobs, mut queue) = mpsc::channel::<Job>(1);
        std::thread::Builder::new().name(name.into()).spawn(move || {
            step_back();
            while let Some(job) = queue.blocking_recv() {
                job();
            }
        })?;
        Ok(Self { jobs })
    }

    /// What `work` gives; None where it panicked, now or in a job before. Dropped while it waits, the job is still done unless it was waiting for its turn.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move || {
            // Whoever went away needs no answer.
            answer.send(work()).ok();
        });
        self.jobs.send(job).await.ok()?;
        tokio::select! {
            biased;
            done = answered => done.ok(),
            // A job that was put just as the thread ended stays where it is, and its answer with it.
            () = self.jobs.closed() => None,
        }
    }
}

/// Begins work at once, on a task of its own; what is given tells how it ended, and dropped ends it. For work that holds what others
/// wait for, as a cluster's calls do (it takes so many at once): such must go on while its owner does something else. A panic is the caller's.
pub fn aside<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> BoxFuture<'static, T> {
    let mut task = JoinSet::new();
    task.spawn(work);
    async move {
        match task.join_next().await {
            Some(Ok(done)) => done,
            Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime ends.
            Some(Err(_)) | None => std::future::pending().await,
        }
    }
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_are_done_in_order_by_a_thread_that_steps_back() {
        let worker = Worker::start("stepping-back").unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        for n in 0..3 {
            let sender = sender.clone();
            worker.run(move || sender.send(n).unwrap()).await.unwrap();
        }
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [0, 1, 2]);
        #[cfg(target_os = "linux")]
        {
            let priority = || rustix::process::getpriority_process(None).unwrap();
            assert_eq!(worker.run(priority).await, Some((priority() + STEP).min(19)));
        }
        assert_eq!(worker.run(|| panic!("told to")).await, None::<()>);
        assert_eq!(worker.run(|| 1).await, None, "its thread is gone");
    }

    #[tokio::test]
    async fn it_goes_on_while_nobody_asks_and_ends_with_its_owner() {
        let (done, told) = oneshot::channel();
        let work = aside(async move { done.send(7).unwrap() });
        assert_eq!(told.await, Ok(7));
        work.await;
        let (held, ended) = oneshot::channel::<()>();
        let work = aside(async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        drop(work);
        assert!(ended.await.is_err());
    }
}
