"""InstaVM's programs: run one in a session and wait, or begin one and ask later.

- The session's interpreter runs it and keeps its state. In Python the value of a last expression is shown as an
  interactive interpreter shows it: it ends stdout, on a line of its own.
- `timeout` is how long the client waits, so the program is stopped a little earlier: exit code 124, its output so far,
  and a last line on stderr. What begins and is asked for later has all of it.
- What a limit stopped says so on a last line of stderr, too, and so does a crash that took the interpreter's variables;
  a program that ends its interpreter itself has only its own words there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from sandfork.dialects.actions import ReadTask, StartTask
from sandfork.dialects.base import Answer, Ask, Bounds, RawRequest, Reply
from sandfork.dialects.fields import decode_body, instant, text, timed_out_line, with_last_line
from sandfork.dialects.instavm_sessions import check_session, default_spec
from sandfork.dialects.instavm_wire import ExecBody, ExecReply, TaskReply, TaskStarted
from sandfork.dialects.refusals import public_message
from sandfork.errors import CallerError, InvalidRequest, NotSupported, SandforkError
from sandfork.model import ExecRequest, ExecResult, LimitsOverride, Outcome, SessionUse, Snippet

TIMED_OUT = 124
SPACE = "instavm"
ANSWER_EARLY_S = 3.0
"""How much earlier than the client gives up a program is interrupted, so that one that heeds nothing can be killed in
time, too; less of a short timeout."""
SHOWS_VALUES = ("python", "python3", "py")
STATE_LOST = "The session's interpreter was ended: its variables are gone, its files are kept"

_body = msgspec.json.Decoder(ExecBody)
_encode = msgspec.json.Encoder().encode


class Begun(Protocol):
    """An execution that nobody waits for: `ended` is None while it runs."""

    @property
    def task_id(self) -> str: ...

    @property
    def created_s(self) -> float: ...

    @property
    def ended(self) -> ExecResult | SandforkError | None: ...


def parse_exec(raw: RawRequest, bounds: Bounds) -> Ask:
    """Read one program; the echo is the session's id. *Raises* InvalidRequest, CallerError, NotSupported."""
    body = decode_body(_body, raw.body)
    early_s = min(ANSWER_EARLY_S, body.timeout / 4)
    request = _request(raw, body, body.timeout - early_s, bounds)
    assert request.session is not None  # _request saw to it
    return Ask((request,), request.session.name)


def parse_start(raw: RawRequest, bounds: Bounds) -> StartTask:
    """Read one program to begin. *Raises* InvalidRequest, CallerError, NotSupported."""
    body = decode_body(_body, raw.body)
    return StartTask(_request(raw, body, body.timeout, bounds))


def _request(raw: RawRequest, body: ExecBody, wall_s: float, bounds: Bounds) -> ExecRequest:
    if body.command is None and body.code is None:
        raise InvalidRequest("command", "is required, or code")
    if body.vault_ids:
        raise NotSupported("vault_ids: there are no vaults on this server; give secrets in the session's env")
    code = body.command or body.code or ""
    if len(code.encode()) > bounds.max_code_bytes:
        raise CallerError(f"{'command' if body.command else 'code'}: is longer than {bounds.max_code_bytes} bytes")
    language = "python" if body.language is None else body.language
    name = check_session(body.session_id) if body.session_id else raw.mint_id()
    return ExecRequest(
        program=Snippet(language, code),
        limits=LimitsOverride(wall_s=min(wall_s, bounds.max_wall_s)),
        session=SessionUse(SPACE, name, make=default_spec(language, bounds)),
        rich=language in SHOWS_VALUES,
    )


def parse_read(raw: RawRequest, bounds: Bounds) -> ReadTask:
    """Read which program is meant."""
    return ReadTask(raw.params["task_id"])


def render_exec(ask: Ask, answers: Sequence[Answer], request_id: str) -> Reply:
    """Answer one program."""
    result = answers[0]
    assert isinstance(result, ExecResult)  # no error of ours is a result here
    return Reply(
        _encode(
            ExecReply(
                stdout=_stdout(result),
                stderr=_stderr(result),
                exit_code=_exit_code(result),
                execution_time=round(result.timings.exec_s, 6),
                cpu_time=_cpu_s(result),
                session_id=ask.echo,
                state_lost=result.state_lost,
            )
        )
    )


def render_started(action: StartTask, task: Begun, request_id: str) -> Reply:
    """Tell what a program is asked for by."""
    session = action.request.session
    assert session is not None  # _request saw to it
    return Reply(_encode(TaskStarted(task.task_id, session.name, "running", instant(task.created_s))))


def render_task(action: ReadTask, task: Begun, request_id: str) -> Reply:
    """Tell what came of a program so far. Why we could not run it stands on stderr, the one place clients look at."""
    ended, created = task.ended, instant(task.created_s)
    if ended is None:
        return Reply(_encode(TaskReply(task.task_id, "running", False, created)))
    if isinstance(ended, SandforkError):
        reason = public_message(ended)
        return Reply(_encode(TaskReply(task.task_id, "failed", True, created, serialized_stderr=reason, error=reason)))
    return Reply(
        _encode(
            TaskReply(
                task_id=task.task_id,
                status="completed",
                is_complete=True,
                created_at=created,
                serialized_stdout=_stdout(ended),
                serialized_stderr=_stderr(ended),
                exit_code=_exit_code(ended),
                execution_time=round(ended.timings.exec_s, 6),
                cpu_time=_cpu_s(ended),
                state_lost=ended.state_lost,
            )
        )
    )


def _stdout(result: ExecResult) -> str:
    """Return what was written, then what was shown and has a text."""
    written = text(result.stdout)
    values = [shown.data["text/plain"] for shown in result.displays if "text/plain" in shown.data]
    if not values:
        return written
    gap = "\n" if written and not written.endswith("\n") else ""
    return written + gap + "".join(f"{value}\n" for value in values)


def _stderr(result: ExecResult) -> str:
    crashed = result.state_lost and result.outcome is not Outcome.EXITED
    lines = [line for line in (_limit_line(result), STATE_LOST if crashed else None) if line]
    return with_last_line(result.stderr, "\n".join(lines)) if lines else text(result.stderr)


def _limit_line(result: ExecResult) -> str | None:
    """Return the line that says which limit stopped a program."""
    limits = result.limits
    match result.outcome:
        case Outcome.TIMED_OUT:
            return timed_out_line(limits)
        case Outcome.CPU_LIMIT:
            return f"CPU time limit of {limits.cpu_s:g} s exceeded"
        case Outcome.OUT_OF_MEMORY:
            return f"Memory limit of {limits.memory_bytes >> 20} MB exceeded"
        case Outcome.PIDS_LIMIT:
            return f"Limit of {limits.pids} processes exceeded"
        case Outcome.OUTPUT_LIMIT:
            return f"Output limit of {limits.output_bytes} bytes exceeded"
        case Outcome.DISK_LIMIT:
            return f"Disk limit of {limits.disk_bytes} bytes exceeded"
        case Outcome.POLICY_VIOLATION:
            return "Stopped by the sandbox's policy"
        case _:
            return None


def _exit_code(result: ExecResult) -> int:
    return TIMED_OUT if result.outcome is Outcome.TIMED_OUT else result.status


def _cpu_s(result: ExecResult) -> float:
    return round(result.usage.cpu_user_s + result.usage.cpu_system_s, 6)
