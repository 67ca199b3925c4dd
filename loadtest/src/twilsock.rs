//! A realtime client of the Sync API, as small as can be: connects, subscribes, hands out what it is told, and confirms it as Twilio's SDKs do.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// What every frame begins with.
const MAGIC: &str = "TWILSOCK V3.0 ";
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that a socket reads at once: thousands of them are open.
const BUFFER: usize = 4 << 10;

/// A connection.
pub(crate) struct Client {
    socket: WebSocketStream<TcpStream>,
    sent: u64,
    /// What came while a reply was waited for.
    heard: VecDeque<Told>,
}

/// What an object's subscriber is told.
#[derive(Debug, Deserialize)]
pub(crate) struct Told {
    /// What of: `document_updated`, `subscription_established` and the like.
    pub event_type: String,
    /// One event.
    #[serde(default)]
    pub event: Option<Box<RawValue>>,
    /// Or some.
    #[serde(default)]
    pub events: Vec<Fate>,
    /// When it was read.
    #[serde(skip, default = "Instant::now")]
    pub at: Instant,
}

/// How a subscription fares.
#[derive(Debug, Deserialize)]
pub(crate) struct Fate {
    /// Of which object.
    pub object_sid: String,
    /// Up to where it was told; of one that is established.
    #[serde(default)]
    pub last_event_id: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Header {
    method: String,
    id: String,
    #[serde(default)]
    payload_size: usize,
    #[serde(default)]
    status: Option<Status>,
    #[serde(default)]
    http_status: Option<Status>,
}

#[derive(Debug, Deserialize)]
struct Status {
    code: u16,
}

/// An object and the last event that the client has of it.
pub(crate) type Known = (String, Option<u64>);

impl Client {
    /// Connects and names itself by an access token.
    pub(crate) async fn open(address: &str, token: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let config = WebSocketConfig::default().read_buffer_size(BUFFER).write_buffer_size(0);
        let (socket, _) = tokio_tungstenite::client_async_with_config(format!("ws://{address}/v3/wsconnect"), stream, Some(config)).await?;
        let mut client = Self { socket, sent: 0, heard: VecDeque::new() };
        let types = ["twilio.sync.event", "com.twilio.rtd.cds.document", "com.twilio.rtd.cds.list", "com.twilio.rtd.cds.map"];
        let registration = json!({"product": "data_sync", "type": "ers", "notification_protocol_version": 0, "message_types": types});
        let header = json!({
            "method": "init",
            "token": token,
            "continuation_token": null,
            "capabilities": ["client_update", "offline_storage"],
            "metadata": {"type": "sync", "sdk": "loadtest"},
            "registrations": [registration],
        });
        client.ask(header, "").await.context("init")?;
        Ok(client)
    }

    /// Subscribes to objects, and waits until it has all of them with what it missed. Gives each with the last event of it.
    pub(crate) async fn subscribe(&mut self, kind: &str, objects: &[Known]) -> anyhow::Result<Vec<Known>> {
        let request = |(sid, since): &Known| json!({"object_sid": sid, "object_type": kind, "last_event_id": since});
        let body = json!({
            "event_protocol_version": 4,
            "action": "establish",
            "correlation_id": self.sent + 1,
            "retried_requests": 0,
            "ttl_in_s": -1,
            "requests": objects.iter().map(request).collect::<Vec<_>>(),
        });
        let http = json!({"host": "localhost", "path": "/v4/Subscriptions", "method": "POST", "params": {}, "headers": {"Content-Type": "application/json"}});
        let header = json!({"method": "message", "active_grant": "data_sync", "payload_type": "application/json", "http_request": http});
        self.ask(header, &body.to_string()).await.context("subscribing")?;
        let mut known: Vec<Known> = Vec::new();
        let mut between = VecDeque::new();
        while known.len() < objects.len() {
            let told = self.next().await?;
            match told.event_type.as_str() {
                "subscription_established" => known.extend(told.events.into_iter().map(|fate| (fate.object_sid, fate.last_event_id))),
                "subscription_failed" | "subscription_canceled" => bail!("{}: {:?}", told.event_type, told.events),
                _ => between.push_back(told),
            }
        }
        self.heard.append(&mut between);
        Ok(known)
    }

    /// What it is told next.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Told> {
        if let Some(told) = self.heard.pop_front() {
            return Ok(told);
        }
        loop {
            let (header, payload) = self.frame().await?;
            if let Some(told) = heard(&header, &payload)? {
                return Ok(told);
            }
        }
    }

    /// Sends a frame and waits for its reply, which must be a good one.
    async fn ask(&mut self, mut header: Value, payload: &str) -> anyhow::Result<()> {
        self.sent += 1;
        let id = format!("TM{}", self.sent);
        if let Some(fields) = header.as_object_mut() {
            fields.insert("id".into(), id.as_str().into());
            fields.insert("payload_size".into(), payload.len().into());
        }
        self.socket.send(frame_of(&header.to_string(), payload)).await?;
        let replied = async {
            loop {
                let (header, payload) = self.frame().await?;
                if header.method == "reply" && header.id == id {
                    let code = |status: Option<Status>| status.map_or(200, |status| status.code);
                    let (transport, http) = (code(header.status), code(header.http_status));
                    ensure!(transport == 200 && (200..300).contains(&http), "{transport}, {http}: {}", String::from_utf8_lossy(&payload));
                    return Ok(());
                }
                self.heard.extend(heard(&header, &payload)?);
            }
        };
        tokio::time::timeout(PATIENCE, replied).await.context("no reply")?
    }

    /// The next frame, confirmed if it is no reply.
    async fn frame(&mut self) -> anyhow::Result<(Header, Bytes)> {
        let bytes = loop {
            match self.socket.next().await.context("the connection ended")?? {
                Message::Binary(bytes) => break bytes,
                Message::Close(why) => bail!("closed: {why:?}"),
                _ => {}
            }
        };
        let (header, payload) = read(&bytes)?;
        if header.method != "reply" {
            // As text: thousands of subscribers confirm at once, on the server's processors.
            let reply = format!(r#"{{"method":"reply","id":"{}","payload_size":0,"status":{{"code":200,"status":"OK"}}}}"#, header.id);
            self.socket.send(frame_of(&reply, "")).await?;
        }
        Ok((header, payload))
    }
}

fn frame_of(header: &str, payload: &str) -> Message {
    Message::Binary(Bytes::from(format!("{MAGIC}{}\r\n{header}\r\n{payload}", header.len())))
}

/// A frame's header and payload.
fn read(bytes: &Bytes) -> anyhow::Result<(Header, Bytes)> {
    let line = bytes.windows(2).position(|pair| pair == b"\r\n").context("no first line")?;
    let length = bytes.get(..line).and_then(|line| line.strip_prefix(MAGIC.as_bytes())).context("another protocol")?;
    let (begins, length) = (line + 2, std::str::from_utf8(length)?.parse::<usize>()?);
    let header: Header = serde_json::from_slice(bytes.get(begins..begins + length).context("a header cut short")?)?;
    let payload = begins + length + 2;
    ensure!(bytes.len() >= payload + header.payload_size, "a payload cut short");
    let payload = if header.payload_size == 0 { Bytes::new() } else { bytes.slice(payload..payload + header.payload_size) };
    Ok((header, payload))
}

/// What a frame tells a subscriber, if it does; an error where it sends the client away.
fn heard(header: &Header, payload: &[u8]) -> anyhow::Result<Option<Told>> {
    match header.method.as_str() {
        "notification" => Ok(Some(serde_json::from_slice(payload).with_context(|| String::from_utf8_lossy(payload).into_owned())?)),
        "close" => bail!("sent away: {:?}", header.status),
        _ => Ok(None),
    }
}
