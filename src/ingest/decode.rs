//! Content-Encoding: a body as sent to the body as meant, within a limit. Called by the handler once the whole body is here. Pure; must never
//! hold more than the limit, whatever a compressed body claims to unfold to.

use std::io::Read;

use bytes::Bytes;

/// The encodings taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// As it is.
    Identity,
    /// RFC 1952, one or more members.
    Gzip,
    /// RFC 8878, one or more frames.
    Zstd,
}

/// Why a body could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undecodable {
    /// More than the limit once decoded.
    TooLarge,
    /// Not what the encoding says.
    Corrupt,
}

impl Encoding {
    /// Reads a `Content-Encoding` value; None for any other and for several.
    pub(crate) fn parse(value: &str) -> Option<Self> {
        match value.trim() {
            "" => Some(Self::Identity),
            name if name.eq_ignore_ascii_case("identity") => Some(Self::Identity),
            name if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") => Some(Self::Gzip),
            name if name.eq_ignore_ascii_case("zstd") => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Largest window a zstd frame may ask for, as a power of two: 8 MiB, what RFC 8878 asks decoders to support.
const ZSTD_WINDOW_LOG: u32 = 23;

/// Decodes a body of at most `limit` bytes. `grow` is told how many bytes are held, before more are read; its refusal ends the decoding.
///
/// # Errors
/// `Ok(Err(_))` when the body is at fault, `Err(_)` when `grow` refused.
pub(crate) fn decode<E>(
    encoding: Encoding,
    body: Bytes,
    limit: usize,
    grow: impl FnMut(usize) -> Result<(), E>,
) -> Result<Result<Bytes, Undecodable>, E> {
    let mut encoded = &*body;
    match encoding {
        Encoding::Identity if body.len() > limit => Ok(Err(Undecodable::TooLarge)),
        Encoding::Identity => Ok(Ok(body)),
        Encoding::Gzip => unfold(flate2::read::MultiGzDecoder::new(encoded), limit, grow),
        Encoding::Zstd => {
            let Ok(mut decoder) = zstd::stream::read::Decoder::with_buffer(&mut encoded) else { return Ok(Err(Undecodable::Corrupt)) };
            if decoder.window_log_max(ZSTD_WINDOW_LOG).is_err() {
                return Ok(Err(Undecodable::Corrupt));
            }
            unfold(decoder, limit, grow)
        }
    }
}

fn unfold<E>(mut from: impl Read, limit: usize, mut grow: impl FnMut(usize) -> Result<(), E>) -> Result<Result<Bytes, Undecodable>, E> {
    let mut out = Vec::new();
    let mut chunk = [0; 16 << 10];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(Ok(out.into())),
            Ok(read) if out.len() + read > limit => return Ok(Err(Undecodable::TooLarge)),
            Ok(read) => {
                grow(out.len() + read)?;
                out.extend_from_slice(chunk.get(..read).unwrap_or_default());
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return Ok(Err(Undecodable::Corrupt)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn plain(encoding: Encoding, body: Vec<u8>) -> Result<Bytes, Undecodable> {
        decode::<Infallible>(encoding, body.into(), 1 << 20, |_| Ok(())).unwrap()
    }

    #[test]
    fn each_encoding_unfolds() {
        let text = br#"{"type":"x"}"#.repeat(100);
        let twice = [gzip(&text), gzip(&text)].concat();
        assert_eq!(plain(Encoding::Identity, text.clone()).unwrap(), text);
        assert_eq!(plain(Encoding::Gzip, twice).unwrap(), text.repeat(2));
        assert_eq!(plain(Encoding::Zstd, zstd::encode_all(&*text, 1).unwrap()).unwrap(), text);
    }

    #[test]
    fn bombs_and_damage_are_told() {
        let bomb = vec![b' '; (1 << 20) + 1];
        assert_eq!(plain(Encoding::Identity, bomb.clone()), Err(Undecodable::TooLarge));
        assert_eq!(plain(Encoding::Gzip, gzip(&bomb)), Err(Undecodable::TooLarge));
        assert_eq!(plain(Encoding::Zstd, zstd::encode_all(&*bomb, 1).unwrap()), Err(Undecodable::TooLarge));
        let mut cut = gzip(b"some text that is long enough");
        cut.truncate(cut.len() - 6);
        assert_eq!(plain(Encoding::Gzip, cut), Err(Undecodable::Corrupt));
        assert_eq!(plain(Encoding::Gzip, b"{}".to_vec()), Err(Undecodable::Corrupt));
        assert_eq!(plain(Encoding::Zstd, b"{}".to_vec()), Err(Undecodable::Corrupt));
        let mut wide = Vec::new();
        let mut encoder = zstd::stream::write::Encoder::new(&mut wide, 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(b"{}").unwrap();
        encoder.finish().unwrap();
        assert_eq!(plain(Encoding::Zstd, wide), Err(Undecodable::Corrupt), "a frame that asks for a window of 128 MiB");
    }

    #[test]
    fn growth_is_asked_for_first() {
        let refused = decode(Encoding::Gzip, gzip(&vec![b' '; 100_000]).into(), 1 << 20, |held| if held > 40_000 { Err("full") } else { Ok(()) });
        assert_eq!(refused, Err("full"));
    }

    #[test]
    fn unknown_encodings_are_unknown() {
        for (value, want) in [
            ("", Some(Encoding::Identity)),
            ("GZIP", Some(Encoding::Gzip)),
            ("zstd", Some(Encoding::Zstd)),
            ("br", None),
            ("gzip, gzip", None),
            ("deflate", None),
        ] {
            assert_eq!(Encoding::parse(value), want, "{value}");
        }
    }
}
