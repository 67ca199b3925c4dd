//! Many ordered sources read as one, a page of each at a time. Used by scans over the partitions of tables by time.

use std::collections::VecDeque;

use futures::future::BoxFuture;

use crate::archive::Error;
use crate::cql::Cluster;

/// Rows of one page of a source, at least.
const PAGE: usize = 32;
/// And at most.
const LONGEST_PAGE: usize = 500;

/// A source and what of it was read and not yet taken.
struct Head<T, K> {
    ready: VecDeque<T>,
    last: Option<K>,
    done: bool,
}

/// The first `want` items of `sources` sources together, by their keys, least first or greatest first. `fetch` gives at most so many items of a
/// source behind a key, in order.
pub(super) async fn merge<'a, T: Send + 'a, K: Ord + Clone + Send + Sync + 'a>(
    sources: usize,
    want: usize,
    greatest_first: bool,
    key: impl Fn(&T) -> K + Send + Sync,
    fetch: impl Fn(usize, Option<K>, usize) -> BoxFuture<'a, Result<Vec<T>, Error>> + Send + Sync,
) -> Result<Vec<T>, Error> {
    let page = (want / sources.max(1) + 1).clamp(PAGE, LONGEST_PAGE);
    let mut heads: Vec<Head<T, K>> = (0..sources).map(|_| Head { ready: VecDeque::new(), last: None, done: false }).collect();
    let mut merged = Vec::new();
    while merged.len() < want {
        let empty: Vec<usize> = heads.iter().enumerate().filter(|(_, head)| head.ready.is_empty() && !head.done).map(|(at, _)| at).collect();
        if !empty.is_empty() {
            let calls: Vec<_> = empty.iter().map(|at| fetch(*at, heads.get(*at).and_then(|head| head.last.clone()), page)).collect();
            let pages = Cluster::gather(calls).await?;
            for (at, items) in empty.into_iter().zip(pages) {
                let Some(head) = heads.get_mut(at) else { continue };
                head.done = items.len() < page;
                head.last = items.last().map(&key).or(head.last.take());
                head.ready = items.into();
            }
        }
        // All have something ready, or nothing more: the best of what is ready is the best of all.
        let ready = heads.iter_mut().filter_map(|head| Some((key(head.ready.front()?), head)));
        let best = if greatest_first { ready.max_by(|a, b| a.0.cmp(&b.0)) } else { ready.min_by(|a, b| a.0.cmp(&b.0)) };
        match best.and_then(|(_, head)| head.ready.pop_front()) {
            Some(item) => merged.push(item),
            None => break,
        }
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sources_come_out_in_order_whatever_their_lengths() {
        let sources: Vec<Vec<u32>> = (0..7u32).map(|n| (0..n * 40).map(|i| i * 7 + n).collect()).collect();
        let mut all: Vec<u32> = sources.concat();
        all.sort_unstable();
        for greatest_first in [false, true] {
            for want in [0, 1, 33, 100, 5_000] {
                let fetch = |at: usize, after: Option<u32>, limit: usize| -> BoxFuture<'static, Result<Vec<u32>, Error>> {
                    let mut items = sources[at].clone();
                    if greatest_first {
                        items.reverse();
                    }
                    items.retain(|item| after.is_none_or(|after| if greatest_first { *item < after } else { *item > after }));
                    items.truncate(limit);
                    Box::pin(async { Ok(items) })
                };
                let merged = merge(sources.len(), want, greatest_first, |item| *item, fetch).await.unwrap();
                assert_eq!(merged, all[..want.min(all.len())], "{want}");
            }
            all.reverse();
        }
    }
}
