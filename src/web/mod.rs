//! The read side over HTTP. Put together by the composition root; must never write, neither to the log nor to a store.

pub mod export;
pub mod live;
pub mod reports;
