"""What clients of streams and sessions do in the chaos test, and what each of them must see."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

Address = tuple[str, int]


@dataclass(frozen=True)
class Reply:
    """One response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def is_refusal(self) -> bool:
        """Whether it says when to come back."""
        return self.status in (429, 503) and float(self.headers["retry-after"]) >= 0


class Refused(Exception):
    """The whole is to be tried again later; the reply says when."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


class Untrue(Exception):
    """Something was not answered as it must be."""


@dataclass
class Line:
    """A connection on which one request comes after another."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    address: Address

    @classmethod
    async def open(cls, address: Address) -> Line:
        """Connect."""
        return cls(*await asyncio.open_connection(*address), address)

    async def close(self) -> None:
        """Go away."""
        self.writer.close()
        await self.writer.wait_closed()

    def send(self, method: str, path: str, body: bytes) -> None:
        """Send a request."""
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        self.writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    async def receive(self) -> Reply:
        """Read one response, with a length or in chunks."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = b""
        if "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
        else:
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
        return Reply(int(status.split(" ")[1]), headers, body)

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Return the answer to a request. *Raises* Refused; Untrue for one that is no answer."""
        self.send(method, path, b"" if body is None else json.dumps(body).encode())
        reply = await self.receive()
        if reply.is_refusal:
            raise Refused(reply)
        if reply.status not in (200, 201):
            raise Untrue(f"{method} {path} {body}: {reply.status} {reply.body[:300]!r}")
        return reply.body if reply.headers["content-type"] != "application/json" else json.loads(reply.body)


#: Why a stream that has begun may end without a result, and is to be asked for again: what is a 503 before that.
LATER = {"overloaded", "deadline_passed", "fork_failed", "template_failed"}


def events_of(told: bytes) -> list[Any]:
    """Return the events of a stream so far. *Raises* Refused when it ended because the server cannot just now."""
    parts = (part.partition(b"data: ")[2] for part in told.split(b"\n\n")[:-1])
    events = [json.loads(part) for part in parts if part]
    if events and events[-1]["type"] == "error" and events[-1]["code"] in LATER:
        raise Refused(Reply(503, {"retry-after": "1"}, told))
    return events


def expect(seen: Any, wanted: Any) -> None:
    """*Raises* Untrue."""
    if seen != wanted:
        raise Untrue(f"{seen!r} where {wanted!r} is true")


async def follow(line: Line, token: str) -> None:
    """Read a stream to its end."""
    code = f"for n in range(3): print('{token}', n, flush=True)\nimport sys; sys.exit(3)"
    told = await line.ask("POST", "/v1/exec", {"code": code, "stream": True})
    events = events_of(told)
    text = "".join(event["text"] for event in events if event["type"] == "stdout")
    expect((text, events[-1].get("exit_code")), ("".join(f"{token} {n}\n" for n in range(3)), 3))


async def begin(line: Line, token: str, **more: Any) -> Line:
    """Return a connection on which a stream has begun that has no end. *Raises* Refused."""
    code = f"kept = '{token}'\nimport time\nprint(kept, flush=True)\nwhile True: time.sleep(1); print(kept)"
    other = await Line.open(line.address)
    other.send("POST", "/v1/exec", json.dumps({"code": code, "stream": True, **more}).encode())
    head = await other.reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0]:
        status = int(head.split(b" ")[1])
        await other.close()
        if status not in (429, 503):
            raise Untrue(f"a stream: {head!r}")
        raise Refused(Reply(status, {"retry-after": "1"}, b""))
    seen = b""
    while token.encode() not in seen:
        chunk = await other.reader.read(4096)
        seen += chunk
        if not chunk or b'"type":"error"' in seen:
            await other.close()
            events_of(b"\n\n".join(line for line in seen.split(b"\r\n") if b"data: " in line) + b"\n\n")
            raise Untrue(f"{seen!r}")
    return other


async def leave_a_stream(line: Line, token: str) -> None:
    """Go away in the middle."""
    await (await begin(line, token)).close()


@dataclass
class ChaosSession:
    """A session of one client."""

    line: Line
    name: str

    async def step(self, code: str, language: str = "python", **limits: float) -> Any:
        """Run a step and return its answer."""
        body = {"code": code, "language": language, "session": self.name, "limits": limits}
        return await self.line.ask("POST", "/v1/exec", body)

    async def said(self, code: str, language: str = "python") -> str:
        """Run a step that ends well and return what it wrote."""
        answer = await self.step(code, language)
        expect((answer["outcome"], answer["exit_code"], answer["stderr"]), ("exited", 0, ""))
        return str(answer["stdout"])


#: A step, its limits, how it ends, and whether the interpreter's state is lost by it.
STEPS: list[tuple[str, dict[str, float], str, bool]] = [
    ("pass", {}, "exited", False),
    ("import os; os._exit(7)", {}, "exited", True),
    ("import time; time.sleep(60)", {"wall_s": 0.2}, "timed_out", False),
    ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", {"wall_s": 0.2}, "timed_out", True),
    ("while True: print('y' * 1000)", {"output_bytes": 4096}, "output_limit", True),
    ("import os\nos.write(63, b'?' * 64)\nimport time; time.sleep(60)", {}, "policy_violation", True),
    (
        "import os\nfor _ in range(5):\n    if os.fork() == 0:\n        import time; time.sleep(1000)",
        {},
        "exited",
        False,
    ),
]


async def live(session: ChaosSession, token: str) -> None:
    """Do what may go wrong in a session, and see that it goes on with what must be there."""
    code, limits, outcome, lost = STEPS[sum(token.encode()) % len(STEPS)]
    expect(await session.said(f"x = '{token}'; open('f', 'w').write(x); print(x)"), f"{token}\n")
    await session.line.ask("POST", f"/v1/sessions/{session.name}/terminals", {"argv": ["/bin/sleep", "1000"]})
    answer = await session.step(code, **limits)
    expect((answer["outcome"], answer["state_lost"]), (outcome, lost))
    expect(await session.said("print(open('f').read(), 'x' in globals())"), f"{token} {not lost}\n")
    expect(await session.said("cat f", "bash"), token)
    expect(await session.line.ask("GET", f"/v1/sessions/{session.name}/files/f"), token.encode())


async def leave_a_step(session: ChaosSession, token: str) -> None:
    """Go away in the middle of a step; the state stays."""
    await (await begin(session.line, token, session=session.name)).close()
    expect(await session.said("print(kept)"), f"{token}\n")


def in_a_session(what: Callable[[ChaosSession, str], Awaitable[None]]) -> Callable[[Line, str], Awaitable[None]]:
    """Return a client that makes a session, does something in it and ends it."""

    async def do(line: Line, token: str) -> None:
        session = ChaosSession(line, f"chaos-{token}")
        await line.ask("POST", "/v1/sessions", {"id": session.name, "language": "python"})
        try:
            await what(session, token)
        except (Refused, Untrue) as first:
            with suppress(Untrue if isinstance(first, Untrue) else ()):  # the first is what there is to tell
                await line.ask("DELETE", f"/v1/sessions/{session.name}")
            raise
        await line.ask("DELETE", f"/v1/sessions/{session.name}")

    return do


#: What a client does, and its share as in `PROGRAMS`.
CLIENTS: dict[str, tuple[Callable[[Line, str], Awaitable[None]], float]] = {
    "follow a stream": (follow, 4.0),
    "leave a stream": (leave_a_stream, 1.0),
    "live through a session": (in_a_session(live), 1.0),
    "leave a step": (in_a_session(leave_a_step), 0.5),
}
