"""The Python zygote: a warm interpreter that forks on request, and what its children do.

Started by the warden with a clean environment and these descriptors: 3 orders, 4 reports, 5 the confinement profile,
6 this file, 7 zygote.so, 8 plain.py, 9 session.py, 10 displays.py. Order: import what programs use -> rehearse ->
freeze the heap -> C loop. The parent never returns from there and never runs user code. A child comes back confined:
it takes its own randomness, rehearses once (so that the page faults of a first run are behind it), says READY and waits
for RUN.
"""

from __future__ import annotations

import builtins
import ctypes
import gc
import importlib.machinery
import linecache
import os
import resource
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
FRAME = struct.Struct("=B3xI")
END = struct.Struct("=iIQQ")

# What __main__ holds before a program's first line, in the interpreter's own order.
MAIN_NAMES = {name: value for name, value in globals().items() if name[:2] == "__"} | {"__doc__": None}

SCOPE = globals()  # looked up here: from frames that are hidden the interpreter finds none

# Preloaded modules whose global generators a fork would share, and how to give the child its own.
RESEED: dict[str, Callable[[Any], None]] = {"numpy.random": lambda module: module.seed()}


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


plain = load(read(PLAIN, "plain"))
LATER: dict[str, types.CodeType] = {}  # loaded by the children that are asked for what is in there


def read_exactly(fd: int, size: int) -> bytes:
    """Read `size` bytes; the host going away ends the process."""
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            os._exit(125)
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class Job:
    """What RUN asks for."""

    __slots__ = ("argv", "code", "env", "lasting", "limits", "name", "rich", "stdin")

    def __init__(self, body: bytes) -> None:
        """Take RUN's fields."""
        self.argv: list[str] = []
        self.env: list[tuple[str, str]] = []
        self.limits: list[tuple[int, int]] = []
        self.name = "main.py"
        self.code = b""
        self.lasting = self.rich = False
        self.stdin = ""
        at, end = 0, len(body)
        while at < end:
            tag, size = FRAME.unpack_from(body, at)
            start = at + 8
            at = start + size
            if tag == 99:
                self.code = body[start:at]
            elif tag == 97:
                self.argv.append(body[start : at - 1].decode("utf-8", "surrogateescape"))
            elif tag == 101:
                name, _, value = body[start : at - 1].decode("utf-8", "surrogateescape").partition("=")
                self.env.append((name, value))
            elif tag == 102:
                self.name = body[start : at - 1].decode("utf-8", "surrogateescape")
            elif tag in LIMITS:
                self.limits.append((tag, int.from_bytes(body[start:at], sys.byteorder)))
            elif tag == 108:
                self.lasting = any(body[start:at])
            elif tag == 114:
                self.rich = any(body[start:at])
            elif tag == 105:
                self.stdin = body[start : at - 1].decode("utf-8", "surrogateescape")


def read_run(fd: int) -> bytes:
    """Wait for RUN and return its body; one read brings it whole unless it is large."""
    data = os.read(fd, 65536)
    if len(data) < FRAME.size:
        data += read_exactly(fd, FRAME.size - len(data))
    kind, length = FRAME.unpack_from(data)
    if kind != 82:  # "R"
        os._exit(125)
    missing = FRAME.size + length - len(data)
    return data[FRAME.size :] + read_exactly(fd, missing) if missing else data[FRAME.size :]


# The rlimits RUN may name by tag, and how far the hard limit is above the soft one.
LIMITS = {
    110: (resource.RLIMIT_NOFILE, 0),
    112: (resource.RLIMIT_CPU, 1),
    115: (resource.RLIMIT_FSIZE, 0),
    107: (resource.RLIMIT_NPROC, 0),
    109: (resource.RLIMIT_DATA, 0),
}


def apply_limit(tag: int, value: int) -> None:
    """Lower one rlimit; what is lower already, by the host's own limits, stays."""
    which, grace = LIMITS[tag]
    try:
        resource.setrlimit(which, (value, value + grace))
    except ValueError:
        hard = resource.getrlimit(which)[1]
        resource.setrlimit(which, (min(value, hard), hard))


def write_file(path: str, content: bytes) -> None:
    """Write the program's own file, as a plain run would have found it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    os.close(fd)


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


def run_code(source: bytes, path: str, main: types.ModuleType) -> BaseException | None:
    """Compile and execute; return what was raised."""
    try:
        if plain.reads_as_text(source):
            exec(compile(source, path, "exec", dont_inherit=True), main.__dict__)
        else:
            plain.run_file(path, main)
    except BaseException as error:
        return error
    return None


def perform(job: Job) -> tuple[int, int, int]:
    """Become the program and run it; return its status, and when it was ready and done in ns."""
    for tag, value in job.limits:
        apply_limit(tag, value)
    for key, text in job.env:
        os.environ[key] = text
    path = job.name if job.name.startswith("/") else WORK_DIR + "/" + job.name
    write_file(path, job.code)
    sys.argv[:] = [path, *job.argv[1:]]
    sys.orig_argv[:] = [sys.executable, *sys.argv]
    sys.path[0] = WORK_DIR
    main = new_main(path)
    execute = load_displays().run_code if job.rich else run_code
    clock = time.clock_gettime_ns
    ready = clock(time.CLOCK_MONOTONIC)
    error = execute(job.code, path, main)
    done = clock(time.CLOCK_MONOTONIC)
    return plain.status_of(error), ready, done


def read_later() -> None:
    """Have at hand what few children need; when all that others touch has its place, so that they never touch this."""
    LATER.update(session=read(SESSION, "session"), displays=read(DISPLAYS, "displays"))


def load_displays() -> Any:
    """Return the part that shows rich results."""
    return load(LATER["displays"], zygote=types.SimpleNamespace(**SCOPE))


def run(fd: int) -> NoReturn:
    """Wait for RUN on `fd`, be the program, and never return."""
    own_pid, own_socket = os.getpid(), os.fstat(fd)[:3]
    write, leave, getpid, fstat = os.write, os._exit, os.getpid, os.fstat
    kill, restore = os.kill, signal.signal
    job = Job(read_run(fd))
    if job.lasting:
        restore(signal.SIGINT, signal.SIG_IGN)  # until there is a program to interrupt
        load(LATER["session"], zygote=types.SimpleNamespace(**SCOPE)).serve(fd, job)
    status, ready, done = perform(job)
    if status == -signal.SIGINT:
        plain.shut_down(0)
        restore(signal.SIGINT, signal.SIG_DFL)
        kill(getpid(), signal.SIGINT)
    status = plain.shut_down(status)
    if getpid() == own_pid:  # a child that the program forked may come back here too
        try:
            # A program that closes all it did not open may have a file of its own under our number by now.
            if fstat(fd)[:3] == own_socket:
                write(fd, end_frame(status, ready, done))
        except OSError:
            pass  # without END the exit status, which follows, tells the server
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
    code, name = text.encode(), path.encode() + b"\0"
    same = resource.getrlimit(resource.RLIMIT_NOFILE)[1].to_bytes(8, sys.byteorder)
    fields = ((97, b"main.py\0"), (101, b"SANDFORK_REHEARSAL=1\0"), (102, name), (99, code), (110, same))
    output, null = os.dup(1), os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, 1)
    try:
        status, ready, done = perform(Job(b"".join(FRAME.pack(tag, len(v)) + v for tag, v in fields)))
        plain.rehearse(status)
    finally:
        os.dup2(output, 1)
        os.close(output)
        os.close(null)
    del os.environ["SANDFORK_REHEARSAL"]
    end_frame(status, ready, done)
    os.fstat(1)
    array = sys.modules.get("numpy")
    if array is not None:
        str(array.random.rand(3))


def reseed() -> None:
    """Give the child randomness of its own; a failure is fatal, for two sandboxes would share theirs."""
    for name, seed in RESEED.items():
        if name in sys.modules:
            seed(sys.modules[name])


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


def serve(names: list[str], depth: tuple[ctypes.Array[ctypes.c_int], int, int]) -> bool:
    """Warm up and enter the C loop; returns in children only: whether somebody already waits for it."""
    preload(names)
    forget_variable("LD_BIND_NOW")
    core = ctypes.PyDLL(f"/proc/self/fd/{CORE}")
    core.sandfork_configure.restype = core.sandfork_zygote.restype = ctypes.c_long
    error = core.sandfork_configure(PROFILE)
    if error:
        raise OSError(-error, "reading the confinement profile")
    for fd in (PROFILE, SELF, CORE):
        os.close(fd)
    sys.argv[:] = [""]
    plain.LAST_PRELOADED = next(reversed(sys.modules))
    scratch = os.memfd_create("rehearsal")
    for _ in range(SETTLING):
        rehearse(f"/proc/self/fd/{scratch}")
        threading._after_fork()  # type: ignore[attr-defined]
    if depth[1] > 0:
        even_depth(f"/proc/self/fd/{scratch}", *depth)
    os.close(scratch)
    read_later()
    plain.hide_frames(sys._getframe(1).f_code, globals(), LATER.values())
    linecache.clearcache()
    for _ in range(3):
        gc.collect()
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("a preloaded module started a thread: forking with locks held by it would hang")
    if os.getpid() <= 2:
        raise RuntimeError("pid too low: libraries compare pids to notice a fork")
    gc.freeze()
    # Looked up here: a first look-up makes objects, which each child would make anew.
    before_fork, after_fork = ctypes.pythonapi.PyOS_BeforeFork, ctypes.pythonapi.PyOS_AfterFork_Child
    before_fork()
    result = core.sandfork_zygote(ORDERS, REPORTS)
    if result < 0:
        os._exit(0)
    after_fork()
    return bool(result == 1)


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


def child(urgent: bool) -> NoReturn:
    """Be the program, from a fresh fork on. An urgent one does not rehearse: its request already waits."""
    global WORK_DIR
    WORK_DIR = os.getcwd()  # /sandbox, unless there are no namespaces
    reseed()
    if not urgent:
        rehearse(WORK_DIR + "/.rehearsal")
        os.unlink(WORK_DIR + "/.rehearsal")
    os.write(CTL, FRAME.pack(33, 0))
    run(CTL)


if __name__ == "__main__":
    STATE, PLACE = plain.find_depth()
    LEFT = STATE[PLACE]  # read here, in a frame that is where the program's own will be
    child(serve(sys.argv[1:], (STATE, PLACE, LEFT)))
