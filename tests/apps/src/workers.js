// workers.js - node: 64 pbkdf2 and 16 deflate jobs and file reads on libuv's pool, worker_threads
// that share memory, name lookups, child processes. Usage: workers.js FILE. Prints
// `right PBKDF2_PER_SECOND`; a wrong answer throws.
const assert = require('assert');
const { execFile } = require('child_process');
const crypto = require('crypto');
const dns = require('dns');
const fs = require('fs');
const { promisify } = require('util');
const { Worker, isMainThread, workerData, parentPort } = require('worker_threads');
const zlib = require('zlib');

const repeat = (n, f) => Promise.all([...Array(n).keys()].map(f));

if (!isMainThread) {
  const shared = new Int32Array(workerData);
  for (let i = 0; i < 10000; i++) Atomics.add(shared, 0, 1);
  // Wait until the main thread opens the gate: Atomics.wait blocks this thread for good.
  Atomics.add(shared, 2, 1);
  Atomics.wait(shared, 1, 0);
  parentPort.postMessage(Atomics.load(shared, 1));
} else {
  main(process.argv[2]).catch((e) => { console.error(e); process.exit(1); });
}

async function workers() {
  const memory = new SharedArrayBuffer(12), shared = new Int32Array(memory);
  const all = repeat(4, () => new Promise((resolve, reject) => {
    const worker = new Worker(__filename, { workerData: memory });
    worker.on('message', resolve);
    worker.on('error', reject);
  }));
  while (Atomics.load(shared, 2) < 4) await new Promise(setImmediate);
  Atomics.store(shared, 1, 7);
  Atomics.notify(shared, 1);
  assert.deepEqual(await all, [7, 7, 7, 7]);
  assert.equal(shared[0], 40000);
}

async function main(file) {
  const rounds = 5000, key = promisify(crypto.pbkdf2);
  const known = [0, 1].map((i) => crypto.pbkdf2Sync('password', 'salt' + i, rounds, 64, 'sha512').toString('hex'));
  const start = process.hrtime.bigint();
  const keys = await repeat(64, (i) => key('password', 'salt' + (i % 2), rounds, 64, 'sha512'));
  const seconds = Number(process.hrtime.bigint() - start) / 1e9;
  keys.forEach((k, i) => assert.equal(k.toString('hex'), known[i % 2]));

  const text = fs.readFileSync(file);
  (await repeat(200, () => fs.promises.readFile(file))).forEach((t) => assert(t.equals(text)));
  (await repeat(16, () => promisify(zlib.deflate)(text))).forEach((z) => assert(zlib.inflateSync(z).equals(text)));
  (await repeat(20, () => promisify(dns.lookup)('localhost', 4))).forEach((a) => assert.equal(a.address, '127.0.0.1'));
  const echoed = await repeat(16, (i) => promisify(execFile)('/bin/echo', ['' + i]));
  echoed.forEach(({ stdout }, i) => assert.equal(stdout, i + '\n'));
  await workers();
  console.log('right ' + (64 / seconds).toFixed(1));
}
