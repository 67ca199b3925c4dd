//! Work that goes on while its owner's loop does something else: router and keeper commit beside reading, and a store's calls may wait for one another (a cluster
//! takes so many requests at once), so that one left half done would hold up the rest. Must never outlive its owner.

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::task::JoinSet;

/// Begins work at once, on a task of its own; what is given tells how it ended, and dropped ends it. A panic is the caller's.
pub(super) fn aside<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> BoxFuture<'static, T> {
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
    use tokio::sync::oneshot;

    use super::*;

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
