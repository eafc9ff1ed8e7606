"""What exists on the machine: the processes of a service, their memory, and what a service left behind.

Memory of a parked sandbox is what it costs the machine: the proportional share (PSS) of its processes, plus what
the kernel keeps for it outside of them: page tables, kernel stacks, slab and per-cpu memory, as the growth of
those lines of /proc/meminfo, plus files in its tmpfs (the growth of Shmem).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
_SLOT_FILE = re.compile(rf"{CGROUPS}/.*/(s\d+)/[^/]*")


@dataclass(frozen=True, slots=True)
class Process:
    """One process.

    `started` (in clock ticks since boot) tells it from a later one of the same pid; `depth` is the number of
    nested pid namespaces it is in, and `inner_pid` its pid in the innermost.
    """

    pid: int
    parent: int
    started: int
    name: str
    depth: int
    inner_pid: int


@dataclass(frozen=True, slots=True)
class KernelMemory:
    """Memory the kernel keeps outside of processes' own, from /proc/meminfo."""

    page_tables_bytes: int
    kernel_stack_bytes: int
    slab_bytes: int
    percpu_bytes: int
    shmem_bytes: int

    def total_since(self, before: KernelMemory) -> int:
        """Return by how many bytes all of it together has grown."""
        return sum(getattr(self, field.name) - getattr(before, field.name) for field in fields(self))


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """How many slots a service has made, and its descriptors but those that a slot keeps for its next sandbox."""

    slots: int
    others: int


@dataclass(frozen=True, slots=True)
class Belongings:
    """What a service may leave on a machine: cgroup directories, mounts and network namespaces."""

    cgroups: frozenset[str]
    mounts: frozenset[str]
    network_namespaces: frozenset[str]


def kernel_memory() -> KernelMemory:
    """Read /proc/meminfo."""
    lines = (line.split() for line in (PROC / "meminfo").read_text().splitlines())
    sizes = {words[0].rstrip(":"): int(words[1]) << 10 for words in lines if len(words) == 3}
    return KernelMemory(
        page_tables_bytes=sizes["PageTables"] + sizes.get("SecPageTables", 0),
        kernel_stack_bytes=sizes["KernelStack"],
        slab_bytes=sizes["Slab"],
        percpu_bytes=sizes.get("Percpu", 0),
        shmem_bytes=sizes["Shmem"],
    )


def processes() -> list[Process]:
    """List all processes; those that end meanwhile are left out."""
    found = (process_of(int(entry)) for entry in os.listdir(PROC) if entry.isdigit())
    return [process for process in found if process is not None]


def process_of(pid: int) -> Process | None:
    """Read one process, or None if there is none of that pid."""
    try:
        stat = (PROC / str(pid) / "stat").read_text()
        status = (PROC / str(pid) / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    words = stat[stat.rindex(")") + 2 :].split()
    pids = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [str(pid)])
    return Process(pid, int(words[1]), int(words[19]), name, depth=len(pids), inner_pid=int(pids[-1]))


def descendants(root: int, everyone: list[Process]) -> list[Process]:
    """Return `root` and all below it, from a list of all processes."""
    children: dict[int, list[Process]] = {}
    for process in everyone:
        children.setdefault(process.parent, []).append(process)
    found = [process for process in everyone if process.pid == root]
    for process in found:
        found.extend(children.get(process.pid, ()))
    return found


def parked_sandboxes(tree: list[Process]) -> tuple[list[Process], int]:
    """Return the processes of the sandboxes in a service's tree, and how many sandboxes they are.

    Sandboxes are the innermost pid namespaces of the tree, and each has one process 1. True only while
    nothing but parked sandboxes is there.
    """
    innermost = max((process.depth for process in tree), default=1)
    inside = [process for process in tree if process.depth == innermost > tree[0].depth]
    return inside, sum(process.inner_pid == 1 for process in inside)


def pss_bytes(pid: int) -> int:
    """Return a process's proportional share of memory, 0 when it has ended or has none."""
    return _rollup(pid, "Pss:")


def rss_bytes(pid: int) -> int:
    """Return a process's resident memory, 0 when it has ended or has none."""
    return _rollup(pid, "Rss:")


def open_files(pids: Iterable[int]) -> OpenFiles:
    """Return the descriptors that processes of a service have open; those that have ended have none."""
    return sort_files(target for pid in pids for target in _opened_by(pid))


def sort_files(targets: Iterable[str]) -> OpenFiles:
    """Tell what is opened for slots from the rest, by what each descriptor leads to.

    A slot has each of its cgroups' files once, and one user and one network namespace: what is more is no part of it.
    """
    opened = Counter(targets)
    of_slots = {target: found[1] for target in opened if (found := _SLOT_FILE.match(target))}
    slots = len(set(of_slots.values()))
    namespaces = sum(
        min(slots, sum(count for target, count in opened.items() if target.startswith(kind)))
        for kind in ("user:[", "net:[")
    )
    return OpenFiles(slots, opened.total() - len(of_slots) - namespaces)


def _opened_by(pid: int) -> list[str]:
    directory = PROC / str(pid) / "fd"
    try:
        return [_target(directory / number) for number in os.listdir(directory)]
    except (FileNotFoundError, ProcessLookupError):
        return []


def belongings() -> Belongings:
    """Look at the cgroups, mounts and network namespaces of the whole machine."""
    mounts = (PROC / "self/mountinfo").read_text().splitlines()
    bound = {line.split()[3] for line in mounts if " - nsfs " in line}
    return Belongings(
        cgroups=frozenset(path for path, _, _ in os.walk(CGROUPS)),
        mounts=frozenset(line.split()[4] for line in mounts),
        network_namespaces=network_namespaces_of(processes()) | bound,
    )


def network_namespaces_of(members: list[Process]) -> frozenset[str]:
    """Return the network namespaces these processes are in or hold open, as "net:[inode]"."""
    found = {_target(PROC / str(process.pid) / "ns/net") for process in members}
    for process in members:
        directory = PROC / str(process.pid) / "fd"
        try:
            held = {_target(directory / number) for number in os.listdir(directory)}
        except OSError:
            continue  # ended meanwhile, or another user's
        found |= {name for name in held if name.startswith("net:[")}
    return frozenset(found - {""})


def cgroups_of(members: list[Process], new: frozenset[str]) -> frozenset[str]:
    """Return those of the `new` cgroup directories that lie in a new subtree which holds one of these processes."""
    roots = [str(CGROUPS), *(str(path) for path in CGROUPS.iterdir() if path.is_dir())]
    homes = {f"{root}{path}" for process in members for path in _cgroup_paths(process.pid) for root in roots}
    tops = {path for path in new if os.path.dirname(path) not in new}
    own = {top for top in tops if any(f"{home}/".startswith(f"{top}/") for home in homes)}
    return frozenset(path for path in new if any(f"{path}/".startswith(f"{top}/") for top in own))


def _cgroup_paths(pid: int) -> set[str]:
    try:
        lines = (PROC / str(pid) / "cgroup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return {line.split(":", 2)[2] for line in lines} - {"/"}


def _target(link: Path) -> str:
    """Return where a link points, "" when that cannot be seen (any more)."""
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _rollup(pid: int, name: str) -> int:
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(name)), 0)
