//! What a checkout's steps count for, as a function of the reports known. Each (step, status) is a fact counted once, at its best report's
//! time; the checkout's last sign of life takes every report, repeats included. Called by the fold alone.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde::{Deserialize, Serialize};

use super::super::{Event, Money, Record, RecordKind, StepStatus, Timestamp};
use super::reports::{Appearance, Fact, Word};
use super::{CheckoutView, Completion, Effects, MAX_FACTS, ORDER_STEP, Outcome, StepCount, Verdict};

/// Memory of a checkout.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckoutEntry {
    checkout: String,
    facts: BTreeMap<(String, StepStatus), Fact<Says>>,
    /// The greatest of all reports: when, how far, which step.
    last: Option<(Timestamp, StepStatus, String)>,
    /// The greatest of all reports that state a value.
    value: Option<Stated>,
}

/// What a report says beyond the fact itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Says {
    person: Option<String>,
}

/// A value and what orders it among others: the last fields only decide between reports of one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Stated {
    at: Timestamp,
    status: StepStatus,
    step: String,
    value: Money,
}

impl Stated {
    fn order(&self) -> (Timestamp, StepStatus, &str, i64, super::super::Currency) {
        (self.at, self.status, &self.step, self.value.amount_minor, self.value.currency)
    }
}

impl CheckoutEntry {
    /// Folds a report of a step, or of the order that completes the checkout.
    pub(super) fn fold(&mut self, record: &Record, event: &Event, offset: u64) -> Outcome {
        if self.checkout.is_empty() {
            self.checkout = event.checkout_name().unwrap_or_else(|| record.event_id.clone());
        }
        let (step, status) = step_of(record, event);
        let appearance = Appearance::new(record, event, Says { person: event.person().map(str::to_owned) });
        let count = |of: &Appearance<Says>, count| StepCount { step: step.to_owned(), status, at: of.at, crawler: of.crawler, count };
        let full = self.facts.len() >= MAX_FACTS;
        let mut effects = Effects::default();
        let verdict = match self.facts.entry((step.to_owned(), status)) {
            Entry::Vacant(_) if full => Verdict::Conflict,
            Entry::Vacant(vacant) => {
                effects = Effects { steps: vec![count(&appearance, 1)], checkout_changed: true, ..effects };
                vacant.insert(Fact::new(appearance, offset));
                Verdict::Counted
            }
            Entry::Occupied(mut known) => {
                let fact = known.get_mut();
                let (verdict, word) = fact.note(appearance, offset);
                if let Word::Different(better) = word {
                    effects.checkout_changed = true;
                    if (fact.best.at, fact.best.crawler) != (better.at, better.crawler) {
                        effects.steps.extend([count(&fact.best, -1), count(&better, 1)]);
                    }
                    fact.best = better;
                }
                verdict
            }
        };
        if verdict != Verdict::Conflict {
            effects.checkout_changed |= self.hear(event, step, status);
        }
        Outcome { verdict, effects }
    }

    /// See [`super::forget`]; whether anything is left.
    pub(super) fn forget(&mut self, gone: &dyn Fn(Timestamp) -> bool) -> bool {
        self.facts.retain(|_, fact| !gone(fact.best.at));
        if self.last.as_ref().is_some_and(|(at, ..)| gone(*at)) {
            self.last = self.facts.iter().map(|((step, status), fact)| (fact.best.at, *status, step.clone())).max();
        }
        self.value = self.value.take().filter(|stated| !gone(stated.at));
        !self.facts.is_empty()
    }

    /// Takes what every report says, repeats included; whether it changed anything.
    fn hear(&mut self, event: &Event, step: &str, status: StepStatus) -> bool {
        let at = event.occurred_at;
        let later = self.last.as_ref().is_none_or(|(t, s, name)| (*t, *s, name.as_str()) < (at, status, step));
        if later {
            self.last = Some((at, status, step.to_owned()));
        }
        let stated = event.checkout.as_ref().and_then(|c| c.value).or(event.order.as_ref().and_then(|order| order.total));
        let Some(value) = stated else { return later };
        let stated = Stated { at, status, step: step.to_owned(), value };
        let newer = self.value.as_ref().is_none_or(|known| known.order() < stated.order());
        let differs = newer && self.value.as_ref().is_none_or(|known| known.value != value);
        if newer {
            self.value = Some(stated);
        }
        later || differs
    }

    /// The checkout as it stands.
    pub(super) fn view(&self) -> CheckoutView {
        let counts = self.facts.iter().filter(|((step, _), _)| step != ORDER_STEP).map(|((step, status), fact)| StepCount {
            step: step.clone(),
            status: *status,
            at: fact.best.at,
            crawler: fact.best.crawler,
            count: 1,
        });
        // The latest best report; facts of one moment in their own order.
        let latest = |named: bool| {
            let best = self.facts.iter().map(|((step, status), fact)| ((fact.best.at, *status, step), &fact.best));
            best.filter(|(_, best)| !named || best.says.person.is_some()).max_by_key(|(order, _)| *order).map(|(_, best)| best)
        };
        let completion = self.facts.get(&(ORDER_STEP.to_owned(), StepStatus::Completed)).map(|fact| &fact.best);
        let (last_at, last_step) = self.last.as_ref().map_or((Timestamp::ZERO, None), |(at, _, step)| (*at, Some(step.clone())));
        CheckoutView {
            checkout: self.checkout.clone(),
            person: latest(true).and_then(|best| best.says.person.clone()),
            steps: counts.collect(),
            completed: completion.map(|best| Completion { at: best.at, crawler: best.crawler }),
            value: self.value.as_ref().map(|stated| stated.value),
            last_step,
            last_at,
            crawler: latest(false).is_some_and(|best| best.crawler),
        }
    }
}

/// Which fact a record reports.
fn step_of<'a>(record: &Record, event: &'a Event) -> (&'a str, StepStatus) {
    if record.kind == RecordKind::Completion {
        return (ORDER_STEP, StepStatus::Completed);
    }
    let checkout = event.checkout.as_ref();
    let step = checkout.and_then(|c| c.step.as_deref()).unwrap_or_default();
    (step, checkout.and_then(|c| c.status).unwrap_or(StepStatus::Entered))
}
