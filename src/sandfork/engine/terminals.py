"""A terminal of a session: a command on a pseudo terminal that stays when its client goes, and what it showed last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from sandfork.errors import SandforkError
from sandfork.model import Display, Limits, Step, Stream, TerminalSpec, TerminalState
from sandfork.tiers.base import Process
from sandfork.tiers.base import Terminal as TerminalPort

SHOWN_BYTES = 64 << 10
"""How much of what it showed a new client is told."""
UNREAD_BYTES = 256 << 10
"""How much may wait for a client before the program has to."""
_ENVIRONMENT = (("TERM", "xterm-256color"),)


class Terminal:
    """See the module. Owns the process, and is the sink of its output."""

    def __init__(
        self,
        name: str,
        session: str,
        spec: TerminalSpec,
        process: Process,
        *,
        now_s: float,
        left: Callable[[], None],
    ) -> None:
        """`process` joined with a terminal. `now_s` is Unix time; `left` is called when the client goes away."""
        self.name = name
        self._session = session
        self._spec = spec
        self._process = process
        self._created_s = now_s
        self._tell_left = left
        self._shown = bytearray()
        self._client: Connection | None = None
        self.exit_code: int | None = None
        self.over = False

    @property
    def connected(self) -> bool:
        """Whether a client follows it."""
        return self._client is not None

    def state(self) -> TerminalState:
        """Return what there is to tell of it."""
        spec = self._spec
        return TerminalState(self.name, self._session, spec.argv, spec.cols, spec.rows, self._created_s, self.exit_code)

    async def run(self, limits: Limits) -> None:
        """Run the command to its end; however it ends, who follows is told."""
        step = Step(self._spec.argv, env=(*_ENVIRONMENT, *self._spec.env), keep_stdin=True)
        try:
            end = await self._process.exec(step, limits, self)
            self.exit_code = end.exit_code if end.exit_code is not None else 128 + (end.signal or 0)
        except SandforkError:
            self.exit_code = 128 + 9
        finally:
            self.over = True
            if self._client is not None:
                self._client.arrived()
            await self._process.close()

    def output(self, stream: Stream, data: bytes) -> bool:
        """Keep what is shown, and pass it on to the client."""
        self._shown += data
        del self._shown[:-SHOWN_BYTES]
        return self._client is None or self._client.push(data)

    def display(self, shown: Display) -> None:
        """Nothing: a terminal shows text."""

    def connect(self) -> Connection:
        """Return a new client's end; the old client's is over."""
        if self._client is not None:
            self._client.close()
        self._client = Connection(self, bytes(self._shown))
        self._process.resume()
        return self._client

    def left(self, client: Connection) -> None:
        """A client went away: nobody holds the program up any more."""
        if self._client is client:
            self._client = None
            self._process.resume()
            self._tell_left()

    def resume(self) -> None:
        """The client has room again."""
        self._process.resume()

    async def write(self, data: bytes) -> None:
        """Type."""
        await self._process.feed(data)

    def resize(self, cols: int, rows: int) -> None:
        """Tell it its size."""
        self._spec = replace(self._spec, cols=cols, rows=rows)
        port: TerminalPort = self._process  # type: ignore[assignment]  # it joined with a terminal
        port.resize(cols, rows)

    async def close(self) -> None:
        """Destroy it."""
        if self._client is not None:
            self._client.close()
        await self._process.close()


class Connection:
    """A client's end of a terminal."""

    def __init__(self, terminal: Terminal, shown: bytes) -> None:
        self._terminal = terminal
        self._unread = bytearray(shown)
        self._arrived = asyncio.Event()
        self._gone = False
        self._full = False

    @property
    def exit_code(self) -> int | None:
        """How its command ended; None while it runs."""
        return self._terminal.exit_code

    def push(self, data: bytes) -> bool:
        """Keep what is shown until it is read; False when that is too much."""
        self._unread += data
        self._arrived.set()
        self._full = len(self._unread) >= UNREAD_BYTES
        return not self._full

    def arrived(self) -> None:
        """Wake who reads: there is something, or there will be nothing more."""
        self._arrived.set()

    async def read(self) -> bytes:
        """Return what was shown, once there is something; no bytes once it is over or another took its place."""
        while not self._unread and not self._gone and not self._terminal.over:
            self._arrived.clear()
            await self._arrived.wait()
        if self._gone:
            return b""
        shown = bytes(self._unread)
        self._unread.clear()
        if self._full:
            self._full = False
            self._terminal.resume()
        return shown

    async def write(self, data: bytes) -> None:
        """Type."""
        if not self._gone and data:
            await self._terminal.write(data)

    def close(self) -> None:
        """Go away; the terminal stays."""
        if not self._gone:
            self._gone = True
            self._arrived.set()
            self._terminal.left(self)
