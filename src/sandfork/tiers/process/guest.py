"""One process of ours in a sandbox, from fork to close: a sandbox's first (`ProcessSandbox`), or one that joined it.

    FORKING --READY--> PARKED --exec--> STARTING --RUN--> RUNNING --END | EXIT | kill--> OVER --close--> CLOSED
                                           ^                 | END of a lasting one
                                           +-----exec---- RESTING

The answer does not wait for the process to die: END, which the program's own process sends as its last act, carries
the exit code; EXIT, the warden's word after wait4, comes for everything that ended otherwise. What END says is the
sandbox's claim and can harm only its own answer; limits and usage are the kernel's.

A lasting process is an interpreter that rests after END and takes another step. In a sandbox that is kept, a program
that nobody waits for any more is killed alone; any other kill takes every process in it, and nothing else of it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from sandfork.errors import CallerError, ForkFailed, GuestLost, TierError
from sandfork.model import InputFile, Limits, Outcome, Step
from sandfork.tiers.base import BEFORE_START, OutputSink, StepEnd
from sandfork.tiers.process import messages as m
from sandfork.tiers.process.answer import Answer
from sandfork.tiers.process.displays import Showing
from sandfork.tiers.process.line import Line
from sandfork.tiers.process.orders import Orders
from sandfork.tiers.process.run import STDIN_FILE
from sandfork.tiers.process.verdict import bounded_stamps, never_ran, outcome_of_failure, outcome_of_signal, usage_of
from sandfork.tiers.process.watch import Watch

if TYPE_CHECKING:
    from sandfork.linux.cgroup import Mark
    from sandfork.tiers.process.sandbox import ProcessSandbox
    from sandfork.tiers.process.slots import Tenancy
    from sandfork.tiers.process.streams import Streams
    from sandfork.tiers.process.terminal import TerminalStreams

_FORK_S = 30.0
_FORKING, _PARKED, _STARTING, _RUNNING, _RESTING, _OVER, _CLOSED = range(7)
_FRAME_MAX = 64


class Guest:
    """A process in a slot. Made by its template; see `tiers.base.Process` for the port."""

    def __init__(
        self,
        slot: Tenancy,
        ctl: socket.socket,
        streams: Streams | TerminalStreams,
        base_env: bytes,
        *,
        execs: bool = False,
        home: ProcessSandbox | None = None,
    ) -> None:
        """`execs` says that the process has another take its place; `home` is the sandbox that it joins."""
        self._loop = asyncio.get_running_loop()
        self._slot = slot
        self._line = Line(ctl)
        self._streams = streams
        self._orders = Orders(slot, base_env, execs=execs)
        self._joined = home
        self._frames = m.FrameReader(_FRAME_MAX)
        self._showing: Showing | None = None
        self._since: Mark | None = None
        self._lasting = False
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._state = _FORKING
        self._parked: asyncio.Future[None] = self._loop.create_future()
        self._answer = Answer()
        self._killed: Outcome | None = None  # before the program began
        self._watch = Watch(slot, streams, partial(self.kill, Outcome.CPU_LIMIT))
        self._started_ns = 0
        self._claimed_ns: tuple[int, int] | None = None
        self._interrupted = False
        self._reaped: m.WardenEvent | None = None
        self._exec_failed = False
        self._sent_ns = 0
        self._loop.add_reader(self._line.fd, self._ctl_readable)

    @property
    def _home(self) -> ProcessSandbox:
        """The sandbox that the process is in."""
        assert self._joined is not None
        return self._joined

    # --- fork ---

    async def parked(self) -> None:
        """Wait until the sandbox is confined, warmed and waiting. *Raises* ForkFailed."""
        overdue = self._loop.call_later(_FORK_S, self.fork_failed, m.STEPS.index("clone"), errno.ETIMEDOUT)
        try:
            await self._parked
        finally:
            overdue.cancel()

    def fork_failed(self, step: int, error: int) -> None:
        """The warden, the zygote or the child itself could not go on."""
        self.died()
        if not self._parked.done():
            what = f"{m.step_name(step)}: {os.strerror(error)}"
            self._parked.set_exception(
                ForkFailed(f"forking a sandbox failed at {what}", step=m.step_name(step), errno=error)
            )
        elif self._answer.awaited:
            self._state = _OVER
            self._watch.end()
            self._answer.fail(GuestLost("the sandbox's init died"))
        elif self._state in (_PARKED, _STARTING, _RESTING):
            self._state = _OVER
            self._hang_up()

    # --- ctl ---

    def _ctl_readable(self) -> None:
        if self._state == _OVER:
            # Nothing it can say matters any more, and it may have much to say.
            self._loop.remove_reader(self._line.fd)
            return
        data = self._line.receive(4096 if self._showing is None else 65536)
        if data is None:
            return
        if not data:
            # Not the end of the program: it may have closed or exec'd. EXIT is. Nor is it that of a fork: which of
            # the zygote, the child and the sandbox has died, the warden says in a moment.
            self._loop.remove_reader(self._line.fd)
            return
        try:
            for kind, body in self._frames.feed(data):
                self._frame(kind, body)
        except m.FrameError:
            self._forged()

    def _frame(self, kind: int, body: bytes) -> None:
        """Take a frame. Each kind is accepted in one state only and once: the program can write here, too."""
        if kind == m.READY and self._state == _FORKING and not body:
            self._state = _PARKED
            if self._joined is None:
                self._slot.meter.baseline()
            if not self._parked.done():  # who waited for it may have gone
                self._parked.set_result(None)
        elif kind == m.ENDED and self._state == _RUNNING and len(body) == m.END.size:
            code, _, ready_ns, done_ns = m.END.unpack(body)
            if self._slot.means.rlimits and not self._lasting:
                self._claimed_ns = ready_ns, done_ns  # what it used is told by wait4 only, in a moment
                self._line.dismiss()
            else:
                self._exited(code & 0xFF, ready_ns, done_ns)
        elif kind == m.STARTED and self._state == _RUNNING and not self._started_ns and len(body) == 8:
            self._started_ns = m.NUMBER.unpack(body)[0] or 1  # a forged 0 would leave it open to be sent for ever
        elif kind == m.FAILED and self._state == _FORKING and len(body) == m.FAIL.size:
            self.fork_failed(*m.FAIL.unpack(body))
        elif kind == m.FAILED and self._state == _RUNNING and not self._exec_failed:
            self._exec_failed = True  # the exit status, which follows, says it to the caller
        elif kind == m.READY and self._state == _RUNNING and self._orders.boots and not body:
            self._slot.tasks.spawn(self._line.tell(self._orders.take_text()))
        elif kind == m.DISPLAY and self._state == _RUNNING and self._showing is not None:
            if (problem := self._showing.take(body)) is not None:
                self.kill(problem)
        elif self._state != _OVER:
            self._forged()

    def _forged(self) -> None:
        if self._state == _RUNNING:
            self.kill(Outcome.POLICY_VIOLATION)
        elif self._state == _RESTING:
            self._state = _OVER
            self._home.kill_all()
            self._answer.give_up_reading(Outcome.POLICY_VIOLATION)
        elif self._state in (_FORKING, _PARKED):
            self._state = _OVER
            self.fork_failed(m.STEPS.index("run_frame"), errno.EPROTO)

    # --- exec ---

    async def exec(self, step: Step, limits: Limits, sink: OutputSink) -> StepEnd:
        """Run one step; see the port. *Raises* GuestLost, ForkFailed, FileNotInSandbox."""
        if self._killed is not None:
            return never_ran(self._killed)
        if self._state not in (_PARKED, _RESTING) or self._answer.awaited:
            raise GuestLost("the sandbox is not waiting for a program", step=BEFORE_START)
        files = (*step.files, InputFile(STDIN_FILE, step.stdin)) if step.lasting and step.stdin else step.files
        before, self._state = self._state, _STARTING
        try:
            if files:
                await self._put(files, before)
            if self._home.kept:
                await self._prepare_lasting(step, limits)
            else:
                await self._slot.apply(limits)
            ended = await self._start(step, limits, sink, again=before == _RESTING)
        except asyncio.CancelledError:
            self.kill(Outcome.SIGNALLED)
            raise
        except TierError as error:
            if (killed := self._killed_with()) is not None:
                return never_ran(killed)
            if isinstance(error, GuestLost):
                raise GuestLost(error.message, step=BEFORE_START) from error
            raise
        try:
            return await ended
        except asyncio.CancelledError:
            self.kill(Outcome.SIGNALLED)
            raise

    async def _put(self, files: Sequence[InputFile], before: int) -> None:
        """Write the step's files; the process waits for another step when it is not to be had with these."""
        try:
            await self._home.put(files)
        except CallerError:
            if not self._died:
                self._state = before
            raise

    async def _prepare_lasting(self, step: Step, limits: Limits) -> None:
        """Make ready for a step of one among several in a sandbox that is kept."""
        self._lasting = step.lasting
        await self._slot.apply_to_process(limits)
        self._since = self._slot.meter.mark()
        self._started_ns, self._claimed_ns, self._interrupted = 0, None, False

    async def _start(self, step: Step, limits: Limits, sink: OutputSink, *, again: bool) -> asyncio.Future[StepEnd]:
        """Send RUN: in one write where it fits, which is nearly always; the child is woken by it."""
        if self._died:
            raise GuestLost("the parked sandbox had died")
        frame = self._orders.message(step, limits, again=again)
        self._showing = Showing(sink) if step.rich else None
        self._frames.max_len = Showing.FRAME_MAX if step.rich else _FRAME_MAX
        self._sent_ns = time.monotonic_ns()
        try:
            rest = self._line.begin(frame)
            # While the child wakes up.
            self._streams.begin(b"" if step.lasting else step.stdin, sink, keep_stdin=step.keep_stdin)
            self._watch.begin(limits.cpu_s, self._since, live=step.live)
            if rest:
                await self._line.finish(rest)
        except (BrokenPipeError, ConnectionResetError):
            raise GuestLost("the parked sandbox had died") from None
        # A frame that stays incomplete is never run.
        if self._died:
            raise GuestLost("the sandbox died while taking its program")
        self._state = _RUNNING
        return self._answer.begin()

    @property
    def _died(self) -> bool:
        return self._state != _STARTING

    async def feed(self, data: bytes) -> None:
        """Write to stdin at the program's pace; see the port."""
        await self._streams.feed(data)

    def signal(self, number: int) -> None:
        """Signal the running program and its group."""
        if self._state == _RUNNING:
            self._interrupted = self._interrupted or number == signal.SIGINT
            self._slot.signal(number)

    def _killed_with(self) -> Outcome | None:
        return self._killed

    # --- the end ---

    def exit_event(self, event: m.WardenEvent) -> None:
        """The warden reaped the program."""
        if self._state == _FORKING:
            self._ctl_readable()  # it may have said why, and its end be heard of first
        self.died()
        if self._state == _RESTING:
            self._state = _OVER
        if self._state in (_FORKING, _PARKED):
            if self._state == _PARKED:
                self._state = _OVER
            self.fork_failed(m.STEPS.index("exec"), errno.ECHILD)
            return
        if self._state == _STARTING:
            self._state = _OVER
            self._hang_up()
        if self._state != _RUNNING:
            return
        self._reaped = event
        ready_ns, done_ns = self._claimed_ns or (self._started_ns, time.monotonic_ns())
        if os.WIFSIGNALED(event.status):
            self._signalled(os.WTERMSIG(event.status), done_ns)
        else:
            self._exited(os.WEXITSTATUS(event.status), ready_ns, done_ns)

    def _exited(self, code: int, ready_ns: int, done_ns: int) -> None:
        outcome = outcome_of_failure(*self._slot.meter.events(self._since)) if code else Outcome.EXITED
        if outcome is not None:
            # A fork bomb that was interrupted: what was forked in that moment heard of nothing and would go on.
            bomb = self._interrupted and outcome is Outcome.PIDS_LIMIT
            self._lasting = self._lasting and not bomb
            self._finish(outcome, code, None, ready_ns, done_ns)
            if bomb:
                self._home.kill_all()
            return
        # Whether the disk was full only the inside knows; ask before the answer.
        self._state = _RESTING if self._rests else _OVER
        self._slot.tasks.spawn(self._exited_after_look(code, ready_ns, done_ns))

    async def _exited_after_look(self, code: int, ready_ns: int, done_ns: int) -> None:
        full = await self._home.agent.disk_is_full()
        self._finish(Outcome.DISK_LIMIT if full else Outcome.EXITED, code, None, ready_ns, done_ns)

    def _signalled(self, number: int, now: int) -> None:
        outcome = outcome_of_signal(number, self._slot.meter.events(self._since)[0])
        self._finish(outcome, None, number, self._started_ns, now)

    def kill(self, outcome: Outcome) -> None:
        """Kill the program now, or everything in the sandbox; see the port."""
        alone = outcome is Outcome.SIGNALLED and not self._lasting
        kill = partial(self._home.kill_program, self, self._slot) if alone else self._home.kill_all
        if self._state == _RUNNING:
            # The figures first: with its last process the slot's cgroup is gone.
            self._finish(outcome, None, signal.SIGKILL, self._started_ns, time.monotonic_ns())
            kill()
            self._answer.give_up_reading(outcome)
        elif self._state in (_PARKED, _STARTING):
            self._killed = outcome
            self._state = _OVER
            kill()
            self._hang_up()
        elif self._state in (_RESTING, _OVER):
            self._answer.give_up_reading(outcome)

    def _finish(self, outcome: Outcome, code: int | None, number: int | None, ready_ns: int, done_ns: int) -> None:
        if self._state == _CLOSED:
            return
        alive = number is None and self._rests and self._state != _OVER
        self._state = _RESTING if alive else _OVER
        self._watch.end()
        ready_ns, done_ns = bounded_stamps(self._sent_ns, ready_ns, done_ns)
        try:
            figures = self._slot.figures(self._reaped, self._since)
        except OSError as error:
            self._answer.fail(GuestLost(f"the sandbox was lost: its cgroup is gone ({error.strerror})"))
            return
        end = StepEnd(outcome, code, number, ready_ns, done_ns, usage_of(figures, done_ns - ready_ns), alive)
        if self._streams.drain():
            self._answer.give(end)
        else:
            self._answer.keep(end)

    @property
    def _rests(self) -> bool:
        """Whether the process stays for another step after END."""
        return self._lasting and self._reaped is None

    def resume(self) -> None:
        """Read output again after the sink refused more; a program that is over is answered once all is read."""
        self._streams.resume()
        if self._answer.kept is not None and self._streams.drain():
            self._answer.give(self._answer.kept)

    # --- close ---

    def release(self) -> None:
        """Have the process killed, with a sandbox all in it, and give up this side's descriptors; who waits is told."""
        if self._state == _CLOSED:
            return
        self._state = _CLOSED
        self._watch.end()
        self._loop.remove_reader(self._line.fd)
        self._slot.close()
        self._hang_up()
        self._streams.close()
        self._line.close()
        if not self._parked.done():
            self._parked.set_exception(ForkFailed("the sandbox was closed while it was forked"))
            self._parked.exception()
        self._answer.fail(GuestLost("the sandbox was closed"))

    def _hang_up(self) -> None:
        """Wake whoever waits for the process to take bytes."""
        self._line.hang_up()

    def died(self) -> None:
        """The process is dead; of one that is closed while it dies, only the freed slot says so."""
        if not self._gone.done():
            self._gone.set_result(None)

    async def gone(self) -> None:
        """Wait until the process is dead."""
        await asyncio.shield(self._gone)

    async def close(self) -> None:
        """Destroy the process, with a sandbox all in it, and wait until the slot is free."""
        self.release()
        await self._slot.closed()
