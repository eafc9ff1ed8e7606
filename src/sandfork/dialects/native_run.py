"""Our own API between the wire and the core types: what a body asks for, and what came of it."""

from __future__ import annotations

import math

from msgspec import UNSET, Struct

from sandfork.dialects import fields
from sandfork.dialects.base import Answer, Bounds
from sandfork.dialects.native_wire import (
    Base64Content,
    Content,
    DisplayReply,
    ErrorReply,
    ExecReply,
    FailedReply,
    LimitsBody,
    LimitsReply,
    ProgramBody,
    RunBody,
    UsageReply,
)
from sandfork.dialects.refusals import public_message
from sandfork.errors import InvalidRequest, SandforkError
from sandfork.model import (
    Command,
    ExecRequest,
    ExecResult,
    InputFile,
    Limits,
    LimitsOverride,
    Outcome,
    OutputFile,
    SessionUse,
    Snippet,
    Usage,
)

SPACE = "native"
_NO_LIMITS = LimitsBody()


class Shape(Struct, frozen=True):
    """What a reply must know of its request."""

    files_as: str = "base64"
    rich: bool = False
    session: bool = False


def shape_of(body: ProgramBody, session: str | None) -> Shape:
    """Return what a reply must know of `body`, which is run in a session or in none."""
    return Shape(body.files_as, body.rich, session is not None)


def run_of(body: RunBody, bounds: Bounds, within: str = "") -> ExecRequest:
    """Return what `body` asks for, in the session it names. *Raises* InvalidRequest."""
    return request_of(body, bounds, body.session, within)


def request_of(body: ProgramBody, bounds: Bounds, session: str | None, within: str = "") -> ExecRequest:
    """Return what `body` asks for; `within` is where it is in the whole body. *Raises* InvalidRequest."""
    return ExecRequest(
        program=_program(body, bounds, within),
        files=tuple(_input_file(path, content, within) for path, content in body.files.items()) if body.files else (),
        stdin=content_of(body.stdin, f"{within}stdin") if body.stdin else b"",
        args=tuple(body.args),
        env=tuple(body.env.items()),
        limits=_limits(body, bounds),
        network=body.network,
        isolation=body.isolation,
        template=body.template,
        snapshot=body.snapshot,
        session=None if session is None else SessionUse(SPACE, session, fresh=body.fresh),
        collect=tuple(body.collect),
        packages=tuple(body.packages),
        secrets=tuple(body.secrets),
        rich=body.rich,
    )


def _program(body: ProgramBody, bounds: Bounds, within: str) -> Snippet | Command:
    if body.code is UNSET:
        if body.argv is UNSET:
            raise InvalidRequest(f"{within}code", "is required, or argv in its place")
        return Command(tuple(body.argv))
    if body.argv is not UNSET:
        raise InvalidRequest(f"{within}argv", "cannot be given together with code")
    language = None if body.language is UNSET else body.language
    return Snippet(language, fields.check_code(body.code, f"{within}code", bounds.max_code_bytes))


def _limits(body: ProgramBody, bounds: Bounds) -> LimitsOverride:
    asked = body.limits
    if asked is _NO_LIMITS:
        return LimitsOverride(wall_s=float(min(body.timeout_seconds, bounds.max_wall_s)))
    wall_s = asked.wall_s or body.timeout_seconds
    return override_of(asked, float(min(wall_s, bounds.max_wall_s)))


def override_of(asked: LimitsBody, wall_s: float | None = None) -> LimitsOverride:
    """Return the limits that `asked` names, with another wall time."""
    return LimitsOverride(
        wall_s=wall_s,
        cpu_s=asked.cpu_s,
        memory_bytes=asked.memory_bytes,
        pids=asked.pids,
        open_files=asked.open_files,
        output_bytes=asked.output_bytes,
        disk_bytes=asked.disk_bytes,
        cpus=asked.cpus,
    )


def content_of(content: Content, field: str) -> bytes:
    """Return the bytes of a text or of base64. *Raises* InvalidRequest."""
    return content.encode() if isinstance(content, str) else fields.from_base64(content.base64, f"{field}.base64")


def _input_file(path: str, content: Content, within: str) -> InputFile:
    return InputFile(path, content_of(content, f"{within}files.{fields.shown(path)}"))


def reply_of(answer: Answer, shape: Shape, request_id: str = "") -> ExecReply | FailedReply:
    """Return what a plain reply tells of an execution."""
    if isinstance(answer, SandforkError):
        return FailedReply(request_id, "", "", -1, 0.0, 0.0, 0.0, public_message(answer), answer.code)
    return result_of(answer, shape)


def result_of(answer: ExecResult, shape: Shape) -> ExecReply:
    """Return what a plain reply tells of a result."""
    timed_out = answer.outcome is Outcome.TIMED_OUT
    stderr = answer.stderr
    timings = answer.timings
    return ExecReply(
        answer.exec_id,
        fields.text(answer.stdout),
        fields.with_last_line(stderr, fields.timed_out_line(answer.limits)) if timed_out else fields.text(stderr),
        -1 if timed_out else answer.status,
        fields.milliseconds(timings.fork_s),
        fields.milliseconds(timings.exec_s),
        fields.milliseconds(timings.total_s),
        fields.milliseconds(timings.queue_s),
        answer.outcome,
        answer.signal,
        answer.truncated,
        usage_of(answer.usage),
        limits_of(answer.limits),
        answer.isolation,
        answer.image or None,
        _files(answer, shape.files_as) if answer.files else {},
        [fields.path_text(path) for path in answer.files_skipped],
        [DisplayReply(each.kind, each.data) for each in answer.displays] if shape.rich or answer.displays else UNSET,
        answer.state_lost if shape.session else UNSET,
        answer.failed_step or UNSET,
        fields.milliseconds(timings.compile_s) if timings.compile_s else UNSET,
    )


def error_of(error: SandforkError, request_id: str) -> ErrorReply:
    """Return what is told of an error: a sentence, a word for machines, the field at fault, the id of the request."""
    field = error.field or None if isinstance(error, InvalidRequest) else None
    return ErrorReply(public_message(error), error.code, request_id, field)


def usage_of(usage: Usage) -> UsageReply:
    """Return usage as it is on the wire."""
    return UsageReply(
        usage.cpu_user_s,
        usage.cpu_system_s,
        usage.wall_s,
        usage.memory_peak_bytes,
        usage.processes,
        usage.io_read_bytes,
        usage.io_write_bytes,
    )


def limits_of(limits: Limits) -> LimitsReply:
    """Return limits as they are on the wire."""
    return LimitsReply(
        limits.wall_s,
        limits.cpu_s,
        limits.memory_bytes,
        limits.pids,
        limits.open_files,
        limits.output_bytes,
        limits.disk_bytes,
        limits.cpus if math.isfinite(limits.cpus) else None,
    )


def _files(result: ExecResult, files_as: str) -> dict[str, Content]:
    return {fields.path_text(file.path): _returned(file, files_as) for file in result.files}


def _returned(file: OutputFile, files_as: str) -> Content:
    content = fields.utf8_or_none(file.content) if files_as == "text" else None
    return Base64Content(fields.to_base64(file.content)) if content is None else content
