"""The programs that the tier contract runs, once for the fake tier's player and once for a Python interpreter."""

from __future__ import annotations

from dataclasses import dataclass

from sandfork.model import Step


@dataclass(frozen=True, slots=True)
class Text:
    """One program in both tongues."""

    fake: str
    python: str


PROGRAMS = {
    "hello": Text("out hello\nerr oops", "import sys\nprint('hello')\nprint('oops', file=sys.stderr)"),
    "bytes": Text("out \\0", "import os\nos.write(1, bytes(range(256)))"),
    "exit 3": Text("out before\nexit 3\nout after", "print('before')\nraise SystemExit(3)\nprint('after')"),
    "signal 6": Text("signal 6", "import os\nos.abort()"),
    "forever": Text("out begun\nsleep 3600", "import time\nprint('begun', flush=True)\ntime.sleep(3600)"),
    "stdin": Text("cat", "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())"),
    "ignore stdin": Text("out done", "print('done')"),
    "args": Text("args", "import sys\nprint(*sys.argv[1:])"),
    "env": Text("env COLOUR", "import os\nprint(os.environ['COLOUR'])"),
    "read": Text("cat given.txt", "print(open('given.txt').read(), end='')"),
    "read /tmp": Text("cat /tmp/given.txt", "print(open('/tmp/given.txt').read(), end='')"),
    "read itself": Text("cat main.txt", "print(open(__file__).read(), end='')"),
    "write": Text(
        "write made.txt one\nwrite sub/deep.txt two\nlink way /etc/passwd\nwrite /tmp/other.txt three",
        "import os\nopen('made.txt', 'w').write('one')\nos.mkdir('sub')\nopen('sub/deep.txt', 'w').write('two')\n"
        "os.symlink('/etc/passwd', 'way')\nopen('/tmp/other.txt', 'w').write('three')",
    ),
    "is fresh": Text(
        "cat made.txt",
        "import sys\ntry:\n    print(open('made.txt').read())\nexcept FileNotFoundError:\n    sys.exit(1)",
    ),
    "set": Text("set x one", "x = 'one'"),
    "get": Text("get x", "print(x)"),
    "die 7": Text("die 7", "import os\nos._exit(7)"),
    "show": Text("out before\nshow 'shown'\nout after", "print('before')\ndisplay('shown')\nprint('after')"),
    "show nothing": Text("show 'shown'", "assert 'display' not in globals()"),
    "lines": Text("read\nread\ncat", "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"),
    "terminal": Text(
        "size\nread\nsize",
        "import os\ndef size(): print(*reversed(os.get_terminal_size()), flush=True)\nsize()\nprint(input())\nsize()",
    ),
    "flood": Text("flood 1048576", "import os\nfor _ in range(1024): os.write(1, b'x' * 1024)"),
}
FLOOD_BYTES = 1 << 20


def fake_step(name: str, **change: object) -> Step:
    """Return the step of a program for the fake tier."""
    return _step(PROGRAMS[name].fake, "main.txt", change)


def python_step(name: str, **change: object) -> Step:
    """Return the step of a program for a template of kind fork."""
    return _step(PROGRAMS[name].python, "main.py", change)


def _step(text: str, file_name: str, change: dict[str, object]) -> Step:
    args = change.pop("args", ())
    assert isinstance(args, tuple)
    return Step((f"/sandbox/{file_name}", *args), file_name, text.encode(), **change)  # type: ignore[arg-type]
