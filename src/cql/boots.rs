//! Which nodes began anew: what such a node acknowledged shortly before may be lost, where no other replica has it. Asked by stores before they build
//! on what they wrote.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use scylla::policies::load_balancing::{NodeIdentifier, SingleTargetLoadBalancingPolicy};
use scylla::statement::Consistency;
use scylla::statement::unprepared::Statement;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Cluster, Error};

/// When the node's process began, in seconds, as it tells the others.
const GENERATION: &str = "SELECT gossip_generation FROM system.local";

/// Time for a node's answer. One that has none is asked the next time.
const ANSWER: Duration = Duration::from_secs(1);

/// For how long an answer holds: no node dies and is back within so short a time, and one that only dies breaks its connections, so that writes fail.
const HOLDS: Duration = Duration::from_millis(200);

/// What is known of the nodes' processes.
#[derive(Debug, Default)]
pub(super) struct Boots {
    generations: Mutex<HashMap<Uuid, i32>>,
    restarts: AtomicU64,
    /// When the nodes were asked last.
    asked: Mutex<Option<Instant>>,
    /// Whether the nodes that there were at the start have been asked: one that tells for the first time later may have begun anew meanwhile.
    begun: AtomicBool,
}

/// How often nodes that do not tell are asked again at the start, and the pause between.
const FIRST_ASKED: usize = 20;
const ASKED_AGAIN: Duration = Duration::from_millis(250);

impl Cluster {
    fn connected(&self) -> Vec<Uuid> {
        self.session.get_cluster_state().get_nodes_info().iter().filter(|node| node.is_connected()).map(|node| node.host_id).collect()
    }

    /// Learns when the nodes' processes began; what one does not tell in time counts as begun anew later.
    pub(super) async fn learn_boots(&self) {
        for _ in 0..FIRST_ASKED {
            self.restarts().await;
            if self.boots().is_some() {
                break;
            }
            tokio::time::sleep(ASKED_AGAIN).await;
        }
        self.boots.begun.store(true, Ordering::SeqCst);
    }

    /// How many times any node was found to have begun anew, or to be new, since this connected. Asks every node that is connected, unless it did a moment ago; one
    /// that does not answer counts once it does again.
    pub async fn restarts(&self) -> u64 {
        let last = *self.boots.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < HOLDS) {
            return self.boots.restarts.load(Ordering::SeqCst);
        }
        let asking = Instant::now();
        let hosts = self.connected();
        let begun = self.boots.begun.load(Ordering::SeqCst);
        let found = futures::future::join_all(hosts.into_iter().map(|host| self.generation(host))).await;
        let all = found.iter().all(Option::is_some);
        *self.boots.asked.lock().unwrap_or_else(PoisonError::into_inner) = all.then_some(asking);
        let mut known = self.boots.generations.lock().unwrap_or_else(PoisonError::into_inner);
        for (host, generation) in found.into_iter().flatten() {
            if known.insert(host, generation).map_or(begun, |before| before != generation) {
                tracing::warn!(%host, "a node of the cluster began anew; what it acknowledged last is made good");
                metrics::counter!("contrail_cql_node_restarts_total").increment(1);
                self.boots.restarts.fetch_add(1, Ordering::SeqCst);
            }
        }
        self.boots.restarts.load(Ordering::SeqCst)
    }

    /// By node, when its process began, as [`Cluster::restarts`] found: kept beside what is written, it tells a later process whether a node began anew since. None
    /// where a connected node did not tell yet.
    pub fn boots(&self) -> Option<BTreeMap<Uuid, i32>> {
        let known = self.boots.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let all = !known.is_empty() && self.connected().iter().all(|host| known.contains_key(host));
        all.then(|| known.iter().map(|(host, generation)| (*host, *generation)).collect())
    }

    async fn generation(&self, host: Uuid) -> Option<(Uuid, i32)> {
        let mut statement = Statement::new(GENERATION).with_page_size(1);
        statement.set_load_balancing_policy(Some(SingleTargetLoadBalancingPolicy::new(NodeIdentifier::HostId(host), None)));
        statement.set_consistency(Consistency::One);
        statement.set_request_timeout(Some(ANSWER));
        let asked = Box::pin(self.session.query_unpaged(statement, ())).await;
        let answer = asked.ok()?.into_rows_result().map_err(|error| Error::Form(error.to_string())).ok()?;
        answer.first_row::<(i32,)>().ok().map(|(generation,)| (host, generation))
    }
}
