"""Call an ASGI application without a network: what is sent, what comes back, and a client that may go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answered:
    """A whole answer; header names are lower case."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One client of `app`: `headers` go with every request."""

    def __init__(self, app: Any, headers: dict[str, str] | None = None, peer: str = "127.0.0.1") -> None:
        self._app = app
        self._headers = {"host": "127.0.0.1:8080", **(headers or {})}
        self._peer = peer

    async def get(self, path: str, **headers: str) -> Answered:
        return await self.send("GET", path, headers=list(headers.items()))

    async def post(self, path: str, value: Any, **headers: str) -> Answered:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        names = [(name.replace("_", "-"), text) for name, text in headers.items()]
        return await self.send("POST", path, [body], [("content-length", str(len(body))), *names])

    async def send(
        self,
        method: str,
        path: str,
        chunks: Sequence[bytes] = (b"",),
        headers: Sequence[tuple[str, str]] = (),
        gone: asyncio.Event | None = None,
    ) -> Answered:
        """Send a request whose body comes in `chunks`; the client is gone when `gone` is set. Returns status 0 then.

        No chunks at all mean a body that never comes.
        """
        answered, gone = Answered(), gone or asyncio.Event()
        waiting = list(chunks)

        async def receive() -> dict[str, Any]:
            if waiting:
                return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                assert answered.status == 0, "an answer began twice"
                answered.status = message["status"]
                answered.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                answered.body += message["body"]

        given = {name.lower() for name, _ in headers}
        pairs = [*headers, *(pair for pair in self._headers.items() if pair[0].lower() not in given)]
        scope = {
            "type": "http",
            "method": method,
            "path": path.partition("?")[0],
            "query_string": path.partition("?")[2].encode(),
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs],
            "client": (self._peer, 50000),
        }
        await self._app(scope, receive, send)
        if "content-length" in answered.headers:
            assert int(answered.headers["content-length"]) == len(answered.body)
        return answered
