//! The Twilio realtime protocol, `GET /v3/wsconnect`: Twilsock 3 with the Sync API's other face, so that Twilio's own realtime SDKs work unmodified. Put
//! together by the composition root; reads and changes objects by the desk alone, hears of changes by the feed alone, on whichever node.
//!
//! ```text
//! socket ── frame ──► session ──► request ──► calls ──► desk
//!    ▲                                 └────► subscriptions ◄── feed
//!    └──────────────── events ◄── follow ◄──────────┘
//! ```

mod calls;
mod connection;
mod crowd;
mod events;
mod follow;
mod frame;
mod paging;
mod request;
mod session;
mod shown;
mod socket;
mod subscriptions;
mod tail;
#[cfg(test)]
mod testing;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::connection::Connection;
pub use self::crowd::AccountLimits;
use self::crowd::Crowd;
use crate::event::{SiteId, Timestamp};
use crate::problem::Problem;
use crate::web::sync::{Caller, Desk};

/// What an idle connection's socket reads at once.
const READ_BYTES: usize = 2 << 10;
/// What is gathered before it is sent.
const WRITE_BYTES: usize = 4 << 10;

/// How many are served, and what they may send.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Most connections at a time; one more gets 503 with `Retry-After`.
    pub max_connections: usize,
    /// Most bytes of a message that a client sends: a batch of a thousand subscriptions is a hundred thousand.
    pub max_message: usize,
    /// How long a client may read nothing of what is sent to it. It can come back, and go on.
    pub stalled: Duration,
    /// What an account may have whose service is limited as Twilio limits it.
    pub account: AccountLimits,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_connections: 20_000, max_message: 256 << 10, stalled: Duration::from_secs(30), account: AccountLimits::TWILIO }
    }
}

/// What a client's access token says.
#[derive(Clone, Debug)]
pub struct Token {
    /// Whom it makes of its bearer.
    pub caller: Caller,
    /// The account.
    pub account_sid: String,
    /// The service.
    pub service_sid: String,
    /// The bearer.
    pub identity: String,
    /// Which of the bearer's clients it is for, where it says.
    pub endpoint: Option<String>,
    /// When it ends.
    pub expires_at: Timestamp,
    /// How long it lived from its beginning.
    pub lifetime: Duration,
}

/// Why a token opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFault {
    /// It is none, or no longer one.
    Invalid,
    /// It has ended.
    Expired,
}

/// Opens an access token.
pub type Tokens = Arc<dyn Fn(&str) -> Result<Token, TokenFault> + Send + Sync>;

/// Hears of clients that come and go.
pub trait Presence: Send + Sync {
    /// One has opened its session. It is followed by one call of [`Presence::disconnected`].
    fn connected(&self, site: &SiteId, identity: &str, endpoint: &str);

    /// Its connection has ended.
    fn disconnected(&self, site: &SiteId, identity: &str, endpoint: &str);
}

/// What realtime clients are served with.
#[derive(Clone)]
pub struct Deps {
    /// Does what they ask.
    pub desk: Desk,
    /// Opens their tokens; looked at again while they are connected.
    pub tokens: Tokens,
    /// The URL that clients reach this server by.
    pub public_url: String,
    /// Is told of clients that come and go, where anybody is.
    pub presence: Option<Arc<dyn Presence>>,
    /// Sends every client to another node.
    pub stop: CancellationToken,
    /// Counts the connections, to be waited for after `stop`.
    pub connections: TaskTracker,
    /// Bounds.
    pub settings: Settings,
}

/// What connections share.
struct Shared {
    desk: Desk,
    tokens: Tokens,
    public_url: String,
    presence: Option<Arc<dyn Presence>>,
    stop: CancellationToken,
    connections: TaskTracker,
    places: Arc<Semaphore>,
    crowd: Arc<Crowd>,
    settings: Settings,
}

/// The routes of the realtime protocol.
pub fn router(deps: Deps) -> Router {
    let Deps { desk, tokens, public_url, presence, stop, connections, settings } = deps;
    let places = Arc::new(Semaphore::new(settings.max_connections.min(Semaphore::MAX_PERMITS)));
    let crowd = Arc::new(Crowd::new(settings.account));
    let shared = Arc::new(Shared { desk, tokens, public_url, presence, stop, connections, places, crowd, settings });
    Router::new().route("/v3/wsconnect", get(connect)).with_state(shared)
}

async fn connect(State(shared): State<Arc<Shared>>, upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>) -> Response {
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => return rejection.into_response(),
    };
    if shared.stop.is_cancelled() {
        return unavailable("stopping", "The server is stopping; another one will answer.");
    }
    let Ok(place) = Arc::clone(&shared.places).try_acquire_owned() else {
        return unavailable("too_many_connections", "Too many clients are connected; try again later.");
    };
    let counted = (place, shared.connections.token(), Open::new());
    let settings = shared.settings;
    upgrade
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(WRITE_BYTES)
        .max_message_size(settings.max_message)
        .max_frame_size(settings.max_message)
        .on_upgrade(move |socket| async move {
            Box::pin(Connection::new(shared, socket).run()).await;
            drop(counted);
        })
}

/// Counts an open connection.
struct Open(metrics::Gauge);

impl Open {
    fn new() -> Self {
        let gauge = metrics::gauge!("contrail_realtime_connections");
        gauge.increment(1);
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.decrement(1);
    }
}

fn unavailable(code: &'static str, detail: &'static str) -> Response {
    let mut response = Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, detail, detail).into_response();
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

#[cfg(test)]
mod tests;
