"""Templates of the process tier: a zygote per template key, replaced from time to time for a fresh memory layout."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from sandfork.errors import ForkFailed, NotSupported, TemplateFailed
from sandfork.model import Limits, TemplateHealth
from sandfork.tiers.base import Sandbox
from sandfork.tiers.process import messages as m
from sandfork.tiers.process.agent import AgentClient
from sandfork.tiers.process.channels import open_channels, open_pipes, open_stream, open_terminal_streams
from sandfork.tiers.process.guest import Guest
from sandfork.tiers.process.sandbox import JoinedGuest, ProcessSandbox
from sandfork.tiers.process.slots import Slots, slot_limits
from sandfork.tiers.process.warden import Warden

_LOG = logging.getLogger("sandfork.tier")
_LOG_TAIL = 4096
_AGAIN_S = 1.0  # from one start of a zygote that dies to the next that nobody asked for
_ZYGOTE = "zygote"  # the step of a fork that failed because its zygote died

_Forked = TypeVar("_Forked", bound=Guest)


@dataclass(frozen=True, slots=True)
class TemplateSpec:
    """What a zygote is started with; `files` are opened for it and keep their order.

    `variables` are its own, beside the `environment` of every program. `execs` says that a process of it may have
    another take its place, which is told all that it needs.
    """

    key: str
    kind: m.Kind
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    files: tuple[Path, ...]
    root: int
    profile: int
    limits: Limits
    shared_netns: bool
    recycle_forks: int
    recycle_s: float
    variables: tuple[tuple[str, str], ...] = ()
    execs: bool = False
    image: str = ""


class Zygote:
    """One running zygote: its number at the warden, its forks that are not there yet, what it last wrote to its log."""

    def __init__(self, log_fd: int) -> None:
        self.number = -1
        self.forks = 0
        self.under_way = 0
        self.born = time.monotonic()
        self.alive = True
        self._log_fd = log_fd
        self._tail = b""
        asyncio.get_running_loop().add_reader(log_fd, self._log_readable)

    def _log_readable(self) -> None:
        data = os.read(self._log_fd, 4096)
        self._tail = (self._tail + data)[-_LOG_TAIL:]
        if not data:
            self.close_log()

    def close_log(self) -> None:
        """Stop reading its log."""
        if self._log_fd >= 0:
            asyncio.get_running_loop().remove_reader(self._log_fd)
            os.close(self._log_fd)
            self._log_fd = -1

    @property
    def last_words(self) -> str:
        """The last line it wrote."""
        lines = self._tail.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


class ProcessTemplate:
    """See `tiers.base.Template`."""

    def __init__(
        self,
        spec: TemplateSpec,
        warden: Warden,
        slots: Slots,
        elsewhere: Callable[[int], ProcessTemplate | None] = lambda root: None,
    ) -> None:
        """`elsewhere` returns the template that had this one's key in another root, which sandboxes may have still."""
        self._spec = spec
        self._elsewhere = elsewhere
        self._warden = warden
        self._slots = slots
        self._zygote: Zygote | None = None
        self._starting: asyncio.Task[Zygote] | None = None
        self._generation = 0
        self._reason = "not started"
        self._memory_bytes = 0
        self._retired: dict[int, Zygote] = {}
        self._proving, self._proven = asyncio.Lock(), False
        self._first: ProcessSandbox | None = None
        self._revival: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def key(self) -> str:
        """The template key of the language catalogue."""
        return self._spec.key

    @property
    def root(self) -> int:
        """The number of the root that its sandboxes have."""
        return self._spec.root

    async def warm(self) -> None:
        """Have a zygote running, and seen that what each child is to boot does. *Raises* TemplateFailed."""
        await self._current()
        if self._spec.kind is m.Kind.PARK and self._execs:
            await self._prove()

    async def _prove(self) -> None:
        """Have a first sandbox, once: whoever asks for one next is given it."""
        async with self._proving:
            if self._proven:
                return
            try:
                self._first = await self._from_zygote(partial(self._fork, urgent=False))
            except ForkFailed as error:
                self._reason = f"what it boots did not come up: {error.message}"
                raise TemplateFailed(f"template {self.key}: {self._reason}", retry_after_s=5.0) from error
            self._proven = True

    async def _current(self) -> Zygote:
        zygote = self._zygote
        if zygote is not None and zygote.alive:
            if zygote.forks >= self._spec.recycle_forks or time.monotonic() - zygote.born > self._spec.recycle_s:
                self._replace_soon()
            return zygote
        return await asyncio.shield(self._replace_soon())

    def _replace_soon(self) -> asyncio.Task[Zygote]:
        """Start a new zygote beside the old one, at most one at a time."""
        if self._starting is None or self._starting.done():
            self._starting = asyncio.get_running_loop().create_task(self._replace())
            self._starting.add_done_callback(lambda task: None if task.cancelled() else task.exception())
        return self._starting

    async def _replace(self) -> Zygote:
        new = await self._start()
        old, self._zygote = self._zygote, new
        self._generation += 1
        self._reason = ""
        if old is not None and old.alive:
            self._retire(old)
        return new

    def _retire(self, zygote: Zygote) -> None:
        self._retired[zygote.number] = zygote
        self._let_go(zygote)

    def _let_go(self, zygote: Zygote) -> None:
        """Have a retired zygote end once all its forks are there: its end fails what the warden knows nothing of."""
        if zygote.number in self._retired and not zygote.under_way:
            self._warden.send(m.request(m.Request.RETIRE, zygote.number))

    async def _start(self) -> Zygote:
        spec = self._spec
        if self._closed:
            raise TemplateFailed(f"template {self.key} is closed", step="template")
        zygote, fds = self._open_zygote()
        try:
            self._number(zygote)
            environment = (*spec.environment, *spec.variables)
            payload = m.program_fields(spec.argv, (f"{k}={v}" for k, v in environment))
            data = m.request(
                m.Request.ZYGOTE, zygote.number, root=spec.root, profile=spec.profile, kind=spec.kind, payload=payload
            )
            event = await self._warden.ask(data, m.Event.ZYGOTE, zygote.number, fds, timeout_s=60.0)
        except BaseException:
            zygote.close_log()
            if zygote.number >= 0:
                self._retire(zygote)  # it may yet come up
            raise
        finally:
            for fd in fds:
                os.close(fd)
        if event.op != m.Event.ZYGOTE:
            # Its last words may still be in the pipe.
            zygote._log_readable()
            zygote.close_log()
            zygote.alive = False
            self._reason = zygote.last_words or f"exit status {event.status}"
            raise TemplateFailed(f"template {spec.key} did not come up: {self._reason}", retry_after_s=5.0)
        self._memory_bytes = event.maxrss_kb << 10
        return zygote

    def _open_zygote(self) -> tuple[Zygote, list[int]]:
        """Return a zygote that has no process yet, and the descriptors that this is started with."""
        fds: list[int] = []
        try:
            fds += os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            os.set_blocking(fds[1], True)
            fds += [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in self._spec.files]
        except OSError as error:
            for fd in fds:
                os.close(fd)
            text = f"template {self.key} cannot be started: {error}"
            raise TemplateFailed(text, step="fds", errno=error.errno or 0, retry_after_s=1.0) from error
        return Zygote(fds[0]), fds[1:]

    def _number(self, zygote: Zygote) -> None:
        number = self._warden.number_zygote(partial(self._ended, zygote))
        if number is None:
            text = f"{m.ZYGOTES_MAX} templates are running, the most there may be at one time"
            raise TemplateFailed(f"template {self.key}: {text}", retry_after_s=5.0)
        zygote.number = number

    def _ended(self, zygote: Zygote, _: m.WardenEvent) -> None:
        """A zygote died: expected after it was retired, else another is started by the next fork, or in a moment."""
        zygote.alive = False
        zygote.close_log()
        if self._retired.pop(zygote.number, None) is None:
            self._reason = f"died: {zygote.last_words}"
            _LOG.warning("zygote of template %s died: %s", self._spec.key, zygote.last_words)
            wait_s = max(zygote.born + _AGAIN_S - time.monotonic(), 0.0)
            self._revival = asyncio.get_running_loop().call_later(wait_s, self._revive)

    def _revive(self) -> None:
        if self._zygote is not None and not self._zygote.alive and not self._closed:
            self._replace_soon()

    async def fork(self, *, urgent: bool = False) -> ProcessSandbox:
        """Return a parked sandbox; see the port."""
        first, self._first = self._first, None
        return first or await self._from_zygote(partial(self._fork, urgent=urgent))

    async def _from_zygote(self, fork: Callable[[Zygote], Awaitable[_Forked]]) -> _Forked:
        """Fork from the zygote, and from the next when that dies meanwhile. *Raises* TemplateFailed when both do."""
        for last in (False, True):
            if not self._warden.alive:
                raise ForkFailed("the process that makes sandboxes is gone", step="warden")
            zygote = await self._current()
            try:
                return await fork(zygote)
            except ForkFailed as error:
                if error.step != _ZYGOTE:
                    raise
                zygote.alive = False  # its end may be told only later
                if last:
                    text = f"template {self.key}: two zygotes in a row died while they forked"
                    raise TemplateFailed(text, step=_ZYGOTE, retry_after_s=1.0) from error
        raise AssertionError

    async def _fork(self, zygote: Zygote, *, urgent: bool) -> ProcessSandbox:
        limits = slot_limits(self._spec.limits)
        slot = self._slots.take(limits, limits_itself=self._limits_itself)
        try:
            ctl, ctl_child, agent, agent_child, streams, ends = open_channels()
        except OSError as error:
            self._slots.untake(slot)
            raise ForkFailed(
                f"no descriptors for a sandbox: {error.strerror}",
                step="fds",
                errno=error.errno or 0,
                retry_after_s=1.0,
            ) from error
        sandbox = ProcessSandbox(slot, ctl, streams, AgentClient(agent), self._base_env(), execs=self._execs)
        sandbox.root, sandbox.image = self._spec.root, self._spec.image
        slot.guest = sandbox
        zygote.forks += 1

        def sent() -> None:
            ctl_child.close()
            agent_child.close()
            for fd in ends:
                os.close(fd)

        data = m.request(
            m.Request.SPAWN, slot.number, zygote=zygote.number, limits=limits,
            flags=(m.SHARED_NETNS if self._spec.shared_netns else 0) | (m.URGENT if urgent else 0),
        )  # fmt: skip
        fds = (ctl_child.fileno(), *ends, agent_child.fileno())
        self._warden.send(data, fds, sent)
        await self._until_parked(sandbox, zygote)
        if self._spec.kind is m.Kind.PARK:
            # Such a template is no process of its own: what a parked one takes is its size.
            self._memory_bytes = slot.meter.figures().memory_bytes
        return sandbox

    async def join(self, sandbox: Sandbox, *, terminal: tuple[int, int] | None = None) -> Guest:
        """Fork a further process into a kept sandbox; see the port."""
        assert isinstance(sandbox, ProcessSandbox)
        if self._spec.root != sandbox.root and self._spec.kind is m.Kind.FORK:
            other = self._elsewhere(sandbox.root)
            if other is not None:
                return await other.join(sandbox, terminal=terminal)
            raise NotSupported("this language runs on other files than the session does: give it a session of its own")
        return await self._from_zygote(partial(self._join, sandbox=sandbox, terminal=terminal))

    async def _join(self, zygote: Zygote, *, sandbox: ProcessSandbox, terminal: tuple[int, int] | None) -> Guest:
        home = sandbox.place
        slot = self._slots.take(home.limits, limits_itself=self._limits_itself, home=home)
        try:
            ctl, ctl_child = open_stream()
            streams, theirs = open_terminal_streams(*terminal) if terminal else open_pipes()
        except OSError as error:
            self._slots.untake(slot)
            raise ForkFailed(
                f"no descriptors for a process: {error.strerror}",
                step="fds",
                errno=error.errno or 0,
                retry_after_s=1.0,
            ) from error
        guest = JoinedGuest(slot, ctl, streams, self._base_env(), execs=self._execs, home=sandbox)
        slot.guest = guest
        sandbox.add(guest)
        zygote.forks += 1

        def sent() -> None:
            ctl_child.close()
            for fd in set(theirs):
                os.close(fd)

        request = m.request(
            m.Request.SPAWN, slot.number, zygote=zygote.number, limits=home.limits, root=home.number,
            flags=m.JOIN | m.URGENT | (m.TERMINAL if terminal else 0),
        )  # fmt: skip
        self._warden.send(request, (ctl_child.fileno(), *theirs), sent)
        await self._until_parked(guest, zygote)
        return guest

    @property
    def _execs(self) -> bool:
        return self._spec.execs

    @property
    def _limits_itself(self) -> bool:
        return self._execs or self._spec.kind is not m.Kind.PARK

    def _base_env(self) -> bytes:
        """What RUN must carry for a program that no interpreter of ours gives its environment."""
        if not self._spec.execs:
            return b""
        return m.program_fields((), (f"{k}={v}" for k, v in self._spec.environment))

    async def _until_parked(self, guest: Guest, zygote: Zygote) -> None:
        zygote.under_way += 1
        try:
            await guest.parked()
        except BaseException:
            await asyncio.wait([self._slots.tasks.spawn(guest.close())])
            raise
        finally:
            zygote.under_way -= 1
            self._let_go(zygote)

    def rest(self) -> None:
        """End the zygote, once all its forks are there; the next fork starts another."""
        zygote, self._zygote = self._zygote, None
        first, self._first = self._first, None
        if first is not None:
            self._slots.tasks.spawn(first.close())
        self._reason = "resting: nothing has used it for a while"
        if zygote is not None and zygote.alive:
            self._retire(zygote)

    def health(self) -> TemplateHealth:
        """Report readiness."""
        ready = self._zygote is not None and self._zygote.alive
        return TemplateHealth(self.key, ready, self._memory_bytes, 0, self._generation, "" if ready else self._reason)

    async def end(self) -> None:
        """Rest for good, also where a zygote is just coming up."""
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        self.rest()

    async def close(self) -> None:
        """Stop starting; the zygote itself ends with the warden."""
        self._closed = True
        if self._revival is not None:
            self._revival.cancel()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        for zygote in (self._zygote, *self._retired.values()):
            if zygote is not None:
                zygote.close_log()
