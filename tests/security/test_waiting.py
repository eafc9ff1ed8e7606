"""Attempts that wait for what they would be made on: each is counted and named at the end of every run.

An entry leaves this table when its feature comes, together with the test that takes its place.
"""

from __future__ import annotations

import pytest

NETWORK = "there is no network policy but none at all"
OTHER_TIERS = "the process tier is the only one"

WAITING: dict[str, str] = {
    "a key is revoked while its stream is open": "keys are read at the start: revoking one takes another",
    "an allow list is passed by a trailing dot, punycode, an address, a suffix, SNI against Host": NETWORK,
    "a redirect or a rebound name leads from an allowed host to the metadata service": NETWORK,
    "data leave in long names asked of the resolver": NETWORK,
    "requests are pipelined through CONNECT, or upgraded to WebSocket": NETWORK,
    "a callback's address leads inside": "callbacks are not built",
    "a package's installer runs hostile code": "packages are not installed on request",
    "handles of a GPU are inherited": "no GPU is given to sandboxes",
    "the same attempts on gVisor and on a microVM": OTHER_TIERS,
    "the wall clock jumps an hour during a run": "needs a machine whose clock may be set; limits use CLOCK_MONOTONIC",
    "the time a wrong key takes is measured": "a timed test would be flaky; keys are looked up by a keyed hash",
}


@pytest.mark.parametrize("attempt", WAITING)
def test_an_attempt_that_waits_is_named(attempt: str) -> None:
    pytest.skip(f"waiting: {WAITING[attempt]}")
