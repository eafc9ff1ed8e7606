"""A tier without isolation and without processes: programs are scripts that this module plays.

For tests of everything above the tier port, and for trying the service where sandboxes cannot be made. It keeps the
port's contract to the letter (the same suite runs over it and over the real tiers), so what works with it breaks only
where the kernel does.

A program is the step's code, or its second argv word when it has none (`["sh", "out hello"]`), one command a line:

    out TEXT       write TEXT and a newline to stdout; \\n, \\t and \\\\ are understood
    err TEXT       the same to stderr
    flood N        write N bytes to stdout, in chunks of 64 KiB
    cat            copy stdin to stdout
    cat PATH       copy a file to stdout, or complain and exit 1
    write PATH TEXT, link PATH TARGET
    args, env NAME print argv after the first word, or a variable
    sleep S        seconds
    exit N, signal N
    limit OUTCOME  be stopped by the tier for a limit: out_of_memory, cpu_limit, ...
    lost           vanish without a word

A script that ends exits with 0; an unknown command complains and exits 127. A `FakeTier` given a `program` plays that
coroutine function instead and takes what it returns for the exit code.

Steps: `fork` waits `fork_s` and parks; `exec` plays the script on the caller's task; `kill` and `close` interrupt it
wherever it waits. Needs nothing of the kernel.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from fnmatch import fnmatchcase

from sandfork.errors import FileNotInSandbox, ForkFailed, GuestLost, TemplateFailed
from sandfork.model import InputFile, Limits, Outcome, OutputFile, Step, Stream, TemplateHealth, Usage
from sandfork.tiers.base import BEFORE_START, Collected, OutputSink, StepEnd

CHUNK_BYTES = 64 << 10
WORK_DIR = "/sandbox"
SIGKILL = 9

Program = Callable[["FakeProcess"], Awaitable[int]]


class _Stopped(Exception):  # not an error: the way out of a program that was killed or ended itself
    """The program is over: by `exit`, by a signal, or from outside."""

    def __init__(self, outcome: Outcome, exit_code: int | None, signal: int | None) -> None:
        super().__init__(outcome)
        self.how: tuple[Outcome, int | None, int | None] = (outcome, exit_code, signal)


class FakeProcess:
    """What a program of the fake tier can do."""

    def __init__(self, sandbox: FakeSandbox, step: Step, sink: OutputSink) -> None:
        self.step = step
        self.files = sandbox.files
        self._sandbox = sandbox
        self._sink = sink

    async def write(self, data: bytes, stream: Stream = Stream.STDOUT) -> None:
        """Write to a stream; waits while the reader has paused."""
        self._sandbox.check_killed()
        if data and not self._sink.output(stream, data):
            await self._sandbox.pause(None)
        self._sandbox.check_killed()

    async def sleep(self, delay_s: float) -> None:
        """Let time pass."""
        await self._sandbox.pause(delay_s)


async def play_script(process: FakeProcess) -> int:
    """Play the step's text; see the module's docstring for the commands."""
    step = process.step
    text = step.code.decode() if step.code is not None else "\n".join(step.argv[1:2])
    for line in text.splitlines():
        command, _, rest = line.strip().partition(" ")
        if command and not await _act(process, command, rest):
            await process.write(f"{command}: command not found\n".encode(), Stream.STDERR)
            return 127
    return 0


async def _act(process: FakeProcess, command: str, rest: str) -> bool:
    """Play one line; False when there is no such command."""
    path, _, text = rest.partition(" ")
    match command:
        case "out" | "err":
            await process.write(_unescape(rest) + b"\n", Stream.STDOUT if command == "out" else Stream.STDERR)
        case "flood":
            for start in range(0, int(rest), CHUNK_BYTES):
                await process.write(b"x" * min(int(rest) - start, CHUNK_BYTES))
        case "cat":
            await _cat(process, rest)
        case "write":
            process.files[_path_in_work_dir(path)] = _unescape(text)
        case "link":
            process.files[_path_in_work_dir(path)] = None
        case "args":
            await process.write(" ".join(process.step.argv[1:]).encode() + b"\n")
        case "env":
            await process.write(dict(process.step.env).get(rest, "").encode() + b"\n")
        case "sleep":
            await process.sleep(float(rest))
        case "exit":
            raise _Stopped(Outcome.EXITED, int(rest), None)
        case "signal":
            raise _Stopped(Outcome.SIGNALLED, None, int(rest))
        case "limit":
            raise _Stopped(Outcome(rest), None, SIGKILL)
        case "lost":
            raise GuestLost("the fake program vanished")
        case _:
            return False
    return True


async def _cat(process: FakeProcess, path: str) -> None:
    content = process.files.get(_path_in_work_dir(path)) if path else process.step.stdin
    if content is None:
        await process.write(f"cat: {path}: No such file or directory\n".encode(), Stream.STDERR)
        raise _Stopped(Outcome.EXITED, 1, None)
    await process.write(content)


def _unescape(text: str) -> bytes:
    return text.replace("\\\\", "\0").replace("\\n", "\n").replace("\\t", "\t").replace("\0", "\\").encode()


def _path_in_work_dir(path: str) -> str:
    """Return the absolute path. *Raises* FileNotInSandbox when it leaves the sandbox's writable directories."""
    absolute = path if path.startswith("/") else f"{WORK_DIR}/{path}"
    if ".." in absolute.split("/") or not absolute.startswith((f"{WORK_DIR}/", "/tmp/")):
        raise FileNotInSandbox(f"{path}: not below a writable directory of the sandbox")
    return absolute


def _matches(path: str, pattern: str) -> bool:
    """Tell whether a glob matches, part by part: a `*` stays within one directory."""
    parts, wanted = path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


class FakeSandbox:
    """One parked program-to-be. Files map absolute paths to contents; None stands for what is no regular file."""

    def __init__(self, tier: FakeTier, key: str, number: int) -> None:
        self.key = key
        self.number = number
        self.files: dict[str, bytes | None] = {}
        self._tier = tier
        self._dead = False
        self._closed = False
        self._killed: Outcome | None = None
        self._wake: asyncio.Future[None] | None = None

    def die(self) -> None:
        """Be found dead by the next `exec`."""
        self._dead = True

    async def exec(self, step: Step, limits: Limits, sink: OutputSink) -> StepEnd:
        """Play the step's program."""
        if self._dead or self._closed:
            raise GuestLost("the fake sandbox is dead", step=BEFORE_START)
        self._put(step.files)
        if step.code is not None and step.file_name is not None:
            self.files[f"{WORK_DIR}/{step.file_name}"] = step.code
        ready_ns = self._tier.clock_ns()
        outcome, code, signal = await self._play(FakeProcess(self, step, sink))
        done_ns = self._tier.clock_ns()
        usage = Usage(wall_s=(done_ns - ready_ns) * 1e-9, processes=1)
        return StepEnd(outcome, code, signal, ready_ns, done_ns, usage)

    def kill(self, outcome: Outcome) -> None:
        """Kill the program; the first outcome given stands."""
        if self._killed is None:
            self._killed = outcome
            self.resume()

    def resume(self) -> None:
        """Go on after a pause."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def put(self, files: Sequence[InputFile]) -> None:
        """Write files."""
        self._put(files)

    async def collect(self, patterns: Sequence[str], max_bytes: int) -> Collected:
        """Read files by path or glob, in order of their paths."""
        if self._closed:
            raise GuestLost("the fake sandbox is closed")
        found: list[OutputFile] = []
        skipped: list[str] = []
        for path, content in sorted(self.files.items()):
            shown = path.removeprefix(f"{WORK_DIR}/")
            if not any(_matches(shown, pattern) for pattern in patterns):
                continue
            if content is None or len(content) > max_bytes:
                skipped.append(shown)
            else:
                max_bytes -= len(content)
                found.append(OutputFile(shown, content))
        return Collected(tuple(found), tuple(skipped))

    async def close(self) -> None:
        """Destroy the sandbox."""
        if self._closed:
            return
        self._closed = True
        self.resume()
        if self._tier.close_s:
            await asyncio.sleep(self._tier.close_s)
        self._tier.alive.discard(self)

    def check_killed(self) -> None:
        """End the program when it was killed or its sandbox closed."""
        if self._closed:
            raise GuestLost("the fake sandbox was closed under its program")
        if self._killed is not None:
            raise _Stopped(self._killed, None, SIGKILL)

    async def pause(self, delay_s: float | None) -> None:
        """Wait for `delay_s`, or for `resume` when that is None; ends early when killed or closed."""
        loop = asyncio.get_running_loop()
        wake = self._wake = loop.create_future()
        self.check_killed()
        timer = None if delay_s is None else loop.call_later(delay_s, self.resume)
        try:
            await wake
        finally:
            self._wake = None
            if timer is not None:
                timer.cancel()
        self.check_killed()

    async def _play(self, process: FakeProcess) -> tuple[Outcome, int | None, int | None]:
        """Run the program; return how it ended, with its exit code or signal."""
        try:
            self.check_killed()
            return Outcome.EXITED, await self._tier.program(process), None
        except _Stopped as stopped:
            return stopped.how

    def _put(self, files: Sequence[InputFile]) -> None:
        checked = {_path_in_work_dir(file.path): file.content for file in files}
        self.files.update(checked)


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
        if self._tier.fork_s:
            await asyncio.sleep(self._tier.fork_s)
        if self._dead or self._tier.closed:
            raise TemplateFailed(f"template {self._key}: dead", step="fork")
        if self._tier.failing_forks > 0:
            self._tier.failing_forks -= 1
            raise ForkFailed(f"template {self._key}: told to fail", step="clone", errno=11)
        return self._tier.new_sandbox(self._key)

    def die(self) -> None:
        """Fail every fork from now on."""
        self._dead = True
        self._tier.forget(self)

    def health(self) -> TemplateHealth:
        """Report a made-up size."""
        return TemplateHealth(self._key, not self._dead, 1 << 20, 0, self._generation, "dead" if self._dead else "")


class FakeTier:
    """The tier, with knobs to make it fail and counts to see that nothing is left.

    `keys` are the templates it has (None: any). `alive` holds every sandbox not closed yet. `failing_forks` forks fail,
    `broken` maps template keys to the reason they cannot be made; `fork_s` and `close_s` are how long that takes.
    """

    def __init__(
        self,
        *,
        program: Program = play_script,
        keys: Collection[str] | None = None,
        isolation: str = "process",
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
        self.broken: dict[str, str] = {}
        self.alive: set[FakeSandbox] = set()
        self.forked = 0
        self.closed = False
        self._isolation = isolation
        self._templates: dict[str, FakeTemplate] = {}
        self._generations: dict[str, int] = {}

    @property
    def isolation(self) -> str:
        """What replies call this; a fake claims what its tests need."""
        return self._isolation

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
        for sandbox in tuple(self.alive):
            await sandbox.close()

    def new_sandbox(self, key: str) -> FakeSandbox:
        """Make a sandbox and count it; for `FakeTemplate`."""
        self.forked += 1
        sandbox = FakeSandbox(self, key, self.forked)
        self.alive.add(sandbox)
        return sandbox

    def forget(self, template: FakeTemplate) -> None:
        """Have the next `template` call make a new one."""
        self._templates.pop(template.key, None)
