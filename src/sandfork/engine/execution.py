"""One program on its way: its stamps, its sandbox while it has one, its wall clock, its cap, and its result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sandfork.engine.output import Cap, Fold
from sandfork.errors import GuestLost, SandforkError
from sandfork.model import ExecPlan, ExecResult, Outcome, Timings
from sandfork.tiers.base import Collected, OutputSink, Sandbox, StepEnd

NANO = 1e-9


class Execution:
    """The state of one execution, and the handle on it for whoever follows its output.

    The `_ns` stamps are instants of the monotonic clock: received from the caller, queued, admitted (out of the
    queue), sent to the sandbox, and ended.
    """

    __slots__ = (
        "_abandoned",
        "_cap",
        "_clock_ns",
        "_ended_ns",
        "_error",
        "_fold",
        "_kill_grace_s",
        "_sandbox",
        "_sent_ns",
        "_task",
        "_timer",
        "admitted_ns",
        "plan",
        "queued_ns",
        "received_ns",
    )

    def __init__(
        self, plan: ExecPlan, sink: OutputSink | None, *, received_ns: int, clock_ns: Callable[[], int], grace_s: float
    ) -> None:
        """`sink` is who follows the output; without one it is kept. `grace_s` is how long a kill may take."""
        self.plan = plan
        self.received_ns = received_ns
        self.queued_ns = self.admitted_ns = self._sent_ns = self._ended_ns = clock_ns()
        self._clock_ns = clock_ns
        self._kill_grace_s = grace_s
        self._fold = Fold()
        self._cap = Cap(sink or self._fold, plan.limits.output_bytes)
        self._sandbox: Sandbox | None = None
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._error: SandforkError | None = None
        self._abandoned = False

    @property
    def exec_id(self) -> str:
        """The id of this execution."""
        return self.plan.exec_id

    @property
    def wrote(self) -> bool:
        """Whether the program has written anything, which proves that it started."""
        return self._cap.started

    def admit(self) -> None:
        """Note that the queue is behind."""
        self.admitted_ns = self._clock_ns()

    async def run(self, sandbox: Sandbox) -> StepEnd:
        """Run the plan's step in `sandbox` to its end.

        *Raises* what the tier raises, the error given to `stop`, and GuestLost when the sandbox does not answer in
        time after a kill.
        """
        self._refuse_stopped()
        plan = self.plan
        self._sandbox = sandbox
        self._cap.overflow = self._overflow
        self._task = asyncio.current_task()
        self._arm(plan.limits.wall_s, self._expire)
        self._sent_ns = self._clock_ns()
        try:
            end = await sandbox.exec(plan.step, plan.limits, self._cap)
        except asyncio.CancelledError:
            if self._abandoned and self._task is not None and self._task.uncancel() <= 0:
                self._refuse_stopped()
                raise GuestLost(f"no word within {self._kill_grace_s:g} s of a kill") from None
            raise
        finally:
            self._ended_ns = self._clock_ns()
            self._detach()
        self._refuse_stopped()
        return end

    def result(self, end: StepEnd, collected: Collected) -> ExecResult:
        """Return what came of it; output over the cap makes the outcome OUTPUT_LIMIT, however the program ended."""
        plan = self.plan
        stdout, stderr = self._fold.joined()
        exceeded = self._cap.exceeded
        return ExecResult(
            plan.exec_id,
            Outcome.OUTPUT_LIMIT if exceeded else end.outcome,
            end.exit_code,
            end.signal,
            stdout,
            stderr,
            exceeded,
            end.usage,
            plan.limits,
            self._timings(end),
            plan.isolation,
            collected.files,
            collected.skipped,
        )

    def resume(self) -> None:
        """Read output again after the sink refused more."""
        if self._sandbox is not None:
            self._sandbox.resume()

    def stop(self, error: SandforkError) -> None:
        """Kill the program if it runs, and fail the execution with `error`."""
        self._error = error
        self._kill(Outcome.SIGNALLED)

    def _timings(self, end: StepEnd) -> Timings:
        """Return the spans; the sandbox's own stamps count only within what was seen from here."""
        ended_ns = self._ended_ns
        ready_ns = min(max(end.ready_ns, self._sent_ns), ended_ns)
        done_ns = min(max(end.done_ns or ended_ns, ready_ns), ended_ns)
        return Timings(
            (self.admitted_ns - self.queued_ns) * NANO,
            (ready_ns - self.admitted_ns) * NANO,
            (done_ns - ready_ns) * NANO,
            (self._clock_ns() - self.received_ns) * NANO,
        )

    def _detach(self) -> None:
        """Let go of everything that leads back here: output kept until a collector comes round would add up."""
        if self._timer is not None:
            self._timer.cancel()
        self._sandbox = self._task = self._timer = self._cap.overflow = None

    def _refuse_stopped(self) -> None:
        if self._error is not None:
            raise self._error

    def _arm(self, delay_s: float, then: Callable[[], None]) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_s, then)

    def _overflow(self) -> None:
        if self._sandbox is not None:
            self._sandbox.kill(Outcome.OUTPUT_LIMIT)

    def _expire(self) -> None:
        self._kill(Outcome.TIMED_OUT)

    def _kill(self, outcome: Outcome) -> None:
        if self._sandbox is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        # Armed first: whatever becomes of the kill, the execution ends.
        self._arm(self._kill_grace_s, self._abandon)
        self._sandbox.kill(outcome)

    def _abandon(self) -> None:
        if self._task is not None:
            self._abandoned = True
            self._task.cancel()
