"""Each of the 48 operations of Twilio's OpenAPI document, called by the library, its answer held against the document's schema."""


import contract
from harness import Suite, client, main


class Operations(Suite):
    def test_every_operation_answers_as_the_document_says(self):
        ours = client()
        services = ours.sync.v1.services
        made = services.create(friendly_name="every operation", reachability_debouncing_window=1000)
        service = services(made.sid)
        service.fetch()
        service.update(friendly_name="renamed")
        services.list(limit=1)

        document = service.documents.create(unique_name="d", data={"a": 1}, ttl=600)
        service.documents("d").fetch()
        service.documents(document.sid).update(data={"a": 2}, if_match=document.revision)
        service.documents.list()

        service.sync_lists.create(unique_name="l", collection_ttl=600)
        chosen = service.sync_lists("l")
        chosen.fetch()
        chosen.update(collection_ttl=700)
        service.sync_lists.list()
        item = chosen.sync_list_items.create(data={"a": 1}, item_ttl=60, collection_ttl=800)
        chosen.sync_list_items(item.index).fetch()
        chosen.sync_list_items(item.index).update(data={"a": 2}, if_match=item.revision)
        chosen.sync_list_items.list(order="desc", from_="0", bounds="inclusive")

        service.sync_maps.create(unique_name="m", collection_ttl=600)
        named = service.sync_maps("m")
        named.fetch()
        named.update(collection_ttl=700)
        service.sync_maps.list()
        named.sync_map_items.create(key="k", data={"a": 1}, item_ttl=60, collection_ttl=800)
        named.sync_map_items("k").fetch()
        named.sync_map_items("k").update(data={"a": 2}, if_match="0")
        named.sync_map_items.list(order="desc", from_="k", bounds="inclusive")

        service.sync_streams.create(unique_name="s", ttl=600)
        service.sync_streams("s").fetch()
        service.sync_streams("s").update(ttl=700)
        service.sync_streams.list()
        service.sync_streams("s").stream_messages.create(data={"a": 1})

        permissions = [
            (service.documents("d").document_permissions, service.documents("d").document_permissions),
            (chosen.sync_list_permissions, chosen.sync_list_permissions),
            (named.sync_map_permissions, named.sync_map_permissions),
        ]
        for every, of in permissions:
            of("alice").update(read=True, write=False, manage=False)
            of("alice").fetch()
            every.list()
            of("alice").delete()

        chosen.sync_list_items(item.index).delete()
        named.sync_map_items("k").delete()
        for one in (service.documents("d"), chosen, named, service.sync_streams("s"), service):
            one.delete()

        called = ours.http_client.called - {None}
        self.assertEqual(called, {operation.name for operation in contract.OPERATIONS})


if __name__ == "__main__":
    main()
