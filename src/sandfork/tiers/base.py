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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sandfork.model import InputFile, Limits, Outcome, OutputFile, Step, Stream, TemplateHealth, Usage

BEFORE_START = "start"
"""The `step` of a GuestLost that says the sandbox was gone before the program began."""


class OutputSink(Protocol):
    """Where a program's output goes."""

    def output(self, stream: Stream, data: bytes) -> bool:
        """Take a chunk; return False to have no more read until `Sandbox.resume` is called."""
        ...


@dataclass(frozen=True, slots=True)
class StepEnd:
    """How one step ended.

    `ready_ns` and `done_ns` are CLOCK_MONOTONIC instants: user code about to run, and over. `outcome` is
    EXITED or SIGNALLED unless the tier itself stopped the program for a limit it enforces.
    """

    outcome: Outcome
    exit_code: int | None
    signal: int | None
    ready_ns: int
    done_ns: int
    usage: Usage


@dataclass(frozen=True, slots=True)
class Collected:
    """Files found by `Sandbox.collect`; `skipped` names what matched but is no regular file or too large."""

    files: tuple[OutputFile, ...] = ()
    skipped: tuple[str, ...] = ()


class Sandbox(Protocol):
    """One isolated execution environment."""

    async def exec(self, step: Step, limits: Limits, sink: OutputSink) -> StepEnd:
        """Run `step` to its end under `limits`.

        *Raises* GuestLost, with BEFORE_START as its `step` when the program surely never began, so that running it
        elsewhere is safe; ForkFailed, which always means that; FileNotInSandbox.
        """
        ...

    def kill(self, outcome: Outcome) -> None:
        """Kill the program now; `exec` then returns with this `outcome` and the output so far.

        The first outcome given stands. Before the program began it has `exec` return without running it; after the
        end it does nothing.
        """
        ...

    def resume(self) -> None:
        """Read output again after the sink refused more."""
        ...

    async def put(self, files: Sequence[InputFile]) -> None:
        """Write files into the sandbox. *Raises* FileNotInSandbox."""
        ...

    async def collect(self, patterns: Sequence[str], max_bytes: int) -> Collected:
        """Read regular files matching paths or globs, at most `max_bytes` in all."""
        ...

    async def close(self) -> None:
        """Destroy the sandbox and everything in it; idempotent."""
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

    def health(self) -> TemplateHealth:
        """Report readiness and real memory."""
        ...


class Tier(Protocol):
    """One isolation mechanism."""

    @property
    def isolation(self) -> str:
        """What replies and health call this: "process", "reduced", ..."""
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
