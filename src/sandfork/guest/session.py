"""A lasting interpreter: step after step in one __main__, whose state stays.

Loaded into the zygote (see zygote.py), with `zygote` and `displays` given, for the children whose RUN says that they
are to last. Order of a step: the program's signal handlers -> limits, environment, stdin -> the code -> rich results ->
what it raised is told, output is flushed -> signals are held back -> END. Then the next RUN is waited for.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import builtins
import importlib
import importlib.machinery
import linecache
import os
import signal
import sys
import threading
import time
import traceback
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

zygote: Any = globals()["zygote"]
displays: Any = globals()["displays"]

ALLOW_AWAIT = 0x2000  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, without importing ast
IS_COROUTINE = 0x80  # inspect.CO_COROUTINE
INTERRUPTED = 130
STEP_NAME = "<step-"
MACHINERY = "asyncio", "selectors"  # what the event loop is made of


class Signals:
    """The program's signal handlers act only while a step runs.

    One that raises would else do so in code of ours. What came between two steps is handed on when the next begins,
    but SIGINT: that was for a step that is over.
    """

    def __init__(self) -> None:
        """Begin between two steps."""
        self.handlers: dict[int, Any] = {}
        self.late: list[int] = []
        self.mine = self.note
        self.hold_back()
        self.handlers[_signal.SIGINT] = _signal.default_int_handler
        _signal.signal(_signal.SIGINT, self.mine)

    def note(self, number: int, frame: types.FrameType | None) -> None:
        """Take a signal between two steps."""
        if number != _signal.SIGINT and number not in self.late:
            self.late.append(number)

    def let_through(self) -> None:
        """Put the program's handlers back; any may be called at once, and raise."""
        for number, handler in list(self.handlers.items()):
            _signal.signal(number, handler)
            del self.handlers[number]
        while self.late:
            _signal.raise_signal(self.late.pop(0))

    def hold_back(self) -> None:
        """Take over from the program's handlers; may be called again when one of them interrupted it."""
        for number in range(1, _signal.NSIG):
            handler = _signal.getsignal(number)
            if callable(handler) and handler is not self.mine:
                self.handlers[number] = handler
                _signal.signal(number, self.mine)


class Loop:
    """The event loop of awaits at top level: one for all steps, so that what belongs to it lives on."""

    def __init__(self) -> None:
        """Begin without one; most programs need none."""
        self.loop: Any = None
        self.interrupted = False

    def run(self, coroutine: Any) -> object:
        """Run to the end and return the value."""
        asyncio: Any = __import__("asyncio")  # the program's, not ours
        if self.loop is None or self.loop.is_closed():
            self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        task = self.loop.create_task(coroutine)
        before = signal.getsignal(signal.SIGINT)
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, self.interrupter(task))
        self.interrupted = False
        try:
            value: object = zygote.plain.call(self.loop.run_until_complete, task)
            return value
        except asyncio.CancelledError as error:
            if not self.interrupted:
                raise
            cancelled = error
        except KeyboardInterrupt:
            if not task.done():  # the code of another task was interrupted
                task.cancel()
                self.loop.run_until_complete(asyncio.wait([task]))
            raise
        finally:
            if before is signal.default_int_handler:
                signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt().with_traceback(cancelled.__traceback__)

    def interrupter(self, task: Any) -> Callable[[int, types.FrameType | None], None]:
        """Return a handler of SIGINT: it interrupts code of the program's, else it cancels `task`.

        An exception in the event loop's own code could leave a task that no event ever comes to.
        """

        def interrupt(number: int, frame: types.FrameType | None) -> None:
            if is_above(MACHINERY, frame):
                raise KeyboardInterrupt
            self.interrupted = True
            task.cancel()
            self.loop.call_soon_threadsafe(int)  # wakes it

        return interrupt


def is_above(machinery: tuple[str, ...], frame: types.FrameType | None) -> bool:
    """Tell whether anything on the stack down to ours is not of these packages."""
    while frame is not None and frame.f_code.co_filename not in zygote.plain.OUR_FILES:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in machinery:
            return True
        frame = frame.f_back
    return False


class Session:
    """The state between steps, beside what the program itself keeps."""

    def __init__(self, job: Any) -> None:
        """Begin: a __main__ without a file, as that of the interactive interpreter."""
        self.main = zygote.new_main(zygote.WORK_DIR + "/" + job.name)
        del self.main.__file__
        self.main.__loader__ = importlib.machinery.BuiltinImporter
        sys.path[0] = zygote.WORK_DIR
        self.count = 0
        self.flags = 0  # the __future__ of earlier steps
        self.loop = Loop()
        self.ready_ns = self.done_ns = 0
        zygote.plain.DISPLAY = sys.excepthook = sys.__excepthook__ = show_exception
        threading.excepthook = show_thread_exception
        self.signals = Signals()

    def perform(self, job: Any) -> int:
        """Run one step; return its status.

        An interrupt may come between any two lines until signals are held back; it counts for this step.
        """
        error: BaseException | None = None
        begun = told = False
        status = 0
        while True:
            try:
                if not begun:
                    begun = True
                    self.signals.let_through()
                    self.run(job)
                if not told:
                    told = True
                    status = self.tell(error)
                self.signals.hold_back()
                break
            except BaseException as raised:
                if not told:
                    error = raised
                elif isinstance(raised, KeyboardInterrupt):
                    status = INTERRUPTED
        displays.line.close()
        return status

    def run(self, job: Any) -> None:
        """Prepare and execute; raises what the program does."""
        self.ready_ns = self.done_ns = time.monotonic_ns()
        self.prepare(job)
        self.ready_ns = time.monotonic_ns()
        try:
            self.execute(job)
        except KeyboardInterrupt:
            raise
        except BaseException:
            displays.show_figures()
            raise
        else:
            displays.show_figures()
        finally:
            self.done_ns = time.monotonic_ns()

    def prepare(self, job: Any) -> None:
        """Set up what is a step's own."""
        for key, text in job.env:
            os.environ[key] = text
        sys.argv[:] = [zygote.WORK_DIR + "/" + job.name, *job.argv[1:]]
        renew_stdin(job.stdin)
        importlib.invalidate_caches()  # files may have come since
        if job.rich:
            displays.begin()

    def execute(self, job: Any) -> None:
        """Compile and run the code; its lines can be looked up from now on, by the name of the step."""
        self.count += 1
        name = f"{STEP_NAME}{self.count}>"
        linecache.cache[name] = len(job.code), None, displays.lines_of(job.code), name
        flags, last = self.flags | ALLOW_AWAIT, None
        if job.rich:
            body, last = displays.split(job.code, name, flags)
        else:
            body = compile(job.code, name, "exec", flags, True)
        self.flags |= body.co_flags & displays.FUTURES
        self.evaluate(body)
        if last is not None:
            displays.show_result(self.evaluate(last))

    def evaluate(self, code: types.CodeType) -> object:
        """Run code in __main__ and return its value; what awaits runs on the event loop."""
        value: object = zygote.plain.call(eval, code, self.main.__dict__)
        return self.loop.run(value) if code.co_flags & IS_COROUTINE else value

    def tell(self, error: BaseException | None) -> int:
        """Tell what a step raised, as the interpreter does; flush; return the status."""
        if error is not None:
            forget_frames_below(error)
        status: int = zygote.plain.status_of(error)
        return int(zygote.plain.flush(INTERRUPTED if status < 0 else status))


def forget_frames_below(error: BaseException) -> None:
    """Drop from a traceback, and from those of what led to it, what lies below the step: the event loop's frames."""
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        each = chain.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        chain += [each.__cause__, each.__context__]
        trace = each.__traceback__
        while trace is not None and not trace.tb_frame.f_code.co_filename.startswith(STEP_NAME):
            trace = trace.tb_next
        if trace is not None or each is error:
            each.__traceback__ = trace


def renew_stdin(path: str) -> None:
    """Have descriptor 0 and sys.stdin be this step's input: a file, which is unlinked, or nothing."""
    try:
        fd = os.open(path or os.devnull, os.O_RDONLY)
    except OSError:  # the program holds as many as it may: the last step's input makes room
        os.close(0)
        fd = os.open(path or os.devnull, os.O_RDONLY)
    if fd:
        os.dup2(fd, 0)
        os.close(fd)
    if path:
        os.unlink(path)
    before: Any = sys.__stdin__
    after: Any = open(0, encoding=before.encoding, errors=before.errors, closefd=False)  # noqa: SIM115
    after.buffer.raw.name = before.name
    if sys.stdin is before:
        sys.stdin = after
    sys.__stdin__ = after  # type: ignore[misc]


def show_exception(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """Be sys.excepthook; the interpreter's own looks for source lines in files only."""
    if sys.stderr is not None:
        traceback.print_exception(kind, error, trace)


def show_thread_exception(args: threading.ExceptHookArgs) -> None:
    """Be threading.excepthook, for the same reason."""
    if args.exc_type is SystemExit or sys.stderr is None:
        return
    name = threading.get_ident() if args.thread is None else args.thread.name
    print(f"Exception in thread {name}:", file=sys.stderr, flush=True)
    traceback.print_exception(args.exc_type, args.exc_value, args.exc_traceback)
    sys.stderr.flush()


def serve(fd: int, job: Any) -> NoReturn:
    """Run one step after another, as they come on `fd`; never returns.

    A child that the program forked comes back here, too: it ends where its parent goes on. So does a program that
    closed or replaced our descriptor; the kernel then tells how it ended.
    """
    own_pid, own_socket = os.getpid(), os.fstat(fd)[:3]
    session = Session(job)
    while True:
        status = session.perform(job)
        if os.getpid() != own_pid or not same_socket(fd, own_socket):
            os._exit(zygote.plain.shut_down(status))
        os.write(fd, zygote.end_frame(status, session.ready_ns, session.done_ns))
        job = zygote.receive(fd)


def same_socket(fd: int, expected: tuple[Any, ...]) -> bool:
    """Tell whether a descriptor is still what it was."""
    try:
        return os.fstat(fd)[:3] == expected
    except OSError:
        return False


# What is settled in the zygote is shared by all sessions (see zygote.py), so this does what many steps do.
REHEARSAL = (
    b"import os\ndef greet(name):\n    return f'{name} {1 + 1}'\nprint(greet('a'))\n{'a': [1.5]}",
    b"x = 1",
    b"1 / 0",
)


def rehearse(times: int) -> None:
    """Run made-up steps in the zygote and leave no trace of them."""
    kept = [(names, dict(names)) for names in (vars(sys), vars(builtins), vars(threading), vars(zygote.plain))]
    main, finders, variables = sys.modules["__main__"], list(sys.meta_path), dict(os.environ)
    copies = [os.dup(fd) for fd in range(3)]
    ours, theirs = os.pipe()
    displays.line.fd = null = os.open(os.devnull, os.O_WRONLY)
    for fd in (1, 2):
        os.dup2(null, fd)
    try:
        session = Session(ask(ours, theirs, b""))
        for code in REHEARSAL * times:
            status = session.perform(ask(ours, theirs, code))
            os.write(null, zygote.end_frame(status, session.ready_ns, session.done_ns))
    finally:
        for fd, copy in enumerate(copies):
            os.dup2(copy, fd)
        for fd in (*copies, ours, theirs, null):
            os.close(fd)
    displays.line.fd = zygote.CTL
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    for names, before in kept:
        for name in names.keys() - before.keys():
            del names[name]
        names.update(before)
    sys.modules["__main__"], sys.meta_path[:] = main, finders
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    linecache.clearcache()


def ask(ours: int, theirs: int, code: bytes) -> Any:
    """Ask for a lasting step with rich results, and return what is received."""
    fields = ((99, code), (97, b"main.py\0"), (102, b"main.py\0"), (108, b"\1" * 8), (114, b"\1" * 8))
    body = b"".join(zygote.FRAME.pack(tag, len(value)) + value for tag, value in fields)
    os.write(theirs, zygote.FRAME.pack(82, len(body)) + body)
    return zygote.receive(ours)
