//! A way to the mock cluster that may leave every broker out of what the cluster tells of itself, as brokers do that were just let out and not yet in again
//! (all of them fenced, after a pause). Used by the tests of faults; it ends with them.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Buf, BufMut};
use rand::Rng;
use rdkafka::types::RDKafkaApiKey as Api;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::mock::Mock;

/// The latest version of Metadata whose fields are told without tags.
const VERSION: i16 = 8;

/// The running way. Dropped, it ends.
pub(super) struct Way {
    brokers: String,
    told: Arc<Told>,
    _serving: JoinSet<()>,
}

/// What is told of the brokers.
struct Told {
    /// By port of a broker the way to it.
    ports: BTreeMap<i32, i32>,
    /// The share of answers that name none.
    blank: Mutex<f64>,
    /// Answers that named none.
    blanks: AtomicUsize,
}

impl Way {
    pub(super) async fn to(mock: &Mock) -> Self {
        mock.speak(Api::Metadata, VERSION);
        let (mut ports, mut listeners) = (BTreeMap::new(), Vec::new());
        for broker in mock.servers().split(',') {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = broker.rsplit(':').next().unwrap().parse().unwrap();
            ports.insert(port, i32::from(listener.local_addr().unwrap().port()));
            listeners.push((broker.to_owned(), listener));
        }
        let brokers: Vec<String> = ports.values().map(|port| format!("127.0.0.1:{port}")).collect();
        let told = Arc::new(Told { ports, blank: Mutex::new(0.0), blanks: AtomicUsize::new(0) });
        let mut serving = JoinSet::new();
        for (broker, listener) in listeners {
            serving.spawn(serve(listener, broker, Arc::clone(&told)));
        }
        Self { brokers: brokers.join(","), told, _serving: serving }
    }

    /// Where its ends are.
    pub(super) fn url(&self) -> String {
        format!("kafka://{}", self.brokers)
    }

    /// From now on that share of answers tells of no broker.
    pub(super) fn blank(&self, share: f64) {
        *self.told.blank.lock().unwrap() = share;
    }

    /// Answers by now that told of none.
    pub(super) fn blanks(&self) -> usize {
        self.told.blanks.load(Ordering::SeqCst)
    }
}

async fn serve(listener: TcpListener, broker: String, told: Arc<Told>) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        // A broker that takes none: neither does its way.
        let Ok(server) = TcpStream::connect(&broker).await else { continue };
        let told = Arc::clone(&told);
        connections.spawn(async move {
            let (asked, (from_client, to_client), (from_server, to_server)) = (Mutex::default(), client.into_split(), server.into_split());
            // When either side has gone, so does the other.
            tokio::select! {
                _ = requests(from_client, to_server, &asked) => {}
                _ = answers(from_server, to_client, &asked, &told) => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// By correlation id the version of each question of metadata that is under way.
type Asked = Mutex<HashMap<i32, i16>>;

async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, asked: &Asked) -> std::io::Result<()> {
    loop {
        let frame = frame(&mut from).await?;
        let mut head = frame.as_slice();
        let (api, version, id) = (head.get_i16(), head.get_i16(), head.get_i32());
        if api == i16::from(Api::Metadata) {
            asked.lock().unwrap().insert(id, version);
        }
        send(&mut to, &frame).await?;
    }
}

async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, asked: &Asked, told: &Told) -> std::io::Result<()> {
    loop {
        let frame = frame(&mut from).await?;
        let version = asked.lock().unwrap().remove(&frame.as_slice().get_i32());
        match version {
            Some(version) => send(&mut to, &told.rewritten(&frame, version)).await?,
            None => send(&mut to, &frame).await?,
        }
    }
}

async fn frame(from: &mut OwnedReadHalf) -> std::io::Result<Vec<u8>> {
    let mut frame = vec![0; from.read_i32().await?.try_into().unwrap()];
    from.read_exact(&mut frame).await?;
    Ok(frame)
}

async fn send(to: &mut OwnedWriteHalf, frame: &[u8]) -> std::io::Result<()> {
    to.write_i32(frame.len().try_into().unwrap()).await?;
    to.write_all(frame).await
}

impl Told {
    /// An answer of metadata (<https://kafka.apache.org/protocol.html#The_Messages_Metadata>) with these ways for its brokers, or with none.
    fn rewritten(&self, answer: &[u8], version: i16) -> Vec<u8> {
        assert!(version <= VERSION, "{version}");
        // The correlation id, and how long the client is throttled.
        let head = if version >= 3 { 8 } else { 4 };
        let (mut rest, mut brokers, mut count) = (&answer[head..], Vec::new(), 0);
        let is_blank = rand::rng().random_bool(*self.blank.lock().unwrap());
        for _ in 0..rest.get_i32() {
            let (number, host, port) = (rest.get_i32(), string(&mut rest), rest.get_i32());
            let rack = (version >= 1).then(|| string(&mut rest));
            if !is_blank {
                count += 1;
                brokers.put_i32(number);
                brokers.put_slice(host);
                brokers.put_i32(self.ports[&port]);
                brokers.put_slice(rack.unwrap_or_default());
            }
        }
        if count == 0 {
            self.blanks.fetch_add(1, Ordering::SeqCst);
        }
        let mut rewritten = answer[..head].to_vec();
        rewritten.put_i32(count);
        rewritten.extend(brokers);
        rewritten.extend(rest);
        rewritten
    }
}

/// A string with its length before it, as it stands.
fn string<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let length = 2 + usize::try_from(i16::from_be_bytes([rest[0], rest[1]])).unwrap_or(0);
    let (string, after) = rest.split_at(length);
    *rest = after;
    string
}
