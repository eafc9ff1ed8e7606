"""The asyncio client of the warden: requests out in order, events in to whoever waits for them."""

from __future__ import annotations

import array
import asyncio
import collections
import socket
from collections.abc import Callable, Sequence

from sandfork.errors import TierError
from sandfork.tiers.process import messages as m

_BURST = 32  # events read per wake-up, so that one busy socket cannot starve the loop


class Warden:
    """One socket to the warden process.

    `slot_events` is called for every event about a slot; `lost` once, when the warden is gone. Replies to `ask` are
    matched by operation and id: at most one such request may be under way.
    """

    def __init__(
        self, sock: socket.socket, slot_event: Callable[[m.WardenEvent], None], lost: Callable[[], None]
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._slot_event = slot_event
        self._lost = lost
        self._out: collections.deque[tuple[bytes, Sequence[int], Callable[[], None] | None]] = collections.deque()
        self._waiting: dict[tuple[int, int], asyncio.Future[m.WardenEvent]] = {}
        self._zygote_end: dict[int, Callable[[m.WardenEvent], None]] = {}
        self._zygote_last = -1
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)
        self.alive = True

    def send(self, data: bytes, fds: Sequence[int] = (), sent: Callable[[], None] | None = None) -> None:
        """Send a request now or as soon as the socket takes it; `sent` is called when the descriptors may be closed."""
        if not self.alive:
            if sent is not None:
                sent()
            return
        if self._out or not self._try_send(data, fds):
            if not self._out:
                self._loop.add_writer(self._sock.fileno(), self._writable)
            self._out.append((data, fds, sent))
        elif sent is not None:
            sent()

    def _try_send(self, data: bytes, fds: Sequence[int]) -> bool:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            self._gone()
        return True

    def _writable(self) -> None:
        while self._out:
            data, fds, sent = self._out[0]
            if not self._try_send(data, fds):
                return
            self._out.popleft()
            if sent is not None:
                sent()
        self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        for _ in range(_BURST):
            try:
                data = self._sock.recv(m.EVENT.size)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self._gone()
                return
            self._dispatch(m.event(data))

    def _dispatch(self, event: m.WardenEvent) -> None:
        ended = self._zygote_end.pop(event.ident, None) if event.op == m.Event.ZYGOTE_END else None
        key = (m.Event.ZYGOTE if event.op == m.Event.ZYGOTE_END else event.op, event.ident)
        waiter = self._waiting.pop(key, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(event)
        elif ended is not None:
            ended(event)
        elif event.op in (m.Event.SPAWN_FAILED, m.Event.EXIT, m.Event.CLOSED):
            self._slot_event(event)

    def _gone(self) -> None:
        if not self.alive:
            return
        self.alive = False
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(TierError("the warden process died"))
        self._waiting.clear()
        for _, _, sent in self._out:
            if sent is not None:
                sent()
        self._out.clear()
        self._lost()

    async def ask(
        self, data: bytes, reply: m.Event, ident: int, fds: Sequence[int] = (), timeout_s: float = 30.0
    ) -> m.WardenEvent:
        """Send a request and wait for its one reply. *Raises* TierError when the warden dies or does not answer."""
        future: asyncio.Future[m.WardenEvent] = self._loop.create_future()
        self._waiting[reply, ident] = future
        self.send(data, fds)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            raise TierError(f"the warden did not answer {reply.name} {ident} within {timeout_s:g} s") from None
        finally:
            self._waiting.pop((reply, ident), None)

    async def up(self, timeout_s: float = 10.0) -> None:
        """Wait for the warden's first word. *Raises* TierError."""
        future: asyncio.Future[m.WardenEvent] = self._loop.create_future()
        self._waiting[m.Event.WARDEN, 0] = future
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            raise TierError(f"the warden did not come up within {timeout_s:g} s") from None

    def number_zygote(self, ended: Callable[[m.WardenEvent], None]) -> int | None:
        """Return a number for a zygote that is about to be started, None where as many live as there may be.

        `ended` is called when it dies after it was ready; the number is then another's, as when it never is.
        """
        for _ in range(m.ZYGOTES_MAX):
            self._zygote_last = (self._zygote_last + 1) % m.ZYGOTES_MAX
            if self._zygote_last not in self._zygote_end:
                self._zygote_end[self._zygote_last] = ended
                return self._zygote_last
        return None

    def close(self) -> None:
        """Close the socket: the warden, and with it every process it made, ends."""
        if self.alive:
            self.alive = False
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
