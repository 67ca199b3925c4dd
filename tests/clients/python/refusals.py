"""Every refusal of ../refusals.json, as the library for Python tells it; none of them changes anything."""

import json
import pathlib
import re

from twilio.base import values

from harness import Suite, main

ROWS = json.loads((pathlib.Path(__file__).parents[1] / "refusals.json").read_text())


def snake(name):
    return re.sub("[A-Z]", lambda letter: "_" + letter[0].lower(), name)


def meant(value):
    """What stands in the table for a long text, an address or a value that is not given."""
    match value:
        case {"$letters": length}:
            return "x" * length
        case {"$address": length}:
            return "https://shop.example/".ljust(length, "x")
        case {"$unset": True}:
            return values.unset
        case dict():
            return {key: meant(inner) for key, inner in value.items()}
    return value


class Refusals(Suite):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.service.documents.create(unique_name="document")
        cls.service.sync_lists.create(unique_name="list")
        cls.service.sync_lists("list").sync_list_items.create(data={"kept": 1})
        cls.service.sync_maps.create(unique_name="map")
        cls.service.sync_maps("map").sync_map_items.create(key="there", data={"kept": 1})
        cls.service.sync_streams.create(unique_name="stream")

    def refuse(self, row):
        *path, call = row["call"].split(".")
        at = self.service
        for step in path:
            if step == "service":
                continue
            name, argument = re.fullmatch(r"(\w+)(?:\((.*)\))?", step).groups()
            at = getattr(at, snake(name))
            if argument is not None:
                at = at(re.sub(r"\{(\d+) letters\}", lambda many: "x" * int(many[1]), argument))
        arguments = {snake(name) + ("_" if name == "from" else ""): meant(value) for name, value in row.get("with", {}).items()}
        with self.refused(row["status"], row["code"]):
            getattr(at, {"remove": "delete"}.get(call, call))(**arguments)

    def test_nothing_was_changed_by_any_of_them(self):
        self.assertEqual(self.service.documents("document").fetch().revision, "0")
        self.assertEqual([one.data for one in self.service.sync_lists("list").sync_list_items.list()], [{"kept": 1}])
        self.assertEqual([(one.key, one.data) for one in self.service.sync_maps("map").sync_map_items.list()], [("there", {"kept": 1})])
        kinds = [self.service.documents, self.service.sync_lists, self.service.sync_maps, self.service.sync_streams]
        self.assertEqual([len(kind.list()) for kind in kinds], [1, 1, 1, 1])
        self.assertEqual(self.service.documents("document").document_permissions.list(), [])


# Sorted before the test of what is left: unittest runs by name.
for number, refused in enumerate(ROWS):
    if refused.get("not") != "python":
        words = re.sub(r"\W+", "_", f"{refused['call']}_{refused['code']}").strip("_")
        setattr(Refusals, f"test_{number:03}_{words}", lambda self, row=refused: self.refuse(row))


if __name__ == "__main__":
    main()
