"""Who may call, and how often: a ring of hashed keys, token buckets, and the quotas that some dialects document.

Without keys the server is in open mode: every caller is let in and known by its address. With keys every caller needs
one, and no error on the way turns that off: a key file that cannot be understood is an exception at start.

A key file is a JSON list. Each entry is the key itself, or an object with `name`, `key` or `sha256` (hex), and
optionally `rate_per_s` and `ceilings` (the limits of `sandfork.model.Limits`).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import math
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sandfork.access_quotas import Quota, Share, Standing, Windows
from sandfork.errors import RateLimited, Unauthenticated
from sandfork.model import Caller, Limits

_FRACTIONS = frozenset({"wall_s", "cpu_s", "cpus"})
"""The limits that need not be whole numbers."""

DEMO_PREFIX = "zb_demo_"
"""Keys that begin so are shared by many: their rate counts per address."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class MalformedKeys(ValueError):
    """A key file that cannot be understood; the message names the entry, never a key."""


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One key of the ring: its public name, its SHA-256, and what it may do beyond the defaults."""

    name: str
    sha256: bytes
    rate_per_s: float | None = None
    ceilings: Limits | None = None
    demo: bool = False


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """Rates, and whose word on a client's address counts.

    A bucket holds one second's worth of `rate_per_s`. `trusted_proxies` are addresses or networks whose
    X-Forwarded-For is believed. `max_addresses` bounds what is remembered of addresses.
    """

    rate_per_s: float = 100.0
    demo_per_minute: int = 10
    trusted_proxies: tuple[str, ...] = ()
    max_addresses: int = 65536


def load_keys(path: Path) -> tuple[KeyEntry, ...]:
    """Read a key file. *Raises* MalformedKeys, OSError."""
    return parse_keys(path.read_bytes(), str(path))


def parse_keys(text: bytes, source: str = "api keys") -> tuple[KeyEntry, ...]:
    """Read the entries of a key file's text. *Raises* MalformedKeys naming `source` and the entry."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise MalformedKeys(f"{source} is not valid JSON") from None
    if not isinstance(document, list):
        raise MalformedKeys(f"{source} must hold a JSON list of keys")
    if not document:
        raise MalformedKeys(f"{source} holds no key; remove the file to serve without keys")
    entries = tuple(_entry(item, f"{source}: entry {index + 1}") for index, item in enumerate(document))
    for what, values in (("name", [e.name for e in entries]), ("key", [e.sha256 for e in entries])):
        if len(set(values)) != len(values):
            raise MalformedKeys(f"{source} has two entries of the same {what}")
    return entries


def _entry(item: Any, where: str) -> KeyEntry:
    if isinstance(item, str):
        digest = _digest_of(item, where)
        return KeyEntry(f"key-{digest.hex()[:8]}", digest, demo=item.startswith(DEMO_PREFIX))
    if not isinstance(item, dict):
        raise MalformedKeys(f"{where} is neither a string nor an object")
    unknown = set(item) - {"name", "key", "sha256", "rate_per_s", "ceilings"}
    if unknown:
        raise MalformedKeys(f"{where} has an unknown field: {min(unknown)}")
    name = item.get("name")
    if not isinstance(name, str) or not name or not name.isprintable():
        raise MalformedKeys(f"{where} needs a name")
    if ("key" in item) == ("sha256" in item):
        raise MalformedKeys(f"{where} ({name}) needs either key or sha256")
    demo = isinstance(item.get("key"), str) and item["key"].startswith(DEMO_PREFIX)
    digest = _digest_of(item["key"], where) if "key" in item else _hex_digest(item["sha256"], where)
    return KeyEntry(name, digest, _rate(item.get("rate_per_s"), where), _ceilings(item.get("ceilings"), where), demo)


def _digest_of(key: Any, where: str) -> bytes:
    if not isinstance(key, str) or not key or not key.isascii() or not key.isprintable() or " " in key:
        raise MalformedKeys(f"{where}: a key is a string of printable ASCII characters without spaces")
    return hashlib.sha256(key.encode()).digest()


def _hex_digest(value: Any, where: str) -> bytes:
    try:
        digest = bytes.fromhex(value)
    except (TypeError, ValueError):
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise MalformedKeys(f"{where}: sha256 must be 64 hexadecimal digits")
    return digest


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _rate(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if not _positive(value):
        raise MalformedKeys(f"{where}: rate_per_s must be a number above 0")
    return float(value)


def _ceilings(value: Any, where: str) -> Limits | None:
    """Read ceilings; a limit that is not named has none beyond the server's."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise MalformedKeys(f"{where}: ceilings must be an object")
    names = {f.name for f in fields(Limits)}
    for name, ceiling in value.items():
        if name not in names:
            raise MalformedKeys(f"{where}: unknown ceiling {name}; known are {', '.join(sorted(names))}")
        if not _positive(ceiling) or (name not in _FRACTIONS and not isinstance(ceiling, int)):
            raise MalformedKeys(f"{where}: ceiling {name} must be a number above 0")
    none = {name: math.inf if name in _FRACTIONS else sys.maxsize for name in names}
    return Limits(**{**none, **value})


class TokenBuckets:
    """Token buckets by subject, at most `max_subjects` of them.

    A bucket starts full and refills at `rate_per_s` up to `capacity`. A cost above the capacity is let through when
    the bucket is full, and is paid off by waiting: what was asked for is what is charged. The bucket longest unused
    is forgotten first, so `max_subjects` must be well above the number of subjects seen while a bucket refills.
    """

    def __init__(self, clock: Callable[[], float], max_subjects: int) -> None:
        self._clock = clock
        self._max_subjects = max_subjects
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, subject: str, cost: float, rate_per_s: float, capacity: float) -> float:
        """Take `cost` tokens; return 0, or the seconds until they could be taken, and then nothing is taken."""
        now = self._clock()
        tokens, since = self._buckets.get(subject, (capacity, now))
        tokens = min(capacity, tokens + (now - since) * rate_per_s)
        missing = min(cost, capacity) - tokens
        # A hair's breadth of rounding must not refuse a caller that waited exactly as long as it was told to.
        allowed = missing <= 1e-9
        self._buckets[subject] = (tokens - cost if allowed else tokens, now)
        self._buckets.move_to_end(subject)
        if len(self._buckets) > self._max_subjects:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else missing / rate_per_s


class Access:
    """Identifies callers and charges them."""

    def __init__(self, settings: AccessSettings, keys: Iterable[KeyEntry] = (), *, clock: Callable[[], float]) -> None:
        """Take the ring's entries; `clock` gives monotonic seconds. *Raises* ValueError for a bad proxy address."""
        self._settings = settings
        # Lookups go by a keyed hash, so that their timing tells nothing about the digests of the ring.
        self._secret = os.urandom(32)
        self._ring = {self._tag(entry.sha256): entry for entry in keys}
        self._buckets = TokenBuckets(clock, settings.max_addresses)
        self._windows = Windows(clock, settings.max_addresses)
        self._proxies = tuple(ipaddress.ip_network(proxy, strict=False) for proxy in settings.trusted_proxies)
        self._callers: OrderedDict[tuple[str, str], Caller] = OrderedDict()
        self._demo = {entry.name for entry in self._ring.values() if entry.demo}

    @property
    def open_mode(self) -> bool:
        """Whether there are no keys, so that everyone is let in."""
        return not self._ring

    def identify(self, headers: Mapping[bytes, bytes], peer: str) -> Caller:
        """Return the caller of a request.

        `headers` has lower-case names; `peer` is the address of the connection. The key is the one of
        `Authorization: Bearer`, else of `X-API-Key`. *Raises* Unauthenticated.
        """
        address = self.address_of(headers, peer) if self._proxies else peer
        if not self._ring:
            return self._caller(f"address:{subject_address(address)}", address, None)
        authorization = headers.get(b"authorization")
        if authorization is not None:
            scheme, _, key = authorization.strip().partition(b" ")
            if scheme.lower() != b"bearer":
                raise Unauthenticated(missing=False)
            return self.identify_key(key.strip(), address)
        return self.identify_key(headers.get(b"x-api-key", b"").strip(), address)

    def identify_key(self, key: bytes, address: str) -> Caller:
        """Return the caller that a key stands for, wherever it was sent. *Raises* Unauthenticated."""
        if not self._ring:
            return self._caller(f"address:{subject_address(address)}", address, None)
        if not key:
            raise Unauthenticated(missing=True)
        digest = hashlib.sha256(key).digest()
        entry = self._ring.get(self._tag(digest))
        if entry is None or not hmac.compare_digest(entry.sha256, digest):
            raise Unauthenticated(missing=False)
        return self._caller(entry.name, address, entry)

    def charge(self, caller: Caller, cost: int) -> None:
        """Take `cost` executions off the caller's rate. *Raises* RateLimited with the seconds to wait."""
        if not self._ring or cost <= 0:
            return
        if caller.key_id in self._demo:
            capacity = float(self._settings.demo_per_minute)
            subject, rate_per_s = f"demo {subject_address(caller.address)}", capacity / 60.0
            words = f"{capacity:g} req/min for demo keys"
        else:
            rate_per_s = caller.rate_per_s or self._settings.rate_per_s
            capacity = max(1.0, rate_per_s)
            subject, words = f"key {caller.key_id}", f"{rate_per_s:g} req/s"
        wait_s = self._buckets.take(subject, cost, rate_per_s, capacity)
        if wait_s > 0.0:
            raise RateLimited(f"Rate limit exceeded ({words})", retry_after_s=wait_s)

    def charge_within(self, caller: Caller, cost: int, quotas: Sequence[Quota]) -> None:
        """Take `cost` executions off the caller's rate and off each of `quotas`, or off none. *Raises* RateLimited."""
        shares = self._shares(caller, quotas)
        wait_s = self._windows.wait_s(shares, cost)
        if wait_s > 0.0:
            raise RateLimited("Rate limit exceeded", retry_after_s=wait_s)
        self.charge(caller, cost)
        self._windows.take(shares, cost)

    def standing(self, caller: Caller, quotas: Sequence[Quota]) -> Standing | None:
        """Return where the caller stands with the quota it will reach first; None when none holds for it."""
        return self._windows.standing(self._shares(caller, quotas))

    def _shares(self, caller: Caller, quotas: Sequence[Quota]) -> list[Share]:
        address, key = f"address {subject_address(caller.address)}", f"key {caller.key_id}"
        keyed = bool(self._ring and caller.key_id)
        return [(address if q.per == "address" else key, q) for q in quotas if keyed or q.per == "address"]

    def address_of(self, headers: Mapping[bytes, bytes], peer: str) -> str:
        """Return the client's address: the nearest one in X-Forwarded-For that is no trusted proxy."""
        address = peer
        for hop in reversed(headers.get(b"x-forwarded-for", b"").split(b",")):
            if not self._trusts(address):
                break
            forwarded = _plain_address(hop.decode("latin-1"))
            if forwarded is None:
                break
            address = forwarded
        return address

    def _trusts(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._proxies)

    def _tag(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._secret, digest_size=16).digest()

    def _caller(self, name: str, address: str, entry: KeyEntry | None) -> Caller:
        caller = self._callers.get((name, address))
        if caller is None:
            rate, ceilings = (entry.rate_per_s, entry.ceilings) if entry else (None, None)
            caller = self._callers[name, address] = Caller(name, address, rate, ceilings)
            if len(self._callers) > self._settings.max_addresses:
                self._callers.popitem(last=False)
        return caller


def _plain_address(hop: str) -> str | None:
    """Return the address of one X-Forwarded-For element in its usual spelling, or None when it is none."""
    hop = hop.strip().strip('"')
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        return str(ipaddress.ip_address(hop))
    except ValueError:
        return None


def subject_address(address: str) -> str:
    """Return what an address counts as: an IPv6 client owns its whole /64, so that is what is counted."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False).network_address) + "/64"
