//! Where a site's objects are mirrored to, and which: what an operator may give, and how it is kept. Called by `site`; read by `mirror`. Pure.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use url::Url;

use super::Error;
use super::seal::Seal;
use crate::event::{ObjectKey, ObjectKind, SiteId};

/// The host where none is given.
const TWILIO: &str = "sync.twilio.com";
/// Most patterns of one mirror.
const MOST_PATTERNS: usize = 100;
/// Longest pattern: a kind and a name.
const LONGEST_PATTERN: usize = 330;

/// What a mirror cannot be set to. It shows nothing of what was given but a pattern: a URL holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MirrorFault {
    /// No URL of a Sync service with who asks.
    #[error(
        "a mirror's URL is twilio://USER:SECRET@HOST/SERVICE: an account's SID and auth token or an API key's SID and secret, no host for {TWILIO}'s own \
         (twilio://USER:SECRET@/SERVICE), the service's SID or `default`; twilio+http:// where the host is asked without TLS"
    )]
    Url,
    /// No pattern of names.
    #[error(
        "`{0}` names no objects: give a name, with * at its end for all that begin so, and document:, list: or map: before it for one kind alone, such as \
         product.* or document:top.sold"
    )]
    Pattern(String),
    /// Nothing, or too much.
    #[error("a mirror has 1 to {MOST_PATTERNS} patterns of objects")]
    Patterns,
}

/// A Sync service elsewhere, and who asks there.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// `https://HOST/v1/Services/SERVICE`.
    pub base: Url,
    /// An account's SID, or an API key's.
    pub user: String,
    /// Its auth token, or secret.
    pub secret: String,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("base", &self.base.as_str()).field("user", &self.user).finish_non_exhaustive()
    }
}

impl Target {
    fn parse(text: &str) -> Option<Self> {
        // Other schemes than these the library reads by other rules.
        let (scheme, rest) = match text.trim().split_once("://")? {
            ("twilio", rest) => ("https", rest),
            ("twilio+http", rest) => ("http", rest),
            _ => return None,
        };
        let (credentials, place) = rest.rsplit_once('@')?;
        let place = if place.starts_with('/') { format!("{TWILIO}{place}") } else { place.to_owned() };
        let given = Url::parse(&format!("{scheme}://{credentials}@{place}")).ok()?;
        let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8().ok().map(std::borrow::Cow::into_owned);
        let (user, secret) = (decoded(given.username())?, decoded(given.password()?)?);
        let mut segments = given.path_segments()?;
        let (service, more) = (segments.next()?.to_owned(), segments.next());
        let is_service = !service.is_empty() && service.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        if user.is_empty() || secret.is_empty() || !is_service || more.is_some() || given.query().is_some() || given.fragment().is_some() {
            return None;
        }
        let mut base = given;
        base.set_username("").ok()?;
        base.set_password(None).ok()?;
        base.set_path(&format!("/v1/Services/{service}"));
        Some(Self { base, user, secret })
    }

    /// As it may be shown to anybody who administers the site.
    pub fn shown(&self) -> String {
        let scheme = if self.base.scheme() == "http" { "twilio+http" } else { "twilio" };
        let (host, service) = (self.base.host_str().unwrap_or_default(), self.base.path().rsplit('/').next().unwrap_or_default());
        let port = self.base.port().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{scheme}://{}@{host}{port}/{service}", self.user)
    }
}

/// Names of objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Of one kind alone; None = documents, lists and maps.
    kind: Option<ObjectKind>,
    /// The name, or what it begins with.
    name: String,
    /// Whether it begins so.
    begins: bool,
}

impl Pattern {
    /// The kinds of objects that are mirrored. A stream's messages are not kept: there is no state to mirror.
    pub const KINDS: [ObjectKind; 3] = [ObjectKind::Document, ObjectKind::List, ObjectKind::Map];

    fn parse(text: &str) -> Result<Self, MirrorFault> {
        let kinds = [("document:", ObjectKind::Document), ("list:", ObjectKind::List), ("map:", ObjectKind::Map)];
        let of_kind = kinds.into_iter().find_map(|(word, kind)| Some((Some(kind), text.strip_prefix(word)?)));
        let (kind, rest) = of_kind.unwrap_or((None, text));
        let (name, begins) = rest.strip_suffix('*').map_or((rest, false), |name| (name, true));
        let is_legal = text.len() <= LONGEST_PATTERN && (begins || !name.is_empty()) && !name.contains('*') && !name.contains(char::is_control);
        if !is_legal {
            return Err(MirrorFault::Pattern(text.chars().take(80).collect()));
        }
        Ok(Self { kind, name: name.to_owned(), begins })
    }

    /// What the names begin with.
    pub fn prefix(&self) -> &str {
        &self.name
    }

    /// Whether it may name objects of that kind.
    pub fn is_of(&self, kind: ObjectKind) -> bool {
        self.kind.map_or_else(|| Self::KINDS.contains(&kind), |own| own == kind)
    }

    fn names(&self, key: &ObjectKey) -> bool {
        self.is_of(key.kind) && if self.begins { key.name.starts_with(&self.name) } else { key.name == self.name }
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            None => "",
            Some(ObjectKind::Document) => "document:",
            Some(ObjectKind::List) => "list:",
            Some(ObjectKind::Map) => "map:",
            Some(ObjectKind::Stream) => "stream:",
        };
        write!(f, "{kind}{}{}", self.name, if self.begins { "*" } else { "" })
    }
}

/// A site's mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Tells it from the one that was set before.
    pub id: u64,
    /// Where to.
    pub target: Target,
    /// Which objects.
    pub objects: Vec<Pattern>,
    /// Partitions of `changes` whose objects were all mirrored once: from then on changes are followed.
    pub copied: Vec<u16>,
}

impl Mirror {
    /// Whether it mirrors the same to the same place.
    pub(super) fn is_as(&self, other: &Self) -> bool {
        (&self.target, &self.objects) == (&other.target, &other.objects)
    }

    /// Whether an object is mirrored. One that was given no name is not: there is nothing to call it by elsewhere.
    pub fn mirrors(&self, key: &ObjectKey) -> bool {
        // Of names that clients cannot give are those of unnamed objects.
        !key.name.starts_with(char::is_control) && self.objects.iter().any(|pattern| pattern.names(key))
    }
}

/// A mirror as it is kept.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MirrorRow {
    pub(super) id: u64,
    /// Sealed where there is a key.
    url: String,
    objects: Vec<String>,
    #[serde(default)]
    pub(super) copied: Vec<u16>,
}

impl std::fmt::Debug for MirrorRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MirrorRow").field("id", &self.id).field("objects", &self.objects).finish_non_exhaustive()
    }
}

impl MirrorRow {
    /// A mirror that was never followed.
    pub(super) fn new(id: u64, url: &str, objects: &[String], site: &SiteId, seal: &Seal) -> Result<(Arc<Mirror>, Self), MirrorFault> {
        let row = Self { id, url: seal.seal(site, url.trim()), objects: objects.to_vec(), copied: Vec::new() };
        row.read(url).map(|mirror| (mirror, row))
    }

    pub(super) fn open(&self, site: &SiteId, seal: &Seal) -> Result<Arc<Mirror>, Error> {
        Ok(self.read(&seal.open(site, &self.url)?)?)
    }

    fn read(&self, url: &str) -> Result<Arc<Mirror>, MirrorFault> {
        let target = Target::parse(url).ok_or(MirrorFault::Url)?;
        if !(1..=MOST_PATTERNS).contains(&self.objects.len()) {
            return Err(MirrorFault::Patterns);
        }
        let objects = self.objects.iter().map(|text| Pattern::parse(text)).collect::<Result<_, _>>()?;
        Ok(Arc::new(Mirror { id: self.id, target, objects, copied: self.copied.clone() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo() -> SiteId {
        SiteId::parse("demo").unwrap()
    }

    fn base(text: &str) -> Option<(String, String, String)> {
        Target::parse(text).map(|target| (target.base.to_string(), target.user, target.secret))
    }

    #[test]
    fn where_to_is_read_and_shown_without_its_secret() {
        let of = |base: &str, user: &str, secret: &str| Some((base.to_owned(), user.to_owned(), secret.to_owned()));
        assert_eq!(base("twilio://AC1:s@/IS2"), of("https://sync.twilio.com/v1/Services/IS2", "AC1", "s"));
        assert_eq!(base(" twilio://SK1:a%40b@sync.example:8443/default\n"), of("https://sync.example:8443/v1/Services/default", "SK1", "a@b"));
        assert_eq!(base("twilio+http://SK1:s@127.0.0.1:80/IS2"), of("http://127.0.0.1/v1/Services/IS2", "SK1", "s"));
        for illegal in [
            "",
            "https://AC1:s@sync.twilio.com/IS2",
            "twilio://sync.twilio.com/IS2",
            "twilio://AC1@sync.twilio.com/IS2",
            "twilio://AC1:@sync.twilio.com/IS2",
            "twilio://AC1:s@sync.twilio.com",
            "twilio://AC1:s@sync.twilio.com/",
            "twilio://AC1:s@sync.twilio.com/IS2/Documents",
            "twilio://AC1:s@sync.twilio.com/IS2?x=1",
            "twilio://AC1:s@sync.twilio.com/..",
        ] {
            assert_eq!(base(illegal), None, "{illegal}");
        }
        let target = Target::parse("twilio://SK1:hush@sync.example:8443/IS2").unwrap();
        assert_eq!(target.shown(), "twilio://SK1@sync.example:8443/IS2");
        assert!(!format!("{target:?}").contains("hush"));
        let (mirror, row) = MirrorRow::new(1, "twilio://SK1:hush@/IS2", &["a".into()], &demo(), &Seal::default()).unwrap();
        assert!(!format!("{row:?}{mirror:?}").contains("hush"));
    }

    #[test]
    fn patterns_name_objects() {
        let key = |kind, name: &str| ObjectKey { site: demo(), kind, name: name.into() };
        let mirror = |objects: &[&str]| {
            let objects: Vec<String> = objects.iter().map(|&text| text.to_owned()).collect();
            MirrorRow::new(1, "twilio://AC1:s@/IS2", &objects, &demo(), &Seal::default()).map(|(mirror, _)| mirror)
        };
        let chosen = mirror(&["product.*", "document:top.sold", "page.:"]).unwrap();
        for (kind, name, is) in [
            (ObjectKind::Map, "product.1", true),
            (ObjectKind::Document, "product.1", true),
            (ObjectKind::Stream, "product.1", false),
            (ObjectKind::Document, "top.sold", true),
            (ObjectKind::List, "top.sold", false),
            (ObjectKind::Document, "page.:", true),
            (ObjectKind::Document, "page.:a", false),
        ] {
            assert_eq!(chosen.mirrors(&key(kind, name)), is, "{kind:?} {name}");
        }
        let all = mirror(&["*"]).unwrap();
        assert!(all.mirrors(&key(ObjectKind::Map, "any")) && !all.mirrors(&key(ObjectKind::Map, "\u{1}00ff")));
        let shown: Vec<String> = chosen.objects.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["product.*", "document:top.sold", "page.:"]);
        for illegal in ["", "map:", "a*b", "a\n"] {
            assert_eq!(mirror(&[illegal]), Err(MirrorFault::Pattern(illegal.into())));
        }
        assert_eq!(mirror(&[]), Err(MirrorFault::Patterns));
    }
}
