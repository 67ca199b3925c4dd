//! One round with one object: loads it as it is here, learns what of it is there, asks for what is missing there. Run by the room's loop, one at a time of an object.
//! Must never log a name or data.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::sync::Cache;
use tokio::time::Instant;

use super::budget::Budget;
use super::plan::{Local, Remote as There, Step, digest};
use super::queue::{Job, Outcome};
use super::remote::{Fault, Remote, Said};
use crate::event::{Clock, ObjectKey, ObjectKind, Timestamp};
use crate::eventlog::Offset;
use crate::sync::expiry::Expiry;
use crate::sync::object::Object;
use crate::sync::{Error, ObjectStore};

/// Most items of an object that is mirrored.
const MOST_ITEMS: usize = 100_000;
/// Most pages that are read of an object: those of as many items, were they half empty.
const MOST_PAGES: usize = 2_000;
/// With more steps than this a round takes its time, for each begins with looking at all items.
const MANY: usize = 50;
/// How long such a round goes on.
const LONG: Duration = Duration::from_secs(2);
/// Most steps of a round.
const MOST_STEPS: usize = 1_000;
/// Bytes of what is known of objects elsewhere, and for how long it is relied on.
const KNOWN_BYTES: u64 = 64 << 20;
const KNOWN_FOR: Duration = Duration::from_secs(24 * 3_600);
/// Until what was found otherwise than known is looked at again.
const UNTIL_LOOKED: Duration = Duration::from_millis(100);

/// What is known of objects elsewhere, by who has been reading since when.
pub(super) type Known = Cache<(u64, ObjectKey), Arc<Seen>>;

/// What is known of one.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    there: There,
    /// When it was learned.
    learned_at: Instant,
    /// The event id that the object had here when both were last the same; 0 where they never were.
    event_id: u64,
}

/// Nothing known yet.
pub(super) fn nothing_known() -> Known {
    let weigh = |(_, key): &(u64, ObjectKey), seen: &Arc<Seen>| u32::try_from(key.name.len() + 64 + seen.there.bytes()).unwrap_or(u32::MAX);
    Cache::builder().max_capacity(KNOWN_BYTES).weigher(weigh).build()
}

/// All that a round works on.
#[derive(Clone)]
pub(super) struct Round {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) expiry: Expiry,
    pub(super) clock: Clock,
    pub(super) remote: Remote,
    pub(super) budget: Arc<Budget>,
    pub(super) known: Known,
    /// Names the time since which this process has had the partitions it has, in `known`; and what it is now.
    pub(super) epoch: u64,
    pub(super) current: Arc<AtomicU64>,
    /// Before this, what another process asked for may still be done there.
    pub(super) settled_at: Instant,
    /// Likewise what this one asked for of this object.
    pub(super) unsettled_until: Option<Instant>,
    /// How long a request that nobody knows the end of may still be under way.
    pub(super) settle: Duration,
}

/// Why a round ends before all is done.
enum Stop {
    /// What is known still holds.
    Known(Outcome),
    /// It is to be learned anew.
    Unknown(Outcome),
}

impl Round {
    /// One round: what it came to, and whether anything was done there.
    pub(super) async fn run(&self, job: &Job) -> (Outcome, bool) {
        let place = (self.epoch, job.key.clone());
        let mut seen = self.known.remove(&place).filter(|seen| seen.learned_at.elapsed() < KNOWN_FOR);
        let mut moved = false;
        let outcome = match self.through(job, &mut seen, &mut moved).await {
            Ok(()) => Outcome::Done,
            Err(Stop::Known(outcome)) => outcome,
            Err(Stop::Unknown(outcome)) => {
                seen = None;
                outcome
            }
        };
        if let Some(seen) = seen {
            self.known.insert(place, seen);
        }
        (outcome, moved)
    }

    async fn through(&self, job: &Job, known: &mut Option<Arc<Seen>>, moved: &mut bool) -> Result<(), Stop> {
        let key = &job.key;
        if let Some(wait) = until(self.unsettled_until) {
            return Err(Stop::Known(Outcome::Later(wait)));
        }
        let object = match self.object(key, job.upto).await {
            Ok(Some(object)) => object,
            Ok(None) => return Err(Stop::Known(Outcome::Unapplied)),
            Err(Error::Corrupt { .. }) => {
                count_refusal("unreadable");
                return Ok(());
            }
            Err(error) => {
                tracing::warn!(%error, "an object cannot be read to be mirrored; tried again");
                return Err(Stop::Known(failing(None)));
            }
        };
        let (event_id, now) = (object.head().event_id, self.clock.now());
        let is_over = object.is_over(now, self.expiry.ttl_of(&key.name));
        let lives = object.is_living() && !is_over;
        let since = known.as_ref().map_or(0, |seen| seen.event_id);
        let Some(here) = local(&object, lives, since, now) else {
            count_refusal("too_many_items");
            return Ok(());
        };
        drop(object);
        let mut seen = match known.take() {
            Some(seen) => Arc::unwrap_or_clone(seen),
            None => Seen { there: self.learn(key, here.as_ref()).await?, learned_at: Instant::now(), event_id: 0 },
        };
        let ended = self.steps(key, here.as_ref(), &mut seen.there, moved).await;
        if ended.is_ok() {
            seen.event_id = event_id;
        }
        *known = Some(Arc::new(seen));
        ended
    }

    /// The object, living or not, once it holds that offset of `changes`; None before.
    async fn object(&self, key: &ObjectKey, upto: Option<Offset>) -> Result<Option<Object>, Error> {
        let stored = self.store.load(std::slice::from_ref(key)).await?.pop().flatten();
        let object = stored.map_or_else(|| Ok(Object::empty(key.clone())), Object::from_stored)?;
        let Some(upto) = upto else { return Ok(Some(object)) };
        if object.head().event_id > 0 && object.head().upto >= upto {
            return Ok(Some(object));
        }
        // It may be that nothing came of the change.
        let (_, kept) = self.store.offsets().await?;
        if kept.get(usize::from(key.partition())).is_none_or(|next| *next <= upto) {
            return Ok(None);
        }
        // Loaded again: what the keeper has passed it has written before.
        let stored = self.store.load(std::slice::from_ref(key)).await?.pop().flatten();
        stored.map_or_else(|| Ok(Object::empty(key.clone())), Object::from_stored).map(Some)
    }

    /// What is there of an object.
    async fn learn(&self, key: &ObjectKey, here: Option<&Local>) -> Result<There, Stop> {
        if let Some(wait) = until(Some(self.settled_at)) {
            return Err(Stop::Known(Outcome::Later(wait)));
        }
        if key.kind == ObjectKind::Document {
            self.pay_read(key).await;
            let document = self.asked(self.remote.document(&key.name).await)?;
            return Ok(document.map_or(There::Missing, |digest| There::Named(BTreeMap::from([(String::new(), digest)]))));
        }
        let (mut keyed, mut indexed, mut page) = (BTreeMap::new(), Vec::new(), None);
        for _ in 0..MOST_PAGES {
            self.pay_read(key).await;
            self.is_current()?;
            let shown = self.asked(self.remote.items(key.kind, &key.name, page.as_deref()).await)?;
            let Some(shown) = shown else { return Ok(There::Missing) };
            keyed.extend(shown.keyed);
            indexed.extend(shown.indexed);
            page = shown.next;
            if page.is_none() {
                return Ok(if key.kind == ObjectKind::List { There::list(indexed, here) } else { There::Named(keyed) });
            }
            if keyed.len() + indexed.len() > MOST_ITEMS {
                break;
            }
        }
        count_refusal("too_many_items");
        Err(Stop::Known(Outcome::Done))
    }

    /// Whether this process still has the partitions that it had when the round began: else all is another's to ask for.
    fn is_current(&self) -> Result<(), Stop> {
        if self.current.load(Ordering::Relaxed) == self.epoch { Ok(()) } else { Err(Stop::Unknown(Outcome::Later(Duration::ZERO))) }
    }

    /// Asks for all that is missing there.
    async fn steps(&self, key: &ObjectKey, here: Option<&Local>, there: &mut There, moved: &mut bool) -> Result<(), Stop> {
        let steps = there.steps(here, MOST_STEPS);
        let until = (steps.len() > MANY).then(|| Instant::now() + LONG);
        let is_all = steps.len() < MOST_STEPS;
        let makes = matches!(steps.first(), Some(Step::Create(_)));
        for step in steps {
            self.pay(key, &step, until).await?;
            self.is_current()?;
            match self.step(key, &step).await {
                Ok(index) => {
                    *moved = true;
                    there.note(&step, key.kind, index);
                }
                Err(Some(Fault::Refused(reason))) => {
                    count_refusal(reason);
                    if step.is_of_service() {
                        // Without it there is nothing to put anything into; a change of the object tries it again.
                        return Err(Stop::Unknown(Outcome::Done));
                    }
                    there.note(&step, key.kind, None);
                }
                Err(Some(fault @ Fault::Unknown(reason))) => {
                    count_failure("unknown", reason);
                    // An append is never repeated unless it is seen not to be there, and nothing is asked for while something else may come after it.
                    let pending = fault.is_pending() || matches!(step, Step::Append { .. });
                    let outcome = Outcome::Failed { pause: pending.then_some(self.settle), pending };
                    return Err(if there.doubt(&step) { Stop::Known(outcome) } else { Stop::Unknown(outcome) });
                }
                Err(Some(fault)) => return self.asked(Err(fault)),
                Err(None) => return Err(Stop::Unknown(failing(Some(UNTIL_LOOKED)))),
            }
        }
        // What was made is empty yet.
        if makes && key.kind != ObjectKind::Document || !is_all { Err(Stop::Known(Outcome::Later(Duration::ZERO))) } else { Ok(()) }
    }

    /// Asks for one thing; gives the index of what was appended. None where it was found otherwise than known.
    async fn step(&self, key: &ObjectKey, step: &Step) -> Result<Option<u64>, Option<Fault>> {
        let (kind, name) = (key.kind, key.name.as_str());
        let index = |index: &u64| index.to_string();
        let said = match step {
            Step::Create(data) => self.remote.create(kind, name, data.as_ref().map(|(data, _)| &**data)).await,
            Step::Remove => self.remote.remove(kind, name).await,
            Step::PutDocument(data, _) => self.remote.put_document(name, data).await,
            Step::PutItem { key: item, data, known, .. } => self.put(key, item, data, *known).await,
            Step::RemoveItem { key: item } => self.remote.remove_item(kind, name, item).await,
            Step::Append { data, .. } => self.remote.add_item(kind, name, None, data).await,
            Step::UpdateIndex { index: at, data, .. } => self.remote.put_item(kind, name, &index(at), data).await,
            Step::RemoveIndex { index: at } => self.remote.remove_item(kind, name, &index(at)).await,
        };
        match (step, said.map_err(Some)?) {
            (Step::Append { .. }, Said::Done(item)) => {
                let index = item.get("index").and_then(serde_json::Value::as_u64);
                count("done");
                index.map(Some).ok_or(Some(Fault::Unknown("malformed")))
            }
            (_, Said::Done(_)) | (Step::Remove | Step::RemoveItem { .. } | Step::RemoveIndex { .. }, Said::Missing) => {
                count("done");
                Ok(None)
            }
            (_, Said::Missing | Said::Exists) => Err(None),
        }
    }

    /// Puts a map's item: an update where it is known to be there, else an addition; the other where that proves wrong, and back once more.
    async fn put(&self, key: &ObjectKey, item: &str, data: &str, known: bool) -> Result<Said, Fault> {
        let mut updates = known;
        for _ in 0..3 {
            if self.is_current().is_err() {
                return Err(Fault::Away("revoked"));
            }
            let said = if updates {
                self.remote.put_item(key.kind, &key.name, item, data).await?
            } else {
                self.remote.add_item(key.kind, &key.name, Some(item), data).await?
            };
            match said {
                Said::Done(done) => return Ok(Said::Done(done)),
                // There is no such map.
                Said::Missing if !updates => return Ok(Said::Missing),
                Said::Missing | Said::Exists => updates = !updates,
            }
            while let Err(wait) = self.budget.write(key, data.len()) {
                tokio::time::sleep(wait).await;
            }
        }
        Ok(Said::Missing)
    }

    /// Takes what a step costs, waiting for it where this goes on until then.
    async fn pay(&self, key: &ObjectKey, step: &Step, until: Option<Instant>) -> Result<(), Stop> {
        loop {
            let taken = if step.is_of_service() { self.budget.service() } else { self.budget.write(key, step.bytes()) };
            let Err(wait) = taken else { return Ok(()) };
            if until.is_none_or(|until| Instant::now() + wait > until) {
                return Err(Stop::Known(Outcome::Later(wait)));
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn pay_read(&self, key: &ObjectKey) {
        while let Err(wait) = self.budget.read(key) {
            tokio::time::sleep(wait).await;
        }
    }

    /// What a request that was not answered in the affirmative means for the round.
    fn asked<T>(&self, said: Result<T, Fault>) -> Result<T, Stop> {
        said.map_err(|fault| match fault {
            Fault::Busy(wait) => {
                count_failure("busy", "busy");
                Stop::Known(failing(wait))
            }
            Fault::Unknown(reason) => {
                count_failure("unknown", reason);
                Stop::Known(failing(None))
            }
            Fault::Away(reason) => {
                count_failure("away", reason);
                Stop::Known(failing(None))
            }
            Fault::Refused(reason) => {
                count_refusal(reason);
                Stop::Known(Outcome::Done)
            }
            Fault::Denied => {
                count_failure("denied", "denied");
                Stop::Known(Outcome::Denied)
            }
        })
    }
}

/// An object as it is here at `now`: what changed since that event id, or all of it. None where it has too many items.
fn local(object: &Object, lives: bool, since: u64, now: Timestamp) -> Option<Option<Local>> {
    if !lives {
        return Some(None);
    }
    let kind = object.kind();
    let item = |data: Arc<str>| {
        let digest = digest(&data);
        (data, digest)
    };
    // A document is one item; what else lapses, lapses without a change.
    if kind != ObjectKind::Document
        && since > 0
        && object.head().next_expiry.is_none()
        && let Some(rows) = object.since(since)
    {
        let items = rows.into_iter().map(|(_, row)| (row.item, row.data.map(item))).collect();
        return Some(Some(Local { kind, items, is_whole: false }));
    }
    let snapshot = object.snapshot()?;
    if snapshot.items.len() > MOST_ITEMS {
        return None;
    }
    let items = snapshot.items.into_iter().filter(|item| item.life.expires_at.is_none_or(|at| at > now)).map(|item| (item.item, item.data));
    let document = snapshot.data.map(|data| (String::new(), data));
    let items = document.into_iter().chain(items).map(|(name, data)| (name, Some(item(data)))).collect();
    Some(Some(Local { kind, items, is_whole: true }))
}

/// How long it is until then; None where that is past.
fn until(at: Option<Instant>) -> Option<Duration> {
    at?.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero())
}

const fn failing(pause: Option<Duration>) -> Outcome {
    Outcome::Failed { pause, pending: false }
}

fn count(result: &'static str) {
    metrics::counter!("contrail_mirror_requests_total", "result" => result).increment(1);
}

fn count_failure(result: &'static str, reason: &'static str) {
    count(result);
    metrics::counter!("contrail_mirror_failures_total", "reason" => reason).increment(1);
}

/// Counts what will not be there.
fn count_refusal(reason: &'static str) {
    count("refused");
    metrics::counter!("contrail_mirror_refused_total", "reason" => reason).increment(1);
}
