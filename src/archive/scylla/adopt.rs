//! Takes over an archive from elsewhere, whole, into fresh tables. Called by the composition root while no archiver runs; not part of the
//! [`crate::archive::Archive`] trait, as only a move needs it.
//!
//! What was counted comes in pages without cursors, all with the least write timestamp there is: whatever is written later wins, and a page may come
//! again: the very same, of one state of the other archive, as of two writes of one timestamp neither is the later. The cursors come last, with the journal's pieces that a cursor needs beside it; until then every partition stands at its beginning, where
//! an archiver that is started too early meets a log that does not fit and says so.

use std::collections::BTreeMap;

use super::journal::{self, Part};
use super::rows::pack;
use super::{Scylla, stamp};
use crate::archive::{Cursor, Error, WriteBatch};
use crate::cql::Write;
use crate::event::Timestamp;

// Beside the journal's pieces, where no partition of `events` has any.
const PUT_STATE: &str = "INSERT INTO journal (part, next, writer, chunk, chunks, body) VALUES (-1, 0, 0, 0, 1, ?) USING TIMESTAMP ?";
const GET_STATE: &str = "SELECT body FROM journal WHERE part = -1 AND next = 0";

impl Scylla {
    /// Begins to take over an archive that stands at these cursors, by partition, and holds events of these days; or goes on with it. To be called before the
    /// first page.
    ///
    /// # Errors
    /// [`Error::BadQuestion`] where another state was begun with: what of it is here would be mixed with this one's. Else as
    /// [`crate::archive::Archive::write`]; may be called again.
    pub async fn begin_adopting(&self, cursors: &[Cursor], days: &[i32]) -> Result<(), Error> {
        self.check_open()?;
        let cursors: Vec<(u64, i64)> = cursors.iter().map(|cursor| (cursor.next, cursor.received_at.micros())).collect();
        let state = pack(&(cursors, days));
        let begun: Vec<(Vec<u8>,)> = self.cluster.rows(GET_STATE, ()).await?;
        match begun.first() {
            Some((begun,)) if *begun != state => {
                let message =
                    "an earlier move of another state was cut short in this keyspace, and the data directory has gone on since: use a new keyspace";
                Err(Error::BadQuestion { parameter: "archive", message: message.into() })
            }
            Some(_) => Ok(()),
            None => Ok(self.cluster.write(vec![Write::new(PUT_STATE, (state, stamp::of(stamp::GENERATION, 0)?))]).await?),
        }
    }

    /// Takes a page over: absolute values and rows as they stand. `seen` is when identity last heard of the events among it.
    ///
    /// # Errors
    /// As [`crate::archive::Archive::write`]; the page may come again.
    pub async fn adopt(&self, mut batch: WriteBatch, seen: Option<Timestamp>) -> Result<(), Error> {
        self.check_open()?;
        batch.cursors.clear();
        self.insert(&mut batch).await?;
        let cursor = Cursor { next: 0, received_at: seen.unwrap_or_default() };
        let mut parts = journal::parts(batch);
        for part in parts.values_mut() {
            part.complete(stamp::of(stamp::GENERATION, 0)?, cursor);
        }
        self.apply(&parts, &BTreeMap::new()).await
    }

    /// Ends the move: from here on an archiver goes on at these cursors, by partition.
    ///
    /// # Errors
    /// As above; may be called again.
    pub async fn adopted(&self, cursors: &[Cursor]) -> Result<(), Error> {
        let (mut parts, mut journaled) = (BTreeMap::new(), BTreeMap::new());
        for (part, cursor) in (0..).zip(cursors).filter(|(_, cursor)| cursor.next > 0) {
            let mut of = Part::ending_at(*cursor);
            of.complete(stamp::of(stamp::GENERATION, cursor.next)?, *cursor);
            parts.insert(part, of);
            journaled.insert(part, cursor.next);
        }
        self.apply(&parts, &journaled).await
    }
}
