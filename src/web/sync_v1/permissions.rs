//! What identities may do with a document, list or map. Called by the handler. Rights are part of the object: they go with it.

use std::sync::Arc;

use super::paging::{Edge, Page};
use super::render::Object as Facts;
use super::reply::Reply;
use super::{Asked, Outcome};
use crate::event::ObjectKind;
use crate::event::change::{Call, Rights};
use crate::sync::object::Object;
use crate::web::sync::Fault;
use crate::web::sync::admission::Limited;

/// Most characters of an identity.
const MAX_IDENTITY: usize = 256;

impl Asked<'_> {
    /// By identity, in the order of their bytes.
    pub(super) async fn list_permissions(&self, kind: ObjectKind, sid_or_name: &str) -> Outcome {
        let page = Page::of(&self.query()?)?;
        let (object, sid) = self.governed(kind, sid_or_name).await?;
        let known = object.rights().iter().map(|(identity, rights)| (identity.clone(), *rights));
        let most = page.size + 1;
        let found: Vec<(String, Rights)> = match &page.edge {
            Edge::Start => known.take(most).collect(),
            Edge::After(name) => known.filter(|(identity, _)| identity > name).take(most).collect(),
            Edge::Before(name) => known.rev().filter(|(identity, _)| identity < name).take(most).collect(),
        };
        let window = page.window(found, |(identity, _)| identity.clone(), |_| 0);
        let entries: Vec<String> = window.entries.iter().map(|(identity, rights)| self.shown().permission(kind, &sid, identity, *rights)).collect();
        self.page(&page, "", "permissions", &entries, (window.previous.as_ref(), window.next.as_ref()))
    }

    pub(super) async fn read_permission(&self, kind: ObjectKind, sid_or_name: &str, identity: &str) -> Outcome {
        check_identity(identity)?;
        let (object, sid) = self.governed(kind, sid_or_name).await?;
        let rights = object.rights_of(identity).ok_or(Fault::NoPermission)?;
        Ok(Reply::ok(self.shown().permission(kind, &sid, identity, rights)))
    }

    /// Says what an identity may do, whether anything was said of it before or not.
    pub(super) async fn set_permission(&self, kind: ObjectKind, sid_or_name: &str, identity: &str) -> Outcome {
        check_identity(identity)?;
        let flag = |name: &str| self.form.flag(name)?.ok_or_else(|| Fault::Parameter(format!("{name} is missing").into()));
        let rights = Rights { read: flag("Read")?, write: flag("Write")?, manage: flag("Manage")? };
        let call = Call::Permit { identity: identity.to_owned(), rights };
        let sid = match self.desk().change_by(&self.caller, kind, sid_or_name, call).await {
            Ok(made) => Facts::from(&made.object.ok_or(Fault::NoObject(kind))?).sid(),
            // Nothing was said of it, and nothing is to be.
            Err(Fault::NoItem(_)) => self.governed(kind, sid_or_name).await?.1,
            Err(fault) => return Err(fault),
        };
        Ok(Reply::ok(self.shown().permission(kind, &sid, identity, rights)))
    }

    pub(super) async fn remove_permission(&self, kind: ObjectKind, sid_or_name: &str, identity: &str) -> Outcome {
        check_identity(identity)?;
        let call = Call::Permit { identity: identity.to_owned(), rights: Rights::NONE };
        self.desk().change_by(&self.caller, kind, sid_or_name, call).await?;
        Ok(Reply::done())
    }

    /// An object whose rights are read, and its SID.
    async fn governed(&self, kind: ObjectKind, sid_or_name: &str) -> Result<(Arc<Object>, String), Fault> {
        let object = self.desk().find(&self.caller, kind, sid_or_name).await?;
        self.desk().admit(&self.caller, Limited::Permission, object.key(), 0)?;
        let snapshot = object.bare_snapshot().ok_or(Fault::NoObject(kind))?;
        let sid = Facts::from(&snapshot).sid();
        Ok((object, sid))
    }
}

fn check_identity(identity: &str) -> Result<(), Fault> {
    if (1..=MAX_IDENTITY).contains(&identity.chars().count()) { Ok(()) } else { Err(Fault::Identity) }
}
