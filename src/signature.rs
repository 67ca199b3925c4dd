//! The signature that webhooks of Twilio carry, and ours like them: HMAC-SHA1 over the URL and the parameters, keyed with an account's auth token. Made by
//! `webhooks`, checked by `ingest`. Pure; must never say more of a wrong one than that it is.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

/// The header that it stands in.
pub const HEADER: &str = "x-twilio-signature";

/// The signature of a request to `url`, exactly as it is configured, with these parameters, in any order.
pub fn of(auth_token: &str, url: &str, params: &[(&str, &str)]) -> String {
    STANDARD.encode(hmac::sign(&key(auth_token), &signed(url, params)))
}

/// Whether a signature is that of the request. Takes as long for a wrong one as for the right one.
pub fn is_of(given: &str, auth_token: &str, url: &str, params: &[(&str, &str)]) -> bool {
    STANDARD.decode(given.trim()).is_ok_and(|tag| hmac::verify(&key(auth_token), &signed(url, params), &tag).is_ok())
}

fn key(auth_token: &str) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, auth_token.as_bytes())
}

/// The URL, then name and value of each parameter, by name; of those of one name each value once, by value.
fn signed(url: &str, params: &[(&str, &str)]) -> Vec<u8> {
    let mut sorted = params.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    sorted.iter().fold(url.as_bytes().to_vec(), |mut out, (name, value)| {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(value.as_bytes());
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Auth token, URL, parameters and signature.
    type Vector = (&'static str, &'static str, &'static [(&'static str, &'static str)], &'static str);

    /// Each made here, and taken by the validators of Twilio's libraries for Python (9.13.0) and Node (6.2.0).
    const VECTORS: [Vector; 4] = [
        (
            "0123456789abcdef0123456789abcdef",
            "https://shop.example/hooks?shop=1",
            &[("EventType", "document_created"), ("AccountSid", "AC1"), ("DocumentData", "{\"n\":1}")],
            "tcX/FwPPSWhAIhILgSXxX91heOE=",
        ),
        ("0123456789abcdef0123456789abcdef", "http://shop.example:8080/h", &[], "X2Wyxsw/tKTdMFHVKyZgZJ1Kbv8="),
        (
            "secret",
            "https://shop.example/\u{e9}?x=%C3%A9",
            &[("ItemData", "{\"\u{e9}\":\"\u{260e} + &=\"}"), ("B", ""), ("A", "z"), ("b", "y")],
            "zt0XsCE6SVxPU9ZPIPRA7XUcGcE=",
        ),
        ("secret", "https://shop.example/h", &[("A", "2"), ("A", "1"), ("A", "2")], "8FQuSa5OG0ZubEC6zHeGMKlGL34="),
    ];

    #[test]
    fn signatures_are_those_that_the_vendors_validators_take() {
        for (token, url, params, wanted) in VECTORS {
            assert_eq!(of(token, url, params), wanted, "{url}");
            let mut turned = params.to_vec();
            turned.reverse();
            assert!(is_of(wanted, token, url, &turned), "{url}");
        }
    }

    #[test]
    fn whatever_is_changed_the_signature_is_wrong() {
        let (token, url, params, right) = VECTORS[0];
        assert!(is_of(right, token, url, params));
        assert!(!is_of(right, "0123456789abcdef0123456789abcdee", url, params));
        assert!(!is_of(right, token, "https://shop.example/hooks?shop=2", params));
        assert!(!is_of(right, token, url, &params[1..]));
        assert!(!is_of(right, token, url, &[params, &[("A", "1")]].concat()));
        for wrong in ["", "no base64!", "AAAA", &right[1..], &format!("{right}AAAA")] {
            assert!(!is_of(wrong, token, url, params), "{wrong}");
        }
    }
}
