//! The fold against its promises: any order and any repetition of the same reports gives the same sums and views.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::{Channel, Checkout, Client, Currency, Customer, Flags, Item, KeyKind, Money, Order, Refund, SiteId, StepStatus};
use super::*;

const DAY: &str = "2026-11-20T10:00:00Z";

fn at(minute: i64) -> Timestamp {
    Timestamp::parse(DAY).unwrap().plus_seconds(minute * 60)
}

fn eur(amount_minor: i64) -> Money {
    Money { amount_minor, currency: Currency::parse("EUR").unwrap() }
}

fn usd(amount_minor: i64) -> Money {
    Money { amount_minor, currency: Currency::parse("USD").unwrap() }
}

fn item(product: &str, quantity: i64, price: Option<Money>) -> Item {
    Item { product_id: product.into(), quantity, price, name: None }
}

fn blank(kind: &str, minute: i64) -> Event {
    serde_json::from_value(serde_json::json!({ "type": kind, "occurred_at": at(minute) })).unwrap()
}

fn order(minute: i64, items: &[Item]) -> Event {
    Event { order: Some(Order { id: "o1".into(), items: Some(items.to_vec()), total: None }), ..blank(kind::ORDER_COMPLETED, minute) }
}

fn refund(id: Option<&str>, minute: i64, items: Option<&[Item]>) -> Event {
    Event {
        order: Some(Order { id: "o1".into(), items: items.map(<[Item]>::to_vec), total: None }),
        refund: id.map(|id| Refund { id: Some(id.into()) }),
        ..blank(kind::ORDER_REFUNDED, minute)
    }
}

fn step(name: &str, status: StepStatus, minute: i64, value: Option<Money>) -> Event {
    Event {
        checkout: Some(Checkout { id: Some("ch1".into()), step: Some(name.into()), status: Some(status), value }),
        ..blank(kind::CHECKOUT_STEP, minute)
    }
}

/// An event as ingest would store it. `defaulted`: its `occurred_at` was filled in at arrival and is no part of the fingerprint.
fn record(event: &Event, id: &str, channel: Channel, defaulted: bool) -> Record {
    let mut fingerprinted = event.clone();
    let mut flags = Flags::default();
    if defaulted {
        fingerprinted.occurred_at = Timestamp::ZERO;
        flags.set(Flags::NO_OCCURRED_AT);
    }
    let (key_kind, key) = event.partition_key(id);
    if event.client.as_ref().is_some_and(|client| client.user_agent.is_some()) {
        flags.set(Flags::CRAWLER);
    }
    Record {
        kind: RecordKind::Event,
        body_key: 0,
        site: SiteId::parse("demo").unwrap(),
        event_id: id.into(),
        fingerprint: super::super::ids::fingerprint(&serde_json::to_vec(&fingerprinted).unwrap()),
        received_at: event.occurred_at,
        key_kind,
        key: key.to_owned(),
        flags,
        channel,
        body: serde_json::to_vec(event).unwrap().into(),
    }
}

type Reports = Vec<(Record, Event)>;

/// Folds reports that share one entry, from offset 0 on.
fn run(reports: &Reports) -> (Option<Entry>, Vec<Outcome>) {
    let mut entry = None;
    let outcomes = reports.iter().zip(0..).map(|((record, event), offset)| fold(&mut entry, record, event, offset)).collect();
    (entry, outcomes)
}

#[test]
fn keys_are_found_by_the_names_that_rows_have() {
    let site = SiteId::parse("demo").unwrap();
    let sold = order(0, &[]);
    assert_eq!(key_of(&record(&sold, "e", Channel::Server, false), &sold), order_key(&site, "o1"));
    let given_back = refund(Some("r"), 0, None);
    assert_eq!(key_of(&record(&given_back, "e", Channel::Server, false), &given_back), order_key(&site, "o1"));
    let of = |checkout: Option<&str>, customer: Customer| Event {
        checkout: Some(Checkout { id: checkout.map(Into::into), step: Some("s".into()), status: Some(StepStatus::Entered), value: None }),
        customer: Some(customer),
        ..blank(kind::CHECKOUT_STEP, 0)
    };
    let id = || Some("a:b".to_owned());
    for event in [
        of(Some("session:a:2026-11-20"), Customer::default()),
        of(None, Customer { session_id: id(), ..Customer::default() }),
        of(None, Customer { anonymous_id: id(), ..Customer::default() }),
        of(None, Customer { id: id(), ..Customer::default() }),
        of(None, Customer::default()),
    ] {
        let record = record(&event, "step-1", Channel::Server, false);
        let name = event.checkout_name().unwrap_or_else(|| "step-1".into());
        assert!(checkout_keys(&site, &name).contains(&key_of(&record, &event)), "{name}");
    }
}

#[test]
fn what_is_forgotten_counts_as_never_told() {
    let euro = |cents| Some(eur(cents));
    let sold = order(0, &[item("a", 3, euro(100)), item("b", 1, None)]);
    let (first, second) = (refund(Some("r1"), 5, Some(&[item("a", 2, None)])), refund(Some("r2"), 6, None));
    let steps = [step("contact", StepStatus::Entered, 1, Some(eur(7))), step("address", StepStatus::Entered, 5, None)];
    let all = |events: &[&Event]| -> Reports {
        let number = |(event, n): (&&Event, i32)| (record(event, &format!("e{n}"), Channel::Server, false), (*event).clone());
        events.iter().zip(0..).map(number).collect()
    };
    let before = |minute: i64| move |time: Timestamp| time < at(minute);
    // The order goes: a refund without a price gives back pieces alone, a whole one nothing.
    let (mut entry, outcomes) = run(&all(&[&sold, &first, &second]));
    let counted = sum_sales(outcomes.iter().flat_map(|outcome| &outcome.effects.sales));
    let changed = forget(&mut entry, &before(3));
    let left = entry.as_ref().unwrap().order().unwrap();
    assert_eq!((left.at, sum_sales(&left.sales)), (None, sum_sales(&run(&all(&[&first, &second])).0.unwrap().order().unwrap().sales)));
    let mut stays = counted;
    stays.retain(|(_, time, _), _| *time >= at(3));
    let stays: Vec<Sale> = stays
        .into_iter()
        .map(|((product_id, at, crawler), (units, orders, revenue))| Sale {
            product_id,
            at,
            crawler,
            units,
            orders,
            revenue: revenue.into_iter().collect(),
        })
        .collect();
    assert_eq!(sum_sales(stays.iter().chain(&changed)), sum_sales(&left.sales));
    // Then everything does.
    assert!(forget(&mut entry, &before(6)).is_empty());
    forget(&mut entry, &before(9));
    assert_eq!(entry, None);
    let (mut entry, _) = run(&all(&[&steps[0], &steps[1]]));
    assert!(forget(&mut entry, &before(3)).is_empty());
    let left = entry.as_ref().unwrap().checkout().unwrap();
    assert_eq!((left.steps.len(), left.value, left.last_at, left.last_step.as_deref()), (1, None, at(5), Some("address")));
    // A time in between: the latest sign of life goes, an earlier one stays.
    let (mut entry, _) = run(&all(&[&steps[0], &steps[1]]));
    forget(&mut entry, &|time| time == at(5));
    let left = entry.as_ref().unwrap().checkout().unwrap();
    assert_eq!((left.value, left.last_at, left.last_step.as_deref()), (Some(eur(7)), at(1), Some("contact")));
    forget(&mut entry, &before(3));
    assert_eq!(entry, None);
    let mut event = None;
    recall(&mut event, 1, 1);
    assert!(forget(&mut event, &|_| true).is_empty() && event.is_some(), "an event's entry has its own time to live");
}

type SaleKey = (String, Timestamp, bool);
type SaleSum = (i64, i64, BTreeMap<Currency, i64>);

fn sum_sales<'a>(sales: impl IntoIterator<Item = &'a Sale>) -> BTreeMap<SaleKey, SaleSum> {
    let mut sums: BTreeMap<SaleKey, SaleSum> = BTreeMap::new();
    for sale in sales {
        let sum = sums.entry((sale.product_id.clone(), sale.at, sale.crawler)).or_default();
        sum.0 += sale.units;
        sum.1 += sale.orders;
        sale.revenue.iter().for_each(|(currency, amount)| *sum.2.entry(*currency).or_default() += amount);
        sum.2.retain(|_, amount| *amount != 0);
    }
    sums.retain(|_, sum| *sum != (0, 0, BTreeMap::new()));
    sums
}

fn sum_steps<'a>(steps: impl IntoIterator<Item = &'a StepCount>) -> BTreeMap<(String, StepStatus, Timestamp, bool), i64> {
    let mut sums = BTreeMap::new();
    for step in steps {
        *sums.entry((step.step.clone(), step.status, step.at, step.crawler)).or_default() += step.count;
    }
    sums.retain(|_, count| *count != 0);
    sums
}

/// What makes a report: event id, fingerprint, channel.
type Word<'a> = (&'a str, u64, Channel);

fn word(record: &Record) -> Word<'_> {
    (&record.event_id, record.fingerprint, record.channel)
}

/// What the reports of one entry come to, whatever their order. Checks on the way what holds for every order.
fn come_to(reports: &Reports) -> (Option<OrderView>, Option<CheckoutView>, BTreeMap<SaleKey, SaleSum>, usize) {
    let (entry, outcomes) = run(reports);
    let entry = entry.unwrap();
    let sales = sum_sales(outcomes.iter().flat_map(|outcome| &outcome.effects.sales));
    let steps = sum_steps(outcomes.iter().flat_map(|outcome| &outcome.effects.steps));
    for outcome in &outcomes {
        assert!(outcome.effects.sales.is_sorted_by_key(|sale| (&sale.product_id, sale.at)));
        assert!(outcome.effects.sales.iter().all(|sale| (sale.units, sale.orders) != (0, 0) || !sale.revenue.is_empty()));
        assert!(outcome.effects.order_changed || outcome.effects.sales.is_empty());
        assert!(outcome.effects.checkout_changed || outcome.effects.steps.is_empty());
    }
    if let Some(view) = entry.order() {
        assert_eq!(sales, sum_sales(&view.sales), "sum of effects is not what stands");
        if view.at.is_some() {
            let mut by_product: BTreeMap<&str, (i64, BTreeMap<Currency, i64>)> = BTreeMap::new();
            for sale in &view.sales {
                let sum = by_product.entry(&sale.product_id).or_default();
                sum.0 += sale.units;
                sale.revenue.iter().for_each(|(currency, amount)| *sum.1.entry(*currency).or_default() += amount);
            }
            assert!(by_product.values().all(|(units, money)| *units >= 0 && money.values().all(|m| *m >= 0)), "refunds exceed the order: {view:?}");
        }
    }
    if let Some(view) = entry.checkout() {
        let mut stands = sum_steps(&view.steps);
        stands.extend(steps.iter().filter(|(key, _)| key.0 == ORDER_STEP).map(|(key, n)| (key.clone(), *n)));
        assert_eq!(steps, stands, "sum of effects is not what stands");
        let completion = steps.keys().find(|key| key.0 == ORDER_STEP).map(|key| Completion { at: key.2, crawler: key.3 });
        assert_eq!(view.completed, completion);
    }
    assert_eq!(Entry::from_bytes(&entry.to_bytes()).as_ref(), Some(&entry));
    let distinct: BTreeSet<Word<'_>> = reports.iter().map(|(record, _)| word(record)).collect();
    let kept = outcomes.iter().filter(|outcome| matches!(outcome.verdict, Verdict::Counted | Verdict::Report)).count();
    assert_eq!(kept, distinct.len());
    (entry.order(), entry.checkout(), sales, outcomes.iter().filter(|outcome| outcome.verdict == Verdict::Counted).count())
}

fn any_channel() -> impl Strategy<Value = Channel> {
    prop_oneof![Just(Channel::Pixel), Just(Channel::Server), Just(Channel::Webhook)]
}

fn any_items() -> impl Strategy<Value = Vec<Item>> {
    let price = prop_oneof![2 => (1i64..400).prop_map(|n| Some(eur(n))), 1 => (1i64..400).prop_map(|n| Some(usd(n))), 1 => Just(None)];
    let one = (prop_oneof![Just("a"), Just("b"), Just("c")], 1i64..5, price).prop_map(|(product, quantity, price)| item(product, quantity, price));
    proptest::collection::vec(one, 0..4)
}

fn with_party(mut event: Event, person: Option<u8>, crawler: bool) -> Event {
    event.customer = person.map(|n| Customer { id: Some(format!("c{n}")), ..Customer::default() });
    event.client = crawler.then(|| Client { user_agent: Some("Googlebot/2.1".into()), ..Client::default() });
    event
}

/// Reports of one order and its refunds; few ids, so that they meet.
fn any_order_report() -> impl Strategy<Value = (Record, Event)> {
    let event = prop_oneof![
        3 => (0i64..4, any_items()).prop_map(|(minute, items)| order(minute, &items)),
        3 => (proptest::option::of(0u8..3), 0i64..4, proptest::option::weighted(0.8, any_items()))
            .prop_map(|(id, minute, items)| refund(id.map(|n| format!("r{n}")).as_deref(), minute, items.as_deref())),
    ];
    (event, proptest::option::of(0u8..2), any::<bool>(), 0u8..3, any_channel(), proptest::bool::weighted(0.2)).prop_map(
        |(event, person, crawler, id, channel, defaulted)| {
            let event = with_party(event, person, crawler);
            (record(&event, &format!("e{id}"), channel, defaulted), event)
        },
    )
}

fn any_checkout_report() -> impl Strategy<Value = (Record, Event)> {
    let status = prop_oneof![Just(StepStatus::Entered), Just(StepStatus::Completed)];
    let name = prop_oneof![3 => Just("contact"), 2 => Just("payment"), 1 => Just(ORDER_STEP)];
    let value = proptest::option::of((1i64..3).prop_map(eur));
    (name, status, 0i64..4, value, proptest::option::of(0u8..2), any::<bool>(), 0u8..3, any_channel(), proptest::bool::weighted(0.2)).prop_map(
        |(name, status, minute, value, person, crawler, id, channel, defaulted)| {
            let completion = name == ORDER_STEP;
            let event = if completion {
                Event { checkout: Some(Checkout { id: Some("ch1".into()), ..Checkout::default() }), ..order(minute, &[item("a", 1, value)]) }
            } else {
                step(name, status, minute, value)
            };
            let event = with_party(event, person, crawler);
            let mut record = record(&event, &format!("e{id}"), channel, defaulted);
            if completion {
                record.kind = RecordKind::Completion;
            }
            (record, event)
        },
    )
}

/// What may become of one report: told by another channel too (arrival fills in its own), told again, or both.
#[derive(Clone, Debug)]
struct Retold {
    channel: Option<Channel>,
    minute: i64,
    crawler: bool,
}

fn any_retold() -> impl Strategy<Value = Retold> {
    (proptest::option::of(any_channel()), 0i64..4, any::<bool>()).prop_map(|(channel, minute, crawler)| Retold { channel, minute, crawler })
}

/// The same content under the same id once more: whether a crawler did it, and a defaulted `occurred_at`, are as arrival finds them now.
fn tell_again((record, event): &(Record, Event), retold: &Retold) -> (Record, Event) {
    let mut again = (record.clone(), event.clone());
    again.0.channel = retold.channel.unwrap_or(record.channel);
    again.0.flags = Flags(record.flags.0 & !Flags::CRAWLER);
    if retold.crawler {
        again.0.flags.set(Flags::CRAWLER);
    }
    if record.flags.has(Flags::NO_OCCURRED_AT) {
        again.1.occurred_at = at(retold.minute);
    }
    again
}

/// The list with what arrival filled in the same in every appearance of a report: then nothing is left that the order decides.
fn alike(reports: &Reports) -> Reports {
    let mut first: BTreeMap<Word<'_>, &(Record, Event)> = BTreeMap::new();
    reports.iter().map(|one| (*first.entry(word(&one.0)).or_insert(one)).clone()).collect()
}

/// Reports, some of them told by other channels too.
fn any_reports(one: impl Strategy<Value = (Record, Event)>) -> impl Strategy<Value = Reports> {
    proptest::collection::vec((one, proptest::option::weighted(0.4, any_retold())), 1..12).prop_map(|told| {
        let appearances = |(one, retold): &((Record, Event), Option<Retold>)| {
            std::iter::once(one.clone()).chain(retold.iter().map(|retold| tell_again(one, retold))).collect::<Reports>()
        };
        alike(&told.iter().flat_map(appearances).collect())
    })
}

/// A list, and the same list with some of it repeated, in another order.
fn and_disturbed(one: impl Strategy<Value = (Record, Event)>) -> impl Strategy<Value = (Reports, Reports)> {
    any_reports(one)
        .prop_flat_map(|reports| {
            let repeated = proptest::collection::vec(proptest::sample::select(reports.clone()), 0..8);
            (Just(reports), repeated)
        })
        .prop_flat_map(|(reports, repeated)| {
            let all: Reports = reports.iter().cloned().chain(repeated).collect();
            (Just(reports), Just(all).prop_shuffle())
        })
}

/// A list, and the same list with repeats of what came before, in which arrival found other things.
fn and_repeated(one: impl Strategy<Value = (Record, Event)>) -> impl Strategy<Value = (Reports, Reports)> {
    let repeats = proptest::collection::vec((any::<prop::sample::Index>(), any_retold()), 12 * 2);
    (any_reports(one), repeats).prop_map(|(reports, repeats)| {
        let mut all = Reports::new();
        for (one, (of, retold)) in reports.iter().zip(repeats) {
            all.push(one.clone());
            all.push(tell_again(of.get(&all), &Retold { channel: None, ..retold }));
        }
        (reports, all)
    })
}

/// Appearances of reports of one entry, of an order or of a checkout, repeats among them.
fn any_appearances() -> impl Strategy<Value = Reports> {
    prop_oneof![and_repeated(any_order_report()).prop_map(|(_, all)| all), and_repeated(any_checkout_report()).prop_map(|(_, all)| all)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn orders_come_to_the_same_in_any_order((reports, disturbed) in and_disturbed(any_order_report())) {
        prop_assert_eq!(come_to(&reports), come_to(&disturbed));
    }

    #[test]
    fn checkouts_come_to_the_same_in_any_order((reports, disturbed) in and_disturbed(any_checkout_report())) {
        let (found, again) = (come_to(&reports), come_to(&disturbed));
        prop_assert_eq!(&found, &again);
        let view = found.1.unwrap();
        prop_assert_eq!(Some(view.last_at), reports.iter().map(|(_, event)| event.occurred_at).max());
    }

    #[test]
    fn a_repeat_of_an_order_changes_nothing((reports, repeated) in and_repeated(any_order_report())) {
        prop_assert_eq!(come_to(&repeated), come_to(&reports));
    }

    #[test]
    fn a_repeat_of_a_step_is_a_sign_of_life_alone((reports, repeated) in and_repeated(any_checkout_report())) {
        let ((_, view, _, counted), (_, expected, _, once)) = (come_to(&repeated), come_to(&reports));
        let (view, expected) = (view.unwrap(), expected.unwrap());
        prop_assert_eq!((counted, Some(view.last_at)), (once, repeated.iter().map(|(_, event)| event.occurred_at).max()));
        prop_assert_eq!(&view, &CheckoutView { last_at: view.last_at, last_step: view.last_step.clone(), value: view.value, ..expected });
    }

    #[test]
    fn a_newer_memory_tells_replayed_records_by_their_offset(reports in any_appearances()) {
        let (mut entry, outcomes) = run(&reports);
        let newest = entry.clone();
        for (((record, event), offset), first_time) in reports.iter().zip(0..).zip(outcomes) {
            let again = fold(&mut entry, record, event, offset);
            prop_assert_eq!(again, Outcome { verdict: first_time.verdict, effects: Effects::default() });
        }
        prop_assert_eq!(entry, newest);
    }

    #[test]
    fn a_memory_saved_at_any_point_goes_on_the_same(reports in any_appearances(), cut in 0usize..24) {
        let (whole, outcomes) = run(&reports);
        let cut = cut.min(reports.len());
        let (before, _) = run(&reports[..cut].to_vec());
        let mut entry = before.and_then(|entry| Entry::from_bytes(&entry.to_bytes()));
        for (((record, event), offset), outcome) in reports.iter().zip(0..).zip(outcomes).skip(cut) {
            prop_assert_eq!(fold(&mut entry, record, event, offset), outcome);
        }
        prop_assert_eq!(entry, whole);
    }

    #[test]
    fn any_bytes_are_an_entry_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _entry = Entry::from_bytes(&bytes);
    }
}

fn verdicts(reports: &Reports) -> Vec<Verdict> {
    run(reports).1.into_iter().map(|outcome| outcome.verdict).collect()
}

fn report(event: Event, id: &str, channel: Channel) -> (Record, Event) {
    (record(&event, id, channel, false), event)
}

fn sale(product: &str, minute: i64, units: i64, orders: i64, revenue: &[Money]) -> Sale {
    let revenue = revenue.iter().map(|money| (money.currency, money.amount_minor)).collect();
    Sale { product_id: product.into(), at: at(minute), crawler: false, units, orders, revenue }
}

#[test]
fn events_count_once_and_their_contents_are_remembered() {
    let view = |minute| blank(kind::PAGE_VIEWED, minute);
    let reports: Reports = [5, 5, 6, 5, 6, 4, 6, 4].into_iter().map(|minute| report(view(minute), "e", Channel::Server)).collect();
    use Verdict::{Conflict, Counted, Duplicate};
    assert_eq!(verdicts(&reports), [Counted, Duplicate, Conflict, Duplicate, Duplicate, Conflict, Duplicate, Duplicate]);
    let (mut entry, _) = run(&reports);
    assert_eq!(fold(&mut entry, &reports[0].0, &reports[0].1, 0).verdict, Counted, "the record at its own offset is itself");
    assert_eq!(fold(&mut entry, &reports[0].0, &reports[0].1, 9).verdict, Duplicate);
    let better = report(view(5), "e", Channel::Webhook);
    assert_eq!(fold(&mut entry, &better.0, &better.1, 10).verdict, Duplicate, "the channel plays no role");
}

#[test]
fn the_same_words_by_another_channel_are_a_further_report() {
    use Verdict::{Counted, Duplicate, Report};
    let says = |id, price, channel| report(order(0, &[item("a", 1, Some(eur(price)))]), id, channel);
    let reports = [says("e1", 100, Channel::Pixel), says("e2", 200, Channel::Server), says("e1", 100, Channel::Webhook)];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut told: Reports = order.map(|index| reports[index].clone()).to_vec();
        told.extend(reports.clone());
        assert_eq!(verdicts(&told), [Counted, Report, Report, Duplicate, Duplicate, Duplicate], "{order:?}");
        let (found, _, sold, _) = come_to(&told);
        assert_eq!((found.unwrap().total, sold), (Some(eur(100)), sum_sales(&[sale("a", 0, 1, 1, &[eur(100)])])), "{order:?}");
    }
}

#[test]
fn the_first_appearance_of_a_report_says_when_and_by_whom() {
    let told = |minute, channel, crawler| {
        let event = order(minute, &[item("a", 1, Some(eur(1)))]);
        let mut record = record(&event, "e", channel, true);
        if crawler {
            record.flags.set(Flags::CRAWLER);
        }
        (record, event)
    };
    let (_, outcomes) = run(&vec![
        told(5, Channel::Server, true),
        told(3, Channel::Server, false),
        told(4, Channel::Webhook, false),
        told(2, Channel::Webhook, true),
        told(1, Channel::Server, false),
    ]);
    assert_eq!(outcomes[0].effects.sales, [Sale { crawler: true, ..sale("a", 5, 1, 1, &[eur(1)]) }]);
    let taken_back = Sale { crawler: true, ..sale("a", 5, -1, -1, &[eur(-1)]) };
    assert_eq!((outcomes[2].verdict, &outcomes[2].effects.sales), (Verdict::Report, &vec![sale("a", 4, 1, 1, &[eur(1)]), taken_back]));
    for repeat in [1, 3, 4] {
        assert_eq!(outcomes[repeat], Outcome { verdict: Verdict::Duplicate, effects: Effects::default() });
    }
}

#[test]
fn the_webhook_wins_over_server_and_pixel() {
    let says = |price| order(0, &[item("a", 1, Some(eur(price)))]);
    let reports = vec![report(says(100), "p", Channel::Pixel), report(says(300), "w", Channel::Webhook), report(says(200), "s", Channel::Server)];
    let (entry, outcomes) = run(&reports);
    assert_eq!(outcomes[0].effects.sales, [sale("a", 0, 1, 1, &[eur(100)])]);
    assert_eq!(outcomes[1].effects.sales, [sale("a", 0, 0, 0, &[eur(200)])]);
    assert_eq!(outcomes[2], Outcome { verdict: Verdict::Report, effects: Effects::default() });
    let view = entry.unwrap().order().unwrap();
    assert_eq!((view.order_id.as_str(), view.total, view.units, view.sales), ("o1", Some(eur(300)), 1, vec![sale("a", 0, 1, 1, &[eur(300)])]));
}

#[test]
fn refunds_take_what_the_order_holds() {
    let sold = order(0, &[item("a", 3, Some(eur(100))), item("b", 1, Some(usd(50))), item("a", 1, Some(eur(60)))]);
    let reports = vec![
        report(sold, "o", Channel::Server),
        report(refund(Some("whole"), 1, None), "w", Channel::Server),
        report(refund(Some("part"), 2, Some(&[item("a", 2, None)])), "p", Channel::Server),
        report(refund(Some("later"), 3, Some(&[item("a", 9, Some(eur(1000))), item("z", 1, Some(eur(5)))])), "l", Channel::Server),
    ];
    let (entry, outcomes) = run(&reports);
    assert_eq!(outcomes[1].effects.sales, [sale("a", 1, -4, 0, &[eur(-360)]), sale("b", 1, -1, 0, &[usd(-50)])]);
    // 2 of 4 pieces at the average price; the whole refund is left that much less.
    assert_eq!(outcomes[2].effects.sales, [sale("a", 1, 2, 0, &[eur(180)]), sale("a", 2, -2, 0, &[eur(-180)])]);
    assert_eq!(outcomes[3].effects.sales, [sale("a", 1, 2, 0, &[eur(180)]), sale("a", 3, -2, 0, &[eur(-180)])]);
    let view = entry.unwrap().order().unwrap();
    assert_eq!(view.refunded, [(eur(0).currency, 360), (usd(0).currency, 50)]);
    let stands = [("a", 0, 4), ("b", 0, 1), ("b", 1, -1), ("a", 2, -2), ("a", 3, -2)];
    assert_eq!(view.sales.iter().map(|s| (s.product_id.as_str(), s.at, s.units)).collect::<Vec<_>>(), stands.map(|(p, m, n)| (p, at(m), n)));
}

#[test]
fn a_refund_of_an_unknown_order_counts_by_its_items() {
    let reports = vec![
        report(refund(None, 1, Some(&[item("a", 5, Some(eur(10))), item("b", 1, None)])), "p", Channel::Server),
        report(refund(None, 2, None), "w", Channel::Server),
        report(order(0, &[item("a", 2, Some(eur(10))), item("b", 2, Some(eur(7)))]), "o", Channel::Server),
    ];
    let (entry, outcomes) = run(&reports);
    assert_eq!(outcomes[0].effects.sales, [sale("a", 1, -5, 0, &[eur(-50)]), sale("b", 1, -1, 0, &[])]);
    assert_eq!((outcomes[1].verdict, outcomes[1].effects.sales.len()), (Verdict::Counted, 0));
    assert_eq!(
        outcomes[2].effects.sales,
        [
            sale("a", 0, 2, 1, &[eur(20)]),
            sale("a", 1, 3, 0, &[eur(30)]),
            sale("b", 0, 2, 1, &[eur(14)]),
            sale("b", 1, 0, 0, &[eur(-7)]),
            sale("b", 2, -1, 0, &[eur(-7)]),
        ]
    );
    assert_eq!(entry.unwrap().order().unwrap().at, Some(at(0)));
}

#[test]
fn shares_round_half_even() {
    for (amount, part, whole, share) in [(100, 1, 3, 33), (5, 1, 2, 2), (15, 1, 2, 8), (-5, 1, 2, -2), (-15, 1, 2, -8), (7, 0, 0, 0), (200, 1, 3, 67)]
    {
        let sold = order(0, &[item("a", whole.max(1), Some(eur(0)))]);
        assert_eq!(orders::share(amount, part, whole), share, "{amount} x {part} / {whole} of {sold:?}");
    }
}

#[test]
fn a_repeat_that_comes_later_is_a_sign_of_life() {
    let one = |minute| {
        let event = step("contact", StepStatus::Entered, minute, Some(eur(5)));
        (record(&event, "e", Channel::Pixel, true), event)
    };
    let (entry, outcomes) = run(&vec![one(0), one(7)]);
    assert_eq!(outcomes[1].verdict, Verdict::Duplicate);
    assert_eq!((outcomes[1].effects.steps.len(), outcomes[1].effects.checkout_changed), (0, true));
    let view = entry.unwrap().checkout().unwrap();
    assert_eq!((view.last_at, view.steps[0].at, view.value, view.checkout.as_str()), (at(7), at(0), Some(eur(5)), "ch1"));
    assert_eq!((view.last_step.as_deref(), view.completed), (Some("contact"), None));
}

#[test]
fn a_better_report_moves_its_step() {
    let first = step("contact", StepStatus::Entered, 3, None);
    let better = step("contact", StepStatus::Entered, 1, None);
    let (_, outcomes) = run(&vec![report(first, "p", Channel::Pixel), report(better, "w", Channel::Webhook)]);
    let moved: Vec<_> = outcomes[1].effects.steps.iter().map(|step| (step.at, step.count)).collect();
    assert_eq!((outcomes[1].verdict, moved), (Verdict::Report, vec![(at(3), -1), (at(1), 1)]));
}

#[test]
fn a_step_without_any_party_is_its_own_checkout() {
    let mut event = step("contact", StepStatus::Entered, 0, None);
    event.checkout.as_mut().unwrap().id = None;
    let [one, other] = ["e1", "e2"].map(|id| record(&event, id, Channel::Pixel, false));
    assert_eq!(one.key_kind, KeyKind::Event);
    assert_ne!(key_of(&one, &event), key_of(&other, &event));
    let mut entry = None;
    fold(&mut entry, &one, &event, 0);
    assert_eq!(entry.unwrap().checkout().unwrap().checkout, "e1");
}

#[test]
fn reports_past_the_bound_are_conflicts() {
    let page = |n| report(blank(kind::PAGE_VIEWED, n), "e", Channel::Server);
    let sold = |n| report(order(n, &[item("a", 1, Some(eur(n)))]), "e", if n == 1_005 { Channel::Webhook } else { Channel::Server });
    for one in [&page as &dyn Fn(i64) -> (Record, Event), &sold] {
        let reports: Reports = (0..MAX_REPORTS as i64 + 10).map(one).collect();
        let (entry, outcomes) = run(&reports);
        let counted = outcomes.iter().filter(|outcome| outcome.verdict == Verdict::Counted).count();
        assert_eq!(counted, 1);
        assert!(outcomes[MAX_REPORTS..].iter().all(|outcome| *outcome == Outcome { verdict: Verdict::Conflict, effects: Effects::default() }));
        assert!(entry.unwrap().to_bytes().len() < 20_000);
    }
    let refunds: Reports = (0..MAX_FACTS + 2).map(|n| report(refund(Some(&n.to_string()), 0, None), "e", Channel::Server)).collect();
    assert_eq!(verdicts(&refunds).iter().filter(|verdict| **verdict == Verdict::Conflict).count(), 2);
}

#[test]
fn golden_version_1() {
    let pages = vec![report(blank(kind::PAGE_VIEWED, 0), "e1", Channel::Pixel), report(blank(kind::PAGE_VIEWED, 1), "e1", Channel::Pixel)];
    let orders = vec![
        report(with_party(order(0, &[item("a", 2, Some(eur(1299))), item("b", 1, None)]), Some(1), true), "e2", Channel::Webhook),
        report(refund(Some("r1"), 1, None), "e3", Channel::Server),
        report(refund(None, 2, Some(&[item("a", 1, None)])), "e4", Channel::Server),
    ];
    let mut completion = report(with_party(order(9, &[]), Some(1), false), "e6", Channel::Server);
    completion.0.kind = RecordKind::Completion;
    let steps = vec![report(step("contact", StepStatus::Completed, 3, Some(eur(2598))), "e5", Channel::Pixel), completion];
    let mut found = Vec::new();
    for mut reports in [pages, orders, steps] {
        // The entry's format is pinned here, not what a fingerprint is taken over.
        reports.iter_mut().zip(1..).for_each(|((record, _), n)| record.fingerprint = n << 56 | n);
        let bytes = run(&reports).0.unwrap().to_bytes();
        assert_eq!(Entry::from_bytes(&bytes), run(&reports).0);
        found.push(bytes.iter().map(|b| format!("{b:02x}")).collect::<String>());
    }
    assert_eq!(found, include_str!("../golden/identity_v1.hex").lines().collect::<Vec<_>>());
    assert_eq!(Entry::from_bytes(&[]), None);
    assert_eq!(Entry::from_bytes(&[2, 0, 0, 0]), None);
}
