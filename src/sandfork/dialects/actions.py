"""What a dialect can ask of the engine but an execution, and what a client can say over a WebSocket.

Plain values: a dialect's parse makes one, `sandfork.http` has it done. Each says what it comes to, which is what the
dialect's render is given.
"""

from __future__ import annotations

import msgspec

from sandfork.dialects.base import Ask
from sandfork.images.state import Kind
from sandfork.model import ExecRequest, SessionSpec, TerminalSpec


class CreateSession(msgspec.Struct, frozen=True):
    """Make a session; without a `name` it gets one that cannot be guessed. Comes to a SessionState."""

    spec: SessionSpec
    name: str | None = None


class ReadSession(msgspec.Struct, frozen=True):
    """Comes to a SessionState."""

    name: str


class ListSessions(msgspec.Struct, frozen=True):
    """Comes to a sequence of SessionState, the caller's own."""


class DeleteSession(msgspec.Struct, frozen=True):
    """End a session. Comes to None. Where it may be `missing`, that is no error."""

    name: str
    missing: bool = False


class InterruptSession(msgspec.Struct, frozen=True):
    """Interrupt what runs in a session, as Ctrl-C does. Comes to None."""

    name: str


class ListFiles(msgspec.Struct, frozen=True):
    """Comes to a sequence of FileEntry."""

    session: str
    path: str


class ReadFile(msgspec.Struct, frozen=True):
    """Give a file, as it is read. Comes to its size in bytes, for which `render` gives a FileReply."""

    session: str
    path: str


class FileReply(msgspec.Struct, frozen=True):
    """An answer in which a file is sent: as it is, or, between two texts of JSON `around` it, as base64."""

    around: tuple[bytes, bytes] | None = None


class WriteFile(msgspec.Struct, frozen=True):
    """Write the file that came with the request. Comes to the size in bytes."""

    session: str
    path: str


class DeleteFile(msgspec.Struct, frozen=True):
    """Remove a file or a directory. Comes to None."""

    session: str
    path: str


class StartTask(msgspec.Struct, frozen=True):
    """Begin an execution that goes on without its client. Comes to a TaskState."""

    request: ExecRequest


class ReadTask(msgspec.Struct, frozen=True):
    """Comes to a TaskState."""

    task_id: str


class OpenTerminal(msgspec.Struct, frozen=True):
    """Start a command in a terminal. Comes to a TerminalState."""

    session: str
    spec: TerminalSpec
    name: str | None = None


class ReadTerminal(msgspec.Struct, frozen=True):
    """Comes to a TerminalState."""

    session: str
    name: str


class ListTerminals(msgspec.Struct, frozen=True):
    """Comes to a sequence of TerminalState."""

    session: str


class ResizeTerminal(msgspec.Struct, frozen=True):
    """Comes to a TerminalState."""

    session: str
    name: str
    cols: int
    rows: int


class CloseTerminal(msgspec.Struct, frozen=True):
    """End a terminal. Comes to None."""

    session: str
    name: str


class ListImages(msgspec.Struct, frozen=True):
    """Comes to a sequence of ImageState of that kind: this machine's, or the bucket's."""

    kind: Kind
    remote: bool = False


class ReadImage(msgspec.Struct, frozen=True):
    """Comes to an ImageState."""

    kind: Kind
    name: str


class DeleteImage(msgspec.Struct, frozen=True):
    """Take an image's or a snapshot's name away. Comes to None."""

    kind: Kind
    name: str


class CreateRootfs(msgspec.Struct, frozen=True):
    """Have an image made, or join who has it made already. Comes to None, as soon as that has begun."""

    language: str
    size_mb: int


class CreateSnapshot(msgspec.Struct, frozen=True):
    """Have a snapshot made, called as its language without a `name`. Comes to None, as soon as that has begun."""

    name: str
    language: str
    mem_mb: int
    vcpus: int


Action = (
    CreateSession
    | ReadSession
    | ListSessions
    | DeleteSession
    | InterruptSession
    | ListFiles
    | ReadFile
    | WriteFile
    | DeleteFile
    | StartTask
    | ReadTask
    | OpenTerminal
    | ReadTerminal
    | ListTerminals
    | ResizeTerminal
    | CloseTerminal
    | ListImages
    | ReadImage
    | DeleteImage
    | CreateRootfs
    | CreateSnapshot
)
"""What can be asked of the engine but an execution."""


class Begin(msgspec.Struct, frozen=True):
    """A message of a WebSocket: run this."""

    ask: Ask


class Input(msgspec.Struct, frozen=True):
    """A message of a WebSocket: write to stdin, or type; no bytes end stdin."""

    data: bytes


class Signal(msgspec.Struct, frozen=True):
    """A message of a WebSocket: send the program a signal."""

    number: int


class Resize(msgspec.Struct, frozen=True):
    """A message of a WebSocket: the terminal's new size."""

    cols: int
    rows: int


class Nothing(msgspec.Struct, frozen=True):
    """A message of a WebSocket that asks for nothing."""


Told = Begin | Input | Signal | Resize | Nothing
