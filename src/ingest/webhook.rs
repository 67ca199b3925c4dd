//! RECEIVE for senders that sign what they send instead of carrying a key: `POST /webhooks/twilio-sync?site=SITE`. In order: limit, read, verify, translate,
//! append, answer. Called by the router. Must never say of a site whether it is there before a signature is found right, nor log bodies or secrets.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Request, Response, Uri, header};
use serde_json::Value;

use super::batch::Batch;
use super::canonical::Sender;
use super::dialects::twilio_sync::{self, Form};
use super::receive::{Answer, InFlight, Refused, count_refused, ok};
use super::reject::Code;
use super::{Ingest, PeerAddress, Room};
use crate::event::SiteId;
use crate::signature;
use crate::site::Site;

/// Names a delivery, the same when it is repeated.
const IDEMPOTENCY: &str = "i-twilio-idempotency-token";

/// `POST /webhooks/twilio-sync`.
pub(super) async fn twilio_sync(State(ingest): State<Ingest>, request: Request<Body>) -> Response<Body> {
    let _guard = InFlight::new(&ingest.0);
    match ingest.0.take_webhook(request).await {
        Ok(answer) => ok(&answer),
        Err(refused) => {
            let mut response = refused.into_response();
            response.headers_mut().remove(header::WWW_AUTHENTICATE);
            response
        }
    }
}

impl Room {
    /// What fails once the signature is found right counts as its site's refusal; before that nobody knows who asks.
    async fn take_webhook(&self, request: Request<Body>) -> Result<Answer, Refused> {
        let (head, body) = request.into_parts();
        let (mut share, mut verified) = (self.budget.share(), None);
        let taken = async {
            if let Some(PeerAddress(address)) = head.extensions.get::<PeerAddress>() {
                self.rates.request(*address)?;
            }
            let body = self.read(&head.headers, body, &mut share).await?;
            let form = Form::parse(&body).map_err(unreadable)?;
            let site = self.signer(&head.uri, &head.headers, &form)?;
            if let elsewhere @ Some(_) = self.deps.sites.elsewhere(&site) {
                return Err(Refused { elsewhere, ..Code::RegionElsewhere.into() });
            }
            let site = &*verified.insert(site);
            let delivery = head.headers.get(IDEMPOTENCY).and_then(|token| token.to_str().ok()).filter(|token| (1..=255).contains(&token.len()));
            let event = twilio_sync::event(&form, delivery).map_err(unreadable)?;
            self.append_webhook(site, &event).await
        };
        taken.await.inspect_err(|refused| {
            count_refused(refused.code);
            if let Some(site) = &verified {
                self.refusals.count(&site.id, refused.code);
            }
        })
    }

    async fn append_webhook(&self, site: &Site, event: &Value) -> Result<Answer, Refused> {
        let sender = Sender { site: site.id.clone(), received_at: self.deps.clock.now(), browser: false, agent: None, delivery: None };
        let batch = Batch::translated(&event.to_string(), &sender, &self.crawlers)
            .ok_or(twilio_sync::Unreadable("the data, which is too large"))
            .map_err(unreadable)?;
        self.rates.events(site.hash, site.hash, batch.events())?;
        self.append(batch, &site.id).await
    }

    /// Whose webhook it is: the site that the URL names, if one of its auth tokens signed it.
    fn signer(&self, uri: &Uri, headers: &HeaderMap, form: &Form) -> Result<Arc<Site>, Code> {
        let query = uri.query().unwrap_or_default();
        let named = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "site").and_then(|(_, site)| SiteId::parse(&site).ok());
        let given = headers.get(signature::HEADER).and_then(|given| given.to_str().ok()).unwrap_or_default();
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let (urls, params) = (configured(self.deps.settings.public_url.trim_end_matches('/'), path), form.pairs());
        let tokens = named.as_ref().map(|site| self.deps.sites.twilio_auth_tokens(site)).unwrap_or_default();
        // Where there is none, the work is done all the same.
        let nobodys = [String::new()];
        let tried = if tokens.is_empty() { &nobodys[..] } else { &tokens[..] };
        let mut is_signed = false;
        for (token, url) in tried.iter().flat_map(|token| urls.iter().map(move |url| (token, url))) {
            is_signed |= signature::is_of(given, token, url, &params);
        }
        is_signed &= !tokens.is_empty();
        named.filter(|_| is_signed).and_then(|site| self.deps.sites.get(&site)).ok_or(Code::SignatureInvalid)
    }
}

fn unreadable(twilio_sync::Unreadable(what): twilio_sync::Unreadable) -> Refused {
    Refused { detail: format!("missing, or not what it should be: {what}").into(), ..Code::WebhookUnreadable.into() }
}

/// The URL as it may have been configured: the port that is its scheme's own may be written or left out, and either is what was signed.
fn configured(public_url: &str, path: &str) -> Vec<String> {
    let mut urls = vec![format!("{public_url}{path}")];
    for (scheme, port) in [("http://", ":80"), ("https://", ":443")] {
        let Some(rest) = public_url.strip_prefix(scheme) else { continue };
        let (host, below) = rest.split_at_checked(rest.find('/').unwrap_or(rest.len())).unwrap_or((rest, ""));
        if let Some(bare) = host.strip_suffix(port) {
            urls.push(format!("{scheme}{bare}{below}{path}"));
        } else if host.rsplit(']').next().is_some_and(|end| !end.contains(':')) {
            urls.push(format!("{scheme}{host}{port}{below}{path}"));
        }
    }
    urls
}

#[cfg(test)]
mod tests;
