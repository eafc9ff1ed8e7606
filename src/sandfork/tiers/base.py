"""The port the engine sees: a tier makes templates, a template forks sandboxes, a sandbox runs one step.

Life of a sandbox: `Template.fork()` returns it *parked* (forked, confined, warmed, waiting); `exec` gives it
a step and returns when the program is over; `put` and `get` move files while it is alive; `close` destroys
everything in it and may be called at any moment, more than once. A sandbox is used by one execution or one
session and never goes back to a pool.

Output goes to an `OutputSink` as it arrives, in order per stream. `StepEnd` carries the kernel's word on how
the program ended; deciding which limit that means is the engine's part for wall time and output, and the
tier's for cpu time, memory, processes and disk.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from sandfork.model import (
    Display,
    FileEntry,
    InputFile,
    Limits,
    Outcome,
    OutputFile,
    Step,
    Stream,
    TemplateHealth,
    Usage,
)

BEFORE_START = "start"
"""The `step` of a GuestLost that says the sandbox was gone before the program began."""


class OutputSink(Protocol):
    """Where a program's output goes."""

    def output(self, stream: Stream, data: bytes) -> bool:
        """Take a chunk; return False to have no more read until `Process.resume` is called."""
        ...

    def display(self, shown: Display) -> None:
        """Take a rich value, behind all output that the program wrote before it."""
        ...


@dataclass(frozen=True, slots=True)
class StepEnd:
    """How one step ended.

    `ready_ns` and `done_ns` are CLOCK_MONOTONIC instants: user code about to run, and over. `outcome` is
    EXITED or SIGNALLED unless the tier itself stopped the program for a limit it enforces. `alive` says that the
    process was a lasting one and takes further steps.
    """

    outcome: Outcome
    exit_code: int | None
    signal: int | None
    ready_ns: int
    done_ns: int
    usage: Usage
    alive: bool = False


@dataclass(frozen=True, slots=True)
class Collected:
    """Files found by `Sandbox.collect`; `skipped` names what matched but is no regular file or too large."""

    files: tuple[OutputFile, ...] = ()
    skipped: tuple[str, ...] = ()


class Process(Protocol):
    """One confined process of a sandbox, parked until it is given a step. A lasting one takes several, one by one."""

    async def exec(self, step: Step, limits: Limits, sink: OutputSink) -> StepEnd:
        """Run `step` to its end under `limits`.

        *Raises* GuestLost, with BEFORE_START as its `step` when the program surely never began, so that running it
        elsewhere is safe; ForkFailed, which always means that; FileNotInSandbox.
        """
        ...

    def kill(self, outcome: Outcome) -> None:
        """Kill the program now; `exec` then returns with this `outcome` and the output so far.

        The first outcome given stands. Before the program began it has `exec` return without running it; after the
        end it does nothing. In a sandbox that is kept (`Sandbox.keep`) every process dies, and its files stay; of a
        program that is not lasting and SIGNALLED, only its own processes, without those that left its session.
        """
        ...

    def resume(self) -> None:
        """Read output again after the sink refused more."""
        ...

    async def feed(self, data: bytes) -> None:
        """Write to the stdin of a step with `keep_stdin`, at its pace; no bytes close it. Nobody there is no error."""
        ...

    def signal(self, number: int) -> None:
        """Send a signal to the running program and the processes of its group."""
        ...

    async def close(self) -> None:
        """Destroy the process; idempotent. Of a sandbox: everything in it, for good."""
        ...


class Terminal(Protocol):
    """The process of a terminal; its output is what the terminal shows, as STDOUT."""

    def resize(self, cols: int, rows: int) -> None:
        """Tell the terminal its size."""
        ...


class Files(Protocol):
    """The files of a sandbox, from outside: no link, FIFO or device ever leads anywhere else.

    Paths are relative to the work directory or absolute below one that the sandbox may write to. *Raises*
    FileNotInSandbox; DiskFull; GuestLost.
    """

    async def list(self, path: str) -> Sequence[FileEntry]:
        """Return the entries of a directory, sorted by name."""
        ...

    async def read(self, path: str, max_bytes: int) -> tuple[int, AsyncIterator[bytes]]:
        """Return the size of a regular file and just as much content, in chunks; at most `max_bytes`.

        The chunks end with FileNotInSandbox when the file does not stay the same meanwhile.
        """
        ...

    async def write(self, path: str, chunks: AsyncIterable[bytes], mode: int = 0o644) -> int:
        """Write a file in place of what is there, making directories; return its size. What fails leaves no file."""
        ...

    async def delete(self, path: str) -> None:
        """Remove a file, or a directory with all in it."""
        ...


class Sandbox(Process, Protocol):
    """One isolated execution environment, and its first process."""

    @property
    def image(self) -> str:
        """The image that it is on, NAME@DIGEST; "" for the host's files."""
        ...

    @property
    def files(self) -> Files:
        """The files in it."""
        ...

    async def put(self, files: Sequence[InputFile]) -> None:
        """Write files into the sandbox. *Raises* FileNotInSandbox."""
        ...

    async def collect(self, patterns: Sequence[str], max_bytes: int) -> Collected:
        """Read regular files matching paths or globs, at most `max_bytes` in all."""
        ...

    async def keep(self, limits: Limits) -> None:
        """Have the sandbox outlive its programs, under these limits. *Raises* TierError."""
        ...

    async def cleared(self) -> None:
        """Wait until what `kill` began in a kept sandbox is done. *Raises* GuestLost when it failed."""
        ...


class Template(Protocol):
    """A warmed parent that never ran user code."""

    @property
    def key(self) -> str:
        """The template key of the language catalogue."""
        ...

    async def fork(self, *, urgent: bool = False) -> Sandbox:
        """Return a parked sandbox; `urgent` when somebody waits for it, so that warming it is lost time.

        *Raises* ForkFailed, TemplateFailed.
        """
        ...

    async def join(self, sandbox: Sandbox, *, terminal: tuple[int, int] | None = None) -> Process:
        """Fork a further process into a kept sandbox and return it parked; with a `terminal` of (cols, rows) instead
        of pipes it is a `Terminal` as well. *Raises* ForkFailed, TemplateFailed.
        """
        ...

    def rest(self) -> None:
        """Hold nothing until the next fork: what has been forked lives on."""
        ...

    def health(self) -> TemplateHealth:
        """Report readiness and real memory."""
        ...


class Tier(Protocol):
    """One isolation mechanism."""

    @property
    def isolation(self) -> str:
        """What replies and health call this: "process", "reduced", ..."""
        ...

    @property
    def rates_cpus(self) -> bool:
        """Whether it can hold a sandbox to `Limits.cpus`; where not, no finite number of them may be asked of it."""
        ...

    async def start(self) -> None:
        """Make ready; probe every primitive by trying to break it. *Raises* TierUnavailable."""
        ...

    async def template(self, key: str) -> Template:
        """Return the warm template of that key, making it when needed. *Raises* TemplateFailed."""
        ...

    async def close(self) -> None:
        """End every sandbox and template and leave nothing behind."""
        ...
