//! Which clients are connected, as far as webhooks tell it: who comes, who goes, and who is back before that is told. Told of by whoever holds the connections,
//! emptied by the room's loop. In memory alone: what a process knows goes with it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::message::Message;
use crate::event::SiteId;
use crate::site::Sites;

/// Messages that may wait for the room's loop; further ones are dropped.
const MOST_TOLD: usize = 10_000;

/// Hears of clients that come and go. Clones share everything.
#[derive(Clone, Debug)]
pub struct Endpoints(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sites: Arc<Sites>,
    known: Mutex<Known>,
    changed: Notify,
}

/// A client: its site, who it is, and which of the clients that are that.
type Endpoint = (SiteId, String, String);

#[derive(Debug, Default)]
struct Known {
    present: HashMap<Endpoint, Present>,
    /// Those that went a moment ago, with when that is told.
    leaving: BTreeSet<(Instant, Endpoint)>,
    told: Vec<(SiteId, Message)>,
}

#[derive(Debug, Default)]
struct Present {
    connections: u32,
    /// Whether it was told that it came.
    is_told: bool,
    /// When it is told that it went.
    leaves_at: Option<Instant>,
}

impl Endpoints {
    pub(super) fn new(sites: Arc<Sites>) -> Self {
        Self(Arc::new(Shared { sites, known: Mutex::default(), changed: Notify::new() }))
    }

    /// A client has opened a session. Each call is to be followed by one of [`Endpoints::disconnected`].
    pub fn connected(&self, site: &SiteId, identity: &str, endpoint: &str) {
        let is_wanted = self.0.sites.get(site).is_some_and(|site| site.service.reachability_webhooks_enabled && site.service.webhook_url.is_some());
        self.known().came((site.clone(), identity.to_owned(), endpoint.to_owned()), is_wanted);
        self.0.changed.notify_one();
    }

    /// Its session has ended.
    pub fn disconnected(&self, site: &SiteId, identity: &str, endpoint: &str) {
        let service = self.0.sites.get(site);
        let debounces = service.as_ref().is_some_and(|site| site.service.reachability_debouncing_enabled);
        let window = service.filter(|_| debounces).map_or(0, |site| site.service.reachability_debouncing_window);
        let at = Instant::now() + Duration::from_millis(u64::from(window));
        self.known().went(&(site.clone(), identity.to_owned(), endpoint.to_owned()), at);
        self.0.changed.notify_one();
    }

    /// Waits until somebody came or went.
    pub(super) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// When somebody's going is to be told next.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.known().leaving.first().map(|(at, _)| *at)
    }

    /// What is to be told by now.
    pub(super) fn take(&self, now: Instant) -> Vec<(SiteId, Message)> {
        let mut known = self.known();
        known.settle(now);
        std::mem::take(&mut known.told)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn came(&mut self, endpoint: Endpoint, is_wanted: bool) {
        let present = self.present.entry(endpoint.clone()).or_default();
        present.connections += 1;
        if present.connections > 1 {
            return;
        }
        if let Some(at) = present.leaves_at.take() {
            self.leaving.remove(&(at, endpoint));
        } else {
            present.is_told = is_wanted;
            if is_wanted {
                self.tell("endpoint_connected", &endpoint);
            }
        }
    }

    /// `at`: when that is told, unless it is back by then.
    fn went(&mut self, endpoint: &Endpoint, at: Instant) {
        let Some(present) = self.present.get_mut(endpoint) else { return };
        present.connections = present.connections.saturating_sub(1);
        if present.connections > 0 {
            return;
        }
        if present.is_told {
            present.leaves_at = Some(at);
            self.leaving.insert((at, endpoint.clone()));
        } else {
            self.present.remove(endpoint);
        }
    }

    fn settle(&mut self, now: Instant) {
        while let Some((at, _)) = self.leaving.first()
            && *at <= now
            && let Some((_, endpoint)) = self.leaving.pop_first()
        {
            self.present.remove(&endpoint);
            self.tell("endpoint_disconnected", &endpoint);
        }
    }

    fn tell(&mut self, what: &'static str, (site, identity, endpoint): &Endpoint) {
        if self.told.len() < MOST_TOLD {
            self.told.push((site.clone(), Message::reached(what, identity, endpoint)));
        } else {
            metrics::counter!("contrail_webhooks_dropped_total", "reason" => "full").increment(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Endpoint {
        (SiteId::parse("demo").unwrap(), "alice".into(), "desk".into())
    }

    fn told(known: &mut Known, now: Instant) -> Vec<String> {
        known.settle(now);
        let told = std::mem::take(&mut known.told);
        told.iter().map(|(_, message)| format!("{message:?}").split("endpoint_").nth(1).unwrap().split('"').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn one_client_is_there_from_its_first_connection_to_its_last() {
        let (mut known, now) = (Known::default(), Instant::now());
        known.came(endpoint(), true);
        known.came(endpoint(), true);
        assert_eq!(told(&mut known, now), ["connected"]);
        known.went(&endpoint(), now);
        assert_eq!(told(&mut known, now), [""; 0]);
        known.went(&endpoint(), now);
        assert_eq!(told(&mut known, now), ["disconnected"]);
        known.went(&endpoint(), now);
        assert!(told(&mut known, now).is_empty() && known.present.is_empty() && known.leaving.is_empty());
    }

    #[test]
    fn who_is_back_in_time_never_went() {
        let (mut known, now) = (Known::default(), Instant::now());
        let later = |millis| now + Duration::from_millis(millis);
        known.came(endpoint(), true);
        known.went(&endpoint(), later(3_000));
        assert_eq!(told(&mut known, later(2_999)), ["connected"]);
        known.came(endpoint(), true);
        assert_eq!(told(&mut known, later(9_000)), [""; 0]);
        known.went(&endpoint(), later(12_000));
        assert_eq!(told(&mut known, later(12_000)), ["disconnected"]);
        assert!(known.present.is_empty() && known.leaving.is_empty());
    }

    #[test]
    fn where_nobody_asked_for_it_nothing_is_told() {
        let (mut known, now) = (Known::default(), Instant::now());
        known.came(endpoint(), false);
        known.went(&endpoint(), now);
        assert!(told(&mut known, now).is_empty() && known.present.is_empty());
    }
}
