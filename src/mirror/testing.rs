//! The room over an embedded log and store with a keeper that runs, and a service elsewhere that answers or not.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::*;
use crate::event::Change;
use crate::event::change::{Op, Origin, Stamp};
use crate::event::{ObjectKey, ObjectKind, PARTITIONS, SiteId};
use crate::eventlog::embedded::EmbeddedLog;
use crate::eventlog::{Append, Topic};
use crate::site::{NewSite, Regions};
use crate::sync::embedded::EmbeddedStore;
use crate::sync::feed::LocalFeed;
use crate::sync::keeper::{Keeper, KeeperSettings};

/// The service elsewhere: documents alone.
#[derive(Default)]
struct Elsewhere {
    answers: AtomicBool,
    asked: Mutex<Vec<String>>,
    documents: Mutex<BTreeMap<String, String>>,
}

impl Elsewhere {
    fn names(&self) -> Vec<String> {
        self.documents.lock().unwrap().keys().cloned().collect()
    }
}

async fn answer(State(elsewhere): State<Arc<Elsewhere>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    elsewhere.asked.lock().unwrap().push(format!("{} {path}", parts.method));
    if !elsewhere.answers.load(Ordering::Relaxed) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let form: BTreeMap<String, String> = url::form_urlencoded::parse(&body).into_owned().collect();
    let shown = |data: &str| Json(json!({"data": serde_json::from_str::<Value>(data).unwrap()})).into_response();
    let mut documents = elsewhere.documents.lock().unwrap();
    let named = path.strip_prefix("/v1/Services/IS1/Documents/").map(str::to_owned);
    match (&parts.method, named) {
        (&Method::POST, None) => {
            documents.insert(form["UniqueName"].clone(), form["Data"].clone());
            (StatusCode::CREATED, shown(&form["Data"])).into_response()
        }
        (&Method::POST, Some(name)) if documents.contains_key(&name) => {
            documents.insert(name, form["Data"].clone());
            shown(&form["Data"])
        }
        (&Method::GET, Some(name)) if documents.contains_key(&name) => shown(&documents[&name]),
        (&Method::DELETE, Some(name)) if documents.remove(&name).is_some() => StatusCode::NO_CONTENT.into_response(),
        _ => (StatusCode::NOT_FOUND, Json(json!({"code": 20404}))).into_response(),
    }
}

struct It {
    log: Arc<dyn EventLog>,
    sites: Arc<Sites>,
    elsewhere: Arc<Elsewhere>,
    url: String,
    version: u64,
    stop: CancellationToken,
    rooms: JoinSet<()>,
    _dir: tempfile::TempDir,
}

fn demo() -> SiteId {
    SiteId::parse("demo").unwrap()
}

impl It {
    async fn start(settings: Settings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let log: Arc<dyn EventLog> =
            Arc::new(EmbeddedLog::open(&dir.path().join("log"), &crate::eventlog::embedded::Settings::default(), &clock).unwrap());
        let store: Arc<dyn ObjectStore> = Arc::new(EmbeddedStore::open(&dir.path().join("objects.db"), Duration::from_millis(20)).unwrap());
        let sites = crate::site::open("embedded", &dir.path().join("sites"), &crate::site::Settings::default()).await.unwrap();
        let sites = Arc::new(Sites::new(sites, Regions::default(), clock.clone()).await.unwrap());
        sites.add(&demo(), NewSite::default()).await.unwrap();
        let elsewhere = Arc::new(Elsewhere::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("twilio+http://AC1:hush@{}/IS1", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&elsewhere));
        let (stop, mut rooms) = (CancellationToken::new(), JoinSet::new());
        rooms.spawn(async move { axum::serve(listener, router).await.unwrap() });
        let (feed, expiry) = (Arc::new(LocalFeed::new(Default::default())), KeeperSettings::default().expiry);
        let settings_of_keeper = KeeperSettings { checkpoint_every: Duration::from_millis(20), ..KeeperSettings::default() };
        let keeper = Keeper {
            log: Arc::clone(&log),
            store: Arc::clone(&store),
            feed,
            clock: clock.clone(),
            settings: settings_of_keeper,
            status: Arc::default(),
        };
        let stopping = stop.clone();
        rooms.spawn(async move { keeper.run(stopping).await.unwrap() });
        let mirroring = Mirroring { log: Arc::clone(&log), store, expiry, sites: Arc::clone(&sites), client: Client::new(true), clock, settings };
        let stopping = stop.clone();
        rooms.spawn(async move { mirroring.run(stopping).await.unwrap() });
        Self { log, sites, elsewhere, url, version: 0, stop, rooms, _dir: dir }
    }

    async fn put(&mut self, name: &str, removes: bool) {
        self.version += 1;
        let now = Clock::system().now();
        let key = ObjectKey { site: demo(), kind: ObjectKind::Document, name: name.into() };
        let op = if removes { Op::Remove } else { Op::Replace { data: format!("{{\"n\":{}}}", self.version) } };
        let stamp = Stamp { at: now, id: String::new() };
        let change = Change { origin: Origin::Archive { version: self.version }, received_at: now, stamp, ops: vec![op], key };
        let append = Append { partition: change.key.partition(), value: change.to_bytes() };
        self.log.append(Topic::Changes, vec![append]).await.unwrap();
    }

    async fn set_mirror(&self, objects: &[&str]) {
        let objects: Vec<String> = objects.iter().map(|&object| object.to_owned()).collect();
        self.sites.set_mirror(&demo(), Some((&self.url, &objects))).await.unwrap();
    }

    fn copied(&self) -> usize {
        self.sites.mirror(&demo()).map_or(0, |mirror| mirror.copied.len())
    }

    /// Whether all that there is in the log is passed.
    async fn is_passed(&self) -> bool {
        let (committed, bounds) = (self.log.committed(Topic::Changes, GROUP).await.unwrap(), self.log.bounds(Topic::Changes).await.unwrap());
        bounds.iter().zip(committed).all(|(bounds, committed)| committed == bounds.next)
    }

    async fn stop(mut self) {
        self.stop.cancel();
        // The service elsewhere serves on.
        for _ in 0..2 {
            self.rooms.join_next().await.unwrap().unwrap();
        }
    }
}

async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap_or_else(|_| panic!("in time: {what}"));
}

fn quick() -> Settings {
    let queue = QueueSettings { first_pause: Duration::from_millis(1), longest_pause: Duration::from_millis(50), ..QueueSettings::default() };
    Settings { commit_every: Duration::from_millis(10), settle: Duration::from_millis(10), queue, ..Settings::default() }
}

#[tokio::test]
async fn who_does_not_answer_holds_no_log_and_gets_all_anew() {
    let mut it = It::start(Settings { longest: Duration::from_millis(100), ..quick() }).await;
    it.elsewhere.answers.store(true, Ordering::Relaxed);
    it.put("board.before", false).await;
    it.set_mirror(&["board.*"]).await;
    until("a copy", async || it.copied() == usize::from(PARTITIONS)).await;
    assert_eq!(it.elsewhere.names(), ["board.before"]);
    it.elsewhere.answers.store(false, Ordering::Relaxed);
    for n in 0..20 {
        it.put(&format!("board.{n}"), false).await;
        it.put(&format!("other.{n}"), false).await;
    }
    until("the log is let go of", async || it.copied() == 0 && it.is_passed().await).await;
    assert_eq!(it.elsewhere.names(), ["board.before"]);
    it.elsewhere.answers.store(true, Ordering::Relaxed);
    until("a copy", async || it.copied() == usize::from(PARTITIONS)).await;
    assert_eq!(it.elsewhere.names().len(), 21, "{:?}", it.elsewhere.names());
    it.stop().await;
}

#[tokio::test]
async fn what_was_there_already_is_copied_without_the_log_and_without_a_mirror_nothing_is_held() {
    let mut it = It::start(quick()).await;
    it.elsewhere.answers.store(true, Ordering::Relaxed);
    for n in 0..5 {
        it.put(&format!("board.{n}"), false).await;
    }
    it.set_mirror(&["document:board.*"]).await;
    until("a copy", async || it.copied() == usize::from(PARTITIONS)).await;
    assert_eq!(it.elsewhere.names().len(), 5);
    it.elsewhere.asked.lock().unwrap().clear();
    it.put("board.1", false).await;
    until("a change", async || it.elsewhere.documents.lock().unwrap()["board.1"] == "{\"n\":6}").await;
    assert_eq!(*it.elsewhere.asked.lock().unwrap(), ["POST /v1/Services/IS1/Documents/board.1"], "what is known there is not asked for");
    it.put("board.0", true).await;
    until("a removal", async || it.elsewhere.names() == ["board.1", "board.2", "board.3", "board.4"]).await;
    until("all is passed", async || it.is_passed().await).await;
    it.sites.set_mirror(&demo(), None).await.unwrap();
    until("the group is gone", async || it.log.committed(Topic::Changes, GROUP).await.unwrap().iter().all(|offset| *offset == 0)).await;
    it.put("board.2", false).await;
    it.stop().await;
}

/// What it is to be refused, it is asked for once, and nothing waits for it.
#[tokio::test]
async fn what_is_refused_is_let_be_until_it_changes() {
    let mut it = It::start(quick()).await;
    it.elsewhere.answers.store(true, Ordering::Relaxed);
    it.set_mirror(&["*"]).await;
    until("a copy", async || it.copied() == usize::from(PARTITIONS)).await;
    // No URL can name it.
    it.put("..", false).await;
    it.put("board", false).await;
    until("the other one", async || it.elsewhere.names() == ["board"]).await;
    until("both are passed", async || it.is_passed().await).await;
    assert!(it.elsewhere.asked.lock().unwrap().iter().all(|asked| !asked.contains("..")));
    it.stop().await;
}
