"""Rich values on their way from a program to the sink: checked and bounded, for the program can write them itself."""

from __future__ import annotations

import json

from sandfork.model import Display, Outcome
from sandfork.tiers.base import OutputSink

_TOTAL_MAX = 32 << 20
_COUNT_MAX = 1000
_KINDS = ("result", "display")


def read_display(body: bytes) -> Display | None:
    """Return the rich value that a frame holds, None when it holds none."""
    try:
        shown = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(shown, dict) or shown.get("kind") not in _KINDS or not isinstance(shown.get("data"), dict):
        return None
    if not all(_is_text(each) for pair in shown["data"].items() for each in pair):
        return None
    return Display(shown["kind"], shown["data"])


def _is_text(value: object) -> bool:
    """Tell whether a value is text that can be sent on: escapes of JSON can make halves of characters."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


class Showing:
    """What one step shows."""

    FRAME_MAX = (8 << 20) + (64 << 10)
    """The largest frame that is read while rich values are wanted."""

    def __init__(self, sink: OutputSink) -> None:
        self._sink = sink
        self._left = _TOTAL_MAX
        self._count = 0

    def take(self, body: bytes) -> Outcome | None:
        """Pass on one value; what the program is to be stopped for when it is no value or one too many."""
        shown = read_display(body)
        if shown is None:
            return Outcome.POLICY_VIOLATION
        self._left -= len(body)
        self._count += 1
        if self._left < 0 or self._count > _COUNT_MAX:
            return Outcome.OUTPUT_LIMIT
        self._sink.display(shown)
        return None
