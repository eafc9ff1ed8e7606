"""The nouns of sandfork: what is asked, what is planned, what happened.

Every unit is in the name (`_s` seconds, `_bytes` bytes). Wire formats never appear here: a dialect translates
them to these types and back. Nothing here imports anything but the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum, StrEnum


class Outcome(StrEnum):
    """How a program ended. A program's failure is one of these values, never an exception of ours."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    TIMED_OUT = "timed_out"
    CPU_LIMIT = "cpu_limit"
    OUT_OF_MEMORY = "out_of_memory"
    PIDS_LIMIT = "pids_limit"
    OUTPUT_LIMIT = "output_limit"
    DISK_LIMIT = "disk_limit"
    POLICY_VIOLATION = "policy_violation"


class Stream(IntEnum):
    """An output stream of a program, by its file descriptor."""

    STDOUT = 1
    STDERR = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use, enforced while it runs; `cpus` at a time, as a rate over all its processes."""

    wall_s: float = 30.0
    cpu_s: float = 30.0
    memory_bytes: int = 512 << 20
    pids: int = 64
    open_files: int = 256
    output_bytes: int = 1 << 20
    disk_bytes: int = 64 << 20
    cpus: float = math.inf


@dataclass(frozen=True, slots=True)
class LimitsOverride:
    """The limits a request names; None means the default stays."""

    wall_s: float | None = None
    cpu_s: float | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    open_files: int | None = None
    output_bytes: int | None = None
    disk_bytes: int | None = None
    cpus: float | None = None

    def over(self, base: Limits) -> Limits:
        """Return `base` with every limit named here replaced."""
        values = {f.name: getattr(self, f.name) for f in fields(Limits)}
        return Limits(**{k: getattr(base, k) if v is None else v for k, v in values.items()})


@dataclass(frozen=True, slots=True)
class Snippet:
    """Source text in a language of the catalogue; None is the session's language, or Python where there is none."""

    language: str | None
    code: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command: argv[0] is looked up in the sandbox's PATH."""

    argv: tuple[str, ...]


Program = Snippet | Command


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file put into the sandbox before the program starts.

    `path` is relative to the work directory, or absolute below a writable directory of the sandbox.
    """

    path: str
    content: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A regular file collected after the program ended; `path` as it was asked for or found by a glob."""

    path: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Display:
    """One rich value a program showed: a MIME bundle, as notebooks have them.

    `kind` is "result" for the value of the last expression, "display" for what was shown on the way (a figure, a
    table). `data` maps MIME types to text; content of binary types is base64.
    """

    kind: str
    data: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SessionKey:
    """Whose session it is: sessions of one dialect or one API key are unknown to every other.

    `space` is the dialect's name, `owner` the caller's `key_id`, `name` the session's id within those.
    """

    space: str
    owner: str
    name: str


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What a new session is to be. None stands for the server's default.

    `language` is what its first process is made for; if `one_language` it takes no programs in another, but commands.
    `limits` hold for the session as a whole but wall time, cpu time and output, which each execution has for itself.
    `lifetime_s` counts from its making, `idle_s` from the end of its last use.
    """

    language: str | None = None
    one_language: bool = False
    limits: LimitsOverride = field(default_factory=LimitsOverride)
    env: tuple[tuple[str, str], ...] = ()
    lifetime_s: float | None = None
    idle_s: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SessionUse:
    """The session an execution belongs to; `make` makes it when it is not there, else that is SessionNotFound.

    `fresh` runs the program in a process of its own, as a plain run; otherwise the session's interpreter of that
    language runs it and keeps its state, where the language has one that does.
    """

    space: str
    name: str
    make: SessionSpec | None = None
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class SessionState:
    """A session as it is now, at `now_s`; instants are Unix time in seconds."""

    name: str
    language: str
    limits: Limits
    created_s: float
    last_used_s: float
    expires_s: float
    busy: bool
    executions: int
    usage: Usage
    metadata: Mapping[str, str]
    now_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One entry of a directory; `kind` is "file", "directory", "link" or "other", `size_bytes` that of a file."""

    name: str
    kind: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class TerminalSpec:
    """A terminal to open in a session, and the command that runs in it."""

    argv: tuple[str, ...] = ("/bin/bash",)
    cols: int = 80
    rows: int = 24
    env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class TerminalState:
    """A terminal as it is now; `exit_code` is None while its command runs."""

    name: str
    session: str
    argv: tuple[str, ...]
    cols: int
    rows: int
    created_s: float
    exit_code: int | None


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """One execution as a caller asked for it, in our units, before policy was applied.

    `work_dir` is where a program of its own starts, "" for the sandbox's work directory, else a directory below it that
    is made when it is not there. `secrets` are texts that are masked wherever the program writes them. `rich` asks for
    `Display`s. `keep_stdin` leaves stdin open after `stdin`, for `Execution.feed`.
    """

    program: Program
    files: tuple[InputFile, ...] = ()
    stdin: bytes = b""
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    limits: LimitsOverride = field(default_factory=LimitsOverride)
    network: str = "none"
    isolation: str | None = None
    template: str | None = None
    snapshot: str | None = None
    session: SessionUse | None = None
    collect: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    work_dir: str = ""
    secrets: tuple[str, ...] = ()
    rich: bool = False
    keep_stdin: bool = False


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: an API key (`key_id` is a public name, never the key) or an address in open mode."""

    key_id: str
    address: str = ""
    rate_per_s: float | None = None
    max_limits: Limits | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One process of a plan.

    `argv` is what the program sees. `code` is written to `file_name` in the work directory first; without it an
    interpreter that is up finds its program there. A `lasting` one takes further steps, keeping its state, a `live` one
    is followed, a `warm` one has its template's words and variables alone; `rich` and `keep_stdin` are the request's.
    """

    argv: tuple[str, ...]
    file_name: str | None = None
    code: bytes | None = None
    env: tuple[tuple[str, str], ...] = ()
    stdin: bytes = b""
    files: tuple[InputFile, ...] = ()
    lasting: bool = False
    rich: bool = False
    keep_stdin: bool = False
    warm: bool = False
    live: bool = False


@dataclass(frozen=True, slots=True)
class Compilation:
    """What runs before the plan's step, in a sandbox of its own, and which files of it the step is given.

    `artefacts` are paths and globs below the work directory. `tools` are the programs that take part: when one of them
    changes on the host, what was compiled with it is out of date.
    """

    step: Step
    limits: Limits
    artefacts: tuple[str, ...]
    tools: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExecPlan:
    """A request resolved against languages, policy and limits: no decision is left in it.

    `wall_s` of the limits counts from the moment the sandbox is given the program. `queue_deadline_s` is an
    instant of the engine's monotonic clock until which the execution may wait for its turn. `named_limits` are those
    that the request named itself. `command_key` is of the template that a compiler runs in. `image` is
    NAME@DIGEST, "" for the host's files.
    """

    exec_id: str
    caller: Caller
    language: str
    template_key: str
    step: Step
    limits: Limits
    collect: tuple[str, ...] = ()
    isolation: str = "process"
    session: SessionUse | None = None
    secrets: tuple[str, ...] = ()
    named_limits: frozenset[str] = frozenset()
    compilation: Compilation | None = None
    command_key: str = "command"
    image: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a program used, measured by the kernel."""

    cpu_user_s: float = 0.0
    cpu_system_s: float = 0.0
    wall_s: float = 0.0
    memory_peak_bytes: int = 0
    memory_current_bytes: int = 0
    processes: int = 0
    io_read_bytes: int = 0
    io_write_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Spans of one execution, in seconds of the monotonic clock.

    `fork_s` runs from leaving the queue to the sandbox being ready to run user code, without `compile_s`, which is
    what compiling it took; `exec_s` is the user code to its end; `total_s` is the whole, the queue included.
    """

    queue_s: float = 0.0
    fork_s: float = 0.0
    exec_s: float = 0.0
    total_s: float = 0.0
    compile_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What came of one execution.

    `exit_code` is set when the program exited by itself, `signal` when a signal ended it. `detail` names
    what a policy refused, when the outcome alone does not say it. `state_lost` says that the session's interpreter
    ended with this execution; the session goes on with a new one. `started_s` is when it was taken up, Unix time.
    `written_bytes` counts stdout and stderr up to the limit, also where somebody else was given them.
    `failed_step` is "compile" when the program was not run because it did not compile: outcome, status, output and
    usage are then the compiler's. `image` is what it was on, NAME@DIGEST, "" for the host's own files.
    """

    exec_id: str
    outcome: Outcome
    exit_code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    truncated: bool
    usage: Usage
    limits: Limits
    timings: Timings
    isolation: str
    files: tuple[OutputFile, ...] = ()
    files_skipped: tuple[str, ...] = ()
    displays: tuple[Display, ...] = ()
    state_lost: bool = False
    started_s: float = 0.0
    written_bytes: tuple[int, int] = (0, 0)
    failed_step: str = ""
    image: str = ""

    @property
    def status(self) -> int:
        """The exit status as a shell gives it: the exit code, or 128 + n for signal n."""
        if self.exit_code is not None:
            return self.exit_code
        return 128 + (self.signal or 0)


@dataclass(frozen=True, slots=True)
class TaskState:
    """An execution that nobody waits for: `ended` is None while it runs. `created_s` is Unix time."""

    task_id: str
    created_s: float
    ended: ExecResult | Exception | None


@dataclass(frozen=True, slots=True)
class TemplateHealth:
    """The state of one template, for health documents; a `dormant` one is made when it is first used."""

    key: str
    ready: bool
    memory_bytes: int
    parked: int
    generation: int
    reason: str = ""
    dormant: bool = False
