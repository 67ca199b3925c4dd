//! Holds the tree to its shape: which room may use which, a purpose at the head of every file, every room in the README's map.

#![expect(clippy::unwrap_used, reason = "a test that meets the unexpected fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Which room (left) may use which others. A room missing here may use none.
const ARROWS: &[(&str, &[&str])] = &[
    ("event", &[]),
    ("problem", &[]),
    ("shutdown", &[]),
    ("telemetry", &[]),
    ("server", &["shutdown"]),
    ("sqlite", &["event"]),
    ("background", &[]),
    ("cql", &[]),
    ("simulate", &["event"]),
    ("import", &["event"]),
    ("site", &["event", "cql"]),
    ("eventlog", &["event"]),
    ("ingest", &["event", "problem", "site", "eventlog", "signature"]),
    ("sync", &["event", "eventlog", "sqlite", "background", "cql"]),
    ("archive", &["event", "eventlog", "sqlite", "background", "cql"]),
    ("outbound", &[]),
    ("signature", &[]),
    ("webhooks", &["event", "site", "eventlog", "outbound", "signature"]),
    ("mirror", &["event", "site", "eventlog", "outbound", "sync"]),
    ("web", &["event", "problem", "site", "sync", "archive"]),
    ("config", &["telemetry"]),
    (
        "app",
        &[
            "event",
            "problem",
            "shutdown",
            "telemetry",
            "server",
            "site",
            "eventlog",
            "ingest",
            "sync",
            "archive",
            "outbound",
            "webhooks",
            "mirror",
            "web",
            "config",
            "cql",
        ],
    ),
    ("cli", &["event", "problem", "shutdown", "telemetry", "simulate", "import", "site", "archive", "config", "app", "web"]),
];

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

fn tree() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    files.sort();
    files.into_iter().map(|path| (path.strip_prefix(&root).unwrap().display().to_string(), fs::read_to_string(&path).unwrap())).collect()
}

fn room(file: &str) -> &str {
    file.split('/').next().unwrap().trim_end_matches(".rs")
}

/// The code of a file without comments and without its test module.
fn code(text: &str) -> String {
    let body = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    body.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn rooms_use_only_what_they_may() {
    let rooms: BTreeSet<String> = tree().iter().map(|(file, _)| room(file).to_owned()).collect();
    let mut wrong = Vec::new();
    let mut arrows = 0;
    for (file, text) in tree() {
        let own = room(&file);
        if matches!(own, "main" | "lib") || file.contains("contract") || file.contains("testing") {
            continue;
        }
        let may = ARROWS.iter().find(|(name, _)| *name == own).map_or(&[][..], |(_, may)| *may);
        for used in code(&text).split("crate::").skip(1) {
            let used: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if used != own && rooms.contains(&used) {
                arrows += 1;
                if !may.contains(&used.as_str()) {
                    wrong.push(format!("{file} uses {used}"));
                }
            }
        }
    }
    assert!(arrows > 20, "the scan finds arrows at all: {arrows}");
    assert!(wrong.is_empty(), "arrows that may not be:\n{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<String> = tree().into_iter().filter(|(_, text)| !text.starts_with("//!")).map(|(file, _)| file).collect();
    assert!(silent.is_empty(), "no //! at the head of:\n{}", silent.join("\n"));
}

#[test]
fn every_room_stands_in_the_map() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let missing: BTreeSet<String> = tree()
        .iter()
        .map(|(file, _)| file.split('/').take(2).collect::<Vec<_>>().join("/"))
        .map(|path| if path.matches('/').count() == 1 && !path.ends_with(".rs") { format!("{path}/") } else { path })
        .filter(|path| !readme.contains(&format!("`src/{path}`")) && !readme.contains(&format!("`src/{}/`", room(path))))
        .collect();
    assert!(missing.is_empty(), "not in the README's map:\n{}", missing.into_iter().collect::<Vec<_>>().join("\n"));
}

#[test]
fn nothing_is_ignored_or_left_for_later() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for dir in ["src", "tests", "loadtest"] {
        sources(&root.join(dir), &mut files);
    }
    // Split, so that this file does not find itself.
    let never = [concat!("#[ign", "ore"), concat!("todo", "!("), concat!("unimplem", "ented!("), concat!("#[all", "ow("), concat!("FIX", "ME")];
    let mut found = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        found.extend(never.iter().filter(|word| text.contains(**word)).map(|word| format!("{}: {word}", path.display())));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
