"""Call an ASGI application without a network: what is sent, what comes back, and a client that may go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote


@dataclass
class Answered:
    """A whole answer; header names are lower case."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Streamed:
    """An answer on its way: `taking` is set while its client reads, `gone` once it has gone away."""

    def __init__(self, app: Any, scope: dict[str, Any], body: bytes) -> None:
        self.answer = Answered()
        self.chunks: list[bytes] = []
        self.complete = False
        self.taking = asyncio.Event()
        self.taking.set()
        self.gone = asyncio.Event()
        self._body: bytes | None = body
        self._arrived = asyncio.Event()
        self.task: asyncio.Task[None] = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        await self.taking.wait()
        if message["type"] == "http.response.start":
            assert self.answer.status == 0, "an answer began twice"
            self.answer.status = message["status"]
            self.answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            assert not self.complete, "an answer went on after its end"
            self.chunks.append(message["body"])
            self.answer.body += message["body"]
            self.complete = not message.get("more_body", False)
        self._arrived.set()

    async def until(self, text: str) -> None:
        """Wait until the answer so far holds a text."""
        while text.encode() not in self.answer.body:
            self._arrived.clear()
            await self._arrived.wait()

    async def end(self) -> Answered:
        """Return the answer, or as much as came, when the application is done with it."""
        await self.task
        return self.answer

    @property
    def events(self) -> list[Any]:
        """The JSON of all events so far."""
        blocks = self.answer.body.decode().split("\n\n")
        return [json.loads(block.partition("data: ")[2]) for block in blocks if "data: " in block]


class Socket:
    """A client's end of a WebSocket. `refused` is the answer where it was not accepted; `code` is how it was closed."""

    def __init__(self, app: Any, scope: dict[str, Any]) -> None:
        self.refused = Answered()
        self.accepted = False
        self.code: int | None = None
        self.reason = ""
        self.taking = asyncio.Event()
        self.taking.set()
        self._in: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._out: asyncio.Queue[str | bytes | None] = asyncio.Queue()
        self._in.put_nowait({"type": "websocket.connect"})
        self.task: asyncio.Task[None] = asyncio.create_task(app(scope, self._in.get, self._send))
        self.task.add_done_callback(lambda _: self._out.put_nowait(None))

    async def _send(self, message: dict[str, Any]) -> None:
        await self.taking.wait()
        match message["type"]:
            case "websocket.accept":
                self.accepted = True
            case "websocket.http.response.start":
                self.refused.status = message["status"]
                self.refused.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            case "websocket.http.response.body":
                self.refused.body += message["body"]
            case "websocket.send":
                assert self.accepted
                self._out.put_nowait(message.get("text", message.get("bytes")))
            case _:
                self.code, self.reason = message["code"], message["reason"]
                self._in.put_nowait({"type": "websocket.disconnect", "code": self.code})

    @property
    def unread(self) -> int:
        """How many messages the application has not read yet."""
        return self._in.qsize()

    def tell(self, message: Any) -> None:
        """Send a message: bytes, text, or a value as JSON."""
        kind = "bytes" if isinstance(message, bytes) else "text"
        text = message if isinstance(message, bytes | str) else json.dumps(message)
        self._in.put_nowait({"type": "websocket.receive", kind: text})

    async def hear(self) -> Any:
        """Return the next message, JSON as its value; None at the end."""
        message = await self._out.get()
        return json.loads(message) if isinstance(message, str) else message

    async def hear_until(self, kind: str) -> list[Any]:
        """Return the messages up to the first of a type, with it."""
        heard = [await self.hear()]
        while heard[-1] is not None and heard[-1]["type"] != kind:
            heard.append(await self.hear())
        return heard

    async def close(self) -> None:
        """Go away, and wait until that was noticed."""
        self._in.put_nowait({"type": "websocket.disconnect", "code": 1001})
        await self.task


class Client:
    """One client of `app`: `headers` go with every request."""

    def __init__(self, app: Any, headers: dict[str, str] | None = None, peer: str = "127.0.0.1") -> None:
        self._app = app
        self._headers = {"host": "127.0.0.1:8080", **(headers or {})}
        self._peer = peer

    def _scope(self, kind: str, path: str, headers: Sequence[tuple[str, str]], **more: Any) -> dict[str, Any]:
        given = {name.lower() for name, _ in headers}
        pairs = [*headers, *(pair for pair in self._headers.items() if pair[0].lower() not in given)]
        sent = path.partition("?")[0]
        return {
            "type": kind,
            "path": unquote(sent),
            "raw_path": sent.encode(),
            "query_string": path.partition("?")[2].encode(),
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs],
            "client": (self._peer, 50000),
            **more,
        }

    def begin(self, method: str, path: str, value: Any, **headers: str) -> Streamed:
        """Send a request whose answer is followed as it comes."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return Streamed(self._app, self._scope("http", path, list(headers.items()), method=method), body)

    def connect(self, path: str, **headers: str) -> Socket:
        """Ask for a WebSocket."""
        pairs = list(headers.items())
        return Socket(self._app, self._scope("websocket", path, pairs, extensions={"websocket.http.response": {}}))

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
        *,
        unfinished: bool = False,
    ) -> Answered:
        """Send a request whose body comes in `chunks`; the client is gone when `gone` is set. Returns status 0 then.

        No chunks at all mean a body that never comes; `unfinished`, that there is more of it that never comes.
        """
        answered, gone = Answered(), gone or asyncio.Event()
        waiting = list(chunks)

        async def receive() -> dict[str, Any]:
            if waiting:
                return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting) or unfinished}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                assert answered.status == 0, "an answer began twice"
                answered.status = message["status"]
                answered.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                answered.body += message["body"]

        scope = self._scope("http", path, headers, method=method)
        await self._app(scope, receive, send)
        if "content-length" in answered.headers:
            assert int(answered.headers["content-length"]) == len(answered.body)
        return answered
