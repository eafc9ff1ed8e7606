"""Interpreters that go on after a fork: whom they can be made of, what their children are, and how they end.

Perl stands for all of them: every Debian has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import uvloop

from sandfork.errors import TemplateFailed
from sandfork.languages.catalogue import Catalogue, Language
from sandfork.model import Step
from sandfork.tiers.process import ProcessSettings, ProcessTier
from sandfork.tiers.process.sandbox import ProcessSandbox
from tests.support.process import LIMITS, PACKAGE, STUCK_S, Tape, native_dir, start_native

PERL = Catalogue.load().find("perl")
FACTS = """
open my $f, '<', '/proc/self/status'; my %s = map { /^(\\w+):\\s*(.*)/ } <$f>;
print join ' ', @s{qw(CapEff CapBnd NoNewPrivs Seccomp Uid Groups)};
print map { " $_ " . readlink "/proc/self/ns/$_" } qw(user pid mnt net);
"""


@pytest.fixture(autouse=True)
def _root(as_root: None) -> None:
    """Every test here starts processes as root."""


def with_tier(check: Callable[[ProcessTier], Awaitable[None]], *languages: Language) -> None:
    """Run `check` with a tier of its own; afterwards no sandbox may be left."""
    launched = start_native()

    async def run() -> None:
        tier = ProcessTier(
            ProcessSettings(native=native_dir(), guest=PACKAGE / "guest", cores=2), launched, Catalogue(languages)
        )
        try:
            async with asyncio.timeout(STUCK_S):
                await tier.start()
                await check(tier)
                assert tier.live == 0
        finally:
            await tier.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def perl() -> Language:
    assert PERL is not None
    return PERL


async def said(guest: ProcessSandbox, code: str, *, warm: bool = True) -> bytes:
    """Run a program in a sandbox and close that; return all it wrote."""
    tape = Tape()
    step = Step(("/usr/bin/perl", "/sandbox/main.pl"), "main.pl", code.encode(), warm=warm)
    await guest.exec(step, LIMITS, tape)
    await guest.close()
    return bytes(tape.stdout + tape.stderr)


def test_its_children_are_confined_as_executed_programs_are() -> None:
    async def check(tier: ProcessTier) -> None:
        command = await (await tier.template("command")).fork()
        plain = (await said(command, FACTS, warm=False)).split()
        template = await tier.template("perl")
        forked = await template.fork(), await template.fork()
        first, second = [(await said(each, FACTS)).split() for each in forked]
        assert len(plain) == len(first) == len(second) > 8
        assert first[:-8] == second[:-8] == plain[:-8]
        assert not {*first[-7::2]} & {*second[-7::2]}, "each has namespaces of its own"

    with_tier(check, perl())


def test_nothing_of_how_it_was_started_is_in_its_environment() -> None:
    code = "open my $f, '<', '/proc/self/environ'; print <$f>; print map { \"$_=$ENV{$_}\\n\" } keys %ENV; print `env`"

    async def check(tier: ProcessTier) -> None:
        told = await said(await (await tier.template("perl")).fork(), code)
        assert b"PATH=" in told
        for word in (b"LD_", b"SANDFORK", b"preload"):
            assert word not in told

    with_tier(check, perl())


def test_one_that_rests_is_started_again_and_what_it_forked_lives_on() -> None:
    async def check(tier: ProcessTier) -> None:
        template = await tier.template("perl")
        before = await template.fork()
        template.rest()
        health = template.health()
        assert (health.ready, health.generation) == (False, 1)
        assert "resting" in health.reason
        assert await said(before, "print 'lives'") == b"lives"
        assert await said(await template.fork(), "print 'again'") == b"again"
        assert (template.health().ready, template.health().generation) == (True, 2)

    with_tier(check, perl())


def test_a_process_of_it_joins_a_sandbox_that_is_kept() -> None:
    async def check(tier: ProcessTier) -> None:
        sandbox = await (await tier.template("command")).fork()
        await sandbox.keep(LIMITS)
        template = await tier.template("perl")
        for code, wanted in (
            ("open my $f, '>', 'kept'; print $f 1 + 1", b""),
            ("open my $f, 'kept'; print <$f>", b"2"),
        ):
            guest, tape = await template.join(sandbox), Tape()
            step = Step(("/usr/bin/perl", "/sandbox/main.pl"), "main.pl", code.encode(), warm=True)
            end = await guest.exec(step, LIMITS, tape)
            await guest.close()
            assert (end.exit_code, bytes(tape.stdout)) == (0, wanted)
        await sandbox.close()

    with_tier(check, perl())


@pytest.mark.parametrize("key", ["perl", "command"])
@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ("mkdir 'main.pl'", b"Is a directory"),
        ("symlink 'other.pl', 'main.pl'", b"It is a symbolic link"),
        ("open my $f, '>', 'main.pl'; print $f 'print 7'; chmod 0444, 'main.pl'", b"Permission denied"),
    ],
)
def test_a_program_whose_file_an_earlier_one_replaced_is_told_so(made: str, reason: bytes, key: str) -> None:
    async def check(tier: ProcessTier) -> None:
        sandbox = await (await tier.template("command")).fork()
        await sandbox.keep(LIMITS)
        for code, status, said in (
            (f"unlink 'main.pl'; {made}", 0, b""),
            ("print 1", 126, b"main.pl: the program cannot be written there: " + reason + b"\n"),
        ):
            guest, tape = await (await tier.template(key)).join(sandbox), Tape()
            step = Step(("/usr/bin/perl", "/sandbox/main.pl"), "main.pl", code.encode(), warm=key == "perl")
            end = await guest.exec(step, LIMITS, tape)
            await guest.close()
            assert (end.exit_code, bytes(tape.stdout), bytes(tape.stderr)) == (status, b"", said)
        await sandbox.close()

    with_tier(check, perl())


def test_its_end_is_answered_before_its_process_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(tier: ProcessTier) -> None:
        guest, tape = await (await tier.template("perl")).fork(), Tape()
        code = b"END { print 'at the end' } exit 3"
        step = Step(("/usr/bin/perl", "/sandbox/main.pl"), "main.pl", code, warm=True)
        with monkeypatch.context() as patch:
            patch.setattr(ProcessSandbox, "exit_event", lambda guest, event: guest.died())  # says no more than that
            end = await guest.exec(step, LIMITS, tape)
        await guest.close()
        assert (end.exit_code, end.signal, bytes(tape.stdout)) == (3, None, b"at the end")

    with_tier(check, perl())


@pytest.mark.parametrize(
    ("code", "status", "printed"),
    [
        ("if (!fork) { exit 5 } wait; print $? >> 8; exit 3", 3, b"5"),
        ("require POSIX; $| = 1; print 'kept'; POSIX::_exit(6)", 6, b"kept"),
        (
            "require POSIX; POSIX::close(63); open my $f, '+>', 'x'; POSIX::dup2(fileno $f, 63); print 'on'; exit 4",
            4,
            b"on",
        ),
        ("exec 'sh', '-c', 'echo on; exit 7'", 7, b"on\n"),
    ],
    ids=["of a child", "without handlers", "with another file in the place of ctl", "of what it executes"],
)
def test_an_end_that_is_not_told_is_seen(code: str, status: int, printed: bytes) -> None:
    async def check(tier: ProcessTier) -> None:
        guest, tape = await (await tier.template("perl")).fork(), Tape()
        step = Step(("/usr/bin/perl", "/sandbox/main.pl"), "main.pl", code.encode(), warm=True)
        end = await guest.exec(step, LIMITS, tape)
        await guest.close()
        assert (end.exit_code, bytes(tape.stdout)) == (status, printed)

    with_tier(check, perl())


def pretender(words: str) -> Language:
    """Return a language whose interpreter does something before it opens what has it fork."""
    (spec,) = perl().templates
    start = ("/usr/bin/python3", "-c", words, "{fork}", "{file}")
    return replace(
        perl(),
        templates=(replace(spec, fork_at="mark", interpreter="/usr/bin/python3", start=start, file_name="main.pl"),),
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            "import sys, threading as t; t.Thread(target=t.Event().wait, daemon=True).start(); open(sys.argv[1])",
            "the interpreter has started a thread: forking with locks held by it would hang",
        ),
        ("import sys; print('no licence', file=sys.stderr)", "no licence"),
    ],
)
def test_one_that_cannot_fork_is_no_template_and_says_why(words: str, reason: str) -> None:
    async def check(tier: ProcessTier) -> None:
        with pytest.raises(TemplateFailed, match=reason):
            await tier.template("perl")

    with_tier(check, pretender(words))
