"""Tell a caller, with every answer, where it stands with the quotas of the dialect it speaks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from sandfork.access_quotas import Quota
from sandfork.dialects.base import Reply
from sandfork.errors import SandforkError
from sandfork.http.endpoints import Endpoint, Service
from sandfork.http.exchange import NOBODY, Exchange
from sandfork.model import Caller


class MeteredEndpoint:
    """Another endpoint, whose answers get X-RateLimit-Limit, -Remaining and -Reset (Unix time in seconds)."""

    def __init__(self, service: Service, endpoint: Endpoint, quotas: Sequence[Quota]) -> None:
        self._service = service
        self._endpoint = endpoint
        self._quotas = quotas
        self.dialect = endpoint.dialect

    async def answer(self, exchange: Exchange) -> Reply:
        """Answer as the other does. *Raises* what it raises."""
        return self._with_standing(exchange, await self._endpoint.answer(exchange))

    def refuse(self, exchange: Exchange, error: SandforkError) -> Reply:
        """Refuse as the other does."""
        return self._with_standing(exchange, self._endpoint.refuse(exchange, error))

    def _with_standing(self, exchange: Exchange, reply: Reply) -> Reply:
        access, caller = self._service.access, exchange.caller
        if caller is NOBODY:
            caller = Caller("", access.address_of(exchange.headers, exchange.peer))
        standing = access.standing(caller, self._quotas)
        if standing is None:
            return reply
        figures = (
            (b"x-ratelimit-limit", standing.limit),
            (b"x-ratelimit-remaining", standing.remaining),
            (b"x-ratelimit-reset", math.ceil(self._service.now() + standing.reset_s)),
        )
        headers = tuple((name, b"%d" % number) for name, number in figures)
        return msgspec.structs.replace(reply, headers=(*reply.headers, *headers))
