//! The face over an embedded log and store with a keeper that runs, asked as clients ask but for the wire.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::BodyExt;
use jsonschema::Validator;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::openapi::{self, OPERATIONS};
use super::{Deps, router};
use crate::event::{Change, Clock, SiteId, Timestamp};
use crate::eventlog::embedded::EmbeddedLog;
use crate::eventlog::{Append, EventLog, Topic};
use crate::site::{self, NewSite, Region, Regions, ServiceChange, Sites};
use crate::sync::api::{self, Api};
use crate::sync::embedded::EmbeddedStore;
use crate::sync::feed::LocalFeed;
use crate::sync::keeper::{Keeper, KeeperSettings};
use crate::sync::reader::Reader;
use crate::sync::{Error, Feed, ObjectStore};
use crate::web::sync::Desk;

/// Where the face believes to be reached.
pub(super) const PUBLIC: &str = "https://contrail.example";

/// A face, and all that it needs.
pub(super) struct Server {
    router: Router,
    pub(super) clock: Clock,
    log: Arc<dyn EventLog>,
    pub(super) feed: LocalFeed,
    pub(super) sites: Arc<Sites>,
    pub(super) desk: Desk,
    /// `user:password` of the account.
    pub(super) credentials: String,
    pub(super) account_sid: String,
    pub(super) service_sid: String,
    stop: CancellationToken,
    keeper: JoinSet<Result<(), Error>>,
    _dir: tempfile::TempDir,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) text: String,
    /// Null where the text is none.
    pub(super) json: Value,
}

pub(super) fn start_time() -> Timestamp {
    Timestamp::parse("2026-11-20T10:00:00.750Z").unwrap()
}

pub(super) fn demo() -> SiteId {
    SiteId::parse("demo").unwrap()
}

impl Server {
    /// A server with the account of site `demo`.
    pub(super) async fn start() -> Self {
        Self::start_in(Regions::default()).await
    }

    pub(super) async fn start_in(regions: Regions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::fixed(start_time());
        let log: Arc<dyn EventLog> =
            Arc::new(EmbeddedLog::open(&dir.path().join("log"), &crate::eventlog::embedded::Settings::default(), &clock).unwrap());
        let store: Arc<dyn ObjectStore> = Arc::new(EmbeddedStore::open(&dir.path().join("objects.db"), Duration::from_millis(20)).unwrap());
        let feed = LocalFeed::new(Default::default());
        let sites = site::open("embedded", &dir.path().join("sites"), &site::Settings::default()).await.unwrap();
        let sites = Arc::new(Sites::new(sites, regions, clock.clone()).await.unwrap());
        sites.add(&demo(), NewSite::default()).await.unwrap();
        let opens = sites.sync_credentials(&demo()).unwrap();
        let settings =
            KeeperSettings { sweep_every: Duration::from_millis(20), checkpoint_every: Duration::from_millis(20), ..KeeperSettings::default() };
        let desk = Desk {
            reader: Reader::new(Arc::clone(&store), settings.expiry),
            api: Api::new(
                Arc::clone(&log),
                Arc::new(feed.clone()),
                clock.clone(),
                api::Settings { patience: Duration::from_secs(60), ..Default::default() },
            ),
            feed: Arc::new(feed.clone()) as Arc<dyn Feed>,
            clock: clock.clone(),
            admission: Arc::default(),
        };
        let keeping = Keeper { log: Arc::clone(&log), store, feed: Arc::new(feed.clone()), clock: clock.clone(), settings, status: Arc::default() };
        let (stop, mut keeper) = (CancellationToken::new(), JoinSet::new());
        keeper.spawn(keeping.run(stop.clone()));
        let router = router(Deps { desk: desk.clone(), sites: Arc::clone(&sites), public_url: PUBLIC.to_owned() });
        Self {
            router,
            clock,
            log,
            feed,
            sites,
            desk,
            credentials: format!("{}:{}", opens.account_sid, opens.auth_token),
            account_sid: opens.account_sid,
            service_sid: opens.service_sid,
            stop,
            keeper,
            _dir: dir,
        }
    }

    /// What the router would append: a change that an event makes. Returns once it is committed.
    pub(super) async fn append(&self, change: &Change) {
        let append = Append { partition: change.key.partition(), value: change.to_bytes() };
        self.log.append(Topic::Changes, vec![append]).await.unwrap();
        while self.desk.reader.get(&change.key, self.clock.now()).await.unwrap().is_none() {
            // The keeper gathers what events change.
            self.clock.set(self.clock.now().plus_micros(10_000));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// From now on one call waits at a time, and not for long.
    pub(super) fn be_impatient(&mut self) {
        let settings = api::Settings { patience: Duration::from_millis(50), max_waiting: 1 };
        self.desk.api = Api::new(Arc::clone(&self.log), Arc::new(self.feed.clone()), self.clock.clone(), settings);
        self.router = router(Deps { desk: self.desk.clone(), sites: Arc::clone(&self.sites), public_url: PUBLIC.to_owned() });
    }

    /// Takes the log away.
    pub(super) async fn close_log(&self) {
        self.log.close().await.unwrap();
    }

    /// Stops the keeper: from then on calls are not answered.
    pub(super) async fn stop_keeping(&mut self) {
        self.stop.cancel();
        while let Some(ended) = self.keeper.join_next().await {
            ended.unwrap().unwrap();
        }
    }

    /// Has the service limited as Twilio limits it.
    pub(super) async fn limit(&self) {
        let change = ServiceChange { limits: Some(site::Limits::Twilio), ..ServiceChange::default() };
        self.sites.set_service(&demo(), change).await.unwrap();
    }

    /// Another site, of a region that this server is not of.
    pub(super) async fn add_elsewhere(&self) -> String {
        let id = SiteId::parse("far").unwrap();
        self.sites.add(&id, NewSite { region: Some(Region::parse("us").unwrap()), ..NewSite::default() }).await.unwrap();
        let opens = self.sites.sync_credentials(&id).unwrap();
        format!("{}:{}", opens.account_sid, opens.auth_token)
    }

    /// Sends a request as it is. Whatever is answered has to be as the face describes it.
    pub(super) async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Body) -> Answer {
        let answer = self.serve(method, path, headers, body).await;
        if let Some(schema) = described(method, path, answer.status)
            && let Err(error) = schema.validate(&answer.json)
        {
            panic!("{method} {path} answers {} with something else than is described: {error}\n{}", answer.status, answer.text);
        }
        answer
    }

    /// Sends a request that the description has not.
    pub(super) async fn serve(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Body) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.router.clone().oneshot(request.body(body).unwrap()).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
        let json = serde_json::from_str(&text).unwrap_or_default();
        Answer { status, headers, text, json }
    }

    /// Asks for a place below the account's service, with a form where there are parameters.
    pub(super) async fn ask_if(&self, method: &str, path: &str, params: &[(&str, &str)], if_match: Option<&str>) -> Answer {
        let path = if path.starts_with("/v1") { path.to_owned() } else { format!("/v1/Services/default{path}") };
        let login = basic(&self.credentials);
        let mut headers = vec![("authorization", login.as_str())];
        headers.extend(if_match.map(|revision| ("if-match", revision)));
        if method != "GET" && !params.is_empty() {
            headers.push(("content-type", "application/x-www-form-urlencoded"));
        }
        let body = if method == "GET" { Body::empty() } else { Body::from(form(params)) };
        let path = if method == "GET" && !params.is_empty() { format!("{path}?{}", form(params)) } else { path };
        self.send(method, &path, &headers, body).await
    }

    pub(super) async fn ask(&self, method: &str, path: &str, params: &[(&str, &str)]) -> Answer {
        self.ask_if(method, path, params, None).await
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[]).await
    }

    pub(super) async fn post(&self, path: &str, params: &[(&str, &str)]) -> Answer {
        self.ask("POST", path, params).await
    }

    pub(super) async fn delete(&self, path: &str) -> Answer {
        self.ask("DELETE", path, &[]).await
    }

    /// Sends JSON.
    pub(super) async fn batch(&self, path: &str, body: &Value) -> Answer {
        let login = basic(&self.credentials);
        let path = format!("/v1/Services/default{path}");
        self.send("POST", &path, &[("authorization", &login), ("content-type", "application/json")], Body::from(body.to_string())).await
    }
}

impl Answer {
    /// Asserts a refusal, of exactly its fields.
    #[track_caller]
    pub(super) fn refused(&self, status: u16, code: u32) {
        assert_eq!((self.status, self.json["code"].as_u64()), (status, Some(code.into())), "{}", self.text);
        let message = self.json["message"].as_str().unwrap();
        let more_info = format!("https://www.twilio.com/docs/errors/{code}");
        assert_eq!(self.json, serde_json::json!({"code": code, "message": message, "more_info": more_info, "status": status}));
        assert!(!message.is_empty());
    }

    /// Asserts a status, and gives what came with it.
    #[track_caller]
    pub(super) fn of(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.text.is_empty(), status == 204);
        self.json
    }

    /// A header's text.
    #[track_caller]
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// What the face's description says of an answer; None for answers without a body. Asserts that it has the status.
fn described(method: &str, path: &str, status: u16) -> Option<&'static Validator> {
    static SCHEMAS: LazyLock<Vec<Option<Validator>>> =
        LazyLock::new(|| OPERATIONS.iter().map(|operation| operation.gives.schema().map(|schema| validator(&schema))).collect());
    static REFUSED: LazyLock<Validator> = LazyLock::new(|| validator(&serde_json::json!({"$ref": "#/components/schemas/refused"})));
    let path = path.split('?').next().unwrap().strip_prefix("/v1/Services")?;
    let segments = |path: &'static str| path.split('/');
    let is = |template: &'static str| {
        let ends_in_rest = template.ends_with("{Key}") || template.ends_with("{Identity}");
        let given: Vec<&str> = if ends_in_rest { path.splitn(segments(template).count(), '/').collect() } else { path.split('/').collect() };
        given.len() == segments(template).count() && segments(template).zip(given).all(|(wanted, given)| wanted.starts_with('{') || wanted == given)
    };
    let at = OPERATIONS.iter().position(|operation| operation.method.eq_ignore_ascii_case(method) && is(operation.path));
    let statuses = at.map(|at| (OPERATIONS[at].id, OPERATIONS[at].gives.statuses(), OPERATIONS[at].refusals()));
    if let Some((id, done, refused)) = statuses {
        assert!(done.contains(&status) || refused.contains(&status), "{id} is not described to answer {status}");
    }
    if status >= 400 {
        return Some(&REFUSED);
    }
    SCHEMAS[at.unwrap_or_else(|| panic!("{method} {path} is not described, and answered {status}"))].as_ref()
}

fn validator(schema: &Value) -> Validator {
    let mut schema = schema.clone();
    schema["components"] = openapi::document("/")["components"].clone();
    jsonschema::draft202012::options().should_validate_formats(true).build(&schema).unwrap()
}

/// The header that says who asks.
pub(super) fn basic(credentials: &str) -> String {
    format!("Basic {}", STANDARD.encode(credentials))
}

fn form(params: &[(&str, &str)]) -> String {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    params.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect::<Vec<_>>().join("&")
}
