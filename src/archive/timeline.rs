//! What happened around one person, one product, one object or one event id, by pages. Called by the web's reports and `contrail trace`. Raw ids of people come in and are hashed
//! here; they must never go out again but inside the events themselves.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;

use super::report::limit;
use super::view::{EventView, SidOf};
use super::{Archive, Error, EventRow, Scan, ScanBy};
use crate::event::{SiteId, SiteRules, Timestamp};

/// Events of a page where nothing else is asked for.
pub const DEFAULT_PAGE: usize = 50;

/// Most events of a page.
pub const MAX_PAGE: usize = 1_000;

/// Which page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// Behind which event it begins.
    pub after: Option<Place>,
    /// At most so many events.
    pub limit: usize,
}

/// An event's place among others; outside it is an opaque text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    occurred_at: Timestamp,
    partition: u16,
    offset: u64,
}

/// A page of events.
#[derive(Debug, Serialize)]
pub struct Page {
    /// The events.
    pub events: Vec<EventView>,
    /// What to give as `cursor` for the next page; None on the last.
    pub next: Option<String>,
}

impl Default for Paging {
    fn default() -> Self {
        Self { after: None, limit: DEFAULT_PAGE }
    }
}

impl Paging {
    /// Reads `cursor` and `limit`.
    ///
    /// # Errors
    /// [`Error::BadQuestion`] for any other parameter, one given twice, or a value that is none.
    pub fn parse(parameters: &[(String, String)]) -> Result<Self, Error> {
        let bad = |parameter, message: String| Error::BadQuestion { parameter, message };
        let mut paging = Self::default();
        let mut seen = Vec::new();
        for (name, value) in parameters {
            if seen.contains(&name) {
                return Err(bad("parameters", format!("{name:?} is given twice")));
            }
            seen.push(name);
            match name.as_str() {
                "limit" => paging.limit = limit(value, MAX_PAGE)?,
                "cursor" => paging.after = Some(Place::read(value).ok_or_else(|| bad("cursor", "is none that was given out".into()))?),
                _ => return Err(bad("parameters", format!("there is no {name:?}, only cursor and limit"))),
            }
        }
        Ok(paging)
    }
}

impl Place {
    const fn of(row: &EventRow) -> Self {
        Self { occurred_at: row.occurred_at, partition: row.partition, offset: row.offset }
    }

    const fn tuple(self) -> (Timestamp, u16, u64) {
        (self.occurred_at, self.partition, self.offset)
    }

    fn text(self) -> String {
        let mut bytes = vec![1];
        bytes.extend(self.occurred_at.micros().to_be_bytes());
        bytes.extend(self.partition.to_be_bytes());
        bytes.extend(self.offset.to_be_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn read(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (version, rest) = bytes.split_first()?;
        let (occurred_at, rest) = rest.split_first_chunk()?;
        let (partition, rest) = rest.split_first_chunk()?;
        let offset = u64::from_be_bytes(rest.try_into().ok()?);
        let place = Self { occurred_at: Timestamp::from_micros(i64::from_be_bytes(*occurred_at)), partition: u16::from_be_bytes(*partition), offset };
        (*version == 1).then_some(place)
    }
}

/// Everything a person did, newest first: `id` is a customer's or a visitor's raw id. Whatever is linked to it, one step in either
/// direction, belongs to it; events on a shared browser that name a customer outside of that do not.
///
/// # Errors
/// Those of the archive.
pub async fn timeline(archive: &dyn Archive, rules: &SiteRules, site: &SiteId, id: &str, paging: Paging, sids: &SidOf) -> Result<Page, Error> {
    let own = rules.person_hash(id);
    let mut people = archive.linked(site, own).await?;
    people.push(own);
    people.sort_unstable();
    people.dedup();
    let by = ScanBy::People(people.clone());
    page(archive, site, by, true, paging, sids, |row| row.customer.is_none_or(|customer| people.binary_search(&customer).is_ok())).await
}

/// Every event that names a product, newest first.
///
/// # Errors
/// Those of the archive.
pub async fn history(archive: &dyn Archive, site: &SiteId, product: &str, paging: Paging, sids: &SidOf) -> Result<Page, Error> {
    page(archive, site, ScanBy::Product(product.to_owned()), true, paging, sids, |_| true).await
}

/// Everything that API clients did to the object with this SID, newest first. It needs no such object any more, nor to be this server's.
///
/// # Errors
/// Those of the archive.
pub async fn object_history(archive: &dyn Archive, site: &SiteId, sid: &str, paging: Paging, sids: &SidOf) -> Result<Page, Error> {
    page(archive, site, ScanBy::Object(sid.to_owned()), true, paging, sids, |_| true).await
}

/// All that is kept under one event id, oldest first, each with its verdict, its place in the log and the objects it touched: the report that counted, those
/// in conflict with it, and of an order, a refund or a step the further ones, among them the same content by another channel. Repeats leave no row, and so
/// no trace.
///
/// # Errors
/// Those of the archive.
pub async fn trace(archive: &dyn Archive, site: &SiteId, event_id: &str, paging: Paging, sids: &SidOf) -> Result<Page, Error> {
    page(archive, site, ScanBy::EventId(event_id.to_owned()), false, paging, sids, |_| true).await
}

/// Scans until a page is full, and one event further to know whether there is a next.
async fn page(
    archive: &dyn Archive,
    site: &SiteId,
    by: ScanBy,
    newest_first: bool,
    paging: Paging,
    sids: &SidOf,
    belongs: impl Fn(&EventRow) -> bool,
) -> Result<Page, Error> {
    let wanted = paging.limit + 1;
    let mut scan = Scan { by, newest_first, after: paging.after.map(Place::tuple), limit: wanted, ..Scan::default() };
    let mut found = Vec::new();
    loop {
        let rows = archive.scan(site, &scan).await?;
        let more = rows.len() >= wanted;
        scan.after = rows.last().map(|row| Place::of(row).tuple());
        found.extend(rows.into_iter().filter(&belongs));
        if !more || found.len() >= wanted {
            break;
        }
    }
    let more = found.len() >= wanted;
    found.truncate(paging.limit);
    let next = found.last().filter(|_| more).map(|row| Place::of(row).text());
    Ok(Page { events: found.into_iter().map(|row| EventView::new(row, sids)).collect(), next })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::shop::{Post, Shop, post, site, wait};
    use super::*;
    use crate::event::Channel;

    fn sids(site: &SiteId, kind: crate::event::ObjectKind, name: &str) -> String {
        format!("{}-{kind:?}-{name}", site.as_str())
    }

    fn view(id: &str, when: &str, customer: Option<&str>, visitor: Option<&str>) -> Post {
        let mut body = json!({"type": "product_viewed", "product": {"id": "sku/1"}, "customer": {}});
        customer.iter().for_each(|id| body["customer"]["id"] = (*id).into());
        visitor.iter().for_each(|id| body["customer"]["anonymous_id"] = (*id).into());
        post(id, when, "", body)
    }

    fn ids(page: &Page) -> Vec<&str> {
        page.events.iter().map(|event| event.event_id.as_str()).collect()
    }

    #[test]
    fn a_timeline_follows_links_one_step_and_keeps_strangers_out() {
        let shop = Shop::new(&[
            view("before-login", "2026-11-20T09:00:00Z", None, Some("a1")),
            view("login", "2026-11-20T09:01:00Z", Some("c1"), Some("a1")),
            view("phone", "2026-11-19T09:00:00Z", Some("c1"), Some("a2")),
            view("later", "2026-11-20T09:02:00Z", Some("c1"), None),
            view("stranger", "2026-11-20T09:03:00Z", Some("c2"), Some("a1")),
            view("else", "2026-11-20T09:04:00Z", Some("c3"), Some("a9")),
        ]);
        let of = |id: &str, paging| wait(timeline(&*shop.archive, &shop.rules, &site(), id, paging, &sids)).unwrap();
        assert_eq!(ids(&of("c1", Paging::default())), ["later", "login", "before-login", "phone"]);
        assert_eq!(ids(&of("a2", Paging::default())), ["later", "login", "phone"], "c1 is linked, a1 is two steps away");
        assert_eq!(ids(&of("nobody", Paging::default())), [""; 0]);
        let (mut seen, mut cursor) = (Vec::new(), None);
        for _ in 0..4 {
            let parameters: Vec<_> = cursor.iter().map(|c: &String| ("cursor".to_owned(), c.clone())).collect();
            let page = of("c1", Paging { limit: 1, ..Paging::parse(&parameters).unwrap() });
            seen.extend(page.events.into_iter().map(|event| event.event_id));
            cursor = page.next;
        }
        assert_eq!((seen.join(" "), cursor), ("later login before-login phone".to_owned(), None));
    }

    #[test]
    fn a_trace_shows_every_report_of_an_id() {
        let shop = Shop::new(&[
            view("e1", "2026-11-20T09:00:00Z", Some("c1"), None),
            view("e1", "2026-11-20T09:00:05Z", Some("c1"), None),
            view("e1", "2026-11-20T09:00:00Z", Some("c1"), None),
            view("e2", "2026-11-20T09:00:03Z", Some("c1"), None),
        ]);
        let page = wait(trace(&*shop.archive, &site(), "e1", Paging::default(), &sids)).unwrap();
        let shown: Vec<_> = page.events.iter().map(|event| (event.verdict, event.offset)).collect();
        assert_eq!(shown, [("counted", 0), ("conflict", 1)]);
        let json = serde_json::to_value(&page).unwrap();
        assert_eq!(json["events"][0]["event"]["product"]["id"], "sku/1");
        assert_eq!(json["events"][0]["objects"], json!([{"kind": "map", "name": "product.sku/1", "sid": "demo-Map-product.sku/1"}]));
        assert_eq!(ids(&wait(history(&*shop.archive, &site(), "sku/1", Paging { limit: 2, after: None }, &sids)).unwrap()), ["e1", "e2"]);
    }

    #[test]
    fn a_trace_shows_an_orders_report_by_each_channel() {
        let told = |channel| {
            let body = json!({"type": "order_completed", "order": {"id": "o1"}});
            Post { channel, ..post("e1", "2026-11-20T09:00:00Z", "c1", body) }
        };
        let shop = Shop::new(&[told(Channel::Pixel), told(Channel::Webhook), told(Channel::Pixel)]);
        let page = wait(trace(&*shop.archive, &site(), "e1", Paging::default(), &sids)).unwrap();
        let shown: Vec<_> = page.events.iter().map(|event| (event.verdict, event.channel)).collect();
        assert_eq!(shown, [("counted", Channel::Pixel), ("report", Channel::Webhook)]);
    }

    #[test]
    fn foreign_cursors_and_parameters_are_refused() {
        for (name, value) in [("cursor", "nonsense"), ("cursor", ""), ("cursor", "AA"), ("limit", "0"), ("limit", "1001"), ("page", "1")] {
            assert!(matches!(Paging::parse(&[(name.into(), value.into())]), Err(Error::BadQuestion { .. })), "{name}={value}");
        }
        let place = Place { occurred_at: Timestamp::from_micros(-5), partition: 15, offset: u64::MAX };
        assert_eq!(Place::read(&place.text()), Some(place));
    }
}
