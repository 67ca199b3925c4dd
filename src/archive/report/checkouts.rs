//! The reports about checkouts: funnel and unfinished purchases. Called by [`super::run`] only. Abandonment is never stored: it is judged here, by what the
//! archive knows now; `as_of` moves the deadline alone, so that a step which came later than `as_of` takes an abandonment back too.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use super::super::{Archive, Error, Metric};
use super::count::{admits, count};
use super::question::Question;
use super::top::amounts;
use super::{Body, FunnelRow, Rows, UnfinishedRow, seconds_between};
use crate::event::identity::{CheckoutView, ORDER_STEP};
use crate::event::{Currency, SiteRules, StepStatus, Timestamp};

/// Checkouts taken from the archive at once.
const PAGE: usize = 1_000;

/// What was left at one step.
#[derive(Default)]
struct Left {
    checkouts: i64,
    value: BTreeMap<Currency, i64>,
}

/// `checkout-funnel`: steps entered and completed in the range, and the checkouts abandoned in it (by `last_at`) where they stopped.
pub(super) async fn funnel(archive: &dyn Archive, rules: &SiteRules, question: &Question, as_of: Timestamp) -> Result<Body, Error> {
    let mut counted = count(archive, rules, question, Metric::Steps).await?;
    let mut left: HashMap<String, Left> = HashMap::new();
    let mut pages = Pages::new(question);
    while let Some(page) = pages.next(archive).await? {
        for checkout in page.iter().filter(|checkout| is_abandoned(checkout, rules, question, as_of)) {
            let at = left.entry(stopped_at(checkout, &rules.checkout_steps)).or_default();
            at.checkouts += 1;
            if let Some(value) = checkout.value {
                *at.value.entry(value.currency).or_default() += value.amount_minor;
            }
        }
    }
    let mut steps: Vec<String> = counted.dims.keys().chain(left.keys()).chain(&rules.checkout_steps).cloned().collect();
    steps.sort_unstable_by(|a, b| place(a, &rules.checkout_steps).cmp(&place(b, &rules.checkout_steps)));
    steps.dedup();
    steps.truncate(question.limit);
    let rows = steps.into_iter().map(|step| {
        let [entered, completed] = counted.dims.remove(&step).unwrap_or_default().counts;
        let left = left.remove(&step).unwrap_or_default();
        FunnelRow { step, entered, completed, abandoned: left.checkouts, value_left: amounts(&left.value) }
    });
    Ok(Body { rows: Rows::Funnel(rows.collect()), exact: counted.exact, currency: None })
}

/// `unfinished-purchases`: checkouts abandoned in the range, by `last_at` descending, then key bytes.
pub(super) async fn unfinished(archive: &dyn Archive, rules: &SiteRules, question: &Question, as_of: Timestamp) -> Result<Body, Error> {
    let mut newest: Vec<CheckoutView> = Vec::new();
    let mut pages = Pages::new(question);
    while let Some(page) = pages.next(archive).await? {
        newest.extend(page.into_iter().filter(|checkout| is_abandoned(checkout, rules, question, as_of)));
        newest.sort_unstable_by(|a, b| (Reverse(a.last_at), &a.checkout).cmp(&(Reverse(b.last_at), &b.checkout)));
        newest.truncate(question.limit);
    }
    let rows = newest.into_iter().map(|checkout| UnfinishedRow {
        checkout_id: checkout.checkout,
        customer: checkout.person,
        last_step: checkout.last_step,
        value: checkout.value,
        last_at: checkout.last_at,
        age_seconds: seconds_between(checkout.last_at, as_of),
    });
    Ok(Body { rows: Rows::Unfinished(rows.collect()), exact: true, currency: None })
}

/// The checkouts of a question's range, by page.
struct Pages<'a> {
    question: &'a Question,
    after: Option<(Timestamp, String)>,
    done: bool,
}

impl<'a> Pages<'a> {
    const fn new(question: &'a Question) -> Self {
        Self { question, after: None, done: false }
    }

    async fn next(&mut self, archive: &dyn Archive) -> Result<Option<Vec<CheckoutView>>, Error> {
        if self.done {
            return Ok(None);
        }
        let Question { site, from, to, .. } = self.question;
        let page = archive.checkouts(site, *from, *to, self.after.take(), PAGE).await?;
        self.done = page.len() < PAGE;
        self.after = page.last().map(|last| (last.last_at, last.checkout.clone()));
        Ok(Some(page))
    }
}

fn is_abandoned(checkout: &CheckoutView, rules: &SiteRules, question: &Question, as_of: Timestamp) -> bool {
    checkout.completed.is_none()
        && !checkout.steps.is_empty()
        && admits(question.bots, checkout.crawler)
        && checkout.last_at.plus_seconds(rules.abandoned_after_seconds) < as_of
}

/// A step's place: the checkout's own order, then unknown steps by name, the order last.
fn place<'a>(step: &'a str, order: &[String]) -> (usize, &'a str) {
    match order.iter().position(|known| known == step) {
        Some(known) => (known, ""),
        None if step == ORDER_STEP => (usize::MAX, ""),
        None => (order.len(), step),
    }
}

/// Where an abandoned checkout stopped: the furthest step entered and not completed, else the step after the last completed (the order itself after the
/// last one; a step the site does not know has none after it but the order).
fn stopped_at(checkout: &CheckoutView, order: &[String]) -> String {
    let has = |step: &str, status| checkout.steps.iter().any(|s| s.step == step && s.status == status);
    let furthest = |status: StepStatus, of: &dyn Fn(&str) -> bool| {
        let steps = checkout.steps.iter().filter(|s| s.status == status && of(&s.step)).map(|s| s.step.as_str());
        steps.max_by_key(|step| place(step, order))
    };
    if let Some(open) = furthest(StepStatus::Entered, &|step| !has(step, StepStatus::Completed)) {
        return open.to_owned();
    }
    let last = furthest(StepStatus::Completed, &|_| true);
    let next = last.and_then(|last| order.iter().position(|known| known == last)).and_then(|known| order.get(known + 1));
    next.map_or(ORDER_STEP, String::as_str).to_owned()
}
