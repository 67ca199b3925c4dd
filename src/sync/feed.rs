//! The in-process Feed: carries the keeper's writes to the subscribers of the same process. Made by the composition root, published to by the keeper,
//! subscribed to by the web. Must never wait for a subscriber: each has a bounded queue, and one that overflows is told that it lagged. With several
//! processes, [`kafka`] carries the writes to each one's own.

#[cfg(test)]
pub(crate) mod contract;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "kafka")]
mod wire;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use async_trait::async_trait;
use tokio::sync::{Notify, oneshot};

use super::{Answer, Applied, Error, Feed, Subscription, Update};
use crate::event::ObjectKey;
use crate::event::change::RequestId;

/// Parts the subscribers are spread over, so that attaching to one object does not hold up publishing to all others.
const SHARDS: usize = 16;

/// How much a subscriber may fall behind before it is told to read a fresh snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Writes waiting.
    pub max_writes: usize,
    /// Bytes of data waiting.
    pub max_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_writes: 64, max_bytes: 256 << 10 }
    }
}

/// The feed of one process. Clones share it.
#[derive(Clone)]
pub struct LocalFeed(Arc<Inner>);

type Shard = RwLock<HashMap<ObjectKey, Vec<Weak<Inbox>>>>;

struct Inner {
    shards: Vec<Shard>,
    /// Who waits for the answer to a request. As many as the API lets wait at once.
    waiting: Mutex<HashMap<RequestId, oneshot::Sender<Answer>>>,
    hasher: RandomState,
    settings: Settings,
    subscribers: AtomicUsize,
    closed: AtomicBool,
}

/// One subscriber's queue.
struct Inbox {
    state: Mutex<Queue>,
    arrived: Notify,
}

#[derive(Default)]
struct Queue {
    writes: VecDeque<Arc<Applied>>,
    bytes: usize,
    lagged: bool,
    closed: bool,
}

impl LocalFeed {
    /// A feed without subscribers.
    pub fn new(settings: Settings) -> Self {
        let shards = (0..SHARDS).map(|_| Shard::default()).collect();
        let (waiting, hasher) = (Mutex::default(), RandomState::new());
        Self(Arc::new(Inner { shards, waiting, hasher, settings, subscribers: AtomicUsize::new(0), closed: AtomicBool::new(false) }))
    }

    /// Hands answers to those who wait for them here.
    pub fn give(&self, answers: Vec<Answer>) {
        for answer in answers {
            let waiting = self.0.waiting().remove(&answer.request);
            if let Some(waiting) = waiting {
                // Who waited may have given up in this very moment.
                waiting.send(answer).ok();
            }
        }
    }

    /// Hands writes to the subscribers; waits for none.
    pub fn deliver(&self, writes: Vec<Applied>) {
        for write in writes {
            let inboxes = self.0.attached(&write.key);
            if inboxes.is_empty() {
                continue;
            }
            let bytes = weight(&write);
            let write = Arc::new(write);
            // First: who is told may look at once.
            metrics::counter!("contrail_feed_delivered_total").increment(inboxes.len() as u64);
            for inbox in &inboxes {
                inbox.put(&write, bytes, &self.0.settings);
            }
        }
    }

    /// Tells an object's subscribers that they missed writes.
    pub fn lag_object(&self, key: &ObjectKey) {
        self.0.attached(key).iter().for_each(|inbox| inbox.lag());
    }

    /// Tells the subscribers of all objects of a partition of `changes` that they missed writes.
    pub fn lag_partition(&self, partition: u16) {
        for shard in &self.0.shards {
            let lagging: Vec<Arc<Inbox>> = read(shard)
                .iter()
                .filter(|(key, _)| key.partition() == partition)
                .flat_map(|(_, attached)| attached)
                .filter_map(Weak::upgrade)
                .collect();
            lagging.iter().for_each(|inbox| inbox.lag());
        }
    }

    /// Subscribers attached now.
    pub fn subscribers(&self) -> usize {
        self.0.subscribers.load(Ordering::Relaxed)
    }
}

/// The answer to a request that is yet to come. Dropping it gives it up.
pub struct Expected {
    feed: Arc<Inner>,
    request: RequestId,
    answer: oneshot::Receiver<Answer>,
}

impl Expected {
    /// The answer; None where none will come, as the process stops. Cancel-safe.
    pub async fn answer(&mut self) -> Option<Answer> {
        (&mut self.answer).await.ok()
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.feed.waiting().remove(&self.request);
    }
}

impl Inner {
    fn waiting(&self) -> MutexGuard<'_, HashMap<RequestId, oneshot::Sender<Answer>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shard(&self, key: &ObjectKey) -> Option<&Shard> {
        let at = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards.get(at)
    }

    /// The subscribers of an object.
    fn attached(&self, key: &ObjectKey) -> Vec<Arc<Inbox>> {
        let Some(shard) = self.shard(key) else { return Vec::new() };
        read(shard).get(key).into_iter().flatten().filter_map(Weak::upgrade).collect()
    }
}

fn read(shard: &Shard) -> std::sync::RwLockReadGuard<'_, HashMap<ObjectKey, Vec<Weak<Inbox>>>> {
    shard.read().unwrap_or_else(PoisonError::into_inner)
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits is dropped, and the subscriber told so.
    fn lag(&self) {
        self.lock().lag();
        self.arrived.notify_one();
    }

    /// Puts a write in the queue; past the bounds all that waits is dropped and the subscriber told so.
    fn put(&self, write: &Arc<Applied>, bytes: usize, settings: &Settings) {
        let mut queue = self.lock();
        if queue.writes.len() >= settings.max_writes || (!queue.writes.is_empty() && queue.bytes + bytes > settings.max_bytes) {
            queue.lag();
        }
        if !queue.lagged {
            queue.writes.push_back(Arc::clone(write));
            queue.bytes += bytes;
        }
        drop(queue);
        self.arrived.notify_one();
    }
}

impl Queue {
    /// Drops all that waits.
    fn lag(&mut self) {
        self.writes.clear();
        self.bytes = 0;
        self.lagged = true;
        metrics::counter!("contrail_feed_lagged_total").increment(1);
    }
}

/// What a write weighs in a queue.
fn weight(write: &Applied) -> usize {
    write.rows.iter().map(|row| 64 + row.item.len() + row.data.as_ref().map_or(0, |data| data.len())).sum::<usize>() + 64
}

#[async_trait]
impl Feed for LocalFeed {
    fn wanted(&self, key: &ObjectKey) -> bool {
        self.0.subscribers.load(Ordering::SeqCst) > 0 && self.0.shard(key).is_some_and(|shard| read(shard).contains_key(key))
    }

    async fn publish(&self, writes: Vec<Applied>) -> Result<(), Error> {
        self.deliver(writes);
        Ok(())
    }

    async fn subscribe(&self, key: &ObjectKey) -> Result<Box<dyn Subscription>, Error> {
        let inbox = Arc::new(Inbox { state: Mutex::default(), arrived: Notify::new() });
        // Counted before it is attached: `wanted` may say true too early, never false too late.
        let attached = self.0.subscribers.fetch_add(1, Ordering::SeqCst) + 1;
        if let Some(shard) = self.0.shard(key) {
            shard.write().unwrap_or_else(PoisonError::into_inner).entry(key.clone()).or_default().push(Arc::downgrade(&inbox));
        }
        if self.0.closed.load(Ordering::SeqCst) {
            inbox.lock().closed = true;
        }
        metrics::gauge!("contrail_feed_subscribers").set(attached as f64);
        Ok(Box::new(LocalSubscription { feed: Arc::clone(&self.0), key: key.clone(), inbox }))
    }

    async fn answer(&self, answers: Vec<Answer>) -> Result<(), Error> {
        self.give(answers);
        Ok(())
    }

    fn expect(&self, request: RequestId) -> Result<Expected, Error> {
        let (waiting, answer) = oneshot::channel();
        self.0.waiting().insert(request, waiting);
        Ok(Expected { feed: Arc::clone(&self.0), request, answer })
    }

    fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
        for shard in &self.0.shards {
            let inboxes: Vec<Arc<Inbox>> = read(shard).values().flatten().filter_map(Weak::upgrade).collect();
            for inbox in inboxes {
                inbox.lock().closed = true;
                inbox.arrived.notify_one();
            }
        }
    }
}

/// One subscriber.
struct LocalSubscription {
    feed: Arc<Inner>,
    key: ObjectKey,
    inbox: Arc<Inbox>,
}

impl LocalSubscription {
    fn take(&self) -> Option<Update> {
        let mut queue = self.inbox.lock();
        if queue.closed {
            return Some(Update::Closed);
        }
        if queue.lagged {
            queue.lagged = false;
            return Some(Update::Lagged);
        }
        let write = queue.writes.pop_front()?;
        queue.bytes = queue.bytes.saturating_sub(weight(&write));
        Some(Update::Write(write))
    }
}

#[async_trait]
impl Subscription for LocalSubscription {
    async fn next(&mut self) -> Update {
        loop {
            if let Some(update) = self.take() {
                return update;
            }
            // `notify_one` leaves a permit where nobody waits, so that nothing put in between is slept through.
            self.inbox.arrived.notified().await;
        }
    }
}

impl Drop for LocalSubscription {
    fn drop(&mut self) {
        if let Some(shard) = self.feed.shard(&self.key)
            && let Entry::Occupied(mut attached) = shard.write().unwrap_or_else(PoisonError::into_inner).entry(self.key.clone())
        {
            attached.get_mut().retain(|other| other.upgrade().is_some_and(|other| !Arc::ptr_eq(&other, &self.inbox)));
            if attached.get().is_empty() {
                attached.remove();
            }
        }
        let left = self.feed.subscribers.fetch_sub(1, Ordering::SeqCst).saturating_sub(1);
        metrics::gauge!("contrail_feed_subscribers").set(left as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::feed::contract::{Subject, contract_tests, ids, key, write};

    struct One(LocalFeed);

    #[async_trait]
    impl Subject for One {
        async fn node(&self) -> Arc<dyn Feed> {
            Arc::new(self.0.clone())
        }
    }

    contract_tests!(One(LocalFeed::new(Settings::default())));

    #[tokio::test]
    async fn writes_reach_the_subscribers_of_their_object_in_order() {
        let feed = LocalFeed::new(Settings::default());
        assert!(!feed.wanted(&key("a")));
        let mut first = feed.subscribe(&key("a")).await.unwrap();
        let mut second = feed.subscribe(&key("a")).await.unwrap();
        assert!(feed.wanted(&key("a")) && !feed.wanted(&key("b")));
        feed.publish(vec![write("a", 1, 1), write("b", 9, 1), write("a", 2, 1)]).await.unwrap();
        assert_eq!(ids(&mut first, 2).await, [Some(1), Some(2)]);
        assert_eq!(ids(&mut second, 2).await, [Some(1), Some(2)]);
        drop(first);
        assert!(feed.wanted(&key("a")));
        drop(second);
        assert!(!feed.wanted(&key("a")));
        assert_eq!(feed.subscribers(), 0);
    }

    #[tokio::test]
    async fn a_full_queue_lags_alone() {
        let feed = LocalFeed::new(Settings { max_writes: 3, max_bytes: 1 << 20 });
        let mut slow = feed.subscribe(&key("a")).await.unwrap();
        let mut quick = feed.subscribe(&key("a")).await.unwrap();
        for id in 1..=10 {
            feed.publish(vec![write("a", id, 1)]).await.unwrap();
            assert_eq!(ids(&mut quick, 1).await, [Some(id)]);
        }
        assert_eq!(ids(&mut slow, 1).await, [None]);
        feed.publish(vec![write("a", 11, 1)]).await.unwrap();
        assert_eq!(ids(&mut slow, 1).await, [Some(11)]);
    }

    #[tokio::test]
    async fn bytes_bound_a_queue_too() {
        let feed = LocalFeed::new(Settings { max_writes: 1_000, max_bytes: 10_000 });
        let mut slow = feed.subscribe(&key("a")).await.unwrap();
        feed.publish(vec![write("a", 1, 6_000), write("a", 2, 6_000)]).await.unwrap();
        assert_eq!(ids(&mut slow, 1).await, [None]);
        // One write larger than the bound still passes alone.
        feed.publish(vec![write("a", 3, 20_000)]).await.unwrap();
        assert_eq!(ids(&mut slow, 1).await, [Some(3)]);
    }

    #[tokio::test]
    async fn a_gap_is_told_to_those_it_concerns() {
        let feed = LocalFeed::new(Settings::default());
        let (a, b) = (key("a"), key("b"));
        assert_ne!(a.partition(), b.partition());
        let (mut of_a, mut of_b) = (feed.subscribe(&a).await.unwrap(), feed.subscribe(&b).await.unwrap());
        feed.publish(vec![write("a", 1, 1), write("b", 1, 1)]).await.unwrap();
        feed.lag_partition(a.partition());
        feed.publish(vec![write("a", 2, 1), write("b", 2, 1)]).await.unwrap();
        assert_eq!(ids(&mut of_a, 1).await, [None], "what waited, and what comes before it is told, the snapshot has");
        assert_eq!(ids(&mut of_b, 2).await, [Some(1), Some(2)]);
        feed.lag_object(&b);
        assert_eq!(ids(&mut of_b, 1).await, [None]);
    }
}
