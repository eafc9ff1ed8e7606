"""What the server knows of its languages: the catalogue, what can be run now, and the versions they tell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from sandfork.dialects.base import Dialect, LanguageRoute, LanguageState, QueryRoute, RawRequest, Reply
from sandfork.errors import SandforkError
from sandfork.http.endpoints import DialectEndpoint, Service
from sandfork.http.exchange import Exchange
from sandfork.http.intake import identify
from sandfork.model import Caller, Command, ExecRequest, LimitsOverride

VERSION_S = 10.0
_VERSION = re.compile(rb"\d+(\.\d+)+")


def language_names(languages: Sequence[LanguageState]) -> tuple[str, ...]:
    """Return every name and alias by which a program can be run."""
    return tuple(name for each in languages if each.runnable for name in (each.name, *each.aliases))


def language_states(service: Service) -> Sequence[LanguageState]:
    """Return all languages; one whose template cannot fork is not runnable."""
    broken = {template.key for template in service.engine.health() if not template.ready}
    languages = service.settings.languages
    return [replace(each, runnable=each.runnable and each.template not in broken) for each in languages]


class QueryEndpoint(DialectEndpoint):
    """Answers from what is known, to callers with a key where there are any."""

    def __init__(self, service: Service, dialect: Dialect, route: QueryRoute) -> None:
        super().__init__(dialect)
        self._of = dialect
        self._service = service
        self._route = route

    async def answer(self, exchange: Exchange) -> Reply:
        """Identify, read what there is to read, render."""
        raw = await take_query(self._service, self._of, exchange, with_body=self._route.body_type is not None)
        return self._route.render(raw, language_states(self._service))


class LanguageEndpoint(DialectEndpoint):
    """Tells one language. The first to ask for its version has it found out, by a run that is charged as any other."""

    def __init__(self, service: Service, dialect: Dialect, route: LanguageRoute) -> None:
        super().__init__(dialect)
        self._of = dialect
        self._service = service
        self._route = route
        self._versions: dict[str, str | None] = {}

    async def answer(self, exchange: Exchange) -> Reply:
        """Identify, find, ask for the version, render. *Raises* NoSuchLanguage."""
        raw = await take_query(self._service, self._of, exchange, with_body=False)
        state = self._route.select(raw, language_states(self._service))
        if state.runnable and state.version is None:
            state = replace(state, version=await self._version(state, exchange.caller))
        return self._route.render(state)

    async def _version(self, state: LanguageState, caller: Caller) -> str | None:
        """Return what `--version` says, None when it says nothing that looks like one or could not be run."""
        if state.name not in self._versions:
            self._service.access.charge(caller, 1)
            request = ExecRequest(Command((state.run[0], "--version")), limits=LimitsOverride(wall_s=VERSION_S))
            try:
                result = await self._service.engine.execute(request, caller)
            except SandforkError:
                return None
            match = _VERSION.search(result.stdout or result.stderr)
            self._versions[state.name] = match[0].decode() if match else None
        return self._versions[state.name]


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
