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
        let at = match self.fields.binary_search_by(|f| f.name.as_str().cmp(field)) {
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
        postcard::to_extend(self, vec![VERSION]).unwrap_or_default()
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
            (Self::Last { stamp: held, value }, Merge::Last(new)) => {
                // The text decides between two values of one event, so that even these do not depend on the order.
                if (&*held, &*value) < (stamp, new) {
                    held.clone_from(stamp);
                    value.clone_from(new);
                }
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
    a.rank.cmp(&b.rank).then(a.at.cmp(&b.at)).then_with(|| a.value.cmp(&b.value))
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
