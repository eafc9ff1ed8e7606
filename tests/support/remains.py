"""What is left on the host: the processes, cgroups, mounts and descriptors of an instance of the process tier."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sandfork.linux.cgroup import processes_below
from sandfork.tiers.process import Launched

#: The kernel empties cgroups and frees processes a moment after their death; longer than this is "left".
SETTLE_S = 5.0


def processes_of(launched: Launched) -> set[int]:
    """Return the pids, as the host has them, of every process in the instance's cgroups."""
    return {pid for directory in launched.cgroups.values() if directory.exists() for pid in processes_below(directory)}


def processes_in_slots(launched: Launched) -> set[int]:
    """Return the pids of every process of a program."""
    return {
        pid
        for directory in launched.cgroups.values()
        for slot in directory.glob("s[0-9]*")
        for pid in processes_below(slot)
    }


def command_line(pid: int) -> bytes:
    """Return the argv of a process with NULs between, b"" when it is gone or has none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def zygotes_of(launched: Launched) -> set[int]:
    """Return the pids of the Python zygotes: they run the zygote program outside of every slot."""
    return {
        pid for pid in processes_of(launched) - processes_in_slots(launched) if b"/proc/self/fd/6" in command_line(pid)
    }


def is_alive(pid: int) -> bool:
    """Tell whether the process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def opened_by(pid: int) -> list[str]:
    """Return what the descriptors of a process lead to; one that it closes meanwhile is not among them."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(os.readlink(link))
    return found


def mounts() -> set[str]:
    """Return the mount points that this process sees."""
    return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def settles(condition: Callable[[], bool], within_s: float = SETTLE_S) -> bool:
    """Look again and again until `condition` holds or it is too late."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        os.sched_yield()
    return True
