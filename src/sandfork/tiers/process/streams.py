"""The three standard streams of one sandbox, from the server's side: feed stdin, pass stdout and stderr to a sink.

A short program is read once, at its end; `watch` starts reading as it writes. When the sink refuses more, nothing is
read until `resume`: the pipes fill and the program waits in its write. Stdin is closed once what was given is written,
unless it is kept open for `feed`.
"""

from __future__ import annotations

import asyncio
import os

from sandfork.model import Stream
from sandfork.tiers.base import OutputSink
from sandfork.tiers.process.writer import Writer

_READ = 65536
_SHORT = 4096  # a read that brought less has emptied the pipe, or soon will have been called again
_BURST = 16  # reads per wake-up and stream
_WHOLE = 64  # reads that empty a pipe of any size a program may give it


class Streams:
    """Owns the server's ends of stdin, stdout and stderr."""

    def __init__(self, stdin: int, stdout: int, stderr: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._stdin = stdin
        self._sources = {Stream.STDOUT: stdout, Stream.STDERR: stderr}
        self._watched: set[Stream] = set()
        self._writer = Writer(stdin, self._stdin_written)
        self._keep_stdin = False
        self._begun: asyncio.Future[None] | None = None
        self._sink: OutputSink | None = None
        self._closed = False
        self.paused = False

    def begin(self, stdin: bytes, sink: OutputSink, *, keep_stdin: bool = False) -> None:
        """Feed `stdin`, and give `sink` what is read from now on."""
        self._sink = sink
        self._keep_stdin = keep_stdin
        self._writer.put(stdin)
        if self._begun is not None:
            self._begun.set_result(None)
            self._begun = None

    async def feed(self, data: bytes) -> None:
        """Write more to a stdin that is kept open, as fast as it is read; no bytes close it."""
        if self._sink is None and self._stdin >= 0:
            self._begun = self._begun or self._loop.create_future()
            await asyncio.shield(self._begun)
        await self._writer.written()
        if self._stdin < 0:
            return
        self._keep_stdin = self._keep_stdin and bool(data)
        self._writer.put(data)
        await self._writer.written()

    def _stdin_written(self) -> None:
        if not self._keep_stdin or self._writer.broken:
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            self._writer.stop()
            os.close(self._stdin)
            self._stdin = -1

    def watch(self) -> None:
        """Read as the program writes, from now on."""
        for stream, fd in self._sources.items():
            self._watched.add(stream)
            if not self.paused:
                self._loop.add_reader(fd, self._readable, stream)

    def unwatch(self) -> None:
        """Read only when `drain` is called, from now on."""
        for stream in self._watched:
            self._loop.remove_reader(self._sources[stream])
        self._watched.clear()

    def _readable(self, stream: Stream) -> None:
        if not self.paused and not self._pump(stream, _BURST):
            self._loop.remove_reader(self._sources[stream])
            self._watched.discard(stream)

    def _pump(self, stream: Stream, reads: int) -> bool:
        """Pass on what is there, at most `reads` chunks; False at the end of the stream."""
        sink, fd = self._sink, self._sources[stream]
        assert sink is not None
        for _ in range(reads):
            try:
                data = os.read(fd, _READ)
            except BlockingIOError:
                return True
            if not data:
                return False
            if not sink.output(stream, data):
                self._pause()
                return True
            if len(data) < _SHORT:
                return True
        return True

    def _pause(self) -> None:
        self.paused = True
        for stream in self._watched:
            self._loop.remove_reader(self._sources[stream])

    def resume(self) -> None:
        """Read again after the sink refused more."""
        if self.paused and not self._closed:
            self.paused = False
            for stream in self._watched:
                self._loop.add_reader(self._sources[stream], self._readable, stream)

    def drain(self) -> bool:
        """Pass on all that is in the pipes now; False when the sink refused more before the end."""
        for stream in self._sources:
            if not self.paused:
                self._pump(stream, _WHOLE)
        return not self.paused

    def close(self) -> None:
        """Close all three."""
        if not self._closed:
            self.unwatch()
            self._closed = True
            if self._begun is not None:
                self._begun.set_result(None)
                self._begun = None
            self._close_stdin()
            for fd in self._sources.values():
                os.close(fd)
