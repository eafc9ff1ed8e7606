"""Start a program the cheapest way there is (posix_spawn, an explicit environment) and time it to its reaping."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

CLEAN_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


class WrongAnswer(Exception):
    """A contender did not print what it had to."""


@dataclass(frozen=True, slots=True)
class Command:
    """A program to start, and the output it must give."""

    name: str
    argv: tuple[str, ...]
    expect: bytes
    environment: Mapping[str, str] = field(default_factory=lambda: CLEAN_ENVIRONMENT)


def run_once(command: Command) -> int:
    """Run a command; return the nanoseconds from its start to its reaping, output read. *Raises* WrongAnswer."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    actions = (
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, write_end, 1),
        (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
    )
    try:
        started = time.perf_counter_ns()
        pid = _spawn(command, actions)
        os.close(write_end)
        write_end = -1
        output = b""
        while chunk := os.read(read_end, 1 << 16):
            output += chunk
        _, status = os.waitpid(pid, 0)
        elapsed = time.perf_counter_ns() - started
    finally:
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)
    if status != 0 or command.expect not in output:
        raise WrongAnswer(f"{command.name}: status {status}, printed {output[:200]!r}")
    return elapsed


def _spawn(command: Command, actions: Sequence[tuple[int | str, ...]]) -> int:
    # CPython ignores SIGPIPE, and an ignored signal would be inherited by the program.
    return os.posix_spawn(
        command.argv[0], command.argv, command.environment, file_actions=actions, setsigdef=[signal.SIGPIPE]
    )


def loop_on_all_cores(command: Command, duration_s: float) -> float:
    """Start the command over and over, one loop a core; return completions a second.

    Output goes to /dev/null: the loop is the yardstick of throughput and should do no more than it must.
    *Raises* WrongAnswer when a run fails.
    """
    cores = len(os.sched_getaffinity(0))
    counts, failures = [0] * cores, [0] * cores
    started = time.perf_counter()
    workers = [
        threading.Thread(target=_loop, args=(command, started + duration_s, counts, failures, core))
        for core in range(cores)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    elapsed = time.perf_counter() - started
    if any(failures):
        raise WrongAnswer(f"{command.name}: {sum(failures)} runs of the loop failed")
    return sum(counts) / elapsed


def _loop(command: Command, until: float, counts: list[int], failures: list[int], core: int) -> None:
    actions = (
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
    )
    while time.perf_counter() < until:
        _, status = os.waitpid(_spawn(command, actions), 0)
        counts[core] += 1
        failures[core] += status != 0
