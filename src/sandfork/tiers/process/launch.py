"""Start the native side as root, before the server gives its privileges up.

Order: sweep what dead instances left -> take the first free instance number (a locked file) -> make this instance's
cgroup directories, locked, too -> start the janitor, which makes the warden -> wait for the warden's first word, for
only root can find out why it does not come. What comes back holds no privilege: a socket to the warden and the janitor
as a child to wait for.

Janitor and warden inherit the locks, and an instance is dead when nobody has any of them: the file's is seen by who
shares its `run_dir`, those of the cgroups by who shares a hierarchy, whatever mount and pid namespace it is in.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from sandfork.errors import TierUnavailable
from sandfork.linux import cgroup
from sandfork.linux.ids import REDUCED_CAPABILITIES, effective_capabilities, is_ours_to_give
from sandfork.tiers.process.obstacles import explain, refused_calls

_INSTANCES = 64
_UID_BASE = 0x7001_0000
# Where a container has 65,536 ids: between those that distributions give to users and those they give to services.
_FEW_UIDS_BASE, _FEW_UIDS_COUNT = 20_000, 0x2000
_WARDEN_S = 10.0
_NO_CGROUPS = cgroup.CgroupHost((), cgroup.V2_CONTROLLERS)


def default_run_dir() -> Path:
    """Return where lock files go: /run as root, else a directory of the user's own."""
    return Path("/run/sandfork") if os.geteuid() == 0 else Path(f"/tmp/sandfork-{os.geteuid()}")


@dataclass(frozen=True, slots=True)
class LaunchSettings:
    """Where the native side lives and what it may use.

    `uid_base` is the first of `instances x uid_count` host uids and gids that nothing else on the host uses.
    `cgroup_parent` is a path below each hierarchy's mount; "" is its root. `run_dir` holds lock files, and the work
    directories of `reduced`, which does without namespaces and cgroups. `accept_no_cgroups` goes on where the host has
    cgroups that are not ours to write.
    """

    warden: Path
    uid_base: int = _UID_BASE
    uid_count: int = 0x8000
    cgroup_parent: str = ""
    run_dir: Path = field(default_factory=lambda: default_run_dir())
    cgroups: bool = True
    accept_no_cgroups: bool = False
    reduced: bool = False


@dataclass(slots=True)
class Launched:
    """The running native side. `cgroups` maps a hierarchy's name to this instance's directory in it."""

    instance: int
    warden: socket.socket
    janitor: subprocess.Popen[bytes]
    cgroups: dict[str, Path]
    unified: bool
    missing_controllers: tuple[str, ...]
    single_uid: bool
    server_uid: int  # what the server drops to; outside the warden's range, so neither has power over the other
    work_root: Path | None = None  # of a reduced service

    @property
    def reduced(self) -> bool:
        """Whether there are no namespaces."""
        return self.work_root is not None

    def wait(self, timeout_s: float = 10.0) -> None:
        """Wait until the native side has removed everything; call after closing the warden socket."""
        self.janitor.wait(timeout_s)


def launch(settings: LaunchSettings) -> Launched:
    """Start janitor and warden. *Raises* TierUnavailable naming what the host refuses and what would give it."""
    if settings.reduced:
        _refuse_weak_root()
    privileged = os.geteuid() == 0
    host = cgroup.host_cgroups() if privileged and settings.cgroups and not settings.reduced else _NO_CGROUPS
    _own_directory(settings.run_dir)
    instance, lock = _take_instance(settings, host)
    locks = [lock]
    try:
        return _launch(settings, host, instance, locks)
    finally:
        for each in locks:
            os.close(each)


def _launch(settings: LaunchSettings, host: cgroup.CgroupHost, instance: int, locks: list[int]) -> Launched:
    """Start an instance whose number is ours; `locks`, to which those of its cgroups are added, are its caller's."""
    privileged = os.geteuid() == 0
    uid_base, uid_count = choose_uids(settings, instance) if privileged else (0, 2)
    directories: dict[str, Path] = {}
    try:
        for hierarchy in host.hierarchies:
            directories[hierarchy.name], lock = cgroup.make_instance(
                hierarchy, settings.cgroup_parent, f"sandfork-{instance}", uid_base
            )
            locks.append(lock)
    except OSError as error:
        for path in directories.values():
            cgroup.remove_tree(path)
        if not settings.accept_no_cgroups:
            problem = f"{error.filename}: {error.strerror}"
            raise TierUnavailable(explain(refused_calls(settings.warden), cgroups=problem)) from error
        host, directories = _NO_CGROUPS, {}
    work_root = _make_work_root(settings.run_dir, instance) if settings.reduced else None
    try:
        ours, janitor = _start(settings.warden, locks, uid_base, uid_count, directories, work_root)
    except TierUnavailable:
        for path in directories.values():
            cgroup.remove_tree(path)
        if work_root is not None and work_root.exists():
            work_root.rmdir()
        raise
    missing = host.missing
    if "cpu" not in missing and not any(cgroup.takes_quota(path) for path in directories.values()):
        missing = (*missing, "cpu")
    server_uid = uid_base + uid_count - 1 if privileged else os.geteuid()
    return Launched(instance, ours, janitor, directories, host.unified, missing, not privileged, server_uid, work_root)


def _start(
    program: Path,
    locks: Sequence[int],
    uid_base: int,
    uid_count: int,
    directories: dict[str, Path],
    work_root: Path | None,
) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start the janitor and wait for the warden's first word. *Raises* TierUnavailable."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    argv = [str(program), *(("--reduced", str(work_root)) if work_root is not None else ())]
    # The last of our uids is the server's own, out of the warden's reach.
    argv += [str(theirs.fileno()), str(uid_base), str(uid_count - 1)]
    argv += [f"{name}={path}" for name, path in directories.items()]
    janitor = subprocess.Popen(argv, pass_fds=(theirs.fileno(), *locks), env={}, cwd="/", stdin=subprocess.DEVNULL)
    theirs.close()
    ours.settimeout(_WARDEN_S)
    try:
        up = bool(ours.recv(1, socket.MSG_PEEK))
    except OSError:
        up = False
    ours.settimeout(None)
    if up:
        return ours, janitor
    ours.close()
    status = janitor.wait(_WARDEN_S)
    refusals = {} if work_root is not None else refused_calls(program)
    if refusals:
        raise TierUnavailable(explain(refusals))
    raise TierUnavailable(f"the process that makes sandboxes did not come up (exit status {status}); it says why above")


def choose_uids(
    settings: LaunchSettings, instance: int, is_ours: Callable[[int, int], bool] = is_ours_to_give
) -> tuple[int, int]:
    """Return the first uid of an instance and how many it has. *Raises* TierUnavailable when they are not ours to give.

    Only the range that is there without configuration gives way to a smaller one. Reduced services are given theirs
    from the end: they end sandboxes by uid, and a service in a container, whose lock files they do not see, may have
    the same number.
    """
    place = _INSTANCES - 1 - instance if settings.reduced else instance
    ranges = [(settings.uid_base + place * settings.uid_count, settings.uid_count)]
    if settings.uid_base == _UID_BASE:
        ranges.append((_FEW_UIDS_BASE + instance * _FEW_UIDS_COUNT, _FEW_UIDS_COUNT))
    for first, count in ranges:
        if is_ours(first, count):
            return first, count
    first, count = ranges[-1]
    raise TierUnavailable(
        f"the uids and gids {first} to {first + count - 1} are not mapped in this container (/proc/self/uid_map, "
        "gid_map): name others with [process] uid_base, or give it more"
    )


def _refuse_weak_root() -> None:
    """Every reduced sandbox has uids of its own: refuse who may not give them. *Raises* TierUnavailable."""
    if os.geteuid() != 0:
        raise TierUnavailable(
            "--reduced needs root (of the container): without namespaces a uid of its own is what keeps a sandbox from "
            "the others. As a plain user start without it, where the host grants user namespaces"
        )
    held = effective_capabilities()
    missing = [f"--cap-add {name}" for name, number in REDUCED_CAPABILITIES.items() if not held & 1 << number]
    if missing:
        raise TierUnavailable(
            f"--reduced takes capabilities that are missing; start the container with {' '.join(missing)}"
        )


def _make_work_root(run_dir: Path, instance: int) -> Path:
    """Make the directory that holds the work directories of reduced sandboxes; each of those is its program's alone."""
    path = _work_root(run_dir, instance)
    path.mkdir(mode=0o711)
    path.chmod(0o711)
    return path


def _work_root(run_dir: Path, instance: int) -> Path:
    return run_dir / f"{instance}.work"


def _own_directory(path: Path) -> None:
    """Make `path`, or make sure that it is ours: others could have made it first in a shared place."""
    path.mkdir(mode=0o755, parents=True, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise TierUnavailable(f"{path} is not a directory of uid {os.geteuid()} that only it can write; remove it")


def _take_instance(settings: LaunchSettings, host: cgroup.CgroupHost) -> tuple[int, int]:
    """Return the first instance number that nobody has, and its lock; sweep every dead instance on the way."""
    taken: tuple[int, int] | None = None
    for number in range(_INSTANCES):
        path = settings.run_dir / f"{number}.lock"
        if taken is not None and not path.exists():
            break
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        if not _sweep(host, settings.cgroup_parent, f"sandfork-{number}"):
            os.close(lock)
            continue
        _sweep_work(settings.warden, _work_root(settings.run_dir, number))
        if taken is None:
            taken = number, lock
        else:
            os.close(lock)
    if taken is None:
        raise TierUnavailable(f"{_INSTANCES} instances of sandfork already run on this host; stop one")
    return taken


def _sweep(host: cgroup.CgroupHost, parent: str, name: str) -> bool:
    """Kill and remove what a dead instance left; False when it is alive, for somebody holds a cgroup of it."""
    with ExitStack() as held:
        left: list[Path] = []
        for hierarchy in host.hierarchies:
            directory = hierarchy.mount / parent.strip("/") / name
            try:
                held.callback(os.close, cgroup.hold(directory))
            except FileNotFoundError:
                continue
            except BlockingIOError:
                return False
            left.append(directory)
        for directory in left:
            _clear(directory)
    return True


def _clear(directory: Path) -> None:
    for _ in range(200):
        for pid in cgroup.processes_below(directory):
            os.kill(pid, signal.SIGKILL)
        if cgroup.remove_tree(directory):
            return
        # The kernel empties a cgroup asynchronously after its processes died.
        signal.sigtimedwait([], 0.01)
    raise TierUnavailable(f"a dead instance left {directory} and it cannot be removed; processes in it do not die")


def _sweep_work(warden: Path, directory: Path) -> None:
    """Kill and remove what a dead reduced instance left; whatever ran in a work directory has its owner's uid."""
    if directory.exists() and subprocess.run([warden, "--sweep", directory], env={}, check=False).returncode != 0:
        raise TierUnavailable(f"a dead instance left {directory} and it cannot be removed")
