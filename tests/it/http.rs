//! A plain blocking HTTP/1.1 client, so that the tests speak the wire and share no code with the server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Asks again while the answer is 503 with `Retry-After`, as whoever is answered so does: a log or store may be away for a moment.
pub(crate) fn again(mut ask: impl FnMut() -> Answer) -> Answer {
    let asked = Instant::now();
    loop {
        let answer = ask();
        if answer.status != 503 || answer.header("retry-after").is_none() || asked.elapsed() > Duration::from_secs(120) {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A kept connection.
pub(crate) struct Connection(BufReader<TcpStream>);

impl Connection {
    pub(crate) fn open(address: &str) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(150)))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// One request; an error means that the connection broke before a whole answer came.
    pub(crate) fn call(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<Answer> {
        self.send(method, path, headers, body)?;
        let (status, headers) = self.head()?;
        let find = |name: &str| headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone());
        let mut body = Vec::new();
        if let Some(length) = find("content-length") {
            body.resize(length.parse().unwrap(), 0);
            self.0.read_exact(&mut body)?;
        } else if find("transfer-encoding").is_some() {
            while let Some(mut chunk) = self.chunk()? {
                body.append(&mut chunk);
            }
        }
        Ok(Answer { status, headers, body })
    }

    /// Sends a request whose answer is read by [`Connection::head`] and [`Connection::line`].
    pub(crate) fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<()> {
        self.send_head(method, path, &[&[("content-length", &*body.len().to_string())], headers].concat())?;
        self.send_body(body)
    }

    /// What is before a request's body, its length not included.
    pub(crate) fn send_head(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> std::io::Result<()> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.0.get_mut().write_all(head.as_bytes())
    }

    pub(crate) fn send_body(&mut self, body: &[u8]) -> std::io::Result<()> {
        self.0.get_mut().write_all(body)
    }

    pub(crate) fn head(&mut self) -> std::io::Result<(u16, Vec<(String, String)>)> {
        let first = self.line()?;
        let status =
            first.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| std::io::Error::other(format!("no status line: {first:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok((status, headers));
            }
            let (name, value) = line.split_once(':').unwrap();
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    fn chunk(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let size = usize::from_str_radix(&self.line()?, 16).map_err(std::io::Error::other)?;
        let mut chunk = vec![0; size];
        self.0.read_exact(&mut chunk)?;
        self.line()?;
        Ok((size > 0).then_some(chunk))
    }

    /// A line without its end; an error at the end of the stream.
    pub(crate) fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

/// Server-Sent Events of one subscription.
pub(crate) struct Events(Connection);

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Message {
    pub(crate) event: String,
    pub(crate) id: Option<u64>,
    pub(crate) data: Value,
}

impl Events {
    pub(crate) fn open(address: &str, path: &str, token: &str, last_event_id: Option<u64>) -> Self {
        let mut connection = Connection::open(address).unwrap();
        let (bearer, last) = (format!("Bearer {token}"), last_event_id.unwrap_or_default().to_string());
        let mut headers = vec![("authorization", bearer.as_str()), ("accept", "text/event-stream")];
        if last_event_id.is_some() {
            headers.push(("last-event-id", &last));
        }
        connection.send("GET", path, &headers, b"").unwrap();
        let (status, _) = connection.head().unwrap();
        assert_eq!(status, 200, "{path}");
        Self(connection)
    }

    /// The next message; comments are passed over.
    pub(crate) fn next(&mut self) -> Message {
        let (mut event, mut id, mut data) = (String::new(), None, String::new());
        loop {
            let line = self.0.line().expect("the stream goes on");
            if let Some(rest) = line.strip_prefix("event:") {
                rest.trim().clone_into(&mut event);
            } else if let Some(rest) = line.strip_prefix("id:") {
                id = rest.trim().parse().ok();
            } else if let Some(rest) = line.strip_prefix("data:") {
                data.push_str(rest.trim_start());
            } else if line.is_empty() && !event.is_empty() {
                return Message { event, id, data: serde_json::from_str(&data).unwrap_or(Value::Null) };
            }
        }
    }
}
