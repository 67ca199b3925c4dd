//! Every refusal of ingest in one table: code, where it stands, status, Retry-After, log level, one sentence. The documentation and
//! its test are made from [`Code::ALL`]. Called by the whole room; knows nothing of HTTP bodies.

use std::borrow::Cow;

use axum::http::StatusCode;

/// Where a refusal stands in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The whole request: its status is the answer's.
    Request,
    /// One event, in `rejected`; kept in quarantine, can be replayed.
    Kept,
    /// One event, in `rejected`; nothing of it is stored, it is counted among the refusals.
    Lost,
}

/// How loudly a refusal is logged. Senders' mistakes are theirs; only our own troubles are warnings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The sender's doing.
    Debug,
    /// Worth an operator's look.
    Warn,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Stable name.
    pub code: &'static str,
    /// Where it stands.
    pub scope: Scope,
    /// HTTP status of the answer it stands in.
    pub status: StatusCode,
    /// Seconds after which the same request may succeed.
    pub retry_after: Option<u32>,
    /// How loudly it is logged.
    pub level: Level,
    /// One sentence for people.
    pub title: &'static str,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Why a request or an event was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $($(#[$doc])* $name),+ }

        impl Code {
            /// Every code, in the table's order.
            pub const ALL: &[Self] = &[$(Self::$name),+];
        }
    };
}

codes! {
    /// The request carries no key; give one as Bearer token, Basic user name or X-Write-Key.
    KeyMissing,
    /// The key is not a valid ingest key of any site.
    KeyUnknown,
    /// The site is of another region.
    RegionElsewhere,
    /// The page's origin is not among the site's allowed origins.
    OriginNotAllowed,
    /// The webhook is not signed for this URL with an auth token of the site that it names, or there is no such site.
    SignatureInvalid,
    /// The webhook is none that is known, or lacks something.
    WebhookUnreadable,
    /// A query parameter has no legal value.
    ParameterInvalid,
    /// Idempotency-Key or webhook-id is empty, over 255 bytes or not visible ASCII.
    DeliveryIdInvalid,
    /// Events are sent by POST.
    MethodNotAllowed,
    /// The body holds no event.
    BodyEmpty,
    /// The body is not UTF-8.
    BodyNotUtf8,
    /// The body is neither a JSON object, an array of them, nor NDJSON; nothing was stored.
    BodyNotJson,
    /// The body ended before its stated length, or could not be read.
    BodyIncomplete,
    /// The body did not arrive in time.
    BodyTimeout,
    /// The body is over 8 MiB as sent.
    BodyTooLarge,
    /// The body is over 8 MiB once decompressed.
    DecodedTooLarge,
    /// The request holds more than 10,000 events; nothing was stored.
    TooManyEvents,
    /// The Content-Encoding is none of identity, gzip and zstd.
    EncodingUnsupported,
    /// The body is not what its Content-Encoding says.
    EncodingCorrupt,
    /// Too many requests from this address.
    RateAddress,
    /// Too many events with this key.
    RateKey,
    /// Too many events for this site.
    RateSite,
    /// Too much is in flight; nothing was stored.
    Overloaded,
    /// The event log is at its bound, or too much waits for it; nothing was stored.
    LogFull,
    /// A partition of the event log refuses appends; nothing was stored.
    LogDamaged,
    /// The event log did not confirm; repeat the whole request with the assigned ids.
    LogUnavailable,
    /// The event log has stopped; repeat the whole request with the assigned ids.
    LogClosed,
    /// The line is not JSON.
    NotJson,
    /// The line is not UTF-8.
    NotUtf8,
    /// The event is over 1 MiB.
    EventTooLarge,
    /// The event is nested deeper than 64.
    NestedTooDeep,
    /// A \u escape is half of a surrogate pair.
    LoneSurrogate,
    /// A number is beyond what a double holds.
    NumberTooLarge,
    /// The event is not a JSON object.
    NotAnObject,
    /// A required field is missing or null.
    FieldMissing,
    /// A field has a JSON type other than the one it must have.
    TypeWrong,
    /// A field's value is none of the legal ones.
    ValueInvalid,
    /// An id or name is longer than allowed.
    TooLong,
    /// A time is not RFC 3339 with an offset.
    TimestampInvalid,
    /// Money is not `{amount_minor, currency}` or `{amount, currency}` with amount a decimal string.
    MoneyInvalid,
}

impl Code {
    /// Whether a request is refused so before its body was read to the end: its connection cannot be used again.
    pub const fn leaves_body_unread(self) -> bool {
        matches!(
            self,
            Self::KeyMissing
                | Self::KeyUnknown
                | Self::RegionElsewhere
                | Self::OriginNotAllowed
                | Self::ParameterInvalid
                | Self::DeliveryIdInvalid
                | Self::EncodingUnsupported
                | Self::BodyTooLarge
                | Self::BodyTimeout
                | Self::RateAddress
        )
    }

    /// The code's row. The one match over all codes.
    #[expect(clippy::too_many_lines, reason = "a table")]
    pub const fn row(self) -> Row {
        use Level::{Debug, Warn};
        use Scope::{Kept, Lost, Request};
        match self {
            Self::KeyMissing => row(
                "key_missing",
                Request,
                StatusCode::UNAUTHORIZED,
                0,
                Debug,
                "The request carries no key; give one as Bearer token, Basic user name or X-Write-Key.",
            ),
            Self::KeyUnknown => row("key_unknown", Request, StatusCode::UNAUTHORIZED, 0, Debug, "The key is not a valid ingest key of any site."),
            Self::RegionElsewhere => {
                row("region_elsewhere", Request, StatusCode::MISDIRECTED_REQUEST, 0, Debug, "The site is of another region; nothing was stored.")
            }
            Self::OriginNotAllowed => {
                row("origin_not_allowed", Request, StatusCode::FORBIDDEN, 0, Debug, "The page's origin is not among the site's allowed origins.")
            }
            Self::SignatureInvalid => row(
                "signature_invalid",
                Request,
                StatusCode::FORBIDDEN,
                0,
                Debug,
                "The webhook is not signed for this URL with an auth token of the site that it names, or there is no such site.",
            ),
            Self::WebhookUnreadable => {
                row("webhook_unreadable", Request, StatusCode::BAD_REQUEST, 0, Debug, "The webhook is none that is known, or lacks something.")
            }
            Self::ParameterInvalid => row("parameter_invalid", Request, StatusCode::BAD_REQUEST, 0, Debug, "A query parameter has no legal value."),
            Self::DeliveryIdInvalid => row(
                "delivery_id_invalid",
                Request,
                StatusCode::BAD_REQUEST,
                0,
                Debug,
                "Idempotency-Key or webhook-id is empty, over 255 bytes or not visible ASCII.",
            ),
            Self::MethodNotAllowed => row("method_not_allowed", Request, StatusCode::METHOD_NOT_ALLOWED, 0, Debug, "Events are sent by POST."),
            Self::BodyEmpty => row("body_empty", Request, StatusCode::BAD_REQUEST, 0, Debug, "The body holds no event."),
            Self::BodyNotUtf8 => row("body_not_utf8", Request, StatusCode::BAD_REQUEST, 0, Debug, "The body is not UTF-8."),
            Self::BodyNotJson => row(
                "body_not_json",
                Request,
                StatusCode::BAD_REQUEST,
                0,
                Debug,
                "The body is neither a JSON object, an array of them, nor NDJSON; nothing was stored.",
            ),
            Self::BodyIncomplete => {
                row("body_incomplete", Request, StatusCode::BAD_REQUEST, 0, Debug, "The body ended before its stated length, or could not be read.")
            }
            Self::BodyTimeout => row("body_timeout", Request, StatusCode::REQUEST_TIMEOUT, 0, Debug, "The body did not arrive in time."),
            Self::BodyTooLarge => row("body_too_large", Request, StatusCode::PAYLOAD_TOO_LARGE, 0, Debug, "The body is over 8 MiB as sent."),
            Self::DecodedTooLarge => {
                row("decoded_too_large", Request, StatusCode::PAYLOAD_TOO_LARGE, 0, Debug, "The body is over 8 MiB once decompressed.")
            }
            Self::TooManyEvents => row(
                "too_many_events",
                Request,
                StatusCode::PAYLOAD_TOO_LARGE,
                0,
                Debug,
                "The request holds more than 10,000 events; nothing was stored.",
            ),
            Self::EncodingUnsupported => row(
                "encoding_unsupported",
                Request,
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                0,
                Debug,
                "The Content-Encoding is none of identity, gzip and zstd.",
            ),
            Self::EncodingCorrupt => {
                row("encoding_corrupt", Request, StatusCode::BAD_REQUEST, 0, Debug, "The body is not what its Content-Encoding says.")
            }
            Self::RateAddress => row("rate_address", Request, StatusCode::TOO_MANY_REQUESTS, 1, Debug, "Too many requests from this address."),
            Self::RateKey => row("rate_key", Request, StatusCode::TOO_MANY_REQUESTS, 1, Debug, "Too many events with this key."),
            Self::RateSite => row("rate_site", Request, StatusCode::TOO_MANY_REQUESTS, 1, Debug, "Too many events for this site."),
            Self::Overloaded => row("overloaded", Request, StatusCode::SERVICE_UNAVAILABLE, 1, Warn, "Too much is in flight; nothing was stored."),
            Self::LogFull => row(
                "log_full",
                Request,
                StatusCode::SERVICE_UNAVAILABLE,
                5,
                Warn,
                "The event log is at its bound, or too much waits for it; nothing was stored.",
            ),
            Self::LogDamaged => row(
                "log_damaged",
                Request,
                StatusCode::SERVICE_UNAVAILABLE,
                60,
                Warn,
                "A partition of the event log refuses appends; nothing was stored.",
            ),
            Self::LogUnavailable => row(
                "log_unavailable",
                Request,
                StatusCode::SERVICE_UNAVAILABLE,
                1,
                Warn,
                "The event log did not confirm; repeat the whole request with the assigned ids.",
            ),
            Self::LogClosed => row(
                "log_closed",
                Request,
                StatusCode::SERVICE_UNAVAILABLE,
                5,
                Warn,
                "The event log has stopped; repeat the whole request with the assigned ids.",
            ),
            Self::NotJson => row("not_json", Lost, StatusCode::OK, 0, Debug, "The line is not JSON."),
            Self::NotUtf8 => row("not_utf8", Lost, StatusCode::OK, 0, Debug, "The line is not UTF-8."),
            Self::EventTooLarge => row("event_too_large", Lost, StatusCode::OK, 0, Debug, "The event is over 1 MiB."),
            Self::NestedTooDeep => row("nested_too_deep", Kept, StatusCode::OK, 0, Debug, "The event is nested deeper than 64."),
            Self::LoneSurrogate => row("lone_surrogate", Kept, StatusCode::OK, 0, Debug, "A \\u escape is half of a surrogate pair."),
            Self::NumberTooLarge => row("number_too_large", Kept, StatusCode::OK, 0, Debug, "A number is beyond what a double holds."),
            Self::NotAnObject => row("not_an_object", Kept, StatusCode::OK, 0, Debug, "The event is not a JSON object."),
            Self::FieldMissing => row("field_missing", Kept, StatusCode::OK, 0, Debug, "A required field is missing or null."),
            Self::TypeWrong => row("type_wrong", Kept, StatusCode::OK, 0, Debug, "A field has a JSON type other than the one it must have."),
            Self::ValueInvalid => row("value_invalid", Kept, StatusCode::OK, 0, Debug, "A field's value is none of the legal ones."),
            Self::TooLong => row("too_long", Kept, StatusCode::OK, 0, Debug, "An id or name is longer than allowed."),
            Self::TimestampInvalid => row("timestamp_invalid", Kept, StatusCode::OK, 0, Debug, "A time is not RFC 3339 with an offset."),
            Self::MoneyInvalid => row(
                "money_invalid",
                Kept,
                StatusCode::OK,
                0,
                Debug,
                "Money is not {amount_minor, currency} or {amount, currency} with amount a decimal string.",
            ),
        }
    }

    /// Its stable name.
    pub const fn name(self) -> &'static str {
        self.row().code
    }
}

/// `retry_after` 0 = none.
const fn row(code: &'static str, scope: Scope, status: StatusCode, retry_after: u32, level: Level, title: &'static str) -> Row {
    Row { code, scope, status, retry_after: if retry_after == 0 { None } else { Some(retry_after) }, level, title }
}

/// Why one event cannot be taken, and where in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Which row of the table.
    pub code: Code,
    /// About this event; never holds its content.
    pub message: Cow<'static, str>,
    /// JSON pointer (RFC 6901) into the event; empty for the whole.
    pub pointer: String,
    /// Byte offset into the decoded body, for syntax errors.
    pub offset: Option<usize>,
}

impl Invalid {
    /// An invalid value at the place looked at.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), pointer: String::new(), offset: None }
    }

    /// The same, seen from the object that holds the place under `key`.
    #[must_use]
    pub fn within(mut self, key: &str) -> Self {
        let key = if key.contains(['~', '/']) { Cow::Owned(key.replace('~', "~0").replace('/', "~1")) } else { Cow::Borrowed(key) };
        self.pointer = format!("/{key}{}", self.pointer);
        self
    }

    /// The same, with the byte it was found at.
    #[must_use]
    pub const fn at_byte(mut self, offset: usize) -> Self {
        self.offset = Some(offset);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sound() {
        let mut names: Vec<_> = Code::ALL.iter().map(|c| c.name()).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "two rows share a name");
        for code in Code::ALL {
            let row = code.row();
            let busy = matches!(row.status.as_u16(), 429 | 503);
            assert_eq!(row.retry_after.is_some(), busy, "{}: exactly 429 and 503 say when to come again", row.code);
            assert_eq!(row.scope == Scope::Request, row.status != StatusCode::OK, "{}", row.code);
            assert!(row.title.ends_with('.'), "{}", row.code);
            assert!(row.code.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{}", row.code);
        }
    }

    #[test]
    fn pointers_escape_as_rfc_6901_says() {
        let invalid = Invalid::new(Code::TypeWrong, "x").within("a/b~c").within("3").within("items");
        assert_eq!(invalid.pointer, "/items/3/a~1b~0c");
    }
}
