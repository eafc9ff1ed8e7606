"""The Python zygote: a warm interpreter that forks on request, and what its children do.

Started by the warden with a clean environment and these descriptors: 3 orders, 4 reports, 5 the confinement profile,
6 this file, 7 zygote.so. Order: import what programs use -> rehearse -> freeze the heap -> C loop. The parent never
returns from there and never runs user code. A child comes back confined: it takes its own randomness, rehearses once
(so that the page faults of a first run are behind it), says READY and waits for RUN.
"""

from __future__ import annotations

import atexit
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

ORDERS, REPORTS, PROFILE, SELF, CORE = range(3, 8)
CTL = 63
WORK_DIR = "/sandbox"
FRAME = struct.Struct("=B3xI")
END = struct.Struct("=iIQQ")

# Preloaded modules whose global generators a fork would share, and how to give the child its own.
RESEED: dict[str, Callable[[Any], None]] = {"numpy.random": lambda module: module.seed()}


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

    __slots__ = ("argv", "code", "env", "limits", "name")

    def __init__(self, body: bytes) -> None:
        """Take RUN's fields."""
        self.argv: list[str] = []
        self.env: list[tuple[str, str]] = []
        self.limits: list[tuple[int, int]] = []
        self.name = "main.py"
        self.code = b""
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
            else:
                self.limits.append((tag, int.from_bytes(body[start:at], sys.byteorder)))


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
    main.__dict__.update(
        __file__=path,
        __cached__=None,
        __builtins__=builtins,
        __loader__=importlib.machinery.SourceFileLoader("__main__", path),
    )
    if sys.version_info < (3, 14):
        main.__annotations__ = {}
    sys.modules["__main__"] = main
    return main


def show_exception(error: BaseException) -> None:
    """Print an uncaught exception as the interpreter does, without our frame."""
    trace = error.__traceback__.tb_next if error.__traceback__ else None
    error.__traceback__ = trace
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
    try:
        sys.excepthook(type(error), error, trace)
    except BaseException as hook_error:
        hook_error.__traceback__ = hook_error.__traceback__ and hook_error.__traceback__.tb_next
        print("Error in sys.excepthook:", file=sys.stderr)
        sys.__excepthook__(type(hook_error), hook_error, hook_error.__traceback__)
        print("\nOriginal exception was:", file=sys.stderr)
        sys.__excepthook__(type(error), error, trace)


def exit_status(error: SystemExit) -> int:
    """Turn SystemExit's code into a status, printing what is no number, as the interpreter does."""
    code = error.code
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF if -(1 << 31) <= code < 1 << 31 else 255
    try:
        print(code, file=sys.stderr)
    except (OSError, ValueError):
        return 1
    return 1


def run_code(source: bytes, path: str, main: types.ModuleType) -> int:
    """Compile and execute; return the exit status."""
    try:
        exec(compile(source, path, "exec", dont_inherit=True), main.__dict__)
    except SystemExit as error:
        return exit_status(error)
    except KeyboardInterrupt as error:
        show_exception(error)
        return -signal.SIGINT
    except BaseException as error:
        show_exception(error)
        return 1
    return 0


def shut_down(main: types.ModuleType, status: int) -> int:
    """What the interpreter does at its end: join threads, run exit handlers, let go. Returns the status."""
    if len(threading._active) > 1 or threading._threading_atexits:  # type: ignore[attr-defined]
        try:
            threading._shutdown()  # type: ignore[attr-defined]
        except BaseException as error:
            show_exception(error)
    atexit._run_exitfuncs()
    return let_go(main, status)


def let_go(main: types.ModuleType, status: int) -> int:
    """Drop the program's globals and flush. Returns the status."""
    names = main.__dict__
    for name in [n for n in names if n[:1] == "_" and n[1:2] != "_"] + [n for n in names if n[:1] != "_"]:
        names[name] = None
    if gc.isenabled():
        gc.collect()
    for stream in {
        id(s): s for s in (sys.stdout, sys.__stdout__, sys.stderr, sys.__stderr__) if s is not None
    }.values():
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 120
    return status


def perform(job: Job) -> tuple[types.ModuleType, int, int, int]:
    """Become the program and run it; return its __main__, its status, and when it was ready and done in ns."""
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
    clock = time.clock_gettime_ns
    ready = clock(time.CLOCK_MONOTONIC)
    status = run_code(job.code, path, main)
    return main, status, ready, clock(time.CLOCK_MONOTONIC)


def run(fd: int) -> NoReturn:
    """Wait for RUN on `fd`, be the program, and never return."""
    own_pid, own_socket = os.getpid(), os.fstat(fd)[:3]
    write, leave, getpid, fstat = os.write, os._exit, os.getpid, os.fstat
    main, status, ready, done = perform(Job(read_run(fd)))
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        shut_down(main, 0)
        os.kill(getpid(), signal.SIGINT)
    status = shut_down(main, status)
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


REHEARSAL = """
import sys
class Thing:
    def __init__(self, n):
        self.n = n
    def double(self):
        return [i * 2 for i in range(self.n)]
print(Thing(3).double(), {"a": 1, "b": (1.5, None)}, "%d" % 7, "x".join(["a", "b"]))
print(sorted([3, 1, 2], key=lambda v: -v))
try:
    raise ValueError("rehearsal")
except ValueError as error:
    print(error)
"""


def rehearse(path: str) -> None:
    """Run a made-up program through the same code, so that its pages are private and its caches warm beforehand.

    It is written to `path`; its output goes nowhere. Exit handlers are not run: they belong to preloaded modules.
    """
    code, name = REHEARSAL.encode(), path.encode() + b"\0"
    same = resource.getrlimit(resource.RLIMIT_NOFILE)[1].to_bytes(8, sys.byteorder)
    fields = ((97, b"main.py\0"), (101, b"SANDFORK_REHEARSAL=1\0"), (102, name), (99, code), (110, same))
    output, null = os.dup(1), os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, 1)
    try:
        main, status, ready, done = perform(Job(b"".join(FRAME.pack(tag, len(v)) + v for tag, v in fields)))
        let_go(main, status)
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


def serve(names: list[str]) -> bool:
    """Warm up and enter the C loop; returns in children only: whether somebody already waits for it."""
    preload(names)
    core = ctypes.PyDLL(f"/proc/self/fd/{CORE}")
    core.sandfork_configure.restype = core.sandfork_zygote.restype = ctypes.c_long
    error = core.sandfork_configure(PROFILE)
    if error:
        raise OSError(-error, "reading the confinement profile")
    for fd in (PROFILE, SELF, CORE):
        os.close(fd)
    sys.argv[:] = [""]
    scratch = os.memfd_create("rehearsal")
    rehearse(f"/proc/self/fd/{scratch}")
    os.close(scratch)
    linecache.clearcache()
    for _ in range(3):
        gc.collect()
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("a preloaded module started a thread: forking with locks held by it would hang")
    if os.getpid() <= 2:
        raise RuntimeError("pid too low: libraries compare pids to notice a fork")
    gc.freeze()
    ctypes.pythonapi.PyOS_BeforeFork()
    result = core.sandfork_zygote(ORDERS, REPORTS)
    if result < 0:
        os._exit(0)
    ctypes.pythonapi.PyOS_AfterFork_Child()
    return bool(result == 1)


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
    child(serve(sys.argv[1:]))
