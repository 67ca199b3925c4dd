"use strict";
// A numbered sequence written through the REST API, and a realtime client that watches it: nothing may be missed, nothing told twice.

const { assert, told, until } = require("./harness");

const KEYS = 10;

/** Again until it is answered: a refused connection and a 503 say that nothing was done. */
const certain = call =>
  until(() => call().catch(error => {
    if (error.code === "ECONNREFUSED" || error.status === 503) return null;
    throw error;
  }), 60, "a server that takes writes");

/** Makes what `write` writes to. */
async function make(ours) {
  await ours.syncLists.create({ uniqueName: "list" });
  await ours.syncMaps.create({ uniqueName: "map" });
  await ours.documents.create({ uniqueName: "document", data: { n: -1 } });
}

/** The `n`th write: one more item in the list, an item of the map, the document; each tenth takes the list's item away again. */
async function write(ours, n) {
  const key = `key-${n % KEYS}`, data = { n };
  const { index } = await certain(() => ours.syncLists("list").syncListItems.create({ data }));
  if (n % 10 === 9) await certain(() => ours.syncLists("list").syncListItems(index).remove());
  const items = ours.syncMaps("map").syncMapItems;
  await certain(() => (n < KEYS ? items.create({ key, data }) : items(key).update({ data })));
  await certain(() => ours.documents("document").update({ data }));
}

/** A client's view of it, with all that the client was told. */
async function watch(client) {
  const [list, map, document] = await Promise.all([client.list("list"), client.map("map"), client.document("document")]);
  const items = ["itemAdded", "itemUpdated", "itemRemoved"];
  return { list, map, document, listed: told(list, ...items), mapped: told(map, ...items), updated: told(document, "updated") };
}

/** The numbers in what was told, of one kind of event. */
const numbers = (events, name) => events.filter(([of]) => of === name).map(([, { item, previousItemData }]) => (item ? item.data : previousItemData).n);
const upTo = count => [...Array(count).keys()];

/** Holds a view against `count` writes: waits for the last one, then looks at everything that was told on the way. */
async function hold({ list, map, document, listed, mapped, updated }, count, ours) {
  const last = count - 1, removed = upTo(count).filter(n => n % 10 === 9);
  await until(() => document.data.n === last, 60, `write ${last} of the document`);
  await until(() => numbers(listed, "itemAdded").includes(last), 60, `write ${last} of the list`);
  await until(() => numbers(listed, "itemRemoved").includes(removed.at(-1)), 60, "the last removal from the list");
  await until(() => mapped.some(([, { item }]) => item.data.n === last), 60, `write ${last} of the map`);

  assert.deepEqual(numbers(listed, "itemAdded"), upTo(count), "each item of the list was added once, in order");
  assert.deepEqual(numbers(listed, "itemRemoved"), removed, "some were removed, once");
  assert.deepEqual(numbers(listed, "itemUpdated"), [], "and none was changed");
  for (const item of await ours.syncLists("list").syncListItems.list()) assert.deepEqual((await list.get(item.index)).data, item.data);

  const keys = upTo(KEYS).map(n => `key-${n}`);
  assert.deepEqual(mapped.filter(([name]) => name === "itemAdded").map(([, { item }]) => item.key).sort(), keys, "each item of the map was added once");
  for (const key of keys) {
    const revisions = mapped.filter(([, { item }]) => item.key === key).map(([, { item }]) => Number(item.revision));
    assert.deepEqual(revisions, [...new Set(revisions)].sort((a, b) => a - b), `${key} never went back, and told nothing twice`);
  }
  for (const item of await ours.syncMaps("map").syncMapItems.list()) assert.deepEqual((await map.get(item.key)).data, item.data);

  const shown = updated.map(([, { data }]) => data.n);
  assert.deepEqual(shown, [...new Set(shown)].sort((a, b) => a - b), "the document never went back, and told nothing twice");
}

module.exports = { certain, hold, make, watch, write };
