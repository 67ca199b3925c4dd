//! Subscribers on two nodes, of objects that keepers on others change: a keeper joins, one is killed and comes back.

use std::collections::BTreeMap;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Cluster, SESSION};
use crate::crash::assert_budget;
use crate::harness::{KEY, READ, Server};
use crate::http::{Connection, Events, Message, again};

/// Whose trails are followed: each event of a customer is an item of its own, so that a write that were missed would show at the end.
const CUSTOMERS: [&str; 4] = ["f1", "f2", "f3", "f4"];
/// Events of each customer.
const ROUNDS: usize = 200;
/// Also followed: every event changes it, more often than it may be written: those of the customers, and of others so many at a time, all the while.
const HOT: &str = "/v1/live/maps/product.hot";
const MORE: (usize, usize) = (1_200, 3);
/// Those of others come so far apart: not a burst, but longer than a burst is allowed.
const APART: Duration = Duration::from_millis(25);

fn trail(customer: &str) -> String {
    format!("/v1/live/lists/trail.customer.{customer}")
}

fn view(customer: &str, round: usize) -> Value {
    json!({"type": "product_viewed", "event_id": format!("feed-{customer}-{round}"), "customer": {"id": customer}, "product": {"id": "hot"},
           "page": {"url": format!("/round/{round}")}})
}

/// Somebody looks at the hot product.
fn more(number: usize) -> Value {
    json!({"type": "product_viewed", "event_id": format!("feed-more-{number}"), "product": {"id": "hot"}})
}

/// What a subscriber saw.
struct Seen {
    /// The items as snapshots and changes make them.
    items: BTreeMap<String, Value>,
    /// Event id of every write that came as changes.
    writes: Vec<u64>,
    /// Event id of every snapshot.
    snapshots: Vec<u64>,
    /// When each of those came.
    times: Vec<Instant>,
    /// From when on it was asked for to the end.
    took: Duration,
}

impl Seen {
    /// The greatest event id.
    fn last(&self) -> u64 {
        self.writes.last().max(self.snapshots.last()).copied().unwrap_or_default()
    }

    /// Takes a message; what comes later is of a later revision.
    fn take(&mut self, message: &Message) {
        let last = self.last();
        let data = &message.data;
        match (message.event.as_str(), data["key"].as_str()) {
            ("snapshot", _) => {
                let items = data["items"].as_object().unwrap();
                self.items = items.iter().map(|(key, item)| (key.clone(), item["data"].clone())).collect();
                assert!(message.id.unwrap() >= last, "{message:?} after {last}");
                self.snapshots.extend(message.id);
                return;
            }
            ("change", Some(key)) => drop(self.items.insert(key.to_owned(), data["data"].clone())),
            ("removed", Some(key)) => drop(self.items.remove(key)),
            _ => panic!("unexpected {message:?}"),
        }
        if let Some(id) = message.id {
            assert!(id > last, "{message:?} after {last}");
            self.writes.push(id);
            self.times.push(Instant::now());
        }
    }
}

/// Follows an object to its end.
fn follow(address: &str, path: &str, is_end: impl Fn(&Seen) -> bool + Send + 'static) -> JoinHandle<Seen> {
    let began = Instant::now();
    let mut events = Events::open(address, &format!("{path}/events"), READ, None);
    std::thread::spawn(move || {
        let mut seen = Seen { items: BTreeMap::new(), writes: Vec::new(), snapshots: Vec::new(), times: Vec::new(), took: Duration::ZERO };
        let mut ended = false;
        while !ended {
            let message = events.next();
            seen.take(&message);
            // A write's messages belong together: the last has the id.
            ended = message.id.is_some() && is_end(&seen);
        }
        Seen { took: began.elapsed(), ..seen }
    })
}

/// Gives the second web node and the keepers.
pub(super) fn assert_subscribers_anywhere_see_every_change(
    cluster: &Cluster,
    taking: &Server,
    web: &Server,
    keeping: Server,
) -> (Server, Vec<Server>) {
    let other_web = cluster.lasting("web-b", "web");
    taking.accept(&CUSTOMERS.map(|customer| view(customer, 0)));
    web.settle();
    let (batches, of) = MORE;
    let total = json!(CUSTOMERS.len() * (ROUNDS + 1) + batches * of);
    let mut followers = Vec::new();
    for node in [web, &other_web] {
        for customer in CUSTOMERS {
            // Events are routed by their ids, and the last one may come before others: each is one change.
            followers.push((trail(customer), follow(&node.address, &trail(customer), |seen| seen.last() > ROUNDS as u64)));
        }
        let total = total.clone();
        followers.push((HOT.to_owned(), follow(&node.address, HOT, move |seen| seen.items.values().any(|item| item["views"] == total))));
    }
    let send = |rounds: std::ops::RangeInclusive<usize>| {
        for round in rounds {
            CUSTOMERS.iter().for_each(|customer| taking.accept(&[view(customer, round)]));
        }
    };
    let address = taking.address.clone();
    let flood = std::thread::spawn(move || {
        let mut connection = Connection::open(&address).unwrap();
        for batch in 0..batches {
            let body = serde_json::to_vec(&(0..of).map(|n| more(batch * of + n)).collect::<Vec<_>>()).unwrap();
            let answer = again(|| connection.call("POST", "/v1/events", &[("authorization", &format!("Bearer {KEY}"))], &body).unwrap());
            assert_eq!(answer.status, 200, "{}", answer.text());
            std::thread::sleep(APART);
        }
    });
    send(1..=50);
    let joined = cluster.lasting("keeping-d", "sync");
    send(51..=100);
    keeping.kill();
    send(101..=150);
    // Long enough for the other one to own all; then it comes back to its partitions.
    std::thread::sleep(SESSION + Duration::from_secs(1));
    let back = cluster.lasting("keeping-c", "sync");
    send(151..=ROUNDS);
    flood.join().unwrap();
    let mut by_object = BTreeMap::<String, Vec<Seen>>::new();
    for (path, follower) in followers {
        by_object.entry(path).or_default().push(follower.join().unwrap());
    }
    web.settle();
    for (path, both) in &by_object {
        let read = web.read(path);
        let items: BTreeMap<String, Value> =
            read["items"].as_object().unwrap().iter().map(|(key, item)| (key.clone(), item["data"].clone())).collect();
        for seen in both {
            let differing = items.keys().chain(seen.items.keys()).filter(|key| items.get(*key) != seen.items.get(*key));
            let differing: Vec<_> = differing.map(|key| (key, seen.items.get(key), items.get(key))).collect();
            let followed: Vec<_> = both.iter().map(|seen| (&seen.snapshots, &seen.writes)).collect();
            assert!(differing.is_empty(), "{path}: what changes made and what is read: {differing:?}; snapshots and writes of both {followed:?}");
            assert!(seen.writes.len() > 20, "{path}: {} writes, {:?}", seen.writes.len(), seen.snapshots);
        }
        assert_eq!(read, other_web.read(path), "{path}");
        let [one, other] = &both[..] else { panic!("two follow each") };
        if one.snapshots.len() + other.snapshots.len() == 2 {
            assert_eq!(one.writes, other.writes, "{path}: both see every write");
        }
    }
    for seen in &by_object[HOT] {
        // Whichever keeper wrote it.
        let allowed = 200.0 + 20.0 * seen.took.as_secs_f64();
        println!("{} writes of at most {allowed:.0} for {total} changes", seen.writes.len());
        assert!(seen.writes.len() as f64 <= allowed);
        assert_budget(&seen.times, 20);
    }
    (other_web, vec![joined, back])
}
