"""Our own API while a program runs: events out, as server-sent events or WebSocket messages, and messages in.

An event is one JSON object whose `type` tells what it is; as a server-sent event it is the `data` of an event of that
name. `started` comes first. Text comes as the program writes it, with characters that came in two pieces put together;
the texts of one stream joined are the text of a plain reply. `result` or `error` is the last.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sandfork.dialects import fields
from sandfork.dialects.actions import Begin, Input, Nothing, Signal, Told
from sandfork.dialects.base import Ask, Bounds
from sandfork.dialects.native_run import Shape, content_of, error_of, result_of, run_of, shape_of
from sandfork.dialects.native_wire import Content, LimitsReply, RunBody, UsageReply
from sandfork.errors import SandforkError
from sandfork.model import Command, Display, ExecResult, Outcome, Stream


class StartedEvent(msgspec.Struct, frozen=True, tag="started"):
    """The run was taken in; it may still wait for its turn."""

    id: str


class StdoutEvent(msgspec.Struct, frozen=True, tag="stdout"):
    """The program wrote to standard output."""

    text: str


class StderrEvent(msgspec.Struct, frozen=True, tag="stderr"):
    """The program wrote to standard error."""

    text: str


class DisplayEvent(msgspec.Struct, frozen=True, tag="display"):
    """The program showed a rich value."""

    kind: str
    data: Mapping[str, str]


class ResultEvent(msgspec.Struct, frozen=True, tag="result"):
    """What came of the run: what a plain reply tells, without what was told before."""

    id: str
    exit_code: int
    fork_time_ms: float
    exec_time_ms: float
    total_time_ms: float
    queue_time_ms: float
    outcome: Outcome
    signal: int | None
    truncated: bool
    usage: UsageReply
    limits: LimitsReply
    isolation: str
    image: str | None
    files: dict[str, Content]
    files_skipped: list[str]
    state_lost: bool | UnsetType = UNSET
    failed_step: str | UnsetType = UNSET
    compile_time_ms: float | UnsetType = UNSET


class ErrorEvent(msgspec.Struct, frozen=True, omit_defaults=True, tag="error"):
    """Why no result can be given, or why a message was not obeyed."""

    error: str
    code: str
    request_id: str
    field: str | None = None


Event = StartedEvent | StdoutEvent | StderrEvent | DisplayEvent | ResultEvent | ErrorEvent

_encode = msgspec.json.Encoder().encode


def sse(event: Event) -> str:
    """Return an event as a server-sent one; JSON has no line breaks."""
    return f"event: {event.__struct_config__.tag}\ndata: {_encode(event).decode()}\n\n"


def socket_text(event: Event) -> str:
    """Return an event as a message of a WebSocket, a line of its own."""
    return _encode(event).decode() + "\n"


class _Writer:
    """Tells one run, each event as `put` writes it."""

    def __init__(self, shape: Shape, put: Callable[[Event], str]) -> None:
        self._shape = shape
        self._put = put
        self._texts = {Stream.STDOUT: fields.ChunkedText(), Stream.STDERR: fields.ChunkedText()}
        self._line_is_open = False

    def started(self, exec_id: str) -> str:
        """Tell the id."""
        return self._put(StartedEvent(exec_id))

    def output(self, stream: Stream, data: bytes) -> str:
        """Tell what is whole characters."""
        return self._tell(stream, self._texts[stream].add(data))

    def _tell(self, stream: Stream, text: str) -> str:
        if not text:
            return ""
        if stream is Stream.STDOUT:
            return self._put(StdoutEvent(text))
        self._line_is_open = not text.endswith("\n")
        return self._put(StderrEvent(text))

    def display(self, shown: Display) -> str:
        """Tell a rich value."""
        return self._put(DisplayEvent(shown.kind, shown.data))

    def finished(self, result: ExecResult) -> str:
        """Tell the rest of both streams, and the result."""
        rest = "".join(self._tell_rest(stream) for stream in Stream)
        if result.outcome is Outcome.TIMED_OUT:
            line = fields.timed_out_line(result.limits)
            rest += self._tell(Stream.STDERR, f"\n{line}" if self._line_is_open else line)
        reply = result_of(result, self._shape)
        event = ResultEvent(*(getattr(reply, name) for name in ResultEvent.__struct_fields__))
        return rest + self._put(event)

    def _tell_rest(self, stream: Stream) -> str:
        return self._tell(stream, self._texts[stream].end())

    def failed(self, error: SandforkError, request_id: str) -> str:
        """Tell an error in the place of a result."""
        return self._put(_error_event(error, request_id))


def writer(shape: Shape, put: Callable[[Event], str]) -> _Writer:
    """Return what tells one run."""
    return _Writer(shape, put)


def _error_event(error: SandforkError, request_id: str) -> ErrorEvent:
    told = error_of(error, request_id)
    return ErrorEvent(told.error, told.code, told.request_id, told.field)


class StartMessage(RunBody, frozen=True, tag_field="type", tag="start"):
    """Run this; `stdin` is what standard input begins with.

    It stays open until `end_stdin`, but that of a session's interpreter, which is given it whole.
    """


class StdinMessage(msgspec.Struct, frozen=True, tag_field="type", tag="stdin"):
    """Write to standard input. A binary message does the same with its bytes."""

    data: Content


class EndStdinMessage(msgspec.Struct, frozen=True, tag_field="type", tag="end_stdin"):
    """End standard input."""


SignalName = Literal["SIGINT", "SIGTERM", "SIGKILL", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCONT", "SIGTSTP"]


class SignalMessage(msgspec.Struct, frozen=True, tag_field="type", tag="signal"):
    """Send the program a signal, by name or number."""

    signal: SignalName | Annotated[int, Meta(ge=1, le=64)]


Message = StartMessage | StdinMessage | EndStdinMessage | SignalMessage

_message = msgspec.json.Decoder(Message)


def receive(message: str | bytes, bounds: Bounds) -> Told:
    """Read a message. *Raises* InvalidRequest, NotSupported."""
    if isinstance(message, bytes):
        return Input(message) if message else Nothing()
    told: Message = fields.decode_body(_message, message.encode("utf-8", "surrogatepass"))
    if isinstance(told, StartMessage):
        return Begin(_start(told, bounds))
    if isinstance(told, StdinMessage):
        data = content_of(told.data, "data")
        return Input(data) if data else Nothing()
    if isinstance(told, EndStdinMessage):
        return Input(b"")
    return Signal(signal.Signals[told.signal] if isinstance(told.signal, str) else told.signal)


def _start(body: StartMessage, bounds: Bounds) -> Ask:
    shape = shape_of(body, body.session)
    request = run_of(body, bounds)
    if request.session is None or request.session.fresh or isinstance(request.program, Command):
        request = replace(request, keep_stdin=True)
    return Ask((request,), (shape,), writer=writer(shape, socket_text))


def refuse(error: SandforkError, request_id: str) -> str:
    """Tell why a message was not obeyed."""
    return socket_text(_error_event(error, request_id))
