//! Contrail: a self-hosted activity tracker for e-commerce. Modules in the data's order.

/// Archive and answers.
pub mod archive;
/// What the command line prints.
pub mod cli;
/// The event: parts, ids, wire record, identity.
pub mod event;
/// The log: the only source of truth.
pub mod eventlog;
/// Checks, translates, validates, identifies, appends; only then answers.
pub mod ingest;
/// The one JSON error body.
pub mod problem;
/// Who may do what.
pub mod site;
/// SQLite as both embedded stores use it.
pub mod sqlite;
/// Map, merge, live objects, subscribers.
pub mod sync;
/// The read side over HTTP.
pub mod web;
