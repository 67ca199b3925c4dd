//! A client of the Sync API's REST face.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::harness::Server;
use crate::http::{Answer, Connection};

/// The account of site `demo`, as a REST client holds it.
pub(crate) struct Client {
    address: String,
    sid: String,
    token: String,
    basic: String,
}

impl Client {
    pub(crate) fn of_demo(server: &Server) -> Self {
        let account = server.admin("GET", "/admin/sites/demo/sync?secrets=true", b"").json();
        let [sid, token] = ["account_sid", "auth_token"].map(|name| account[name].as_str().unwrap_or_else(|| panic!("{account}")).to_owned());
        let basic = format!("Basic {}", STANDARD.encode(format!("{sid}:{token}")));
        Self { address: server.address.clone(), sid, token, basic }
    }

    /// What HTTP's `Basic` says.
    pub(crate) fn basic(&self) -> &str {
        &self.basic
    }

    /// User and password, as they stand in a URL.
    pub(crate) fn user(&self) -> String {
        format!("{}:{}", self.sid, self.token)
    }

    pub(crate) fn ask(&self, method: &str, path: &str, form: &[(&str, &str)]) -> Answer {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let headers = [("authorization", self.basic.as_str()), ("content-type", "application/x-www-form-urlencoded")];
        Connection::open(&self.address).unwrap().call(method, &format!("/v1/Services{path}"), &headers, body.as_bytes()).unwrap()
    }

    /// A call that must be answered with this status.
    pub(crate) fn call(&self, method: &str, path: &str, form: &[(&str, &str)], status: u16) -> Value {
        let answer = self.ask(method, path, form);
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        if answer.body.is_empty() { Value::Null } else { answer.json() }
    }

    /// All of a collection, page by page.
    pub(crate) fn all(&self, path: &str, of: &str) -> Vec<Value> {
        self.all_if_there(path, of).unwrap_or_else(|| panic!("{path} is not there"))
    }

    /// The same of an object that may have lapsed since it was listed.
    pub(crate) fn all_if_there(&self, path: &str, of: &str) -> Option<Vec<Value>> {
        let (mut all, mut query) = (Vec::new(), "PageSize=100".to_owned());
        loop {
            let answer = self.ask("GET", &format!("{path}?{query}"), &[]);
            if answer.status == 404 {
                return None;
            }
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
            let page = answer.json();
            all.extend(page[of].as_array().unwrap().iter().cloned());
            match page["meta"]["next_page_url"].as_str() {
                Some(next) => query = next.split_once('?').unwrap().1.to_owned(),
                None => return Some(all),
            }
        }
    }
}
