//! End to end: the shipped binary, started as a user starts it, spoken to over HTTP, killed as machines kill.

mod crash;
mod damage;
mod data;
mod drain;
mod harness;
mod http;
mod inspect;
mod live;
mod orders;
mod same;
mod shop;
mod simulated;
mod start;
