//! `contrail site`: makes, changes and lists sites, rotates their keys, mints tokens for one object.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::client::{Alone, Client};
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
    /// Mint a token that opens one object for reading.
    Token(TokenArguments),
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
    /// The object's name, such as product.sku-1.
    #[arg(long)]
    object: String,
    /// How long it works, such as 1h: 1 second to 24 hours.
    #[arg(long, default_value = "1h", value_parser = whole_seconds)]
    ttl: Duration,
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
            let asked = json!({"object": a.object, "ttl_seconds": a.ttl.as_secs()});
            client.post(&format!("/admin/sites/{}/tokens", a.site), asked.to_string()).await?
        }
    };
    println!("{}", serde_json::to_string_pretty(&serde_json::from_slice::<Value>(&answer)?)?);
    client.close().await?;
    Ok(ExitCode::SUCCESS)
}
