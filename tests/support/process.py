"""The process tier itself, without engine and HTTP: started as the service starts it, driven from plain tests.

Needs root, as the service does. Where the package was not built (a plain checkout), the C programs are compiled once.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import uvloop

import sandfork
from sandfork.languages.catalogue import Catalogue
from sandfork.model import Display, InputFile, Limits, Step, Stream
from sandfork.native.build import compile_all
from sandfork.tiers.base import Collected, StepEnd
from sandfork.tiers.process import Launched, LaunchSettings, ProcessSettings, ProcessTier, launch
from sandfork.tiers.process.sandbox import ProcessSandbox

T = TypeVar("T")

PACKAGE = Path(sandfork.__file__).parent
#: A test that takes longer hangs.
STUCK_S = 60.0
LIMITS = Limits()

FILE_NAMES = {"python": "main.py", "python-numpy": "main.py", "node": "main.js", "command": "main.sh"}
ARGV = {
    "python": ("/sandbox/main.py",),
    "python-numpy": ("/sandbox/main.py",),
    "node": ("/usr/bin/node", "/sandbox/main.js"),
    "command": ("/bin/bash", "/sandbox/main.sh"),
}


@cache
def native_dir() -> Path:
    """Return the directory of the C programs: the package's own, else one compiled for this run."""
    built = PACKAGE / "native/bin"
    if (built / "sandfork-warden").exists():
        return built
    out = Path(tempfile.mkdtemp(prefix="sandfork-native-"))
    out.chmod(0o755)
    compile_all(out)
    return out


def guest_packages() -> Path | None:
    """Return the packages of the sandboxes, where they are installed beside the package."""
    installed = PACKAGE.parent / "guest"
    return installed.resolve() if installed.is_dir() else None


def start_native(**change: Any) -> Launched:
    """Start janitor and warden; `change` is settings of the launch."""
    return launch(LaunchSettings(warden=native_dir() / "sandfork-warden", **change))


def process_tier(launched: Launched, **change: Any) -> ProcessTier:
    """Return a tier over what `start_native` started, which it owns from then on."""
    catalogue = change.pop("catalogue", None) or Catalogue.load().sized(
        lambda language: language.limits.memory_bytes or LIMITS.memory_bytes
    )
    settings: dict[str, Any] = {"guest_packages": guest_packages(), "cores": 2, **change}
    return ProcessTier(ProcessSettings(native=native_dir(), guest=PACKAGE / "guest", **settings), launched, catalogue)


@asynccontextmanager
async def open_process_tier(**change: Any) -> AsyncIterator[ProcessTier]:
    """Start a process tier and close it."""
    tier = process_tier(start_native(), **change)
    try:
        await tier.start()
        yield tier
    finally:
        await tier.close()


async def until(so: Callable[[], bool]) -> None:
    """Let everything else run until something is so that nobody tells of."""
    while not so():  # noqa: ASYNC110
        await asyncio.sleep(0)


Check = Callable[[ProcessTier, ProcessSandbox], Coroutine[Any, Any, None]]


def with_sandbox(check: Check, key: str = "python", limits: Limits = LIMITS, **settings: Any) -> None:
    """Run `check` in a kept sandbox of a tier of its own; afterwards no sandbox may be left."""
    launched = start_native()

    async def run() -> None:
        tier = process_tier(launched, **settings)
        try:
            async with asyncio.timeout(STUCK_S):
                await tier.start()
                sandbox = await (await tier.template(key)).fork()
                await sandbox.keep(limits)
                await check(tier, sandbox)
                await sandbox.close()
                assert tier.live == 0
        finally:
            await tier.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


class Tape:
    """A sink that keeps everything and tells when something came."""

    def __init__(self) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.displays: list[Display] = []
        self.wrote = asyncio.Event()

    def output(self, stream: Stream, data: bytes) -> bool:
        """Take a chunk."""
        (self.stdout if stream == Stream.STDOUT else self.stderr).extend(data)
        self.wrote.set()
        return True

    def display(self, shown: Display) -> None:
        """Take a rich value."""
        self.displays.append(shown)

    async def until(self, mark: bytes) -> None:
        """Wait until stdout holds `mark`."""
        while mark not in self.stdout:
            await self.wrote.wait()
            self.wrote.clear()


@dataclass(frozen=True)
class Ran:
    """One program run to its end."""

    end: StepEnd
    stdout: bytes
    stderr: bytes
    collected: Collected = field(default_factory=Collected)

    @property
    def status(self) -> int | None:
        """The exit code, or minus the signal, as subprocess gives it."""
        return self.end.exit_code if self.end.signal is None else -self.end.signal


def make_step(code: str | bytes, template: str = "python", args: Sequence[str] = (), **change: Any) -> Step:
    """Return the step of a program of that template's language."""
    template = template.partition("@")[0]  # on an image it is the same
    text = code.encode() if isinstance(code, str) else code
    return Step((*ARGV[template], *args), FILE_NAMES[template], text, **change)


class Workbench:
    """A tier that was started once and an event loop that outlives each test: tests on it are plain functions."""

    def __init__(self, runner: asyncio.Runner, tier: ProcessTier) -> None:
        self.runner = runner
        self.tier = tier

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end on the loop."""

        async def bounded() -> T:
            async with asyncio.timeout(STUCK_S):
                return await work

        return self.runner.run(bounded())

    async def fork(self, template: str = "python") -> ProcessSandbox:
        """Return a parked sandbox."""
        return await (await self.tier.template(template)).fork()

    async def begin(
        self, code: str, template: str = "python", limits: Limits = LIMITS, **change: Any
    ) -> tuple[ProcessSandbox, Tape, asyncio.Task[StepEnd]]:
        """Start a program that prints something, and return once it has."""
        sandbox, tape = await self.fork(template), Tape()
        task = asyncio.get_running_loop().create_task(sandbox.exec(make_step(code, template, **change), limits, tape))
        wrote = asyncio.get_running_loop().create_task(tape.wrote.wait())
        await asyncio.wait([task, wrote], return_when=asyncio.FIRST_COMPLETED)
        wrote.cancel()
        assert tape.stdout, (task, bytes(tape.stderr))
        return sandbox, tape, task

    async def exec(
        self,
        code: str | bytes,
        template: str = "python",
        limits: Limits = LIMITS,
        collect: Sequence[str] = (),
        files: Sequence[InputFile] = (),
        **change: Any,
    ) -> Ran:
        """Run a program in a sandbox of its own, which is gone when this returns."""
        sandbox, tape = await self.fork(template), Tape()
        try:
            step = make_step(code, template, files=tuple(files), **change)
            end = await sandbox.exec(step, limits, tape)
            collected = await sandbox.collect(collect, 1 << 20) if collect else Collected()
        finally:
            await sandbox.close()
        return Ran(end, bytes(tape.stdout), bytes(tape.stderr), collected)

    def run(self, code: str | bytes, template: str = "python", **change: Any) -> Ran:
        """The same from a plain function."""
        return self.wait(self.exec(code, template, **change))


@contextmanager
def open_workbench(launched: Launched | None = None, **change: Any) -> Iterator[Workbench]:
    """Start a tier, over `launched` when given, and a loop of its own; close both."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        launched = launched or start_native()

        async def make() -> ProcessTier:
            return process_tier(launched, **change)

        tier = runner.run(make())
        try:
            runner.run(tier.start())
            yield Workbench(runner, tier)
        finally:
            runner.run(tier.close())
