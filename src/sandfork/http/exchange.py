"""One request and its answer, over the bare ASGI messages.

Nothing here is a task or a timer unless it has to be: a body that is there already is taken without waiting, and a
client is watched only once its program has run for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, TypeVar

from sandfork.dialects.base import FormFile, RawRequest, Reply
from sandfork.dialects.refusals import BodyTimeout, UnsupportedMedia
from sandfork.engine.ids import mint_exec_id
from sandfork.errors import InvalidRequest, PayloadTooLarge
from sandfork.model import Caller

if TYPE_CHECKING:
    from sandfork.http.endpoints import Endpoint

T = TypeVar("T")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]

NOBODY = Caller("", "")
JSON_TYPES = frozenset({b"application/json", b"text/json", b"application/x-www-form-urlencoded", b""})
"""Content types read as JSON. The form type is what curl sends with -d when it is not told otherwise."""


class ClientGone(Exception):  # it is no error: nobody is left to be told
    """The client closed its connection before it had its answer."""


class Exchange:
    """One HTTP request: what was asked, and the ways to answer. `caller` is NOBODY until identified.

    `chosen` is the endpoint that the one of its path passed it on to, if that was one of several. `further_headers`
    gives what every answer gets besides its own. Once an answer has `begun` there is no other.
    """

    __slots__ = (
        "_body",
        "_gone",
        "_id",
        "_receive",
        "_send",
        "_task",
        "_watcher",
        "begun",
        "caller",
        "chosen",
        "dialect",
        "executed",
        "file",
        "form",
        "further_headers",
        "headers",
        "params",
        "path",
        "peer",
        "scope",
    )

    def __init__(self, scope: Message, receive: Receive, send: Send) -> None:
        """`executed` tells whether the engine was reached, which then has counted and logged what came of it."""
        pairs = scope["headers"]
        headers = dict(pairs)
        self.headers: dict[bytes, bytes] = headers if len(headers) == len(pairs) else _joined(pairs)
        client = scope.get("client")
        self.peer: str = client[0] if client else ""
        self.scope = scope
        self.path: str = scope["path"]
        self.params: dict[str, str] = {}
        self.caller = NOBODY
        self.chosen: Endpoint | None = None
        self.dialect = ""
        self.executed = False
        self.begun = False
        self.form: Mapping[str, str] | None = None
        self.file: FormFile | None = None
        self.further_headers: Callable[[], Headers] = tuple
        self._receive = receive
        self._send = send
        self._body: bytes | None = None
        self._id = ""
        self._gone = False
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def request_id(self) -> str:
        """The id of this request, made when first asked for."""
        if not self._id:
            self._id = mint_exec_id()
        return self._id

    @property
    def sent_path(self) -> str:
        """The path as it was sent, not decoded."""
        raw: bytes | None = self.scope.get("raw_path")
        return self.path if raw is None else raw.decode("latin-1")

    @property
    def raw(self) -> RawRequest:
        """The request as far as it has been read."""
        query = self.scope.get("query_string", b"")
        return RawRequest(self._body or b"", self.params, query, self.headers, self.form, self.file, mint_exec_id)

    def check_length(self, max_bytes: int) -> None:
        """Refuse a body that its header says is too large. *Raises* PayloadTooLarge, InvalidRequest."""
        declared = self.headers.get(b"content-length")
        if declared is not None:
            if not declared.isdigit():
                raise InvalidRequest("", "content-length is no number")
            if len(declared) > 18 or int(declared) > max_bytes:
                raise PayloadTooLarge(max_bytes)

    def check_json(self) -> None:
        """Refuse a body whose headers say that it is no plain JSON. *Raises* UnsupportedMedia."""
        content_type = self.headers.get(b"content-type", b"")
        if content_type not in JSON_TYPES:
            _check_type(content_type)
        self.check_encoding()

    def check_encoding(self) -> None:
        """Refuse a compressed body. *Raises* UnsupportedMedia."""
        encoding = self.headers.get(b"content-encoding")
        if encoding is not None and encoding.strip().lower() not in (b"", b"identity"):
            raise UnsupportedMedia("compressed request bodies are not accepted")

    async def read_body(self, max_bytes: int, timeout_s: float) -> bytes:
        """Return the whole body. *Raises* PayloadTooLarge as soon as it is, BodyTimeout, ClientGone."""
        if self._body is None:
            try:
                async with asyncio.timeout(timeout_s):
                    self._body = await self._collect(max_bytes)
            except TimeoutError:
                raise BodyTimeout(f"the request body did not arrive within {timeout_s:g} s") from None
        return self._body

    def keep_body(self, body: bytes) -> None:
        """Note what is left of a body that was read otherwise."""
        self._body = body

    async def _collect(self, max_bytes: int) -> bytes:
        message = await self._receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body", False):
            chunks, size = [body], len(body)
            while message.get("more_body", False) and size <= max_bytes:
                message = await self._receive()
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
            body = b"".join(chunks) if size <= max_bytes else b""
        else:
            size = len(body)
        if size > max_bytes:
            raise PayloadTooLarge(max_bytes)
        if message["type"] == "http.disconnect":
            raise ClientGone
        return body

    async def body_chunks(self, max_bytes: int, stall_s: float, whole_s: float) -> AsyncGenerator[bytes, None]:
        """Yield the body as it arrives: each part within `stall_s`, all of it within `whole_s`.

        *Raises* PayloadTooLarge as soon as it is, BodyTimeout, ClientGone.
        """
        clock = asyncio.get_running_loop().time
        size, end_s, more = 0, clock() + whole_s, True
        while more:
            wait_s = max(0.0, min(stall_s, end_s - clock()))
            try:
                async with asyncio.timeout(wait_s):
                    message = await self._receive()
            except TimeoutError:
                raise BodyTimeout(f"no more of the request body arrived within {wait_s:g} s") from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            body: bytes = message.get("body", b"")
            size += len(body)
            if size > max_bytes:
                raise PayloadTooLarge(max_bytes)
            more = message.get("more_body", False)
            if body:
                yield body

    async def while_connected(self, work: Coroutine[Any, Any, T], watch_after_s: float) -> T:
        """Await `work`, cancelling it when the client goes away. *Raises* ClientGone then.

        The client is watched from `watch_after_s` on. The body must have been read.
        """
        task = self._task = asyncio.current_task()
        timer = asyncio.get_running_loop().call_later(watch_after_s, self._watch)
        try:
            result = await work
        except asyncio.CancelledError:
            if self._gone and task is not None and task.uncancel() == 0:
                raise ClientGone from None
            raise
        finally:
            timer.cancel()
            if self._watcher is not None:
                self._watcher.cancel()
        if self._gone:
            raise ClientGone
        return result

    def _watch(self) -> None:
        self._watcher = asyncio.create_task(self._wait_gone(), name="watch client")

    async def _wait_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._task is not None:
            self._task.cancel()

    async def send(self, reply: Reply) -> None:
        """Send a whole answer."""
        await self.begin(
            reply.content_type, ((b"content-length", b"%d" % len(reply.body)), *reply.headers), reply.status
        )
        await self.push(reply.body, more=False)

    async def abandon(self) -> None:
        """Leave an answer unfinished, which ends the connection and so tells the client that it is not whole."""

    async def begin(self, content_type: bytes, headers: Headers = (), status: int = 200) -> None:
        """Send the head of an answer whose body follows by `push`."""
        self.begun = True
        pairs = [(b"content-type", content_type), *headers, *self.further_headers()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def push(self, body: bytes, *, more: bool = True) -> None:
        """Send a part of the body, once there is room on the way; `more` tells whether others follow."""
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


def _joined(pairs: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Join headers that came more than once (RFC 9110, 5.3); two keys so become one that nobody has."""
    headers: dict[bytes, bytes] = {}
    for name, value in pairs:
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


def _check_type(content_type: bytes) -> None:
    """Let through what is JSON under a longer name. *Raises* UnsupportedMedia."""
    essence = content_type.partition(b";")[0].strip().lower()
    if essence not in JSON_TYPES and not (essence.startswith(b"application/") and essence.endswith(b"+json")):
        raise UnsupportedMedia("the body must be JSON: content-type application/json")
