//! The one JSON error body of every HTTP answer but the Sync API's own: RFC 9457 `application/problem+json`. Used by ingest and web.
//! Must never carry a payload, a secret or an id of a person.

use std::borrow::Cow;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;

/// What went wrong, for the program (`code`) and for people (`title`, `detail`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Always `urn:contrail:problem:<code>`: names the problem, leads nowhere.
    #[serde(rename = "type")]
    pub kind: String,
    /// One sentence about the code, the same for each occurrence.
    pub title: Cow<'static, str>,
    /// The HTTP status, repeated.
    pub status: u16,
    /// Stable name of the problem, snake_case.
    pub code: &'static str,
    /// About this occurrence.
    pub detail: Cow<'static, str>,
    /// JSON pointer into the request's body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// Byte offset into the (decoded) request body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<usize>,
    /// The region that would have done what was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Where that region is reached, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region_url: Option<String>,
}

impl Problem {
    /// A problem without place.
    pub fn new(status: StatusCode, code: &'static str, title: impl Into<Cow<'static, str>>, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind: format!("urn:contrail:problem:{code}"),
            title: title.into(),
            status: status.as_u16(),
            code,
            detail: detail.into(),
            pointer: None,
            offset: None,
            region: None,
            region_url: None,
        }
    }

    /// A site is of another region than this node: nothing of it is taken or served here.
    pub fn elsewhere(region: &str, url: Option<&str>) -> Self {
        let place = url.map(|url| format!(": {url}")).unwrap_or_default();
        let detail = format!("The site is pinned to region {region}. Ask there{place}; nothing was stored here.");
        let title = "The site is of another region.";
        let problem = Self::new(StatusCode::MISDIRECTED_REQUEST, "region_elsewhere", title, detail);
        Self { region: Some(region.to_owned()), region_url: url.map(str::to_owned), ..problem }
    }

    /// The answer that says this.
    pub fn into_response(self) -> Response<Body> {
        let status = self.status;
        respond(status, &self)
    }
}

/// The answer whose body is `problem`, or a structure that flattens one and adds members.
pub fn respond(status: u16, problem: &impl Serialize) -> Response<Body> {
    // Plain data always serialises; an empty body with the right status would still be an answer.
    let body = serde_json::to_vec(problem).unwrap_or_default();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if matches!(status, 429 | 503) {
        // Whoever knows better replaces it.
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_those_of_rfc_9457_and_ours() {
        let mut problem = Problem::new(StatusCode::BAD_REQUEST, "body_not_json", "The body is not JSON.", "expected a value");
        problem.offset = Some(7);
        let value = serde_json::to_value(&problem).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"type": "urn:contrail:problem:body_not_json", "title": "The body is not JSON.", "status": 400,
                "code": "body_not_json", "detail": "expected a value", "offset": 7})
        );
        let response = problem.into_response();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
    }
}
