//! What several nodes change at once: rows of one partition, written all or none on a condition, in one order that all agree on. Paxos decides it, among
//! all replicas of the partition (SERIAL, in every datacenter that has one): no majority, no change. Used where nothing else puts writers into an order.

use scylla::deserialize::row::DeserializeRow;
use scylla::serialize::row::SerializeRow;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::{Consistency, SerialConsistency};
use scylla::value::Row;
use uuid::Uuid;

use super::{Attempt, Cluster, Error, Write, form};

/// What became of a conditional write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All rows are written: a quorum of the replicas (of the datacenter asked) has them.
    Applied,
    /// Nothing is written: the column asked for held this.
    Found(Option<Uuid>),
}

impl Cluster {
    /// Writes `condition` and `rest`, rows of one partition of one table, at once or not at all. `condition` is the statement with `IF`, and `column` the
    /// column it asks. Whoever reads sees all of them or none.
    ///
    /// An attempt whose end is unknown is repeated: it may then find what it wrote itself.
    ///
    /// # Errors
    /// It may have been done all the same.
    pub async fn write_if(&self, condition: Write, rest: Vec<Write>, column: &str) -> Result<Outcome, Error> {
        let cql = condition.cql;
        let mut batch = Batch::new(BatchType::Unlogged);
        batch.set_serial_consistency(Some(SerialConsistency::Serial));
        let mut values = Vec::with_capacity(1 + rest.len());
        for write in std::iter::once(condition).chain(rest) {
            batch.append_statement(self.prepare(write.cql).await?);
            values.push(write.values);
        }
        let attempt = || -> Attempt<'_, _> { Box::pin(self.session.batch(&batch, &values)) };
        let answer = self.try_again(cql, attempt).await?.into_rows_result().map_err(|error| form(cql, &error))?;
        let place = |name: &str| answer.column_specs().get_by_name(name).map(|(at, _)| at);
        let (applied, column) = (place("[applied]"), place(column));
        let row = answer.first_row::<Row>().map_err(|error| form(cql, &error))?;
        let value = |at: Option<usize>| at.and_then(|at| row.columns.get(at)?.as_ref());
        match value(applied).and_then(scylla::value::CqlValue::as_boolean) {
            Some(true) => Ok(Outcome::Applied),
            Some(false) => Ok(Outcome::Found(value(column).and_then(scylla::value::CqlValue::as_uuid))),
            None => Err(Error::Form(format!("a conditional write is answered without [applied] ({cql})"))),
        }
    }

    /// All rows that a statement finds, as of the last conditional write that was acknowledged to anybody; one whose end was unknown is brought to its
    /// end first. Pages may be of different moments.
    ///
    /// # Errors
    /// As [`Cluster::rows`].
    pub async fn rows_settled<R>(&self, cql: &'static str, values: impl SerializeRow + Send + Sync) -> Result<Vec<R>, Error>
    where
        R: for<'f> DeserializeRow<'f, 'f> + Send,
    {
        let mut statement = self.prepare(cql).await?;
        statement.set_consistency(Consistency::Serial);
        Ok(self.pages(cql, &statement, values).await?.0)
    }
}
