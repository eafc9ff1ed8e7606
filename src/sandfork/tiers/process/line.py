"""ctl from the server's side: a stream on which a message goes out whole, or its receiver is known to be gone."""

from __future__ import annotations

import asyncio
import contextlib
import socket


class Line:
    """Owns the server's end of ctl."""

    def __init__(self, sock: socket.socket) -> None:
        """`sock` does not block."""
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._sending = False
        self._closed = False
        self.fd = sock.fileno()

    def receive(self, count: int) -> bytes | None:
        """Return what has come, no bytes at the end, None when nothing is there."""
        try:
            return self._sock.recv(count)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b""

    def begin(self, message: bytes) -> memoryview | None:
        """Send in one write what fits, which nearly always is everything; return what is left.

        *Raises* BrokenPipeError, ConnectionResetError.
        """
        try:
            sent = self._sock.send(message)
        except BlockingIOError:
            sent = 0
        return memoryview(message)[sent:] if sent < len(message) else None

    async def finish(self, rest: memoryview | bytes) -> None:
        """Wait for the receiver to take the rest. *Raises* BrokenPipeError, ConnectionResetError."""
        self._sending = True
        try:
            await self._loop.sock_sendall(self._sock, rest)
        finally:
            self._sending = False
            if self._closed:
                self._sock.close()

    async def tell(self, message: bytes) -> None:
        """Send it whole, to whom it may concern: a receiver that is gone is no error."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await self.finish(message)

    def dismiss(self) -> None:
        """Let go of a process that has said END and waits to be killed."""
        self._sock.shutdown(socket.SHUT_RDWR)

    def hang_up(self) -> None:
        """Have a `finish` under way fail."""
        if self._sending:
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it; a `finish` under way fails first, for its number must not be used again under it."""
        self._closed = True
        self.hang_up()
        if not self._sending:
            self._sock.close()
