//! The webhooks of the Sync API's services as the composition root puts them together. Called by `app` alone.

use std::sync::Arc;

use super::Parts;
use crate::event::SiteId;
use crate::outbound::Client;
use crate::web::realtime::Presence;
use crate::webhooks::{Endpoints, Settings, Webhooks};

impl Parts {
    /// The room, yet to be run.
    pub(super) fn webhooks(&self) -> Webhooks {
        let client = Client::new(self.config.sync.webhooks_to_private);
        Webhooks::new(Arc::clone(&self.log), Arc::clone(&self.sites), client, Settings::default())
    }
}

/// Tells webhooks of realtime clients that come and go.
pub(super) fn presence(webhooks: &Webhooks) -> Arc<dyn Presence> {
    Arc::new(Told(webhooks.endpoints()))
}

struct Told(Endpoints);

impl Presence for Told {
    fn connected(&self, site: &SiteId, identity: &str, endpoint: &str) {
        self.0.connected(site, identity, endpoint);
    }

    fn disconnected(&self, site: &SiteId, identity: &str, endpoint: &str) {
        self.0.disconnected(site, identity, endpoint);
    }
}
