"""Keys, callers, rates: who is let in, as whom, and how often."""

from __future__ import annotations

import hashlib
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandfork.access import (
    Access,
    AccessSettings,
    MalformedKeys,
    TokenBuckets,
    load_keys,
    parse_keys,
    subject_address,
)
from sandfork.errors import RateLimited, Unauthenticated
from sandfork.model import Limits

TWO_KEYS = b'["zb_live_key1", "zb_live_key2"]'


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def access(keys: bytes = TWO_KEYS, clock: Clock | None = None, **settings: Any) -> Access:
    return Access(AccessSettings(**settings), parse_keys(keys) if keys else (), clock=clock or Clock())


def bearer(key: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {key}".encode()}


def test_a_key_of_the_ring_is_let_in_under_a_public_name() -> None:
    caller = access().identify(bearer("zb_live_key1"), "10.0.0.1")
    assert caller.key_id == "key-" + hashlib.sha256(b"zb_live_key1").hexdigest()[:8]
    assert "zb_live" not in caller.key_id
    assert caller.address == "10.0.0.1"


@pytest.mark.parametrize("scheme", [b"Bearer", b"bearer", b"BEARER", b" Bearer "])
def test_the_scheme_is_read_in_any_case(scheme: bytes) -> None:
    assert access().identify({b"authorization": scheme.strip() + b"  zb_live_key2 "}, "")


def test_a_key_is_also_taken_from_x_api_key() -> None:
    assert access().identify({b"x-api-key": b"zb_live_key2"}, "") == access().identify(bearer("zb_live_key2"), "")


@pytest.mark.parametrize(
    "headers",
    [
        {b"authorization": b"Bearer zb_live_key3"},
        {b"authorization": b"Bearer zb_live_key1x"},
        {b"authorization": b"Bearer zb_live_key"},
        {b"authorization": b"bearer zb_live_key1, Bearer zb_live_key1"},
        {b"authorization": b"Basic zb_live_key1"},
        {b"authorization": b"zb_live_key1"},
        {b"authorization": b"Bearer zb_live_key1\0"},
        {b"authorization": b"Bearer \xff\xfe"},
        {b"authorization": b"Bearer wrong", b"x-api-key": b"zb_live_key1"},
        {b"x-api-key": b"wrong"},
        {b"authorization": b""},
    ],
)
def test_a_wrong_key_is_refused(headers: dict[bytes, bytes]) -> None:
    with pytest.raises(Unauthenticated) as caught:
        access().identify(headers, "10.0.0.1")
    assert not caught.value.missing


@pytest.mark.parametrize("headers", [{}, {b"x-api-key": b""}, {b"authorization": b"Bearer "}, {b"cookie": b"k=v"}])
def test_no_key_at_all_is_told_apart_from_a_wrong_one(headers: dict[bytes, bytes]) -> None:
    with pytest.raises(Unauthenticated) as caught:
        access().identify(headers, "10.0.0.1")
    assert caught.value.missing


def test_without_keys_everyone_is_let_in_by_address() -> None:
    open_door = access(b"")
    assert open_door.open_mode
    assert open_door.identify({}, "10.0.0.1") == open_door.identify(bearer("anything"), "10.0.0.1")
    assert open_door.identify({}, "10.0.0.1") != open_door.identify({}, "10.0.0.2")
    assert not access().open_mode


def test_the_ring_holds_no_key() -> None:
    ring = access(b'["a_very_secret_key"]')
    assert "a_very_secret_key" not in repr(vars(ring))


def test_the_rich_form_names_keys_and_gives_them_rates_and_ceilings() -> None:
    digest = hashlib.sha256(b"k2").hexdigest()
    keys = (
        '[{"name": "ci", "key": "k1", "rate_per_s": 5, "ceilings": {"memory_bytes": 1000, "wall_s": 2.5}},'
        f' {{"name": "team", "sha256": "{digest}"}}, "k3"]'
    )
    ring = access(keys.encode())
    first, second = (ring.identify(bearer(key), "") for key in ("k1", "k2"))
    assert (first.key_id, first.rate_per_s) == ("ci", 5.0)
    assert first.max_limits == Limits(
        wall_s=2.5,
        cpu_s=math.inf,
        memory_bytes=1000,
        pids=sys.maxsize,
        open_files=sys.maxsize,
        output_bytes=sys.maxsize,
        disk_bytes=sys.maxsize,
    )
    assert (second.key_id, second.rate_per_s, second.max_limits) == ("team", None, None)
    assert ring.identify(bearer("k3"), "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "not valid JSON"),
        (b"[", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"keys": []}', "must hold a JSON list"),
        (b"null", "must hold a JSON list"),
        (b"[]", "no key"),
        (b'[""]', "entry 1: a key is a string"),
        (b'["ok", 7]', "entry 2 is neither"),
        (b'["a key"]', "entry 1: a key is a string"),
        (b'["k\\u00e9"]', "entry 1: a key is a string"),
        (b'["k\\n"]', "entry 1: a key is a string"),
        (b'["k", "k"]', "two entries of the same"),
        (b'[{"name": "a", "key": "k"}, {"name": "a", "key": "l"}]', "same name"),
        (b'[{"name": "a", "key": "k"}, {"name": "b", "key": "k"}]', "same key"),
        (b'[{"key": "k"}]', "needs a name"),
        (b'[{"name": "", "key": "k"}]', "needs a name"),
        (b'[{"name": "a"}]', "needs either key or sha256"),
        (b'[{"name": "a", "key": "k", "sha256": "00"}]', "needs either key or sha256"),
        (b'[{"name": "a", "sha256": "00"}]', "64 hexadecimal digits"),
        (b'[{"name": "a", "sha256": 7}]', "64 hexadecimal digits"),
        (b'[{"name": "a", "key": "k", "rate": 5}]', "unknown field: rate"),
        (b'[{"name": "a", "key": "k", "rate_per_s": 0}]', "rate_per_s must be"),
        (b'[{"name": "a", "key": "k", "rate_per_s": true}]', "rate_per_s must be"),
        (b'[{"name": "a", "key": "k", "rate_per_s": NaN}]', "rate_per_s must be"),
        (b'[{"name": "a", "key": "k", "ceilings": 5}]', "ceilings must be an object"),
        (b'[{"name": "a", "key": "k", "ceilings": {"memory": 5}}]', "unknown ceiling memory"),
        (b'[{"name": "a", "key": "k", "ceilings": {"pids": -1}}]', "ceiling pids must be"),
        (b'[{"name": "a", "key": "k", "ceilings": {"pids": 1.5}}]', "ceiling pids must be"),
    ],
)
def test_a_malformed_key_file_is_refused_by_name_of_the_entry(text: bytes, words: str) -> None:
    with pytest.raises(MalformedKeys, match=words):
        parse_keys(text, "keys.json")


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_text_is_a_ring_with_keys_or_refused(text: bytes) -> None:
    try:
        assert parse_keys(text)
    except MalformedKeys:
        return


def test_a_refusal_never_repeats_a_key() -> None:
    for text in (b'["s3cret key"]', b'[{"name": "a", "key": "s3cret key"}]', b'["s3cret", "s3cret"]', b'["s3cret",]'):
        with pytest.raises(MalformedKeys) as caught:
            parse_keys(text)
        assert "s3cret" not in str(caught.value)


def test_a_key_file_is_read_and_named_when_malformed(tmp_path: Path) -> None:
    path = tmp_path / "api_keys.json"
    path.write_bytes(TWO_KEYS)
    assert len(load_keys(path)) == 2
    path.write_bytes(b"[")
    with pytest.raises(MalformedKeys, match=r"api_keys\.json"):
        load_keys(path)
    with pytest.raises(FileNotFoundError):
        load_keys(tmp_path / "absent.json")


def test_a_key_is_charged_a_hundred_a_second_and_told_how_long_to_wait() -> None:
    clock = Clock()
    door = access(clock=clock)
    caller = door.identify(bearer("zb_live_key1"), "")
    for _ in range(100):
        door.charge(caller, 1)
    with pytest.raises(RateLimited, match=r"^Rate limit exceeded \(100 req/s\)$") as caught:
        door.charge(caller, 1)
    assert caught.value.retry_after_s == pytest.approx(0.01)
    clock.now += caught.value.retry_after_s or 0.0
    door.charge(caller, 1)


def test_one_key_does_not_use_up_the_rate_of_another() -> None:
    door = access()
    first, second = (door.identify(bearer(f"zb_live_key{n}"), "same address") for n in (1, 2))
    door.charge(first, 100)
    door.charge(second, 100)
    with pytest.raises(RateLimited):
        door.charge(first, 1)


def test_a_key_with_its_own_rate_is_charged_by_it() -> None:
    door = access(b'[{"name": "slow", "key": "k", "rate_per_s": 2}]')
    caller = door.identify(bearer("k"), "")
    door.charge(caller, 2)
    with pytest.raises(RateLimited, match=r"2 req/s"):
        door.charge(caller, 1)


def test_a_cost_above_the_capacity_is_let_through_once_and_paid_off() -> None:
    clock = Clock()
    door = access(b'[{"name": "slow", "key": "k", "rate_per_s": 10}]', clock)
    caller = door.identify(bearer("k"), "")
    door.charge(caller, 100)
    clock.now += 8.9
    with pytest.raises(RateLimited) as caught:
        door.charge(caller, 1)
    assert caught.value.retry_after_s == pytest.approx(0.2)
    clock.now += 0.2
    door.charge(caller, 1)


def test_demo_keys_are_charged_ten_a_minute_by_address() -> None:
    clock = Clock()
    door = access(b'["zb_demo_key"]', clock)
    here, there = (door.identify(bearer("zb_demo_key"), address) for address in ("10.0.0.1", "10.0.0.2"))
    door.charge(here, 10)
    with pytest.raises(RateLimited, match=r"^Rate limit exceeded \(10 req/min for demo keys\)$") as caught:
        door.charge(here, 1)
    assert caught.value.retry_after_s == pytest.approx(6.0)
    door.charge(there, 10)
    clock.now += 6.0
    door.charge(here, 1)


def test_an_ipv6_client_counts_by_its_network_and_a_mapped_one_by_its_ipv4_address() -> None:
    assert subject_address("2001:db8::1") == subject_address("2001:db8::ffff:2")
    assert subject_address("2001:db8::1") != subject_address("2001:db8:0:1::1")
    assert subject_address("::ffff:10.0.0.1") == "10.0.0.1"
    assert subject_address("fe80::1%eth0") == subject_address("fe80::2")
    assert subject_address("10.0.0.1") == "10.0.0.1"
    assert subject_address("") == ""
    assert subject_address("no:address") == "no:address"


def test_nobody_is_charged_in_open_mode() -> None:
    door = access(b"")
    for _ in range(10):
        door.charge(door.identify({}, "10.0.0.1"), 100)


@pytest.mark.parametrize(
    ("proxies", "peer", "forwarded", "address"),
    [
        ((), "10.0.0.1", b"6.6.6.6", "10.0.0.1"),
        (("10.0.0.0/8",), "9.9.9.9", b"6.6.6.6", "9.9.9.9"),
        (("10.0.0.0/8",), "10.0.0.1", b"6.6.6.6", "6.6.6.6"),
        (("10.0.0.0/8",), "10.0.0.1", b"1.1.1.1, 6.6.6.6", "6.6.6.6"),
        (("10.0.0.0/8",), "10.0.0.1", b"1.1.1.1, 6.6.6.6, 10.0.0.7", "6.6.6.6"),
        (("10.0.0.0/8",), "10.0.0.1", b"6.6.6.6, not an address", "10.0.0.1"),
        (("10.0.0.0/8",), "10.0.0.1", b"", "10.0.0.1"),
        (("10.0.0.0/8",), "10.0.0.1", b"10.0.0.2, 10.0.0.3", "10.0.0.2"),
        (("10.0.0.1",), "10.0.0.1", b"[2001:db8::1]:443", "2001:db8::1"),
        (("10.0.0.1",), "10.0.0.1", b"6.6.6.6:1234", "6.6.6.6"),
        (("::1",), "::1", b"6.6.6.6", "6.6.6.6"),
        (("127.0.0.1",), "", b"6.6.6.6", ""),
    ],
)
def test_a_forwarded_address_counts_from_listed_proxies_only(
    proxies: tuple[str, ...], peer: str, forwarded: bytes, address: str
) -> None:
    door = access(b"", trusted_proxies=proxies)
    assert door.identify({b"x-forwarded-for": forwarded}, peer).address == address


def test_a_proxy_that_is_no_address_is_refused_at_start() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        access(trusted_proxies=("nonsense",))


def test_what_is_remembered_of_addresses_is_bounded() -> None:
    door = access(b'["zb_demo_key"]', max_addresses=100)
    for number in range(1000):
        door.charge(door.identify(bearer("zb_demo_key"), f"10.0.{number >> 8}.{number & 255}"), 1)
    assert len(door._buckets) == 100
    assert len(door._callers) == 100


def test_the_bucket_longest_unused_is_forgotten_first() -> None:
    buckets = TokenBuckets(Clock(), 2)
    for subject in ("a", "b", "a", "c"):
        buckets.take(subject, 1, 1.0, 2.0)
    assert buckets.take("a", 1, 1.0, 2.0) > 0.0
    assert buckets.take("b", 2, 1.0, 2.0) == 0.0


@given(
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 20)), max_size=60),
    st.floats(0.5, 50),
)
def test_no_caller_ever_gets_more_than_its_rate_and_one_burst(steps: list[tuple[float, int]], rate: float) -> None:
    clock = Clock()
    buckets = TokenBuckets(clock, 10)
    start, taken, last = clock.now, 0, 0
    for pause, cost in steps:
        clock.now += pause
        if buckets.take("x", cost, rate, rate) == 0.0:
            # What one burst may overdraw is paid off before anything else is let through.
            assert taken <= rate * (clock.now - start) + rate + 1e-6
            taken, last = taken + cost, cost
    assert taken - last <= rate * (clock.now - start) + rate + 1e-6


@given(st.integers(1, 30), st.floats(0.5, 50))
def test_who_waits_as_long_as_told_is_let_through(cost: int, rate: float) -> None:
    clock = Clock()
    buckets = TokenBuckets(clock, 10)
    while (wait_s := buckets.take("x", cost, rate, rate)) == 0.0:
        pass
    clock.now += wait_s
    assert buckets.take("x", cost, rate, rate) == 0.0
