//! Contrail: a self-hosted activity tracker for e-commerce. Modules in the data's order.

/// Archive and answers.
pub mod archive;
/// The commands.
pub mod cli;
/// The event: parts, ids, wire record, identity.
pub mod event;
/// The log: the only source of truth.
pub mod eventlog;
/// A shop's past, by mapping file, as canonical events.
pub mod import;
/// SQLite as both embedded stores use it.
pub mod sqlite;
/// Map, merge, live objects, subscribers.
pub mod sync;
