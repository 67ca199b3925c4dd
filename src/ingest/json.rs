//! JSON as ingest reads it: each event parsed once into a tree that borrows from the request, keys sorted, repeated keys resolved (the last
//! wins), nulls gone, numbers verbatim; and written once as canonical text. Called by the dialects, validation and translation. Pure; must
//! never recurse deeper than [`MAX_DEPTH`] nor read past the event it was asked for.

mod parser;

use std::mem;

pub(crate) use parser::{Fault, Parser, What};

/// Deepest nesting of arrays and objects taken, the event's own object included.
pub(crate) const MAX_DEPTH: usize = 64;

/// A string that remembers whether it can be written without escaping.
#[derive(Clone, Debug)]
pub(crate) enum Text<'a> {
    /// Holds no quote, backslash or control character: written as it is. Only literals and what the parser cut may be this.
    Plain(&'a str),
    /// Any string; escaped when written.
    Owned(String),
}

impl std::ops::Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        match self {
            Self::Plain(text) => text,
            Self::Owned(text) => text,
        }
    }
}

/// One JSON value.
#[derive(Clone, Debug)]
pub(crate) enum Node<'a> {
    /// `null`; stands only in arrays, and as a whole value.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number as the sender wrote it: legal JSON, finite as a double.
    Number(Text<'a>),
    /// A string, unescaped.
    String(Text<'a>),
    /// An array.
    Array(Vec<Node<'a>>),
    /// An object.
    Object(Object<'a>),
}

impl<'a> Node<'a> {
    /// What JSON calls the value, with its article.
    pub(crate) const fn describe(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::Array(_) => "an array",
            Self::Object(_) => "an object",
        }
    }

    /// The object, if it is one.
    pub(crate) const fn as_object(&self) -> Option<&Object<'a>> {
        match self {
            Self::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The string, if it is one.
    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// Appends the value's canonical text.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Bool(true) => out.extend_from_slice(b"true"),
            Self::Bool(false) => out.extend_from_slice(b"false"),
            Self::Number(text) => out.extend_from_slice(text.as_bytes()),
            Self::String(text) => write_text(text, out),
            Self::Array(items) => {
                out.push(b'[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    item.write(out);
                }
                out.push(b']');
            }
            Self::Object(object) => object.write(out),
        }
    }
}

/// An object: keys unique and in byte order, no null among the values.
#[derive(Clone, Debug, Default)]
pub(crate) struct Object<'a>(Vec<(Text<'a>, Node<'a>)>);

impl<'a> Object<'a> {
    fn find(&self, key: &str) -> Option<usize> {
        if self.0.len() <= 16 {
            // Most keys differ in length already: cheaper than halving.
            return self.0.iter().position(|(have, _)| **have == *key);
        }
        self.place(key).ok()
    }

    fn place(&self, key: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(have, _)| have.as_bytes().cmp(key.as_bytes()))
    }

    /// The value under `key`.
    pub(crate) fn get(&self, key: &str) -> Option<&Node<'a>> {
        self.0.get(self.find(key)?).map(|(_, node)| node)
    }

    /// The value under `key`, to be changed (never into null).
    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Node<'a>> {
        let place = self.find(key)?;
        self.0.get_mut(place).map(|(_, node)| node)
    }

    /// The string under `key`, if there is one.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    /// The object under `key`, if there is one.
    pub(crate) fn object(&self, key: &str) -> Option<&Object<'a>> {
        self.get(key)?.as_object()
    }

    /// Takes the value under `key` out.
    pub(crate) fn remove(&mut self, key: &str) -> Option<Node<'a>> {
        let place = self.find(key)?;
        Some(self.0.remove(place).1)
    }

    /// Puts a value under a literal key that needs no escaping.
    pub(crate) fn insert(&mut self, key: &'static str, node: Node<'a>) {
        match self.place(key) {
            Ok(place) => {
                if let Some((_, have)) = self.0.get_mut(place) {
                    *have = node;
                }
            }
            Err(place) => self.0.insert(place, (Text::Plain(key), node)),
        }
    }

    /// Members in key order, values to be changed; one changed into null must be dropped by [`Object::drop_nulls`].
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut Node<'a>)> {
        self.0.iter_mut().map(|(key, node)| (&**key, node))
    }

    /// Takes members out whose value is null.
    pub(crate) fn drop_nulls(&mut self) {
        self.0.retain(|(_, node)| !matches!(node, Node::Null));
    }

    /// Members in key order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Node<'a>)> {
        self.0.iter().map(|(key, node)| (&**key, node))
    }

    /// Appends the object's canonical text.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        for (index, (key, node)) in self.0.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            write_text(key, out);
            out.push(b':');
            node.write(out);
        }
        out.push(b'}');
    }

    fn from_entries(mut entries: Vec<(Text<'a>, Node<'a>)>, sorted: bool, nulls: bool) -> Self {
        if !sorted {
            entries.sort_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
            entries.dedup_by(|later, earlier| {
                let repeated = *later.0 == *earlier.0;
                if repeated {
                    mem::swap(later, earlier);
                }
                repeated
            });
        }
        if nulls {
            entries.retain(|(_, node)| !matches!(node, Node::Null));
        }
        Self(entries)
    }
}

/// Appends `"key":`, as a member begins.
pub(crate) fn write_key(key: &str, out: &mut Vec<u8>) {
    write_string(key, out);
    out.push(b':');
}

/// Appends any string, escaped and quoted.
pub(crate) fn write_string(text: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    let mut rest = text.as_bytes();
    loop {
        let run = plain_run(rest);
        let (plain, from) = rest.split_at_checked(run).unwrap_or((rest, &[]));
        out.extend_from_slice(plain);
        let Some((&byte, tail)) = from.split_first() else { break };
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                out.extend_from_slice(b"\\u00");
                let digits = [byte >> 4, byte & 15].map(|d| HEX.get(usize::from(d)).copied().unwrap_or(b'0'));
                out.extend_from_slice(&digits);
            }
        }
        rest = tail;
    }
    out.push(b'"');
}

fn write_text(text: &Text<'_>, out: &mut Vec<u8>) {
    match text {
        Text::Plain(plain) => {
            out.push(b'"');
            out.extend_from_slice(plain.as_bytes());
            out.push(b'"');
        }
        Text::Owned(text) => write_string(text, out),
    }
}

/// How many bytes from the start hold no quote, backslash or control character. Eight at a time: strings are most of an event.
fn plain_run(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGHS: u64 = ONES << 7;
    const fn zero_bytes(word: u64) -> u64 {
        word.wrapping_sub(ONES) & !word
    }
    let (words, tail) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let quote = zero_bytes(word ^ (ONES * 0x22));
        let slash = zero_bytes(word ^ (ONES * 0x5c));
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        // A borrow reaches only bytes above a true hit, so the lowest hit is always right.
        let hits = (quote | slash | control) & HIGHS;
        if hits != 0 {
            return index * 8 + (hits.trailing_zeros() / 8) as usize;
        }
    }
    let special = tail.iter().position(|b| matches!(b, b'"' | b'\\' | 0..0x20));
    words.len() * 8 + special.unwrap_or(tail.len())
}

#[cfg(test)]
mod tests;
