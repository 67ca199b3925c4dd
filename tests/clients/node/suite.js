"use strict";
// A suite: its tests one after the other, each with a time limit, then the closing line. node:test ends only once nothing is left to do, and the realtime
// library leaves timers of an hour behind; this ends.

const tests = [];
let loose = [];

/** Adds a test. `run(t)` gets `t.after(undo)`, whose functions run last in first out whatever happens. */
function test(name, run, seconds = 180) {
  tests.push({ name, run, seconds });
}

for (const what of ["unhandledRejection", "uncaughtException"]) process.on(what, error => loose.push(error));

function limited(promise, seconds) {
  let timer;
  const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error(`not done within ${seconds} s`)), seconds * 1000); });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

async function one({ name, run, seconds }) {
  const undo = [], wrong = [];
  loose = [];
  await limited((async () => run({ after: step => undo.push(step) }))(), seconds).catch(error => wrong.push(error));
  for (const step of undo.reverse()) await limited((async () => step())(), 60).catch(error => wrong.push(error));
  wrong.push(...loose);
  console.log(`${wrong.length ? "FAILED" : "ok"} ${name}`);
  for (const error of wrong) console.log(`  ${(error && error.stack) || error}`.replaceAll("\n", "\n  "));
  return wrong.length === 0;
}

setImmediate(async () => {
  const only = process.env.CLIENTS_ONLY;
  let passed = 0, failed = 0;
  for (const each of tests.filter(each => !only || each.name.includes(only))) await one(each) ? passed++ : failed++;
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed ? 1 : 0);
});

module.exports = { test };
