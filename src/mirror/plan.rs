//! What is to be asked of the other service so that it has an object as it is here: compares what is here with what is known to be there. Pure.
//!
//! A map's item and a document are named alike on both sides; a list's item gets its index from the other service. Which is which there is known from the
//! appends of this process, and after a start from the data alone: equal items are taken for the same, from the first on.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;

use crate::event::ObjectKind;
use crate::event::ids::{first_16, sha256};

/// Tells JSON values apart, however they are written: keys in any order, numbers in any notation.
pub(super) type Digest = [u8; 16];

/// The digest of JSON text; of what is none, that of its bytes.
pub(super) fn digest(text: &str) -> Digest {
    match serde_json::from_str::<Value>(text) {
        Ok(value) => digest_of(&value),
        Err(_) => first_16(&sha256(&[text.as_bytes()])),
    }
}

/// The digest of a JSON value.
pub(super) fn digest_of(value: &Value) -> Digest {
    let mut canonical = String::new();
    write(value, &mut canonical);
    first_16(&sha256(&[canonical.as_bytes()]))
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Array(values) => {
            out.push('[');
            for value in values {
                write(value, out);
                out.push(',');
            }
            out.push(']');
        }
        Value::Object(fields) => {
            let sorted: BTreeMap<&String, &Value> = fields.iter().collect();
            out.push('{');
            for (name, value) in sorted {
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                write(value, out);
                out.push(',');
            }
            out.push('}');
        }
        // One that has a fraction nowhere else either: 1, 1.0 and 1e0 are the same.
        Value::Number(number) if !number.is_u64() && !number.is_i64() => match number.as_f64() {
            Some(float) if float.fract() == 0.0 && float.abs() < 9e15 => out.push_str(&format!("{float:.0}")),
            _ => out.push_str(&number.to_string()),
        },
        plain => out.push_str(&plain.to_string()),
    }
}

/// An object as it is here.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Local {
    pub(super) kind: ObjectKind,
    /// A document's data under no name; a map's items by key, a list's by index, in their order. None for what was removed.
    pub(super) items: BTreeMap<String, Option<Item>>,
    /// Whether these are all items there are; else those that changed since it was last as it is there.
    pub(super) is_whole: bool,
}

/// JSON text, and what tells it from others.
pub(super) type Item = (Arc<str>, Digest);

impl Local {
    fn living(&self) -> impl Iterator<Item = (&String, &Item)> {
        self.items.iter().filter_map(|(name, item)| Some((name, item.as_ref()?)))
    }

    /// Whether an item that is there is none here.
    fn lacks(&self, name: &str) -> bool {
        self.items.get(name).map_or(self.is_whole, Option::is_none)
    }
}

/// What is known to be there of an object.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Remote {
    /// There is no such object.
    Missing,
    /// A document, or a map: its items.
    Named(BTreeMap<String, Digest>),
    /// A list.
    List(List),
}

/// A list there.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct List {
    /// By item here, its index there and its data; without an index it was refused, and is not there.
    known: BTreeMap<String, (Option<u64>, Digest)>,
    /// Items that are none here.
    strays: VecDeque<u64>,
}

/// One thing to ask for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Makes the object; a document with its data.
    Create(Option<Item>),
    /// Removes it with all it has.
    Remove,
    /// Puts a document's data.
    PutDocument(Arc<str>, Digest),
    /// Puts a map's item; whether it is known to be there.
    PutItem { key: String, data: Arc<str>, digest: Digest, known: bool },
    /// Removes a map's item.
    RemoveItem { key: String },
    /// Appends to a list what is this item here.
    Append { item: String, data: Arc<str>, digest: Digest },
    /// Replaces a list's item.
    UpdateIndex { item: String, index: u64, data: Arc<str>, digest: Digest },
    /// Removes a list's item.
    RemoveIndex { index: u64 },
}

impl Step {
    /// Bytes that it carries.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Create(Some((data, _))) | Self::PutDocument(data, _) => data.len(),
            Self::PutItem { data, .. } | Self::Append { data, .. } | Self::UpdateIndex { data, .. } => data.len(),
            Self::Create(None) | Self::Remove | Self::RemoveItem { .. } | Self::RemoveIndex { .. } => 0,
        }
    }

    /// Whether it makes or removes an object, which a whole service has a rate for.
    pub(super) const fn is_of_service(&self) -> bool {
        matches!(self, Self::Create(_) | Self::Remove)
    }
}

impl Remote {
    /// A list as it was read there, in the order of its indexes, matched with what is here.
    pub(super) fn list(there: Vec<(u64, Digest)>, here: Option<&Local>) -> Self {
        let mut of_data: HashMap<Digest, VecDeque<u64>> = HashMap::new();
        for (index, digest) in &there {
            of_data.entry(*digest).or_default().push_back(*index);
        }
        let items = here.into_iter().flat_map(Local::living);
        let matched = |(item, (_, digest)): (&String, &Item)| {
            let index = of_data.get_mut(digest)?.pop_front()?;
            Some((item.clone(), (Some(index), *digest)))
        };
        let known: BTreeMap<String, (Option<u64>, Digest)> = items.filter_map(matched).collect();
        let mut strays: Vec<u64> = of_data.into_values().flatten().collect();
        strays.sort_unstable();
        Self::List(List { known, strays: strays.into() })
    }

    /// What is to be asked for, in this order, at most `most` things.
    pub(super) fn steps(&self, here: Option<&Local>, most: usize) -> Vec<Step> {
        match (self, here) {
            (Self::Missing, None) => Vec::new(),
            (_, None) => vec![Step::Remove],
            (Self::Missing, Some(here)) if here.kind == ObjectKind::Document => vec![Step::Create(here.items.get("").cloned().flatten())],
            (Self::Missing, Some(_)) => vec![Step::Create(None)],
            (Self::Named(there), Some(here)) if here.kind == ObjectKind::Document => {
                let data = here.items.get("").and_then(Option::as_ref).filter(|(_, digest)| there.get("") != Some(digest));
                data.map(|(data, digest)| Step::PutDocument(Arc::clone(data), *digest)).into_iter().collect()
            }
            (Self::Named(there), Some(here)) => {
                let gone = there.keys().filter(|key| here.lacks(key)).map(|key| Step::RemoveItem { key: key.clone() });
                let put = here.living().filter(|(key, (_, digest))| there.get(*key) != Some(digest)).map(|(key, (data, digest))| Step::PutItem {
                    key: key.clone(),
                    data: Arc::clone(data),
                    digest: *digest,
                    known: there.contains_key(key),
                });
                gone.chain(put).take(most).collect()
            }
            (Self::List(List { known, strays }), Some(here)) => {
                let gone = known.iter().filter(|(item, _)| here.lacks(item)).filter_map(|(_, (index, _))| *index);
                let gone = gone.chain(strays.iter().copied()).map(|index| Step::RemoveIndex { index });
                let changed = here.living().filter_map(|(item, (data, digest))| {
                    let data = Arc::clone(data);
                    match known.get(item) {
                        Some((_, there)) if there == digest => None,
                        Some((Some(index), _)) => Some(Step::UpdateIndex { item: item.clone(), index: *index, data, digest: *digest }),
                        Some((None, _)) | None => Some(Step::Append { item: item.clone(), data, digest: *digest }),
                    }
                });
                gone.chain(changed).take(most).collect()
            }
        }
    }

    /// Notes that a step was done, or that it is given up until its data changes; of an append the index that it got (none: given up).
    pub(super) fn note(&mut self, step: &Step, kind: ObjectKind, index: Option<u64>) {
        match (step, &mut *self) {
            (Step::Create(data), _) => {
                *self = if kind == ObjectKind::List {
                    Self::List(List::default())
                } else {
                    Self::Named(data.iter().map(|(_, digest)| (String::new(), *digest)).collect())
                };
            }
            (Step::Remove, _) => *self = Self::Missing,
            (Step::PutDocument(_, digest), Self::Named(there)) => drop(there.insert(String::new(), *digest)),
            (Step::PutItem { key, digest, .. }, Self::Named(there)) => drop(there.insert(key.clone(), *digest)),
            (Step::RemoveItem { key }, Self::Named(there)) => drop(there.remove(key)),
            (Step::Append { item, digest, .. }, Self::List(list)) => {
                list.known.insert(item.clone(), (index, *digest));
            }
            (Step::UpdateIndex { item, index, digest, .. }, Self::List(list)) => drop(list.known.insert(item.clone(), (Some(*index), *digest))),
            (Step::RemoveIndex { index }, Self::List(list)) => {
                list.known.retain(|_, (known, _)| *known != Some(*index));
                list.strays.retain(|stray| stray != index);
            }
            (_, Self::Missing | Self::Named(_) | Self::List(_)) => {}
        }
    }

    /// Notes that nobody knows whether a step was done; false where that is to be learned, as what is there may be neither what was nor what was to be.
    pub(super) fn doubt(&mut self, step: &Step) -> bool {
        let Self::List(list) = self else { return false };
        let Step::UpdateIndex { item, index, .. } = step else { return false };
        // It is there at its index, with data that is put again: so the list keeps its order.
        list.known.insert(item.clone(), (Some(*index), Digest::default()));
        true
    }

    /// About how many bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Missing => 64,
            Self::Named(there) => 64 + there.keys().map(|key| key.len() + 64).sum::<usize>(),
            Self::List(list) => 64 + list.known.len() * 96 + list.strays.len() * 8,
        }
    }
}

#[cfg(test)]
mod tests;
