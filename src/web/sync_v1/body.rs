//! Bodies of requests: read whole, bounded each and all together. Called by the handler once it is known who asks what.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::web::sync::Fault;

/// Most bytes of a form: the largest data, each byte of it as `%XX`, and much beside it.
pub(super) const MAX_FORM: usize = 128 << 10;
/// Most bytes of a batch.
pub(super) const MAX_BATCH: usize = 4 << 20;
/// Bytes of all bodies held at once, in KiB.
const MAX_HELD_KIB: usize = 64 << 10;
/// How long a body may take to come.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of a body over its limit that are still read, and how long that may take: a connection that is closed on a sender which is still sending is reset,
/// and the answer lost with it.
const DISCARD: (usize, Duration) = (4 << 20, Duration::from_secs(2));

/// Room for bodies.
#[derive(Debug)]
pub(super) struct Bodies(Arc<Semaphore>);

/// A body, with its share of the room until it is dropped.
pub(super) struct Held {
    pub(super) bytes: Bytes,
    _share: OwnedSemaphorePermit,
}

impl Default for Bodies {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_HELD_KIB)))
    }
}

impl Bodies {
    /// A body of at most so many bytes.
    ///
    /// # Errors
    /// [`Fault::TooLarge`]; [`Fault::Unavailable`] where too much is held already; [`Fault::Parameter`] for one that does not come to its end.
    pub(super) async fn read(&self, mut body: Body, most: usize) -> Result<Held, Fault> {
        let stated = body.size_hint();
        if stated.lower() > most as u64 {
            discard(body).await;
            return Err(Fault::TooLarge);
        }
        let expected = stated.exact().and_then(|exact| usize::try_from(exact).ok()).unwrap_or(most);
        let share = u32::try_from(expected.div_ceil(1 << 10)).ok().and_then(|kib| Arc::clone(&self.0).try_acquire_many_owned(kib).ok());
        let Some(share) = share else { return Err(Fault::Unavailable) };
        let incomplete = || Fault::Parameter("The body did not come to its end".into());
        let read = tokio::time::timeout(PATIENCE, Limited::new(&mut body, most).collect()).await;
        match read.map_err(|_| incomplete())? {
            Ok(whole) => Ok(Held { bytes: whole.to_bytes(), _share: share }),
            Err(error) if error.is::<LengthLimitError>() => {
                discard(body).await;
                Err(Fault::TooLarge)
            }
            Err(_) => Err(incomplete()),
        }
    }
}

/// Reads on for a moment what is thrown away.
async fn discard(mut body: Body) {
    let mut left = DISCARD.0;
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    // Out of time, the sender may see a reset instead of the answer.
    tokio::time::timeout(DISCARD.1, reading).await.unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bodies_are_bounded_each_and_all_together() {
        let bodies = Bodies::default();
        let read = |length: usize, most: usize| bodies.read(Body::from(vec![b'x'; length]), most);
        let held = read(10, 10).await.ok().unwrap();
        assert_eq!(held.bytes.len(), 10);
        assert!(matches!(read(11, 10).await, Err(Fault::TooLarge)));
        let unstated = Body::from_stream(futures::stream::iter([Ok::<_, std::io::Error>(vec![b'x'; 11])]));
        assert!(matches!(bodies.read(unstated, 10).await, Err(Fault::TooLarge)));
        drop(held);
        let many: Vec<Held> =
            futures::future::join_all((0..16).map(|_| read(MAX_BATCH, MAX_BATCH))).await.into_iter().map(|read| read.ok().unwrap()).collect();
        assert!(matches!(read(1, MAX_FORM).await, Err(Fault::Unavailable)));
        drop(many);
        assert!(read(1, MAX_FORM).await.is_ok());
        let broken = Body::from_stream(futures::stream::iter([Err::<Vec<u8>, _>(std::io::Error::other("cut"))]));
        assert!(matches!(bodies.read(broken, 10).await, Err(Fault::Parameter(_))));
    }
}
