"""The bodies, replies and events of isol8's API, as they are on the wire. Times are milliseconds, sizes text: "64m"."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sandfork.dialects.base import LANGUAGE, UNAVAILABLE, Example
from sandfork.dialects.fields import BASE64_PATTERN

MAX_COUNT = (1 << 31) - 1
MAX_BYTES = (1 << 63) - 1
PATHS = "absolute, below /sandbox or /tmp, or relative to /sandbox"
# Only documents read these two: the engine is who refuses such names and words.
EnvName = Annotated[str, Meta(extra_json_schema={"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"})]
Word = Annotated[str, Meta(extra_json_schema={"pattern": r"^[^\u0000]*$"})]
SIZE_PATTERN = "^([0-9]{1,15}(?:[.][0-9]{1,6})?) ?([kmgtKMGT]?)[bB]?$"
Size = Annotated[str, Meta(description="A number and its unit: 512m, 1g.", extra_json_schema={"pattern": SIZE_PATTERN})]
Milliseconds = Annotated[int, Meta(ge=1, description="Milliseconds; lowered to the server's maximum.")]
SessionId = Annotated[str, Meta(max_length=200, description="Of your own choosing; made when it is first named.")]
Session = Annotated[str, Meta(min_length=1, max_length=200)]
NAMED = {"prefixItems": [{"type": "string", "pattern": r"^[^\u0000]+$"}]}
Network = Literal["none", "filtered", "host"]
Kind = Literal["stdout", "stderr", "exit", "error"]


class RunRequest(msgspec.Struct, frozen=True, rename="camel"):
    """What to run: `code` in a `runtime`, or a command."""

    code: Annotated[str, Meta(description="Source code.")] | UnsetType = UNSET
    cmd: (
        Annotated[
            str, Meta(description="A line for the shell.", extra_json_schema={"pattern": r"^[^\u0000]*\S[^\u0000]*$"})
        ]
        | Annotated[list[Word], Meta(min_length=1, description="Or its words.", extra_json_schema=NAMED)]
        | UnsetType
    ) = UNSET
    runtime: Annotated[str, Meta(description="What the code is in.")] | UnsetType = UNSET
    timeout_ms: Milliseconds | None = None
    env: Annotated[dict[EnvName, Word], Meta(description="Environment variables to add.")] | None = None
    stdin: Annotated[str, Meta(description="All of standard input.")] | None = None
    files: Annotated[dict[str, str], Meta(description=f"Text to write first, by path: {PATHS}.")] | None = None
    output_paths: Annotated[list[str], Meta(max_length=64, description=f"Files to return: {PATHS}.")] | None = None
    workdir: Annotated[str, Meta(description="The directory to run in: /sandbox, or one below it.")] | None = None
    install_packages: Annotated[list[str] | None, Meta(extra_json_schema=UNAVAILABLE)] = None
    code_url: Annotated[str | None, Meta(extra_json_schema=UNAVAILABLE)] = None
    setup_script: Annotated[str | None, Meta(extra_json_schema=UNAVAILABLE)] = None


class Security(msgspec.Struct, frozen=True):
    """What an isol8 server lets its clients loosen."""

    seccomp: str | None = None


class Options(msgspec.Struct, frozen=True, rename="camel"):
    """The limits to change; those not named keep the server's defaults."""

    memory_limit: Size | None = None
    cpu_limit: (
        Annotated[float, Meta(ge=0.01, le=1024, description="Cores at a time, over all its processes.")] | None
    ) = None
    pids_limit: Annotated[int, Meta(ge=1, le=MAX_COUNT)] | None = None
    timeout_ms: Milliseconds | None = None
    sandbox_size: Annotated[Size, Meta(description="What files may take, together with tmpSize.")] | None = None
    tmp_size: Annotated[Size, Meta(description="What files may take, together with sandboxSize.")] | None = None
    max_output_size: Annotated[int, Meta(ge=1, le=MAX_BYTES, description="Bytes of each stream.")] | None = None
    secrets: (
        Annotated[dict[EnvName, Word], Meta(description="Environment variables whose values are masked in output.")]
        | None
    ) = None
    network: Annotated[Network | None, Meta(extra_json_schema={"x-only": ["none", None]})] = None
    readonly_root_fs: Annotated[bool | None, Meta(extra_json_schema={"x-only": [True, None]})] = None
    image: Annotated[str | None, Meta(extra_json_schema=UNAVAILABLE)] = None
    security: Annotated[Security | None, Meta(extra_json_schema=UNAVAILABLE)] = None


class ExecBody(msgspec.Struct, frozen=True, rename="camel"):
    """A run; in a session when one is named."""

    request: RunRequest
    options: Options | None = None
    session_id: SessionId | None = None


class ResourceUsage(msgspec.Struct, frozen=True):
    """What the run used, as the kernel counted it. Without a network nothing goes out or comes in."""

    cpu_percent: Annotated[float, Meta(description="Of its duration; 100 is one core.")] = msgspec.field(
        name="cpuPercent"
    )
    memory_mb: Annotated[float, Meta(description="MiB, at the end.")] = msgspec.field(name="memoryMB")
    peak_memory_mb: Annotated[float, Meta(description="MiB.")] = msgspec.field(name="peakMemoryMB")
    network_bytes_in: int = msgspec.field(name="networkBytesIn", default=0)
    network_bytes_out: int = msgspec.field(name="networkBytesOut", default=0)


class ExecReply(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What came of a run."""

    stdout: str
    stderr: str
    exit_code: Annotated[int, Meta(description="128 + n when signal n ended it, 137 when its time was over.")]
    duration_ms: Annotated[int, Meta(description="From leaving the queue to the end.")]
    truncated: Annotated[bool, Meta(description="Whether a stream was cut at maxOutputSize.")]
    execution_id: str
    runtime: str
    timestamp: Annotated[str, Meta(description="When it began.")]
    container_id: Annotated[str, Meta(description="The session's id, or that of the sandbox of this run.")]
    resource_usage: ResourceUsage
    files: Annotated[dict[str, str], Meta(description="Base64, by the paths asked for.")] | UnsetType = UNSET


class Event(msgspec.Struct, frozen=True):
    """One event of a stream or a WebSocket; of `exit`, `data` is the exit code as text."""

    type: Kind
    data: str


class UploadBody(msgspec.Struct, frozen=True, rename="camel"):
    """A file to write into a session."""

    session_id: Session
    path: str
    content: Annotated[
        str, Meta(description="Base64.", extra_json_schema={"contentEncoding": "base64", "pattern": BASE64_PATTERN})
    ]


class DoneReply(msgspec.Struct, frozen=True):
    """It is done."""

    ok: bool = True


class ContentReply(msgspec.Struct, frozen=True):
    """A file of a session."""

    content: Annotated[str, Meta(description="Base64.")]


class SessionReply(msgspec.Struct, frozen=True, rename="camel"):
    """A session of yours."""

    id: str
    is_active: Annotated[bool, Meta(description="Whether something runs in it.")]
    last_accessed_at: str


class SessionsReply(msgspec.Struct, frozen=True):
    """All sessions of yours, the oldest first."""

    sessions: list[SessionReply]


class HealthReply(msgspec.Struct, frozen=True):
    """Whether the service can run programs."""

    status: str
    version: str


class ErrorReply(msgspec.Struct, frozen=True):
    """Why a request was refused."""

    error: str


class ExecuteMessage(ExecBody, frozen=True, rename="camel", tag="execute", tag_field="type"):
    """A message of a WebSocket: run this. With `keepStdin` further input may follow."""

    keep_stdin: bool = False


class StdinMessage(msgspec.Struct, frozen=True, tag="stdin", tag_field="type"):
    """A message of a WebSocket: write to the stdin of a run with `keepStdin`; no text ends it."""

    data: str


class SignalMessage(msgspec.Struct, frozen=True, tag="signal", tag_field="type"):
    """A message of a WebSocket: send the program a signal."""

    signal: str


Message = ExecuteMessage | StdinMessage | SignalMessage

ONE_PROGRAM = {
    "oneOf": [
        {
            "required": ["code", "runtime"],
            "properties": {"runtime": {"type": "string", **LANGUAGE}},
            "not": {"required": ["cmd"]},
        },
        {"required": ["cmd"], "not": {"required": ["code"]}},
    ]
}
"""What the type of a request cannot say: there is one program, and what a command is in does not matter."""

EXEC_EXAMPLES = (
    Example(
        "Hello",
        b'{"request": {"code": "print(\'hello\')", "runtime": "python"}}',
        b'{"stdout": "hello\\n", "stderr": "", "exitCode": 0, "durationMs": 82, "truncated": false,'
        b' "executionId": "550e8400-e29b-41d4-a716-446655440000", "runtime": "python",'
        b' "timestamp": "2026-02-14T12:00:00.000Z", "containerId": "abc123", "resourceUsage": {"cpuPercent": 41.5,'
        b' "memoryMB": 1.2, "peakMemoryMB": 9.0, "networkBytesIn": 0, "networkBytesOut": 0}}',
    ),
    Example(
        "Every field, in a session",
        b'{"request": {"code": "print(\'hello\')", "runtime": "python", "timeoutMs": 5000, "env": {"MY_VAR": "value"},'
        b' "stdin": "input data", "files": {"/sandbox/data.csv": "a,b\\n1,2"}, "outputPaths": ["/sandbox/out.txt"]},'
        b' "options": {"network": "none", "memoryLimit": "512m", "cpuLimit": 1.0, "timeoutMs": 30000,'
        b' "sandboxSize": "64m", "tmpSize": "64m"}, "sessionId": "optional-session-id"}',
    ),
    Example("A line for the shell", b'{"request": {"cmd": "ls -l | wc -l"}}'),
    Example(
        "A secret",
        b'{"request": {"code": "echo $TOKEN", "runtime": "bash"}, "options": {"secrets": {"TOKEN": "s3cret"}}}',
    ),
)
STREAM_EXAMPLES = (
    Example("A loop", b'{"request": {"code": "for i in range(3): print(i)", "runtime": "python"}}'),
    Example("A command", b'{"request": {"cmd": ["ls", "-l"], "runtime": "bash"}}'),
)
UPLOAD_EXAMPLES = (
    Example(
        "A table",
        b'{"sessionId": "my-session", "path": "/sandbox/data.csv", "content": "Y29sMSxjb2wyCjEsMg=="}',
        b'{"ok": true}',
    ),
)
DOWNLOAD_EXAMPLES = (Example("JSON", reply=b'{"content": "eyJyZXN1bHQiOiAxfQ=="}'),)
