"""The bodies and replies of our own API for sessions, files, terminals and tasks, as they are on the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sandfork.dialects.base import LANGUAGE
from sandfork.dialects.native_wire import (
    NAMED,
    EnvName,
    ErrorReply,
    ExecReply,
    LimitsBody,
    LimitsReply,
    Session,
    UsageReply,
    Word,
)

Instant = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
TaskStatus = Literal["running", "ended", "failed"]
Span = Annotated[float, Meta(ge=0.001, le=10 * 365 * 86400)]
Size = Annotated[int, Meta(ge=1, le=1000)]
Metadata = Annotated[
    dict[Annotated[str, Meta(min_length=1, max_length=100)], Annotated[str, Meta(max_length=1000)]], Meta(max_length=64)
]


class SessionBody(msgspec.Struct, frozen=True):
    """What a new session is to be."""

    id: Annotated[Session | None, Meta(description="Its id; one that cannot be guessed if none is given.")] = None
    language: (
        Annotated[
            str, Meta(description="That of runs that name none; `python` if not told.", extra_json_schema=LANGUAGE)
        ]
        | UnsetType
    ) = UNSET
    limits: Annotated[
        LimitsBody, Meta(description="Of the whole session; wall time, cpu time and output are each run's own.")
    ] = LimitsBody()
    env: Annotated[dict[EnvName, Word], Meta(description="Environment variables of all its processes.")] = {}
    lifetime_s: Annotated[Span | None, Meta(description="It ends so long after it was made.")] = None
    idle_s: Annotated[Span | None, Meta(description="It ends so long after its last use.")] = None
    metadata: Annotated[Metadata, Meta(description="Anything you want to find again.")] = {}


class SessionReply(msgspec.Struct, frozen=True):
    """A session as it is now."""

    id: str
    language: str
    created_at: Instant
    last_used_at: Instant
    expires_at: Instant
    busy: Annotated[bool, Meta(description="Whether something runs in it.")]
    executions: int
    limits: LimitsReply
    usage: UsageReply
    metadata: Mapping[str, str]


class SessionsReply(msgspec.Struct, frozen=True):
    """Your sessions, the oldest first."""

    sessions: Sequence[SessionReply]


class Done(msgspec.Struct, frozen=True):
    """It was done."""

    ok: bool = True


class FileEntryReply(msgspec.Struct, frozen=True):
    """One entry of a directory."""

    name: str
    kind: Annotated[str, Meta(description="`file`, `directory`, `link` or `other`.")]
    size_bytes: int


class FilesReply(msgspec.Struct, frozen=True):
    """A directory, its entries sorted by name."""

    path: str
    entries: Sequence[FileEntryReply]


class WrittenReply(msgspec.Struct, frozen=True):
    """A file that was written."""

    path: str
    size_bytes: int


class TerminalBody(msgspec.Struct, frozen=True):
    """A terminal to open: the command that runs in it, and its size."""

    argv: Annotated[list[Word], Meta(min_length=1, extra_json_schema=NAMED)] = msgspec.field(
        default_factory=lambda: ["/bin/bash"]
    )
    cols: Size = 80
    rows: Size = 24
    env: Annotated[dict[EnvName, Word], Meta(description="Environment variables to add.")] = {}


class SizeBody(msgspec.Struct, frozen=True):
    """The size of a terminal."""

    cols: Size
    rows: Size


class TerminalReply(msgspec.Struct, frozen=True):
    """A terminal as it is now."""

    id: str
    session: str
    argv: list[str]
    cols: int
    rows: int
    created_at: Instant
    exit_code: Annotated[int | None, Meta(description="How its command ended, null while it runs.")]


class TerminalsReply(msgspec.Struct, frozen=True):
    """The terminals of a session."""

    terminals: Sequence[TerminalReply]


class InputMessage(msgspec.Struct, frozen=True, tag_field="type", tag="input"):
    """Type this. A binary message does the same with its bytes."""

    text: str


class ResizeMessage(msgspec.Struct, frozen=True, tag_field="type", tag="resize"):
    """Tell the terminal its size."""

    cols: Size
    rows: Size


TerminalMessage = InputMessage | ResizeMessage


class ExitEvent(msgspec.Struct, frozen=True, tag_field="type", tag="exit"):
    """The command is over."""

    exit_code: int | None


class TaskReply(msgspec.Struct, frozen=True):
    """A run that nobody waits for: `result` once it ended, `error` if none can be given."""

    id: str
    status: TaskStatus
    created_at: Instant
    result: ExecReply | None
    error: ErrorReply | None
