"use strict";
// What the Node suites share: the server under test, Twilio's clients for it, and waiting that ends.

const assert = require("node:assert/strict");
const crypto = require("node:crypto");
const twilio = require("twilio");

const URL = process.env.CLIENTS_URL;
/** What `contrail site sync` tells of the account, with an API key of its. */
const CREDENTIALS = { ...JSON.parse(process.env.CLIENTS_ACCOUNT), key: JSON.parse(process.env.CLIENTS_KEY) };

const unique = what => `${what}-${crypto.randomUUID().slice(0, 13)}`;

/** Twilio's REST client as an app makes it, but for the one line that names another server. */
function rest({ url = URL, credentials = CREDENTIALS } = {}) {
  const client = twilio(credentials.account_sid, credentials.auth_token);
  client.sync.baseUrl = url;
  return client;
}

/** A Sync service of the test's own, gone after it. */
async function service(t, settings = {}, where = {}) {
  const services = rest(where).sync.v1.services;
  const made = await services.create({ friendlyName: unique("service"), ...settings });
  t.after(() => services(made.sid).remove());
  return Object.assign(services(made.sid), { sid: made.sid });
}

/** An access token as Twilio's library mints it. */
function token(identity, serviceSid, { ttl = 3600, credentials = CREDENTIALS } = {}) {
  const { AccessToken } = twilio.jwt;
  const made = new AccessToken(credentials.account_sid, credentials.key.sid, credentials.key.secret, { identity, ttl });
  made.addGrant(new AccessToken.SyncGrant({ serviceSid }));
  return made.toJwt();
}

/** Where the realtime library finds the server: the two options that it takes for that. */
const realtime = (url = URL, socket = url) => ({ twilsock: { uri: socket.replace(/^http/, "ws") + "/v3/wsconnect" }, cdsUri: url });

/** A realtime client, shut down after the test. */
function sync(t, library, made, options = realtime()) {
  const client = new library.SyncClient(made, options);
  t.after(() => client.connectionState === "denied" || client.shutdown());
  return client;
}

/** The first of these events that `wanted` says yes to. */
function event(emitter, name, wanted = () => true, seconds = 60) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => { emitter.removeListener(name, listener); reject(new Error(`no ${name} within ${seconds} s`)); }, seconds * 1000);
    const listener = told => {
      if (!wanted(told)) return;
      clearTimeout(timer);
      emitter.removeListener(name, listener);
      resolve(told);
    };
    emitter.on(name, listener);
  });
}

/** Asks again until `look` does not throw and gives something true; gives that. */
async function until(look, seconds = 60, what = "what was waited for") {
  const end = Date.now() + seconds * 1000;
  for (;;) {
    let last;
    try {
      const value = await look();
      if (value) return value;
      last = value;
    } catch (error) {
      last = error;
    }
    if (Date.now() > end) throw new Error(`${what} did not come within ${seconds} s; at last: ${(last && last.stack) || last}`);
    await new Promise(wake => setTimeout(wake, 25));
  }
}

/** That a call is refused so, whichever library says it. */
const refused = (call, status, code) =>
  assert.rejects(call, error => {
    assert.deepEqual({ status: error.status, code: error.code }, { status, code }, error.stack);
    return true;
  });

/** Everything that an object tells from now on, in order: [event, what it carried, an item as it was then]. */
function told(object, ...names) {
  const seen = [];
  const then = ({ key, index, data, revision }) => ({ key, index, data, revision });
  for (const name of names) object.on(name, args => seen.push([name, args?.item ? { ...args, item: then(args.item) } : args]));
  return seen;
}

module.exports = { URL, CREDENTIALS, assert, unique, rest, service, token, realtime, sync, event, until, refused, told, twilio };
