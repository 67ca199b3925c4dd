"""The library's asynchronous calls, which go by another HTTP client of its own."""

import asyncio
import unittest

from twilio.base.exceptions import TwilioRestException
from twilio.http.async_http_client import AsyncTwilioHttpClient
from twilio.rest import Client

import harness


class Asynchronous(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        http = AsyncTwilioHttpClient()
        self.addAsyncCleanup(http.close)
        client = Client(harness.ACCOUNT, harness.AUTH_TOKEN, http_client=http)
        client.sync.base_url = harness.URL
        self.services = client.sync.v1.services
        made = await self.services.create_async(friendly_name=harness.unique("asynchronous"))
        self.service = self.services(made.sid)
        self.addAsyncCleanup(self.service.delete_async)

    async def test_documents(self):
        made = await self.service.documents.create_async(unique_name="d", data={"n": 1})
        self.assertEqual((made.revision, made.date_created.microsecond), ("0", 0))
        self.assertEqual((await self.service.documents("d").update_async(data={"n": 2}, if_match="0")).data, {"n": 2})
        self.assertEqual((await self.service.documents(made.sid).fetch_async()).revision, "1")
        with self.assertRaises(TwilioRestException) as caught:
            await self.service.documents("d").update_async(data={}, if_match="0")
        self.assertEqual((caught.exception.status, caught.exception.code), (412, 54103))
        self.assertTrue(await self.service.documents("d").delete_async())

    async def test_items_written_at_once_and_read_over_pages(self):
        await self.service.sync_lists.create_async(unique_name="l")
        await self.service.sync_maps.create_async(unique_name="m")
        items, named = self.service.sync_lists("l").sync_list_items, self.service.sync_maps("m").sync_map_items
        made = await asyncio.gather(*(items.create_async(data={"n": n}) for n in range(40)), *(named.create_async(key=f"k{n:02}", data={"n": n}) for n in range(40)))
        self.assertEqual(sorted(item.index for item in made[:40]), list(range(40)))
        self.assertEqual([item.index async for item in await items.stream_async(page_size=7)], list(range(40)))
        self.assertEqual([item.key for item in await named.list_async(order="desc", page_size=7)], [f"k{n:02}" for n in reversed(range(40))])

    async def test_messages_and_permissions(self):
        await self.service.sync_streams.create_async(unique_name="s")
        self.assertRegex((await self.service.sync_streams("s").stream_messages.create_async(data={})).sid, "^TZ[0-9a-f]{32}$")
        await self.service.documents.create_async(unique_name="d")
        permissions = self.service.documents("d").document_permissions
        self.assertTrue((await permissions("alice").update_async(read=True, write=False, manage=False)).read)
        self.assertEqual([one.identity for one in await permissions.list_async()], ["alice"])


if __name__ == "__main__":
    harness.main()
