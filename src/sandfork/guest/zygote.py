"""The Python zygote: a warm interpreter that forks on request, and what its children do.

Started by the warden with a clean environment and these descriptors: 3 orders, 4 reports, 5 the confinement profile,
6 this file, 7 zygote.so, 8 plain.py, 9 session.py, 10 displays.py. Order: import what programs use -> rehearse ->
freeze the heap -> C loop. The parent never returns from there and never runs user code. A child comes back confined:
it takes its own randomness, rehearses once (so that the page faults of a first run are behind it), says READY and waits
for RUN.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import builtins
import ctypes
import errno
import gc
import importlib.machinery
import linecache
import os
import signal
import struct
import sys
import threading
import time
import types

TYPE_CHECKING = False  # typing's own would import typing, which every sandbox would carry
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

ORDERS, REPORTS, PROFILE, SELF, CORE, PLAIN, SESSION, DISPLAYS = range(3, 11)
CTL = 63
WORK_DIR = "/sandbox"
URGENT, REDUCED = 2, 4  # flags of the order a child is made for
FRAME = struct.Struct("=B3xI")
READY = FRAME.pack(33, 0)
END = struct.Struct("=iIQQ")
INTERRUPTED = -errno.EINTR

# What __main__ holds before a program's first line, in the interpreter's own order.
MAIN_NAMES = {name: value for name, value in globals().items() if name[:2] == "__"} | {"__doc__": None}

SCOPE = globals()  # looked up here: from frames that are hidden the interpreter finds none

# Preloaded modules whose global generators a fork would share, and how to give the child its own.
RESEED: dict[str, Callable[[Any], None]] = {"numpy.random": lambda module: module.seed()}
SEEDS: list[tuple[Callable[[Any], None], Any]] = []


def read(fd: int, name: str) -> types.CodeType:
    """Return the code of the text in `fd`."""
    with open(fd, "rb") as file:
        return compile(file.read(), f"<sandfork {name}>", "exec")


def load(code: types.CodeType, **given: Any) -> Any:
    """Return a module made of `code` and what it is given, under a name that nothing can import."""
    module = types.ModuleType("sandfork")
    module.__dict__.update(given)
    first = sys.path.pop(0)  # the program's own files may be called as what we import
    exec(code, module.__dict__)
    sys.path.insert(0, first)
    return module


# See native/receive.h. Each look-up of a function makes an object, and iterating over an array an exception.
native = ctypes.PyDLL(f"/proc/self/fd/{CORE}")
receive_run = ctypes.CDLL(f"/proc/self/fd/{CORE}").sandfork_receive  # waits, and lets other threads run meanwhile
receive_run.restype = ctypes.c_long
end_run, short_run = native.sandfork_end, native.sandfork_short_run
short_run.restype, end_run.restype = ctypes.c_void_p, None
RECEIVED = (ctypes.c_uint64 * 8)()  # struct received
RUN = (ctypes.c_char * 16376).from_address(short_run())

# Kept from programs, which may put something else in their places.
leave, getpid, kill, set_signal = os._exit, os.getpid, os.kill, _signal.signal

plain = load(read(PLAIN, "plain"), native=native)
LATER: dict[str, Any] = {}  # modules for the children that are asked for what is in there
CODES: list[types.CodeType] = []  # of those; kept, for letting go of one writes to all that it names


class Job:
    """What RUN asks for. Its limits are in force, and its file is written unless there is an `error`."""

    __slots__ = ("argv", "code", "env", "error", "lasting", "name", "rich", "stdin")

    def __init__(self) -> None:
        """Take the fields of the RUN that was received."""
        address, size, code, end, name, name_end, more, self.error = RECEIVED[:]
        self.argv: list[str] = []
        self.env: list[tuple[str, str]] = []
        self.lasting = self.rich = False
        self.stdin = ""
        run: Any = ctypes.string_at(address, size) if address else RUN
        self.code: bytes = run[code:end]
        self.name: str = run[name:name_end].decode("utf-8", "surrogateescape") or "main.py"
        if more:
            self.take(run[:size])
        if address:
            native.sandfork_release()

    def take(self, body: bytes) -> None:
        """Take the fields that not every RUN has."""
        at, end = 0, len(body)
        while at < end:
            tag, size = FRAME.unpack_from(body, at)
            start = at + 8
            at = start + size
            if tag == 97:
                self.argv.append(body[start : at - 1].decode("utf-8", "surrogateescape"))
            elif tag == 101:
                name, _, value = body[start : at - 1].decode("utf-8", "surrogateescape").partition("=")
                self.env.append((name, value))
            elif tag == 108:
                self.lasting = any(body[start:at])
            elif tag == 114:
                self.rich = any(body[start:at])
            elif tag == 105:
                self.stdin = body[start : at - 1].decode("utf-8", "surrogateescape")


def receive(fd: int) -> Job:
    """Wait for RUN on `fd`; the host going away ends the process."""
    while error := receive_run(fd, RECEIVED):
        if error != INTERRUPTED:  # else a signal, whose handler runs here
            leave(125)
    return Job()


def new_main(path: str) -> types.ModuleType:
    """Return a fresh __main__ as `python3 path` makes it."""
    main = types.ModuleType("__main__")
    names = main.__dict__
    names.update(MAIN_NAMES)
    names["__file__"] = path
    names["__loader__"] = importlib.machinery.SourceFileLoader("__main__", path)
    if "__annotations__" in names:
        names["__annotations__"] = {}
    sys.modules["__main__"] = main
    return main


def read_program(path: str) -> bytes:
    """Return a program that came as a file."""
    with open(path, "rb", 0) as file:
        return file.read()


def run_code(source: bytes, path: str, main: types.ModuleType) -> BaseException | None:
    """Compile and execute; return what was raised."""
    try:
        if plain.reads_as_text(source):
            plain.call(exec, compile(source, path, "exec", dont_inherit=True), main.__dict__)
        else:
            plain.run_file(path, main)
    except BaseException as error:
        return error
    return None


def perform(job: Job) -> int:
    """Become the program and run it; return its status. RECEIVED then says when it was ready and done, in ns."""
    for key, text in job.env:
        os.environ[key] = text
    path = job.name if job.name.startswith("/") else WORK_DIR + "/" + job.name
    if job.error:
        raise OSError(job.error, os.strerror(job.error), path)
    source = job.code or read_program(path)
    sys.argv[:] = [path, *job.argv[1:]]
    sys.orig_argv[:] = [sys.executable, *sys.argv]
    sys.path[0] = WORK_DIR
    main = new_main(path)
    execute = later("displays").run_code if job.rich else run_code
    clock = time.clock_gettime_ns
    RECEIVED[0] = clock(time.CLOCK_MONOTONIC)
    error = execute(source, path, main)
    RECEIVED[1] = clock(time.CLOCK_MONOTONIC)
    status: int = plain.status_of(error)
    return status


class Here:
    """This module, for those that it loads."""


def load_later() -> None:
    """Load what few children need and rehearse it; what it imports is seen only where it is used.

    Done when all that others touch has its place, so that they never touch this.
    """
    here, seen = Here(), set(sys.modules)
    here.__dict__ = SCOPE
    for fd, name in ((DISPLAYS, "displays"), (SESSION, "session")):
        CODES.append(read(fd, name))
        LATER[name] = load(CODES[-1], zygote=here, **LATER)
    LATER["session"].rehearse(SETTLING)
    plain.hide_imports(seen)


def later(name: str) -> Any:
    """Return a part that few children need, with all that it needs."""
    plain.show_imports()
    return LATER[name]


def run(fd: int) -> NoReturn:
    """Wait for RUN on `fd`, be the program, and never return."""
    job = receive(fd)
    if job.lasting:
        set_signal(signal.SIGINT, _signal.SIG_IGN)  # until there is a program to interrupt
        later("session").serve(fd, job)
    status = perform(job)
    if status == -signal.SIGINT:
        plain.shut_down(0)
        set_signal(signal.SIGINT, _signal.SIG_DFL)
        kill(getpid(), signal.SIGINT)
    status = plain.shut_down(status)
    end_run(fd, status, RECEIVED)
    leave(status)


def end_frame(status: int, ready: int, done: int) -> bytes:
    """Pack END."""
    return FRAME.pack(69, END.size) + END.pack(status, 0, ready, done)


# Every page this touches is four kilobytes of every parked sandbox, so it does what any program does and no more.
REHEARSAL = """
def greet(name):
    return f"{name} {1 + 1}"
print(greet("a"))
"""

# How often the zygote itself rehearses. The interpreter rewrites the code it runs until it has specialised it; what is
# settled before the fork is not written to, and so stays shared, after it.
SETTLING = 30


def rehearse(path: str, text: str = REHEARSAL) -> None:
    """Run a made-up program through the same code, so that its pages are private and its caches warm beforehand.

    It is written to `path`; its output goes nowhere. Exit handlers are not run: they belong to preloaded modules.
    """
    fields = ((102, path.encode() + b"\0"), (99, text.encode()), (110, b"\xff" * 8), (97, b"main.py\0"))
    body = b"".join(FRAME.pack(tag, len(value)) + value for tag, value in fields)
    ours, theirs = os.pipe()
    os.write(theirs, FRAME.pack(82, len(body)) + body)
    output, null = os.dup(1), os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, 1)
    try:
        plain.rehearse(perform(receive(ours)))
        end_run(ours, 0, RECEIVED)  # which nobody can write to
    finally:
        os.dup2(output, 1)
        for fd in (output, null, ours, theirs):
            os.close(fd)
    array = sys.modules.get("numpy")
    if array is not None:
        str(array.random.rand(3))


def reseed() -> None:
    """Give the child randomness of its own; a failure is fatal, for two sandboxes would share theirs."""
    for seed, module in SEEDS:
        seed(module)


# Numeric libraries start threads when they are imported, and a process with threads cannot be forked safely.
SINGLE_THREADED = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "BLIS_NUM_THREADS",
)


def preload(names: list[str]) -> None:
    """Import what the template is to hold, single-threaded. Names starting with "?" may be missing."""
    os.environ.update(dict.fromkeys(SINGLE_THREADED, "1"))
    try:
        import_all(names)
    finally:
        for name in SINGLE_THREADED:
            del os.environ[name]


def import_all(names: list[str]) -> None:
    """Import each name."""
    for name in names:
        try:
            __import__(name.lstrip("?"))
        except ImportError:
            if not name.startswith("?"):
                raise


def forget_variable(name: str) -> None:
    """Take out a variable that is the tier's affair, also where /proc/self/environ shows what we were started with.

    LD_BIND_NOW has every symbol resolved here, once, and not by each child again.
    """
    getenv = ctypes.pythonapi.getenv
    getenv.restype = ctypes.c_void_p
    value = getenv(name.encode())
    if value:
        # SAFETY: the C library points into the block that execve laid out, where "NAME=" stands before the value.
        ctypes.memset(value - len(name) - 1, 0, len(name) + 1 + len(os.environ.pop(name)))


def settle(path: str) -> None:
    """Have all that children run be as it stays; what most of them run is last to use the interpreter's caches."""
    for _ in range(SETTLING):
        rehearse(path)
    load_later()
    for _ in range(3):
        rehearse(path)


def serve(names: list[str], depth: tuple[ctypes.Array[ctypes.c_int], int, int]) -> int:
    """Warm up and enter the C loop; returns in children only, with the flags of their order."""
    preload(names)
    forget_variable("LD_BIND_NOW")
    native.sandfork_configure.restype = native.sandfork_zygote.restype = ctypes.c_long
    error = native.sandfork_configure(PROFILE)
    if error:
        raise OSError(-error, "reading the confinement profile")
    for fd in (PROFILE, SELF, CORE):
        os.close(fd)
    sys.argv[:] = [""]
    SEEDS.extend((seed, sys.modules[name]) for name, seed in RESEED.items() if name in sys.modules)
    plain.LAST_PRELOADED = next(reversed(sys.modules))
    scratch = os.memfd_create("rehearsal")
    path = f"/proc/self/fd/{scratch}"
    settle(path)
    if depth[1] > 0:
        even_depth(path, *depth)
    os.close(scratch)
    plain.hide_frames(sys._getframe(1).f_code, globals(), CODES)
    linecache.clearcache()
    for _ in range(3):
        gc.collect()
    plain.fill_gaps()
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("a preloaded module started a thread: forking with locks held by it would hang")
    if os.getpid() <= 2:
        raise RuntimeError("pid too low: libraries compare pids to notice a fork")
    hooks, place = plain.hooks_of_forks(threading._after_fork)  # type: ignore[attr-defined]
    reset, hooks[place] = hooks[place], int  # a fork of one thread that holds no lock has nothing to reset
    gc.freeze()
    # Looked up here: a first look-up makes objects, which each child would make anew.
    before_fork, after_fork = ctypes.pythonapi.PyOS_BeforeFork, ctypes.pythonapi.PyOS_AfterFork_Child
    before_fork()
    result = native.sandfork_zygote(ORDERS, REPORTS, after_fork)
    if result < 0:
        os._exit(0)
    after_fork()
    hooks[place] = reset
    return int(result)


def even_depth(path: str, state: ctypes.Array[ctypes.c_int], place: int, left_plain: int) -> None:
    """Give the program back what our frames below it take of its recursion limit; `left_plain` is what a plain run has.

    SAFETY: writes to what `find_depth` found, and only a small correction.
    """
    left: list[int] = []
    builtins.rehearsed = left, state, place  # type: ignore[attr-defined]
    rehearse(path, "rehearsed[0].append(rehearsed[1][rehearsed[2]])")
    del builtins.rehearsed  # type: ignore[attr-defined]
    excess = left_plain - left[0] - 1  # this function's own frame will not be there
    if 0 < excess < 16:
        state[place] += excess


def child(order: int) -> NoReturn:
    """Be the program, from a fresh fork on. An urgent one has said READY and does not rehearse."""
    global WORK_DIR
    if order & REDUCED:
        WORK_DIR = os.getcwd()
    reseed()
    if not order & URGENT:
        rehearse(WORK_DIR + "/.rehearsal")
        os.unlink(WORK_DIR + "/.rehearsal")
        os.write(CTL, READY)
    run(CTL)


if __name__ == "__main__":
    STATE, PLACE = plain.find_depth()
    LEFT = STATE[PLACE]  # read here, in a frame that is where the program's own will be
    child(serve(sys.argv[1:], (STATE, PLACE, LEFT)))
