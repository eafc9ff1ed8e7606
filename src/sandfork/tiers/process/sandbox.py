"""A sandbox of the process tier: its first process, its files, and the processes that join it when it is kept."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sandfork.errors import GuestLost, NotSupported, TierError
from sandfork.model import InputFile, Limits
from sandfork.tiers.base import Collected
from sandfork.tiers.process.agent import AgentClient
from sandfork.tiers.process.files import SandboxFiles
from sandfork.tiers.process.guest import Guest
from sandfork.tiers.process.terminal import TerminalStreams

if TYPE_CHECKING:
    from sandfork.tiers.process.slots import Tenancy
    from sandfork.tiers.process.streams import Streams

_CLEAR_S = 10.0
_KILL_AGAIN_S = 0.5
_LOOK_AGAIN_S = 0.005
_LOG = logging.getLogger("sandfork.tier")


class ProcessSandbox(Guest):
    """A sandbox in a slot, which is its first process as well; see `tiers.base.Sandbox` for the port."""

    def __init__(
        self,
        slot: Tenancy,
        ctl: socket.socket,
        streams: Streams,
        agent: AgentClient,
        base_env: bytes,
        *,
        execs: bool = False,
    ) -> None:
        super().__init__(slot, ctl, streams, base_env, execs=execs)
        self.agent = agent
        self.kept = False
        self.root = 0
        self.image = ""
        self._guests: set[Guest] = set()
        self._clearing: asyncio.Task[None] | None = None
        self._dying: dict[Guest, asyncio.Task[None]] = {}

    @property
    def _home(self) -> ProcessSandbox:
        return self

    @property
    def place(self) -> Tenancy:
        """The slot it is in, for those that join."""
        return self._slot

    @property
    def files(self) -> SandboxFiles:
        """The files in it, moved a piece at a time."""
        return SandboxFiles(self.agent, self._slot.tasks)

    async def put(self, files: Sequence[InputFile]) -> None:
        """Write files into the sandbox."""
        await self.agent.put(files)

    async def collect(self, patterns: Sequence[str], max_bytes: int) -> Collected:
        """Read regular files matching paths or globs."""
        return await self.agent.collect(patterns, max_bytes)

    # --- kept ---

    async def keep(self, limits: Limits) -> None:
        """Have the sandbox outlive its programs; see the port. *Raises* NotSupported, TierError."""
        if self._slot.means.work_root:
            raise NotSupported("sessions are not available on this server: they need namespaces")
        self.kept = True
        await self._slot.apply_to_sandbox(limits)

    def add(self, guest: Guest) -> None:
        """Note a process that joins."""
        self._guests.add(guest)

    def remove(self, guest: Guest) -> None:
        """Forget a process that left."""
        self._guests.discard(guest)

    def kill_all(self) -> None:
        """Begin to kill every process in it, for which `cleared` waits; if it is not kept, the sandbox with them."""
        if not self.kept:
            self._slot.close()
        elif self._clearing is None or self._clearing.done():
            self._clearing = self._slot.tasks.spawn(self._clear())
            self._clearing.add_done_callback(lambda task: None if task.cancelled() else task.exception())

    def kill_program(self, guest: Guest, slot: Tenancy) -> None:
        """Begin to kill one program and what belongs to it, for which `cleared` waits; all where that fails."""
        if not self.kept:
            self.kill_all()
        elif guest not in self._dying:
            self._dying[guest] = task = self._slot.tasks.spawn(self._end(guest, slot))
            task.add_done_callback(lambda _: self._dying.pop(guest))

    async def dead(self, guest: Guest) -> None:
        """Wait until a program that is being killed is: what belongs to it is found by its process."""
        if guest in self._dying:
            await asyncio.wait({self._dying[guest]})

    async def cleared(self) -> None:
        """Wait for kills that are under way. *Raises* GuestLost when one failed: the sandbox is of no use any more."""
        if self._dying:
            await asyncio.wait(self._dying.values())
        if self._clearing is not None:
            await asyncio.shield(self._clearing)

    async def _end(self, guest: Guest, slot: Tenancy) -> None:
        dying = asyncio.ensure_future(guest.gone())
        try:
            async with asyncio.timeout(_CLEAR_S):
                while await slot.kill_program():  # noqa: ASYNC110  # nothing tells of the last of them
                    await asyncio.sleep(_LOOK_AGAIN_S)
                await dying
        except (TierError, TimeoutError) as error:
            _LOG.warning("everything in a sandbox is killed in the place of one program: %s", error)
            self.kill_all()
        finally:
            dying.cancel()

    async def _clear(self) -> None:
        # Not gathered: what is gathered and then cancelled is logged as an error that nobody asked for.
        dying = {asyncio.ensure_future(guest.gone()) for guest in (self, *self._guests)}
        try:
            async with asyncio.timeout(_CLEAR_S):
                left = dying
                while left:
                    # One that was only just being forked was not there yet to be killed.
                    await self.agent.kill_all()
                    _, left = await asyncio.wait(left, timeout=_KILL_AGAIN_S)
        except TimeoutError:
            raise GuestLost("the processes of a sandbox did not die") from None
        except OSError as error:
            raise GuestLost(f"the processes of a sandbox could not be killed: {error.strerror}") from error
        finally:
            for each in dying:
                each.cancel()

    # --- close ---

    def release(self) -> None:
        """Have everything in the sandbox killed and give up this side's descriptors; who waits is told."""
        for guest in tuple(self._guests):
            guest.release()
        super().release()
        self.agent.close()

    def _hang_up(self) -> None:
        self.agent.hang_up()
        super()._hang_up()

    async def close(self) -> None:
        """Destroy everything in the sandbox and wait until its slots are free."""
        guests = tuple(self._guests)
        await super().close()
        for guest in guests:
            await guest.close()


class JoinedGuest(Guest):
    """A process that joined a kept sandbox."""

    def resize(self, cols: int, rows: int) -> None:
        """Tell its terminal the size; nothing where it has pipes."""
        if isinstance(self._streams, TerminalStreams):
            self._streams.resize(cols, rows)

    async def close(self) -> None:
        """Destroy the process and wait until its slot is free."""
        try:
            await self._home.dead(self)
            await super().close()
        finally:
            self._home.remove(self)
