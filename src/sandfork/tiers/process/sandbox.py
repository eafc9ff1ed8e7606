"""One sandbox of the process tier, from fork to close.

    FORKING --READY--> PARKED --exec--> RUNNING --END | EXIT | kill--> OVER --close--> CLOSED

The answer does not wait for the process to die: END, which the program's own process sends as its last act, carries the
exit code; EXIT, the warden's word after wait4, comes for everything that ended otherwise. What END says is the sandbox's
claim and can harm only its own answer; limits and usage are the kernel's.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sandfork.errors import ForkFailed, GuestLost
from sandfork.model import InputFile, Limits, Outcome, Step, Stream, Usage
from sandfork.tiers.base import Collected, OutputSink, StepEnd
from sandfork.tiers.process import messages as m
from sandfork.tiers.process.agent import AgentClient

if TYPE_CHECKING:
    from sandfork.tiers.process.slots import Slot

_WATCH_AFTER_S = 0.002  # a program shorter than this is read once, at its end
_READ = 65536
_BURST = 16  # reads per wake-up and stream
_CLOSE_S = 15.0
_FORKING, _PARKED, _RUNNING, _OVER, _CLOSED = range(5)

_SIGNAL_OUTCOME = {
    signal.SIGXCPU: Outcome.CPU_LIMIT,
    signal.SIGXFSZ: Outcome.DISK_LIMIT,
    signal.SIGSYS: Outcome.POLICY_VIOLATION,
}


class ProcessSandbox:
    """A sandbox in a slot. Made by its template; see `tiers.base.Sandbox` for the port."""

    def __init__(
        self, slot: Slot, ctl: socket.socket, stdio: tuple[int, int, int], agent: AgentClient, base_env: bytes
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._slot = slot
        self._ctl = ctl
        self._ctl_fd = ctl.fileno()
        self._stdin, self._stdout, self._stderr = stdio
        self._agent = agent
        self._base_env = base_env
        self._frames = m.FrameReader(64)
        self._state = _FORKING
        self._parked: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[StepEnd] | None = None
        self._sink: OutputSink | None = None
        self._watching: set[int] = set()
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._cpu_timer: asyncio.TimerHandle | None = None
        self._stdin_left = memoryview(b"")
        self._started_ns = 0
        self._sent_ns = 0
        self._cpu_s = 0.0
        self._run_errno = 0
        self._loop.add_reader(self._ctl_fd, self._ctl_readable)

    # --- fork ---

    async def parked(self) -> None:
        """Wait until the sandbox is confined, warmed and waiting. *Raises* ForkFailed."""
        await self._parked

    def fork_failed(self, step: int, error: int) -> None:
        """The warden, the zygote or the child itself could not go on."""
        if not self._parked.done():
            what = f"{m.step_name(step)}: {os.strerror(error)}"
            self._parked.set_exception(
                ForkFailed(f"forking a sandbox failed at {what}", step=m.step_name(step), errno=error)
            )
        elif self._ended is not None and not self._ended.done():
            self._ended.set_exception(GuestLost("the sandbox's init died"))

    # --- ctl ---

    def _ctl_readable(self) -> None:
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
                self.fork_failed(m.STEPS.index("clone"), 10)
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
            self._exited(code & 0xFF, ready_ns, done_ns)
        elif kind == m.STARTED and self._state == _RUNNING and not self._started_ns and len(body) == 8:
            (self._started_ns,) = m.NUMBER.unpack(body)
        elif kind == m.FAILED and len(body) == m.FAIL.size:
            step, error = m.FAIL.unpack(body)
            if self._state == _FORKING:
                self.fork_failed(step, error)
        elif self._state != _OVER:
            self._forged()

    def _forged(self) -> None:
        if self._state == _RUNNING:
            self.kill(Outcome.POLICY_VIOLATION)
        elif self._state in (_FORKING, _PARKED):
            self._state = _OVER
            self.fork_failed(m.STEPS.index("run_frame"), 71)

    # --- exec ---

    async def exec(self, step: Step, limits: Limits, sink: OutputSink) -> StepEnd:
        """Run one step; see the port. *Raises* GuestLost, FileNotInSandbox."""
        if self._state != _PARKED:
            raise GuestLost("the sandbox is not waiting for a program")
        if step.files:
            await self._agent.put(step.files)
        await self._slot.apply(limits)
        self._sink = sink
        self._cpu_s = limits.cpu_s
        self._ended = self._loop.create_future()
        self._state = _RUNNING
        self._feed_stdin(step.stdin)
        self._timer = self._loop.call_later(_WATCH_AFTER_S, self._watch)
        self._sent_ns = time.monotonic_ns()
        await self._send_run(_run_frame(step, limits, self._base_env))
        try:
            return await self._ended
        except asyncio.CancelledError:
            self.kill(Outcome.SIGNALLED)
            raise

    async def _send_run(self, frame: bytes) -> None:
        """Send RUN in one write where it fits, which is nearly always; the child is woken by it."""
        try:
            sent = self._ctl.send(frame)
        except BlockingIOError:
            sent = 0
        except (BrokenPipeError, ConnectionResetError):
            self._state = _OVER
            raise GuestLost("the parked sandbox had died") from None
        if sent < len(frame):
            try:
                await self._loop.sock_sendall(self._ctl, memoryview(frame)[sent:])
            except (BrokenPipeError, ConnectionResetError):
                self._state = _OVER
                raise GuestLost("the sandbox died while taking its program") from None

    def _feed_stdin(self, data: bytes) -> None:
        self._stdin_left = memoryview(data)
        self._stdin_writable()
        if self._stdin >= 0:
            self._loop.add_writer(self._stdin, self._stdin_writable)

    def _stdin_writable(self) -> None:
        try:
            while self._stdin_left:
                self._stdin_left = self._stdin_left[os.write(self._stdin, self._stdin_left) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._stdin_left = memoryview(b"")
        self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            self._loop.remove_writer(self._stdin)
            os.close(self._stdin)
            self._stdin = -1

    def _watch(self) -> None:
        """The program is not a short one: read as it writes, and look at the processor time it uses."""
        if self._state != _RUNNING:
            return
        for fd, stream in ((self._stdout, Stream.STDOUT), (self._stderr, Stream.STDERR)):
            self._watching.add(fd)
            self._loop.add_reader(fd, self._readable, fd, stream)
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

    # --- output ---

    def _readable(self, fd: int, stream: Stream) -> None:
        if not self._pump(fd, stream, _BURST):
            self._loop.remove_reader(fd)
            self._watching.discard(fd)

    def _pump(self, fd: int, stream: Stream, reads: int) -> bool:
        """Pass on what is there, at most `reads` chunks; False at the end of the stream."""
        sink = self._sink
        for _ in range(reads):
            try:
                data = os.read(fd, _READ)
            except BlockingIOError:
                return True
            if not data:
                return False
            if sink is not None and not sink.output(stream, data):
                self._pause()
                return True
            if len(data) < 4096:
                return True
        return True

    def _pause(self) -> None:
        if self._state == _RUNNING:
            self._paused = True
            for fd in self._watching:
                self._loop.remove_reader(fd)

    def resume(self) -> None:
        """Read output again after the sink refused more."""
        if self._paused and self._state == _RUNNING:
            self._paused = False
            for fd in self._watching:
                stream = Stream.STDOUT if fd == self._stdout else Stream.STDERR
                self._loop.add_reader(fd, self._readable, fd, stream)

    def _drain(self) -> None:
        """Read what a program wrote before its end: all of it is in the pipes by now, at most their capacity."""
        if not self._paused:
            self._pump(self._stdout, Stream.STDOUT, 64)
            self._pump(self._stderr, Stream.STDERR, 64)

    # --- the end ---

    def exit_event(self, event: m.WardenEvent) -> None:
        """The warden reaped the program."""
        if self._state in (_FORKING, _PARKED):
            if self._state == _PARKED:
                self._state = _OVER
            self.fork_failed(m.STEPS.index("exec"), 10)
            return
        if self._state != _RUNNING:
            return
        now = time.monotonic_ns()
        if os.WIFSIGNALED(event.status):
            self._signalled(os.WTERMSIG(event.status), now)
        else:
            self._exited(os.WEXITSTATUS(event.status), self._started_ns, now)

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
        """Kill everything in the sandbox now; `exec` returns with this outcome."""
        if self._state == _RUNNING:
            self._slot.close()
            self._finish(outcome, None, signal.SIGKILL, self._started_ns, time.monotonic_ns())

    def _finish(self, outcome: Outcome, code: int | None, number: int | None, ready_ns: int, done_ns: int) -> None:
        self._state = _OVER
        self._drain()
        self._stop_watching()
        now = time.monotonic_ns()
        ready_ns = min(max(ready_ns, self._sent_ns), now)
        done_ns = min(max(done_ns, ready_ns), now)
        figures = self._slot.meter.figures()
        usage = Usage(
            cpu_user_s=figures.cpu_user_ns / 1e9,
            cpu_system_s=figures.cpu_system_ns / 1e9,
            wall_s=(done_ns - ready_ns) / 1e9,
            memory_peak_bytes=figures.memory_peak_bytes,
            memory_current_bytes=figures.memory_bytes,
            processes=figures.processes,
        )
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(StepEnd(outcome, code, number, ready_ns, done_ns, usage))

    def _stop_watching(self) -> None:
        for timer in (self._timer, self._cpu_timer):
            if timer is not None:
                timer.cancel()
        for fd in self._watching:
            self._loop.remove_reader(fd)
        self._watching.clear()

    # --- files ---

    async def put(self, files: Sequence[InputFile]) -> None:
        """Write files into the sandbox."""
        await self._agent.put(files)

    async def collect(self, patterns: Sequence[str], max_bytes: int) -> Collected:
        """Read regular files matching paths or globs."""
        return await self._agent.collect(patterns, max_bytes)

    # --- close ---

    async def close(self) -> None:
        """Destroy everything in the sandbox and wait until the slot is free."""
        if self._state != _CLOSED:
            self._state = _CLOSED
            self._stop_watching()
            self._loop.remove_reader(self._ctl_fd)
            self._close_stdin()
            self._slot.close()
            self._ctl.close()
            self._agent.close()
            os.close(self._stdout)
            os.close(self._stderr)
            if not self._parked.done():
                self._parked.set_exception(ForkFailed("the sandbox was closed while it was forked"))
                self._parked.exception()
        await self._slot.closed(_CLOSE_S)


def _run_frame(step: Step, limits: Limits, base_env: bytes) -> bytes:
    parts = [base_env, *(m.text(b"a", a) for a in step.argv)]
    parts += [m.text(b"e", f"{name}={value}") for name, value in step.env]
    if step.code is not None and step.file_name is not None:
        parts.append(m.text(b"f", step.file_name))
        parts.append(m.field(b"c", step.code))
    # Whole seconds: the kernel's own limit is the second line behind the cgroup's figure.
    parts.append(m.number(b"p", max(1, int(limits.cpu_s + 1.999))))
    parts.append(m.number(b"n", limits.open_files))
    parts.append(m.number(b"s", limits.disk_bytes))
    return m.frame(m.RUN, b"".join(parts))
