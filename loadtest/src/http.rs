//! A connection that costs the load side as little as can be: whole requests written as bytes, answers read by their length.

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One kept HTTP/1.1 connection.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// What came back.
pub(crate) struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// The bytes of a POST with a JSON body.
pub(crate) fn post(path: &str, key: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

/// The bytes of a GET.
pub(crate) fn get(path: &str, key: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\r\n").into_bytes()
}

/// The bytes of a call of the Sync API's public face: what of service `default`, the account's credentials as `Basic` has them, and a form.
pub(crate) fn sync(method: &str, what: &str, basic: &str, form: &[(&str, &str)]) -> Vec<u8> {
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    format!(
        "{method} /v1/Services/default{what} HTTP/1.1\r\nhost: localhost\r\nauthorization: Basic {basic}\r\n\
         content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

impl Connection {
    /// Connects.
    pub(crate) async fn open(address: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(4096) })
    }

    /// Sends a request and reads its answer.
    pub(crate) async fn call(&mut self, request: &[u8]) -> anyhow::Result<Answer> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let head = loop {
            if let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the server closed the connection");
            }
        };
        let text = String::from_utf8_lossy(self.buffer.get(..head).unwrap_or_default()).to_ascii_lowercase();
        let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no status line")?;
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:")).map(str::trim);
        let body = match length {
            Some(length) => {
                let whole = head + length.parse::<usize>()?;
                while self.buffer.len() < whole {
                    if self.stream.read_buf(&mut self.buffer).await? == 0 {
                        bail!("the answer ended early");
                    }
                }
                self.buffer.get(head..whole).unwrap_or_default().to_vec()
            }
            None if text.contains("transfer-encoding: chunked") => self.chunks(head).await?,
            None => Vec::new(),
        };
        Ok(Answer { status, body })
    }

    /// Reads a chunked body that begins at `at` in the buffer.
    async fn chunks(&mut self, mut at: usize) -> anyhow::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let rest = self.buffer.get(at..).unwrap_or_default();
            if let Some(line) = rest.windows(2).position(|w| w == b"\r\n") {
                let size = usize::from_str_radix(std::str::from_utf8(rest.get(..line).unwrap_or_default())?.trim(), 16)?;
                let whole = line + 2 + size + 2;
                if rest.len() >= whole {
                    body.extend_from_slice(rest.get(line + 2..line + 2 + size).unwrap_or_default());
                    at += whole;
                    if size == 0 {
                        return Ok(body);
                    }
                    continue;
                }
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the answer ended early");
            }
        }
    }

    /// The stream itself, for reading what never ends.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }
}
