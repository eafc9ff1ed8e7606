"""Whatever a client sends, it gets one well-formed answer that is no fault of ours, and nothing runs unasked."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.asgi import Answered, Client
from tests.support.clock import run_virtual
from tests.support.stub_engine import StubEngine, stub_app

KEYS = b'["zb_live_key1"]'
PATHS = ["/v1/exec", "/v1/exec/batch", "/exec", "/zeroboot/v1/exec", "/zeroboot/v1/exec/batch", "/v1/health", "/docs"]
PATHS += ["/execute", "/faber/execute", "/runner/api/v1/execute", "/api/v1/execute", "/api/v1/rootfs", "/faber/health"]
TARGETS = [
    "/v1/metrics",
    "/openapi.json",
    "/zeroboot/openapi.json",
    "/",
    "/zeroboot/",
    "/swagger-ui",
    "/api/v1/languages",
]

tokens = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=30)
names = st.sampled_from(
    ["authorization", "x-api-key", "content-type", "content-encoding", "content-length", "origin", "host", "expect"]
)
likely = st.sampled_from(
    [
        "Bearer zb_live_key1",
        "zb_live_key1",
        "bearer",
        "application/json",
        "gzip",
        "0",
        "-1",
        "9" * 30,
        "null",
        "http://[",
        "identity",
    ]
)
headers = st.lists(st.tuples(names, tokens | likely), max_size=6)
paths = st.sampled_from(PATHS + TARGETS) | st.text(max_size=30).map(lambda text: "/" + text)
good = st.sampled_from(
    [
        b'{"code": "print(1)"}',
        b'{"executions": [{"code": "x"}, {"code": "y"}]}',
        b"{}",
        b'{"language": "python", "code": "x"}',
        b'{"tasks": [{"command": "ls"}, {"command": "x", "files": {"/": ""}}]}',
        b'{"tasks": [{"command": "ls"}], "request": {}}',
    ]
)
chunks = st.lists(st.binary(max_size=30) | good, min_size=1, max_size=4)
methods = st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "BREW"])


@settings(max_examples=300, deadline=None)
@given(method=methods, path=paths, chunks=chunks, headers=headers, keys=st.sampled_from([b"", KEYS]))
def test_every_request_has_an_answer(
    method: str, path: str, chunks: list[bytes], headers: list[tuple[str, str]], keys: bytes
) -> None:
    engine, answers = StubEngine(), list[Answered]()

    async def ask() -> None:
        client = Client(stub_app(engine, keys=keys, max_body_bytes=100))
        answers.append(await client.send(method, path, chunks, headers))

    run_virtual(ask())
    (answer,) = answers
    assert 200 <= answer.status < 500 or answer.status == 501
    if answer.headers["content-type"] == "application/json":
        assert isinstance(json.loads(answer.body), dict)
    if engine.requests:
        assert answer.status == 200
        assert sum(map(len, chunks)) <= 100
        assert not keys or any("zb_live_key1" in value for _, value in headers)
