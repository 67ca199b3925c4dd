"""Holds docker-compose.yml to the Compose specification, and to the Dockerfile and the defaults beside it. Run by tests/container."""

import json
import pathlib
import re
import tomllib

from compose_spec import PyCompose

ROOT = pathlib.Path(__file__).resolve().parents[1]
compose = PyCompose.from_yaml((ROOT / "docker-compose.yml").read_text())
compose.validate()
told = json.loads(compose.to_json())
docker = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
defaults = tomllib.loads((ROOT / "src/defaults.toml").read_text())


def last(instruction):
    return re.findall(rf"^{instruction} (.*)$", docker, re.M)[-1].strip()


def seconds(text):
    return int(re.fullmatch(r"(\d+)s", text)[1])


settings = dict(pair.split("=", 1) for pair in last("ENV").split())
data, port = settings["CONTRAIL_DATA"], settings["CONTRAIL_LISTEN"].rsplit(":", 1)[1]
assert last("VOLUME") == data and f" /data {data}\n" in docker, "the volume is the data directory"
assert last("EXPOSE") == port == defaults["listen"].rsplit(":", 1)[1]
assert last("USER") == "nonroot" and last("STOPSIGNAL") == "SIGTERM"
assert {".git", "target", "contrail-data"} <= set((ROOT / ".dockerignore").read_text().split())

assert list(told["services"]) == ["contrail"], told["services"].keys()
service = told["services"]["contrail"]
text = json.dumps(service)
assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
assert f":{data}" in text and "contrail-data" in told["volumes"]
assert re.search(rf"127\.0\.0\.1:{port}:{port}|\"host_ip\": \"127\.0\.0\.1\"", text), "published on loopback alone"
for key in ("CONTRAIL_BOOTSTRAP_INGEST_KEY", "CONTRAIL_BOOTSTRAP_READ_TOKEN"):
    assert f"${{{key}:?" in text, f"{key} must be given"
check = json.loads(re.search(r"CMD (\[.*\])", last("HEALTHCHECK"))[1])
assert service["healthcheck"]["test"] == ["CMD", *check], "one health check"
assert check[0] == json.loads(last("ENTRYPOINT"))[0]
assert seconds(service["stop_grace_period"]) >= 2 * seconds(defaults["server"]["drain"]), "requests, then rooms, each have the drain's time"
