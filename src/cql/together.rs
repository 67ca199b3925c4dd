//! Which rows go to the cluster in one request: those of one partition, and small ones of several partitions that the same replicas have. A request costs a node
//! about as much as some ten small rows do. Used by [`super::Cluster`]; pure.

use std::collections::HashMap;
use std::hash::Hasher;

use scylla::serialize::row::{RowSerializationContext, SerializeRow};
use scylla::serialize::writers::RowWriter;
use scylla::statement::prepared::PreparedStatement;

/// Most rows of a batch, all of one partition.
const BATCH_ROWS: usize = 100;
/// Most bytes of one.
const BATCH_BYTES: usize = 32 << 10;

/// Most partitions that go together: of more Cassandra complains (`unlogged_batch_across_partitions_warn_threshold`).
pub(super) const SPAN: usize = 10;
/// Most bytes of what is of several partitions. Cassandra complains beyond 5 KiB by its own count (`batch_size_warn_threshold`; of one partition it does not count).
pub(super) const SPAN_BYTES: usize = 4 << 10;
/// What a cell is counted as beside its value: it has a time and a time to live.
const CELL_BYTES: usize = 16;

/// One row to be written, by a statement that may be repeated.
pub struct Write {
    pub(super) cql: &'static str,
    /// Rows of one statement whose partition is known to be the same may go together.
    partition: Option<u64>,
    bytes: usize,
    pub(super) values: Box<dyn SerializeRow + Send + Sync>,
}

impl Write {
    /// A row that is a group by itself.
    pub fn new(cql: &'static str, values: impl SerializeRow + Send + Sync + 'static) -> Self {
        Self { cql, partition: None, bytes: 0, values: Box::new(values) }
    }

    /// Says which partition of its table the row is of (its key), and about how large it is. Rows of one statement and partition go together.
    #[must_use]
    pub fn beside(self, partition: impl std::hash::Hash, bytes: usize) -> Self {
        // Two partitions that meet in one number would be written together: slower, and as right.
        let mut hasher = std::hash::DefaultHasher::new();
        partition.hash(&mut hasher);
        Self { partition: Some(hasher.finish()), bytes, ..self }
    }

    /// Bytes that it takes, as a node counts them or somewhat more; none where the values are not the statement's.
    pub(super) fn size(&self, statement: &PreparedStatement) -> Option<usize> {
        let mut bytes = Vec::with_capacity(256);
        let mut writer = RowWriter::new(&mut bytes);
        self.values.serialize(&RowSerializationContext::from_specs(statement.get_variable_col_specs().as_slice()), &mut writer).ok()?;
        let cells = writer.value_count();
        Some(bytes.len() + CELL_BYTES * cells)
    }
}

/// Rows of one partition, which go in one request as long as that is not refused.
pub(super) type Group = Vec<Write>;

/// Puts rows that may go together beside one another, and the others each alone.
pub(super) fn gather(writes: Vec<Write>) -> Vec<Group> {
    let mut gathered: Vec<Group> = Vec::with_capacity(writes.len());
    let mut open: HashMap<(&'static str, u64), (usize, usize)> = HashMap::new();
    for write in writes {
        let Some(partition) = write.partition else {
            gathered.push(vec![write]);
            continue;
        };
        let key = (write.cql, partition);
        let room = open.get_mut(&key).and_then(|(at, bytes)| {
            let group = gathered.get_mut(*at)?;
            let fits = group.len() < BATCH_ROWS && *bytes + write.bytes <= BATCH_BYTES;
            fits.then(|| {
                *bytes += write.bytes;
                group
            })
        });
        match room {
            Some(group) => group.push(write),
            None => {
                open.insert(key, (gathered.len(), write.bytes));
                gathered.push(vec![write]);
            }
        }
    }
    gathered
}

/// What a group is to those it may go with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parcel {
    /// Which replicas have its partition, as a number; none where that is not known, and it goes alone.
    pub(super) home: Option<u64>,
    /// See [`Write::size`].
    pub(super) bytes: usize,
}

impl Parcel {
    /// One that goes with no other.
    pub(super) const ALONE: Self = Self { home: None, bytes: 0 };
}

/// Which of these groups go in one request, by their places: each once.
pub(super) fn pack(parcels: &[Parcel]) -> Vec<Vec<usize>> {
    let mut packs: Vec<Vec<usize>> = Vec::new();
    let mut open: HashMap<u64, (usize, usize)> = HashMap::new();
    for (place, Parcel { home, bytes }) in parcels.iter().enumerate() {
        let room = home.and_then(|home| {
            let (at, held) = open.get_mut(&home)?;
            let pack = packs.get_mut(*at)?;
            let fits = pack.len() < SPAN && *held + bytes <= SPAN_BYTES;
            fits.then(|| {
                *held += bytes;
                pack
            })
        });
        match room {
            Some(pack) => pack.push(place),
            None => {
                if let Some(home) = *home {
                    open.insert(home, (packs.len(), *bytes));
                }
                packs.push(vec![place]);
            }
        }
    }
    packs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rows_of_one_partition_are_a_group() {
        let row = |cql: &'static str, partition: Option<u64>, bytes: usize| match partition {
            Some(partition) => Write::new(cql, ()).beside(partition, bytes),
            None => Write::new(cql, ()),
        };
        let mut writes = vec![row("a", None, 0), row("a", None, 0), row("b", Some(1), 1), row("c", Some(1), 1), row("b", Some(2), 1)];
        writes.extend((0..BATCH_ROWS).map(|_| row("b", Some(1), 1)));
        writes.extend([row("d", Some(1), BATCH_BYTES + 1), row("d", Some(1), 9), row("d", Some(1), 9)]);
        let groups = gather(writes);
        let shape: Vec<(&str, usize)> = groups.iter().map(|group| (group[0].cql, group.len())).collect();
        assert_eq!(shape, [("a", 1), ("a", 1), ("b", BATCH_ROWS), ("c", 1), ("b", 1), ("b", 1), ("d", 1), ("d", 2)]);
    }

    #[test]
    fn small_groups_of_the_same_replicas_go_together() {
        let parcel = |home: u64, bytes| Parcel { home: Some(home), bytes };
        assert_eq!(pack(&[]), [[0; 0]; 0]);
        // By home, in their order, and what has none alone.
        let unknown = Parcel { home: None, bytes: 9 };
        assert_eq!(pack(&[parcel(1, 9), parcel(2, 9), unknown, parcel(1, 9), unknown, parcel(2, 9)]), [vec![0, 3], vec![1, 5], vec![2], vec![4]]);
        // At most so many, and so much.
        let shape = |parcels: &[Parcel]| pack(parcels).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(shape(&[parcel(1, 9); 2 * SPAN + 1]), [SPAN, SPAN, 1]);
        assert_eq!(shape(&[parcel(1, SPAN_BYTES / 3); 7]), [3, 3, 1]);
        assert_eq!(pack(&[parcel(1, 9), parcel(1, SPAN_BYTES), parcel(1, 9)]), [vec![0], vec![1], vec![2]]);
    }
}
