"use strict";
// An agent's recent calls: a map for each agent, an item for each call, gone after 30 days; the map itself 30 days after the last call.

const DAYS_30 = 30 * 24 * 60 * 60;
const calls = agent => `recent-calls.${agent}`;

/** Back end: a call begins or changes. Its key begins with the time, so that the keys' order is the calls'. */
async function remember(service, agent, { sid, startedAt, ...call }) {
  const map = service.syncMaps(calls(agent)), key = `${startedAt.toISOString()}.${sid}`;
  const times = { itemTtl: DAYS_30, collectionTtl: DAYS_30 };
  try {
    return await map.syncMapItems(key).update({ data: { sid, ...call }, ...times });
  } catch (error) {
    if (error.status !== 404) throw error;
  }
  await service.syncMaps.create({ uniqueName: calls(agent), ttl: DAYS_30 }).catch(error => { if (error.status !== 409) throw error; });
  return map.syncMapItems.create({ key, data: { sid, ...call }, ...times });
}

/** The agent's desktop: the last calls, the latest first. */
async function recent(client, agent, count) {
  const map = await client.map(calls(agent));
  const { items } = await map.getItems({ order: "desc", pageSize: count });
  return items.map(({ data }) => data);
}

module.exports = { DAYS_30, calls, recent, remember };
