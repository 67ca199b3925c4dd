//! The read side over HTTP, and the Sync API's faces. Put together by the composition root; must never write to a store, nor to the log but by
//! [`crate::sync::api`].

pub mod export;
pub mod live;
pub mod realtime;
pub mod reports;
pub mod sync;
