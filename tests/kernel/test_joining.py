"""Further processes in a sandbox that is kept: what they share, what a kill leaves, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sandfork.errors import DiskFull, FileNotInSandbox, FileTooLarge, ForkFailed, GuestLost
from sandfork.model import InputFile, Limits, Outcome
from sandfork.tiers.process import ProcessTier
from sandfork.tiers.process.agent import AgentClient
from sandfork.tiers.process.sandbox import JoinedGuest, ProcessSandbox
from tests.support.process import LIMITS, Tape, make_step, with_sandbox


@pytest.fixture(autouse=True)
def _root(as_root: None) -> None:
    """Every test here starts processes as root."""


async def run_in(
    sandbox: ProcessSandbox, tier: ProcessTier, code: str, key: str = "python"
) -> tuple[int | None, bytes]:
    """Run a program in a process that joins, and close that; return its exit code and output."""
    guest = await (await tier.template(key)).join(sandbox)
    tape = Tape()
    end = await guest.exec(make_step(code, key), LIMITS, tape)
    await guest.close()
    return end.exit_code, bytes(tape.stdout + tape.stderr)


def test_processes_of_one_sandbox_share_its_files_and_see_each_other() -> None:
    async def check(tier: ProcessTier, sandbox: ProcessSandbox) -> None:
        tape = Tape()
        end = await sandbox.exec(make_step("open('kept', 'w').write('by the first'); print('ok')"), LIMITS, tape)
        assert (end.exit_code, bytes(tape.stdout)) == (0, b"ok\n")
        assert await run_in(sandbox, tier, "print(open('kept').read())") == (0, b"by the first\n")
        assert await run_in(sandbox, tier, "cat kept; id -u", "command") == (0, b"by the first1000\n")

    with_sandbox(check)


def test_a_process_that_joins_is_confined_as_the_first_is() -> None:
    facts = (
        "import os\n"
        "names = ('user', 'pid', 'mnt', 'net', 'ipc', 'uts')\n"
        "status = dict(l.split(':\\t', 1) for l in open('/proc/self/status').read().splitlines() if ':\\t' in l)\n"
        "print([os.readlink(f'/proc/self/ns/{n}') for n in names])\n"
        "print([status[n] for n in ('CapEff', 'CapBnd', 'NoNewPrivs', 'Seccomp', 'Uid', 'Groups')])\n"
        "print(sorted(os.listdir('/proc/self/fd')), os.getsid(0) == os.getpid(), open('/proc/self/cgroup').read())\n"
    )

    async def check(tier: ProcessTier, sandbox: ProcessSandbox) -> None:
        tape = Tape()
        await sandbox.exec(make_step(facts), LIMITS, tape)
        assert await run_in(sandbox, tier, facts) == (0, bytes(tape.stdout))

    with_sandbox(check)


def test_a_limit_kill_ends_every_process_and_keeps_the_files() -> None:
    async def check(tier: ProcessTier, sandbox: ProcessSandbox) -> None:
        leave = "import os, time\nif not os.fork():\n os.setsid()\n time.sleep(3600)\nopen('kept', 'w').write('x')"
        await sandbox.exec(make_step(leave), LIMITS, Tape())
        template = await tier.template("python")
        guest = await template.join(sandbox)
        running = asyncio.create_task(
            guest.exec(make_step("import time\nprint('begun', flush=True)\ntime.sleep(3600)"), LIMITS, tape := Tape())
        )
        await tape.until(b"begun")
        guest.kill(Outcome.TIMED_OUT)
        assert (await running).outcome is Outcome.TIMED_OUT
        await sandbox.cleared()
        await guest.close()
        count = "import os\nprint(len([p for p in os.listdir('/proc') if p.isdigit()]), open('kept').read())"
        assert await run_in(sandbox, tier, count) == (0, b"1 x\n")

    with_sandbox(check)


#: How many there are: /proc hides what was forked and has exec'd nothing.
COUNT = """
import os
found = 0
for pid in range(2, 1 << 16):
    try:
        os.getsid(pid)
        found += 1
    except ProcessLookupError:
        pass
print(found)
"""
FAMILY = """
import os, signal
def child(leave):
    if os.fork():
        return
    if leave:
        os.setsid()
    signal.pause()
child(False)
def orphan(leave):
    between = os.fork()
    if not between:
        if leave:
            os.setsid()
        child(False)
        os._exit(0)
    os.waitpid(between, 0)
orphan(False)  # of the same session
child(True)  # of a session of its own, whose parent is there
orphan(True)  # of neither: nothing tells whose it is
os.write(1, b"begun")
signal.pause()
"""


def test_a_program_is_killed_with_all_that_belongs_to_it_and_nothing_else() -> None:
    async def check(tier: ProcessTier, sandbox: ProcessSandbox) -> None:
        template = await tier.template("python")
        others, tapes = [await template.join(sandbox) for _ in range(2)], [Tape(), Tape()]
        waiting = "print('begun', flush=True)\nimport time\ntime.sleep(3600)"
        running = [
            asyncio.create_task(guest.exec(make_step(waiting), LIMITS, tape))
            for guest, tape in zip(others, tapes, strict=True)
        ]
        for tape in tapes:
            await tape.until(b"begun")
        guest, tape = await template.join(sandbox), Tape()
        killed = asyncio.create_task(guest.exec(make_step(FAMILY), LIMITS, tape))
        await tape.until(b"begun")
        guest.kill(Outcome.SIGNALLED)
        assert (await killed).outcome is Outcome.SIGNALLED
        await asyncio.gather(sandbox.cleared(), guest.close())
        assert not any(each.done() for each in running)
        # Two others, one that left, who counts, and the sandbox's first process.
        assert await run_in(sandbox, tier, COUNT) == (0, b"5\n")
        others[0].kill(Outcome.TIMED_OUT)
        await asyncio.gather(*running)

    with_sandbox(check)


def test_a_fork_bomb_is_killed_alone() -> None:
    async def check(tier: ProcessTier, sandbox: ProcessSandbox) -> None:
        template = await tier.template("python")
        other, bomb, tape = await template.join(sandbox), await template.join(sandbox), Tape()
        waiting = "print('begun', flush=True)\nimport time\ntime.sleep(3600)"
        running = asyncio.create_task(other.exec(make_step(waiting), LIMITS, tape))
        await tape.until(b"begun")
        code = "import os\nos.write(1, b'begun')\nwhile True:\n try: os.fork()\n except OSError: pass"
        exploding = asyncio.create_task(bomb.exec(make_step(code), LIMITS, tape := Tape()))
        await tape.until(b"begun")
        bomb.kill(Outcome.SIGNALLED)
        await exploding
        await asyncio.gather(sandbox.cleared(), bomb.close())
        assert not running.done()
        assert await run_in(sandbox, tier, COUNT) == (0, b"3\n")
        other.kill(Outcome.SIGNALLED)
        assert (await running).outcome is Outcome.SIGNALLED

    with_sandbox(check)


def test_a_process_that_is_killed_and_closed_at_once_keeps_nobody_waiting() -> None:
    async def check(tier: ProcessTier, sandbox: ProcessSandbox) -> None:
        template = await tier.template("python")
        for _ in range(5):
            guest, tape = await template.join(sandbox), Tape()
            running = asyncio.create_task(
                guest.exec(make_step("print('begun', flush=True)\nimport time\ntime.sleep(3600)"), LIMITS, tape)
            )
            await tape.until(b"begun")
            guest.kill(Outcome.TIMED_OUT)
            await asyncio.gather(running, guest.close(), sandbox.cleared())

    with_sandbox(check)


def test_a_kill_of_everything_that_breaks_off_leaves_no_complaint(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the sandbox is closed meanwhile: what the kill still waited for must not be complained of in the log."""

    async def broken_off(_: AgentClient) -> None:
        raise GuestLost("the sandbox was closed")

    async def kill(tier: ProcessTier) -> None:
        sandbox, tape = await (await tier.template("python")).fork(), Tape()
        await sandbox.keep(LIMITS)
        step = make_step("print('begun', flush=True)\nwhile True: pass")
        running = asyncio.create_task(sandbox.exec(step, LIMITS, tape))
        await tape.until(b"begun")
        sandbox.kill(Outcome.TIMED_OUT)
        with pytest.raises(GuestLost):
            await sandbox._clearing  # type: ignore[misc]
        assert (await running).outcome is Outcome.TIMED_OUT
        await sandbox.close()

    async def check(tier: ProcessTier, _: ProcessSandbox) -> None:
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        with monkeypatch.context() as patch:
            patch.setattr(AgentClient, "kill_all", broken_off)
            await kill(tier)
        gc.collect()  # a future that nobody asked says so when it is destroyed
        assert problems == []

    with_sandbox(check)


def test_a_signal_reaches_the_program_and_its_group() -> None:
    async def check(tier: ProcessTier, sandbox: ProcessSandbox) -> None:
        code = (
            "import os, signal, subprocess\nsignal.signal(signal.SIGINT, lambda *_: os.write(1, b'heard\\n'))\n"
            "child = subprocess.Popen(['sleep', '3600'])\nprint('begun', flush=True)\nprint(child.wait())"
        )
        running = asyncio.create_task(sandbox.exec(make_step(code), LIMITS, tape := Tape()))
        await tape.until(b"begun")
        sandbox.signal(signal.SIGINT)
        assert (await running).exit_code == 0
        assert bytes(tape.stdout) == b"begun\nheard\n-2\n"

    with_sandbox(check)


def test_a_sandbox_that_is_closed_takes_those_that_joined_along() -> None:
    async def check(tier: ProcessTier, sandbox: ProcessSandbox) -> None:
        template = await tier.template("python")
        guests = [await template.join(sandbox) for _ in range(3)]
        running = asyncio.create_task(
            guests[0].exec(
                make_step("print('begun', flush=True)\nimport time\ntime.sleep(3600)"), LIMITS, tape := Tape()
            )
        )
        await tape.until(b"begun")
        await sandbox.close()
        with pytest.raises(GuestLost):
            await running
        assert tier.live == 0

    with_sandbox(check)


def test_nothing_joins_a_sandbox_that_is_gone() -> None:
    async def check(tier: ProcessTier, sandbox: ProcessSandbox) -> None:
        template = await tier.template("python")
        await sandbox.close()
        with pytest.raises(ForkFailed):
            await template.join(sandbox)

    with_sandbox(check)


def test_stdin_can_be_kept_open_and_fed() -> None:
    async def check(tier: ProcessTier, sandbox: ProcessSandbox) -> None:
        code = "import sys\nfor line in sys.stdin: print(line.upper(), end='', flush=True)\nprint('end')"
        step = make_step(code, stdin=b"one\n", keep_stdin=True)
        running = asyncio.create_task(sandbox.exec(step, LIMITS, tape := Tape()))
        await tape.until(b"ONE\n")
        await sandbox.feed(b"two\n")
        await tape.until(b"TWO\n")
        await sandbox.feed(b"")
        assert (await running).exit_code == 0
        assert bytes(tape.stdout) == b"ONE\nTWO\nend\n"
        await sandbox.feed(b"nobody reads this")

    with_sandbox(check)


def test_a_terminal_is_the_controlling_one_and_knows_its_size() -> None:
    async def check(tier: ProcessTier, sandbox: ProcessSandbox) -> None:
        template = await tier.template("command")
        guest = await template.join(sandbox, terminal=(100, 30))
        assert isinstance(guest, JoinedGuest)
        step = make_step(
            "stty size; trap 'stty size; exit 3' WINCH; echo ready; while :; do read -t 0.1; done", "command"
        )
        running = asyncio.create_task(guest.exec(step, LIMITS, tape := Tape()))
        await tape.until(b"ready")
        assert b"30 100" in tape.stdout
        guest.resize(120, 40)
        assert (await running).exit_code == 3
        assert b"40 120" in tape.stdout
        await guest.close()
        # Job control: Ctrl-C reaches the foreground job and not the shell.
        guest = await template.join(sandbox, terminal=(80, 24))
        step = make_step("", "command")
        step = type(step)(("/bin/bash", "--norc", "-i"), None, None)
        running = asyncio.create_task(guest.exec(step, LIMITS, tape := Tape()))
        await guest.feed(b"bash -c 'echo on$((40+2)); exec sleep 3600'\n")
        await tape.until(b"on42")
        await guest.feed(b"\x03")
        await guest.feed(b"echo still $((40+2)); exit 5\n")
        assert (await running).exit_code == 5
        assert b"still 42" in tape.stdout
        await guest.close()

    with_sandbox(check)


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def test_files_are_moved_whole_and_never_elsewhere() -> None:
    async def check(tier: ProcessTier, sandbox: ProcessSandbox) -> None:
        files = sandbox.files
        content = bytes(range(256)) * 5000
        assert await files.write("deep/er/file.bin", pieces(content[:7], content[7:])) == len(content)
        size, chunks = await files.read("/sandbox/deep/er/file.bin", 1 << 30)
        assert size == len(content)
        assert b"".join([chunk async for chunk in chunks]) == content
        with pytest.raises(FileTooLarge, match="larger"):
            await files.read("deep/er/file.bin", len(content) - 1)
        await sandbox.put([InputFile("plain", b"p")])
        assert [(e.name, e.kind, e.size_bytes) for e in await files.list("/sandbox")] == [
            ("deep", "directory", 0),
            ("plain", "file", 1),
        ]
        make = (
            "import os\nos.symlink('/etc/passwd', 'link')\nos.mkfifo('fifo')\nos.symlink('/etc', 'etc')\n"
            "os.mkdir('d')\nopen('d/x', 'w').write('y')"
        )
        await sandbox.exec(make_step(make), LIMITS, Tape())
        for path in ("link", "fifo", "etc/passwd", "../etc/passwd", "/etc/passwd", "missing", "d", "", "a\0b"):
            with pytest.raises(FileNotInSandbox):
                await files.read(path, 1 << 30)
        for path in ("link", "fifo", "etc/new", "../new", "/etc/new", "d"):
            with pytest.raises(FileNotInSandbox):
                await files.write(path, pieces(b"x"))
        await files.delete("d")
        await files.delete("link")
        assert {e.name for e in await files.list("")} == {"deep", "plain", "fifo", "etc", "main.py"}

    with_sandbox(check)


def test_a_write_that_breaks_off_leaves_no_file_and_the_files_in_reach() -> None:
    async def check(tier: ProcessTier, sandbox: ProcessSandbox) -> None:
        async def breaks() -> AsyncIterator[bytes]:
            yield b"x" * 1000
            raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            await sandbox.files.write("part", breaks())
        with pytest.raises(FileNotInSandbox):
            await sandbox.files.read("part", 1 << 30)
        reading = asyncio.create_task(sandbox.files.write("slow", pieces(*[b"y" * 100_000] * 50)))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await sandbox.files.write("next", pieces(b"z")) == 1

    with_sandbox(check)


def test_a_disk_that_is_full_is_told() -> None:
    async def check(tier: ProcessTier, sandbox: ProcessSandbox) -> None:
        with pytest.raises(DiskFull, match=r"limits\.disk_bytes"):
            await sandbox.files.write("big", pieces(*[b"x" * (1 << 20)] * 2))

    with_sandbox(check, limits=Limits(disk_bytes=1 << 20))
