//! Every operation as clients ask for it, and every refusal.

mod batches;
mod collections;
mod documents;
mod limits;
mod requests;
mod services;
