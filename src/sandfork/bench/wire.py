"""A small HTTP/1.1 client: one blocking connection for latency, one epoll loop for load.

It knows keep-alive and Content-Length and nothing else: it shares the cores with the service it measures, and a
general client costs several times what is measured here. What it does not know is an error, never a guess.
"""

from __future__ import annotations

import contextlib
import gc
import json
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

RECEIVE_BYTES = 1 << 16
STALL_S = 60.0
MAX_HEAD_BYTES = 1 << 16


class ProtocolError(Exception):
    """The peer sent what this client does not understand."""


class ConnectionLost(Exception):
    """The peer closed the connection in the middle of an answer, or answered nothing in time."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a service listens."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One complete response."""

    status: int
    body: bytes


class AnswerParser:
    """Assemble responses from chunks of any size; one response at a time, no pipelining."""

    __slots__ = ("_buffer", "_need", "_status")

    def __init__(self) -> None:
        self._buffer = b""
        self._need = -1
        self._status = 0

    def feed(self, data: bytes) -> Answer | None:
        """Take a chunk; return the response it completes, else None. *Raises* ProtocolError."""
        buffer = self._buffer + data if self._buffer else data
        if self._need < 0:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(buffer) > MAX_HEAD_BYTES:
                    raise ProtocolError("no end of the header in 64 KiB")
                self._buffer = buffer
                return None
            self._status, self._need = parse_head(buffer[:end])
            buffer = buffer[end + 4 :]
        if len(buffer) < self._need:
            self._buffer = buffer
            return None
        if len(buffer) > self._need:
            raise ProtocolError("bytes after the end of the answer")
        self._buffer, self._need = b"", -1
        return Answer(self._status, buffer)


def parse_head(head: bytes) -> tuple[int, int]:
    """Return (status, body length) of a response header without its final blank line. *Raises* ProtocolError."""
    status_line, *fields = head.split(b"\r\n")
    version, _, rest = status_line.partition(b" ")
    code = rest[:3]
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or not code.isdigit() or len(code) != 3:
        raise ProtocolError(f"not a status line: {status_line[:80]!r}")
    length = -1
    for line in fields:
        name, colon, value = line.partition(b":")
        name = name.lower()
        if not colon:
            raise ProtocolError(f"not a header field: {line[:80]!r}")
        if name == b"transfer-encoding":
            raise ProtocolError("a chunked answer")
        if name == b"content-length":
            length = parse_length(value.strip(), length)
    if length < 0:
        raise ProtocolError("an answer without Content-Length")
    return int(code), length


def parse_length(text: bytes, before: int) -> int:
    """Return a Content-Length; `before` is the one seen earlier or -1. *Raises* ProtocolError."""
    if not text.isdigit() or len(text) > 18:
        raise ProtocolError(f"not a Content-Length: {text[:40]!r}")
    if before not in (-1, int(text)):
        raise ProtocolError("two different Content-Length fields")
    return int(text)


def request_bytes(method: str, path: str, body: bytes = b"", headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    """Return a whole keep-alive request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: bench", *(f"{name}: {value}" for name, value in headers)]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def exec_request(code: str, language: str = "python", key: str | None = None) -> bytes:
    """Return a whole POST /v1/exec request for a snippet."""
    body = json.dumps({"code": code, "language": language}).encode()
    headers = (("Authorization", f"Bearer {key}"),) if key else ()
    return request_bytes("POST", "/v1/exec", body, headers)


def dial(address: Address) -> socket.socket:
    """Return a connected socket without Nagle's delay. *Raises* OSError."""
    sock = socket.create_connection((address.host, address.port), timeout=STALL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class Client:
    """One keep-alive connection, used by one request at a time."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._sock = dial(address)
        self._parser = AnswerParser()

    def exchange(self, request: bytes) -> tuple[Answer, int]:
        """Send a request; return its answer and the nanoseconds from send to last byte.

        *Raises* ProtocolError, ConnectionLost.
        """
        receive, feed = self._sock.recv, self._parser.feed
        started = time.perf_counter_ns()
        try:
            self._sock.sendall(request)
            while chunk := receive(RECEIVE_BYTES):
                answer = feed(chunk)
                if answer is not None:
                    return answer, time.perf_counter_ns() - started
        except (ConnectionError, TimeoutError) as error:
            raise ConnectionLost(f"no answer: {error}") from error
        raise ConnectionLost("the service closed the connection")

    def refresh(self) -> None:
        """Connect again if the service has closed an idle connection; call it outside what is timed."""
        # Readable while no answer is due: end of file, or bytes that nobody asked for.
        if not select.select([self._sock], [], [], 0)[0]:
            return
        with contextlib.suppress(ConnectionResetError):
            if self._sock.recv(1, socket.MSG_PEEK):
                raise ProtocolError("bytes that no request asked for")
        self._sock.close()
        self._sock, self._parser = dial(self._address), AnswerParser()

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Load:
    """A closed loop to run: `clients` connections, each sending again as soon as it is answered.

    `warm_up` answers come before the clock starts; `settle_s` passes between connecting and the first request, so
    that accepting connections is not part of it. After `limit_s` no more are sent. `expect` must occur in every
    answer, and its status be 200.
    """

    request: bytes
    expect: bytes
    clients: int
    requests: int
    warm_up: int = 0
    settle_s: float = 0.0
    limit_s: float = 300.0


@dataclass(slots=True)
class LoadResult:
    """What came of a closed loop; latencies in nanoseconds, `client_cpu_s` is this client's own processor time."""

    elapsed_s: float = 0.0
    client_cpu_s: float = 0.0
    wrong: int = 0
    first_wrong: str = ""
    latencies_ns: list[int] = field(default_factory=list)

    @property
    def rate_per_s(self) -> float:
        """Answers a second."""
        return len(self.latencies_ns) / self.elapsed_s

    def check(self, answer: Answer, expect: bytes) -> None:
        """Count an answer that is not 200 or lacks `expect`."""
        if answer.status != 200 or expect not in answer.body:
            self.wrong += 1
            self.first_wrong = self.first_wrong or f"{answer.status} {answer.body[:200]!r}"


class _Lane:
    """One connection of a closed loop."""

    __slots__ = ("parser", "sent_ns", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.parser = AnswerParser()
        self.sent_ns = 0

    def send(self, request: bytes) -> None:
        self.sent_ns = time.perf_counter_ns()
        self.sock.sendall(request)

    def receive(self) -> Answer | None:
        chunk = self.sock.recv(RECEIVE_BYTES)
        if not chunk:
            raise ConnectionLost("the service closed a connection under load")
        return self.parser.feed(chunk)


def drive(address: Address, load: Load) -> LoadResult:
    """Run a closed loop to its end. *Raises* ProtocolError, ConnectionLost, OSError."""
    with contextlib.ExitStack() as stack:
        poll = stack.enter_context(select.epoll())
        lanes = {}
        for _ in range(load.clients):
            lane = _Lane(stack.enter_context(dial(address)))
            lanes[lane.sock.fileno()] = lane
            poll.register(lane.sock, select.EPOLLIN)
        stack.enter_context(no_collection())
        time.sleep(load.settle_s)
        try:
            return _loop(poll, lanes, load)
        except (ConnectionError, TimeoutError) as error:
            raise ConnectionLost(f"under load: {error}") from error


def _loop(poll: select.epoll, lanes: dict[int, _Lane], load: Load) -> LoadResult:
    result, now = LoadResult(), time.perf_counter_ns
    begun_ns = counted_ns = now()
    begun_cpu, answered, total = time.process_time(), 0, load.warm_up + load.requests
    sent = waiting = min(total, len(lanes))
    for lane in list(lanes.values())[:waiting]:
        lane.send(load.request)
    while waiting:
        events = poll.poll(STALL_S)
        if not events:
            raise ConnectionLost(f"no answer within {STALL_S:g} s, {waiting} outstanding")
        for descriptor, _ in events:
            lane = lanes[descriptor]
            answer = lane.receive()
            if answer is None:
                continue
            ended = now()
            answered += 1
            waiting -= 1
            if answered > load.warm_up:
                result.latencies_ns.append(ended - lane.sent_ns)
            elif answered == load.warm_up:
                counted_ns, begun_cpu = ended, time.process_time()
            if sent < total and ended - begun_ns < load.limit_s * 1e9:
                lane.send(load.request)
                sent += 1
                waiting += 1
            result.check(answer, load.expect)
    if not result.latencies_ns:
        raise ConnectionLost(f"not past its warm-up of {load.warm_up} requests within {load.limit_s:g} s")
    result.elapsed_s = (now() - counted_ns) / 1e9
    result.client_cpu_s = time.process_time() - begun_cpu
    return result


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Keep this process's garbage collector out of what is timed."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
