"use strict";
// Canned responses: a document each, so that each can be as long as a document and is followed on its own; a map is the index of them, by title.

const INDEX = "canned-responses";

/** Whoever writes them: a new response, or another text for one. */
async function save(client, title, text) {
  const index = await client.map(INDEX);
  const known = await index.get(title).catch(error => { if (error.status !== 404) throw error; return null; });
  if (known) {
    const document = await client.document({ id: known.data.document, mode: "open_existing" });
    return document.update({ text });
  }
  const document = await client.document({ data: { title, text } });
  await index.set(title, { document: document.sid });
  return document.data;
}

/** An agent's desktop: the titles, in their order. */
async function titles(client) {
  const index = await client.map(INDEX);
  const all = [];
  for (let page = await index.getItems({ pageSize: 100 }); ; page = await page.nextPage()) {
    all.push(...page.items.map(({ key }) => key));
    if (!page.hasNextPage) return all;
  }
}

/** An agent's desktop: one response, which keeps up with whoever changes it. */
async function open(client, title) {
  const item = await (await client.map(INDEX)).get(title);
  return client.document({ id: item.data.document, mode: "open_existing" });
}

module.exports = { open, save, titles };
