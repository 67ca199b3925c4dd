//! The runs: each starts its own server, measures one thing, and gives its findings. Called by `main` only.

pub(crate) mod cluster;
pub(crate) mod hot;
pub(crate) mod idle;
pub(crate) mod ingest;
pub(crate) mod latency;
pub(crate) mod saturate;
pub(crate) mod smoke;
pub(crate) mod sustain;
pub(crate) mod sync;
