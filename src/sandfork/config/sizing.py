"""Replace the automatic settings by numbers that suit this machine's cores and memory."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from sandfork.config.loading import Loaded
from sandfork.config.schema import GIB, MIB

#: Executions that run at one time: enough that programs which wait do not hold up those which compute.
RUNNING_PER_CORE = 16
#: What an execution is reckoned to use at a time when many run; its limit is higher, its cgroup enforces that.
RUNNING_BYTES = 128 * MIB
#: Waiting executions for each that runs: about ten seconds of work at the usual rate.
QUEUED_PER_RUNNING = 16
#: Parked sandboxes: a burst of this size is answered without forking.
PARKED_PER_CORE = 16
#: What a parked sandbox of a bare interpreter takes, the kernel's part included.
PARKED_BYTES = 2 * MIB
AUTO_SOURCE = "automatic"


@dataclass(frozen=True, slots=True)
class Machine:
    """What this process may use: cores of its affinity mask, memory of the machine or of its own cgroup."""

    cores: int
    memory_bytes: int

    @classmethod
    def probe(cls) -> Machine:
        """Read the figures of the machine this runs on."""
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        limits = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
        for path in limits:
            text = path.read_text().strip() if path.exists() else "max"
            total = total if text == "max" else min(total, int(text))
        return cls(len(os.sched_getaffinity(0)), total)

    def describe(self) -> str:
        """Return a phrase such as "2 cores, 23.5 GiB"."""
        plural = "" if self.cores == 1 else "s"
        return f"{self.cores} core{plural}, {self.memory_bytes / GIB:.1f} GiB"


def size(loaded: Loaded, machine: Machine) -> Loaded:
    """Return `loaded` with its automatic values replaced."""
    config, sources = loaded.config, dict(loaded.sources)
    admission, pool = config.admission, config.pool
    if not admission.max_running:
        fitting = max(4, int(machine.memory_bytes * 0.75) // RUNNING_BYTES)
        admission = replace(admission, max_running=min(RUNNING_PER_CORE * machine.cores, fitting))
        sources["admission.max_running"] = f"{AUTO_SOURCE} ({machine.describe()})"
    if not admission.max_queued:
        admission = replace(admission, max_queued=QUEUED_PER_RUNNING * admission.max_running)
        sources["admission.max_queued"] = f"{AUTO_SOURCE} ({QUEUED_PER_RUNNING} for each that runs)"
    if not pool.size:
        fitting = max(1, int(machine.memory_bytes * 0.02) // PARKED_BYTES)
        pool = replace(pool, size=min(PARKED_PER_CORE * machine.cores, fitting))
        sources["pool.size"] = f"{AUTO_SOURCE} ({machine.describe()})"
    return Loaded(replace(config, admission=admission, pool=pool), sources)
