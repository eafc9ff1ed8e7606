"""The warm pool: sandboxes forked ahead of the request, per template.

A lease takes the sandbox parked last (its pages are the likeliest to be in the caches) and never gives it back. What it
took is replaced a moment later, when the answer has probably left: at once only when less than half the target is
parked. At most `max_forking` forks of a template are under way; whoever finds the shelf empty gets the next one. After
a failure the pause before the next try doubles, and a success ends it.

The template of a shelf that is filled *on demand* is made when it is first used, and ends with what is parked once
nothing has used it for `idle_s`.

A template that cannot be made is in `unavailable` with its reason until it can; leases from it fail with that reason.
Leases from one that went meanwhile fail with TemplateGone: nothing began, and another may do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from sandfork.engine.shelf import Dispose, PoolSettings, PoolStatistics, Shelf
from sandfork.errors import TemplateFailed, TemplateGone
from sandfork.model import TemplateHealth
from sandfork.tiers.base import Process, Sandbox, Tier

__all__ = ["Pool", "PoolSettings", "PoolStatistics"]


class Pool:
    """One shelf a template key."""

    def __init__(
        self,
        tier: Tier,
        targets: Mapping[str, int],
        settings: PoolSettings,
        dispose: Dispose,
        on_demand: Collection[str] = (),
    ) -> None:
        """`targets` has every key there is with how many to keep parked; `dispose` destroys what was never used."""
        self.unavailable: dict[str, str] = {}
        self._on_demand = frozenset(on_demand)
        self._tier = tier
        self._settings = settings
        self._dispose = dispose
        self._shelves = {key: Shelf(key, tier, settings, self.unavailable, dispose) for key in targets}
        self._targets = dict(targets)
        self._gone: set[str] = set()

    async def start(self) -> None:
        """Make the templates that have a target and wait for a sandbox of each, or for the reason there is none."""
        for key, target in self._targets.items():
            self._fill(key, target)
        wanted = (key for key, target in self._targets.items() if target and key not in self._on_demand)
        await asyncio.gather(*(self._shelves[key].first.wait() for key in wanted))

    def take(self, key: str) -> Sandbox | None:
        """Return a parked sandbox of that template, or None. *Raises* TemplateFailed, as where there is no such key."""
        return self._shelf(key).take()

    async def fork(self, key: str) -> Sandbox:
        """Return a sandbox forked on demand. *Raises* TemplateFailed, ForkFailed, Draining."""
        return await self._shelf(key).fork()

    async def join(self, key: str, sandbox: Sandbox, terminal: tuple[int, int] | None = None) -> Process:
        """Return a process of that template in a kept sandbox. *Raises* TemplateFailed, ForkFailed."""
        return await self._shelf(key).join(sandbox, terminal)

    def resize(self, key: str, target: int) -> None:
        """Keep `target` sandboxes parked from now on; what is parked above that is destroyed."""
        self._shelf(key).resize(target)

    async def adopt(self, targets: Mapping[str, int], on_demand: Collection[str], changed: Collection[str]) -> None:
        """Have just these templates from now on; those in `changed` are other ones than before.

        What is running goes on. Return once what is parked of those that are gone is being destroyed.
        """
        went = self._shelves.keys() - targets.keys()
        gone = [self._shelves.pop(key) for key in went]
        self._gone = (self._gone | went) - targets.keys()
        self._on_demand = frozenset(on_demand)
        for key, target in targets.items():
            shelf = self._shelves.get(key)
            if shelf is None:
                shelf = self._shelves[key] = Shelf(key, self._tier, self._settings, self.unavailable, self._dispose)
                self._fill(key, target)
            elif key in changed:
                shelf.renew()
        self._targets = dict(targets)
        await asyncio.gather(*(shelf.close(_template_gone) for shelf in gone))

    def _fill(self, key: str, target: int) -> None:
        if key in self._on_demand:
            self._shelf(key).fill_on_demand(target)
        else:
            self.resize(key, target)

    def statistics(self) -> tuple[PoolStatistics, ...]:
        """Return the counts of every template."""
        return tuple(shelf.statistics() for shelf in self._shelves.values())

    def health(self) -> tuple[TemplateHealth, ...]:
        """Return the state of every template."""
        return tuple(shelf.health() for shelf in self._shelves.values())

    async def close(self) -> None:
        """Fail who waits, stop forking and have everything parked destroyed."""
        for shelf in self._shelves.values():
            await shelf.close()

    def _shelf(self, key: str) -> Shelf:
        shelf = self._shelves.get(key)
        if shelf is None and key in self._gone:
            raise _template_gone()
        if shelf is None:
            raise TemplateFailed(f"template {key}: this server does not have it", step="template")
        return shelf


def _template_gone() -> TemplateGone:
    return TemplateGone(
        "this server has this template no more: its image or its packages were removed or replaced; try again",
        step="template",
        retry_after_s=1.0,
    )
