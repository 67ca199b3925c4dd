//! What the command line prints. Called by the binary's subcommands; must never decide, only show.

pub mod format;
