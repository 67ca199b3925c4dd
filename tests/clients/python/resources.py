"""Everything that Twilio's library for Python does with Sync and that succeeds."""

import datetime
import time

import requests

import harness
from harness import Suite, main, unique, until

UTC = datetime.timezone.utc
MANY = 120


def seconds(later, earlier):
    return (later - earlier).total_seconds()


class Services(Suite):
    def test_create_fetch_list_update_delete(self):
        made = self.services.create(
            friendly_name="first", webhook_url="https://shop.example/hook", webhooks_from_rest_enabled=True, reachability_webhooks_enabled=True, acl_enabled=True,
            reachability_debouncing_enabled=True, reachability_debouncing_window=2000,
        )
        self.assertRegex(made.sid, "^IS[0-9a-f]{32}$")
        self.assertIsNone(made.unique_name)
        self.assertEqual((made.account_sid, made.friendly_name, made.webhook_url), (harness.ACCOUNT, "first", "https://shop.example/hook"))
        self.assertTrue(made.webhooks_from_rest_enabled and made.reachability_webhooks_enabled and made.acl_enabled and made.reachability_debouncing_enabled)
        self.assertEqual(made.reachability_debouncing_window, 2000)
        self.assertEqual(made.url, f"{harness.URL}/v1/Services/{made.sid}")
        self.assertEqual(made.links["documents"], f"{made.url}/Documents")
        self.assertEqual(self.services(made.sid).fetch().friendly_name, "first")
        self.assertIn(made.sid, [one.sid for one in self.services.stream()])
        self.assertIn(made.sid, [one.sid for one in self.services.list(page_size=1)])
        changed = self.services(made.sid).update(friendly_name="second", acl_enabled=False)
        self.assertEqual((changed.friendly_name, changed.acl_enabled, changed.reachability_webhooks_enabled), ("second", False, True))
        self.assertTrue(self.services(made.sid).delete())
        with self.refused(404, 20404):
            self.services(made.sid).fetch()
        with self.refused(404, 20404):
            self.services(made.sid).documents.list()

    def test_what_is_not_given_has_its_default(self):
        made = self.services(self.sid).fetch()
        self.assertIsNone(made.webhook_url)
        self.assertFalse(made.webhooks_from_rest_enabled or made.reachability_webhooks_enabled or made.acl_enabled or made.reachability_debouncing_enabled)
        self.assertEqual(made.reachability_debouncing_window, 5000)

    def test_default_names_the_service_that_was_there_first(self):
        there = self.services("default").fetch()
        self.assertEqual((there.sid, there.unique_name), (harness.DEFAULT_SERVICE, "default"))
        name = unique("document")
        made = self.services("default").documents.create(unique_name=name)
        self.assertEqual(made.service_sid, harness.DEFAULT_SERVICE)
        self.assertEqual(self.services(harness.DEFAULT_SERVICE).documents(name).fetch().sid, made.sid)
        self.services("default").documents(name).delete()

    def test_an_object_of_one_service_is_none_of_another(self):
        made = self.service.documents.create(unique_name="only-here")
        other = self.services.create(friendly_name="other")
        for name in (made.sid, "only-here"):
            with self.refused(404, 20404):
                self.services(other.sid).documents(name).fetch()
        self.services(other.sid).documents.create(unique_name="only-here", data={"other": True})
        self.assertEqual(self.service.documents("only-here").fetch().data, {})
        self.services(other.sid).delete()


class Credentials(Suite):
    def test_an_api_key_does_what_the_account_does(self):
        by_key = harness.client(harness.KEY, harness.SECRET).sync.v1.services(self.sid)
        made = by_key.documents.create(data={"by": "key"})
        self.assertEqual((made.account_sid, made.created_by), (harness.ACCOUNT, "system"))
        self.assertEqual(self.service.documents(made.sid).fetch().data, {"by": "key"})

    def test_nobody_else_gets_anything(self):
        wrong = [(harness.ACCOUNT, harness.SECRET), (harness.KEY, harness.AUTH_TOKEN), ("AC" + "0" * 32, harness.AUTH_TOKEN), ("SK" + "0" * 32, harness.SECRET)]
        for user, password in wrong:
            with self.refused(401, 20003):
                harness.client(user, password).sync.v1.services(self.sid).fetch()


class Documents(Suite):
    def test_create_fetch_update_delete(self):
        before = datetime.datetime.now(UTC).replace(microsecond=0)
        made = self.service.documents.create(unique_name="greeting", data={"text": "hello", "list": [1, 2.5, None, True, {"é": "☎"}]})
        self.assertRegex(made.sid, "^ET[0-9a-f]{32}$")
        self.assertEqual((made.unique_name, made.revision, made.created_by, made.date_expires), ("greeting", "0", "system", None))
        self.assertEqual((made.account_sid, made.service_sid), (harness.ACCOUNT, self.sid))
        self.assertEqual(made.url, f"{harness.URL}/v1/Services/{self.sid}/Documents/{made.sid}")
        self.assertEqual(made.links, {"permissions": f"{made.url}/Permissions"})
        self.assertIsInstance(made.date_created, datetime.datetime)
        self.assertGreaterEqual(made.date_created, before)
        for name in ("greeting", made.sid):
            self.assertEqual(self.service.documents(name).fetch().data, {"text": "hello", "list": [1, 2.5, None, True, {"é": "☎"}]})
        changed = self.service.documents("greeting").update(data={"only": "this"})
        self.assertEqual((changed.sid, changed.revision, changed.data, changed.date_created), (made.sid, "1", {"only": "this"}, made.date_created))
        self.assertGreaterEqual(changed.date_updated, made.date_updated)
        self.assertEqual(self.service.documents(made.sid).fetch().data, {"only": "this"})
        self.assertTrue(self.service.documents(made.sid).delete())
        for name in ("greeting", made.sid):
            with self.refused(404, 20404):
                self.service.documents(name).fetch()
        again = self.service.documents.create(unique_name="greeting")
        self.assertNotEqual(again.sid, made.sid)
        self.assertEqual((again.revision, again.data), ("0", {}))

    def test_the_instance_does_the_same_as_its_address(self):
        made = self.service.documents.create(data={"n": 1})
        self.assertIsNone(made.unique_name)
        self.assertEqual(made.update(data={"n": 2}).data, {"n": 2})
        self.assertEqual(made.fetch().data, {"n": 2})
        self.assertTrue(made.delete())

    def test_if_match_takes_the_revision_alone(self):
        made = self.service.documents.create(data={"n": 0})
        at = self.service.documents(made.sid)
        with self.refused(412, 54103):
            at.update(data={"n": 9}, if_match="7")
        changed = at.update(data={"n": 1}, if_match=made.revision)
        self.assertEqual(changed.revision, "1")
        with self.refused(412, 54103):
            at.update(data={"n": 9}, if_match=made.revision)
        self.assertEqual(at.update(data={"n": 2}, if_match='"1"').revision, "2")
        self.assertEqual(at.update(data={"n": 3}, if_match="*").data, {"n": 3})
        self.assertEqual(at.update(data={"n": 4}).data, {"n": 4})

    def test_the_etag_is_the_revision(self):
        answer = self.service.documents.create_with_http_info(data={})
        self.assertEqual(answer.status_code, 201)
        headers = {name.lower(): value for name, value in answer.headers.items()}
        self.assertEqual(headers["etag"].strip('"'), answer.data.revision)

    def test_time_to_live(self):
        made = self.service.documents.create(ttl=600)
        self.assertEqual(seconds(made.date_expires, made.date_created), 600)
        longer = self.service.documents(made.sid).update(ttl=1200)
        self.assertGreaterEqual(seconds(longer.date_expires, made.date_created), 1200)
        self.assertEqual(longer.data, {})
        kept = self.service.documents(made.sid).update(data={"n": 1})
        self.assertEqual(kept.date_expires, longer.date_expires)
        never = self.service.documents(made.sid).update(ttl=0)
        self.assertIsNone(never.date_expires)
        longest = self.service.documents.create(ttl=31_536_000)
        self.assertEqual(seconds(longest.date_expires, longest.date_created), 31_536_000)

    def test_what_has_expired_is_not_found(self):
        name = unique("short")
        made = self.service.documents.create(unique_name=name, ttl=2)
        gone = until(10, lambda: self.gone(name))
        self.assertGreaterEqual(gone, made.date_expires.timestamp() - 1)
        self.assertNotIn(made.sid, [one.sid for one in self.service.documents.stream()])
        self.assertNotEqual(self.service.documents.create(unique_name=name).sid, made.sid)

    def gone(self, name):
        try:
            self.service.documents(name).fetch()
        except harness.TwilioRestException as refused:
            self.assertEqual((refused.status, refused.code), (404, 20404))
            return time.time()
        return None

    def test_one_name_for_each_kind(self):
        kinds = [self.service.documents, self.service.sync_lists, self.service.sync_maps, self.service.sync_streams]
        self.assertEqual(len({kind.create(unique_name="the-same").sid for kind in kinds}), 4)

    def test_names_of_up_to_320_characters(self):
        for name in ("n" * 320, "a.b-c_d:e~f+g", "é ü"):
            self.service.documents.create(unique_name=name, data={"name": name})
            self.assertEqual(self.service.documents(name).fetch().data, {"name": name})

    def test_data_of_nearly_16_kib(self):
        text = "x" * 16_000
        made = self.service.documents.create(data={"text": text})
        self.assertEqual(self.service.documents(made.sid).fetch().data, {"text": text})


class Paging(Suite):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.made = [cls.service.documents.create(unique_name=f"document-{n:03}").sid for n in range(MANY)]

    def test_every_page_once(self):
        for size in (1, 7, 50, 100):
            if size == 1:
                got = [one.sid for one in self.service.documents.list(limit=5, page_size=1)]
                self.assertEqual(len(set(got)), 5)
                continue
            got = [one.sid for one in self.service.documents.stream(page_size=size)]
            self.assertEqual(len(got), MANY, size)
            self.assertEqual(set(got), set(self.made), size)

    def test_a_limit_above_the_greatest_page(self):
        self.assertEqual({one.sid for one in self.service.documents.list(limit=500)}, set(self.made))
        self.assertEqual(len(self.service.documents.list(limit=101)), 101)
        self.assertEqual(len(self.service.documents.list(limit=3)), 3)

    def test_pages_by_hand(self):
        page = self.service.documents.page()
        first = [one.sid for one in page]
        self.assertEqual(len(first), 50)
        self.assertIsNone(page.previous_page_url)
        second = page.next_page()
        self.assertEqual(len([one.sid for one in second]), 50)
        third = self.service.documents.get_page(second.next_page_url)
        self.assertEqual(len([one.sid for one in third]), MANY - 100)
        self.assertIsNone(third.next_page_url)
        self.assertIsNone(third.next_page())

    def test_going_back(self):
        first = self.service.documents.page(page_size=20)
        listed = [one.sid for one in first]
        third = first.next_page().next_page()
        back = third.previous_page().previous_page()
        self.assertEqual([one.sid for one in back], listed)
        self.assertIsNone(back.previous_page())


class Lists(Suite):
    def test_create_fetch_update_delete(self):
        made = self.service.sync_lists.create(unique_name="calls")
        self.assertRegex(made.sid, "^ES[0-9a-f]{32}$")
        self.assertEqual((made.unique_name, made.revision, made.created_by, made.date_expires), ("calls", "0", "system", None))
        self.assertEqual(made.url, f"{harness.URL}/v1/Services/{self.sid}/Lists/{made.sid}")
        self.assertEqual(made.links, {"items": f"{made.url}/Items", "permissions": f"{made.url}/Permissions"})
        changed = self.service.sync_lists("calls").update(collection_ttl=600)
        self.assertGreaterEqual(seconds(changed.date_expires, made.date_created), 600)
        self.assertIsNone(self.service.sync_lists("calls").update(ttl=0).date_expires)
        self.assertIn(made.sid, [one.sid for one in self.service.sync_lists.stream()])
        self.assertTrue(self.service.sync_lists(made.sid).delete())
        with self.refused(404, 20404):
            self.service.sync_lists("calls").fetch()
        with self.refused(404, 20404):
            self.service.sync_lists("calls").sync_list_items.list()

    def test_an_index_is_never_given_again(self):
        items = self.service.sync_lists(self.service.sync_lists.create().sid).sync_list_items
        self.assertEqual([items.create(data={"n": n}).index for n in range(3)], [0, 1, 2])
        self.assertTrue(items(1).delete())
        self.assertEqual(items.create(data={"n": 4}).index, 4)
        self.assertEqual([one.index for one in items.list()], [0, 2, 4])
        with self.refused(404, 20404):
            items(1).fetch()

    def test_items(self):
        made = self.service.sync_lists.create()
        items = self.service.sync_lists(made.sid).sync_list_items
        item = items.create(data={"call": "one"})
        self.assertEqual((item.index, item.revision, item.list_sid, item.created_by, item.date_expires), (0, "0", made.sid, "system", None))
        self.assertEqual(item.url, f"{made.url}/Items/0")
        changed = items(0).update(data={"call": "two"}, if_match="0")
        self.assertEqual((changed.revision, changed.data), ("1", {"call": "two"}))
        with self.refused(412, 54155):
            items(0).update(data={"call": "three"}, if_match="0")
        self.assertEqual(items(0).fetch().data, {"call": "two"})
        self.assertEqual(self.service.sync_lists(made.sid).fetch().revision, "2")
        self.assertTrue(items(0).delete())
        self.assertEqual(self.service.sync_lists(made.sid).fetch().revision, "3")

    def test_order_from_and_bounds(self):
        items = self.service.sync_lists(self.service.sync_lists.create().sid).sync_list_items
        for n in range(8):
            items.create(data={"n": n})
        items(3).delete()

        def indexes(**query):
            return [one.index for one in items.list(**query)]

        self.assertEqual(indexes(), [0, 1, 2, 4, 5, 6, 7])
        self.assertEqual(indexes(order="asc", page_size=2), [0, 1, 2, 4, 5, 6, 7])
        self.assertEqual(indexes(order="desc", page_size=3), [7, 6, 5, 4, 2, 1, 0])
        self.assertEqual(indexes(from_="4"), [4, 5, 6, 7])
        self.assertEqual(indexes(from_="4", bounds="exclusive"), [5, 6, 7])
        self.assertEqual(indexes(from_="3", bounds="exclusive"), [4, 5, 6, 7])
        self.assertEqual(indexes(from_="3"), [4, 5, 6, 7])
        self.assertEqual(indexes(from_="4", order="desc", page_size=2), [4, 2, 1, 0])
        self.assertEqual(indexes(from_="4", order="desc", bounds="exclusive", page_size=2), [2, 1, 0])
        self.assertEqual(indexes(from_="99"), [])

    def test_times_to_live_of_items_and_their_list(self):
        made = self.service.sync_lists.create(collection_ttl=600)
        self.assertEqual(seconds(made.date_expires, made.date_created), 600)
        items = self.service.sync_lists(made.sid).sync_list_items
        self.assertIsNone(items.create(data={}).date_expires)
        aliased = items.create(data={}, ttl=60)
        self.assertEqual(seconds(aliased.date_expires, aliased.date_created), 60)
        both = items.create(data={}, ttl=60, item_ttl=90, collection_ttl=3600)
        self.assertEqual(seconds(both.date_expires, both.date_created), 90)
        parent = self.service.sync_lists(made.sid).fetch()
        self.assertGreaterEqual(seconds(parent.date_expires, both.date_created), 3600)
        items(both.index).update(data={"again": 1}, collection_ttl=7200)
        self.assertGreaterEqual(seconds(self.service.sync_lists(made.sid).fetch().date_expires, both.date_created), 7200)
        short = items.create(data={}, item_ttl=1)
        until(10, lambda: short.index not in [one.index for one in items.stream()])
        with self.refused(404, 20404):
            items(short.index).fetch()


class Maps(Suite):
    def test_create_fetch_update_delete(self):
        made = self.service.sync_maps.create(unique_name="agents")
        self.assertRegex(made.sid, "^MP[0-9a-f]{32}$")
        self.assertEqual((made.unique_name, made.revision, made.created_by, made.date_expires), ("agents", "0", "system", None))
        self.assertEqual(made.links, {"items": f"{made.url}/Items", "permissions": f"{made.url}/Permissions"})
        changed = self.service.sync_maps("agents").update(ttl=600)
        self.assertGreaterEqual(seconds(changed.date_expires, made.date_created), 600)
        self.assertIn(made.sid, [one.sid for one in self.service.sync_maps.stream()])
        self.assertTrue(self.service.sync_maps("agents").delete())
        with self.refused(404, 20404):
            self.service.sync_maps(made.sid).fetch()

    def test_items(self):
        made = self.service.sync_maps.create()
        items = self.service.sync_maps(made.sid).sync_map_items
        item = items.create(key="alice", data={"calls": 1})
        self.assertEqual((item.key, item.revision, item.map_sid, item.created_by, item.date_expires), ("alice", "0", made.sid, "system", None))
        self.assertEqual(item.url, f"{made.url}/Items/alice")
        changed = items("alice").update(data={"calls": 2}, if_match="0")
        self.assertEqual((changed.revision, changed.data), ("1", {"calls": 2}))
        with self.refused(412, 54205):
            items("alice").update(data={"calls": 3}, if_match="0")
        with self.refused(404, 20404):
            items("bob").update(data={})
        with self.refused(409, 54208):
            items.create(key="alice", data={})
        self.assertEqual(items("alice").fetch().data, {"calls": 2})
        self.assertTrue(items("alice").delete())
        with self.refused(404, 20404):
            items("alice").fetch()
        self.assertEqual(items.create(key="alice", data={"calls": 9}).data, {"calls": 9})

    def test_any_key_that_the_library_can_name(self):
        items = self.service.sync_maps(self.service.sync_maps.create().sid).sync_map_items
        keys = ["x/y", "/", "a/b/c", "a b", "é", "日本", "dots.and-more_~+:", "k" * 320]
        for key in keys:
            items.create(key=key, data={"key": key})
        self.assertEqual({one.key for one in items.stream()}, set(keys))
        # What its path cannot carry as it is: see the slash at the end of a path.
        for key in [key for key in keys if key != "/"]:
            self.assertEqual(items(key).fetch().data, {"key": key})
            self.assertEqual(items(key).update(data={"seen": key}).data, {"seen": key})
            self.assertTrue(items(key).delete())

    def test_order_from_and_bounds(self):
        items = self.service.sync_maps(self.service.sync_maps.create().sid).sync_map_items
        for key in ("b", "a", "d", "B", "10", "9", "c"):
            items.create(key=key, data={})

        def keys(**query):
            return [one.key for one in items.list(**query)]

        self.assertEqual(keys(), ["10", "9", "B", "a", "b", "c", "d"])
        self.assertEqual(keys(order="desc", page_size=3), ["d", "c", "b", "a", "B", "9", "10"])
        self.assertEqual(keys(from_="b"), ["b", "c", "d"])
        self.assertEqual(keys(from_="b", bounds="exclusive", page_size=1), ["c", "d"])
        self.assertEqual(keys(from_="bb"), ["c", "d"])
        self.assertEqual(keys(from_="b", order="desc", page_size=2), ["b", "a", "B", "9", "10"])
        self.assertEqual(keys(from_="b", order="desc", bounds="exclusive", page_size=2), ["a", "B", "9", "10"])

    def test_many_items_over_many_pages(self):
        items = self.service.sync_maps(self.service.sync_maps.create().sid).sync_map_items
        keys = [f"key-{n:03}" for n in range(MANY)]
        for key in keys:
            items.create(key=key, data={"key": key})
        self.assertEqual([one.key for one in items.stream(page_size=11)], keys)
        self.assertEqual([one.key for one in items.list(limit=1000)], keys)
        self.assertEqual([one.key for one in items.list(order="desc", limit=70)], keys[::-1][:70])
        # What goes while somebody pages takes nothing else out of the later pages.
        page = items.page(page_size=40)
        seen = [one.key for one in page]
        items(keys[10]).delete()
        items(keys[100]).delete()
        while (page := page.next_page()) is not None:
            seen += [one.key for one in page]
        self.assertEqual(seen, [key for key in keys if key != keys[100]])

    def test_times_to_live_of_items_and_their_map(self):
        made = self.service.sync_maps.create()
        items = self.service.sync_maps(made.sid).sync_map_items
        item = items.create(key="k", data={}, item_ttl=60, collection_ttl=600)
        self.assertEqual(seconds(item.date_expires, item.date_created), 60)
        self.assertGreaterEqual(seconds(self.service.sync_maps(made.sid).fetch().date_expires, item.date_created), 600)
        self.assertGreaterEqual(seconds(items("k").update(ttl=120).date_expires, item.date_created), 120)
        self.assertIsNone(items("k").update(item_ttl=0).date_expires)
        items.create(key="short", data={}, ttl=1)
        until(10, lambda: "short" not in [one.key for one in items.stream()])
        self.assertEqual(items.create(key="short", data={"again": True}).revision, "0")


class Streams(Suite):
    def test_create_fetch_update_delete(self):
        made = self.service.sync_streams.create(unique_name="typing")
        self.assertRegex(made.sid, "^TO[0-9a-f]{32}$")
        self.assertEqual((made.unique_name, made.created_by, made.date_expires), ("typing", "system", None))
        self.assertEqual(made.links, {"messages": f"{made.url}/Messages"})
        changed = self.service.sync_streams("typing").update(ttl=600)
        self.assertGreaterEqual(seconds(changed.date_expires, made.date_created), 600)
        self.assertIn(made.sid, [one.sid for one in self.service.sync_streams.stream()])
        self.assertTrue(self.service.sync_streams("typing").delete())
        with self.refused(404, 20404):
            self.service.sync_streams(made.sid).fetch()

    def test_messages(self):
        messages = self.service.sync_streams(self.service.sync_streams.create().sid).stream_messages
        first, second = messages.create(data={"typing": "alice"}), messages.create(data={"typing": "bob", "text": "x" * 4000})
        self.assertRegex(first.sid, "^TZ[0-9a-f]{32}$")
        self.assertNotEqual(first.sid, second.sid)
        self.assertEqual(first.data, {"typing": "alice"})


class Permissions(Suite):
    def test_of_documents(self):
        made = self.service.documents.create()
        self.held(self.service.documents(made.sid).document_permissions, "document_sid", made)

    def test_of_lists(self):
        made = self.service.sync_lists.create()
        self.held(self.service.sync_lists(made.sid).sync_list_permissions, "list_sid", made)

    def test_of_maps(self):
        made = self.service.sync_maps.create()
        self.held(self.service.sync_maps(made.sid).sync_map_permissions, "map_sid", made)

    def held(self, permissions, of, made):
        self.assertEqual(permissions.list(), [])
        for identity in ("alice", "bob", "carol@shop.example"):
            given = permissions(identity).update(read=True, write=True, manage=False)
            self.assertEqual((given.identity, given.read, given.write, given.manage), (identity, True, True, False))
            self.assertEqual((getattr(given, of), given.service_sid, given.account_sid), (made.sid, self.sid, harness.ACCOUNT))
            self.assertTrue(given.url.startswith(f"{made.url}/Permissions/"))
        changed = permissions("alice").update(read=True, write=False, manage=True)
        self.assertEqual((changed.read, changed.write, changed.manage), (True, False, True))
        got = permissions("alice").fetch()
        self.assertEqual((got.read, got.write, got.manage), (True, False, True))
        self.assertEqual({one.identity for one in permissions.list(page_size=2)}, {"alice", "bob", "carol@shop.example"})
        self.assertTrue(permissions("alice").delete())
        self.assertEqual({one.identity for one in permissions.stream()}, {"bob", "carol@shop.example"})
        with self.refused(404, 20404):
            permissions("alice").fetch()


class Browsers(Suite):
    def test_a_page_of_another_origin_may_ask_first(self):
        asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type,if-match"}
        answer = requests.options(f"{harness.URL}/v1/Services/{self.sid}/Documents", headers=asked, timeout=20)
        self.assertIn(answer.status_code, (200, 204))
        self.assertEqual(answer.headers["Access-Control-Allow-Origin"], "*")
        for method in ("GET", "POST", "DELETE"):
            self.assertIn(method, answer.headers["Access-Control-Allow-Methods"])
        for header in ("authorization", "content-type", "if-match"):
            self.assertIn(header, answer.headers["Access-Control-Allow-Headers"].lower())


if __name__ == "__main__":
    main()
