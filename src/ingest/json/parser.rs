//! The parser: a text to the tree of `ingest::json`. Called through that module. Pure; must never panic, whatever the text, nor hold more
//! than the event it reads.

use super::{MAX_DEPTH, Node, Object, Text, plain_run};

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

/// Where serde_json says a text is wrong, as a byte offset.
fn offset_in(text: &str, error: &serde_json::Error) -> usize {
    let before: usize = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    (before + error.column()).min(text.len())
}
