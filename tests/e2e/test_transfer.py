"""Files of 100 MB, up and down by every API that moves them, through a service whose memory is watched meanwhile."""

from __future__ import annotations

import binascii
import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.service import Service, running_service

SIZE_BYTES = 100_000_000
BLOCK = random.Random(1).randbytes(1_000_003)  # of no period that a chunk or a group of base64 has
#: What the server may need more than before: buffers of the connection and of the transfer, and none of the file.
GROWTH_BYTES = 24 << 20
CHUNK_BYTES = 1 << 20


def content() -> Iterator[bytes]:
    """Yield the file, which nobody has as a whole."""
    left = SIZE_BYTES
    while left:
        yield BLOCK[:left]
        left -= min(left, len(BLOCK))


def digest(chunks: Iterator[bytes]) -> str:
    found = hashlib.sha256()
    for chunk in chunks:
        found.update(chunk)
    return found.hexdigest()


WANTED = digest(content())


@pytest.fixture(scope="module")
def server(as_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of its own: what others do must not count."""
    config = '[limits.default]\ndisk_bytes = "200m"'
    with running_service(tmp_path_factory.mktemp("transfer"), config=config) as started:
        yield started


def peak_bytes(service: Service) -> int:
    lines = Path(f"/proc/{service.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


@contextmanager
def little_memory(service: Service) -> Iterator[None]:
    """Have what is done here need little memory of the server at any moment."""
    Path(f"/proc/{service.process.pid}/clear_refs").write_text("5")  # the peak counts from here
    before = peak_bytes(service)
    yield
    assert peak_bytes(service) - before < GROWTH_BYTES


def base64_content(answer: httpx.Response) -> Iterator[bytes]:
    """Yield the file in a JSON document `{…"content":"BASE64"…}`, whatever else is in that."""
    rest, inside = b"", False
    for chunk in answer.iter_bytes(CHUNK_BYTES):
        rest += chunk
        if not inside:
            assert b'"content":"' in rest
            rest, inside = rest.partition(b'"content":"')[2], True
        text, end, _ = rest.partition(b'"')
        whole = len(text) // 4 * 4
        yield binascii.a2b_base64(text[:whole], strict_mode=True)
        if end:
            assert whole == len(text)
            return
        rest = text[whole:]
    raise AssertionError("the document ended too early")


def by_our_own(client: httpx.Client) -> str:
    session = client.post("/v1/sessions", json={}).json()["id"]
    path = f"/v1/sessions/{session}/files/big.bin"
    assert client.put(path, content=content()).json()["size_bytes"] == SIZE_BYTES
    with client.stream("GET", path) as answer:
        found = digest(answer.iter_bytes(CHUNK_BYTES))
    assert client.delete(f"/v1/sessions/{session}").status_code == 200
    return found


def in_json(session: str) -> Iterator[bytes]:
    """Yield a body with the file as base64 in it, before and after other fields."""
    yield f'{{"sessionId": "{session}", "content": "'.encode()
    rest = b""
    for chunk in content():
        chunk = rest + chunk
        whole = len(chunk) // 3 * 3
        yield binascii.b2a_base64(chunk[:whole], newline=False)
        rest = chunk[whole:]
    yield binascii.b2a_base64(rest, newline=False)
    yield b'", "path": "/sandbox/big.bin"}'


def by_isol8(client: httpx.Client) -> str:
    session = "transfer"
    run = {"request": {"code": "", "runtime": "python"}, "options": {"sandboxSize": "200m"}, "sessionId": session}
    assert client.post("/isol8/execute", json=run).status_code == 200
    sent = client.post("/isol8/file", content=in_json(session), headers={"content-type": "application/json"})
    assert (sent.status_code, sent.json()) == (200, {"ok": True})
    wanted = {"sessionId": session, "path": "/sandbox/big.bin"}
    with client.stream("GET", "/isol8/file", params=wanted) as answer:
        found = digest(base64_content(answer))
    assert client.delete(f"/isol8/session/{session}").json() == {"ok": True}
    return found


def multipart(session: str) -> Iterator[bytes]:
    for name, value in (("session_id", session), ("remote_path", "big.bin")):
        yield f'--limit\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    yield b'--limit\r\ncontent-disposition: form-data; name="file"; filename="big.bin"\r\n\r\n'
    yield from content()
    yield b"\r\n--limit--\r\n"


def by_instavm(client: httpx.Client) -> str:
    session = client.post("/instavm/v1/sessions/session", json={}).json()["session_id"]
    form = {"content-type": "multipart/form-data; boundary=limit"}
    sent = client.post("/instavm/upload", content=multipart(session), headers=form)
    assert (sent.status_code, sent.json()["size"]) == (200, SIZE_BYTES), sent.text
    wanted = {"session_id": session, "filename": "big.bin"}
    with client.stream("POST", "/instavm/download", data=wanted) as answer:
        found = digest(base64_content(answer))
    assert client.post("/instavm/kill", json={"session_id": session}).status_code == 200
    return found


@pytest.mark.parametrize("move", [by_our_own, by_instavm, by_isol8])
def test_a_file_of_100_mb_goes_up_and_down_in_bounded_memory(
    server: Service, move: Callable[[httpx.Client], str]
) -> None:
    with server.client as client, little_memory(server):
        assert move(client) == WANTED
