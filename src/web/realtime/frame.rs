//! The frames of Twilsock 3: a line with the length of a JSON header, the header, a payload. Read and written by a connection; pure. Nothing that a
//! client sends may make it panic.
//!
//! ```text
//! TWILSOCK V3.0 <length of the header>\r\n
//! <header>\r\n
//! <payload>
//! ```
//!
//! Two dialects are read: JavaScript names the payload's length, Kotlin leaves it out where there is none and ends a payload with one more line end.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::event::ids::fresh_uuid;

/// What every frame begins with.
const MAGIC: &[u8] = b"TWILSOCK V3.0 ";
/// Most bytes of the first line.
const LONGEST_LINE: usize = 32;

/// A frame as it came.
#[derive(Debug)]
pub(super) struct Frame {
    /// Its header.
    pub(super) header: Header,
    /// What follows; empty where nothing does.
    pub(super) payload: Bytes,
}

/// What clients' headers say, of all methods.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Header {
    /// What is asked.
    pub(super) method: String,
    /// Names the frame, for the reply.
    pub(super) id: String,
    /// Bytes of the payload.
    payload_size: Option<usize>,
    /// `init`, `update`: the access token.
    pub(super) token: Option<String>,
    /// `init`: what an earlier connection was given.
    pub(super) continuation_token: Option<String>,
    /// `init`: what is to be notified of.
    pub(super) registrations: Option<Vec<Registration>>,
    /// `message`: what is asked of the Sync API.
    pub(super) http_request: Option<Box<RawValue>>,
}

/// What a client wants to be notified of.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Registration {
    /// `data_sync`.
    pub(super) product: String,
    /// `ers`.
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// Types of the notifications.
    pub(super) message_types: Vec<String>,
}

/// Bytes that are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a frame of Twilsock 3")]
pub(super) struct Malformed;

/// Reads a frame.
///
/// # Errors
/// [`Malformed`].
pub(super) fn decode(bytes: &Bytes) -> Result<Frame, Malformed> {
    let head = bytes.get(..bytes.len().min(LONGEST_LINE)).ok_or(Malformed)?;
    let end = head.windows(2).position(|pair| pair == b"\r\n").ok_or(Malformed)?;
    let length = head.get(..end).and_then(|line| line.strip_prefix(MAGIC)).ok_or(Malformed)?;
    if length.is_empty() || !length.iter().all(u8::is_ascii_digit) {
        return Err(Malformed);
    }
    let length: usize = std::str::from_utf8(length).ok().and_then(|length| length.parse().ok()).ok_or(Malformed)?;
    let begins = end + 2;
    let ends = begins.checked_add(length).filter(|ends| *ends <= bytes.len()).ok_or(Malformed)?;
    let header = bytes.get(begins..ends).filter(|header| header.starts_with(b"{")).ok_or(Malformed)?;
    let header: Header = serde_json::from_slice(header).map_err(|_| Malformed)?;
    let rest = bytes.slice(ends..);
    let rest = match rest.get(..2) {
        Some(b"\r\n") => rest.slice(2..),
        _ if rest.is_empty() => rest,
        _ => return Err(Malformed),
    };
    let payload = match header.payload_size {
        Some(size) if size <= rest.len() => rest.slice(..size),
        Some(_) => return Err(Malformed),
        None if rest.ends_with(b"\r\n") => rest.slice(..rest.len() - 2),
        None => rest,
    };
    Ok(Frame { header, payload })
}

/// A header to send.
#[derive(Debug, Default, Serialize)]
pub(super) struct Outgoing<'a> {
    /// What is said.
    pub(super) method: &'a str,
    /// Names the frame; of a reply that of what it replies to.
    pub(super) id: &'a str,
    /// Set by [`encode`].
    pub(super) payload_size: usize,
    /// Set by [`encode`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) payload_type: Option<&'a str>,
    /// `reply`, `close`: how it went, or why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<Status<'a>>,
    /// `reply` to `message`: the Sync API's status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) http_status: Option<Status<'a>>,
    /// `reply` to `message`: the Sync API's headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) http_headers: Option<&'a RawValue>,
    /// `notification`: its type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) message_type: Option<&'a str>,
    /// `client_update`: its type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) client_update_type: Option<&'a str>,
    /// `reply` to `init`: all that is said of the connection.
    #[serde(flatten)]
    pub(super) opened: Option<&'a serde_json::Map<String, serde_json::Value>>,
}

/// A status.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Status<'a> {
    /// As of HTTP.
    pub(super) code: u16,
    /// In words.
    pub(super) status: &'a str,
    /// Twilio's code.
    #[serde(rename = "errorCode", skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<u32>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<&'a str>,
}

impl Status<'static> {
    /// It went well.
    pub(super) const OK: Self = Self { code: 200, status: "OK", error: None, description: None };
}

/// Writes a frame. The line end after the header stands there without a payload too: a client counts lines.
pub(super) fn encode(mut header: Outgoing<'_>, payload: &str) -> Bytes {
    header.payload_size = payload.len();
    header.payload_type = (!payload.is_empty()).then_some("application/json");
    // Plain data with text keys always serialises.
    let header = serde_json::to_string(&header).unwrap_or_default();
    let mut out = Vec::with_capacity(LONGEST_LINE + header.len() + payload.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(header.len().to_string().as_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(payload.as_bytes());
    out.into()
}

/// A name for a frame of our own.
pub(super) fn fresh_id() -> String {
    format!("TM{}", fresh_uuid().simple())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(header: &str, rest: &str) -> Bytes {
        format!("TWILSOCK V3.0 {}\r\n{header}{rest}", header.len()).into()
    }

    #[test]
    fn both_dialects_are_read() {
        let javascript = decode(&frame(r#"{"method":"message","id":"TM1","payload_size":2,"é":1}"#, "\r\n{}")).unwrap();
        assert_eq!((javascript.header.method.as_str(), javascript.header.id.as_str(), &javascript.payload[..]), ("message", "TM1", &b"{}"[..]));
        let kotlin = decode(&frame(r#"{"method":"message","id":"RQ1"}"#, "\r\n{\"a\":1}\r\n")).unwrap();
        assert_eq!(&kotlin.payload[..], br#"{"a":1}"#);
        for rest in ["", "\r\n", "\r\n\r\n"] {
            assert_eq!(decode(&frame(r#"{"method":"reply","id":"RQ1"}"#, rest)).unwrap().payload.len(), 0, "{rest:?}");
        }
        assert_eq!(decode(&frame(r#"{"method":"reply","id":"TM1","payload_size":0}"#, "\r\n")).unwrap().payload.len(), 0);
    }

    #[test]
    fn what_is_no_frame_is_told() {
        let wrong = [
            "",
            "TWILSOCK",
            "TWILSOCK V3.0 \r\n{}\r\n",
            "TWILSOCK V2.0 2\r\n{}\r\n",
            "TWILSOCK V3.0 +2\r\n{}\r\n",
            "TWILSOCK V3.0 99\r\n{}\r\n",
            "TWILSOCK V3.0 18446744073709551615\r\n{}",
            "TWILSOCK V3.0 2\r\n[]\r\n",
            "TWILSOCK V3.0 2\r\n{}xx",
            "TWILSOCK V3.0 18\r\n{\"payload_size\":3}\r\n{}",
        ];
        for bytes in wrong {
            assert_eq!(decode(&Bytes::from_static(bytes.as_bytes())).err(), Some(Malformed), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let header = Outgoing { method: "reply", id: "TMé", status: Some(Status::OK), ..Outgoing::default() };
        let bytes = encode(header, r#"{"é":1}"#);
        let text = std::str::from_utf8(&bytes).unwrap();
        assert!(text.starts_with("TWILSOCK V3.0 117\r\n{\"method\":\"reply\",\"id\":\"TMé\",\"payload_size\":8,"), "{text}");
        assert!(text.ends_with("\r\n{\"é\":1}"), "{text}");
        let read = decode(&bytes).unwrap();
        assert_eq!((read.header.id.as_str(), &read.payload[..]), ("TMé", "{\"é\":1}".as_bytes()));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            decode(&bytes.into()).ok();
        }

        #[test]
        fn no_damage_panics(cut in 0_usize..80, at in 0_usize..80, byte in any::<u8>()) {
            let mut bytes = frame(r#"{"method":"message","id":"TM1","payload_size":2}"#, "\r\n{}").to_vec();
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            bytes.truncate(cut);
            decode(&bytes.into()).ok();
        }

        #[test]
        fn every_payload_comes_through(payload in "\\PC{0,80}", id in "\\PC{0,40}") {
            let read = decode(&encode(Outgoing { method: "reply", id: &id, ..Outgoing::default() }, &payload)).unwrap();
            prop_assert_eq!(read.header.id, id);
            prop_assert_eq!(&read.payload[..], payload.as_bytes());
        }
    }
}
