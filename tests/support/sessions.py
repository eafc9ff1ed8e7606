"""A session of a running service, as a client of `/v1` uses it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

from tests.support.service import STUCK_S, Service


@dataclass
class RemoteSession:
    """One session; `headers` are sent with every request."""

    service: Service
    name: str
    headers: dict[str, str] = field(default_factory=dict)

    @cached_property
    def client(self) -> httpx.Client:
        """The client that asks; `session_of` closes it."""
        return self.service.client

    @property
    def path(self) -> str:
        """Where it is."""
        return f"/v1/sessions/{self.name}"

    def ask(self, method: str, path: str = "", **options: Any) -> httpx.Response:
        """Send a request below the session's own path."""
        return self.client.request(method, self.path + path, headers=self.headers, **options)

    def post(self, code: str, language: str = "python", **fields: Any) -> httpx.Response:
        """Have a step run, whatever comes of it."""
        body = {"code": code, "language": language, "session": self.name, **fields}
        return self.client.post("/v1/exec", json=body, headers=self.headers)

    def run(self, code: str, language: str = "python", **fields: Any) -> dict[str, Any]:
        """Run a step and return the reply, which must be a result."""
        answer = self.post(code, language, **fields)
        assert answer.status_code == 200, answer.text
        reply: dict[str, Any] = answer.json()
        return reply

    def said(self, code: str, language: str = "python", **fields: Any) -> str:
        """Run a step that must end well and return what it wrote to stdout."""
        reply = self.run(code, language, **fields)
        assert (reply["outcome"], reply["exit_code"]) == ("exited", 0), reply
        stdout: str = reply["stdout"]
        return stdout

    def open_terminal(self, *argv: str) -> str:
        """Start a command in a terminal and return the terminal's id."""
        answer = self.ask("POST", "/terminals", json={"argv": list(argv)})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    @contextmanager
    def connected(self, terminal: str) -> Iterator[ClientConnection]:
        """Be the client of a terminal."""
        url = f"{self.service.url.replace('http', 'ws', 1)}{self.path}/terminals/{terminal}/ws"
        with connect(url, additional_headers=self.headers, open_timeout=STUCK_S, proxy=None) as client:
            yield client


@contextmanager
def session_of(service: Service, headers: dict[str, str] | None = None, **body: Any) -> Iterator[RemoteSession]:
    """Make a session, for Python unless `body` says otherwise, and end it."""
    with service.client as client:
        answer = client.post("/v1/sessions", json={"language": "python", **body}, headers=headers or {})
    assert answer.status_code == 201, answer.text
    session = RemoteSession(service, answer.json()["id"], headers or {})
    with session.client:
        try:
            yield session
        finally:
            ended = session.ask("DELETE").status_code  # also after a failure: others count what a caller has
        assert ended in (200, 404)


def shown(client: ClientConnection, until: bytes) -> bytes:
    """Return what a terminal shows up to some text."""
    seen = b""
    while until not in seen:
        message = client.recv(STUCK_S)
        assert isinstance(message, bytes), (message, seen)
        seen += message
    return seen


def stream_of(service: Service, receive_bytes: int = 0, **body: Any) -> socket.socket:
    """Ask for a stream of events on a connection of its own and return that, before anything was read."""
    host, port = service.url.removeprefix("http://").split(":")
    sock = socket.socket()
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.settimeout(STUCK_S)
    sock.connect((host, int(port)))
    content = json.dumps({"stream": True, **body}).encode()
    head = b"POST /v1/exec HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    sock.sendall(head % len(content) + content)
    return sock


def read_until(sock: socket.socket, text: bytes) -> bytes:
    """Read from a connection up to some text, or to its end."""
    seen = b""
    while text not in seen and (chunk := sock.recv(65536)):
        seen += chunk
    return seen
