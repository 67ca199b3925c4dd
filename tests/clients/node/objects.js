"use strict";
// What Contrail itself keeps of a shop's events, as Twilio's clients see it: read and followed like any other object, and not to be overwritten.

const { assert, event, realtime, refused, rest, sync, token, until } = require("./harness");
const { Server } = require("./server");
const { test } = require("./suite");
const libraries = { "4.0": require("twilio-sync"), "3.4": require("twilio-sync-3.4") };

const KEY = "ck_demo_of_the_clients";

/** A server with a shop that sends it events, and the shop's own service. */
async function shop(t) {
  const server = await Server.up(t, { CONTRAIL_BOOTSTRAP_INGEST_KEY: KEY, CONTRAIL_BOOTSTRAP_READ_TOKEN: "cr_demo_of_the_clients" });
  const { url, credentials } = server;
  const send = async (...events) => {
    const answer = await fetch(`${url}/v1/events`, { method: "POST", headers: { "X-Write-Key": KEY }, body: JSON.stringify(events) });
    assert.deepEqual([answer.status, (await answer.json()).accepted], [200, events.length]);
  };
  let views = 0;
  const view = () => send({ event_id: `view-${++views}`, type: "product_viewed", customer: { id: "c1" }, product: { id: "sku-1", name: "Mug" } });
  return { url, credentials, send, view, ours: rest({ url, credentials }).sync.v1.services("default") };
}

const found = call => until(() => call().catch(error => { if (error.status !== 404) throw error; }), 20, "the object");

test("a product and a page, read by REST", async t => {
  const { ours, send, view } = await shop(t);
  await view();
  await send({ event_id: "page-1", type: "page_viewed", page: { url: "https://shop.example/about", title: "About" } });
  const items = ours.syncMaps("product.sku-1").syncMapItems;
  assert.equal((await found(() => items("activity").fetch())).data.views, 1);
  assert.deepEqual((await items.list()).map(({ key }) => key).sort(), ["activity", "name"]);
  const page = await found(() => ours.documents("page.:about").fetch());
  assert.deepEqual([page.data.title, page.data.views, page.createdBy], ["About", 1, "system"]);
});

for (const [version, library] of Object.entries(libraries)) {
  test(`a product, followed by ${version} as people look at it`, async t => {
    const { url, credentials, view } = await shop(t);
    await view();
    const client = sync(t, library, token("alice", "default", { credentials }), realtime(url));
    const map = await found(() => client.map({ id: "product.sku-1", mode: "open_existing" }));
    assert.equal((await map.get("activity")).data.views, 1);
    const changed = event(map, "itemUpdated", ({ item }) => item.key === "activity" && item.data.views === 3);
    await view();
    await view();
    await changed;
  });
}

test("nobody else writes what Contrail keeps; a client may add items of its own, and remove", async t => {
  const { url, credentials, ours, view } = await shop(t);
  await view();
  const items = ours.syncMaps("product.sku-1").syncMapItems;
  await found(() => items("activity").fetch());
  const client = sync(t, libraries["4.0"], token("alice", "default", { credentials }), realtime(url));
  const map = await client.map("product.sku-1");
  for (const call of [
    () => items("activity").update({ data: { views: 1000 } }), () => items("name").remove(), () => map.set("activity", { views: 1000 }),
    () => ours.documents.create({ uniqueName: "page.:mine" }), () => ours.syncMaps.create({ uniqueName: "product.sku-2" }), () => client.map("product.sku-2"),
  ]) await refused(call(), 403, 54007);
  await map.set("note", { text: "sells well" });
  assert.deepEqual((await items("note").fetch()).data, { text: "sells well" });
  assert.equal((await items("activity").fetch()).data.views, 1);
  assert.equal(await ours.syncMaps("product.sku-1").remove(), true);
  await refused(ours.syncMaps("product.sku-1").fetch(), 404, 20404);
});
