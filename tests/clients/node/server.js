"use strict";
// A Contrail of the test's own, which it may end and start again: on the same port, with the same data.

const { execFileSync, spawn } = require("node:child_process");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");
const once = require("node:events").once;

const { until } = require("./harness");

const BINARY = process.env.CLIENTS_BINARY;

class Server {
  #data = fs.mkdtempSync(path.join(os.tmpdir(), "contrail-clients-"));
  #environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("CONTRAIL_")));
  #log = `${this.#data}.log`;
  #listen = "127.0.0.1:0";
  #process;

  /** Up until the test is over. */
  static async up(t, environment = {}) {
    const server = new Server();
    Object.assign(server.#environment, environment);
    t.after(() => server.#gone());
    await server.start();
    server.credentials = { ...server.command("site", "sync", "demo", "--show-secrets"), key: server.command("site", "sync", "demo", "--new-key") };
    return server;
  }

  get url() {
    return `http://${this.#listen}`;
  }

  async start() {
    const log = fs.openSync(this.#log, "a");
    this.#process = spawn(BINARY, ["serve", "--data", this.#data, "--listen", this.#listen], { env: this.#environment, stdio: ["ignore", log, log] });
    fs.closeSync(log);
    await Promise.race([this.#serves(), once(this.#process, "exit").then(() => { throw new Error(`the server does not start: ${fs.readFileSync(this.#log, "utf8")}`); })]);
  }

  async #serves() {
    const told = () => fs.readFileSync(path.join(this.#data, "contrail.lock"), "utf8");
    await until(() => told().startsWith(`${this.#process.pid} `) && told().endsWith("\n"), 60, "the server's address");
    this.#listen = told().split(/\s/)[1];
    await until(async () => (await fetch(`${this.url}/readyz`)).ok, 60, "a server that is ready");
  }

  /** Ends as an operator ends it, SIGTERM, or as a crash does, SIGKILL. */
  async end(signal) {
    const gone = once(this.#process, "exit");
    this.#process.kill(signal);
    await gone;
  }

  /** What one of the program's commands prints, as JSON. */
  command(...words) {
    return JSON.parse(execFileSync(BINARY, words, { env: { ...this.#environment, CONTRAIL_DATA: this.#data }, encoding: "utf8" }));
  }

  async #gone() {
    if (this.#process.exitCode === null && this.#process.signalCode === null) await this.end("SIGKILL");
    fs.rmSync(this.#data, { recursive: true });
    fs.rmSync(this.#log);
  }
}

module.exports = { Server };
