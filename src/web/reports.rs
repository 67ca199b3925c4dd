//! Archive over HTTP: reports, timelines, histories and traces. Routed by the composition root beside the other faces; must never decide by itself who may read,
//! and never answer with what is not archived.

use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use axum::routing::get;

use crate::archive::report::{Answer, Question, run};
use crate::archive::timeline::{Page, Paging, history, object_history, timeline, trace};
use crate::archive::view::SidOf;
use crate::archive::{Archive, Error};
use crate::event::{Clock, RulesOf, SiteId, Timestamp};
use crate::problem::Problem;

/// Boxed, since it is rare and large.
pub(super) type Refusal = Box<Problem>;

/// Which site a request may read, or why it may not.
pub type Authorise = Arc<dyn Fn(&Parts) -> Result<SiteId, Refusal> + Send + Sync>;

/// Up to when the archive is complete at the time given: see [`crate::archive::report::fresh_to`].
pub type Freshness = Arc<dyn Fn(Timestamp) -> Pin<Box<dyn Future<Output = Result<Timestamp, Error>> + Send>> + Send + Sync>;

/// What answering takes.
#[derive(Clone)]
pub struct Deps {
    /// Where the answers are.
    pub archive: Arc<dyn Archive>,
    /// Each site's rules.
    pub rules: RulesOf,
    /// What the time is.
    pub clock: Clock,
    /// How far the archive is.
    pub freshness: Freshness,
    /// Who may read what.
    pub authorise: Authorise,
    /// Gives objects' SIDs.
    pub sids: Arc<SidOf>,
}

/// `GET /v1/reports/{name}`, `/v1/customers/{id}/timeline`, `/v1/products/{id}/history`, `/v1/objects/{sid}/history`, `/v1/events/{id}`.
pub fn router(deps: Deps) -> Router {
    Router::new()
        .route("/v1/reports/{name}", get(report))
        .route("/v1/customers/{id}/timeline", get(customer))
        .route("/v1/products/{id}/history", get(product))
        .route("/v1/objects/{sid}/history", get(object))
        .route("/v1/events/{id}", get(event))
        .with_state(deps)
}

async fn report(State(deps): State<Deps>, Path(name): Path<String>, RawQuery(query): RawQuery, request: Request) -> Response<Body> {
    let answer = async {
        let (parts, _) = request.into_parts();
        let site = (deps.authorise)(&parts)?;
        let mut parameters = parameters(query.as_deref());
        let csv = wants_csv(&mut parameters, &parts.headers)?;
        let (rules, now) = ((deps.rules)(&site), deps.clock.now());
        let question = Question::parse(&name, site, &parameters, &rules, now).map_err(problem)?;
        let watermark = (deps.freshness)(now).await.map_err(problem)?;
        let answer = run(&*deps.archive, &rules, &question, now, watermark).await.map_err(problem)?;
        if csv { csv_response(&answer) } else { json_response(&answer) }
    };
    answer.await.unwrap_or_else(|refusal: Refusal| refusal.into_response())
}

async fn customer(State(deps): State<Deps>, Path(id): Path<String>, RawQuery(query): RawQuery, request: Request) -> Response<Body> {
    let answer = async {
        let (site, paging) = paged(&deps, request, query.as_deref())?;
        let rules = (deps.rules)(&site);
        json_response(&timeline(&*deps.archive, &rules, &site, &id, paging, &*deps.sids).await.map_err(problem)?)
    };
    answer.await.unwrap_or_else(|refusal: Refusal| refusal.into_response())
}

async fn product(State(deps): State<Deps>, Path(id): Path<String>, RawQuery(query): RawQuery, request: Request) -> Response<Body> {
    let answer = async {
        let (site, paging) = paged(&deps, request, query.as_deref())?;
        json_response(&history(&*deps.archive, &site, &id, paging, &*deps.sids).await.map_err(problem)?)
    };
    answer.await.unwrap_or_else(|refusal: Refusal| refusal.into_response())
}

async fn object(State(deps): State<Deps>, Path(sid): Path<String>, RawQuery(query): RawQuery, request: Request) -> Response<Body> {
    let answer = async {
        let (site, paging) = paged(&deps, request, query.as_deref())?;
        json_response(&object_history(&*deps.archive, &site, &sid, paging, &*deps.sids).await.map_err(problem)?)
    };
    answer.await.unwrap_or_else(|refusal: Refusal| refusal.into_response())
}

async fn event(State(deps): State<Deps>, Path(id): Path<String>, RawQuery(query): RawQuery, request: Request) -> Response<Body> {
    let answer = async {
        let (site, paging) = paged(&deps, request, query.as_deref())?;
        let page: Page = trace(&*deps.archive, &site, &id, paging, &*deps.sids).await.map_err(problem)?;
        if page.events.is_empty() && paging.after.is_none() {
            let detail = "The archive holds none with this id. One taken a moment ago may not have reached it yet.";
            return Err(Box::new(Problem::new(StatusCode::NOT_FOUND, "event_not_found", "There is no such event.", detail)));
        }
        json_response(&page)
    };
    answer.await.unwrap_or_else(|refusal: Refusal| refusal.into_response())
}

fn paged(deps: &Deps, request: Request, query: Option<&str>) -> Result<(SiteId, Paging), Refusal> {
    let (parts, _) = request.into_parts();
    let site = (deps.authorise)(&parts)?;
    Ok((site, Paging::parse(&parameters(query)).map_err(problem)?))
}

/// The query's pairs; the read token (`token`) and whose objects are meant (`service`) belong to the authorisation.
pub(super) fn parameters(query: Option<&str>) -> Vec<(String, String)> {
    let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs.filter(|(name, _)| name != "token" && name != "service").map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
}

/// Whether CSV is asked for: by `format`, which is taken out, else by `Accept`.
fn wants_csv(parameters: &mut Vec<(String, String)>, headers: &HeaderMap) -> Result<bool, Refusal> {
    let format = parameters.iter().position(|(name, _)| name == "format").map(|at| parameters.remove(at).1);
    match format.as_deref() {
        Some("csv") => Ok(true),
        Some("json") => Ok(false),
        Some(other) => Err(problem(Error::BadQuestion { parameter: "format", message: format!("{other:?} is neither json nor csv") })),
        None => {
            let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
            let mut kinds = accept.map(|kind| kind.split(';').next().unwrap_or_default().trim());
            Ok(kinds.find(|kind| matches!(*kind, "text/csv" | "application/json" | "*/*")) == Some("text/csv"))
        }
    }
}

fn json_response(body: &impl serde::Serialize) -> Result<Response<Body>, Refusal> {
    let bytes = serde_json::to_vec(body).map_err(|e| problem(Error::Store(e.to_string())))?;
    Ok(response("application/json", bytes))
}

/// The rows as CSV; what the answer says about itself stands in `contrail-` headers.
fn csv_response(answer: &Answer) -> Result<Response<Body>, Refusal> {
    let mut response = response("text/csv; charset=utf-8; header=present", answer.csv().map_err(problem)?);
    let facts = [
        ("contrail-watermark", answer.watermark.to_string()),
        ("contrail-lag-seconds", answer.lag_seconds.to_string()),
        ("contrail-exact", answer.exact.to_string()),
        ("contrail-estimates", answer.estimates.join(",")),
    ];
    for (name, value) in facts {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    Ok(response)
}

fn response(kind: &'static str, bytes: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(bytes));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What an archive's error is to the caller. The inner detail of failures is logged, not sent.
pub(super) fn problem(error: Error) -> Refusal {
    Box::new(match error {
        Error::BadQuestion { parameter: "report", message } => {
            Problem::new(StatusCode::NOT_FOUND, "unknown_report", "There is no such report.", format!("report: {message}"))
        }
        Error::BadQuestion { parameter, message } => {
            Problem::new(StatusCode::BAD_REQUEST, "bad_parameter", "A parameter is unknown or out of its range.", format!("{parameter}: {message}"))
        }
        Error::Store(_) | Error::Refused(_) | Error::Log(_) | Error::Closed => {
            tracing::error!(%error, "the archive does not answer");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "archive_unavailable", "The archive does not answer at present.", "Try again later.")
        }
        Error::Corrupt(_) | Error::Lost(_) => {
            tracing::error!(%error, "the archive is damaged");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "archive_damaged", "What is stored cannot be read.", "The server's log says what.")
        }
    })
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::{Value, json};
    use tower::ServiceExt;

    use super::*;
    use crate::archive::shop::{Shop, at, post, site, wait};

    fn get(shop: &Shop, uri: &str, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap, String) {
        let rules = Arc::new(shop.rules.clone());
        let deps = Deps {
            archive: Arc::clone(&shop.archive) as Arc<dyn Archive>,
            rules: Arc::new(move |_| Arc::clone(&rules)),
            clock: Clock::fixed(at("2026-11-20T12:00:00Z")),
            freshness: Arc::new(|now| Box::pin(async move { Ok(now) })),
            authorise: Arc::new(|parts| match parts.headers.get("authorization") {
                Some(_) => Ok(site()),
                None => Err(Box::new(Problem::new(StatusCode::UNAUTHORIZED, "unauthorised", "No token.", ""))),
            }),
            sids: Arc::new(|_, _, name| format!("MP-{name}")),
        };
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        wait(async {
            let response = router(deps).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
            let (parts, body) = response.into_parts();
            let bytes = body.collect().await.unwrap().to_bytes();
            (parts.status, parts.headers, String::from_utf8(bytes.to_vec()).unwrap())
        })
    }

    const ALLOWED: (&str, &str) = ("authorization", "Bearer x");

    fn shop() -> Shop {
        let view = |id: &str, when: &str| post(id, when, "c/1", json!({"type": "product_viewed", "product": {"id": "a b", "name": "فروش"}}));
        Shop::new(&[view("e 1", "2026-11-20T09:00:00Z"), view("e2", "2026-11-20T10:00:00Z")])
    }

    #[test]
    fn a_report_is_json_or_csv() {
        let shop = shop();
        let (status, headers, body) = get(&shop, "/v1/reports/top-viewed?from=2026-11-20&token=x", &[ALLOWED]);
        assert_eq!((status, &headers[header::CONTENT_TYPE]), (StatusCode::OK, &HeaderValue::from_static("application/json")));
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["rows"], json!([{"product_id": "a b", "name": "فروش", "views": 2, "customers": 1}]));
        assert_eq!((&answer["watermark"], &answer["lag_seconds"], &answer["exact"]), (&json!("2026-11-20T12:00:00Z"), &json!(0), &json!(true)));
        let csv = "product_id,name,views,customers\r\na b,فروش,2,1\r\n";
        let (_, headers, body) = get(&shop, "/v1/reports/top-viewed?format=csv", &[ALLOWED]);
        assert_eq!((body.as_str(), &headers["contrail-estimates"]), (csv, &HeaderValue::from_static("customers")));
        assert_eq!(get(&shop, "/v1/reports/top-viewed", &[ALLOWED, ("accept", "text/html, text/csv;q=0.9")]).2, csv);
        assert!(get(&shop, "/v1/reports/top-viewed", &[ALLOWED, ("accept", "application/json, text/csv")]).2.starts_with('{'));
    }

    #[test]
    fn people_products_and_events_are_found_by_their_raw_ids() {
        let shop = shop();
        let ids = |uri: &str| -> Vec<String> {
            let (status, _, body) = get(&shop, uri, &[ALLOWED]);
            assert_eq!(status, StatusCode::OK, "{body}");
            let page: Value = serde_json::from_str(&body).unwrap();
            page["events"].as_array().unwrap().iter().map(|event| event["event_id"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(ids("/v1/customers/c%2F1/timeline"), ["e2", "e 1"]);
        assert_eq!(ids("/v1/products/a%20b/history?limit=1"), ["e2"]);
        assert_eq!(ids("/v1/events/e%201"), ["e 1"]);
    }

    #[test]
    fn refusals_are_problems() {
        let shop = shop();
        for (uri, headers, status, code) in [
            ("/v1/reports/top-viewed", &[][..], 401, "unauthorised"),
            ("/v1/customers/c1/timeline", &[], 401, "unauthorised"),
            ("/v1/objects/ET0123456789abcdef0123456789abcdef/history", &[], 401, "unauthorised"),
            ("/v1/reports/top-shelf", &[ALLOWED], 404, "unknown_report"),
            ("/v1/reports/top-viewed?form=2026", &[ALLOWED], 400, "bad_parameter"),
            ("/v1/reports/top-viewed?format=xml", &[ALLOWED], 400, "bad_parameter"),
            ("/v1/customers/c1/timeline?cursor=x", &[ALLOWED], 400, "bad_parameter"),
            ("/v1/events/nothing", &[ALLOWED], 404, "event_not_found"),
        ] {
            let (found, headers, body) = get(&shop, uri, headers);
            let body: Value = serde_json::from_str(&body).unwrap();
            assert_eq!((found.as_u16(), &body["code"]), (status, &json!(code)), "{uri}");
            assert_eq!(headers[header::CONTENT_TYPE], "application/problem+json");
        }
    }
}
