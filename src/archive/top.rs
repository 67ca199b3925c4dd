//! The dashboard's documents: `top.searches`, `top.sold`, `top.pages`, `top.viewed` and `funnel` of each site's local day, as full replacements appended
//! to `changes`. Run by the archiver as its own task, so that archiving never waits for it; must never take more than a tenth of the time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Archive, Bots, CELL_SECONDS, CellValue, Error, Label, Metric};
use crate::event::change::{Op, Origin, Stamp};
use crate::event::{Change, Clock, Currency, ObjectKey, ObjectKind, PARTITIONS, RulesOf, SiteId, SiteRules, Timestamp};
use crate::eventlog::{Append, EventLog, Topic};

/// Rows of each document.
const ROWS: usize = 20;

/// A publication rests at least so many times as long as it took.
const REST: u32 = 10;

/// How often sites are looked at although nothing happened: their day may have ended.
const LOOK: Duration = Duration::from_secs(60);

/// How often it is asked whether other archivers have written, where there are such.
const ASK: Duration = Duration::from_secs(1);

/// Which sites have news, told by the archiver to the publisher.
#[derive(Debug, Default)]
pub struct Touched {
    sites: Mutex<BTreeSet<SiteId>>,
    /// The partitions of `events` that this archiver owns; who owns 0 publishes.
    owned: Mutex<BTreeSet<u16>>,
    news: Notify,
}

impl Touched {
    /// Something was written of these sites.
    pub fn note<'a>(&self, sites: impl Iterator<Item = &'a SiteId>) {
        let mut known = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        for site in sites {
            if !known.contains(site) {
                known.insert(site.clone());
            }
        }
        drop(known);
        self.news.notify_one();
    }

    /// Whether this archiver owns a partition.
    pub fn own(&self, partition: u16, owned: bool) {
        let mut all = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        if owned {
            all.insert(partition)
        } else {
            all.remove(&partition)
        };
    }

    /// The partitions that others own, where this archiver publishes.
    fn elsewhere(&self) -> Option<Vec<u16>> {
        let all = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        all.contains(&0).then(|| (0..PARTITIONS).filter(|partition| !all.contains(partition)).collect())
    }

    fn take(&self) -> BTreeSet<SiteId> {
        std::mem::take(&mut *self.sites.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Publishes the documents.
pub struct Publisher {
    /// `changes` is appended to.
    pub log: Arc<dyn EventLog>,
    /// What is summed.
    pub archive: Arc<dyn Archive>,
    /// Time zones and steps.
    pub rules: RulesOf,
    /// Which day it is.
    pub clock: Clock,
    /// Which sites have news.
    pub touched: Arc<Touched>,
    /// Least time between two publications.
    pub every: Duration,
}

/// What was published last of a site: each document's data, and the day.
#[derive(Default)]
struct Published {
    day: Option<Timestamp>,
    data: HashMap<&'static str, String>,
}

impl Publisher {
    /// Publishes until `stop`. A failure is logged and made good by the next publication.
    pub async fn run(self, stop: CancellationToken) {
        let mut published: BTreeMap<SiteId, Published> = BTreeMap::new();
        let mut others = BTreeMap::new();
        let mut looked = Instant::now();
        loop {
            let wait = if self.touched.elsewhere().is_some_and(|others| !others.is_empty()) { ASK } else { LOOK };
            let news = tokio::select! {
                () = stop.cancelled() => return,
                () = self.touched.news.notified() => true,
                () = tokio::time::sleep(wait) => looked.elapsed() >= LOOK,
            };
            let began = Instant::now();
            match self.touched.elsewhere() {
                Some(elsewhere) => {
                    if self.hear(&elsewhere, &mut others).await || news {
                        looked = began;
                        self.publish(&mut published).await;
                    }
                }
                // Another one publishes meanwhile.
                None => published.clear(),
            }
            let rest = self.every.max(began.elapsed() * REST);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// Whether other archivers have written since this was asked last, by where their partitions are. Of which sites, only the archive could tell: all.
    async fn hear(&self, elsewhere: &[u16], others: &mut BTreeMap<u16, u64>) -> bool {
        if elsewhere.is_empty() {
            others.clear();
            return false;
        }
        let asked = async {
            let cursors = self.archive.cursors().await?;
            let now: BTreeMap<u16, u64> = (0..).zip(&cursors).map(|(partition, cursor)| (partition, cursor.next)).collect();
            let moved = elsewhere.iter().any(|partition| others.get(partition) != now.get(partition));
            if moved {
                self.touched.note(self.archive.sites().await?.iter());
            }
            *others = now;
            Ok::<bool, Error>(moved)
        };
        asked.await.unwrap_or_else(|error| {
            tracing::debug!(%error, "whether other archivers have news for the dashboards is not known; asked again");
            false
        })
    }

    /// Publishes what changed of the sites with news, and of those whose day has ended.
    async fn publish(&self, published: &mut BTreeMap<SiteId, Published>) {
        let now = self.clock.now();
        let mut sites = self.touched.take();
        let ended = published.iter().filter(|(site, last)| last.day != Some(day_of(now, &(self.rules)(site)).0));
        sites.extend(ended.map(|(site, _)| site.clone()));
        for site in sites.into_iter().filter(|site| (self.rules)(site).takes_events) {
            let last = published.entry(site.clone()).or_default();
            if let Err(error) = self.publish_site(&site, now, last).await {
                tracing::warn!(site.id = %site, %error, "the dashboard's documents were not published; the next change tries again");
                metrics::counter!("contrail_archiver_top_failures_total").increment(1);
                self.touched.note(std::iter::once(&site));
            }
        }
    }

    async fn publish_site(&self, site: &SiteId, now: Timestamp, last: &mut Published) -> Result<(), Error> {
        let rules = (self.rules)(site);
        // The cursors first: what is summed after them includes at least what they say.
        let version = self.archive.cursors().await?.iter().map(|cursor| cursor.next).sum();
        let (start, end) = day_of(now, &rules);
        let mut appends = Vec::new();
        let mut changed = Vec::new();
        for (name, data) in documents(self.archive.as_ref(), site, &rules, start, end).await? {
            let data = data.to_string();
            if last.data.get(name) == Some(&data) {
                continue;
            }
            let key = ObjectKey { site: site.clone(), kind: ObjectKind::Document, name: name.to_owned() };
            let partition = key.partition();
            let stamp = Stamp { at: now, id: String::new() };
            let change = Change { key, origin: Origin::Archive { version }, received_at: now, stamp, ops: vec![Op::Replace { data: data.clone() }] };
            appends.push(Append { partition, value: change.to_bytes() });
            changed.push((name, data));
        }
        last.day = Some(start);
        if appends.is_empty() {
            return Ok(());
        }
        metrics::counter!("contrail_archiver_top_documents_total").increment(appends.len() as u64);
        self.log.append(Topic::Changes, appends).await?;
        last.data.extend(changed);
        Ok(())
    }
}

/// The site's local day that `now` lies in, on cell borders.
fn day_of(now: Timestamp, rules: &SiteRules) -> (Timestamp, Timestamp) {
    let zone = jiff::tz::TimeZone::get(&rules.time_zone).unwrap_or(jiff::tz::TimeZone::UTC);
    let local = jiff::Timestamp::from_microsecond(now.micros()).unwrap_or_default().to_zoned(zone);
    let start = local.start_of_day().ok();
    let end = start.as_ref().and_then(|start| start.tomorrow().ok());
    let at = |time: Option<jiff::Zoned>| time.map(|time| Timestamp::from_micros(time.timestamp().as_microsecond()).floor_to_seconds(CELL_SECONDS));
    let start = at(start).unwrap_or(now.floor_to_seconds(86_400));
    (start, at(end).unwrap_or(start.plus_seconds(86_400)))
}

/// All documents of a day.
async fn documents(
    archive: &dyn Archive,
    site: &SiteId,
    rules: &SiteRules,
    start: Timestamp,
    end: Timestamp,
) -> Result<Vec<(&'static str, Value)>, Error> {
    let totals = async |metric| archive.totals(site, metric, start, end, Bots::Exclude).await;
    let day = start.to_string();
    let mut all = Vec::new();
    let top = greatest(totals(Metric::Searches).await?, ROWS);
    let spellings = labels_of(archive, site, Label::Spelling, &top).await?;
    let rows = top.iter().map(|(term, value)| {
        let [searches, _] = value.counts;
        json!({ "query": spellings.get(term).unwrap_or(term), "searches": searches, "customers": value.people.estimate() })
    });
    all.push(("top.searches", json!({ "day": day, "rows": rows.collect::<Vec<_>>() })));
    let top = greatest(totals(Metric::Views).await?, ROWS);
    let names = labels_of(archive, site, Label::ProductName, &top).await?;
    let rows = top.iter().map(|(product, value)| {
        let [views, _] = value.counts;
        json!({ "product_id": product, "name": names.get(product), "views": views, "customers": value.people.estimate() })
    });
    all.push(("top.viewed", json!({ "day": day, "rows": rows.collect::<Vec<_>>() })));
    let top = greatest(totals(Metric::Pages).await?, ROWS);
    let titles = labels_of(archive, site, Label::PageTitle, &top).await?;
    let rows = top.iter().map(|(path, value)| {
        let [views, _] = value.counts;
        json!({ "path": path, "title": titles.get(path), "views": views, "customers": value.people.estimate() })
    });
    all.push(("top.pages", json!({ "day": day, "rows": rows.collect::<Vec<_>>() })));
    let top = greatest(totals(Metric::Sold).await?, ROWS);
    let names = labels_of(archive, site, Label::ProductName, &top).await?;
    let rows = top.iter().map(|(dim, value)| {
        let [units, orders] = value.counts;
        json!({ "product_id": dim, "name": names.get(dim), "units": units, "orders": orders, "revenue": money(&value.revenue) })
    });
    all.push(("top.sold", json!({ "day": day, "rows": rows.collect::<Vec<_>>() })));
    all.push(("funnel", json!({ "day": day, "rows": funnel(&rules.checkout_steps, totals(Metric::Steps).await?) })));
    Ok(all)
}

/// The dims with the greatest first counts, then by name; those that count nothing are left out.
fn greatest(mut totals: Vec<(String, CellValue)>, most: usize) -> Vec<(String, CellValue)> {
    let count = |value: &CellValue| std::cmp::Reverse(value.counts[0]);
    totals.retain(|(_, value)| value.counts[0] > 0);
    totals.sort_unstable_by(|a, b| (count(&a.1), &a.0).cmp(&(count(&b.1), &b.0)));
    totals.truncate(most);
    totals
}

async fn labels_of(archive: &dyn Archive, site: &SiteId, label: Label, top: &[(String, CellValue)]) -> Result<HashMap<String, String>, Error> {
    let dims: Vec<String> = top.iter().map(|(dim, _)| dim.clone()).collect();
    Ok(archive.labels(site, label, &dims).await?.into_iter().map(|(dim, value)| (dim, value.value)).collect())
}

fn money(sums: &BTreeMap<Currency, i64>) -> Value {
    let nonzero = sums.iter().filter(|(_, amount)| **amount != 0);
    nonzero.map(|(currency, amount)| json!({ "currency": currency, "amount_minor": amount })).collect()
}

/// The site's steps in their order, then others by name.
fn funnel(order: &[String], totals: Vec<(String, CellValue)>) -> Vec<Value> {
    let mut rows: Vec<_> = totals;
    let place = |step: &String| order.iter().position(|known| known == step).unwrap_or(order.len());
    rows.sort_unstable_by(|a, b| (place(&a.0), &a.0).cmp(&(place(&b.0), &b.0)));
    rows.truncate(ROWS);
    let row = |(step, value): (String, CellValue)| json!({ "step": step, "entered": value.counts[0], "completed": value.counts[1] });
    rows.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_the_sites_own() {
        let day = |at: &str, zone: &str| {
            let (start, end) = day_of(Timestamp::parse(at).unwrap(), &SiteRules { time_zone: zone.into(), ..SiteRules::default() });
            (start.to_string(), end.to_string())
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(day("2026-11-20T23:30:00Z", "UTC"), pair("2026-11-20T00:00:00Z", "2026-11-21T00:00:00Z"));
        assert_eq!(day("2026-11-20T23:30:00Z", "Europe/Berlin"), pair("2026-11-20T23:00:00Z", "2026-11-21T23:00:00Z"));
        // The clocks go back: 25 hours.
        assert_eq!(day("2026-10-25T12:00:00Z", "Europe/Berlin"), pair("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"));
        assert_eq!(day("2026-11-20T12:00:00Z", "Asia/Kathmandu"), pair("2026-11-19T18:15:00Z", "2026-11-20T18:15:00Z"));
        assert_eq!(day("2026-11-20T12:00:00Z", "No/Such"), day("2026-11-20T12:00:00Z", "UTC"));
    }

    #[test]
    fn the_greatest_come_first_then_names() {
        let total = |dim: &str, count: i64| (dim.to_owned(), CellValue { counts: [count, 0], ..CellValue::default() });
        let mut all = vec![total("b", 2), total("none", 0), total("a", 2), total("back", -1)];
        all.extend((0..30).map(|n| total(&format!("x{n:02}"), 100 + n)));
        let dims: Vec<String> = greatest(all.clone(), 32).into_iter().map(|(dim, _)| dim).collect();
        assert_eq!((dims.len(), dims[0].as_str(), &dims[30..]), (32, "x29", &["a".to_owned(), "b".to_owned()][..]));
        assert_eq!(greatest(all, ROWS).len(), ROWS);
    }

    #[test]
    fn steps_stand_in_the_shops_order() {
        let total = |dim: &str| (dim.to_owned(), CellValue { counts: [3, 2], ..CellValue::default() });
        let order = ["contact".to_owned(), "payment".to_owned()];
        let rows = funnel(&order, vec![total("(order)"), total("payment"), total("gift"), total("contact")]);
        let steps: Vec<&str> = rows.iter().map(|row| row["step"].as_str().unwrap()).collect();
        assert_eq!(steps, ["contact", "payment", "(order)", "gift"]);
        assert_eq!(rows[0], json!({"step": "contact", "entered": 3, "completed": 2}));
    }
}
