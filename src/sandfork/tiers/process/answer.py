"""The end of a step on its way to who waits for it: given once, and not before its output was taken."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from sandfork.model import Outcome
from sandfork.tiers.base import StepEnd


class Answer:
    """The answer to one step after another."""

    __slots__ = ("_future", "kept")

    def __init__(self) -> None:
        self._future: asyncio.Future[StepEnd] | None = None
        self.kept: StepEnd | None = None

    def begin(self) -> asyncio.Future[StepEnd]:
        """Return what is waited on for the next step's end."""
        self._future = asyncio.get_running_loop().create_future()
        return self._future

    @property
    def awaited(self) -> bool:
        """Whether a step has begun that has no answer yet."""
        return self._future is not None and not self._future.done()

    def give(self, end: StepEnd) -> None:
        """Give it to who waits."""
        self.kept = None
        if self._future is not None and not self._future.done():
            self._future.set_result(end)

    def keep(self, end: StepEnd) -> None:
        """Give it only when all that the step wrote was taken, as the sink refused more."""
        self.kept = end

    def give_up_reading(self, outcome: Outcome) -> None:
        """Give what is kept, with this outcome, without the output that was not taken."""
        if self.kept is not None:
            self.give(replace(self.kept, outcome=outcome))

    def fail(self, error: Exception) -> None:
        """Give an error, if anybody waits."""
        self.kept = None
        if self._future is not None and not self._future.done():
            self._future.set_exception(error)
            self._future.exception()  # who began it may have gone
