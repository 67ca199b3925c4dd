//! End to end: the shipped binary, started as a user starts it, spoken to over HTTP, killed as machines kill.

#![cfg(all(feature = "kafka", feature = "scylla"))]
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that meets the unexpected fails")]

mod accounts;
mod cluster;
mod crash;
mod damage;
mod data;
mod drain;
mod foreign;
mod formats;
mod harness;
mod history;
mod http;
mod inspect;
mod kafka;
mod late;
mod learning;
mod live;
mod mirror;
mod mixes;
mod moving;
mod observe;
mod orders;
mod outages;
mod power;
mod rest;
mod same;
mod scylla;
mod shop;
mod simulated;
mod sites;
mod start;
