"""Where a program's output goes on its way out of the tier: capped, and kept unless someone follows it."""

from __future__ import annotations

from collections.abc import Callable

from sandfork.model import Display, Stream
from sandfork.tiers.base import OutputSink


class Fold:
    """An `OutputSink` that keeps everything, for a plain reply."""

    __slots__ = ("_stderr", "_stdout", "displays")

    def __init__(self) -> None:
        self.displays: list[Display] = []
        self._stdout: list[bytes] = []
        self._stderr: list[bytes] = []

    def output(self, stream: Stream, data: bytes) -> bool:
        """Keep `data`; never asks for a pause."""
        (self._stdout if stream == Stream.STDOUT else self._stderr).append(data)
        return True

    def display(self, shown: Display) -> None:
        """Keep `shown`."""
        self.displays.append(shown)

    def joined(self) -> tuple[bytes, bytes]:
        """Return stdout and stderr."""
        return b"".join(self._stdout), b"".join(self._stderr)


class Cap:
    """An `OutputSink` that passes on at most `cap_bytes` of each stream.

    A stream that writes more is cut at exactly the cap. `overflow`, when set, is called once then; stopping the
    program is its duty, and what the program still writes is dropped.
    """

    __slots__ = ("_cap", "_sink", "_sizes", "exceeded", "overflow", "started")

    def __init__(self, sink: OutputSink, cap_bytes: int) -> None:
        self._sink = sink
        self._cap = cap_bytes
        self.overflow: Callable[[], None] | None = None
        self._sizes = [0, 0, 0]
        self.started = False
        self.exceeded = False

    @property
    def passed_bytes(self) -> tuple[int, int]:
        """How much of stdout and stderr was passed on."""
        return self._sizes[Stream.STDOUT], self._sizes[Stream.STDERR]

    def output(self, stream: Stream, data: bytes) -> bool:
        """Pass on what still fits and return what the sink behind says."""
        self.started = True
        size = self._sizes[stream]
        room = self._cap - size
        over = len(data) > room
        if over:
            data = data[:room]
        # Counted first: stopping the program brings what else it wrote, before `overflow` returns.
        self._sizes[stream] = size + len(data)
        if over and not self.exceeded:
            self.exceeded = True
            if self.overflow is not None:
                self.overflow()
        return self._sink.output(stream, data) if data else True

    def display(self, shown: Display) -> None:
        """Pass on a rich value; the tier bounds these by themselves."""
        self.started = True
        self._sink.display(shown)
