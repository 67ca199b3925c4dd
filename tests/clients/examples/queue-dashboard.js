"use strict";
// A contact centre's queue dashboard: the back end says how each queue is, every supervisor's screen follows.
//
// One map holds all the queues, an item each: what a screen shows is complete at once, and an update says which row changed.

const QUEUES = "queues";

/** Back end: a queue's state. Items are made where they are missing, and the map too. `service` is a Sync service of Twilio's REST library. */
async function report(service, queue, state) {
  const items = service.syncMaps(QUEUES).syncMapItems;
  const unless = (status, otherwise) => error => { if (error.status !== status) throw error; return otherwise(); };
  const update = () => items(queue).update({ data: state });
  const make = () => items.create({ key: queue, data: state }).catch(unless(409, update));
  const makeMap = () => service.syncMaps.create({ uniqueName: QUEUES }).catch(unless(409, () => {}));
  return update().catch(unless(404, () => make().catch(unless(404, () => makeMap().then(make)))));
}

/** A supervisor's screen: calls `show` with all the queues, by name, at first and after each change. `client` is a SyncClient. */
async function follow(client, show) {
  const map = await client.map(QUEUES);
  const queues = new Map();
  const changed = ({ item }) => { queues.set(item.key, item.data); show(queues); };
  map.on("itemAdded", changed);
  map.on("itemUpdated", changed);
  map.on("itemRemoved", ({ key }) => { queues.delete(key); show(queues); });
  for (let page = await map.getItems({ pageSize: 100 }); ; page = await page.nextPage()) {
    for (const item of page.items) queues.set(item.key, item.data);
    if (!page.hasNextPage) break;
  }
  show(queues);
}

module.exports = { follow, report };
