"""Quotas: exact counts in windows, standings that can be told, bounded memory."""

from __future__ import annotations

import pytest

from sandfork.access import Access, AccessSettings, parse_keys
from sandfork.access_quotas import Quota, Standing, Windows
from sandfork.errors import RateLimited
from sandfork.model import Caller

MINUTE = Quota(100, 60.0, "address")
HOUR = Quota(1000, 3600.0, "key")
ONE = ("address 192.0.2.1", MINUTE)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_the_last_is_let_through_and_the_next_is_not_however_slowly_they_come() -> None:
    clock = Clock()
    windows = Windows(clock, 10)
    for _ in range(100):
        assert windows.wait_s([ONE], 1) == 0.0
        windows.take([ONE], 1)
        clock.now_s += 0.5
    assert windows.wait_s([ONE], 1) == pytest.approx(10.0)


def test_a_window_begins_with_its_first_execution_and_ends_as_told() -> None:
    clock = Clock()
    windows = Windows(clock, 10)
    windows.take([ONE], 100)
    clock.now_s += 45.0
    wait_s = windows.wait_s([ONE], 1)
    assert wait_s == pytest.approx(15.0)
    clock.now_s += wait_s
    assert windows.wait_s([ONE], 100) == 0.0


def test_a_standing_tells_what_is_left_and_until_when() -> None:
    clock = Clock()
    windows = Windows(clock, 10)
    assert windows.standing([ONE]) == Standing(100, 100, 60.0)
    windows.take([ONE], 5)
    clock.now_s += 10.0
    assert windows.standing([ONE]) == Standing(100, 95, 50.0)
    clock.now_s += 50.0
    assert windows.standing([ONE]) == Standing(100, 100, 60.0)
    assert windows.standing([]) is None


def test_the_standing_is_that_with_the_quota_that_is_reached_first() -> None:
    windows = Windows(Clock(), 10)
    hour = ("key a", HOUR)
    windows.take([ONE, hour], 5)
    windows.take([hour], 940)
    assert windows.standing([ONE, hour]) == Standing(1000, 55, 3600.0)


def test_a_cost_above_the_limit_is_let_through_once_and_paid_off_by_waiting() -> None:
    clock = Clock()
    windows = Windows(clock, 10)
    assert windows.wait_s([ONE], 250) == 0.0
    windows.take([ONE], 250)
    assert windows.standing([ONE]) == Standing(100, 0, 180.0)
    assert windows.wait_s([ONE], 1) == pytest.approx(180.0)


def test_the_share_longest_unused_is_forgotten_first() -> None:
    windows = Windows(Clock(), 2)
    for subject in ("a", "b", "a", "c"):
        windows.take([(subject, MINUTE)], 100)
    assert len(windows) == 2
    assert windows.wait_s([("a", MINUTE)], 1) > 0
    assert windows.wait_s([("b", MINUTE)], 1) == 0.0


def access(keys: bytes = b"", **settings: float) -> Access:
    ring = parse_keys(keys) if keys else ()
    return Access(AccessSettings(**settings), ring, clock=Clock())  # type: ignore[arg-type]


def test_without_keys_only_quotas_of_addresses_hold() -> None:
    open_mode = access()
    caller = open_mode.identify({}, "192.0.2.1")
    for _ in range(2):
        open_mode.charge_within(caller, 50, (MINUTE, Quota(10, 3600.0, "key")))
    with pytest.raises(RateLimited) as refused:
        open_mode.charge_within(caller, 1, (MINUTE,))
    assert refused.value.retry_after_s == 60.0
    open_mode.charge_within(open_mode.identify({}, "192.0.2.2"), 100, (MINUTE,))


def test_a_key_is_counted_wherever_it_comes_from_and_an_address_whatever_key_it_has() -> None:
    keyed = access(b'["one", "two"]', rate_per_s=1e6)
    few = (Quota(3, 60.0, "address"), Quota(4, 3600.0, "key"))
    keyed.charge_within(keyed.identify_key(b"one", "192.0.2.1"), 3, few)
    with pytest.raises(RateLimited):
        keyed.charge_within(keyed.identify_key(b"two", "192.0.2.1"), 1, few)
    keyed.charge_within(keyed.identify_key(b"one", "192.0.2.2"), 1, few)
    with pytest.raises(RateLimited):
        keyed.charge_within(keyed.identify_key(b"one", "192.0.2.3"), 1, few)


def test_what_one_quota_refuses_is_charged_to_none() -> None:
    keyed = access(b'["one"]')
    caller = keyed.identify_key(b"one", "192.0.2.1")
    keyed.charge_within(caller, 4, (Quota(5, 60.0, "address"),))
    hour = Quota(10, 3600.0, "key")
    with pytest.raises(RateLimited):
        keyed.charge_within(caller, 2, (hour, Quota(5, 60.0, "address")))
    assert keyed.standing(caller, (hour,)) == Standing(10, 10, 3600.0)


def test_the_rate_of_a_key_holds_beside_its_quotas_and_takes_nothing_of_them() -> None:
    keyed = access(b'[{"name": "slow", "key": "one", "rate_per_s": 2}]')
    caller = keyed.identify_key(b"one", "192.0.2.1")
    keyed.charge_within(caller, 2, (MINUTE,))
    with pytest.raises(RateLimited, match="2 req/s"):
        keyed.charge_within(caller, 1, (MINUTE,))
    assert keyed.standing(caller, (MINUTE,)) == Standing(100, 98, 60.0)


def test_the_addresses_of_one_network_share_a_quota() -> None:
    open_mode = access()
    open_mode.charge_within(open_mode.identify({}, "2001:db8::1"), 60, (MINUTE,))
    assert open_mode.standing(Caller("", "2001:db8::2"), (MINUTE,)) == Standing(100, 40, 60.0)
