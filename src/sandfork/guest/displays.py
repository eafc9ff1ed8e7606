"""Rich results: what a program shows goes to the host as MIME bundles on ctl, as a notebook would have them.

Loaded into the zygote (see zygote.py), with `zygote` given, for the children whose steps may want rich results. In such
a step the value of the last expression is shown, what `display` is called with, and the figures that are open at its
end. A frame is written only while such a step runs: at any other time the server takes one for a forgery.
"""

from __future__ import annotations
import __future__

import _ast
import _signal  # type: ignore[import-not-found]
import binascii
import builtins
import fcntl
import importlib.machinery
import io
import json
import os
import sys
import termios
import threading
import time
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

zygote: Any = globals()["zygote"]

SIGNALS = _signal.valid_signals()
BUNDLE_BYTES = 8 << 20
READ_TRIES = 100
READ_PAUSE_S = 0.0005
ONLY_AST = 0x400  # ast.PyCF_ONLY_AST, without importing ast
FUTURES = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
PYPLOT = "matplotlib.pyplot"

# In the order in which a notebook asks for them.
METHODS = (
    ("text/html", "_repr_html_"),
    ("text/markdown", "_repr_markdown_"),
    ("image/svg+xml", "_repr_svg_"),
    ("image/png", "_repr_png_"),
    ("application/pdf", "_repr_pdf_"),
    ("image/jpeg", "_repr_jpeg_"),
    ("text/latex", "_repr_latex_"),
    ("application/json", "_repr_json_"),
    ("application/javascript", "_repr_javascript_"),
)


class Line:
    """Ctl while it takes displays: in the process the host knows, one frame at a time."""

    def __init__(self, fd: int) -> None:
        """Begin closed; `fd` is ctl."""
        self.fd = fd
        self.pid = os.getpid()
        self.open = False
        self.lock = threading.RLock()

    def send(self, body: bytes) -> bool:
        """Write a frame, if the line is open here.

        A signal's handler may raise between any two of our lines, so nothing but one call writes; with signals blocked
        in this thread that call writes all.
        """
        frame = zygote.FRAME.pack(68, len(body)) + body
        with self.lock:
            if not self.open or os.getpid() != self.pid:
                return False
            before = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
            try:
                _signal.pthread_sigmask(_signal.SIG_BLOCK, SIGNALS)
                os.write(self.fd, frame)
            finally:
                _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
            return True

    def close(self) -> None:
        """Send nothing any more, and nothing half."""
        with self.lock:
            self.open = False


line = Line(zygote.CTL)


def begin() -> None:
    """Have what the program shows sent from now on."""
    line.open, line.pid = True, os.getpid()
    if not hasattr(builtins, "display"):
        builtins.display = display  # type: ignore[attr-defined]
    # No figure opens a window here, and this spares matplotlib the search for one that would.
    os.environ.setdefault("MPLBACKEND", "agg")
    pyplot = sys.modules.get(PYPLOT)
    if pyplot is not None:
        show_figures_at(pyplot)
    elif not any(isinstance(finder, PyplotFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, PyplotFinder())


def run_code(source: bytes, path: str, main: types.ModuleType) -> BaseException | None:
    """Compile and execute as the zygote does, and show what there is to show; return what was raised."""
    begin()
    error: BaseException | None = None
    try:
        if zygote.plain.reads_as_text(source):
            body, last = split(source, path, 0)
            zygote.plain.call(exec, body, main.__dict__)
            if last is not None:
                show_result(zygote.plain.call(eval, last, main.__dict__))
        else:
            zygote.plain.run_file(path, main)
    except BaseException as raised:
        error = raised
    try:
        if not isinstance(error, KeyboardInterrupt):
            show_figures()
        line.close()
    except BaseException as raised:
        error = raised
    return error


def split(source: bytes, path: str, flags: int) -> tuple[types.CodeType, types.CodeType | None]:
    """Compile a program: all of it, or all but its last expression and that. A semicolon keeps its value back."""
    tree = compile(source, path, "exec", flags | ONLY_AST, True)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, _ast.Expr) or ends_quietly(source, last):
        return compile(source, path, "exec", flags, True), None
    del tree.body[-1]
    body = compile(tree, path, "exec", flags, True)
    return body, compile(_ast.Expression(last.value), path, "eval", flags | body.co_flags & FUTURES, True)


def ends_quietly(source: bytes, last: _ast.Expr) -> bool:
    """Tell whether a semicolon follows the last expression."""
    line_number, column = last.end_lineno, last.end_col_offset
    if line_number is None or column is None:
        return False
    return lines_of(source)[line_number - 1].encode()[column:].lstrip().startswith(b";")


def lines_of(source: bytes) -> list[str]:
    """Return the lines of a source as the compiler counts them, each with its end."""
    text = source.decode("utf-8", "replace").removeprefix("\ufeff")
    return [each + "\n" for each in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]


def show_result(value: object) -> None:
    """Show the value of a last expression and keep it as `_`."""
    if value is None:
        return
    builtins._ = value  # type: ignore[attr-defined]
    show(value, "result")


def display(*objects: object, raw: bool = False) -> None:
    """Show objects: each as what it has for a notebook, else as its repr. With `raw` they are MIME bundles."""
    for each in objects:
        if raw and isinstance(each, dict):
            send({kind: content for kind, content in each.items() if isinstance(kind, str)}, "display")
        elif line.open and os.getpid() == line.pid:
            show(each, "display")
        else:
            print(repr(each))


def show(value: object, kind: str) -> None:
    """Send the representations of one value; an object that shows itself is left to it."""
    shows_itself = method_of(value, "_ipython_display_")
    if shows_itself is not None:
        try:
            shows_itself()
            return
        except Exception:  # noqa: S110  # it is shown as any other, then
            pass
    send(bundle(value), kind)
    if is_figure(value):
        sys.modules[PYPLOT].close(value)  # the end of the step shows what is open, and this was shown


def is_figure(value: object) -> bool:
    """Tell whether a value is a figure of matplotlib."""
    pyplot: Any = sys.modules.get(PYPLOT)
    return pyplot is not None and isinstance(value, getattr(pyplot, "Figure", ()))


def bundle(value: object) -> dict[str, object]:
    """Return the representations of a value by MIME type; one that raises is left out, as in a notebook.

    If there is none, what the last one raised is told on stderr.
    """
    found: dict[str, object] = {}
    failure: Exception | None = None
    whole = method_of(value, "_repr_mimebundle_")
    makers: list[tuple[str, Callable[[], object] | None]] = [(kind, method_of(value, name)) for kind, name in METHODS]
    if is_figure(value):
        makers.append(("image/png", lambda: draw(value)))
    makers.append(("text/plain", lambda: repr(value)))
    try:
        made = whole(include=None, exclude=None) if whole is not None else None
        found.update(without_metadata(made) or {})
    except Exception as error:
        failure = error
    for kind, make in makers:
        try:
            content = without_metadata(make()) if make is not None and kind not in found else None
        except Exception as error:
            failure = error
            continue
        if content is not None:
            found[kind] = content
    if failure is not None and not found:
        tell_failure(failure)
    return found


def without_metadata(made: Any) -> Any:
    """Return content that may have come with metadata."""
    return made[0] if isinstance(made, tuple) and len(made) == 2 else made


def method_of(value: object, name: str) -> Callable[..., object] | None:
    """Return a method an object really has: some say yes to every name, and a class's are for its instances."""
    try:
        if isinstance(value, type) or getattr(value, "_sandfork_no_such_method_", None) is not None:
            return None
        method = getattr(value, name, None)
    except Exception:
        return None
    return method if callable(method) else None


def send(found: dict[str, object], kind: str) -> None:
    """Send a bundle, after all output before it; the largest representations are left out until it fits."""
    parts = {}
    for name, content in found.items():
        text = as_text(content)
        if text is not None:
            parts[quoted(name)] = quoted(text)
    while sum(len(name) + len(text) + 2 for name, text in parts.items()) > BUNDLE_BYTES - 64:
        del parts[max(parts, key=lambda name: len(parts[name]))]
    if not parts:
        return
    let_output_pass()
    content = b",".join(name + b":" + text for name, text in parts.items())
    line.send(b'{"kind":"%s","data":{%s}}' % (kind.encode(), content))


def let_output_pass() -> None:
    """Flush, and wait a moment until the host has read all: so it knows what stood before what is shown.

    It takes frames before output, so what is written after the frame comes after it. Where output never ends, or the
    host reads no more just now, the order is not worth a longer wait.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # noqa: S110  # the program's own stream; its next write tells it
            pass
    for _ in range(READ_TRIES):
        if not any(unread_bytes(fd) for fd in (1, 2)):
            return
        time.sleep(READ_PAUSE_S)


def unread_bytes(fd: int) -> int:
    """Return how much of a pipe nobody has read; 0 for what is none."""
    try:
        return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
    except OSError:
        return 0


def as_text(content: object) -> str | None:
    """Return a representation as it travels: bytes as base64, what is no text as JSON; None if it is neither."""
    if isinstance(content, str):
        return content
    if isinstance(content, bytes | bytearray | memoryview):
        return binascii.b2a_base64(content, newline=False).decode()
    try:
        return None if content is None else json.dumps(content)
    except Exception:
        return None


def quoted(text: str) -> bytes:
    """Return a text as JSON in UTF-8, which has no place for lone surrogates."""
    return json.dumps(text, ensure_ascii=False).encode("utf-8", "replace")


def tell_failure(error: Exception) -> None:
    """Tell on stderr why something is not shown; the step goes on."""
    error.__traceback__ = trace = zygote.plain.without_ours(error.__traceback__)
    zygote.plain.DISPLAY(type(error), error, trace)


class PyplotFinder:
    """Waits for pyplot to be imported and makes its `show` show; then it is gone from sys.meta_path."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Return pyplot's own spec, with what is done after its code has run."""
        if name != PYPLOT:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        loader: Any = spec.loader if spec is not None else None
        if loader is not None:
            execute = loader.exec_module

            def execute_then_show(module: types.ModuleType) -> None:
                execute(module)
                del loader.exec_module
                show_figures_at(module)

            loader.exec_module = execute_then_show
        return spec


def show_figures_at(pyplot: Any) -> None:
    """Have pyplot's `show` show the open figures, where that goes somewhere."""
    if getattr(pyplot.show, "shows_figures", False):
        return
    original = pyplot.show

    def show(*args: object, **options: object) -> object:
        """Show the open figures and close them."""
        if not line.open:
            return original(*args, **options)
        show_figures()
        return None

    show.shows_figures = True  # type: ignore[attr-defined]
    pyplot.show = show


def show_figures() -> None:
    """Show the open figures in their order, then close them, as the inline backend of notebooks does."""
    pyplot = sys.modules.get(PYPLOT)
    if not line.open or pyplot is None or not hasattr(pyplot, "get_fignums"):
        return
    numbers = pyplot.get_fignums()
    managers = pyplot._pylab_helpers.Gcf.figs
    try:
        for figure in [managers[number].canvas.figure for number in numbers]:
            send(bundle(figure), "display")
    finally:
        pyplot.close("all")


def draw(figure: Any) -> bytes | None:
    """Return a figure as PNG; None when there is nothing on it, or it cannot be drawn, which is told on stderr."""
    if not figure.axes and not figure.lines:
        return None
    file = io.BytesIO()
    try:
        figure.savefig(file, format="png", bbox_inches="tight")
    except Exception as error:
        tell_failure(error)
        return None
    return file.getvalue()
