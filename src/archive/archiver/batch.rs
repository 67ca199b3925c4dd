//! One batch of the archiver: read, judged by what the archive knows, made absolute, written. Called by the archiver's loop; whatever fails here, the loop
//! begins again at the archive's cursors.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::future::try_join_all;
use tokio::time::Instant;

use super::{Aside, Pending, Run};
use crate::archive::fold::{self, Folded, Taken};
use crate::archive::recall::{self, Recalled};
use crate::archive::recent::Recent;
use crate::archive::{Books, CellKey, CellValue, Cursor, Error, WriteBatch};
use crate::background::Worker;
use crate::event::identity::{Entry, IdentityKey};
use crate::event::{SiteId, Timestamp};

/// Clean copies of what was written lately.
pub(super) struct Known {
    cells: Recent<(u16, CellKey), CellValue>,
    books: Recent<(u16, SiteId, Timestamp), Books>,
    /// Orders and checkouts only: an event's entry has its time to live, which the store keeps.
    entries: Recent<IdentityKey, Entry>,
}

impl Known {
    /// At most about this many bytes of cells, and of orders and checkouts (each twice, see [`Recent`]).
    pub(super) fn new(bytes: usize) -> Self {
        Self { cells: Recent::new(bytes), books: Recent::new(bytes / 8), entries: Recent::new(bytes) }
    }

    /// Forgets everything: after a failure only the archive knows.
    pub(super) fn clear(&mut self) {
        self.cells.clear();
        self.books.clear();
        self.entries.clear();
    }
}

impl Run {
    /// Folds what is pending and writes it.
    pub(super) async fn write(&mut self) -> Result<(), Error> {
        let pending = std::mem::take(&mut self.pending);
        let count = pending.count;
        // Of what was read alone: no other partition's cursor is written.
        let written = pending.records.iter().filter_map(|(partition, _)| Some((*partition, self.owned.get(partition)?.written)));
        let cursors: BTreeMap<u16, Cursor> = written.collect();
        let began = Instant::now();
        let aside = Arc::clone(&self.aside);
        let (taken, keys) = on_cpu(&self.computing, move || pending.read(&aside)).await?;
        let mut entries = HashMap::with_capacity(keys.len());
        let mut unknown = keys;
        unknown.values_mut().for_each(|keys| {
            keys.retain(|key| match self.recent.entries.take(key) {
                Some(entry) => {
                    entries.insert(*key, entry);
                    false
                }
                None => true,
            });
        });
        let archive = &self.job.archive;
        let asked = of_each(unknown, |partition, keys| async move { archive.identities(partition, &keys).await });
        entries.extend(self.job.wait(asked).await?);
        let recalled = self.recall(&taken, &entries, &cursors).await?;
        let (rules, objects_of) = (Arc::clone(&self.job.rules), Arc::clone(&self.job.objects_of));
        let folded = on_cpu(&self.computing, move || fold::fold_all(taken, entries, recalled, cursors, &rules, &objects_of)).await?;
        let verdicts = folded.verdicts;
        let (batch, entries) = self.complete(folded).await?;
        metrics::histogram!("contrail_archiver_fold_seconds").record(began.elapsed().as_secs_f64());
        let began = Instant::now();
        self.put(batch, entries).await?;
        metrics::histogram!("contrail_archiver_write_seconds").record(began.elapsed().as_secs_f64());
        metrics::histogram!("contrail_archiver_batch_records").record(count as f64);
        for (verdict, count) in ["counted", "report", "duplicate", "conflict"].into_iter().zip(verdicts) {
            metrics::counter!("contrail_archiver_events_total", "verdict" => verdict).increment(count);
        }
        Ok(())
    }

    /// Asks the archive for the events of a batch that identity may have forgotten, where there are any.
    async fn recall(&mut self, taken: &[Taken], entries: &HashMap<IdentityKey, Entry>, cursors: &BTreeMap<u16, Cursor>) -> Result<Recalled, Error> {
        let mut recalled = Recalled::default();
        for (site, sought) in recall::sought(taken, entries, cursors) {
            let kept = self.job.wait(self.job.archive.kept(&site, &sought)).await?;
            recalled.learn(site, kept, cursors);
        }
        Ok(recalled)
    }

    /// Makes a batch's differences absolute, over what the archive holds.
    async fn complete(&mut self, folded: Folded) -> Result<(WriteBatch, HashMap<IdentityKey, Entry>), Error> {
        let mut unknown_cells: BTreeMap<u16, Vec<CellKey>> = BTreeMap::new();
        let mut cells = HashMap::new();
        for key in folded.additions.keys() {
            match self.recent.cells.take(key) {
                Some(value) => drop(cells.insert(key.clone(), value)),
                None => unknown_cells.entry(key.0).or_default().push(key.1.clone()),
            }
        }
        let mut unknown_books: BTreeMap<u16, Vec<(SiteId, Timestamp)>> = BTreeMap::new();
        let mut books = HashMap::new();
        for key in folded.books.keys() {
            match self.recent.books.take(key) {
                Some(value) => drop(books.insert(key.clone(), value)),
                None => unknown_books.entry(key.0).or_default().push((key.1.clone(), key.2)),
            }
        }
        let archive = &self.job.archive;
        let asked_cells = of_each(unknown_cells, |partition, keys| async move {
            let found = archive.cells(partition, &keys).await?;
            Ok(found.into_iter().map(|(key, value)| ((partition, key), value)).collect())
        });
        let asked_books = of_each(unknown_books, |partition, keys| async move {
            let found = archive.books_of(partition, &keys).await?;
            Ok(found.into_iter().map(|(site, hour, value)| ((partition, site, hour), value)).collect())
        });
        let (found_cells, found_books) = self.job.wait(async { tokio::try_join!(asked_cells, asked_books) }).await?;
        cells.extend(found_cells);
        books.extend(found_books);
        let rules = Arc::clone(&self.job.rules);
        on_cpu(&self.computing, move || folded.into_batch(&rules, |key| cells.remove(key), |key| books.remove(key))).await
    }

    /// Writes a batch and remembers what it made of things.
    async fn put(&mut self, batch: WriteBatch, entries: HashMap<IdentityKey, Entry>) -> Result<(), Error> {
        let cells: Vec<_> = batch.cells.clone();
        let books: Vec<_> = batch.books.clone();
        let cursors = batch.cursors.clone();
        let quarantined = batch.quarantine.len() as u64;
        self.job.wait(self.job.archive.write(batch)).await?;
        self.touched.note(books.iter().map(|(_, site, _, _)| site));
        for (partition, key, value) in cells {
            let bytes = 200 + key.dim.len() + value.people.0.len();
            self.recent.cells.put((partition, key), value, bytes);
        }
        for (partition, site, hour, value) in books {
            self.recent.books.put((partition, site, hour), value, 300);
        }
        for (key, entry) in entries {
            let bytes = match &entry {
                Entry::Event(_) => continue,
                Entry::Order(_) | Entry::Checkout(_) => 100 + 4 * entry.to_bytes().len(),
            };
            self.recent.entries.put(key, entry, bytes);
        }
        metrics::counter!("contrail_archiver_quarantined_total").increment(quarantined);
        for (partition, cursor) in cursors {
            if let Some(owned) = self.owned.get_mut(&partition) {
                owned.written = cursor;
                self.job.progress.update(partition, |progress| progress.cursor = cursor);
            }
        }
        metrics::gauge!("contrail_archiver_lag_records").set(self.job.progress.lag() as f64);
        Ok(())
    }
}

impl Pending {
    /// Reads the records, and tells which identity entries decide on them.
    fn read(self, aside: &Aside) -> (Vec<Taken>, BTreeMap<u16, Vec<IdentityKey>>) {
        let taken = self.records.into_iter().flat_map(|(partition, records)| fold::take(partition, records));
        let set_aside = |taken: Taken| match aside.get(&taken.place()) {
            Some(why) => taken.set_aside(why),
            None => taken,
        };
        let taken: Vec<Taken> = taken.map(set_aside).collect();
        let mut keys: BTreeMap<u16, Vec<IdentityKey>> = BTreeMap::new();
        for (partition, key) in taken.iter().filter_map(Taken::key) {
            keys.entry(partition).or_default().push(key);
        }
        for keys in keys.values_mut() {
            keys.sort_unstable();
            keys.dedup();
        }
        (taken, keys)
    }
}

/// Asks the archive for what is needed of each partition, of all at once.
async fn of_each<K, T, F>(keys: BTreeMap<u16, Vec<K>>, ask: impl Fn(u16, Vec<K>) -> F) -> Result<impl Iterator<Item = T>, Error>
where
    F: Future<Output = Result<Vec<T>, Error>>,
{
    let asked = keys.into_iter().filter(|(_, keys)| !keys.is_empty()).map(|(partition, keys)| ask(partition, keys));
    Ok(try_join_all(asked).await?.into_iter().flatten())
}

/// Computes away from the threads that serve requests.
async fn on_cpu<T: Send + 'static>(computing: &Worker, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    computing.run(work).await.ok_or_else(|| Error::Corrupt("a batch that stopped the archiver".into()))
}
