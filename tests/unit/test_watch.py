"""When the process tier begins to look at a program."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from sandfork.tiers.process.watch import Watch
from tests.support.clock import in_virtual_time


class Looked:
    """Stands for the streams and for the slot, whose program uses no processor time."""

    cores = 1

    def __init__(self) -> None:
        self.watching = False
        self.meter = self

    def watch(self) -> None:
        assert not self.watching, "watched twice"
        self.watching = True

    def unwatch(self) -> None:
        self.watching = False

    def cpu_ns(self, _since: object) -> int:
        return 0


def make_watch() -> tuple[Watch, Looked]:
    looked = Looked()
    return Watch(cast("Any", looked), cast("Any", looked), lambda: None), looked


@in_virtual_time
async def test_output_that_somebody_waits_for_is_read_from_the_beginning() -> None:
    watch, looked = make_watch()
    watch.begin(1.0, None, live=True)
    assert looked.watching
    await asyncio.sleep(1)
    watch.end()
    assert not looked.watching


@in_virtual_time
async def test_a_short_program_is_over_before_anything_is_watched() -> None:
    watch, looked = make_watch()
    watch.begin(1.0, None)
    await asyncio.sleep(0.001)
    assert not looked.watching
    await asyncio.sleep(0.01)
    assert looked.watching
    watch.end()
