//! What a cluster is asked: all rows of a statement, page by page, and those of many keys by lists.

use std::collections::HashMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use scylla::deserialize::row::DeserializeRow;
use scylla::response::PagingState;
use scylla::response::query_result::QueryResult;
use scylla::serialize::row::SerializeRow;
use scylla::statement::prepared::PreparedStatement;

use super::route::{ToReplica, home};
use super::together::SPAN;
use super::{AT_ONCE, Attempt, Cluster, Error, form};

/// Keys that the same replicas have, and the way to one of these.
type Together = (Arc<ToReplica>, Vec<Vec<u8>>);

impl Cluster {
    /// All rows that a statement finds, page by page.
    ///
    /// # Errors
    /// As for writes, and [`Error::Form`].
    pub async fn rows<R>(&self, cql: &'static str, values: impl SerializeRow + Send + Sync) -> Result<Vec<R>, Error>
    where
        R: for<'f> DeserializeRow<'f, 'f> + Send,
    {
        Ok(self.paged(cql, values).await?.0)
    }

    /// The same, and in how many pages: of one partition a page shows one moment, several may show several.
    ///
    /// # Errors
    /// As for writes, and [`Error::Form`].
    pub async fn paged<R>(&self, cql: &'static str, values: impl SerializeRow + Send + Sync) -> Result<(Vec<R>, usize), Error>
    where
        R: for<'f> DeserializeRow<'f, 'f> + Send,
    {
        let statement = self.prepare(cql).await?;
        self.pages(cql, &statement, values).await
    }

    /// All pages of a prepared statement's rows, and how many.
    pub(super) async fn pages<R>(
        &self,
        cql: &'static str,
        statement: &PreparedStatement,
        values: impl SerializeRow + Send + Sync,
    ) -> Result<(Vec<R>, usize), Error>
    where
        R: for<'f> DeserializeRow<'f, 'f> + Send,
    {
        let (mut found, mut pages) = (Vec::new(), 0);
        let mut state = PagingState::start();
        loop {
            let attempt = || -> Attempt<'_, _> { Box::pin(self.session.execute_single_page(statement, &values, state.clone())) };
            let (page, next) = self.try_again(cql, attempt).await?;
            pages += 1;
            read_rows(cql, page, &mut found)?;
            match next.into_paging_control_flow() {
                std::ops::ControlFlow::Continue(next) => state = next,
                std::ops::ControlFlow::Break(()) => return Ok((found, pages)),
            }
        }
    }

    /// The rows of many keys that have one at most, in any order: `many` finds those of a list of keys, each a whole partition key, and tells which is whose.
    /// Keys that the same replicas have are asked for together, by where `one`, which finds that of a key, would be sent.
    ///
    /// # Errors
    /// As for [`Cluster::rows`].
    pub async fn rows_of<R>(&self, one: &'static str, many: &'static str, keys: impl Iterator<Item = Vec<u8>> + Send) -> Result<Vec<R>, Error>
    where
        R: for<'f> DeserializeRow<'f, 'f> + Send,
    {
        let statement = self.prepare(one).await?;
        let mut at: HashMap<Option<u64>, Together> = HashMap::new();
        for key in keys {
            let replicas = self.replicas(&statement, &(&key,));
            let to = |replicas| Arc::new(ToReplica::new(replicas, &self.datacenter, Arc::clone(&self.policy)));
            at.entry(home(&replicas)).or_insert_with(|| (to(replicas), Vec::new())).1.push(key);
        }
        let lists = at.values().flat_map(|(to, keys)| keys.chunks(SPAN).map(move |keys| (to, keys)));
        let calls = lists.map(|(to, keys)| async move {
            let mut statement = self.prepare(many).await?;
            statement.set_load_balancing_policy(Some(Arc::<ToReplica>::clone(to)));
            // In one page: of several Cassandra reads one partition after the other.
            let attempt = || -> Attempt<'_, _> { Box::pin(self.session.execute_unpaged(&statement, (keys,))) };
            let mut found = Vec::with_capacity(keys.len());
            read_rows(many, self.try_again(many, attempt).await?, &mut found)?;
            Ok(found)
        });
        let found: Vec<Vec<R>> = Self::gather(calls.collect()).await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// The answers of many calls, a bounded number of them at once, in the calls' order.
    ///
    /// # Errors
    /// The first.
    pub async fn gather<T, F: Future<Output = Result<T, E>> + Send, E>(calls: Vec<F>) -> Result<Vec<T>, E> {
        stream::iter(calls).buffered(AT_ONCE).try_collect().await
    }
}

/// Reads a page.
fn read_rows<R>(cql: &str, page: QueryResult, found: &mut Vec<R>) -> Result<(), Error>
where
    R: for<'f> DeserializeRow<'f, 'f>,
{
    let page = page.into_rows_result().map_err(|error| form(cql, &error))?;
    found.reserve(page.rows_num());
    for row in page.rows::<R>().map_err(|error| form(cql, &error))? {
        found.push(row.map_err(|error| form(cql, &error))?);
    }
    Ok(())
}
