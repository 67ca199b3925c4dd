//! What both faces of the Sync API share, the public one (`sync_v1`) and the SDKs' one (`realtime`): who may do what with which object, what is limited and
//! refused, and how calls are made. Put together by the composition root. Writes go through [`crate::sync::api`] alone.

pub mod admission;
pub mod fault;

use std::sync::Arc;

use self::admission::{Admission, Limited};
pub use self::fault::Fault;
use crate::event::change::{Call, PutItem, Rights};
use crate::event::{Clock, ObjectKey, ObjectKind, SiteId, Timestamp};
use crate::sync::api::Api;
use crate::sync::object::{Object, Snapshot, SnapshotItem};
use crate::sync::reader::{MAX_LISTED, Reader};
use crate::sync::{Feed, Head, Seek, Verdict, naming};

/// Who acts for an account itself.
pub const SYSTEM: &str = "system";
/// Most characters of a unique name, and of a map item's key.
pub const MAX_NAME_CHARS: usize = 320;
/// Most bytes of a document's or an item's data.
pub const MAX_DATA: usize = 16 << 10;
/// Most bytes of a stream's message.
pub const MAX_MESSAGE: usize = 4 << 10;
/// Longest lifetime, in seconds.
pub const MAX_TTL: u32 = 31_536_000;

/// Who asks, of which service.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The service.
    pub site: SiteId,
    /// Of a token; None = the account's own credentials.
    pub identity: Option<String>,
    /// Whether the service asks for identities' rights.
    pub acl: bool,
    /// Whether Twilio's rates hold for it.
    pub limited: bool,
    /// Whether events write objects of the service, whose names are then reserved.
    pub mapped: bool,
}

/// What is to be done with an object, as rights go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// See [`Rights::read`].
    Read,
    /// See [`Rights::write`].
    Write,
    /// See [`Rights::manage`].
    Manage,
}

/// Serves both faces. Clones share everything.
#[derive(Clone)]
pub struct Desk {
    /// Reads objects.
    pub reader: Reader,
    /// Makes calls.
    pub api: Api,
    /// Where subscribers attach.
    pub feed: Arc<dyn Feed>,
    /// Says what is now.
    pub clock: Clock,
    /// The rates of limited services.
    pub admission: Arc<Admission>,
}

/// What a call came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    /// Whether something is there that was not.
    pub added: bool,
    /// The item as it is now, or as it was when it was removed.
    pub item: Option<SnapshotItem>,
    /// The object as it is now, without its items; None where it was removed.
    pub object: Option<Snapshot>,
}

impl Caller {
    /// The identity that changes are made under.
    pub fn identity(&self) -> &str {
        self.identity.as_deref().unwrap_or(SYSTEM)
    }

    /// Whether an object may be so used. Who created it has all rights until others are given.
    pub fn may(&self, object: &Object, right: Right) -> bool {
        let Some(identity) = self.identity.as_deref().filter(|_| self.acl) else { return true };
        let creator = if object.head().created_by == identity { Rights::ALL } else { Rights::NONE };
        let rights = object.rights_of(identity).unwrap_or(creator);
        match right {
            Right::Read => rights.read,
            Right::Write => rights.write,
            Right::Manage => rights.manage,
        }
    }

    fn require(&self, object: &Object, right: Right) -> Result<(), Fault> {
        if self.may(object, right) { Ok(()) } else { Err(Fault::Forbidden) }
    }
}

impl Desk {
    /// The present time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// An object by its SID or unique name, for reading.
    ///
    /// # Errors
    /// [`Fault::NoObject`], [`Fault::NoName`], [`Fault::Forbidden`], [`Fault::RateLimited`], and what the store says.
    pub async fn read(&self, caller: &Caller, kind: ObjectKind, sid_or_name: &str) -> Result<Arc<Object>, Fault> {
        let object = self.find(caller, kind, sid_or_name).await?;
        caller.require(&object, Right::Read)?;
        self.admit(caller, Limited::Read, object.key(), 0)?;
        Ok(object)
    }

    /// An object by its SID or unique name, whoever asks.
    ///
    /// # Errors
    /// [`Fault::NoObject`], [`Fault::NoName`], and what the store says.
    pub async fn find(&self, caller: &Caller, kind: ObjectKind, sid_or_name: &str) -> Result<Arc<Object>, Fault> {
        let now = self.now();
        if is_sid(sid_or_name) {
            let number = naming::parse_sid(sid_or_name).filter(|(found, _)| *found == kind).map(|(_, number)| number);
            let Some(number) = number else { return Err(Fault::NoObject(kind)) };
            return self.reader.by_sid(&caller.site, kind, &number, now).await?.ok_or(Fault::NoObject(kind));
        }
        if check_name(sid_or_name).is_err() {
            return Err(Fault::NoName);
        }
        let key = ObjectKey { site: caller.site.clone(), kind, name: sid_or_name.to_owned() };
        self.reader.object(&key, now).await?.ok_or(Fault::NoName)
    }

    /// Objects of a kind from where `seek` says and in its order, at most [`MAX_LISTED`]; and the name to go on from, where there may be more.
    ///
    /// # Errors
    /// What the store says.
    pub async fn list(
        &self,
        caller: &Caller,
        kind: ObjectKind,
        seek: Seek<&str>,
        limit: usize,
    ) -> Result<(Vec<(ObjectKey, Head)>, Option<String>), Fault> {
        Ok(self.reader.list((&caller.site, kind), "", seek, limit.min(MAX_LISTED), self.now()).await?)
    }

    /// Creates an object, with a unique name or without. `data` is a document's, which without it gets `{}`, or a list's context.
    ///
    /// # Errors
    /// [`Fault::UniqueName`], [`Fault::Reserved`], [`Fault::NameExists`], [`Fault::RateLimited`], and those of calls.
    pub async fn create(
        &self,
        caller: &Caller,
        kind: ObjectKind,
        name: Option<&str>,
        data: Option<String>,
        ttl: Option<u32>,
    ) -> Result<Snapshot, Fault> {
        let name = match name {
            Some(name) => {
                check_name(name)?;
                name.to_owned()
            }
            None => naming::unnamed(&rand::random()),
        };
        if caller.mapped && naming::is_mapped(&name) {
            return Err(Fault::Reserved);
        }
        self.admit_creation(caller)?;
        let key = ObjectKey { site: caller.site.clone(), kind, name };
        let data = match kind {
            ObjectKind::Document => Some(data.unwrap_or_else(|| "{}".to_owned())),
            ObjectKind::List => data,
            ObjectKind::Map | ObjectKind::Stream => None,
        };
        let made = self.call(caller, &key, Call::Create { data, ttl }).await?;
        made.object.ok_or(Fault::NoObject(kind))
    }

    /// Makes a call on an object that was found, after its caller's rights, reserved names and rates were looked at.
    ///
    /// # Errors
    /// [`Fault::Forbidden`], [`Fault::Reserved`], [`Fault::RateLimited`], what the object refuses, and [`Fault::Unavailable`], [`Fault::Unanswered`].
    pub async fn change(&self, caller: &Caller, object: &Object, call: Call) -> Result<Made, Fault> {
        self.allow(caller, object, &call)?;
        self.call(caller, object.key(), call).await
    }

    /// The same of an object by its SID or unique name, without looking at it first where its owner alone can say all there is to say: an account may do
    /// everything with what it names.
    ///
    /// # Errors
    /// Those of [`Self::find`] and [`Self::change`].
    pub async fn change_by(&self, caller: &Caller, kind: ObjectKind, sid_or_name: &str, call: Call) -> Result<Made, Fault> {
        if caller.identity.is_some() || is_sid(sid_or_name) {
            let object = self.find(caller, kind, sid_or_name).await?;
            return self.change(caller, &object, call).await;
        }
        check_name(sid_or_name).map_err(|_| Fault::NoName)?;
        let key = ObjectKey { site: caller.site.clone(), kind, name: sid_or_name.to_owned() };
        self.admit_call(caller, &key, &call)?;
        self.call(caller, &key, call).await
    }

    /// Gives a document of this name new data, creating it where it does not exist: one or the other in one change.
    ///
    /// # Errors
    /// Those of [`Self::create`].
    pub async fn put_document(&self, caller: &Caller, name: &str, data: String, ttl: Option<u32>) -> Result<Made, Fault> {
        check_name(name)?;
        if caller.mapped && naming::is_mapped(name) {
            return Err(Fault::Reserved);
        }
        let key = ObjectKey { site: caller.site.clone(), kind: ObjectKind::Document, name: name.to_owned() };
        let calls = [Call::Update { if_revision: None, data: Some(data.clone()), ttl }, Call::Create { data: Some(data), ttl }];
        if caller.limited {
            // Which of the two budgets it is on depends on what is there.
            match self.reader.object(&key, self.now()).await? {
                Some(_) => self.admit_call(caller, &key, calls.first().unwrap_or(&Call::Expire))?,
                None => self.admit_creation(caller)?,
            }
        }
        let answer = self.api.call(&key, caller.identity(), calls.into()).await?;
        let done = answer.verdicts.into_iter().find(|verdict| matches!(verdict, Verdict::Done { .. })).ok_or(Fault::Unanswered)?;
        made_of(done, answer.object, key.kind, false)
    }

    /// Makes several calls on an object in one change: each is allowed, admitted and decided for itself, and none is done only in part.
    ///
    /// # Errors
    /// [`Fault::Unavailable`], [`Fault::Unanswered`]: of all that were allowed.
    pub async fn change_many(&self, caller: &Caller, object: &Object, calls: Vec<Call>) -> Result<Vec<Result<Made, Fault>>, Fault> {
        let allowed: Vec<Result<Call, Fault>> = calls.into_iter().map(|call| self.allow(caller, object, &call).map(|()| call)).collect();
        let made: Vec<Call> = allowed.iter().filter_map(|call| call.as_ref().ok().cloned()).collect();
        let answer = if made.is_empty() { None } else { Some(self.api.call(object.key(), caller.identity(), made).await?) };
        let (object_now, verdicts) = answer.map_or((None, Vec::new()), |answer| (answer.object, answer.verdicts));
        let mut verdicts = verdicts.into_iter();
        let kind = object.kind();
        let told = allowed.into_iter().map(|call| {
            let call = call?;
            let verdict = verdicts.next().ok_or(Fault::Unanswered)?;
            made_of(verdict, object_now.clone(), kind, of_item(&call))
        });
        Ok(told.collect())
    }

    async fn call(&self, caller: &Caller, key: &ObjectKey, call: Call) -> Result<Made, Fault> {
        let of_item = of_item(&call);
        let answer = self.api.call(key, caller.identity(), vec![call]).await?;
        let verdict = answer.verdicts.into_iter().next().ok_or(Fault::Unanswered)?;
        made_of(verdict, answer.object, key.kind, of_item)
    }

    fn allow(&self, caller: &Caller, object: &Object, call: &Call) -> Result<(), Fault> {
        match call {
            Call::Remove { .. } => caller.require(object, Right::Manage)?,
            // The account's alone.
            Call::Permit { .. } if caller.identity.is_some() => return Err(Fault::Forbidden),
            Call::Permit { .. } => {}
            _ => caller.require(object, Right::Write)?,
        }
        self.admit_call(caller, object.key(), call)
    }

    /// What of a call does not depend on the object: reserved names and rates.
    fn admit_call(&self, caller: &Caller, key: &ObjectKey, call: &Call) -> Result<(), Fault> {
        let (limited, bytes) = match call {
            Call::Remove { .. } => return self.admit_creation(caller),
            Call::Permit { .. } => return self.admit(caller, Limited::Permission, key, 0),
            Call::Publish { data, .. } => (Limited::Message, data.len()),
            Call::Update { data, .. } | Call::PutItem { data, .. } => (Limited::Write, data.as_ref().map_or(0, String::len)),
            Call::Create { .. } | Call::RemoveItem { .. } | Call::Expire => (Limited::Write, 0),
        };
        if caller.mapped && is_reserved(key, call) {
            return Err(Fault::Reserved);
        }
        self.admit(caller, limited, key, bytes)
    }

    /// Admits something to be done with an object of a limited service.
    ///
    /// # Errors
    /// [`Fault::RateLimited`].
    pub fn admit(&self, caller: &Caller, what: Limited, key: &ObjectKey, bytes: usize) -> Result<(), Fault> {
        if !caller.limited || self.admission.admits(what, key, bytes) {
            return Ok(());
        }
        let does = match what {
            Limited::Write => "write",
            Limited::Read => "read",
            Limited::Message => "publish",
            Limited::Permission => "permission",
        };
        let (kind, name) = (format!("{:?}", key.kind).to_lowercase(), naming::unique_name(&key.name).unwrap_or("unnamed"));
        Err(Fault::RateLimited(format!("{does}-{kind}-{name}")))
    }

    fn admit_creation(&self, caller: &Caller) -> Result<(), Fault> {
        if !caller.limited || self.admission.admits_creation(&caller.site) {
            return Ok(());
        }
        Err(Fault::RateLimited("create-delete-objects".to_owned()))
    }
}

fn made_of(verdict: Verdict, object: Option<Snapshot>, kind: ObjectKind, of_item: bool) -> Result<Made, Fault> {
    match verdict {
        Verdict::Done { added, item } => Ok(Made { added, item, object }),
        Verdict::Refused(refusal) => Err(Fault::of_refusal(refusal, kind, of_item)),
    }
}

const fn of_item(call: &Call) -> bool {
    matches!(call, Call::PutItem { .. } | Call::RemoveItem { .. })
}

/// Whether only the mapping of events may do this.
fn is_reserved(key: &ObjectKey, call: &Call) -> bool {
    if !naming::is_mapped(&key.name) {
        return false;
    }
    let item = match call {
        Call::PutItem { item: PutItem::Add(item) | PutItem::Set(item, _) | PutItem::Upsert(item, _), collection_ttl: None, .. }
        | Call::RemoveItem { item, .. } => item,
        Call::Permit { .. } | Call::Remove { .. } => return false,
        _ => return true,
    };
    key.kind != ObjectKind::Map || naming::maps_item(&key.name, item)
}

/// Whether a text has the form of a SID, of whatever kind.
pub fn is_sid(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (Some(prefix), Some(digits)) = (bytes.get(..2), bytes.get(2..)) else { return false };
    let hex = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    prefix.iter().all(u8::is_ascii_uppercase) && digits.len() == 32 && digits.iter().all(hex)
}

/// Whether an object may have this unique name. Control characters may not be in it: what is without a name has a hidden one that begins so.
///
/// # Errors
/// [`Fault::UniqueName`].
pub fn check_name(name: &str) -> Result<(), Fault> {
    let chars = name.chars().count();
    let fits = (1..=MAX_NAME_CHARS).contains(&chars) && !is_sid(name) && !name.chars().any(char::is_control);
    if fits { Ok(()) } else { Err(Fault::UniqueName) }
}

/// Whether a map's item may have this key.
///
/// # Errors
/// [`Fault::ItemKey`].
pub fn check_item_key(key: &str) -> Result<(), Fault> {
    let chars = key.chars().count();
    if (1..=MAX_NAME_CHARS).contains(&chars) && !key.chars().any(char::is_control) { Ok(()) } else { Err(Fault::ItemKey) }
}

/// Data as it is stored: the JSON text of an object, in one line, at most so many bytes.
///
/// # Errors
/// [`Fault::NotJson`], [`Fault::TooLarge`].
pub fn check_data(text: &str, most: usize) -> Result<String, Fault> {
    // Deeper nesting than serde_json reads is no JSON either.
    let value: serde_json::Value = serde_json::from_str(text).map_err(|_| Fault::NotJson)?;
    // As it came, so that no number loses a digit; the realtime protocol cannot have line ends in it.
    let text = text.trim();
    let stored = if text.contains(['\r', '\n']) { value.to_string() } else { text.to_owned() };
    match (value.is_object(), stored.len() <= most) {
        (false, _) => Err(Fault::NotJson),
        (true, false) => Err(Fault::TooLarge),
        (true, true) => Ok(stored),
    }
}
