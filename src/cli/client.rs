//! How commands reach a data directory: over HTTP, to the process that runs on it, or to one started for the command alone. Called by every
//! command that reads or writes events; so each command has one way, tested by the server's own tests.

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

use super::serve;
use crate::app::{self, Running, data};
use crate::config::{Config, Role};

/// A way to the server.
pub struct Client {
    http: hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>,
    address: String,
    token: String,
    site: Option<String>,
    own: Option<Running>,
}

/// Who serves a command when nobody runs on the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alone {
    /// Everything: events sent are mapped and archived before the command ends. Makes a data directory that is missing.
    All,
    /// Readers only, on a data directory that exists; no event is written.
    Readers,
}

impl Client {
    /// Finds the server of `config.data`, or starts one on a free loopback port for as long as this client lives. Where that makes the first site,
    /// its keys go to standard error, for standard output is the command's answer.
    ///
    /// # Errors
    /// When the directory is held by a process whose token cannot be read, or a server cannot start.
    pub async fn connect(config: &Config, site: Option<String>, alone: Alone) -> anyhow::Result<Self> {
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http();
        if let Some(found) = data::running(&config.data)? {
            return Ok(Self { http, address: found.address, token: found.admin_token, site, own: None });
        }
        if alone == Alone::Readers && !config.data.exists() {
            bail!("{}: no such data directory; start a server first, or name another with --data", config.data.display());
        }
        let roles = match alone {
            Alone::All => vec![Role::Ingest, Role::Sync, Role::Archive, Role::Web],
            Alone::Readers => vec![Role::Web],
        };
        let own = app::start(Config { listen: "127.0.0.1:0".into(), roles, ..config.clone() }, app::Options::default()).await?;
        if let Some(keys) = own.first_keys() {
            eprint!("{}", serve::listed(keys));
        }
        Ok(Self { http, address: own.address().to_string(), token: own.admin_token().to_owned(), site, own: Some(own) })
    }

    /// Where the server listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Sends a request and gives the answer as it arrives.
    pub async fn send(&self, method: Method, path: &str, body: impl Into<Bytes>) -> anyhow::Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json");
        if let Some(site) = &self.site {
            request = request.header("x-contrail-site", site);
        }
        let answer = self.http.request(request.body(Full::new(body.into()))?).await;
        answer.with_context(|| format!("asking the server at {}", self.address))
    }

    /// GET, the whole answer; a refusal becomes an error in the server's own words.
    pub async fn get(&self, path: &str) -> anyhow::Result<Bytes> {
        whole(self.send(Method::GET, path, Bytes::new()).await?).await
    }

    /// POST, likewise.
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> anyhow::Result<Bytes> {
        whole(self.send(Method::POST, path, body).await?).await
    }

    /// PATCH, likewise.
    pub async fn patch(&self, path: &str, body: impl Into<Bytes>) -> anyhow::Result<Bytes> {
        whole(self.send(Method::PATCH, path, body).await?).await
    }

    /// POST of events, sent again for as long as the server asks for it: the same ids count once.
    ///
    /// # Errors
    /// A refusal in the server's own words.
    pub async fn deliver(&self, path: &str, body: impl Into<Bytes>) -> anyhow::Result<Bytes> {
        let body = body.into();
        loop {
            let answer = self.send(Method::POST, path, body.clone()).await?;
            if !matches!(answer.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
                return whole(answer).await;
            }
            let asked = answer.headers().get(header::RETRY_AFTER).and_then(|wait| wait.to_str().ok()).and_then(|wait| wait.parse().ok());
            drop(answer);
            tokio::time::sleep(std::time::Duration::from_secs(asked.unwrap_or(1))).await;
        }
    }

    /// Waits until everything accepted so far is routed, kept and archived, as far as the server knows the stores where that stands. What others send meanwhile
    /// is not waited for.
    ///
    /// # Errors
    /// When the server does not answer, or cannot tell.
    pub async fn settle(&self) -> anyhow::Result<()> {
        let mut settling = Settling::default();
        loop {
            let told: Progress = serde_json::from_slice(&self.get("/admin/progress").await?)?;
            if settling.is_over(told) {
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Stops a server started for this command, after what was sent has reached the archive.
    ///
    /// # Errors
    /// When it does not stop cleanly.
    pub async fn close(self) -> anyhow::Result<()> {
        match self.own {
            Some(own) => own.stop().await.map_err(Into::into),
            None => Ok(()),
        }
    }
}

/// The answer of `GET /admin/progress`: offsets by partition; None where the server does not know the store.
#[derive(Deserialize)]
struct Progress {
    ends: Ends,
    reached: Reached,
}

#[derive(Deserialize)]
struct Ends {
    events: Vec<u64>,
    changes: Option<Vec<u64>>,
}

#[derive(Deserialize)]
struct Reached {
    router: Option<Vec<u64>>,
    keeper: Option<Vec<u64>>,
    archiver: Option<Vec<u64>>,
}

/// What is waited for: where events ended at first, and changes when all of those were routed.
#[derive(Default)]
struct Settling {
    events: Option<Vec<u64>>,
    changes: Option<Vec<u64>>,
}

impl Settling {
    fn is_over(&mut self, Progress { ends, reached }: Progress) -> bool {
        let passed = |reached: Option<Vec<u64>>, ends: &[u64]| reached.is_none_or(|reached| reached.iter().zip(ends).all(|(at, end)| at >= end));
        let events = self.events.get_or_insert(ends.events);
        if !passed(reached.router, events) {
            return false;
        }
        let changes = self.changes.get_or_insert(ends.changes.unwrap_or_default());
        passed(reached.keeper, changes) && passed(reached.archiver, events)
    }
}

/// Collects an answer; a refusal becomes an error in the server's own words.
pub async fn whole(answer: Response<Incoming>) -> anyhow::Result<Bytes> {
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    if status.is_success() {
        return Ok(body);
    }
    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let told = problem.get("detail").or_else(|| problem.get("title")).and_then(|t| t.as_str()).unwrap_or("no reason given");
    bail!("{status}: {told}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Answers in turn, and whether each ends the wait.
    fn over(answers: impl IntoIterator<Item = (Value, Value)>) -> Vec<bool> {
        let mut settling = Settling::default();
        let told = |(ends, reached)| serde_json::from_value(json!({"ends": ends, "reached": reached})).unwrap();
        answers.into_iter().map(|answer| settling.is_over(told(answer))).collect()
    }

    #[test]
    fn readers_are_waited_for_up_to_where_the_log_ended_when_asked_first() {
        // The shop goes on: nobody is ever at an end of that moment.
        let waits = over([
            (json!({"events": [5, 3], "changes": [0, 0]}), json!({"router": [5, 2], "keeper": [0, 0], "archiver": [5, 3]})),
            (json!({"events": [9, 9], "changes": [7, 8]}), json!({"router": [5, 3], "keeper": [6, 8], "archiver": [4, 3]})),
            (json!({"events": [12, 9], "changes": [9, 9]}), json!({"router": [8, 5], "keeper": [7, 8], "archiver": [4, 9]})),
            (json!({"events": [15, 9], "changes": [20, 9]}), json!({"router": [9, 5], "keeper": [7, 8], "archiver": [5, 3]})),
        ]);
        assert_eq!(waits, [false, false, false, true]);
    }

    #[test]
    fn a_store_that_the_server_does_not_know_is_not_waited_for() {
        let unknown = json!({"router": null, "keeper": null, "archiver": [4]});
        let archived = json!({"router": null, "keeper": null, "archiver": [5]});
        let ends = || json!({"events": [5], "changes": null});
        assert_eq!(over([(ends(), unknown), (ends(), archived)]), [false, true]);
    }
}
