"use strict";
// The three contact centre examples of ../examples, run.

const { assert, event, service, sync, token, until } = require("./harness");
const { test } = require("./suite");
const { SyncClient } = require("twilio-sync");

const dashboard = require("../examples/queue-dashboard");
const calls = require("../examples/recent-calls");
const canned = require("../examples/canned-responses");

const client = (t, identity, ours) => sync(t, { SyncClient }, token(identity, ours.sid));

test("a queue dashboard shows every queue, and each change at once", async t => {
  const ours = await service(t);
  await Promise.all(["sales", "support"].map(queue => dashboard.report(ours, queue, { waiting: 1, longestSeconds: 5 })));
  const screens = [[], []];
  await Promise.all(screens.map((shown, at) => dashboard.follow(client(t, `supervisor-${at}`, ours), queues => shown.push(Object.fromEntries(queues)))));
  for (const shown of screens) assert.deepEqual(shown.at(-1), { sales: { waiting: 1, longestSeconds: 5 }, support: { waiting: 1, longestSeconds: 5 } });
  await dashboard.report(ours, "sales", { waiting: 0, longestSeconds: 0 });
  await dashboard.report(ours, "billing", { waiting: 3, longestSeconds: 61 });
  await ours.syncMaps("queues").syncMapItems("support").remove();
  const last = { sales: { waiting: 0, longestSeconds: 0 }, billing: { waiting: 3, longestSeconds: 61 } };
  await until(() => screens.every(shown => !("support" in shown.at(-1)) && "billing" in shown.at(-1)));
  for (const shown of screens) assert.deepEqual(shown.at(-1), last);
});

test("an agent's recent calls, the latest first, each for 30 days", async t => {
  const ours = await service(t);
  const begun = Date.now();
  const call = n => ({ sid: `CA${n}`, startedAt: new Date(begun - 60_000 * (20 - n)), from: `+1555000${n}`, state: "ringing" });
  for (let n = 0; n < 15; n++) await calls.remember(ours, "alice", call(n));
  await calls.remember(ours, "alice", { ...call(14), state: "answered" });
  await calls.remember(ours, "bob", call(3));
  const shown = await calls.recent(client(t, "alice", ours), "alice", 10);
  assert.deepEqual(shown.map(({ sid }) => sid), [14, 13, 12, 11, 10, 9, 8, 7, 6, 5].map(n => `CA${n}`));
  assert.deepEqual(shown.slice(0, 2).map(({ state }) => state), ["answered", "ringing"]);
  const days = date => Math.round((date - begun) / 86_400_000);
  const [map, items] = [await ours.syncMaps(calls.calls("alice")).fetch(), await ours.syncMaps(calls.calls("alice")).syncMapItems.list()];
  assert.equal(items.length, 15);
  assert.deepEqual([map, ...items].map(({ dateExpires }) => days(dateExpires)), Array(16).fill(30));
});

test("canned responses are listed by title, opened, and changed while open", async t => {
  const ours = await service(t);
  const [author, agent] = [client(t, "author", ours), client(t, "agent", ours)];
  await canned.save(author, "Opening hours", "We are open from 9 to 5.");
  await canned.save(author, "Goodbye", "Thank you for calling!");
  assert.deepEqual(await canned.titles(agent), ["Goodbye", "Opening hours"]);
  const hours = await canned.open(agent, "Opening hours");
  assert.deepEqual(hours.data, { title: "Opening hours", text: "We are open from 9 to 5." });
  const changed = event(hours, "updated");
  await canned.save(author, "Opening hours", "We are open from 9 to 6.");
  assert.deepEqual((await changed).data, { title: "Opening hours", text: "We are open from 9 to 6." });
  assert.equal((await ours.documents.list()).length, 2);
});
