"""Rich values on their way from a program to the sink: checked and bounded, for the program can write them itself."""

from __future__ import annotations

from typing import Literal

import msgspec

from sandfork.model import Display, Outcome
from sandfork.tiers.base import OutputSink

_TOTAL_MAX = 32 << 20
_COUNT_MAX = 1000


class _Shown(msgspec.Struct):
    kind: Literal["result", "display"]
    data: dict[str, str]


_decoder = msgspec.json.Decoder(_Shown)


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
        try:
            shown = _decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return Outcome.POLICY_VIOLATION
        self._left -= len(body)
        self._count += 1
        if self._left < 0 or self._count > _COUNT_MAX:
            return Outcome.OUTPUT_LIMIT
        self._sink.display(Display(shown.kind, shown.data))
        return None
