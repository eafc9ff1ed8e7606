"""Secrets kept out of what a program shows: every occurrence of one becomes `***`, however the output is cut.

Occurrences that overlap become one mark, so that no byte that belongs to any of them is passed on. The search follows
all secrets at once (Aho and Corasick, 1975) and takes each byte once: neither a secret nor an output can be made that
is slow to look at.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from sandfork.errors import InvalidRequest
from sandfork.model import Display, Stream
from sandfork.tiers.base import OutputSink

MARK = b"***"
MAX_SECRETS_BYTES = 16 << 10
"""All secrets of one execution together: what looks for them takes some hundred times as much memory."""

_TOLD = -1
"""The start of a run whose mark was passed on before."""


class Secrets:
    """Texts to look for. Empty ones are ignored, as they are everywhere.

    The beginnings of secrets are numbered states, 0 is none. `steps` leads from `state << 8 | byte` to the next state.
    Of a state, `depths` is its length, `longest` the length of the longest secret that ends there, and `fails` the
    longest other state that it ends with.
    """

    __slots__ = ("depths", "fails", "firsts", "longest", "steps")

    def __init__(self, texts: Iterable[str]) -> None:
        """*Raises* InvalidRequest when they are no text or too long."""
        words = sorted({_encode(text) for text in texts} - {b""})
        if sum(map(len, words)) > MAX_SECRETS_BYTES:
            raise InvalidRequest("secrets", f"are longer than {MAX_SECRETS_BYTES} bytes together")
        self.steps: dict[int, int] = {}
        self.depths = [0]
        self.longest = [0]
        for word in words:
            self._add(word)
        self.fails = [0] * len(self.depths)
        self._link()
        firsts = b"".join(re.escape(word[:1]) for word in words)
        self.firsts = re.compile(b"[" + firsts + b"]" if words else b"(?!)")

    def __bool__(self) -> bool:
        """Whether there is anything to look for."""
        return bool(self.steps)

    def mask_text(self, text: str) -> str:
        """Return `text` with every secret masked."""
        stream = StreamMask(self)
        masked = stream.feed(text.encode("utf-8", "surrogatepass")) + stream.rest()
        return masked.decode("utf-8", "surrogatepass")

    def _add(self, word: bytes) -> None:
        state = 0
        for depth, byte in enumerate(word, 1):
            key = state << 8 | byte
            if key not in self.steps:
                self.steps[key] = len(self.depths)
                self.depths.append(depth)
                self.longest.append(0)
            state = self.steps[key]
        self.longest[state] = len(word)

    def _link(self) -> None:
        """Fill in `fails`, from short states to long ones, and what ends in a state by ending in those it ends with."""
        children: dict[int, list[tuple[int, int]]] = {}
        for key, state in self.steps.items():
            children.setdefault(key >> 8, []).append((key & 0xFF, state))
        waiting = deque([0])
        while waiting:
            parent = waiting.popleft()
            for byte, state in children.get(parent, ()):
                if parent:
                    self.fails[state] = self._follow(self.fails[parent], byte)
                    self.longest[state] = self.longest[state] or self.longest[self.fails[state]]
                waiting.append(state)

    def _follow(self, state: int, byte: int) -> int:
        while (found := self.steps.get(state << 8 | byte)) is None and state:
            state = self.fails[state]
        return found or 0


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("secrets", "are not valid Unicode") from None


class StreamMask:
    """Masks one stream of bytes and holds back no more than could be the beginning of a secret."""

    __slots__ = ("_held", "_runs", "_secrets", "_state")

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._state = 0
        self._held = b""
        self._runs: list[tuple[int, int]] = []  # what overlapping secrets cover of the bytes held back, in order

    def feed(self, data: bytes) -> bytes:
        """Take a chunk and return what can be passed on now."""
        held = self._held + data
        self._search(held, len(self._held))
        return self._pass_on(held, len(held) - self._secrets.depths[self._state])

    def rest(self, *, cut: bool = False) -> bytes:
        """Return what was held back, once no more comes; masked if the stream was `cut`, as it may have gone on."""
        held = self._held
        if cut and held:
            self._cover(0, len(held))
        return self._pass_on(held, len(held))

    def _search(self, held: bytes, index: int) -> None:
        """Find every secret that ends after `index`."""
        secrets, state = self._secrets, self._state
        steps, fails, longest, firsts = secrets.steps, secrets.fails, secrets.longest, secrets.firsts
        while index < len(held):
            if not state:
                first = firsts.search(held, index)
                if first is None:
                    break
                index = first.start()
            byte = held[index]
            while (found := steps.get(state << 8 | byte)) is None and state:
                state = fails[state]
            state = found or 0
            index += 1
            if longest[state]:
                self._cover(index - longest[state], index)
        self._state = state

    def _cover(self, start: int, end: int) -> None:
        runs = self._runs
        while runs and runs[-1][1] > start:
            start = min(start, runs.pop()[0])
        runs.append((start, end))

    def _pass_on(self, held: bytes, decided: int) -> bytes:
        """Return the first `decided` bytes, masked, and hold back the rest, before which no secret can begin."""
        parts: list[bytes] = []
        later: list[tuple[int, int]] = []
        at = 0
        for start, end in self._runs:
            if start >= decided:
                later.append((start - decided, end - decided))
                continue
            if start != _TOLD:
                parts += held[at:start], MARK
            at = min(end, decided)
            if end > decided:
                later.append((_TOLD, end - decided))
        parts.append(held[at:decided])
        self._held, self._runs = held[decided:], later
        return b"".join(parts)


class Mask:
    """An `OutputSink` that passes on output in which `secrets` are masked, each stream by itself.

    `flush` must be called when no more output comes.
    """

    __slots__ = ("_secrets", "_sink", "_streams")

    def __init__(self, sink: OutputSink, secrets: Secrets) -> None:
        self._sink = sink
        self._secrets = secrets
        self._streams = {stream: StreamMask(secrets) for stream in Stream}

    def output(self, stream: Stream, data: bytes) -> bool:
        """Pass on what holds no secret and cannot become one; return what the sink behind says."""
        masked = self._streams[stream].feed(data)
        return self._sink.output(stream, masked) if masked else True

    def display(self, shown: Display) -> None:
        """Pass on a rich value, masked. Of the output before it, what may be the beginning of a secret comes later."""
        data = {kind: self._secrets.mask_text(text) for kind, text in shown.data.items()}
        self._sink.display(replace(shown, data=data))

    def flush(self, *, cut: bool = False) -> None:
        """Pass on what was held back; `cut` says that output was cut off, and masks what may have become a secret."""
        for stream, masking in self._streams.items():
            if masked := masking.rest(cut=cut):
                self._sink.output(stream, masked)
