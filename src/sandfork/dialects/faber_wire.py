"""The bodies and replies of Faber's API, as they are on the wire. Times are nanoseconds, sizes bytes."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from sandfork.dialects.base import Example

MAX_COUNT = (1 << 31) - 1
MAX_BYTES = (1 << 63) - 1
# Only documents read the patterns: what does not fit them is a task that is not executed, not a wrong request.
Word = Annotated[str, Meta(extra_json_schema={"pattern": r"^[^\u0000]*$"})]
Command = Annotated[str, Meta(extra_json_schema={"pattern": r"^[^\u0000]*[^\u0000\s][^\u0000]*$"})]
EnvName = Annotated[str, Meta(extra_json_schema={"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"})]
Nanoseconds = Annotated[int, Meta(ge=1_000_000, description="Nanoseconds; lowered to the server's maximum.")]


class Status(StrEnum):
    """How a task ended."""

    SUCCESS = "Success"
    FAILURE = "Failure"
    NOT_EXECUTED = "NotExecuted"
    RESOURCE_LIMIT_EXCEEDED = "ResourceLimitExceeded"
    TIMEOUT = "Timeout"
    MEMORY_LIMIT_EXCEEDED = "MemoryLimitExceeded"
    CPU_LIMIT_EXCEEDED = "CpuLimitExceeded"


class ResourceLimits(msgspec.Struct, frozen=True):
    """What a task may use; a limit that is not named, or null, has this API's default."""

    memory_limit: Annotated[int, Meta(ge=4 << 20, le=MAX_BYTES, description="Bytes.")] | None = None
    cpu_time_limit: Nanoseconds | None = None
    wall_time_limit: Nanoseconds | None = None
    max_processes: Annotated[int, Meta(ge=1, le=MAX_COUNT)] | None = None
    max_file_descriptors: Annotated[int, Meta(ge=8, le=MAX_COUNT)] | None = None
    max_output_size: Annotated[int, Meta(ge=1, le=MAX_BYTES, description="Bytes of each stream.")] | None = None


class Task(msgspec.Struct, frozen=True):
    """A command to run, in a sandbox of its own unless the tasks are `sequential`."""

    command: Command
    args: list[Word] | None = None
    env: dict[EnvName, Word] | None = None
    files: Annotated[dict[str, str], Meta(description="Text by path, relative to the work directory.")] | None = None
    resource_limits: ResourceLimits | None = None


class ExecBody(msgspec.Struct, frozen=True):
    """Tasks to run in parallel, each in a sandbox of its own, or one after another in one."""

    tasks: Annotated[list[Task], Meta(min_length=1, description="As many as the server's maximum, 100 by default.")]
    sequential: Annotated[
        bool, Meta(description="One after another in one directory, up to the first that is not Success.")
    ] = False


class ResourceUsage(msgspec.Struct, frozen=True):
    """What a task used, as the kernel counted it."""

    cpu_time_ns: int = 0
    wall_time_ns: int = 0
    memory_peak_bytes: int = 0
    memory_current_bytes: Annotated[int, Meta(description="When the program ended.")] = 0
    process_count: Annotated[int, Meta(description="Processes and threads, the most at one time.")] = 0
    file_descriptors: Annotated[int, Meta(description="Open when the program began; nothing counts those after.")] = 0
    io_read_bytes: Annotated[int, Meta(description="0 where this server does not measure it.")] = 0
    io_write_bytes: Annotated[int, Meta(description="0 where this server does not measure it.")] = 0
    system_time_ns: int = 0
    user_time_ns: int = 0


class LimitsExceeded(msgspec.Struct, frozen=True):
    """Which limit ended the task, or made it fail."""

    cpu_time_limit_exceeded: bool = False
    wall_time_limit_exceeded: bool = False
    process_limit_exceeded: bool = False
    file_descriptor_limit_exceeded: bool = False
    output_limit_exceeded: bool = False


class Result(msgspec.Struct, frozen=True):
    """What came of a task."""

    status: Status
    exit_code: Annotated[int, Meta(description="128 + n when signal n ended it.")] | None = None
    stdout: str | None = None
    stderr: str | None = None
    error: str | None = None
    resource_usage: ResourceUsage = ResourceUsage()
    resource_limits_exceeded: LimitsExceeded = LimitsExceeded()


class ExecReply(msgspec.Struct, frozen=True):
    """The results, in the order of the request."""

    results: list[Result]


class HealthReply(msgspec.Struct, frozen=True):
    """Whether the service can run tasks."""

    status: str
    timestamp: str
    version: str


class ErrorReply(msgspec.Struct, frozen=True):
    """Why a request was refused."""

    error: str
    details: str


EXEC_EXAMPLES = (
    Example(
        "Every field",
        b'{"tasks": [{"command": "echo", "args": ["hello", "world"], "env": {"CUSTOM_VAR": "value"},'
        b' "files": {"script.py": "print(\'Hello from Python\')"}, "resource_limits": {"memory_limit": 536870912,'
        b' "cpu_time_limit": 30000000000, "wall_time_limit": 60000000000, "max_processes": 10,'
        b' "max_file_descriptors": 100, "max_output_size": 1048576}}]}',
        b'{"results": [{"status": "Success", "exit_code": 0, "stdout": "hello world\\n", "stderr": null, "error": null,'
        b' "resource_usage": {"cpu_time_ns": 1000000, "wall_time_ns": 5000000, "memory_peak_bytes": 1048576,'
        b' "memory_current_bytes": 524288, "process_count": 1, "file_descriptors": 3, "io_read_bytes": 0,'
        b' "io_write_bytes": 12, "system_time_ns": 500000, "user_time_ns": 500000},'
        b' "resource_limits_exceeded": {"cpu_time_limit_exceeded": false, "wall_time_limit_exceeded": false,'
        b' "process_limit_exceeded": false, "file_descriptor_limit_exceeded": false,'
        b' "output_limit_exceeded": false}}]}',
    ),
    Example(
        "A script",
        b'{"tasks": [{"command": "python", "args": ["script.py"], "files": {"script.py":'
        b' "import sys\\nprint(f\\"Python {sys.version}\\")"}, "env": {"PYTHONPATH": "/tmp"}}]}',
    ),
    Example(
        "Several tasks",
        b'{"tasks": [{"command": "echo", "args": ["Task 1"]}, {"command": "python", "args": ["-c",'
        b' "print(\\"Task 2\\")"]}, {"command": "bash", "args": ["-c", "echo \\"Task 3\\""]}]}',
    ),
    Example(
        "One after another, in one directory",
        b'{"sequential": true, "tasks": [{"command": "bash", "args": ["-c", "echo 1 > a"]}, {"command": "cat",'
        b' "args": ["a"]}]}',
    ),
)
