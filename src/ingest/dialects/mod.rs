//! TRANSLATE: one file per sender's language, each bytes to events. Pure.

pub(crate) mod native;
pub(crate) mod twilio_sync;
