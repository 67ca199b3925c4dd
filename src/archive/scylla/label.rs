//! Labels: last writer by (at, event id, value), whatever the order of writes and whoever writes. The store decides: a label is written USING
//! TIMESTAMP of `at`, and of two values of one timestamp both servers keep the one with the greater bytes, which are made to order as event id and
//! value do. Pure.

use crate::archive::{Error, LabelValue};
use crate::event::Timestamp;

/// The bytes of a label: `at`, event id and value so that bytes order as they do.
pub(super) fn pack(label: &LabelValue) -> Vec<u8> {
    let mut bytes = ordered(label.at).to_vec();
    for byte in label.event_id.bytes() {
        bytes.push(byte);
        // No byte follows that could be less than what ends the id.
        bytes.extend((byte == 0).then_some(0xff));
    }
    bytes.extend([0, 1]);
    bytes.extend(label.value.bytes());
    bytes
}

/// Reads what [`pack`] wrote.
pub(super) fn unpack(bytes: &[u8]) -> Result<LabelValue, Error> {
    read(bytes).ok_or_else(|| Error::Corrupt("a label".into()))
}

fn read(bytes: &[u8]) -> Option<LabelValue> {
    let (at, mut rest) = bytes.split_first_chunk::<8>()?;
    let at = Timestamp::from_micros((u64::from_be_bytes(*at) ^ (1 << 63)) as i64);
    let mut event_id = Vec::new();
    loop {
        let (byte, more) = rest.split_first()?;
        rest = more;
        if *byte == 0 {
            let (next, more) = rest.split_first()?;
            rest = more;
            if *next == 1 {
                break;
            }
        }
        event_id.push(*byte);
    }
    Some(LabelValue { at, event_id: String::from_utf8(event_id).ok()?, value: String::from_utf8(rest.to_vec()).ok()? })
}

const fn ordered(at: Timestamp) -> [u8; 8] {
    (at.micros() as u64 ^ (1 << 63)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_order_as_labels_do() {
        let mut all = Vec::new();
        for at in [-5, 0, 7, i64::MAX] {
            for event_id in ["", "\0", "\0\0", "\0\u{1}", "a", "a\0", "a\0b", "a\u{1}", "ab", "é"] {
                for value in ["", "\0", "x", "\u{10ffff}"] {
                    all.push(LabelValue { at: Timestamp::from_micros(at), event_id: event_id.into(), value: value.into() });
                }
            }
        }
        let order = |label: &LabelValue| (label.at, label.event_id.clone(), label.value.clone());
        for one in &all {
            assert_eq!(unpack(&pack(one)).unwrap(), *one);
            for other in &all {
                assert_eq!(pack(one).cmp(&pack(other)), order(one).cmp(&order(other)), "{one:?} {other:?}");
            }
        }
        assert!(unpack(&[]).is_err() && unpack(&[0; 9]).is_err());
    }
}
