//! Objects of a service, of all four kinds: listed, created, read, changed, removed. Called by the handler.

use futures::StreamExt;

use super::paging::{Edge, PAGE_BYTES, Page};
use super::render::{Object, plural};
use super::reply::Reply;
use super::{Asked, Outcome};
use crate::event::change::Call;
use crate::event::{ObjectKey, ObjectKind};
use crate::sync::Head;
use crate::sync::object::Snapshot;
use crate::sync::reader::MAX_LISTED;
use crate::web::sync::{Fault, MAX_DATA};

/// Documents of a page that are read at once.
const READ_AT_ONCE: usize = 8;

impl Asked<'_> {
    /// Objects in the order of their names, those without a name first.
    pub(super) async fn list_objects(&self, kind: ObjectKind) -> Outcome {
        let query = self.query()?;
        let page = Page::of(&query)?;
        let wanted = (page.size + 1).min(MAX_LISTED);
        let (mut found, rest) = self.desk().list(&self.caller, kind, page.edge.seek(), wanted).await?;
        let full = found.len() > page.size;
        found.truncate(page.size);
        let name = |(key, _): &(ObjectKey, Head)| key.name.clone();
        let mut more = if full { found.last().map(name) } else { rest };
        let mut entries = if kind == ObjectKind::Document {
            let (entries, read) = self.documents(&found).await?;
            if read < found.len() {
                found.truncate(read);
                more = found.last().map(name);
            }
            entries
        } else {
            found.iter().map(|found| self.shown().object(&found.into())).collect()
        };
        // Back from a page that emptied meanwhile one gets to where it would have begun.
        let begun = found.first().map(name).or_else(|| more.clone());
        let (previous, next) = match page.edge {
            Edge::Start => (None, more.map(Edge::After)),
            Edge::After(_) => (begun.map(Edge::Before), more.map(Edge::After)),
            Edge::Before(_) => (more.map(Edge::Before), Some(begun.map_or(Edge::Start, Edge::After))),
        };
        if page.is_backwards() {
            entries.reverse();
        }
        self.page(&page, "", plural(kind), &entries, (previous.as_ref(), next.as_ref()))
    }

    /// Documents with their data, as many as fit onto a page; and of how many they are.
    async fn documents(&self, found: &[(ObjectKey, Head)]) -> Result<(Vec<String>, usize), Fault> {
        let (now, reader) = (self.desk().now(), &self.desk().reader);
        let keys: Vec<ObjectKey> = found.iter().map(|(key, _)| key.clone()).collect();
        let mut read = futures::stream::iter(keys).map(|key| async move { reader.object(&key, now).await }).buffered(READ_AT_ONCE);
        let (mut entries, mut bytes, mut done) = (Vec::with_capacity(found.len()), 0, 0);
        while let Some(object) = read.next().await {
            done += 1;
            // Removed since it was listed: it is no longer there.
            let Some(snapshot) = object?.and_then(|object| object.bare_snapshot()) else { continue };
            let entry = self.shown().object(&Object::from(&snapshot));
            bytes += entry.len();
            entries.push(entry);
            if bytes >= PAGE_BYTES {
                break;
            }
        }
        Ok((entries, done))
    }

    pub(super) async fn create_object(&self, kind: ObjectKind) -> Outcome {
        let data = if kind == ObjectKind::Document { self.form.data(kind, MAX_DATA)? } else { None };
        let ttl = self.form.ttl(ttl_names(kind))?;
        let made = self.desk().create(&self.caller, kind, self.form.get("UniqueName"), data, ttl).await?;
        Ok(self.object(Reply::created, &made))
    }

    pub(super) async fn read_object(&self, kind: ObjectKind, sid_or_name: &str) -> Outcome {
        let object = self.desk().read(&self.caller, kind, sid_or_name).await?;
        let snapshot = object.bare_snapshot().ok_or(Fault::NoObject(kind))?;
        Ok(self.object(Reply::ok, &snapshot))
    }

    pub(super) async fn update_object(&self, kind: ObjectKind, sid_or_name: &str) -> Outcome {
        let if_revision = self.if_revision(kind)?;
        let data = if kind == ObjectKind::Document { self.form.data(kind, MAX_DATA)? } else { None };
        let ttl = self.form.ttl(ttl_names(kind))?;
        if data.is_none() && ttl.is_none() {
            return Err(Fault::NothingToUpdate);
        }
        let made = self.desk().change_by(&self.caller, kind, sid_or_name, Call::Update { if_revision, data, ttl }).await?;
        Ok(self.object(Reply::ok, &made.object.ok_or(Fault::NoObject(kind))?))
    }

    pub(super) async fn remove_object(&self, kind: ObjectKind, sid_or_name: &str) -> Outcome {
        let if_revision = self.if_revision(kind)?;
        self.desk().change_by(&self.caller, kind, sid_or_name, Call::Remove { if_revision }).await?;
        Ok(Reply::done())
    }

    /// The revision that an object must have. Streams show none.
    fn if_revision(&self, kind: ObjectKind) -> Result<Option<u64>, Fault> {
        if kind == ObjectKind::Stream { Ok(None) } else { Ok(self.condition()?.revision()) }
    }

    fn object(&self, reply: impl Fn(String) -> Reply, snapshot: &Snapshot) -> Reply {
        let reply = reply(self.shown().object(&snapshot.into()));
        if snapshot.key.kind == ObjectKind::Stream { reply } else { reply.of_revision(snapshot.revision) }
    }
}

/// What an object's lifetime is called.
const fn ttl_names(kind: ObjectKind) -> &'static [&'static str] {
    match kind {
        ObjectKind::Document | ObjectKind::Stream => &["Ttl"],
        ObjectKind::List | ObjectKind::Map => &["CollectionTtl", "Ttl"],
    }
}
