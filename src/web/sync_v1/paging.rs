//! Pages of a listing: which one is asked for, what belongs on it, and the addresses of those beside it. Called by the handlers. Pure.
//!
//! A token names the entry that a page begins behind, or ends before, so that entries that come and go meanwhile move no page. `PageSize` is clamped, not
//! refused: official clients send the limit of the whole listing as the size of its pages. A page may hold fewer entries than asked for where they are large.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::form::{Params, number};
use crate::sync::Seek;
use crate::web::sync::Fault;

/// Entries of a page where nothing else is asked for.
const SIZE: usize = 50;
/// Most entries of a page.
const LARGEST: usize = 100;
/// Bytes of data from which on a page takes no further entry.
pub(super) const PAGE_BYTES: usize = 1 << 20;
/// What a token begins with.
const TOKEN: &str = "PT";

/// Where a page is cut off from the one it was reached from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Edge {
    /// Nowhere: it is the first one, and has no token.
    #[serde(skip)]
    Start,
    /// Its first entry is the next one behind this.
    After(String),
    /// Its last entry is the one before this.
    Before(String),
}

/// The page asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// What clients count; says nothing of what is on it.
    pub(super) number: u64,
    /// Most entries on it.
    pub(super) size: usize,
    /// Where it begins.
    pub(super) edge: Edge,
}

/// What belongs on a page, and what is beside it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Window<T> {
    /// In the listing's order.
    pub(super) entries: Vec<T>,
    /// Of the page before; None where there is none.
    pub(super) previous: Option<Edge>,
    /// Of the page behind; None where there is none.
    pub(super) next: Option<Edge>,
}

/// A page's account of itself.
#[derive(Debug, Serialize)]
pub(super) struct Meta<'a> {
    page: u64,
    page_size: usize,
    first_page_url: String,
    previous_page_url: Option<String>,
    url: String,
    next_page_url: Option<String>,
    key: &'a str,
}

impl Page {
    /// The page that a query asks for.
    ///
    /// # Errors
    /// [`Fault::PageSize`], [`Fault::PageToken`]; [`Fault::Parameter`] for a `Page` that is no number.
    pub(super) fn of(query: &Params) -> Result<Self, Fault> {
        let size = match query.get("PageSize") {
            None => SIZE,
            Some(text) => match (number(text), text.strip_prefix('-').and_then(number)) {
                (Some(size), _) => usize::try_from(size).unwrap_or(LARGEST).clamp(1, LARGEST),
                (None, Some(_)) => 1,
                (None, None) => return Err(Fault::PageSize),
            },
        };
        let number = match query.get("Page") {
            None => 0,
            Some(text) => number(text).ok_or(Fault::Parameter("Invalid Page: expected a number from 0 on".into()))?,
        };
        Ok(Self { number, size, edge: query.get("PageToken").map_or(Ok(Edge::Start), Edge::read)? })
    }

    /// Whether it is read from its end on.
    pub(super) const fn is_backwards(&self) -> bool {
        matches!(self.edge, Edge::Before(_))
    }

    /// The page made of what was found from its edge on (of a page read backwards from its end on), one entry more than its size where there is one.
    pub(super) fn window<T>(&self, mut found: Vec<T>, name: impl Fn(&T) -> String, bytes: impl Fn(&T) -> usize) -> Window<T> {
        let before = found.iter().scan(0usize, |sum, entry| Some(std::mem::replace(sum, sum.saturating_add(bytes(entry)))));
        let most = before.take(self.size).take_while(|before| *before < PAGE_BYTES).count();
        let more = found.len() > most;
        found.truncate(most);
        if self.is_backwards() {
            found.reverse();
        }
        let (first, last) = (found.first().map(&name), found.last().map(&name));
        let (previous, next) = match self.edge {
            Edge::Start => (false, more),
            Edge::After(_) => (true, more),
            Edge::Before(_) => (more, true),
        };
        let previous = first.filter(|_| previous).map(Edge::Before);
        let next = match (last, &self.edge) {
            // All that was before it is gone: the listing begins behind it.
            (None, Edge::Before(_)) => Some(Edge::Start),
            (last, _) => last.filter(|_| next).map(Edge::After),
        };
        Window { previous, next, entries: found }
    }

    /// Its account of itself: `address` is the listing's without a query, `filters` what else the query says, in pairs that end in `&`.
    pub(super) fn meta<'a>(&self, address: &str, filters: &str, key: &'a str, previous: Option<&Edge>, next: Option<&Edge>) -> Meta<'a> {
        let url = |number: u64, edge: &Edge| {
            let token = edge.token().map_or_else(String::new, |token| format!("PageToken={token}&"));
            format!("{address}?{filters}PageSize={}&{token}Page={number}", self.size)
        };
        Meta {
            page: self.number,
            page_size: self.size,
            first_page_url: url(0, &Edge::Start),
            previous_page_url: previous.map(|edge| url(self.number.saturating_sub(1), edge)),
            url: url(self.number, &self.edge),
            next_page_url: next.map(|edge| url(self.number.saturating_add(1), edge)),
            key,
        }
    }
}

impl Edge {
    /// Where a listing of the store goes on.
    pub(super) fn seek(&self) -> Seek<&str> {
        match self {
            Self::Start => Seek::First,
            Self::After(name) => Seek::After(name),
            Self::Before(name) => Seek::Before(name),
        }
    }

    /// What leads there; None for the start, which cannot be written as one.
    fn token(&self) -> Option<String> {
        let json = serde_json::to_vec(self).ok()?;
        Some(format!("{TOKEN}{}", URL_SAFE_NO_PAD.encode(json)))
    }

    fn read(token: &str) -> Result<Self, Fault> {
        let bytes = token.strip_prefix(TOKEN).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).ok_or(Fault::PageToken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(query: &str) -> Result<Page, Fault> {
        Page::of(&Params::parse(query.as_bytes()).unwrap())
    }

    #[test]
    fn sizes_are_clamped_and_never_refused_as_numbers() {
        for (query, size) in [
            ("", 50),
            ("PageSize=1", 1),
            ("PageSize=0", 1),
            ("PageSize=-7", 1),
            ("PageSize=1000", 100),
            ("PageSize=101", 100),
            ("PageSize=99999999999999999999", 100),
        ] {
            assert_eq!(page(query).unwrap(), Page { number: 0, size, edge: Edge::Start }, "{query}");
        }
        for query in ["PageSize=", "PageSize=x", "PageSize=1.5", "PageSize=-"] {
            assert_eq!(page(query), Err(Fault::PageSize), "{query}");
        }
        assert_eq!(page("Page=3").unwrap().number, 3);
        for query in ["Page=", "Page=-1", "Page=x"] {
            assert!(matches!(page(query), Err(Fault::Parameter(_))), "{query}");
        }
    }

    #[test]
    fn tokens_are_read_back_and_others_refused() {
        let after = Edge::After("\u{1}a/\u{e9}".into());
        assert_eq!(Edge::read(&after.token().unwrap()), Ok(after));
        assert_eq!(Edge::After("a".into()).token().unwrap(), "PTeyJhZnRlciI6ImEifQ");
        assert_eq!(page("PageToken=PTeyJhZnRlciI6ImEifQ").unwrap().edge, Edge::After("a".into()));
        assert_eq!(Edge::Start.token(), None);
        // eyJhIjoiYSJ9 is {"a":"a"}, InN0YXJ0Ig is "start", eyJzdGFydCI6ImEifQ is {"start":"a"}.
        for token in [
            "",
            "PT",
            "PTInN0YXJ0Ig",
            "PTeyJzdGFydCI6ImEifQ",
            "eyJhZnRlciI6ImEifQ",
            "PTeyJhZnRlciI6ImEifQ==",
            "PTeyJhIjoiYSJ9",
            "PT!",
            "PTeyJhZnRlciI6",
        ] {
            assert_eq!(page(&format!("PageToken={token}")), Err(Fault::PageToken), "{token}");
        }
    }

    /// Pages over the numbers below `count`, as a listing finds them.
    fn walk(count: u32, page: &Page) -> Window<u32> {
        let all = 0..count;
        let is = |name: &str| name.parse::<u32>().unwrap();
        let found: Vec<u32> = match &page.edge {
            Edge::Start => all.take(page.size + 1).collect(),
            Edge::After(name) => all.filter(|n| *n > is(name)).take(page.size + 1).collect(),
            Edge::Before(name) => all.rev().filter(|n| *n < is(name)).take(page.size + 1).collect(),
        };
        page.window(found, u32::to_string, |_| 1)
    }

    #[test]
    fn pages_lead_forth_and_back() {
        let mut page = Page { number: 0, size: 3, edge: Edge::Start };
        let mut pages = Vec::new();
        loop {
            let window = walk(8, &page);
            pages.push(window.entries);
            match window.next {
                Some(edge) => page.edge = edge,
                None => break,
            }
        }
        assert_eq!(pages, [vec![0, 1, 2], vec![3, 4, 5], vec![6, 7]]);
        let mut back = Vec::new();
        loop {
            let window = walk(8, &page);
            back.push(window.entries);
            match window.previous {
                Some(edge) => page.edge = edge,
                None => break,
            }
        }
        assert_eq!(back, [vec![6, 7], vec![3, 4, 5], vec![0, 1, 2]]);
        assert_eq!(walk(8, &page).next, Some(Edge::After("2".into())), "and forth again");
        assert_eq!(walk(3, &Page { number: 0, size: 3, edge: Edge::Start }).next, None, "a full page without one behind it");
        assert_eq!(walk(0, &Page { number: 0, size: 3, edge: Edge::Start }), Window { entries: vec![], previous: None, next: None });
    }

    #[test]
    fn large_entries_make_small_pages() {
        let page = Page { number: 0, size: 10, edge: Edge::Start };
        let window = page.window(vec![1, 2, 3, 4], i32::to_string, |_| PAGE_BYTES / 2);
        assert_eq!((window.entries, window.next), (vec![1, 2], Some(Edge::After("2".into()))));
        let window = page.window(vec![1, 2], i32::to_string, |_| 2 * PAGE_BYTES);
        assert_eq!((window.entries, window.next), (vec![1], Some(Edge::After("1".into()))), "never an empty one");
    }

    #[test]
    fn a_page_accounts_for_itself() {
        let page = Page { number: 1, size: 2, edge: Edge::After("a".into()) };
        let meta = page.meta("https://s.example/v1/Services/default/Maps/m/Items", "Order=asc&", "items", None, Some(&Edge::After("c".into())));
        let token = Edge::After("c".into()).token().unwrap();
        assert_eq!(
            serde_json::to_value(&meta).unwrap(),
            serde_json::json!({
                "page": 1,
                "page_size": 2,
                "first_page_url": "https://s.example/v1/Services/default/Maps/m/Items?Order=asc&PageSize=2&Page=0",
                "previous_page_url": null,
                "url": "https://s.example/v1/Services/default/Maps/m/Items?Order=asc&PageSize=2&PageToken=PTeyJhZnRlciI6ImEifQ&Page=1",
                "next_page_url": format!("https://s.example/v1/Services/default/Maps/m/Items?Order=asc&PageSize=2&PageToken={token}&Page=2"),
                "key": "items",
            })
        );
    }
}
