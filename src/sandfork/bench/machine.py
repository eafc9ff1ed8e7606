"""What the figures were measured on."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from sandfork.bench.contenders import PYTHON
from sandfork.bench.spawn import CLEAN_ENVIRONMENT


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware and software under a run; `start_up_files` are what the bare Python executes before a program."""

    cpu: str
    cores: int
    memory_bytes: int
    virtualised: bool
    kernel: str
    distribution: str
    cgroups: str
    bare_python: str
    bare_python_start_up_files: int
    service_python: str
    node: str
    uid: int
    load_at_start: float
    date: str


def describe() -> Machine:
    """Look at this machine."""
    cpuinfo = _fields(Path("/proc/cpuinfo").read_text(), ":")
    release = _fields(_text("/etc/os-release"), "=")
    return Machine(
        cpu=cpuinfo.get("model name", platform.machine()),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        virtualised="hypervisor" in cpuinfo.get("flags", "").split(),
        kernel=platform.release(),
        distribution=release.get("PRETTY_NAME", "unknown").strip('"'),
        cgroups=_cgroup_layout(),
        bare_python=_output(PYTHON, "-c", "import platform; print(platform.python_version())"),
        bare_python_start_up_files=_start_up_files(),
        service_python=platform.python_version(),
        node=_output("node", "--version"),
        uid=os.getuid(),
        load_at_start=os.getloadavg()[0],
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def steal_share(before: tuple[int, ...], after: tuple[int, ...]) -> float:
    """Return the share of processor time (0 to 1) that the hypervisor gave to others between two `cpu_ticks`."""
    passed = [later - earlier for earlier, later in zip(before, after, strict=True)]
    return passed[7] / sum(passed[:8]) if sum(passed[:8]) else 0.0


def cpu_ticks() -> tuple[int, ...]:
    """Return the counters of the first line of /proc/stat: user nice system idle iowait irq softirq steal …"""
    return tuple(int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])


def _fields(text: str, separator: str) -> dict[str, str]:
    pairs = (line.split(separator, 1) for line in text.splitlines() if separator in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _text(path: str) -> str:
    return Path(path).read_text() if Path(path).is_file() else ""


def _output(*argv: str) -> str:
    try:
        done = subprocess.run(argv, env=CLEAN_ENVIRONMENT, capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return "absent"
    return done.stdout.strip() or "unknown"


def _start_up_files() -> int:
    # Each line of a .pth file that starts with "import" runs at every start and is part of the yardstick.
    code = (
        "import site,glob; print(sum(l.startswith('import') for d in site.getsitepackages() "
        "for f in glob.glob(d+'/*.pth') for l in open(f)))"
    )
    count = _output(PYTHON, "-c", code)
    return int(count) if count.isdigit() else 0


def _cgroup_layout() -> str:
    kinds = {words[2] for line in _text("/proc/self/mounts").splitlines() if (words := line.split())[2:]}
    return {(True, True): "v1 and v2", (True, False): "v1", (False, True): "v2", (False, False): "none"}[
        ("cgroup" in kinds, "cgroup2" in kinds)
    ]
