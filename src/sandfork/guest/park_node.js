'use strict';
// A node that is booted and waits for its program: `node --require park_node.js main.js`. Node runs this before the main
// file is there; it runs confined, with ctl on descriptor 15, says READY, blocks on RUN, writes the main file and gets out
// of the way, so that node itself runs the program as it runs any.
//
// END is said when nothing more can be printed: after the listeners of 'exit'. A node that dies of an exception prints it
// after that, so then nothing is said; the kernel's word, which follows, is enough.
//
// When RUN says that the process is to last, session_node.js takes over instead, and there is no main file.
const fs = require('fs');
const CTL = 15; // node keeps its children from inheriting what it found open up to here

function send(kind, body) {
  const head = Buffer.alloc(8);
  head[0] = kind.charCodeAt(0);
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
  return parseRun(readExactly(head.readUInt32LE(4)));
}

function parseRun(body) {
  const run = { argv: [], env: [], code: null, lasting: false, rich: false, stdin: '' };
  for (let at = 0; at + 8 <= body.length; ) {
    const tag = String.fromCharCode(body[at]);
    const value = body.subarray(at + 8, at + 8 + body.readUInt32LE(at + 4));
    at += 8 + value.length;
    if (tag === 'a') run.argv.push(value.toString('utf8', 0, value.length - 1));
    else if (tag === 'e') run.env.push(value.toString('utf8', 0, value.length - 1));
    else if (tag === 'c') run.code = value;
    else if (tag === 'l') run.lasting = value.some(Boolean);
    else if (tag === 'r') run.rich = value.some(Boolean);
    else if (tag === 'i') run.stdin = value.toString('utf8', 0, value.length - 1);
  }
  return run;
}

function rehearse() {
  const path = process.cwd() + '/.rehearsal.js';
  fs.writeFileSync(path, 'exports.sum = [1, 2].map((n) => n * 2).join();\n');
  require(path);
  delete require.cache[path];
  module.children.pop();
  fs.unlinkSync(path);
  // The streams are made on first use, which costs more than a short program.
  setBlocking(true);
}

// A stream that is made has its pipe take what fits and no more, also from a program that writes by number and has never
// heard of the stream.
function setBlocking(wanted) {
  for (const { _handle } of [process.stdout, process.stderr]) {
    if (_handle && _handle.setBlocking) _handle.setBlocking(wanted);
  }
}

// Say END where the program's end can be seen: when process.exit leaves, and when 'exit' was emitted to all who listen.
// A listener of our own would be one that the program can see, and not the last.
function sayEnd() {
  const { reallyExit, emit, _fatalException: fatalException } = process;
  const ready = process.hrtime.bigint();
  const now = process.hrtime.bigint;
  let dying = 0;

  function end(code) {
    const status = Number(process.exitCode ?? code ?? 0) & 0xff;
    const body = Buffer.alloc(24);
    body.writeInt32LE(status, 0);
    body.writeBigUInt64LE(ready, 8);
    body.writeBigUInt64LE(now(), 16);
    try {
      send('E', body);
    } catch {
      return; // the program closed what it did not open
    }
    reallyExit.call(process, status);
  }
  process.reallyExit = function (code) {
    if (!dying) end(code);
    return reallyExit.call(process, code);
  };
  process._fatalException = function (...args) {
    dying += 1;
    const handled = fatalException.apply(this, args);
    dying -= 1;
    return handled;
  };
  function emitThenEnd(name, ...args) {
    const heard = emit.call(this, name, ...args);
    if (name === 'exit' && this === process && !dying) end(args[0]);
    return heard;
  }
  Object.defineProperty(emitThenEnd, 'name', { value: 'emit' });
  Object.defineProperty(process, 'emit', { value: emitThenEnd, configurable: true, writable: true });
}

function park() {
  rehearse();
  send('!', Buffer.alloc(0));
  const run = readRun();
  process.execArgv = [];
  if (run.lasting) {
    setBlocking(false); // what waits in a write hears of no interrupt
    const session = require('./session_node.js');
    delete require.cache[require.resolve('./session_node.js')];
    module.children.pop();
    require('module').Module.runMain = () => session.start(CTL, run, parseRun);
    return;
  }
  for (const pair of run.env) {
    const cut = pair.indexOf('=');
    process.env[pair.slice(0, cut)] = pair.slice(cut + 1);
  }
  if (process.env.NODE_PATH) require('module')._initPaths(); // which node looks at when it boots
  if (run.code !== null) fs.writeFileSync(process.argv[1], run.code); // else it is there already
  process.argv.push(...run.argv.slice(2));
  sayEnd();
}

delete require.cache[__filename];
// A worker of the program takes node's options, this one too.
if (require('worker_threads').isMainThread) park();
