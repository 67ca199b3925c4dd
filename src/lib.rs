//! Contrail: a self-hosted activity tracker for e-commerce. Modules in the data's order.

/// The event: parts, ids, wire record, identity.
pub mod event;
/// The log: the only source of truth.
pub mod eventlog;
/// Checks, translates, validates, identifies, appends; only then answers.
pub mod ingest;
/// The one JSON error body.
pub mod problem;
/// The simulated shop day of demo and loadtest.
pub mod simulate;
/// Who may do what.
pub mod site;
/// SQLite as both embedded stores use it.
pub mod sqlite;
/// Map, merge, live objects, subscribers.
pub mod sync;
/// Read side over HTTP.
pub mod web;
