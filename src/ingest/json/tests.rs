//! The parser against serde_json: what it takes, what it makes of it, and that no bytes make it panic.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn canonical(text: &str) -> Result<String, Fault> {
    let mut parser = Parser::new(text);
    let node = parser.value(1 << 20)?;
    if parser.peek().is_some() {
        return Err(parser.fault(What::Syntax("the end")));
    }
    let mut out = Vec::new();
    node.write(&mut out);
    Ok(String::from_utf8(out).unwrap())
}

/// What the canonical text must mean: serde_json's reading (its maps are sorted, the last of repeated keys wins) without nulls in objects.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => members.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect(),
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

#[test]
fn canonical_text_is_sorted_and_verbatim() {
    for (text, want) in [
        (r#" { "b" : 1 , "a" : [ null , true , false ] , "c" : null } "#, r#"{"a":[null,true,false],"b":1}"#),
        (r#"{"a":1,"b":2,"a":3}"#, r#"{"a":3,"b":2}"#),
        (r#"{"a":1,"a":null}"#, "{}"),
        (r#"{"a":null,"a":1}"#, r#"{"a":1}"#),
        (r#"{"\u0061":1,"a":2}"#, r#"{"a":2}"#),
        (r#"[1.50,1E5,-0,12345678901234567890123,0.1e-400]"#, "[1.50,1E5,-0,12345678901234567890123,0.1e-400]"),
        (r#""\u00e9\ud83d\ude00\/\n\u0000\u001f\"\\""#, "\"é😀/\\n\\u0000\\u001f\\\"\\\\\""),
        ("\"\u{7f}\u{2028}é\"", "\"\u{7f}\u{2028}é\""),
        (r#"{"z":{},"é":[],"A":{"b":[],"a":{}}}"#, r#"{"A":{"a":{},"b":[]},"z":{},"é":[]}"#),
    ] {
        assert_eq!(canonical(text).as_deref(), Ok(want), "{text}");
        assert_eq!(canonical(want).as_deref(), Ok(want), "canonical text is its own canonical text");
    }
}

#[test]
fn faults_are_told_apart() {
    for (text, what) in [
        (r#""\ud800""#, What::Surrogate),
        (r#""\udc00\ud800""#, What::Surrogate),
        (r#""\ud800\u0041""#, What::Surrogate),
        ("1e999", What::Number),
        ("-1e999", What::Number),
    ] {
        assert_eq!(canonical(text).unwrap_err().what, what, "{text}");
    }
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert!(canonical(&nested(MAX_DEPTH)).is_ok());
    assert_eq!(canonical(&nested(MAX_DEPTH + 1)).unwrap_err().what, What::Deep);
    assert_eq!(Parser::new("[1,2,3]").value(6).unwrap_err().what, What::Long);
    assert!(Parser::new("[1,2,3]").value(7).is_ok());
    assert!(canonical(&format!("[{}]", "9".repeat(400))).is_err(), "an integer beyond a double");
}

#[test]
fn not_json() {
    for text in [
        "",
        " ",
        "nul",
        "tru",
        "+1",
        "01",
        "1.",
        ".5",
        "1e",
        "1e+",
        "-",
        "--1",
        "0x1",
        "NaN",
        "Infinity",
        "'a'",
        "\"",
        "\"a",
        "\"\t\"",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "[",
        "[1",
        "[1,",
        "[1,]",
        "[,1]",
        "[1 2]",
        "{",
        "{\"a\"",
        "{\"a\":",
        "{\"a\":1",
        "{\"a\":1,}",
        "{a:1}",
        "{1:1}",
        "{\"a\" 1}",
        "1 2",
        "[]]",
        "/**/1",
        "\u{feff}1",
        "\u{a0}1",
    ] {
        let fault = canonical(text).unwrap_err();
        assert!(matches!(fault.what, What::Syntax(_)), "{text:?}: {fault:?}");
        assert!(fault.at <= text.len(), "{text:?}: {fault:?}");
        assert!(serde_json::from_str::<Value>(text).is_err());
    }
}

#[test]
fn many_keys_and_long_runs() {
    let keys: Vec<String> = (0..100_000u32).map(|n| format!("\"k{}\":{n}", n.wrapping_mul(2_654_435_761))).collect();
    let text = format!("{{{}}}", keys.join(","));
    let node = Parser::new(&text).value(8 << 20).unwrap();
    let object = node.as_object().unwrap();
    assert_eq!(object.iter().count(), 100_000);
    assert!(matches!(object.get("k0"), Some(Node::Number(n)) if &**n == "0"));
    let same = format!("{{{}\"a\":1}}", "\"a\":0,".repeat(100_000));
    assert_eq!(canonical(&same).as_deref(), Ok(r#"{"a":1}"#));
}

#[test]
fn members_are_found_put_and_taken() {
    for count in [3usize, 40] {
        let text = format!("{{{}}}", (0..count).map(|n| format!("\"m{n:02}\":{n}")).collect::<Vec<_>>().join(","));
        let Ok(Node::Object(mut object)) = Parser::new(&text).value(1 << 20) else { panic!("{text}") };
        object.insert("m01", Node::Bool(true));
        object.insert("m01a", Node::Bool(false));
        assert!(matches!(object.get("m01"), Some(Node::Bool(true))));
        assert!(object.remove("m00").is_some() && object.remove("m00").is_none() && object.get("zz").is_none());
        let keys: Vec<&str> = object.iter().map(|(key, _)| key).collect();
        assert!(keys.is_sorted() && keys.len() == count);
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 60, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("[a-c]{0,2}|\\PC{0,3}", inner, 0..6).prop_map(|m| m.into_iter().collect())
        ]
    })
}

proptest! {
    #[test]
    fn means_what_serde_json_reads(value in any_json(), pretty in any::<bool>()) {
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
        let canonical = canonical(&text).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Value>(&canonical).unwrap(), &without_nulls(serde_json::from_str(&text).unwrap()));
    }

    #[test]
    fn takes_exactly_what_serde_json_takes(value in any_json(), at in any::<prop::sample::Index>(), with in "[\\[\\]{},:\"0-9eE+.\\-\\\\utfn \t\n]{0,2}") {
        let mut text = value.to_string();
        let places: Vec<usize> = (0..=text.len()).filter(|at| text.is_char_boundary(*at)).collect();
        let from = places[at.index(places.len())];
        let to = text[from..].chars().next().map_or(from, |c| from + c.len_utf8());
        text.replace_range(from..to, &with);
        prop_assert_eq!(canonical(&text).is_ok(), serde_json::from_str::<Value>(&text).is_ok(), "{}", text);
    }

    #[test]
    fn no_text_makes_it_panic(text in any::<String>(), max in 0usize..40) {
        let mut parser = Parser::new(&text);
        drop(parser.value(max));
        let _ = parser.skip(0);
        let mut written = Vec::new();
        write_string(&text, &mut written);
        prop_assert_eq!(serde_json::from_slice::<String>(&written).unwrap(), text);
    }
}
