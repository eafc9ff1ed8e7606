"""The OpenAPI documents are true: what they allow is understood, and what comes back is what they say.

Schemathesis makes requests from the documents, good and bad ones, and calls the application behind its real server,
over the real engine and the fake tier.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from sandfork.access import Access, AccessSettings
from sandfork.dialects import load_dialects, zeroboot
from sandfork.engine.engine import Engine, EngineSettings
from sandfork.engine.images import ImageBounds
from sandfork.engine.sessions import SessionSettings
from sandfork.http.app import build_app
from sandfork.http.endpoints import HttpSettings
from sandfork.http.openapi import Spoken, openapi_document, told_path
from sandfork.images.state import Kind
from sandfork.languages.catalogue import Catalogue
from sandfork.metrics import Metrics
from sandfork.serve_engine import language_states
from sandfork.serve_http import build_server
from sandfork.tiers.fake import FakeTier
from tests.support.asgi import Client
from tests.support.clock import in_virtual_time
from tests.support.kept_images import MemoryImages
from tests.support.stub_engine import stub_app

STARTED_WITHIN_S = 20.0
#: All requests come from one address, and nobody ends the sessions they make.
ENGINE_SETTINGS = EngineSettings(sessions=SessionSettings(most=10_000, most_of_one=10_000))
#: What the document allows, so that what is refused is refused for what no schema can say.
IMAGE_BOUNDS = ImageBounds(size_mb=1 << 24, mem_mb=1 << 24, vcpus=1024, snapshots=10_000, under_way=10_000)


async def serve(listener: socket.socket, started: threading.Event, stop: threading.Event) -> None:
    """Serve the whole service but for the sandboxes until `stop` is set."""
    catalogue, tier, metrics = Catalogue.load(), FakeTier(), Metrics()
    engine = Engine(
        tier, catalogue, {spec.key: 2 for spec in catalogue.templates()}, ENGINE_SETTINGS, observe=metrics.observe
    )
    metrics.watch(engine.statistics)
    access = Access(AccessSettings(), clock=time.monotonic)
    await engine.start()
    images = MemoryImages()
    images.bucket = {Kind.ROOTFS: (), Kind.SNAPSHOT: ()}
    engine.keep_images(images.desk(engine.execute, IMAGE_BOUNDS), images.recall())
    settings = HttpSettings(version="1", languages=lambda: language_states(catalogue), quotas={"faber": ()})
    server = build_server(build_app(settings, engine, access, metrics, load_dialects()), send_s=1.0)
    server.on_started = started.set
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await asyncio.get_running_loop().run_in_executor(None, stop.wait)
    server.should_exit = server.force_exit = True
    await serving
    await engine.close()
    assert not tier.alive


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    started, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve(listener, started, stop)))
    thread.start()
    try:
        assert started.wait(STARTED_WITHIN_S)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        thread.join()


DIALECTS = load_dialects()
LANGUAGES = [name for language in Catalogue.load().languages() for name in (language.name, *language.aliases)]
DOCUMENT = json.loads(openapi_document([Spoken(each, each.prefix) for each in DIALECTS], "all", "1", LANGUAGES).body)
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [
    (path, method)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
    if "101" not in operation["responses"]  # a WebSocket is no operation that can be called
]
#: Fields that are refused for what no schema can say: paths that fit together, templates of that language, sizes that
#: are too small, a part of the query that must be there, names that cannot be printed.
UNSAID = re.compile(
    r"\b(files|collect|template|path|query|outputPaths|workdir|memoryLimit|sandboxSize|tmpSize|session|snapshot|remote|name)\b"
)


def refused_field(response: Any) -> str:
    """Return the field that an answer says is wrong, or all it says where it names none; "" for no such answer."""
    match response.status_code:
        case 400:
            reply = response.json()
            return str(reply.get("field") or reply.get("error", ""))
        case 422:
            return " ".join(map(str, response.json()["detail"][0]["loc"]))
    return ""


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_operation_keeps_to_its_document(base_url: str, path: str, method: str, mode: GenerationMode) -> None:
    operation = SCHEMA[path][method]
    body = DOCUMENT["paths"][path][method].get("requestBody", {"content": {}})
    if mode is GenerationMode.NEGATIVE and "application/json" not in body["content"]:
        return

    @settings(max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        response = case.call(base_url=base_url)
        # 426: a WebSocket is there, which no such request opens.
        unsaid = UNSAID.search(refused_field(response)) or response.status_code == 426
        case.validate_response(response, excluded_checks=[positive_data_acceptance] if unsaid else [])

    check()


@in_virtual_time
async def test_there_is_one_document_for_all_and_one_for_each_dialect() -> None:
    client = Client(stub_app())
    everything = (await client.get("/openapi.json")).json
    assert "/v1/exec" in everything["paths"]
    for dialect in DIALECTS:
        for route in dialect.routes:
            told = route.method.lower() in everything["paths"].get(dialect.prefix + told_path(route), {})
            assert told == route.documented
    exact = (await client.get("/zeroboot/openapi.json")).json
    assert set(exact["paths"]) == {path for path in everything["paths"] if path.startswith("/zeroboot/")}
    alone = (await Client(stub_app(dialect="zeroboot")).get("/openapi.json")).json
    assert set(alone["paths"]) == {told_path(route) for route in zeroboot.DIALECT.routes}


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for methods in DOCUMENT["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in names)


def test_every_reference_leads_somewhere() -> None:
    text = json.dumps(DOCUMENT)
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert names
    assert names <= set(DOCUMENT["components"]["schemas"])
