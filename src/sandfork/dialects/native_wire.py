"""The bodies and replies of our own API, as they are on the wire; the OpenAPI document is made from these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sandfork.dialects.base import LANGUAGE, UNAVAILABLE, Example
from sandfork.dialects.fields import BASE64_PATTERN
from sandfork.model import Outcome

Seconds = Annotated[float, Meta(ge=0.001)]
Count = Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]
MAX_BYTES = (1 << 63) - 1


PATHS = "relative to the work directory, or below /sandbox or /tmp"
# Only documents read these two: the engine is who refuses such names and words.
EnvName = Annotated[str, Meta(extra_json_schema={"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"})]
Word = Annotated[str, Meta(extra_json_schema={"pattern": r"^[^\u0000]*$"})]
NAMED = {"prefixItems": [{"type": "string", "minLength": 1, "pattern": r"^[^\u0000]*$"}]}
Isolation = Literal["process", "gvisor", "microvm"]
Session = Annotated[str, Meta(min_length=1, max_length=200)]


class Base64Content(msgspec.Struct, frozen=True):
    """Bytes as base64."""

    base64: Annotated[str, Meta(extra_json_schema={"contentEncoding": "base64", "pattern": BASE64_PATTERN})]


Content = str | Base64Content


class LimitsBody(msgspec.Struct, frozen=True):
    """The limits to change; those not named keep the server's defaults."""

    wall_s: Seconds | None = None
    cpu_s: Seconds | None = None
    memory_bytes: Annotated[int, Meta(ge=4 << 20, le=MAX_BYTES)] | None = None
    pids: Count | None = None
    open_files: Annotated[int, Meta(ge=8, le=(1 << 31) - 1)] | None = None
    output_bytes: Annotated[int, Meta(ge=1, le=MAX_BYTES)] | None = None
    disk_bytes: Annotated[int, Meta(ge=64 << 10, le=MAX_BYTES)] | None = None
    cpus: (
        Annotated[float, Meta(ge=0.01, le=1024, description="Processors at a time, over all its processes.")] | None
    ) = None


class ProgramBody(msgspec.Struct, frozen=True):
    """A program to run: `code` in a `language`, or `argv`."""

    code: Annotated[str, Meta(description="Source code.")] | UnsetType = UNSET
    argv: Annotated[list[Word], Meta(min_length=1, description="A command.", extra_json_schema=NAMED)] | UnsetType = (
        UNSET
    )
    language: (
        Annotated[str, Meta(description="What the code is in; if not told, the session's language, else `python`.")]
        | UnsetType
    ) = UNSET
    timeout_seconds: Annotated[int, Meta(ge=1, description="Lowered to the server's maximum.")] = 30
    args: Annotated[list[Word], Meta(description="Arguments of the code, after its own name.")] = []
    stdin: Annotated[Content, Meta(description="All of standard input.")] = ""
    env: Annotated[dict[EnvName, Word], Meta(description="Environment variables to add.")] = {}
    files: Annotated[dict[str, Content], Meta(description=f"Files to write first, by path: {PATHS}.")] = {}
    collect: Annotated[list[str], Meta(max_length=64, description=f"Files to return, also by globs: {PATHS}.")] = []
    files_as: Annotated[Literal["base64", "text"], Meta(description="How to return them.")] = "base64"
    limits: LimitsBody = LimitsBody()
    network: Annotated[Literal["none", "filtered", "host"], Meta(extra_json_schema=UNAVAILABLE)] = "none"
    packages: Annotated[list[str], Meta(max_length=100, extra_json_schema=UNAVAILABLE)] = []
    isolation: Annotated[
        Isolation | None, Meta(description="The least wanted.", extra_json_schema={"x-only": ["process", None]})
    ] = None
    template: Annotated[str | None, Meta(description="The template to fork, instead of the one chosen.")] = None
    snapshot: Annotated[str | None, Meta(description="The snapshot to run from, with its limits.")] = None
    fresh: Annotated[
        bool, Meta(description="In a session: a process of its own, as a plain run; only the files are the session's.")
    ] = False
    secrets: Annotated[
        list[str], Meta(max_length=100, description="Texts shown as `***` wherever it writes them.")
    ] = []
    rich: Annotated[bool, Meta(description="Return figures, tables and the value of a last expression, too.")] = False


Streamed = Annotated[bool, Meta(description="Answer with server-sent events while it runs.")]


class RunBody(ProgramBody, frozen=True):
    """A program to run in a sandbox of its own, or in a session."""

    session: Annotated[Session | None, Meta(description="The session to run in.")] = None


class ExecBody(RunBody, frozen=True):
    """A program to run in a sandbox of its own, or in a session, while its client waits."""

    stream: Streamed = False


class SessionExecBody(ProgramBody, frozen=True):
    """A program to run in the session that the path names."""

    stream: Streamed = False


class BatchBody(msgspec.Struct, frozen=True):
    """Runs to make in parallel, each in a sandbox of its own."""

    executions: Annotated[list[RunBody], Meta(description="As many as the server's batch maximum, 100 by default.")]


class UsageReply(msgspec.Struct, frozen=True):
    """What the program used, as the kernel counted it."""

    cpu_user_s: float
    cpu_system_s: float
    wall_s: float
    memory_peak_bytes: int
    processes: int
    io_read_bytes: int
    io_write_bytes: int


class LimitsReply(msgspec.Struct, frozen=True):
    """The limits that were in force."""

    wall_s: float
    cpu_s: float
    memory_bytes: int
    pids: int
    open_files: int
    output_bytes: int
    disk_bytes: int
    cpus: Annotated[float | None, Meta(description="Processors at a time; null: as many as the server has.")]


class Run(msgspec.Struct, frozen=True):
    """What zeroboot's clients know of a run. Times are milliseconds."""

    id: str
    stdout: str
    stderr: str
    exit_code: Annotated[int, Meta(description="128 + n when signal n ended it, -1 when its wall time was over.")]
    fork_time_ms: float
    exec_time_ms: float
    total_time_ms: float


class DisplayReply(msgspec.Struct, frozen=True):
    """A rich value the program showed: by MIME type, binary ones as base64."""

    kind: Annotated[
        str, Meta(description="`result` is the value of a last expression, `display` what was shown before.")
    ]
    data: Mapping[str, str]


class ExecReply(Run, frozen=True):
    """What came of one run. Times are milliseconds."""

    queue_time_ms: float
    outcome: Outcome
    signal: int | None
    truncated: bool
    usage: UsageReply
    limits: LimitsReply
    isolation: Annotated[str, Meta(description="What really confined it.")]
    image: Annotated[str | None, Meta(description="The image it was on, NAME@DIGEST; null: the host's own files.")]
    files: dict[str, Content]
    files_skipped: Annotated[list[str], Meta(description="What matched but is no regular file or too large.")]
    displays: Annotated[list[DisplayReply], Meta(description="With `rich`.")] | UnsetType = UNSET
    state_lost: (
        Annotated[bool, Meta(description="In a session: its interpreter ended, and the next run has a new one.")]
        | UnsetType
    ) = UNSET
    failed_step: (
        Annotated[
            str, Meta(description="`compile` when there was nothing to run; all the rest is then the compiler's.")
        ]
        | UnsetType
    ) = UNSET
    compile_time_ms: Annotated[float, Meta(description="Of a language that is compiled.")] | UnsetType = UNSET


class FailedReply(Run, frozen=True):
    """An item of a batch that the server could not run."""

    error: str
    code: str


class BatchReply(msgspec.Struct, frozen=True):
    """The results, in the order of the request."""

    results: Annotated[
        Sequence[Run],
        Meta(description="Each as `/v1/exec` replies; one that the server could not run has `error` and `code`."),
    ]


class TemplateState(msgspec.Struct, frozen=True):
    """One template: whether it can fork, its real size in MiB, how many sandboxes wait for a request."""

    ready: bool
    memory_mb: int
    parked: int
    generation: int
    reason: str = ""


class HealthReply(msgspec.Struct, frozen=True):
    """The state of the service; `unenforced_limits` names those this host cannot enforce."""

    status: str
    templates: dict[str, TemplateState]
    version: str
    timestamp: str
    isolation: str
    unenforced_limits: list[str]


class ErrorReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a request was refused; `field` names the one at fault."""

    error: str
    code: str
    request_id: str
    field: str | None = None


EXEC_EXAMPLES = (
    Example("A sum", b'{"code": "print(1 + 1)"}'),
    Example(
        "Standard input, files in and out, limits",
        b'{"code": "import sys; open(\'out.txt\', \'w\').write(sys.stdin.read().upper())", "stdin": "hello",'
        b' "files": {"in.txt": "text", "raw.bin": {"base64": "AAEC"}}, "collect": ["*.txt"],'
        b' "limits": {"wall_s": 5, "memory_bytes": 268435456}}',
    ),
    Example("A command", b'{"argv": ["/bin/echo", "hello"], "env": {"LANG": "C.UTF-8"}}'),
)
BATCH_EXAMPLES = (Example("Two at once", b'{"executions": [{"code": "print(1)"}, {"argv": ["/bin/echo", "2"]}]}'),)

ONE_PROGRAM = {
    "oneOf": [
        {
            "required": ["code"],
            "properties": {"language": {"type": "string", **LANGUAGE}},
            "not": {"required": ["argv"]},
        },
        {"required": ["argv"], "not": {"required": ["code"]}},
    ]
}
"""What the type of a body cannot say: there is one program, and what a command is in does not matter."""
