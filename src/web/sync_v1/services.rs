//! Services of an account: listed, made, changed, deleted. Called by the handler.

use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use axum::http::request::Parts;
use futures::StreamExt;

use super::form::{Params, number};
use super::paging::{Edge, Page};
use super::render::Shown;
use super::reply::Reply;
use super::{Asked, Deps, Outcome, page_of, query_of};
use crate::event::ObjectKind;
use crate::event::change::Call;
use crate::site::{self, Account, ServiceChange, ServiceFault, Site};
use crate::sync::reader::MAX_LISTED;
use crate::sync::{Refusal, Seek, Verdict};
use crate::web::sync::{Caller, Desk, Fault, SYSTEM};

/// Objects of a deleted service that are removed at once.
const REMOVED_AT_ONCE: usize = 32;
/// How long a request removes objects at most; repeated, it goes on.
const REMOVING: Duration = Duration::from_secs(20);
/// The same of what was created meanwhile: the service is gone already, and the client waits.
const REMOVING_LATE: Duration = Duration::from_secs(2);

/// All services of an account, or a new one.
pub(super) async fn of_account(deps: &Deps, account: &Account, parts: &Parts, form: &Params, method: &Method) -> Outcome {
    if *method == Method::GET {
        return list(deps, account, parts);
    }
    let made = deps.sites.add_service(account, change_of(form)?).await.map_err(refused)?;
    Ok(Reply::created(Shown::new(&deps.public_url, &made.service).service()))
}

/// The account's own service, then the others as they were made.
fn list(deps: &Deps, account: &Account, parts: &Parts) -> Outcome {
    let page = Page::of(&query_of(parts)?)?;
    let all = deps.sites.services(account);
    let at = |sid: &str| all.iter().position(|site| site.service.sid == sid).ok_or(Fault::PageToken);
    let most = page.size + 1;
    let found: Vec<&Arc<Site>> = match &page.edge {
        Edge::Start => all.iter().take(most).collect(),
        Edge::After(sid) => all.iter().skip(at(sid)? + 1).take(most).collect(),
        Edge::Before(sid) => all.iter().take(at(sid)?).rev().take(most).collect(),
    };
    let window = page.window(found, |site| site.service.sid.clone(), |_| 0);
    let entries: Vec<String> = window.entries.iter().map(|site| Shown::new(&deps.public_url, &site.service).service()).collect();
    Ok(Reply::ok(page_of(deps, parts, &page, "", "services", &entries, (window.previous.as_ref(), window.next.as_ref()))))
}

impl Asked<'_> {
    pub(super) async fn set_service(&self) -> Outcome {
        let change = change_of(&self.form)?;
        if change == ServiceChange::default() {
            return Err(Fault::NothingToUpdate);
        }
        let changed = self.deps.sites.set_service(&self.service.id, change).await.map_err(refused)?;
        Ok(Reply::ok(Shown::new(&self.deps.public_url, &changed.service).service()))
    }

    /// Removes the service's objects, then the service. Where that fails, or takes too long for one request, the service is there still, with fewer objects:
    /// the request is to be repeated. Objects that others create meanwhile are removed after the service. One that is created in the last moment, or by
    /// another process before it knows (within a second), may be left; nobody can reach it.
    pub(super) async fn remove_service(&self) -> Outcome {
        if self.service.account.is_none() {
            return Err(Fault::OwnService);
        }
        let emptying = async || {
            for kind in [ObjectKind::Document, ObjectKind::List, ObjectKind::Map, ObjectKind::Stream] {
                remove_objects(self.desk(), &self.caller, kind).await?;
            }
            Ok::<(), Fault>(())
        };
        tokio::time::timeout(REMOVING, emptying()).await.map_err(|_| Fault::Unavailable)??;
        self.deps.sites.remove_service(&self.service.id).await.map_err(refused)?;
        let emptied = tokio::time::timeout(REMOVING_LATE, emptying()).await.is_ok_and(|emptied| emptied.is_ok());
        tracing::info!(site.id = %self.service.id, emptied, "a service was deleted");
        Ok(Reply::done())
    }
}

/// Removes all objects of a kind, whatever the service's rates are.
async fn remove_objects(desk: &Desk, caller: &Caller, kind: ObjectKind) -> Result<(), Fault> {
    let mut after: Option<String> = None;
    loop {
        let seek = after.as_deref().map_or(Seek::First, Seek::After);
        let (found, rest) = desk.list(caller, kind, seek, MAX_LISTED).await?;
        let removals = found.into_iter().map(|(key, _)| async move {
            let answer = desk.api.call(&key, SYSTEM, vec![Call::Remove { if_revision: None }]).await?;
            match answer.verdicts.first() {
                Some(Verdict::Done { .. } | Verdict::Refused(Refusal::NoObject)) => Ok(()),
                _ => Err(Fault::Unanswered),
            }
        });
        let mut removals = futures::stream::iter(removals).buffer_unordered(REMOVED_AT_ONCE);
        while let Some(removed) = removals.next().await {
            removed?;
        }
        match rest {
            Some(rest) => after = Some(rest),
            None => return Ok(()),
        }
    }
}

/// What a form asks to be replaced of a service. An empty webhook URL is none.
fn change_of(form: &Params) -> Result<ServiceChange, Fault> {
    let window = match form.get("ReachabilityDebouncingWindow") {
        None => None,
        Some(text) => {
            Some(number(text).and_then(|window| u32::try_from(window).ok()).ok_or_else(|| refused(site::Error::Service(ServiceFault::Window)))?)
        }
    };
    Ok(ServiceChange {
        friendly_name: form.get("FriendlyName").map(str::to_owned),
        webhook_url: form.get("WebhookUrl").map(|url| (!url.is_empty()).then(|| url.to_owned())),
        webhooks_from_rest_enabled: form.flag("WebhooksFromRestEnabled")?,
        reachability_webhooks_enabled: form.flag("ReachabilityWebhooksEnabled")?,
        acl_enabled: form.flag("AclEnabled")?,
        reachability_debouncing_enabled: form.flag("ReachabilityDebouncingEnabled")?,
        reachability_debouncing_window: window,
        limits: None,
    })
}

/// What it means that a service could not be changed.
fn refused(error: site::Error) -> Fault {
    match error {
        site::Error::Service(ServiceFault::WebhookUrl) => Fault::WebhookUrl,
        site::Error::Service(ServiceFault::FriendlyName) => Fault::FriendlyName,
        site::Error::Service(ServiceFault::Window) | site::Error::TooManyServices => Fault::Parameter(error.to_string().into()),
        site::Error::OwnService(_) => Fault::OwnService,
        site::Error::Unknown(_) => Fault::NoService,
        error => {
            tracing::warn!(%error, "a service could not be changed");
            Fault::Unanswered
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::SiteId;

    #[test]
    fn a_form_says_what_is_replaced() {
        let change = |text: &str| change_of(&Params::parse(text.as_bytes()).unwrap());
        assert_eq!(change("Other=1"), Ok(ServiceChange::default()));
        assert_eq!(
            change(
                "FriendlyName=a&WebhookUrl=https%3A%2F%2Fa.example&AclEnabled=true&WebhooksFromRestEnabled=false&ReachabilityDebouncingWindow=1000"
            ),
            Ok(ServiceChange {
                friendly_name: Some("a".into()),
                webhook_url: Some(Some("https://a.example".into())),
                acl_enabled: Some(true),
                webhooks_from_rest_enabled: Some(false),
                reachability_debouncing_window: Some(1_000),
                ..ServiceChange::default()
            })
        );
        assert_eq!(change("WebhookUrl="), Ok(ServiceChange { webhook_url: Some(None), ..ServiceChange::default() }));
        for text in ["AclEnabled=1", "ReachabilityDebouncingWindow=x", "ReachabilityDebouncingWindow=99999999999"] {
            assert!(matches!(change(text), Err(Fault::Parameter(_))), "{text}");
        }
        assert_eq!(refused(site::Error::Unknown(SiteId::parse("a").unwrap())), Fault::NoService);
    }
}
