"use strict";
// Twilio's own limits, where a service has them: bursts, then so many a second, of each object.

const once = require("node:events").once;

const { assert, realtime, rest, sync, token, until } = require("./harness");
const { Server } = require("./server");
const { test } = require("./suite");
const library = require("twilio-sync");
const WebSocket = require("ws");

/** So many calls, a few at a time: how many were answered, how long it took; of the others, all were told 429 and 54009. */
async function many(count, call) {
  let answered = 0, begun = Date.now(), next = 0;
  const line = async () => {
    while (next++ < count) {
      await call().then(() => answered++, error => {
        assert.deepEqual([error.status, error.code], [429, 54009], error.stack);
        assert.match(error.message, /^Rate limit exceeded/);
      });
    }
  };
  await Promise.all([...Array(16)].map(line));
  return { answered, seconds: (Date.now() - begun) / 1000 };
}

/** Ten seconds' worth at once, then no more than goes by in the meantime. */
function held({ answered, seconds }, perSecond, count) {
  assert.ok(answered >= Math.min(count, 10 * perSecond), `${answered} of ${count} were answered in ${seconds} s`);
  assert.ok(answered <= 10 * perSecond + perSecond * seconds + perSecond, `${answered} of ${count} were answered in ${seconds} s`);
}

async function limited(t) {
  const server = await Server.up(t);
  server.command("site", "sync", "demo", "--limits", "twilio");
  const { url, credentials } = server;
  return { url, credentials, ours: rest({ url, credentials }).sync.v1.services("default") };
}

test("writes: 20 a second of an object, of a map with all its items; other objects have their own", async t => {
  const { ours } = await limited(t);
  await ours.documents.create({ uniqueName: "d" });
  let n = 0;
  held(await many(400, () => ours.documents("d").update({ data: { n: n++ } })), 20, 400);
  await ours.documents.create({ uniqueName: "other" });
  await ours.documents("other").update({ data: { n: 1 } });
  await until(() => ours.documents("d").update({ data: { n: "later" } }).catch(error => { if (error.code !== 54009) throw error; }), 20, "a token");
  await ours.syncMaps.create({ uniqueName: "m" });
  held(await many(400, () => ours.syncMaps("m").syncMapItems.create({ key: `key-${n++}`, data: {} })), 20, 400);
  await ours.syncLists.create({ uniqueName: "l" });
  held(await many(400, () => ours.syncLists("l").syncListItems.create({ data: {} })), 20, 400);
}, 120);

test("reads: 20 a second of an object; creations: 20 a second of all kinds; messages: 30 a second of a stream", async t => {
  const { ours } = await limited(t);
  await ours.documents.create({ uniqueName: "d" });
  held(await many(500, () => ours.documents("d").fetch()), 20, 500);
  await ours.syncStreams.create({ uniqueName: "s" });
  held(await many(700, () => ours.syncStreams("s").streamMessages.create({ data: {} })), 30, 700);
  let n = 0;
  const kinds = ["documents", "syncLists", "syncMaps", "syncStreams"];
  // Two have been made already.
  const made = await many(400, () => ours[kinds[n++ % 4]].create());
  held({ ...made, answered: made.answered + 2 }, 20, 400);
}, 120);

test("a realtime client is told the same of its writes", async t => {
  const { url, credentials } = await limited(t);
  const document = await sync(t, library, token("alice", "default", { credentials }), realtime(url)).document("d");
  let n = 0;
  held(await many(400, () => document.mutate(() => ({ n: n++ }))), 20, 400);
}, 60);

/** A connection by hand, open, that has not asked for a session yet; asking gives the status that is told, and ends it. */
async function caller(url, held) {
  const socket = new WebSocket(realtime(url).twilsock.uri);
  await once(socket, "open");
  const header = JSON.stringify({ method: "init", id: "TM1", token: held, registrations: [], payload_size: 0 });
  return () => new Promise((resolve, reject) => {
    socket.on("message", frame => {
      resolve(JSON.parse(String(frame).split("\r\n")[1]).status.code);
      socket.terminate();
    });
    socket.on("error", reject);
    socket.on("close", () => reject(new Error("closed without a word")));
    socket.send(Buffer.from(`TWILSOCK V3.0 ${header.length}\r\n${header}\r\n`));
  });
}

/** Whether a client is refused before it is connected; what it was told then. */
const refusal = client => new Promise(resolve => {
  client.on("connectionError", resolve);
  client.on("connectionStateChanged", state => state === "connected" && resolve(null));
});

test("connections: 110 a second of an account; who is one too many comes back by itself", async t => {
  const { url, credentials } = await limited(t);
  const held = token("alice", "default", { credentials });
  let client, error;
  for (let tries = 0; !error && tries < 20; tries++) {
    const callers = await Promise.all([...Array(400)].map(() => caller(url, held)));
    const begun = Date.now(), told = callers.splice(0, 200).map(call => call());
    client = sync(t, library, held, realtime(url));
    const outcome = refusal(client);
    // While it connects, others take each place that comes free.
    while (callers.length) {
      told.push(...callers.splice(0, 10).map(call => call()));
      await new Promise(wake => setTimeout(wake, 10));
    }
    const statuses = await Promise.all(told), opened = statuses.filter(status => status === 200).length, seconds = (Date.now() - begun) / 1000;
    assert.deepEqual(statuses.filter(status => status !== 200 && status !== 429), []);
    assert.ok(opened <= 110 + 110 * seconds + 1, `${opened} in ${seconds} s`);
    if (tries === 0) assert.ok(opened >= 100, `${opened} of the first`);
    error = await outcome;
  }
  assert.ok(error, "twenty clients got in among many others");
  assert.deepEqual([error.terminal, error.httpStatusCode, error.errorCode], [false, 429, 51202]);
  await until(() => client.connectionState === "connected", 60, "a connection");
  assert.equal((await client.document("after")).uniqueName, "after");
}, 180);
