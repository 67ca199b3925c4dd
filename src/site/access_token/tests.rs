//! Access tokens: those of Twilio's own libraries open, and nothing else does.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Minted by Twilio's libraries at [`NOW`], a quarter of a second past it, for [`ACCOUNT`] with [`KEY`] and [`SECRET`].
const GOLDEN: &str = include_str!("golden.txt");
const NOW: i64 = 1_795_000_000;
const ACCOUNT: &str = "AC0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a";
const KEY: &str = "SK1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b";
const SERVICE: &str = "IS2c2c2c2c2c2c2c2c2c2c2c2c2c2c2c2c";
const SECRET: &str = "3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d";

fn at(seconds: i64) -> Timestamp {
    Timestamp::ZERO.plus_seconds(seconds)
}

fn opened_at(token: &str, now: Timestamp) -> Result<Opened, TokenError> {
    open(token, now, |sid| (sid == KEY).then_some(Signer { secret: SECRET, account_sid: ACCOUNT }))
}

fn opened(token: &str) -> Result<Opened, TokenError> {
    opened_at(token, at(NOW))
}

/// What is granted to whom, from when to when.
fn granted(identity: &str, service: &str, seconds: i64) -> Opened {
    Opened {
        endpoint: None,
        key_sid: KEY.into(),
        identity: identity.into(),
        service: service.into(),
        expires_at: at(NOW + seconds),
        lifetime: Duration::from_secs(seconds.try_into().unwrap()),
    }
}

fn new(seconds: i64) -> New<'static> {
    New { key_sid: KEY, account_sid: ACCOUNT, service_sid: SERVICE, identity: "alice", now: at(NOW).plus_micros(250_000), seconds }
}

/// A token that says just this, rightly signed by one of the ways there are.
fn signed_by(algorithm: hmac::Algorithm, header: &Value, claims: &Value) -> String {
    let encoded = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let signed = format!("{}.{}", encoded(header), encoded(claims));
    let tag = hmac::sign(&hmac::Key::new(algorithm, SECRET.as_bytes()), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
}

fn header() -> Value {
    json!({"alg": "HS256", "typ": "JWT", "cty": "twilio-fpa;v=1"})
}

fn claims() -> Value {
    json!({"jti": "x", "iss": KEY, "sub": ACCOUNT, "iat": NOW, "exp": NOW + 3600,
        "grants": {"identity": "alice", "data_sync": {"service_sid": SERVICE}}})
}

/// What is said of right claims with some replaced (null: left out).
fn with(changes: &[(&str, Value)]) -> Result<Opened, TokenError> {
    let mut claims = claims();
    for (pointer, value) in changes {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = claims.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        if value.is_null() {
            parent.remove(name)
        } else {
            parent.insert(name.to_owned(), value.clone())
        };
    }
    opened(&signed_by(hmac::HMAC_SHA256, &header(), &claims))
}

#[test]
fn tokens_of_twilios_libraries_open() {
    let golden: Vec<(&str, &str)> = GOLDEN.lines().map(|line| line.split_once(' ').unwrap()).collect();
    assert_eq!(golden.len(), 4);
    for (by, token) in golden {
        let of_one_client = |granted: Opened| Opened { endpoint: Some("e1".into()), ..granted };
        let expected = if by.contains("python") { of_one_client(granted("alice", SERVICE, 3600)) } else { granted("Zo\u{eb}", "default", 86_400) };
        assert_eq!(opened(token), Ok(expected), "{by}");
    }
}

#[test]
fn what_is_minted_here_opens_and_stays_as_it_is() {
    let token = mint(&new(3600), SECRET).unwrap();
    assert_eq!(opened(&token), Ok(granted("alice", SERVICE, 3600)));
    // Held against both libraries; later builds must open what earlier ones minted.
    assert_eq!(token, include_str!("minted.txt").trim_end());
}

#[test]
fn a_token_with_any_byte_changed_opens_nothing() {
    for token in GOLDEN.lines().map(|line| line.split_once(' ').unwrap().1).chain([include_str!("minted.txt").trim_end()]) {
        for at in 0..token.len() {
            let mut bytes = token.as_bytes().to_vec();
            for other in [bytes[at] ^ 1, b'A', b'.', b'='] {
                bytes[at] = other;
                if bytes != token.as_bytes() {
                    let forged = std::str::from_utf8(&bytes).unwrap();
                    assert!(matches!(opened(forged), Err(TokenError::Malformed | TokenError::Invalid)), "byte {at} as {other}");
                }
            }
        }
        for shorter in 0..token.len() {
            assert!(opened(&token[..shorter]).is_err(), "{shorter} bytes");
        }
        assert!(opened(&format!("{token}=")).is_err() && opened(&format!("{token}.")).is_err() && opened(&format!(" {token}")).is_err());
    }
}

#[test]
fn only_signatures_with_the_secret_of_the_named_key_count() {
    let right = (header(), claims());
    for (name, algorithm) in [("HS256", hmac::HMAC_SHA256), ("HS384", hmac::HMAC_SHA384), ("HS512", hmac::HMAC_SHA512)] {
        let header = json!({"alg": name, "cty": "twilio-fpa;v=1;more"});
        assert!(opened(&signed_by(algorithm, &header, &right.1)).is_ok(), "{name}");
        let other = if name == "HS256" { hmac::HMAC_SHA512 } else { hmac::HMAC_SHA256 };
        assert_eq!(opened(&signed_by(other, &header, &right.1)), Err(TokenError::Invalid), "{name} by another");
    }
    for alg in [json!("none"), json!("None"), json!("NONE"), json!(""), json!("hs256"), json!("RS256"), json!("HS1"), Value::Null, json!(256)] {
        let token = signed_by(hmac::HMAC_SHA256, &json!({"alg": alg, "cty": "twilio-fpa;v=1"}), &right.1);
        let unsigned = format!("{}.", token.rsplit_once('.').unwrap().0);
        assert_eq!((opened(&token), opened(&unsigned)), (Err(TokenError::Malformed), Err(TokenError::Malformed)), "{alg}");
    }
    let unsigned = format!("{}.", signed_by(hmac::HMAC_SHA256, &right.0, &right.1).rsplit_once('.').unwrap().0);
    assert_eq!(opened(&unsigned), Err(TokenError::Invalid));
    for header in [
        json!({"alg": "HS256", "typ": "JWT"}),
        json!({"alg": "HS256", "cty": "twilio-pfa;v=1"}),
        json!({"alg": "HS256", "cty": "twilio-fpa;v=1", "crit": ["exp"]}),
        json!({"cty": "twilio-fpa;v=1"}),
        json!([]),
    ] {
        assert_eq!(opened(&signed_by(hmac::HMAC_SHA256, &header, &right.1)), Err(TokenError::Malformed), "{header}");
    }
    // Signed with what stands in for the secret of a key that there is not.
    let token = mint(&New { key_sid: "SK00", ..new(3600) }, NOBODY).unwrap();
    assert_eq!(opened(&token), Err(TokenError::Invalid));
    assert_eq!(opened(&mint(&new(3600), NOBODY).unwrap()), Err(TokenError::Invalid));
    assert_eq!(with(&[("/sub", json!(ACCOUNT.replace("0a", "0b")))]), Err(TokenError::Invalid), "another's account");
    assert_eq!(with(&[("/iss", json!(ACCOUNT))]), Err(TokenError::Invalid));
}

#[test]
fn a_token_works_in_its_time_alone() {
    assert_eq!(with(&[]), Ok(granted("alice", SERVICE, 3600)));
    let token = mint(&new(3600), SECRET).unwrap();
    assert!(opened_at(&token, at(NOW + 3600).plus_micros(-1)).is_ok());
    assert_eq!(opened_at(&token, at(NOW + 3600)), Err(TokenError::Expired));
    assert_eq!(with(&[("/exp", json!(NOW))]), Err(TokenError::Expired));
    assert_eq!(with(&[("/exp", json!(i64::MIN))]), Err(TokenError::Expired));
    assert_eq!(with(&[("/exp", json!(NOW)), ("/sub", json!("AC"))]), Err(TokenError::Invalid), "nothing is said of another's");
    for missing in [Value::Null, json!("1"), json!(1e300), json!(u64::MAX)] {
        assert_eq!(with(&[("/exp", missing)]), Err(TokenError::Malformed));
    }
    // The clock of who mints may be a little ahead.
    assert!(with(&[("/iat", json!(NOW + 30))]).is_ok() && with(&[("/nbf", json!(NOW + 30))]).is_ok());
    assert_eq!(with(&[("/iat", json!(NOW + 31))]), Err(TokenError::NotYet));
    assert_eq!(with(&[("/nbf", json!(NOW + 31))]), Err(TokenError::NotYet));
    // A day at most, from when it says that it was issued and from now.
    let day = NOW + 86_400;
    assert!(with(&[("/exp", json!(day))]).is_ok());
    assert_eq!(with(&[("/exp", json!(day + 1))]), Err(TokenError::TooLong));
    assert_eq!(with(&[("/exp", json!(i64::MAX))]), Err(TokenError::TooLong));
    assert_eq!(with(&[("/iat", json!(NOW - 86_400))]), Err(TokenError::TooLong));
    assert_eq!(with(&[("/iat", json!(i64::MIN))]), Err(TokenError::TooLong));
    assert_eq!(with(&[("/iat", Value::Null), ("/nbf", json!(NOW - 86_400))]), Err(TokenError::TooLong));
    assert!(with(&[("/iat", json!(NOW)), ("/nbf", json!(NOW - 86_400))]).is_ok(), "issued later than it might have been used");
    assert_eq!(with(&[("/iat", Value::Null)]).unwrap().lifetime, Duration::from_secs(3600));
    assert_eq!(with(&[("/iat", Value::Null), ("/exp", json!(day + 31))]), Err(TokenError::TooLong));
}

#[test]
fn a_token_grants_a_service_to_somebody() {
    let identity = |given: Value| with(&[("/grants/identity", given)]);
    assert_eq!(identity(json!("\u{e9}".repeat(256))).unwrap().identity.chars().count(), 256);
    for none in [Value::Null, json!(""), json!("a".repeat(257))] {
        assert_eq!(identity(none), Err(TokenError::NoGrant));
    }
    assert_eq!(identity(json!(1)), Err(TokenError::Malformed));
    assert_eq!(with(&[("/grants/data_sync", Value::Null)]), Err(TokenError::NoGrant));
    assert_eq!(with(&[("/grants/data_sync/service_sid", Value::Null)]), Err(TokenError::NoGrant));
    assert_eq!(with(&[("/grants", Value::Null)]), Err(TokenError::Malformed));
    assert_eq!(with(&[("/grants/chat", json!({"service_sid": "IS"}))]), Ok(granted("alice", SERVICE, 3600)), "other products' stand beside");
}

#[test]
fn a_token_beyond_the_bound_is_not_looked_at() {
    let of = |filler: usize| {
        let mut claims = claims();
        claims["filler"] = json!("x".repeat(filler));
        signed_by(hmac::HMAC_SHA256, &header(), &claims)
    };
    let beyond = (LARGEST / 2..).find(|filler| of(*filler).len() > LARGEST).unwrap();
    assert!(opened(&of(beyond - 1)).is_ok());
    assert_eq!(opened(&of(beyond)), Err(TokenError::Malformed));
    let deep = format!("{}.{}.", URL_SAFE_NO_PAD.encode(header().to_string()), URL_SAFE_NO_PAD.encode("[".repeat(5_000)));
    assert_eq!(opened(&deep), Err(TokenError::Malformed));
}

#[test]
fn clients_are_told_whether_a_new_token_would_help() {
    assert_eq!(TokenError::Expired.code(), 20_104);
    for other in [TokenError::Malformed, TokenError::Invalid, TokenError::NotYet, TokenError::TooLong, TokenError::NoGrant] {
        assert_eq!(other.code(), 20_101);
    }
}

/// JSON of any shape, with the names that are looked for among it.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        prop::sample::select(vec![KEY, ACCOUNT, SERVICE, "default", "HS256", "none", "twilio-fpa;v=1"]).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        Just(Value::Null),
    ];
    let names = prop::sample::select(vec!["alg", "cty", "crit", "iss", "sub", "exp", "iat", "nbf", "grants", "identity", "data_sync", "service_sid"]);
    leaf.prop_recursive(3, 24, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(names.clone().prop_map(str::to_owned), inner, 0..8)
                .prop_map(|of| Value::from(of.into_iter().collect::<serde_json::Map<_, _>>())),
        ]
    })
}

proptest! {
    #[test]
    fn no_text_makes_it_panic_or_opens(text in ".*", now in any::<i64>()) {
        prop_assert!(opened_at(&text, Timestamp::from_micros(now)).is_err());
    }

    #[test]
    fn no_json_makes_it_panic(header in any_json(), claims in any_json(), now in any::<i64>()) {
        let token = signed_by(hmac::HMAC_SHA256, &header, &claims);
        prop_assert!(opened_at(&token, Timestamp::from_micros(now)).is_err());
        // And of claims that are right but for their numbers.
        drop(opened_at(&signed_by(hmac::HMAC_SHA256, &self::header(), &claims), Timestamp::from_micros(now)));
    }

    #[test]
    fn no_times_make_it_panic(exp in any::<i64>(), iat in any::<Option<i64>>(), nbf in any::<Option<i64>>(), now in any::<i64>()) {
        let mut claims = claims();
        claims["exp"] = json!(exp);
        claims["iat"] = json!(iat);
        claims["nbf"] = json!(nbf);
        drop(opened_at(&signed_by(hmac::HMAC_SHA256, &header(), &claims), Timestamp::from_micros(now)));
    }

    #[test]
    fn whatever_is_minted_opens(identity in "\\PC{1,64}", seconds in 1i64..=86_400, now in 0i64..1 << 52) {
        let new = New { identity: &identity, now: Timestamp::from_micros(now), seconds, ..new(0) };
        let opened = opened_at(&mint(&new, SECRET).unwrap(), Timestamp::from_micros(now)).unwrap();
        prop_assert_eq!(opened.identity, identity);
        prop_assert_eq!(opened.lifetime.as_secs() as i64, seconds);
        let ends = opened.expires_at.micros() - now;
        prop_assert!(ends <= seconds * 1_000_000 && ends > (seconds - 1) * 1_000_000);
    }
}
