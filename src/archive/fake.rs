//! An archive in memory and a shop that posts to it, for the tests of what reads archives. Folds, counts and keeps everything at once, without batches.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;

use super::report::{contributions, interim};
use super::*;
use crate::event::identity::{self, ORDER_STEP};
use crate::event::ids::{completion_id, events_partition, fingerprint};
use crate::event::{Event, PARTITIONS, Record, RecordKind, SiteRules, StepStatus, kind};

/// Archive and log of one test.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) rules: SiteRules,
    state: Mutex<State>,
}

/// What a test may tamper with.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) rows: Vec<EventRow>,
    pub(crate) cells: BTreeMap<(u16, CellKey), CellValue>,
    pub(crate) books: BTreeMap<(u16, SiteId, Timestamp), Books>,
    pub(crate) quarantine: Vec<QuarantineRow>,
    pub(crate) log: BTreeMap<u16, Vec<Bytes>>,
    pub(crate) entries: BTreeMap<(u16, IdentityKey), (SiteId, Entry)>,
    labels: HashMap<(SiteId, Label, String), LabelValue>,
    links: BTreeSet<(SiteId, [u8; 16], [u8; 16])>,
    received_at: BTreeMap<u16, Timestamp>,
}

/// One post, with what ingest would have found.
#[derive(Clone, Debug)]
pub(crate) struct Post {
    pub(crate) id: String,
    pub(crate) received_at: Timestamp,
    pub(crate) channel: Channel,
    pub(crate) crawler: bool,
    pub(crate) body: Value,
}

pub(crate) fn site() -> SiteId {
    SiteId::parse("demo").unwrap()
}

pub(crate) fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap()
}

/// A post of one event of a person at `occurred_at`, received a second later.
pub(crate) fn post(id: &str, occurred_at: &str, person: &str, mut body: Value) -> Post {
    body["occurred_at"] = occurred_at.into();
    if !person.is_empty() {
        body["customer"]["id"] = person.into();
    }
    Post { id: id.into(), received_at: at(occurred_at).plus_seconds(1), channel: Channel::Server, crawler: false, body }
}

impl Post {
    pub(crate) fn crawler(mut self) -> Self {
        self.crawler = true;
        self
    }
}

impl Fake {
    pub(crate) fn new(posts: &[Post]) -> Self {
        let fake = Self::default();
        posts.iter().for_each(|post| fake.post(post));
        fake
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn ends(&self) -> Vec<u64> {
        let state = self.state();
        (0..PARTITIONS).map(|p| state.log.get(&p).map_or(0, |log| log.len() as u64)).collect()
    }

    pub(crate) fn post(&self, post: &Post) {
        let body: Bytes = serde_json::to_vec(&post.body).unwrap().into();
        let event = Event::from_body(&body).unwrap();
        let (key_kind, key) = event.partition_key(&post.id);
        let mut flags = Flags::default();
        if post.crawler {
            flags.set(Flags::CRAWLER);
        }
        let record = Record {
            kind: RecordKind::Event,
            body_key: 0,
            site: site(),
            event_id: post.id.clone(),
            fingerprint: fingerprint(&body),
            received_at: post.received_at,
            key_kind,
            key: key.to_owned(),
            flags,
            channel: post.channel,
            body,
        };
        self.state().take(&self.rules, &record, &event);
        if event.kind == kind::ORDER_COMPLETED
            && let Some((key_kind, key)) = event.checkout_party()
        {
            let derived = Record { kind: RecordKind::Completion, event_id: completion_id(&post.id), key_kind, key: key.to_owned(), ..record };
            self.state().take(&self.rules, &derived, &event);
        }
    }
}

impl State {
    fn take(&mut self, rules: &SiteRules, record: &Record, event: &Event) {
        let partition = events_partition(&record.site, record.key_kind, &record.key);
        let log = self.log.entry(partition).or_default();
        let offset = log.len() as u64;
        log.push(record.to_bytes());
        let received = self.received_at.entry(partition).or_default();
        *received = (*received).max(record.received_at);
        let key = identity::key_of(record, event);
        let mut entry = self.entries.remove(&(partition, key)).map(|(_, entry)| entry);
        let outcome = identity::fold(&mut entry, record, event, offset);
        self.entries.insert((partition, key), (record.site.clone(), entry.unwrap()));
        for sale in &outcome.effects.sales {
            let cell = self.cell(partition, Metric::Sold, sale.at, &sale.product_id, sale.crawler);
            cell.counts[0] += sale.units;
            cell.counts[1] += sale.orders;
            sale.revenue.iter().for_each(|(currency, amount)| *cell.revenue.entry(*currency).or_default() += amount);
        }
        for step in &outcome.effects.steps {
            let status = usize::from(step.status == StepStatus::Completed);
            self.cell(partition, Metric::Steps, step.at, &step.step, step.crawler).counts[status] += step.count;
        }
        let books = self.books.entry((partition, record.site.clone(), record.received_at.floor_to_seconds(3600))).or_default();
        if record.kind == RecordKind::Completion {
            books.derived += 1;
            return;
        }
        books.appended += 1;
        if outcome.verdict == Verdict::Duplicate {
            books.duplicate += 1;
            return;
        }
        books.archived += 1;
        self.keep(rules, record, event, (partition, offset), outcome.verdict);
    }

    fn cell(&mut self, partition: u16, metric: Metric, at: Timestamp, dim: &str, crawler: bool) -> &mut CellValue {
        let key = CellKey { site: site(), metric, cell: at.floor_to_seconds(CELL_SECONDS), dim: dim.into(), crawler };
        self.cells.entry((partition, key)).or_default()
    }

    fn keep(&mut self, rules: &SiteRules, record: &Record, event: &Event, (partition, offset): (u16, u64), verdict: Verdict) {
        let hash = |id: Option<&String>| id.map(|id| rules.person_hash(id));
        let customer = hash(event.customer.as_ref().and_then(|c| c.id.as_ref()));
        let visitor = hash(event.customer.as_ref().and_then(|c| c.anonymous_id.as_ref()));
        if let (Some(customer), Some(visitor)) = (customer, visitor) {
            self.links.insert((site(), visitor, customer));
        }
        if verdict == Verdict::Counted {
            for (metric, dim) in contributions(event, rules) {
                let cell = self.cell(partition, metric, event.occurred_at, &dim, record.flags.has(Flags::CRAWLER));
                cell.counts[0] += 1;
                if let Some(person) = customer.or(visitor) {
                    interim::add(&mut cell.people, person);
                }
            }
            self.label(record, event);
        }
        let products = event.product.iter().map(|p| p.id.clone());
        let items = event.order.iter().filter_map(|order| order.items.as_ref()).flatten().map(|item| item.product_id.clone());
        self.rows.push(EventRow {
            site: record.site.clone(),
            event_id: record.event_id.clone(),
            fingerprint: record.fingerprint,
            key_kind: record.key_kind,
            kind: event.kind.clone(),
            occurred_at: event.occurred_at,
            received_at: record.received_at,
            partition,
            offset,
            verdict,
            flags: record.flags,
            channel: record.channel,
            customer,
            visitor,
            products: products.chain(items).collect::<BTreeSet<_>>().into_iter().collect(),
            objects: event.product.iter().map(|p| (crate::event::ObjectKind::Map, format!("product.{}", p.id))).collect(),
            body_key: 0,
            body: record.body.clone(),
        });
        self.rows.sort_by_key(|row| (row.occurred_at, row.partition, row.offset));
    }

    fn label(&mut self, record: &Record, event: &Event) {
        let mut labels: Vec<(Label, String, String)> = Vec::new();
        if let Some(product) = &event.product {
            labels.extend(product.name.iter().map(|name| (Label::ProductName, product.id.clone(), name.clone())));
            labels.extend(product.available_in.iter().map(|a| (Label::AvailableIn, product.id.clone(), serde_json::to_string(a).unwrap())));
        }
        if let Some(search) = &event.search {
            let term = crate::event::naming::search_term(&search.query);
            labels.push((Label::Spelling, term.clone(), search.query.clone()));
            labels.extend(search.results.iter().map(|n| (Label::Results, term.clone(), n.to_string())));
        }
        if let Some(page) = &event.page {
            let path = crate::event::naming::page_path(&page.url, &SiteRules::default());
            labels.extend(page.title.iter().map(|title| (Label::PageTitle, path.clone(), title.clone())));
        }
        for (label, dim, value) in labels {
            let new = LabelValue { at: event.occurred_at.min(record.received_at), event_id: record.event_id.clone(), value };
            let kept = self.labels.entry((site(), label, dim)).or_insert_with(|| new.clone());
            if (kept.at, &kept.event_id) < (new.at, &new.event_id) {
                *kept = new;
            }
        }
    }
}

fn within(at: Timestamp, from: Timestamp, to: Timestamp) -> bool {
    from <= at && at < to
}

#[async_trait]
impl Archive for Fake {
    async fn cursor(&self, partition: u16) -> Result<Cursor, Error> {
        Ok(self.cursors().await?[usize::from(partition)])
    }

    async fn identities(&self, _: u16, _: &[IdentityKey]) -> Result<Vec<(IdentityKey, Entry)>, Error> {
        Ok(Vec::new())
    }

    async fn cells(&self, _: u16, _: &[CellKey]) -> Result<Vec<(CellKey, CellValue)>, Error> {
        Ok(Vec::new())
    }

    async fn books_of(&self, partition: u16, keys: &[(SiteId, Timestamp)]) -> Result<Vec<(SiteId, Timestamp, Books)>, Error> {
        let state = self.state();
        let of =
            |(site, hour): &(SiteId, Timestamp)| state.books.get(&(partition, site.clone(), *hour)).map(|books| (site.clone(), *hour, books.clone()));
        Ok(keys.iter().filter_map(of).collect())
    }

    async fn write(&self, _: WriteBatch) -> Result<(), Error> {
        Err(Error::Closed)
    }

    async fn cursors(&self) -> Result<Vec<Cursor>, Error> {
        let state = self.state();
        let cursor = |p: u16| Cursor {
            next: state.log.get(&p).map_or(0, |log| log.len() as u64),
            received_at: state.received_at.get(&p).copied().unwrap_or_default(),
        };
        Ok((0..PARTITIONS).map(cursor).collect())
    }

    async fn durable(&self) -> Result<Vec<u64>, Error> {
        Ok(self.ends())
    }

    async fn totals(&self, site: &SiteId, metric: Metric, from: Timestamp, to: Timestamp, bots: Bots) -> Result<Vec<(String, CellValue)>, Error> {
        assert_eq!((from.floor_to_seconds(CELL_SECONDS), to.floor_to_seconds(CELL_SECONDS)), (from, to), "whole cells only");
        let mut sums: BTreeMap<String, CellValue> = BTreeMap::new();
        for ((_, key), value) in &self.state().cells {
            let wanted = bots == Bots::Include || (bots == Bots::Only) == key.crawler;
            if &key.site == site && key.metric == metric && within(key.cell, from, to) && wanted {
                let sum = sums.entry(key.dim.clone()).or_default();
                sum.counts[0] += value.counts[0];
                sum.counts[1] += value.counts[1];
                value.revenue.iter().for_each(|(currency, amount)| *sum.revenue.entry(*currency).or_default() += amount);
                value.people.0.chunks(16).for_each(|person| interim::add(&mut sum.people, person.try_into().unwrap()));
            }
        }
        Ok(sums.into_iter().collect())
    }

    async fn sales(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<Sale>, Error> {
        let state = self.state();
        let orders = state.entries.values().filter(|(of, _)| of == site).filter_map(|(_, entry)| entry.order());
        Ok(orders.flat_map(|order| order.sales).filter(|sale| within(sale.at, from, to)).collect())
    }

    async fn steps(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<StepCount>, Error> {
        let state = self.state();
        let checkouts = state.entries.values().filter(|(of, _)| of == site).filter_map(|(_, entry)| entry.checkout());
        let steps = checkouts.flat_map(|checkout| {
            let order = checkout.completed_at.map(|at| StepCount {
                step: ORDER_STEP.into(),
                status: StepStatus::Completed,
                at,
                crawler: checkout.crawler,
                count: 1,
            });
            checkout.steps.into_iter().chain(order)
        });
        Ok(steps.filter(|step| within(step.at, from, to)).collect())
    }

    async fn checkouts(
        &self,
        site: &SiteId,
        from: Timestamp,
        to: Timestamp,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<CheckoutView>, Error> {
        let state = self.state();
        let all = state.entries.values().filter(|(of, _)| of == site).filter_map(|(_, entry)| entry.checkout());
        let behind = |c: &CheckoutView| after.as_ref().is_none_or(|(at, name)| (c.last_at, &c.checkout) > (*at, name));
        let mut found: Vec<_> = all.filter(|c| within(c.last_at, from, to) && behind(c)).collect();
        found.sort_by(|a, b| (a.last_at, &a.checkout).cmp(&(b.last_at, &b.checkout)));
        found.truncate(limit);
        for checkout in &mut found {
            checkout.person = checkout.person.take().map(|id| hex(&self.rules.person_hash(&id)));
        }
        Ok(found)
    }

    async fn labels(&self, site: &SiteId, label: Label, dims: &[String]) -> Result<Vec<(String, LabelValue)>, Error> {
        let state = self.state();
        let find = |dim: &String| state.labels.get(&(site.clone(), label, dim.clone())).map(|value| (dim.clone(), value.clone()));
        Ok(dims.iter().filter_map(find).collect())
    }

    async fn scan(&self, site: &SiteId, scan: &Scan) -> Result<Vec<EventRow>, Error> {
        let matches = |row: &&EventRow| match &scan.by {
            ScanBy::All => true,
            ScanBy::People(people) => row.customer.iter().chain(&row.visitor).any(|person| people.contains(person)),
            ScanBy::Product(product) => row.products.contains(product),
            ScanBy::EventId(id) => &row.event_id == id,
        };
        let place = |row: &EventRow| (row.occurred_at, row.partition, row.offset);
        let state = self.state();
        let found = state.rows.iter().filter(|row| &row.site == site).filter(matches);
        let found = found.filter(|row| scan.from.is_none_or(|from| from <= row.occurred_at) && scan.to.is_none_or(|to| row.occurred_at < to));
        let behind = |row: &&EventRow| match scan.after {
            Some(after) if scan.newest_first => place(row) < after,
            Some(after) => place(row) > after,
            None => true,
        };
        let mut found: Vec<EventRow> = found.filter(behind).cloned().collect();
        if scan.newest_first {
            found.reverse();
        }
        found.truncate(scan.limit);
        Ok(found)
    }

    async fn linked(&self, site: &SiteId, person: [u8; 16]) -> Result<Vec<[u8; 16]>, Error> {
        let state = self.state();
        let links = state.links.iter().filter(|(of, ..)| of == site);
        Ok(links
            .filter_map(|(_, visitor, customer)| match person {
                p if p == *visitor => Some(*customer),
                p if p == *customer => Some(*visitor),
                _ => None,
            })
            .collect())
    }

    async fn books(&self, site: &SiteId, from: Timestamp, to: Timestamp) -> Result<Vec<(Timestamp, Books)>, Error> {
        let mut sums: BTreeMap<Timestamp, Books> = BTreeMap::new();
        for ((_, of, hour), books) in &self.state().books {
            if of == site && within(*hour, from, to) {
                let sum = sums.entry(*hour).or_default();
                sum.appended += books.appended;
                sum.archived += books.archived;
                sum.duplicate += books.duplicate;
                sum.quarantined += books.quarantined;
                sum.derived += books.derived;
            }
        }
        Ok(sums.into_iter().collect())
    }

    async fn quarantine(&self, site: &SiteId, after: Option<(Timestamp, u16, u64)>, limit: usize) -> Result<Vec<QuarantineRow>, Error> {
        let place = |row: &QuarantineRow| (row.received_at, row.partition, row.offset);
        let state = self.state();
        let found = state.quarantine.iter().filter(|row| row.site.as_ref() == Some(site) && after.is_none_or(|after| place(row) > after));
        Ok(found.take(limit).cloned().collect())
    }

    async fn sites(&self) -> Result<Vec<SiteId>, Error> {
        Ok(vec![site()])
    }

    async fn days(&self) -> Result<Vec<i32>, Error> {
        Ok(self.state().rows.iter().map(|row| row.occurred_at.utc_day()).collect::<BTreeSet<_>>().into_iter().collect())
    }

    async fn retain(&self, _: Timestamp) -> Result<(), Error> {
        Ok(())
    }

    async fn close(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Runs a future to its end.
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}
