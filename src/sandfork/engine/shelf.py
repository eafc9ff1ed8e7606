"""The parked sandboxes of one template, and the forks that replace them; see `pool` for the rules."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from sandfork.errors import Draining, ForkFailed, SandforkError, TemplateFailed
from sandfork.model import TemplateHealth
from sandfork.tiers.base import Process, Sandbox, Template, Tier

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How a pool refills. `retire_after_s` bounds the age of a parked sandbox in a pool that is in use."""

    refill_delay_s: float = 0.0015
    max_forking: int = 3
    fork_s: float = 10.0
    template_s: float = 120.0
    lease_s: float = 30.0
    backoff_first_s: float = 0.05
    backoff_last_s: float = 2.0
    unmade_last_s: float = 60.0  # the same for a template that cannot be made, mostly until somebody mends it
    retire_after_s: float = 3600.0
    idle_s: float = 300.0


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """The counts of one template: the first four of this moment, the others since the start."""

    key: str
    target: int
    parked: int
    forking: int
    waiting: int
    hits: int
    misses: int
    failures: int


Waiter = asyncio.Future[Sandbox]
Dispose = Callable[[Sandbox], None]


def draining() -> Draining:
    """Return what is told to who waits when the service ends."""
    return Draining("the server is shutting down")


class Shelf:
    """The parked sandboxes of one template, and the forks that replace them."""

    def __init__(
        self, key: str, tier: Tier, settings: PoolSettings, unavailable: dict[str, str], dispose: Dispose
    ) -> None:
        self.first = asyncio.Event()
        self._key = key
        self._tier = tier
        self._settings = settings
        self._unavailable = unavailable
        self._dispose = dispose
        self._template: Template | None = None
        self._target = 0
        self._on_demand = 0  # the target of one that is in use; 0: it does not matter
        self._idle_look: asyncio.TimerHandle | None = None
        self._uses_seen = 0
        self._joins = 0
        self._parked: deque[tuple[Sandbox, float]] = deque()
        self._waiters: deque[Waiter] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._failed_in_row = 0
        self._blocked_until = 0.0
        self._hits = self._misses = self._failures = 0
        self._generation = 0  # counts the renewals
        self._closed = False

    def take(self) -> Sandbox | None:
        """Return a parked sandbox, or None; its replacement is arranged."""
        if not self._parked:
            return None
        self._hits += 1
        sandbox, _ = self._parked.pop()
        if len(self._parked) * 2 < self._target:
            self._balance()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._settings.refill_delay_s, self._balance)
        return sandbox

    async def fork(self) -> Sandbox:
        """Return the next sandbox forked. *Raises* TemplateFailed, ForkFailed, Draining."""
        if self._closed:
            raise draining()
        self._misses += 1
        self._wake()
        loop = asyncio.get_running_loop()
        if self._key in self._unavailable and loop.time() < self._blocked_until:
            raise self._template_error()
        waiter: Waiter = loop.create_future()
        self._waiters.append(waiter)
        timer = loop.call_later(self._settings.lease_s, self._expire, waiter)
        self._balance()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._arrived(waiter.result())
            raise
        finally:
            timer.cancel()
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            del waiter  # it may hold the error that is about to hold this frame

    async def join(self, sandbox: Sandbox, terminal: tuple[int, int] | None) -> Process:
        """Return a process in a kept sandbox. *Raises* TemplateFailed, ForkFailed."""
        self._joins += 1
        self._wake()
        template = self._template or await self._tier.template(self._key)
        try:
            return await template.join(sandbox, terminal=terminal)
        except TemplateFailed as error:
            if template is self._template:
                self._template_died(error)
            raise

    def fill_on_demand(self, target: int) -> None:
        """Keep that many parked from the first use on, until nothing has used it for a while."""
        self._on_demand = target

    def _wake(self) -> None:
        if self._on_demand and self._idle_look is None and not self._closed:
            self._target = self._on_demand
            self._look_later()

    def _look_later(self) -> None:
        self._uses_seen = self._hits + self._misses + self._joins
        self._idle_look = asyncio.get_running_loop().call_later(self._settings.idle_s, self._look_whether_idle)

    def _look_whether_idle(self) -> None:
        if self._hits + self._misses + self._joins != self._uses_seen:
            self._look_later()
            return
        self._idle_look = None
        self.resize(0)
        if self._template is not None:
            self._template.rest()

    def resize(self, target: int) -> None:
        """Set how many to keep parked."""
        self._target = target
        while len(self._parked) > target:
            self._dispose(self._parked.popleft()[0])
        self._balance()

    def statistics(self) -> PoolStatistics:
        """Return the counts of this template."""
        return PoolStatistics(
            key=self._key,
            target=self._target,
            parked=len(self._parked),
            forking=len(self._tasks),
            waiting=len(self._waiters),
            hits=self._hits,
            misses=self._misses,
            failures=self._failures,
        )

    def health(self) -> TemplateHealth:
        """Return the state of this template."""
        if self._template is None:
            reason = self._unavailable.get(self._key)
            return TemplateHealth(self._key, False, 0, 0, 0, reason or "not made yet", dormant=reason is None)
        return replace(self._template.health(), parked=len(self._parked))

    def renew(self) -> None:
        """Have what comes from now on come from the template that the tier has of this key now."""
        self._template = None
        self._generation += 1
        self._failed_in_row, self._blocked_until = 0, 0.0
        self._unavailable.pop(self._key, None)
        self._discard_parked()
        self._balance()

    async def close(self, error: Callable[[], SandforkError] = draining) -> None:
        """Fail who waits, stop forking and have everything parked destroyed."""
        self._closed = True
        for timer in (self._timer, self._idle_look):
            if timer is not None:
                timer.cancel()
        self._unavailable.pop(self._key, None)
        self._fail_waiters(error)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._discard_parked()

    def _discard_parked(self) -> None:
        while self._parked:
            self._dispose(self._parked.popleft()[0])

    def _balance(self) -> None:
        """Start as many forks as are wanted and allowed now; arrange the next look when that is none for a while."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._retire_oldest(now)
        forking = len(self._tasks)
        wanted = max(self._target - len(self._parked), 0) + len(self._waiters) - forking
        if wanted <= 0:
            return
        if now < self._blocked_until:
            self._timer = loop.call_at(self._blocked_until, self._balance)
            return
        allowed = (self._settings.max_forking if self._template is not None else 1) - forking
        for _ in range(min(wanted, allowed)):
            task = loop.create_task(self._fork_one())
            self._tasks.add(task)
            task.add_done_callback(self._on_forked)

    def _on_forked(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("template %s: a fork failed unexpectedly", self._key, exc_info=error)
            self._fork_failed(f"template {self._key}: {error!r}")
        self._balance()

    async def _fork_one(self) -> None:
        if self._template is None and not await self._make_template():
            return
        template, generation = self._template, self._generation
        assert template is not None
        try:
            async with asyncio.timeout(self._settings.fork_s):
                sandbox = await template.fork(urgent=bool(self._waiters))
        except TemplateFailed as error:
            if template is self._template:
                self._template_died(error)
        except ForkFailed as error:
            self._fork_failed(error.message, error.step, error.errno)
        except TimeoutError:
            self._fork_failed(f"template {self._key}: no fork within {self._settings.fork_s:g} s")
        else:
            if generation == self._generation:
                self._arrived(sandbox)
            else:
                self._dispose(sandbox)  # of a template that was renewed meanwhile

    async def _make_template(self) -> bool:
        generation, told = self._generation, self._unavailable.get(self._key)
        try:
            async with asyncio.timeout(self._settings.template_s):
                template = await self._tier.template(self._key)
        except TemplateFailed as error:
            self._unavailable[self._key] = error.message
        except TimeoutError:
            self._unavailable[self._key] = f"template {self._key}: not made within {self._settings.template_s:g} s"
        else:
            if generation != self._generation:
                return False  # whoever waits is served by the next
            self._template = template
            self._unavailable.pop(self._key, None)
            return True
        if self._unavailable[self._key] != told:
            log.warning("a template cannot be made: %s", self._unavailable[self._key])
        self._back_off(self._settings.unmade_last_s)
        self._fail_waiters(self._template_error)
        return False

    def _arrived(self, sandbox: Sandbox) -> None:
        """Give a sandbox to whoever waits longest, or park it."""
        self._failed_in_row = 0
        self.first.set()
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(sandbox)
                return
        if self._closed or len(self._parked) >= self._target:
            self._dispose(sandbox)
        else:
            self._parked.append((sandbox, asyncio.get_running_loop().time()))

    def _template_died(self, error: TemplateFailed) -> None:
        """Have the template made anew: at once, but after a pause when the last one died unused too."""
        self._template = None
        if self._failed_in_row:
            self._fork_failed(error.message, error.step, error.errno)
        else:
            log.warning("a template died and is made anew: %s", error)
            self._failures += 1
            self._failed_in_row = 1

    def _fork_failed(self, reason: str, step: str = "fork", errno: int = 0) -> None:
        """Pause; who waits is told only of a second failure in a row, as the next try may well succeed."""
        log.warning("a fork failed: %s", reason)
        if asyncio.get_running_loop().time() < self._blocked_until:
            self._failures += 1
            return
        self._back_off(self._settings.backoff_last_s)
        if self._failed_in_row > 1:
            pause_s = self._pause_s()
            self._fail_waiters(lambda: ForkFailed(reason, step=step, errno=errno, retry_after_s=pause_s))

    def _back_off(self, last_s: float) -> None:
        self.first.set()
        self._failures += 1
        pause_s = self._settings.backoff_first_s * 2.0 ** min(self._failed_in_row, 30)
        self._failed_in_row += 1
        self._blocked_until = asyncio.get_running_loop().time() + min(pause_s, last_s)

    def _pause_s(self) -> float:
        return max(self._blocked_until - asyncio.get_running_loop().time(), 0.0)

    def _template_error(self) -> TemplateFailed:
        return TemplateFailed(self._unavailable[self._key], step="template", retry_after_s=self._pause_s())

    def _retire_oldest(self, now: float) -> None:
        """Destroy the oldest parked sandbox when its time is up: one a look, so that they are renewed gradually."""
        if self._parked and now - self._parked[0][1] > self._settings.retire_after_s:
            self._dispose(self._parked.popleft()[0])

    def _expire(self, waiter: Waiter) -> None:
        if not waiter.done():
            reason = f"template {self._key}: no sandbox within {self._settings.lease_s:g} s"
            waiter.set_exception(ForkFailed(reason, step="lease", retry_after_s=self._pause_s()))

    def _fail_waiters(self, make_error: Callable[[], SandforkError]) -> None:
        """Fail everyone who waits, each with an error of its own: a raised one carries its raiser's traceback."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(make_error())
