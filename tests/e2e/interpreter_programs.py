# ruff: noqa: E501 (a program in one line is easier to tell from its neighbours)
"""Python programs whose output tells a plain interpreter from one that only looks like it: name to text.

A program prints nothing that differs between two plain runs: no pid, no address, no time, nothing random.
"""

from __future__ import annotations

import sys

PROGRAMS: dict[str, str] = {}


def _add(name: str, text: str) -> None:
    assert name not in PROGRAMS
    PROGRAMS[name] = text


# --- uncaught exceptions ---

_add("an exception at the top", "x = 1\n1 / 0\n")
_add("an exception in a function", "def f(n):\n    return 1 / n\n\ndef g():\n    f(0)\n\ng()\n")
_add("an exception in a lambda and a comprehension", "f = lambda xs: [1 / x for x in xs]\nf([1, 0])\n")
_add("a syntax error", "print('never')\nif True\n    pass\n")
_add("a syntax error in a string", "print('never)\n")
_add("an indentation error", "def f():\npass\n")
_add("a tab error", "if True:\n\tx = 1\n        y = 2\n")
_add("a null byte in the source", "print(1)\n\0print(2)\n")
_add("a source that is not utf-8", "# -*- coding: latin-1 -*-\nprint('\xe9')\n")
_add("an unknown coding", "# -*- coding: nonsense -*-\nprint(1)\n")
_add(
    "an exception from another",
    "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise ValueError('outer') from e\n",
)
_add("an exception while handling one", "try:\n    {}['k']\nexcept KeyError:\n    undefined_name\n")
_add(
    "an exception without its context",
    "try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise ValueError('bare') from None\n",
)
_add("a deep recursion", "def f(n):\n    return f(n + 1)\nf(0)\n")
_add(
    "how deep a recursion may go",
    "def f(n):\n    try: return f(n + 1)\n    except RecursionError: return n\nprint(f(0))\n",
)
_add(
    "an exception group",
    "raise ExceptionGroup('many', [ValueError(1), TypeError('two'), ExceptionGroup('in', [KeyError(3)])])\n",
)
_add("an exception with notes", "e = ValueError('v')\ne.add_note('first note')\ne.add_note('second')\nraise e\n")
_add("an exception whose str fails", "class E(Exception):\n    def __str__(self): raise TypeError('no')\nraise E\n")
_add("an exception of a class in main", "class Custom(Exception): pass\nraise Custom('mine')\n")
_add("a keyboard interrupt raised", "raise KeyboardInterrupt\n")
_add(
    "a keyboard interrupt with handlers at exit",
    "import atexit\natexit.register(print, 'bye')\nraise KeyboardInterrupt('k')\n",
)
_add("a generator exit", "raise GeneratorExit\n")
_add("a misspelt name gets a hint", "import collections\ncollections.namedtupel\n")
_add("an exception in an imported module", "import json\njson.loads('{')\n")
_add(
    "an exception in a module of the program",
    "open('mod.py', 'w').write('def f():\\n    raise OSError(2, \"gone\")\\n')\nimport mod\nmod.f()\n",
)
_add("a missing module", "import no_such_module\n")
_add(
    "a traceback printed by hand",
    "import traceback\ndef f():\n    try: 1 / 0\n    except ZeroDivisionError: traceback.print_exc()\nf()\n",
)
_add("a stack printed by hand", "import traceback\ndef f(): traceback.print_stack()\nf()\n")
_add(
    "the stack as inspect sees it",
    "import inspect\ndef f(): return [(s.function, s.lineno, s.filename) for s in inspect.stack()]\nprint(f())\n",
)
_add("frames counted by hand", "import sys\nf, n = sys._getframe(), 0\nwhile f: f, n = f.f_back, n + 1\nprint(n)\n")
_add("a faulthandler dump", "import faulthandler\nfaulthandler.enable()\nimport os\nos.abort()\n")
_add(
    "a stack in a thread",
    "import threading, traceback\nt = threading.Thread(target=lambda: traceback.print_stack(), name='T')\nt.start(); t.join()\n",
)
_add("a last exception", "import sys, atexit\natexit.register(lambda: print(sys.last_type, sys.last_value))\n1 / 0\n")
_add("a stack level of a warning", "import warnings\ndef f(): warnings.warn('deep', stacklevel=9)\nf()\n")

# --- ways to end ---

for _code in (
    "",
    "0",
    "3",
    "255",
    "256",
    "-1",
    "1 << 40",
    "-(1 << 70)",
    "None",
    "'a message'",
    "(1, 2)",
    "True",
    "3.5",
    "b'x'",
):
    _add(f"sys.exit({_code})", f"import sys\nprint('out')\nsys.exit({_code})\n")
_add("exit and quit of site", "print(exit, quit)\nexit(4)\n")
_add("raise SystemExit", "raise SystemExit('bye')\n")
_add("SystemExit subclass with code", "class E(SystemExit): pass\nraise E(5)\n")
_add("exit in a function in try", "import sys\ntry: sys.exit(3)\nfinally: print('finally')\n")
_add(
    "exit with an object whose str fails",
    "import sys\nclass C:\n    def __str__(self): raise ValueError('s')\nsys.exit(C())\n",
)
_add("os._exit drops buffers", "import os\nprint('lost')\nos._exit(7)\n")
_add("os._exit after flush", "import os\nprint('kept', flush=True)\nos._exit(8)\n")
_add("abort", "import os\nprint('lost')\nos.abort()\n")
_add("a segmentation fault", "import ctypes\nprint('kept', flush=True)\nctypes.string_at(0)\n")
for _signal in ("SIGTERM", "SIGKILL", "SIGINT", "SIGPIPE", "SIGUSR1", "SIGALRM", "SIGSEGV", "SIGHUP"):
    _add(
        f"death by {_signal}",
        f"import os, signal\nprint('out', flush=True)\nos.kill(os.getpid(), signal.{_signal})\nprint('on')\n",
    )
_add(
    "exec of another program",
    "import os, sys\nprint('first', flush=True)\nos.execv('/bin/sh', ['sh', '-c', 'echo second; exit 9'])\n",
)
_add(
    "exec of the interpreter itself",
    "import os, sys\nprint('a', flush=True)\nos.execv(sys.executable, [sys.executable, '-c', 'print(\"b\")'])\n",
)
_add(
    "a signal handler in python",
    "import os, signal\nsignal.signal(signal.SIGUSR1, lambda n, f: print('got', n, f.f_code.co_name))\nos.kill(os.getpid(), signal.SIGUSR1)\n",
)
_add(
    "dispositions of signals",
    "import signal\nprint([(s.name, str(signal.getsignal(s))[:30].split(' at ')[0]) for s in sorted(signal.valid_signals()) if isinstance(s, signal.Signals)])\n",
)
_add("no signal is blocked", "import signal\nprint(signal.pthread_sigmask(signal.SIG_BLOCK, []))\n")

# --- the end of the interpreter ---

_add("handlers at exit run last first", "import atexit\nfor i in range(3): atexit.register(print, i)\nprint('end')\n")
_add(
    "a handler at exit that fails",
    "import atexit\ndef f(): 1 / 0\natexit.register(print, 'first registered')\natexit.register(f)\n",
)
_add("a handler at exit that exits", "import atexit, sys\natexit.register(sys.exit, 5)\nprint('end')\n")
_add(
    "a handler at exit that registers another",
    "import atexit\natexit.register(lambda: atexit.register(print, 'late'))\n",
)
_add("handlers at exit see the program's names", "import atexit\nname = 'here'\natexit.register(lambda: print(name))\n")
_add(
    "finalisers of globals",
    "class C:\n    def __init__(self, n): self.n = n\n    def __del__(self): print('del', self.n)\na, b, _c = C('a'), C('b'), C('_c')\nprint('end')\n",
)
_add("a finaliser that fails", "class C:\n    def __del__(self): 1 / 0\nc = C()\nprint('end')\n")
_add(
    "finalisers in a cycle", "class C:\n    def __del__(self): print('del')\na = C(); a.self = a\ndel a\nprint('end')\n"
)
_add(
    "weakref.finalize",
    "import weakref\nclass C: pass\nc = C()\nweakref.finalize(c, print, 'finalised')\nprint('end')\n",
)
_add(
    "finalize before atexit",
    "import atexit, weakref\nclass C: pass\nc = C()\natexit.register(print, 'atexit')\nweakref.finalize(c, print, 'finalize')\n",
)
_add(
    "a thread outlives the main one",
    "import threading\ndone = threading.Event()\ndef f():\n    threading.main_thread().join()\n    print('late')\nthreading.Thread(target=f).start()\nprint('end')\n",
)
_add(
    "a daemon thread does not",
    "import threading, time\nthreading.Thread(target=lambda: (time.sleep(60), print('never')), daemon=True).start()\nprint('end')\n",
)
_add(
    "an exception in a thread",
    "import threading\ndef f(): 1 / 0\nt = threading.Thread(target=f, name='worker')\nt.start(); t.join()\nprint('end')\n",
)
_add(
    "sys.exit in a thread",
    "import sys, threading\nt = threading.Thread(target=sys.exit, args=(3,))\nt.start(); t.join()\nprint('end')\n",
)
_add(
    "atexit of threading and user order",
    "import atexit, threading\natexit.register(print, 'atexit')\nthreading.Thread(target=lambda: print('thread')).start()\n",
)
_add("text left in the buffer", "import sys\nsys.stdout.write('no newline')\n")
_add(
    "buffers of several files",
    "f = open('f', 'w')\nf.write('x')\nimport atexit, os\natexit.register(lambda: print(os.path.getsize('f')))\n",
)
_add("stdout closed by the program", "import sys\nprint('out')\nsys.stdout.close()\n")
_add("descriptor 1 closed by the program", "import os\nprint('lost')\nos.close(1)\n")
_add("descriptor 2 closed by the program", "import os\nos.close(2)\n1 / 0\n")
_add("stdout set to None", "import sys\nprint('kept')\nsys.stdout = None\nprint('nothing')\n")
_add(
    "stdout replaced",
    "import io, sys\nsys.stdout = io.StringIO()\nprint('swallowed')\nsys.__stdout__.write('direct')\n",
)
_add("stdout detached", "import sys\nprint('a')\nb = sys.stdout.detach()\nb.write(b'raw')\n")
_add("a flush that fails at the end", "import os, sys\nr, w = os.pipe()\nos.close(r)\nos.dup2(w, 1)\nprint('broken')\n")
_add(
    "print to a broken pipe",
    "import os, sys\nr, w = os.pipe()\nos.close(r)\nos.dup2(w, 1)\nprint('broken', flush=True)\n",
)
_add("a broken excepthook", "import sys\ndef hook(t, v, tb): raise TypeError('hook')\nsys.excepthook = hook\n1 / 0\n")
_add("an excepthook that exits", "import sys\nsys.excepthook = lambda *a: sys.exit(7)\n1 / 0\n")
_add(
    "an excepthook of the program",
    "import sys\nsys.excepthook = lambda t, v, tb: print('hook', t.__name__, v, tb.tb_lineno, tb.tb_next)\n1 / 0\n",
)
_add("an excepthook deleted", "import sys\ndel sys.excepthook\n1 / 0\n")
_add("stderr set to None", "import sys\nsys.stderr = None\n1 / 0\n")
_add(
    "the unraisable hook",
    "import sys\nsys.unraisablehook = lambda u: print('unraisable', u.exc_type.__name__)\nclass C:\n    def __del__(self): 1 / 0\nc = C()\ndel c\n",
)

# --- streams ---

_add(
    "streams written in turns",
    "import sys\nfor i in range(5):\n    print('out', i)\n    print('err', i, file=sys.stderr)\n",
)
_add("input()", "print(input('name? '), input())\n")
_add("input() at the end of stdin", "input(); input(); input(); input(); input()\n")
_add("lines of stdin", "import sys\nfor line in sys.stdin: print(repr(line))\n")
_add("stdin as bytes", "import sys\nprint(sys.stdin.buffer.read())\n")
_add(
    "stdin and what it is",
    "import sys, os, stat\nprint(sys.stdin.name, sys.stdin.mode, sys.stdin.encoding, sys.stdin.errors, sys.stdin.isatty(), sys.stdin.seekable(), stat.S_ISFIFO(os.fstat(0).st_mode))\n",
)
_add(
    "stdout and what it is",
    "import sys, os, stat\nfor s in (sys.stdout, sys.stderr): print(s.name, s.mode, s.encoding, s.errors, s.isatty(), s.line_buffering, s.write_through, s.seekable(), stat.S_ISFIFO(os.fstat(s.fileno()).st_mode))\n",
)
_add("unicode", "print('żółć ☃ 😀 \u202e', '\\udcff'.encode('utf-8', 'surrogateescape'))\n")
_add("a lone surrogate", "print('\\ud800')\n")
_add("bytes on stdout", "import sys\nsys.stdout.buffer.write(bytes(range(256)))\n")
_add("bytes between text", "import sys\nprint('a', flush=True)\nsys.stdout.buffer.write(b'\\xff')\nprint('b')\n")
_add("sizes of buffers", "import io, sys\nprint(io.DEFAULT_BUFFER_SIZE, sys.stdout._CHUNK_SIZE)\n")
_add(
    "logging",
    "import logging\nlogging.warning('careful')\nlogging.basicConfig(level=logging.INFO)\nlogging.getLogger('x').info('said')\n",
)
_add(
    "warnings",
    "import warnings\nwarnings.warn('old', DeprecationWarning)\nwarnings.warn('odd')\nwarnings.warn('odd')\n",
)
_add("a syntax warning", "x = 1\nif x is 1: print('one')\nprint('\\d')\n")
_add("a resource warning is silent", "def f(): open('main.py')\nf()\nprint(open)\n")
_add("tracemalloc and dev mode are off", "import sys, tracemalloc\nprint(tracemalloc.is_tracing(), sys.flags)\n")
_add(
    "pprint, textwrap and format",
    "import pprint, textwrap\npprint.pprint({i: 'x' * 30 for i in range(5)})\nprint(textwrap.fill('word ' * 40), f'{1234567.891:,.2f}')\n",
)
_add(
    "the size of the terminal",
    "import os, shutil\nprint(shutil.get_terminal_size())\ntry: os.get_terminal_size()\nexcept OSError as e: print(e)\n",
)

# --- what __main__ is ---

_add("names of main", "print(sorted(dir()), __name__, __file__, __doc__, __package__, __spec__)\n")
_add("order of names of main", "print(list(globals()))\n")
_add("the document of main", "'''About me.'''\nprint(__doc__)\n")
_add(
    "the loader of main",
    "print(type(__loader__).__name__, __loader__.name, __loader__.path, __cached__ if '__cached__' in globals() else None)\nprint(__loader__.get_source('__main__'))\n",
)
_add("builtins of main", "import builtins\nprint(__builtins__ is builtins)\n")
_add(
    "main among the modules",
    "import sys, __main__\nprint(sys.modules['__main__'] is __main__, __main__.__dict__ is globals(), repr(__main__))\n",
)
_add("annotations of main", "x: int = 1\nprint(__annotations__)\n")
_add("future statements", "from __future__ import annotations\ndef f(x: undefined): pass\nprint(f.__annotations__)\n")
_add("no future statement leaks in", "def f(x: int): pass\nprint(f.__annotations__)\n")
_add(
    "sys.argv, path and friends",
    "import sys\nprint(sys.argv, sys.orig_argv, sys.path, sys.executable, sys.prefix, sys.base_prefix, sys.exec_prefix)\n",
)
_add(
    "flags and options",
    "import sys\nprint(sys.flags, sys.warnoptions, sys._xoptions, sys.dont_write_bytecode, sys.pycache_prefix)\n",
)
_add(
    "hooks of sys",
    "import sys\nprint(sys.displayhook, sys.excepthook, sys.breakpointhook, sys.unraisablehook, sys.gettrace(), sys.getprofile())\nprint(sys.getrecursionlimit(), sys.getswitchinterval(), sys.ps1 if hasattr(sys, 'ps1') else None, hasattr(sys, 'last_type'))\n",
)
_add("import hooks", "import sys\nprint(sys.meta_path, sys.path_hooks, type(sys.path_importer_cache))\n")
_add(
    "the collector", "import gc\nprint(gc.isenabled(), gc.get_threshold(), gc.get_debug(), gc.callbacks, gc.garbage)\n"
)
_add(
    "inspect.getsource",
    "import inspect\ndef f():\n    return 1  # here\nclass C:\n    x = 1\nprint(inspect.getsource(f), inspect.getsource(C), inspect.getfile(f), inspect.getmodule(f))\n",
)
_add("linecache", "import linecache\nprint(repr(linecache.getline(__file__, 1)), list(linecache.cache))\n")
_add("the file as it is on disk", "print(open(__file__).read() == open('main.py').read(), open(__file__).read())\n")
_add(
    "pickling a class of main",
    "import pickle\nclass C:\n    def __init__(self): self.x = 1\nprint(pickle.loads(pickle.dumps(C())).x, pickle.dumps(C, 0))\n",
)
_add(
    "dataclasses and enums",
    "import dataclasses, enum\n@dataclasses.dataclass(order=True)\nclass P:\n    x: int\n    y: list = dataclasses.field(default_factory=list)\nclass E(enum.Enum): A = 1\nprint(P(1), P(1) < P(2), dataclasses.asdict(P(3)), E.A, E['A'], P.__module__)\n",
)
_add(
    "named tuples and generics",
    "import collections, typing\nT = collections.namedtuple('T', 'a b')\nprint(T(1, 2), T.__module__, typing.get_type_hints(lambda: 0))\n",
)
_add(
    "doctest",
    "def f(x):\n    '''\n    >>> f(2)\n    4\n    >>> f(3)\n    10\n    '''\n    return x * x\nimport doctest\nprint(doctest.testmod())\n",
)
_add(
    "unittest",
    "import unittest\nclass T(unittest.TestCase):\n    def test_a(self): self.assertEqual(1, 1)\n    def test_b(self): self.assertEqual(1, 2)\nsuite = unittest.defaultTestLoader.loadTestsFromModule(__import__('__main__'))\nr = unittest.TextTestRunner(stream=open('/dev/null', 'w')).run(suite)\nprint(r)\n",
)
_add(
    "unittest.main",
    # Its clock stands still: how long the test took is told, too.
    "import sys, time, unittest\ntime.perf_counter = lambda: 0.0\nclass T(unittest.TestCase):\n    def test_a(self): pass\ntry: unittest.main(argv=['x', '-q'])\nexcept SystemExit as e: print('code', e.code)\n",
)
_add(
    "runpy",
    "import runpy\nopen('m.py', 'w').write('print(__name__, __file__)')\nrunpy.run_path('m.py', run_name='__main__')\n",
)
_add(
    "importing main again",
    "import sys\nif __name__ == '__main__':\n    import main\n    print('main', main.__name__, main.__file__)\nelse: print('imported')\n",
)
_add(
    "bytecode of an own module",
    "open('m.py', 'w').write('x = 1')\nimport m, os\nprint(m.__file__, m.__cached__, sorted(os.listdir('.')), os.listdir('__pycache__'))\n",
)
_add("argparse", "import argparse\np = argparse.ArgumentParser()\np.add_argument('n', type=int)\np.parse_args()\n")
_add(
    "exec, eval and compile", "exec('x = 1\\nprint(x)')\nprint(eval('x + 1'))\nexec(compile('1/0', '<mine>', 'exec'))\n"
)
_add("exec of a failing text", "exec('def f():\\n    g()\\nf()')\n")
_add(
    "globals of functions",
    "def f(): pass\nprint(f.__globals__ is globals(), f.__module__, f.__qualname__, f.__code__.co_filename)\n",
)
_add("interactive helpers of site", "print(help, copyright, credits, license)\n")
_add("breakpoint without a terminal", "breakpoint()\n")
_add(
    "a tracer that stays on",
    "import sys\ndef t(f, *a):\n    if f.f_code.co_filename == __file__: print(f.f_code.co_name, a[0])\n    return t\ndef g(): pass\nsys.settrace(t)\ng()\n",
)
_add(
    "an exception under a tracer",
    "import sys\ndef t(f, *a):\n    if f.f_code.co_filename == __file__: print(f.f_code.co_name, f.f_lineno, a[0])\n    return t\ndef g(): 1 / 0\nsys.settrace(t)\nsys._getframe().f_trace = t\ng()\n",
)
_add(
    "an exception under a profiler",
    "import sys\ndef p(f, *a): seen.append((f.f_code.co_name, a[0]))\nseen = []\ndef g(): len('a'); 1 / 0\nsys.setprofile(p)\ntry: g()\nfinally:\n    sys.setprofile(None)\n    print(seen)\n",
)
_add(
    "a profiler that stays on",
    "import sys\ndef p(f, *a):\n    if f.f_code.co_filename == __file__: print(f.f_code.co_name, a[0])\nsys.setprofile(p)\nlen('a')\n",
)
_add(
    "a profile",
    "import cProfile, pstats\ndef f(): return [len('a') for _ in range(3)]\np = cProfile.Profile()\np.runcall(f)\nprint(sorted((k[2], v[0]) for k, v in pstats.Stats(p).stats.items()))\n",
)
_add(
    "a tracer sees what is done at exit",
    "import atexit, sys\ndef bye(): pass\natexit.register(bye)\nseen = []\natexit.register(lambda: print([n for n in seen if n == 'bye']))\natexit.register(bye)\nsys.settrace(lambda f, *a: seen.append(f.f_code.co_name))\n",
)
_add(
    "a tracer and a hook of exceptions",
    "import sys\ndef hook(*a): print('hook', a[0].__name__, seen)\nsys.excepthook = hook\nseen = []\nsys.settrace(lambda f, *a: seen.append(f.f_code.co_name))\n1 / 0\n",
)
_add("code that is traced line by line", "import trace\ntrace.Trace(count=0, trace=1).run('x = 1')\n")
if sys.version_info >= (3, 12):
    _add(
        "monitoring",
        "import sys\nm = sys.monitoring\nm.use_tool_id(1, 'own')\nfor e in (m.events.RAISE, m.events.PY_UNWIND, m.events.PY_START, m.events.EXCEPTION_HANDLED):\n    m.register_callback(1, e, lambda c, *a: c.co_filename == __file__ and print(c.co_name))\nm.set_events(1, m.events.RAISE | m.events.PY_UNWIND | m.events.PY_START | m.events.EXCEPTION_HANDLED)\ndef g(): 1 / 0\ntry: g()\nexcept ZeroDivisionError: pass\ng()\n",
    )
_add(
    "code of modules loaded before",
    "import json, io, os\nprint(json.__file__, io.__file__, os.__file__, json.loads.__code__.co_filename)\n",
)

# --- processes ---

_add(
    "subprocess",
    "import subprocess, sys\nr = subprocess.run([sys.executable, '-c', 'import sys; print(sys.argv); sys.exit(3)', 'a'], capture_output=True, text=True)\nprint(r)\n",
)
_add(
    "subprocess that inherits the streams",
    "import subprocess\nprint('a', flush=True)\nsubprocess.run('cat; echo b; echo c >&2', shell=True)\n",
)
_add(
    "what a child inherits",
    "import os, subprocess\nprint(subprocess.run(['sh', '-c', 'ls /proc/self/fd | wc -l'], capture_output=True).stdout)\n",
)
_add(
    "what a child inherits when asked for all",
    "import subprocess\nprint(subprocess.run(['sh', '-c', 'ls /proc/self/fd | wc -l'], close_fds=False, capture_output=True).stdout)\n",
)
_add("os.system and popen", "import os\nprint(os.system('exit 3'), os.popen('echo x').read())\n")
_add(
    "a forked child that falls off the end",
    "import os\nprint('before')\npid = os.fork()\nif pid:\n    print(os.waitpid(pid, 0)[1])\nelse:\n    print('child')\n",
)
_add(
    "a forked child that fails",
    "import os\npid = os.fork()\nif pid == 0: 1 / 0\nprint(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n",
)
_add(
    "a forked child that exits",
    "import os, sys, atexit\natexit.register(print, 'atexit')\npid = os.fork()\nif pid == 0: sys.exit(5)\nprint(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n",
)
_add(
    "a forked child of a forked child",
    "import os\ndef go(n):\n    if n == 0: return\n    pid = os.fork()\n    if pid: os.waitpid(pid, 0)\n    else: go(n - 1)\ngo(3)\nprint('x')\n",
)
_add(
    "a child that outlives its parent for a moment",
    "import os\nr, w = os.pipe()\nif os.fork() == 0:\n    os.close(w)\n    os.read(r, 1)\n    os._exit(0)\nprint('parent')\n",
)
_add(
    "a forked child knows only its own thread",
    "import os, threading\nstop = threading.Event()\nt = threading.Thread(target=stop.wait)\nt.start()\npid = os.fork()\nif pid == 0:\n    print(len(threading.enumerate()), t.is_alive(), threading.current_thread() is threading.main_thread(), flush=True)\n    os._exit(0)\nos.waitpid(pid, 0)\nstop.set()\nt.join()\n",
)
_add(
    "a forked child of a thread has that for its main thread",
    "import os, threading\ndef f():\n    pid = os.fork()\n    if pid == 0:\n        print(threading.main_thread() is threading.current_thread(), flush=True)\n        os._exit(0)\n    os.waitpid(pid, 0)\nt = threading.Thread(target=f)\nt.start()\nt.join()\n",
)
_add(
    "register_at_fork",
    "import os\nos.register_at_fork(before=lambda: print('before', flush=True), after_in_child=lambda: print('child', flush=True))\npid = os.fork()\nif pid: os.waitpid(pid, 0)\n",
)
_add(
    "posix_spawn",
    "import os\npid = os.posix_spawn('/bin/echo', ['echo', 'spawned'], os.environ)\nprint(os.waitpid(pid, 0)[1])\n",
)
_add(
    "multiprocessing by fork",
    "import multiprocessing as mp\nmp.set_start_method('fork')\ndef f(q, x): q.put(x * 2)\nif __name__ == '__main__':\n    q = mp.Queue()\n    ps = [mp.Process(target=f, args=(q, i)) for i in range(3)]\n    [p.start() for p in ps]\n    print(sorted(q.get() for _ in ps))\n    [p.join() for p in ps]\n    print([p.exitcode for p in ps])\n",
)
_add(
    "multiprocessing by spawn",
    "import multiprocessing as mp\ndef f(q, x): q.put((x * 2, __name__))\nif __name__ == '__main__':\n    mp.set_start_method('spawn')\n    q = mp.Queue()\n    p = mp.Process(target=f, args=(q, 4))\n    p.start()\n    print(q.get())\n    p.join()\n    print(p.exitcode)\n",
)
_add(
    "multiprocessing by a fork server",
    "import multiprocessing as mp\ndef f(x): return x + 1\nif __name__ == '__main__':\n    with mp.get_context('forkserver').Pool(2) as p: print(p.map(f, range(4)))\n",
)
_add(
    "a pool",
    "import multiprocessing as mp\ndef f(x): return x * x\nif __name__ == '__main__':\n    with mp.Pool(2) as p: print(p.map(f, range(10)))\n",
)
_add(
    "a pool whose worker fails",
    "import multiprocessing as mp\ndef f(x): raise ValueError(x)\nif __name__ == '__main__':\n    with mp.Pool(1) as p:\n        try: p.map(f, [1])\n        except ValueError as e: print('caught', e)\n",
)
_add(
    "shared memory and locks",
    "import multiprocessing as mp\ndef f(v, l):\n    with l: v.value += 1\nif __name__ == '__main__':\n    v, l = mp.Value('i', 0), mp.Lock()\n    ps = [mp.Process(target=f, args=(v, l)) for _ in range(4)]\n    [p.start() for p in ps]; [p.join() for p in ps]\n    print(v.value)\n",
)
_add(
    "shared memory by name",
    "from multiprocessing import shared_memory\ns = shared_memory.SharedMemory(create=True, size=100)\ns.buf[0] = 7\nt = shared_memory.SharedMemory(s.name)\nprint(t.buf[0])\nt.close(); s.close(); s.unlink()\n",
)
_add(
    "a pool of threads and one of processes",
    "from concurrent.futures import *\ndef f(x): return x + 1\nif __name__ == '__main__':\n    with ThreadPoolExecutor() as t, ProcessPoolExecutor(2) as p: print(list(t.map(f, range(3))), list(p.map(f, range(3))))\n",
)
_add(
    "the current process of multiprocessing",
    "import multiprocessing as mp, threading, os\nprint(mp.current_process().name, mp.parent_process(), threading.current_thread(), threading.main_thread().ident == threading.get_ident(), threading.active_count(), threading.get_native_id() == os.getpid())\n".replace(
        "threading.current_thread(), ", "threading.current_thread().name, "
    ),
)
_add(
    "asyncio",
    "import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x\nasync def main():\n    print(await asyncio.gather(*(f(i) for i in range(3))))\n    p = await asyncio.create_subprocess_exec('echo', 'sub', stdout=-1)\n    print(await p.communicate())\nasyncio.run(main())\n",
)
_add(
    "asyncio with a failing task",
    "import asyncio\nasync def f(): 1 / 0\nasync def main():\n    async with asyncio.TaskGroup() as g: g.create_task(f())\nasyncio.run(main())\n",
)
_add(
    "the thread's own data",
    "import threading\nl = threading.local()\nl.x = 1\ndef f(): print(hasattr(l, 'x'))\nt = threading.Thread(target=f); t.start(); t.join()\n",
)
_add("a timer", "import threading\nt = threading.Timer(0.01, print, ['rang'])\nt.start()\n")
_add(
    "an alarm",
    "import signal\nsignal.signal(signal.SIGALRM, lambda *a: print('alarm'))\nsignal.setitimer(signal.ITIMER_REAL, 0.01)\nsignal.pause()\n",
)
_add(
    "who am I",
    "import os\nprint(os.getuid(), os.getgid(), os.getgroups(), os.getpgid(0) == os.getpid(), os.getsid(0) == os.getpid(), os.umask(0), os.getcwd(), os.nice(0))\n",
)
_add(
    "limits of resources",
    "import resource\nfor n in sorted(x for x in dir(resource) if x.startswith('RLIMIT_')): print(n, resource.getrlimit(getattr(resource, n)))\n",
)
_add(
    "the name of the process", "print(open('/proc/self/comm').read(), open('/proc/self/cmdline').read().split('\\0'))\n"
)

# --- library ---

_add(
    "temporary files",
    "import os, tempfile\nwith tempfile.NamedTemporaryFile() as f, tempfile.TemporaryDirectory() as d:\n    print(os.path.dirname(f.name), os.path.dirname(d), tempfile.gettempdir())\nprint(tempfile.mkstemp()[0] > 2)\n",
)
_add(
    "sqlite",
    "import sqlite3\nc = sqlite3.connect('db')\nc.execute('create table t (x)')\nc.executemany('insert into t values (?)', [(1,), (2,)])\nprint(c.execute('select sum(x) from t').fetchall())\n",
)
_add(
    "ssl",
    "import ssl\nc = ssl.create_default_context()\nprint(c.verify_mode, c.check_hostname, len(c.get_ca_certs()) >= 0)\n",
)
_add(
    "time zones",
    "import datetime, time, zoneinfo\nprint(datetime.datetime(2020, 7, 1, tzinfo=zoneinfo.ZoneInfo('Europe/Berlin')).isoformat(), time.tzname)\n",
)
_add(
    "locale and encodings",
    "import locale, sys, os\nprint(locale.getlocale(), locale.getpreferredencoding(), sys.getfilesystemencoding(), sys.getdefaultencoding(), os.fsencode('é'))\n",
)
_add("the environment", "import os\nprint(sorted(os.environ.items()))\n")
_add(
    "the environment as the C library has it",
    "import ctypes, os\nos.environ['NEW'] = '1'\nlibc = ctypes.CDLL(None)\nlibc.getenv.restype = ctypes.c_char_p\nprint(libc.getenv(b'NEW'), libc.getenv(b'HOME'), libc.getenv(b'GIVEN'))\n",
)
_add(
    "the environment of children",
    "import subprocess\nprint(sorted(subprocess.run(['env'], capture_output=True, text=True).stdout.split('\\n')))\n",
)
_add(
    "the user",
    "import getpass, os, pwd\nprint(getpass.getuser(), os.path.expanduser('~'), pwd.getpwuid(os.getuid()))\n",
)
_add(
    "a socket on the loopback",
    "import socket, threading\ns = socket.create_server(('127.0.0.1', 0))\nt = threading.Thread(target=lambda: socket.create_connection(s.getsockname()).sendall(b'hi'))\nt.start()\nprint(s.accept()[0].recv(2)); t.join()\n",
)
_add(
    "a server of http",
    "import http.server, threading, urllib.request\nclass H(http.server.BaseHTTPRequestHandler):\n    def do_GET(self): self.send_response(200); self.end_headers(); self.wfile.write(b'ok')\n    def log_message(self, *a): pass\ns = http.server.HTTPServer(('127.0.0.1', 0), H)\nthreading.Thread(target=s.handle_request).start()\nprint(urllib.request.urlopen(f'http://127.0.0.1:{s.server_port}').read())\n",
)
_add(
    "no way to the network",
    "import socket\nfor host in ('192.0.2.1', 'example.invalid'):\n    try: socket.create_connection((host, 80), 1)\n    except OSError as e: print(type(e).__name__, e)\n",
)
_add(
    "a unix socket pair",
    "import socket\na, b = socket.socketpair()\na.send(b'x')\nprint(b.recv(1), socket.gethostname())\n",
)
_add("random with a seed", "import random\nrandom.seed(1)\nprint(random.random(), random.randrange(100))\n")
_add(
    "random without one differs",
    "import random, subprocess, sys, os, uuid\nown = random.random()\nother = subprocess.run([sys.executable, '-c', 'import random; print(random.random())'], capture_output=True, text=True).stdout\nprint(own != float(other), len(uuid.uuid4().hex), len(os.urandom(4)))\n",
)
_add("ctypes", "import ctypes\nprint(ctypes.CDLL(None).abs(-3), ctypes.sizeof(ctypes.c_long))\n")
_add(
    "mmap and select",
    "import mmap, select, os\nm = mmap.mmap(-1, 10)\nm[:2] = b'ab'\nr, w = os.pipe()\nos.write(w, b'x')\nprint(m[:2], select.select([r], [], [], 0)[0] == [r])\n",
)
_add(
    "decimal, fractions and statistics",
    "import decimal, fractions, statistics\nprint(decimal.getcontext().prec, decimal.Decimal(1) / 3, fractions.Fraction('0.125'), statistics.mean([1, 2, 4]))\n",
)
_add(
    "contexts of variables",
    "import contextvars, decimal\nv = contextvars.ContextVar('v', default=1)\nprint(v.get(), list(contextvars.copy_context()))\n",
)
_add("the first free descriptor", "import os\nprint([os.dup(0) for _ in range(3)])\n")
_add(
    "open descriptors below the free ones",
    "import os\nprint(sorted(int(n) for n in os.listdir('/proc/self/fd') if int(n) < 3))\n",
)
_add("a very long line", "print('x' * 100_000)\n")
_add("an empty program", "")
_add("a program of blank lines", "\n\n\n")
_add("a program with a mark of byte order", "\ufeffprint('bom')\n")
_add("a program with carriage returns", "x = 1\r\nprint(x)\r\nprint('''a\r\nb''')\r\n")
_add("a program without a last newline", "print('end')")
_add("a program that ends in a backslash", "x = 1 + \\")
_add("a source that is not utf-8 and does not say so", "print('\udce9')\n")
_add("a comment that is not utf-8", "# \udce9\nprint(1)\n")
_add("a program that is one long expression", "print(" + "+".join(["1"] * 300) + ")\n")

# --- what the zygote has ready for sessions ---

_add(
    "what sessions have imported",
    "import sys, collections, importlib\nnames = 'json traceback textwrap contextlib collections.abc ast termios _json'.split()\nprint([n for n in names if n in sys.modules], hasattr(collections, 'abc'))\nimport json, traceback, collections.abc\nprint(json.dumps([1]), json.__spec__.name, collections.abc.Sized)\n",
)
_add(
    "no trace of rehearsals",
    "import sys, os, builtins, threading, signal\nprint([n for n in dir(sys) if n.startswith('last')], [n for n in ('display', '_') if hasattr(builtins, n)], len(sys.meta_path))\nprint(sys.stdin is sys.__stdin__, sys.stdin.name, sys.stdin.readline(), sys.excepthook is sys.__excepthook__, threading.excepthook is threading.__excepthook__)\nprint('MPLBACKEND' in os.environ, signal.getsignal(signal.SIGINT) is signal.default_int_handler, sys.argv)\n",
)

#: What differs, and why it stays so.
DIFFERENCES = {
    "a faulthandler dump": "it walks every frame, those of the zygote below the program's too",
    "the name of the process": "its command line is the zygote's, which was started before the program was known",
}
if sys.version_info[:2] == (3, 12):
    DIFFERENCES |= {
        "sys.exit(-(1 << 70))": "the interpreter trips over its own failed conversion when it waits for threads",
        "exit with an object whose str fails": "the interpreter tells of the failure when it waits for threads",
    }

#: What tells of its surroundings: a sandbox is meant to differ from the host in them.
SURROUNDINGS = (
    "bytecode of an own module",  # lists the work directory, which holds .tmp and .shm in a sandbox
    "who am I",
    "limits of resources",
    "the user",
    "no way to the network",
    "a unix socket pair",  # prints the name of the host
)
