"""Who asks, and whether it may: what every endpoint does before it looks at what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sandfork.access_quotas import Quota
from sandfork.dialects.base import Bounds, Dialect
from sandfork.dialects.refusals import CrossOrigin
from sandfork.errors import PayloadTooLarge, Unauthenticated
from sandfork.http.exchange import Exchange
from sandfork.model import Caller

if TYPE_CHECKING:
    from sandfork.http.endpoints import Service

UNIDENTIFIED_BYTES = 256 << 10
"""The most that is read for a caller whose headers name no key."""


async def identify(service: Service, dialect: Dialect, exchange: Exchange, *, with_body: bool) -> Caller:
    """Return the caller, by its headers or by the key that clients of its dialect put elsewhere, and note it.

    `with_body` says that the request may have a JSON body, which may then be read. *Raises* Unauthenticated,
    CrossOrigin, BodyTimeout, ClientGone.
    """
    access, headers = service.access, exchange.headers
    if dialect.key_in_request is None or access.open_mode or b"authorization" in headers or b"x-api-key" in headers:
        caller = access.identify(headers, exchange.peer)
    else:
        key = dialect.key_in_request(exchange.raw)
        if key is None and with_body:
            await _read_unidentified(service, exchange)
            key = dialect.key_in_request(exchange.raw)
        caller = access.identify_key(key or b"", access.address_of(headers, exchange.peer))
    exchange.caller = caller
    if access.open_mode and b"origin" in headers:
        check_origin(headers, service.settings.allowed_origins)
    return caller


async def _read_unidentified(service: Service, exchange: Exchange) -> None:
    try:
        await exchange.read_body(UNIDENTIFIED_BYTES, service.settings.body_timeout_s)
    except PayloadTooLarge:
        raise Unauthenticated(missing=True) from None


def charge(service: Service, caller: Caller, cost: int, quotas: Sequence[Quota]) -> None:
    """Take `cost` executions off the caller's rate, and off its quotas where there are any. *Raises* RateLimited."""
    if quotas:
        service.access.charge_within(caller, cost, quotas)
    else:
        service.access.charge(caller, cost)


def bounds_for(caller: Caller, bounds: Bounds) -> Bounds:
    """Return the server's bounds, lowered to those of the caller's key."""
    return bounds if caller.max_limits is None else bounds.lowered_to(caller.max_limits)


def check_origin(headers: dict[bytes, bytes], allowed: Sequence[str]) -> None:
    """Keep the pages of other sites from running programs on a server that asks for no key.

    A browser names the origin of every POST a page makes. A page of this server reached by an address or as
    `localhost` is let through; one reached by a name is not, as anybody's name can be made to point here (DNS
    rebinding), unless it is in `allowed`. *Raises* CrossOrigin.
    """
    origin = headers[b"origin"].decode("latin-1")
    if origin in allowed:
        return
    if not _is_own_page(origin, headers.get(b"host", b"").decode("latin-1")):
        raise CrossOrigin("web pages of other origins may not run programs on a server without keys")


def _is_own_page(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
        return parts.netloc == host and _is_address(parts.hostname or "")
    except ValueError:
        return False


def _is_address(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
