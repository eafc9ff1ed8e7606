"""A virtual clock: an event loop whose time jumps to the next timer instead of waiting for it.

A test under it takes no real time, and what it says about seconds is exact. It also must leave nothing behind: a task
still pending at its end fails it, a timer still set does, and so does waiting for what no timer will ever bring.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

NANO = 1_000_000_000


class NothingLeftToWaitFor(RuntimeError):
    """Every task waits and no timer is set: in real time the test would hang for ever."""


class _JumpingSelector(selectors.DefaultSelector):
    """Answers at once; when nothing is ready it moves the clock by the timeout it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 1 * NANO

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            raise NothingLeftToWaitFor("all tasks wait, and no timer is set")
        if timeout > 0:
            self.now_ns += max(round(timeout * NANO), 1)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop. `time_ns()` is what to inject wherever a clock is asked for."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_ns / NANO

    def time_ns(self) -> int:
        return self._jumping.now_ns

    def live_timers(self) -> list[asyncio.TimerHandle]:
        """Return the timers that are set and not cancelled."""
        return [timer for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]

    def advance(self, delay_s: float) -> None:
        """Move the clock without running anything: what a step that takes this long does to its observers."""
        self._jumping.now_ns += round(delay_s * NANO)


def virtual_loop() -> VirtualLoop:
    """Return the running virtual loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def run_virtual(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` on a virtual clock. *Raises* AssertionError when it leaves a task or a timer behind."""
    complaints: list[dict[str, Any]] = []

    async def checked() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        await main
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks left behind: {left}"
        timers = virtual_loop().live_timers()
        assert not timers, f"timers left behind: {timers}"

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(checked())
    assert not complaints, f"the event loop complained: {complaints}"


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make an async test a plain one that runs on a virtual clock."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        run_virtual(test(*args, **kwargs))

    return run


async def pass_time(delay_s: float) -> None:
    """Let the clock run on by `delay_s`, and everything happen that is due by then."""
    loop = virtual_loop()
    over = loop.create_future()
    timer = loop.call_later(delay_s, lambda: None if over.done() else over.set_result(None))
    try:
        await over
    finally:
        timer.cancel()


async def settle(rounds: int = 20) -> None:
    """Let every task that can go on do so, without letting time pass."""
    for _ in range(rounds):
        await asyncio.sleep(0)
