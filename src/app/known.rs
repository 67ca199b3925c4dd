//! `POST /admin/known`: which events of a body the archive keeps already. Asked by `contrail import` before it posts them, so that importing
//! again changes nothing, however late. The body is read by the very code that takes events, so that each is looked for by the id, fingerprint and time it
//! would be stored by. Must never append.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router, middleware};
use bytes::Bytes;
use serde_json::json;

use super::access::Access;
use super::admin;
use crate::archive::{Archive, Kept, Sought};
use crate::event::identity::has_business_key;
use crate::event::{Event, Flags, Record};
use crate::ingest::{Ingest, MAX_BODY_BYTES};

/// What the route works on.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) access: Access,
    pub(super) ingest: Ingest,
    pub(super) archive: Arc<dyn Archive>,
}

impl Known {
    pub(super) fn router(self) -> Router {
        Router::new()
            .route("/admin/known", post(known))
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .layer(middleware::from_fn_with_state(self.access.clone(), admin::guard))
            .with_state(self)
    }
}

/// A valid event of the body: its place there, its record and what it is looked for by.
type Asked = (usize, Record, Sought);

async fn known(State(state): State<Known>, head: Parts, body: Bytes) -> Response {
    let site = match state.access.reader(&head) {
        Ok(site) => site,
        Err(problem) => return problem.into_response(),
    };
    let records = match state.ingest.rehearse(&site, body).await {
        Ok(records) => records,
        Err(refused) => return refused.into_response(),
    };
    let asked = match tokio::task::spawn_blocking(move || sought(records)).await {
        Ok(asked) => asked,
        Err(error) => return admin::failed(error).into_response(),
    };
    let sought: Vec<Sought> = asked.iter().map(|(_, _, sought)| sought.clone()).collect();
    match state.archive.kept(&site, &sought).await {
        Ok(kept) => Json(json!({"known": found(&asked, &kept)})).into_response(),
        Err(error) => admin::unanswered(error).into_response(),
    }
}

/// What each record is looked for by. Where arrival made the time, a former arrival made another one, of whatever day. (An event that was too far ahead then
/// and is not now is looked for on its own day, and not found.)
fn sought(records: Vec<(usize, Record)>) -> Vec<Asked> {
    let asked = records.into_iter().filter_map(|(index, record)| {
        let event = Event::from_body(&record.body).ok()?;
        let made = record.flags.has(Flags::NO_OCCURRED_AT) || record.flags.has(Flags::CLAMPED);
        let day = (!made).then(|| event.occurred_at.utc_day());
        let sought = Sought { event_id: record.event_id.clone(), day };
        Some((index, record, sought))
    });
    asked.collect()
}

/// The places of the events that are kept. A worse channel's report of an order, refund or step does not stand for a better one's.
fn found(asked: &[Asked], kept: &[Kept]) -> Vec<usize> {
    let mut by_report: HashMap<(&str, u64), Vec<&Kept>> = HashMap::new();
    for kept in kept {
        by_report.entry((&kept.event_id, kept.fingerprint)).or_default().push(kept);
    }
    let is_kept = |record: &Record| {
        let reports = by_report.get(&(record.event_id.as_str(), record.fingerprint)).map_or(&[][..], Vec::as_slice);
        reports.iter().any(|kept| kept.key_kind == record.key_kind && (kept.channel >= record.channel || !has_business_key(&kept.kind)))
    };
    asked.iter().filter(|(_, record, _)| is_kept(record)).map(|(index, ..)| *index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Channel, KeyKind, RecordKind, SiteId, Timestamp};

    fn record(kind: &str, flags: u16) -> Record {
        Record {
            kind: RecordKind::Event,
            body_key: 0,
            site: SiteId::parse("demo").unwrap(),
            event_id: "e".into(),
            fingerprint: 7,
            received_at: Timestamp::ZERO,
            key_kind: KeyKind::Order,
            key: "o".into(),
            flags: Flags(flags),
            channel: Channel::Server,
            body: format!("{{\"type\":\"{kind}\",\"occurred_at\":\"2026-11-20T10:00:00Z\"}}").into(),
        }
    }

    fn kept(kind: &str, channel: Channel) -> Kept {
        Kept {
            event_id: "e".into(),
            fingerprint: 7,
            key_kind: KeyKind::Order,
            kind: kind.into(),
            channel,
            occurred_at: Timestamp::ZERO,
            partition: 1,
            offset: 2,
        }
    }

    #[test]
    fn a_time_made_at_arrival_is_looked_for_in_every_day() {
        let day = Timestamp::parse("2026-11-20T10:00:00Z").unwrap().utc_day();
        for (flags, expected) in [(0, Some(day)), (Flags::CRAWLER, Some(day)), (Flags::NO_OCCURRED_AT, None), (Flags::CLAMPED, None)] {
            let asked = sought(vec![(3, record("x", flags))]);
            assert_eq!(asked[0].2, Sought { event_id: "e".into(), day: expected }, "{flags}");
        }
    }

    #[test]
    fn the_same_report_is_known_unless_it_comes_by_a_better_channel() {
        let known = |kind: &str, kept: Kept| !found(&sought(vec![(3, record(kind, 0))]), &[kept]).is_empty();
        assert!(known("order_completed", kept("order_completed", Channel::Server)));
        assert!(known("order_completed", kept("order_completed", Channel::Webhook)));
        assert!(!known("order_completed", kept("order_completed", Channel::Pixel)));
        assert!(known("page_viewed", kept("page_viewed", Channel::Pixel)), "an event's first report stands, whatever its channel");
        assert!(!known("page_viewed", Kept { fingerprint: 8, ..kept("page_viewed", Channel::Server) }));
        assert!(!known("page_viewed", Kept { event_id: "f".into(), ..kept("page_viewed", Channel::Server) }));
        assert!(!known("page_viewed", Kept { key_kind: KeyKind::Event, ..kept("page_viewed", Channel::Server) }));
    }
}
