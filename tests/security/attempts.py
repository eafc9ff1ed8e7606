"""Make one attempt twice: inside a sandbox over the public HTTP API, and on the host where nothing confines it.

A probe is a Python source in `probes/`, sent as it stands to the service and run as it stands by the host's own
interpreter. The control runs as root in namespaces of its own, which are thrown away, and in a scratch directory: what
succeeds there changes nothing on the host.
"""

from __future__ import annotations

import json
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pyseccomp
import pytest

from tests.support.service import Service

PROBES = Path(__file__).parent / "probes"
INTERPRETER = "/usr/bin/python3"
CONTROL_S = 60.0
#: Namespaces that a control gets for itself, so that what it may do there reaches nothing.
THROW_AWAY = ("--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
#: "Denied": the kernel refused for want of permission, or what was tried is not there at all.
DENIED = frozenset({"EPERM", "ENOSYS", "ENOENT", "SIGSYS"})
#: For files, where modes, Landlock and read-only mounts have errnos of their own.
CLOSED = DENIED | {"EACCES", "EROFS"}
#: What the control says when this host's kernel was built without the thing that was tried.
NOT_IN_THIS_KERNEL = frozenset({"ENOSYS", "absent"})

Results = dict[str, Any]


@cache
def source_of(probe: str) -> str:
    """Return the text of a probe: the common beginning, then its own."""
    return (PROBES / "prelude.py").read_text() + (PROBES / f"{probe}.py").read_text()


def confined(service: Service, probe: str, *args: str, **fields: Any) -> Results:
    """Run a probe in a sandbox and return what it printed."""
    reply = service.exec(source_of(probe), args=list(args), **fields)
    assert reply["outcome"] == "exited", reply
    assert reply["exit_code"] == 0, reply["stderr"]
    results: Results = json.loads(reply["stdout"])
    return results


def unconfined(scratch: Path, probe: str, *args: str, spaces: tuple[str, ...] = THROW_AWAY, **change: Any) -> Results:
    """Run the same probe as root on the host, in `scratch` and in throw-away namespaces."""
    done = run_unconfined(scratch, [INTERPRETER, "-I", "-", *args], source_of(probe).encode(), spaces, **change)
    assert done.returncode == 0, done.stderr.decode()
    results: Results = json.loads(done.stdout)
    return results


def run_unconfined(
    scratch: Path, argv: list[str], stdin: bytes = b"", spaces: tuple[str, ...] = THROW_AWAY, **change: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run a command on the host as a control."""
    words = ["unshare", *spaces, "--", *argv] if spaces else argv
    return subprocess.run(
        words, input=stdin, capture_output=True, cwd=scratch, timeout=CONTROL_S, check=False,
        start_new_session=True, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, **change,
    )  # fmt: skip


def judge(
    name: str,
    inside: str,
    outside: str,
    denied: frozenset[str] = DENIED,
    not_here: frozenset[str] = NOT_IN_THIS_KERNEL,
) -> None:
    """Assert that an attempt was refused inside and not outside; skip by name where no control is possible."""
    assert inside in denied | {"absent"}, f"{name}: inside a sandbox: {inside}"
    if outside in not_here:
        pytest.skip(f"{name} was refused ({inside}), but has no control here: {platform.release()} says {outside}")
    if outside in denied and not root_is_whole():
        pytest.skip(f"{name} was refused ({inside}), but has no control here: root of this host lacks capabilities")
    assert outside not in denied, f"{name}: the control was refused too ({outside}), so the probe proves nothing"


@cache
def root_is_whole() -> bool:
    """Whether the test run has every capability the kernel knows; in a container it has not."""
    lines = Path("/proc/self/status").read_text().splitlines()
    effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    return effective == (2 << int(Path("/proc/sys/kernel/cap_last_cap").read_text())) - 1


def numbers_of(names: tuple[str, ...]) -> str:
    """Return the numbers of system calls on this machine, as JSON; those that libseccomp does not know are left out."""
    numbers = {name: pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) for name in names}
    return json.dumps({name: number for name, number in numbers.items() if number >= 0})
