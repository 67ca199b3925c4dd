//! Takes over an archive from elsewhere, whole, into fresh tables. Called by the composition root while no archiver runs; not part of the
//! [`crate::archive::Archive`] trait, as only a move needs it.
//!
//! What was counted comes in pages without cursors, all with the least write timestamp there is: whatever is written later wins, and a page may come
//! again. The cursors come last, with the journal's pieces that a cursor needs beside it; until then every partition stands at its beginning, where
//! an archiver that is started too early meets a log that does not fit and says so.

use std::collections::BTreeMap;

use super::journal::{self, Part};
use super::{Scylla, stamp};
use crate::archive::{Cursor, Error, WriteBatch};
use crate::event::Timestamp;

impl Scylla {
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
