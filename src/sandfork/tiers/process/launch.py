"""Start the native side as root, before the server gives its privileges up.

Order: sweep what dead instances left -> take the first free instance number (a locked file) -> make this instance's
cgroup directories -> start the janitor, which makes the warden. What comes back holds no privilege: a socket to the
warden and the janitor as a child to wait for.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from sandfork.errors import TierUnavailable
from sandfork.linux import cgroup

_INSTANCES = 64


def default_run_dir() -> Path:
    """Return where lock files go: /run as root, else a directory of the user's own."""
    return Path("/run/sandfork") if os.geteuid() == 0 else Path(f"/tmp/sandfork-{os.geteuid()}")


@dataclass(frozen=True, slots=True)
class LaunchSettings:
    """Where the native side lives and what it may use.

    `uid_base` is the first of `instances x uid_count` host uids and gids that nothing else on the host uses.
    `cgroup_parent` is a path below each hierarchy's mount; "" is its root. `run_dir` holds lock files.
    """

    warden: Path
    uid_base: int = 0x70010000
    uid_count: int = 0x8000
    cgroup_parent: str = ""
    run_dir: Path = field(default_factory=lambda: default_run_dir())
    cgroups: bool = True


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

    def wait(self, timeout_s: float = 10.0) -> None:
        """Wait until the native side has removed everything; call after closing the warden socket."""
        self.janitor.wait(timeout_s)


def launch(settings: LaunchSettings) -> Launched:
    """Start janitor and warden. *Raises* TierUnavailable naming what the host refuses."""
    privileged = os.geteuid() == 0
    host = cgroup.host_cgroups() if settings.cgroups else cgroup.CgroupHost((), cgroup.V2_CONTROLLERS)
    if not privileged:
        host = cgroup.CgroupHost((), cgroup.V2_CONTROLLERS)
    _own_directory(settings.run_dir)
    instance, lock = _take_instance(settings, host)
    uid_base = settings.uid_base + instance * settings.uid_count if privileged else 0
    directories: dict[str, Path] = {}
    try:
        for hierarchy in host.hierarchies:
            directories[hierarchy.name] = cgroup.make_instance(
                hierarchy, settings.cgroup_parent, f"sandfork-{instance}", uid_base
            )
    except OSError as error:
        for path in directories.values():
            cgroup.remove_tree(path)
        raise TierUnavailable(
            f"cannot make a cgroup in {error.filename}: {error.strerror}; give the service a writable cgroup "
            "(in a container: --cgroupns=private and a writable /sys/fs/cgroup), or accept its absence in [process] "
            "allow_missing"
        ) from error
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    argv = [
        str(settings.warden),
        str(theirs.fileno()),
        str(uid_base),
        str(settings.uid_count - 1 if privileged else 1),
        *(f"{name}={path}" for name, path in directories.items()),
    ]
    janitor = subprocess.Popen(argv, pass_fds=(theirs.fileno(), lock), env={}, cwd="/", stdin=subprocess.DEVNULL)
    theirs.close()
    os.close(lock)
    server_uid = uid_base + settings.uid_count - 1 if privileged else os.geteuid()
    return Launched(instance, ours, janitor, directories, host.unified, host.missing, not privileged, server_uid)


def _own_directory(path: Path) -> None:
    """Make `path`, or make sure that it is ours: others could have made it first in a shared place."""
    path.mkdir(mode=0o755, parents=True, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise TierUnavailable(f"{path} is not a directory of uid {os.geteuid()} that only it can write; remove it")


def _take_instance(settings: LaunchSettings, host: cgroup.CgroupHost) -> tuple[int, int]:
    """Return the first instance number whose lock is free, and the lock; sweep every dead instance on the way."""
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
        _sweep(host, settings.cgroup_parent, f"sandfork-{number}")
        if taken is None:
            taken = number, lock
        else:
            os.close(lock)
    if taken is None:
        raise TierUnavailable(f"{_INSTANCES} instances of sandfork already run on this host; stop one")
    return taken


def _sweep(host: cgroup.CgroupHost, parent: str, name: str) -> None:
    """Kill and remove what a dead instance left; its lock is held, so nobody else owns it."""
    for hierarchy in host.hierarchies:
        directory = hierarchy.mount / parent.strip("/") / name
        if not directory.exists():
            continue
        for _ in range(200):
            for pid in cgroup.processes_below(directory):
                os.kill(pid, signal.SIGKILL)
            if cgroup.remove_tree(directory):
                break
            # The kernel empties a cgroup asynchronously after its processes died.
            signal.sigtimedwait([], 0.01)
        else:
            raise TierUnavailable(
                f"a dead instance left {directory} and it cannot be removed; processes in it do not die"
            )
