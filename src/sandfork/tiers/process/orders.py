"""What one process is sent to do a step: RUN, or only its text."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sandfork.model import Limits, Step
from sandfork.tiers.process.run import run_frame, step_text

if TYPE_CHECKING:
    from sandfork.tiers.process.slots import Tenancy


class Orders:
    """The orders of one process. An interpreter that takes its place reads no frames, so each step is a text to it.

    The first step of such an interpreter goes two ways: RUN starts it, and its text follows once it is ready.
    """

    def __init__(self, slot: Tenancy, base_env: bytes, *, execs: bool) -> None:
        """`execs` says that the process has another take its place, which is given `base_env`."""
        self._slot = slot
        self._base_env = base_env
        self._execs = execs
        self._text = b""

    def message(self, step: Step, limits: Limits, *, again: bool) -> bytes:
        """Return what to send now; `again` says that the process has done a step before."""
        if step.lasting and self._execs:
            text = step_text(step)
            if again:
                return text
            self._text = text
            step = replace(step, code=None)
        return run_frame(step, limits, self._base_env, self._slot.means, self._slot.work_dir)

    @property
    def boots(self) -> bool:
        """Whether an interpreter is coming up whose first step is still to be sent."""
        return bool(self._text)

    def take_text(self) -> bytes:
        """Return that step, once."""
        text, self._text = self._text, b""
        return text
