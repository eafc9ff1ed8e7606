"""The bodies and replies of InstaVM's API, as they are on the wire. Times are seconds; a session's VM has its id."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sandfork.dialects.base import LANGUAGE, UNAVAILABLE, Example

MAX_LIFETIME_S = 86400
Lifetime = Annotated[int, Meta(ge=20, le=MAX_LIFETIME_S, description="Seconds until the session is killed.")]
Columns = Annotated[int, Meta(ge=1, le=1000)]
Key = Annotated[str | None, Meta(description="An API key, where no header has one.")]
Labels = Annotated[dict[str, Any], Meta(description="Labels to find the session by.")]
Value = str | int | float | bool
Allowed = Annotated[bool, Meta(extra_json_schema=UNAVAILABLE)]
Places = Annotated[list[str] | None, Meta(extra_json_schema=UNAVAILABLE)]
EnvName = Annotated[str, Meta(extra_json_schema={"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"})]
FileName = Annotated[str, Meta(extra_json_schema={"minLength": 1}, description="Below the work directory or /tmp.")]
NAME: dict[str, Any] = {"pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"}
"""Extra schema of a session's id; only documents read it, as what does not fit is 400 and not 422."""


class ExecBody(msgspec.Struct, frozen=True):
    """A program for a session's interpreter: `command`, or `code` where there is none."""

    command: Annotated[str | None, Meta(description="Source text.")] = None
    code: Annotated[str | None, Meta(description="The same, under another name.")] = None
    api_key: Key = None
    session_id: Annotated[
        str | None, Meta(description="The session; without one a new one is made.", extra_json_schema=NAME)
    ] = None
    language: Annotated[str | None, Meta(extra_json_schema=LANGUAGE)] = "python"
    timeout: Annotated[int, Meta(ge=1, le=600, description="Seconds in which the answer is there.")] = 60
    vault_ids: Annotated[list[str] | None, Meta(extra_json_schema=UNAVAILABLE)] = None


ONE_PROGRAM: dict[str, Any] = {
    "anyOf": [{"required": [name], "properties": {name: {"type": "string"}}} for name in ("command", "code")]
}
"""What the types cannot say: a program is there."""


class ExecReply(msgspec.Struct, frozen=True):
    """What came of it."""

    stdout: Annotated[str, Meta(description="The value of a last expression in Python ends it.")]
    stderr: str
    exit_code: int
    execution_time: float
    cpu_time: float
    session_id: str
    state_lost: Annotated[bool, Meta(description="The session has a new interpreter, without the variables.")]


class TaskStarted(msgspec.Struct, frozen=True):
    """A program that goes on without its client."""

    task_id: str
    session_id: str
    status: str
    created_at: str


class TaskReply(msgspec.Struct, frozen=True):
    """What came of it so far; the output is plain text."""

    task_id: str
    status: str
    is_complete: bool
    created_at: str
    serialized_stdout: str = ""
    serialized_stderr: str = ""
    exit_code: int | None = None
    execution_time: float | None = None
    cpu_time: float | None = None
    state_lost: bool = False
    error: Annotated[str | None, Meta(description="Why there is no outcome.")] = None


class SessionBody(msgspec.Struct, frozen=True):
    """A session to make; `vcpu_count` is how many processors its programs may use at a time."""

    api_key: Key = None
    vm_lifetime_seconds: Lifetime = 300
    memory_mb: Annotated[int, Meta(ge=128, le=8192)] | None = None
    vcpu_count: Annotated[int, Meta(extra_json_schema={"enum": [1, 2, 4, 6, 8]})] | None = None
    metadata: Labels | None = None
    env: Annotated[dict[EnvName, Value], Meta(description="What its programs find in their environment.")] | None = None


class MachineBody(SessionBody, frozen=True):
    """A session to make, by another name."""

    snapshot_id: Annotated[str | None, Meta(extra_json_schema=UNAVAILABLE)] = None
    session_id: Annotated[str | None, Meta(extra_json_schema=UNAVAILABLE)] = None
    image_variant: Annotated[str | None, Meta(extra_json_schema=UNAVAILABLE)] = None
    volumes: Annotated[list[Any] | None, Meta(extra_json_schema=UNAVAILABLE)] = None
    vault_ids: Annotated[list[str] | None, Meta(extra_json_schema=UNAVAILABLE)] = None
    auto_suspend: Annotated[bool | None, Meta(extra_json_schema=UNAVAILABLE)] = None
    auto_resume: Annotated[bool | None, Meta(extra_json_schema=UNAVAILABLE)] = None


class SessionReply(msgspec.Struct, frozen=True):
    """A session."""

    session_id: str
    vm_id: str
    status: str
    vm_status: str
    created_at: str
    expires_at: str
    vm_lifetime_seconds: float
    memory_mb: int
    metadata: dict[str, Any]


class StatusReply(msgspec.Struct, frozen=True):
    """Whether a session is alive."""

    session_id: str
    exists: bool
    vm_assigned: bool
    vm_alive: bool
    vm_status: str
    vm_id: str
    uptime_seconds: float
    expires_in_seconds: float
    created_at: str


class UsageReply(msgspec.Struct, frozen=True):
    """What a session used so far, as the kernel counted it."""

    session_id: str
    vm_id: str
    executions: int
    cpu_time: float
    memory_peak_mb: float
    memory_current_mb: float
    memory_mb: int
    uptime_seconds: float


class KillBody(msgspec.Struct, frozen=True):
    """A session to end."""

    session_id: Annotated[str, Meta(extra_json_schema=NAME)]
    api_key: Key = None


class KillReply(msgspec.Struct, frozen=True):
    """A session that ended."""

    session_id: str
    vm_id: str
    status: str = "killed"


class UploadForm(msgspec.Struct, frozen=True):
    """A file to put into a session. `recursive` has no effect: directories on the way are made."""

    file: Annotated[str, Meta(extra_json_schema={"format": "binary"})]
    remote_path: FileName
    session_id: Annotated[str, Meta(extra_json_schema=NAME)]
    recursive: bool = False


class DownloadForm(msgspec.Struct, frozen=True):
    """A file to get from a session."""

    filename: FileName
    session_id: Annotated[str, Meta(extra_json_schema=NAME)]


class UploadReply(msgspec.Struct, frozen=True):
    """A file that is in the session now."""

    session_id: str
    remote_path: str
    size: int
    status: str = "success"


class DownloadReply(msgspec.Struct, frozen=True):
    """A file of the session."""

    filename: str
    content: Annotated[str, Meta(description="Base64; a line break for an empty file.")]
    size: int


class EgressBody(msgspec.Struct, frozen=True):
    """What a session may reach; this server takes only what allows nothing."""

    allow_public_repos: Allowed = False
    allow_package_managers: Allowed = False
    allow_http: Allowed = False
    allow_https: Allowed = False
    allowed_domains: Places = None
    allowed_cidrs: Places = None
    api_key: Key = None


class EgressReply(msgspec.Struct, frozen=True):
    """What a session may reach: nothing."""

    session_id: str
    vm_id: str
    allow_public_repos: bool = False
    allow_package_managers: bool = False
    allow_http: bool = False
    allow_https: bool = False
    allowed_domains: tuple[str, ...] = ()
    allowed_cidrs: tuple[str, ...] = ()


class TerminalBody(msgspec.Struct, frozen=True):
    """A terminal to open: `command` is a line for a shell, `shell` a program; without both it is bash."""

    cols: Columns = 80
    rows: Columns = 24
    command: str | None = None
    shell: str | None = None
    id: Annotated[str | None, Meta(extra_json_schema={"pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"})] = None
    api_key: Key = None


class SizeBody(msgspec.Struct, frozen=True):
    """A terminal's new size."""

    cols: Columns
    rows: Columns
    api_key: Key = None


class TerminalReply(msgspec.Struct, frozen=True):
    """A terminal; `session_id` is its own id, not that of the session it is in."""

    session_id: str
    vm_id: str
    command: str
    cols: int
    rows: int
    alive: bool
    exit_code: int | None
    created_at: str


class TerminalsReply(msgspec.Struct, frozen=True):
    """The terminals of a session."""

    sessions: list[TerminalReply]


class ClosedReply(msgspec.Struct, frozen=True):
    """A terminal that was closed."""

    session_id: str
    status: str = "closed"


class HealthReply(msgspec.Struct, frozen=True):
    """Whether the service can run programs."""

    status: str
    version: str


class Problem(msgspec.Struct, frozen=True):
    """What is wrong with a field, and where it is."""

    loc: list[str | int]
    msg: str
    type: str


class ErrorReply(msgspec.Struct, frozen=True):
    """Why a request was refused: a sentence, or what is wrong with its fields."""

    detail: str | list[Problem]


EXEC_EXAMPLES = (
    Example(
        "Hello",
        b'{"command": "print(1 + 1)"}',
        b'{"stdout": "2\\n", "stderr": "", "exit_code": 0, "execution_time": 0.0072, "cpu_time": 0.003,'
        b' "session_id": "019cf684-1fd5-73c0-9299-52253f9aa79c", "state_lost": false}',
    ),
    Example(
        "Every field",
        b'{"code": "echo $HOME", "session_id": "019cf684-1fd5-73c0-9299-52253f9aa79c", "language": "bash",'
        b' "timeout": 10, "api_key": null}',
    ),
)
SESSION_EXAMPLES = (Example("A session", b'{"vm_lifetime_seconds": 300, "memory_mb": 256, "metadata": {"team": "a"}}'),)
