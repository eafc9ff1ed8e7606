"""One sandbox of the process tier, from fork to close.

    FORKING --READY--> PARKED --exec--> STARTING --RUN--> RUNNING --END | EXIT | kill--> OVER --close--> CLOSED

The answer does not wait for the process to die: END, which the program's own process sends as its last act, carries
the exit code; EXIT, the warden's word after wait4, comes for everything that ended otherwise. What END says is the
sandbox's claim and can harm only its own answer; limits and usage are the kernel's.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sandfork.errors import ForkFailed, GuestLost, TierError
from sandfork.model import InputFile, Limits, Outcome, Step, Usage
from sandfork.tiers.base import BEFORE_START, Collected, OutputSink, StepEnd
from sandfork.tiers.process import messages as m
from sandfork.tiers.process.agent import AgentClient
from sandfork.tiers.process.run import run_frame
from sandfork.tiers.process.streams import Streams

if TYPE_CHECKING:
    from sandfork.tiers.process.slots import Tenancy

_WATCH_AFTER_S = 0.002  # a program shorter than this is read once, at its end
_FORK_S = 30.0
_FORKING, _PARKED, _STARTING, _RUNNING, _OVER, _CLOSED = range(6)

_SIGNAL_OUTCOME = {
    signal.SIGXCPU: Outcome.CPU_LIMIT,
    signal.SIGXFSZ: Outcome.DISK_LIMIT,
    signal.SIGSYS: Outcome.POLICY_VIOLATION,
}


class ProcessSandbox:
    """A sandbox in a slot. Made by its template; see `tiers.base.Sandbox` for the port."""

    def __init__(
        self, slot: Tenancy, ctl: socket.socket, streams: Streams, agent: AgentClient, base_env: bytes
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._slot = slot
        self._ctl = ctl
        self._ctl_fd = ctl.fileno()
        self._streams = streams
        self._agent = agent
        self._base_env = base_env
        self._frames = m.FrameReader(64)
        self._state = _FORKING
        self._parked: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[StepEnd] | None = None
        self._unread: StepEnd | None = None  # the program is over, and the sink does not take its last output yet
        self._killed: Outcome | None = None  # before the program began
        self._timer: asyncio.TimerHandle | None = None
        self._cpu_timer: asyncio.TimerHandle | None = None
        self._sending = False
        self._started_ns = 0
        self._claimed_ns: tuple[int, int] | None = None
        self._reaped: m.WardenEvent | None = None
        self._exec_failed = False
        self._sent_ns = 0
        self._cpu_s = 0.0
        self._loop.add_reader(self._ctl_fd, self._ctl_readable)

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
        if not self._parked.done():
            what = f"{m.step_name(step)}: {os.strerror(error)}"
            self._parked.set_exception(
                ForkFailed(f"forking a sandbox failed at {what}", step=m.step_name(step), errno=error)
            )
        elif self._ended is not None and not self._ended.done():
            self._state = _OVER
            self._stop_watching()
            self._ended.set_exception(GuestLost("the sandbox's init died"))
        elif self._state in (_PARKED, _STARTING):
            self._state = _OVER
            self._hang_up()

    # --- ctl ---

    def _ctl_readable(self) -> None:
        if self._state == _OVER:
            # Nothing it can say matters any more, and it may have much to say.
            self._loop.remove_reader(self._ctl_fd)
            return
        try:
            data = self._ctl.recv(4096)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            # Not the end of the program: it may have closed or exec'd. EXIT is.
            self._loop.remove_reader(self._ctl_fd)
            if self._state == _FORKING:
                self.fork_failed(m.STEPS.index("clone"), errno.ECHILD)
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
            self._slot.meter.baseline()
            self._parked.set_result(None)
        elif kind == m.ENDED and self._state == _RUNNING and len(body) == m.END.size:
            code, _, ready_ns, done_ns = m.END.unpack(body)
            if self._slot.means.rlimits:
                self._claimed_ns = ready_ns, done_ns  # what it used is told by wait4 only, in a moment
            else:
                self._exited(code & 0xFF, ready_ns, done_ns)
        elif kind == m.STARTED and self._state == _RUNNING and not self._started_ns and len(body) == 8:
            self._started_ns = m.NUMBER.unpack(body)[0] or 1  # a forged 0 would leave it open to be sent for ever
        elif kind == m.FAILED and self._state == _FORKING and len(body) == m.FAIL.size:
            self.fork_failed(*m.FAIL.unpack(body))
        elif kind == m.FAILED and self._state == _RUNNING and not self._exec_failed:
            self._exec_failed = True  # the exit status, which follows, says it to the caller
        elif self._state != _OVER:
            self._forged()

    def _forged(self) -> None:
        if self._state == _RUNNING:
            self.kill(Outcome.POLICY_VIOLATION)
        elif self._state in (_FORKING, _PARKED):
            self._state = _OVER
            self.fork_failed(m.STEPS.index("run_frame"), errno.EPROTO)

    # --- exec ---

    async def exec(self, step: Step, limits: Limits, sink: OutputSink) -> StepEnd:
        """Run one step; see the port. *Raises* GuestLost, ForkFailed, FileNotInSandbox."""
        if self._killed is not None:
            return self._never_ran()
        if self._state != _PARKED:
            raise GuestLost("the sandbox is not waiting for a program", step=BEFORE_START)
        self._state = _STARTING
        try:
            if step.files:
                await self._agent.put(step.files)
            await self._slot.apply(limits)
            ended = await self._start(step, limits, sink)
        except asyncio.CancelledError:
            self.kill(Outcome.SIGNALLED)
            raise
        except TierError as error:
            if self._was_killed():
                return self._never_ran()
            if isinstance(error, GuestLost):
                raise GuestLost(error.message, step=BEFORE_START) from error
            raise
        try:
            return await ended
        except asyncio.CancelledError:
            self.kill(Outcome.SIGNALLED)
            raise

    async def _start(self, step: Step, limits: Limits, sink: OutputSink) -> asyncio.Future[StepEnd]:
        """Send RUN: in one write where it fits, which is nearly always; the child is woken by it."""
        if self._state != _STARTING:
            raise GuestLost("the parked sandbox had died")
        frame = run_frame(step, limits, self._base_env, self._slot.means, self._slot.work_dir)
        self._cpu_s = limits.cpu_s
        self._streams.begin(step.stdin, sink)
        self._timer = self._loop.call_later(_WATCH_AFTER_S, self._watch)
        self._sent_ns = time.monotonic_ns()
        try:
            sent = self._ctl.send(frame)
        except BlockingIOError:
            sent = 0
        except (BrokenPipeError, ConnectionResetError):
            raise GuestLost("the parked sandbox had died") from None
        if sent < len(frame):
            await self._send_rest(memoryview(frame)[sent:])
        self._ended = self._loop.create_future()
        self._state = _RUNNING
        return self._ended

    async def _send_rest(self, rest: memoryview) -> None:
        """The socket is full: wait for the child to take more. A frame that stays incomplete is never run."""
        self._sending = True
        try:
            await self._loop.sock_sendall(self._ctl, rest)
        except (BrokenPipeError, ConnectionResetError):
            raise GuestLost("the sandbox died while taking its program") from None
        finally:
            self._sending = False
            if self._state == _CLOSED:
                self._ctl.close()
        if self._state != _STARTING:
            raise GuestLost("the sandbox died while taking its program")

    def _was_killed(self) -> bool:
        return self._killed is not None

    def _never_ran(self) -> StepEnd:
        assert self._killed is not None
        now = time.monotonic_ns()
        return StepEnd(self._killed, None, signal.SIGKILL, now, now, Usage())

    def _watch(self) -> None:
        """The program is not a short one: read as it writes, and look at the processor time it uses."""
        if self._state != _RUNNING:
            return
        self._streams.watch()
        self._check_cpu()

    def _check_cpu(self) -> None:
        """Kill at the cpu limit, else look again when it could be reached at the earliest with every core busy."""
        if self._state != _RUNNING:
            return
        left_s = self._cpu_s - self._slot.meter.cpu_ns() / 1e9
        if left_s <= 0:
            self.kill(Outcome.CPU_LIMIT)
            return
        self._cpu_timer = self._loop.call_later(max(0.02, left_s / self._slot.cores), self._check_cpu)

    # --- the end ---

    def exit_event(self, event: m.WardenEvent) -> None:
        """The warden reaped the program."""
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
        outcome = Outcome.EXITED
        if code:
            oom_kills, pids_denied = self._slot.meter.events()
            if oom_kills:
                outcome = Outcome.OUT_OF_MEMORY
            elif pids_denied:
                outcome = Outcome.PIDS_LIMIT
            else:
                # Whether the disk was full only the inside knows; ask before the answer.
                self._state = _OVER
                self._slot.tasks.spawn(self._exited_after_look(code, ready_ns, done_ns))
                return
        self._finish(outcome, code, None, ready_ns, done_ns)

    async def _exited_after_look(self, code: int, ready_ns: int, done_ns: int) -> None:
        try:
            async with asyncio.timeout(0.5):
                full = await self._agent.free_bytes() == 0
        except (GuestLost, OSError, TimeoutError):
            full = False
        self._finish(Outcome.DISK_LIMIT if full else Outcome.EXITED, code, None, ready_ns, done_ns)

    def _signalled(self, number: int, now: int) -> None:
        outcome = _SIGNAL_OUTCOME.get(signal.Signals(number), Outcome.SIGNALLED) if number < 32 else Outcome.SIGNALLED
        if outcome is Outcome.SIGNALLED and self._slot.meter.events()[0]:
            outcome = Outcome.OUT_OF_MEMORY
        self._finish(outcome, None, number, self._started_ns, now)

    def kill(self, outcome: Outcome) -> None:
        """Kill everything in the sandbox now; see the port."""
        if self._state == _RUNNING:
            # The figures first: with its last process the slot's cgroup is gone.
            self._finish(outcome, None, signal.SIGKILL, self._started_ns, time.monotonic_ns())
            self._slot.close()
            self._answer_unread(outcome)
        elif self._state in (_PARKED, _STARTING):
            self._killed = outcome
            self._state = _OVER
            self._slot.close()
            self._hang_up()
        elif self._state == _OVER:
            self._answer_unread(outcome)

    def _finish(self, outcome: Outcome, code: int | None, number: int | None, ready_ns: int, done_ns: int) -> None:
        if self._state == _CLOSED:
            return
        self._state = _OVER
        self._stop_watching()
        now = time.monotonic_ns()
        ready_ns = min(max(ready_ns, self._sent_ns), now)
        done_ns = min(max(done_ns, ready_ns), now)
        try:
            figures = self._slot.figures(self._reaped)
        except OSError as error:
            self._lost(f"its cgroup is gone ({error.strerror})")
            return
        usage = Usage(
            cpu_user_s=figures.cpu_user_ns / 1e9,
            cpu_system_s=figures.cpu_system_ns / 1e9,
            wall_s=(done_ns - ready_ns) / 1e9,
            memory_peak_bytes=figures.memory_peak_bytes,
            memory_current_bytes=figures.memory_bytes,
            processes=figures.processes,
        )
        end = StepEnd(outcome, code, number, ready_ns, done_ns, usage)
        if self._streams.drain():
            self._answer(end)
        else:
            self._unread = end

    def _lost(self, reason: str) -> None:
        """Nobody can tell any more what the program used or how it ended."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(GuestLost(f"the sandbox was lost: {reason}"))

    def resume(self) -> None:
        """Read output again after the sink refused more; a program that is over is answered once all is read."""
        self._streams.resume()
        if self._unread is not None and self._streams.drain():
            self._answer(self._unread)

    def _answer(self, end: StepEnd) -> None:
        self._unread = None
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(end)

    def _answer_unread(self, outcome: Outcome) -> None:
        """Killed: answer without what the sink did not take."""
        if self._unread is not None:
            self._answer(replace(self._unread, outcome=outcome))

    def _stop_watching(self) -> None:
        for timer in (self._timer, self._cpu_timer):
            if timer is not None:
                timer.cancel()
        self._streams.unwatch()

    # --- files ---

    async def put(self, files: Sequence[InputFile]) -> None:
        """Write files into the sandbox."""
        await self._agent.put(files)

    async def collect(self, patterns: Sequence[str], max_bytes: int) -> Collected:
        """Read regular files matching paths or globs."""
        return await self._agent.collect(patterns, max_bytes)

    # --- close ---

    def release(self) -> None:
        """Have everything in the sandbox killed and give up this side's descriptors; what waits here is told."""
        if self._state == _CLOSED:
            return
        before = self._state
        self._state = _CLOSED
        self._stop_watching()
        self._loop.remove_reader(self._ctl_fd)
        self._slot.close()
        self._hang_up()
        self._streams.close()
        self._agent.close()
        if not self._sending:
            self._ctl.close()
        if not self._parked.done():
            self._parked.set_exception(ForkFailed("the sandbox was closed while it was forked"))
            self._parked.exception()
        if before in (_RUNNING, _OVER) and self._ended is not None and not self._ended.done():
            self._ended.set_exception(GuestLost("the sandbox was closed"))
            self._ended.exception()

    def _hang_up(self) -> None:
        """Wake whoever waits for the sandbox to take or give bytes."""
        self._agent.hang_up()
        if self._sending:
            self._ctl.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        """Destroy everything in the sandbox and wait until the slot is free."""
        self.release()
        await self._slot.closed()
