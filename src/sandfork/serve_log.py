"""Log lines on stderr, as text or JSON.

A record's `extra` fields become `key=value` words or members. While the event loop runs, records below WARNING are
formatted and written a moment later and together: what is done between a result and the end of the loop's
iteration delays the answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from typing import Any

DELAY_S = 0.05
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def extras(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields that the caller gave as `extra`."""
    return {key: value for key, value in vars(record).items() if key not in _OWN}


def timestamp(record: logging.LogRecord) -> str:
    """Return the record's time as ISO 8601 in UTC, to the millisecond."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


class TextFormatter(logging.Formatter):
    """`time level logger message key=value …`; text with spaces or control characters is quoted as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        words = [timestamp(record), record.levelname.lower(), record.name, escape(record.getMessage())]
        words += [f"{key}={_word(value)}" for key, value in extras(record).items()]
        line = " ".join(words)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the extra fields, the traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **extras(record),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str, ensure_ascii=True)


def escape(text: str) -> str:
    """Return `text` without control characters: nobody's input may write a line of its own into the log."""
    return text if text.isprintable() else json.dumps(text)[1:-1]


def _word(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if text.isprintable() and text and " " not in text else json.dumps(text)


class DeferredHandler(logging.Handler):
    """Writes to a file descriptor; once `defer_on` has named a loop, in batches every `DELAY_S` seconds."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._pending: list[logging.LogRecord] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._timer: asyncio.TimerHandle | None = None

    def defer_on(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Write later on `loop`, which the calling thread runs; None writes at once again."""
        self._loop, self._thread = loop, threading.get_ident()
        self.flush()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep `record` for the next batch, or write it and all before it now."""
        self._pending.append(record)
        if self._loop is None or record.levelno >= logging.WARNING or threading.get_ident() != self._thread:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(DELAY_S, self.flush)

    def flush(self) -> None:
        """Write what is pending."""
        with self.lock or threading.RLock():
            if self._timer is not None and threading.get_ident() == self._thread:
                self._timer.cancel()
                self._timer = None
            pending, self._pending = self._pending, []
            if pending:
                self._write("".join(f"{self.format(record)}\n" for record in pending).encode())

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BrokenPipeError:
                # Whoever read the log is gone; the service goes on.
                return


def set_up_logging(form: str, level: str, descriptor: int = 2) -> DeferredHandler:
    """Send the log to `descriptor` as `form` ("text" or "json") from `level` on; return the handler."""
    handler = DeferredHandler(descriptor)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return handler
