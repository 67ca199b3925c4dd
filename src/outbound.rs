//! Requests to servers elsewhere, by `http` and `https`: the one way out. Built by the composition root, called by `webhooks`. It asks only addresses that are
//! public, unless it is told otherwise: whoever may write a URL into a setting must not reach with it what only this machine can reach. The address looked at
//! is the one that is connected to, whatever its name meant a moment ago. Must never follow a redirect, use a proxy, nor log a body or a credential.

use std::error::Error as _;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use url::{Host, Url};

/// How long a connection without a request is kept.
const IDLE: Duration = Duration::from_secs(30);
/// Such connections to one server.
const MOST_IDLE: usize = 4;

/// Asks servers elsewhere. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Client(hyper_util::client::legacy::Client<HttpsConnector<Connector>, Full<Bytes>>);

/// What is asked.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// How.
    pub method: Method,
    /// Whom and for what. A user and password in it are sent as of HTTP's `Basic`, unless `basic` says others.
    pub url: &'a Url,
    /// Beside those that follow from the rest.
    pub headers: &'a [(HeaderName, HeaderValue)],
    /// User and password.
    pub basic: Option<(&'a str, &'a str)>,
    /// Parameters of a form, sent as its body; without any there is none.
    pub form: &'a [(&'a str, &'a str)],
    /// How long all of it may take, from looking up the name to the body's last byte.
    pub timeout: Duration,
    /// Most bytes of the answer's body that are read.
    pub max_body: usize,
}

/// What was answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status; a redirect is not followed.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, or the beginning of that.
    pub body: Bytes,
    /// Whether that is all of it.
    pub is_whole: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither `http` nor `https`, without a host, or with what no request can carry.
    #[error("that is no URL to send a request to")]
    Url,
    /// Every address of the host is one that is not asked.
    #[error("the host's address is not public")]
    Private,
    /// The host cannot be found or reached, or is not the one that its certificate is for.
    #[error("no connection: {0}")]
    Connect(String),
    /// The connection broke.
    #[error("no answer: {0}")]
    Broken(String),
    /// It took too long.
    #[error("no answer in time")]
    Timeout,
}

impl Error {
    /// Whether the same request may be answered later.
    pub const fn is_retryable(&self) -> bool {
        !matches!(self, Self::Url | Self::Private)
    }
}

impl Client {
    /// One that asks public addresses alone; with `to_private` all there are.
    pub fn new(to_private: bool) -> Self {
        let connector =
            hyper_rustls::HttpsConnectorBuilder::new().with_webpki_roots().https_or_http().enable_http1().wrap_connector(Connector { to_private });
        let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MOST_IDLE)
            .build(connector);
        Self(client)
    }

    /// Asks, once. Dropped, it is given up: the server may have got it.
    ///
    /// # Errors
    /// See [`Error`]. Any status is an answer.
    pub async fn send(&self, request: &Request<'_>) -> Result<Answer, Error> {
        let asked = prepared(request).ok_or(Error::Url)?;
        let answered = async {
            let answer = self.0.request(asked).await.map_err(|error| failed(&error))?;
            let (head, mut body) = answer.into_parts();
            let (mut taken, mut is_whole) = (BytesMut::new(), true);
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| Error::Broken(error.to_string()))?;
                let Ok(data) = frame.into_data() else { continue };
                let fits = data.len().min(request.max_body - taken.len());
                taken.extend_from_slice(data.get(..fits).unwrap_or_default());
                if fits < data.len() {
                    is_whole = false;
                    break;
                }
            }
            Ok(Answer { status: head.status, headers: head.headers, body: taken.freeze(), is_whole })
        };
        tokio::time::timeout(request.timeout, answered).await.unwrap_or(Err(Error::Timeout))
    }
}

/// The request as it is sent.
fn prepared(request: &Request<'_>) -> Option<hyper::Request<Full<Bytes>>> {
    let url = request.url;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return None;
    }
    let mut bare = url.clone();
    bare.set_fragment(None);
    bare.set_username("").ok()?;
    bare.set_password(None).ok()?;
    let mut asked = hyper::Request::builder().method(request.method.clone()).uri(bare.as_str());
    for (name, value) in request.headers {
        asked = asked.header(name, value);
    }
    let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8().ok().map(std::borrow::Cow::into_owned);
    let of_url = (!url.username().is_empty() || url.password().is_some())
        .then(|| Some((decoded(url.username())?, decoded(url.password().unwrap_or_default())?)))
        .flatten();
    let basic = request.basic.or(of_url.as_ref().map(|(user, password)| (user.as_str(), password.as_str())));
    if let Some((user, password)) = basic {
        let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))).ok()?;
        value.set_sensitive(true);
        asked = asked.header(AUTHORIZATION, value);
    }
    let body = if request.form.is_empty() {
        Bytes::new()
    } else {
        asked = asked.header(hyper::header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        url::form_urlencoded::Serializer::new(String::new()).extend_pairs(request.form).finish().into()
    };
    asked.body(Full::new(body)).ok()
}

fn failed(error: &hyper_util::client::legacy::Error) -> Error {
    let mut cause = error.source();
    while let Some(at) = cause {
        if at.is::<NotPublic>() {
            return Error::Private;
        }
        match at.source() {
            Some(deeper) => cause = Some(deeper),
            None if error.is_connect() => return Error::Connect(at.to_string()),
            None => return Error::Broken(at.to_string()),
        }
    }
    Error::Broken(error.to_string())
}

/// No address is public.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("not public")]
struct NotPublic;

/// Connects to addresses that may be connected to.
#[derive(Clone, Copy, Debug)]
struct Connector {
    to_private: bool,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { to_private } = *self;
        Box::pin(async move {
            let addresses = addresses(&uri).await?;
            let (asked, left): (Vec<SocketAddr>, Vec<SocketAddr>) = addresses.into_iter().partition(|address| to_private || is_public(address.ip()));
            if asked.is_empty() && !left.is_empty() {
                return Err(NotPublic.into());
            }
            let mut last: Failure = "the host has no address".into();
            for address in asked {
                match TcpStream::connect(address).await {
                    Ok(stream) => {
                        stream.set_nodelay(true)?;
                        return Ok(TokioIo::new(stream));
                    }
                    Err(error) => last = error.into(),
                }
            }
            Err(last)
        })
    }
}

/// What a URL's host means now.
async fn addresses(uri: &Uri) -> Result<Vec<SocketAddr>, Failure> {
    let host = uri.host().ok_or("no host")?;
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    Ok(match Host::parse(host)? {
        Host::Ipv4(address) => vec![(address, port).into()],
        Host::Ipv6(address) => vec![(address, port).into()],
        Host::Domain(name) => tokio::net::lookup_host((name.as_str(), port)).await?.collect(),
    })
}

/// Whether an address is one of the public internet: none that means this machine, its network, several machines at once, or nobody.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let special = match address.octets() {
        // "This network", and the two that carriers and tests have for themselves.
        [0, ..] | [100, 64..=127, ..] | [198, 18 | 19, ..] => true,
        // Protocol assignments; relays to IPv6 that there no longer are; all that is reserved.
        [192, 0, 0, _] | [192, 88, 99, _] | [240..=255, ..] => true,
        _ => false,
    };
    let local = address.is_private() || address.is_loopback() || address.is_link_local();
    !(special || local || address.is_multicast() || address.is_documentation())
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        // An IPv4 address written as one of IPv6, or translated into one.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            is_public_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
        }
        // Protocol assignments, tunnels to an IPv4 address among them; documentation; tunnels.
        [0x2001, ..=0x01ff, ..] | [0x2001, 0x0db8, ..] | [0x2002, ..] | [0x3fff, ..=0x0fff, ..] => false,
        [first, ..] => (0x2000..=0x3fff).contains(&first),
    }
}

#[cfg(test)]
mod tests;
