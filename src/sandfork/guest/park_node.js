'use strict';
// A booted node that waits for its program. Runs confined, with ctl on descriptor 63; says READY, blocks on RUN, becomes
// `node main.js`. The exit handler that sends END keeps itself last, so that whatever the program prints at its end is in
// the pipes before.
const fs = require('fs');
const Module = require('module');
const CTL = 63;

function send(kind, body) {
  const head = Buffer.alloc(8);
  head[0] = kind;
  head.writeUInt32LE(body.length, 4);
  fs.writeSync(CTL, Buffer.concat([head, body]));
}

function readExactly(size) {
  const buffer = Buffer.alloc(size);
  for (let at = 0; at < size; ) {
    const n = fs.readSync(CTL, buffer, at, size - at, null);
    if (n === 0) process.reallyExit(125);
    at += n;
  }
  return buffer;
}

function readRun() {
  const head = readExactly(8);
  const body = readExactly(head.readUInt32LE(4));
  const run = { argv: [], env: [], file: 'main.js', code: Buffer.alloc(0) };
  for (let at = 0; at + 8 <= body.length; ) {
    const tag = String.fromCharCode(body[at]);
    const value = body.subarray(at + 8, at + 8 + body.readUInt32LE(at + 4));
    at += 8 + value.length;
    if (tag === 'a') run.argv.push(value.toString('utf8', 0, value.length - 1));
    else if (tag === 'e') run.env.push(value.toString('utf8', 0, value.length - 1));
    else if (tag === 'f') run.file = value.toString('utf8', 0, value.length - 1);
    else if (tag === 'c') run.code = value;
  }
  return run;
}

function rehearse() {
  const path = process.cwd() + '/.rehearsal.js';
  fs.writeFileSync(path, 'exports.sum = [1, 2].map((n) => n * 2).join();\n');
  require(path);
  delete require.cache[path];
  fs.unlinkSync(path);
  // The streams are made on first use, which costs more than a short program.
  void process.stdout.writable;
  void process.stderr.writable;
}

rehearse();
send('!'.charCodeAt(0), Buffer.alloc(0));
const run = readRun();
for (const pair of run.env) {
  const cut = pair.indexOf('=');
  process.env[pair.slice(0, cut)] = pair.slice(cut + 1);
}
const path = run.file.startsWith('/') ? run.file : process.cwd() + '/' + run.file;
fs.writeFileSync(path, run.code);
process.argv = [process.execPath, path, ...run.argv.slice(2)];
const ready = process.hrtime.bigint();
process.on('exit', function ending(code) {
  // We registered first, so we are called first: run what the program registered, say END last, and leave at once.
  for (const listener of process.rawListeners('exit')) {
    if (listener !== ending) listener.call(process, process.exitCode ?? code);
  }
  const status = Number(process.exitCode ?? code) & 0xff;
  const end = Buffer.alloc(24);
  end.writeInt32LE(status, 0);
  end.writeBigUInt64LE(ready, 8);
  end.writeBigUInt64LE(process.hrtime.bigint(), 16);
  try {
    send('E'.charCodeAt(0), end);
  } catch {
    // Closed by the program: the exit status, which follows, tells the server.
  }
  process.reallyExit(status);
});
Module.runMain();
