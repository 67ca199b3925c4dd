//! Messages of a stream: told to whoever listens, kept nowhere. Called by the handler.

use super::reply::Reply;
use super::{Asked, Outcome, render};
use crate::event::ObjectKind;
use crate::event::change::Call;
use crate::web::sync::{Fault, MAX_MESSAGE};

impl Asked<'_> {
    pub(super) async fn publish(&self, sid_or_name: &str) -> Outcome {
        let kind = ObjectKind::Stream;
        let data = self.form.data(kind, MAX_MESSAGE)?.ok_or(Fault::NoData(kind))?;
        let sid = format!("TZ{}", uuid::Uuid::from_bytes(rand::random()).simple());
        let shown = render::message(&sid, &data);
        self.desk().change_by(&self.caller, kind, sid_or_name, Call::Publish { sid, data }).await?;
        Ok(Reply::created(shown))
    }
}
