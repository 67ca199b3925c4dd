"use strict";
// The realtime library as a web page has it, its own browser bundle in a real Chromium. The page is of another origin than the server, as pages are.

const fs = require("node:fs");
const http = require("node:http");
const once = require("node:events").once;
const { chromium } = require("playwright-core");

const { URL, assert, realtime, service, token, until } = require("./harness");
const { Proxy } = require("./proxy");
const { test } = require("./suite");

const CHROMIUM = process.env.CLIENTS_CHROMIUM ?? "/usr/bin/chromium";
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"];
const BUNDLE = fs.readFileSync(require.resolve("twilio-sync/builds/twilio-sync.min.js"));
const PAGE = `<!doctype html><meta charset="utf-8"><title>a page</title><link rel="icon" href="data:,"><script src="/twilio-sync.min.js"></script>`;

/** A way to open pages; `open(identity, url)` gives one with `client`, connected, which goes to the server at that address. */
async function browser(t, ours) {
  const site = http.createServer((request, answer) => {
    const [type, body] = request.url === "/" ? ["text/html", PAGE] : ["text/javascript", BUNDLE];
    answer.writeHead(200, { "Content-Type": type }).end(body);
  });
  site.listen(0, "127.0.0.1");
  await once(site, "listening");
  t.after(() => { site.closeAllConnections(); site.close(); });
  const running = await chromium.launch({ executablePath: CHROMIUM, args: FLAGS });
  t.after(() => running.close());
  const wrong = [];
  t.after(() => assert.deepEqual(wrong, [], "errors in the page"));
  const connect = (page, identity, url) =>
    page.evaluate(async ([made, options]) => {
      window.client = new Twilio.Sync.Client(made, options);
      window.seen = [];
      window.watch = (object, ...names) => names.forEach(name => object.on(name, ({ item, index, key, data, message, isLocal }) => {
        seen.push([name, item ? item.index ?? item.key : index ?? key ?? null, (item ?? message ?? { data }).data ?? null, isLocal]);
      }));
      await new Promise(resolve => client.on("connectionStateChanged", state => state === "connected" && resolve()));
    }, [token(identity, ours.sid), realtime(URL, url)]);
  const open = async (identity, url = URL) => {
    const page = await (await running.newContext()).newPage();
    page.on("pageerror", error => wrong.push(String(error)));
    await page.goto(`http://127.0.0.1:${site.address().port}/`);
    await connect(page, identity, url);
    return page;
  };
  return { connect, open };
}

const seen = page => page.evaluate(() => seen);
const seenAll = async (page, count) => {
  await until(async () => (await seen(page)).length >= count, 30, `${count} events`);
  return seen(page);
};

test("documents, lists, maps and streams between two pages and the REST API", async t => {
  const ours = await service(t);
  const { open } = await browser(t, ours);
  const [alice, bob] = [await open("alice"), await open("bob")];
  const opened = page => page.evaluate(async () => {
    window.objects = { document: await client.document("d"), list: await client.list("l"), map: await client.map("m"), stream: await client.stream("s") };
    for (const object of Object.values(objects)) watch(object, ...["updated", "itemAdded", "itemUpdated", "itemRemoved", "messagePublished", "removed"]);
    return Object.values(objects).map(({ sid }) => sid.slice(0, 2));
  });
  assert.deepEqual(await opened(alice), ["ET", "ES", "MP", "TO"]);
  await opened(bob);
  // A stream keeps nothing: bob has subscribed once he is told anything on it.
  await until(async () => {
    await ours.syncStreams("s").streamMessages.create({ data: { hello: true } });
    return (await seen(bob)).length > 0;
  });
  await bob.evaluate(() => { seen.length = 0; });
  await alice.evaluate(async () => {
    const { document, list, map, stream } = objects;
    await document.set({ n: 1 });
    await document.mutate(data => ({ n: data.n + 1 }));
    await list.push({ n: 1 });
    await list.set(0, { n: 2 });
    await list.remove(0);
    await map.set("é/?#", { n: 1 });
    await map.update("é/?#", { more: "☎" });
    await map.remove("é/?#");
    await stream.publishMessage({ typing: "alice" });
  });
  const told = (await seenAll(bob, 9)).filter(([, , data]) => !data?.hello);
  const of = (...names) => told.filter(([name, at]) => names.includes(name) || names.includes(at));
  assert.deepEqual(of("updated"), [["updated", null, { n: 1 }, false], ["updated", null, { n: 2 }, false]]);
  assert.deepEqual(of(0), [["itemAdded", 0, { n: 1 }, false], ["itemUpdated", 0, { n: 2 }, false], ["itemRemoved", 0, null, false]]);
  assert.deepEqual(of("é/?#"), [["itemAdded", "é/?#", { n: 1 }, false], ["itemUpdated", "é/?#", { n: 1, more: "☎" }, false], ["itemRemoved", "é/?#", null, false]]);
  assert.deepEqual(of("messagePublished"), [["messagePublished", null, { typing: "alice" }, false]]);
  assert.equal((await ours.documents("d").fetch()).createdBy, "alice");
  const refused = await alice.evaluate(() => client.map({ id: "none", mode: "open_existing" }).then(() => null, ({ status, code }) => [status, code]));
  assert.deepEqual(refused, [404, 54300]);
  await ours.syncMaps("m").remove();
  await until(async () => (await seen(bob)).some(([name]) => name === "removed"));
}, 120);

test("a page that is cut off misses nothing and is told nothing twice", async t => {
  const ours = await service(t);
  const proxy = await Proxy.before(t, URL);
  const page = await (await browser(t, ours)).open("alice", proxy.url);
  await ours.syncLists.create({ uniqueName: "l" });
  await page.evaluate(async () => watch(await client.list("l"), "itemAdded", "itemUpdated"));
  for (let n = 0; n < 60; n++) {
    if (n % 20 === 10) proxy.cut();
    if (n % 20 === 15) {
      proxy.mend();
      await page.waitForFunction(() => client.connectionState === "connected");
    }
    await ours.syncLists("l").syncListItems.create({ data: { n } });
  }
  const told = await seenAll(page, 60);
  assert.deepEqual(told.map(([name, index, { n }]) => [name, index, n]), [...Array(60).keys()].map(n => ["itemAdded", n, n]));
}, 120);

test("a page that is loaded again shows what was written meanwhile, whatever it kept", async t => {
  const ours = await service(t);
  const { connect, open } = await browser(t, ours);
  const page = await open("alice");
  await ours.documents.create({ uniqueName: "d", data: { n: 0 } });
  await ours.syncMaps.create({ uniqueName: "m" });
  await page.evaluate(async () => {
    await (await client.document("d")).set({ n: 1 });
    await (await client.map("m")).set("k", { n: 1 });
  });
  for (let n = 2; n <= 5; n++) {
    await ours.documents("d").update({ data: { n } });
    await ours.syncMaps("m").syncMapItems("k").update({ data: { n } });
  }
  await ours.syncMaps("m").syncMapItems.create({ key: "new", data: { n: 5 } });
  await page.reload();
  await connect(page, "alice", URL);
  const shown = () => page.evaluate(async () => {
    const map = await client.map("m");
    return [(await client.document("d")).data, (await map.get("k")).data, (await map.get("new")).data];
  });
  await until(async () => (await shown()).every(({ n }) => n === 5), 20, "the latest");
  await ours.documents("d").update({ data: { n: 6 } });
  await until(async () => (await shown())[0].n === 6, 20, "what comes after");
}, 120);
