"""Holds Dockerfile, docker-compose.yml, the dashboard and the defaults to one another. Run by tests/container, which gives the version of promtool and a folder: the
dashboard's questions are left there as rules for promtool, and each service's environment for the program."""

import json
import pathlib
import re
import sys
import tomllib

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROMTOOL, LEFT = sys.argv[1], pathlib.Path(sys.argv[2])
compose_text = (ROOT / "docker-compose.yml").read_text()
compose = yaml.safe_load(compose_text)
services, volumes = compose["services"], compose["volumes"]
docker = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
defaults = tomllib.loads((ROOT / "src/defaults.toml").read_text())
ROLES = {"ingest", "sync", "archive", "web"}
# Sets itself up as root.
NOT_HARDENED = {"scylla"}


def last(instruction):
    return re.findall(rf"^{instruction} (.*)$", docker, re.M)[-1].strip()


def seconds(text):
    return int(re.fullmatch(r"(\d+)s", text)[1])


def image():
    settings = dict(pair.split("=", 1) for pair in last("ENV").split())
    data, port = settings["CONTRAIL_DATA"], settings["CONTRAIL_LISTEN"].rsplit(":", 1)[1]
    assert last("VOLUME") == data and f" /data {data}\n" in docker, "the volume is the data directory"
    assert last("EXPOSE") == port == defaults["listen"].rsplit(":", 1)[1]
    assert last("USER") == "nonroot" and last("STOPSIGNAL") == "SIGTERM"
    assert {".git", "target", "contrail-data"} <= set((ROOT / ".dockerignore").read_text().split())
    return data, port


def profiles():
    of = {name: set(service.get("profiles", [])) for name, service in services.items()}
    assert {name for name, profiles in of.items() if not profiles} == {"contrail"}, "a plain `up` starts contrail alone"
    assert {name for name, profiles in of.items() if profiles == {"cluster"}} == ROLES | {"migrate", "kafka", "scylla"}
    assert {name for name, profiles in of.items() if profiles == {"observe"}} == {"prometheus", "grafana"}
    assert set(services) == {name for name, profiles in of.items() if len(profiles) <= 1}
    # The commands that the file and the README tell start what they name and what that needs, and never contrail beside the cluster.
    told = re.findall(r"docker compose ((?:--profile \w+ )*)up(?: -d)?((?: [a-z]+)*)", compose_text + (ROOT / "README.md").read_text())
    assert len(set(told)) >= 4, told
    for flags, names in told:
        enabled = set(re.findall(r"--profile (\w+)", flags))
        started = set(names.split()) or {name for name, profiles in of.items() if not profiles or profiles & enabled}
        while more := {needed for name in started for needed in services[name].get("depends_on", {})} - started:
            started |= more
        assert all(not of[name] or of[name] & enabled for name in started), f"{flags}{names} needs another profile"
        assert ("cluster" in enabled) == (ROLES <= started) and ("cluster" in enabled) != ("contrail" in started), f"up {flags}{names}: {started}"
        assert ("observe" in enabled) == ({"prometheus", "grafana"} <= started)


def every_service():
    ports, held = [], []
    for name, service in services.items():
        if name not in NOT_HARDENED:
            assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}, name
        assert re.search(r":v?\d+\.\d+\.\d+(@sha256:[0-9a-f]{64})?$", service["image"]), f"{name} is not pinned: {service['image']}"
        for needed, how in service.get("depends_on", {}).items():
            ends = services[needed].get("restart", "").startswith("on-failure")
            assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy"), f"{name} on {needed}"
        assert name == "migrate" or service["healthcheck"]["test"], f"{name} has no health check"
        for published in service.get("ports", []):
            host, port, _ = published.split(":")
            assert host == "127.0.0.1", f"{name} is published beyond loopback"
            ports.append(port)
        held += [volume.split(":")[0] for volume in service.get("volumes", []) if not volume.startswith("./")]
        for path in [volume.split(":")[0] for volume in service.get("volumes", []) if volume.startswith("./")]:
            assert (ROOT / path).is_dir(), f"{name} mounts {path}"
    assert len(ports) == len(set(ports)), f"two services on one port: {ports}"
    assert sorted(held) == sorted(volumes), "each volume is one service's own"


def contrails(data, port):
    ours = {name: service for name, service in services.items() if service["image"].startswith("contrail:")}
    assert set(ours) == ROLES | {"contrail", "migrate"}
    check = json.loads(re.search(r"CMD (\[.*\])", last("HEALTHCHECK"))[1])
    assert check[0] == json.loads(last("ENTRYPOINT"))[0]
    (LEFT / "environment").mkdir()
    for name, service in ours.items():
        assert name == "migrate" or service["healthcheck"]["test"] == ["CMD", *check], "one health check"
        assert any(mount.startswith(f"{data}:") or mount.endswith(f":{data}") for mount in service.get("volumes", []) + service.get("tmpfs", [])), name
        assert all(published.endswith(f":{port}") for published in service.get("ports", []))
        assert seconds(service["stop_grace_period"]) >= 2 * seconds(defaults["server"]["drain"]), "requests, then rooms, each have the drain's time"
        environment = service["environment"]
        for key in ("CONTRAIL_BOOTSTRAP_INGEST_KEY", "CONTRAIL_BOOTSTRAP_READ_TOKEN"):
            assert environment[key].startswith(f"${{{key}:?"), f"{key} must be given"
        given = {key: "x" if "${" in value else value for key, value in environment.items()}
        (LEFT / "environment" / name).write_text("".join(f"{key}={value}\0" for key, value in given.items()))
        roles = json.loads(environment.get("CONTRAIL_ROLES", "null"))
        assert roles == ([name] if name in ROLES else None), f"{name} is named after its role"
        if name in ROLES:
            assert set(service["depends_on"]) == {"kafka", "scylla", "migrate"}
        if name != "contrail":
            assert environment["CONTRAIL_LOG"] == f"kafka://{services['kafka']['environment']['KAFKA_ADVERTISED_LISTENERS'].split('//')[1]}"
            assert environment["CONTRAIL_STORE"] == environment["CONTRAIL_ARCHIVE"] == "scylla://scylla:9042/contrail"
    # What is run is what the tests run, where they run it.
    tested = re.search(r"<version>([\d.]+)</version>", (ROOT / "tests/servers/kafka.pom").read_text())[1]
    assert services["kafka"]["image"].startswith(f"apache/kafka:{tested}")
    assert services["prometheus"]["image"].split(":")[1] == "v3." + PROMTOOL.removeprefix("v0.3")


def dashboard(port):
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"][0]["dns_sd_configs"][0]
    assert set(scraped["names"]) == ROLES | {"contrail"} and str(scraped["port"]) == port
    provisioning = ROOT / "deploy/grafana/provisioning"
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    [provider] = yaml.safe_load((provisioning / "dashboards/contrail.yml").read_text())["providers"]
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    assert provider["options"]["path"] == mounts["./deploy/grafana/dashboards"] and mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    assert source["url"] == "http://prometheus:9090"
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    board = json.loads((ROOT / "deploy/grafana/dashboards" / pathlib.Path(home).name).read_text())
    rows = [panel["title"].lower() for panel in board["panels"] if panel["type"] == "row"]
    for row in ("ingest", "log", "sync", "feed", "archive", "kafka", "cql", "process"):
        assert any(row in title for title in rows), f"no row {row}"
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]), "panels have their own ids"
    taken, rules = set(), []
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and all(x < 24 for x, _ in cells), f"{panel['title']} lies on another"
        taken |= cells
        assert panel["type"] == "row" or panel["targets"], panel["title"]
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == panel["datasource"]["uid"] == source["uid"]
            assert 'instance=~"$instance"' in target["expr"], f"{panel['title']} is not of the chosen processes"
            asked = target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")
            rules.append({"record": f"dashboard:panel_{panel['id']}:{target['refId'].lower()}", "expr": asked})
    (LEFT / "dashboard-rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))


data, port = image()
profiles()
every_service()
contrails(data, port)
dashboard(port)
