"""Admission: slots, the queue before them, and fairness between keys."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandfork.engine.admission import Admission, AdmissionSettings
from sandfork.errors import CapacityError, DeadlinePassed, Draining, Overloaded
from tests.support.clock import in_virtual_time, pass_time, run_virtual, settle, virtual_loop


async def enter(admission: Admission, key: str = "k") -> None:
    if not admission.try_enter():
        await admission.wait(key)


def start(admission: Admission, key: str, order: list[str] | None = None, name: str = "") -> asyncio.Task[None]:
    """Start a task that enters, notes its name and stays in."""

    async def come() -> None:
        await enter(admission, key)
        if order is not None:
            order.append(name or key)

    return asyncio.get_running_loop().create_task(come())


@in_virtual_time
async def test_as_many_enter_at_once_as_may_run() -> None:
    admission = Admission(AdmissionSettings(max_running=2))
    assert admission.try_enter()
    assert admission.try_enter()
    assert not admission.try_enter()
    admission.leave()
    assert admission.try_enter()


@in_virtual_time
async def test_a_newcomer_does_not_overtake_those_who_wait() -> None:
    admission = Admission(AdmissionSettings(max_running=1, max_dying=1))
    admission.begin_dying()
    waiting = start(admission, "a")
    await settle()
    assert admission.statistics().queued == 1
    assert not admission.try_enter()
    admission.end_dying()
    await waiting
    assert admission.statistics().running == 1


@in_virtual_time
async def test_lines_are_served_in_turn_and_each_line_in_order() -> None:
    admission = Admission(AdmissionSettings(max_running=1))
    assert admission.try_enter()
    order: list[str] = []
    names = ["a1", "a2", "a3", "a4", "b1", "b2", "c1"]
    tasks = []
    for name in names:
        tasks.append(start(admission, name[0], order, name))
        await settle()
    for _ in names:
        admission.leave()
        await settle()
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]
    await asyncio.gather(*tasks)


@in_virtual_time
async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    admission = Admission(AdmissionSettings(max_running=1, max_queued=1))
    assert admission.try_enter()
    waiting = start(admission, "a")
    await settle()
    with pytest.raises(Overloaded) as caught:
        await admission.wait("a")
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s > 0
    assert admission.statistics().refused == 1
    admission.leave()
    await waiting


@in_virtual_time
async def test_in_a_full_queue_the_longest_line_makes_place_for_another_key() -> None:
    admission = Admission(AdmissionSettings(max_running=1, max_queued=3))
    assert admission.try_enter()
    order: list[str] = []
    crowd = []
    for name in ("a1", "a2", "a3"):
        crowd.append(start(admission, "a", order, name))
        await settle()
    single = start(admission, "b", order, "b1")
    await settle()
    with pytest.raises(Overloaded):
        await crowd[2]
    for _ in range(3):
        admission.leave()
        await settle()
    assert order == ["a1", "b1", "a2"]
    await single


@in_virtual_time
async def test_lines_of_equal_length_do_not_push_each_other_out() -> None:
    admission = Admission(AdmissionSettings(max_running=1, max_queued=2))
    assert admission.try_enter()
    tasks = [start(admission, key) for key in ("a", "b")]
    await settle()
    with pytest.raises(Overloaded):
        await admission.wait("b")
    with pytest.raises(Overloaded):
        await admission.wait("c")
    for _ in range(2):
        admission.leave()
        await settle()
    await asyncio.gather(*tasks)


@in_virtual_time
async def test_nobody_waits_past_the_deadline() -> None:
    admission = Admission(AdmissionSettings(max_running=1, max_wait_s=3.0))
    assert admission.try_enter()
    began = virtual_loop().time()
    with pytest.raises(DeadlinePassed):
        await admission.wait("a")
    assert virtual_loop().time() - began == pytest.approx(3.0)
    assert admission.statistics().queued == 0
    assert admission.statistics().expired == 1


@in_virtual_time
async def test_draining_refuses_newcomers_and_lets_those_inside_finish() -> None:
    admission = Admission(AdmissionSettings(max_running=1))
    assert admission.try_enter()
    waiting = start(admission, "a")
    await settle()
    admission.drain()
    with pytest.raises(Draining):
        admission.try_enter()
    idle = asyncio.get_running_loop().create_task(admission.wait_idle())
    admission.leave()
    await waiting
    await settle()
    assert not idle.done()
    admission.leave()
    await idle


@in_virtual_time
async def test_refusing_those_who_wait_fails_them_and_makes_admission_idle() -> None:
    admission = Admission(AdmissionSettings(max_running=1))
    assert admission.try_enter()
    tasks = [start(admission, key) for key in ("a", "a", "b")]
    await settle()
    idle = asyncio.get_running_loop().create_task(admission.wait_idle())
    admission.drain()
    admission.refuse_waiting()
    for task in tasks:
        with pytest.raises(Draining):
            await task
    admission.leave()
    await idle


@in_virtual_time
async def test_dying_sandboxes_above_the_bound_hold_newcomers_back() -> None:
    admission = Admission(AdmissionSettings(max_running=8, max_dying=2))
    admission.begin_dying()
    assert admission.try_enter()
    admission.begin_dying()
    waiting = start(admission, "a")
    await settle()
    assert not waiting.done()
    admission.end_dying()
    await waiting


@in_virtual_time
async def test_a_slot_granted_to_a_task_that_is_cancelled_at_that_moment_is_not_lost() -> None:
    admission = Admission(AdmissionSettings(max_running=1))
    assert admission.try_enter()
    first, second = start(admission, "a"), start(admission, "a")
    await settle()
    admission.leave()
    first.cancel()
    await second
    assert first.cancelled()
    assert admission.statistics().running == 1


@in_virtual_time
async def test_a_cancelled_last_waiter_leaves_admission_idle() -> None:
    admission = Admission(AdmissionSettings(max_running=1))
    assert admission.try_enter()
    only = start(admission, "a")
    await settle()
    idle = asyncio.get_running_loop().create_task(admission.wait_idle())
    await settle()
    only.cancel()
    admission.leave()
    await idle
    assert admission.statistics().queued == 0


@in_virtual_time
async def test_the_estimate_follows_how_fast_slots_become_free() -> None:
    admission = Admission(AdmissionSettings(max_running=1, max_wait_s=1000))
    assert admission.try_enter()
    tasks = [start(admission, "a") for _ in range(60)]
    await settle()
    for _ in range(50):
        await pass_time(2.0)
        admission.leave()
    assert admission.retry_after_s() == pytest.approx(2.0 * 11, rel=0.05)
    for task in tasks:
        task.cancel()
    await settle()
    assert admission.statistics().queued == 0


async def storm(seed: int, clients: int, max_running: int, max_queued: int) -> Counter[str]:
    """Have many clients of a few keys enter, run, be cancelled and give up; return how each ended."""
    draw = random.Random(seed)
    admission = Admission(AdmissionSettings(max_running=max_running, max_queued=max_queued, max_wait_s=0.5))
    inside = 0
    ends: Counter[str] = Counter()

    async def client(key: str) -> None:
        nonlocal inside
        try:
            await enter(admission, key)
        except CapacityError as error:
            ends[error.code] += 1
            return
        inside += 1
        assert inside <= max_running
        try:
            await pass_time(draw.choice((0, 0.001, 0.1, 0.3)))
            ends["ran"] += 1
        finally:
            inside -= 1
            admission.leave()

    tasks = []
    for _ in range(clients):
        tasks.append(asyncio.get_running_loop().create_task(client(draw.choice("abc"))))
        await pass_time(draw.choice((0, 0, 0.01)))
        if draw.random() < 0.3:
            draw.choice(tasks).cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    ends["cancelled"] = sum(isinstance(answer, asyncio.CancelledError) for answer in answers)
    assert not [a for a in answers if a is not None and not isinstance(a, asyncio.CancelledError)]
    await admission.wait_idle()
    statistics = admission.statistics()
    assert (statistics.running, statistics.queued, inside) == (0, 0, 0)
    return ends


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 4), st.integers(0, 20))
def test_whatever_happens_no_slot_is_lost_and_none_is_given_twice(
    seed: int, clients: int, max_running: int, max_queued: int
) -> None:
    async def main() -> None:
        ends = await storm(seed, clients, max_running, max_queued)
        assert sum(ends.values()) == clients

    run_virtual(main())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=60))
def test_between_two_turns_of_a_waiting_key_every_other_key_has_at_most_one(keys: list[str]) -> None:
    async def main() -> None:
        admission = Admission(AdmissionSettings(max_running=1))
        assert admission.try_enter()
        order: list[str] = []
        tasks = []
        for key in keys:
            tasks.append(start(admission, key, order))
            await settle(2)
        for _ in keys:
            admission.leave()
            await settle(4)
        await asyncio.gather(*tasks)
        assert Counter(order) == Counter(keys)
        for key in set(keys):
            turns = [index for index, name in enumerate(order) if name == key]
            for before, after in zip([-1, *turns], turns, strict=False):
                between = Counter(order[before + 1 : after])
                assert all(count == 1 for count in between.values()), order

    run_virtual(main())
