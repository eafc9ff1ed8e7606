"""The engine under everything at once: crowds, deaths, disconnects and misbehaving programs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from sandfork.engine.admission import AdmissionSettings
from sandfork.engine.pool import PoolSettings
from sandfork.errors import SandforkError
from sandfork.model import Caller, ExecRequest, ExecResult, LimitsOverride, Outcome, Snippet
from sandfork.tiers.fake import FakeSandbox
from tests.support.clock import pass_time, run_virtual
from tests.support.engine import SETTINGS, Follower, Rig, rig

CROWDED = replace(
    SETTINGS,
    admission=AdmissionSettings(max_running=4, max_queued=8, max_wait_s=2, max_dying=4),
    pool=PoolSettings(lease_s=3, fork_s=1),
)

TRUTHS: dict[str, Callable[[ExecResult], bool]] = {
    "out hello": lambda r: (r.stdout, r.outcome, r.exit_code) == (b"hello\n", Outcome.EXITED, 0),
    "out hello\nexit 3": lambda r: (r.stdout, r.outcome, r.exit_code) == (b"hello\n", Outcome.EXITED, 3),
    "signal 11": lambda r: (r.outcome, r.signal) == (Outcome.SIGNALLED, 11),
    "out begun\nsleep 60": lambda r: (r.stdout, r.outcome) == (b"begun\n", Outcome.TIMED_OUT),
    "sleep 0.1\nout late": lambda r: (r.stdout, r.outcome) == (b"late\n", Outcome.EXITED),
    "flood 3000": lambda r: (r.stdout, r.outcome) == (b"x" * 2000, Outcome.OUTPUT_LIMIT),
    "limit out_of_memory": lambda r: r.outcome == Outcome.OUT_OF_MEMORY,
    "nonsense": lambda r: r.exit_code == 127,
    "lost": lambda r: False,
}
"""What each program's result must say, when it has one."""


class Storm:
    """Clients and mishaps, drawn from one seed."""

    def __init__(self, it: Rig, seed: int) -> None:
        self.it = it
        self.draw = random.Random(seed)
        self.answers = 0

    async def client(self) -> None:
        """Run one program and see that what comes back is true."""
        text = self.draw.choice(list(TRUTHS))
        limits = LimitsOverride(wall_s=0.5, output_bytes=2000)
        follower = Follower() if self.draw.random() < 0.2 else None
        caller = Caller(self.draw.choice("abc"))
        try:
            result = await self.it.engine.execute(ExecRequest(Snippet("py", text), limits=limits), caller, follower)
        except SandforkError:
            self.answers += 1
            return
        self.answers += 1
        if follower is not None:
            result = replace(result, stdout=b"".join(data for stream, data in follower.chunks if stream == 1))
        assert TRUTHS[text](result), (text, result)

    async def mishap(self) -> None:
        """Have something go wrong outside of any program."""
        tier = self.it.tier
        match self.draw.randrange(5):
            case 0:
                (await tier.template("python")).die()
            case 1:
                tier.failing_forks += self.draw.randrange(4)
            case 2:
                for sandbox in sorted(tier.alive, key=_number)[:2]:
                    sandbox.die()
            case 3:
                self.it.engine.resize("python", self.draw.randrange(5))
            case 4:
                tier.close_s = self.draw.choice((0.0, 0.3))

    async def rage(self, clients: int) -> None:
        """Send them all, cut some off, and see that each got its one answer."""
        tasks = []
        for _ in range(clients):
            tasks.append(asyncio.get_running_loop().create_task(self.client()))
            await pass_time(self.draw.choice((0, 0, 0.001, 0.01, 0.1)))
            if self.draw.random() < 0.2:
                self.draw.choice(tasks).cancel()
            if self.draw.random() < 0.3:
                await self.mishap()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        wrong = [a for a in answers if a is not None and not isinstance(a, asyncio.CancelledError)]
        assert not wrong, wrong
        gone = sum(isinstance(a, asyncio.CancelledError) for a in answers)
        assert self.answers + gone == clients


def _number(sandbox: FakeSandbox) -> int:
    return sandbox.number


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 80), st.integers(0, 4))
def test_every_request_gets_one_true_answer_and_nothing_is_left(seed: int, clients: int, pool: int) -> None:
    async def main() -> None:
        async with rig(CROWDED, pool=pool) as it:
            storm = Storm(it, seed)
            await storm.rage(clients)
            it.tier.failing_forks = 0
            await pass_time(60)
            assert it.counts == (0, 0, 0)
            planned = [told for told in it.observed if told.plan is not None]
            assert len(planned) <= clients
            finished = sum(isinstance(told.outcome, ExecResult | SandforkError) for told in planned)
            assert finished == storm.answers
            parked = it.engine.statistics().pool[0]
            assert (parked.parked, parked.forking, parked.waiting) == (parked.target, 0, 0)
            assert len(it.tier.alive) == parked.parked

    run_virtual(main())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.floats(0, 1))
def test_closing_in_the_middle_of_it_leaves_nothing_and_answers_everyone(
    seed: int, clients: int, after_s: float
) -> None:
    async def main() -> None:
        async with rig(CROWDED, pool=2) as it:
            storm = Storm(it, seed)
            raging = asyncio.get_running_loop().create_task(storm.rage(clients))
            await pass_time(after_s)
            await it.engine.close()
            await raging
            assert it.counts[:2] == (0, 0)

    run_virtual(main())
