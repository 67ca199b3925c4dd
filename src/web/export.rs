//! `GET /v1/export`: the archived events of a range, streamed. Built by the composition root beside the reports; holds one page of rows at a time,
//! however slowly its reader reads.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderValue, Response, header};
use axum::routing::get;
use futures::{StreamExt, TryStreamExt, stream};

use super::reports::{Deps, Refusal, parameters, problem};
use crate::archive::Error;
use crate::archive::export::{Export, Format};
use crate::archive::report::time;

/// `GET /v1/export?format=ndjson|csv&from=&to=`; without `from` and `to` all there is.
pub fn router(deps: Deps) -> Router {
    Router::new().route("/v1/export", get(export)).with_state(deps)
}

async fn export(State(deps): State<Deps>, RawQuery(query): RawQuery, request: Request) -> Response<Body> {
    let streamed = match asked(&deps, query.as_deref(), request) {
        Ok(export) => begin(export).await,
        Err(refusal) => Err(refusal),
    };
    streamed.unwrap_or_else(|refusal| refusal.into_response())
}

fn asked(deps: &Deps, query: Option<&str>, request: Request) -> Result<Export, Refusal> {
    let (parts, _) = request.into_parts();
    let site = (deps.authorise)(&parts)?;
    let rules = (deps.rules)(&site);
    let mut export = Export { archive: Arc::clone(&deps.archive), sids: Arc::clone(&deps.sids), site, from: None, to: None, format: Format::Ndjson };
    let off = |parameter, message: String| problem(Error::BadQuestion { parameter, message });
    for (name, value) in parameters(query) {
        match name.as_str() {
            "from" => export.from = Some(time("from", &value, &rules).map_err(problem)?),
            "to" => export.to = Some(time("to", &value, &rules).map_err(problem)?),
            "format" => export.format = Format::parse(&value).ok_or_else(|| off("format", format!("{value:?} is neither ndjson nor csv")))?,
            other => return Err(off("query", format!("{other:?} is no parameter of an export; there are from, to and format"))),
        }
    }
    Ok(export)
}

/// Begins once the first rows are read: an archive that does not answer is told by a status.
async fn begin(export: Export) -> Result<Response<Body>, Refusal> {
    let kind = match export.format {
        Format::Ndjson => "application/x-ndjson",
        Format::Csv => "text/csv; charset=utf-8; header=present",
    };
    let mut rest = Box::pin(export.stream());
    let first = rest.try_next().await.map_err(problem)?;
    // An error midway breaks the chunked body off, so that a reader cannot take a part for the whole.
    let mut response = Response::new(Body::from_stream(stream::iter(first.map(Ok)).chain(rest)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
