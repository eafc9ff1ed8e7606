"""The nouns of sandfork: what is asked, what is planned, what happened.

Every unit is in the name (`_s` seconds, `_bytes` bytes). Wire formats never appear here: a dialect translates
them to these types and back. Nothing here imports anything but the standard library.
"""

from __future__ import annotations

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
    """What a program may use. All are enforced while it runs."""

    wall_s: float = 30.0
    cpu_s: float = 30.0
    memory_bytes: int = 512 << 20
    pids: int = 64
    open_files: int = 256
    output_bytes: int = 1 << 20
    disk_bytes: int = 64 << 20


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

    def over(self, base: Limits) -> Limits:
        """Return `base` with every limit named here replaced."""
        values = {f.name: getattr(self, f.name) for f in fields(Limits)}
        return Limits(**{k: getattr(base, k) if v is None else v for k, v in values.items()})


@dataclass(frozen=True, slots=True)
class Snippet:
    """Source text in a language of the catalogue."""

    language: str
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
class ExecRequest:
    """One execution as a caller asked for it, in our units, before policy was applied."""

    program: Program
    files: tuple[InputFile, ...] = ()
    stdin: bytes = b""
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    limits: LimitsOverride = field(default_factory=LimitsOverride)
    network: str = "none"
    isolation: str | None = None
    template: str | None = None
    session: str | None = None
    collect: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


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

    `argv` is what the program sees (`sys.argv` for a forked interpreter). When `code` is not None it is
    written to `file_name` in the work directory before the process starts.
    """

    argv: tuple[str, ...]
    file_name: str | None = None
    code: bytes | None = None
    env: tuple[tuple[str, str], ...] = ()
    stdin: bytes = b""
    files: tuple[InputFile, ...] = ()


@dataclass(frozen=True, slots=True)
class ExecPlan:
    """A request resolved against languages, policy and limits: no decision is left in it.

    `wall_s` of the limits counts from the moment the sandbox is given the program. `queue_deadline_s` is an
    instant of the engine's monotonic clock until which the execution may wait for its turn.
    """

    exec_id: str
    caller: Caller
    language: str
    template_key: str
    step: Step
    limits: Limits
    collect: tuple[str, ...] = ()
    isolation: str = "process"


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

    `fork_s` runs from leaving the queue to the sandbox being ready to run user code; `exec_s` is the user
    code to its end; `total_s` is the whole, the queue included.
    """

    queue_s: float = 0.0
    fork_s: float = 0.0
    exec_s: float = 0.0
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What came of one execution.

    `exit_code` is set when the program exited by itself, `signal` when a signal ended it. `detail` names
    what a policy refused, when the outcome alone does not say it.
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

    @property
    def status(self) -> int:
        """The exit status as a shell gives it: the exit code, or 128 + n for signal n."""
        if self.exit_code is not None:
            return self.exit_code
        return 128 + (self.signal or 0)


@dataclass(frozen=True, slots=True)
class TemplateHealth:
    """The state of one template, for health documents."""

    key: str
    ready: bool
    memory_bytes: int
    parked: int
    generation: int
    reason: str = ""
