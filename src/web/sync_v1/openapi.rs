//! The face's own description, as OpenAPI 3.1: made from one table of its operations and one of what they show, served at `/v1/openapi.json`, kept in
//! `schemas/openapi.json`. Called by the router and by tests, which hold the answers to it. Pure.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// An operation.
pub(super) struct Operation {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    /// Twilio's name of it, where it has one.
    pub(super) id: &'static str,
    takes: Takes,
    pub(super) gives: Gives,
}

/// What an operation is told beside its path.
enum Takes {
    Nothing,
    /// `If-Match`.
    Demand,
    /// Which page of a listing.
    Page,
    /// The same, and in which order and from where on; by what, as a parameter of that name.
    Range(&'static str),
    /// Parameters in a form; required ones end in `*`, and of those that end in `+` at least one is. The flag says whether `If-Match` is heeded.
    Form(&'static [&'static str], bool),
    /// JSON of this schema.
    Json(&'static str),
}

/// What an operation answers where it is not refused.
pub(super) enum Gives {
    /// 204.
    Nothing,
    /// One of this schema, with these statuses. The flag says whether it has a revision.
    One(&'static [u16], &'static str, bool),
    /// A page of these, under this key.
    Page(&'static str, &'static str),
}

use Gives::{Nothing as Gone, One, Page as Pages};
use Takes::{Demand, Form, Json, Nothing, Page, Range};

const SERVICE: &[&str] = &[
    "FriendlyName+",
    "WebhookUrl+",
    "WebhooksFromRestEnabled+",
    "ReachabilityWebhooksEnabled+",
    "AclEnabled+",
    "ReachabilityDebouncingEnabled+",
    "ReachabilityDebouncingWindow+",
];
const NEW_SERVICE: &[&str] = &[
    "FriendlyName",
    "WebhookUrl",
    "WebhooksFromRestEnabled",
    "ReachabilityWebhooksEnabled",
    "AclEnabled",
    "ReachabilityDebouncingEnabled",
    "ReachabilityDebouncingWindow",
];
const COLLECTION: &[&str] = &["Ttl+", "CollectionTtl+"];
const NEW_COLLECTION: &[&str] = &["UniqueName", "Ttl", "CollectionTtl"];
const ITEM: &[&str] = &["Data+", "Ttl+", "ItemTtl+", "CollectionTtl"];
const NEW_ITEM: &[&str] = &["Data*", "Ttl", "ItemTtl", "CollectionTtl"];
const NEW_MAP_ITEM: &[&str] = &["Key*", "Data*", "Ttl", "ItemTtl", "CollectionTtl"];
const RIGHTS: &[&str] = &["Read*", "Write*", "Manage*"];

const fn of(method: &'static str, path: &'static str, id: &'static str, takes: Takes, gives: Gives) -> Operation {
    Operation { method, path, id, takes, gives }
}

/// All of them, below `/v1/Services`.
#[rustfmt::skip]
pub(super) const OPERATIONS: &[Operation] = &[
    of("get", "", "ListService", Page, Pages("services", "service")),
    of("post", "", "CreateService", Form(NEW_SERVICE, false), One(&[201], "service", false)),
    of("get", "/{Service}", "FetchService", Nothing, One(&[200], "service", false)),
    of("post", "/{Service}", "UpdateService", Form(SERVICE, false), One(&[200], "service", false)),
    of("delete", "/{Service}", "DeleteService", Nothing, Gone),
    of("get", "/{Service}/Documents", "ListDocument", Page, Pages("documents", "document")),
    of("post", "/{Service}/Documents", "CreateDocument", Form(&["UniqueName", "Data", "Ttl"], false), One(&[201], "document", true)),
    of("get", "/{Service}/Documents/{Document}", "FetchDocument", Nothing, One(&[200], "document", true)),
    of("post", "/{Service}/Documents/{Document}", "UpdateDocument", Form(&["Data+", "Ttl+"], true), One(&[200], "document", true)),
    of("delete", "/{Service}/Documents/{Document}", "DeleteDocument", Demand, Gone),
    of("get", "/{Service}/Documents/{Document}/Permissions", "ListDocumentPermission", Page, Pages("permissions", "document_permission")),
    of("get", "/{Service}/Documents/{Document}/Permissions/{Identity}", "FetchDocumentPermission", Nothing, One(&[200], "document_permission", false)),
    of("post", "/{Service}/Documents/{Document}/Permissions/{Identity}", "UpdateDocumentPermission", Form(RIGHTS, false), One(&[200], "document_permission", false)),
    of("delete", "/{Service}/Documents/{Document}/Permissions/{Identity}", "DeleteDocumentPermission", Nothing, Gone),
    of("get", "/{Service}/Lists", "ListSyncList", Page, Pages("lists", "list")),
    of("post", "/{Service}/Lists", "CreateSyncList", Form(NEW_COLLECTION, false), One(&[201], "list", true)),
    of("get", "/{Service}/Lists/{List}", "FetchSyncList", Nothing, One(&[200], "list", true)),
    of("post", "/{Service}/Lists/{List}", "UpdateSyncList", Form(COLLECTION, true), One(&[200], "list", true)),
    of("delete", "/{Service}/Lists/{List}", "DeleteSyncList", Demand, Gone),
    of("get", "/{Service}/Lists/{List}/Items", "ListSyncListItem", Range("Index"), Pages("items", "list_item")),
    of("post", "/{Service}/Lists/{List}/Items", "CreateSyncListItem", Form(NEW_ITEM, false), One(&[201], "list_item", true)),
    of("get", "/{Service}/Lists/{List}/Items/{Index}", "FetchSyncListItem", Nothing, One(&[200], "list_item", true)),
    of("post", "/{Service}/Lists/{List}/Items/{Index}", "UpdateSyncListItem", Form(ITEM, true), One(&[200], "list_item", true)),
    of("delete", "/{Service}/Lists/{List}/Items/{Index}", "DeleteSyncListItem", Demand, Gone),
    of("get", "/{Service}/Lists/{List}/Permissions", "ListSyncListPermission", Page, Pages("permissions", "list_permission")),
    of("get", "/{Service}/Lists/{List}/Permissions/{Identity}", "FetchSyncListPermission", Nothing, One(&[200], "list_permission", false)),
    of("post", "/{Service}/Lists/{List}/Permissions/{Identity}", "UpdateSyncListPermission", Form(RIGHTS, false), One(&[200], "list_permission", false)),
    of("delete", "/{Service}/Lists/{List}/Permissions/{Identity}", "DeleteSyncListPermission", Nothing, Gone),
    of("get", "/{Service}/Maps", "ListSyncMap", Page, Pages("maps", "map")),
    of("post", "/{Service}/Maps", "CreateSyncMap", Form(NEW_COLLECTION, false), One(&[201], "map", true)),
    of("get", "/{Service}/Maps/{Map}", "FetchSyncMap", Nothing, One(&[200], "map", true)),
    of("post", "/{Service}/Maps/{Map}", "UpdateSyncMap", Form(COLLECTION, true), One(&[200], "map", true)),
    of("delete", "/{Service}/Maps/{Map}", "DeleteSyncMap", Demand, Gone),
    of("get", "/{Service}/Maps/{Map}/Items", "ListSyncMapItem", Range("From"), Pages("items", "map_item")),
    of("post", "/{Service}/Maps/{Map}/Items", "CreateSyncMapItem", Form(NEW_MAP_ITEM, false), One(&[201], "map_item", true)),
    of("get", "/{Service}/Maps/{Map}/Items/{Key}", "FetchSyncMapItem", Nothing, One(&[200], "map_item", true)),
    of("post", "/{Service}/Maps/{Map}/Items/{Key}", "UpdateSyncMapItem", Form(ITEM, true), One(&[200], "map_item", true)),
    of("put", "/{Service}/Maps/{Map}/Items/{Key}", "PutSyncMapItem", Form(NEW_ITEM, true), One(&[200, 201], "map_item", true)),
    of("delete", "/{Service}/Maps/{Map}/Items/{Key}", "DeleteSyncMapItem", Demand, Gone),
    of("post", "/{Service}/Maps/{Map}/Batch", "PutSyncMapItems", Json("item_batch"), One(&[200], "item_verdicts", false)),
    of("get", "/{Service}/Maps/{Map}/Permissions", "ListSyncMapPermission", Page, Pages("permissions", "map_permission")),
    of("get", "/{Service}/Maps/{Map}/Permissions/{Identity}", "FetchSyncMapPermission", Nothing, One(&[200], "map_permission", false)),
    of("post", "/{Service}/Maps/{Map}/Permissions/{Identity}", "UpdateSyncMapPermission", Form(RIGHTS, false), One(&[200], "map_permission", false)),
    of("delete", "/{Service}/Maps/{Map}/Permissions/{Identity}", "DeleteSyncMapPermission", Nothing, Gone),
    of("get", "/{Service}/Streams", "ListSyncStream", Page, Pages("streams", "stream")),
    of("post", "/{Service}/Streams", "CreateSyncStream", Form(&["UniqueName", "Ttl"], false), One(&[201], "stream", false)),
    of("get", "/{Service}/Streams/{Stream}", "FetchSyncStream", Nothing, One(&[200], "stream", false)),
    of("post", "/{Service}/Streams/{Stream}", "UpdateSyncStream", Form(&["Ttl*"], false), One(&[200], "stream", false)),
    of("delete", "/{Service}/Streams/{Stream}", "DeleteSyncStream", Nothing, Gone),
    of("post", "/{Service}/Streams/{Stream}/Messages", "CreateStreamMessage", Form(&["Data*"], false), One(&[201], "message", false)),
    of("post", "/{Service}/Batch", "PutDocuments", Json("document_batch"), One(&[200], "document_verdicts", false)),
];

/// The whole description, of a server that is reached at this address.
pub(super) fn document(server: &str) -> Value {
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let path = paths.entry(format!("/v1/Services{}", operation.path)).or_insert_with(|| json!({}));
        if let Some(path) = path.as_object_mut() {
            path.insert(operation.method.to_owned(), operation.described());
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Contrail: the Sync API, REST v1",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Sync objects as Twilio's own libraries ask for them. Objects and services are named by SID or by unique name. Beyond Twilio's API: \
                            PutSyncMapItem, PutSyncMapItems, PutDocuments, and If-Match on deletes of objects.",
        },
        "servers": [{"url": server}],
        "security": [{"account": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"account": {"type": "http", "scheme": "basic", "description": "An account's SID and auth token, or an API key's SID and secret."}},
            "schemas": schemas(),
            "responses": {"refused": {"description": "Refused; `code` says why.", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/refused"}}}}},
        },
    })
}

impl Operation {
    fn described(&self) -> Value {
        let in_path = self
            .path
            .split(['{', '}'])
            .skip(1)
            .step_by(2)
            .map(|name| json!({"name": name, "in": "path", "required": true, "schema": parameter(name)}));
        let more: &[&str] = match self.takes {
            Nothing | Form(_, false) | Json(_) => &[],
            Demand | Form(_, true) => &["If-Match"],
            Page => &["PageSize", "Page", "PageToken"],
            Range(_) => &["Order", "From", "Bounds", "PageSize", "Page", "PageToken"],
        };
        let beside = more.iter().map(|name| {
            let schema = match (*name, &self.takes) {
                ("From", Range(of)) => parameter(of),
                _ => parameter(name),
            };
            json!({"name": name, "in": if *name == "If-Match" { "header" } else { "query" }, "required": false, "schema": schema})
        });
        let parameters: Vec<Value> = in_path.chain(beside).collect();
        let mut described = json!({"operationId": self.id, "parameters": parameters, "responses": self.answers()});
        if let (Some(body), Some(described)) = (self.takes.body(), described.as_object_mut()) {
            described.insert("requestBody".to_owned(), body);
        }
        described
    }

    /// All that it answers, by status.
    fn answers(&self) -> Map<String, Value> {
        let mut answers = self.gives.described();
        answers.extend(self.refusals().into_iter().map(|status| (status.to_string(), json!({"$ref": "#/components/responses/refused"}))));
        answers
    }

    /// The statuses that it refuses with.
    pub(super) fn refusals(&self) -> BTreeSet<u16> {
        // It is asked wrongly, by nobody known, or cannot be answered at present.
        let mut statuses = BTreeSet::from([400, 401, 503]);
        // There is no such thing, it is of another region, or asked for too often.
        let of_service = !self.path.is_empty();
        statuses.extend([404, 421, 429].into_iter().filter(|_| of_service));
        // What is stored cannot be read.
        statuses.extend(of_service.then_some(500));
        statuses.extend(matches!(self.takes, Form(..) | Json(_)).then_some(413));
        statuses.extend(matches!(self.takes, Demand | Form(_, true)).then_some(412));
        // It is another's to write.
        statuses.extend((of_service && self.method != "get").then_some(403));
        statuses.extend((of_service && matches!(self.gives, One(&[201], ..))).then_some(409));
        statuses
    }
}

impl Takes {
    fn body(&self) -> Option<Value> {
        match self {
            Nothing | Demand | Page | Range(_) => None,
            Form(names, _) => {
                let name = |name: &&str| name.trim_end_matches(['*', '+']).to_owned();
                let properties: Map<String, Value> = names.iter().map(|given| (name(given), parameter(&name(given)))).collect();
                let required: Vec<String> = names.iter().filter(|name| name.ends_with('*')).map(name).collect();
                let one_of: Vec<Value> = names.iter().filter(|name| name.ends_with('+')).map(|given| json!({"required": [name(given)]})).collect();
                let is_required = !required.is_empty() || !one_of.is_empty();
                // Others are nobody's concern, but none is given twice.
                let mut schema =
                    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": {"type": "string"}});
                if let (Some(schema), false) = (schema.as_object_mut(), one_of.is_empty()) {
                    schema.insert("anyOf".to_owned(), one_of.into());
                }
                Some(json!({"required": is_required, "content": {"application/x-www-form-urlencoded": {"schema": schema}}}))
            }
            Json(schema) => Some(json!({"required": true, "content": {"application/json": {"schema": reference(schema)}}})),
        }
    }
}

impl Gives {
    /// The schema of what it answers with; None where that has no body.
    pub(super) fn schema(&self) -> Option<Value> {
        match self {
            Gone => None,
            One(_, schema, _) => Some(reference(schema)),
            Pages(key, schema) => {
                let entries = json!({"type": "array", "items": reference(schema)});
                Some(object(&[(key, entries), ("meta", reference("meta"))], &[]))
            }
        }
    }

    /// The statuses that it answers with where it does not refuse.
    pub(super) const fn statuses(&self) -> &'static [u16] {
        match self {
            Gone => &[204],
            One(statuses, ..) => statuses,
            Pages(..) => &[200],
        }
    }

    fn described(&self) -> Map<String, Value> {
        let mut responses = Map::new();
        for status in self.statuses() {
            let mut response = json!({"description": if *status == 201 { "Made." } else { "Done." }});
            if let Some(response) = response.as_object_mut() {
                response.extend(self.schema().map(|schema| ("content".to_owned(), json!({"application/json": {"schema": schema}}))));
                let has_revision = matches!(self, One(_, _, true));
                response.extend(has_revision.then(|| {
                    let schema = json!({"type": "string", "pattern": "^\"[0-9]+\"$"});
                    ("headers".to_owned(), json!({"ETag": {"description": "The revision.", "schema": schema}}))
                }));
            }
            responses.insert(status.to_string(), response);
        }
        responses
    }
}

/// What a parameter may be, wherever it stands.
fn parameter(name: &str) -> Value {
    let text = |most: u32| json!({"type": "string", "minLength": 1, "maxLength": most, "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]+$"});
    match name {
        "Data" => {
            json!({
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": {"type": "object"},
                "description": "A JSON object, at most 16 KiB; of a message 4 KiB.",
            })
        }
        "Ttl" | "ItemTtl" | "CollectionTtl" => json!({"type": "integer", "minimum": 0, "maximum": 31_536_000}),
        "UniqueName" | "Key" => text(320),
        "Index" => json!({"type": "integer", "minimum": 0, "maximum": u64::MAX - 1}),
        "From" => json!({"type": "string"}),
        "Identity" => json!({"type": "string", "minLength": 1, "maxLength": 256}),
        "FriendlyName" => json!({"type": "string", "minLength": 1, "maxLength": 255}),
        "WebhookUrl" => json!({
            "type": "string",
            "maxLength": 512,
            "anyOf": [{"const": ""}, {"format": "uri", "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://"}],
            "description": "An empty one is none.",
        }),
        "ReachabilityDebouncingWindow" => json!({"type": "integer", "minimum": 1_000, "maximum": 30_000}),
        "If-Match" => json!({"type": "string", "pattern": "^([0-9]+|\"[0-9]+\"|W/\"[0-9]+\"|\\*)$"}),
        "Order" => json!({"enum": ["asc", "desc"]}),
        "Bounds" => json!({"enum": ["inclusive", "exclusive"]}),
        "PageSize" => json!({"type": "integer", "description": "Taken as 1 to 100."}),
        "Page" => json!({"type": "integer", "minimum": 0}),
        "PageToken" => json!({"type": "string", "pattern": "^PT[A-Za-z0-9_-]+$", "description": "Of an address that a page shows."}),
        "Read" | "Write" | "Manage" => json!({"type": "boolean"}),
        _ if name.ends_with("Enabled") => json!({"type": "boolean"}),
        _ => json!({"type": "string", "minLength": 1}),
    }
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

/// An object that has all these fields, those that may be missing among them, and no others.
fn object(fields: &[(&str, Value)], missing: &[&str]) -> Value {
    let properties: Map<String, Value> = fields.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    let required: Vec<&str> = fields.iter().map(|(name, _)| *name).filter(|name| !missing.contains(name)).collect();
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

/// What is shown.
fn schemas() -> Value {
    let sid = |prefix: &str| json!({"type": "string", "pattern": format!("^{prefix}[0-9a-f]{{32}}$")});
    let (text, flag, number) = (json!({"type": "string"}), json!({"type": "boolean"}), json!({"type": "integer", "minimum": 0}));
    let (url, perhaps_url, perhaps_text) =
        (json!({"type": "string", "format": "uri"}), json!({"type": ["string", "null"], "format": "uri"}), json!({"type": ["string", "null"]}));
    let time = |kind: Value| json!({"type": kind, "format": "date-time", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"});
    let revision = json!({"type": "string", "pattern": "^[0-9]+$"});
    let links = |names: &[&str]| object(&names.iter().map(|name| (*name, url.clone())).collect::<Vec<_>>(), &[]);
    let owners = [("account_sid", sid("AC")), ("service_sid", sid("IS"))];
    let lived = [
        ("date_expires", time(json!(["string", "null"]))),
        ("date_created", time(json!("string"))),
        ("date_updated", time(json!("string"))),
        ("created_by", text.clone()),
    ];
    let thing = |own: &[(&str, Value)]| {
        let fields: Vec<(&str, Value)> = owners.iter().chain(&[("url", url.clone())]).chain(&lived).chain(own).cloned().collect();
        object(&fields, &[])
    };
    let kept = |prefix, names: &[&str], more: &[(&'static str, Value)]| {
        let own = [("sid", sid(prefix)), ("unique_name", perhaps_text.clone()), ("links", links(names))];
        thing(&own.iter().chain(more).cloned().collect::<Vec<_>>())
    };
    let (revised, data) = (("revision", revision.clone()), ("data", json!({})));
    let item = |name, kind: &Value, of, prefix| thing(&[(name, kind.clone()), (of, sid(prefix)), revised.clone(), data.clone()]);
    let permission = |of, prefix| {
        let own = [
            (of, sid(prefix)),
            ("identity", text.clone()),
            ("read", flag.clone()),
            ("write", flag.clone()),
            ("manage", flag.clone()),
            ("url", url.clone()),
        ];
        object(&owners.iter().chain(&own).cloned().collect::<Vec<_>>(), &[])
    };
    let mut schemas = json!({
        "service": object(&[
            ("sid", sid("IS")), ("unique_name", perhaps_text.clone()), ("account_sid", sid("AC")), ("friendly_name", perhaps_text.clone()),
            ("date_created", time(json!("string"))), ("date_updated", time(json!("string"))), ("url", url.clone()), ("webhook_url", perhaps_url.clone()),
            ("webhooks_from_rest_enabled", flag.clone()), ("reachability_webhooks_enabled", flag.clone()), ("acl_enabled", flag.clone()),
            ("reachability_debouncing_enabled", flag.clone()), ("reachability_debouncing_window", number.clone()),
            ("links", links(&["documents", "lists", "maps", "streams"])),
        ], &[]),
        "document": kept("ET", &["permissions"], &[revised.clone(), data.clone()]),
        "list": kept("ES", &["items", "permissions"], std::slice::from_ref(&revised)),
        "map": kept("MP", &["items", "permissions"], std::slice::from_ref(&revised)),
        "stream": kept("TO", &["messages"], &[]),
        "list_item": item("index", &number, "list_sid", "ES"),
        "map_item": item("key", &text, "map_sid", "MP"),
        "message": object(&[("sid", sid("TZ")), ("data", json!({"type": "object"}))], &[]),
        "document_permission": permission("document_sid", "ET"),
        "list_permission": permission("list_sid", "ES"),
        "map_permission": permission("map_sid", "MP"),
        "meta": object(&[
            ("page", number.clone()), ("page_size", number.clone()), ("first_page_url", url.clone()), ("previous_page_url", perhaps_url.clone()),
            ("url", url.clone()), ("next_page_url", perhaps_url), ("key", text.clone()),
        ], &[]),
        "refused": object(&[("code", number.clone()), ("message", text.clone()), ("more_info", url.clone()), ("status", number.clone())], &[]),
    });
    if let (Some(schemas), Value::Object(batches)) = (schemas.as_object_mut(), batches(&revision)) {
        schemas.extend(batches);
    }
    schemas
}

/// What goes into batches, and comes out of them.
fn batches(revision: &Value) -> Value {
    let (text, number) = (json!({"type": "string"}), json!({"type": "integer"}));
    let entries = |of: Value| json!({"type": "array", "minItems": 1, "maxItems": 1_000, "items": of});
    let or_null = |schema: Value| json!({"anyOf": [schema, {"type": "null"}]});
    let (data, ttl) = (("data", json!({"type": "object"})), ("ttl", or_null(parameter("Ttl"))));
    let demand = json!({"anyOf": [parameter("If-Match"), {"type": "integer", "minimum": 0, "maximum": u64::MAX}, {"type": "null"}]});
    let item = object(&[("key", parameter("Key")), data.clone(), ttl.clone(), ("if_match", demand)], &["ttl", "if_match"]);
    let document = object(&[("unique_name", parameter("UniqueName")), data, ttl], &["ttl"]);
    let verdict = |name: &'static str| {
        let fields = [
            (name, text.clone()),
            ("sid", text.clone()),
            ("status", number.clone()),
            ("revision", revision.clone()),
            ("code", number.clone()),
            ("message", text.clone()),
        ];
        object(&fields, &[name, "sid", "revision", "code", "message"])
    };
    json!({
        "item_batch": object(&[("items", entries(item))], &[]),
        "item_verdicts": object(&[("items", entries(verdict("key")))], &[]),
        "document_batch": object(&[("documents", entries(document))], &[]),
        "document_verdicts": object(&[("documents", entries(verdict("unique_name")))], &[]),
    })
}

#[cfg(test)]
mod tests;
