//! A client of realtime connections for tests.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A client: masks what it sends, checks what it gets, answers nothing.
pub(super) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    sent: u32,
    /// Notifications that came while a reply was waited for.
    heard: VecDeque<Value>,
}

impl Client {
    pub(super) async fn connect(addr: SocketAddr) -> Self {
        let (client, head) = Self::try_connect(addr).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        // What the handshake of the RFC's example is answered with.
        assert!(head.to_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
        client
    }

    pub(super) async fn try_connect(addr: SocketAddr) -> (Self, String) {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = "GET /v3/wsconnect HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
            sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut client = Self { stream, buffer: Vec::new(), sent: 0, heard: VecDeque::new() };
        let end = loop {
            if let Some(at) = client.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(client.fill().await, "no answer");
        };
        let head = String::from_utf8(client.buffer.drain(..end).collect()).unwrap();
        (client, head)
    }

    async fn fill(&mut self) -> bool {
        let read = tokio::time::timeout(Duration::from_secs(20), self.stream.read_buf(&mut self.buffer)).await;
        read.expect("nothing came").is_ok_and(|bytes| bytes > 0)
    }

    pub(super) async fn send(&mut self, opcode: u8, payload: &[u8]) {
        let mask = [1, 2, 3, 4];
        let mut frame = vec![0x80 | opcode];
        match payload.len() {
            short @ 0..126 => frame.push(0x80 | short as u8),
            long => {
                frame.push(0x80 | 127);
                frame.extend_from_slice(&(long as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(&mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        // One that is closed meanwhile is seen when it is read.
        self.stream.write_all(&frame).await.ok();
    }

    /// The next websocket message: its opcode and payload; None at the end.
    async fn message(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some(&[first, second]) = self.buffer.first_chunk::<2>() {
                assert_eq!(second & 0x80, 0, "a server does not mask");
                let (skip, length) = match second {
                    126 => (4, self.buffer.get(2..4).map(|b| u64::from(u16::from_be_bytes(b.try_into().unwrap())))),
                    127 => (10, self.buffer.get(2..10).map(|b| u64::from_be_bytes(b.try_into().unwrap()))),
                    short => (2, Some(u64::from(short))),
                };
                if let Some(length) = length.map(|length| length as usize)
                    && self.buffer.len() >= skip + length
                {
                    let payload = self.buffer.drain(..skip + length).skip(skip).collect();
                    return Some((first & 15, payload));
                }
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// The next frame of Twilsock: header and payload; None at the end.
    pub(super) async fn frame(&mut self) -> Option<(Value, Value)> {
        let (opcode, payload) = self.message().await?;
        if opcode == 8 {
            return None;
        }
        assert_eq!(opcode, 2, "all frames are binary");
        let text = String::from_utf8(payload).unwrap();
        let mut parts = text.splitn(3, "\r\n");
        let length: usize = parts.next().unwrap().strip_prefix("TWILSOCK V3.0 ").unwrap().parse().unwrap();
        let (header, payload) = (parts.next().unwrap(), parts.next().unwrap());
        assert_eq!(header.len(), length);
        let header: Value = serde_json::from_str(header).unwrap();
        assert_eq!(header["payload_size"], payload.len());
        Some((header, if payload.is_empty() { Value::Null } else { serde_json::from_str(payload).unwrap() }))
    }

    pub(super) async fn post(&mut self, mut header: Value, payload: &str) -> String {
        self.sent += 1;
        let id = format!("TM{}", self.sent);
        header["id"] = id.as_str().into();
        header["payload_size"] = payload.len().into();
        let header = header.to_string();
        self.send(2, format!("TWILSOCK V3.0 {}\r\n{header}\r\n{payload}", header.len()).as_bytes()).await;
        id
    }

    pub(super) async fn reply(&mut self, id: &str) -> (Value, Value) {
        loop {
            let (header, payload) = self.frame().await.expect("the connection ended");
            match header["method"].as_str().unwrap() {
                "reply" if header["id"] == id => return (header, payload),
                "notification" => self.heard.push_back(payload),
                "ping" => {}
                other => panic!("{other}: {header}"),
            }
        }
    }

    pub(super) async fn init(&mut self, token: &str, continuation: Option<&str>) -> Value {
        let header = json!({"method": "init", "token": token, "continuation_token": continuation, "registrations": null});
        let id = self.post(header, "").await;
        self.reply(&id).await.0
    }

    /// Asks the Sync API: status and body.
    pub(super) async fn ask(&mut self, method: &str, path: &str, if_match: Option<&str>, body: &Value) -> (u64, Value) {
        let headers = if_match.map_or_else(|| json!({}), |revision| json!({"If-Match": revision}));
        let request = json!({"host": "h", "path": path, "method": method, "params": {}, "headers": headers});
        let payload = if body.is_null() { String::new() } else { body.to_string() };
        let id = self.post(json!({"method": "message", "active_grant": "data_sync", "http_request": request}), &payload).await;
        let (header, payload) = self.reply(&id).await;
        assert_eq!(header["status"]["code"], 200);
        (header["http_status"]["code"].as_u64().unwrap(), payload)
    }

    pub(super) async fn poke(&mut self, action: &str, correlation: u64, requests: Value) {
        let body = json!({"event_protocol_version": 4, "action": action, "correlation_id": correlation, "requests": requests});
        let (status, told) = self.ask("POST", "/v4/Subscriptions", None, &body).await;
        assert_eq!((status, &told["max_batch_size"]), (200, &json!(1_000)));
    }

    /// Subscribes to an object and gives all that is told up to the end of that.
    pub(super) async fn subscribe(&mut self, kind: &str, sid: &Value, since: Option<u64>) -> Vec<Value> {
        self.poke("establish", 7, json!([{"object_sid": sid, "object_type": kind, "last_event_id": since}])).await;
        let mut all = Vec::new();
        loop {
            let told = self.notification().await;
            let ends = told["event_type"].as_str().unwrap().starts_with("subscription_");
            assert_eq!(told["correlation_id"], 7);
            all.push(told);
            if ends {
                return all;
            }
        }
    }

    pub(super) async fn notification(&mut self) -> Value {
        if let Some(heard) = self.heard.pop_front() {
            return heard;
        }
        loop {
            let (header, payload) = self.frame().await.expect("the connection ended");
            if header["method"] == "notification" {
                return payload;
            }
        }
    }

    /// The next data event: its type and itself.
    pub(super) async fn event(&mut self) -> (String, Value) {
        let told = self.notification().await;
        (told["event_type"].as_str().unwrap().to_owned(), told["event"].clone())
    }
}
