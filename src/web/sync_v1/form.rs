//! Parameters of a request, from its query or its form body, and what they may be. Called by the handlers. Pure.

use std::borrow::Cow;

use percent_encoding::percent_decode;

use crate::event::ObjectKind;
use crate::web::sync::{self, Fault, MAX_TTL};

/// Most parameters of a request: the one with most has ten.
const MOST: usize = 100;

/// Parameters by name. One that nobody asks for is nobody's concern: clients that are newer than this server send such.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Reads `application/x-www-form-urlencoded` text.
    ///
    /// # Errors
    /// [`Fault::Parameter`] for a parameter that is given twice or is no text, and for more than anybody has a use for.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Fault> {
        let mut params: Vec<(String, String)> = Vec::new();
        for pair in text.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
            let at = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            let (name, value) = pair.split_at_checked(at).unwrap_or((pair, b""));
            let (name, value) = (decode(name)?, decode(value.strip_prefix(b"=").unwrap_or_default())?);
            if params.iter().any(|(known, _)| *known == name) {
                return Err(Fault::Parameter("A parameter is given twice".into()));
            }
            params.push((name, value));
            if params.len() > MOST {
                return Err(Fault::Parameter("Too many parameters".into()));
            }
        }
        Ok(Self(params))
    }

    /// A parameter as given.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A lifetime in seconds, under the first of these names that is given.
    ///
    /// # Errors
    /// [`Fault::Ttl`].
    pub(super) fn ttl(&self, names: &[&str]) -> Result<Option<u32>, Fault> {
        let Some(given) = names.iter().find_map(|name| self.get(name)) else { return Ok(None) };
        let seconds = number(given).filter(|seconds| *seconds <= u64::from(MAX_TTL)).and_then(|seconds| u32::try_from(seconds).ok());
        seconds.map(Some).ok_or(Fault::Ttl)
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// [`Fault::Parameter`].
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, Fault> {
        match self.get(name) {
            None => Ok(None),
            Some(given) if given.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Some(given) if given.eq_ignore_ascii_case("false") => Ok(Some(false)),
            Some(_) => Err(Fault::Parameter(format!("Invalid {name}: expected true or false").into())),
        }
    }

    /// The data of an object, item or message, as it is stored.
    ///
    /// # Errors
    /// [`Fault::NotJson`], [`Fault::TooLarge`]; [`Fault::NoData`] where it is null.
    pub(super) fn data(&self, kind: ObjectKind, most: usize) -> Result<Option<String>, Fault> {
        self.get("Data").map(|text| data(text, kind, most)).transpose()
    }
}

/// Data as it is stored, of an object of this kind or of what that has.
///
/// # Errors
/// As [`Params::data`].
pub(super) fn data(text: &str, kind: ObjectKind, most: usize) -> Result<String, Fault> {
    if text.trim() == "null" { Err(Fault::NoData(kind)) } else { sync::check_data(text, most) }
}

/// Digits and nothing else, as a number; one too large for that is the greatest.
pub(super) fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

fn decode(text: &[u8]) -> Result<String, Fault> {
    let text: Cow<'_, [u8]> =
        if text.contains(&b'+') { text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect::<Vec<u8>>().into() } else { text.into() };
    let decoded = percent_decode(&text).decode_utf8().map_err(|_| Fault::Parameter("A parameter is not text in UTF-8".into()))?;
    Ok(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(text: &str) -> Params {
        Params::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn forms_are_read_as_browsers_write_them() {
        let given = params("Data=%7B%22a%22%3A%201%7D&UniqueName=a+b%2Bc&Empty=&None&&Is=a=b&%4Bey=%C3%A9");
        assert_eq!(given.get("Data"), Some("{\"a\": 1}"));
        assert_eq!(given.get("UniqueName"), Some("a b+c"));
        assert_eq!((given.get("Empty"), given.get("None"), given.get("Is"), given.get("Key")), (Some(""), Some(""), Some("a=b"), Some("\u{e9}")));
        assert_eq!(given.get("data"), None, "names are told by their case");
        assert_eq!(params(""), Params::default());
    }

    #[test]
    fn what_is_not_a_form_is_refused() {
        for text in ["Data=%FF", "a=1&a=2"] {
            assert!(matches!(Params::parse(text.as_bytes()), Err(Fault::Parameter(_))), "{text}");
        }
        let many = (0..101).map(|n| format!("p{n}=1")).collect::<Vec<_>>().join("&");
        assert!(matches!(Params::parse(many.as_bytes()), Err(Fault::Parameter(_))));
    }

    #[test]
    fn lifetimes_have_a_range_and_an_alias() {
        let ttl = |text: &str| params(text).ttl(&["ItemTtl", "Ttl"]);
        for (text, wanted) in [
            ("", Ok(None)),
            ("Ttl=0", Ok(Some(0))),
            ("Ttl=31536000", Ok(Some(31_536_000))),
            ("Ttl=5&ItemTtl=7", Ok(Some(7))),
            ("Ttl=x&ItemTtl=7", Ok(Some(7))),
            ("Ttl=31536001", Err(Fault::Ttl)),
            ("Ttl=-1", Err(Fault::Ttl)),
            ("Ttl=", Err(Fault::Ttl)),
            ("Ttl=1.5", Err(Fault::Ttl)),
            ("Ttl=%2B1", Err(Fault::Ttl)),
            ("Ttl=99999999999999999999", Err(Fault::Ttl)),
        ] {
            assert_eq!(ttl(text), wanted, "{text}");
        }
    }

    #[test]
    fn flags_are_true_or_false() {
        let flag = |text: &str| params(text).flag("Read");
        assert_eq!((flag(""), flag("Read=true"), flag("Read=False")), (Ok(None), Ok(Some(true)), Ok(Some(false))));
        for text in ["Read=", "Read=1", "Read=yes"] {
            assert!(matches!(flag(text), Err(Fault::Parameter(_))), "{text}");
        }
    }

    #[test]
    fn data_is_a_json_object_of_bounded_size() {
        let data = |text: &str| params(text).data(ObjectKind::Map, 10);
        for (text, wanted) in [
            ("", Ok(None)),
            ("Data={}", Ok(Some("{}".to_owned()))),
            ("Data={\"a\":1.0}", Ok(Some("{\"a\":1.0}".to_owned()))),
            ("Data=null", Err(Fault::NoData(ObjectKind::Map))),
            ("Data=", Err(Fault::NotJson)),
            ("Data=x", Err(Fault::NotJson)),
            ("Data=1", Err(Fault::NotJson)),
            ("Data=[]", Err(Fault::NotJson)),
            ("Data={\"a\":1.000}", Err(Fault::TooLarge)),
        ] {
            assert_eq!(data(text), wanted, "{text}");
        }
    }
}
