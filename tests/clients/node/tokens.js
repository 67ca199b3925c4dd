"use strict";
// Access tokens: those of both official builders open the socket, no other does; they end, and are renewed.

const { execFileSync } = require("node:child_process");
const crypto = require("node:crypto");
const path = require("node:path");

const { CREDENTIALS, assert, event, refused, rest, service, sync, told, token, until } = require("./harness");
const { test } = require("./suite");
const libraries = { "4.0": require("twilio-sync"), "3.4": require("twilio-sync-3.4") };
const library = libraries["4.0"];

/** A token by hand, with whatever is to be wrong with it. */
function forged(serviceSid, { header = {}, payload = {}, grants = {}, secret = CREDENTIALS.key.secret, hash = "sha256" } = {}) {
  const now = Math.floor(Date.now() / 1000), { account_sid, key } = CREDENTIALS;
  const encode = value => Buffer.from(JSON.stringify(value)).toString("base64url");
  const head = { alg: "HS256", typ: "JWT", cty: "twilio-fpa;v=1", ...header };
  const body = { jti: `${key.sid}-${now}`, iss: key.sid, sub: account_sid, iat: now, exp: now + 3600, grants: { identity: "alice", data_sync: { service_sid: serviceSid }, ...grants }, ...payload };
  const signed = `${encode(head)}.${encode(body)}`;
  return `${signed}.${hash ? crypto.createHmac(hash, secret).update(signed).digest("base64url") : ""}`;
}

/** That a token opens nothing, and what the library says of it. */
async function denied(t, made, errorCode) {
  const client = sync(t, library, made);
  const expired = told(client, "tokenExpired");
  const error = await event(client, "connectionError");
  assert.deepEqual([error.terminal, error.httpStatusCode, error.errorCode], [true, 401, errorCode]);
  await until(() => client.connectionState === "denied");
  assert.equal(expired.length > 0, errorCode === 20104);
}

for (const [version, each] of Object.entries(libraries)) {
  test(`both builders' tokens open the socket of ${version}`, async t => {
    const ours = await service(t);
    const python = execFileSync(process.env.CLIENTS_PYTHON, [path.join(__dirname, "../python/mint.py"), "by python", ours.sid, "3600"], { encoding: "utf8" }).trim();
    for (const [made, identity] of [[token("by node", ours.sid), "by node"], [python, "by python"], [forged(ours.sid), "alice"]]) {
      const document = await sync(t, each, made).document();
      assert.equal((await ours.documents(document.sid).fetch()).createdBy, identity);
    }
  });
}

test("no other token opens anything", async t => {
  const ours = await service(t);
  const now = Math.floor(Date.now() / 1000);
  const [head, body, signature] = token("alice", ours.sid).split(".");
  const other = JSON.parse(Buffer.from(body, "base64url"));
  other.grants.identity = "mallory";
  const wrong = {
    "a body that was changed": `${head}.${Buffer.from(JSON.stringify(other)).toString("base64url")}.${signature}`,
    "a signature that was changed": `${head}.${body}.${signature.slice(0, -4)}AAAA`,
    "no signature": `${head}.${body}.`,
    "another secret": forged(ours.sid, { secret: "s".repeat(32) }),
    "the account's auth token as the secret": forged(ours.sid, { secret: CREDENTIALS.auth_token }),
    "no algorithm": forged(ours.sid, { header: { alg: "none" }, hash: null }),
    "no algorithm, yet a signature": forged(ours.sid, { header: { alg: "none" } }),
    "a key that there is not": forged(ours.sid, { payload: { iss: "SK" + "0".repeat(32) } }),
    "another account": forged(ours.sid, { payload: { sub: "AC" + "0".repeat(32) } }),
    "another kind of token": forged(ours.sid, { header: { cty: "other" } }),
    "no grant of Sync": forged(ours.sid, { grants: { data_sync: undefined } }),
    "a service that there is not": forged("IS" + "0".repeat(32)),
    "a time that is to come": forged(ours.sid, { payload: { nbf: now + 1000 } }),
    "more than a day": forged(ours.sid, { payload: { exp: now + 90_000 } }),
    "no end": forged(ours.sid, { payload: { exp: undefined } }),
    "no token at all": "nonsense",
  };
  const said = [];
  for (const [what, made] of Object.entries(wrong)) await denied(t, made, 20101).catch(error => said.push(`${what}: ${error.message}`));
  await denied(t, forged(ours.sid, { payload: { iat: now - 7200, exp: now - 3600 } }), 20104).catch(error => said.push(`an ended one: ${error.message}`));
  assert.deepEqual(said, []);
}, 120);

test("a token that is about to end is renewed, and nothing is cut", async t => {
  const ours = await service(t);
  const client = sync(t, library, token("alice", ours.sid, { ttl: 20 }));
  const warned = event(client, "tokenAboutToExpire");
  const document = await client.document("watched");
  const seen = told(document, "updated"), states = told(client, "connectionStateChanged", "tokenExpired");
  await warned;
  await client.updateToken(token("alice", ours.sid));
  const ended = Date.now() + 20_500;
  let n = 0;
  while (Date.now() < ended) {
    await ours.documents("watched").update({ data: { n: ++n } });
    await until(() => document.data.n === n);
    await new Promise(wake => setTimeout(wake, 250));
  }
  assert.equal(client.connectionState, "connected");
  assert.deepEqual(seen.map(([, { data }]) => data.n), [...Array(n).keys()].map(n => n + 1));
  assert.deepEqual(states.filter(([, state]) => state !== "connected"), []);
});

for (const [version, each] of Object.entries(libraries)) {
  test(`a token that ends cuts ${version} off; a new one brings it back, with what it missed`, async t => {
    const ours = await service(t);
    const client = sync(t, each, token("alice", ours.sid, { ttl: 12 }));
    const expired = event(client, "tokenExpired");
    const list = await client.list("watched");
    const seen = told(list, "itemAdded");
    await expired;
    await until(() => client.connectionState === "disconnected");
    for (let n = 0; n < 5; n++) await ours.syncLists("watched").syncListItems.create({ data: { n } });
    await client.updateToken(token("alice", ours.sid));
    await until(() => seen.length === 5);
    await ours.syncLists("watched").syncListItems.create({ data: { n: 5 } });
    await until(() => seen.length === 6);
    assert.deepEqual(seen.map(([, { item }]) => item.data.n), [0, 1, 2, 3, 4, 5]);
  });
}

test("a renewal by somebody else's token, or by none, is refused", async t => {
  const [ours, other] = [await service(t), await service(t)];
  for (const made of [token("bob", ours.sid), token("alice", other.sid), "nonsense"]) {
    const client = sync(t, library, token("alice", ours.sid));
    await until(() => client.connectionState === "connected");
    await refused(client.updateToken(made), 400, 51130);
    await until(() => client.connectionState === "denied");
  }
});

test("a service that is gone opens to nobody", async t => {
  const services = rest().sync.v1.services;
  const { sid } = await services.create();
  const made = token("alice", sid);
  await services(sid).remove();
  await denied(t, made, 20101);
});
