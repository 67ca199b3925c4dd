//! Origins of pages, as browsers send them. Called by `site` where origins are stored. Pure.

use url::Url;

use super::Error;

/// What allows the pages of every origin.
pub(super) const EVERY: &str = "*";

/// An origin in the one spelling that browsers send: lower case, without a path and without the scheme's own port.
pub(super) fn parse(given: &str) -> Result<String, Error> {
    if given == EVERY {
        return Ok(EVERY.to_owned());
    }
    let url = Url::parse(given).ok().filter(is_origin);
    url.map(|url| url.origin().ascii_serialization()).ok_or_else(|| Error::Origin(given.to_owned()))
}

/// Every one of them, or the error of the first that is none.
pub(super) fn parse_all(given: &[String]) -> Result<Vec<String>, Error> {
    given.iter().map(|origin| parse(origin)).collect()
}

/// Whether a URL says no more than an origin does, and one that a browser can send.
fn is_origin(url: &Url) -> bool {
    let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
    bare && matches!(url.scheme(), "http" | "https") && url.host_str().is_some_and(|host| !host.contains('*'))
}
