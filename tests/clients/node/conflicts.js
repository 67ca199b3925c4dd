"use strict";
// Two clients, of two versions of the realtime library, that change the same thing at once.

const { assert, service, sync, token, until } = require("./harness");
const { test } = require("./suite");
const libraries = [require("twilio-sync"), require("twilio-sync-3.4")];

const EACH = 15;

async function pair(t) {
  const ours = await service(t);
  return { ours, clients: libraries.map((library, at) => sync(t, library, token(`client-${at}`, ours.sid))) };
}

const more = data => ({ ...data, n: (data.n ?? 0) + 1 });
const times = (count, call) => Promise.all([...Array(count)].map(call));

test("a document: every increment survives", async t => {
  const { ours, clients } = await pair(t);
  await ours.documents.create({ uniqueName: "counter", data: { n: 0 } });
  const documents = await Promise.all(clients.map(client => client.document("counter")));
  await Promise.all(documents.map(document => times(EACH, () => document.mutate(more))));
  assert.deepEqual((await ours.documents("counter").fetch()).data, { n: 2 * EACH });
  await until(() => documents.every(document => document.data.n === 2 * EACH), 20, "both clients' last state");
}, 90);

test("an item of a map, which neither of them has seen: every increment survives", async t => {
  const { ours, clients } = await pair(t);
  await ours.syncMaps.create({ uniqueName: "counters" });
  const maps = await Promise.all(clients.map(client => client.map("counters")));
  await Promise.all(maps.map(map => times(EACH, () => map.mutate("k", more))));
  assert.deepEqual((await ours.syncMaps("counters").syncMapItems("k").fetch()).data, { n: 2 * EACH });
  await until(async () => (await Promise.all(maps.map(map => map.get("k")))).every(({ data }) => data.n === 2 * EACH), 20, "both clients' last state");
}, 90);

test("an item of a list: every increment survives, and the REST API's too", async t => {
  const { ours, clients } = await pair(t);
  await ours.syncLists.create({ uniqueName: "counters" });
  const items = ours.syncLists("counters").syncListItems;
  await items.create({ data: { n: 0 } });
  const lists = await Promise.all(clients.map(client => client.list("counters")));
  const byRest = async () => {
    const { revision, data } = await items(0).fetch();
    await items(0).update({ data: more(data), ifMatch: revision }).catch(error => { if (error.status !== 412) throw error; return byRest(); });
  };
  await Promise.all([...lists.map(list => times(EACH, () => list.mutate(0, more))), times(5, byRest)]);
  assert.deepEqual((await items(0).fetch()).data, { n: 2 * EACH + 5 });
}, 90);

test("whoever opens a name first makes it, and all have the same", async t => {
  const ours = await service(t);
  const clients = [...libraries, ...libraries, ...libraries].map((library, at) => sync(t, library, token(`client-${at}`, ours.sid)));
  for (const kind of ["document", "list", "map", "stream"]) {
    const opened = await Promise.all(clients.map(client => client[kind]("the-same")));
    assert.equal(new Set(opened.map(({ sid }) => sid)).size, 1, kind);
  }
});

test("items pushed at once get an index each, in the same order for all", async t => {
  const { ours, clients } = await pair(t);
  await ours.syncLists.create({ uniqueName: "calls" });
  const lists = await Promise.all(clients.map(client => client.list("calls")));
  const pushed = (await Promise.all(lists.map((list, at) => times(EACH, () => list.push({ from: at }))))).flat();
  assert.equal(new Set(pushed.map(({ index }) => index)).size, 2 * EACH);
  const there = await ours.syncLists("calls").syncListItems.list();
  assert.deepEqual(there.map(({ index }) => index), pushed.map(({ index }) => index).sort((a, b) => a - b));
});
