"use strict";
// The webhooks of a service, their signatures held by Twilio's own validator; what realtime clients write, and that they come and go.

const http = require("node:http");
const once = require("node:events").once;

const { CREDENTIALS, assert, service, sync, token, twilio, until } = require("./harness");
const { test } = require("./suite");
const library = require("twilio-sync");

/** A receiver of webhooks: its address, and what came, each with a signature that holds. */
async function receiver(t, path) {
  const told = [];
  const server = http.createServer(async (request, answer) => {
    let body = "";
    for await (const piece of request) body += piece;
    const params = Object.fromEntries(new URLSearchParams(body)), url = `http://${request.headers.host}${request.url}`;
    const signed = twilio.validateRequest(CREDENTIALS.auth_token, request.headers["x-twilio-signature"], url, params);
    told.push({ ...params, signed, forged: twilio.validateRequest("0".repeat(32), request.headers["x-twilio-signature"], url, params) });
    answer.writeHead(204).end();
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => server.close());
  return { told, url: `http://127.0.0.1:${server.address().port}${path}` };
}

const types = told => told.map(({ EventType }) => EventType);

test("what clients write is told, with who wrote it; what REST writes is not", async t => {
  const { told, url } = await receiver(t, "/hook?shop=1");
  const ours = await service(t, { webhookUrl: url });
  await ours.documents.create({ uniqueName: "by-rest" });
  const alice = sync(t, library, token("alice", ours.sid));
  const document = await alice.document({ id: "d", data: { n: 1 } });
  await document.set({ n: 2 });
  await document.removeDocument();
  const list = await alice.list("l");
  await list.push({ n: 1 });
  await list.set(0, { n: 2 });
  await list.remove(0);
  const map = await alice.map("m");
  await map.set("k", { n: 1 });
  await map.set("k", { n: 2 });
  await map.remove("k");
  await map.removeMap();
  const wanted = [
    "document_created", "document_updated", "document_removed", "list_created", "list_item_added", "list_item_updated", "list_item_removed",
    "map_created", "map_item_added", "map_item_updated", "map_item_removed", "map_removed",
  ];
  await until(() => told.length >= wanted.length);
  assert.deepEqual(types(told).sort(), [...wanted].sort());
  for (const { Identity, EndpointId, AccountSid, ServiceSid, signed, forged } of told) {
    assert.deepEqual([Identity, AccountSid, ServiceSid, signed, forged], ["alice", CREDENTIALS.account_sid, ours.sid, true, false]);
    assert.ok(EndpointId);
  }
  const { DocumentData, DocumentRevision } = told.find(({ EventType }) => EventType === "document_updated");
  assert.deepEqual([JSON.parse(DocumentData), DocumentRevision], [{ n: 2 }, "1"]);
});

test("clients that come and go are told, where that is on", async t => {
  const { told, url } = await receiver(t, "/reach");
  const ours = await service(t, { webhookUrl: url, reachabilityWebhooksEnabled: true });
  const alice = sync(t, library, token("alice", ours.sid));
  await until(() => told.length === 1);
  await alice.shutdown();
  await until(() => told.length === 2);
  assert.deepEqual(told.map(({ EventType, Identity, signed }) => [EventType, Identity, signed]), [["endpoint_connected", "alice", true], ["endpoint_disconnected", "alice", true]]);
  assert.equal(told[0].EndpointId, told[1].EndpointId);
});

test("who is back within the window never went, where that is on", async t => {
  const { told, url } = await receiver(t, "/debounced");
  const ours = await service(t, { webhookUrl: url, reachabilityWebhooksEnabled: true, reachabilityDebouncingEnabled: true, reachabilityDebouncingWindow: 15_000 });
  const { AccessToken } = twilio.jwt;
  const made = new AccessToken(CREDENTIALS.account_sid, CREDENTIALS.key.sid, CREDENTIALS.key.secret, { identity: "alice", ttl: 3600 });
  made.addGrant(new AccessToken.SyncGrant({ serviceSid: ours.sid, endpointId: "desk-1" }));
  const first = sync(t, library, made.toJwt());
  await until(() => told.length === 1);
  await first.shutdown();
  const second = sync(t, library, made.toJwt());
  await until(() => second.connectionState === "connected");
  await second.shutdown();
  await until(() => told.length === 2, 60);
  assert.deepEqual(types(told), ["endpoint_connected", "endpoint_disconnected"]);
});
