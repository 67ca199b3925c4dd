//! The in-process Feed: carries the keeper's writes to the subscribers of the same process. Made by the composition root, published to by the keeper,
//! subscribed to by the web. Must never wait for a subscriber: each has a bounded queue, and one that overflows is told that it lagged. With several
//! processes, [`kafka`] carries the writes to each one's own.

#[cfg(test)]
pub(crate) mod contract;
mod inbox;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "kafka")]
mod wire;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use async_trait::async_trait;
use tokio::sync::oneshot;

pub use self::inbox::{Address, Inbox};
use super::{Answer, Applied, Error, Feed, Update};
use crate::event::ObjectKey;
use crate::event::change::RequestId;

/// Parts the subscribers are spread over, so that attaching to one object does not hold up publishing to all others.
const SHARDS: usize = 16;

/// How much a subscriber may fall behind in an object before it is told to read a fresh snapshot.
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

/// Who is attached, by object. Its key is shared with all of them.
type Shard = HashMap<Arc<ObjectKey>, Vec<Address>>;

struct Inner {
    shards: Vec<RwLock<Shard>>,
    /// Who waits for the answer to a request. As many as the API lets wait at once.
    waiting: Mutex<HashMap<RequestId, oneshot::Sender<Answer>>>,
    hasher: RandomState,
    settings: Settings,
    subscribers: AtomicUsize,
    closed: AtomicBool,
}

impl LocalFeed {
    /// A feed without subscribers.
    pub fn new(settings: Settings) -> Self {
        let shards = (0..SHARDS).map(|_| RwLock::default()).collect();
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
            let attached = self.0.attached(&write.key);
            if attached.is_empty() {
                continue;
            }
            let bytes = weight(&write);
            let write = Arc::new(write);
            // First: who is told may look at once.
            metrics::counter!("contrail_feed_delivered_total").increment(attached.len() as u64);
            for address in &attached {
                address.put(&write, bytes, &self.0.settings);
            }
        }
    }

    /// Tells an object's subscribers that they missed writes.
    pub fn lag_object(&self, key: &ObjectKey) {
        self.0.attached(key).iter().for_each(Address::lag);
    }

    /// Tells the subscribers of all objects of a partition of `changes` that they missed writes.
    pub fn lag_partition(&self, partition: u16) {
        for shard in &self.0.shards {
            let of_it = |(key, attached): (&Arc<ObjectKey>, &Vec<Address>)| (key.partition() == partition).then(|| attached.clone());
            let lagging: Vec<Address> = read(shard).iter().filter_map(of_it).flatten().collect();
            lagging.iter().for_each(Address::lag);
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

    fn shard(&self, key: &ObjectKey) -> Option<&RwLock<Shard>> {
        let at = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards.get(at)
    }

    /// The subscribers of an object.
    fn attached(&self, key: &ObjectKey) -> Vec<Address> {
        let Some(shard) = self.shard(key) else { return Vec::new() };
        read(shard).get(key).cloned().unwrap_or_default()
    }

    /// Puts an address among the subscribers of an object. Gives the object's key as all of them share it.
    fn attach(&self, key: &ObjectKey, to: &Address) -> Arc<ObjectKey> {
        let Some(shard) = self.shard(key) else { return Arc::new(key.clone()) };
        let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
        let key = shard.get_key_value(key).map_or_else(|| Arc::new(key.clone()), |(key, _)| Arc::clone(key));
        shard.entry(Arc::clone(&key)).or_default().push(to.clone());
        key
    }

    fn detach(&self, key: &ObjectKey, from: &Address) {
        let Some(shard) = self.shard(key) else { return };
        let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
        let Some(attached) = shard.get_mut(key) else { return };
        if let Some(at) = attached.iter().position(|address| address.is(from)) {
            attached.swap_remove(at);
        }
        if attached.is_empty() {
            shard.remove(key);
        }
    }
}

fn read(shard: &RwLock<Shard>) -> RwLockReadGuard<'_, Shard> {
    shard.read().unwrap_or_else(PoisonError::into_inner)
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

    async fn attach(&self, key: &ObjectKey, to: Address) -> Result<Attached, Error> {
        to.hold();
        // Counted before it is attached: `wanted` may say true too early, never false too late.
        let subscribers = self.0.subscribers.fetch_add(1, Ordering::SeqCst) + 1;
        let key = self.0.attach(key, &to);
        if self.0.closed.load(Ordering::SeqCst) {
            to.close();
        }
        metrics::gauge!("contrail_feed_subscribers").set(subscribers as f64);
        Ok(Attached { feed: Arc::clone(&self.0), key, to })
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
            let attached: Vec<Address> = read(shard).values().flatten().cloned().collect();
            attached.iter().for_each(Address::close);
        }
    }
}

/// An object attached to an inbox, until it is dropped.
pub struct Attached {
    feed: Arc<Inner>,
    key: Arc<ObjectKey>,
    to: Address,
}

impl Attached {
    /// The object.
    pub const fn key(&self) -> &Arc<ObjectKey> {
        &self.key
    }

    /// Lets what is told of the object be taken from the inbox: all since it was attached.
    pub fn listen(&self) {
        self.to.release();
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.feed.detach(&self.key, &self.to);
        self.to.forget();
        let left = self.feed.subscribers.fetch_sub(1, Ordering::SeqCst).saturating_sub(1);
        metrics::gauge!("contrail_feed_subscribers").set(left as f64);
    }
}

/// One subscriber's end of the feed: an object in an inbox of its own. Dropping it detaches.
pub struct Subscription {
    inbox: Inbox,
    _attached: Attached,
}

impl Subscription {
    /// Attaches to an object.
    ///
    /// # Errors
    /// As [`Feed::attach`].
    pub async fn of(feed: &(impl Feed + ?Sized), key: &ObjectKey) -> Result<Self, Error> {
        let inbox = Inbox::default();
        let attached = feed.attach(key, inbox.address(0)).await?;
        attached.listen();
        Ok(Self { inbox, _attached: attached })
    }

    /// The next update. Cancel-safe.
    pub async fn next(&mut self) -> Update {
        self.inbox.next().await.1
    }

    /// Whether anything waits that [`Subscription::next`] has not given.
    pub fn is_told(&self) -> bool {
        self.inbox.is_told()
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

    async fn told(inbox: &mut Inbox) -> (u32, Option<u64>) {
        match inbox.next().await {
            (tag, Update::Write(write)) => (tag, Some(write.event_id)),
            (tag, _) => (tag, None),
        }
    }

    #[tokio::test]
    async fn an_inbox_gives_each_objects_updates_in_order_and_objects_in_turns() {
        let feed = LocalFeed::new(Settings { max_writes: 3, max_bytes: 1 << 20 });
        let mut inbox = Inbox::default();
        let (a, b) = (feed.attach(&key("a"), inbox.address(1)).await.unwrap(), feed.attach(&key("b"), inbox.address(2)).await.unwrap());
        a.listen();
        b.listen();
        assert!(!inbox.is_told());
        feed.publish(vec![write("a", 1, 1), write("a", 2, 1), write("a", 3, 1), write("b", 7, 1)]).await.unwrap();
        assert!(inbox.is_told());
        let (first, second) = (told(&mut inbox).await, told(&mut inbox).await);
        assert_eq!((first, second), ((1, Some(1)), (2, Some(7))));
        assert_eq!((told(&mut inbox).await, told(&mut inbox).await), ((1, Some(2)), (1, Some(3))));
        // What is too much of one object is told of that alone.
        feed.publish((1..=4).map(|id| write("a", id, 1)).chain([write("b", 8, 1)]).collect()).await.unwrap();
        assert_eq!((told(&mut inbox).await, told(&mut inbox).await), ((1, None), (2, Some(8))));
        assert!(!inbox.is_told());
        assert_eq!(feed.subscribers(), 2);
        drop((a, b));
        assert!(!feed.wanted(&key("a")) && feed.subscribers() == 0);
    }

    #[tokio::test]
    async fn what_is_told_before_it_is_listened_to_is_kept_and_of_what_is_detached_nothing() {
        let feed = LocalFeed::new(Settings::default());
        let mut inbox = Inbox::default();
        let (a, b) = (feed.attach(&key("a"), inbox.address(1)).await.unwrap(), feed.attach(&key("b"), inbox.address(2)).await.unwrap());
        b.listen();
        feed.publish(vec![write("a", 1, 1), write("a", 2, 1), write("b", 7, 1)]).await.unwrap();
        assert_eq!(told(&mut inbox).await, (2, Some(7)));
        assert!(!inbox.is_told(), "held back");
        a.listen();
        assert_eq!(told(&mut inbox).await, (1, Some(1)));
        drop(a);
        feed.publish(vec![write("a", 3, 1), write("b", 8, 1)]).await.unwrap();
        assert_eq!(told(&mut inbox).await, (2, Some(8)));
        assert!(!inbox.is_told());
        // Woken by what was held back, too.
        let c = feed.attach(&key("c"), inbox.address(3)).await.unwrap();
        feed.publish(vec![write("c", 1, 1)]).await.unwrap();
        let (heard, ()) = tokio::join!(told(&mut inbox), async { c.listen() });
        assert_eq!(heard, (3, Some(1)));
        feed.close();
        assert_eq!(told(&mut inbox).await, (0, None));
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
