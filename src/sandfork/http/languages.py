"""What the server knows of its languages: the catalogue, what can be run now, and the versions they tell."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from sandfork.dialects.base import Dialect, LanguageRoute, LanguageState, QueryRoute, RawRequest, Reply
from sandfork.errors import SandforkError
from sandfork.http.endpoints import DialectEndpoint, Service
from sandfork.http.exchange import Exchange
from sandfork.http.intake import identify
from sandfork.model import Caller, Command, ExecRequest, LimitsOverride

VERSION_S = 10.0
VERSIONS_S = 3.0
"""How long a list of languages waits for versions that nobody has looked for before; the others come with the next."""
REST_S = 5.0
"""How long no program has run when the service looks for versions that nobody has asked for."""
LOOK_S = 0.5
OURSELVES = Caller("sandfork")
_VERSION = re.compile(rb"\d+(\.\d+)+|\d{4,}")


def language_names(languages: Sequence[LanguageState]) -> tuple[str, ...]:
    """Return every name and alias by which a program can be run."""
    return tuple(name for each in languages if each.runnable for name in (each.name, *each.aliases))


def language_states(service: Service) -> Sequence[LanguageState]:
    """Return all languages, with the versions found so far; one whose template cannot be made is not runnable."""
    broken = {template.key for template in service.engine.health() if not (template.ready or template.dormant)}
    return [
        replace(
            each, runnable=each.runnable and each.template not in broken, version=service.versions.told.get(_key(each))
        )
        for each in service.settings.languages()
    ]


async def find_version(service: Service, state: LanguageState, caller: Caller) -> str | None:
    """Return what a language's version command tells, None when it tells none or could not be run."""
    if _key(state) not in service.versions.told and state.version_argv:
        limits = LimitsOverride(wall_s=VERSION_S)
        request = ExecRequest(Command(state.version_argv), template=state.commands, limits=limits)
        try:
            result = await service.engine.execute(request, caller)
        except SandforkError:
            return None
        match = _VERSION.search(result.stdout + result.stderr)
        service.versions.told[_key(state)] = match[0].decode() if match else None
    return service.versions.told.get(_key(state))


def _key(state: LanguageState) -> tuple[str, str]:
    """Return what a version is kept under: another image may have another."""
    return state.name, state.image


async def find_versions(service: Service, programs: Callable[[], int]) -> None:
    """Have all versions found before anybody asks, one after the other, whenever no program has run for a while.

    `programs` tells how many have run. Once a list was asked for they are found without a pause.
    """
    service.versions.finding = asyncio.current_task()
    left, rested_s, seen = _unknown(service), 0.0, programs()
    while left:
        if rested_s < REST_S and not service.versions.wanted:
            await asyncio.sleep(LOOK_S)
            before, seen = seen, programs()
            rested_s = rested_s + LOOK_S if seen == before else 0.0
            continue
        await find_version(service, left.pop(0), OURSELVES)
        before, seen = seen, programs()
        if seen - before > 1:  # one was ours
            rested_s = 0.0


def _unknown(service: Service) -> list[LanguageState]:
    """Return the languages whose versions could be found and are not known."""
    return [each for each in language_states(service) if _is_unknown(service, each)]


def _is_unknown(service: Service, state: LanguageState) -> bool:
    return state.runnable and bool(state.version_argv) and _key(state) not in service.versions.told


class QueryEndpoint(DialectEndpoint):
    """Answers from what is known, to callers with a key where there are any."""

    def __init__(self, service: Service, dialect: Dialect, route: QueryRoute) -> None:
        super().__init__(dialect)
        self._of = dialect
        self._service = service
        self._route = route
        self._finding: asyncio.Task[None] | None = None

    async def answer(self, exchange: Exchange) -> Reply:
        """Identify, read what there is to read, render."""
        raw = await take_query(self._service, self._of, exchange, with_body=self._route.body_type is not None)
        if self._route.versions:
            await self._find_versions(exchange.caller)
        return self._route.render(raw, language_states(self._service))

    async def _find_versions(self, caller: Caller) -> None:
        """Have versions found that are not known, one after the other, charged as one run; wait for them a while.

        Those that are being found since the start are not waited for.
        """
        versions, unknown = self._service.versions, _unknown(self._service)
        versions.wanted = True
        if not unknown or versions.are_sought:
            return
        if self._finding is None or self._finding.done():
            self._service.access.charge(caller, 1)
            self._finding = asyncio.get_running_loop().create_task(self._find_each(unknown, caller))
        await asyncio.wait({self._finding}, timeout=VERSIONS_S)

    async def _find_each(self, unknown: Sequence[LanguageState], caller: Caller) -> None:
        for state in unknown:
            await find_version(self._service, state, caller)


class LanguageEndpoint(DialectEndpoint):
    """Tells one language. The first to ask for its version has it found out, by a run that is charged as any other."""

    def __init__(self, service: Service, dialect: Dialect, route: LanguageRoute) -> None:
        super().__init__(dialect)
        self._of = dialect
        self._service = service
        self._route = route

    async def answer(self, exchange: Exchange) -> Reply:
        """Identify, find, ask for the version, render. *Raises* NoSuchLanguage."""
        raw = await take_query(self._service, self._of, exchange, with_body=False)
        state = self._route.select(raw, language_states(self._service))
        if _is_unknown(self._service, state):
            self._service.access.charge(exchange.caller, 1)
            state = replace(state, version=await find_version(self._service, state, exchange.caller))
        return self._route.render(state)


async def take_query(service: Service, dialect: Dialect, exchange: Exchange, *, with_body: bool) -> RawRequest:
    """Identify the caller and return what was asked. *Raises* Unauthenticated, CrossOrigin, CallerError, ClientGone."""
    settings = service.settings
    if with_body:
        exchange.check_length(settings.max_body_bytes)
        exchange.check_json()
    await identify(service, dialect, exchange, with_body=with_body)
    if with_body:
        await exchange.read_body(settings.max_body_bytes, settings.body_timeout_s)
    return exchange.raw
