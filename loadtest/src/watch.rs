//! Subscribers: reads one object's Server-Sent Events and notes when each message came.

use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::http::{self, Connection};

/// A subscription.
pub(crate) struct Watch {
    lines: BufReader<TcpStream>,
}

/// One message.
#[derive(Debug)]
pub(crate) struct Message {
    /// `snapshot`, `change` or `removed`.
    pub event: String,
    /// The event id, on the last message of a write.
    pub id: Option<u64>,
    /// The data.
    pub data: Value,
    /// When it was read.
    pub at: Instant,
}

impl Watch {
    /// Subscribes to `/v1/live/<object>/events`.
    pub(crate) async fn open(address: &str, object: &str, token: &str) -> anyhow::Result<Self> {
        let mut stream = Connection::open(address).await?.into_stream();
        stream.write_all(&http::get(&format!("/v1/live/{object}/events"), token)).await?;
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        lines.read_line(&mut line).await?;
        if !line.contains(" 200 ") {
            bail!("{object}: {line}");
        }
        while !line.trim().is_empty() {
            line.clear();
            lines.read_line(&mut line).await?;
        }
        Ok(Self { lines })
    }

    /// The next message. Chunk sizes and comments are passed over: neither looks like a field.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Message> {
        let (mut event, mut id, mut data) = (String::new(), None, String::new());
        let mut line = String::new();
        loop {
            line.clear();
            if self.lines.read_line(&mut line).await? == 0 {
                bail!("the stream ended");
            }
            if let Some(rest) = line.strip_prefix("event:") {
                rest.trim().clone_into(&mut event);
            } else if let Some(rest) = line.strip_prefix("id:") {
                id = rest.trim().parse().ok();
            } else if let Some(rest) = line.strip_prefix("data:") {
                data.push_str(rest.trim());
            } else if line.trim().is_empty() && !event.is_empty() && !data.is_empty() {
                let data = serde_json::from_str(&data).with_context(|| format!("data of a {event}: {data}"))?;
                return Ok(Message { event, id, data, at: Instant::now() });
            }
        }
    }
}
