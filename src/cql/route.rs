//! Where a request for several partitions goes, which no one token tells: to a replica of all of them, as one for a single partition does.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use rand::seq::IteratorRandom;
use scylla::cluster::{ClusterState, Node, NodeRef};
use scylla::policies::load_balancing::{FallbackPlan, LoadBalancingPolicy, RoutingInfo};
use scylla::routing::Shard;

/// A node with the shard that has what is asked for.
pub(super) type Replica = (Arc<Node>, Shard);

/// A number for replicas and their shards, which are in one order; None where there are none. Two sets that meet in one are taken for the same: slower, and as
/// right.
pub(super) fn home(replicas: &[Replica]) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    replicas.iter().for_each(|(node, shard)| (node.host_id, *shard).hash(&mut hasher));
    Some(hasher.finish()).filter(|_| !replicas.is_empty())
}

/// Any of some replicas that are up; else as another policy has it.
#[derive(Debug)]
pub(super) struct ToReplica {
    replicas: Vec<Replica>,
    otherwise: Arc<dyn LoadBalancingPolicy>,
}

impl ToReplica {
    /// `datacenter`: where else none is asked; empty where it does not matter.
    pub(super) fn new(mut replicas: Vec<Replica>, datacenter: &str, otherwise: Arc<dyn LoadBalancingPolicy>) -> Self {
        replicas.retain(|(node, _)| datacenter.is_empty() || node.datacenter.as_deref() == Some(datacenter));
        Self { replicas, otherwise }
    }
}

impl LoadBalancingPolicy for ToReplica {
    fn pick<'a>(&'a self, request: &'a RoutingInfo<'_>, cluster: &'a ClusterState) -> Option<(NodeRef<'a>, Option<Shard>)> {
        let up = self.replicas.iter().filter(|(node, _)| node.is_connected()).choose(&mut rand::rng());
        up.map(|(node, shard)| (node, Some(*shard))).or_else(|| self.otherwise.pick(request, cluster))
    }

    fn fallback<'a>(&'a self, request: &'a RoutingInfo<'_>, cluster: &'a ClusterState) -> FallbackPlan<'a> {
        self.otherwise.fallback(request, cluster)
    }

    fn name(&self) -> String {
        "ToReplica".into()
    }
}
