"""The service's log: one JSON object a line, on stderr.

While the event loop runs, lines are written a moment later and together: what is done between a result and the end
of the loop's iteration delays the answer. A reader of the log that stands still never stops the service: what does
not fit into the pipe waits in a bounded buffer, and beyond it lines are dropped and counted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import threading
from typing import Any

DELAY_S = 0.05
MAX_PENDING_BYTES = 4 << 20
#: A pipe that polls as writable takes this much without blocking, see pipe(7).
PIPE_BUF = 4096
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class LineWriter:
    """Writes lines to a descriptor: at once, or in batches once `defer_on` has named a loop."""

    def __init__(self, descriptor: int, *, max_pending_bytes: int = MAX_PENDING_BYTES) -> None:
        self._descriptor = descriptor
        self._max_pending_bytes = max_pending_bytes
        self._pending = bytearray()
        self._dropped = 0
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._timer: asyncio.TimerHandle | None = None
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def defer_on(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Write later on `loop`, which the calling thread runs; None writes at once again."""
        self.flush()
        self._loop, self._thread = loop, threading.get_ident()

    def write(self, line: bytes) -> None:
        """Take one whole line, its newline included; never blocks."""
        with self._lock:
            if len(self._pending) + len(line) > self._max_pending_bytes:
                self._dropped += 1
            else:
                self._pending += line
        if self._loop is None or threading.get_ident() != self._thread:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(DELAY_S, self._flush_timed)

    def flush(self) -> None:
        """Write what the descriptor takes without blocking."""
        with self._lock:
            while self._pending and self._poll.poll(0):
                try:
                    written = os.write(self._descriptor, self._pending[:PIPE_BUF])
                except OSError:
                    # Whoever read the log is gone, or its disk is full; the service goes on.
                    self._pending.clear()
                    return
                del self._pending[:written]
            if self._dropped and not self._pending:
                dropped, self._dropped = self._dropped, 0
                self._pending += json.dumps({"event": "log", "dropped_lines": dropped}).encode() + b"\n"

    def _flush_timed(self) -> None:
        self._timer = None
        self.flush()
        if self._pending and self._loop is not None:
            self._timer = self._loop.call_later(DELAY_S, self._flush_timed)


class JsonFormatter(logging.Formatter):
    """One JSON object: ts (Unix time in seconds), event, level, logger, message, the `extra` fields, the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        fields: dict[str, Any] = {
            "ts": round(record.created, 3),
            "event": "log",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {key: value for key, value in vars(record).items() if key not in _OWN}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


class LoggedLines(logging.Handler):
    """Hands formatted records to a LineWriter; a WARNING or worse is written at once."""

    def __init__(self, lines: LineWriter) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        self._lines.write(self.format(record).encode() + b"\n")
        if record.levelno >= logging.WARNING:
            self._lines.flush()


def set_up_logging(level: str, descriptor: int = 2) -> LineWriter:
    """Send the log to `descriptor` from `level` on; return what writes its lines."""
    lines = LineWriter(descriptor)
    handler = LoggedLines(lines)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "asyncio", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return lines
