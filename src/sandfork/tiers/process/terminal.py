"""The server's side of a terminal: a pseudo terminal in the place of the three pipes.

The server holds the master, a process in the sandbox has the slave as its controlling terminal. Nothing in the sandbox
can name it: no devpts is mounted there. Linux 4.13 (TIOCGPTPEER).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios

from sandfork.model import Stream
from sandfork.tiers.base import OutputSink
from sandfork.tiers.process.writer import Writer

_READ = 65536
_BURST = 16
_TIOCGPTPEER, _TIOCSPTLCK = 0x5441, 0x40045431
_SIZE_MAX = 1000


def open_terminal(cols: int, rows: int) -> tuple[int, int]:
    """Return descriptors of a new terminal's master, not blocking, and slave. *Raises* OSError."""
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        # By descriptor, not by name: whatever is mounted at /dev/pts here, it is the other end of this master.
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        os.fchmod(slave, 0o666)  # the program runs as another user and may open /dev/stdin anew
        set_size(master, cols, rows)
    except OSError:
        os.close(master)
        raise
    return master, slave


def set_size(master: int, cols: int, rows: int) -> None:
    """Tell a terminal its size; the processes in its foreground get SIGWINCH."""
    size = struct.pack("HHHH", min(rows, _SIZE_MAX), min(cols, _SIZE_MAX), 0, 0)
    fcntl.ioctl(master, termios.TIOCSWINSZ, size)


class TerminalStreams:
    """Owns the master: what is typed goes in, what is shown comes out as STDOUT. In the place of `Streams`."""

    def __init__(self, master: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._master = master
        self._stdin = Writer(master)
        self._sink: OutputSink | None = None
        self._watching = False
        self.paused = False

    def begin(self, stdin: bytes, sink: OutputSink, *, keep_stdin: bool = True) -> None:
        """Type `stdin`, and give `sink` what is shown from now on."""
        self._sink = sink
        self.watch()
        self._stdin.put(stdin)

    async def feed(self, data: bytes) -> None:
        """Type; no bytes are the end-of-file character, as a user would type it."""
        await self._stdin.written()
        if self._master >= 0:
            self._stdin.put(data or b"\x04")
        await self._stdin.written()

    def resize(self, cols: int, rows: int) -> None:
        """Tell it its size."""
        if self._master >= 0:
            set_size(self._master, cols, rows)

    def watch(self) -> None:
        """Read what is shown, from now on."""
        if not self._watching and self._master >= 0:
            self._watching = True
            if not self.paused:
                self._loop.add_reader(self._master, self._readable)

    def unwatch(self) -> None:
        """Read only when `drain` is called, from now on."""
        if self._watching:
            self._watching = False
            self._loop.remove_reader(self._master)

    def _readable(self) -> None:
        if not self.paused and not self._pump():
            self.unwatch()

    def _pump(self) -> bool:
        """Pass on what is there; False once nobody in the sandbox has it open."""
        assert self._sink is not None
        for _ in range(_BURST):
            try:
                shown = os.read(self._master, _READ)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not self._sink.output(Stream.STDOUT, shown):
                self._pause()
                return True
        return True

    def _pause(self) -> None:
        self.paused = True
        if self._watching:
            self._loop.remove_reader(self._master)

    def resume(self) -> None:
        """Read again after the sink refused more."""
        if self.paused and self._master >= 0:
            self.paused = False
            if self._watching:
                self._loop.add_reader(self._master, self._readable)

    def drain(self) -> bool:
        """Pass on all that was shown up to now; False when the sink refused more before the end."""
        if not self.paused:
            self._pump()
        return not self.paused

    def close(self) -> None:
        """Close it; the processes that have it get SIGHUP."""
        if self._master >= 0:
            self.unwatch()
            self._stdin.stop()
            os.close(self._master)
            self._master = -1
