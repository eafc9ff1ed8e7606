"""The bodies and replies of our own API, as they are on the wire; the OpenAPI document is made from these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sandfork.dialects.base import Example
from sandfork.model import Outcome

Seconds = Annotated[float, Meta(gt=0)]
Bytes = Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
Count = Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]


class Base64Content(msgspec.Struct, frozen=True):
    """Bytes as base64."""

    base64: str


Content = str | Base64Content


class LimitsBody(msgspec.Struct, frozen=True):
    """The limits to change; those not named keep the server's defaults."""

    wall_s: Seconds | None = None
    cpu_s: Seconds | None = None
    memory_bytes: Bytes | None = None
    pids: Count | None = None
    open_files: Count | None = None
    output_bytes: Bytes | None = None
    disk_bytes: Bytes | None = None


class ExecBody(msgspec.Struct, frozen=True):
    """A program to run in a sandbox of its own: `code` in a `language`, or `argv`."""

    code: Annotated[str, Meta(description="Source code.")] | UnsetType = UNSET
    argv: Annotated[list[str], Meta(min_length=1, description="A command instead of `code`.")] | UnsetType = UNSET
    language: Annotated[str, Meta(description="`python`, `node`, `bash`, …", examples=["python"])] = "python"
    timeout_seconds: Annotated[int, Meta(ge=1, description="Lowered to the server's maximum.")] = 30
    args: Annotated[list[str], Meta(description="Arguments of the code, after its own name.")] = []
    stdin: Annotated[Content, Meta(description="All of standard input.")] = ""
    env: Annotated[dict[str, str], Meta(description="Environment variables to add.")] = {}
    files: Annotated[dict[str, Content], Meta(description="Files to write first, by path.")] = {}
    collect: Annotated[list[str], Meta(max_length=100, description="Paths or globs of files to return.")] = []
    files_as: Annotated[Literal["base64", "text"], Meta(description="How to return them.")] = "base64"
    limits: LimitsBody = LimitsBody()
    network: Literal["none", "filtered", "host"] = "none"
    packages: Annotated[list[str], Meta(max_length=100, description="Packages to install first.")] = []
    isolation: Annotated[Literal["process", "gvisor", "microvm"], Meta(description="The least wanted.")] | None = None
    template: Annotated[str, Meta(description="The template to fork, instead of the one chosen.")] | None = None
    session: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    stream: bool = False


class BatchBody(msgspec.Struct, frozen=True):
    """Runs to make in parallel, each in a sandbox of its own."""

    executions: Annotated[list[ExecBody], Meta(description="As many as the server's batch maximum, 100 by default.")]


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


class Run(msgspec.Struct, frozen=True):
    """What zeroboot's clients know of a run. Times are milliseconds."""

    id: str
    stdout: str
    stderr: str
    exit_code: Annotated[int, Meta(description="128 + n when signal n ended it, -1 when its wall time was over.")]
    fork_time_ms: float
    exec_time_ms: float
    total_time_ms: float


class ExecReply(Run, frozen=True):
    """What came of one run. Times are milliseconds."""

    queue_time_ms: float
    outcome: Outcome
    signal: int | None
    truncated: bool
    usage: UsageReply
    limits: LimitsReply
    isolation: Annotated[str, Meta(description="What really confined it.")]
    files: dict[str, Content]
    files_skipped: Annotated[list[str], Meta(description="What matched but is no regular file or too large.")]


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
