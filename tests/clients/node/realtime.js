"use strict";
// What the realtime library does with documents, lists, maps and streams, watched by a second client and by the REST API.
//
//   node realtime.js twilio-sync|twilio-sync-3.4

const { assert, event, refused, rest, service, sync, told, token, unique, until } = require("./harness");
const { test } = require("./suite");
const library = require(process.argv[2]);

/** A service with two clients of it, alice and bob. */
async function pair(t) {
  const ours = await service(t);
  const [alice, bob] = ["alice", "bob"].map(identity => sync(t, library, token(identity, ours.sid)));
  return { ours, alice, bob };
}

const keys = page => page.items.map(item => item.key);
const indexes = page => page.items.map(item => item.index);

test("a client connects, and shuts down", async t => {
  const { alice } = await pair(t);
  await until(() => alice.connectionState === "connected");
  assert.equal(library.SyncClient.version, process.argv[2] === "twilio-sync" ? "4.0.1" : "3.4.0");
  await alice.shutdown();
  assert.equal(alice.connectionState, "disconnected");
});

test("documents: opened by name and SID, made where they are missing", async t => {
  const { ours, alice, bob } = await pair(t);
  const made = await alice.document({ id: "greeting", data: { text: "hello" }, ttl: 600 });
  assert.match(made.sid, /^ET[0-9a-f]{32}$/);
  assert.deepEqual([made.uniqueName, made.revision, made.data], ["greeting", "0", { text: "hello" }]);
  assert.ok(Math.abs(new Date(made.dateExpires) - Date.now() - 600_000) < 60_000);
  assert.ok(made.dateUpdated instanceof Date);
  for (const id of ["greeting", made.sid]) assert.deepEqual([(await bob.document(id)).sid, (await bob.document(id)).data], [made.sid, { text: "hello" }]);
  const there = await ours.documents("greeting").fetch();
  assert.deepEqual([there.sid, there.data, there.createdBy], [made.sid, { text: "hello" }, "alice"]);
  const nameless = await alice.document();
  assert.deepEqual([nameless.uniqueName, nameless.data], [null, {}]);
  await refused(alice.document({ id: "nowhere", mode: "open_existing" }), 404, 54300);
  await refused(alice.document({ id: "ET" + "0".repeat(32), mode: "open_existing" }), 404, 54100);
  await refused(bob.document({ id: "greeting", mode: "create_new" }), 409, 54301);
  await refused(bob.document({ id: "x".repeat(321), mode: "create_new" }), 400, 54302);
  await refused(bob.document({ data: { text: "x".repeat(17_000) } }), 413, 54006);
});

test("documents: what one client or the REST API writes, the others are told", async t => {
  const { ours, alice, bob } = await pair(t);
  const [mine, theirs] = [await alice.document("shared"), await bob.document("shared")];
  const seen = told(theirs, "updated");
  let next = event(theirs, "updated");
  assert.deepEqual(await mine.set({ n: 1 }), { n: 1 });
  assert.deepEqual(await next, { data: { n: 1 }, isLocal: false, previousData: {} });
  next = event(theirs, "updated");
  assert.deepEqual(await mine.update({ more: true }), { n: 1, more: true });
  assert.deepEqual((await next).data, { n: 1, more: true });
  next = event(theirs, "updated");
  assert.deepEqual(await mine.mutate(data => ({ ...data, n: data.n + 1 })), { n: 2, more: true });
  assert.deepEqual((await next).previousData, { n: 1, more: true });
  assert.equal(await mine.mutate(() => null), mine.data);
  next = Promise.all([event(theirs, "updated"), event(mine, "updated", ({ isLocal }) => !isLocal)]);
  await ours.documents("shared").update({ data: { from: "REST" } });
  await next;
  assert.deepEqual([mine.data, theirs.data, theirs.revision], [{ from: "REST" }, { from: "REST" }, "4"]);
  assert.deepEqual(seen.map(([, { data }]) => data), [{ n: 1 }, { n: 1, more: true }, { n: 2, more: true }, { from: "REST" }]);
  await refused(mine.set({ text: "x".repeat(17_000) }), 413, 54006);
  assert.deepEqual((await ours.documents("shared").fetch()).data, { from: "REST" });
});

test("documents: removed by a client, by the REST API, by their time to live", async t => {
  const { ours, alice, bob } = await pair(t);
  const [mine, theirs] = [await alice.document("first"), await bob.document("first")];
  let gone = event(theirs, "removed");
  await mine.removeDocument();
  assert.equal((await gone).isLocal, false);
  await refused(ours.documents("first").fetch(), 404, 20404);
  await refused(theirs.set({}), 404, 54100);
  assert.notEqual((await bob.document("first")).sid, mine.sid);
  const second = await bob.document("second");
  gone = event(second, "removed");
  await ours.documents("second").remove();
  await gone;
  const short = await alice.document({ id: "short", ttl: 15 }), watched = await bob.document("short");
  gone = Promise.all([event(short, "removed", undefined, 150), event(watched, "removed", undefined, 150)]);
  await gone;
  await refused(bob.document({ id: "short", mode: "open_existing" }), 404, 54300);
  const kept = await alice.document({ id: "kept", ttl: 30 });
  await kept.setTtl(600);
  assert.ok(new Date(kept.dateExpires) - Date.now() > 300_000);
  await kept.setTtl(0);
  assert.equal(kept.dateExpires, null);
}, 300);

test("lists: push, get, set, update, mutate, remove, and who is told what", async t => {
  const { ours, alice, bob } = await pair(t);
  const [mine, theirs] = [await alice.list("calls"), await bob.list("calls")];
  assert.match(mine.sid, /^ES[0-9a-f]{32}$/);
  const seen = told(theirs, "itemAdded", "itemUpdated", "itemRemoved");
  const first = await mine.push({ call: 1 }, { ttl: 600 });
  assert.deepEqual([first.index, first.data, first.revision], [0, { call: 1 }, "0"]);
  assert.ok(Math.abs(new Date(first.dateExpires) - Date.now() - 600_000) < 60_000);
  // What a client has read by then it is not told again.
  await until(() => seen.length === 1);
  assert.deepEqual((await theirs.get(0)).data, { call: 1 });
  assert.deepEqual((await mine.set(0, { call: 2 })).data, { call: 2 });
  assert.deepEqual((await mine.update(0, { more: true })).data, { call: 2, more: true });
  assert.deepEqual((await mine.mutate(0, data => ({ ...data, call: data.call + 1 }))).data, { call: 3, more: true });
  const listed = await ours.syncLists("calls").syncListItems.create({ data: { from: "REST" } });
  await mine.remove(0);
  await until(() => seen.length >= 6);
  assert.deepEqual(seen.map(([name, { item, index }]) => [name, item ? item.index : index]), [
    ["itemAdded", 0], ["itemUpdated", 0], ["itemUpdated", 0], ["itemUpdated", 0], ["itemAdded", listed.index], ["itemRemoved", 0],
  ]);
  assert.ok(seen.every(([, { isLocal }]) => !isLocal));
  assert.deepEqual(seen[5][1].previousItemData, { call: 3, more: true });
  assert.deepEqual((await theirs.get(listed.index)).data, { from: "REST" });
  assert.equal((await mine.push({})).index, listed.index + 2);
  await refused(mine.get(99), 404, 54151);
  await refused(mine.set(98, {}), 404, 54151);
  await refused(mine.push({ text: "x".repeat(17_000) }), 413, 54006);
  await mine.setItemTtl(listed.index, 600);
  assert.ok((await ours.syncLists("calls").syncListItems(listed.index).fetch()).dateExpires > new Date());
  await mine.setTtl(1200);
  assert.ok(new Date(mine.dateExpires) - Date.now() > 600_000);
  const gone = event(theirs, "removed");
  await mine.removeList();
  assert.equal((await gone).isLocal, false);
  await refused(alice.list({ id: "calls", mode: "open_existing" }), 404, 54300);
  await refused(alice.list({ id: mine.sid, mode: "open_existing" }), 404, 54150);
});

test("lists: every item once over the pages, either way, with an end of an item's time between", async t => {
  const { ours, alice } = await pair(t);
  const items = ours.syncLists((await ours.syncLists.create({ uniqueName: "long" })).sid).syncListItems;
  for (let n = 0; n < 60; n++) await items.create({ data: { n } });
  await items(7).remove();
  const short = await items.create({ data: { n: "short" }, itemTtl: 15 });
  const list = await alice.list("long");
  const gone = event(list, "itemRemoved", ({ index }) => index === short.index, 150);
  const walk = async query => {
    const got = [];
    for (let page = await list.getItems(query); ; page = await page.nextPage()) {
      got.push(...indexes(page));
      if (!page.hasNextPage) return got;
    }
  };
  await gone;
  const wanted = [...Array(60).keys()].filter(n => n !== 7);
  assert.deepEqual(await walk({ pageSize: 11 }), wanted);
  assert.deepEqual(await walk({ pageSize: 100 }), wanted);
  assert.deepEqual(await walk({ pageSize: 11, order: "desc" }), [...wanted].reverse());
  assert.deepEqual(await walk({ pageSize: 11, from: 50 }), wanted.filter(n => n >= 50));
}, 240);

test("lists: a context, which no API documents any more, is what the list was created with", async t => {
  const { alice, bob } = await pair(t);
  const list = await alice.list({ id: "with", context: { purpose: "calls" } });
  await list.push({ n: 1 });
  assert.deepEqual(await list.getContext(), { purpose: "calls" });
  assert.deepEqual(await (await bob.list("with")).getContext(), { purpose: "calls" });
  await list.removeList();
  assert.deepEqual(await (await alice.list("with")).getContext(), {});
});

test("maps: set, get, update, mutate, remove, and who is told what", async t => {
  const { ours, alice, bob } = await pair(t);
  const [mine, theirs] = [await alice.map("agents"), await bob.map("agents")];
  assert.match(mine.sid, /^MP[0-9a-f]{32}$/);
  const seen = told(theirs, "itemAdded", "itemUpdated", "itemRemoved"), own = told(mine, "itemAdded", "itemUpdated");
  const item = await mine.set("carol", { calls: 1 }, { ttl: 600 });
  assert.deepEqual([item.key, item.data, item.revision], ["carol", { calls: 1 }, "0"]);
  // What a client has read by then it is not told again.
  await until(() => seen.length === 1);
  assert.deepEqual((await theirs.get("carol")).data, { calls: 1 });
  assert.equal((await mine.set("carol", { calls: 2 })).revision, "1");
  assert.deepEqual((await mine.update("carol", { more: true })).data, { calls: 2, more: true });
  assert.deepEqual((await mine.mutate("carol", data => ({ ...data, calls: data.calls + 1 }))).data, { calls: 3, more: true });
  assert.deepEqual((await mine.mutate("dave", () => ({ calls: 1 }))).data, { calls: 1 });
  await ours.syncMaps("agents").syncMapItems("dave").update({ data: { from: "REST" } });
  await mine.remove("carol");
  const wanted = [["itemAdded", "carol"], ["itemUpdated", "carol"], ["itemUpdated", "carol"], ["itemUpdated", "carol"], ["itemAdded", "dave"], ["itemUpdated", "dave"]];
  const named = events => events.map(([name, { item, key }]) => [name, item ? item.key : key]);
  await until(() => seen.length >= 7 && own.length >= 6);
  assert.deepEqual(named(seen), [...wanted, ["itemRemoved", "carol"]]);
  assert.ok(seen.every(([, { isLocal }]) => !isLocal));
  // Its own writes a client tells once, whether the answer or the event comes first.
  assert.deepEqual(named(own).sort(), [...wanted].sort());
  assert.deepEqual((await theirs.get("dave")).data, { from: "REST" });
  await refused(theirs.get("carol"), 404, 54201);
  await refused(mine.set("carol", { text: "x".repeat(17_000) }), 413, 54006);
  await mine.setItemTtl("dave", 600);
  assert.ok((await ours.syncMaps("agents").syncMapItems("dave").fetch()).dateExpires > new Date());
  await mine.setTtl(1200);
  assert.ok(new Date(mine.dateExpires) - Date.now() > 600_000);
  const gone = event(theirs, "removed");
  await mine.removeMap();
  assert.equal((await gone).isLocal, false);
  await refused(alice.map({ id: "agents", mode: "open_existing" }), 404, 54300);
  await refused(alice.map({ id: mine.sid, mode: "open_existing" }), 404, 54200);
});

test("maps: any key", async t => {
  const { ours, alice, bob } = await pair(t);
  const [mine, theirs] = [await alice.map("odd"), await bob.map("odd")];
  const odd = ["x/y", "a b", "é", "日本", "q?z", "h#f", "100%", "p%20q", "a&b=c", "+", "k".repeat(320)];
  for (const key of odd) {
    const told = event(theirs, "itemAdded", ({ item }) => item.key === key);
    assert.equal((await mine.set(key, { key })).key, key);
    await told;
    assert.deepEqual((await (await bob.map("odd")).get(key)).data, { key });
    assert.deepEqual((await mine.update(key, { again: true })).data, { key, again: true });
  }
  assert.deepEqual((await ours.syncMaps("odd").syncMapItems.list()).map(item => item.key).sort(), [...odd].sort());
  for (const key of odd) await mine.remove(key);
  assert.deepEqual(await ours.syncMaps("odd").syncMapItems.list(), []);
  await refused(mine.set("k".repeat(321), {}), 400, 54209);
});

test("maps: every item once over the pages, either way, and all of them at once", async t => {
  const { ours, alice, bob } = await pair(t);
  const made = await ours.syncMaps.create({ uniqueName: "wide" });
  const wanted = [...Array(60).keys()].map(n => `key-${String(n).padStart(2, "0")}`);
  for (const key of wanted) await ours.syncMaps(made.sid).syncMapItems.create({ key, data: { key } });
  const map = await alice.map("wide");
  const walk = async query => {
    const got = [];
    for (let page = await map.getItems(query); ; page = await page.nextPage()) {
      got.push(...keys(page));
      if (!page.hasNextPage) return got;
    }
  };
  assert.deepEqual(await walk({ pageSize: 11 }), wanted);
  assert.deepEqual(await walk({ pageSize: 100 }), wanted);
  assert.deepEqual(await walk({ pageSize: 11, order: "desc" }), [...wanted].reverse());
  assert.deepEqual(await walk({ pageSize: 11, from: "key-50" }), wanted.slice(50));
  const page = await (await (await (await bob.map("wide")).getItems({ pageSize: 20 })).nextPage()).prevPage();
  assert.deepEqual(keys(page), wanted.slice(0, 20));
  const whole = await sync(t, library, token("carol", ours.sid)).map({ id: "wide", includeItems: true });
  assert.deepEqual((await whole.get("key-07")).data, { key: "key-07" });
});

test("maps: an item's time ends", async t => {
  const { alice, bob } = await pair(t);
  const [mine, theirs] = [await alice.map("short"), await bob.map("short")];
  const gone = Promise.all([mine, theirs].map(map => event(map, "itemRemoved", ({ key }) => key === "k", 150)));
  await mine.set("k", { n: 1 }, { ttl: 2 });
  await mine.set("stays", { n: 1 });
  assert.deepEqual((await gone).map(({ previousItemData }) => previousItemData), [{ n: 1 }, { n: 1 }]);
  await refused(theirs.get("k"), 404, 54201);
  assert.equal((await mine.set("k", { n: 2 })).revision, "0");
}, 240);

test("streams: messages of clients and of the REST API", async t => {
  const { ours, alice, bob } = await pair(t);
  const [mine, theirs] = [await alice.stream("typing"), await bob.stream("typing")];
  assert.match(mine.sid, /^TO[0-9a-f]{32}$/);
  // A stream keeps nothing: only who has subscribed by then is told.
  await Promise.all([mine, theirs].map(stream => until(() => stream.syncStreamImpl.subscriptionState === "established")));
  const seen = told(theirs, "messagePublished"), own = told(mine, "messagePublished");
  const published = await mine.publishMessage({ typing: "alice" });
  assert.match(published.sid, /^TZ[0-9a-f]{32}$/);
  await until(() => seen.length === 1);
  assert.deepEqual(seen[0][1], { message: { sid: published.sid, data: { typing: "alice" } }, isLocal: false });
  const message = await ours.syncStreams("typing").streamMessages.create({ data: { from: "REST" } });
  await until(() => seen.length === 2 && own.some(([, { message: { sid } }]) => sid === message.sid));
  assert.deepEqual(seen[1][1], { message: { sid: message.sid, data: { from: "REST" } }, isLocal: false });
  await refused(mine.publishMessage({ text: "x".repeat(4_200) }), 413, 54006);
  await mine.setTtl(600);
  assert.ok((await ours.syncStreams("typing").fetch()).dateExpires > new Date());
  const gone = event(theirs, "removed");
  await mine.removeStream();
  assert.equal((await gone).isLocal, false);
  await refused(alice.stream({ id: "typing", mode: "open_existing" }), 404, 54300);
  await refused(alice.stream({ id: mine.sid, mode: "open_existing" }), 404, 54250);
});

test("what is closed tells no more; what is opened again is as it is now", async t => {
  const { ours, alice } = await pair(t);
  const document = await alice.document("closed");
  const seen = told(document, "updated");
  document.close();
  await ours.documents("closed").update({ data: { n: 1 } });
  const again = await alice.document("closed");
  const next = event(again, "updated", ({ data }) => data.n === 2);
  await ours.documents("closed").update({ data: { n: 2 } });
  await next;
  assert.deepEqual(seen, []);
});

test("the default service, by name and without one", async t => {
  const name = unique("default");
  const documents = rest().sync.v1.services("default").documents;
  t.after(() => documents(name).remove());
  const made = await sync(t, library, token("alice", "default")).document(name);
  assert.equal((await documents(name).fetch()).sid, made.sid);
});
