//! What a process answers to a path that none of its roles serves: which role does, so that whoever routes requests can mend it. Called by `app` alone.

use axum::http::StatusCode;
use axum::response::Response;

use crate::config::Role;
use crate::problem::Problem;

/// Which role serves the paths that begin so.
const SERVED_BY: [(&str, Role, &str); 11] = [
    ("/v1/events", Role::Ingest, "ingest"),
    ("/admin/known", Role::Ingest, "ingest, and archive or web"),
    ("/v1/live/", Role::Web, "web"),
    ("/v1/Services", Role::Web, "web"),
    ("/v3/wsconnect", Role::Web, "web"),
    ("/v1/reports/", Role::Web, "web"),
    ("/v1/export", Role::Web, "web"),
    ("/v1/customers/", Role::Web, "web"),
    ("/v1/products/", Role::Web, "web"),
    ("/v1/objects/", Role::Web, "web"),
    ("/v1/events/", Role::Web, "web"),
];

/// The answer to a path that nothing here serves.
pub(super) fn unknown_path(path: &str, roles: &[Role]) -> Response {
    let served = SERVED_BY.iter().rev().find(|(prefix, ..)| path.starts_with(prefix));
    match served {
        Some((_, role, named)) if !roles.contains(role) || path == "/admin/known" => missing(named).into_response(),
        _ => Problem::new(StatusCode::NOT_FOUND, "path_unknown", "Nothing is served under this path", "see the README for the paths there are")
            .into_response(),
    }
}

/// The answer where another process has what is asked for.
pub(super) fn missing(roles: &str) -> Problem {
    let detail = format!("ask a process with the roles: {roles}");
    Problem::new(StatusCode::NOT_FOUND, "role_missing", "This process has not the role that serves this path", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_path_of_another_role_names_it() {
        let told = async |path: &str, roles: &[Role]| {
            let answer = unknown_path(path, roles);
            assert_eq!(answer.status(), StatusCode::NOT_FOUND);
            let body = axum::body::to_bytes(answer.into_body(), 1 << 16).await.unwrap();
            let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
            (problem["code"].as_str().unwrap().to_owned(), problem["detail"].as_str().unwrap().to_owned())
        };
        let missing = |roles: &str| ("role_missing".to_owned(), format!("ask a process with the roles: {roles}"));
        assert_eq!(told("/v1/events", &[Role::Web]).await, missing("ingest"));
        assert_eq!(told("/v1/events/e1", &[Role::Ingest]).await, missing("web"));
        assert_eq!(told("/v1/reports/top-viewed", &[Role::Archive, Role::Sync]).await, missing("web"));
        assert_eq!(told("/admin/known", &[Role::Ingest]).await, missing("ingest, and archive or web"));
        assert_eq!(told("/v1/reports/top-viewed", &[Role::Web]).await.0, "path_unknown");
        assert_eq!(told("/elsewhere", &[Role::Ingest]).await.0, "path_unknown");
    }
}
