"""The composition root: settings in, a wired service out; the only module that names concrete classes.

Order of a start, and why:

    1. keys          a malformed file, or an exposed address without keys, refuses before anything is opened
    2. socket        while still root, so that any port will do, and a port in use is told before templates warm
    3. tier          as root: its privileged process is started; then root is given up for good
    4. event loop    engine (templates warm, pools fill), HTTP application, server

The socket takes connections from step 2 on; they are answered from step 4 on. SIGTERM or SIGINT drains: the socket
closes, and so does every WebSocket on which nothing runs; what runs has `server.drain_s` to end, and then everything is
destroyed. A second signal does not wait.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvloop

from sandfork import __version__
from sandfork.access import Access, AccessSettings, KeyEntry, MalformedKeys, load_keys
from sandfork.access_quotas import Quota
from sandfork.config import ALL_DIALECTS, Config, Loaded
from sandfork.dialects import load_dialects
from sandfork.dialects.base import Bounds, Dialect
from sandfork.engine.engine import Engine
from sandfork.errors import TierUnavailable
from sandfork.http.app import App, build_app
from sandfork.http.endpoints import HttpSettings
from sandfork.http.languages import OURSELVES
from sandfork.http.log import ExecutionLog
from sandfork.languages.catalogue import Catalogue
from sandfork.metrics import Metrics
from sandfork.model import Caller, ExecPlan, ExecResult
from sandfork.serve_builder import Builder, start_builder
from sandfork.serve_caches import cold_languages, make_cache_store, tell_cold
from sandfork.serve_engine import build_engine, choose_languages, maximum_limits, pool_targets
from sandfork.serve_http import build_server, stop_on_signals
from sandfork.serve_images import with_store
from sandfork.serve_listen import is_loopback, listen
from sandfork.serve_log import LineWriter, set_up_logging
from sandfork.serve_refusal import Refused
from sandfork.serve_renewal import Renewal
from sandfork.serve_shelf import images_directory, keep_images
from sandfork.serve_tier import open_tier, tell_few_files, unenforced
from sandfork.tiers.base import Tier
from sandfork.tiers.process import ProcessTier

log = logging.getLogger(__name__)

#: How long after the drain answers may take to be sent.
SEND_S = 5.0
#: Items of one batch under way at once: one caller's batch leaves turns to the others.
MOST_PARALLEL = 16


@dataclass(frozen=True, slots=True)
class Service:
    """What a start has made before the event loop runs."""

    config: Config
    keys: tuple[KeyEntry, ...]
    catalogue: Catalogue
    tier: Tier
    dialects: tuple[Dialect, ...]
    socket: socket.socket
    lines: LineWriter
    builder: Builder
    images: Path

    @property
    def address(self) -> tuple[str, int]:
        """The address and the port that it really listens on."""
        host, port = self.socket.getsockname()[:2]
        return str(host), int(port)

    @property
    def unenforced(self) -> tuple[str, ...]:
        """What the started tier cannot enforce on this host, by the configuration's leave."""
        return unenforced(self.tier)


Announce = Callable[[Service], None]


def serve(loaded: Loaded, *, tier: str, announce: Announce) -> None:
    """Run the service until a signal ends it; `announce` is called once it answers. *Raises* Refused, TierError."""
    config = with_store(loaded.config)
    keys = read_keys(loaded)
    refuse_exposure(config, keys)
    catalogue = choose_languages(config)
    pool_targets(config, catalogue)
    dialects = choose_dialects(config)
    choose_quotas(config, dialects)
    lines = set_up_logging(config.server.log_level)
    make_cache_store(config)
    tell_cold(cold_languages(catalogue))
    raise_open_files()
    tell_few_files(config, catalogue)
    sock = listen(config.server.host, config.port)
    # Both are root's to start, if this is root; after the tier it is not any more.
    images = images_directory(config)
    builder = start_builder(config, images)
    service = Service(
        config, keys, catalogue, open_tier(config, catalogue, tier), dialects, sock, lines, builder, images
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, suppress(asyncio.CancelledError):
        runner.run(_run(service, announce))


def read_keys(loaded: Loaded) -> tuple[KeyEntry, ...]:
    """Return the key ring; empty when nobody named a file and the usual one is not there. *Raises* Refused."""
    path = Path(loaded.config.access.keys_file)
    source = loaded.sources["access.keys_file"]
    try:
        return load_keys(path)
    except FileNotFoundError:
        if not loaded.is_explicit("access.keys_file"):
            return ()
        raise Refused(f"{path} (access.keys_file, {source}) does not exist: `sandfork keys new` makes it") from None
    except MalformedKeys as error:
        raise Refused(str(error)) from None
    except OSError as error:
        raise Refused(f"{path}: cannot be read: {error.strerror}") from None


def refuse_exposure(config: Config, keys: Sequence[KeyEntry]) -> None:
    """Refuse to let a network run programs without a key, unless told to. *Raises* Refused."""
    if not keys and not config.access.open and not is_loopback(config.server.host):
        raise Refused(
            f"{config.server.host} can be reached from other machines and there are no API keys: make one with "
            "`sandfork keys new NAME`, or let anybody run programs here with --open"
        )


def choose_dialects(config: Config) -> tuple[Dialect, ...]:
    """Return every dialect there is. *Raises* Refused when the one for the root path is none of them."""
    dialects = load_dialects()
    names = [dialect.name for dialect in dialects]
    wanted = config.server.dialect
    if wanted not in (ALL_DIALECTS, *names):
        raise Refused(f"server.dialect: there is no dialect {wanted!r}, only {', '.join([ALL_DIALECTS, *names])}")
    return dialects


def raise_open_files() -> None:
    """Allow as many open files as this process may: a parked sandbox holds several."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def most_connections() -> int:
    """Return how many clients may be connected: a quarter of the open files, for the rest is the sandboxes'."""
    return max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)


def choose_quotas(config: Config, dialects: Sequence[Dialect]) -> dict[str, tuple[Quota, ...]]:
    """Return the quotas of every dialect: its own, or what is configured in their place. *Raises* Refused."""
    minute, hour = config.access.per_minute, config.access.per_hour
    names = [dialect.name for dialect in dialects]
    for key, table in (("per_minute", minute), ("per_hour", hour)):
        for name in table.keys() - set(names):
            raise Refused(f"access.{key}: there is no dialect {name!r}, only {', '.join(names)}")
    chosen: dict[str, tuple[Quota, ...]] = {}
    for dialect in dialects:
        quotas = {quota.per: quota for quota in dialect.quotas}
        if dialect.name in minute:
            quotas["address"] = Quota(minute[dialect.name], 60.0, "address")
        if dialect.name in hour:
            quotas["key"] = Quota(hour[dialect.name], 3600.0, "key")
        chosen[dialect.name] = tuple(quota for quota in quotas.values() if quota.limit)
    return chosen


def dialect_bounds(config: Config) -> Bounds:
    """Return what dialects must know to parse."""
    server, maximum = config.server, maximum_limits(config)
    return Bounds(maximum.wall_s, server.max_code_bytes, server.max_batch, maximum, config.sessions.disk_bytes)


def http_settings(service: Service, renewal: Renewal) -> HttpSettings:
    """Return the settings of the HTTP side."""
    config, server = service.config, service.config.server
    return HttpSettings(
        dialect=None if server.dialect == ALL_DIALECTS else server.dialect,
        bounds=dialect_bounds(config),
        max_body_bytes=server.max_body_bytes,
        max_upload_bytes=server.max_upload_bytes,
        stall_s=server.stall_s,
        batch_parallel=min(MOST_PARALLEL, config.admission.max_running),
        version=__version__,
        isolation=service.tier.isolation,
        unenforced_limits=service.unenforced,
        languages=renewal.languages,
        quotas=choose_quotas(config, service.dialects),
    )


def build_access(service: Service) -> Access:
    """Return who may call. *Raises* Refused for a proxy that is no address."""
    config = service.config
    settings = AccessSettings(rate_per_s=config.access.rate_per_s, trusted_proxies=config.server.trusted_proxies)
    try:
        return Access(settings, service.keys, clock=time.monotonic)
    except ValueError as error:
        raise Refused(f"server.trusted_proxies: {error}") from None


async def _run(service: Service, announce: Announce) -> None:
    """Start, serve until a signal, drain, and leave nothing."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    stop_on_signals(loop, task.cancel)
    service.lines.defer_on(loop)
    try:
        await service.tier.start()
        metrics = Metrics()
        execution_log = ExecutionLog(service.lines.write, time.time) if log.isEnabledFor(logging.INFO) else None
        engine = build_engine(service.config, service.catalogue, service.tier, _observe(metrics, execution_log))
        metrics.watch(engine.statistics)
        service.builder.attach(loop)
        renewal = Renewal(service.config, service.catalogue, service.tier, engine, service.builder.collect)
        keep_images(service.config, service.catalogue, engine, service.builder, service.images, renewal.look)
        try:
            await engine.start()
            tell_templates(engine)
            settings = http_settings(service, renewal)
            app = build_app(settings, engine, build_access(service), metrics, service.dialects, execution_log)
            await _serve(service, app, engine, announce, renewal)
        finally:
            await engine.close()
    finally:
        service.lines.defer_on(None)
        await service.builder.close()
        await service.tier.close()


def _observe(
    metrics: Metrics, execution_log: ExecutionLog | None
) -> Callable[[Caller, ExecPlan | None, ExecResult | BaseException], None]:
    """Return what notes an execution, a moment later: its answer leaves at the end of this round of the loop.

    What the service asks its own toolchains is nobody's execution, and neither logged nor counted.
    """

    def note(caller: Caller, plan: ExecPlan | None, outcome: ExecResult | BaseException) -> None:
        metrics.observe(caller, plan, outcome)
        if execution_log is not None:
            execution_log.observe(caller, plan, outcome)

    def observe(caller: Caller, plan: ExecPlan | None, outcome: ExecResult | BaseException) -> None:
        if caller is not OURSELVES:
            asyncio.get_running_loop().call_soon(note, caller, plan, outcome)

    return observe


def tell_templates(engine: Engine) -> None:
    """Log what could not be made ready. *Raises* Refused when nothing could."""
    health = engine.health()
    for template in health:
        if not template.ready and not template.dormant:
            log.warning("template %s is not ready: %s", template.key, template.reason)
    if health and not any(template.ready or template.dormant for template in health):
        raise Refused(f"no template can be made: {health[0].reason}")


def _programs(engine: Engine) -> int:
    """Return how many programs have been given a sandbox."""
    return sum(each.hits + each.misses for each in engine.statistics().pool)


async def _serve(service: Service, app: App, engine: Engine, announce: Announce, renewal: Renewal) -> None:
    """Answer requests until the first signal; then drain, which a second signal cuts short."""
    drain_s = service.config.server.drain_s
    server = build_server(app, drain_s + SEND_S, most_connections(), service.config.server.max_body_bytes)
    server.on_started = partial(announce, service)
    end = _End()
    stop_on_signals(asyncio.get_running_loop(), end.ask)
    # Nothing made so far is garbage; the collector need not look at it again, nor copy pages to mark it.
    gc.collect()
    gc.freeze()
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(server.serve(sockets=[service.socket]))
        serving.add_done_callback(lambda _: end.asked.set())
        background = [group.create_task(_watch(service.tier, end)), group.create_task(renewal.watch())]
        if service.config.languages.versions_at_start:
            background.append(group.create_task(app.find_versions(lambda: _programs(engine))))
        await end.asked.wait()
        log.info("draining for at most %g s", drain_s)
        app.drain()
        server.should_exit = True
        draining = group.create_task(engine.drain(drain_s))
        await _first(draining, group.create_task(end.hurried.wait()))
        if end.hurried.is_set():
            server.force_exit = True
            await engine.drain(0)
        for task in background:
            task.cancel()
    if end.tier_lost:
        raise TierUnavailable("the process that makes sandboxes died, and the service cannot go on without it")


class _End:
    """Why and how fast the service ends: asked to by a first signal, hurried by a second or by the loss of its tier."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurried = asyncio.Event()
        self.tier_lost = False

    def ask(self) -> None:
        """Take a signal."""
        (self.hurried if self.asked.is_set() else self.asked).set()


async def _watch(tier: Tier, end: _End) -> None:
    """End the service when its tier can make nothing more."""
    if isinstance(tier, ProcessTier):
        await tier.lost()
        end.tier_lost = True
        end.asked.set()
        end.hurried.set()


async def _first(done: asyncio.Task[None], hurry: asyncio.Task[bool]) -> None:
    """Return when either is over; the second is not waited for any longer."""
    await asyncio.wait((done, hurry), return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()
