//! All that one client is subscribed to: batches to establish and cancel, what the feed says of each object, and what is still to be told. Owned by one
//! connection, without tasks of its own.
//!
//! An object is attached to first, then read, then what the client missed is told, then that it is established. The same is done, unasked, for one whose
//! subscriber lagged, or whose rights changed. All have one inbox, where each is known by its serial: most connections are idle, and subscribed to much.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{AbortHandle, Abortable, BoxFuture};
use futures::stream::FuturesUnordered;

use super::events::{Fate, Of, Subject, name_of};
use super::follow::{Begun, Follow, Heard, Told, begin};
use super::request::{Action, Poke, Wanted};
use super::tail;
use crate::event::{ObjectKey, ObjectKind};
use crate::sync::{Address, Applied, AppliedRow, Attached, Inbox, Update, naming};
use crate::web::sync::{Caller, Desk, Fault, Right};

/// Most objects of one connection.
pub(super) const MAX: usize = 2_000;
/// Objects of one connection that are read at a time.
const READ_AT_ONCE: usize = 8;
/// What may wait to be told before the feed is listened to again: it keeps what is to come, in bounds of its own.
const MAX_TOLD: usize = 64;
/// How long to wait before what could not be read is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// How often an object is read of which the client knows more than is there.
const AHEAD_TRIES: u32 = 5;

/// An object by what its SID says.
type Id = (ObjectKind, [u8; 16]);

/// The subscriptions of one connection.
pub(super) struct Subscriptions {
    desk: Desk,
    /// By serial, which tells an entry from what it was before.
    entries: HashMap<u32, Entry>,
    serials: HashMap<Id, u32>,
    inbox: Inbox,
    /// To be read, oldest first.
    waiting: VecDeque<Establish>,
    /// None where a reading was given up.
    reading: FuturesUnordered<BoxFuture<'static, Option<Box<Read>>>>,
    serial: u32,
    told: VecDeque<Told>,
    gauge: metrics::Gauge,
}

struct Entry {
    id: Id,
    stage: Stage,
}

enum Stage {
    /// To be read.
    Waiting,
    /// Being read.
    Reading(AbortHandle),
    /// Established.
    Followed { follow: Follow, _attached: Attached },
}

/// An object to be read and followed.
#[derive(Debug)]
struct Establish {
    id: Id,
    serial: u32,
    sid: String,
    /// What the client knows.
    since: Option<u64>,
    /// Whether it may have got some of what stands at `since` only.
    continued: bool,
    /// The batch that asks; None = the client takes it to be established already.
    correlation_id: Option<u64>,
}

struct Started {
    attached: Attached,
    follow: Follow,
    rows: VecDeque<AppliedRow>,
    revision: u64,
}

/// What comes next.
pub(super) enum Outcome {
    /// An object was read; None where that was given up.
    #[doc(hidden)]
    Read(Option<Box<Read>>),
    /// The feed said something of what has this serial.
    #[doc(hidden)]
    Heard(u32, Update),
}

/// An object that was read, or not.
pub(super) struct Read {
    establish: Establish,
    result: Result<Started, Unread>,
}

enum Unread {
    Fault(Fault),
    /// To be tried again.
    Later,
}

impl Subscriptions {
    /// None yet.
    pub(super) fn new(desk: Desk) -> Self {
        Self {
            desk,
            entries: HashMap::new(),
            serials: HashMap::new(),
            inbox: Inbox::default(),
            waiting: VecDeque::new(),
            reading: FuturesUnordered::new(),
            serial: 0,
            told: VecDeque::new(),
            gauge: metrics::gauge!("contrail_realtime_subscriptions"),
        }
    }

    /// Takes a batch. What is wrong with one object is told of that alone.
    pub(super) fn poke(&mut self, poke: Poke, continued: bool) {
        // What was asked for and never begun need not be.
        let entries = &self.entries;
        self.waiting.retain(|waiting| entries.contains_key(&waiting.serial));
        let Poke { action, correlation_id, requests } = poke;
        for wanted in requests {
            let told = match (id_of(&wanted), action) {
                (Ok(id), Action::Establish) => self.establish(id, &wanted, continued, correlation_id).err(),
                (Err(fault), Action::Establish) => Some(Fate::Failed(fault.told())),
                (id, Action::Cancel) => {
                    if let Ok(id) = id {
                        self.forget(id);
                    }
                    Some(Fate::Canceled)
                }
            };
            if let Some(fate) = told {
                let Wanted { object_sid: sid, object_type, .. } = wanted;
                self.told.push_back(Told::Fate { sid, object_type, fate, correlation_id: Some(correlation_id) });
            }
        }
    }

    fn establish(&mut self, id: Id, wanted: &Wanted, continued: bool, correlation_id: u64) -> Result<(), Fate> {
        if !self.serials.contains_key(&id) && self.serials.len() >= MAX {
            return Err(Fate::Failed(Fault::Subscriptions.told()));
        }
        self.begin(id, wanted.object_sid.clone(), wanted.last_event_id, continued, Some(correlation_id));
        Ok(())
    }

    fn begin(&mut self, id: Id, sid: String, since: Option<u64>, continued: bool, correlation_id: Option<u64>) {
        self.forget(id);
        self.serial = self.serial.wrapping_add(1);
        let serial = self.serial;
        self.entries.insert(serial, Entry { id, stage: Stage::Waiting });
        self.serials.insert(id, serial);
        self.gauge.increment(1);
        self.waiting.push_back(Establish { id, serial, sid, since, continued, correlation_id });
    }

    fn forget(&mut self, id: Id) {
        let Some(serial) = self.serials.remove(&id) else { return };
        if let Some(Entry { stage: Stage::Reading(abort), .. }) = self.entries.remove(&serial) {
            abort.abort();
        }
        self.gauge.decrement(1);
    }

    /// Reads every established object anew: the client may have lost its rights.
    pub(super) fn check_rights(&mut self) {
        let serials: Vec<u32> = self.entries.keys().copied().collect();
        for serial in serials {
            self.reread(serial);
        }
    }

    fn reread(&mut self, serial: u32) {
        if let Some(Entry { id, stage: Stage::Followed { follow, .. } }) = self.entries.get(&serial) {
            let (id, sid, since) = (*id, follow.of.sid.clone(), follow.seen);
            self.begin(id, sid, Some(since), false, None);
        }
    }

    /// Begins to read what waits for that.
    pub(super) fn pump(&mut self, caller: &Caller) {
        while self.reading.len() < READ_AT_ONCE && self.told.len() < MAX_TOLD {
            let Some(establish) = self.waiting.pop_front() else { return };
            let Some(entry) = self.entries.get_mut(&establish.serial) else { continue };
            let (abort, registration) = AbortHandle::new_pair();
            entry.stage = Stage::Reading(abort);
            let (desk, caller, address) = (self.desk.clone(), caller.clone(), self.inbox.address(establish.serial));
            let reading = async move {
                let result = read(&desk, &caller, &establish, &address).await;
                Box::new(Read { establish, result })
            };
            self.reading.push(Box::pin(async move { Abortable::new(reading, registration).await.ok() }));
        }
    }

    /// Whether what comes is to be taken: not while there is too much to tell.
    pub(super) fn listens(&self) -> bool {
        self.told.len() < MAX_TOLD
    }

    /// What comes next. Cancel-safe; pends while nothing does.
    pub(super) async fn next(&mut self) -> Outcome {
        tokio::select! {
            Some(read) = self.reading.next(), if !self.reading.is_empty() => Outcome::Read(read),
            (serial, update) = self.inbox.next() => Outcome::Heard(serial, update),
        }
    }

    /// Takes what came; false where the feed has stopped.
    pub(super) fn take(&mut self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Heard(_, Update::Closed) => return false,
            Outcome::Heard(serial, Update::Lagged) => self.reread(serial),
            Outcome::Heard(serial, Update::Write(write)) => self.hear(serial, &write),
            Outcome::Read(read) => read.into_iter().for_each(|read| self.have_read(*read)),
        }
        true
    }

    fn have_read(&mut self, read: Read) {
        let Read { establish, result } = read;
        let Establish { id, serial, sid, since, correlation_id, .. } = establish;
        if !self.entries.contains_key(&serial) {
            return;
        }
        let object_type = name_of(id.0).to_owned();
        match result {
            Ok(Started { attached, follow, rows, revision }) => {
                if !rows.is_empty() {
                    let (of, since) = (Arc::clone(&follow.of), since.unwrap_or_default());
                    self.told.push_back(Told::Rows { of, rows, revision, since, replayed_for: correlation_id });
                }
                if correlation_id.is_some() {
                    self.told.push_back(Told::Fate { sid, object_type, fate: Fate::Established(follow.seen), correlation_id });
                }
                if let Some(entry) = self.entries.get_mut(&serial) {
                    attached.listen();
                    entry.stage = Stage::Followed { follow, _attached: attached };
                }
            }
            Err(unread) => {
                self.forget(id);
                let fate = match (unread, correlation_id) {
                    (Unread::Later, Some(_)) => Fate::Interrupted(since.unwrap_or_default()),
                    (Unread::Later, None) => Fate::Canceled,
                    (Unread::Fault(fault), Some(_)) => Fate::Failed(fault.told()),
                    (Unread::Fault(fault), None) if fault.told().status == 404 => {
                        let (of, at) = (Of::new(Subject { kind: id.0, sid, name: String::new() }), self.desk.now());
                        self.told.push_back(Told::Removed { of, event_id: since.unwrap_or_default() + 1, at });
                        return;
                    }
                    // The client asks anew, and hears why not.
                    (Unread::Fault(_), None) => Fate::Canceled,
                };
                self.told.push_back(Told::Fate { sid, object_type, fate, correlation_id });
            }
        }
    }

    fn hear(&mut self, serial: u32, write: &Arc<Applied>) {
        // What was detached meanwhile is heard of no more.
        let Some(Entry { id, stage: Stage::Followed { follow, .. } }) = self.entries.get_mut(&serial) else { return };
        let id = *id;
        match follow.take(write) {
            Heard::Nothing => {}
            Heard::Told(told) => self.told.push_back(told),
            Heard::Ended(told) => {
                self.told.push_back(told);
                self.forget(id);
            }
            Heard::Reread => self.reread(serial),
        }
    }

    /// What is to be told next, to be asked for its frames; what tells nothing any longer is to be taken off.
    pub(super) fn front(&mut self) -> Option<&mut Told> {
        self.told.front_mut()
    }

    /// Takes the first of what is to be told off.
    pub(super) fn pop(&mut self) {
        self.told.pop_front();
    }
}

impl Drop for Subscriptions {
    fn drop(&mut self) {
        self.gauge.decrement(self.serials.len() as f64);
    }
}

/// Which object a client means.
fn id_of(wanted: &Wanted) -> Result<Id, Fault> {
    let kind = match wanted.object_type.as_str() {
        "list" => ObjectKind::List,
        "map" => ObjectKind::Map,
        "stream" => ObjectKind::Stream,
        "live_query" => return Err(Fault::LiveQuery),
        _ => ObjectKind::Document,
    };
    naming::parse_sid(&wanted.object_sid).filter(|(found, _)| *found == kind).ok_or(Fault::NoObject(kind))
}

/// Attaches to an object and reads it, again while what keeps it from being read may pass.
async fn read(desk: &Desk, caller: &Caller, establish: &Establish, address: &Address) -> Result<Started, Unread> {
    let mut ahead = 0;
    loop {
        match read_once(desk, caller, establish, address).await {
            Ok(Some(started)) => return Ok(started),
            Ok(None) => {
                ahead += 1;
                if ahead == AHEAD_TRIES {
                    return Err(Unread::Fault(Fault::NoObject(establish.id.0)));
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(Fault::Unavailable) => {
                tokio::time::sleep(PAUSE).await;
                // Who asked is told to ask again; nobody else would.
                if establish.correlation_id.is_some() {
                    return Err(Unread::Later);
                }
            }
            Err(fault) => return Err(Unread::Fault(fault)),
        }
    }
}

/// None where the client knows more than is there.
async fn read_once(desk: &Desk, caller: &Caller, establish: &Establish, address: &Address) -> Result<Option<Started>, Fault> {
    let Establish { id: (kind, _), sid, since, continued, .. } = establish;
    let of = |key: &ObjectKey| Of::new(Subject { kind: *kind, sid: sid.clone(), name: key.name.clone() });
    if let Some(key) = tail::key_of(caller, *kind, sid)? {
        let attached = desk.feed.attach(&key, address.clone()).await?;
        return Ok(Some(Started { attached, follow: Follow::new(of(&key), 0, 0), rows: VecDeque::new(), revision: 1 }));
    }
    let found = desk.find(caller, *kind, sid).await?;
    if !caller.may(&found, Right::Read) {
        return Err(Fault::Forbidden);
    }
    let (key, incarnation) = (found.key().clone(), found.head().incarnation);
    drop(found);
    let attached = desk.feed.attach(&key, address.clone()).await?;
    let object = desk.reader.object(&key, desk.now()).await?.filter(|object| object.head().incarnation == incarnation);
    let Some(object) = object else { return Err(Fault::NoObject(*kind)) };
    if !caller.may(&object, Right::Read) {
        return Err(Fault::Forbidden);
    }
    let rows = match begin(&object, *since, *continued) {
        Begun::Rows(rows) => rows,
        Begun::Forgotten => return Err(Fault::NoObject(*kind)),
        Begun::Ahead => return Ok(None),
    };
    let (event_id, revision) = (object.head().event_id, object.head().revision);
    Ok(Some(Started { attached, follow: Follow::new(of(&key), incarnation, event_id), rows, revision }))
}
