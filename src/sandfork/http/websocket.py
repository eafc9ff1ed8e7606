"""One WebSocket connection, over the bare ASGI messages."""

from __future__ import annotations

from sandfork.http.exchange import ClientGone, Exchange, Headers, Message

BY_POLICY = 1008
"""The close code for a client that did not do what a connection is for."""
TOO_LARGE = 1009
OURS = 1011
UNREADABLE = 1003
MAX_REASON_BYTES = 123


class SocketExchange(Exchange):
    """A request for a WebSocket: refused with an ordinary answer, or accepted and then a way to hear and to tell."""

    __slots__ = ()

    async def accept(self) -> None:
        """Open the connection."""
        self.begun = self.executed = True
        await self._tell({"type": "websocket.accept"})

    async def hear(self) -> str | bytes:
        """Return the next message. *Raises* ClientGone."""
        message = await self._receive()
        if message["type"] != "websocket.receive":
            raise ClientGone
        text: str | None = message.get("text")
        data: bytes = message.get("bytes") or b""
        return data if text is None else text

    async def tell(self, message: str | bytes) -> None:
        """Send a message, once there is room on the way. *Raises* ClientGone."""
        kind = "text" if isinstance(message, str) else "bytes"
        await self._tell({"type": "websocket.send", kind: message})

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """End the connection. *Raises* ClientGone."""
        reason = reason.encode()[:MAX_REASON_BYTES].decode("utf-8", "ignore")
        await self._tell({"type": "websocket.close", "code": code, "reason": reason})

    async def abandon(self) -> None:
        """End the connection because we failed."""
        await self.close(OURS)

    async def begin(self, content_type: bytes, headers: Headers = (), status: int = 200) -> None:
        """Send the head of a refusal."""
        pairs = [(b"content-type", content_type), *headers, *self.further_headers()]
        await self._tell({"type": "websocket.http.response.start", "status": status, "headers": pairs})

    async def push(self, body: bytes, *, more: bool = True) -> None:
        """Send a part of its body."""
        await self._tell({"type": "websocket.http.response.body", "body": body, "more_body": more})

    async def _tell(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:  # ASGI: what sending raises after the client is gone
            raise ClientGone from None
