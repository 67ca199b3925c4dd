"use strict";
// Every refusal of ../refusals.json, as the library for Node tells it; none of them changes anything.

const { assert, refused, service } = require("./harness");
const { test } = require("./suite");
const rows = require("../refusals.json");

// What stands in the table for a long text or an address.
function meant(value) {
  if (value === null || typeof value !== "object") return value;
  if (value.$letters) return "x".repeat(value.$letters);
  if (value.$address) return "https://shop.example/".padEnd(value.$address, "x");
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, meant(inner)]));
}

function refuse(at, row) {
  const path = row.call.split(".");
  const call = path.pop();
  for (const step of path.filter(step => step !== "service")) {
    const [, name, argument] = step.match(/^(\w+)(?:\((.*)\))?$/);
    at = at[name];
    if (argument !== undefined) at = at(argument.replace(/\{(\d+) letters\}/, (_, many) => "x".repeat(many)));
  }
  return refused(at[call](row.with && meant(row.with)), row.status, row.code);
}

test("every refusal, and nothing changed by any", async t => {
  const ours = await service(t);
  await ours.documents.create({ uniqueName: "document" });
  await ours.syncLists.create({ uniqueName: "list" });
  await ours.syncLists("list").syncListItems.create({ data: { kept: 1 } });
  await ours.syncMaps.create({ uniqueName: "map" });
  await ours.syncMaps("map").syncMapItems.create({ key: "there", data: { kept: 1 } });
  await ours.syncStreams.create({ uniqueName: "stream" });
  const wrong = [];
  for (const row of rows.filter(row => row.not !== "node")) await refuse(ours, row).catch(error => wrong.push(`${JSON.stringify(row)}: ${error.message}`));
  assert.equal(wrong.join("\n"), "");
  assert.equal((await ours.documents("document").fetch()).revision, "0");
  assert.deepEqual((await ours.syncLists("list").syncListItems.list()).map(one => one.data), [{ kept: 1 }]);
  assert.deepEqual((await ours.syncMaps("map").syncMapItems.list()).map(one => [one.key, one.data]), [["there", { kept: 1 }]]);
  for (const kind of ["documents", "syncLists", "syncMaps", "syncStreams"]) assert.equal((await ours[kind].list()).length, 1);
  assert.deepEqual(await ours.documents("document").documentPermissions.list(), []);
});
