"""What isol8's clients are told while a program runs, and the words it has for an error."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from sandfork.dialects.fields import ChunkedText, shown
from sandfork.dialects.isol8_wire import Event, Kind
from sandfork.dialects.refusals import public_message, status_of
from sandfork.errors import InvalidRequest, SandforkError, SessionNotFound, UnknownLanguage, WrongLanguage
from sandfork.model import Display, ExecResult, Outcome, Stream

TIMED_OUT = 137

_NAMES = {
    "code": "request.code",
    "argv": "request.cmd",
    "env": "request.env",
    "stdin": "request.stdin",
    "files": "request.files",
    "collect": "request.outputPaths",
    "work_dir": "request.workdir",
    "secrets": "options.secrets",
    "limits.memory_bytes": "options.memoryLimit",
    "limits.disk_bytes": "options.sandboxSize",
    "limits.cpus": "options.cpuLimit",
}
"""What this API calls the fields that the engine looks at."""

_KINDS: Mapping[Stream, Kind] = {Stream.STDOUT: "stdout", Stream.STDERR: "stderr"}

_encode = msgspec.json.Encoder().encode


def message_of(error: SandforkError) -> str:
    """Return what a client is told of an error."""
    if isinstance(error, UnknownLanguage):
        return f'Unknown runtime: "{shown(error.name)}". Available: {", ".join(error.available)}'
    if isinstance(error, WrongLanguage):
        return (
            f'Cannot switch runtime from "{error.language}" to "{shown(error.name)}": a session has one runtime;'
            " use another sessionId for a different one"
        )
    if isinstance(error, SessionNotFound):
        return "Session not found"
    if isinstance(error, InvalidRequest) and error.field in _NAMES:
        return f"{_NAMES[error.field]}: {error.reason}"
    message = public_message(error)
    return f"Execution failed: {message}" if status_of(error) == 500 else message


def timed_out(result: ExecResult) -> str | None:
    """Return the line that tells that a program's time was over; None when it was not."""
    limits = result.limits
    if result.outcome is Outcome.TIMED_OUT:
        return f"EXECUTION TIMED OUT after {limits.wall_s:g}s"
    if result.outcome is Outcome.CPU_LIMIT:
        return f"EXECUTION TIMED OUT after {limits.cpu_s:g}s of processor time"
    return None


def exit_code(result: ExecResult) -> int:
    """Return the exit code as this API has it."""
    return result.status if timed_out(result) is None else TIMED_OUT


def _stopped(result: ExecResult) -> str | None:
    """Return why a program was stopped; None when it ended by itself."""
    limits = result.limits
    if result.outcome is Outcome.OUT_OF_MEMORY:
        return f"OUT OF MEMORY: more than {limits.memory_bytes} bytes"
    if result.outcome is Outcome.OUTPUT_LIMIT:
        return f"OUTPUT TRUNCATED: more than {limits.output_bytes} bytes"
    return timed_out(result)


class Events:
    """Writes what happens as JSON objects between `before` and `after`; see `EventWriter`."""

    def __init__(self, before: str, after: str) -> None:
        self._before = before
        self._after = after
        self._texts = {Stream.STDOUT: ChunkedText(), Stream.STDERR: ChunkedText()}

    def started(self, exec_id: str) -> str:
        """Tell nothing: the first event is the program's."""
        return ""

    def output(self, stream: Stream, data: bytes) -> str:
        """Tell what the program wrote, but for a character that is not whole yet."""
        return self._event(_KINDS[stream], self._texts[stream].add(data))

    def display(self, shown: Display) -> str:
        """Tell nothing: this API has no rich values."""
        return ""

    def finished(self, result: ExecResult) -> str:
        """Tell why it was stopped, if it was, and its exit code."""
        return self._rest() + self._event("error", _stopped(result) or "") + self._event("exit", str(exit_code(result)))

    def failed(self, error: SandforkError, request_id: str) -> str:
        """Tell why there is no exit code."""
        return self._rest() + self._event("error", message_of(error))

    def _rest(self) -> str:
        return "".join(self._event(_KINDS[stream], text.end()) for stream, text in self._texts.items())

    def _event(self, kind: Kind, text: str) -> str:
        """Return an event, nothing when it would say nothing."""
        return self._before + _encode(Event(kind, text)).decode() + self._after if text else ""
