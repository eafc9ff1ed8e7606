"""The fake tier and its templates, with knobs to make them fail and counts to see that nothing is left."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable, Collection

from sandfork.errors import ForkFailed, TemplateFailed
from sandfork.model import TemplateHealth
from sandfork.tiers.base import Sandbox
from sandfork.tiers.fake.guest import FakeGuest
from sandfork.tiers.fake.process import Program
from sandfork.tiers.fake.sandbox import FakeSandbox
from sandfork.tiers.fake.script import play_script


class FakeTemplate:
    """Forks fake sandboxes; can be told to die."""

    def __init__(self, tier: FakeTier, key: str, generation: int) -> None:
        self._tier = tier
        self._key = key
        self._generation = generation
        self._dead = False

    @property
    def key(self) -> str:
        """The template key."""
        return self._key

    async def fork(self, *, urgent: bool = False) -> FakeSandbox:
        """Return a parked sandbox after the tier's `fork_s`."""
        await self._clone()
        return self._tier.new_sandbox(self._key)

    async def join(self, sandbox: Sandbox, *, terminal: tuple[int, int] | None = None) -> FakeGuest:
        """Return a parked process in a kept sandbox after the tier's `fork_s`."""
        assert isinstance(sandbox, FakeSandbox)
        await self._clone()
        if sandbox.files.closed:
            raise ForkFailed(f"template {self._key}: the sandbox to join is gone", step="join")
        return self._tier.new_guest(sandbox, terminal)

    async def _clone(self) -> None:
        """Take the time of a fork. *Raises* TemplateFailed, ForkFailed."""
        if self._tier.fork_s:
            await asyncio.sleep(self._tier.fork_s)
        if self._dead or self._tier.closed:
            raise TemplateFailed(f"template {self._key}: dead", step="fork")
        if self._tier.failing_forks > 0:
            self._tier.failing_forks -= 1
            raise ForkFailed(f"template {self._key}: told to fail", step="clone", errno=self._tier.fork_errno)

    def die(self) -> None:
        """Fail every fork from now on."""
        self._dead = True
        self._tier.forget(self)

    def rest(self) -> None:
        """Count it, in the tier."""
        self._tier.rested += 1

    def health(self) -> TemplateHealth:
        """Report a made-up size."""
        return TemplateHealth(self._key, not self._dead, 1 << 20, 0, self._generation, "dead" if self._dead else "")


class FakeTier:
    """The tier, with knobs to make it fail and counts to see that nothing is left.

    `keys` are the templates it has (None: any). `alive` holds every process not closed yet, a sandbox
    being its first one. `failing_forks` forks fail with `fork_errno`,
    `images` maps template keys to the image that their sandboxes are on, `broken` to the reason they cannot be made;
    `fork_s` and `close_s` are how long that takes.
    """

    def __init__(
        self,
        *,
        program: Program = play_script,
        keys: Collection[str] | None = None,
        isolation: str = "process",
        rates_cpus: bool = True,
        fork_s: float = 0.0,
        close_s: float = 0.0,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.program = program
        self._keys = keys
        self.fork_s = fork_s
        self.close_s = close_s
        self.clock_ns = clock_ns
        self.failing_forks = 0
        self.fork_errno = errno.EAGAIN
        self.broken: dict[str, str] = {}
        self.images: dict[str, str] = {}
        self.alive: set[FakeGuest] = set()
        self.forked = 0
        self.rested = 0
        self.closed = False
        self._isolation = isolation
        self._rates_cpus = rates_cpus
        self._templates: dict[str, FakeTemplate] = {}
        self._generations: dict[str, int] = {}

    @property
    def isolation(self) -> str:
        """What replies call this; a fake claims what its tests need."""
        return self._isolation

    @property
    def rates_cpus(self) -> bool:
        """Whether limits of processors at a time are its business; it claims that, too."""
        return self._rates_cpus

    async def start(self) -> None:
        """Nothing to make ready."""

    async def template(self, key: str) -> FakeTemplate:
        """Return the template of that key."""
        if self._keys is not None and key not in self._keys:
            raise TemplateFailed(f"template {key}: nobody described it", step="template")
        if key in self.broken:
            raise TemplateFailed(f"template {key}: {self.broken[key]}", step="template")
        if key not in self._templates:
            generation = self._generations[key] = self._generations.get(key, 0) + 1
            self._templates[key] = FakeTemplate(self, key, generation)
        return self._templates[key]

    async def close(self) -> None:
        """End every sandbox and template."""
        self.closed = True
        for guest in tuple(self.alive):
            await guest.close()

    def new_sandbox(self, key: str) -> FakeSandbox:
        """Make a sandbox and count it; for `FakeTemplate`."""
        self.forked += 1
        sandbox = FakeSandbox(self, key, self.forked)
        self.alive.add(sandbox)
        return sandbox

    def new_guest(self, sandbox: FakeSandbox, terminal: tuple[int, int] | None) -> FakeGuest:
        """Make a process in a sandbox and count it; for `FakeTemplate`."""
        guest = FakeGuest(self, sandbox, terminal)
        sandbox.add(guest)
        self.alive.add(guest)
        return guest

    async def pass_close_time(self) -> None:
        """Take the time of a close."""
        if self.close_s:
            await asyncio.sleep(self.close_s)

    def forget(self, template: FakeTemplate) -> None:
        """Have the next `template` call make a new one."""
        self._templates.pop(template.key, None)
