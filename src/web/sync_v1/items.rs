//! Items of lists, by index, and of maps, by key: listed, added, read, changed, removed. Called by the handler.

use std::fmt::Write;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::condition::Condition;
use super::form::{Params, number};
use super::paging::{Edge, Page};
use super::render::Object as Facts;
use super::reply::Reply;
use super::{Asked, Outcome};
use crate::event::ObjectKind;
use crate::event::change::{Call, PutItem};
use crate::sync::object::{Object, SnapshotItem, index_name};
use crate::web::sync::{Fault, MAX_DATA, Made, check_item_key};

/// In which order, and from where on, items are listed.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    descending: bool,
    /// The item as the object names it.
    from: Option<String>,
    inclusive: bool,
    /// The same as in the query, for the addresses of pages.
    filters: String,
}

impl Range {
    fn of(query: &Params, kind: ObjectKind) -> Result<Self, Fault> {
        let order = query.get("Order").unwrap_or("asc");
        let descending = match order {
            "asc" => false,
            "desc" => true,
            _ => return Err(Fault::Order),
        };
        let bounds = query.get("Bounds").unwrap_or("inclusive");
        let inclusive = match bounds {
            "inclusive" => true,
            "exclusive" => false,
            _ => return Err(Fault::Bounds),
        };
        let given = query.get("From");
        let from = given.map(|from| if kind == ObjectKind::List { index(from) } else { Ok(from.to_owned()) }).transpose()?;
        let mut filters = String::new();
        if let Some(from) = given {
            // Writing into memory cannot fail.
            write!(filters, "From={}&", utf8_percent_encode(from, NON_ALPHANUMERIC)).unwrap_or_default();
        }
        write!(filters, "Bounds={bounds}&Order={order}&").unwrap_or_default();
        Ok(Self { descending, from, inclusive, filters })
    }

    /// The items of a page in the direction in which it is read, and one more where there is one.
    fn read(&self, object: &Object, page: &Page, now: crate::event::Timestamp) -> Vec<SnapshotItem> {
        let (start, inclusive) = match &page.edge {
            Edge::Start => (self.from.as_deref(), self.inclusive),
            Edge::After(name) | Edge::Before(name) => (Some(name.as_str()), false),
        };
        let mut found = object.items(start, inclusive, self.descending != page.is_backwards(), page.size + 1, now);
        if let Some(from) = self.from.as_deref().filter(|_| page.is_backwards()) {
            // Not past where the listing begins.
            let within = |item: &SnapshotItem| match item.item.as_str().cmp(from) {
                std::cmp::Ordering::Equal => self.inclusive,
                order => order.is_lt() == self.descending,
            };
            found.retain(within);
        }
        found
    }
}

impl Asked<'_> {
    pub(super) async fn list_items(&self, kind: ObjectKind, sid_or_name: &str) -> Outcome {
        let query = self.query()?;
        let (page, range) = (Page::of(&query)?, Range::of(&query, kind)?);
        let object = self.desk().read(&self.caller, kind, sid_or_name).await?;
        let snapshot = object.bare_snapshot().ok_or(Fault::NoObject(kind))?;
        let found = range.read(&object, &page, self.desk().now());
        let window = page.window(found, |item| item.item.clone(), |item| item.data.len());
        let sid = Facts::from(&snapshot).sid();
        let entries: Vec<String> = window.entries.iter().map(|item| self.shown().item(kind, &sid, item)).collect();
        self.page(&page, &range.filters, "items", &entries, (window.previous.as_ref(), window.next.as_ref()))
    }

    pub(super) async fn add_item(&self, kind: ObjectKind, sid_or_name: &str) -> Outcome {
        let item = if kind == ObjectKind::List {
            PutItem::Append
        } else {
            let key = self.form.get("Key").ok_or(Fault::ItemKey)?;
            check_item_key(key)?;
            PutItem::Add(key.to_owned())
        };
        let data = self.form.data(kind, MAX_DATA)?.ok_or(Fault::NoData(kind))?;
        let made = self.put(kind, sid_or_name, item, Some(data)).await?;
        self.item(Reply::created, kind, &made)
    }

    pub(super) async fn read_item(&self, kind: ObjectKind, sid_or_name: &str, item: &str) -> Outcome {
        let name = item_name(kind, item)?;
        let object = self.desk().read(&self.caller, kind, sid_or_name).await?;
        let item = object.item(&name, self.desk().now()).ok_or(Fault::NoItem(kind))?;
        let snapshot = object.bare_snapshot().ok_or(Fault::NoObject(kind))?;
        let sid = Facts::from(&snapshot).sid();
        Ok(Reply::ok(self.shown().item(kind, &sid, &item)).of_revision(item.revision))
    }

    /// Changes an item that is there.
    pub(super) async fn update_item(&self, kind: ObjectKind, sid_or_name: &str, item: &str) -> Outcome {
        let name = item_name(kind, item)?;
        let condition = self.condition()?;
        let data = self.form.data(kind, MAX_DATA)?;
        // The lifetime of the list or map changes beside something of the item alone.
        if data.is_none() && self.form.ttl(&["ItemTtl", "Ttl"])?.is_none() {
            return Err(Fault::NothingToUpdate);
        }
        let made = self.put(kind, sid_or_name, PutItem::Set(name, condition.revision()), data).await?;
        self.item(Reply::ok, kind, &made)
    }

    /// Gives a map's item new data whether it is there or not.
    pub(super) async fn put_item(&self, kind: ObjectKind, sid_or_name: &str, item: &str) -> Outcome {
        let name = item_name(kind, item)?;
        let condition = self.condition()?;
        let data = self.form.data(kind, MAX_DATA)?.ok_or(Fault::NoData(kind))?;
        let put = match condition {
            Condition::Exists => PutItem::Set(name, None),
            Condition::Any | Condition::Revision(_) => PutItem::Upsert(name, condition.revision()),
        };
        let made = self.put(kind, sid_or_name, put, Some(data)).await;
        let made = made.map_err(|fault| match (condition, fault) {
            (Condition::Exists, Fault::NoItem(kind)) => Fault::ItemRevision(kind),
            (_, fault) => fault,
        })?;
        self.item(if made.added { Reply::created } else { Reply::ok }, kind, &made)
    }

    pub(super) async fn remove_item(&self, kind: ObjectKind, sid_or_name: &str, item: &str) -> Outcome {
        let call = Call::RemoveItem { item: item_name(kind, item)?, if_revision: self.condition()?.revision() };
        self.desk().change_by(&self.caller, kind, sid_or_name, call).await?;
        Ok(Reply::done())
    }

    /// Puts an item with the lifetimes that are asked for.
    async fn put(&self, kind: ObjectKind, sid_or_name: &str, item: PutItem, data: Option<String>) -> Result<Made, Fault> {
        let (ttl, collection_ttl) = (self.form.ttl(&["ItemTtl", "Ttl"])?, self.form.ttl(&["CollectionTtl"])?);
        self.desk().change_by(&self.caller, kind, sid_or_name, Call::PutItem { item, data, ttl, collection_ttl }).await
    }

    fn item(&self, reply: impl Fn(String) -> Reply, kind: ObjectKind, made: &Made) -> Outcome {
        let (Some(item), Some(object)) = (&made.item, &made.object) else { return Err(Fault::NoItem(kind)) };
        let sid = Facts::from(object).sid();
        Ok(reply(self.shown().item(kind, &sid, item)).of_revision(item.revision))
    }
}

/// An item in a path as the object names it.
fn item_name(kind: ObjectKind, item: &str) -> Result<String, Fault> {
    if kind == ObjectKind::List {
        return index(item);
    }
    check_item_key(item)?;
    Ok(item.to_owned())
}

fn index(text: &str) -> Result<String, Fault> {
    let index = number(text).filter(|index| *index < u64::MAX).ok_or(Fault::Index)?;
    Ok(index_name(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_repeated() {
        let range = |query: &str, kind| Range::of(&Params::parse(query.as_bytes()).unwrap(), kind);
        assert_eq!(
            range("", ObjectKind::Map).unwrap(),
            Range { descending: false, from: None, inclusive: true, filters: "Bounds=inclusive&Order=asc&".into() }
        );
        assert_eq!(
            range("From=a%20%26&Order=desc&Bounds=exclusive", ObjectKind::Map).unwrap(),
            Range { descending: true, from: Some("a &".into()), inclusive: false, filters: "From=a%20%26&Bounds=exclusive&Order=desc&".into() }
        );
        assert_eq!(range("From=10", ObjectKind::List).unwrap().from, Some("000000000000000a".into()));
        for (query, fault) in [
            ("Order=up", Fault::Order),
            ("Order=", Fault::Order),
            ("Bounds=all", Fault::Bounds),
            ("From=a", Fault::Index),
            ("From=-1", Fault::Index),
            ("From=", Fault::Index),
            ("From=18446744073709551615", Fault::Index),
        ] {
            assert_eq!(range(query, ObjectKind::List), Err(fault), "{query}");
        }
    }
}
