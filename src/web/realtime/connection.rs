//! One client's connection: its socket, its session, its subscriptions and its running requests, in one task. Began by the upgrade; ends when the client does,
//! when its token does, or when the server stops, which sends it to another node.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::WebSocket;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use serde_json::value::RawValue;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFuture;

use super::calls::{self, Answer};
use super::crowd::Place;
use super::request::{self, Ask};
use super::session::{Gate, Session, Step};
use super::shown::Urls;
use super::socket::{Arrived, Socket};
use super::subscriptions::{Outcome, Subscriptions};
use super::{Presence, Shared, Token, TokenFault};
use crate::event::SiteId;

/// Requests that run at once; further ones wait in the socket.
const MAX_RUNNING: usize = 64;
/// How long running requests may take once the server stops.
const FINISH_WITHIN: Duration = Duration::from_secs(2);

/// How long at most until a connection looks what is due.
const LOOK: Duration = Duration::from_secs(20);

/// A connection.
pub(super) struct Connection {
    shared: Arc<Shared>,
    socket: Socket,
    session: Session,
    /// Of the service, once the session is open.
    urls: Option<Arc<Urls>>,
    subscriptions: Subscriptions,
    running: FuturesUnordered<BoxFuture<'static, (String, Answer)>>,
    /// When running requests must be done, once the server stops.
    stopping: Option<Instant>,
    /// Told of until it is dropped, once the session is open.
    present: Option<Present>,
}

/// A client that is connected, as somebody was told.
struct Present {
    told: Arc<dyn Presence>,
    site: SiteId,
    identity: String,
    endpoint: String,
}

impl Drop for Present {
    fn drop(&mut self) {
        self.told.disconnected(&self.site, &self.identity, &self.endpoint);
    }
}

impl Gate for Shared {
    fn open(&self, raw: &str) -> Result<Token, TokenFault> {
        (self.tokens)(raw)
    }

    fn enter(&self, token: &Token) -> Option<Place> {
        self.crowd.enter(token)
    }

    fn admits_request(&self, token: &Token) -> bool {
        self.crowd.admits_request(token)
    }
}

enum Event {
    Arrived(Arrived),
    Answered(String, Answer),
    Subscribed(Outcome),
    Stop,
    Tick,
}

impl Connection {
    /// Of a websocket that was just opened.
    pub(super) fn new(shared: Arc<Shared>, socket: WebSocket) -> Self {
        let session = Session::new(shared.desk.now());
        let subscriptions = Subscriptions::new(shared.desk.clone());
        let (socket, running) = (Socket::new(socket), FuturesUnordered::new());
        Self { shared, socket, session, urls: None, subscriptions, running, stopping: None, present: None }
    }

    /// Serves it to its end.
    pub(super) async fn run(mut self) {
        // Both are waited on all the time, by connections that wake often.
        let stop = self.shared.stop.clone();
        let (mut stopped, mut alarm) = (pin!(stop.cancelled()), pin!(tokio::time::sleep(LOOK)));
        let why = loop {
            self.tell();
            alarm.as_mut().reset(Instant::now() + self.wait());
            let event = self.next(stopped.as_mut(), alarm.as_mut()).await;
            if let Some(why) = self.take(event) {
                break why;
            }
            if self.socket.stalled().is_some_and(|stalled| stalled >= self.shared.settings.stalled) {
                break "stalled";
            }
        };
        metrics::counter!("contrail_realtime_closes_total", "code" => why).increment(1);
        if !matches!(why, "gone" | "stalled") {
            self.socket.close().await;
        }
    }

    /// Makes frames of what is to be told, while there is room.
    fn tell(&mut self) {
        let Some(urls) = &self.urls else { return };
        let mut sent = false;
        while self.socket.has_room() {
            let Some(told) = self.subscriptions.front() else { break };
            match told.next(urls) {
                Some(frame) => {
                    self.socket.put(frame);
                    sent = true;
                }
                None => self.subscriptions.pop(),
            }
        }
        if sent {
            self.session.has_sent(self.shared.desk.now());
        }
        if let Some(caller) = self.session.caller() {
            self.subscriptions.pump(caller);
        }
    }

    /// How long nothing is to be done while nothing happens.
    fn wait(&self) -> Duration {
        if let Some(until) = self.finishing() {
            return until.saturating_duration_since(Instant::now());
        }
        let micros = self.session.next_tick().micros().saturating_sub(self.shared.desk.now().micros());
        let due = Duration::from_micros(u64::try_from(micros).unwrap_or(0));
        let stalls = self.socket.stalled().map(|stalled| self.shared.settings.stalled.saturating_sub(stalled));
        // Looked at now and then all the same: clocks are set.
        due.min(stalls.unwrap_or(Duration::MAX)).clamp(Duration::from_millis(1), LOOK)
    }

    /// Until when running requests may finish, while they do.
    fn finishing(&self) -> Option<Instant> {
        self.stopping.filter(|_| !self.session.is_leaving())
    }

    /// What happens next.
    async fn next(&mut self, stopped: Pin<&mut WaitForCancellationFuture<'_>>, alarm: Pin<&mut Sleep>) -> Event {
        let room = self.socket.has_room();
        let reads = room && self.finishing().is_none() && self.running.len() < MAX_RUNNING;
        let listens = room && self.stopping.is_none() && !self.session.is_leaving() && self.subscriptions.listens();
        tokio::select! {
            biased;
            () = stopped, if self.stopping.is_none() => Event::Stop,
            arrived = self.socket.next(reads) => Event::Arrived(arrived),
            Some((id, answer)) = self.running.next(), if room && !self.running.is_empty() => Event::Answered(id, answer),
            outcome = self.subscriptions.next(), if listens => Event::Subscribed(outcome),
            () = alarm => Event::Tick,
        }
    }

    /// Takes what came; says why the connection ends, if it does.
    fn take(&mut self, event: Event) -> Option<&'static str> {
        let (now, shared) = (self.shared.desk.now(), Arc::clone(&self.shared));
        let gate = &*shared;
        let steps = match event {
            Event::Arrived(Arrived::Gone) => return Some("gone"),
            Event::Arrived(Arrived::Room) => Vec::new(),
            Event::Arrived(Arrived::Other) => self.session.garbled(now),
            Event::Arrived(Arrived::Frame(frame)) => self.session.take(&frame, now, gate),
            Event::Answered(id, answer) => {
                self.session.has_sent(now);
                self.socket.put(answer.reply(&id));
                Vec::new()
            }
            Event::Subscribed(outcome) => {
                if !self.subscriptions.take(outcome) {
                    self.stop();
                }
                Vec::new()
            }
            Event::Stop => {
                self.stop();
                Vec::new()
            }
            Event::Tick => self.session.tick(now, gate),
        };
        let why = self.step(steps);
        if why.is_some() {
            return why;
        }
        let finished = self.running.is_empty() || self.stopping.is_some_and(|until| until <= Instant::now());
        if self.stopping.is_some() && finished && !self.session.is_leaving() {
            let steps = self.session.offload(now);
            return self.step(steps);
        }
        None
    }

    /// Lets running requests finish, then sends the client away.
    fn stop(&mut self) {
        self.stopping.get_or_insert_with(|| Instant::now() + FINISH_WITHIN);
    }

    fn step(&mut self, steps: Vec<Step>) -> Option<&'static str> {
        for step in steps {
            match step {
                Step::Send(frame) => self.socket.put(frame),
                Step::Ask { id, request, payload } => self.ask(id, &request, &payload),
                Step::CheckRights => self.subscriptions.check_rights(),
                Step::End(why) => return Some(why),
            }
        }
        if self.urls.is_none()
            && let Some(service) = self.session.service()
        {
            self.urls = Some(Arc::new(Urls::new(&self.shared.public_url, service)));
            self.present = self.present();
        }
        None
    }

    /// Tells that the client is here.
    fn present(&self) -> Option<Present> {
        let (told, caller) = (self.shared.presence.clone()?, self.session.caller()?);
        let (site, identity, endpoint) = (caller.site.clone(), caller.identity.clone()?, self.session.endpoint()?);
        told.connected(&site, &identity, &endpoint);
        Some(Present { told, site, identity, endpoint })
    }

    fn ask(&mut self, id: String, request: &RawValue, payload: &Bytes) {
        let (Some(caller), Some(service)) = (self.session.caller(), self.session.service()) else { return };
        let answer = match request::read(request, payload, service) {
            Ok(Ask::Subscriptions(poke)) => {
                self.subscriptions.poke(*poke, self.session.is_continued());
                Answer::poked()
            }
            Ok(ask) => {
                let Some(urls) = self.urls.clone() else { return };
                let (desk, caller) = (self.shared.desk.clone(), caller.clone());
                let answering = async move { (id, calls::answer(&desk, &caller, &urls, ask).await) };
                return self.running.push(Box::pin(answering));
            }
            Err(fault) => Answer::from(fault),
        };
        self.socket.put(answer.reply(&id));
    }
}
