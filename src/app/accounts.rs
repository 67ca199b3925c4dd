//! `/admin/sites/{site}/sync...` and `.../mirror`: a site's account in the Sync API, its credentials and access tokens, and where it is mirrored to. Part of `admin`. Secrets stand in an answer only where
//! they are made, or asked for by name.

use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::admin::{Admin, Answer, Refused, failed, named, of_site, refuse};
use crate::event::{PARTITIONS, SiteId, Timestamp};
use crate::site::{self, Limits, ServiceChange, Site, Sites};

/// The routes, for `admin` to guard.
pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route("/admin/sites/{site}/sync", get(shown).patch(set))
        .route("/admin/sites/{site}/sync/keys", post(add_key))
        .route("/admin/sites/{site}/sync/keys/{sid}", delete(remove_key))
        .route("/admin/sites/{site}/sync/auth_token", post(rotate))
        .route("/admin/sites/{site}/mirror", get(mirror).put(set_mirror).delete(end_mirror))
}

/// An access token for a service of the account that a site has or is of, and when it ends.
pub(super) fn access_token(
    sites: &Sites,
    site: &SiteId,
    identity: &str,
    service: Option<&str>,
    seconds: u64,
) -> Result<(String, Timestamp), Refused> {
    let service = match service {
        None => site.clone(),
        Some(sid) => service_of(sites, site, sid)?,
    };
    let token = sites.mint_access_token(&service, identity, Duration::from_secs(seconds), None).map_err(of_site)?;
    let opened = sites.open_access_token(&token).map_err(failed)?;
    Ok((token, opened.expires_at))
}

fn service_of(sites: &Sites, site: &SiteId, sid: &str) -> Result<SiteId, Refused> {
    let account = sites.account_of(site).ok_or_else(|| of_site(site::Error::Unknown(site.clone())))?;
    let service = sites.service(&account, sid).ok_or_else(|| {
        let detail = format!("no service of the account of {site} is {sid}");
        refuse(axum::http::StatusCode::NOT_FOUND, "sync_service_unknown", "There is no such service", detail)
    })?;
    Ok(service.id.clone())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shown {
    #[serde(default)]
    secrets: bool,
}

async fn shown(State(admin): State<Admin>, Path(site): Path<String>, Query(asked): Query<Shown>) -> Answer {
    let id = named(&site)?;
    told(&admin.sites, &id, asked.secrets).map(Json)
}

/// An account as commands are shown it.
fn told(sites: &Sites, id: &SiteId, secrets: bool) -> Result<Value, Refused> {
    let unknown = || of_site(site::Error::Unknown(id.clone()));
    let credentials = sites.sync_credentials(id).ok_or_else(unknown)?;
    let account = sites.account_of(id).ok_or_else(unknown)?;
    let services = sites.services(&account);
    let own = services.iter().find(|service| service.id == *id).ok_or_else(unknown)?;
    let mut told = json!({
        "site": id,
        "account_sid": credentials.account_sid,
        "service_sid": credentials.service_sid,
        "keys": credentials.keys,
        "limits": own.service.limits.name(),
        "twilio_webhooks": !sites.twilio_auth_tokens(id).is_empty(),
        "services": services.iter().map(|site| service(site)).collect::<Vec<_>>(),
    });
    if let (true, Some(told)) = (secrets, told.as_object_mut()) {
        told.insert("auth_token".to_owned(), credentials.auth_token.into());
    }
    Ok(told)
}

fn service(Site { id, service, .. }: &Site) -> Value {
    json!({"site": id, "sid": service.sid, "unique_name": service.unique_name, "friendly_name": service.friendly_name})
}

/// What is left out stays. All else of a service is set by the Sync API itself.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Changed {
    limits: Option<Limits>,
    twilio_auth_tokens: Option<Vec<String>>,
}

async fn set(State(admin): State<Admin>, Path(site): Path<String>, Json(asked): Json<Changed>) -> Answer {
    let id = named(&site)?;
    let change = ServiceChange { limits: asked.limits, ..ServiceChange::default() };
    admin.sites.set_service(&id, change).await.map_err(of_site)?;
    if let Some(tokens) = asked.twilio_auth_tokens {
        admin.sites.set_twilio_auth_tokens(&id, tokens).await.map_err(of_site)?;
    }
    told(&admin.sites, &id, false).map(Json)
}

async fn add_key(State(admin): State<Admin>, Path(site): Path<String>) -> Answer {
    let key = admin.sites.add_sync_key(&named(&site)?).await.map_err(of_site)?;
    Ok(Json(json!({"site": site, "sid": key.sid, "secret": key.secret})))
}

async fn remove_key(State(admin): State<Admin>, Path((site, sid)): Path<(String, String)>) -> Answer {
    let id = named(&site)?;
    admin.sites.remove_sync_key(&id, &sid).await.map_err(of_site)?;
    told(&admin.sites, &id, false).map(Json)
}

async fn rotate(State(admin): State<Admin>, Path(site): Path<String>) -> Answer {
    let token = admin.sites.rotate_auth_token(&named(&site)?).await.map_err(of_site)?;
    Ok(Json(json!({"site": site, "auth_token": token})))
}

async fn mirror(State(admin): State<Admin>, Path(site): Path<String>) -> Answer {
    mirrored(&admin.sites, &named(&site)?).map(Json)
}

/// A site's mirror as commands are shown it.
fn mirrored(sites: &Sites, id: &SiteId) -> Result<Value, Refused> {
    sites.sync_credentials(id).ok_or_else(|| of_site(site::Error::Unknown(id.clone())))?;
    let Some(mirror) = sites.mirror(id) else { return Ok(json!({"site": id, "to": null})) };
    let copied = mirror.copied.len() == usize::from(PARTITIONS);
    let objects: Vec<String> = mirror.objects.iter().map(ToString::to_string).collect();
    Ok(json!({"site": id, "to": mirror.target.shown(), "objects": objects, "copied": copied}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewMirror {
    to: String,
    objects: Vec<String>,
}

async fn set_mirror(State(admin): State<Admin>, Path(site): Path<String>, Json(asked): Json<NewMirror>) -> Answer {
    let id = named(&site)?;
    admin.sites.set_mirror(&id, Some((&asked.to, &asked.objects))).await.map_err(of_site)?;
    mirrored(&admin.sites, &id).map(Json)
}

async fn end_mirror(State(admin): State<Admin>, Path(site): Path<String>) -> Answer {
    let id = named(&site)?;
    admin.sites.set_mirror(&id, None).await.map_err(of_site)?;
    mirrored(&admin.sites, &id).map(Json)
}
