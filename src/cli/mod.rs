//! The command line: one file per subcommand, and what they share. Called by `main` only.

pub mod client;
pub mod demo;
pub mod format;
pub mod import;
mod import_command;
mod migrate;
mod query;
mod serve;
mod site;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Role};
use crate::telemetry;

/// Self-hosted activity tracker for e-commerce.
#[derive(Parser, Debug)]
#[command(name = "contrail", version, about, subcommand_required = false)]
struct Arguments {
    #[command(flatten)]
    shared: Shared,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What every command takes.
#[derive(Args, Debug, Clone, Default)]
pub(crate) struct Shared {
    /// Configuration file (default: contrail.toml where it exists).
    #[arg(long, global = true, value_name = "FILE", env = "CONTRAIL_CONFIG")]
    config: Option<PathBuf>,
    /// Data directory.
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Address and port to listen on.
    #[arg(long, global = true, value_name = "ADDR")]
    listen: Option<String>,
    /// What this process does.
    #[arg(long, global = true, value_name = "ROLES", value_delimiter = ',', value_enum)]
    roles: Vec<Role>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Serve (the default).
    Serve,
    /// Serve a simulated shop day on a fresh directory and show the answers.
    Demo(demo::Arguments),
    /// Read events from a CSV or NDJSON file through a mapping file; safe to repeat.
    Import(import_command::Arguments),
    /// Print one of the reports.
    Report(query::ReportArguments),
    /// Print all that is known of one event.
    Trace(query::TraceArguments),
    /// Print archived events.
    Export(query::ExportArguments),
    /// Recount everything and compare; exits with 1 where anything differs.
    Audit,
    /// Make or change the tables of the clusters that `store` and `archive` name; safe to repeat.
    Migrate,
    /// Carry an embedded data directory into the cluster that the settings name, and audit it there; safe to repeat.
    MigrateData(migrate::DataArguments),
    /// Sites, their keys and tokens.
    #[command(subcommand)]
    Site(site::SiteCommand),
    /// Settings.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Ask the server of the data directory whether it is ready; for container health checks.
    Healthy,
}

#[derive(Subcommand, Debug)]
enum ConfigCommand {
    /// Check every setting and print where the effective ones differ from the defaults.
    Check,
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("contrail: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let config = arguments.shared.load()?;
    let command = arguments.command.unwrap_or(Command::Serve);
    if let Command::Config(ConfigCommand::Check) = command {
        let (file, flags) = arguments.shared.layers();
        let differences = Config::differences(file.as_deref(), std::env::vars(), flags)?;
        println!("{}", if differences.is_empty() { "every setting has its default".to_owned() } else { differences.join("\n") });
        return Ok(ExitCode::SUCCESS);
    }
    // A command's own output is its answer; only servers speak of their doings.
    let filter = if matches!(command, Command::Serve) { config.telemetry.filter.clone() } else { "warn".to_owned() };
    telemetry::start_logging(&filter, config.telemetry.format)?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if config.server.worker_threads > 0 {
        runtime.worker_threads(config.server.worker_threads);
    }
    runtime.enable_all().build()?.block_on(async {
        match command {
            Command::Serve => serve::run(config).await,
            Command::Demo(arguments) => demo::run(config, arguments).await,
            Command::Import(arguments) => import_command::run(config, arguments).await,
            Command::Report(arguments) => query::report(config, arguments).await,
            Command::Trace(arguments) => query::trace(config, arguments).await,
            Command::Export(arguments) => query::export(config, arguments).await,
            Command::Audit => query::audit(config).await,
            Command::Migrate => migrate::run(config).await,
            Command::MigrateData(arguments) => migrate::data(config, arguments).await,
            Command::Site(command) => site::run(config, command).await,
            Command::Healthy => serve::healthy(config).await,
            Command::Config(ConfigCommand::Check) => Ok(ExitCode::SUCCESS),
        }
    })
}

impl Shared {
    fn load(&self) -> anyhow::Result<Config> {
        let (file, flags) = self.layers();
        Ok(Config::load(file.as_deref(), std::env::vars(), flags)?)
    }

    /// The configuration file, where there is one, and the flags as settings.
    fn layers(&self) -> (Option<PathBuf>, toml::Table) {
        let mut flags = toml::Table::new();
        if let Some(data) = &self.data {
            flags.insert("data".into(), data.display().to_string().into());
        }
        if let Some(listen) = &self.listen {
            flags.insert("listen".into(), listen.clone().into());
        }
        if !self.roles.is_empty() {
            let roles: Vec<String> = self.roles.iter().map(|role| format!("{role:?}").to_lowercase()).collect();
            flags.insert("roles".into(), roles.into());
        }
        let beside = PathBuf::from("contrail.toml");
        let file = self.config.clone().or_else(|| beside.exists().then_some(beside));
        (file, flags)
    }
}
