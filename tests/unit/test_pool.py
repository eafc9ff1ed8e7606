"""The warm pool: parking, leasing, refilling, failing and closing."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandfork.engine.pool import Pool, PoolSettings, PoolStatistics
from sandfork.errors import Draining, ForkFailed, SandforkError, TemplateFailed, TemplateGone
from sandfork.tiers.base import Sandbox
from sandfork.tiers.fake import FakeSandbox, FakeTemplate, FakeTier
from tests.support.clock import in_virtual_time, pass_time, run_virtual, settle, virtual_loop

FORK_S = 0.002
SETTINGS = PoolSettings()


class Bench:
    """A pool over a fake tier whose forks take 2 ms."""

    def __init__(
        self,
        target: int = 4,
        settings: PoolSettings = SETTINGS,
        fork_s: float = FORK_S,
        on_demand: tuple[str, ...] = (),
    ) -> None:
        self.tier = FakeTier(fork_s=fork_s)
        self.disposed: list[Sandbox] = []
        self.pool = Pool(self.tier, {"python": target, "spare": 0}, settings, self.disposed.append, on_demand)

    async def start(self) -> Bench:
        await self.pool.start()
        await pass_time(1)
        return self

    @property
    def counts(self) -> PoolStatistics:
        return self.pool.statistics()[0]

    def take(self) -> FakeSandbox:
        sandbox = self.pool.take("python")
        assert isinstance(sandbox, FakeSandbox)
        return sandbox

    async def template(self) -> FakeTemplate:
        return await self.tier.template("python")


@in_virtual_time
async def test_starting_waits_for_the_first_sandbox_and_parks_the_rest_after() -> None:
    bench = Bench(target=4)
    await bench.pool.start()
    assert bench.counts.parked == 1
    await pass_time(1)
    assert bench.counts.parked == 4
    assert bench.tier.forked == 4
    await bench.pool.close()
    assert bench.disposed == [sandbox for sandbox in bench.disposed if sandbox in bench.tier.alive]
    assert len(bench.disposed) == 4


@in_virtual_time
async def test_a_template_without_a_target_is_made_when_it_is_first_used() -> None:
    bench = await Bench().start()
    assert [health.ready for health in bench.pool.health()] == [True, False]
    assert bench.pool.take("spare") is None
    assert isinstance(await bench.pool.fork("spare"), FakeSandbox)
    assert [health.ready for health in bench.pool.health()] == [True, True]
    await bench.pool.close()


def on_demand() -> Bench:
    return Bench(target=4, on_demand=("python",))


@in_virtual_time
async def test_on_demand_nothing_is_made_before_the_first_use_and_the_pool_is_filled_from_then_on() -> None:
    bench = await on_demand().start()
    assert (bench.tier.forked, bench.pool.health()[0].ready) == (0, False)
    assert bench.pool.take("python") is None
    await bench.pool.fork("python")
    await pass_time(1)
    assert (bench.counts.parked, bench.counts.target) == (4, 4)
    await bench.pool.close()


@in_virtual_time
async def test_on_demand_a_template_in_use_stays_and_one_that_nothing_uses_holds_nothing() -> None:
    bench = await on_demand().start()
    await bench.pool.fork("python")
    for _ in range(5):
        await pass_time(SETTINGS.idle_s - 1)
        bench.take()
    assert (bench.tier.rested, bench.disposed) == (0, [])
    await pass_time(2 * SETTINGS.idle_s)
    assert (bench.tier.rested, bench.counts.parked, len(bench.disposed)) == (1, 0, 4)
    await pass_time(10 * SETTINGS.idle_s)
    assert (bench.tier.rested, bench.counts.forking) == (1, 0)
    await bench.pool.close()


@in_virtual_time
async def test_on_demand_a_template_that_rests_is_filled_again_by_the_next_use() -> None:
    bench = await on_demand().start()
    for _ in range(2):
        await bench.pool.fork("python")
        await pass_time(1)
        assert bench.counts.parked == 4
        await pass_time(3 * SETTINGS.idle_s)
        assert bench.counts.parked == 0
    await bench.pool.close()


@in_virtual_time
async def test_on_demand_joining_is_a_use() -> None:
    bench = await on_demand().start()
    sandbox = await bench.pool.fork("python")
    for _ in range(5):
        await pass_time(SETTINGS.idle_s - 1)
        await bench.pool.join("python", sandbox)
    assert bench.tier.rested == 0
    await bench.pool.close()


@in_virtual_time
async def test_on_demand_a_closed_pool_wakes_no_more() -> None:
    bench = await on_demand().start()
    await bench.pool.fork("python")
    await bench.pool.close()
    with pytest.raises(Draining):
        await bench.pool.fork("python")
    await pass_time(3 * SETTINGS.idle_s)
    assert bench.tier.rested == 0


@in_virtual_time
async def test_a_lease_takes_the_sandbox_parked_last() -> None:
    bench = await Bench(target=3).start()
    assert bench.take().number == 3
    await bench.pool.close()


@in_virtual_time
async def test_a_replacement_is_forked_a_moment_after_the_lease_and_not_before() -> None:
    bench = await Bench(target=4).start()
    bench.take()
    await settle()
    assert bench.counts.forking == 0
    await pass_time(SETTINGS.refill_delay_s)
    assert bench.counts.forking == 1
    await pass_time(1)
    assert bench.counts.parked == 4
    await bench.pool.close()


@in_virtual_time
async def test_below_half_the_target_the_refill_starts_at_once() -> None:
    bench = await Bench(target=4).start()
    for _ in range(3):
        bench.take()
    assert bench.counts.forking == SETTINGS.max_forking
    await bench.pool.close()


@in_virtual_time
async def test_no_more_forks_are_outstanding_than_allowed() -> None:
    bench = await Bench(target=8).start()
    for _ in range(8):
        bench.take()
    waiting = [asyncio.ensure_future(bench.pool.fork("python")) for _ in range(10)]
    most = 0
    while not all(task.done() for task in waiting):
        most = max(most, bench.counts.forking)
        await pass_time(FORK_S / 4)
    assert most == SETTINGS.max_forking
    await bench.pool.close()


@in_virtual_time
async def test_who_finds_the_shelf_empty_gets_forks_in_order_of_arrival() -> None:
    bench = await Bench(target=1).start()
    bench.take()
    waiting = [asyncio.ensure_future(bench.pool.fork("python")) for _ in range(5)]
    numbers = [sandbox.number for sandbox in await asyncio.gather(*waiting) if isinstance(sandbox, FakeSandbox)]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) == 5
    assert (bench.counts.hits, bench.counts.misses) == (1, 5)
    await bench.pool.close()


@in_virtual_time
async def test_a_waiter_that_is_cancelled_gives_its_sandbox_to_the_pool() -> None:
    bench = await Bench(target=1).start()
    bench.take()
    waiting = asyncio.ensure_future(bench.pool.fork("python"))
    await settle()
    waiting.cancel()
    await pass_time(1)
    assert bench.counts.parked == 1
    assert bench.counts.waiting == 0
    await bench.pool.close()


@in_virtual_time
async def test_a_sandbox_handed_to_a_waiter_cancelled_at_that_moment_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = await Bench(target=1).start()
    bench.take()
    bench.pool.resize("python", 0)
    waiting = asyncio.ensure_future(bench.pool.fork("python"))
    make = FakeTier.new_sandbox

    def make_and_cancel(tier: FakeTier, key: str) -> FakeSandbox:
        asyncio.get_running_loop().call_soon(waiting.cancel)
        return make(tier, key)

    monkeypatch.setattr(FakeTier, "new_sandbox", make_and_cancel)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert [s.number for s in bench.disposed if isinstance(s, FakeSandbox)] == [2]
    await bench.pool.close()


@in_virtual_time
async def test_one_failed_fork_is_tried_again_without_telling_who_waits() -> None:
    bench = await Bench(target=1).start()
    bench.take()
    bench.tier.failing_forks = 1
    assert isinstance(await bench.pool.fork("python"), FakeSandbox)
    assert bench.counts.failures == 1
    await bench.pool.close()


@in_virtual_time
async def test_forks_that_fail_together_count_as_one_failure_for_who_waits() -> None:
    bench = await Bench(target=3).start()
    for _ in range(3):
        bench.take()
    assert bench.counts.forking == 3
    bench.tier.failing_forks = 3
    assert isinstance(await bench.pool.fork("python"), FakeSandbox)
    assert bench.counts.failures == 3
    await bench.pool.close()


@in_virtual_time
async def test_a_success_between_two_failures_makes_each_the_first() -> None:
    bench = await Bench(target=0).start()
    for _ in range(3):
        bench.tier.failing_forks = 1
        assert isinstance(await bench.pool.fork("python"), FakeSandbox)
    await bench.pool.close()


@in_virtual_time
async def test_forks_that_keep_failing_fail_who_waits_with_the_kernels_word() -> None:
    bench = await Bench(target=1).start()
    bench.take()
    bench.tier.failing_forks = 1000
    waiting = [asyncio.ensure_future(bench.pool.fork("python")) for _ in range(3)]
    errors = await asyncio.gather(*waiting, return_exceptions=True)
    for error in errors:
        assert isinstance(error, ForkFailed)
        assert (error.step, error.errno) == ("clone", 11)
        assert error.retry_after_s
    assert len({id(error) for error in errors}) == 3
    await bench.pool.close()


@in_virtual_time
async def test_the_pause_between_failing_tries_doubles_up_to_its_bound() -> None:
    bench = await Bench(target=1).start()
    bench.take()
    bench.tier.failing_forks = 10_000
    await pass_time(600)
    failed = 10_000 - bench.tier.failing_forks
    assert 600 / SETTINGS.backoff_last_s <= failed <= 600 / SETTINGS.backoff_last_s + 10
    bench.tier.failing_forks = 0
    await pass_time(SETTINGS.backoff_last_s + 1)
    assert bench.counts.parked == 1
    await bench.pool.close()


@in_virtual_time
async def test_a_template_that_died_is_made_anew_while_requests_wait() -> None:
    bench = await Bench(target=2).start()
    (await bench.template()).die()
    bench.take()
    bench.take()
    waiting = [asyncio.ensure_future(bench.pool.fork("python")) for _ in range(4)]
    assert len(await asyncio.gather(*waiting)) == 4
    assert bench.pool.health()[0].generation == 2
    await bench.pool.close()


@in_virtual_time
async def test_a_template_that_cannot_be_made_fails_leases_with_its_reason() -> None:
    bench = Bench(target=2)
    bench.tier.broken["python"] = "no such interpreter"
    await bench.pool.start()
    assert "no such interpreter" in bench.pool.unavailable["python"]
    assert bench.pool.take("python") is None
    with pytest.raises(TemplateFailed, match="no such interpreter") as caught:
        await bench.pool.fork("python")
    assert caught.value.retry_after_s
    assert "no such interpreter" in bench.pool.health()[0].reason
    del bench.tier.broken["python"]
    await pass_time(1)
    assert bench.pool.unavailable == {}
    assert bench.counts.parked == 2
    await bench.pool.close()


@in_virtual_time
async def test_a_template_that_can_never_be_made_is_told_once_and_tried_ever_more_rarely(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(target=2)
    bench.tier.broken["python"] = "no licence"
    await bench.pool.start()
    await pass_time(3600)
    tries = bench.counts.failures
    assert 3600 / SETTINGS.unmade_last_s <= tries <= 3600 / SETTINGS.unmade_last_s + 15
    assert "no licence" in bench.pool.health()[0].reason
    bench.tier.broken["python"] = "no disk"
    await pass_time(SETTINGS.unmade_last_s * 2)
    del bench.tier.broken["python"]
    await pass_time(SETTINGS.unmade_last_s + 1)
    assert bench.counts.parked == 2
    told = [record.getMessage() for record in caplog.records if "cannot be made" in record.getMessage()]
    assert len(told) == 2, told
    assert ("no licence" in told[0], "no disk" in told[1]) == (True, True)
    await bench.pool.close()


@in_virtual_time
async def test_a_key_the_pool_does_not_have_is_refused() -> None:
    bench = await Bench().start()
    with pytest.raises(TemplateFailed, match="cobol"):
        bench.pool.take("cobol")
    await bench.pool.close()


@in_virtual_time
async def test_a_fork_that_never_returns_is_given_up() -> None:
    bench = Bench(target=1, settings=replace(SETTINGS, fork_s=0.5), fork_s=3600)
    starting = asyncio.ensure_future(bench.pool.start())
    with pytest.raises(ForkFailed, match=r"no fork within 0\.5 s"):
        await bench.pool.fork("python")
    await starting
    await bench.pool.close()


@in_virtual_time
async def test_nobody_waits_for_a_sandbox_past_the_bound() -> None:
    bench = Bench(target=0, settings=replace(SETTINGS, lease_s=2, fork_s=3600), fork_s=3600)
    began = virtual_loop().time()
    with pytest.raises(ForkFailed, match="no sandbox within 2 s"):
        await bench.pool.fork("python")
    assert virtual_loop().time() - began == pytest.approx(2)
    assert bench.counts.waiting == 0
    await bench.pool.close()


@in_virtual_time
async def test_an_error_nobody_foresaw_in_a_fork_is_a_failed_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = await Bench(target=1).start()
    monkeypatch.setattr(FakeTier, "new_sandbox", lambda tier, key: 1 // 0)
    bench.take()
    with pytest.raises(ForkFailed, match="ZeroDivisionError"):
        await bench.pool.fork("python")
    await bench.pool.close()


@in_virtual_time
async def test_resizing_grows_and_shrinks_what_is_parked() -> None:
    bench = await Bench(target=2).start()
    bench.pool.resize("python", 5)
    await pass_time(1)
    assert bench.counts.parked == 5
    bench.pool.resize("python", 1)
    assert bench.counts.parked == 1
    assert [s.number for s in bench.disposed if isinstance(s, FakeSandbox)] == [1, 2, 3, 4]
    await bench.pool.close()


@in_virtual_time
async def test_sandboxes_parked_too_long_are_renewed_one_by_one() -> None:
    bench = await Bench(target=3).start()
    await pass_time(SETTINGS.retire_after_s + 1)
    for round_ in (1, 2):
        bench.take()
        await pass_time(1)
        assert len(bench.disposed) <= 2 * round_
    assert {s.number for s in bench.disposed if isinstance(s, FakeSandbox)} == {1, 2}
    assert bench.counts.parked == 3
    await bench.pool.close()


@in_virtual_time
async def test_closing_fails_who_waits_and_disposes_of_everything_parked() -> None:
    bench = await Bench(target=2).start()
    taken = [bench.take(), bench.take()]
    waiting = [asyncio.ensure_future(bench.pool.fork("python")) for _ in range(2)]
    await settle()
    await bench.pool.close()
    for task in waiting:
        with pytest.raises(Draining):
            await task
    with pytest.raises(Draining):
        await bench.pool.fork("python")
    assert bench.tier.alive == set(taken) | set(bench.disposed)


@in_virtual_time
async def test_closing_does_not_wait_for_forks_under_way() -> None:
    bench = await Bench(target=1).start()
    bench.tier.fork_s = 5
    bench.take()
    waiting = asyncio.ensure_future(bench.pool.fork("python"))
    await settle()
    began = virtual_loop().time()
    await bench.pool.close()
    assert virtual_loop().time() == began
    with pytest.raises(Draining):
        await waiting


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 6), st.integers(1, 40))
def test_whatever_fails_every_sandbox_is_leased_parked_or_disposed_of_exactly_once(
    seed: int, target: int, clients: int
) -> None:
    async def main() -> None:
        draw = random.Random(seed)
        bench = await Bench(target=target).start()
        leased: list[Sandbox] = []

        async def lease() -> None:
            sandbox = bench.pool.take("python") or await bench.pool.fork("python")
            leased.append(sandbox)

        tasks = []
        for _ in range(clients):
            tasks.append(asyncio.ensure_future(lease()))
            await pass_time(draw.choice((0, 0, FORK_S / 2, FORK_S)))
            if draw.random() < 0.2:
                draw.choice(tasks).cancel()
            if draw.random() < 0.1:
                (await bench.template()).die()
            if draw.random() < 0.1:
                bench.tier.failing_forks += draw.choice((1, 3))
            if draw.random() < 0.1:
                bench.pool.resize("python", draw.randrange(8))
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(a is None or isinstance(a, (SandforkError, asyncio.CancelledError)) for a in answers), answers
        bench.tier.failing_forks = 0
        await pass_time(30)
        assert bench.counts.parked == bench.counts.target
        await bench.pool.close()
        everything = leased + bench.disposed
        assert len(everything) == len(set(everything)) == bench.tier.forked

    run_virtual(main())


@in_virtual_time
async def test_a_template_that_nobody_has_asked_for_is_dormant_and_one_that_cannot_be_made_is_not() -> None:
    bench = await Bench(target=0).start()
    assert {(each.ready, each.dormant) for each in bench.pool.health()} == {(False, True)}
    bench.tier.broken["python"] = "no interpreter"
    with pytest.raises(TemplateFailed):
        await bench.pool.fork("python")
    assert [each.key for each in bench.pool.health() if not each.dormant] == ["python"]
    await bench.pool.close()


@in_virtual_time
async def test_a_renewed_template_gives_nothing_more_of_what_was_made_of_the_old_one() -> None:
    bench = await Bench(target=2).start()
    old = {bench.take(), bench.take()}
    waiting = asyncio.create_task(bench.pool.fork("python"))
    await pass_time(FORK_S / 2)  # forks of the old template are under way
    assert bench.counts.forking > 0
    first = bench.tier.forked + bench.counts.forking + 1
    bench.tier.forget(await bench.template())
    await bench.pool.adopt({"python": 2, "spare": 0}, (), {"python"})
    taken = await waiting
    assert isinstance(taken, FakeSandbox)
    assert taken.number >= first
    await pass_time(1)
    assert {bench.take().number, bench.take().number}.isdisjoint(range(first))
    assert old.isdisjoint(bench.disposed), "what runs goes on"
    assert (bench.counts.failures, bench.pool.unavailable) == (0, {})
    await bench.pool.close()


@in_virtual_time
async def test_what_is_parked_is_renewed_with_its_template() -> None:
    bench = await Bench(target=3).start()
    await bench.pool.adopt({"python": 3, "spare": 0}, (), ())
    assert (bench.disposed, bench.counts.parked) == ([], 3), "the control: nothing changed"
    await bench.pool.adopt({"python": 3, "spare": 0}, (), {"python"})
    assert (len(bench.disposed), bench.counts.parked) == (3, 0)
    await pass_time(1)
    assert (bench.counts.parked, bench.tier.forked) == (3, 6)
    await bench.pool.close()


@in_virtual_time
async def test_templates_come_and_go() -> None:
    bench = await Bench(target=2).start()
    bench.take()
    bench.take()
    waiting = asyncio.create_task(bench.pool.fork("python"))
    await asyncio.sleep(0)
    await bench.pool.adopt({"other": 1, "spare": 0, "rare": 2}, ("rare",), ())
    with pytest.raises(TemplateGone, match="no more"):
        await waiting
    with pytest.raises(TemplateGone, match="no more"):
        bench.pool.take("python")
    with pytest.raises(TemplateFailed, match="does not have it"):
        bench.pool.take("never")
    await pass_time(1)
    assert bench.pool.take("other") is not None
    assert bench.pool.take("rare") is None, "it is made when it is first used"
    assert isinstance(await bench.pool.fork("rare"), FakeSandbox)
    await bench.pool.close()
