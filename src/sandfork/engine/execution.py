"""One program on its way: its stamps, its process while it has one, its wall clock, its cap, and its result.

A program that is compiled has a second process before its own: the compiler's, with limits and a wall clock of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from signal import SIGINT

from sandfork.engine.masking import Mask, Secrets
from sandfork.engine.output import Cap, Fold
from sandfork.errors import ForkFailed, GuestLost, SandforkError, TierError
from sandfork.model import ExecPlan, ExecResult, InputFile, Limits, Outcome, Step, Stream, Timings
from sandfork.tiers.base import BEFORE_START, Collected, OutputSink, Process, StepEnd

NANO = 1e-9
COMPILE = "compile"
"""What the first of two steps is called."""
_GRACE_AT_LEAST_S = 0.2


def never_began(error: BaseException) -> bool:
    """Tell whether the tier says that the program surely did not begin, so that running it again is safe."""
    return isinstance(error, ForkFailed) or (isinstance(error, GuestLost) and error.step == BEFORE_START)


class Execution:
    """The state of one execution, and the handle on it for whoever follows its output.

    The `_ns` stamps are instants of the monotonic clock: received from the caller, queued, admitted (out of the
    queue), sent to the sandbox, and ended. `compiled_ns` is how long it took to have what the program is made of.
    `image` is that of the sandbox it was last in, which may be another than was planned.
    """

    __slots__ = (
        "_abandoned",
        "_begun",
        "_cap",
        "_clock_ns",
        "_ended_ns",
        "_error",
        "_fold",
        "_interrupt_grace_s",
        "_interrupted",
        "_kill_grace_s",
        "_mask",
        "_process",
        "_said",
        "_sent_ns",
        "_task",
        "_timer",
        "admitted_ns",
        "compiled_ns",
        "failed_step",
        "image",
        "plan",
        "queued_ns",
        "received_ns",
        "sent",
        "started_s",
    )

    def __init__(
        self,
        plan: ExecPlan,
        sink: OutputSink | None,
        *,
        received_ns: int,
        started_s: float = 0.0,
        clock_ns: Callable[[], int],
        grace_s: float,
        interrupt_grace_s: float = 2.0,
    ) -> None:
        """`sink` is who follows the output; without one it is kept. `started_s` is Unix time.

        `grace_s` is how long a kill may take, `interrupt_grace_s` the most that a lasting interpreter may take to end
        its step before it is killed.
        """
        self.plan = plan if sink is None else replace(plan, step=replace(plan.step, live=True))
        self.received_ns = received_ns
        self.started_s = started_s
        self.compiled_ns = 0
        self.failed_step = ""
        self.image = plan.image
        self.queued_ns = self.admitted_ns = self._sent_ns = self._ended_ns = clock_ns()
        self._clock_ns = clock_ns
        self._kill_grace_s = grace_s
        # Who gives little time waits little longer than that, too.
        self._interrupt_grace_s = min(interrupt_grace_s, max(_GRACE_AT_LEAST_S, plan.limits.wall_s / 4))
        self._interrupted: Outcome | None = None
        self._fold = self._said = Fold()
        secrets = Secrets(plan.secrets) if plan.secrets else None
        # Behind the cap: the limit is on what the program writes.
        self._mask = Mask(sink or self._fold, secrets) if secrets else None
        self._cap = Cap(self._mask or sink or self._fold, plan.limits.output_bytes)
        self._process: Process | None = None
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._error: SandforkError | None = None
        self._abandoned = False
        self.sent = False
        self._begun = asyncio.Event() if plan.step.keep_stdin else None

    @property
    def exec_id(self) -> str:
        """The id of this execution."""
        return self.plan.exec_id

    @property
    def wrote(self) -> bool:
        """Whether the program has written anything, which proves that it started."""
        return self._cap.started

    def plan_anew(self, plan: ExecPlan) -> None:
        """Go on with another plan of the same request: nothing of this one has begun."""
        step = replace(plan.step, live=self.plan.step.live)
        self.plan = replace(plan, exec_id=self.exec_id, step=step)
        self.image = plan.image

    def now_ns(self) -> int:
        """Return this instant of the clock of the stamps."""
        return self._clock_ns()

    def admit(self) -> None:
        """Note that the queue is behind."""
        self.admitted_ns = self._clock_ns()

    async def run(self, process: Process) -> StepEnd:
        """Run the plan's step in `process` to its end, and pass on all that it wrote.

        *Raises* what the tier raises, the error given to `stop`, and GuestLost when the sandbox does not answer in
        time after a kill.
        """
        self._refuse_stopped()
        self.sent = True
        if self._begun is not None:
            self._begun.set()
        end = await self._run(process, self.plan.step, self.plan.limits, self._cap)
        self._flush(end)
        return end

    async def compile(self, process: Process) -> StepEnd:
        """Run the plan's compiler in `process` to its end.

        Of one that fails, `failed_step` tells, and what it said is the output of the execution; what others say is not
        passed on. *Raises* as `run` does.
        """
        compilation = self.plan.compilation
        assert compilation is not None
        self._said = Fold()
        cap = Cap(self._said, self.plan.limits.output_bytes)
        end = await self._run(process, compilation.step, compilation.limits, cap)
        if end.outcome is not Outcome.EXITED or end.exit_code != 0 or cap.exceeded:
            self.fail_compiling(end, exceeded=cap.exceeded)
        return end

    def fail_compiling(self, end: StepEnd, *, exceeded: bool = False) -> None:
        """Have what the compiler said be the output, as there is no program that could have one."""
        self.failed_step = COMPILE
        for stream, data in zip(Stream, self._said.joined(), strict=True):
            self._cap.output(stream, data)
        self._cap.exceeded = exceeded
        self._flush(end)

    def take_files(self, files: tuple[InputFile, ...]) -> None:
        """Give the program these files, too."""
        step = self.plan.step
        self.plan = replace(self.plan, step=replace(step, files=(*step.files, *files)))

    async def _run(self, process: Process, step: Step, limits: Limits, cap: Cap) -> StepEnd:
        self._refuse_stopped()
        self._process = process
        cap.overflow = self._overflow
        self._task = asyncio.current_task()
        self._arm(limits.wall_s, self._expire)
        self._sent_ns = self._clock_ns()
        try:
            end = await process.exec(step, limits, cap)
        except asyncio.CancelledError:
            if self._abandoned and self._task is not None and self._task.uncancel() <= 0:
                self._refuse_stopped()
                raise GuestLost(f"no word within {self._kill_grace_s:g} s of a kill") from None
            raise
        except TierError as error:
            if self._begun is not None and never_began(error):
                self._begun.clear()
            raise
        finally:
            self._ended_ns = self._clock_ns()
            self._detach()
        self._refuse_stopped()
        return end

    def _flush(self, end: StepEnd) -> None:
        if self._mask is not None:
            cut = self._cap.exceeded or self._interrupted is not None or end.outcome is not Outcome.EXITED
            self._mask.flush(cut=cut)

    def over(self) -> None:
        """Let go of who waits to feed it: it has ended, or never begins."""
        if self._begun is not None:
            self._begun.set()

    def result(self, end: StepEnd, collected: Collected, *, state_lost: bool = False) -> ExecResult:
        """Return what came of it; output over the cap makes the outcome OUTPUT_LIMIT, however the program ended.

        A step that ended because it was interrupted at its wall time was stopped by that, whatever it ended with.
        """
        plan = self.plan
        stdout, stderr = self._fold.joined()
        exceeded = self._cap.exceeded
        outcome = end.outcome if self._interrupted is None else self._interrupted
        return ExecResult(
            plan.exec_id,
            Outcome.OUTPUT_LIMIT if exceeded else outcome,
            end.exit_code,
            end.signal,
            stdout,
            stderr,
            exceeded,
            end.usage,
            self._limits(),
            self._timings(end),
            plan.isolation,
            collected.files,
            collected.skipped,
            tuple(self._fold.displays),
            state_lost,
            self.started_s,
            self._cap.passed_bytes,
            failed_step=self.failed_step,
            image=self.image,
        )

    def _limits(self) -> Limits:
        """The limits that held: the compiler's where that failed, but for its output, which counts as the program's."""
        plan = self.plan
        if not self.failed_step or plan.compilation is None:
            return plan.limits
        return replace(plan.compilation.limits, output_bytes=plan.limits.output_bytes)

    def resume(self) -> None:
        """Read output again after the sink refused more."""
        if self._process is not None:
            self._process.resume()

    async def feed(self, data: bytes) -> None:
        """Write to a stdin that is kept open, at the program's pace; what comes before it begins waits for it."""
        while self._begun is not None:
            await self._begun.wait()
            if (process := self._process) is None:
                return
            await process.feed(data)
            if self._begun.is_set():
                return  # otherwise it never began there

    def signal(self, number: int) -> None:
        """Send the program a signal."""
        if self._process is not None:
            self._process.signal(number)

    def withdraw(self) -> None:
        """Nobody waits for it any more: interrupt a lasting interpreter, kill any other program, begin none."""
        if self._process is None:
            self._error = self._error or SandforkError("nobody waits for it any more")
        self._interrupt(Outcome.SIGNALLED)

    def stop(self, error: SandforkError) -> None:
        """Kill the program if it runs, and fail the execution with `error`; the first one given stands."""
        self._error = self._error or error
        self._kill(Outcome.SIGNALLED)

    def _timings(self, end: StepEnd) -> Timings:
        """Return the spans; the sandbox's own stamps count only within what was seen from here."""
        ended_ns = self._ended_ns
        ready_ns = min(max(end.ready_ns, self._sent_ns), ended_ns)
        done_ns = min(max(end.done_ns or ended_ns, ready_ns), ended_ns)
        compiled_ns = done_ns - ready_ns if self.failed_step else self.compiled_ns
        return Timings(
            (self.admitted_ns - self.queued_ns) * NANO,
            (ready_ns - self.admitted_ns - self.compiled_ns) * NANO,
            (done_ns - ready_ns) * NANO,
            (self._clock_ns() - self.received_ns) * NANO,
            compiled_ns * NANO,
        )

    def _detach(self) -> None:
        """Let go of everything that leads back here: output kept until a collector comes round would add up."""
        if self._timer is not None:
            self._timer.cancel()
        self._process = self._task = self._timer = self._cap.overflow = None

    def _refuse_stopped(self) -> None:
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # it is about to hold this frame

    def _arm(self, delay_s: float, then: Callable[[], None]) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_s, then)

    def _overflow(self) -> None:
        if self._process is not None:
            self._process.kill(Outcome.OUTPUT_LIMIT)

    def _expire(self) -> None:
        self._interrupt(Outcome.TIMED_OUT)

    def _interrupt(self, outcome: Outcome) -> None:
        """Have a lasting interpreter end its step by itself, so that it keeps its state; kill it only then."""
        if self._process is None or not self.plan.step.lasting:
            self._kill(outcome)
            return
        if self._timer is not None:
            self._timer.cancel()
        self._interrupted = self._interrupted or outcome
        self._arm(self._interrupt_grace_s / 2, partial(self._insist, outcome))
        self._process.signal(SIGINT)

    def _insist(self, outcome: Outcome) -> None:
        """Interrupt again: what came before the interpreter had begun the step was not for this one, to it."""
        self._arm(self._interrupt_grace_s / 2, partial(self._kill, outcome))
        if self._process is not None:
            self._process.signal(SIGINT)

    def _kill(self, outcome: Outcome) -> None:
        if self._process is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        # Armed first: whatever becomes of the kill, the execution ends.
        self._arm(self._kill_grace_s, self._abandon)
        self._process.kill(outcome)

    def _abandon(self) -> None:
        if self._task is not None:
            self._abandoned = True
            self._task.cancel()
