//! Amounts of money in minor units; used wherever prices and totals are read or summed. Must never touch a float.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An ISO 4217 alphabetic code: three upper-case ASCII letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Currency([u8; 3]);

/// An amount in the currency's minor unit (cents, pence, yen).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Money {
    /// Minor units; negative where money goes back.
    pub amount_minor: i64,
    /// Its currency.
    pub currency: Currency,
}

/// Why an amount could not be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// Not three upper-case letters.
    #[error("a currency is three upper-case letters (ISO 4217)")]
    Currency,
    /// Not a plain decimal.
    #[error("an amount is a decimal such as \"12.99\", without exponent or separators")]
    Decimal,
    /// Beyond [`Money::MAX_MINOR`].
    #[error("an amount is at most 10^15 minor units")]
    TooLarge,
}

impl Currency {
    /// Euro.
    pub const EUR: Self = Self(*b"EUR");
    /// United States dollar.
    pub const USD: Self = Self(*b"USD");

    /// Takes a code as written.
    pub fn parse(code: &str) -> Result<Self, MoneyError> {
        match code.as_bytes() {
            [a, b, c] if [a, b, c].iter().all(|l| l.is_ascii_uppercase()) => Ok(Self([*a, *b, *c])),
            _ => Err(MoneyError::Currency),
        }
    }

    /// The code.
    pub fn code(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("XXX")
    }

    /// How many digits stand behind the point (ISO 4217 table A.1; 2 where the code is not listed there).
    pub fn exponent(&self) -> u32 {
        match &self.0 {
            b"BIF" | b"CLP" | b"DJF" | b"GNF" | b"ISK" | b"JPY" | b"KMF" | b"KRW" | b"PYG" | b"RWF" | b"UGX" | b"UYI" | b"VND" | b"VUV" | b"XAF"
            | b"XOF" | b"XPF" => 0,
            b"BHD" | b"IQD" | b"JOD" | b"KWD" | b"LYD" | b"OMR" | b"TND" => 3,
            b"CLF" | b"UYW" => 4,
            _ => 2,
        }
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl Serialize for Currency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let code = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&code).map_err(serde::de::Error::custom)
    }
}

impl Money {
    /// The largest magnitude taken from outside, in minor units; sums of ten thousand of them still fit.
    pub const MAX_MINOR: i64 = 1_000_000_000_000_000;

    /// Reads a decimal such as `12.99` and rounds it half-even to the minor unit. The flag says whether rounding
    /// changed the value.
    pub fn from_decimal(text: &str, currency: Currency) -> Result<(Self, bool), MoneyError> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let numeric = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !numeric(whole) || !numeric(fraction) || (fraction.is_empty() && digits.contains('.')) {
            return Err(MoneyError::Decimal);
        }
        let exponent = currency.exponent() as usize;
        let kept: String = fraction.chars().chain(std::iter::repeat('0')).take(exponent).collect();
        let rest = fraction.get(exponent..).unwrap_or("");
        let minor = format!("{whole}{kept}").trim_start_matches('0').to_owned();
        if minor.len() > 16 {
            return Err(MoneyError::TooLarge);
        }
        let mut amount: i64 = if minor.is_empty() { 0 } else { minor.parse().map_err(|_| MoneyError::TooLarge)? };
        let rounded = rest.bytes().any(|b| b != b'0');
        if rounded {
            let above_half = rest.as_bytes() > b"5".as_slice() && rest.bytes().enumerate().any(|(i, b)| if i == 0 { b > b'5' } else { b != b'0' });
            let half = rest.starts_with('5') && !above_half;
            if above_half || (half && amount % 2 == 1) {
                amount += 1;
            }
        }
        if amount > Self::MAX_MINOR {
            return Err(MoneyError::TooLarge);
        }
        Ok((Self { amount_minor: if negative { -amount } else { amount }, currency }, rounded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_round_half_even() {
        let eur = Currency::parse("EUR").unwrap();
        for (text, minor, rounded) in [
            ("12.99", 1299, false),
            ("0.005", 0, true),
            ("0.015", 2, true),
            ("0.025", 2, true),
            ("0.0251", 3, true),
            ("0.0249", 2, true),
            ("-1.235", -124, true),
            ("1", 100, false),
            ("1.1", 110, false),
            ("1.100000", 110, false),
            ("0.059", 6, true),
            ("-11062.06", -1_106_206, false),
            ("0.0050000", 0, true),
        ] {
            assert_eq!(Money::from_decimal(text, eur), Ok((Money { amount_minor: minor, currency: eur }, rounded)), "{text}");
        }
        assert_eq!(Money::from_decimal("12.5", Currency::parse("JPY").unwrap()).unwrap().0.amount_minor, 12);
        assert_eq!(Money::from_decimal("1.2345", Currency::parse("KWD").unwrap()).unwrap().0.amount_minor, 1234);
        for bad in ["", "-", ".5", "1.", "1e3", "1,5", "+1", "NaN", "0x1", " 1"] {
            assert_eq!(Money::from_decimal(bad, eur), Err(MoneyError::Decimal), "{bad}");
        }
        assert_eq!(Money::from_decimal("99999999999999999999", eur), Err(MoneyError::TooLarge));
        assert_eq!(Currency::parse("eur"), Err(MoneyError::Currency));
    }
}
