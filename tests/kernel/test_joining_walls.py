"""What another process of a sandbox can do to one that is just joining it: a race, so for more processors than one."""

from __future__ import annotations

import asyncio

import pytest

from sandfork.errors import GuestLost
from sandfork.linux.landlock import LandlockAbi
from sandfork.model import Step
from sandfork.tiers.process import ProcessTier
from sandfork.tiers.process.sandbox import ProcessSandbox
from tests.support.process import LIMITS, Tape, with_sandbox

#: So often is a race run that one which can be lost was lost, several times, each time it was tried.
JOINS = 800

#: Waits for whoever joins next, opens its memory as soon as that is allowed, stops it there, and looks at what it was.
LURKER = """
import os, signal
found = 0
def status(pid):
    return dict(line.split(":\\t", 1) for line in open(f"/proc/{pid}/status").read().splitlines() if ":\\t" in line)
walls = status("self")["Seccomp_filters"]
print("lurking", walls, flush=True)
while True:
    newest = int(open("/proc/loadavg").read().split()[-1])
    for nearby in [newest + 1] * 200:
        try:
            fd = os.open(f"/proc/{nearby}/mem", os.O_RDWR)
            os.kill(nearby, signal.SIGSTOP)
        except OSError:
            continue
        try:
            print("caught" if status(nearby)["Seccomp_filters"] != walls else "late", flush=True)
            os.kill(nearby, signal.SIGCONT)
        except OSError:
            pass
        os.close(fd)
        break
"""


@pytest.mark.usefixtures("as_root")
def test_whoever_joins_cannot_be_written_to_before_its_last_wall_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Landlock keeps others of the sandbox out of a process that joins; each wall must do without the others."""
    monkeypatch.setattr("sandfork.tiers.process.tier.landlock_abi", lambda: LandlockAbi(0, 0, 0, 0))

    async def check(tier: ProcessTier, sandbox: ProcessSandbox) -> None:
        lurker, tape = await (await tier.template("command")).join(sandbox), Tape()
        lurking = asyncio.create_task(lurker.exec(Step(("python3", "-c", LURKER)), LIMITS, tape))
        await tape.until(b"lurking")
        joins = 0
        # A lurker that never got hold of anybody proves nothing, and on a slow machine its first catch takes longer.
        while joins < JOINS or b"late" not in tape.stdout:
            guest = await (await tier.template("command")).join(sandbox)
            await guest.close()
            joins += 1
        assert b"caught" not in tape.stdout
        await lurker.close()
        with pytest.raises(GuestLost):
            await lurking

    with_sandbox(check, "command", allow_missing=frozenset({"landlock"}))
