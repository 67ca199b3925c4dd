//! Tests of the room over the embedded log, with a receiver that answers as it is told.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Mutex;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use serde_json::{Value, json};

use super::message::tests::archived;
use super::*;
use crate::event::{Clock, Timestamp};
use crate::eventlog::Append;
use crate::eventlog::embedded::{self, EmbeddedLog};
use crate::signature;
use crate::site::{self, NewSite, Regions, ServiceChange};

/// Path and query, headers and parameters of what came.
type Came = (String, HeaderMap, Vec<(String, String)>);

/// What came, and what is to be answered.
#[derive(Clone, Default)]
struct Receiver {
    told: Arc<Mutex<Vec<Came>>>,
    answers: Arc<Mutex<VecDeque<u16>>>,
    /// While this is held, nothing is answered.
    gate: Arc<tokio::sync::Mutex<()>>,
    came: Arc<tokio::sync::Notify>,
}

async fn receive(State(receiver): State<Receiver>, uri: Uri, headers: HeaderMap, body: Bytes) -> StatusCode {
    let params = url::form_urlencoded::parse(&body).into_owned().collect();
    receiver.told.lock().unwrap().push((uri.to_string(), headers, params));
    receiver.came.notify_one();
    drop(receiver.gate.lock().await);
    let answer = receiver.answers.lock().unwrap().pop_front().unwrap_or(204);
    StatusCode::from_u16(answer).unwrap()
}

impl Receiver {
    /// Serves on a free port; gives its URL.
    async fn serve(&self, tasks: &mut JoinSet<()>) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook?shop=1", listener.local_addr().unwrap());
        let app = Router::new().fallback(receive).with_state(self.clone());
        tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
        url
    }

    /// Waits until so many came; what each is of, and its revision.
    async fn told(&self, count: usize) -> Vec<(String, String)> {
        let all = async {
            while self.told.lock().unwrap().len() < count {
                self.came.notified().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), all).await.expect("not told in time");
        let of = |params: &[(String, String)], wanted: &str| params.iter().find(|(name, _)| name == wanted).unwrap().1.clone();
        self.told.lock().unwrap().iter().map(|(_, _, params)| (of(params, "DocumentSid"), of(params, "DocumentRevision"))).collect()
    }
}

struct It {
    log: Arc<dyn EventLog>,
    sites: Arc<Sites>,
    tasks: JoinSet<()>,
}

async fn open(dir: &Path) -> It {
    let clock = Clock::fixed(Timestamp::parse("2026-11-20T10:00:00Z").unwrap());
    let log = EmbeddedLog::open(&dir.join("log"), &embedded::Settings::default(), &clock).unwrap();
    let store = site::open("embedded", dir, &site::Settings::default()).await.unwrap();
    let sites = Arc::new(Sites::new(store, Regions::default(), clock).await.unwrap());
    It { log: Arc::new(log), sites, tasks: JoinSet::new() }
}

/// Pauses short enough for a test.
fn settings() -> Settings {
    let queue = QueueSettings { first_pause: Duration::from_millis(5), longest_pause: Duration::from_millis(20), ..QueueSettings::default() };
    Settings { queue, commit_every: Duration::from_millis(5), ..Settings::default() }
}

impl It {
    async fn service(&self, name: &str, url: &str, from_rest: bool) {
        let id = SiteId::parse(name).unwrap();
        if self.sites.get(&id).is_none() {
            self.sites.add(&id, NewSite::default()).await.unwrap();
        }
        let change = ServiceChange { webhook_url: Some(Some(url.into())), webhooks_from_rest_enabled: Some(from_rest), ..ServiceChange::default() };
        self.sites.set_service(&id, change).await.unwrap();
    }

    async fn did(&self, site: &str, identity: &str, sid: &str, revisions: std::ops::Range<u64>) {
        // One append each, as the keeper does: what comes later is appended when that before it is durable.
        for revision in revisions {
            let object = json!({"sid": sid, "kind": "document", "event_id": revision + 1, "revision": revision});
            let properties: Value = json!({"action": "document_updated", "identity": identity, "object": object, "data": "{\"\u{e9}\":1}"});
            let (partition, record) = archived(site, &format!("{site} {sid} {revision}"), &properties);
            self.log.append(Topic::Events, vec![Append { partition, value: record.to_bytes() }]).await.unwrap();
        }
    }

    /// Runs the room as long as `meanwhile` takes.
    async fn run(&self, to_private: bool, settings: Settings, meanwhile: impl Future<Output = ()>) {
        let stop = CancellationToken::new();
        let room = Webhooks::new(Arc::clone(&self.log), Arc::clone(&self.sites), Client::new(to_private), settings);
        let running = async { room.run(true, stop.clone()).await.unwrap() };
        let ending = async {
            meanwhile.await;
            stop.cancel();
        };
        tokio::join!(running, ending);
    }

    /// Waits until all that is in the log is committed.
    async fn settled(&self) {
        let all = async {
            loop {
                let ends: Vec<Offset> = self.log.bounds(Topic::Events).await.unwrap().iter().map(|bounds| bounds.next).collect();
                if self.log.committed(Topic::Events, GROUP).await.unwrap() == ends {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), all).await.expect("not committed in time");
    }
}

fn in_order(sid: &str, revisions: std::ops::Range<u64>) -> Vec<(String, String)> {
    revisions.map(|revision| (sid.to_owned(), revision.to_string())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_change_is_told_once_in_its_objects_order_and_signed() {
    let (dir, receiver) = (tempfile::tempdir().unwrap(), Receiver::default());
    let mut it = open(dir.path()).await;
    let url = receiver.serve(&mut it.tasks).await;
    it.service("demo", &url, false).await;
    it.did("demo", "alice", "ET1", 0..30).await;
    it.run(true, settings(), async {
        receiver.told(30).await;
        it.did("demo", "alice", "ET1", 30..60).await;
        assert_eq!(receiver.told(60).await, in_order("ET1", 0..60));
        it.settled().await;
    })
    .await;
    let token = it.sites.webhook_secret(&SiteId::parse("demo").unwrap()).unwrap();
    let told = receiver.told.lock().unwrap();
    assert_eq!(told.len(), 60);
    for (path, headers, params) in told.iter() {
        assert_eq!(path, "/hook?shop=1");
        let given = headers[signature::HEADER].to_str().unwrap();
        let params: Vec<(&str, &str)> = params.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert!(signature::is_of(given, &token, &url, &params), "{params:?}");
        assert!(params.iter().any(|(name, value)| *name == "ServiceSid" && value.starts_with("IS")));
    }
    let ids: std::collections::HashSet<_> = told.iter().map(|(_, headers, _)| headers["i-twilio-idempotency-token"].clone()).collect();
    assert_eq!(ids.len(), 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_by_rest_is_told_where_that_is_on() {
    let (dir, receiver) = (tempfile::tempdir().unwrap(), Receiver::default());
    let mut it = open(dir.path()).await;
    let url = receiver.serve(&mut it.tasks).await;
    it.service("with", &url, true).await;
    it.service("without", &url, false).await;
    for (site, sid) in [("with", "ET1"), ("without", "ET2")] {
        it.did(site, "system", sid, 0..1).await;
    }
    it.did("without", "alice", "ET3", 0..1).await;
    it.did("nowhere", "alice", "ET4", 0..1).await;
    it.run(true, settings(), it.settled()).await;
    let mut told = receiver.told(2).await;
    told.sort();
    assert_eq!(told, [in_order("ET1", 0..1), in_order("ET3", 0..1)].concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_is_tried_again_and_a_refusal_is_not() {
    let (dir, receiver) = (tempfile::tempdir().unwrap(), Receiver::default());
    let mut it = open(dir.path()).await;
    let url = receiver.serve(&mut it.tasks).await;
    it.service("demo", &url, false).await;
    receiver.answers.lock().unwrap().extend([503, 429, 408, 500, 200, 404, 302, 410, 204]);
    it.did("demo", "alice", "ET1", 0..5).await;
    it.run(true, settings(), it.settled()).await;
    let tried: Vec<String> = receiver.told(9).await.into_iter().map(|(_, revision)| revision).collect();
    assert_eq!(tried, ["0", "0", "0", "0", "0", "1", "2", "3", "4"]);
    let told = receiver.told.lock().unwrap();
    let id = |at: usize| told[at].1["i-twilio-idempotency-token"].clone();
    assert_eq!((id(0), told.len()), (id(4), 9));
    assert_ne!(id(4), id(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_that_are_not_public_are_told_nothing_unless_a_setting_allows_it() {
    let (dir, receiver) = (tempfile::tempdir().unwrap(), Receiver::default());
    let mut it = open(dir.path()).await;
    let url = receiver.serve(&mut it.tasks).await;
    it.service("demo", &url, false).await;
    it.did("demo", "alice", "ET1", 0..3).await;
    it.run(false, settings(), it.settled()).await;
    assert_eq!(receiver.told.lock().unwrap().len(), 0);
    it.did("demo", "alice", "ET1", 3..4).await;
    it.run(true, settings(), it.settled()).await;
    assert_eq!(receiver.told(1).await, in_order("ET1", 3..4), "what was given up is passed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_does_not_answer_holds_up_nobody_else() {
    let (dir, slow, quick) = (tempfile::tempdir().unwrap(), Receiver::default(), Receiver::default());
    let mut it = open(dir.path()).await;
    let (slow_url, quick_url) = (slow.serve(&mut it.tasks).await, quick.serve(&mut it.tasks).await);
    it.service("slow", &slow_url, false).await;
    it.service("quick", &quick_url, false).await;
    let held = slow.gate.lock().await;
    for object in 0..20 {
        it.did("slow", "alice", &format!("ET{object}"), 0..2).await;
    }
    it.did("quick", "alice", "ET1", 0..40).await;
    it.run(true, settings(), async {
        assert_eq!(quick.told(40).await, in_order("ET1", 0..40));
        assert!(slow.told.lock().unwrap().len() <= 8, "at most so many at once");
        drop(held);
        slow.told(40).await;
        it.settled().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_told_before_a_stop_is_told_after_it() {
    let (dir, receiver) = (tempfile::tempdir().unwrap(), Receiver::default());
    let mut it = open(dir.path()).await;
    let url = receiver.serve(&mut it.tasks).await;
    it.service("demo", &url, false).await;
    it.did("demo", "alice", "ET1", 0..4).await;
    it.did("demo", "alice", "ET2", 0..1).await;
    let stuck = Settings { finish_within: Duration::from_millis(1), ..settings() };
    let held = receiver.gate.lock().await;
    it.run(true, stuck, async {
        receiver.told(2).await;
    })
    .await;
    drop(held);
    receiver.told.lock().unwrap().clear();
    it.run(true, settings(), it.settled()).await;
    let mut told = receiver.told(5).await;
    told.sort();
    assert_eq!(told, [in_order("ET1", 0..4), in_order("ET2", 0..1)].concat());
    it.run(true, settings(), it.settled()).await;
    assert_eq!(receiver.told.lock().unwrap().len(), 5, "and once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_webhook_the_log_is_passed() {
    let dir = tempfile::tempdir().unwrap();
    let it = open(dir.path()).await;
    it.sites.add(&SiteId::parse("demo").unwrap(), NewSite::default()).await.unwrap();
    it.did("demo", "alice", "ET1", 0..50).await;
    it.run(true, settings(), it.settled()).await;
}
