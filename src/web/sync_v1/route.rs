//! What a path under `/v1/Services` names, and by which methods it may be asked. Called by the handler. Pure.
//!
//! Each segment is percent-decoded once. Official clients put keys into paths as they are, so the whole rest of a path after `/Items/` is the key, and after
//! `/Permissions/` the identity. An empty segment names nothing: clients that tidy paths turn `/Maps/m/Items/..` into `/Maps/m/`, which must not be the map.

use percent_encoding::percent_decode_str;

use crate::event::ObjectKind;

/// Where all paths of this face begin.
pub(super) const ROOT: &str = "/v1/Services";

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// All services of the account.
    Services,
    /// One service, by SID or unique name, or something of it.
    Of(String, At),
}

/// Something of a service. Objects stand by SID or unique name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum At {
    /// The service itself.
    Service,
    /// Many objects at once.
    Batch,
    /// Its objects of a kind.
    Objects(ObjectKind),
    /// One object.
    Object(ObjectKind, String),
    /// Items of a list or map.
    Items(ObjectKind, String),
    /// One item, by index or key.
    Item(ObjectKind, String, String),
    /// Many items of a map at once.
    MapBatch(String),
    /// Messages of a stream.
    Messages(String),
    /// Who may do what with an object.
    Permissions(ObjectKind, String),
    /// What one identity may.
    Permission(ObjectKind, String, String),
}

impl Place {
    /// What a path names; None where it names nothing.
    pub(super) fn of(path: &str) -> Option<Self> {
        let rest = path.strip_prefix(ROOT)?;
        if rest.is_empty() {
            return Some(Self::Services);
        }
        let (service, rest) = cut(rest.strip_prefix('/')?);
        let at = rest.map_or(Some(At::Service), At::of)?;
        Some(Self::Of(decode(service)?, at))
    }

    /// The methods that it knows, as the header `Allow` lists them.
    pub(super) const fn methods(&self) -> &'static str {
        match self {
            Self::Services | Self::Of(_, At::Objects(_) | At::Items(..)) => "GET, POST, OPTIONS",
            Self::Of(_, At::Item(ObjectKind::Map, ..)) => "GET, POST, PUT, DELETE, OPTIONS",
            Self::Of(_, At::Service | At::Object(..) | At::Item(..) | At::Permission(..)) => "GET, POST, DELETE, OPTIONS",
            Self::Of(_, At::Batch | At::MapBatch(_) | At::Messages(_)) => "POST, OPTIONS",
            Self::Of(_, At::Permissions(..)) => "GET, OPTIONS",
        }
    }

    /// Whether its body is JSON instead of a form.
    pub(super) const fn is_batch(&self) -> bool {
        matches!(self, Self::Of(_, At::Batch | At::MapBatch(_)))
    }
}

impl At {
    /// Of the path behind a service.
    fn of(path: &str) -> Option<Self> {
        let (word, rest) = cut(path);
        let kind = match word {
            "Batch" if rest.is_none() => return Some(Self::Batch),
            "Documents" => ObjectKind::Document,
            "Lists" => ObjectKind::List,
            "Maps" => ObjectKind::Map,
            "Streams" => ObjectKind::Stream,
            _ => return None,
        };
        let Some(rest) = rest else { return Some(Self::Objects(kind)) };
        let (object, rest) = cut(rest);
        let object = decode(object)?;
        let Some(rest) = rest else { return Some(Self::Object(kind, object)) };
        match (kind, cut(rest)) {
            (ObjectKind::List | ObjectKind::Map, ("Items", None)) => Some(Self::Items(kind, object)),
            (ObjectKind::List | ObjectKind::Map, ("Items", Some(key))) => Some(Self::Item(kind, object, decode(key)?)),
            (ObjectKind::Map, ("Batch", None)) => Some(Self::MapBatch(object)),
            (ObjectKind::Stream, ("Messages", None)) => Some(Self::Messages(object)),
            (ObjectKind::Document | ObjectKind::List | ObjectKind::Map, ("Permissions", None)) => Some(Self::Permissions(kind, object)),
            (ObjectKind::Document | ObjectKind::List | ObjectKind::Map, ("Permissions", Some(identity))) => {
                Some(Self::Permission(kind, object, decode(identity)?))
            }
            _ => None,
        }
    }
}

/// A path's first segment, and what comes behind the slash after it.
fn cut(path: &str) -> (&str, Option<&str>) {
    path.split_once('/').map_or((path, None), |(first, rest)| (first, Some(rest)))
}

/// A segment as meant; None for an empty one, and where it is no text.
fn decode(segment: &str) -> Option<String> {
    let decoded = percent_decode_str(segment).decode_utf8().ok()?;
    (!decoded.is_empty()).then(|| decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str) -> Option<At> {
        match Place::of(&format!("/v1/Services/default{path}")) {
            Some(Place::Of(service, at)) if service == "default" => Some(at),
            None => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_place_has_its_path() {
        use ObjectKind::{Document, List, Map, Stream};
        assert_eq!(Place::of("/v1/Services"), Some(Place::Services));
        let (m, k) = (|| "m".to_owned(), || "k".to_owned());
        for (path, at) in [
            ("", At::Service),
            ("/Batch", At::Batch),
            ("/Documents", At::Objects(Document)),
            ("/Lists", At::Objects(List)),
            ("/Streams/m", At::Object(Stream, m())),
            ("/Maps/m/Items", At::Items(Map, m())),
            ("/Lists/m/Items/7", At::Item(List, m(), "7".into())),
            ("/Maps/m/Items/k", At::Item(Map, m(), k())),
            ("/Maps/m/Batch", At::MapBatch(m())),
            ("/Maps/Batch", At::Object(Map, "Batch".into())),
            ("/Streams/m/Messages", At::Messages(m())),
            ("/Documents/m/Permissions", At::Permissions(Document, m())),
            ("/Lists/m/Permissions/k", At::Permission(List, m(), k())),
        ] {
            assert_eq!(of(path), Some(at), "{path}");
        }
    }

    #[test]
    fn what_is_decoded_is_decoded_once_and_keys_may_have_slashes() {
        for (path, key) in
            [("x/y", "x/y"), ("x%2Fy", "x/y"), ("a%20b", "a b"), ("p%2520q", "p%20q"), ("%C3%A9", "\u{e9}"), ("a/", "a/"), ("a+b", "a+b")]
        {
            assert_eq!(of(&format!("/Maps/m/Items/{path}")), Some(At::Item(ObjectKind::Map, "m".into(), key.into())), "{path}");
        }
        assert_eq!(of("/Documents/a%2Fb"), Some(At::Object(ObjectKind::Document, "a/b".into())));
        assert_eq!(of("/Maps/m/Permissions/a/b"), Some(At::Permission(ObjectKind::Map, "m".into(), "a/b".into())));
    }

    #[test]
    fn other_paths_name_nothing() {
        for path in [
            "/",
            "/Maps/",
            "/Maps/m/",
            "/Maps/m/Items/",
            "/Maps//Items",
            "/maps",
            "/Documents/m/Items",
            "/Streams/m/Permissions",
            "/Lists/m/Batch",
            "/Maps/m/Messages",
            "/Batch/x",
            "/Documents/m/x",
            "/Documents/%FF",
            "/Maps/m/Items/%FF",
            "/Queries",
        ] {
            assert_eq!(of(path), None, "{path}");
        }
        for path in ["/v1/Services/", "/v1/Servicesx", "/v1", "/v1/Services//Maps"] {
            assert_eq!(Place::of(path), None, "{path}");
        }
    }
}
