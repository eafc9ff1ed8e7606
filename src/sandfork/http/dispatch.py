"""A path that several dialects have, at root: the keys at the top level of a request's body tell whose it is.

The rule is a table of marks. A body with certain marks of two dialects is refused rather than guessed at. What is
refused before the dialect is known is told in the words of all; afterwards in those of the dialect.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import msgspec

from sandfork.dialects.base import BodyMark, Reply
from sandfork.dialects.fields import decode_body
from sandfork.dialects.refusals import render_undecided
from sandfork.errors import InvalidRequest, PayloadTooLarge, SandforkError, Unauthenticated
from sandfork.http.endpoints import Endpoint, Service
from sandfork.http.exchange import Exchange
from sandfork.http.intake import UNIDENTIFIED_BYTES


@dataclass(frozen=True, slots=True)
class Claim:
    """One dialect's claim to a path."""

    title: str
    mark: BodyMark
    endpoint: Endpoint

    def fits(self, keys: Set[str]) -> bool:
        """Whether a body with these keys bears the mark."""
        return not keys.isdisjoint(self.mark.keys)


_top_level: msgspec.json.Decoder[dict[str, msgspec.Raw]] = msgspec.json.Decoder(dict[str, msgspec.Raw])


class DispatchEndpoint:
    """Passes a request on to the endpoint of the dialect that its body is of."""

    dialect = ""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._claims: list[Claim] = []

    def add(self, claim: Claim) -> None:
        """Add a dialect that this server speaks."""
        self._claims.append(claim)

    async def answer(self, exchange: Exchange) -> Reply | None:
        """Read the body, choose, pass on. *Raises* what the chosen endpoint raises, and CallerError before."""
        exchange.check_length(self._service.settings.max_body_bytes)
        exchange.check_json()
        body = await self._read(exchange)
        claim = self._choose(decode_body(_top_level, body).keys())
        exchange.chosen = claim.endpoint
        exchange.dialect = claim.endpoint.dialect
        return await claim.endpoint.answer(exchange)

    def refuse(self, exchange: Exchange, error: SandforkError) -> Reply:
        """Refuse in the words of the dialect, once it is known."""
        if exchange.chosen is not None:
            return exchange.chosen.refuse(exchange, error)
        return render_undecided(error, exchange.request_id)

    async def _read(self, exchange: Exchange) -> bytes:
        settings = self._service.settings
        try:
            self._service.access.identify(exchange.headers, exchange.peer)
        except Unauthenticated as error:
            try:
                return await exchange.read_body(UNIDENTIFIED_BYTES, settings.body_timeout_s)
            except PayloadTooLarge:
                raise error from None
        return await exchange.read_body(settings.max_body_bytes, settings.body_timeout_s)

    def _choose(self, keys: Set[str]) -> Claim:
        fitting = [claim for claim in self._claims if claim.fits(keys)]
        chosen = [claim for claim in fitting if claim.mark.certain] or fitting
        if len(chosen) == 1:
            return chosen[0]
        claims = [f"{' or '.join(c.mark.keys)} ({c.title})" for c in (chosen or self._claims)]
        if chosen:
            raise InvalidRequest("", f"the body is of more than one kind: it has {' and '.join(claims)}")
        raise InvalidRequest("", f"the body is of no kind known here: it has none of {', '.join(claims)}")
