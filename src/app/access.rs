//! Who may read what: read tokens, object tokens and the admin token of commands on this machine, told from a request's head. Handed to the web
//! rooms as functions. Must never log what it compares.

use std::sync::Arc;

use axum::http::request::Parts;
use axum::http::{StatusCode, header};

use crate::event::SiteId;
use crate::problem::Problem;
use crate::site::{Elsewhere, Sites};

/// Tells readers apart. Clones share everything.
#[derive(Clone)]
pub(super) struct Access {
    sites: Arc<Sites>,
}

impl Access {
    pub(super) fn new(sites: Arc<Sites>) -> Self {
        Self { sites }
    }

    /// A reader of a whole site: a read token, or the admin token with the site in `X-Contrail-Site`; with `?service=`, of what is another service of the
    /// site's account instead. Of a site that is served here.
    pub(super) fn reader(&self, parts: &Parts) -> Result<SiteId, Box<Problem>> {
        let token = bearer(parts).ok_or_else(unauthorized)?;
        let named = || parts.headers.get("x-contrail-site").and_then(|site| site.to_str().ok());
        let grant = self.sites.authenticate_read(token).or_else(|| self.sites.authenticate_admin(token, named()));
        let site = &grant.ok_or_else(unauthorized)?.site;
        if let Some(elsewhere) = self.sites.elsewhere(site) {
            return Err(misdirected(&elsewhere));
        }
        let Some(service) = in_query(parts, "service") else { return Ok(site.id.clone()) };
        let found = self.sites.account_of(&site.id).and_then(|account| self.sites.service(&account, &service));
        found.map(|service| service.id.clone()).ok_or_else(no_service)
    }

    /// A reader of one object: who reads the whole site, or an object token in `?token=` or as bearer.
    pub(super) fn object_reader(&self, parts: &Parts, object: &str) -> Result<SiteId, Box<Problem>> {
        let given = in_query(parts, "token");
        let Some(token) = given.as_deref().or_else(|| bearer(parts).filter(|token| token.starts_with("ct_"))) else {
            return self.reader(parts);
        };
        let grant = self.sites.open_object_token(token).ok_or_else(unauthorized)?;
        if grant.object != object {
            return Err(Box::new(Problem::new(
                StatusCode::FORBIDDEN,
                "token_for_another_object",
                "The token opens another object",
                "mint a token for this object",
            )));
        }
        self.sites.elsewhere_of(&grant.site).map_or_else(|| Ok(grant.site), |elsewhere| Err(misdirected(&elsewhere)))
    }

    /// Whether a request comes from this machine's administrator.
    pub(super) fn admin(&self, parts: &Parts) -> Result<(), Box<Problem>> {
        let token = bearer(parts).ok_or_else(unauthorized)?;
        if self.sites.is_admin(token) { Ok(()) } else { Err(unauthorized()) }
    }
}

/// A parameter of the query.
fn in_query(parts: &Parts, wanted: &str) -> Option<String> {
    let mut pairs = url::form_urlencoded::parse(parts.uri.query()?.as_bytes());
    pairs.find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned())
}

/// The token of an `Authorization: Bearer` header.
fn bearer(parts: &Parts) -> Option<&str> {
    let value = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn misdirected(elsewhere: &Elsewhere) -> Box<Problem> {
    Box::new(Problem::elsewhere(elsewhere.region.as_str(), elsewhere.url.as_deref()))
}

fn no_service() -> Box<Problem> {
    let detail = "name one by its SID, as `contrail site sync` lists them";
    Box::new(Problem::new(StatusCode::NOT_FOUND, "service_unknown", "The site's account has no such service", detail))
}

fn unauthorized() -> Box<Problem> {
    let detail = "send a read token as `Authorization: Bearer`, or for one object an object token as `?token=`";
    Box::new(Problem::new(StatusCode::UNAUTHORIZED, "token_unknown", "No token, or one that opens nothing here", detail))
}
