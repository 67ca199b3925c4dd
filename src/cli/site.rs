//! `contrail site`: makes, changes and lists sites, rotates their keys, mints tokens; shows and changes their accounts in the Sync API.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use hyper::Method;
use serde_json::{Value, json};

use super::client::{self, Alone, Client};
use crate::config::Config;

#[derive(Subcommand, Debug)]
pub(super) enum SiteCommand {
    /// Make a site; prints its keys once.
    Add(AddArguments),
    /// Change a site's origins, time zone or region, at once; what is not given stays.
    Set(SetArguments),
    /// List the sites.
    List,
    /// Replace a key; the old one stops working at once.
    Rotate(RotateArguments),
    /// Mint a token that opens one object for reading, or the Sync API to somebody.
    Token(TokenArguments),
    /// Show or change a site's account in the Sync API, and its credentials.
    Sync(SyncArguments),
    /// Show or change where a site's objects are mirrored to: a Sync service of Twilio's, or of another Contrail's.
    Mirror(MirrorArguments),
}

#[derive(Args, Debug)]
pub(super) struct AddArguments {
    /// 1 to 64 of a-z, 0-9 and -.
    site: String,
    /// IANA time zone of the shop's days.
    #[arg(long, default_value = "UTC")]
    time_zone: String,
    /// Origin of a browser page that may send and watch, such as `https://shop.example`, or `*` for every one; repeatable.
    #[arg(long = "origin")]
    origins: Vec<String>,
    /// The one region that takes and serves the site, where its data then is; without, every region does.
    #[arg(long)]
    region: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct SetArguments {
    /// The site.
    site: String,
    /// IANA time zone of the shop's days.
    #[arg(long)]
    time_zone: Option<String>,
    /// Origin of a browser page that may send and watch, in place of all before; repeatable.
    #[arg(long = "origin", required_unless_present_any = ["time_zone", "no_origins", "region", "no_region"])]
    origins: Vec<String>,
    /// No page of another origin may send and watch any more.
    #[arg(long, conflicts_with = "origins")]
    no_origins: bool,
    /// The one region that takes and serves the site from now on. What is kept of it elsewhere stays there.
    #[arg(long)]
    region: Option<String>,
    /// Every region takes and serves the site from now on.
    #[arg(long, conflicts_with = "region")]
    no_region: bool,
    /// With --region and --no-region: it is meant that no data is carried over.
    #[arg(long)]
    leave_data: bool,
}

impl SetArguments {
    /// What the server is asked for: only what was given.
    fn asked(&self) -> Value {
        let mut asked = serde_json::Map::new();
        if self.no_origins || !self.origins.is_empty() {
            asked.insert("origins".into(), json!(self.origins));
        }
        if let Some(zone) = &self.time_zone {
            asked.insert("time_zone".into(), json!(zone));
        }
        if self.no_region || self.region.is_some() {
            asked.insert("region".into(), json!(self.region.as_deref().unwrap_or_default()));
            asked.insert("leave_data".into(), json!(self.leave_data));
        }
        asked.into()
    }
}

#[derive(Args, Debug)]
pub(super) struct RotateArguments {
    /// The site.
    site: String,
    /// Which key.
    #[arg(long, value_enum, default_value = "ingest")]
    key: Key,
}

/// The keys a site has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Key {
    /// Servers send with it.
    Ingest,
    /// Browser pages send with it.
    Browser,
    /// Analysts and services read with it.
    Read,
}

#[derive(Args, Debug)]
pub(super) struct TokenArguments {
    /// The site.
    site: String,
    /// The object's name, such as product.sku-1: the token opens it alone, for reading.
    #[arg(long, required_unless_present = "identity", conflicts_with_all = ["identity", "service"])]
    object: Option<String>,
    /// Who is to use the Sync API, such as alice: an access token for Twilio's client libraries.
    #[arg(long)]
    identity: Option<String>,
    /// SID of the service that an access token is for; without, the account's own.
    #[arg(long, value_name = "IS...")]
    service: Option<String>,
    /// How long it works, such as 1h: 1 second to 24 hours. Clients renew an access token three minutes before its end: give it 30 minutes or more.
    #[arg(long, default_value = "1h", value_parser = whole_seconds)]
    ttl: Duration,
}

/// Shortest time of an access token that leaves clients room to renew it.
const SHORT_ACCESS: Duration = Duration::from_secs(30 * 60);

#[derive(Args, Debug)]
pub(super) struct SyncArguments {
    /// The site.
    site: String,
    /// Show the account's auth token too.
    #[arg(long, conflicts_with_all = ["new_key", "remove_key", "rotate_auth_token", "limits", "twilio_auth_token_file"])]
    show_secrets: bool,
    /// Make an API key; shows its secret, once.
    #[arg(long, conflicts_with_all = ["remove_key", "rotate_auth_token", "limits", "twilio_auth_token_file"])]
    new_key: bool,
    /// End an API key at once, and with it the access tokens that it signed.
    #[arg(long, value_name = "SK...", conflicts_with_all = ["rotate_auth_token", "limits", "twilio_auth_token_file"])]
    remove_key: Option<String>,
    /// Replace the auth token; the old one ends at once, and with it the access tokens of `site token`.
    #[arg(long, conflicts_with_all = ["limits", "twilio_auth_token_file"])]
    rotate_auth_token: bool,
    /// Which limits the service has: those that protect the server, or Twilio's too.
    #[arg(long, value_enum, conflicts_with = "twilio_auth_token_file")]
    limits: Option<LimitsProfile>,
    /// File with the auth token of the Twilio account whose Sync webhooks the site takes, or with two while it is changed, a line each; an empty one: take none.
    #[arg(long, value_name = "FILE")]
    twilio_auth_token_file: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(super) struct MirrorArguments {
    /// The site.
    site: String,
    /// File with the URL of the other service, twilio://USER:SECRET@HOST/SERVICE: an account's SID and auth token or an API key's SID and secret; no HOST for
    /// Twilio's own.
    #[arg(long, value_name = "FILE", requires = "objects", conflicts_with = "off")]
    to_file: Option<PathBuf>,
    /// Name of an object to be mirrored, or with * at its end what the names begin with, such as product.* or document:top.sold; repeatable.
    #[arg(long = "object", value_name = "PATTERN", requires = "to_file")]
    objects: Vec<String>,
    /// Mirror nothing any more; what is there stays.
    #[arg(long)]
    off: bool,
}

/// Asks for what is to be shown or changed of a mirror.
async fn mirror(client: &Client, asked: MirrorArguments) -> anyhow::Result<Bytes> {
    let path = format!("/admin/sites/{}/mirror", asked.site);
    if asked.off {
        return client::whole(client.send(Method::DELETE, &path, "").await?).await;
    }
    let Some(file) = &asked.to_file else { return client.get(&path).await };
    let url = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let body = json!({"to": url.trim(), "objects": asked.objects}).to_string();
    client::whole(client.send(Method::PUT, &path, body).await?).await
}

/// Limits that a service can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LimitsProfile {
    /// Those that protect the server.
    Open,
    /// Twilio's too.
    Twilio,
}

/// Asks for what is to be shown or changed of an account.
async fn sync(client: &Client, asked: SyncArguments) -> anyhow::Result<Bytes> {
    let path = format!("/admin/sites/{}/sync", asked.site);
    if asked.new_key {
        return client.post(&format!("{path}/keys"), "").await;
    }
    if let Some(sid) = &asked.remove_key {
        let named = percent_encoding::utf8_percent_encode(sid, percent_encoding::NON_ALPHANUMERIC);
        return client::whole(client.send(Method::DELETE, &format!("{path}/keys/{named}"), "").await?).await;
    }
    if asked.rotate_auth_token {
        return client.post(&format!("{path}/auth_token"), "").await;
    }
    if let Some(file) = &asked.twilio_auth_token_file {
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let tokens: Vec<&str> = text.split_whitespace().collect();
        return client.patch(&path, json!({"twilio_auth_tokens": tokens}).to_string()).await;
    }
    if let Some(limits) = asked.limits {
        return client.patch(&path, json!({"limits": format!("{limits:?}").to_lowercase()}).to_string()).await;
    }
    client.get(&format!("{path}?secrets={}", asked.show_secrets)).await
}

/// A duration that the server can be asked for as it was given; the server says which it allows.
fn whole_seconds(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration.subsec_nanos() == 0 { Ok(duration) } else { Err("give whole seconds".to_owned()) }
}

pub(super) async fn run(config: Config, command: SiteCommand) -> anyhow::Result<ExitCode> {
    let alone = if matches!(command, SiteCommand::Add(_)) { Alone::All } else { Alone::Readers };
    let client = Client::connect(&config, None, alone).await?;
    let answer = match command {
        SiteCommand::Add(a) => {
            let asked = json!({"site": a.site, "time_zone": a.time_zone, "origins": a.origins, "region": a.region});
            client.post("/admin/sites", asked.to_string()).await?
        }
        SiteCommand::Set(a) => client.patch(&format!("/admin/sites/{}", a.site), a.asked().to_string()).await?,
        SiteCommand::List => client.get("/admin/sites").await?,
        SiteCommand::Rotate(a) => {
            let asked = json!({"key": format!("{:?}", a.key).to_lowercase()});
            client.post(&format!("/admin/sites/{}/rotate", a.site), asked.to_string()).await?
        }
        SiteCommand::Token(a) => {
            if a.identity.is_some() && a.ttl < SHORT_ACCESS {
                eprintln!("an access token below 30 minutes leaves clients little time to renew it, and is fit for tests");
            }
            let asked = json!({"object": a.object, "identity": a.identity, "service": a.service, "ttl_seconds": a.ttl.as_secs()});
            client.post(&format!("/admin/sites/{}/tokens", a.site), asked.to_string()).await?
        }
        SiteCommand::Sync(a) => sync(&client, a).await?,
        SiteCommand::Mirror(a) => mirror(&client, a).await?,
    };
    println!("{}", serde_json::to_string_pretty(&serde_json::from_slice::<Value>(&answer)?)?);
    client.close().await?;
    Ok(ExitCode::SUCCESS)
}
