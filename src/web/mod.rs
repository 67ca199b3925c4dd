//! The read side over HTTP. Put together by the composition root; must never append to the log.

pub mod live;
