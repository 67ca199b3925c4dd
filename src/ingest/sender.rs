//! VERIFY: from a request's head, who sends and how: credential, browser or server, delivery id, parameters. Called by the handler before the
//! body is read. Pure; must never keep a key.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, Uri, header};
use base64::Engine;

use super::canonical::Sender;
use super::reject::Code;
use crate::event::Timestamp;
use crate::site::{Grant, Kind, Sites};

// Names made once: looked up by text, each would be parsed anew with every request.
const WRITE_KEY: HeaderName = HeaderName::from_static("x-write-key");
const SITE: HeaderName = HeaderName::from_static("x-contrail-site");
const FETCH: [HeaderName; 3] =
    [HeaderName::from_static("sec-fetch-mode"), HeaderName::from_static("sec-fetch-site"), HeaderName::from_static("sec-fetch-dest")];
const DELIVERY: [HeaderName; 2] = [HeaderName::from_static("idempotency-key"), HeaderName::from_static("webhook-id")];

/// The key a request carries: Bearer, else Basic's user name, else `X-Write-Key`.
///
/// # Errors
/// [`Code::KeyMissing`], [`Code::KeyUnknown`].
pub(crate) fn authenticate(headers: &HeaderMap, sites: &Sites) -> Result<Arc<Grant>, Code> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, credential) = value.to_str().ok().and_then(|text| text.trim().split_once(' ')).ok_or(Code::KeyUnknown)?;
        let credential = credential.trim();
        let grant = if scheme.eq_ignore_ascii_case("bearer") {
            let site = headers.get(SITE).and_then(|site| site.to_str().ok());
            sites.authenticate_ingest(credential).or_else(|| sites.authenticate_admin(credential, site))
        } else if scheme.eq_ignore_ascii_case("basic") {
            let decoded = base64::engine::general_purpose::STANDARD.decode(credential).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            decoded.and_then(|pair| sites.authenticate_ingest(pair.split(':').next().unwrap_or("")))
        } else {
            None
        };
        return grant.ok_or(Code::KeyUnknown);
    }
    let key = headers.get(WRITE_KEY).ok_or(Code::KeyMissing)?;
    key.to_str().ok().and_then(|key| sites.authenticate_ingest(key.trim())).ok_or(Code::KeyUnknown)
}

/// What the request's head says of its events.
///
/// A request with an `Origin` comes from a page, and its site must allow that origin, whichever kind of key it uses: a browser key is read by
/// everybody who sees the page, and a server key has no business in a foreign one. A request with a browser key is a browser's even without
/// `Origin`, or whoever read the key could pass for a server.
///
/// # Errors
/// [`Code::OriginNotAllowed`], [`Code::DeliveryIdInvalid`].
pub(crate) fn of_request(headers: &HeaderMap, grant: &Grant, received_at: Timestamp) -> Result<Sender, Code> {
    if let Some(origin) = headers.get(header::ORIGIN)
        && !origin.to_str().is_ok_and(|origin| grant.site.allows_origin(origin))
    {
        return Err(Code::OriginNotAllowed);
    }
    let browsing = headers.contains_key(header::ORIGIN) || FETCH.iter().any(|name| headers.contains_key(name));
    let agent = headers.get(header::USER_AGENT).filter(|_| browsing);
    Ok(Sender {
        site: grant.site.id.clone(),
        received_at,
        browser: browsing || grant.kind == Kind::Browser,
        agent: agent.and_then(|agent| agent.to_str().ok()).filter(|agent| !agent.is_empty()).map(str::to_owned),
        delivery: delivery_id(headers)?,
    })
}

/// What names the request, if anything does. `Idempotency-Key` is a quoted structured-field string, or bare as many send it.
fn delivery_id(headers: &HeaderMap) -> Result<Option<String>, Code> {
    let Some(value) = DELIVERY.iter().find_map(|name| headers.get(name)) else { return Ok(None) };
    let text = value.to_str().map_err(|_| Code::DeliveryIdInvalid)?.trim();
    let id = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    if (1..=255).contains(&id.len()) { Ok(Some(id.to_owned())) } else { Err(Code::DeliveryIdInvalid) }
}

/// Whether the request asks for validation alone: `?dry_run=true`.
///
/// # Errors
/// [`Code::ParameterInvalid`] when it says neither true nor false.
pub(crate) fn dry_run(uri: &Uri) -> Result<bool, Code> {
    let Some(query) = uri.query() else { return Ok(false) };
    let value = query.split('&').filter_map(|pair| pair.split_once('=').or(Some((pair, "")))).find(|(name, _)| *name == "dry_run");
    match value.map(|(_, value)| value) {
        None | Some("false" | "0") => Ok(false),
        Some("true" | "1") => Ok(true),
        Some(_) => Err(Code::ParameterInvalid),
    }
}
