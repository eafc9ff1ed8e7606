"""One fake process in a sandbox: a sandbox's first (`FakeSandbox`), or one that joined it.

    PARKED --exec--> RUNNING --the end | kill--> OVER
                      ^   | the end of a lasting one's step
                      +- RESTING

Everything that waits in a step waits in `wait_for`, where a kill, a signal and a close find it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum, auto
from signal import SIGINT, SIGKILL
from typing import TYPE_CHECKING

from sandfork.errors import GuestLost
from sandfork.model import Limits, Outcome, Step, Usage
from sandfork.tiers.base import BEFORE_START, OutputSink, StepEnd
from sandfork.tiers.fake.files import WORK_DIR
from sandfork.tiers.fake.process import FakeProcess, Stopped

if TYPE_CHECKING:
    from sandfork.tiers.fake.sandbox import FakeSandbox
    from sandfork.tiers.fake.tier import FakeTier

PIPE_BYTES = 64 << 10
INTERRUPTED = 128 + SIGINT


class _State(Enum):
    PARKED = auto()
    RUNNING = auto()
    RESTING = auto()
    OVER = auto()
    CLOSED = auto()


class Stdin:
    """What can be read of a step's stdin, and whether there may come more."""

    def __init__(self, content: bytes = b"", *, stays_open: bool = False) -> None:
        self.content = content
        self.open = stays_open
        self.taken = asyncio.Event()

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        data, self.content = self.content[:count], self.content[count:]
        self.taken.set()
        return data


class FakeGuest:
    """See the module, and `tiers.base.Process` and `Terminal` for the ports."""

    def __init__(
        self, tier: FakeTier, home: FakeSandbox | None = None, terminal: tuple[int, int] | None = None
    ) -> None:
        """`home` is the sandbox that it joins; `terminal` the columns and rows of its terminal."""
        self.terminal = terminal
        self.kept: dict[str, bytes] = {}
        self.trapped = False
        self.stdin = Stdin()
        self._joined = home
        self._tier = tier
        self._state = _State.PARKED
        self._step: Step | None = None
        self._killed: Outcome | None = None
        self._signal: int | None = None
        self._paused = False
        self._wake: asyncio.Future[None] | None = None
        self._begun = asyncio.Event()

    @property
    def home(self) -> FakeSandbox:
        """The sandbox that it is in."""
        assert self._joined is not None
        return self._joined

    # --- a step ---

    async def exec(self, step: Step, limits: Limits, sink: OutputSink) -> StepEnd:
        """Play the step's program."""
        if self._state is _State.OVER and self._killed is not None:
            return self._end(self._tier.clock_ns(), Stopped(self._killed, None, SIGKILL, dead=True))
        if self._state not in (_State.PARKED, _State.RESTING):
            raise GuestLost("the fake process is not waiting for a program", step=BEFORE_START)
        self.home.files.put(step.files)
        if step.code is not None and step.file_name is not None and not step.lasting:
            self.home.files.contents[f"{WORK_DIR}/{step.file_name}"] = step.code
        self._begin(step)
        ready_ns = self._tier.clock_ns()
        over = True
        try:
            stopped = await self._play(FakeProcess(self, step, sink))
            over = stopped.dead or not step.lasting
        except asyncio.CancelledError:
            self.kill(Outcome.SIGNALLED)
            raise
        finally:
            self._finish(over=over)
        return self._end(ready_ns, stopped, alive=not over)

    def _begin(self, step: Step) -> None:
        self._state = _State.RUNNING
        self._step = step
        self.stdin = Stdin(step.stdin, stays_open=step.keep_stdin)
        self._paused = False
        self._begun.set()

    def _finish(self, *, over: bool) -> None:
        if self._state is _State.RUNNING:
            self._state = _State.OVER if over else _State.RESTING
        self._killed = self._signal = None
        self.stdin.open = False
        self.stdin.taken.set()

    async def _play(self, process: FakeProcess) -> Stopped:
        """Run the program; return how it ended."""
        try:
            self.check()
            return Stopped(Outcome.EXITED, await self._tier.program(process), dead=False)
        except Stopped as stopped:
            return stopped.with_traceback(None)  # its frames lead to whoever holds it

    def _end(self, ready_ns: int, stopped: Stopped, *, alive: bool = False) -> StepEnd:
        done_ns = self._tier.clock_ns()
        usage = Usage(wall_s=(done_ns - ready_ns) * 1e-9, processes=1)
        return StepEnd(stopped.outcome, stopped.exit_code, stopped.signal, ready_ns, done_ns, usage, alive)

    # --- for the program ---

    def check(self) -> None:
        """End the step when it was killed, signalled or its process closed."""
        if self._state is _State.CLOSED:
            raise GuestLost("the fake process was closed under its program")
        if self._killed is not None:
            raise Stopped(self._killed, None, SIGKILL, dead=True)
        if self._signal == SIGINT and self._step is not None and self._step.lasting:
            raise Stopped(Outcome.EXITED, INTERRUPTED, dead=False)
        if self._signal is not None:
            raise Stopped(Outcome.SIGNALLED, None, self._signal, dead=True)

    async def wait_for(self, happened: Callable[[], bool]) -> None:
        """Wait until something has happened, which `wake` has it look for; ends early as `check` does."""
        self.check()
        while not happened():
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None
            self.check()

    async def pause(self) -> None:
        """Wait for `resume`."""
        self._paused = True
        await self.wait_for(lambda: not self._paused)

    def wake(self) -> None:
        """Have the program look whether what it waits for has happened."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # --- from outside ---

    def kill(self, outcome: Outcome) -> None:
        """Kill the program, for most outcomes every process of a kept sandbox; the first outcome given stands."""
        if self._state in (_State.PARKED, _State.RUNNING) and self._killed is None:
            self._killed = outcome
            self._stop()
            if outcome is not Outcome.SIGNALLED or (self._step is not None and self._step.lasting):
                self.home.clear(but=self)

    def killed_along(self) -> None:
        """Die because another process of the sandbox was killed."""
        if self._state is _State.RUNNING:
            self._killed = self._killed or Outcome.SIGNALLED
        self._stop()

    def _stop(self) -> None:
        if self._state in (_State.PARKED, _State.RESTING):
            self._state = _State.OVER
        self.wake()

    def signal(self, number: int) -> None:
        """Send a signal to the running program."""
        if self._state is _State.RUNNING and not (number == SIGINT and self.trapped):
            self._signal = number
            self.wake()

    def resume(self) -> None:
        """Go on after a pause."""
        self._paused = False
        self.wake()

    async def feed(self, data: bytes) -> None:
        """Add to stdin and wait until there is room for more; no bytes close it."""
        await self._begun.wait()
        stdin = self.stdin
        if not data:
            stdin.open = False
        elif stdin.open:
            stdin.content += data
        self.wake()
        while stdin.open and len(stdin.content) > PIPE_BYTES:
            stdin.taken.clear()
            await stdin.taken.wait()

    def resize(self, cols: int, rows: int) -> None:
        """Tell the terminal its size."""
        if self.terminal is not None:
            self.terminal = cols, rows

    def release(self) -> bool:
        """End the process; False when that was done before."""
        if self._state is _State.CLOSED:
            return False
        self._state = _State.CLOSED
        self.stdin.open = False
        self.stdin.taken.set()
        self._begun.set()
        self.wake()
        return True

    async def close(self) -> None:
        """Destroy the process."""
        if self.release():
            await self._tier.pass_close_time()
            self.home.forget(self)
            self._tier.alive.discard(self)
