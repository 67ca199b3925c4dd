//! Where the readers of a partition of the log are: routers in `events`, keepers in `changes`. Used by the ObjectStore of this folder alone.
//!
//! A place is acknowledged after all that it stands for is. A node that is killed loses what it acknowledged last, within the safety window, and may keep the place
//! beside it. So each place is stored twice: the latest, with when the nodes' processes began; and the base, one that is older than the safety window. Who takes a
//! partition over begins at the latest where no node began anew since, else at the base, as a new life of the partition: what was stored in the former one is no
//! longer looked at, for the base of this one moves only by what is written in it. What is told to be durable has been the base for a safety window itself.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Scylla, stamp};
use crate::cql::Write;
use crate::event::PARTITIONS;
use crate::sync::Error;

const GET: &str = "SELECT part, life, latest, base FROM place WHERE reader = ?";
const PUT_LATEST: &str = "UPDATE place USING TIMESTAMP ? SET latest = ? WHERE reader = ? AND part = ? AND life = ?";
const PUT_BASE: &str = "UPDATE place USING TIMESTAMP ? SET base = ? WHERE reader = ? AND part = ? AND life = ?";
const TAKE_BELOW: &str = "DELETE FROM place USING TIMESTAMP ? WHERE reader = ? AND part = ? AND life < ?";

/// So many places are noted of a safety window.
const NOTES: u32 = 32;

/// Version byte of stored places.
const VERSION: u8 = 1;

/// When the nodes' processes began, where all tell.
pub(super) type Boots = Option<BTreeMap<Uuid, i32>>;

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reader {
    /// Of `events`.
    Router = 0,
    /// Of `changes`.
    Keeper = 1,
}

/// A place in a partition of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// The next offset.
    pub(super) next: u64,
    /// What else the reader begins with.
    pub(super) value: Vec<u8>,
}

/// The latest place, with when the process of each node began; with none where that was not known.
#[derive(Debug, Serialize, Deserialize)]
struct Latest {
    place: Place,
    boots: Vec<([u8; 16], i32)>,
}

/// What is stored of a partition's greatest life.
#[derive(Debug)]
struct Stored {
    life: i64,
    latest: Option<Latest>,
    base: Option<Place>,
}

impl Stored {
    /// The latest place, where no node began anew since it was stored.
    fn sure(&self, boots: &Boots) -> Option<&Place> {
        let (latest, boots) = (self.latest.as_ref()?, boots.as_ref()?);
        let same = !latest.boots.is_empty() && latest.boots.iter().all(|(host, generation)| boots.get(&Uuid::from_bytes(*host)) == Some(generation));
        same.then_some(&latest.place)
    }
}

/// What this process knows of all partitions.
#[derive(Debug, Default)]
pub(super) struct Places {
    known: Mutex<HashMap<(Reader, u16), Known>>,
}

/// What it knows of one.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The life in which it was taken over, and how many nodes had begun anew then.
    taken: Option<(i64, u64)>,
    /// The life that the rest is of.
    life: i64,
    /// Places by when they were acknowledged, or found so; the first is the latest that is older than the safety window, once there is such.
    noted: VecDeque<(Instant, Place)>,
    /// The same of bases.
    based: VecDeque<(Instant, u64)>,
}

/// The last entry that is older than the window.
fn old<T>(entries: &VecDeque<(Instant, T)>, window: Duration) -> Option<&T> {
    let now = Instant::now();
    entries.iter().rev().find(|(at, _)| now.duration_since(*at) >= window).map(|(_, entry)| entry)
}

/// Only the latest of those that are old enough is ever asked for.
fn trim<T>(entries: &mut VecDeque<(Instant, T)>, window: Duration) {
    let now = Instant::now();
    while entries.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= window) {
        entries.pop_front();
    }
}

impl Known {
    fn note(&mut self, place: &Place, window: Duration) {
        if self.noted.back().is_none_or(|(_, last)| last.next < place.next) {
            // The last one is always there; those before it lie apart.
            let close = |n: usize| Some(self.noted.get(n + 1)?.0.duration_since(self.noted.get(n)?.0) < window / NOTES);
            if self.noted.len().checked_sub(2).and_then(close) == Some(true) {
                self.noted.pop_back();
            }
            self.noted.push_back((Instant::now(), place.clone()));
        }
        trim(&mut self.noted, window);
    }

    fn note_base(&mut self, next: u64, window: Duration) {
        if self.based.back().is_none_or(|(_, last)| *last < next) {
            self.based.push_back((Instant::now(), next));
        }
        trim(&mut self.based, window);
    }

    /// The base that is to be stored, where it is beyond the one that is.
    fn next_base(&self, window: Duration) -> Option<&Place> {
        let base = old(&self.noted, window)?;
        self.based.back().is_none_or(|(_, last)| *last < base.next).then_some(base)
    }

    fn live(&mut self, life: i64) {
        if self.life != life {
            (self.life, self.noted) = (life, VecDeque::new());
        }
    }
}

impl Places {
    fn known(&self) -> MutexGuard<'_, HashMap<(Reader, u16), Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets all that is noted: a node died some time before that was noticed, and what was acknowledged in the window before may be lost, however old by now.
    pub(super) fn doubt(&self) {
        for known in self.known().values_mut() {
            known.noted.clear();
            known.based.clear();
        }
    }
}

fn pack<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![VERSION]).unwrap_or_default()
}

fn unpack<T: for<'d> Deserialize<'d>>(part: u16, bytes: &[u8]) -> Result<T, Error> {
    let read = match bytes.split_first() {
        Some((&VERSION, rest)) => postcard::from_bytes(rest).ok(),
        _ => None,
    };
    read.ok_or_else(|| Error::Store(format!("the place of partition {part} is malformed, or of a later version")))
}

impl Scylla {
    /// The places of all partitions that have one, of their greatest lives.
    async fn stored_places(&self, reader: Reader) -> Result<BTreeMap<u16, Stored>, Error> {
        type Row = (i16, i64, Option<Vec<u8>>, Option<Vec<u8>>);
        let rows: Vec<Row> = self.cluster.rows(GET, (reader as i8,)).await?;
        let mut places = BTreeMap::new();
        // In order of partitions and lives.
        for (part, life, latest, base) in rows {
            let part = part as u16;
            let latest = latest.map(|bytes| unpack(part, &bytes)).transpose()?;
            places.insert(part, Stored { life, latest, base: base.map(|bytes| unpack(part, &bytes)).transpose()? });
        }
        Ok(places)
    }

    /// Where a reader begins that takes a partition over.
    pub(super) async fn take_over(&self, reader: Reader, part: u16) -> Result<Place, Error> {
        let restarts = self.watch().await;
        let boots = self.cluster.boots();
        let stored = self.stored_places(reader).await?.remove(&part);
        let (life, place) = match &stored {
            None => (0, Place::default()),
            Some(stored) => match stored.sure(&boots) {
                Some(place) => (stored.life, place.clone()),
                None => (stored.life + 1, stored.base.clone().unwrap_or_default()),
            },
        };
        if stored.as_ref().is_some_and(|stored| stored.life < life) {
            let left = stored.and_then(|stored| stored.latest).map_or(0, |latest| latest.place.next);
            tracing::warn!(
                ?reader,
                part,
                from = place.next,
                left,
                "a node of the cluster began anew: what it may have lost is read again from the log"
            );
            metrics::counter!("contrail_objects_rewinds_total").increment(1);
            self.relist.store(true, Ordering::SeqCst);
            self.begin_life(reader, part, life, &place, &boots).await?;
        }
        self.known(reader, part, |known| {
            known.live(life);
            known.taken = Some((life, restarts));
            known.note(&place, self.safety_window);
        });
        Ok(place)
    }

    async fn begin_life(&self, reader: Reader, part: u16, life: i64, base: &Place, boots: &Boots) -> Result<(), Error> {
        let (of, number) = (reader as i8, part as i16);
        let at = stamp::at(base.next)?;
        let latest = Write::new(PUT_LATEST, (at, pack(&latest(base.clone(), boots)), of, number, life));
        let put_base = Write::new(PUT_BASE, (at, pack(base), of, number, life));
        self.cluster.write_whole(vec![latest, put_base]).await?;
        // Whatever is written of them late stays unseen, as their lives are over.
        Ok(self.cluster.write_whole(vec![Write::new(TAKE_BELOW, (self.clock.now().micros(), of, number, life))]).await?)
    }

    /// How often nodes began anew. What they acknowledged last is then forgotten here.
    async fn watch(&self) -> u64 {
        let restarts = self.cluster.restarts().await;
        if self.restarts.swap(restarts, Ordering::SeqCst) != restarts {
            self.places.doubt();
            self.filed().clear();
        }
        restarts
    }

    /// Refuses to build on what may be lost: a reader that took these partitions over before a node began anew has to do so again. Gives when the nodes' processes
    /// began.
    pub(super) async fn check_nodes(&self, reader: Reader, parts: impl Iterator<Item = u16> + Send) -> Result<Boots, Error> {
        let restarts = self.watch().await;
        let boots = self.cluster.boots();
        for part in parts {
            match self.known(reader, part, |known| known.taken) {
                Some((_, taken)) if taken == restarts => {}
                Some(_) => return Err(Error::Store("a node of the cluster began anew: what it acknowledged last may be lost".into())),
                None => drop(self.take_over(reader, part).await?),
            }
        }
        Ok(boots)
    }

    /// Stores places, all or none. All that they stand for is acknowledged, and was begun when the nodes' processes were these.
    pub(super) async fn put_places(&self, reader: Reader, places: Vec<(u16, Place)>, boots: &Boots) -> Result<(), Error> {
        let window = self.safety_window;
        let (of, mut writes, mut done) = (reader as i8, Vec::new(), Vec::new());
        for (part, place) in places {
            let (life, base) = self.known(reader, part, |known| {
                // Another process may have begun a life since: what this one knows is not of that.
                let life = known.taken.map_or(known.life, |(life, _)| life);
                (life, known.next_base(window).filter(|_| life == known.life).cloned())
            });
            writes.push(Write::new(PUT_LATEST, (stamp::at(place.next)?, pack(&latest(place.clone(), boots)), of, part as i16, life)));
            if let Some(base) = &base {
                writes.push(Write::new(PUT_BASE, (stamp::at(base.next)?, pack(base), of, part as i16, life)));
            }
            done.push((part, life, place, base));
        }
        self.cluster.write_whole(writes).await?;
        for (part, life, place, base) in done {
            self.known(reader, part, |known| {
                if life == known.life {
                    known.note(&place, window);
                    base.iter().for_each(|base| known.note_base(base.next, window));
                }
            });
        }
        Ok(())
    }

    /// Makes the latest places the bases too, once all that they stand for was carried here from elsewhere: no log leads there from the beginning.
    pub(super) async fn base_on_latest(&self, reader: Reader) -> Result<(), Error> {
        let mut writes = Vec::new();
        for (part, stored) in self.stored_places(reader).await? {
            if let Some(Latest { place, .. }) = stored.latest {
                writes.push(Write::new(PUT_BASE, (stamp::at(place.next)?, pack(&place), reader as i8, part as i16, stored.life)));
            }
        }
        Ok(self.cluster.write_whole(writes).await?)
    }

    /// The next offsets stored, by partition.
    pub(super) async fn stored_offsets(&self, reader: Reader) -> Result<Vec<u64>, Error> {
        let stored = self.stored_places(reader).await?;
        let next = |part| stored.get(&part)?.latest.as_ref().map(|latest| latest.place.next);
        Ok((0..PARTITIONS).map(|part| next(part).unwrap_or(0)).collect())
    }

    /// The next offsets that no failure within the safety window can take back, by partition; moves the bases of those that stand still.
    pub(super) async fn durable_offsets(&self, reader: Reader) -> Result<Vec<u64>, Error> {
        self.watch().await;
        let (window, boots) = (self.safety_window, self.cluster.boots());
        let (mut writes, mut bases) = (Vec::new(), Vec::new());
        for (part, stored) in self.stored_places(reader).await? {
            let base = self.known(reader, part, |known| {
                known.live(stored.life);
                if let Some(place) = stored.sure(&boots) {
                    known.note(place, window);
                }
                stored.base.iter().for_each(|base| known.note_base(base.next, window));
                known.next_base(window).cloned()
            });
            if let Some(base) = base {
                writes.push(Write::new(PUT_BASE, (stamp::at(base.next)?, pack(&base), reader as i8, part as i16, stored.life)));
                bases.push((part, base.next));
            }
        }
        self.cluster.write_whole(writes).await?;
        for (part, next) in bases {
            self.known(reader, part, |known| known.note_base(next, window));
        }
        Ok((0..PARTITIONS).map(|part| self.known(reader, part, |known| old(&known.based, window).copied().unwrap_or(0))).collect())
    }

    /// Looks at or changes what is known of a partition.
    fn known<T>(&self, reader: Reader, part: u16, look: impl FnOnce(&mut Known) -> T) -> T {
        look(self.places.known().entry((reader, part)).or_default())
    }
}

fn latest(place: Place, boots: &Boots) -> Latest {
    Latest { place, boots: boots.iter().flatten().map(|(host, generation)| (host.into_bytes(), *generation)).collect() }
}
