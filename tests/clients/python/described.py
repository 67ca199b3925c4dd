"""Contrail's own OpenAPI document, as it is served: schemathesis makes 200 cases and more of each operation, what the document allows and what it forbids, and
holds the answers to it. Names of objects stand among the generated ones that `described_hooks` sees to it exist."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import requests

URL = os.environ["CLIENTS_URL"]
ACCOUNT, AUTH_TOKEN, DEFAULT_SERVICE = (json.loads(os.environ["CLIENTS_ACCOUNT"])[name] for name in ("account_sid", "auth_token", "service_sid"))

# What stands in paths, and is there whenever it is asked for. The last name stands for the first one's SID, as does the last service.
SERVICES = ["default", "~sid"]
NAMES = ["one", "two", "~sid"]
INDEXES = list(range(4))
KEYS = ["a", "b.c", "d e/\u00e9"]
IDENTITIES = ["alice", "bob/\u00e9"]

CASES = 200
# Cases of each operation that have to come to more than a refusal.
DONE = 20

# All checks, but for two: what is generated is no stranger's, and no operation gives out credentials.
CONFIG = f"""
continue-on-failure = true
warnings = false

[generation]
mode = "all"
max-examples = {CASES}
deterministic = true
no-shrink = true
database = "none"
# Credentials are the caller's; the check `ignored_auth` leaves them out.
with-security-parameters = false

[phases.examples]
enabled = false

# What is named is the dictionaries' below, not what was answered before: it may have been deleted since.
[phases.coverage]
extra-data-sources = {{ responses = false }}

[phases.fuzzing]
extra-data-sources = {{ responses = false }}

[phases.stateful]
enabled = false

# A demand that does not hold is no fault of the request's form.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 401, 403, 404, 409, 412]

[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 409, 412, 413]

[dictionaries]
services.values = {json.dumps(SERVICES)}
names.values = {json.dumps(NAMES)}
indexes.values = {json.dumps(INDEXES)}
keys.values = {json.dumps(KEYS)}
identities.values = {json.dumps(IDENTITIES)}
demands.values = ["0", "\\"1\\"", "W/\\"0\\"", "*"]

[parameters]
"path.Service" = {{ dictionary = "services", probability = 0.95 }}
"path.Document" = {{ dictionary = "names", probability = 0.85 }}
"path.List" = {{ dictionary = "names", probability = 0.85 }}
"path.Map" = {{ dictionary = "names", probability = 0.85 }}
"path.Stream" = {{ dictionary = "names", probability = 0.85 }}
"path.Index" = {{ dictionary = "indexes", probability = 0.8 }}
"path.Key" = {{ dictionary = "keys", probability = 0.6 }}
"path.Identity" = {{ dictionary = "identities", probability = 0.6 }}
"header.If-Match" = {{ dictionary = "demands", probability = 0.3 }}

# The entries of a batch are judged each for itself: the check `verdicts` looks into the answer.
[[operations]]
include-path-regex = "/Batch$"

[operations.checks.negative_data_rejection]
expected-statuses = [200, 400, 401, 403, 404, 409, 412, 413]
"""


def operations():
    document = requests.get(f"{URL}/v1/openapi.json", timeout=20).json()
    return {f"{method.upper()} {path}": of["operationId"] for path, methods in document["paths"].items() for method, of in methods.items()}


def run(scratch):
    """Runs schemathesis; gives its exit code, and what became of each operation's cases."""
    config, seen = scratch / "schemathesis.toml", scratch / "seen.json"
    config.write_text(CONFIG)
    command = [pathlib.Path(sys.executable).with_name("schemathesis"), "--config-file", config, "run", f"{URL}/v1/openapi.json", "--url", URL]
    command += ["--auth", f"{ACCOUNT}:{AUTH_TOKEN}", "--workers", "1", "--checks", "all", "--no-color"]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "described_hooks", "DESCRIBED_SEEN": str(seen)}
    status = subprocess.run(command, env=environment, cwd=scratch, check=False).returncode
    return status, json.loads(seen.read_text()) if seen.exists() else {}


def faults(seen):
    """What is wrong with an operation's cases."""
    generated, statuses = seen["phases"].get("fuzzing", 0), seen["statuses"]
    done = sum(count for status, count in statuses.items() if status.startswith("2"))
    broken = sum(count for status, count in statuses.items() if status.startswith("5"))
    if generated < CASES:
        yield f"{generated} cases of {CASES}"
    if done < DONE:
        yield f"only {done} were done"
    if broken:
        yield f"{broken} were answered with a server error"
    if seen["failed"]:
        yield f"{seen['failed']} failures of checks"


def main():
    known = operations()
    with tempfile.TemporaryDirectory() as scratch:
        status, seen = run(pathlib.Path(scratch))
    bad = 0
    for label, name in known.items():
        of = seen.get(label, {"phases": {}, "statuses": {}, "failed": 0})
        wrong = list(faults(of))
        bad += bool(wrong)
        statuses = " ".join(f"{status}:{count}" for status, count in sorted(of["statuses"].items()))
        print(f"{name}: {sum(of['phases'].values())} cases, {of['phases'].get('fuzzing', 0)} of them generated; {statuses}{'; FAILED: ' if wrong else ''}{', '.join(wrong)}")
    print(f"{sum(sum(of['phases'].values()) for of in seen.values())} cases of {len(known)} operations; schemathesis ended with {status}")
    if status and not bad:
        bad = 1
    print(f"{max(0, len(known) - bad)} passed, {bad} failed")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
