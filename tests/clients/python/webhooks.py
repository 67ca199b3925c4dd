"""The webhooks of a service, their signatures held by Twilio's own validator; what REST writes, where the service has these on."""

import http.server
import json
import queue
import threading
import urllib.parse

from twilio.request_validator import RequestValidator

import harness
from harness import Suite, main

WITHIN = 20


class Receiver(http.server.ThreadingHTTPServer):
    """Takes webhooks at a path of each test's own; the first `failing` requests of a path get 503."""

    def __init__(self):
        self.told, self.failing = {}, {}
        super().__init__(("127.0.0.1", 0), Hook)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def of(self, path, failing=0):
        self.told[path], self.failing[path] = queue.Queue(), failing
        return f"http://127.0.0.1:{self.server_port}{path}"


class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        path = self.path
        failing, self.server.failing[path] = self.server.failing[path], self.server.failing[path] - 1
        self.server.told[path].put((f"http://{self.headers['Host']}{path}", self.headers, body, failing > 0))
        self.send_response(503 if failing > 0 else 204)
        self.end_headers()

    def log_message(self, *_):
        pass


class Webhooks(Suite):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.receiver = Receiver()
        cls.addClassCleanup(cls.receiver.shutdown)
        cls.validator = RequestValidator(harness.AUTH_TOKEN)

    def begin(self, path, failing=0, **settings):
        made = self.services.create(webhook_url=self.receiver.of(path, failing), **({"webhooks_from_rest_enabled": True} | settings))
        self.addCleanup(self.services(made.sid).delete)
        return made.sid, self.services(made.sid)

    def next(self, path):
        url, headers, body, refused = self.receiver.told[path].get(timeout=WITHIN)
        self.assertEqual(headers["Content-Type"].split(";")[0], "application/x-www-form-urlencoded")
        params = dict(urllib.parse.parse_qsl(body, keep_blank_values=True, strict_parsing=True))
        self.assertTrue(self.validator.validate(url, params, headers["X-Twilio-Signature"]), f"{url} {params}")
        self.assertFalse(self.validator.validate(url, params | {"Identity": "mallory"}, headers["X-Twilio-Signature"]))
        return params, refused

    def expect(self, path, event, **wanted):
        params, _ = self.next(path)
        self.assertEqual(params["EventType"], event, params)
        self.assertEqual((params["AccountSid"], params["Identity"]), (harness.ACCOUNT, "system"))
        self.assertNotIn("EndpointId", params)
        for name, value in wanted.items():
            told = json.loads(params[name]) if name in ("DocumentData", "ItemData") else params.get(name)
            self.assertEqual(told, value, f"{name} of {params}")
        return params

    def test_documents(self):
        path = "/documents?shop=1&x=%C3%A9"
        sid, service = self.begin(path)
        made = service.documents.create(unique_name="d", data={"n": 1, "é": "☎ + &="})
        self.expect(path, "document_created", ServiceSid=sid, DocumentSid=made.sid, DocumentUniqueName="d", DocumentRevision="0", DocumentData={"n": 1, "é": "☎ + &="})
        service.documents("d").update(data={"n": 2})
        self.expect(path, "document_updated", DocumentSid=made.sid, DocumentRevision="1", DocumentData={"n": 2})
        service.documents("d").delete()
        self.assertNotIn("DocumentData", self.expect(path, "document_removed", DocumentSid=made.sid, DocumentUniqueName="d"))

    def test_lists(self):
        path = "/lists"
        _, service = self.begin(path)
        made = service.sync_lists.create(unique_name="l")
        named = {"ListSid": made.sid, "ListUniqueName": "l"}
        self.expect(path, "list_created", ListRevision="0", **named)
        items = service.sync_lists("l").sync_list_items
        items.create(data={"n": 1})
        added = self.expect(path, "list_item_added", ItemIndex="0", ItemData={"n": 1}, ItemRevision="0", ListRevision="1", **named)
        items(0).update(data={"n": 2})
        updated = self.expect(path, "list_item_updated", ItemIndex="0", ItemData={"n": 2}, ItemRevision="1", ListRevision="2", **named)
        items(0).delete()
        removed = self.expect(path, "list_item_removed", ItemIndex="0", ListRevision="3", **named)
        ids = [int(params["EventId"]) for params in (added, updated, removed)]
        self.assertEqual(ids, sorted(set(ids)))
        service.sync_lists("l").delete()
        self.expect(path, "list_removed", **named)

    def test_maps(self):
        path = "/maps"
        _, service = self.begin(path)
        made = service.sync_maps.create(unique_name="m")
        named = {"MapSid": made.sid, "MapUniqueName": "m"}
        self.expect(path, "map_created", MapRevision="0", **named)
        items = service.sync_maps("m").sync_map_items
        items.create(key="k", data={"n": 1})
        self.expect(path, "map_item_added", ItemKey="k", ItemData={"n": 1}, ItemRevision="0", MapRevision="1", **named)
        items("k").update(data={"n": 2})
        self.expect(path, "map_item_updated", ItemKey="k", ItemData={"n": 2}, ItemRevision="1", MapRevision="2", **named)
        items("k").delete()
        self.expect(path, "map_item_removed", ItemKey="k", MapRevision="3", **named)
        service.sync_maps("m").delete()
        self.expect(path, "map_removed", **named)

    def test_a_receiver_that_fails_is_asked_again(self):
        path = "/failing"
        _, service = self.begin(path, failing=2)
        made = service.documents.create()
        for refused in (True, True, False):
            params, was_refused = self.next(path)
            self.assertEqual((params["DocumentSid"], was_refused), (made.sid, refused))

    def test_what_rest_writes_is_told_only_where_that_is_on(self):
        path = "/off"
        _, service = self.begin(path, webhooks_from_rest_enabled=False)
        service.documents.create()
        service.update(webhooks_from_rest_enabled=True)
        harness.until(WITHIN, lambda: self.told_of(path, service.documents.create().sid))

    def told_of(self, path, sid):
        """That the first webhook ever is about a document made after they were switched on."""
        try:
            params = self.receiver.told[path].get(timeout=1)[2]
        except queue.Empty:
            return False
        self.assertIn(sid, params)
        return True


if __name__ == "__main__":
    main()
