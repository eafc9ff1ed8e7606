"""Boot a guest under QEMU's emulator and take the verdicts of the tests inside.

The guest needs no KVM, no network, no initial RAM disk: the kernel has its disk (NVMe, ext4) and its serial lines built
in, as Debian's cloud kernel does. The emulator is a test's convenience here and never a wall: what is tested is the
guest.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.vm.rootfs import INTERPRETER, MKFS

KERNEL_VARIABLE = "TEST_GUEST_KERNEL"
QEMU = "qemu-system-x86_64"
INIT = "/app/tests/vm/inside/init.py"
MEMORY = "1536M"  # more than any test takes, or the kernel refuses what a limit should; QEMU takes what is touched
DEADLINE_S = 600.0  # fifteen times what it takes on an idle machine: others may be busy on this one
#: No controller is left to v1; a panic ends the machine, at once; boot messages are kept only from warnings on.
COMMAND_LINE = "console=ttyS0 loglevel=4 panic=-1 random.trust_cpu=on cgroup_no_v1=all root=/dev/nvme0n1 rw"


@dataclass(frozen=True)
class Verdict:
    """One test inside: `outcome` is pytest's word, `text` why it did not pass."""

    outcome: str
    seconds: float
    text: str


@dataclass(frozen=True)
class GuestRun:
    """One boot, from power on to power off. `ended` is pytest's exit status inside, None when it was never told."""

    verdicts: dict[str, list[Verdict]]
    ended: int | None
    kernel: str
    console: str
    in_time: bool


def missing() -> str:
    """Return what this host lacks for the guest, "" when nothing."""
    if platform.machine() != "x86_64":
        return f"the guest is x86_64, this machine is {platform.machine()}"
    if INTERPRETER.resolve() != Path(sys.executable).resolve():
        return f"the guest has {INTERPRETER}, and these tests do not run on it but on {sys.executable}"
    for program in (QEMU, MKFS, "ldd"):
        if shutil.which(program) is None:
            return f"there is no {program}; ./dev test vm installs QEMU on Debian, as root"
    if not Path(os.environ.get(KERNEL_VARIABLE, "")).is_file():
        return f"{KERNEL_VARIABLE} names no kernel image; ./dev test vm downloads one on Debian, as root"
    return ""


class Machine:
    """A guest that was switched on; somebody must `wait` for its end or `kill` it."""

    def __init__(self, disk: Path, directory: Path, init: str = INIT) -> None:
        """`directory` takes what it says, on its console and of its tests."""
        self._console, self._told = directory / "console", directory / "verdicts"
        self._on_s = time.monotonic()
        self._process = subprocess.Popen(
            [*_argv(disk, self._console, self._told), *_kernel(init)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait(self, deadline_s: float = DEADLINE_S) -> GuestRun:
        """Return what came of it once it has powered itself off, or was killed so long after it was switched on."""
        in_time = True
        try:
            status = self._process.wait(max(self._on_s + deadline_s - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            in_time = False
            self.kill()
        else:
            assert status == 0, f"{QEMU} ended with status {status}"
        verdicts, end = parse(self._told.read_bytes() if self._told.exists() else b"")
        return GuestRun(
            verdicts=verdicts,
            ended=end.get("end"),
            kernel=str(end.get("kernel", "")),
            console=self._console.read_text(errors="replace") if self._console.exists() else "",
            in_time=in_time,
        )

    def kill(self) -> None:
        """Switch it off, if it is not."""
        self._process.kill()
        self._process.wait()


def boot(disk: Path, directory: Path, *, init: str = INIT, deadline_s: float = DEADLINE_S) -> GuestRun:
    """Run the guest until it powers itself off, or kill it at the deadline."""
    return Machine(disk, directory, init).wait(deadline_s)


def _argv(disk: Path, console: Path, told: Path) -> list[str]:
    # With the test run, however that ends.
    argv = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        QEMU,
        "-accel",
        "tcg,thread=single",
        "-cpu",
        "max",
        "-m",
        MEMORY,
        "-M",
        "pc",
    ]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-serial", f"file:{console}", "-serial", f"file:{told}"]
    return [
        *argv,
        "-drive",
        f"if=none,id=disk,file={disk},format=raw,snapshot=on",
        "-device",
        "nvme,drive=disk,serial=disk",
    ]


def _kernel(init: str) -> list[str]:
    append = f"{COMMAND_LINE} init={INTERPRETER} -- -I -S {init}"
    return ["-kernel", os.environ[KERNEL_VARIABLE], "-append", append]


def parse(told: bytes) -> tuple[dict[str, list[Verdict]], dict[str, int]]:
    """Return the verdicts by test and the last line; a line cut off by the machine's end is left out."""
    verdicts: dict[str, list[Verdict]] = {}
    end: dict[str, int] = {}
    for line in told.split(b"\n")[:-1]:
        message = json.loads(line)
        if "end" in message:
            end = message
            continue
        name = message["test"].partition("[")[0]  # every case of a test under its one name
        verdicts.setdefault(name, []).append(Verdict(message["outcome"], message["seconds"], message["text"]))
    return verdicts, end
