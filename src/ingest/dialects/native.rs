//! Contrail's own language: a body is one event, an array of events, or NDJSON, told by its content. Splits it and parses each event once.
//! Called by `ingest::batch`. Pure; must never let one bad event take another with it, nor hold more than one parsed event at a time.

use crate::ingest::MAX_EVENT_BYTES;
use crate::ingest::json::{Fault, Node, Object, Parser, What};
use crate::ingest::reject::{Code, Invalid};

/// One element of a body: the event's text as it came and what it parsed to.
#[derive(Debug)]
pub(crate) struct Piece<'a> {
    /// Its place among the body's events, from 0.
    pub(crate) index: usize,
    /// Legal JSON, unless `parsed` says [`Code::NotJson`] or [`Code::NotUtf8`].
    pub(crate) raw: &'a str,
    /// The event, or why it is none.
    pub(crate) parsed: Result<Object<'a>, Invalid>,
}

/// Why nothing of a body could be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// Nothing but blanks, or an empty array.
    Empty,
    /// Neither an object, an array nor NDJSON: what was expected at which byte.
    Syntax(&'static str, usize),
    /// Not UTF-8 from this byte on.
    Utf8(usize),
    /// More events than allowed.
    TooMany,
}

/// Hands each event of `body` to `take`, in order. Of a body that is [`Unreadable`] some may have been handed over before: drop them.
///
/// An array is one whose first byte is `[`. Everything else is one event where it parses as one; else NDJSON where an event is followed by
/// another line, or a line after the first begins with `{` (at column 0, as no line inside a printed object does); else unreadable.
pub(crate) fn events<'a>(body: &'a [u8], max_events: usize, mut take: impl FnMut(Piece<'a>)) -> Result<(), Unreadable> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    match body.trim_ascii_start().first() {
        None => Err(Unreadable::Empty),
        Some(b'[') => array(utf8(body)?, max_events, take),
        Some(_) => match single(body) {
            Ok(piece) => {
                take(piece);
                Ok(())
            }
            Err(NotSingle::Lines) => lines(body, max_events, take),
            Err(_) if body.windows(2).any(|pair| pair == b"\n{") => lines(body, max_events, take),
            Err(NotSingle::Unreadable(unreadable)) => Err(unreadable),
        },
    }
}

/// Why a body is not one event.
enum NotSingle {
    /// After its first event comes another line.
    Lines,
    /// This is wrong with it.
    Unreadable(Unreadable),
}

fn utf8(body: &[u8]) -> Result<&str, Unreadable> {
    std::str::from_utf8(body).map_err(|e| Unreadable::Utf8(e.valid_up_to()))
}

fn single(body: &[u8]) -> Result<Piece<'_>, NotSingle> {
    let fail = |wanted, at| Err(NotSingle::Unreadable(Unreadable::Syntax(wanted, at)));
    let text = utf8(body).map_err(NotSingle::Unreadable)?;
    let mut parser = Parser::new(text);
    let piece = element(&mut parser, 0).map_err(NotSingle::Unreadable)?;
    let end = parser.at();
    match parser.peek() {
        None if matches!(piece.parsed, Err(ref e) if e.code == Code::NotAnObject) => fail("an object or an array", 0),
        None => Ok(piece),
        Some(_) if piece.raw.starts_with('{') && parser.since(end).contains('\n') => Err(NotSingle::Lines),
        Some(_) => fail("nothing after the event", parser.at()),
    }
}

fn array<'a>(text: &'a str, max_events: usize, mut take: impl FnMut(Piece<'a>)) -> Result<(), Unreadable> {
    let mut parser = Parser::new(text);
    parser.eat(b'[');
    let ended = |parser: &mut Parser<'a>| match parser.peek() {
        None => Ok(()),
        Some(_) => Err(Unreadable::Syntax("nothing after the array", parser.at())),
    };
    if parser.eat(b']') {
        return ended(&mut parser).and(Err(Unreadable::Empty));
    }
    for index in 0.. {
        if index >= max_events {
            return Err(Unreadable::TooMany);
        }
        take(element(&mut parser, index)?);
        if parser.eat(b']') {
            return ended(&mut parser);
        }
        if !parser.eat(b',') {
            return Err(Unreadable::Syntax("a comma or the array's end", parser.at()));
        }
    }
    Ok(())
}

/// Reads one value. One that is legal JSON but no event that can be held is passed over and says why.
fn element<'a>(parser: &mut Parser<'a>, index: usize) -> Result<Piece<'a>, Unreadable> {
    parser.peek();
    let from = parser.at();
    let fault = match parser.value(MAX_EVENT_BYTES) {
        Ok(Node::Object(object)) => return Ok(Piece { index, raw: parser.since(from), parsed: Ok(object) }),
        Ok(other) => {
            let parsed = Err(Invalid::new(Code::NotAnObject, format!("expected an object, found {}", other.describe())));
            return Ok(Piece { index, raw: parser.since(from), parsed });
        }
        Err(Fault { what: What::Syntax(wanted), at }) => return Err(Unreadable::Syntax(wanted, at)),
        Err(fault) => fault,
    };
    let raw = parser.skip(from).map_err(|e| Unreadable::Syntax("a value", e.at))?;
    let parsed = Err(invalid(fault, raw.len()));
    Ok(Piece { index, raw, parsed })
}

fn invalid(fault: Fault, length: usize) -> Invalid {
    let (code, message) = match fault.what {
        // Whatever else is wrong with it, it cannot be kept either.
        _ if length > MAX_EVENT_BYTES => (Code::EventTooLarge, "an event is at most 1 MiB"),
        What::Syntax(_) | What::Long => (Code::EventTooLarge, "an event is at most 1 MiB"),
        What::Deep => (Code::NestedTooDeep, "arrays and objects are nested at most 64 deep"),
        What::Surrogate => (Code::LoneSurrogate, "half of a surrogate pair is no character"),
        What::Number => (Code::NumberTooLarge, "the number is beyond what a double holds"),
    };
    Invalid::new(code, message).at_byte(fault.at)
}

fn lines<'a>(body: &'a [u8], max_events: usize, mut take: impl FnMut(Piece<'a>)) -> Result<(), Unreadable> {
    let mut index = 0;
    let mut start = 0;
    for line in body.split_inclusive(|b| *b == b'\n') {
        let at = start;
        start += line.len();
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        if index >= max_events {
            return Err(Unreadable::TooMany);
        }
        take(one_line(line, index, at));
        index += 1;
    }
    Ok(())
}

/// `at`: where the line stands in the body.
fn one_line(line: &[u8], index: usize, at: usize) -> Piece<'_> {
    let lost = |code: Code, message: String, offset: usize| Piece { index, raw: "", parsed: Err(Invalid::new(code, message).at_byte(at + offset)) };
    let text = match std::str::from_utf8(line) {
        Ok(text) => text,
        Err(e) => return lost(Code::NotUtf8, "the line is not UTF-8".into(), e.valid_up_to()),
    };
    let mut parser = Parser::new(text);
    let piece = match element(&mut parser, index) {
        Ok(piece) => piece,
        Err(Unreadable::Syntax(wanted, offset)) => return lost(Code::NotJson, format!("expected {wanted}"), offset),
        Err(_) => return lost(Code::NotJson, "the line is not JSON".into(), 0),
    };
    match parser.peek() {
        None => Piece { parsed: piece.parsed.map_err(|e| Invalid { offset: e.offset.map(|o| o + at), ..e }), ..piece },
        Some(_) => lost(Code::NotJson, "expected nothing after the event".into(), parser.at()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each event's index and code (or "ok"), or why there is none.
    fn read(body: &[u8]) -> Result<Vec<(usize, &'static str)>, Unreadable> {
        let mut seen = Vec::new();
        events(body, 4, |piece| seen.push((piece.index, piece.parsed.map_or_else(|e| e.code.name(), |_| "ok"))))?;
        Ok(seen)
    }

    #[test]
    fn content_tells_the_shape() {
        assert_eq!(read(b"{\"a\":1}"), Ok(vec![(0, "ok")]));
        assert_eq!(read(b"\xef\xbb\xbf \n{\n  \"a\": [\n {}\n ]\n}\n"), Ok(vec![(0, "ok")]));
        assert_eq!(read(b" [ {} , 3 ]\n"), Ok(vec![(0, "ok"), (1, "not_an_object")]));
        assert_eq!(read(b"{}\r\n\r\n{}\n"), Ok(vec![(0, "ok"), (1, "ok")]));
        assert_eq!(read(b"garbage\n{}\n{\"a\":\n[1]\n"), Ok(vec![(0, "not_json"), (1, "ok"), (2, "not_json"), (3, "not_an_object")]));
        assert_eq!(read(b"{}\nnot json"), Ok(vec![(0, "ok"), (1, "not_json")]));
        assert_eq!(read(b"\xff\n{}\n{} {}"), Ok(vec![(0, "not_utf8"), (1, "ok"), (2, "not_json")]));
    }

    #[test]
    fn unreadable_bodies_say_where() {
        for (body, want) in [
            (&b""[..], Unreadable::Empty),
            (b" \n ", Unreadable::Empty),
            (b"[]", Unreadable::Empty),
            (b"[{},]", Unreadable::Syntax("a value", 4)),
            (b"[{} {}]", Unreadable::Syntax("a comma or the array's end", 4)),
            (b"[{}", Unreadable::Syntax("a comma or the array's end", 3)),
            (b"[{}] x", Unreadable::Syntax("nothing after the array", 5)),
            (b"{\"a\":1", Unreadable::Syntax("a comma or the object's end", 6)),
            (b"{}{}", Unreadable::Syntax("nothing after the event", 2)),
            (b"17", Unreadable::Syntax("an object or an array", 0)),
            (b"[\"\xff\"]", Unreadable::Utf8(2)),
            (b"[1,2,3,4,5]", Unreadable::TooMany),
            (b"{}\n{}\n{}\n{}\n{}", Unreadable::TooMany),
        ] {
            assert_eq!(read(body), Err(want), "{:?}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn one_bad_element_spoils_itself_alone() {
        let deep = format!("[{{}},{}1{},{{}}]", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(read(deep.as_bytes()), Ok(vec![(0, "ok"), (1, "nested_too_deep"), (2, "ok")]));
        let long = format!("[{{}},{{\"a\":[{}1]}},{{}}]", "1,".repeat(600_000));
        assert_eq!(read(long.as_bytes()), Ok(vec![(0, "ok"), (1, "event_too_large"), (2, "ok")]));
        assert_eq!(read(br#"[{"a":"\ud800"},{"a":1e999},{}]"#), Ok(vec![(0, "lone_surrogate"), (1, "number_too_large"), (2, "ok")]));
    }
}
