//! The live tail: the stream `activity` of each site, a sample of what happens now. Published by the router straight to the feed, kept nowhere. Pure
//! but for the samplers' counts; must never show who did it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Applied, AppliedRow};
use crate::event::{Event, Flags, ObjectKey, ObjectKind, Record, SiteId};

/// Messages a second at most, by site; further events are passed over.
const PER_SECOND: u32 = 30;

/// Name of the stream.
const NAME: &str = "activity";

/// Counts what each site was shown this second. Sites are few.
#[derive(Debug, Default)]
pub(super) struct Tail {
    shown: HashMap<SiteId, (Instant, u32)>,
    last_id: u64,
}

/// The stream of a site.
pub(super) fn key(site: &SiteId) -> ObjectKey {
    ObjectKey { site: site.clone(), kind: ObjectKind::Stream, name: NAME.into() }
}

impl Tail {
    /// The message an event makes, unless its site was shown enough this second.
    pub(super) fn sample(&mut self, record: &Record, event: &Event, now: Instant) -> Option<Applied> {
        if record.flags.has(Flags::CRAWLER) {
            return None;
        }
        let (second, shown) = self.shown.entry(record.site.clone()).or_insert((now, 0));
        if now.duration_since(*second) >= Duration::from_secs(1) {
            (*second, *shown) = (now, 0);
        }
        if *shown >= PER_SECOND {
            return None;
        }
        *shown += 1;
        // Ids only grow, over restarts too: a stream has no other order than that of its messages.
        self.last_id = (record.received_at.micros().max(0) as u64).max(self.last_id + 1);
        let (id, at) = (self.last_id, record.received_at);
        let row = AppliedRow { revision: id, event_id: id, began: id, updated_at: at, data: Some(message(event)), ..AppliedRow::default() };
        Some(Applied { rows: vec![row], updated_at: at, ..Applied::new(key(&record.site), 0, id) })
    }
}

/// What happened, where in the shop and in which country; nobody's ids.
fn message(event: &Event) -> Arc<str> {
    let country = event.customer.as_ref().and_then(|customer| customer.location.as_ref()).and_then(|location| location.country.as_ref());
    let mut told = json!({
        "type": event.kind,
        "occurred_at": event.occurred_at,
        "country": country,
        "product": event.product.as_ref().map(|product| json!({"id": product.id, "name": product.name})),
        "page": event.page.as_ref().map(|page| &page.url),
        "query": event.search.as_ref().map(|search| &search.query),
        "step": event.checkout.as_ref().and_then(|checkout| checkout.step.as_ref()),
        "total": event.order.as_ref().and_then(|order| order.total),
    });
    if let Some(fields) = told.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    told.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Channel, KeyKind, RecordKind, Timestamp};

    fn record(flags: u16) -> Record {
        Record {
            kind: RecordKind::Event,
            body_key: 0,
            site: SiteId::parse("demo").unwrap(),
            event_id: "e".into(),
            fingerprint: 0,
            received_at: Timestamp::from_micros(5),
            key_kind: KeyKind::Event,
            key: "e".into(),
            flags: Flags(flags),
            channel: Channel::Server,
            body: bytes::Bytes::new(),
        }
    }

    #[test]
    fn a_second_shows_thirty_and_nobody() {
        let body = br#"{"type":"product_viewed","occurred_at":"2026-11-20T10:00:00Z","customer":{"id":"c1","location":{"country":"DE"}},"product":{"id":"p"}}"#;
        let event = Event::from_body(body).unwrap();
        let (mut tail, now) = (Tail::default(), Instant::now());
        let shown: Vec<Applied> = (0..100).filter_map(|_| tail.sample(&record(0), &event, now)).collect();
        assert_eq!(shown.len(), 30);
        assert!(shown.windows(2).all(|pair| pair[0].event_id < pair[1].event_id));
        let told = shown[0].rows[0].data.as_deref().unwrap();
        assert_eq!(told, r#"{"country":"DE","occurred_at":"2026-11-20T10:00:00Z","product":{"id":"p","name":null},"type":"product_viewed"}"#);
        assert!(tail.sample(&record(0), &event, now + Duration::from_secs(1)).is_some());
        assert!(tail.sample(&record(Flags::CRAWLER), &event, now + Duration::from_secs(1)).is_none());
    }
}
