//! End to end: the shipped binary, started as a user starts it, spoken to over HTTP, killed as machines kill.

mod harness;
mod http;
