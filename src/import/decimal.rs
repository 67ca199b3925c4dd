//! Numbers as the decimal text they were written in: compared, negated and read as integers without ever becoming a float.
//! Called by the mapping engine for `skip` conditions, quantities and amounts. Pure.

use std::cmp::Ordering;

/// A plain decimal, `-?digits[.digits]`, with zeros that say nothing taken off both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decimal<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
}

impl<'a> Decimal<'a> {
    /// Takes a decimal as written; None for anything else (exponents, signs other than `-`, separators, blanks).
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let (minus, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (whole, fraction) = match digits.split_once('.') {
            Some((_, "")) => return None,
            Some(parts) => parts,
            None => (digits, ""),
        };
        let numeric = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !numeric(whole) || !numeric(fraction) {
            return None;
        }
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        let zero = whole.is_empty() && fraction.is_empty();
        Some(Self { negative: minus && !zero, whole, fraction })
    }

    /// Its value as an integer, if it is one and fits.
    pub(super) fn integer(&self) -> Option<i64> {
        if !self.fraction.is_empty() {
            return None;
        }
        let sign = if self.negative { "-" } else { "" };
        let whole = if self.whole.is_empty() { "0" } else { self.whole };
        format!("{sign}{whole}").parse().ok()
    }

    /// Orders by value, at any length.
    pub(super) fn compare(&self, other: &Self) -> Ordering {
        let magnitude =
            || self.whole.len().cmp(&other.whole.len()).then_with(|| self.whole.cmp(other.whole)).then_with(|| self.fraction.cmp(other.fraction));
        match (self.negative, other.negative) {
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => magnitude(),
            (true, true) => magnitude().reverse(),
        }
    }
}

/// The text of a decimal with its sign changed.
pub(super) fn negated(text: &str) -> String {
    match text.strip_prefix('-') {
        Some(positive) => positive.to_owned(),
        None => format!("-{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn orders_by_value_not_by_text() {
        let order = |a, b| Decimal::parse(a).unwrap().compare(&Decimal::parse(b).unwrap());
        for (small, great) in
            [("-11062.06", "-1"), ("-0.5", "0"), ("0", "0.001"), ("9", "10"), ("2.5", "2.55"), ("99999999999999999999", "100000000000000000000")]
        {
            assert_eq!(order(small, great), Ordering::Less, "{small} < {great}");
            assert_eq!(order(great, small), Ordering::Greater, "{great} > {small}");
        }
        for (a, b) in [("0", "-0.00"), ("007", "7.0"), ("1.50", "1.5")] {
            assert_eq!(order(a, b), Ordering::Equal, "{a} = {b}");
        }
    }

    #[test]
    fn integers_are_whole_decimals() {
        let integer = |text| Decimal::parse(text).and_then(|d| d.integer());
        assert_eq!([integer("6"), integer("-12"), integer("6.00"), integer("0"), integer("-0")], [Some(6), Some(-12), Some(6), Some(0), Some(0)]);
        for bad in ["", "-", "1.5", "1.", ".5", "1e3", "+1", " 1", "1,000", "٣", "99999999999999999999"] {
            assert_eq!(integer(bad), None, "{bad}");
        }
        assert_eq!((negated("2.55").as_str(), negated("-6").as_str()), ("-2.55", "6"));
    }

    proptest! {
        #[test]
        fn agrees_with_integers(a in -10_000i64..10_000, b in -10_000i64..10_000) {
            let (ta, tb) = (a.to_string(), b.to_string());
            prop_assert_eq!(Decimal::parse(&ta).unwrap().compare(&Decimal::parse(&tb).unwrap()), a.cmp(&b));
            prop_assert_eq!(Decimal::parse(&ta).unwrap().integer(), Some(a));
        }
    }
}
