"use strict";
// What the realtime library shows across restarts of the server, on the same port and data: nothing missed, nothing twice.
//
//   node restarts.js twilio-sync|twilio-sync-3.4

const { assert, realtime, service, sync, token, until } = require("./harness");
const { Server } = require("./server");
const { test } = require("./suite");
const { hold, make, watch, write } = require("./watch");
const library = require(process.argv[2]);

/** A hundred writes and one, the server ended after each of these and started again while the next one waits. */
async function across(t, ends) {
  const server = await Server.up(t);
  const { url, credentials } = server;
  const ours = await service({ after: () => {} }, {}, { url, credentials });
  await make(ours);
  const client = sync(t, library, token("alice", ours.sid, { credentials }), realtime(url));
  const view = await watch(client), indexes = [];
  let started;
  for (let n = 0; n <= 100; n++) {
    if (ends.has(n)) {
      await until(() => client.connectionState === "connected", 60, "the connection after a restart");
      await server.end(ends.get(n));
      started = server.start();
    }
    indexes.push(await write(ours, n));
  }
  await started;
  await hold(view, indexes, ours);
  // And the other way: what a client writes reaches the server that is there now.
  await view.map.set("mine", { n: "mine" });
  assert.deepEqual((await ours.syncMaps("map").syncMapItems("mine").fetch()).data, { n: "mine" });
}

test("a server that crashes twice", t => across(t, new Map([[30, "SIGKILL"], [70, "SIGKILL"]])), 140);
test("a server that is stopped twice: clients are told to move, and come back", t => across(t, new Map([[30, "SIGTERM"], [70, "SIGTERM"]])), 140);
