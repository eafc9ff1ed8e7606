"""Tell a caller, with every answer, where it stands with the quotas of the dialect it speaks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sandfork.access_quotas import Quota
from sandfork.dialects.base import Reply
from sandfork.errors import SandforkError
from sandfork.http.endpoints import Endpoint, Service
from sandfork.http.exchange import NOBODY, Exchange, Headers
from sandfork.model import Caller


class MeteredEndpoint:
    """Another endpoint, whose answers get X-RateLimit-Limit, -Remaining and -Reset (Unix time in seconds)."""

    def __init__(self, service: Service, endpoint: Endpoint, quotas: Sequence[Quota]) -> None:
        self._service = service
        self._endpoint = endpoint
        self._quotas = quotas
        self.dialect = endpoint.dialect

    async def answer(self, exchange: Exchange) -> Reply | None:
        """Answer as the other does. *Raises* what it raises."""
        exchange.further_headers = lambda: self._standing(exchange)
        return await self._endpoint.answer(exchange)

    def refuse(self, exchange: Exchange, error: SandforkError) -> Reply:
        """Refuse as the other does."""
        exchange.further_headers = lambda: self._standing(exchange)
        return self._endpoint.refuse(exchange, error)

    def _standing(self, exchange: Exchange) -> Headers:
        access, caller = self._service.access, exchange.caller
        if caller is NOBODY:
            caller = Caller("", access.address_of(exchange.headers, exchange.peer))
        standing = access.standing(caller, self._quotas)
        if standing is None:
            return ()
        figures = (
            (b"x-ratelimit-limit", standing.limit),
            (b"x-ratelimit-remaining", standing.remaining),
            (b"x-ratelimit-reset", math.ceil(self._service.now() + standing.reset_s)),
        )
        return tuple((name, b"%d" % number) for name, number in figures)
