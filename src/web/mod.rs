//! The read side over HTTP. Put together by the composition root; must never append to the log.

pub mod live;
//! The read side over HTTP. Built by the composition root; must never write, neither to the log nor to a store.

pub mod reports;
