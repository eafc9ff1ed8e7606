"""The lasting interpreters of the guest, started without a tier: ctl is a socket pair, and nothing is confined.

What a sandbox gives them is given here: a work directory, pipes for stdout and stderr, ctl at the number they know, and
a process group of their own for interrupts.
"""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sandfork

GUEST = Path(sandfork.__file__).parent / "guest"
ZYGOTE = Path(sandfork.__file__).parent / "native" / "bin" / "zygote.so"
FRAME = struct.Struct("=B3xI")
END = struct.Struct("=iIQQ")
#: A step that takes longer hangs.
STUCK_S = 60.0
AGAIN_S = 0.5
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "USER": "sandbox"}

#: What the zygote does before it forks, and its child up to RUN. The files are at the numbers the warden gives them.
BOOT_PYTHON = """
import os, sys, types
for at in range(6, 11):
    os.set_inheritable(at, False)
zygote = types.ModuleType("zygote")
with open(6, "rb") as file:
    exec(compile(file.read(), "/proc/self/fd/6", "exec"), zygote.__dict__)
sys.path.insert(0, os.getcwd())
os.close(zygote.CORE)
zygote.plain.LAST_PRELOADED = next(reversed(sys.modules))
zygote.load_later()
zygote.plain.hide_frames(sys._getframe().f_code, zygote.__dict__, zygote.CODES)
zygote.MAIN_NAMES["__name__"] = "__main__"
zygote.child(zygote.REDUCED)
"""


@dataclass
class StepRun:
    """What came of one step; `status` is None when the process ended instead of saying END."""

    status: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    displays: list[dict[str, Any]] = field(default_factory=list)
    #: Output of stdout and displays in their order.
    events: list[Any] = field(default_factory=list)
    ready_ns: int = 0
    done_ns: int = 0


class Guest:
    """One lasting process: takes steps, one by one."""

    def __init__(self, argv: Sequence[str], ctl_fd: int, work: Path, files: dict[int, Path] | None = None) -> None:
        self.work = work
        self.ctl, theirs = socket.socketpair()
        self.ctl.settimeout(STUCK_S)
        opened = {number: os.open(path, os.O_RDONLY) for number, path in (files or {}).items()}
        # Lifted out of the way of the numbers they get.
        lifted = {at: fcntl.fcntl(fd, fcntl.F_DUPFD, 200) for at, fd in (opened | {ctl_fd: theirs.fileno()}).items()}

        def place() -> None:
            for at, fd in lifted.items():
                os.dup2(fd, at)
                os.close(fd)

        self.process = subprocess.Popen(
            argv, cwd=work, env=ENVIRONMENT | {"HOME": str(work)}, close_fds=False, preexec_fn=place,
            start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        for fd in (*opened.values(), *lifted.values()):
            os.close(fd)
        theirs.close()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.outputs = {"stdout": self.process.stdout, "stderr": self.process.stderr}
        for pipe in self.outputs.values():
            os.set_blocking(pipe.fileno(), False)
        self.received = bytearray()

    def close(self) -> None:
        """Kill the process and all in its group."""
        with _no_process_is_fine():
            os.killpg(self.process.pid, signal.SIGKILL)
        with self.process:
            self.ctl.close()

    def interrupt(self) -> None:
        """Send what the server sends at a time limit."""
        os.killpg(self.process.pid, signal.SIGINT)

    def until_parked(self) -> None:
        """Wait for READY."""
        while (frame := self._next_frame()) is None:
            part = self.ctl.recv(65536)
            assert part, f"it ended: {self.outputs['stderr'].read()!r}"
            self.received += part
        assert frame == (ord("!"), b"")

    def run(self, code: str | bytes, *, interrupt_at: bytes = b"", **options: Any) -> StepRun:
        """Run one step to its end; when stdout holds `interrupt_at`, interrupt it."""
        self.begin(code.encode() if isinstance(code, str) else code, **options)
        return self.follow(interrupt_at)

    def begin(self, code: bytes, **options: Any) -> None:
        """Send a step."""
        raise NotImplementedError

    def follow(self, interrupt_at: bytes = b"") -> StepRun:
        """Read until the step or the process is over; what takes no notice of an interrupt gets another."""
        ran, interrupted = StepRun(), False
        with selectors.DefaultSelector() as selector:
            for source in (self.ctl, *self.outputs.values()):
                selector.register(source, selectors.EVENT_READ)
            silent_s = 0.0
            while ran.status is None:
                ready = selector.select(AGAIN_S if interrupted else STUCK_S)
                silent_s = 0.0 if ready else silent_s + (AGAIN_S if interrupted else STUCK_S)
                assert silent_s < STUCK_S, f"stuck: {ran}"
                # Ctl first: what is shown comes before output that was written after it.
                if any(key.fileobj is self.ctl for key, _ in ready) and not self._take_ctl(ran):
                    self._drain(ran)
                    return ran
                for name in [name for name, pipe in self.outputs.items() if pipe in [key.fileobj for key, _ in ready]]:
                    if not self._read(ran, name):
                        selector.unregister(self.outputs[name])
                if (interrupted and not ready) or (interrupt_at and interrupt_at in ran.stdout):
                    interrupted, interrupt_at = True, b""
                    self.interrupt()
        return ran

    def _take_ctl(self, ran: StepRun) -> bool:
        try:
            part = self.ctl.recv(1 << 20)
        except ConnectionResetError:  # it died without reading all
            part = b""
        self.received += part
        while (frame := self._next_frame()) is not None:
            kind, body = frame
            if kind == ord("D"):
                ran.displays.append(json.loads(body.decode()))
                ran.events.append(ran.displays[-1])
            elif kind == ord("S"):
                ran.ready_ns = int.from_bytes(body, sys.byteorder)
            elif kind == ord("E"):
                assert not self.received, "frames after END"
                self._drain(ran)
                ran.status, _, ran.ready_ns, ran.done_ns = END.unpack(body)
            else:
                raise AssertionError(f"a frame of kind {kind}")
        return bool(part)

    def _next_frame(self) -> tuple[int, bytes] | None:
        if len(self.received) < FRAME.size:
            return None
        kind, size = FRAME.unpack_from(self.received)
        if len(self.received) < FRAME.size + size:
            return None
        body = bytes(self.received[FRAME.size : FRAME.size + size])
        del self.received[: FRAME.size + size]
        return kind, body

    def _drain(self, ran: StepRun) -> None:
        """Take all output that is there."""
        for name in self.outputs:
            while self._read(ran, name):
                pass

    def _read(self, ran: StepRun, name: str) -> bool:
        """Take what one read of an output brings; False at its end or when nothing is there."""
        try:
            data = os.read(self.outputs[name].fileno(), 1 << 20)
        except BlockingIOError:
            return False
        setattr(ran, name, getattr(ran, name) + data)
        if name == "stdout" and data:
            ran.events.append(data)
        return bool(data)


@contextmanager
def _no_process_is_fine() -> Iterator[None]:
    try:
        yield
    except ProcessLookupError:
        pass


def packed(tag: str, value: bytes) -> bytes:
    """Return one field of RUN."""
    return FRAME.pack(ord(tag), len(value)) + value


def number(tag: str, value: int) -> bytes:
    """Return one field of RUN that is a number."""
    return packed(tag, value.to_bytes(8, sys.byteorder))


class FramedGuest(Guest):
    """A guest that takes RUN."""

    file_name = "main"
    words: tuple[str, ...] = ("main",)

    def begin(
        self, code: bytes, *, lasting: bool = True, rich: bool = False, stdin: bytes | None = None,
        env: dict[str, str] | None = None, args: Sequence[str] = (), limits: dict[str, int] | None = None,
    ) -> None:  # fmt: skip
        """Send RUN."""
        fields = [packed("a", word.encode() + b"\0") for word in (*self.words, *args)]
        fields += [packed("e", f"{name}={value}".encode() + b"\0") for name, value in (env or {}).items()]
        fields += [packed("f", self.file_name.encode() + b"\0"), packed("c", code)]
        fields += [number(tag, value) for tag, value in (limits or {}).items()]
        fields += [number("l", 1)] * lasting + [number("r", 1)] * rich
        if stdin is not None:
            (self.work / ".stdin").write_bytes(stdin)
            fields.append(packed("i", str(self.work / ".stdin").encode() + b"\0"))
        body = b"".join(fields)
        self.ctl.sendall(FRAME.pack(ord("R"), len(body)) + body)


class PythonGuest(FramedGuest):
    """A child of the Python zygote, without the fork."""

    file_name = "main.py"

    def __init__(self, work: Path, python: str = "/usr/bin/python3") -> None:
        names = {6: "zygote.py", 8: "plain.py", 9: "session.py", 10: "displays.py"}
        files = {at: GUEST / name for at, name in names.items()} | {7: ZYGOTE}
        super().__init__([python, "-c", BOOT_PYTHON], 63, work, files)


class BashGuest(Guest):
    """The lasting bash, as program_main starts it."""

    def __init__(self, work: Path) -> None:
        script = 'exec 14>&2 2>/dev/null; exec /bin/bash --noprofile --rcfile "$0" --noediting -i'
        super().__init__(["/bin/bash", "-c", script, str(GUEST / "session.bash")], 15, work)

    def begin(self, code: bytes, *, stdin: bytes | None = None) -> None:
        """Send the code."""
        if stdin is not None:
            (self.work / ".stdin").write_bytes(stdin)
        self.ctl.sendall(code + b"\0")


class NodeGuest(FramedGuest):
    """A parked node."""

    file_name = "main.js"
    words = ("node", "main.js")

    def __init__(self, work: Path) -> None:
        argv = ["/usr/bin/node", "--no-force-async-hooks-checks", "--require", str(GUEST / "park_node.js"), "main.js"]
        super().__init__(argv, 15, work)
