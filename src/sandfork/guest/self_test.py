"""Try to break out of a sandbox, from inside, with what a plain program has; print one JSON object.

argv: a JSON object with `namespaces` (name to the host's own namespace links), `canary` (a host file), `port` (a
listener on the host's loopback), `server` (a process of another user), `pids`, `disk_bytes` (limits in force), and
`reduced`: whether there are no namespaces, so that files and processes of others are in sight. Each attempt yields ""
when the sandbox held, else what went wrong.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import sys
from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
NUMBERS = {"x86_64": {"clone3": 435, "unshare": 272, "ptrace": 101, "bpf": 321, "io_uring_setup": 425, "keyctl": 250}}
NUMBERS["aarch64"] = {"clone3": 435, "unshare": 97, "ptrace": 117, "bpf": 280, "io_uring_setup": 425, "keyctl": 219}


def call(name: str, *args: int) -> int:
    """Make a raw system call; return 0 or the errno."""
    number = NUMBERS[os.uname().machine][name]
    return 0 if LIBC.syscall(number, *(ctypes.c_long(a) for a in args)) != -1 else ctypes.get_errno()


def status(key: str) -> str:
    """Return a line of /proc/self/status."""
    with open("/proc/self/status") as lines:
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(key + ":"))


def refused(action: Callable[[], object], *expected: int) -> str:
    """Return "" when `action` raised OSError with an expected errno (any, when none is given)."""
    try:
        action()
    except OSError as error:
        return (
            "" if not expected or error.errno in expected else f"refused with {errno.errorcode.get(error.errno or 0)}"
        )
    return "it succeeded"


def namespaces(host: dict[str, str]) -> dict[str, str]:
    """Every namespace must be another than the host's."""
    return {
        f"{name} namespace": "" if os.readlink(f"/proc/self/ns/{name}") != link else "it is the host's"
        for name, link in host.items()
    }


def seccomp() -> str:
    """Calls that open the kernel must fail, and clone3 as if it did not exist."""
    for name, wanted, args in (
        ("clone3", errno.ENOSYS, (0, 0)),
        ("unshare", errno.EPERM, (0x10000000,)),
        ("ptrace", errno.EPERM, (0, 0, 0, 0)),
        ("bpf", errno.EPERM, (0, 0, 0)),
        ("io_uring_setup", errno.EPERM, (1, 0)),
        ("keyctl", errno.EPERM, (0, 0, 0)),
    ):
        got = call(name, *args)
        if got != wanted:
            return f"{name} gave {errno.errorcode.get(got, got)}"
    return "" if status("Seccomp") == "2" else "no filter is loaded"


def capabilities() -> str:
    """None in any set."""
    sets = {key: status(key) for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    held = [key for key, value in sets.items() if int(value, 16)]
    return f"{', '.join(held)} not empty" if held else ""


def unprivileged_uid() -> str:
    """A plain uid that cannot become root."""
    if os.getuid() == 0:
        return "the program is root"
    return refused(lambda: os.setuid(0))


def mounts(canary: str) -> str:
    """The host's files are not there and the system is read-only."""
    if os.path.exists(canary):
        return f"the host's {canary} is visible"
    if os.path.exists("/etc/shadow"):
        return "/etc/shadow is visible"
    return refused(lambda: os.open("/usr/sandfork-probe", os.O_CREAT | os.O_WRONLY))


def landlock() -> str:
    """A file that ownership alone would let us write: only Landlock says no."""
    return refused(lambda: os.close(os.open("/proc/self/comm", os.O_WRONLY)), errno.EACCES)


def own_processes() -> str:
    """Only this sandbox's processes are visible, and we are not its init."""
    if os.getpid() == 1:
        return "the program is pid 1"
    others = [p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()]
    return f"{len(others)} other processes are visible" if others else ""


def network(port: int) -> str:
    """The host's loopback and the world are out of reach."""

    def connect(address: tuple[str, int]) -> None:
        with socket.socket() as sock:
            sock.settimeout(1)
            sock.connect(address)

    here = refused(lambda: connect(("127.0.0.1", port)), errno.ECONNREFUSED, errno.ENETUNREACH)
    there = refused(lambda: connect(("192.0.2.1", 80)), errno.ENETUNREACH, errno.EACCES, errno.EPERM)
    return f"host loopback: {here}" if here else f"outside: {there}" if there else ""


def shared_files(canary: str) -> str:
    """What anybody may read or write by its mode must not be to us, when it lies outside the work directory."""
    for path in (canary, "/etc/passwd", "/proc/1/status"):
        if problem := refused(lambda path=path: os.open(path, os.O_RDONLY), errno.EACCES):  # type: ignore[misc]
            return f"reading {path}: {problem}"
    if problem := refused(lambda: os.listdir("/"), errno.EACCES):
        return f"listing /: {problem}"
    for directory in ("/tmp", "/var/tmp", "/dev/shm"):
        path = directory + "/sandfork-probe"
        if problem := refused(lambda path=path: os.open(path, os.O_CREAT | os.O_WRONLY), errno.EACCES, errno.ENOENT):  # type: ignore[misc]
            return f"writing in {directory}: {problem}"
    return ""


def shared_processes(server: int) -> str:
    """Processes of others must be out of reach of our signals."""
    os.kill(os.getpid(), 0)
    return refused(lambda: os.kill(server, 0), errno.EPERM)


def sockets() -> str:
    """Without a network of our own there must be no socket but a pair."""
    for pair in socket.socketpair():
        pair.close()
    for family, kind in ((socket.AF_INET, socket.SOCK_STREAM), (socket.AF_UNIX, socket.SOCK_DGRAM)):
        if problem := refused(lambda family=family, kind=kind: socket.socket(family, kind), errno.EPERM):  # type: ignore[misc]
            return f"{family.name}: {problem}"
    datagrams = refused(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM), errno.EPERM)
    return f"a pair of datagram sockets: {datagrams}" if datagrams else ""


def pids(limit: int) -> str:
    """Forking ends at the limit."""
    children: list[int] = []
    try:
        while len(children) <= limit:
            pid = os.fork()
            if pid == 0:
                LIBC.pause()
                os._exit(0)
            children.append(pid)
    except OSError as error:
        return "" if error.errno == errno.EAGAIN else f"refused with {errno.errorcode.get(error.errno or 0)}"
    finally:
        for pid in children:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
    return f"{len(children)} processes were allowed where {limit} are"


def disk(limit: int, files: int) -> str:
    """The work directory has an end, for one file and for all of them together."""
    names = [f"fill{number}" for number in range(files)]

    def fill() -> None:
        for name in names:
            with open(name, "wb") as out:
                for _ in range(limit // files // (1 << 16) + 2):
                    out.write(b"\0" * (1 << 16))

    result = refused(fill, errno.ENOSPC, errno.EFBIG)
    for name in names:
        if os.path.exists(name):
            os.unlink(name)
    return result


def main() -> None:
    """Run every attempt; one that fails in an unforeseen way counts as not held."""
    facts = json.loads(sys.argv[1])
    attempts: dict[str, Callable[[], str]] = {
        "seccomp": seccomp,
        "capabilities": capabilities,
        "no_new_privs": lambda: "" if status("NoNewPrivs") == "1" else "not set",
        "uid": unprivileged_uid,
        "landlock": landlock,
        "disk limit": lambda: disk(facts["disk_bytes"], 1 if facts["reduced"] else 4),
        "pids limit": lambda: pids(facts["pids"]),
    }
    if facts["reduced"]:
        attempts |= {
            "shared files": lambda: shared_files(facts["canary"]),
            "shared processes": lambda: shared_processes(facts["server"]),
            "network": sockets,
        }
    else:
        attempts |= {
            "mounts": lambda: mounts(facts["canary"]),
            "own processes": own_processes,
            "network": lambda: network(facts["port"]),
        }
    results = {}
    for name, attempt in attempts.items():
        try:
            results[name] = attempt()
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
    if not facts["reduced"]:
        results.update(namespaces(facts["namespaces"]))
    print(json.dumps(results))


main()
