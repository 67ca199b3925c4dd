//! Clean copies of objects that are read often. Each stands beside a subscription to its object: attached before the object was read, so that whatever changed
//! since is told there, and looked at before the copy is given out. Used by [`super::Reader`] alone; must never hold what is not in the store.
//!
//! On the node that owns an object, who was told that a write is done reads it; on another one too, for answers travel behind the writes they tell of.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;

use crate::event::ObjectKey;
use crate::sync::object::Object;
use crate::sync::{Error, Feed, ObjectStore, Subscription};

/// Bytes of copies, as their rows are stored, and what each weighs beside them.
const BYTES: u64 = 64 << 20;
const OVERHEAD: u32 = 2_048;
/// A larger object is read anew each time.
const LARGEST: u64 = 1 << 20;
/// No copy is given out for longer than this, whatever the feed tells or fails to.
const LONGEST: Duration = Duration::from_secs(30);

/// The copies. Clones share them.
#[derive(Clone)]
pub(super) struct Copies {
    feed: Arc<dyn Feed>,
    copies: Cache<ObjectKey, Arc<Copy>>,
}

struct Copy {
    object: Arc<Object>,
    since: Subscription,
}

impl Copies {
    pub(super) fn new(feed: Arc<dyn Feed>) -> Self {
        let weigh = |_: &ObjectKey, copy: &Arc<Copy>| u32::try_from(copy.object.head().bytes).unwrap_or(u32::MAX).saturating_add(OVERHEAD);
        Self { feed, copies: Cache::builder().max_capacity(BYTES).weigher(weigh).time_to_live(LONGEST).build() }
    }

    /// An object as committed, removed or not; None where there never was one.
    ///
    /// # Errors
    /// As [`ObjectStore::load`].
    pub(super) async fn load(&self, store: &dyn ObjectStore, key: &ObjectKey) -> Result<Option<Arc<Object>>, Error> {
        if let Some(copy) = self.copies.get(key) {
            if !copy.since.is_told() {
                return Ok(Some(Arc::clone(&copy.object)));
            }
            self.copies.invalidate(key);
        }
        // Attached first: a process without subscribers has no copies.
        let since = self.feed.subscribe(key).await.ok();
        let object = super::load(store, key).await?;
        if let (Some(since), Some(object)) = (since, object.as_ref().filter(|object| object.head().bytes <= LARGEST)) {
            self.copies.insert(key.clone(), Arc::new(Copy { object: Arc::clone(object), since }));
        }
        Ok(object)
    }
}
