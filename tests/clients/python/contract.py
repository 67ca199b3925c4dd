"""What Twilio's own OpenAPI document says of Sync, held against every answer that a Python suite gets.

The document marks no field as required, and its links only as a map: here every field must be there and no other, and the links are those of the documentation.
"""

import datetime
import json
import os
import re

DOCUMENT = json.load(open(os.environ["CLIENTS_OPENAPI"]))
LINKS = {
    "sync.v1.service": {"documents", "lists", "maps", "streams"},
    "sync.v1.service.document": {"permissions"},
    "sync.v1.service.sync_list": {"items", "permissions"},
    "sync.v1.service.sync_map": {"items", "permissions"},
    "sync.v1.service.sync_stream": {"messages"},
}
PAGE = {"page", "page_size", "first_page_url", "previous_page_url", "url", "next_page_url", "key"}


class Operation:
    def __init__(self, path, method, described):
        self.name, self.method = described["operationId"], method.upper()
        # A map's key may have a slash in it; the clients do not encode it.
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path.replace("{Key}", "KEY"))).replace("KEY", ".+")
        self.path = re.compile(pattern + "$")
        [(status, answer)] = described["responses"].items()
        self.status = int(status)
        self.schema = next(iter(answer["content"].values()))["schema"] if "content" in answer else None


OPERATIONS = [
    Operation(path, method, described)
    for path, methods in DOCUMENT["paths"].items()
    for method, described in methods.items()
    if method in ("get", "post", "delete")
]
assert len(OPERATIONS) == 48


def operation(method, path):
    # Of two that fit, the one with the longer path: `/Items/{Key}` before anything shorter.
    fitting = [one for one in OPERATIONS if one.method == method and one.path.fullmatch(path)]
    assert fitting, f"{method} {path} is no operation of the document"
    return max(fitting, key=lambda one: len(one.path.pattern))


def check(base, method, url, status, headers, text):
    """Raises AssertionError unless this answer is one that the document has. Gives the operation's name where it succeeded."""
    path = url[len(base):].split("?")[0]
    where = f"{method} {path} answered {status} {text[:2000]}"
    assert re.fullmatch("RQ[0-9a-f]{32}", headers.get("Twilio-Request-Id", "")), f"no Twilio-Request-Id: {headers}; {where}"
    assert headers.get("Access-Control-Allow-Origin") == "*", f"no Access-Control-Allow-Origin: {headers}; {where}"
    assert "ETag" in headers.get("Access-Control-Expose-Headers", ""), f"ETag is not exposed: {headers}; {where}"
    if status == 204:
        assert text == "", where
    else:
        assert headers.get("Content-Type") == "application/json;charset=utf-8", f"{headers.get('Content-Type')}; {where}"
    if status >= 400:
        refusal(status, json.loads(text), where)
        return None
    found = operation(method, path)
    assert status == found.status, f"{found.name} is to answer {found.status}; {where}"
    if found.schema is None:
        return found.name
    value = json.loads(text)
    if "$ref" in found.schema:
        instance(base, found.schema["$ref"].rsplit("/", 1)[1], value, where)
        if "revision" in value:
            assert headers.get("ETag", "").removeprefix("W/").strip('"') == value["revision"], f"ETag {headers.get('ETag')}; {where}"
    else:
        page(base, found.schema, value, where)
    return found.name


def refusal(status, value, where):
    assert set(value) == {"code", "message", "more_info", "status"}, where
    assert value["status"] == status and isinstance(value["code"], int) and value["message"], where
    assert value["more_info"] == f"https://www.twilio.com/docs/errors/{value['code']}", where


def page(base, schema, value, where):
    [key] = set(schema["properties"]) - {"meta"}
    assert set(value) == {key, "meta"}, f"a page's members; {where}"
    meta = value["meta"]
    assert set(meta) == PAGE and meta["key"] == key, f"a page's meta; {where}"
    assert isinstance(meta["page"], int) and isinstance(meta["page_size"], int), where
    assert len(value[key]) <= meta["page_size"] <= 100, where
    for name in ("first_page_url", "url"):
        assert meta[name].startswith(base + "/v1/"), f"{name}; {where}"
    for name in ("previous_page_url", "next_page_url"):
        assert meta[name] is None or meta[name].startswith(base + "/v1/"), f"{name}; {where}"
    for one in value[key]:
        instance(base, schema["properties"][key]["items"]["$ref"].rsplit("/", 1)[1], one, where)


def instance(base, name, value, where):
    properties = DOCUMENT["components"]["schemas"][name]["properties"]
    assert set(value) == set(properties), f"{name} has the fields {sorted(properties)}, not {sorted(value)}; {where}"
    for key, schema in properties.items():
        if key == "links":
            assert set(value[key]) == LINKS[name], f"links of {name}; {where}"
            assert all(link.startswith(value["url"] + "/") for link in value[key].values()), f"links of {name}; {where}"
        else:
            field(schema, value[key], f"{key} of {name} is {value[key]!r}; {where}")
    assert "url" not in value or value["url"].startswith(base + "/v1/Services/IS"), f"url of {name}; {where}"


# What the document calls nullable, but what is never null of a thing that is there.
NEVER_NULL = re.compile(r"^(sid|\w+_sid|url|revision|data|date_created|date_updated|created_by|key|identity|read|write|manage|\w+_enabled) of ")


def field(schema, value, where):
    if value is None:
        assert schema.get("nullable") and not NEVER_NULL.match(where), where
        return
    kind = schema.get("type")
    types = {"string": str, "integer": int, "boolean": bool, "object": dict}
    if kind:
        assert type(value) is types[kind], where
    if "pattern" in schema:
        assert re.search(schema["pattern"], value), where
        assert value[2:] == value[2:].lower(), where
    if schema.get("format") == "date-time":
        datetime.datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ")
    if schema.get("format") == "uri":
        assert re.match("https?://", value), where
