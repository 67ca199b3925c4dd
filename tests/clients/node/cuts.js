"use strict";
// What the realtime library shows across cut connections: nothing missed, nothing twice.
//
//   node cuts.js twilio-sync|twilio-sync-3.4

const { URL, assert, event, realtime, service, sync, told, token, until } = require("./harness");
const { Proxy } = require("./proxy");
const { test } = require("./suite");
const { hold, make, watch, write } = require("./watch");
const library = require(process.argv[2]);

/** A service, and a client of it whose connection can be cut. */
async function behind(t) {
  const ours = await service(t);
  const proxy = await Proxy.before(t, URL);
  const client = sync(t, library, token("alice", ours.sid), realtime(URL, proxy.url));
  await until(() => client.connectionState === "connected");
  return { ours, proxy, client };
}

const established = object => {
  const [inner] = Object.values(object).filter(value => value && value.subscriptionState !== undefined);
  return inner.subscriptionState === "established";
};

test("a sequence across four cuts, written on while the client is away", async t => {
  const { ours, proxy, client } = await behind(t);
  await make(ours);
  const view = await watch(client), indexes = [];
  for (let n = 0; n <= 100; n++) {
    if (n % 20 === 12) {
      proxy.cut();
      await until(() => client.connectionState !== "connected");
    }
    if (n % 20 === 18) {
      proxy.mend();
      await until(() => client.connectionState === "connected", 60, "the connection after a cut");
    }
    indexes.push(await write(ours, n));
  }
  await hold(view, indexes, ours);
}, 200);

test("a sequence across cuts at any moment", async t => {
  const { ours, proxy, client } = await behind(t);
  await make(ours);
  const view = await watch(client), indexes = [];
  let done = false;
  const cutting = (async () => {
    while (!done) {
      // As soon as it is back, and has something on its way.
      await until(() => done || client.connectionState === "connected", 60, "the connection after a cut");
      const before = view.updated.length;
      await until(() => done || view.updated.length > before, 60, "anything new");
      proxy.cut();
      proxy.mend();
    }
  })();
  for (let n = 0; n <= 100; n++) indexes.push(await write(ours, n));
  done = true;
  await cutting;
  await hold(view, indexes, ours);
}, 200);

test("a hundred and twenty subscriptions come back", async t => {
  const { ours, proxy, client } = await behind(t);
  const names = [...Array(120).keys()].map(n => `document-${n}`);
  for (const name of names) await ours.documents.create({ uniqueName: name, data: { n: 0 } });
  const documents = await Promise.all(names.map(name => client.document(name)));
  await until(() => documents.every(established), 60, "every subscription");
  const seen = documents.map(document => told(document, "updated"));
  proxy.cut();
  for (const name of names) await ours.documents(name).update({ data: { n: 1 } });
  proxy.mend();
  await until(() => seen.every(events => events.length > 0) && documents.every(established), 60, "what was written meanwhile");
  for (const name of names) await ours.documents(name).update({ data: { n: 2 } });
  await until(() => documents.every(document => document.data.n === 2), 60, "what was written afterwards");
  for (const events of seen) assert.deepEqual(events.map(([, { data }]) => data.n), [1, 2]);
}, 150);

test("what a client writes while it is cut off arrives afterwards", async t => {
  const { ours, proxy, client } = await behind(t);
  const document = await client.document("mine"), map = await client.map("mine");
  proxy.cut();
  await until(() => client.connectionState !== "connected");
  const writes = Promise.all([document.set({ from: "afar" }), map.set("k", { from: "afar" })]);
  proxy.mend();
  await writes;
  assert.deepEqual((await ours.documents("mine").fetch()).data, { from: "afar" });
  assert.deepEqual((await ours.syncMaps("mine").syncMapItems("k").fetch()).data, { from: "afar" });
}, 90);

test("what was removed while a client was away it is told", async t => {
  const { ours, proxy, client } = await behind(t);
  const objects = [await client.document("d"), await client.list("l"), await client.map("m"), await client.stream("s")];
  await until(() => objects.every(established));
  const gone = Promise.all(objects.map(object => event(object, "removed", undefined, 60)));
  proxy.cut();
  await until(() => client.connectionState !== "connected");
  await Promise.all([ours.documents("d").remove(), ours.syncLists("l").remove(), ours.syncMaps("m").remove(), ours.syncStreams("s").remove()]);
  proxy.mend();
  assert.deepEqual((await gone).map(({ isLocal }) => isLocal), [false, false, false, false]);
}, 90);

test("more changes than are kept: afterwards everything is as the REST API has it", async t => {
  const { ours, proxy, client } = await behind(t);
  await ours.syncMaps.create({ uniqueName: "busy" });
  const items = ours.syncMaps("busy").syncMapItems, keys = [...Array(40).keys()].map(n => `key-${n}`);
  for (const key of keys) await items.create({ key, data: { n: 0 } });
  const map = await client.map("busy");
  const seen = told(map, "itemAdded", "itemUpdated", "itemRemoved");
  await until(() => established(map));
  for (const key of keys) await map.get(key);
  proxy.cut();
  await until(() => client.connectionState !== "connected");
  // Each key in a line of its own: some changed often, some removed, some removed and made again.
  await Promise.all(keys.map(async (key, at) => {
    for (let n = 1; n <= 40; n++) await items(key).update({ data: { n } });
    if (at % 4 < 2) await items(key).remove();
    if (at % 4 === 1) await items.create({ key, data: { again: true } });
  }));
  await items.create({ key: "new", data: { n: 0 } });
  proxy.mend();
  await until(() => client.connectionState === "connected" && established(map), 60, "the subscription after the cut");
  await items("new").update({ data: { n: "last" } });
  await until(() => seen.some(([, { item }]) => item && item.data.n === "last"), 60, "what came afterwards");
  const there = new Map((await items.list()).map(item => [item.key, item.data]));
  assert.equal(there.size, 31);
  for (const key of [...keys, "new"]) {
    const shown = await map.get(key).then(item => item && item.data, error => { assert.equal(error.status, 404); return null; });
    assert.deepEqual(shown, there.get(key) ?? null, key);
  }
}, 150);
