//! Which nodes began anew: what such a node acknowledged shortly before may be lost, where no other replica has it. Asked by stores before they build
//! on what they wrote.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use scylla::policies::load_balancing::{NodeIdentifier, SingleTargetLoadBalancingPolicy};
use scylla::statement::Consistency;
use scylla::statement::unprepared::Statement;
use uuid::Uuid;

use super::{Cluster, Error};

/// When the node's process began, in seconds, as it tells the others.
const GENERATION: &str = "SELECT gossip_generation FROM system.local";

/// Time for a node's answer. One that has none is asked the next time.
const ANSWER: Duration = Duration::from_secs(1);

/// What is known of the nodes' processes.
#[derive(Debug, Default)]
pub(super) struct Boots {
    generations: Mutex<HashMap<Uuid, i32>>,
    restarts: AtomicU64,
}

impl Cluster {
    /// How many times any node was found to have begun anew since this connected. Asks every node that is connected; one that does not answer counts
    /// once it does again.
    pub async fn restarts(&self) -> u64 {
        let state = self.session.get_cluster_state();
        let hosts: Vec<Uuid> = state.get_nodes_info().iter().filter(|node| node.is_connected()).map(|node| node.host_id).collect();
        let found = futures::future::join_all(hosts.into_iter().map(|host| self.generation(host))).await;
        let mut known = self.boots.generations.lock().unwrap_or_else(PoisonError::into_inner);
        for (host, generation) in found.into_iter().flatten() {
            if known.insert(host, generation).is_some_and(|before| before != generation) {
                tracing::warn!(%host, "a node of the cluster began anew; what it acknowledged last is made good");
                metrics::counter!("contrail_cql_node_restarts_total").increment(1);
                self.boots.restarts.fetch_add(1, Ordering::SeqCst);
            }
        }
        self.boots.restarts.load(Ordering::SeqCst)
    }

    /// By node, when its process began, as far as [`Cluster::restarts`] found so far: kept beside what is written, it tells a later process whether a node began anew
    /// since.
    pub fn boots(&self) -> BTreeMap<Uuid, i32> {
        self.boots.generations.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(host, generation)| (*host, *generation)).collect()
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
