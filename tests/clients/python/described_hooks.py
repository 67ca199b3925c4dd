"""What schemathesis loads beside the document: sees to it that what cases name by well-known names exists, makes tokens and data into ones that mean something,
and counts. Told by `described` where to leave the counts."""

import atexit
import base64
import collections
import json
import os
import re
from urllib.parse import quote

import requests
import schemathesis
from schemathesis.core.parameters import ParameterLocation

from described import ACCOUNT, AUTH_TOKEN, DEFAULT_SERVICE, IDENTITIES, INDEXES, KEYS, NAMES, SERVICES, URL

KINDS = {"Document": "Documents", "List": "Lists", "Map": "Maps", "Stream": "Streams"}
ROOT = "/v1/Services"

_seen = collections.defaultdict(lambda: {"phases": collections.Counter(), "statuses": collections.Counter(), "failed": 0})
_own = requests.Session()
_own.auth = (ACCOUNT, AUTH_TOKEN)
_made = {}


def ask(method, path, **form):
    """Asks the server beside what schemathesis asks; gives the status and what was answered."""
    answer = _own.request(method, f"{URL}{ROOT}{path}", data=form, timeout=20)
    return answer.status_code, answer.json() if answer.text else {}


def there(path, create, **form):
    """What is at a path, created where there is nothing."""
    status, found = ask("GET", path)
    if status == 404:
        status, found = ask("POST", create, **form)
    assert status < 300, (path, found)
    return found


def service_of(name, operation):
    """The service that a case asks for: one of its own where it is to be changed or deleted."""
    if operation == "DeleteService":
        sid = ask("POST", "")[1]["sid"]
        for kind in KINDS.values():
            ask("POST", f"/{sid}/{kind}", UniqueName="one")
        return sid
    if operation == "UpdateService":
        if "changed" not in _made:
            _made["changed"] = ask("POST", "")[1]["sid"]
        return _made["changed"]
    return name if name == SERVICES[0] else DEFAULT_SERVICE


def item_of(kind, name, given):
    """The item that a case asks for, there now: by its key, or by the index of one of the list's."""
    items = f"/default/{KINDS[kind]}/{name}/Items"
    if kind == "Map":
        there(f"{items}/{quote(given, safe='')}", items, Key=given, Data='{"n": 1}')
        return given
    found = ask("GET", f"{items}?PageSize={len(INDEXES)}")[1]["items"]
    while len(found) < len(INDEXES):
        found.append(ask("POST", items, Data='{"n": 1}')[1])
    return found[INDEXES.index(given)]["index"]


def token_of(text, operation):
    """A page's token that begins behind something."""
    after = DEFAULT_SERVICE if operation == "ListService" else text
    return "PT" + base64.urlsafe_b64encode(json.dumps({"after": after}).encode()).decode().rstrip("=")


def is_object(text):
    try:
        return isinstance(json.loads(text), dict)
    except (TypeError, ValueError):
        return False


@schemathesis.hook
def before_call(context, case, kwargs):
    operation, params = case.operation.definition.raw.get("operationId"), dict(case.path_parameters or {})
    if params.get("Service") in SERVICES:
        params["Service"] = service_of(params["Service"], operation)
    kind = next((kind for kind in KINDS if params.get(kind) in NAMES), None)
    if kind:
        name = NAMES[0] if params[kind] == NAMES[-1] else params[kind]
        found = there(f"/default/{KINDS[kind]}/{name}", f"/default/{KINDS[kind]}", UniqueName=name)
        params[kind] = found["sid"] if params[kind] == NAMES[-1] else name
        of = f"/default/{KINDS[kind]}/{name}"
        if params.get("Key") in KEYS or params.get("Index") in INDEXES:
            of_what = "Key" if kind == "Map" else "Index"
            params[of_what] = item_of(kind, name, params[of_what])
        if params.get("Identity") in IDENTITIES:
            identity = f"{of}/Permissions/{quote(params['Identity'], safe='')}"
            there(identity, identity, Read="true", Write="false", Manage="false")
    if params != (case.path_parameters or {}):
        case.path_parameters = params
    if not case.meta or not case.meta.generation.mode.is_positive:
        return
    if "PageToken" in (case.query or {}):
        case.query = {**case.query, "PageToken": token_of(case.query["PageToken"], operation)}
    if isinstance(case.body, dict) and "Data" in case.body and not is_object(case.body["Data"]):
        case.body = {**case.body, "Data": json.dumps({"v": case.body["Data"]})}


@schemathesis.hook
def after_call(context, case, response):
    seen = _seen[case.operation.label]
    seen["phases"][case.meta.phase.name.value.lower() if case.meta else "other"] += 1
    seen["statuses"][str(response.status_code)] += 1
    # An account has so many services.
    if case.operation.label == f"POST {ROOT}" and response.status_code == 201:
        ask("DELETE", f"/{response.json()['sid']}")


@schemathesis.hook
def filter_failure(context, failure, case, response):
    # `Ttl` is another name, and passed over, whatever it says, where the parameter itself is given: a schema of properties cannot say so.
    itself = "ItemTtl" if "/Items" in case.path else "CollectionTtl"
    if re.search(r"/properties/Ttl\b", failure.message) and isinstance(case.body, dict) and itself in case.body:
        return False
    _seen[case.operation.label]["failed"] += 1
    return True


@schemathesis.check
def verdicts(ctx, response, case):
    """A batch refuses what the document forbids by the verdict of the entry, and nothing that it allows."""
    if response.status_code != 200 or not case.path.endswith("/Batch") or not case.meta:
        return
    statuses = {entry["status"] for entries in response.json().values() for entry in entries}
    if not case.meta.is_negative_at(ParameterLocation.BODY):
        assert 400 not in statuses, "an entry that the document allows is refused"
    else:
        assert 400 in statuses, "an entry that the document forbids is not refused"


@atexit.register
def leave():
    with open(os.environ["DESCRIBED_SEEN"], "w", encoding="utf-8") as out:
        json.dump(_seen, out)
