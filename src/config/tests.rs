//! Tests of the settings: which source wins, what is refused and how it is told, what a change takes.

use super::*;

fn load(file: Option<&Path>, variables: &[(&str, &str)], flags: &str) -> Result<Config, Error> {
    Config::load(file, variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())), flags.parse().unwrap())
}

#[test]
fn later_layers_win() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("contrail.toml");
    std::fs::write(&file, "listen = \"127.0.0.1:1\"\n[eventlog]\nretention = \"2days\"\nmax_bytes = \"2GiB\"\n").unwrap();
    let config =
        load(Some(&file), &[("CONTRAIL_LISTEN", "127.0.0.1:2"), ("CONTRAIL_EVENTLOG_MAX_BYTES", "3GiB"), ("PATH", "/")], "listen = \"127.0.0.1:3\"")
            .unwrap();
    assert_eq!(config.listen, "127.0.0.1:3");
    assert_eq!(config.eventlog.retention.0, Duration::from_secs(2 * 86_400));
    assert_eq!(config.eventlog.max_bytes, Bytes(3 << 30));
    assert_eq!(config.roles.len(), 4, "untouched keys keep their default");
}

#[test]
fn an_archive_that_forgets_before_identity_is_refused() {
    let told = |retention| load(None, &[("CONTRAIL_ARCHIVER_RETENTION", retention)], "").map(|config| config.archiver.retention.0);
    assert_eq!(told("9days").unwrap(), LEAST_RETENTION);
    assert_eq!(
        told("8days").unwrap_err().to_string(),
        "settings: archiver.retention is at least 9days: what the archive no longer holds would be counted again while senders still repeat it"
    );
}

#[test]
fn only_what_runs_can_learn() {
    let told = |flags| load(None, &[], flags).map(|config| config.learning).map_err(|error| error.to_string());
    assert_eq!(told("learning = [\"archive\"]\nroles = [\"archive\"]"), Ok(vec![Stage::Archive]));
    let refused = told("learning = [\"sync\"]\nroles = [\"archive\"]").unwrap_err();
    assert_eq!(refused, "settings: `learning` names Sync, and `roles` does not: nothing would run it");
    assert!(told("learning = [\"ingest\"]").unwrap_err().contains("unknown variant `ingest`"));
}

#[test]
fn unknown_keys_and_bad_values_are_named() {
    let told = |result: Result<Config, Error>| result.unwrap_err().to_string();
    assert_eq!(told(load(None, &[("CONTRAIL_LISTENN", "x")], "")), "environment: unknown key `CONTRAIL_LISTENN`; the nearest is `CONTRAIL_LISTEN`");
    assert_eq!(
        told(load(None, &[], "[eventlog]\nretension = \"1day\"")),
        "flags: unknown key `eventlog.retension`; the nearest is `eventlog.retention`"
    );
    assert!(told(load(None, &[], "[eventlog]\nmax_bytes = \"lots\"")).contains("`lots` is not a size"));
    assert!(told(load(None, &[], "[server]\ndrain = \"soon\"")).contains("`soon` is not a span of time"));
}

#[test]
fn roles_that_share_a_directory_stay_together() {
    let told = |flags: &str| load(None, &[], flags).unwrap().check_roles().map_err(|error| error.to_string());
    let kafka = "log = \"kafka://k:9092\"\n";
    let scylla = "log = \"kafka://k:9092\"\nstore = \"scylla://s:9042/k\"\narchive = \"scylla://s:9042/k\"\n";
    for (flags, wrong) in [
        (String::new(), None),
        ("roles = []".to_owned(), Some("`roles` is empty")),
        ("roles = [\"ingest\"]".to_owned(), None),
        (format!("{kafka}roles = [\"ingest\"]"), None),
        (format!("{kafka}roles = [\"sync\"]"), Some("store = \"embedded\"")),
        (format!("{kafka}roles = [\"sync\", \"web\"]"), Some("archive = \"embedded\"")),
        (format!("{kafka}roles = [\"archive\", \"sync\", \"web\"]"), None),
        (format!("{scylla}roles = [\"sync\"]"), None),
        (format!("{scylla}roles = [\"web\"]"), None),
    ] {
        let checked = told(&flags);
        match wrong {
            None => assert_eq!(checked, Ok(()), "{flags}"),
            Some(wrong) => assert!(checked.as_ref().is_err_and(|told| told.contains(wrong)), "{flags}: {checked:?}"),
        }
    }
}

#[test]
fn differences_say_what_a_change_takes() {
    let flags = "listen = \"127.0.0.1:9\"\nlog = \"x\"\n[live]\nmax_subscribers = 3".parse().unwrap();
    let told = Config::differences(None, [], flags).unwrap();
    assert_eq!(
        told,
        [
            "listen = \"127.0.0.1:9\"    # default \"127.0.0.1:8080\"; a change takes a restart",
            "live.max_subscribers = 3    # default 10000; a change takes a restart",
            "log = \"x\"    # default \"embedded\"; a change takes a migration",
        ]
    );
}

#[test]
fn every_default_has_its_sentence() {
    let mut sentence = false;
    for line in DEFAULTS.lines() {
        if line.contains(" = ") && !line.starts_with('#') {
            assert!(sentence, "no comment above: {line}");
        }
        sentence = line.starts_with("# [reload]") || line.starts_with("# [restart]") || line.starts_with("# [migration]");
    }
}
