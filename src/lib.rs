//! Contrail: a self-hosted activity tracker for e-commerce. Rooms in the data's order; the README walks one event through them.

// The event: parts, ids, wire record, identity.
pub mod event;

// Sites, their keys and tokens: who may do what.
pub mod site;

// From bytes to durable events.
pub mod ingest;

// The log: the only source of truth.
pub mod eventlog;

// Map, merge, live objects, subscribers.
pub mod sync;

// Archive and answers.
pub mod archive;

// What services of the Sync API are told.
pub mod webhooks;

// The signature of webhooks.
pub mod signature;

// Requests to servers elsewhere.
pub mod mirror;
pub mod outbound;

// What readers ask over HTTP.
pub mod web;

// The one JSON error body.
pub mod problem;

// ScyllaDB or Cassandra as the stores on a cluster use it.
#[cfg(feature = "scylla")]
pub mod cql;

// SQLite as both embedded stores use it.
pub mod sqlite;

// Threads that step back.
pub mod background;

// The composition root.
pub mod app;

// Settings.
pub mod config;

// The HTTP listener.
pub mod server;

// Starting and stopping as one.
pub mod shutdown;

// Log lines and metrics.
pub mod telemetry;

// The simulated shop day.
pub mod simulate;

// Mapping files: foreign rows into events.
pub mod import;

// The command line.
pub mod cli;

// Real servers for tests.
#[cfg(test)]
mod testing;
