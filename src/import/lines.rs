//! A file's bytes as numbered lines of bounded length, plain or compressed. Called by the mapping engine's two row readers.
//! Must never hold more than one line and what was pushed back.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};

/// Longest line taken, in bytes; a longer one is passed over and reported.
pub const MAX_LINE_BYTES: usize = 1 << 20;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Decompresses by the first bytes (gzip, zstd), whatever the file is called; anything else is read as it is.
pub fn decompressed<R: Read + Send + 'static>(file: R) -> io::Result<Box<dyn BufRead + Send>> {
    let mut reader = BufReader::with_capacity(64 * 1024, file);
    let mut head = Vec::with_capacity(ZSTD.len());
    (&mut reader).take(ZSTD.len() as u64).read_to_end(&mut head)?;
    let (gzip, zstd) = (head.starts_with(&GZIP), head.starts_with(&ZSTD));
    let whole = io::Cursor::new(head).chain(reader);
    Ok(if gzip {
        Box::new(BufReader::with_capacity(64 * 1024, flate2::bufread::MultiGzDecoder::new(whole)))
    } else if zstd {
        Box::new(BufReader::with_capacity(64 * 1024, zstd::Decoder::with_buffer(whole)?))
    } else {
        Box::new(whole)
    })
}

/// One line as it was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Its bytes, without the newline.
    Text {
        /// Counted from 1.
        number: u64,
        /// Everything up to the newline; a `\r` before it is still there.
        bytes: Vec<u8>,
    },
    /// Longer than [`MAX_LINE_BYTES`]; its bytes are gone.
    TooLong {
        /// Counted from 1.
        number: u64,
    },
}

/// The lines of a reader.
pub(super) struct Lines<R> {
    reader: R,
    number: u64,
    pushed_back: VecDeque<(u64, Vec<u8>)>,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, number: 0, pushed_back: VecDeque::new() }
    }

    /// The next line, None at the end. An error leaves nothing more to read.
    pub(super) fn next(&mut self) -> io::Result<Option<Line>> {
        if let Some((number, bytes)) = self.pushed_back.pop_front() {
            return Ok(Some(Line::Text { number, bytes }));
        }
        let mut bytes = Vec::new();
        let (mut too_long, mut any) = (false, false);
        loop {
            let chunk = match self.reader.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if chunk.is_empty() {
                break;
            }
            any = true;
            let end = chunk.iter().position(|b| *b == b'\n');
            let part = chunk.get(..end.unwrap_or(chunk.len())).unwrap_or_default();
            too_long |= bytes.len() + part.len() > MAX_LINE_BYTES;
            if too_long {
                bytes = Vec::new();
            } else {
                bytes.extend_from_slice(part);
            }
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                break;
            }
        }
        if !any {
            return Ok(None);
        }
        self.number += 1;
        let number = self.number;
        if number == 1 && bytes.starts_with(&BYTE_ORDER_MARK) {
            bytes.drain(..BYTE_ORDER_MARK.len());
        }
        Ok(Some(if too_long { Line::TooLong { number } } else { Line::Text { number, bytes } }))
    }

    /// Gives lines back, in their order, to be read again before the rest.
    pub(super) fn push_back(&mut self, lines: Vec<(u64, Vec<u8>)>) {
        for line in lines.into_iter().rev() {
            self.pushed_back.push_front(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn all(bytes: &[u8]) -> Vec<Line> {
        let mut lines = Lines::new(BufReader::with_capacity(7, bytes));
        std::iter::from_fn(|| lines.next().unwrap()).collect()
    }

    #[test]
    fn numbers_lines_and_passes_over_too_long_ones() {
        let text = |number, bytes: &[u8]| Line::Text { number, bytes: bytes.to_vec() };
        assert_eq!(all(b""), []);
        assert_eq!(all(b"a\r\n\nlonger than a buffer\nend"), [text(1, b"a\r"), text(2, b""), text(3, b"longer than a buffer"), text(4, b"end")]);
        assert_eq!(all(b"\xef\xbb\xbfa\n\xef\xbb\xbf"), [text(1, b"a"), text(2, b"\xef\xbb\xbf")]);
        let mut long = vec![b'x'; MAX_LINE_BYTES + 1];
        long.extend(b"\nok\n");
        assert_eq!(all(&long), [Line::TooLong { number: 1 }, text(2, b"ok")]);
        assert_eq!(all(&long[1..]).len(), 2, "exactly the bound is taken");
        assert!(matches!(&all(&long[1..])[0], Line::Text { bytes, .. } if bytes.len() == MAX_LINE_BYTES));
    }

    #[test]
    fn reads_gzip_and_zstd_by_content() {
        let plain = "یک\nدو\n".repeat(1000).into_bytes();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gz.write_all(&plain).unwrap();
        for file in [plain.clone(), gz.finish().unwrap(), zstd::encode_all(plain.as_slice(), 0).unwrap()] {
            let mut read = Vec::new();
            decompressed(io::Cursor::new(file)).unwrap().read_to_end(&mut read).unwrap();
            assert_eq!(read, plain);
        }
        let mut short = Vec::new();
        decompressed(io::Cursor::new(b"a".to_vec())).unwrap().read_to_end(&mut short).unwrap();
        assert_eq!(short, b"a");
    }
}
