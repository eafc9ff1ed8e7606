"""Processors at a time: the kernel holds a sandbox to its quota, leaves others alone, and no quota is passed on.

Nothing here depends on how fast this machine is: a quota is an upper bound, and the kernel counts whom it held up.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sandfork.errors import TierError, TierUnavailable
from sandfork.linux.cgroup import host_cgroups
from sandfork.model import Limits, Outcome, Usage
from sandfork.tiers.process import messages as m
from sandfork.tiers.process.sandbox import ProcessSandbox
from sandfork.tiers.process.slots import quota_us
from tests.support.process import Tape, Workbench, make_step, open_workbench, start_native

PERIOD_S = m.CPU_PERIOD_US / 1e6
HALF = Limits(cpus=0.5)
NO_QUOTA = ("none", m.CPU_PERIOD_US)
HALF_QUOTA = (50_000, m.CPU_PERIOD_US)
#: Two processes that do nothing else for so long by the clock on the wall.
BUSY = """
import os, time
end = time.monotonic() + 1.0
pid = os.fork()
while time.monotonic() < end: pass
if pid == 0: os._exit(0)
os.waitpid(pid, 0)
"""
BUSY_FOR_EVER = "import os\npid = os.fork()\nif pid: print('begun', flush=True)\nwhile True: pass"


@pytest.fixture(autouse=True)
def _root(as_root: None) -> None:
    """Every test here starts processes as root."""


def place_of(workbench: Workbench, sandbox: ProcessSandbox) -> Path:
    """Return the cgroup that holds a sandbox to its quota."""
    directories = workbench.tier._launched.cgroups
    found = next(directories[name] for name in ("unified", "cpu", "cpuacct") if name in directories)
    return found / f"s{sandbox.place.number}"


def quota_of(place: Path) -> tuple[int | str, int]:
    """Return the quota and its period, as the kernel has them."""
    if (place / "cpu.max").exists():
        quota, period = (place / "cpu.max").read_text().split()
    else:
        quota, period = ((place / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    return "none" if quota in ("max", "-1") else int(quota), int(period)


def counted(place: Path) -> tuple[int, int]:
    """Return how often the kernel looked at a cgroup for its quota and held it up: read at once, for it goes on."""
    stat = dict(line.split() for line in (place / "cpu.stat").read_text().splitlines())
    return int(stat["nr_periods"]), int(stat["nr_throttled"])


def cpu_s(usage: Usage) -> float:
    return usage.cpu_user_s + usage.cpu_system_s


async def busy(workbench: Workbench, limits: Limits) -> tuple[Usage, int, int]:
    """Run two busy processes; return what they used, and how often they were looked at and held up for a quota."""
    sandbox = await workbench.fork()
    place = place_of(workbench, sandbox)
    before = counted(place)
    end = await sandbox.exec(make_step(BUSY), limits, Tape())
    after = counted(place)
    await sandbox.close()
    assert end.outcome is Outcome.EXITED
    periods, throttled = (now - then for now, then in zip(after, before, strict=True))
    return end.usage, periods, throttled


# --- it holds ---


@pytest.mark.parametrize("cpus", [0.2, 0.5])
def test_busy_processes_together_get_no_more_than_their_processors(workbench: Workbench, cpus: float) -> None:
    usage, periods, throttled = workbench.wait(busy(workbench, Limits(cpus=cpus)))
    # A period may have begun before them and one may end after them, and on each processor a tick may pass unseen.
    assert cpu_s(usage) <= cpus * (usage.wall_s + 2 * PERIOD_S) + 0.02 * (os.cpu_count() or 1)
    assert 0 <= throttled <= periods
    assert periods > 0  # where others use the processors, too, they may never come to be held up


def test_without_a_limit_the_kernel_holds_nobody_up(workbench: Workbench) -> None:
    usage, periods, throttled = workbench.wait(busy(workbench, Limits()))
    assert (periods, throttled) == (0, 0)
    assert cpu_s(usage) > 0


def test_the_cgroup_carries_the_quota_while_the_program_runs(workbench: Workbench) -> None:
    async def look() -> list[tuple[int | str, int]]:
        sandbox = await workbench.fork()
        place = place_of(workbench, sandbox)
        seen = [quota_of(place)]
        await sandbox.exec(make_step("pass"), HALF, Tape())
        seen.append(quota_of(place))
        await sandbox.close()
        return seen

    assert workbench.wait(look()) == [NO_QUOTA, HALF_QUOTA]


def test_a_process_that_leaves_its_session_and_group_is_held_all_the_same(workbench: Workbench) -> None:
    async def run() -> tuple[Usage, int]:
        sandbox = await workbench.fork()
        place = place_of(workbench, sandbox)
        before, _ = counted(place)
        end = await sandbox.exec(
            make_step(BUSY.replace("pid = os.fork()", "pid = os.fork()\nif pid == 0: os.setsid()")), HALF, Tape()
        )
        periods = counted(place)[0] - before
        await sandbox.close()
        return end.usage, periods

    usage, periods = workbench.wait(run())
    assert periods > 0
    assert cpu_s(usage) <= 0.5 * (usage.wall_s + 2 * PERIOD_S) + 0.02 * (os.cpu_count() or 1)


def test_the_smallest_and_the_largest_number_are_what_the_kernel_takes(workbench: Workbench) -> None:
    async def quota(cpus: float) -> tuple[int | str, int]:
        sandbox = await workbench.fork("command")
        await sandbox.exec(make_step(":", "command"), Limits(cpus=cpus), Tape())
        seen = quota_of(place_of(workbench, sandbox))
        await sandbox.close()
        return seen

    assert workbench.wait(quota(1024.0)) == (102_400_000, m.CPU_PERIOD_US)
    assert workbench.wait(quota(1e12)) == (quota_us(1e12), m.CPU_PERIOD_US)
    assert workbench.wait(quota(0.01)) == (1000, m.CPU_PERIOD_US)
    assert quota_us(1e-9) == 1000


# --- it costs nobody else anything ---


def test_a_program_that_names_the_limits_it_was_born_with_asks_nothing_of_the_warden(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ask = workbench.tier._warden.ask  # type: ignore[union-attr]

    async def count(data: bytes, reply: m.Event, ident: int, *rest: Any) -> m.WardenEvent:
        asked.append(reply)
        return await ask(data, reply, ident, *rest)

    monkeypatch.setattr(workbench.tier._warden, "ask", count)
    workbench.run("pass")
    assert asked == []
    workbench.run("pass", limits=HALF)
    assert asked == [m.Event.LIMITS]


# --- it is nobody else's ---


def test_the_next_sandbox_of_a_slot_has_no_quota_of_the_one_before(workbench: Workbench) -> None:
    async def look(limits: Limits) -> tuple[int, tuple[int | str, int], tuple[int | str, int]]:
        sandbox = await workbench.fork()
        place = place_of(workbench, sandbox)
        born = quota_of(place)
        await sandbox.exec(make_step("pass"), limits, Tape())
        ran = quota_of(place)
        await sandbox.close()
        return sandbox.place.number, born, ran

    slot, born, ran = workbench.wait(look(HALF))
    assert (born, ran) == (NO_QUOTA, HALF_QUOTA)
    assert workbench.wait(look(Limits())) == (slot, NO_QUOTA, NO_QUOTA)


def test_the_next_sandbox_of_one_that_was_killed_has_none_either(workbench: Workbench) -> None:
    async def killed() -> ProcessSandbox:
        sandbox, _, task = await workbench.begin(BUSY_FOR_EVER, limits=HALF)
        assert quota_of(place_of(workbench, sandbox)) == HALF_QUOTA
        sandbox.kill(Outcome.TIMED_OUT)
        assert (await task).outcome is Outcome.TIMED_OUT
        await sandbox.close()
        return sandbox

    async def next_one() -> tuple[int, tuple[int | str, int]]:
        sandbox = await workbench.fork()
        seen = sandbox.place.number, quota_of(place_of(workbench, sandbox))
        await sandbox.close()
        return seen

    slot = workbench.wait(killed()).place.number
    assert workbench.wait(next_one()) == (slot, NO_QUOTA)


def test_what_is_killed_is_let_go_so_that_it_can_die_at_once(workbench: Workbench) -> None:
    """To die takes processor time, too: the quota ends with the sandbox and not only with the next tenant's birth."""

    async def killed() -> bool:
        sandbox, _, task = await workbench.begin(BUSY_FOR_EVER, limits=Limits(cpus=0.01))
        place = place_of(workbench, sandbox)
        sandbox.kill(Outcome.TIMED_OUT)
        await task
        await sandbox.close()
        return not place.exists() or quota_of(place) == NO_QUOTA

    assert workbench.wait(killed())


# --- a session keeps it ---


def test_a_kept_sandbox_has_its_quota_in_every_step_and_in_what_joins(workbench: Workbench) -> None:
    async def session() -> None:
        sandbox = await workbench.fork("command")
        await sandbox.keep(HALF)
        place = place_of(workbench, sandbox)
        assert quota_of(place) == HALF_QUOTA
        await sandbox.exec(make_step(":", "command"), Limits(), Tape())
        assert quota_of(place) == HALF_QUOTA
        template = await workbench.tier.template("python")
        before, _ = counted(place)
        guests = [await template.join(sandbox) for _ in range(2)]
        began = time.monotonic()
        ends = await asyncio.gather(*(guest.exec(make_step(BUSY), Limits(), Tape()) for guest in guests))
        took_s = time.monotonic() - began
        assert quota_of(place) == HALF_QUOTA
        assert counted(place)[0] > before
        # They ran beside each other, so that each was told what both used meanwhile, from before its program was sent.
        for end in ends:
            assert cpu_s(end.usage) <= 0.5 * (took_s + 2 * PERIOD_S) + 0.02 * (os.cpu_count() or 1)
        for guest in guests:
            await guest.close()
        await sandbox.close()

    workbench.wait(session())


# --- where it cannot be ---


@contextmanager
def parent_with_half_a_processor() -> Iterator[str]:
    """Make a cgroup in every hierarchy, as a container has, that has half a processor itself."""
    name = f"sandfork-test-{os.getpid()}"
    host = host_cgroups()
    for hierarchy in host.hierarchies:
        (hierarchy.mount / name).mkdir()
        if "cpu" in hierarchy.controllers and hierarchy.name != "unified":
            (hierarchy.mount / name / "cpu.cfs_quota_us").write_text("50000")
        elif hierarchy.name == "unified":
            (hierarchy.mount / "cgroup.subtree_control").write_text("+cpu")
            (hierarchy.mount / name / "cpu.max").write_text("50000 100000")
    try:
        yield name
    finally:
        for hierarchy in host.hierarchies:
            (hierarchy.mount / name).rmdir()


def test_more_than_a_container_has_is_held_to_what_the_container_has() -> None:
    with parent_with_half_a_processor() as parent, open_workbench(start_native(cgroup_parent=parent)) as within:
        usage = within.run(BUSY, limits=Limits(cpus=2.0)).end.usage
        assert cpu_s(usage) <= 0.5 * (usage.wall_s + 2 * PERIOD_S) + 0.02 * (os.cpu_count() or 1)
        usage = within.run(BUSY, limits=Limits(cpus=0.2)).end.usage
        assert cpu_s(usage) <= 0.2 * (usage.wall_s + 2 * PERIOD_S) + 0.02 * (os.cpu_count() or 1)


def test_a_kernel_without_quotas_refuses_the_start_and_accepted_is_told() -> None:
    launched = start_native()
    launched.missing_controllers = ("cpu",)
    with pytest.raises(TierUnavailable, match="cannot enforce: cgroup cpu"), open_workbench(launched):
        pass
    launched = start_native()
    launched.missing_controllers = ("cpu",)
    with open_workbench(launched, allow_missing=frozenset({"cgroup cpu"}), limits=HALF) as without:
        assert not without.tier.rates_cpus
        assert without.tier.unenforced == (
            "cgroup cpu",
            "cpus limit: as processor time within the wall time, not as a rate",
        )
        assert without.run("print('ok')").stdout == b"ok\n"


def test_a_quota_that_nothing_can_enforce_is_refused_and_not_forgotten() -> None:
    missing = frozenset(f"cgroup {name}" for name in ("memory", "pids", "cpu"))
    with open_workbench(start_native(cgroups=False), allow_missing=missing) as without:
        assert without.run("print('ok')").stdout == b"ok\n"
        with pytest.raises(TierError, match="setting limits failed at cgroup: Operation not supported"):
            without.run("print('ok')", limits=HALF)
