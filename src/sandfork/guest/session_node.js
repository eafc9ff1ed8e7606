'use strict';
// A lasting node: step after step in one global scope, whose state stays. Loaded by park_node.js when RUN says that the
// process is to last; from then on the event loop runs, also between steps.
//
// Code is evaluated in V8's REPL mode, which only the inspector offers: `let`, `const` and `class` stay and may be declared
// again, and `await` works at top level. A step is over when its own promise has settled and nothing that it began keeps
// node running but servers (see `isQuiet`).
//
// An interrupt is told to the event loop by native/breaker.c, which terminates what keeps the loop from turning.
process.on('SIGINT', interrupt); // the first act: until then an interrupt ends the process
const fs = require('fs');
const inspector = require('inspector');
const net = require('net');
const path = require('path');
const util = require('util');
const { promiseHooks } = require('v8');
const { Module } = require('module');
const { Writable } = require('stream');

const INTERRUPTED = 130;
const IMPORT = '__sandfork_import';
const MOST_RICH_BYTES = (8 << 20) - 1024;
const POLL_MOST_MS = 50;
const FULL_PIPE_MS = 2;
const EARLY_NS = 10_000_000n;

const hrtime = process.hrtime.bigint;
const sources = new Map(); // the lines of every step, by its name
const hooks = nodesHooks();
// Shared with the breaker: whether code runs here that an interrupt must not break; the number of the step that runs; 1 more
// than that of the step in which something was broken, until `heard` is called.
const flags = new Uint32Array(3);
const [OURS, STEP, BROKEN] = [0, 1, 2];
const breaker = { exports: {} };
let ctl;
let next = null; // the RUN that is to begin
let step = null; // the one that runs
let count = 0;

function send(kind, body) {
  const head = Buffer.alloc(8);
  head[0] = kind.charCodeAt(0);
  head.writeUInt32LE(body.length, 4);
  ctl.write(Buffer.concat([head, body]));
}

// --- evaluation

function hidden(target, name, value) {
  Object.defineProperty(target, name, { value, writable: true, configurable: true, enumerable: false });
}

// Evaluate the code of a step, and have what came of it settled: the value, or what was thrown and where it is if it does
// not compile.
function evaluate(current, code, name) {
  const session = new inspector.Session();
  const release = holdFirstPromise();
  // Disconnected first: of what nobody holds any more the inspector then has nobody to tell.
  current.forget = () => {
    session.disconnect();
    release();
  };
  const take = ({ objectId, value, unserializableValue }) => {
    const key = Symbol.for('sandfork.taker');
    let taken;
    hidden(globalThis, key, (given) => (taken = given));
    session.post('Runtime.evaluate', { expression: 'globalThis[Symbol.for("sandfork.taker")]' }, (failure, answer) => {
      session.post('Runtime.callFunctionOn', {
        objectId: answer.result.objectId,
        functionDeclaration: 'function (given) { this(given); }',
        arguments: [objectId ? { objectId } : unserializableValue ? { unserializableValue } : { value }],
      });
    });
    delete globalThis[key];
    return taken;
  };
  session.connect();
  const expression = `${code}\n//# sourceURL=${name}`;
  session.post('Runtime.evaluate', { expression, replMode: true }, (failure, answer) => {
    if (failure) return; // nobody waits any more
    const { exceptionDetails: thrown, result } = answer;
    const compiled = !thrown?.scriptId || thrown.exception?.className !== 'SyntaxError';
    settle(current, take(result), Boolean(thrown), compiled ? null : [name, thrown.lineNumber + 1, thrown.columnNumber + 1]);
  });
}

// Hold the promise that is made next; returns what lets go of it. V8's inspector holds the one of the code that it evaluates
// weakly and tells of its collection, in the midst of which node must not be told anything: up to node 24 it aborts there.
// Such a promise is one that waits for what nothing can settle any more. It is made before the first line of the code runs.
function holdFirstPromise() {
  let held;
  const stop = promiseHooks.onInit((promise) => {
    stop();
    held = promise;
  });
  return () => {
    stop();
    held = null;
  };
}

const TOKEN = new RegExp(
  [
    /(?<skip>\s+|\/\/.*|\/\*[^]*?\*\/)/,
    /(?<value>'(?:\\[^]|[^\\'])*'|"(?:\\[^]|[^\\"])*"|[0-9][\w.]*)/,
    /(?<word>[\p{ID_Start}$_#][\p{ID_Continue}$\u200c\u200d]*)/u,
    /(?<other>[^])/u,
  ].map((each) => each.source).join('|'),
  'uy',
);
const PATTERN = /\/(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\[\n])+\/\w*/uy;
const TEMPLATE = /(?:\\[^]|\$(?!\{)|[^\\`$])*(?:`|\$\{|$)/uy;
const BEFORE_PATTERN = /^(?:[^)\]}\w$"'`]|return|typeof|case|in|of|delete|void|throw|new|do|else|await|yield|=>)$/;

// Have `import(...)` call ours: V8 knows no loader for code that the inspector evaluates.
function withImports(code) {
  if (!/\bimport\s*\(/.test(code)) return code;
  const braces = []; // for each open one, whether it is a template's
  let made = '';
  let before = ';';
  let at = 0;
  const match = (pattern) => {
    pattern.lastIndex = at;
    const found = pattern.exec(code);
    at = found ? pattern.lastIndex : at;
    return found;
  };
  while (at < code.length) {
    const start = at;
    const { skip, word, other } = match(TOKEN).groups;
    let token = word ?? other ?? '"';
    if (other === '/' && BEFORE_PATTERN.test(before)) {
      at = start;
      token = match(PATTERN) ? '"' : (at++, '/');
    } else if (other === '{') braces.push(false);
    else if (other === '`' || (other === '}' && braces.pop())) {
      token = '"';
      if (match(TEMPLATE)?.[0].endsWith('${')) {
        braces.push(true);
        token = '{';
      }
    }
    const call = word === 'import' && before !== '.' && /^\s*\(/.test(code.slice(at, at + 80));
    made += call ? IMPORT : code.slice(start, at);
    if (skip === undefined) before = token;
  }
  return made;
}

// --- what is told of errors

// Leave out our own frames, and node's between them and the program's; the rest is as V8 writes it.
function withoutOurs(error, frames) {
  let end = frames.findIndex((frame) => frame.getFileName() === __filename);
  if (end < 0) end = frames.length;
  while (end < frames.length && end > 0 && frames[end - 1].getFileName() === 'node:inspector') end -= 1;
  let head;
  try {
    head = Error.prototype.toString.call(error);
  } catch {
    head = 'Error';
  }
  return [head, ...frames.slice(0, end)].join('\n    at ');
}

function lineOf(name, line, column) {
  const text = sources.get(name)?.[line - 1];
  if (text === undefined) return '';
  return `${name}:${line}\n${text}\n${' '.repeat(Math.max(0, column - 1))}^\n\n`;
}

// Tell as node does: the line, the error, node's version.
function tell(error, place) {
  let text;
  if (util.types.isNativeError(error) || error instanceof Error) {
    const found = place ?? /^ +at (?:.*\()?(<step-\d+>):(\d+):(\d+)\)?$/m.exec(String(error.stack))?.slice(1);
    // With all frames left out the stack is in brackets, which node's own never is.
    const shown = util.inspect(error).replace(`[${error.stack}]`, () => error.stack);
    text = `${found ? lineOf(found[0], Number(found[1]), Number(found[2])) : ''}${shown}\n`;
  } else {
    text = `Uncaught:\n${util.inspect(error)}\n`;
    text += '(Use `node --trace-uncaught ...` to show where the exception was thrown)\n';
  }
  process.stderr.write(`${text}\nNode.js ${process.version}\n`);
}

function uncaught(error) {
  if (process.listenerCount('uncaughtException') > 1) return; // the program has its own
  tell(error);
  if (step) finish(step, 1);
}

// --- a step, from RUN to END

function renewStdin(file) {
  try {
    fs.closeSync(0);
  } catch (error) {
    if (error.code !== 'EBADF') throw error; // the program closed it
  }
  fs.openSync(file || '/dev/null', 'r'); // is 0, the lowest that is free
  if (file) fs.unlinkSync(file);
  let stream;
  const get = () => (stream ??= Object.assign(new fs.ReadStream(null, { fd: 0, autoClose: false }), { fd: 0 }));
  Object.defineProperty(process, 'stdin', { configurable: true, enumerable: true, get });
}

// A loop that was broken may have been in the midst of a write, which leaves a stream that never writes again.
function renewOutput() {
  for (const [name, fd] of [['stdout', 1], ['stderr', 2]]) {
    const write = (chunk, encoding, done) => {
      try {
        writeAll(fd, chunk);
        done();
      } catch (error) {
        done(error);
      }
    };
    const stream = Object.assign(new Writable({ write, emitClose: false, autoDestroy: false }), { fd });
    Object.defineProperty(process, name, { configurable: true, enumerable: true, get: () => stream });
    console[`_${name}`] = stream;
  }
}

function writeAll(fd, chunk) {
  for (let at = 0; at < chunk.length; ) {
    try {
      at += fs.writeSync(fd, chunk, at);
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, FULL_PIPE_MS);
    }
  }
}

function begin() {
  if (!next) return;
  flags[OURS] = 1;
  const run = next;
  next = null;
  try {
    prepare(run);
  } finally {
    flags[OURS] = 0;
  }
  evaluate(step, withImports(run.code.toString()), `<step-${count}>`);
}

function prepare(run) {
  listenAgain();
  for (const pair of run.env) {
    const cut = pair.indexOf('=');
    process.env[pair.slice(0, cut)] = pair.slice(cut + 1);
  }
  process.argv.length = 2;
  process.argv.push(...run.argv.slice(2));
  renewStdin(run.stdin);
  process.exitCode = undefined;
  if (!process.listeners('uncaughtException').includes(uncaught)) process.on('uncaughtException', uncaught);
  step = { rich: run.rich, ready: hrtime(), before: active(), shown: Promise.resolve(), forget: () => {}, status: null };
  flags[STEP] = count += 1;
  sources.set(`<step-${count}>`, run.code.toString().split(/\r\n|[\n\r\u2028\u2029]/));
}

// Take what came of the code.
function settle(current, value, thrown, place) {
  if (current !== step || current.status !== null) return;
  if (!thrown) return show(current, value);
  tell(value, place);
  finish(current, 1);
}

function show(current, value) {
  if (current.rich && value !== undefined) {
    let text = null;
    try {
      text = util.inspect(value);
    } catch {
      // What cannot be shown is left out.
    }
    const body = Buffer.from(JSON.stringify({ kind: 'result', data: { 'text/plain': text?.toWellFormed?.() ?? text } }));
    if (text !== null && body.length < MOST_RICH_BYTES) {
      current.shown = drained().then(() => current === step && send('D', body));
    }
  }
  let wait = 1;
  const look = () => {
    if (current !== step || current.status !== null) return;
    if (isQuiet(current.before)) return finish(current, Number(process.exitCode ?? 0) & 0xff);
    setTimeout(look, wait).unref();
    wait = Math.min(wait * 2, POLL_MOST_MS);
  };
  current.shown.then(() => setImmediate(look));
}

// What keeps node running: how many timers and requests, and which handles.
function active() {
  const names = process.getActiveResourcesInfo();
  return {
    immediates: names.filter((name) => name === 'Immediate').length,
    timers: names.filter((name) => name === 'Timeout').length,
    requests: process._getActiveRequests().length,
    handles: new Set(process._getActiveHandles()),
  };
}

// A server is meant to outlast its step, and the connections it took are its own.
function servesOn(handle) {
  return handle instanceof net.Server || Boolean(handle.server) || Boolean(handle.type?.startsWith?.('udp'));
}

function isQuiet(before) {
  const now = active();
  if (now.immediates > before.immediates || now.timers > before.timers || now.requests > before.requests) return false;
  return [...now.handles].every((handle) => before.handles.has(handle) || servesOn(handle));
}

function drained() {
  const flushed = (stream) =>
    new Promise((resolve) => (stream.destroyed || stream.writableEnded ? resolve() : stream.write('', () => resolve())));
  return Promise.all([flushed(process.stdout), flushed(process.stderr)]);
}

function finish(current, status) {
  if (current !== step || current.status !== null || flags[BROKEN] === flags[STEP] + 1) return;
  current.status = status;
  current.forget();
  drained().then(() => end(current));
}

function end(current) {
  if (current !== step) return;
  const body = Buffer.alloc(24);
  body.writeInt32LE(current.status, 0);
  body.writeBigUInt64LE(current.ready, 8);
  body.writeBigUInt64LE(hrtime(), 16);
  step = null;
  flags[STEP] = 0;
  send('E', body);
}

// --- interrupts

// Where the program listens itself, it is its word what an interrupt does. One of several signals may be taken by another
// thread, which is late: what comes as a step begins was for the one before, or is repeated.
function interrupt() {
  if (!step || hrtime() - step.ready < EARLY_NS) return;
  if (process.listeners('SIGINT').every((listener) => listener === interrupt)) finish(step, INTERRUPTED);
}

function listenAgain() {
  if (!process.listeners('SIGINT').includes(interrupt)) process.prependListener('SIGINT', interrupt);
  breaker.exports.arm();
}

// Called from the event loop for an interrupt, too; `broke` tells whether something had to be terminated for it.
function heard(broke) {
  if (!broke) return;
  const number = flags[BROKEN] - 1;
  flags[BROKEN] = 0;
  repair();
  if (!step || number !== flags[STEP]) return;
  step.forget();
  step.status ??= INTERRUPTED;
  end(step); // at once: what would tell of flushed output may have been terminated
}

// What is terminated does not clean up, node's own code around it included.
function repair() {
  hooks.clearAsyncIdStack();
  renewOutput();
  forgetLostImmediates();
  if (next) setImmediate(begin); // it may have been among them
}

// Of a batch of immediates those after a terminated one are never run, and yet are waited for.
function forgetLostImmediates() {
  const last = setImmediate(() => {});
  let lost = active().immediates;
  for (let each = last; each; each = each._idlePrev) lost -= each.hasRef() ? 1 : 0;
  for (; lost > 0; lost -= 1) clearImmediate(Object.create(last, { _idlePrev: { value: null, writable: true } }));
  clearImmediate(last);
}

// Node's counts for async_hooks, without the warning that it is no public interface. From node 24 on a debugger only sees
// them. Out of all reach, --no-force-async-hooks-checks has to do, and a break with hooks of the program's own may end
// the process.
function nodesHooks() {
  const { noDeprecation } = process;
  process.noDeprecation = true;
  let found;
  try {
    found = process.binding('async_wrap');
  } catch {
    const constants = { kCheck: 0, kTotals: 1 };
    found = hooksSeenByDebugger() ?? { async_hook_fields: new Uint32Array(2), constants, clearAsyncIdStack: () => {} };
  }
  if (noDeprecation === undefined) delete process.noDeprecation;
  else process.noDeprecation = noDeprecation;
  return found;
}

// What node's own functions have them in: a variable of `enableHooks`, which is one of `AsyncHook.prototype.enable`.
function hooksSeenByDebugger() {
  const session = new inspector.Session();
  const ask = (method, parameters) => {
    let came;
    session.post(method, parameters, (failure, answer) => (came = answer));
    return came;
  };
  const inside = (objectId) => ask('Runtime.getProperties', { objectId, ownProperties: true });
  const variable = (closure, name) => {
    const scopes = inside(closure).internalProperties.find((each) => each.name === '[[Scopes]]').value;
    const closures = inside(scopes.objectId).result.filter(({ value }) => value?.objectId && value.description !== 'Global');
    const all = closures.flatMap(({ value }) => inside(value.objectId).result);
    return all.find((each) => each.name === name).value.objectId;
  };
  const key = Symbol.for('sandfork.hooks');
  const { enable } = Object.getPrototypeOf(require('async_hooks').createHook({}));
  hidden(globalThis, key, { enable });
  try {
    session.connect();
    const { result } = ask('Runtime.evaluate', { expression: 'globalThis[Symbol.for("sandfork.hooks")].enable' });
    const objectId = variable(variable(result.objectId, 'enableHooks'), 'async_wrap');
    const functionDeclaration = 'function () { globalThis[Symbol.for("sandfork.hooks")].found = this }';
    ask('Runtime.callFunctionOn', { objectId, functionDeclaration });
    const { found } = globalThis[key];
    return found.async_hook_fields && found.constants && found.clearAsyncIdStack ? found : undefined;
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    return undefined; // a node that has them elsewhere
  } finally {
    session.disconnect();
    delete globalThis[key];
  }
}

function watchForInterrupts() {
  const beside = path.join(__dirname, 'breaker.so'); // in a sandbox; else as it is installed
  process.dlopen(breaker, fs.existsSync(beside) ? beside : path.join(__dirname, '../native/bin/breaker.so'));
  const field = (at) => hooks.async_hook_fields.subarray(at, at + 1);
  breaker.exports.start(heard, flags, field(hooks.constants.kCheck), field(hooks.constants.kTotals));
}

// --- the session

// A main module without a file, in the work directory, for what a program expects of one.
function defineMain() {
  const file = process.argv[1];
  const main = new Module('.', null);
  main.filename = file;
  main.paths = Module._nodeModulePaths(path.dirname(file));
  hidden(process, 'mainModule', main);
  main._compile('module.exports = [require, (name, options) => import(name, options)];', file);
  const [require, load] = main.exports;
  main.exports = {};
  main.loaded = true;
  const names = { require, module: main, exports: main.exports, __filename: file, __dirname: path.dirname(file) };
  for (const [name, value] of Object.entries({ ...names, [IMPORT]: load })) hidden(globalThis, name, value);
}

// Begin with the RUN that was read; `parse` makes one of the body of each that follows.
exports.start = function (fd, first, parse) {
  let received = Buffer.alloc(0);
  hidden(Error, 'prepareStackTrace', withoutOurs);
  defineMain();
  watchForInterrupts();
  ctl = new net.Socket({ fd, readable: true, writable: true });
  ctl.on('end', () => process.reallyExit(125));
  ctl.on('error', () => process.reallyExit(125));
  ctl.on('data', (data) => {
    flags[OURS] = 1;
    received = Buffer.concat([received, data]);
    while (received.length >= 8 && received.length >= 8 + received.readUInt32LE(4)) {
      const end = 8 + received.readUInt32LE(4);
      next = parse(received.subarray(8, end));
      received = received.subarray(end);
      setImmediate(begin); // after what a signal that is already here does, for it was not for this step
    }
    flags[OURS] = 0;
  });
  next = first;
  setImmediate(begin);
};
