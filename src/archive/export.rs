//! Streams events out of the archive as NDJSON or CSV. Called by `contrail export` and the web; holds one page of rows at a time, whatever the range.

use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;

use super::view::{EventView, SidOf};
use super::{Archive, Error, Scan, ScanBy};
use crate::event::{Channel, SiteId, Timestamp};

/// Rows read at once: with bodies of 1 MiB each, the most an export holds is 128 MiB.
const PAGE: usize = 128;

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line, as [`EventView`].
    Ndjson,
    /// RFC 4180 with a header; lists and the event itself are JSON text.
    Csv,
}

impl Format {
    /// The format of this name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "ndjson" => Some(Self::Ndjson),
            "csv" => Some(Self::Csv),
            _ => None,
        }
    }
}

/// The columns of a CSV export.
pub const COLUMNS: [&str; 15] = [
    "event_id",
    "type",
    "occurred_at",
    "received_at",
    "verdict",
    "channel",
    "flags",
    "customer",
    "visitor",
    "products",
    "objects",
    "sids",
    "partition",
    "offset",
    "event",
];

/// What is exported.
#[derive(Clone)]
pub struct Export {
    /// From where.
    pub archive: Arc<dyn Archive>,
    /// Gives objects' SIDs.
    pub sids: Arc<SidOf>,
    /// Whose events.
    pub site: SiteId,
    /// From this `occurred_at` (inclusive); None = from the first.
    pub from: Option<Timestamp>,
    /// To this `occurred_at` (exclusive); None = to the last.
    pub to: Option<Timestamp>,
    /// How they are written.
    pub format: Format,
}

/// How far a stream is.
struct Progress {
    export: Export,
    after: Option<(Timestamp, u16, u64)>,
    begun: bool,
    done: bool,
}

impl Export {
    /// The events in (occurred_at, partition, offset) order, some at a time; ends after the first error.
    pub fn stream(self) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static {
        let progress = Progress { export: self, after: None, begun: false, done: false };
        futures::stream::try_unfold(progress, |mut progress| async move {
            let chunk = progress.next().await?;
            Ok(chunk.map(|chunk| (chunk, progress)))
        })
    }
}

impl Progress {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if self.done {
            return Ok(None);
        }
        let Export { archive, sids, site, from, to, format } = &self.export;
        let scan = Scan { from: *from, to: *to, by: ScanBy::All, newest_first: false, after: self.after, limit: PAGE };
        let rows = archive.scan(site, &scan).await?;
        self.done = rows.len() < PAGE;
        self.after = rows.last().map(|row| (row.occurred_at, row.partition, row.offset));
        let header = *format == Format::Csv && !std::mem::replace(&mut self.begun, true);
        let views: Vec<EventView> = rows.into_iter().map(|row| EventView::new(row, sids.as_ref())).collect();
        let chunk = match format {
            Format::Ndjson => ndjson(&views)?,
            Format::Csv => csv(&views, header)?,
        };
        Ok(if chunk.is_empty() { None } else { Some(chunk.into()) })
    }
}

fn ndjson(views: &[EventView]) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    for view in views {
        serde_json::to_writer(&mut out, view).map_err(|e| Error::Store(format!("JSON: {e}")))?;
        out.push(b'\n');
    }
    Ok(out)
}

fn csv(views: &[EventView], header: bool) -> Result<Vec<u8>, Error> {
    let failed = |e: csv::Error| Error::Store(format!("CSV: {e}"));
    let mut out = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    if header {
        out.write_record(COLUMNS).map_err(failed)?;
    }
    for view in views {
        out.write_record(record(view)).map_err(failed)?;
    }
    out.into_inner().map_err(|e| Error::Store(format!("CSV: {e}")))
}

fn record(view: &EventView) -> [String; COLUMNS.len()] {
    let list = |parts: Vec<&str>| serde_json::Value::from(parts).to_string();
    let channel = match view.channel {
        Channel::Pixel => "pixel",
        Channel::Server => "server",
        Channel::Webhook => "webhook",
    };
    [
        view.event_id.clone(),
        view.kind.clone(),
        view.occurred_at.to_string(),
        view.received_at.to_string(),
        view.verdict.to_owned(),
        channel.to_owned(),
        list(view.flags.clone()),
        view.customer.clone().unwrap_or_default(),
        view.visitor.clone().unwrap_or_default(),
        list(view.products.iter().map(String::as_str).collect()),
        list(view.objects.iter().map(|object| object.name.as_deref().unwrap_or_default()).collect()),
        list(view.objects.iter().map(|object| object.sid.as_str()).collect()),
        view.partition.to_string(),
        view.offset.to_string(),
        view.event.as_ref().map_or_else(String::new, |event| event.get().to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;
    use serde_json::{Value, json};

    use super::super::shop::{Post, Shop, at, post, site, wait};
    use super::*;

    fn export(shop: &Shop, format: Format, from: Option<Timestamp>) -> String {
        let export = Export {
            archive: Arc::clone(&shop.archive) as Arc<dyn Archive>,
            sids: Arc::new(|_, _, name| format!("MP-{name}")),
            site: site(),
            from,
            to: Some(at("2026-11-21T00:00:00Z")),
            format,
        };
        let chunks: Vec<Bytes> = wait(export.stream().try_collect()).unwrap();
        String::from_utf8(chunks.concat()).unwrap()
    }

    fn posts(number: usize) -> Vec<Post> {
        let body = |n: usize| json!({"type": "product_viewed", "product": {"id": format!("p{n}"), "name": "A, \"b\"\nفروش"}});
        (0..number).map(|n| post(&format!("e{n:04}"), &at("2026-11-20T00:00:00Z").plus_seconds(n as i64).to_string(), "c1", body(n))).collect()
    }

    #[test]
    fn ndjson_has_every_event_once_in_order_over_any_number_of_pages() {
        for number in [0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE] {
            let shop = Shop::new(&posts(number));
            let lines: Vec<Value> = export(&shop, Format::Ndjson, None).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let ids: Vec<_> = lines.iter().map(|line| line["event_id"].as_str().unwrap().to_owned()).collect();
            assert_eq!(ids, (0..number).map(|n| format!("e{n:04}")).collect::<Vec<_>>());
        }
    }

    #[test]
    fn csv_quotes_and_reads_back() {
        let shop = Shop::new(&posts(PAGE + 2));
        let text = export(&shop, Format::Csv, Some(at("2026-11-20T00:00:01Z")));
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        assert_eq!(reader.headers().unwrap().iter().collect::<Vec<_>>(), COLUMNS);
        let records: Vec<_> = reader.records().map(Result::unwrap).collect();
        assert_eq!(records.len(), PAGE + 1);
        assert_eq!((&records[0][0], &records[0][9], &records[0][11]), ("e0001", r#"["p1"]"#, r#"["MP-product.p1"]"#));
        let event: Value = serde_json::from_str(&records[0][14]).unwrap();
        assert_eq!(event["product"]["name"], "A, \"b\"\nفروش");
        assert_eq!(export(&Shop::new(&[]), Format::Csv, None).lines().count(), 1, "a header at least");
    }
}
