"""Slots as the server sees them: a number, its cgroup figures, the limits in force, and whether the warden freed it."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from sandfork.errors import ForkFailed, TierError
from sandfork.linux.cgroup import Figures, Mark, SlotMeter
from sandfork.linux.descriptors import Spare
from sandfork.model import Limits
from sandfork.tiers.process import messages as m
from sandfork.tiers.process.guest import Guest
from sandfork.tiers.process.run import Means, cpu_seconds
from sandfork.tiers.process.sandbox import ProcessSandbox
from sandfork.tiers.process.warden import Warden

_INODE_BYTES = 4096  # a sandbox may have one inode per page of its disk limit, and at least this many
_INODES_MIN = 1024
_CLOSE_S = 15.0
_NO_CPU_LIMIT_S = (1 << 31) - 1
_QUOTA_MIN_US = 1000  # the kernel takes no less
_QUOTA_MAX_US = (1 << 32) - 1  # of the message: more processors than any machine has
_LOG = logging.getLogger("sandfork.tier")


class Tasks:
    """Tasks with an owner: kept until done, cancelled at close."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `work` in the background."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Cancel what is left and wait for it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def slot_limits(limits: Limits) -> m.SlotLimits:
    """Return the limits as the warden applies them to a slot."""
    inodes = max(_INODES_MIN, limits.disk_bytes // _INODE_BYTES)
    return m.SlotLimits(
        limits.memory_bytes,
        limits.disk_bytes,
        inodes,
        limits.pids,
        limits.open_files,
        cpu_quota_us=quota_us(limits.cpus),
    )


def quota_us(cpus: float) -> int:
    """Return what so many processors give in the kernel's period; 0 for no quota."""
    if cpus == math.inf:
        return 0
    return min(max(round(cpus * m.CPU_PERIOD_US), _QUOTA_MIN_US), _QUOTA_MAX_US)


class Tenancy:
    """One sandbox's time in a slot.

    All that a sandbox asks of its slot it asks here, and nothing once the slot is free: a sandbox that is closed late
    must not close the next one, which has the same slot.
    """

    def __init__(
        self, slot: Slot, slots: Slots, limits: m.SlotLimits, *, limits_itself: bool, home: Tenancy | None = None
    ) -> None:
        """A sandbox is being forked into `slot`; its process can lower its own rlimits, or cannot.

        With a `home` it is a further process of the sandbox there: figures and files are that sandbox's.
        """
        self.number = slot.number
        self.home = home
        self.meter: SlotMeter = home.meter if home else slot.meter
        self.work_dir = slots.means.work_dir(home.number if home else slot.number)
        self.means = slots.means
        self.tasks = slots.tasks
        self.cores = slots.cores
        self.limits = limits
        self.guest: Guest | None = None
        self._slots = slots
        self._from_outside = not limits_itself
        self._closing = False
        self._overdue: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._freed: asyncio.Future[None] = self._loop.create_future()

    async def apply(self, limits: Limits) -> None:
        """Put limits in force that differ from those the sandbox was forked with. *Raises* TierError."""
        outside = self._from_outside
        if not outside and (self._in_force(limits) or (self.means.rlimits and self._rest_is_in_force(limits))):
            return
        want = replace(slot_limits(limits), open_files=self.limits.open_files)
        if outside:
            want = replace(want, open_files=limits.open_files, cpu_s=cpu_seconds(limits, self.means))
        await self._put_in_force(want)

    async def apply_to_sandbox(self, limits: Limits) -> None:
        """Put in force what holds for a sandbox as a whole, unless it was born with it. *Raises* TierError."""
        if self._in_force(limits):
            return
        await self._put_in_force(replace(slot_limits(limits), open_files=self.limits.open_files))

    async def apply_to_process(self, limits: Limits) -> None:
        """Limit a process that lasts and cannot lower its own rlimits; its processor time is counted a step at a time.

        *Raises* TierError.
        """
        if self._from_outside:
            self._from_outside = False
            await self._put_in_force(replace(self.limits, open_files=limits.open_files, cpu_s=_NO_CPU_LIMIT_S))

    async def _put_in_force(self, want: m.SlotLimits) -> None:
        data = m.request(m.Request.LIMITS, self.number, limits=want)
        event = await self._slots.warden.ask(data, m.Event.LIMITS, self.number)
        if event.err:
            raise TierError(
                f"setting limits failed at {m.step_name(event.step)}: {os.strerror(event.err)}",
                step=m.step_name(event.step),
                errno=event.err,
            )
        self.limits = want

    def _in_force(self, limits: Limits) -> bool:
        """Say whether the warden has nothing to do."""
        now = self.limits
        return (
            limits.memory_bytes == now.memory_bytes
            and limits.disk_bytes == now.disk_bytes
            and limits.pids == now.pids
            and quota_us(limits.cpus) == now.cpu_quota_us
        )

    def _rest_is_in_force(self, limits: Limits) -> bool:
        """Say whether the warden has nothing to do where rlimits, which RUN carries, do all else."""
        disk = bool(self.means.work_root) or limits.disk_bytes == self.limits.disk_bytes
        return disk and quota_us(limits.cpus) == self.limits.cpu_quota_us

    def figures(self, reaped: m.WardenEvent | None, since: Mark | None = None) -> Figures:
        """Return what was used: the cgroups' figures, or, without any, what wait4 told of the reaped program.

        *Raises* OSError when the cgroups are gone.
        """
        if not self.means.rlimits or reaped is None:
            return self.meter.figures(since)
        user_ns, system_ns = reaped.utime_us * 1000, reaped.stime_us * 1000
        return Figures(user_ns, system_ns, memory_peak_bytes=reaped.maxrss_kb << 10, memory_bytes=0, processes=0)

    def signal(self, number: int) -> None:
        """Have the warden signal the program and its group."""
        if not self._closing and not self._freed.done():
            self._slots.warden.send(m.request(m.Request.SIGNAL, self.number, kind=number))

    async def kill_program(self) -> int:
        """Have the warden kill the program and what belongs to it; how many there were. *Raises* TierError."""
        if self._closing or self._freed.done():
            return 0
        event = await self._slots.warden.ask(m.request(m.Request.KILL, self.number), m.Event.KILLED, self.number)
        if event.err:
            raise TierError(f"a program could not be killed: {os.strerror(event.err)}", errno=event.err)
        return event.status

    def close(self) -> None:
        """Have the warden kill everything in the slot; once, and only while it is this sandbox's."""
        if not self._closing and not self._freed.done():
            self._closing = True
            self._overdue = self._loop.call_later(_CLOSE_S, self._not_freed)
            self._slots.warden.send(m.request(m.Request.CLOSE, self.number))

    def _not_freed(self) -> None:
        self._settle(TierError(f"the sandbox in slot {self.number} did not die within {_CLOSE_S:g} s"))

    def freed(self, event: m.WardenEvent | None) -> None:
        """The warden freed the slot (or is gone)."""
        if self.guest is not None:
            self.guest.died()
        self.guest = None
        if self._overdue is not None:
            self._overdue.cancel()
        if event is not None and event.err:
            problem = f"slot {self.number} was not left clean: {os.strerror(event.err)}"
            self._settle(TierError(problem, step=m.step_name(event.step), errno=event.err))
        else:
            self._settle(None)

    def _settle(self, error: TierError | None) -> None:
        freed = self._freed
        if freed.done():
            return
        if error is None:
            freed.set_result(None)
        else:
            _LOG.error("%s", error.message)
            freed.set_exception(error)
            freed.exception()  # told here; whoever waits is told, too

    async def closed(self) -> None:
        """Wait until the slot is free. *Raises* TierError when something was left in it, or it takes too long."""
        await asyncio.shield(self._freed)


class Slot:
    """One place for one sandbox at a time, and the files of its figures, which outlive it."""

    def __init__(self, number: int, slots: Slots) -> None:
        self.number = number
        self.meter = SlotMeter(slots.directories, number, slots.unified, slots.spare)
        self.tenancy: Tenancy | None = None


class Slots:
    """All slots of one warden. Freed ones are used again first, so that few cgroups and namespaces are ever made."""

    def __init__(
        self,
        warden: Warden,
        directories: dict[str, Path],
        unified: bool,
        most: int,
        cores: int,
        means: Means | None = None,
    ) -> None:
        self.warden = warden
        self.means = means or Means()
        self.directories = directories
        self.unified = unified
        self.cores = cores
        self.tasks = Tasks()
        self.spare = Spare()
        self.new_net_ns = 0  # how often a used network namespace had to be replaced
        self._most = most
        self._slots: list[Slot] = []
        self._free: list[Slot] = []

    def take(self, limits: m.SlotLimits, *, limits_itself: bool = True, home: Tenancy | None = None) -> Tenancy:
        """Take a free slot for a sandbox born with `limits`, or a process of the one at `home`. *Raises* ForkFailed."""
        if self._free:
            slot = self._free.pop()
        elif len(self._slots) < self._most:
            slot = Slot(len(self._slots), self)
            self._slots.append(slot)
        else:
            raise ForkFailed(f"all {self._most} sandbox slots are taken", retry_after_s=1.0)
        slot.tenancy = Tenancy(slot, self, limits, limits_itself=limits_itself, home=home)
        return slot.tenancy

    def untake(self, tenancy: Tenancy) -> None:
        """Give back a slot that nothing was forked into."""
        slot = self._slots[tenancy.number]
        slot.tenancy = None
        self._free.append(slot)

    def event(self, event: m.WardenEvent) -> None:
        """Pass on an event about a slot."""
        slot = self._slots[event.ident]
        tenancy = slot.tenancy
        if tenancy is None:
            return
        guest = tenancy.guest
        if event.op == m.Event.CLOSED:
            self.new_net_ns += event.flags & m.CLOSED_NEW_NETNS
            slot.tenancy = None
            tenancy.freed(event)
            if not event.err:
                self._free.append(slot)
        elif guest is not None and event.op == m.Event.EXIT:
            guest.exit_event(event)
        elif guest is not None:
            guest.fork_failed(event.step, event.err)

    def lost(self) -> None:
        """The warden is gone, and with it every sandbox."""
        for slot in self._slots:
            tenancy, slot.tenancy = slot.tenancy, None
            if tenancy is None:
                continue
            if tenancy.guest is not None:
                tenancy.guest.fork_failed(m.STEPS.index("none"), errno.ECHILD)
                tenancy.guest.release()
            tenancy.freed(None)
        self._free = list(self._slots)

    def roots(self) -> set[int]:
        """Return the numbers of the roots that sandboxes have."""
        guests = (slot.tenancy.guest for slot in self._slots if slot.tenancy is not None)
        return {guest.root for guest in guests if isinstance(guest, ProcessSandbox)}

    @property
    def live(self) -> int:
        """How many slots hold a sandbox."""
        return len(self._slots) - len(self._free)

    async def close(self) -> None:
        """Give up what is still open of every sandbox, and the files of all slots."""
        self.lost()
        await self.tasks.close()
        for slot in self._slots:
            slot.meter.close()
        self.spare.close()
