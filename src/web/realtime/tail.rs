//! The shop's live tail as the SDKs see it: the stream `activity`, which is published straight to the feed and so is in no store. Asked by
//! [`super::calls`] and [`super::subscriptions`] before an object is looked up.

use super::shown::sid_of;
use crate::event::{ObjectKey, ObjectKind, Timestamp};
use crate::sync::object::Snapshot;
use crate::web::sync::{Caller, Fault};

/// Its unique name.
const NAME: &str = "activity";

/// The tail's key, where it is what is meant.
///
/// # Errors
/// [`Fault::Forbidden`] to identities of a service that asks for rights: nobody can be given any here.
pub(super) fn key_of(caller: &Caller, kind: ObjectKind, sid_or_name: &str) -> Result<Option<ObjectKey>, Fault> {
    if kind != ObjectKind::Stream {
        return Ok(None);
    }
    let key = ObjectKey { site: caller.site.clone(), kind, name: NAME.to_owned() };
    if sid_or_name != NAME && sid_or_name != sid_of(&key, 0) {
        return Ok(None);
    }
    if caller.acl && caller.identity.is_some() { Err(Fault::Forbidden) } else { Ok(Some(key)) }
}

/// The tail as it is always.
pub(super) fn snapshot(key: ObjectKey) -> Snapshot {
    Snapshot {
        key,
        revision: 1,
        event_id: 0,
        created_at: Timestamp::ZERO,
        updated_at: Timestamp::ZERO,
        incarnation: 0,
        created_by: String::new(),
        expires_at: None,
        data: None,
        items: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::SiteId;

    #[test]
    fn it_is_known_by_name_and_sid() {
        let mut caller = Caller { site: SiteId::parse("demo").unwrap(), identity: Some("alice".into()), acl: false, limited: false, mapped: true };
        let key = key_of(&caller, ObjectKind::Stream, "activity").unwrap().unwrap();
        assert_eq!(key_of(&caller, ObjectKind::Stream, &sid_of(&key, 0)), Ok(Some(key)));
        assert_eq!(key_of(&caller, ObjectKind::Stream, "other"), Ok(None));
        assert_eq!(key_of(&caller, ObjectKind::Map, "activity"), Ok(None));
        caller.acl = true;
        assert_eq!(key_of(&caller, ObjectKind::Stream, "activity"), Err(Fault::Forbidden));
        assert_eq!(key_of(&caller, ObjectKind::Stream, "other"), Ok(None));
    }
}
