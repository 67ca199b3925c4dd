//! The Sync account of site `demo` as its clients hold it, told by the commands that tell people.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::process::Server;

/// What opens the account.
pub(crate) struct Account {
    /// Account SID and auth token, as `Basic` has them.
    pub basic: String,
    /// An access token of realtime clients, for an hour.
    pub token: String,
}

impl Account {
    /// Of a running server.
    pub(crate) fn of(contrail: &Path, server: &Server) -> anyhow::Result<Self> {
        let told = |arguments: &[&str]| -> anyhow::Result<Value> {
            let out = Command::new(contrail).arg("site").args(arguments).arg("--data").arg(&server.data).output()?;
            ensure!(out.status.success(), "site {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
            Ok(serde_json::from_slice(&out.stdout)?)
        };
        let text = |answer: &Value, name: &str| -> anyhow::Result<String> {
            Ok(answer.get(name).and_then(Value::as_str).with_context(|| format!("no {name}"))?.to_owned())
        };
        let account = told(&["sync", "demo", "--show-secrets"])?;
        let credentials = format!("{}:{}", text(&account, "account_sid")?, text(&account, "auth_token")?);
        let token = told(&["token", "demo", "--identity", "load", "--ttl", "1h"])?;
        Ok(Self { basic: STANDARD.encode(credentials), token: text(&token, "token")? })
    }
}
