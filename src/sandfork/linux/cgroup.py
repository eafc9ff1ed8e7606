"""cgroup v1, v2 and hybrid: find the hierarchies, make this instance's directories, read a slot's figures.

Order at start, as root: read /proc/self/mountinfo -> pick one directory per controller -> make `sandfork-K` in each,
with `keep` for our own processes -> give it to the user that the warden is on the host. Slots are made below it by the
warden. Kernel 4.5 (v2), 5.7 (CLONE_INTO_CGROUP), 5.19 (memory.peak).
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sandfork.linux.descriptors import NO_DESCRIPTORS, Spare

V1_CONTROLLERS = ("memory", "pids", "cpuacct", "cpu")
V2_CONTROLLERS = ("memory", "pids", "cpu")
QUOTA_FILES = ("cpu.max", "cpu.cfs_quota_us")
ASIDE = "outside"  # where processes go that were in the parent: beside the instances, outside of every sandbox
_MOVE_ROUNDS = 50

# What is read of a slot: the hierarchy and the file. pids.peak is of Linux 6.11; where it is missing, no peak is told.
_V1_FILES = {
    "cpu": ("cpuacct", "cpuacct.usage"),
    "user": ("cpuacct", "cpuacct.usage_user"),
    "system": ("cpuacct", "cpuacct.usage_sys"),
    "memory": ("memory", "memory.usage_in_bytes"),
    "peak": ("memory", "memory.max_usage_in_bytes"),
    "oom": ("memory", "memory.oom_control"),
    "pids": ("pids", "pids.events"),
    "pids_peak": ("pids", "pids.peak"),
}
_V2_FILES = {
    "cpu": ("unified", "cpu.stat"),
    "memory": ("unified", "memory.current"),
    "peak": ("unified", "memory.peak"),
    "oom": ("unified", "memory.events"),
    "pids": ("unified", "pids.events"),
    "pids_peak": ("unified", "pids.peak"),
}
_TICK_NS = 4_000_000
_OPTIONAL = frozenset({"pids_peak", "peak"})


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted hierarchy: `name` is "unified" or the v1 controller the warden knows it by."""

    name: str
    controllers: tuple[str, ...]
    mount: Path


@dataclass(frozen=True, slots=True)
class CgroupHost:
    """The hierarchies to use and which of the wanted controllers no hierarchy offers."""

    hierarchies: tuple[Hierarchy, ...]
    missing: tuple[str, ...]

    @property
    def unified(self) -> bool:
        """Whether limits live in cgroup v2."""
        return any(h.name == "unified" for h in self.hierarchies)


def find_hierarchies(mountinfo: str, v2_controllers: str) -> CgroupHost:
    """Choose from the text of /proc/self/mountinfo; `v2_controllers` is the v2 root's cgroup.controllers.

    v2 is used only when it offers every controller wanted; on hybrid hosts v1 has them.
    """
    v1: dict[str, tuple[Path, tuple[str, ...]]] = {}
    unified: Path | None = None
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        mount = Path(left.split(" ")[4])
        if kind == "cgroup2":
            unified = unified or mount
        elif kind == "cgroup":
            names = tuple(o for o in options.split(" ")[-1].split(",") if o in V1_CONTROLLERS)
            for name in names:
                v1.setdefault(name, (mount, names))
    offered = tuple(c for c in V2_CONTROLLERS if c in v2_controllers.split())
    if unified is not None and (len(offered) == len(V2_CONTROLLERS) or not v1):
        found = (Hierarchy("unified", offered, unified),) if offered else ()
        return CgroupHost(found, tuple(c for c in V2_CONTROLLERS if c not in offered))
    chosen: dict[Path, Hierarchy] = {}
    for name in V1_CONTROLLERS:
        if name in v1 and v1[name][0] not in chosen:
            chosen[v1[name][0]] = Hierarchy(name, v1[name][1], v1[name][0])
    return CgroupHost(tuple(chosen.values()), tuple(c for c in V1_CONTROLLERS if c not in v1))


def host_cgroups() -> CgroupHost:
    """Return what this host mounts."""
    mountinfo = Path("/proc/self/mountinfo").read_text()
    v2_controllers = ""
    for line in mountinfo.splitlines():
        if " - cgroup2 " in line:
            controllers = Path(line.split(" ")[4]) / "cgroup.controllers"
            v2_controllers = controllers.read_text() if controllers.exists() else ""
            break
    return find_hierarchies(mountinfo, v2_controllers)


def make_instance(hierarchy: Hierarchy, parent: str, name: str, owner: int) -> tuple[Path, int]:
    """Make the directory of one instance in a hierarchy and hand it to the host uid `owner`; return it and its lock.

    `parent` is a path below the hierarchy's mount. Where v2 demands it, processes in it move into a cgroup of their own
    below it. *Raises* OSError, with nothing left, when the parent is not ours to write or lacks a controller.
    """
    directory = hierarchy.mount / parent.strip("/") / name
    directory.mkdir()
    lock = -1
    try:
        lock = hold(directory)
        (directory / "keep").mkdir()
        if hierarchy.name == "unified":
            _enable_down_to(directory, hierarchy)
            for file in ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
                os.chown(directory / file, owner, owner)
            os.chown(directory / "keep" / "cgroup.procs", owner, owner)
        os.chown(directory, owner, owner)
    except OSError:
        remove_tree(directory)
        if lock >= 0:
            os.close(lock)
        raise
    return directory, lock


def takes_quota(directory: Path) -> bool:
    """Say whether the kernel holds cgroups to a quota of processor time: it may be built without (CFS_BANDWIDTH)."""
    return any((directory / name).exists() for name in QUOTA_FILES)


def _enable_down_to(directory: Path, hierarchy: Hierarchy) -> None:
    """Have the controllers in the children of `directory`: a cgroup can pass on only what it has been given."""
    path = hierarchy.mount
    for part in directory.relative_to(hierarchy.mount).parts:
        try:
            _enable(path, hierarchy.controllers)
        except OSError as error:
            if error.errno != errno.EBUSY or path != directory.parent:
                raise
            _move_processes_aside(path)
            _enable(path, hierarchy.controllers)
        path /= part
    _enable(directory, hierarchy.controllers)


def _enable(directory: Path, controllers: tuple[str, ...]) -> None:
    control = directory / "cgroup.subtree_control"
    enabled = control.read_text().split()
    wanted = [f"+{c}" for c in controllers if c not in enabled]
    if wanted:
        _write(control, " ".join(wanted))


def _move_processes_aside(directory: Path) -> None:
    """Empty a cgroup of processes: only the root of all may have both processes and controllers for its children.

    So it is in a container with a cgroup namespace of its own, and in a systemd unit with Delegate=yes.
    """
    aside = directory / ASIDE
    aside.mkdir(exist_ok=True)
    for _ in range(_MOVE_ROUNDS):
        pids = (directory / "cgroup.procs").read_text().split()
        if not pids:
            return
        for pid in pids:
            try:
                _write(aside / "cgroup.procs", pid)
            except ProcessLookupError:
                continue  # it ended
    raise OSError(errno.EBUSY, "its processes fork faster than they can be moved", str(directory))


def _write(path: Path, value: str) -> None:
    """Write in one call. *Raises* OSError that, unlike that of a buffered file, names the file."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(fd)


def hold(directory: Path) -> int:
    """Return a descriptor that holds a cgroup, as an instance holds its own, for as long as anybody has it open.

    The lock is the cgroup's own, so that whoever sees the cgroup sees that it is held, whatever mount and pid namespace
    the holder is in. *Raises* BlockingIOError when somebody else holds it, OSError.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise OSError(error.errno, error.strerror, str(directory)) from None
    return fd


def remove_tree(directory: Path) -> bool:
    """Remove a cgroup and all below it, bottom up; False when a process still lives in one."""
    try:
        for path in _bottom_up(directory):
            path.rmdir()
    except OSError:
        return False
    return True


def processes_below(directory: Path) -> Iterator[int]:
    """Yield the pids in a cgroup and all below it, but not the 0 that stands for a process of another container."""
    for path in _bottom_up(directory):
        try:
            pids = (path / "cgroup.procs").read_text().split()
        except FileNotFoundError:
            continue
        yield from (int(pid) for pid in pids if pid != "0")


def _bottom_up(directory: Path) -> Iterator[Path]:
    for root, _, _ in os.walk(directory, topdown=False):
        yield Path(root)


@dataclass(frozen=True, slots=True)
class Mark:
    """Counters of a slot at one moment, to count from."""

    cpu_ns: int = 0
    user_ns: int = 0
    system_ns: int = 0
    oom_kills: int = 0
    pids_denied: int = 0


@dataclass(frozen=True, slots=True)
class Figures:
    """What the kernel counted for a slot since a mark; `processes` is the most at one time since its tenant came."""

    cpu_user_ns: int
    cpu_system_ns: int
    memory_peak_bytes: int
    memory_bytes: int
    processes: int


class SlotMeter:
    """Reads the figures of one slot's cgroups.

    What every execution is told is read from files kept open, one pread each: those of a cgroup that outlives its
    tenants (v1 memory and cpuacct) until it is replaced, with counters taken as differences to `baseline`; those of a
    tenant's own cgroup from its baseline on. The rest is opened when it is asked for, and so is everything when no
    descriptors are left but the `spare` one.
    """

    __slots__ = ("_base", "_files", "_lasting", "_paths", "_spare", "_tenant", "_unified")

    def __init__(self, directories: dict[str, Path], slot: int, unified: bool, spare: Spare) -> None:
        self._unified = unified
        self._spare = spare
        self._files: dict[str, int] = {}
        self._base = Mark()
        name = f"s{slot}"
        table = _V2_FILES if unified else _V1_FILES
        self._paths = {key: str(directories[c] / name / file) for key, (c, file) in table.items() if c in directories}
        self._tenant = ("cpu", "peak", "memory", "pids_peak") if unified else ("pids_peak",)
        self._lasting = frozenset() if unified else frozenset(k for k in self._paths if not k.startswith("pids"))

    def _open(self, key: str) -> int | None:
        path = self._paths.get(key)
        if path is None:
            return None
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if key not in _OPTIONAL:
                raise
            del self._paths[key]
            return None

    def _read(self, key: str) -> bytes:
        fd = self._files.get(key)
        if fd is not None:
            try:
                return os.pread(fd, 512, 0)
            except OSError as gone:
                if gone.errno != errno.ENODEV:
                    raise
                # The warden has put another cgroup in its place.
                os.close(self._files.pop(key))
        try:
            return self._read_anew(key, keep=key in self._lasting)
        except OSError as error:
            if error.errno not in NO_DESCRIPTORS:
                raise
        with self._spare.lent():
            return self._read_anew(key, keep=False)

    def _read_anew(self, key: str, *, keep: bool) -> bytes:
        fd = self._open(key)
        if fd is None:
            return b""
        if keep:
            self._files[key] = fd
            return os.pread(fd, 512, 0)
        try:
            return os.read(fd, 512)
        finally:
            os.close(fd)

    def _cpu_total(self) -> int:
        if self._unified:
            return _value(self._read("cpu").split(), b"usage_usec") * 1000
        return int(self._read("cpu") or 0)

    def _split(self) -> tuple[int, int]:
        """Return user and system ns; on v1 they are sampled by the tick, and only their ratio is used."""
        if self._unified:
            words = self._read("cpu").split()
            return _value(words, b"user_usec") * 1000, _value(words, b"system_usec") * 1000
        return int(self._read("user") or 0), int(self._read("system") or 0)

    def baseline(self) -> None:
        """Count from now on, for the slot's new tenant."""
        for key in self._tenant:
            if (old := self._files.pop(key, None)) is not None:
                os.close(old)
            try:
                fd = self._open(key)
            except OSError as error:
                if error.errno not in NO_DESCRIPTORS:
                    raise
                fd = None
            if fd is not None:
                self._files[key] = fd
        # A tenant's own cgroup of pids, and of everything on v2, begins at 0.
        self._base = Mark(self._cpu_total(), *self._split(), 0 if self._unified else self._oom_kills())

    def mark(self) -> Mark:
        """Return the counters of this moment, for a tenant that runs one program after another."""
        return Mark(self._cpu_total(), *self._split(), self._oom_kills(), self._pids_denied())

    def cpu_ns(self, since: Mark | None = None) -> int:
        """Processor time used since the mark, else the baseline, user and system."""
        return self._cpu_total() - (since or self._base).cpu_ns

    def figures(self, since: Mark | None = None) -> Figures:
        """Return what was used since the mark, else the baseline. On v1 less than a tick cannot be split: it is user.

        The peaks of memory and processes are those since the baseline.
        """
        base = since or self._base
        total, system_ns = self.cpu_ns(base), 0
        if self._unified or total >= _TICK_NS:
            user, system = self._split()
            user, system = user - base.user_ns, system - base.system_ns
            system_ns = total * system // (user + system) if user + system else 0
        return Figures(
            cpu_user_ns=total - system_ns,
            cpu_system_ns=system_ns,
            memory_peak_bytes=int(self._read("peak") or 0),
            memory_bytes=int(self._read("memory") or 0),
            processes=int(self._read("pids_peak") or 0),
        )

    def _oom_kills(self) -> int:
        return _value(self._read("oom").split(), b"oom_kill")

    def _pids_denied(self) -> int:
        return _value(self._read("pids").split(), b"max")

    def events(self, since: Mark | None = None) -> tuple[int, int]:
        """Return how often the kernel killed for memory and refused a process since the mark, else the baseline."""
        base = since or self._base
        return self._oom_kills() - base.oom_kills, self._pids_denied() - base.pids_denied

    def close(self) -> None:
        """Close the files."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()


def _value(words: list[bytes], key: bytes) -> int:
    """Find the number behind `key` in a flat keyed file."""
    return int(words[words.index(key) + 1]) if key in words else 0
