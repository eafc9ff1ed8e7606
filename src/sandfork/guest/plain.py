"""What makes a fork a plain run: none of our frames below the program's, and an end as the interpreter would have it.

Loaded into the zygote (see zygote.py) and shared by all its children. The real end of an interpreter takes longer than
a short program; what it does that can be seen from outside is done here, in its order: CPython's Py_RunMain and
Py_FinalizeEx, 3.11 to 3.14.
"""

from __future__ import annotations

import _weakref
import atexit
import ctypes
import gc
import io
import os
import signal
import sys
import threading
import types

TYPE_CHECKING = False  # typing's own would import typing, which every sandbox would carry
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

DISPLAY = sys.__excepthook__
FLUSHING = (
    "Exception ignored while flushing sys.stdout:"
    if sys.version_info >= (3, 14)
    else "Exception ignored on flushing sys.stdout:"
    if sys.version_info >= (3, 13)
    else "Exception ignored in: {!r}"
)
OUR_FILES = ("/proc/self/fd/6", "<sandfork plain>", "<sandfork session>", "<sandfork displays>")
LAST_PRELOADED = ""  # the last name in sys.modules before a program runs; the zygote sets it


native: Any = globals()["native"]  # zygote.so, without letting other threads run

UNSEEN: dict[str, types.ModuleType] = {}  # modules that are imported, and that programs find not imported

# CPython's small objects (obmalloc.c, 3.10 to 3.14): pools of objects of one size, each behind a head.
SIZES, POOL_BYTES, POOL_HEAD_BYTES = range(16, 513, 16), 1 << 14, 48
MOST_GAPS = 8192  # of a size
FILLERS: list[object] = []


# What native/traced.h calls, in its order. Before 3.12 a tracer passes over frames that it cannot see by itself.
UNTRACED = sys.version_info >= (3, 12)
API = ("PyThreadState_Get", "PyThreadState_EnterTracing", "PyThreadState_LeaveTracing", "PyObject_Call")
if UNTRACED:
    FUNCTIONS = [getattr(ctypes.pythonapi, name) for name in (*API, "PyErr_GetRaisedException")]
    TABLE = (ctypes.c_void_p * len(FUNCTIONS))(*(ctypes.cast(each, ctypes.c_void_p).value for each in FUNCTIONS))
    RAISED = ctypes.c_int()
    call_traced = native.sandfork_call_traced
    call_traced.argtypes = ctypes.c_void_p, ctypes.py_object, ctypes.py_object, ctypes.c_void_p
    call_traced.restype = ctypes.py_object


def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call what belongs to the program: with its tracers, which must not follow into our own frames."""
    if not UNTRACED:
        return function(*args)
    result = call_traced(TABLE, function, args, ctypes.byref(RAISED))
    if RAISED.value:
        raise result
    return result


def thread_state() -> int:
    """Return the address of this thread's state."""
    get_state = ctypes.pythonapi.PyThreadState_Get
    get_state.restype = ctypes.c_void_p
    address: int = get_state()
    return address


def reads_as_text(source: bytes) -> bool:
    """Tell whether a source is plain UTF-8 and does not say what it is: such reads the same from memory."""
    try:
        source.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in source and b"coding" not in b"".join(source.split(b"\n", 2)[:2])


def run_file(path: str, main: types.ModuleType) -> None:
    """Have the interpreter read the file itself: how it takes odd encodings and zero bytes, only it knows."""
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    run = ctypes.pythonapi.PyRun_FileExFlags
    run.restype, names = ctypes.py_object, ctypes.py_object(main.__dict__)
    file = ctypes.c_void_p(libc.fopen(os.fsencode(path), b"rb"))
    call(run, file, os.fsencode(path), 257, names, names, 1, None)  # 257: Py_file_input


def tell(text: str) -> None:
    """Write to sys.stderr as the interpreter's own words are: where it can be written to, and whatever comes of it."""
    try:
        sys.stderr.write(text)
    except BaseException:  # noqa: S110  # as the interpreter does
        pass


def without_ours(trace: types.TracebackType | None) -> types.TracebackType | None:
    """Drop our own frames from the top of a traceback; where they are hidden they are not there."""
    while trace is not None and trace.tb_frame.f_code.co_filename in OUR_FILES:
        trace = trace.tb_next
    return trace


def show_exception(error: BaseException) -> int:
    """Print an uncaught exception as the interpreter does, without our frame. Returns the exit status."""
    error.__traceback__ = trace = without_ours(error.__traceback__)
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    hook = getattr(sys, "excepthook", None)
    if hook is None:
        tell("sys.excepthook is missing\n")
        DISPLAY(type(error), error, trace)
        return 1
    try:
        call(hook, type(error), error, trace)
        return 1
    except BaseException as raised:
        failure = raised
    if isinstance(failure, SystemExit):
        return exit_status(failure)
    tell("Error in sys.excepthook:\n")
    inner = without_ours(failure.__traceback__)
    DISPLAY(type(failure), failure.with_traceback(inner), inner)
    tell("\nOriginal exception was:\n")
    DISPLAY(type(error), error, trace)
    return 1


def exit_status(error: SystemExit) -> int:
    """Turn SystemExit's code into a status, printing what is no number, as the interpreter does."""
    code = error.code
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF if -(1 << 63) <= code < 1 << 63 else 255
    try:
        text = str(code)
    except BaseException:
        text = ""
    tell(text + "\n")
    return 1


def status_of(error: BaseException | None) -> int:
    """Return the exit status after what a program raised, told as the interpreter tells it; below 0 for a signal."""
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        return exit_status(error)
    status = show_exception(error)
    return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else status


def shut_down(status: int) -> int:
    """What the interpreter does at its end: join threads, run exit handlers, let go. Returns the status."""
    join_threads()
    call(atexit._run_exitfuncs)
    drop_traceback()
    return let_go(status)


def rehearse(status: int) -> None:
    """Go through an end that is none: the pages it writes to become our own before a program's end waits for them."""
    join_threads()
    drop_traceback()
    let_go(status)
    sys.modules["io"] = io


def join_threads() -> None:
    """Wait for the program's threads."""
    if len(threading._active) > 1 or threading._threading_atexits:  # type: ignore[attr-defined]
        try:
            call(threading._shutdown)  # type: ignore[attr-defined]
        except BaseException as error:
            show_exception(error)


def drop_traceback() -> None:
    """Let go of the exception that ended the program, and with it of the frames it came through."""
    now = sys.__dict__
    if "last_value" in now:
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):
            now[name] = None


def let_go(status: int) -> int:
    """Destroy what the program made, in the interpreter's order, and flush before and after. Returns the status."""
    modules = sys.modules
    status = flush(status)
    if gc.isenabled():
        gc.collect()
    restore_streams()
    names = ["__main__"]
    for name in reversed(modules):
        if name == LAST_PRELOADED:
            break
        names.append(name)
    kept = [_weakref.ref(module) for name in names if isinstance(module := modules.get(name), types.ModuleType)]
    module = None
    for name in (*names, "io"):  # without io the interpreter finds no source lines to show, as at its own end
        modules[name] = None  # type: ignore[assignment]
    gc.collect()
    for reference in kept:
        if (left := reference()) is not None:
            clear_module(left.__dict__)
    for name in ("__stdout__", "__stderr__"):
        try:
            getattr(sys, name).flush()
        except BaseException:  # noqa: S110  # destroyed streams say nothing
            pass
    return status


def restore_streams() -> None:
    """Put the streams of the start back, so that those of the program are closed."""
    now = sys.__dict__
    for name, first in (("stdin", "__stdin__"), ("stdout", "__stdout__"), ("stderr", "__stderr__")):
        if now.get(name) is not now.get(first):
            now[name] = now.get(first)


def clear_module(names: dict[str, object]) -> None:
    """Drop a module's globals, private ones first."""
    for name in [n for n in names if n[:1] == "_" and n[1:2] != "_"] + [n for n in names if n != "__builtins__"]:
        names[name] = None


def flush(status: int) -> int:
    """Flush stdout and stderr as the interpreter does at its end: 120 when that fails, else `status`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name, None)
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except BaseException as error:
            status = 120
            if name == "stdout":
                tell(f"{FLUSHING.format(stream)}\n{type(error).__name__}: {error}\n")
    return status


def hooks_of_forks(hook: Callable[[], None]) -> tuple[list[Any], int]:
    """Return the list of what the interpreter calls in a fork's child, and where in it `hook` is.

    Only the collector knows where the interpreter keeps it. Where it is not found, nobody calls the list returned.
    """
    lists = [each for each in gc.get_referrers(hook) if type(each) is list]
    hooks = lists[0] if len(lists) == 1 else [hook]
    return hooks, hooks.index(hook)


def traceable(code: types.CodeType) -> ctypes.c_int:
    """Return the number of a code's first traceable instruction: the int before `co_extra`, which is last but the code.

    SAFETY: a view of the interpreter's memory; see `hide_frames` for when it is written.
    """
    return ctypes.c_int.from_address(id(code) + types.CodeType.__basicsize__ - 16)


def functions_in(code: types.CodeType) -> list[types.CodeType]:
    """Return the codes of all functions that a code makes."""
    inner = [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return inner + [below for each in inner for below in functions_in(each)]


def hide_frames(below: types.CodeType, scope: dict[str, Any], later: Iterable[types.CodeType]) -> None:
    """Have nothing that walks the stack see the frames of our own, which lie below the program's.

    SAFETY: CPython (3.11 to 3.14) passes over frames that have not reached their code's first traceable instruction.
    That number is set beyond the code's end, or to its last, and only if it is found at its place in code where its
    value is known. `scope` holds what the zygote is made of, `below` is the code that called them first, `later` are
    modules to come.
    """
    for cells in range(4):
        names = ", ".join(f"n{i}" for i in range(cells))
        made: dict[str, Any] = {}
        exec(f"def f({names}):\n return lambda: ({names})", made)
        if traceable(made["f"].__code__).value != cells:
            return
    made_here = [*scope.values(), *globals().values()]
    made_here += [each for kind in made_here if isinstance(kind, type) for each in vars(kind).values()]
    ours = [each.__code__ for each in made_here if isinstance(each, types.FunctionType)]
    for code in (below, *ours, *(each for module in later for each in functions_in(module))):
        # 3.12 would look for ever for where to trace a code in which there is no place at all.
        traceable(code).value = len(code.co_code) // 2 - 1 if sys.version_info[:2] == (3, 12) else 1 << 24


def find_depth() -> tuple[ctypes.Array[ctypes.c_int], int]:
    """Return this thread's state and which of its ints counts how much deeper calls may go; -1 when that is not found.

    SAFETY: a view of the interpreter's memory. The count lies before the limit, which is found by setting one that no
    other of the state's ints holds.
    """
    state = (ctypes.c_int * 32).from_address(thread_state())
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(7919)
    places = [at for at, value in enumerate(state) if value == 7919]
    sys.setrecursionlimit(limit)
    return state, places[0] - 1 if len(places) == 1 else -1


def hide_imports(seen: set[str]) -> None:
    """Have programs find only those modules imported."""
    for name in [each for each in sys.modules if each not in seen]:
        UNSEEN[name] = sys.modules.pop(name)
        package, _, last = name.rpartition(".")
        if package in seen:
            delattr(sys.modules[package], last)


def show_imports() -> None:
    """Have the program find all that is imported, which it then need not import again."""
    sys.modules.update(UNSEEN)
    for name, module in UNSEEN.items():
        package, _, last = name.rpartition(".")
        if package:
            setattr(sys.modules[package], last, module)


def fill_gaps() -> None:
    """Fill the places of objects that are gone, so that what a child makes lies together, in few pages.

    They are full when objects follow each other from the head of a pool on.
    """
    for size in SIZES:
        last = row = 0
        for _ in range(MOST_GAPS):
            filler: object = bytes(size - 33) if size > 32 else size << 40 if size > 16 else object()
            place = id(filler)
            row = row + 1 if row and place == last + size else int(place % POOL_BYTES == POOL_HEAD_BYTES)
            last = place
            FILLERS.append(filler)
            if row == 4:
                del FILLERS[-row:]
                break


if UNTRACED:  # what this thread does outside of `call`
    ctypes.pythonapi.PyThreadState_EnterTracing(ctypes.c_void_p(thread_state()))
