"""From the first fork to the last close: what dies, dies whole; what is lost, is told; and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import uvloop

from sandfork.errors import ForkFailed, GuestLost, TemplateFailed, TierError, TierUnavailable
from sandfork.linux.cgroup import host_cgroups
from sandfork.model import Limits, Outcome
from sandfork.tiers.base import BEFORE_START
from sandfork.tiers.process import Launched, ProcessTier
from sandfork.tiers.process import messages as m
from sandfork.tiers.process import tier as tier_module
from sandfork.tiers.process.template import ProcessTemplate, Zygote
from tests.support.process import LIMITS, STUCK_S, Tape, Workbench, make_step, process_tier, start_native, until
from tests.support.remains import (
    descriptors,
    is_alive,
    mounts,
    processes_in_slots,
    processes_of,
    settles,
    zygotes_of,
)

FOREVER = "import time\nprint('begun', flush=True)\ntime.sleep(3600)"


@pytest.fixture(autouse=True)
def _root(as_root: None) -> None:
    """Every test here starts processes as root."""


def with_tier(
    test: Callable[[Launched, ProcessTier, Workbench], Awaitable[None]], cgroup_parent: str = "", **settings: object
) -> None:
    """Run `test` over a tier of its own, whose native side it may kill."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        launched = start_native(cgroup_parent=cgroup_parent)

        async def run() -> None:
            tier = process_tier(launched, **settings)
            try:
                async with asyncio.timeout(STUCK_S):
                    await tier.start()
                    await test(launched, tier, Workbench(runner, tier))
            finally:
                await tier.close()

        runner.run(run())


def the_warden(launched: Launched) -> int:
    """Return the pid of the warden: the janitor's only child."""
    janitor = launched.janitor.pid
    (pid,) = Path(f"/proc/{janitor}/task/{janitor}/children").read_text().split()
    return int(pid)


async def death_of(template: ProcessTemplate) -> None:
    """Wait until the template knows that its zygote is dead."""
    for _ in range(1_000_000):
        if not template.health().ready:
            return
        await asyncio.sleep(0)
    raise AssertionError("the death of a zygote was never told")


# --- one sandbox ---


def test_a_sandbox_that_is_ready_when_nobody_waits_for_it_any_more_is_closed_in_peace() -> None:
    """Its client goes in the very moment in which it says READY."""

    async def check(launched: Launched, tier: ProcessTier, bench: Workbench) -> None:
        problems: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        template = await tier.template("python")
        await (await template.fork()).close()
        for _ in range(5):
            forking = asyncio.create_task(template.fork())
            await until(lambda: tier.live == 1)
            assert tier._slots is not None
            tenancy = tier._slots._slots[0].tenancy
            assert tenancy is not None
            assert tenancy.guest is not None
            select.select([tenancy.guest._line.fd], [], [], STUCK_S)  # nothing else goes on meanwhile
            forking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await forking
            await until(lambda: tier.live == 0)
        assert problems == []

    with_tier(check)


def test_a_sandbox_that_is_closed_late_leaves_the_next_in_its_slot_alone() -> None:
    """A killed sandbox frees its slot before it is closed; the next one may be at work there by then."""

    async def check(launched: Launched, tier: ProcessTier, bench: Workbench) -> None:
        template = await tier.template("python")
        first = await template.fork()
        running = asyncio.create_task(first.exec(make_step(FOREVER), LIMITS, tape := Tape()))
        await tape.until(b"begun")
        first.kill(Outcome.TIMED_OUT)
        assert (await running).outcome is Outcome.TIMED_OUT
        await until(lambda: not tier.live)
        second = await template.fork()
        running = asyncio.create_task(second.exec(make_step("print(input())", stdin=b"mine"), LIMITS, tape := Tape()))
        await first.close()
        end = await running
        assert (end.outcome, end.exit_code, bytes(tape.stdout)) == (Outcome.EXITED, 0, b"mine\n")
        await second.close()

    with_tier(check)


LEAVE_BEHIND = """
import os, signal, subprocess, time
def stay():
    for number in range(1, 32):
        if number not in (9, 19): signal.signal(number, signal.SIG_IGN)
    print(end='x', flush=True)
    while True: time.sleep(3600)
if os.fork() == 0: stay()                     # a child
if os.fork() == 0:
    if os.fork() == 0: os.setsid(); stay()    # a daemon
    os._exit(0)
stopped = subprocess.Popen(['sleep', '3600'])
os.kill(stopped.pid, signal.SIGSTOP)          # stopped
subprocess.Popen(['sh', '-c', 'trap "" TERM HUP; echo x; sleep 3600'], start_new_session=True)
while len(os.listdir('/proc/self/task')) < 1: pass
"""


def test_every_process_a_program_leaves_dies_with_its_sandbox(workbench: Workbench) -> None:
    launched = workbench.tier._launched

    async def run() -> None:
        sandbox, tape = await workbench.fork(), Tape()
        end = await sandbox.exec(make_step(LEAVE_BEHIND), Limits(), tape)
        assert end.outcome is Outcome.EXITED
        left = processes_in_slots(launched)
        assert len(left) >= 3
        await sandbox.close()
        assert not any(is_alive(pid) for pid in left)
        assert not processes_in_slots(launched)

    workbench.wait(run())


ENVIRONMENT = {
    "python": "print(open('/proc/self/environ').read())",
    "node": "console.log(require('fs').readFileSync('/proc/self/environ', 'utf8'))",
    "command": "cat /proc/self/environ",
}


@pytest.mark.parametrize("template", ENVIRONMENT)
def test_one_that_somebody_waits_for_has_the_environment_of_one_that_waited(
    workbench: Workbench, template: str
) -> None:
    async def names(*, urgent: bool) -> set[bytes]:
        maker, tape = await workbench.tier.template(template), Tape()
        first = await maker.fork()  # there may be one that is kept from the template's start
        sandbox = await maker.fork(urgent=urgent)
        await sandbox.exec(make_step(ENVIRONMENT[template], template), LIMITS, tape)
        await first.close()
        await sandbox.close()
        return {pair.partition(b"=")[0] for pair in bytes(tape.stdout).strip().split(b"\0") if pair}

    assert workbench.wait(names(urgent=True)) == workbench.wait(names(urgent=False)) != set()


def test_a_sandbox_that_was_closed_leaves_no_descriptor(workbench: Workbench) -> None:
    workbench.run("print(1)")
    before = descriptors()
    for code in ("print(1)", "import os; os.abort()", "while True: pass"):
        workbench.run(code, limits=Limits(cpu_s=0.05))
    assert descriptors() == before


def test_a_closed_sandbox_frees_its_slot_for_the_next(workbench: Workbench) -> None:
    async def run() -> None:
        used = set()
        for _ in range(5):
            sandbox = await workbench.fork()
            used.add(sandbox._slot.number)
            await sandbox.close()
        assert len(used) == 1

    workbench.wait(run())


KEEP_A_LARGE_FILE = """import time
with open('large', 'wb') as file: file.write(bytes(40 << 20))
print('written', flush=True)
time.sleep(3600)"""


def test_what_the_last_tenant_is_still_charged_is_no_part_of_the_next_ones_memory(workbench: Workbench) -> None:
    launched = workbench.tier._launched

    async def run() -> None:
        sandbox, _, task = await workbench.begin(KEEP_A_LARGE_FILE)
        slot = sandbox._slot.number
        # A file system somebody still looks at outlives its sandbox, as one does that the kernel is slow to take down.
        held = [os.open(f"/proc/{pid}/cwd", os.O_PATH) for pid in processes_in_slots(launched)]
        try:
            await sandbox.close()
            await asyncio.gather(task, return_exceptions=True)
            following = await workbench.fork()
            assert following._slot.number == slot
            end = await following.exec(make_step("print(1)"), LIMITS, Tape())
            await following.close()
        finally:
            for fd in held:
                os.close(fd)
        assert 0 < end.usage.memory_peak_bytes < 32 << 20

    workbench.wait(run())


def test_a_parked_sandbox_found_dead_says_that_nothing_began(workbench: Workbench) -> None:
    launched = workbench.tier._launched

    async def run() -> None:
        before = processes_in_slots(launched)
        sandbox = await workbench.fork()
        (parked,) = processes_in_slots(launched) - before
        os.kill(parked, signal.SIGKILL)
        await asyncio.to_thread(settles, lambda: not is_alive(parked))
        with pytest.raises(GuestLost) as caught:
            await sandbox.exec(make_step("print(1)"), Limits(), Tape())
        assert caught.value.step == BEFORE_START
        await sandbox.close()

    workbench.wait(run())


def test_a_program_killed_from_outside_is_told_by_its_signal(workbench: Workbench) -> None:
    launched = workbench.tier._launched

    async def run() -> None:
        sandbox, _, task = await workbench.begin(FOREVER)
        for pid in processes_in_slots(launched):
            os.kill(pid, signal.SIGKILL)
        end = await task
        assert (end.outcome, end.signal) == (Outcome.SIGNALLED, signal.SIGKILL)
        await sandbox.close()

    workbench.wait(run())


def test_more_sandboxes_than_there_are_slots_are_refused_and_later_taken(as_root: None) -> None:
    async def test(launched: Launched, tier: ProcessTier, bench: Workbench) -> None:
        first, second = await bench.fork(), await bench.fork()
        with pytest.raises(ForkFailed, match="slots are taken"):
            await bench.fork()
        await first.close()
        third = await bench.fork()
        await second.close()
        await third.close()

    with_tier(test, most_sandboxes=2)


FORKS_AMONG_STRANGERS = 400  # many times more than it takes for a fork to be hit
CROWD = 200  # more than the warden looks at one by one


def test_of_a_crowd_that_dies_together_every_one_is_told(workbench: Workbench) -> None:
    """The kernel tells one death at a time and forgets what comes meanwhile."""

    async def crowd() -> list[tuple[int | None, int | None]]:
        sandboxes = [await workbench.fork("command") for _ in range(CROWD)]
        step = make_step("kill -9 $$", "command")
        ends = await asyncio.gather(*(sandbox.exec(step, LIMITS, Tape()) for sandbox in sandboxes))
        await asyncio.gather(*(sandbox.close() for sandbox in sandboxes))
        return [(end.exit_code, end.signal) for end in ends]

    assert workbench.wait(crowd()) == [(None, signal.SIGKILL)] * CROWD


# --- templates ---


def test_a_zygote_that_was_killed_is_replaced_at_the_next_fork() -> None:
    async def test(launched: Launched, tier: ProcessTier, bench: Workbench) -> None:
        template = await tier.template("python")
        running, _, task = await bench.begin(FOREVER)
        (first,) = zygotes_of(launched)
        os.kill(first, signal.SIGKILL)
        await death_of(template)
        assert (await bench.exec("print(2)")).stdout == b"2\n"
        (second,) = zygotes_of(launched)
        assert second != first
        assert template.health().generation == 2
        assert not task.done()
        await running.close()

    with_tier(test)


def test_a_zygote_that_was_killed_is_there_again_though_nobody_asks_for_it() -> None:
    async def test(launched: Launched, tier: ProcessTier, bench: Workbench) -> None:
        template = await tier.template("python")
        (first,) = zygotes_of(launched)
        os.kill(first, signal.SIGKILL)
        await death_of(template)
        assert not template.health().ready
        await until(lambda: template.health().ready)
        assert len(zygotes_of(launched) - {first}) == 1
        template.rest()
        await until(lambda: not zygotes_of(launched))

    with_tier(test)


def test_forks_asked_of_a_dying_zygote_come_from_the_next() -> None:
    async def test(launched: Launched, tier: ProcessTier, bench: Workbench) -> None:
        await tier.template("python")
        for _ in range(5):
            for zygote in zygotes_of(launched):
                os.kill(zygote, signal.SIGKILL)
            for fork in await asyncio.gather(*(bench.fork() for _ in range(8))):
                await fork.close()
        assert (await bench.exec("print(1)")).stdout == b"1\n"
        assert tier.live == 0

    with_tier(test)


def test_what_waits_for_a_zygote_that_is_killed_comes_from_the_next() -> None:
    async def test(launched: Launched, tier: ProcessTier, bench: Workbench) -> None:
        template = await tier.template("python")
        home = await bench.fork()
        await home.keep(LIMITS)
        for fork in (bench.fork, partial(template.join, home)):
            (zygote,) = zygotes_of(launched)
            os.kill(zygote, signal.SIGSTOP)
            forking = asyncio.create_task(fork())
            await (await bench.fork("command")).close()  # what was asked of the warden before has been done
            os.kill(zygote, signal.SIGKILL)
            process, tape = await forking, Tape()
            assert (await process.exec(make_step("print(1)"), LIMITS, tape)).exit_code == 0
            assert bytes(tape.stdout) == b"1\n"
            await process.close()
        await home.close()
        assert tier.live == 0

    with_tier(test)


def test_deaths_that_tell_nothing_cost_nobody_a_fork() -> None:
    """The warden asks what came of forks when somebody dies whom it does not know: that may have been one of them."""

    async def test(launched: Launched, tier: ProcessTier, bench: Workbench) -> None:
        template = await tier.template("command")
        home = await bench.fork("command")
        await home.keep(LIMITS)
        orphans = ["nsenter", "--target", str(the_warden(launched)), "--pid", "sh", "-c", "while :; do ( : & ); done"]
        strangers = await asyncio.create_subprocess_exec(*orphans)
        try:
            for _ in range(FORKS_AMONG_STRANGERS // 8):
                forks = [*(bench.fork("command") for _ in range(4)), *(template.join(home) for _ in range(4))]
                for process in await asyncio.gather(*forks):
                    await process.close()
        finally:
            strangers.kill()
            await strangers.wait()
        await home.close()
        assert tier.live == 0

    with_tier(test)


def test_more_zygotes_than_there_are_numbers_come_and_go_beside_one_that_stays() -> None:
    async def test(launched: Launched, tier: ProcessTier, bench: Workbench) -> None:
        await tier.template("python")
        stays = zygotes_of(launched)
        template = await tier.template("command")
        for _ in range(m.ZYGOTES_MAX + 1):
            template.rest()
            await template.warm()
        assert (await bench.exec("print(1)")).stdout == b"1\n"
        assert zygotes_of(launched) == stays
        assert tier.live == 0

    with_tier(test)


def test_a_template_whose_zygotes_die_one_after_another_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(launched: Launched, tier: ProcessTier, bench: Workbench) -> None:
        template = await tier.template("python")
        home = await bench.fork()
        await home.keep(LIMITS)
        current = template._current

        async def dying() -> Zygote:
            zygote = await current()
            for pid in zygotes_of(launched):
                os.kill(pid, signal.SIGKILL)
            return zygote

        monkeypatch.setattr(template, "_current", dying)
        for fork in (bench.fork, partial(template.join, home)):
            with pytest.raises(TemplateFailed, match="two zygotes in a row"):
                await fork()
        monkeypatch.undo()
        process, tape = await template.join(home), Tape()
        assert (await process.exec(make_step("print(1)"), LIMITS, tape)).exit_code == 0
        await process.close()
        await home.close()
        assert tier.live == 0

    with_tier(test)


def test_a_template_is_renewed_after_so_many_forks_while_its_sandboxes_run_on() -> None:
    async def test(launched: Launched, tier: ProcessTier, bench: Workbench) -> None:
        template = await tier.template("python")
        (first,) = zygotes_of(launched)
        slow, slow_tape, slow_task = await bench.begin(FOREVER)
        for _ in range(6):
            await bench.exec("print(1)")
        while template.health().generation < 2 or zygotes_of(launched) == {first}:
            await bench.exec("print(1)")
        assert settles(lambda: not is_alive(first))
        assert not slow_task.done()
        slow.kill(Outcome.TIMED_OUT)
        assert (await slow_task).outcome is Outcome.TIMED_OUT
        assert bytes(slow_tape.stdout) == b"begun\n"
        await slow.close()

    with_tier(test, recycle_forks=4)


def test_no_fork_fails_because_its_template_is_renewed_meanwhile() -> None:
    async def test(launched: Launched, tier: ProcessTier, bench: Workbench) -> None:
        template = await tier.template("python")
        while template.health().generation < 6:
            for sandbox in await asyncio.gather(*(template.fork() for _ in range(8))):
                await sandbox.close()

    with_tier(test, recycle_forks=1)


def test_two_generations_differ_in_layout_and_hash_seed() -> None:
    async def test(launched: Launched, tier: ProcessTier, bench: Workbench) -> None:
        async def look() -> bytes:
            where = "next(line for line in open('/proc/self/maps') if 'libc.so' in line).split()[0]"
            return (await bench.exec(f"print(hash('x'), {where})")).stdout

        first = await look()
        assert await look() == first
        template = await tier.template("python")
        (zygote,) = zygotes_of(launched)
        os.kill(zygote, signal.SIGKILL)
        await death_of(template)
        second = await look()
        assert first.split()[0] != second.split()[0]
        assert first.split()[1] != second.split()[1]

    with_tier(test)


def test_a_zygote_that_cannot_start_is_told_with_its_last_words() -> None:
    async def test(launched: Launched, tier: ProcessTier, bench: Workbench) -> None:
        template = await tier.template("python")
        template._spec = replace(template._spec, argv=(*template._spec.argv, "no_such_module"))
        (zygote,) = zygotes_of(launched)
        os.kill(zygote, signal.SIGKILL)
        await death_of(template)
        with pytest.raises(TemplateFailed, match="No module named 'no_such_module'"):
            await template.fork()
        assert "no_such_module" in template.health().reason

    with_tier(test)


# --- the whole ---


def test_closing_a_tier_leaves_no_process_cgroup_mount_or_descriptor() -> None:
    before = descriptors(), mounts()
    seen: set[int] = set()
    directories = []

    async def test(launched: Launched, tier: ProcessTier, bench: Workbench) -> None:
        directories.extend(launched.cgroups.values())
        await bench.fork()
        await bench.fork("node")
        await bench.begin(FOREVER)
        await bench.begin(LEAVE_BEHIND + FOREVER)
        forking = [asyncio.get_running_loop().create_task(bench.fork()) for _ in range(4)]
        await asyncio.sleep(0)
        seen.update(processes_of(launched))
        await tier.close()
        assert all(isinstance(each, Exception) for each in await asyncio.gather(*forking, return_exceptions=True))

    with_tier(test)
    assert len(seen) > 8
    assert not [pid for pid in seen if is_alive(pid)]
    assert not [directory for directory in directories if directory.exists()]
    assert (descriptors(), mounts()) == before


def test_the_loss_of_the_warden_is_told_and_leaves_nothing() -> None:
    before = descriptors()
    seen: set[int] = set()
    directories = []

    async def test(launched: Launched, tier: ProcessTier, bench: Workbench) -> None:
        directories.extend(launched.cgroups.values())
        parked = await bench.fork()
        running, _, task = await bench.begin(FOREVER)
        seen.update(processes_of(launched))
        os.kill(the_warden(launched), signal.SIGKILL)
        await tier.lost()
        with pytest.raises(GuestLost):
            await task
        with pytest.raises(TierError):
            await parked.exec(make_step("print(1)"), Limits(), Tape())
        with pytest.raises(TierError):
            await bench.fork()
        await running.close()
        await parked.close()

    with_tier(test)
    assert not [pid for pid in seen if is_alive(pid)]
    assert not [directory for directory in directories if directory.exists()]
    assert descriptors() == before


def test_the_loss_of_the_janitor_ends_everything_and_the_next_start_sweeps() -> None:
    seen: set[int] = set()
    directories = []

    async def test(launched: Launched, tier: ProcessTier, bench: Workbench) -> None:
        directories.extend(launched.cgroups.values())
        _, _, task = await bench.begin(FOREVER)
        seen.update(processes_of(launched))
        launched.janitor.kill()
        await tier.lost()
        await asyncio.gather(task, return_exceptions=True)

    with_tier(test)
    assert settles(lambda: not any(is_alive(pid) for pid in seen))
    assert [directory for directory in directories if directory.exists()] == directories

    async def nothing(launched: Launched, tier: ProcessTier, bench: Workbench) -> None:
        """Start and end."""

    with_tier(nothing)
    assert not [directory for directory in directories if directory.exists()]


def test_two_instances_live_side_by_side(workbench: Workbench) -> None:
    async def test(launched: Launched, tier: ProcessTier, bench: Workbench) -> None:
        assert launched.instance != workbench.tier._launched.instance
        assert (await bench.exec("print(1)")).stdout == b"1\n"

    with_tier(test)
    assert workbench.run("print(2)").stdout == b"2\n"


@pytest.fixture
def parent() -> Iterator[str]:
    """A cgroup that nobody else's instances are in: a start that does not see their lock files leaves them alone."""
    name = f"sandfork-test-{os.getpid()}"
    made = [hierarchy.mount / name for hierarchy in host_cgroups().hierarchies]
    for directory in made:
        directory.mkdir()
    yield name
    for directory in made:
        directory.rmdir()


def start_and_end_elsewhere(parent: str, run_dir: Path, up_to: int) -> int:
    """Start and end the native side as from another mount namespace, whose /run is another; return its instance.

    It looks for dead instances up to the one named.
    """
    for number in range(up_to + 1):
        (run_dir / f"{number}.lock").touch()
    launched = start_native(cgroup_parent=parent, run_dir=run_dir)
    launched.warden.close()
    launched.wait()
    return launched.instance


def test_an_instance_whose_lock_file_is_not_seen_is_left_alone(parent: str, tmp_path: Path) -> None:
    async def test(launched: Launched, tier: ProcessTier, bench: Workbench) -> None:
        here = processes_of(launched)
        assert here
        assert start_and_end_elsewhere(parent, tmp_path, launched.instance) != launched.instance
        assert processes_of(launched) >= here
        assert (await bench.exec("print(1)")).stdout == b"1\n"

    with_tier(test, parent)


def test_what_a_killed_instance_left_is_swept_by_who_does_not_see_its_lock_file(parent: str, tmp_path: Path) -> None:
    directories: list[Path] = []
    instances: list[int] = []

    async def test(launched: Launched, tier: ProcessTier, bench: Workbench) -> None:
        directories.extend(launched.cgroups.values())
        instances.append(launched.instance)
        launched.janitor.kill()
        await tier.lost()

    with_tier(test, parent)
    assert [directory for directory in directories if directory.exists()] == directories
    start_and_end_elsewhere(parent, tmp_path, instances[0])
    assert not [directory for directory in directories if directory.exists()]


def test_a_primitive_that_does_not_hold_refuses_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tier_module, "broken", lambda results: {"seccomp": "unshare gave 0"})
    with pytest.raises(TierUnavailable, match="seccomp: unshare gave 0"):
        with_tier(None)  # type: ignore[arg-type]
    called = []

    async def test(launched: Launched, tier: ProcessTier, bench: Workbench) -> None:
        called.append(tier.unenforced)

    with_tier(test, allow_missing=frozenset({"seccomp"}))
    assert called == [("seccomp",)]
