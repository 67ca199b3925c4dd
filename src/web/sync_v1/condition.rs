//! What a request demands of the present revision: the header `If-Match`. Called by the handlers. Pure.

use axum::http::{HeaderMap, header};

use super::form::number;
use crate::web::sync::Fault;

/// A demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// None.
    Any,
    /// That it is there.
    Exists,
    /// That it is of this revision, as objects count: the first is 1, which clients see as 0.
    Revision(u64),
}

impl Condition {
    /// The demand of a request.
    ///
    /// # Errors
    /// [`Fault::IfMatch`] where it names no single revision.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Fault> {
        let mut given = headers.get_all(header::IF_MATCH).iter();
        match (given.next(), given.next()) {
            (None, _) => Ok(Self::Any),
            (Some(only), None) => Self::parse(only.to_str().map_err(|_| Fault::IfMatch)?),
            (Some(_), Some(_)) => Err(Fault::IfMatch),
        }
    }

    /// A demand as written: `0`, `"0"`, `W/"0"` or `*`.
    ///
    /// # Errors
    /// [`Fault::IfMatch`].
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        let text = text.trim();
        if text == "*" {
            return Ok(Self::Exists);
        }
        let quoted = |text: &'_ str| text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).map(str::to_owned);
        let bare = quoted(text.strip_prefix("W/").unwrap_or(text)).unwrap_or_else(|| text.to_owned());
        // One beyond all numbers is no revision that anything has.
        number(&bare).map(|shown| Self::Revision(shown.saturating_add(1))).ok_or(Fault::IfMatch)
    }

    /// The revision demanded.
    pub(super) const fn revision(self) -> Option<u64> {
        match self {
            Self::Any | Self::Exists => None,
            Self::Revision(revision) => Some(revision),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn revisions_are_read_bare_quoted_and_weak() {
        for text in ["0", "\"0\"", "W/\"0\"", " 0 "] {
            assert_eq!(Condition::parse(text), Ok(Condition::Revision(1)), "{text}");
        }
        assert_eq!(Condition::parse("41"), Ok(Condition::Revision(42)));
        assert_eq!(Condition::parse("*"), Ok(Condition::Exists));
        assert_eq!(Condition::parse("99999999999999999999"), Ok(Condition::Revision(u64::MAX)));
        for text in ["", "a", "-1", "\"0", "0\"", "\"\"", "W/0", "\"0\", \"1\"", "0x1", "\"*\"", "1.0", "+1"] {
            assert_eq!(Condition::parse(text), Err(Fault::IfMatch), "{text}");
        }
    }

    #[test]
    fn a_request_demands_one_revision_or_none() {
        let mut headers = HeaderMap::new();
        assert_eq!(Condition::of(&headers), Ok(Condition::Any));
        headers.append(header::IF_MATCH, HeaderValue::from_static("3"));
        assert_eq!(Condition::of(&headers), Ok(Condition::Revision(4)));
        headers.append(header::IF_MATCH, HeaderValue::from_static("3"));
        assert_eq!(Condition::of(&headers), Err(Fault::IfMatch));
        headers.insert(header::IF_MATCH, HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(Condition::of(&headers), Err(Fault::IfMatch));
    }
}
