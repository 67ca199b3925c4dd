"use strict";
// A way to the server that can be cut: a TCP proxy on a port of its own.

const net = require("node:net");
const once = require("node:events").once;

class Proxy {
  #open = new Set();
  #shut = false;
  #server;

  /** Up, in front of the server at `url`, until the test is over. */
  static async before(t, url) {
    const proxy = new Proxy();
    const { hostname, port } = new URL(url);
    proxy.#server = net.createServer(socket => proxy.#join(socket, hostname, port));
    proxy.#server.listen(0, "127.0.0.1");
    await once(proxy.#server, "listening");
    t.after(() => { proxy.cut(); proxy.#server.close(); });
    return proxy;
  }

  get url() {
    return `http://127.0.0.1:${this.#server.address().port}`;
  }

  /** How many connections are open. */
  get open() {
    return this.#open.size;
  }

  /** Every connection ends without a word, and no new one comes through until `mend`. */
  cut() {
    this.#shut = true;
    for (const socket of this.#open) socket.resetAndDestroy();
  }

  mend() {
    this.#shut = false;
  }

  #join(from, host, port) {
    from.on("error", () => {});
    if (this.#shut) return from.resetAndDestroy();
    const to = net.connect({ host, port });
    to.on("error", () => {});
    this.#open.add(from);
    from.on("close", () => { this.#open.delete(from); to.destroy(); });
    to.on("close", () => from.destroy());
    from.pipe(to);
    to.pipe(from);
  }
}

module.exports = { Proxy };
