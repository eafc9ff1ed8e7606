"""What is special to cgroup v2 in the process tier. Runs inside the guest, and the host shows the verdicts.

That every limit holds, tests/kernel/test_limits.py and test_cpus.py tell, and that processes can join a sandbox,
test_joining.py: all run in the guest, too.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandfork.linux.cgroup import host_cgroups, processes_below, remove_tree
from sandfork.linux.landlock import landlock_abi
from sandfork.model import Limits, Outcome
from tests.support.process import Tape, Workbench, make_step, open_workbench, start_native

ROOT = Path("/sys/fs/cgroup")
TRACING = Path("/sys/kernel/tracing")
MIB = 1 << 20
KTHREADD = "2"
WAIT_FOR_EVER = "import signal\nprint('ready', flush=True)\nsignal.pause()"


def place_of(workbench: Workbench) -> Path:
    """Return the cgroup of a tier's instance."""
    return workbench.tier._launched.cgroups["unified"]


def slots_of(workbench: Workbench) -> set[str]:
    """Return the names of the cgroups of a tier's sandboxes."""
    return {path.name for path in place_of(workbench).iterdir() if path.is_dir()} - {"keep"}


def number(path: Path, key: str) -> int:
    """Read one number of a flat keyed file."""
    return int(dict(line.split() for line in path.read_text().splitlines())[key])


# --- the host and the start ---


def test_the_host_offers_every_controller_in_v2_alone() -> None:
    host = host_cgroups()
    assert host.unified
    assert host.missing == ()
    assert [h.mount for h in host.hierarchies] == [ROOT]


def test_the_tier_starts_and_every_primitive_holds(workbench: Workbench) -> None:
    assert {name: problem for name, problem in workbench.tier.primitives.items() if problem} == {}
    assert {"memory limit", "pids limit", "landlock", "cgroup namespace"} <= workbench.tier.primitives.keys()
    assert workbench.tier.unenforced == ()


def test_a_kernel_with_the_second_landlock_needs_no_leave(workbench: Workbench) -> None:
    abi = landlock_abi()
    if os.uname().release.startswith("6.1."):
        assert (abi.version, abi.fs_rights, abi.net_rights, abi.scoped) == (2, (1 << 14) - 1, 0, 0)
    assert workbench.tier.primitives["landlock"] == ""


# --- running programs ---


def test_a_program_sees_its_cgroup_as_the_root(workbench: Workbench) -> None:
    assert workbench.run("print(open('/proc/self/cgroup').read(), end='')").stdout == b"0::/\n"


def moves_during(act: Callable[[], object]) -> list[str]:
    """Return the kernel's record of every process moved from one cgroup to another while `act` runs."""
    event = TRACING / "events/cgroup/cgroup_attach_task/enable"
    (TRACING / "trace").write_text("")
    event.write_text("1")
    try:
        act()
    finally:
        event.write_text("0")
    return [line for line in (TRACING / "trace").read_text().splitlines() if "dst_path=" in line]


def test_a_program_is_born_in_its_cgroup_and_never_moved(workbench: Workbench) -> None:
    async def look() -> list[int]:
        sandbox = await workbench.fork()
        counts = [
            len((place_of(workbench) / slot / "cgroup.procs").read_text().split()) for slot in slots_of(workbench)
        ]
        await sandbox.close()
        return counts

    counts: list[int] = []
    assert moves_during(lambda: counts.extend(workbench.wait(look()))) == []
    assert counts == [1]


def test_a_move_between_cgroups_would_have_been_seen() -> None:
    elsewhere = ROOT / "elsewhere"
    elsewhere.mkdir()
    with subprocess.Popen(["/bin/bash", "-c", "read"], stdin=subprocess.PIPE) as child:
        moves = moves_during(lambda: (elsewhere / "cgroup.procs").write_text(str(child.pid)))
    elsewhere.rmdir()
    assert len(moves) == 1
    assert "dst_path=/elsewhere" in moves[0]


# --- limits ---


def test_the_slot_carries_the_limits_of_its_program(workbench: Workbench) -> None:
    async def look() -> dict[str, str]:
        sandbox = await workbench.fork()
        (slot,) = slots_of(workbench)
        await sandbox.exec(make_step("pass"), Limits(memory_bytes=96 * MIB, pids=7), Tape())
        names = ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max")
        files = {n: path.read_text().strip() for n in names if (path := place_of(workbench) / slot / n).exists()}
        await sandbox.close()
        return files

    limits = workbench.wait(look())
    assert limits.pop("memory.swap.max", "0") == "0"
    assert limits == {"memory.max": str(96 * MIB), "memory.oom.group": "1", "pids.max": "7"}


def test_too_much_memory_ends_a_program_as_out_of_memory(workbench: Workbench) -> None:
    async def eat() -> tuple[Outcome, int, int]:
        sandbox = await workbench.fork()
        (slot,) = slots_of(workbench)
        end = await sandbox.exec(make_step("b = bytearray(200 << 20)"), Limits(memory_bytes=64 * MIB), Tape())
        events = place_of(workbench) / slot / "memory.events"
        kills = number(events, "oom_kill"), number(events, "oom_group_kill")
        await sandbox.close()
        return end.outcome, *kills

    outcome, kills, of_groups = workbench.wait(eat())
    assert outcome is Outcome.OUT_OF_MEMORY
    assert kills > 0
    assert of_groups == 1


# --- usage ---


def test_a_program_killed_from_outside_still_has_its_usage(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cgroup of a killed program can be gone before the server, waiting for a processor, goes on."""

    async def killed() -> tuple[Outcome, bool]:
        sandbox, _, task = await workbench.begin(WAIT_FOR_EVER)
        (slot,) = slots_of(workbench)
        close = sandbox._slot.close

        def close_and_lose_the_processor() -> None:
            close()
            while (place_of(workbench) / slot).exists():
                os.sched_yield()

        monkeypatch.setattr(sandbox._slot, "close", close_and_lose_the_processor)
        sandbox.kill(Outcome.TIMED_OUT)
        end = await task
        await sandbox.close()
        return end.outcome, end.usage.memory_peak_bytes > 0

    assert workbench.wait(killed()) == (Outcome.TIMED_OUT, True)


# --- what is left ---


def test_closed_sandboxes_leave_no_cgroup(workbench: Workbench) -> None:
    async def crowd() -> int:
        sandboxes = await asyncio.gather(*(workbench.fork() for _ in range(6)))
        there = len(slots_of(workbench))
        step = make_step("import os\nfor n in range(3): os.fork()\nprint('x' * 1000)")
        await asyncio.gather(*(s.exec(step, Limits(), Tape()) for s in sandboxes[:4]))
        await asyncio.gather(*(s.close() for s in sandboxes))
        return there

    assert workbench.wait(crowd()) == 6
    assert slots_of(workbench) == set()


def processes() -> set[str]:
    """Return what runs, the dead that nobody has reaped included, but not the kernel's own threads."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields["PPid"] != KTHREADD:
            found.add(f"{fields['Pid']} {fields['Name']}")
    return found


def test_a_closed_tier_leaves_no_cgroup_and_no_process() -> None:
    before = processes()
    with open_workbench() as second:
        place = place_of(second)
        second.wait(second.fork())
        assert len(slots_of(second)) == 1
    assert second.tier._launched.janitor.returncode == 0
    assert not place.exists()
    assert processes() <= before


# --- a server in a process of its own ---

SERVER = """
import asyncio, sys
from sandfork.linux.privileges import drop_privileges
from sandfork.tiers.process import LaunchSettings, launch
from tests.support.process import native_dir, process_tier
async def main(parent):
    launched = launch(LaunchSettings(warden=native_dir() / "sandfork-warden", cgroup_parent=parent))
    tier = process_tier(launched)
    drop_privileges(launched.server_uid, launched.server_uid)
    await tier.start()
    sandbox = await (await tier.template("python")).fork()
    print(launched.instance, launched.janitor.pid, flush=True)
    await asyncio.get_running_loop().create_future()
asyncio.run(main(sys.argv[1]))
"""
ENTER_CGROUP = """
import os, sys
with open(sys.argv[2] + "/cgroup.procs", "w") as procs:
    procs.write("0")
"""
OWN_CGROUP_NAMESPACE = """
import ctypes
LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWCGROUP, CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x02000000, 0x00020000, 0x4000, 0x40000
def done(result):
    assert result == 0, os.strerror(ctypes.get_errno())
done(LIBC.unshare(CLONE_NEWCGROUP | CLONE_NEWNS))
done(LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
done(LIBC.umount2(b"/sys/fs/cgroup", 0))
done(LIBC.mount(b"cgroup2", b"/sys/fs/cgroup", b"cgroup2", 0, None))
"""


@dataclass(frozen=True)
class Server:
    """An unprivileged server with one parked sandbox; `place` is its instance's cgroup as seen from outside."""

    process: subprocess.Popen[str]
    instance: int
    janitor: int
    place: Path

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def until_native_side_is_gone(self) -> None:
        """The janitor holds the instance's lock to its end."""
        signal.alarm(30)
        with open(f"/run/sandfork/{self.instance}.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
        signal.alarm(0)


@contextmanager
def running_server(prelude: str = "", parent: str = "", within: Path = ROOT) -> Iterator[Server]:
    """Start a server after `prelude` and kill it; `within` is where its instance's cgroup is, seen from outside."""
    argv = [sys.executable, "-P", "-c", prelude + SERVER, parent, str(within)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        words = process.stdout.readline().split()
        assert words, process.stderr.read()
        instance, janitor = map(int, words)
        server = Server(process, instance, janitor, within / f"sandfork-{instance}")
        try:
            yield server
        finally:
            server.kill()
            server.until_native_side_is_gone()


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A cgroup two levels down, as a systemd unit's or a container's is; nothing may be left in it."""
    path = ROOT / "some.slice" / "some.service"
    path.mkdir(parents=True)
    yield path
    assert {p.name for p in path.iterdir() if p.is_dir()} <= {"outside"}
    assert remove_tree(path.parent)


def test_a_server_in_its_own_cgroup_makes_room_there_and_killed_leaves_nothing(delegated: Path) -> None:
    """As in a systemd unit with Delegate=yes: v2 lets no cgroup have both processes and controllers for children."""
    with running_server(ENTER_CGROUP, "some.slice/some.service", delegated) as server:
        assert (delegated / "cgroup.procs").read_text() == ""
        assert str(server.process.pid) in (delegated / "outside/cgroup.procs").read_text().split()
        assert {"memory", "pids", "cpu"} <= set((server.place / "keep/cgroup.controllers").read_text().split())
    assert not server.place.exists()


def test_a_server_in_a_cgroup_namespace_makes_room_there_and_killed_leaves_nothing(delegated: Path) -> None:
    """As in a container with --cgroupns=private: what it sees as the root of all cgroups is none."""
    for path in (ROOT, delegated.parent):
        (path / "cgroup.subtree_control").write_text("+memory +pids +cpu")
    with running_server(ENTER_CGROUP + OWN_CGROUP_NAMESPACE, "", delegated) as server:
        assert str(server.process.pid) in (delegated / "outside/cgroup.procs").read_text().split()
        assert len(list(processes_below(server.place))) >= 3
    assert not server.place.exists()


# --- what a killed server leaves ---


def test_what_a_killed_janitor_leaves_is_swept_by_the_next_start() -> None:
    with running_server() as server:
        os.kill(server.janitor, signal.SIGKILL)
        server.kill()
        assert server.place.exists()
        launched = start_native()
        assert launched.cgroups["unified"] == server.place
        assert {path.name for path in server.place.iterdir() if path.is_dir()} == {"keep"}
        launched.warden.close()
        launched.wait()
        assert not server.place.exists()
