"use strict";
// Everything that Twilio's library for Node does with Sync and that succeeds.

const { CREDENTIALS, URL, assert, refused, rest, service, twilio, unique, until } = require("./harness");
const { test } = require("./suite");

const seconds = (later, earlier) => (later - earlier) / 1000;
const sids = many => many.map(one => one.sid);

test("services: create, fetch, list, update, remove", async t => {
  const services = rest().sync.v1.services;
  const made = await services.create({
    friendlyName: "first", webhookUrl: "https://shop.example/hook", webhooksFromRestEnabled: true, reachabilityWebhooksEnabled: true, aclEnabled: true,
    reachabilityDebouncingEnabled: true, reachabilityDebouncingWindow: 2000,
  });
  assert.match(made.sid, /^IS[0-9a-f]{32}$/);
  assert.deepEqual([made.uniqueName, made.accountSid, made.friendlyName, made.webhookUrl], [null, CREDENTIALS.account_sid, "first", "https://shop.example/hook"]);
  assert.deepEqual([made.webhooksFromRestEnabled, made.reachabilityWebhooksEnabled, made.aclEnabled, made.reachabilityDebouncingEnabled], [true, true, true, true]);
  assert.deepEqual([made.reachabilityDebouncingWindow, made.url, made.links.maps], [2000, `${URL}/v1/Services/${made.sid}`, `${URL}/v1/Services/${made.sid}/Maps`]);
  assert.ok(sids(await services.list({ pageSize: 1 })).includes(made.sid));
  const changed = await services(made.sid).update({ friendlyName: "second", aclEnabled: false });
  assert.deepEqual([changed.friendlyName, changed.aclEnabled, changed.reachabilityWebhooksEnabled], ["second", false, true]);
  assert.equal((await services(made.sid).fetch()).friendlyName, "second");
  assert.equal((await services("default").fetch()).sid, CREDENTIALS.service_sid);
  assert.equal(await services(made.sid).remove(), true);
  await refused(services(made.sid).fetch(), 404, 20404);
});

test("an API key does what the account does, and nobody else gets anything", async t => {
  const ours = await service(t);
  const { account_sid, auth_token, key } = CREDENTIALS;
  const as = (user, password) => {
    const client = twilio(user, password, { accountSid: account_sid });
    client.sync.baseUrl = URL;
    return client.sync.v1.services(ours.sid);
  };
  const made = await as(key.sid, key.secret).documents.create({ data: { by: "key" } });
  assert.deepEqual([made.accountSid, made.createdBy], [account_sid, "system"]);
  for (const [user, password] of [[account_sid, key.secret], [key.sid, auth_token], ["AC" + "0".repeat(32), auth_token], ["SK" + "0".repeat(32), key.secret]]) {
    await refused(as(user, password).fetch(), 401, 20003);
  }
});

test("documents: create, fetch, update, remove", async t => {
  const ours = await service(t);
  const data = { text: "hello", list: [1, 2.5, null, true, { "é": "☎" }] };
  const made = await ours.documents.create({ uniqueName: "greeting", data });
  assert.match(made.sid, /^ET[0-9a-f]{32}$/);
  assert.deepEqual([made.uniqueName, made.revision, made.createdBy, made.dateExpires], ["greeting", "0", "system", null]);
  assert.deepEqual([made.url, made.links], [`${URL}/v1/Services/${ours.sid}/Documents/${made.sid}`, { permissions: `${URL}/v1/Services/${ours.sid}/Documents/${made.sid}/Permissions` }]);
  assert.ok(made.dateCreated instanceof Date && made.dateCreated.getMilliseconds() === 0 && Math.abs(Date.now() - made.dateCreated) < 60_000);
  for (const name of ["greeting", made.sid]) assert.deepEqual((await ours.documents(name).fetch()).data, data);
  const changed = await ours.documents("greeting").update({ data: { only: "this" } });
  assert.deepEqual([changed.sid, changed.revision, changed.data, changed.dateCreated], [made.sid, "1", { only: "this" }, made.dateCreated]);
  // An instance that `create` gave does not know its own address in this library; a fetched one does.
  const fetched = await ours.documents("greeting").fetch();
  assert.equal((await fetched.update({ data: { n: 2 } })).revision, "2");
  assert.deepEqual((await fetched.fetch()).data, { n: 2 });
  assert.equal(await fetched.remove(), true);
  for (const name of ["greeting", made.sid]) await refused(ours.documents(name).fetch(), 404, 20404);
  const again = await ours.documents.create({ uniqueName: "greeting" });
  assert.notEqual(again.sid, made.sid);
  assert.deepEqual([again.revision, again.data], ["0", {}]);
});

test("the status and the ETag of what is made", async t => {
  const ours = await service(t);
  const { statusCode, headers, body } = await ours.documents.createWithHttpInfo({ data: {} });
  assert.deepEqual([statusCode, headers.etag.replaceAll('"', "")], [201, body.revision]);
  assert.match(headers["twilio-request-id"], /^RQ[0-9a-f]{32}$/);
});

test("If-Match takes the revision alone, of documents and items, updates and removals", async t => {
  const ours = await service(t);
  const { sid } = await ours.documents.create({ data: { n: 0 } });
  await refused(ours.documents(sid).update({ data: { n: 9 }, ifMatch: "7" }), 412, 54103);
  assert.equal((await ours.documents(sid).update({ data: { n: 1 }, ifMatch: "0" })).revision, "1");
  await refused(ours.documents(sid).update({ data: { n: 9 }, ifMatch: "0" }), 412, 54103);
  const list = ours.syncLists((await ours.syncLists.create()).sid), map = ours.syncMaps((await ours.syncMaps.create()).sid);
  const listed = await list.syncListItems.create({ data: { n: 0 } }), mapped = await map.syncMapItems.create({ key: "k", data: { n: 0 } });
  for (const [at, code] of [[list.syncListItems(listed.index), 54155], [map.syncMapItems(mapped.key), 54205]]) {
    await refused(at.update({ data: { n: 9 }, ifMatch: "7" }), 412, code);
    assert.equal((await at.update({ data: { n: 1 }, ifMatch: "0" })).revision, "1");
    await refused(at.remove({ ifMatch: "0" }), 412, code);
    assert.deepEqual((await at.fetch()).data, { n: 1 });
    assert.equal(await at.remove({ ifMatch: "1" }), true);
    await refused(at.fetch(), 404, 20404);
  }
});

test("times to live", async t => {
  const ours = await service(t);
  const made = await ours.documents.create({ ttl: 600 });
  assert.equal(seconds(made.dateExpires, made.dateCreated), 600);
  assert.ok(seconds((await ours.documents(made.sid).update({ ttl: 1200 })).dateExpires, made.dateCreated) >= 1200);
  assert.equal((await ours.documents(made.sid).update({ ttl: 0 })).dateExpires, null);
  const list = await ours.syncLists.create({ ttl: 60, collectionTtl: 600 });
  assert.equal(seconds(list.dateExpires, list.dateCreated), 600);
  const items = ours.syncLists(list.sid).syncListItems;
  assert.equal((await items.create({ data: {} })).dateExpires, null);
  const item = await items.create({ data: {}, ttl: 60, itemTtl: 90, collectionTtl: 3600 });
  assert.equal(seconds(item.dateExpires, item.dateCreated), 90);
  assert.ok(seconds((await ours.syncLists(list.sid).fetch()).dateExpires, item.dateCreated) >= 3600);
  const short = await ours.syncMaps.create({ uniqueName: "short", ttl: 1 });
  await until(async () => !sids(await ours.syncMaps.list()).includes(short.sid), 10, "the end of a map of one second");
  await refused(ours.syncMaps("short").fetch(), 404, 20404);
  await ours.syncMaps.create({ uniqueName: "short" });
});

test("pages: list, each, page and getPage give every one once", async t => {
  const ours = await service(t);
  const made = [];
  for (let n = 0; n < 120; n++) made.push((await ours.documents.create({ data: { n } })).sid);
  const all = [...made].sort();
  assert.deepEqual(sids(await ours.documents.list()).sort(), all);
  assert.deepEqual(sids(await ours.documents.list({ limit: 500 })).sort(), all);
  assert.deepEqual(sids(await ours.documents.list({ pageSize: 7 })).sort(), all);
  assert.equal((await ours.documents.list({ limit: 101 })).length, 101);
  const each = [];
  await new Promise((resolve, reject) => ours.documents.each({ pageSize: 50, callback: one => each.push(one.sid), done: error => (error ? reject(error) : resolve()) }));
  assert.deepEqual(each.sort(), all);
  const first = await ours.documents.page();
  assert.equal(first.instances.length, 50);
  const second = await first.nextPage();
  const third = await ours.documents.getPage(second.nextPageUrl);
  assert.deepEqual(sids([...first.instances, ...second.instances, ...third.instances]).sort(), all);
  assert.equal(await third.nextPage(), undefined);
});

test("lists: an index is never given again; order, from and bounds", async t => {
  const ours = await service(t);
  const made = await ours.syncLists.create({ uniqueName: "calls" });
  assert.match(made.sid, /^ES[0-9a-f]{32}$/);
  const items = ours.syncLists("calls").syncListItems;
  const indexes = async query => (await items.list(query)).map(one => one.index);
  for (let n = 0; n < 3; n++) assert.equal((await items.create({ data: { n } })).index, n);
  assert.equal(await items(1).remove(), true);
  assert.equal((await items.create({ data: { n: 4 } })).index, 4);
  assert.deepEqual(await indexes(), [0, 2, 4]);
  assert.deepEqual(await indexes({ order: "desc", pageSize: 1 }), [4, 2, 0]);
  assert.deepEqual(await indexes({ from: "2" }), [2, 4]);
  assert.deepEqual(await indexes({ from: "2", bounds: "exclusive" }), [4]);
  assert.deepEqual(await indexes({ from: "1" }), [2, 4]);
  assert.deepEqual(await indexes({ from: "2", order: "desc", bounds: "exclusive" }), [0]);
  const changed = await items(0).update({ data: { n: "new" } });
  assert.deepEqual([changed.index, changed.revision, changed.data, changed.listSid], [0, "1", { n: "new" }, made.sid]);
  assert.equal((await ours.syncLists("calls").fetch()).revision, "6");
  assert.equal(await ours.syncLists("calls").remove(), true);
  await refused(items.list(), 404, 20404);
});

test("maps: items by any key that the library can name", async t => {
  const ours = await service(t);
  const made = await ours.syncMaps.create({ uniqueName: "agents" });
  assert.match(made.sid, /^MP[0-9a-f]{32}$/);
  const items = ours.syncMaps("agents").syncMapItems;
  for (const key of ["b", "B", "a b", "é", "10", "9", "x/y"]) assert.equal((await items.create({ key, data: { key } })).key, key);
  assert.deepEqual((await items.list()).map(one => one.key), ["10", "9", "B", "a b", "b", "x/y", "é"]);
  assert.deepEqual((await items.list({ order: "desc", from: "b", pageSize: 2 })).map(one => one.key), ["b", "a b", "B", "9", "10"]);
  for (const key of ["b", "B", "a b", "é"]) {
    assert.deepEqual((await items(key).fetch()).data, { key });
    assert.deepEqual((await items(key).update({ data: { seen: key } })).data, { seen: key });
    assert.equal(await items(key).remove(), true);
  }
  assert.throws(() => items("x/y"), /Parameter 'key' is not valid/);
  assert.equal(await ours.syncMaps(made.sid).remove(), true);
});

test("streams and their messages", async t => {
  const ours = await service(t);
  const made = await ours.syncStreams.create({ uniqueName: "typing", ttl: 600 });
  assert.match(made.sid, /^TO[0-9a-f]{32}$/);
  assert.deepEqual([made.links, made.createdBy], [{ messages: `${made.url}/Messages` }, "system"]);
  const message = await ours.syncStreams("typing").streamMessages.create({ data: { typing: "alice" } });
  assert.match(message.sid, /^TZ[0-9a-f]{32}$/);
  assert.deepEqual(message.data, { typing: "alice" });
  assert.equal((await ours.syncStreams("typing").update({ ttl: 0 })).dateExpires, null);
  assert.deepEqual(sids(await ours.syncStreams.list()), [made.sid]);
  assert.equal(await ours.syncStreams("typing").remove(), true);
});

test("permissions of documents, lists and maps", async t => {
  const ours = await service(t);
  const name = unique("held");
  for (const [kind, of, sid] of [["documents", "documentPermissions", "documentSid"], ["syncLists", "syncListPermissions", "listSid"], ["syncMaps", "syncMapPermissions", "mapSid"]]) {
    const made = await ours[kind].create({ uniqueName: name });
    const permissions = ours[kind](name)[of];
    assert.deepEqual(await permissions.list(), []);
    const given = await permissions("alice").update({ read: true, write: true, manage: false });
    assert.deepEqual([given.identity, given.read, given.write, given.manage, given[sid]], ["alice", true, true, false, made.sid]);
    await permissions("bob").update({ read: true, write: false, manage: false });
    assert.equal((await permissions("alice").update({ read: true, write: false, manage: true })).manage, true);
    assert.equal((await permissions("alice").fetch()).write, false);
    assert.deepEqual((await permissions.list({ pageSize: 1 })).map(one => one.identity).sort(), ["alice", "bob"]);
    assert.equal(await permissions("alice").remove(), true);
    await refused(permissions("alice").fetch(), 404, 20404);
  }
});
