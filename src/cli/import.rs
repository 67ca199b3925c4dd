//! `contrail import FILE --map MAPPING`: reads, maps, posts in batches, reports. Called by `main`, which hands in where to
//! post. Must never hold more than a few batches, and never end with status 0 when nothing could be read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::import::{BadLine, Fault, MappedEvent, Mapping, MappingError, StartError, Tally, decompressed, read};

/// Most events posted at once.
pub const MAX_BATCH_EVENTS: usize = 1000;
/// Most bytes posted at once, uncompressed; one event of more than that would go alone, but none is made so large.
pub const MAX_BATCH_BYTES: usize = 4 << 20;
/// Messages that wait between the reading thread and the poster; at the bound the reader stops reading.
const QUEUE: usize = 2;

/// What stands on the command line.
#[derive(Clone, Debug, clap::Args)]
pub struct ImportArgs {
    /// The file to read: CSV or NDJSON, plain, gzip or zstd.
    pub file: PathBuf,
    /// The mapping file that says what its columns mean.
    #[arg(long, value_name = "MAPPING")]
    pub map: PathBuf,
    /// End with status 1 if any line is bad or any event is refused.
    #[arg(long)]
    pub strict: bool,
}

/// The answer of `POST /v1/events`, as far as import needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// Events taken.
    pub accepted: u64,
    /// Of those, recognised as known.
    pub duplicates: u64,
    /// Of those, known under another content.
    pub conflicts: u64,
    /// Events not taken.
    pub rejected: Vec<Rejected>,
}

/// One event not taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Rejected {
    /// Its place in the posted array, from 0.
    pub index: usize,
    /// Why, for programs.
    pub code: String,
    /// Why, for people.
    pub message: String,
    /// Where in the event.
    pub pointer: Option<String>,
}

/// Why an import stopped. What was posted before stays; the same command again goes on without counting anything twice.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The mapping file cannot be read.
    #[error("the mapping file {path} cannot be read: {error}")]
    NoMapping {
        /// As given.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// The mapping file is refused.
    #[error(transparent)]
    Mapping(#[from] MappingError),
    /// The file cannot be opened or read to its end.
    #[error("{path} cannot be read: {error}")]
    File {
        /// As given.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// The file does not fit the mapping.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A batch could not be asked about, or not be posted.
    #[error("sending failed at line {line}: {reason}")]
    Post {
        /// First line of the batch that was not posted.
        line: u64,
        /// What the target said.
        reason: String,
    },
    /// The report could not be written.
    #[error("the report cannot be written: {0}")]
    Report(io::Error),
    /// The reading thread died; a defect.
    #[error("the reading thread ended early")]
    Thread,
}

/// What an import did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// What became of the rows.
    pub tally: Tally,
    /// Events made, by type.
    pub by_type: BTreeMap<String, u64>,
    /// Events not posted because the archive holds them.
    pub known: u64,
    /// What the target took.
    pub accepted: u64,
    /// Of those, recognised as known.
    pub duplicates: u64,
    /// Of those, known under another content: kept, not counted.
    pub conflicts: u64,
    /// What the target refused.
    pub rejected: u64,
}

impl Summary {
    /// The exit status: 1 if lines were bad and nothing was taken; with `strict` also if anything at all was refused.
    pub fn exit_status(&self, strict: bool) -> u8 {
        let refused = self.tally.bad + self.rejected;
        let taken = self.accepted + self.duplicates + self.conflicts + self.known;
        u8::from(refused > 0 && (strict || taken == 0))
    }
}

/// What the reading thread sends.
enum Message {
    Batch(Vec<MappedEvent>),
    Bad(BadLine),
    End(Tally),
    Broken(io::Error),
}

/// Imports a file. `already` takes the body of one `POST /v1/events` (a JSON array) and tells which of its events, by their places, the archive holds: these are
/// not posted. `post` takes such a body and gives its answer. Both are the ones to wait and repeat on 503, with the same body, and an error of
/// theirs stops the import. Bad lines, refused events and the summary go to `report`, the progress bar to a terminal's stderr.
pub async fn run<A, P>(args: &ImportArgs, already: A, post: P, report: &mut dyn Write) -> Result<Summary, Error>
where
    A: AsyncFn(String) -> Result<Vec<usize>, String>,
    P: AsyncFn(String) -> Result<Answer, String>,
{
    let text = std::fs::read_to_string(&args.map).map_err(|error| Error::NoMapping { path: args.map.display().to_string(), error })?;
    let mapping = Mapping::parse(&text)?;
    let unreadable = |error| Error::File { path: args.file.display().to_string(), error };
    let file = File::open(&args.file).map_err(unreadable)?;
    let bar = progress_bar(file.metadata().map_or(0, |about| about.len()));
    let (sender, mut receiver) = mpsc::channel(QUEUE);
    let counted = bar.wrap_read(file);
    let reader = tokio::task::spawn_blocking(move || feed(&mapping, counted, &sender));
    let mut summary = Summary::default();
    let mut broken = None;
    while let Some(message) = receiver.recv().await {
        match message {
            Message::Batch(batch) => summary.send(batch, &already, &post, &bar, report).await?,
            Message::Bad(bad) => say(&bar, report, &format!("{bad}"))?,
            Message::End(tally) => summary.tally = tally,
            Message::Broken(error) => broken = Some(error),
        }
    }
    bar.finish_and_clear();
    reader.await.map_err(|_| Error::Thread)??;
    summary.print(report).map_err(Error::Report)?;
    broken.map_or(Ok(summary), |error| Err(unreadable(error)))
}

/// Reads to the end, on a thread of its own; stops when nobody takes the batches any more.
fn feed(mapping: &Mapping, file: impl io::Read + Send + 'static, to: &mpsc::Sender<Message>) -> Result<(), StartError> {
    let plain = match decompressed(file) {
        Ok(plain) => plain,
        Err(error) => {
            let _gone = to.blocking_send(Message::Broken(error));
            return Ok(());
        }
    };
    let mut reading = read(mapping, plain)?;
    let (mut batch, mut bytes) = (Vec::new(), 0);
    let mut broken = None;
    for result in reading.by_ref() {
        let message = match result {
            Ok(event) => {
                let full = batch.len() == MAX_BATCH_EVENTS || bytes + event.json.len() + 1 > MAX_BATCH_BYTES;
                let message = (full && !batch.is_empty()).then(|| Message::Batch(std::mem::take(&mut batch)));
                bytes = event.json.len() + 1 + if message.is_some() { 0 } else { bytes };
                batch.push(event);
                message
            }
            Err(Fault::Line(bad)) => Some(Message::Bad(bad)),
            Err(Fault::Read(error)) => {
                broken = Some(error);
                None
            }
        };
        if let Some(message) = message
            && to.blocking_send(message).is_err()
        {
            return Ok(());
        }
    }
    let rest = (!batch.is_empty()).then_some(Message::Batch(batch));
    for message in rest.into_iter().chain([Message::End(reading.tally())]).chain(broken.map(Message::Broken)) {
        if to.blocking_send(message).is_err() {
            break;
        }
    }
    Ok(())
}

impl Summary {
    async fn send<A, P>(&mut self, batch: Vec<MappedEvent>, already: &A, post: &P, bar: &ProgressBar, report: &mut dyn Write) -> Result<(), Error>
    where
        A: AsyncFn(String) -> Result<Vec<usize>, String>,
        P: AsyncFn(String) -> Result<Answer, String>,
    {
        for event in &batch {
            *self.by_type.entry(event.kind.clone()).or_default() += 1;
        }
        let fresh = self.without_known(batch, already).await?;
        let Some(first) = fresh.first() else { return Ok(()) };
        let answer = post(body(&fresh)).await.map_err(|reason| Error::Post { line: first.line, reason })?;
        self.accepted += answer.accepted;
        self.duplicates += answer.duplicates;
        self.conflicts += answer.conflicts;
        self.rejected += answer.rejected.len() as u64;
        for rejected in &answer.rejected {
            let line = fresh.get(rejected.index).map_or(0, |event| event.line);
            let at = rejected.pointer.as_deref().map(|pointer| format!(" at {pointer}")).unwrap_or_default();
            say(bar, report, &format!("line {line}: refused, {}: {}{at}", rejected.code, rejected.message))?;
        }
        bar.set_message(format!("{} events", self.by_type.values().sum::<u64>()));
        Ok(())
    }

    /// The events of a batch that the archive does not hold.
    async fn without_known<A>(&mut self, batch: Vec<MappedEvent>, already: &A) -> Result<Vec<MappedEvent>, Error>
    where
        A: AsyncFn(String) -> Result<Vec<usize>, String>,
    {
        let Some(first) = batch.first() else { return Ok(batch) };
        let known = already(body(&batch)).await.map_err(|reason| Error::Post { line: first.line, reason })?;
        let known: BTreeSet<usize> = known.into_iter().collect();
        let all = batch.len();
        let fresh: Vec<MappedEvent> = batch.into_iter().enumerate().filter(|(index, _)| !known.contains(index)).map(|(_, event)| event).collect();
        self.known += (all - fresh.len()) as u64;
        Ok(fresh)
    }

    fn print(&self, report: &mut dyn Write) -> io::Result<()> {
        let Tally { rows, skipped, unmatched, bad, events, dropped_groups } = self.tally;
        writeln!(report, "{rows} rows: {events} events, {skipped} rows skipped, {unmatched} taken by no [[event]], {bad} bad lines")?;
        for (kind, events) in &self.by_type {
            writeln!(report, "  {kind}: {events}")?;
        }
        if dropped_groups > 0 {
            writeln!(report, "{dropped_groups} groups dropped: the file ends before they do")?;
        }
        let Self { known, accepted, duplicates, conflicts, rejected, .. } = self;
        writeln!(report, "accepted {accepted} (duplicates {duplicates}, conflicts {conflicts}), already archived {known}, refused {rejected}")
    }
}

/// A batch as the body of one request.
fn body(batch: &[MappedEvent]) -> String {
    let events: Vec<&str> = batch.iter().map(|event| event.json.as_str()).collect();
    format!("[{}]", events.join(","))
}

fn say(bar: &ProgressBar, report: &mut dyn Write, line: &str) -> Result<(), Error> {
    bar.suspend(|| writeln!(report, "{line}")).map_err(Error::Report)
}

fn progress_bar(bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes);
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {msg} ({eta} left)");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::path::Path;

    /// Import of `file` by `mapping`, each under the package's folder; every posted body is kept.
    async fn import(
        mapping: &str,
        file: &Path,
        answer: impl Fn(&[serde_json::Value]) -> Result<Answer, String>,
        known: impl Fn(usize) -> bool,
    ) -> (Result<Summary, Error>, String, Vec<usize>) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let args = ImportArgs { file: root.join(file), map: root.join("mappings").join(mapping), strict: false };
        let posted = RefCell::new(Vec::new());
        let already = async |body: String| {
            let events: Vec<serde_json::Value> = serde_json::from_str(&body).unwrap();
            Ok((0..events.len()).filter(|index| known(*index)).collect())
        };
        let post = async |body: String| {
            assert!(body.len() <= MAX_BATCH_BYTES + 2);
            let events: Vec<serde_json::Value> = serde_json::from_str(&body).unwrap();
            posted.borrow_mut().push(events.len());
            answer(&events)
        };
        let mut report = Vec::new();
        let result = run(&args, already, post, &mut report).await;
        (result, String::from_utf8(report).unwrap(), posted.into_inner())
    }

    fn all_accepted(events: &[serde_json::Value]) -> Result<Answer, String> {
        Ok(Answer { accepted: events.len() as u64, ..Answer::default() })
    }

    fn none(_: usize) -> bool {
        false
    }

    #[tokio::test]
    async fn bad_and_refused_lines_are_named_and_the_rest_goes_on() {
        let refuse_third = |events: &[serde_json::Value]| {
            let rejected = serde_json::json!({"accepted": events.len() - 1, "duplicates": 1, "rejected": [{"index": 2, "code": "invalid", "message": "no", "pointer": "/order"}]});
            Ok(serde_json::from_value(rejected).unwrap())
        };
        let (result, report, posted) = import("onlineretail.toml", Path::new("tests/fixtures/onlineretail.csv"), refuse_third, none).await;
        let summary = result.unwrap();
        assert_eq!(posted, [6]);
        assert_eq!((summary.accepted, summary.duplicates, summary.rejected, summary.tally.bad), (5, 1, 1, 1));
        assert_eq!((summary.exit_status(false), summary.exit_status(true)), (0, 1));
        assert_eq!(
            report,
            "line 15: the quantity is below 1\nline 7: refused, invalid: no at /order\n14 rows: 6 events, 2 rows skipped, 0 taken by no [[event]], 1 bad lines\n  \
             order_completed: 5\n  order_refunded: 1\naccepted 5 (duplicates 1, conflicts 0), already archived 0, refused 1\n"
        );
    }

    #[tokio::test]
    async fn known_events_are_not_posted_and_indexes_still_name_their_lines() {
        let refuse_first = |events: &[serde_json::Value]| {
            Ok(Answer { accepted: events.len() as u64 - 1, rejected: vec![Rejected { index: 0, ..Rejected::default() }], ..Answer::default() })
        };
        // The first two orders, of lines 2 and 5.
        let known = |index| index < 2;
        let (result, report, posted) = import("onlineretail.toml", Path::new("tests/fixtures/onlineretail.csv"), refuse_first, known).await;
        assert_eq!((result.unwrap().known, posted), (2, vec![4]));
        assert!(report.contains("line 7: refused"), "{report}");
        let (result, _, posted) = import("onlineretail.toml", Path::new("tests/fixtures/onlineretail.csv"), all_accepted, |_| true).await;
        assert_eq!((result.unwrap().exit_status(true), posted), (1, vec![]), "the bad line remains bad");
    }

    #[tokio::test]
    async fn batches_keep_to_both_bounds() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let line = |n: usize, slug: &str| {
            format!(r#"{{"ts":"2026-11-20T10:00:00Z","event":"product_viewed","props":{{"product_id":"{n}","slug":"{slug}"}},"path":"/"}}"#)
        };
        let big = "x".repeat(900_000);
        let lines: Vec<String> = (0..2500).map(|n| line(n, "s")).chain((0..6).map(|n| line(n, &big))).collect();
        std::fs::write(file.path(), lines.join("\n")).unwrap();
        let (result, _, posted) = import("zanbil.toml", file.path(), all_accepted, none).await;
        assert_eq!(result.unwrap().accepted, 2506);
        assert_eq!(posted, [1000, 1000, 504, 2]);
    }

    #[tokio::test]
    async fn nothing_readable_ends_with_an_error() {
        let (result, _, _) = import("zanbil.toml", Path::new("tests/fixtures/onlineretail.csv"), all_accepted, none).await;
        assert_eq!(result.unwrap().exit_status(false), 1);
        let (result, _, _) = import("onlineretail.toml", Path::new("tests/fixtures/otto.ndjson"), all_accepted, none).await;
        assert!(matches!(result, Err(Error::Start(_))), "{result:?}");
        let (result, _, _) = import("otto.toml", Path::new("tests/fixtures/missing.ndjson"), all_accepted, none).await;
        assert!(matches!(result, Err(Error::File { .. })), "{result:?}");
        let (result, _, _) = import("missing.toml", Path::new("tests/fixtures/otto.ndjson"), all_accepted, none).await;
        assert!(matches!(result, Err(Error::NoMapping { .. })), "{result:?}");
        let (result, _, _) = import("otto.toml", Path::new("tests/fixtures/otto.ndjson"), |_| Err("the server is gone".into()), none).await;
        assert!(matches!(result, Err(Error::Post { line: 1, .. })), "{result:?}");
        let half = tempfile::NamedTempFile::new().unwrap();
        let whole =
            zstd::encode_all(std::fs::File::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/otto.ndjson")).unwrap(), 0).unwrap();
        std::fs::write(half.path(), &whole[..whole.len() / 2]).unwrap();
        let (result, _, _) = import("otto.toml", half.path(), all_accepted, none).await;
        assert!(matches!(result, Err(Error::File { .. })), "{result:?}");
    }
}
