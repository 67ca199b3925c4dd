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

/** The `n`th write: one more item in the list, an item of the map, the document; each tenth takes the list's item away again. Gives the index of that item. */
async function write(ours, n) {
  const key = `key-${n % KEYS}`, data = { n };
  const { index } = await certain(() => ours.syncLists("list").syncListItems.create({ data }));
  if (n % 10 === 9) await certain(() => ours.syncLists("list").syncListItems(index).remove());
  const items = ours.syncMaps("map").syncMapItems;
  await certain(() => (n < KEYS ? items.create({ key, data }) : items(key).update({ data })));
  await certain(() => ours.documents("document").update({ data }));
  return index;
}

/** A client's view of it, with all that the client was told. */
async function watch(client) {
  const [list, map, document] = await Promise.all([client.list("list"), client.map("map"), client.document("document")]);
  const items = ["itemAdded", "itemUpdated", "itemRemoved"];
  return { list, map, document, listed: told(list, ...items), mapped: told(map, ...items), updated: told(document, "updated") };
}

const upTo = count => [...Array(count).keys()];
const ascending = numbers => [...new Set(numbers)].sort((a, b) => a - b);

/**
 * Holds a view against writes, given the indexes that they gave: waits for the last one, then looks at everything that was told on the way. What came and went
 * while a client was away it need not be told of.
 */
async function hold({ list, map, document, listed, mapped, updated }, indexes, ours) {
  const last = indexes.length - 1, removed = indexes.filter((_, n) => n % 10 === 9);
  const of = name => listed.filter(([event]) => event === name).map(([, { item, index }]) => (item ? item.index : index));
  await until(() => document.data.n === last, 60, `write ${last} of the document`);
  await until(() => mapped.some(([, { item }]) => item.data.n === last), 60, `write ${last} of the map`);
  await until(() => of("itemAdded").includes(indexes.at(-1)), 60, `write ${last} of the list`);

  const added = of("itemAdded");
  assert.deepEqual(added, ascending(added), "no item of the list was added twice, and none before an earlier one");
  assert.deepEqual(added.filter(index => !removed.includes(index)), indexes.filter(index => !removed.includes(index)), "each that stayed was added");
  assert.deepEqual(of("itemRemoved"), ascending(of("itemRemoved")), "none was removed twice");
  assert.deepEqual(added.filter(index => removed.includes(index) && !of("itemRemoved").includes(index)), [], "each that had been added and went was removed");
  assert.deepEqual(of("itemUpdated"), [], "and none was changed");
  for (const item of await ours.syncLists("list").syncListItems.list()) assert.deepEqual((await list.get(item.index)).data, item.data);

  const keys = upTo(KEYS).map(n => `key-${n}`);
  for (const key of keys) {
    const events = mapped.filter(([, { item }]) => item.key === key), revisions = events.map(([, { item }]) => Number(item.revision));
    assert.deepEqual(events.map(([name]) => name), events.map((_, at) => (at ? "itemUpdated" : "itemAdded")), `${key} was added, then changed`);
    assert.deepEqual(revisions, ascending(revisions), `${key} never went back, and told nothing twice`);
  }
  for (const item of await ours.syncMaps("map").syncMapItems.list()) assert.deepEqual((await map.get(item.key)).data, item.data);

  const shown = updated.map(([, { data }]) => data.n);
  assert.deepEqual(shown, ascending(shown), "the document never went back, and told nothing twice");
}

module.exports = { certain, hold, make, watch, write };
