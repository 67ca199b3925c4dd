//! The state of one row (a map item, a list item, a document): its fields and how changes merge into them, its stored bytes, and the JSON that
//! readers see. Called by [`super::object`]. Pure; values are JSON text and never parsed.
//!
//! Every merge gives the same state in any order. One exception is bounded, not removed: a ranked entry (a business fact of which several
//! reports may come) can move back when a better report replaces it, so that entries pushed out before would have to return. [`RESERVE`]
//! entries beyond those shown are kept for that; only a fact pushed out even of the reserve can be forgotten.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::distinct::Distinct;
use crate::event::change::{Merge, Stamp};
use crate::event::{Currency, Timestamp};

/// Version byte that opens every state this build writes.
pub const VERSION: u8 = 1;

/// Most bytes of a row's JSON; beyond, ring entries are left out, the oldest first.
pub const MAX_JSON: usize = 16 * 1024;

/// Ranked entries kept beyond those shown.
pub const RESERVE: usize = 4;

/// One row's merged state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemState {
    /// Sorted by name.
    fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Field {
    /// Empty: the cell is the row's whole data.
    name: String,
    cell: Cell,
}

/// One field's merged value. The order of the variants is the stored format's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Cell {
    /// Sum, wrapping, so that even an overflow does not depend on the order.
    Count(i64),
    /// Sums by currency, sorted, none zero.
    Money(Vec<(Currency, i64)>),
    /// The last writer's value.
    Last { stamp: Stamp, value: String },
    /// Facts, the greatest first; the first is shown.
    Facts(Vec<Entry>),
    /// Entries, the greatest first; the first `cap` are shown.
    Ring { cap: u16, entries: Vec<Entry> },
    /// The greatest number.
    Max(i64),
    /// The latest time.
    Latest(Timestamp),
    /// Different people.
    Visitors(Distinct),
    /// JSON text put whole: a replaced document, a list item.
    Whole(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    at: Timestamp,
    key: String,
    rank: Vec<u8>,
    value: String,
}

impl ItemState {
    /// A state that is this JSON text whole.
    pub fn whole(data: String) -> Self {
        Self { fields: vec![Field { name: String::new(), cell: Cell::Whole(data) }] }
    }

    /// Merges one value into a field. A value of another sort than the field holds is passed over: only a changed mapping makes one,
    /// and a changed mapping begins a new generation of objects.
    pub fn merge(&mut self, field: &str, with: &Merge, stamp: &Stamp) {
        let at = match self.fields.binary_search_by(|f| compare(&f.name, field)) {
            Ok(at) => at,
            Err(at) => {
                self.fields.insert(at, Field { name: field.to_owned(), cell: Cell::beginning(with) });
                at
            }
        };
        if let Some(found) = self.fields.get_mut(at) {
            found.cell.merge(with, stamp);
        }
    }

    /// Merges list data put at an index that is taken: the greater text stays.
    pub fn merge_whole(&mut self, data: &str) {
        match self.fields.first_mut() {
            Some(Field { cell: Cell::Whole(held), .. }) if held.as_str() >= data => {}
            _ => *self = Self::whole(data.to_owned()),
        }
    }

    /// Version 1 bytes: the version byte, then postcard.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.push(VERSION);
        postcard::to_extend(self, out).unwrap_or_default()
    }

    /// Reads version 1 bytes; Err says what is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        match bytes.split_first() {
            Some((&VERSION, rest)) => postcard::from_bytes(rest).map_err(|error| error.to_string()),
            Some((other, _)) => Err(format!("state version {other} is not one this build reads ({VERSION})")),
            None => Err("state is empty".into()),
        }
    }

    /// The row's JSON text, fields in name order; None where its whole data is null. Beyond [`MAX_JSON`] ring entries are left out, the oldest of
    /// all rings first, and `truncated: true` says so; the state keeps them.
    pub fn render(&self) -> Option<String> {
        if let [Field { name, cell }] = self.fields.as_slice()
            && name.is_empty()
        {
            let mut out = String::new();
            return cell.show(&mut out, usize::MAX).then_some(out);
        }
        let whole = self.render_object(&vec![usize::MAX; self.fields.len()], false);
        if whole.len() <= MAX_JSON {
            return Some(whole);
        }
        Some(self.render_object(&self.shed(whole.len()), true))
    }

    /// How many entries of each field to show so that the row fits.
    fn shed(&self, whole: usize) -> Vec<usize> {
        let note = ",\"truncated\":true".len();
        let mut shown: Vec<usize> = self.fields.iter().map(|f| f.cell.ring().len()).collect();
        let mut left = whole + note;
        while left > MAX_JSON {
            let oldest = self.fields.iter().zip(&mut shown).filter_map(|(field, count)| {
                let entry = field.cell.ring().get(count.checked_sub(1)?)?;
                Some(((entry.at, &entry.key), entry.value.len() + 1, count))
            });
            let Some((_, bytes, count)) = oldest.min_by(|a, b| a.0.cmp(&b.0)) else { break };
            *count -= 1;
            left = left.saturating_sub(bytes);
        }
        shown
    }

    fn render_object(&self, shown: &[usize], truncated: bool) -> String {
        let mut out = String::with_capacity(256);
        let mut note = truncated;
        out.push('{');
        for (field, shown) in self.fields.iter().zip(shown) {
            if note && field.name.as_str() > "truncated" {
                out.push_str("\"truncated\":true,");
                note = false;
            }
            let before = out.len();
            push_text(&mut out, &field.name);
            out.push(':');
            if field.cell.show(&mut out, *shown) {
                out.push(',');
            } else {
                out.truncate(before);
            }
        }
        if note {
            out.push_str("\"truncated\":true,");
        }
        if out.ends_with(',') {
            out.pop();
        }
        out.push('}');
        out
    }
}

impl Cell {
    /// What a field holds before its first value.
    fn beginning(with: &Merge) -> Self {
        match with {
            Merge::Add(_) => Self::Count(0),
            Merge::AddMoney(..) => Self::Money(Vec::new()),
            Merge::Last(_) => Self::Last { stamp: Stamp { at: Timestamp::from_micros(i64::MIN), id: String::new() }, value: "null".into() },
            Merge::LastFact { .. } => Self::Facts(Vec::new()),
            Merge::Ring { cap, .. } => Self::Ring { cap: *cap, entries: Vec::new() },
            Merge::Max(_) => Self::Max(i64::MIN),
            Merge::Latest(_) => Self::Latest(Timestamp::from_micros(i64::MIN)),
            Merge::Visitor(_) => Self::Visitors(Distinct::default()),
        }
    }

    fn merge(&mut self, with: &Merge, stamp: &Stamp) {
        match (self, with) {
            (Self::Count(sum), Merge::Add(n)) => *sum = sum.wrapping_add(*n),
            (Self::Money(sums), Merge::AddMoney(currency, amount)) => add_money(sums, *currency, *amount),
            // The text decides between two values of one event, so that even these do not depend on the order.
            (Self::Last { stamp: held, value }, Merge::Last(new)) if (&*held, &*value) < (stamp, new) => {
                held.clone_from(stamp);
                value.clone_from(new);
            }
            (Self::Facts(entries), Merge::LastFact { fact, rank, value }) => {
                put(entries, Entry { at: stamp.at, key: fact.clone(), rank: rank.clone(), value: value.clone() }, 1 + RESERVE);
            }
            (Self::Ring { cap, entries }, Merge::Ring { key, rank, value, .. }) => {
                let kept = usize::from(*cap) + if rank.is_empty() { 0 } else { RESERVE };
                put(entries, Entry { at: stamp.at, key: key.clone(), rank: rank.clone(), value: value.clone() }, kept);
            }
            (Self::Max(held), Merge::Max(n)) => *held = (*held).max(*n),
            (Self::Latest(held), Merge::Latest(at)) => *held = (*held).max(*at),
            (Self::Visitors(set), Merge::Visitor(hash)) => set.add(*hash),
            _ => {}
        }
    }

    /// The entries of a ring that may be shown, none for other cells.
    fn ring(&self) -> &[Entry] {
        match self {
            Self::Ring { cap, entries } => entries.get(..usize::from(*cap)).unwrap_or(entries),
            _ => &[],
        }
    }

    /// Appends the JSON of the value, of a ring at most `shown` entries; false and nothing where it has none.
    fn show(&self, out: &mut String, shown: usize) -> bool {
        use std::fmt::Write as _;
        // Writing to a String cannot fail.
        let wrote = match self {
            Self::Count(n) | Self::Max(n) => write!(out, "{n}"),
            Self::Latest(at) => write!(out, "\"{at}\""),
            Self::Visitors(set) => write!(out, "{}", set.estimate()),
            Self::Money(sums) => {
                out.push('[');
                for (i, (currency, amount)) in sums.iter().enumerate() {
                    let comma = if i == 0 { "" } else { "," };
                    if write!(out, "{comma}{{\"currency\":\"{currency}\",\"amount_minor\":{amount}}}").is_err() {
                        return false;
                    }
                }
                out.push(']');
                Ok(())
            }
            Self::Last { value, .. } | Self::Whole(value) => return show_value(out, value),
            Self::Facts(entries) => return entries.first().is_some_and(|entry| show_value(out, &entry.value)),
            Self::Ring { .. } => {
                out.push('[');
                for (i, entry) in self.ring().iter().take(shown).enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    out.push_str(&entry.value);
                }
                out.push(']');
                Ok(())
            }
        };
        wrote.is_ok()
    }
}

fn show_value(out: &mut String, value: &str) -> bool {
    if value == "null" {
        return false;
    }
    out.push_str(value);
    true
}

fn add_money(sums: &mut Vec<(Currency, i64)>, currency: Currency, amount: i64) {
    match sums.binary_search_by_key(&currency, |(c, _)| *c) {
        Ok(at) => {
            if let Some((_, sum)) = sums.get_mut(at) {
                *sum = sum.wrapping_add(amount);
            }
        }
        Err(at) => sums.insert(at, (currency, amount)),
    }
    sums.retain(|(_, sum)| *sum != 0);
}

/// Puts an entry in its place by (time, key), the greatest first: one per key, the better of two; at most `kept` in all.
fn put(entries: &mut Vec<Entry>, new: Entry, kept: usize) {
    if let Some(at) = entries.iter().position(|held| held.key == new.key) {
        match entries.get(at).map(|held| better(&new, held)) {
            Some(Ordering::Greater) => drop(entries.remove(at)),
            _ => return,
        }
    }
    let at = entries.partition_point(|held| (held.at, &held.key) > (new.at, &new.key));
    if at < kept {
        entries.insert(at, new);
        entries.truncate(kept);
    }
}

/// Which of two entries of one key stays: the better rank, then the later, then the greater text.
fn better(a: &Entry, b: &Entry) -> Ordering {
    let rank = if a.rank.is_empty() && b.rank.is_empty() { Ordering::Equal } else { a.rank.cmp(&b.rank) };
    rank.then(a.at.cmp(&b.at)).then_with(|| a.value.cmp(&b.value))
}

/// Orders texts as `str` does, but sees to empty ones itself: an empty `String` points nowhere, and comparing no bytes there costs a vectorised
/// `memcmp` a suppressed fault, a good hundred times what it costs elsewhere. The names of documents' rows and of whole values are empty.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    if a.is_empty() || b.is_empty() { a.len().cmp(&b.len()) } else { a.cmp(b) }
}

/// Appends a JSON string.
fn push_text(out: &mut String, text: &str) {
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else {
        out.push_str(&serde_json::to_string(text).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stamp(micros: i64, id: &str) -> Stamp {
        Stamp { at: Timestamp::from_micros(1_790_000_000_000_000 + micros), id: id.into() }
    }

    fn eur() -> Currency {
        Currency::parse("EUR").unwrap()
    }

    fn ring(key: &str, rank: &[u8], value: &str, cap: u16) -> Merge {
        Merge::Ring { key: key.into(), rank: rank.into(), value: value.into(), cap }
    }

    fn fact(key: &str, rank: &[u8], value: &str) -> Merge {
        Merge::LastFact { fact: key.into(), rank: rank.into(), value: value.into() }
    }

    fn of(merges: &[(&str, Merge, Stamp)]) -> ItemState {
        let mut state = ItemState::default();
        merges.iter().for_each(|(field, with, stamp)| state.merge(field, with, stamp));
        state
    }

    #[test]
    fn golden_version_1_of_every_cell() {
        let mut people = ItemState::default();
        (0..41_u64).for_each(|n| people.merge("f", &Merge::Visitor(n << 55 | 1), &stamp(0, "e")));
        let cells = [
            ("count", of(&[("f", Merge::Add(-3), stamp(0, "e"))])),
            ("money", of(&[("f", Merge::AddMoney(eur(), 1299), stamp(0, "e"))])),
            ("last", of(&[("f", Merge::Last("\"x\"".into()), stamp(0, "e-1"))])),
            ("facts", of(&[("f", fact("o1", &[2, 7], "{}"), stamp(0, "e"))])),
            ("ring", of(&[("f", ring("k", &[], "1", 8), stamp(0, "e")), ("f", ring("l", &[1], "2", 8), stamp(1, "e"))])),
            ("max", of(&[("f", Merge::Max(300), stamp(0, "e"))])),
            ("latest", of(&[("f", Merge::Latest(stamp(0, "").at), stamp(0, "e"))])),
            ("visitors", of(&[("f", Merge::Visitor(1), stamp(0, "e")), ("f", Merge::Visitor(u64::MAX), stamp(0, "e"))])),
            ("visitors-many", people),
            ("whole", ItemState::whole("{\"a\":1}".into())),
        ];
        let text: String =
            cells.iter().map(|(name, state)| format!("{name} {}\n", state.encode().iter().map(|b| format!("{b:02x}")).collect::<String>())).collect();
        assert_eq!(text, include_str!("golden/item_v1.txt"));
        for (name, state) in cells {
            assert_eq!(ItemState::decode(&state.encode()), Ok(state), "{name}");
        }
        assert!(ItemState::decode(&[]).is_err() && ItemState::decode(&[2, 0]).is_err() && ItemState::decode(&[1, 9]).is_err());
    }

    #[test]
    fn every_cell_shows() {
        let state = of(&[
            ("sold", Merge::Add(2), stamp(0, "a")),
            ("revenue", Merge::AddMoney(eur(), 5), stamp(0, "a")),
            ("revenue", Merge::AddMoney(Currency::parse("CHF").unwrap(), 7), stamp(0, "a")),
            ("revenue", Merge::AddMoney(Currency::parse("USD").unwrap(), 7), stamp(0, "a")),
            ("revenue", Merge::AddMoney(Currency::parse("USD").unwrap(), -7), stamp(0, "a")),
            ("title", Merge::Last("\"T\"".into()), stamp(0, "a")),
            ("gone", Merge::Last("1".into()), stamp(0, "a")),
            ("gone", Merge::Last("null".into()), stamp(1, "a")),
            ("max", Merge::Max(4), stamp(0, "a")),
            ("at", Merge::Latest(Timestamp::parse("2026-11-20T10:00:00.5Z").unwrap()), stamp(0, "a")),
            ("people", Merge::Visitor(9), stamp(0, "a")),
            ("odd \"name\"", Merge::Add(1), stamp(0, "a")),
        ]);
        assert_eq!(
            state.render().unwrap(),
            "{\"at\":\"2026-11-20T10:00:00.5Z\",\"max\":4,\"odd \\\"name\\\"\":1,\"people\":1,\
             \"revenue\":[{\"currency\":\"CHF\",\"amount_minor\":7},{\"currency\":\"EUR\",\"amount_minor\":5}],\"sold\":2,\"title\":\"T\"}"
        );
        assert_eq!(ItemState::default().render().as_deref(), Some("{}"));
        assert_eq!(of(&[("", Merge::Last("null".into()), stamp(0, "a"))]).render(), None);
        assert_eq!(of(&[("", Merge::Last("{\"x\":1}".into()), stamp(0, "a"))]).render().as_deref(), Some("{\"x\":1}"));
    }

    #[test]
    fn the_better_report_of_a_fact_moves_it() {
        let (pixel, webhook) = ([0_u8], [2_u8]);
        let a_late = ("", fact("a", &pixel, "1"), stamp(10, "e1"));
        let b = ("", fact("b", &pixel, "2"), stamp(8, "e2"));
        let a_better = ("", fact("a", &webhook, "3"), stamp(5, "e3"));
        for order in [[&a_late, &b, &a_better], [&a_better, &b, &a_late], [&b, &a_better, &a_late]] {
            assert_eq!(of(&order.map(Clone::clone)).render().as_deref(), Some("2"));
        }
        assert_eq!(of(&[a_late, b]).render().as_deref(), Some("1"));
    }

    #[test]
    fn a_large_row_sheds_its_oldest_entries() {
        let mut state = ItemState::default();
        let text = |n: i64| format!("\"{n}{}\"", "x".repeat(3_000));
        for n in 0..4_i64 {
            state.merge("a", &ring(&format!("{n}"), &[], &text(n), 8), &stamp(2 * n, "e"));
            state.merge("z", &ring(&format!("{n}"), &[], &text(n), 8), &stamp(2 * n + 1, "e"));
        }
        let json = state.render().unwrap();
        assert!(json.len() <= MAX_JSON, "{}", json.len());
        let data: serde_json::Value = serde_json::from_str(&json).unwrap();
        let lengths = ["a", "z"].map(|field| data[field].as_array().unwrap().len());
        assert_eq!((lengths, &data["truncated"]), ([2, 3], &serde_json::Value::Bool(true)));
        assert_eq!(json.find("\"truncated\""), Some(json.find(",\"z\"").unwrap() - "\"truncated\":true".len()));
    }

    fn merges() -> impl Strategy<Value = Vec<(&'static str, Merge, Stamp)>> {
        let rank = || prop::collection::vec(0..3_u8, 1..3);
        let json = || (0..9_u8).prop_map(|n| n.to_string());
        let one = prop_oneof![
            any::<i64>().prop_map(|n| ("count", Merge::Add(n))),
            (prop::sample::select(vec!["EUR", "CHF"]), any::<i64>())
                .prop_map(|(code, n)| ("money", Merge::AddMoney(Currency::parse(code).unwrap(), n))),
            json().prop_map(|text| ("last", Merge::Last(text))),
            ("[abcd]", rank(), json()).prop_map(|(fact, rank, value)| ("fact", Merge::LastFact { fact, rank, value })),
            ("[a-l]", json()).prop_map(|(key, value)| ("ring", Merge::Ring { key, rank: vec![], value, cap: 3 })),
            ("[a-g]", rank(), json()).prop_map(|(key, rank, value)| ("ranked", Merge::Ring { key, rank, value, cap: 3 })),
            any::<i64>().prop_map(|n| ("max", Merge::Max(n))),
            (0..1_000_i64).prop_map(|n| ("latest", Merge::Latest(Timestamp::from_micros(n)))),
            any::<u64>().prop_map(|hash| ("people", Merge::Visitor(hash))),
        ];
        let stamped = (one, 0..20_i64, "[xyz]").prop_map(|((field, with), at, id)| (field, with, stamp(at, &id)));
        prop::collection::vec(stamped, 0..120)
    }

    proptest! {
        /// Any order gives the same bytes (ranked entries within the reserve).
        #[test]
        fn order_does_not_matter((merges, shuffled) in merges().prop_flat_map(|m| (Just(m.clone()), Just(m).prop_shuffle()))) {
            let state = of(&merges);
            prop_assert_eq!(&state, &of(&shuffled));
            prop_assert_eq!(ItemState::decode(&state.encode()), Ok(state));
        }

        #[test]
        fn damaged_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(state) = ItemState::decode(&[&[VERSION], bytes.as_slice()].concat()) {
                state.render();
            }
        }
    }
}
