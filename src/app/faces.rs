//! The Sync API's two faces as the composition root puts them together: one desk, the accounts and tokens of `site`, and the realtime connections that are sent
//! to other nodes before this one stops. Called by `app` alone.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Parts;
use crate::shutdown::Failure;
use crate::site::{Limits, Sites, TokenError};
use crate::sync::ObjectStore;
use crate::sync::api::{self, Api};
use crate::sync::reader::Reader;
use crate::web::realtime::{self, Presence, Token, TokenFault, Tokens};
use crate::web::sync::admission::Admission;
use crate::web::sync::{Caller, Desk};
use crate::web::sync_v1;

/// How often rates that nobody needs any longer are forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// The realtime connections of this process.
#[derive(Clone, Default)]
pub(super) struct Realtime {
    stop: CancellationToken,
    connections: TaskTracker,
}

impl Realtime {
    /// Sends every client to another node and waits for them to go, for so long at most.
    pub(super) async fn offload(&self, longest: Duration) {
        self.stop.cancel();
        self.connections.close();
        if tokio::time::timeout(longest, self.connections.wait()).await.is_err() {
            tracing::warn!(left = self.connections.len(), "realtime connections are cut that did not go in time");
        }
    }
}

impl Parts {
    /// The routes of both faces, and what is to be run beside them.
    pub(super) fn faces(
        &self,
        objects: &Arc<dyn ObjectStore>,
        realtime: &Realtime,
        presence: Arc<dyn Presence>,
        stop: CancellationToken,
    ) -> (Router, impl Future<Output = Result<(), Failure>> + Send + 'static + use<>) {
        let admission = Arc::new(Admission::default());
        let desk = Desk {
            reader: Reader::new(Arc::clone(objects), self.expiry()).with_copies(Arc::clone(&self.feed)),
            api: Api::new(Arc::clone(&self.log), Arc::clone(&self.feed), self.clock.clone(), api::Settings::default()),
            feed: Arc::clone(&self.feed),
            clock: self.clock.clone(),
            admission: Arc::clone(&admission),
        };
        let public_url = self.public_url.trim_end_matches('/').to_owned();
        let rest = sync_v1::router(sync_v1::Deps { desk: desk.clone(), sites: Arc::clone(&self.sites), public_url: public_url.clone() });
        let sdks = realtime::router(realtime::Deps {
            desk,
            tokens: tokens_of(Arc::clone(&self.sites)),
            public_url,
            presence: Some(presence),
            stop: realtime.stop.clone(),
            connections: realtime.connections.clone(),
            settings: realtime::Settings::default(),
        });
        let sweeping = async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = tokio::time::sleep(SWEEP_EVERY) => admission.sweep(),
                }
            }
        };
        (rest.merge(sdks), sweeping)
    }
}

/// Opens access tokens of services that are served here.
fn tokens_of(sites: Arc<Sites>) -> Tokens {
    Arc::new(move |token| {
        let opened = sites.open_access_token(token).map_err(|error| match error {
            TokenError::Expired => TokenFault::Expired,
            _ => TokenFault::Invalid,
        })?;
        if sites.elsewhere(&opened.site).is_some() {
            return Err(TokenFault::Invalid);
        }
        let service = &opened.site.service;
        let caller = Caller {
            site: opened.site.id.clone(),
            identity: Some(opened.identity.clone()),
            acl: service.acl_enabled,
            limited: service.limits == Limits::Twilio,
            mapped: opened.site.rules.takes_events,
        };
        Ok(Token {
            caller,
            account_sid: opened.account_sid,
            service_sid: service.sid.clone(),
            identity: opened.identity,
            endpoint: opened.endpoint,
            expires_at: opened.expires_at,
            lifetime: opened.lifetime,
        })
    })
}
