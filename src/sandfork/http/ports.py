"""What the HTTP side needs of the rest: an engine to run programs, its sessions, and somewhere to count refusals."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from typing import Protocol

from sandfork.images.state import ImageState, Kind
from sandfork.model import (
    Caller,
    ExecRequest,
    ExecResult,
    FileEntry,
    SessionKey,
    SessionSpec,
    SessionState,
    TaskState,
    TemplateHealth,
    TerminalSpec,
    TerminalState,
)
from sandfork.tiers.base import OutputSink


class RunningExecution(Protocol):
    """The handle of an execution, from before it queues to its end."""

    @property
    def exec_id(self) -> str:
        """Its id."""
        ...

    def resume(self) -> None:
        """Read output again after the sink refused more."""
        ...

    async def feed(self, data: bytes) -> None:
        """Write to stdin at the program's pace, if it was asked to be kept open; no bytes close it."""
        ...

    def signal(self, number: int) -> None:
        """Send a signal to the program."""
        ...


OnStart = Callable[[RunningExecution], None]


class ExecutionEngine(Protocol):
    """Runs programs."""

    async def execute(
        self, request: ExecRequest, caller: Caller, sink: OutputSink | None = None, on_start: OnStart | None = None
    ) -> ExecResult:
        """Run one program. Cancelling the awaiting task kills it. *Raises* SandforkError."""
        ...

    def health(self) -> Sequence[TemplateHealth]:
        """Return the state of every template."""
        ...

    @property
    def sessions(self) -> Sessions:
        """The sessions that executions can belong to."""
        ...

    @property
    def tasks(self) -> Tasks:
        """Executions that nobody waits for."""
        ...

    @property
    def images(self) -> Images | None:
        """Images and snapshots; None where none are made and kept."""
        ...


class Sessions(Protocol):
    """Sandboxes that outlive an execution. Every method *Raises* SessionNotFound for what is not the caller's."""

    async def create(self, key: SessionKey, caller: Caller, spec: SessionSpec) -> SessionState:
        """Make a session. *Raises* InvalidRequest (there is one), CapacityError, CallerError, TierError."""
        ...

    def state(self, key: SessionKey) -> SessionState:
        """Return the session as it is now."""
        ...

    def list(self, space: str, owner: str) -> Sequence[SessionState]:
        """Return the owner's sessions, the oldest first."""
        ...

    async def delete(self, key: SessionKey) -> None:
        """End a session and everything in it; what runs in it fails with SessionNotFound."""
        ...

    def interrupt(self, key: SessionKey) -> None:
        """Interrupt what runs in the session, as Ctrl-C does; its interpreter keeps its state."""
        ...

    async def list_files(self, key: SessionKey, path: str) -> Sequence[FileEntry]:
        """Return a directory's entries. *Raises* FileNotInSandbox."""
        ...

    async def read_file(self, key: SessionKey, path: str) -> tuple[int, AsyncIterator[bytes]]:
        """Return a file's size and its content in chunks. *Raises* FileNotInSandbox."""
        ...

    async def write_file(self, key: SessionKey, path: str, chunks: AsyncIterable[bytes], mode: int = 0o644) -> int:
        """Write a file as its content arrives; return its size. *Raises* FileNotInSandbox."""
        ...

    async def delete_file(self, key: SessionKey, path: str) -> None:
        """Remove a file or a directory. *Raises* FileNotInSandbox."""
        ...

    async def open_terminal(self, key: SessionKey, spec: TerminalSpec, name: str | None = None) -> TerminalState:
        """Start a command in a terminal. *Raises* InvalidRequest, CapacityError, TierError."""
        ...

    def terminals(self, key: SessionKey) -> Sequence[TerminalState]:
        """Return the session's terminals."""
        ...

    def terminal(self, key: SessionKey, name: str) -> TerminalState:
        """Return one terminal. *Raises* SessionNotFound."""
        ...

    def connect(self, key: SessionKey, name: str) -> Connection:
        """Follow a terminal, from what it showed last; one client at a time, a new one takes the place of the old."""
        ...

    def resize_terminal(self, key: SessionKey, name: str, cols: int, rows: int) -> None:
        """Tell a terminal its size. *Raises* InvalidRequest."""
        ...

    async def close_terminal(self, key: SessionKey, name: str) -> None:
        """End a terminal and what runs in it."""
        ...


class Connection(Protocol):
    """A client's end of a terminal."""

    async def read(self) -> bytes:
        """Return what it showed, as soon as there is something; no bytes once it is over, or another took its place."""
        ...

    async def write(self, data: bytes) -> None:
        """Type."""
        ...

    @property
    def exit_code(self) -> int | None:
        """How its command ended; None while it runs."""
        ...

    def close(self) -> None:
        """Go away; the terminal stays."""
        ...


class Tasks(Protocol):
    """Executions that go on without their client; what came of them is kept for a while."""

    def start(self, request: ExecRequest, caller: Caller) -> TaskState:
        """Begin one. *Raises* CallerError for what can never run, CapacityError when too many are under way or kept."""
        ...

    def read(self, task_id: str, caller: Caller) -> TaskState:
        """Return what came of it so far. *Raises* SessionNotFound for one that is not the caller's."""
        ...


class Images(Protocol):
    """Root file system images and snapshots. Every method *Raises* SandforkError."""

    async def list(self, kind: Kind, *, remote: bool = False) -> Sequence[ImageState]:
        """Return all by name: this machine's, with those being made, or the bucket's."""
        ...

    async def read(self, kind: Kind, name: str) -> ImageState:
        """Return one of this machine's."""
        ...

    async def remove(self, kind: Kind, name: str) -> None:
        """Take a name away."""
        ...

    def build(self, language: str, size_mb: int) -> bool:
        """Have the image of a language made; False when it is being made already."""
        ...

    def snapshot(self, name: str, language: str, mem_mb: int, vcpus: int) -> bool:
        """Have a snapshot made; False when it is being made already."""
        ...


class RequestMetrics(Protocol):
    """Counts what never reached the engine, and shows all that was counted."""

    def rejected(self, reason: str) -> None:
        """Count a request refused before it reached the engine."""
        ...

    def exposition(self) -> bytes:
        """Return every metric in Prometheus' text format."""
        ...
