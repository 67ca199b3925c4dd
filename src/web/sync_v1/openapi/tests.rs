//! That the description says what the face does.

use std::collections::BTreeSet;
use std::path::Path;

use super::*;
use crate::web::sync_v1::route::{Place, ROOT};

/// A path of the place that a template stands for.
fn example(template: &str) -> String {
    let parts = template.split(['{', '}']).enumerate().map(|(at, part)| if at % 2 == 0 { part.to_owned() } else { "x".to_owned() });
    format!("{ROOT}{}", parts.collect::<String>())
}

#[test]
fn every_operation_that_is_described_is_served_and_the_other_way_round() {
    let (mut ids, mut described) = (BTreeSet::new(), BTreeSet::new());
    for operation in OPERATIONS {
        let place = Place::of(&example(operation.path)).expect(operation.path);
        assert!(place.methods().split(", ").any(|method| method.eq_ignore_ascii_case(operation.method)), "{}", operation.id);
        assert!(ids.insert(operation.id), "{}", operation.id);
        described.insert((operation.path, operation.method));
    }
    assert_eq!(OPERATIONS.len(), 48 + 3, "Twilio's, and those beyond");
    for operation in OPERATIONS {
        let place = Place::of(&example(operation.path)).unwrap();
        for method in place.methods().split(", ").filter(|method| *method != "OPTIONS") {
            assert!(described.contains(&(operation.path, method.to_lowercase().as_str())), "{method} {}", operation.path);
        }
    }
}

#[test]
fn what_is_referred_to_is_there() {
    let document = document("/");
    let mut references = BTreeSet::new();
    collect(&document, &mut references);
    assert!(references.len() > 15, "{references:?}");
    for reference in references {
        assert!(document.pointer(reference.strip_prefix('#').unwrap()).is_some(), "{reference}");
    }
}

fn collect(value: &Value, references: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            references.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|value| collect(value, references));
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, references)),
        _ => {}
    }
}

/// Written anew where `CONTRAIL_WRITE_SCHEMAS` is set.
#[test]
fn the_file_is_what_is_served() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/openapi.json");
    let text = format!("{}\n", serde_json::to_string_pretty(&document("/")).unwrap());
    if std::env::var_os("CONTRAIL_WRITE_SCHEMAS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert!(std::fs::read_to_string(&path).unwrap() == text, "schemas/openapi.json is out of date: set CONTRAIL_WRITE_SCHEMAS and test again");
}
