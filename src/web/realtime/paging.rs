//! Pages of a list's or a map's items: what is asked for, which items that is, and the tokens that lead on. Called by [`super::calls`]; pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserialize, Serialize};

use super::request::PageAsked;
use crate::event::Timestamp;
use crate::sync::object::{Object, SnapshotItem};
use crate::web::sync::Fault;

/// Items of a page, unless told.
const DEFAULT_SIZE: usize = 50;
/// Most items of a page; who asks for more gets as many.
pub(super) const MAX_SIZE: usize = 100;
/// What a token begins with.
const TOKEN: &str = "PT";

/// A page of items.
#[derive(Debug, PartialEq)]
pub(super) struct Page {
    /// The items in the order asked for.
    pub(super) items: Vec<SnapshotItem>,
    /// Leads to the page before; None where there is none.
    pub(super) previous: Option<String>,
    /// Leads to the page after.
    pub(super) next: Option<String>,
}

/// Where a page is. What a token says.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Place {
    /// The item it begins at or after.
    #[serde(rename = "key")]
    from: Option<String>,
    /// Whether that item belongs to it.
    #[serde(default, rename = "in")]
    inclusive: bool,
    /// Whether items come in descending order.
    #[serde(default, rename = "desc")]
    descending: bool,
    /// Whether it ends before the item instead.
    #[serde(default, rename = "back")]
    backwards: bool,
}

/// The page of an object's items that is asked for.
///
/// # Errors
/// [`Fault::PageToken`], [`Fault::PageSize`], [`Fault::Order`], [`Fault::Bounds`].
pub(super) fn page(object: &Object, asked: &PageAsked, now: Timestamp) -> Result<Page, Fault> {
    let size: usize = asked.size.as_ref().map_or(Ok(DEFAULT_SIZE), |size| size.parse().map_err(|_| Fault::PageSize))?;
    if let Some(key) = &asked.key {
        return Ok(Page { items: object.item(key, now).into_iter().collect(), previous: None, next: None });
    }
    let place = place(asked)?;
    let size = size.clamp(1, MAX_SIZE);
    let downwards = place.descending != place.backwards;
    let mut items = object.items(place.from.as_deref(), place.inclusive, downwards, size + 1, now);
    let more = items.len() > size;
    items.truncate(size);
    if place.backwards {
        items.reverse();
    }
    let (first, last) = (items.first().map(|item| item.item.clone()), items.last().map(|item| item.item.clone()));
    let beyond = |item: &Option<String>, upwards: bool| {
        item.as_deref().is_some_and(|item| !object.items(Some(item), false, place.descending != upwards, 1, now).is_empty())
    };
    let (before, after) = if place.backwards { (more, beyond(&last, false)) } else { (beyond(&first, true), more) };
    let token = |from: Option<String>, backwards| token(&Place { from, inclusive: false, descending: place.descending, backwards });
    Ok(Page { items, previous: before.then(|| token(first, true)), next: after.then(|| token(last, false)) })
}

fn place(asked: &PageAsked) -> Result<Place, Fault> {
    let descending = match asked.order.as_deref() {
        None => None,
        Some("asc") => Some(false),
        Some("desc") => Some(true),
        Some(_) => return Err(Fault::Order),
    };
    let inclusive = match asked.bounds.as_deref() {
        None | Some("inclusive") => true,
        Some("exclusive") => false,
        Some(_) => return Err(Fault::Bounds),
    };
    match &asked.token {
        Some(token) => {
            let bytes = token.strip_prefix(TOKEN).and_then(|text| STANDARD_NO_PAD.decode(text).ok()).ok_or(Fault::PageToken)?;
            let place: Place = serde_json::from_slice(&bytes).map_err(|_| Fault::PageToken)?;
            Ok(Place { descending: descending.unwrap_or(place.descending), ..place })
        }
        None => Ok(Place { from: asked.from.clone(), inclusive, descending: descending.unwrap_or(false), backwards: false }),
    }
}

fn token(place: &Place) -> String {
    // Plain data always serialises.
    format!("{TOKEN}{}", STANDARD_NO_PAD.encode(serde_json::to_vec(place).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::change::{Change, Op, Origin, Stamp};
    use crate::event::{ObjectKey, ObjectKind, SiteId};
    use crate::sync::object::index_name;

    fn list(items: u64) -> Object {
        let key = ObjectKey { site: SiteId::parse("demo").unwrap(), kind: ObjectKind::List, name: "trail.x".into() };
        let mut object = Object::empty(key.clone());
        let ops = (0..items).map(|index| Op::Append { index, data: "{}".into(), keep: 1_000 }).collect();
        let origin = Origin::Event { partition: 0, offset: 1, number: 0 };
        let stamp = Stamp { at: Timestamp::ZERO, id: String::new() };
        object.apply(&Change { key, origin, received_at: Timestamp::ZERO, stamp, ops }, 1, None);
        object
    }

    fn shown(page: &Page) -> (Vec<u64>, bool, bool) {
        let index = |item: &SnapshotItem| u64::from_str_radix(&item.item, 16).unwrap();
        (page.items.iter().map(index).collect(), page.previous.is_some(), page.next.is_some())
    }

    fn asked(size: &str, order: &str) -> PageAsked {
        PageAsked { size: Some(size.into()), order: Some(order.into()), ..PageAsked::default() }
    }

    #[test]
    fn pages_lead_there_and_back() {
        let object = list(7);
        let get = |asked: &PageAsked| page(&object, asked, Timestamp::ZERO).unwrap();
        let follow = |token: &Option<String>| get(&PageAsked { token: token.clone(), size: Some("3".into()), ..PageAsked::default() });
        let first = get(&asked("3", "asc"));
        assert_eq!(shown(&first), (vec![0, 1, 2], false, true));
        let second = follow(&first.next);
        assert_eq!(shown(&second), (vec![3, 4, 5], true, true));
        let third = follow(&second.next);
        assert_eq!(shown(&third), (vec![6], true, false));
        assert_eq!(shown(&follow(&third.previous)), (vec![3, 4, 5], true, true));
        assert_eq!(shown(&follow(&second.previous)), (vec![0, 1, 2], false, true));
        let down = get(&asked("3", "desc"));
        assert_eq!(shown(&down), (vec![6, 5, 4], false, true));
        assert_eq!(shown(&follow(&down.next)), (vec![3, 2, 1], true, true));
        assert_eq!(shown(&follow(&follow(&down.next).previous)), (vec![6, 5, 4], false, true));
    }

    #[test]
    fn a_page_begins_at_or_after_an_item() {
        let object = list(5);
        let from = |bounds: &str, order: &str| {
            let asked = PageAsked { from: Some(index_name(2)), bounds: Some(bounds.into()), ..asked("2", order) };
            shown(&page(&object, &asked, Timestamp::ZERO).unwrap())
        };
        assert_eq!(from("inclusive", "asc"), (vec![2, 3], true, true));
        assert_eq!(from("exclusive", "asc"), (vec![3, 4], true, false));
        assert_eq!(from("inclusive", "desc"), (vec![2, 1], true, true));
        let one = PageAsked { key: Some(index_name(4)), ..PageAsked::default() };
        assert_eq!(shown(&page(&object, &one, Timestamp::ZERO).unwrap()), (vec![4], false, false));
        let none = PageAsked { key: Some(index_name(9)), ..PageAsked::default() };
        assert_eq!(shown(&page(&object, &none, Timestamp::ZERO).unwrap()), (vec![], false, false));
    }

    #[test]
    fn sizes_are_cut_and_nonsense_is_told() {
        let object = list(150);
        let get = |asked: PageAsked| page(&object, &asked, Timestamp::ZERO);
        assert_eq!(get(asked("1000", "asc")).unwrap().items.len(), 100);
        assert_eq!(get(PageAsked::default()).unwrap().items.len(), 50);
        assert_eq!(get(asked("x", "asc")).unwrap_err(), Fault::PageSize);
        assert_eq!(get(asked("1", "up")).unwrap_err(), Fault::Order);
        assert_eq!(get(PageAsked { bounds: Some("half".into()), ..PageAsked::default() }).unwrap_err(), Fault::Bounds);
        for token in ["", "PT", "PT!", "PTe30x", "XXe30"] {
            assert_eq!(get(PageAsked { token: Some(token.into()), ..PageAsked::default() }).unwrap_err(), Fault::PageToken, "{token}");
        }
    }
}
