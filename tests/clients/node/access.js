"use strict";
// Permissions by identity and object, of a service that has them on.

const { URL, assert, event, realtime, refused, service, sync, told, token, until } = require("./harness");
const { Proxy } = require("./proxy");
const { test } = require("./suite");
const library = require("twilio-sync");

const NONE = { read: false, write: false, manage: false };

/** A service with permissions on, one object of each kind that has permissions, and how to give alice a right to all of them. */
async function guarded(t) {
  const ours = await service(t, { aclEnabled: true });
  await ours.documents.create({ uniqueName: "d", data: { n: 0 } });
  await ours.syncLists.create({ uniqueName: "l" });
  await ours.syncLists("l").syncListItems.create({ data: { n: 0 } });
  await ours.syncMaps.create({ uniqueName: "m" });
  await ours.syncMaps("m").syncMapItems.create({ key: "k", data: { n: 0 } });
  const of = [ours.documents("d").documentPermissions, ours.syncLists("l").syncListPermissions, ours.syncMaps("m").syncMapPermissions];
  return {
    ours,
    alice: sync(t, library, token("alice", ours.sid)),
    give: rights => Promise.all(of.map(permissions => permissions("alice").update({ ...NONE, ...rights }))),
    take: () => Promise.all(of.map(permissions => permissions("alice").remove())),
  };
}

const existing = id => ({ id, mode: "open_existing" });
const forbidden = call => refused(call, 403, 54007);

test("who has no right opens nothing, by name or SID", async t => {
  const { ours, alice, give } = await guarded(t);
  await forbidden(alice.document(existing("d")));
  await forbidden(alice.document("d"));
  await forbidden(alice.document((await ours.documents("d").fetch()).sid));
  await forbidden(alice.list(existing("l")));
  await forbidden(alice.map(existing("m")));
  await give({ write: true });
  await forbidden(alice.document(existing("d")));
});

test("who may read reads and is told, and writes nothing", async t => {
  const { ours, alice, give } = await guarded(t);
  await give({ read: true });
  const [document, list, map] = [await alice.document("d"), await alice.list("l"), await alice.map("m")];
  assert.deepEqual([document.data, (await list.get(0)).data, (await map.get("k")).data], [{ n: 0 }, { n: 0 }, { n: 0 }]);
  const changed = Promise.all([event(document, "updated"), event(list, "itemUpdated"), event(map, "itemUpdated")]);
  await ours.documents("d").update({ data: { n: 1 } });
  await ours.syncLists("l").syncListItems(0).update({ data: { n: 1 } });
  await ours.syncMaps("m").syncMapItems("k").update({ data: { n: 1 } });
  await changed;
  for (const call of [
    () => document.set({ n: 2 }), () => document.setTtl(9), () => document.removeDocument(),
    () => list.push({}), () => list.set(0, { n: 2 }), () => list.remove(0), () => list.removeList(),
    () => map.set("k", { n: 2 }), () => map.set("new", {}), () => map.remove("k"), () => map.removeMap(),
  ]) await forbidden(call());
  assert.deepEqual((await ours.documents("d").fetch()).data, { n: 1 });
  assert.deepEqual((await ours.syncLists("l").syncListItems.list()).map(({ data }) => data), [{ n: 1 }]);
  assert.deepEqual((await ours.syncMaps("m").syncMapItems.list()).map(({ key, data }) => [key, data]), [["k", { n: 1 }]]);
});

test("who may write changes documents and items, and removes no object", async t => {
  const { ours, alice, give } = await guarded(t);
  await give({ read: true, write: true });
  const [document, list, map] = [await alice.document("d"), await alice.list("l"), await alice.map("m")];
  await document.set({ n: 2 });
  await list.set(0, { n: 2 });
  await list.push({ n: 3 });
  await list.remove(0);
  await map.set("k", { n: 2 });
  await map.set("new", { n: 3 });
  await map.remove("k");
  for (const call of [() => document.removeDocument(), () => list.removeList(), () => map.removeMap()]) await forbidden(call());
  assert.deepEqual((await ours.documents("d").fetch()).data, { n: 2 });
  assert.deepEqual((await ours.syncLists("l").syncListItems.list()).map(({ data }) => data), [{ n: 3 }]);
  assert.deepEqual((await ours.syncMaps("m").syncMapItems.list()).map(({ key }) => key), ["new"]);
  const made = await ours.syncMaps("m").syncMapItems("new").fetch();
  assert.equal(made.createdBy, "alice");
});

test("who may manage removes objects", async t => {
  const { ours, alice, give } = await guarded(t);
  await give({ read: true, manage: true });
  const [document, list, map] = [await alice.document("d"), await alice.list("l"), await alice.map("m")];
  await Promise.all([document.removeDocument(), list.removeList(), map.removeMap()]);
  for (const kind of ["documents", "syncLists", "syncMaps"]) assert.deepEqual(await ours[kind].list(), []);
});

test("a right that is given opens at once, of the one identity alone", async t => {
  const { ours, alice, give } = await guarded(t);
  await forbidden(alice.document(existing("d")));
  await give({ read: true });
  assert.deepEqual((await alice.document(existing("d"))).data, { n: 0 });
  await forbidden(sync(t, library, token("bob", ours.sid)).document(existing("d")));
});

test("a right that is taken ends what was watched with it", async t => {
  const { ours, give, take } = await guarded(t);
  const proxy = await Proxy.before(t, URL);
  const alice = sync(t, library, token("alice", ours.sid), realtime(URL, proxy.url));
  await give({ read: true });
  await ours.documents.create({ uniqueName: "stays", data: { n: 0 } });
  await ours.documents("stays").documentPermissions("alice").update({ ...NONE, read: true });
  const [document, list, map, stays] = [await alice.document("d"), await alice.list("l"), await alice.map("m"), await alice.document("stays")];
  const first = event(document, "updated");
  await ours.documents("d").update({ data: { n: 1 } });
  await first;
  const seen = [document, list, map].map(object => told(object, "updated", "itemAdded", "itemUpdated", "itemRemoved"));
  const failed = Promise.all([document, list, map].map(object => event(object, "failure")));
  await take();
  await ours.documents("d").update({ data: { n: "secret" } });
  await ours.syncLists("l").syncListItems.create({ data: { n: "secret" } });
  await ours.syncMaps("m").syncMapItems("k").update({ data: { n: "secret" } });
  // What is written after all that still comes, and so would have come what was written before it.
  const last = event(stays, "updated", ({ data }) => data.n === 20);
  for (let n = 1; n <= 20; n++) await ours.documents("stays").update({ data: { n } });
  await last;
  assert.deepEqual(seen, [[], [], []]);
  await forbidden(document.set({ n: 2 }));
  for (const { status, code } of await failed) assert.deepEqual([status, code], [403, 54007], "and it is told why it sees no more");
  // Nor does a client that comes back.
  const again = event(stays, "updated", ({ data }) => data.n === 21);
  proxy.cut();
  proxy.mend();
  await until(() => alice.connectionState === "connected");
  await ours.documents("stays").update({ data: { n: 21 } });
  await again;
  assert.deepEqual([document.data, seen], [{ n: 1 }, [[], [], []]]);
}, 90);

test("without permissions on, everybody may do everything", async t => {
  const ours = await service(t);
  await ours.documents.create({ uniqueName: "d" });
  await ours.documents("d").documentPermissions("alice").update(NONE);
  const document = await sync(t, library, token("alice", ours.sid)).document("d");
  await document.set({ n: 1 });
  await document.removeDocument();
});

test("the REST API is never restricted; permissions that are switched on restrict from then on", async t => {
  const { ours, alice } = await guarded(t);
  assert.deepEqual((await ours.documents("d").update({ data: { n: 1 } })).data, { n: 1 });
  await until(() => alice.connectionState === "connected");
  await ours.update({ aclEnabled: false });
  const document = await until(() => alice.document(existing("d")).catch(error => { if (error.code !== 54007) throw error; }));
  await document.set({ n: 2 });
  await ours.update({ aclEnabled: true });
  await until(() => document.set({ n: 3 }).then(() => false, error => error.code === 54007));
});
