"""How a step ended, from what the kernel says of it: pure."""

from __future__ import annotations

import signal
import time

from sandfork.linux.cgroup import Figures
from sandfork.model import Outcome, Usage
from sandfork.tiers.base import StepEnd

_SIGNAL_OUTCOME = {
    signal.SIGXCPU: Outcome.CPU_LIMIT,
    signal.SIGXFSZ: Outcome.DISK_LIMIT,
    signal.SIGSYS: Outcome.POLICY_VIOLATION,
}


def outcome_of_signal(number: int, oom_kills: int) -> Outcome:
    """Return what a program's end by a signal means."""
    outcome = _SIGNAL_OUTCOME.get(signal.Signals(number), Outcome.SIGNALLED) if number < 32 else Outcome.SIGNALLED
    return Outcome.OUT_OF_MEMORY if outcome is Outcome.SIGNALLED and oom_kills else outcome


def outcome_of_failure(oom_kills: int, pids_denied: int) -> Outcome | None:
    """Return what an exit code other than 0 means; None where the kernel's counts do not tell."""
    if oom_kills:
        return Outcome.OUT_OF_MEMORY
    return Outcome.PIDS_LIMIT if pids_denied else None


def never_ran(outcome: Outcome) -> StepEnd:
    """Return the end of a program that was killed before it began."""
    now = time.monotonic_ns()
    return StepEnd(outcome, None, signal.SIGKILL, now, now, Usage())


def bounded_stamps(sent_ns: int, ready_ns: int, done_ns: int) -> tuple[int, int]:
    """Return when a step was ready and done, as claimed, but between its sending and now."""
    now = time.monotonic_ns()
    ready_ns = min(max(ready_ns, sent_ns), now)
    return ready_ns, min(max(done_ns, ready_ns), now)


def usage_of(figures: Figures, wall_ns: int) -> Usage:
    """Return the kernel's figures as usage."""
    return Usage(
        cpu_user_s=figures.cpu_user_ns / 1e9,
        cpu_system_s=figures.cpu_system_ns / 1e9,
        wall_s=wall_ns / 1e9,
        memory_peak_bytes=figures.memory_peak_bytes,
        memory_current_bytes=figures.memory_bytes,
        processes=figures.processes,
    )
