"""Runner's API: languages and execute.

What its document leaves open: a run that times out is 200 with exit code 124, and `Execution timed out` ends its
stderr; durations are milliseconds with at most two decimals; a timeout above the server's maximum is lowered to it; an
unknown language is 404 where the path names it and 400 where the body does. It asks for no key itself, and here for one
where the server has any.

Images and snapshots are in `runner_images`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from sandfork.dialects.base import (
    LANGUAGE,
    Answer,
    Ask,
    Bounds,
    Dialect,
    Example,
    ExecRoute,
    HealthRoute,
    LanguageRoute,
    LanguageState,
    QueryRoute,
    RawRequest,
    Reply,
    ServiceHealth,
)
from sandfork.dialects.fields import check_code, decode_body, milliseconds, shown, text, with_last_line
from sandfork.dialects.refusals import NoSuchLanguage, error_headers, public_message, status_of
from sandfork.dialects.runner_images import ROUTES, public_name
from sandfork.errors import InvalidRequest, SandforkError, UnknownLanguage
from sandfork.model import ExecRequest, ExecResult, LimitsOverride, Outcome, Snippet

TIMED_OUT = 124


class ExecBody(msgspec.Struct, frozen=True):
    """A program to run."""

    language: Annotated[str, Meta(description="Programming language.", extra_json_schema=LANGUAGE)]
    code: Annotated[str, Meta(description="Source code to execute.")]
    timeout: Annotated[int, Meta(ge=1, description="Seconds; lowered to the server's maximum.")] = 30
    snapshot: Annotated[str | None, Meta(description="The snapshot to run from, with its limits.")] = None


class ExecReply(msgspec.Struct, frozen=True):
    """What came of it; times such as `45.2ms`."""

    stdout: str
    stderr: str
    exit_code: int
    load_time: Annotated[str, Meta(description="From leaving the queue to the program's start.")]
    exec_time: str


class HealthReply(msgspec.Struct, frozen=True):
    """Whether the service can run programs."""

    status: str
    version: str


class LanguageReply(msgspec.Struct, frozen=True):
    """A language, and whether it can be run on this server."""

    name: str
    extension: str
    installed: bool
    aliases: list[str]
    version: str | None
    image: Annotated[str | None, Meta(description="What it runs on, NAME@DIGEST; null: the host's own files.")]


class LanguagesReply(msgspec.Struct, frozen=True):
    """All languages the server knows; `count` is the number of those it can run."""

    languages: list[LanguageReply]
    count: int


class LanguageDetails(LanguageReply, frozen=True):
    """A language in full. In the commands `{file}` is the program's text; `image_size` is in bytes."""

    run_command: str
    compile_command: str | None
    image_size: int | None


class ErrorReply(msgspec.Struct, frozen=True):
    """Why a request was refused."""

    error: str


_exec_body = msgspec.json.Decoder(ExecBody)
_encode = msgspec.json.Encoder().encode


def parse_exec(raw: RawRequest, bounds: Bounds) -> Ask:
    """Read one run. *Raises* InvalidRequest."""
    body = decode_body(_exec_body, raw.body)
    if not body.language:
        raise InvalidRequest("language", "is required")
    code = check_code(body.code, "code", bounds.max_code_bytes)
    wall_s = float(min(body.timeout, bounds.max_wall_s))
    return Ask(
        (
            ExecRequest(
                program=Snippet(body.language, code), limits=LimitsOverride(wall_s=wall_s), snapshot=body.snapshot
            ),
        )
    )


def render_exec(ask: Ask, answers: Sequence[Answer], request_id: str) -> Reply:
    """Answer one run."""
    result = answers[0]
    assert isinstance(result, ExecResult)  # no error of ours is a result here
    timed_out = result.outcome is Outcome.TIMED_OUT
    return Reply(
        _encode(
            ExecReply(
                text(result.stdout),
                with_last_line(result.stderr, "Execution timed out") if timed_out else text(result.stderr),
                TIMED_OUT if timed_out else result.status,
                duration(result.timings.fork_s),
                duration(result.timings.exec_s),
            )
        )
    )


def duration(seconds: float) -> str:
    """Return a span of time as text: 125ms, 0.75ms."""
    return f"{milliseconds(seconds):.2f}".rstrip("0").rstrip(".") + "ms"


def render_languages(raw: RawRequest, languages: Sequence[LanguageState]) -> Reply:
    """List the languages."""
    listed = [
        LanguageReply(
            public_name(each.name),
            each.extension,
            each.runnable,
            list(other_names(each)),
            each.version,
            each.image or None,
        )
        for each in languages
    ]
    return Reply(_encode(LanguagesReply(listed, sum(each.installed for each in listed))))


def select_language(raw: RawRequest, languages: Sequence[LanguageState]) -> LanguageState:
    """Return the language that the path names. *Raises* NoSuchLanguage."""
    name = raw.params["lang"]
    for each in languages:
        if name in (each.name, *each.aliases):
            return each
    raise NoSuchLanguage(f"language not found: {shown(name)}")


def render_language(language: LanguageState) -> Reply:
    """Tell one language."""
    details = LanguageDetails(
        public_name(language.name),
        language.extension,
        language.runnable,
        list(other_names(language)),
        language.version,
        language.image or None,
        " ".join(language.run),
        " ".join(language.compile) or None,
        language.image_bytes or None,
    )
    return Reply(_encode(details))


def other_names(language: LanguageState) -> list[str]:
    """Return what else it may be called."""
    return [name for name in (language.name, *language.aliases) if name != public_name(language.name)]


def render_health(health: ServiceHealth) -> Reply:
    """Answer 200 when a template is ready, else 503."""
    if health.ready:
        return Reply(_encode(HealthReply("healthy", health.version)))
    return Reply(_encode(HealthReply("unhealthy", health.version)), 503)


def render_error(error: SandforkError, request_id: str) -> Reply:
    """Answer an error: its status and one sentence."""
    message = public_message(error)
    if isinstance(error, UnknownLanguage):
        message = f"language not found: {shown(error.name)}"
    return Reply(_encode(ErrorReply(message)), status_of(error), headers=error_headers(error))


_EXEC_EXAMPLES = (
    Example(
        "Hello",
        b'{"language": "python", "code": "print(\\"Hello World!\\")", "timeout": 30}',
        b'{"stdout": "Hello World!\\n", "stderr": "", "exit_code": 0, "load_time": "125ms", "exec_time": "45ms"}',
    ),
    Example("A sum", b'{"language": "python", "code": "print(sum(range(100)))"}'),
    Example("JavaScript", b'{"language": "nodejs", "code": "console.log(Array.from({length:10},(_,i)=>i*i))"}'),
)


DIALECT = Dialect(
    name="runner",
    title="Runner",
    prefix="/runner",
    routes=(
        ExecRoute(
            path="/api/v1/execute",
            summary="Execute code",
            parse=parse_exec,
            render=render_exec,
            body_type=ExecBody,
            reply_type=ExecReply,
            examples=_EXEC_EXAMPLES,
            at_root=True,
        ),
        QueryRoute(
            path="/api/v1/languages",
            summary="List supported languages",
            render=render_languages,
            reply_type=LanguagesReply,
            at_root=True,
            versions=True,
        ),
        LanguageRoute(
            path="/api/v1/languages/{lang}",
            summary="Get language details",
            select=select_language,
            render=render_language,
            reply_type=LanguageDetails,
            at_root=True,
        ),
        *ROUTES,
        HealthRoute(
            path="/health",
            summary="Health check",
            render=render_health,
            reply_type=HealthReply,
            examples=(Example("Healthy", reply=b'{"status": "healthy", "version": "1.0.0"}'),),
        ),
    ),
    render_error=render_error,
    error_type=ErrorReply,
    description="Execute code in isolation, by language.",
)
