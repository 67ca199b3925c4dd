//! JSON as ingest reads it: each event parsed once into a tree that borrows from the request, keys sorted, repeated keys resolved (the last
//! wins), nulls gone, numbers verbatim; and written once as canonical text. Called by the dialects, validation and translation. Pure; must
//! never recurse deeper than [`MAX_DEPTH`] nor read past the event it was asked for.

use std::mem;

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

/// Where serde_json says a text is wrong, as a byte offset.
fn offset_in(text: &str, error: &serde_json::Error) -> usize {
    let before: usize = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    (before + error.column()).min(text.len())
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

/// Why a value could not be read, and at which byte of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// What is wrong.
    pub(crate) what: What,
    /// Byte offset in the parser's text.
    pub(crate) at: usize,
}

/// What is wrong with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Not JSON: what was expected instead.
    Syntax(&'static str),
    /// Nested deeper than [`MAX_DEPTH`].
    Deep,
    /// Longer than the bytes it was given.
    Long,
    /// A `\u` escape that is half of a pair.
    Surrogate,
    /// A number that is not finite as a double.
    Number,
}

/// Reads values from a text.
#[derive(Debug)]
pub(crate) struct Parser<'a> {
    text: &'a str,
    at: usize,
    end: usize,
}

impl<'a> Parser<'a> {
    /// Begins at the text's start.
    pub(crate) const fn new(text: &'a str) -> Self {
        Self { text, at: 0, end: usize::MAX }
    }

    /// Where it stands.
    pub(crate) const fn at(&self) -> usize {
        self.at
    }

    /// The next byte, blanks passed over; None at the end.
    pub(crate) fn peek(&mut self) -> Option<u8> {
        loop {
            match self.byte() {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                other => return other,
            }
        }
    }

    /// Passes over `byte` if it comes next, blanks before it too.
    pub(crate) fn eat(&mut self, byte: u8) -> bool {
        let next = self.peek() == Some(byte);
        if next {
            self.at += 1;
        }
        next
    }

    /// Reads one value of at most `max` bytes.
    pub(crate) fn value(&mut self, max: usize) -> Result<Node<'a>, Fault> {
        self.peek();
        self.end = self.at.saturating_add(max);
        let node = self.node(0)?;
        if self.at > self.end {
            return Err(self.fault(What::Long));
        }
        Ok(node)
    }

    /// Passes over one value from byte `from` on, whatever its depth, length and numbers; gives its text.
    pub(crate) fn skip(&mut self, from: usize) -> Result<&'a str, Fault> {
        let rest = self.text.get(from..).unwrap_or("");
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<serde::de::IgnoredAny>();
        match values.next() {
            Some(Ok(_)) => {
                self.at = from + values.byte_offset();
                Ok(self.text.get(from..self.at).unwrap_or("").trim_ascii())
            }
            Some(Err(error)) => Err(Fault { what: What::Syntax("a value"), at: from + offset_in(rest, &error) }),
            None => Err(Fault { what: What::Syntax("a value"), at: from }),
        }
    }

    /// The text from byte `from` to where the parser stands.
    pub(crate) fn since(&self, from: usize) -> &'a str {
        self.text.get(from..self.at).unwrap_or("")
    }

    /// Says what is wrong here.
    pub(crate) const fn fault(&self, what: What) -> Fault {
        Fault { what, at: self.at }
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn node(&mut self, depth: usize) -> Result<Node<'a>, Fault> {
        match self.peek() {
            Some(b'"') => self.string().map(Node::String),
            Some(b'{') => self.object(depth + 1),
            Some(b'[') => self.array(depth + 1),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Node::Bool(true)),
            Some(b'f') => self.word("false", Node::Bool(false)),
            Some(b'n') => self.word("null", Node::Null),
            Some(_) => Err(self.fault(What::Syntax("a value"))),
            None => Err(self.fault(What::Syntax("more: the text ends early"))),
        }
    }

    fn word(&mut self, word: &'static str, node: Node<'a>) -> Result<Node<'a>, Fault> {
        if !self.text.as_bytes().get(self.at..).is_some_and(|rest| rest.starts_with(word.as_bytes())) {
            return Err(self.fault(What::Syntax("a value")));
        }
        self.at += word.len();
        Ok(node)
    }

    fn enter(&mut self, depth: usize) -> Result<(), Fault> {
        if depth > MAX_DEPTH {
            return Err(self.fault(What::Deep));
        }
        self.at += 1;
        Ok(())
    }

    fn array(&mut self, depth: usize) -> Result<Node<'a>, Fault> {
        self.enter(depth)?;
        let mut items = Vec::new();
        if self.eat(b']') {
            return Ok(Node::Array(items));
        }
        loop {
            items.push(self.node(depth)?);
            if self.at > self.end {
                return Err(self.fault(What::Long));
            }
            if self.eat(b']') {
                return Ok(Node::Array(items));
            }
            if !self.eat(b',') {
                return Err(self.fault(What::Syntax("a comma or the array's end")));
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Node<'a>, Fault> {
        self.enter(depth)?;
        // An event has about ten members, its parts about four.
        let mut entries: Vec<(Text<'a>, Node<'a>)> = Vec::with_capacity(if depth == 1 { 12 } else { 4 });
        let (mut sorted, mut nulls) = (true, false);
        if self.eat(b'}') {
            return Ok(Node::Object(Object(entries)));
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.fault(What::Syntax("a key in quotes")));
            }
            let key = self.string()?;
            if !self.eat(b':') {
                return Err(self.fault(What::Syntax("a colon")));
            }
            let node = self.node(depth)?;
            nulls |= matches!(node, Node::Null);
            sorted &= entries.last().is_none_or(|(before, _)| before.as_bytes() < key.as_bytes());
            entries.push((key, node));
            if self.at > self.end {
                return Err(self.fault(What::Long));
            }
            if self.eat(b'}') {
                return Ok(Node::Object(Object::from_entries(entries, sorted, nulls)));
            }
            if !self.eat(b',') {
                return Err(self.fault(What::Syntax("a comma or the object's end")));
            }
        }
    }

    fn number(&mut self) -> Result<Node<'a>, Fault> {
        let from = self.at;
        if self.byte() == Some(b'-') {
            self.at += 1;
        }
        if self.byte() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        let mut exact = true;
        if self.byte() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.byte(), Some(b'e' | b'E')) {
            exact = false;
            self.at += 1;
            if matches!(self.byte(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        let text = self.since(from);
        let finite = (exact && text.len() <= 300) || text.parse::<f64>().is_ok_and(f64::is_finite);
        if finite { Ok(Node::Number(Text::Plain(text))) } else { Err(Fault { what: What::Number, at: from }) }
    }

    fn digits(&mut self) -> Result<(), Fault> {
        let from = self.at;
        while self.byte().is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == from { Err(self.fault(What::Syntax("a digit"))) } else { Ok(()) }
    }

    fn string(&mut self) -> Result<Text<'a>, Fault> {
        self.at += 1;
        let from = self.at;
        self.at += plain_run(self.text.as_bytes().get(from..).unwrap_or(&[]));
        if self.byte() == Some(b'"') {
            let plain = self.since(from);
            self.at += 1;
            return Ok(Text::Plain(plain));
        }
        let mut owned = String::from(self.since(from));
        loop {
            match self.byte() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Text::Owned(owned));
                }
                Some(b'\\') => owned.push(self.escape()?),
                Some(_) => return Err(self.fault(What::Syntax("no bare control character in a string"))),
                None => return Err(self.fault(What::Syntax("the string's end"))),
            }
            let run = self.at;
            self.at += plain_run(self.text.as_bytes().get(run..).unwrap_or(&[]));
            owned.push_str(self.since(run));
        }
    }

    fn escape(&mut self) -> Result<char, Fault> {
        let from = self.at;
        self.at += 1;
        let letter = self.byte();
        self.at += 1;
        Ok(match letter {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let first = self.hex()?;
                let lone = Fault { what: What::Surrogate, at: from };
                if !(0xd800..0xe000).contains(&first) {
                    return char::from_u32(first).ok_or(lone);
                }
                if first >= 0xdc00 || !self.text.as_bytes().get(self.at..).is_some_and(|rest| rest.starts_with(b"\\u")) {
                    return Err(lone);
                }
                self.at += 2;
                let second = self.hex()?;
                if !(0xdc00..0xe000).contains(&second) {
                    return Err(lone);
                }
                char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)).ok_or(lone)?
            }
            _ => return Err(Fault { what: What::Syntax("a known escape"), at: from }),
        })
    }

    fn hex(&mut self) -> Result<u32, Fault> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4);
        let value = digits.and_then(|digits| digits.iter().try_fold(0, |n, d| char::from(*d).to_digit(16).map(|d| n << 4 | d)));
        let value = value.ok_or(self.fault(What::Syntax("four hexadecimal digits")))?;
        self.at += 4;
        Ok(value)
    }
}

#[cfg(test)]
mod tests;
