"""Sessions, their files and terminals, and tasks, in memory: what `sandfork.http.ports` says, and no sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sandfork.errors import (
    FileNotInSandbox,
    FileTooLarge,
    InvalidRequest,
    SandforkError,
    SessionNotFound,
    WrongLanguage,
)
from sandfork.http.ports import TaskState
from sandfork.model import (
    Caller,
    ExecRequest,
    ExecResult,
    FileEntry,
    Limits,
    SessionKey,
    SessionSpec,
    SessionState,
    Snippet,
    TerminalSpec,
    TerminalState,
    Usage,
)

WORK = "/sandbox"
CHUNK_BYTES = 64 << 10
LIFETIME_S = 86400.0
IDLE_S = 3600.0


class StubTerminal:
    """A terminal whose command echoes what is typed and ends with 0 at "exit\\n"."""

    def __init__(self, name: str, session: str, spec: TerminalSpec, created_s: float) -> None:
        self.state = TerminalState(name, session, spec.argv, spec.cols, spec.rows, created_s, None)
        self.typed = b""
        self._shown = b""
        self._connection: StubConnection | None = None

    def show(self, data: bytes) -> None:
        """Show something, as its command would."""
        self._shown += data
        if self._connection is not None:
            self._connection.shown(data)

    def write(self, data: bytes) -> None:
        self.typed += data
        self.show(data)
        if self.typed.endswith(b"exit\n"):
            self.end(0)

    def end(self, exit_code: int) -> None:
        """End its command."""
        self.state = replace(self.state, exit_code=exit_code)
        if self._connection is not None:
            self._connection.over()

    def connect(self) -> StubConnection:
        if self._connection is not None:
            self._connection.over()
        self._connection = StubConnection(self)
        if self._shown:
            self._connection.shown(self._shown)
        if self.state.exit_code is not None:
            self._connection.over()
        return self._connection


class StubConnection:
    """A client's end of a terminal."""

    def __init__(self, terminal: StubTerminal) -> None:
        self._terminal = terminal
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.closed = False

    def shown(self, data: bytes) -> None:
        self._queue.put_nowait(data)

    def over(self) -> None:
        self._queue.put_nowait(b"")

    async def read(self) -> bytes:
        return await self._queue.get()

    async def write(self, data: bytes) -> None:
        self._terminal.write(data)

    @property
    def exit_code(self) -> int | None:
        return self._terminal.state.exit_code

    def close(self) -> None:
        self.closed = True


@dataclass
class StubSession:
    """One session: its files by absolute path, its terminals, and what runs in it."""

    key: SessionKey
    spec: SessionSpec
    created_s: float
    last_used_s: float
    language: str = "python"
    executions: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    terminals: dict[str, StubTerminal] = field(default_factory=dict)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    task: asyncio.Task[Any] | None = None
    run: Any = None
    deleted: bool = False

    @property
    def expires_s(self) -> float:
        by_lifetime = self.created_s + (LIFETIME_S if self.spec.lifetime_s is None else self.spec.lifetime_s)
        if self.turn.locked():
            return by_lifetime
        return min(by_lifetime, self.last_used_s + (IDLE_S if self.spec.idle_s is None else self.spec.idle_s))


class StubSessions:
    """The sessions of all callers.

    `reading` counts the files that are being read; they seem `lie_bytes` longer than they are. None is moved
    out that is larger than `most_bytes`.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._sessions: dict[SessionKey, StubSession] = {}
        self._terminals = 0
        self.reading = 0
        self.lie_bytes = 0
        self.most_bytes = 1 << 30

    def find(self, key: SessionKey) -> StubSession:
        """Return a session for a test to look into. *Raises* SessionNotFound, also for one past its time."""
        session = self._sessions.get(key)
        if session is not None and session.expires_s <= self._now():
            self._end(session)
            session = None
        if session is None:
            raise SessionNotFound(f"no session {key.name}")
        return session

    @contextlib.asynccontextmanager
    async def used(self, request: ExecRequest, caller: Caller) -> AsyncIterator[StubSession | None]:
        """Let one execution after another run in the session that it names, which is made where it says so."""
        use = request.session
        if use is None:
            yield None
            return
        key = SessionKey(use.space, caller.key_id, use.name)
        language = request.program.language if isinstance(request.program, Snippet) else ""
        try:
            session = self.find(key)
        except SessionNotFound:
            if use.make is None:
                raise
            spec = use.make if use.make.language else replace(use.make, language=language or None)
            await self.create(key, caller, spec)
            session = self.find(key)
        if session.spec.one_language and language and language != session.language:
            raise WrongLanguage(language, session.language)
        async with session.turn:
            session.task = asyncio.current_task()
            try:
                yield session
            except asyncio.CancelledError:
                if session.deleted:
                    raise SessionNotFound(f"no session {key.name}") from None
                raise
            finally:
                session.task = session.run = None
                session.executions += 1
                session.last_used_s = self._now()

    async def create(self, key: SessionKey, caller: Caller, spec: SessionSpec) -> SessionState:
        if key in self._sessions and self._sessions[key].expires_s > self._now():
            raise InvalidRequest("session", f"there is a session {key.name}")
        now_s = self._now()
        self._sessions[key] = StubSession(key, spec, now_s, now_s, spec.language or "python")
        return self.state(key)

    def state(self, key: SessionKey) -> SessionState:
        session = self.find(key)
        return SessionState(
            key.name,
            session.language,
            session.spec.limits.over(Limits()),
            session.created_s,
            session.last_used_s,
            session.expires_s,
            session.turn.locked(),
            session.executions,
            Usage(cpu_user_s=0.5, cpu_system_s=0.25, memory_peak_bytes=9 << 20, memory_current_bytes=8 << 20),
            session.spec.metadata,
            self._now(),
        )

    def list(self, space: str, owner: str) -> Sequence[SessionState]:
        for session in [each for each in self._sessions.values() if each.expires_s <= self._now()]:
            self._end(session)
        keys = [key for key in self._sessions if (key.space, key.owner) == (space, owner)]
        return [self.state(key) for key in keys]

    async def delete(self, key: SessionKey) -> None:
        self._end(self.find(key))

    def _end(self, session: StubSession) -> None:
        session.deleted = True
        del self._sessions[session.key]
        for terminal in session.terminals.values():
            terminal.end(129)
        if session.task is not None:
            session.task.cancel()

    def interrupt(self, key: SessionKey) -> None:
        session = self.find(key)
        if session.run is not None:
            session.run.signal(2)

    async def list_files(self, key: SessionKey, path: str) -> Sequence[FileEntry]:
        files, place = self.find(key).files, resolve(path).rstrip("/") + "/"
        below = [name[len(place) :] for name in files if name.startswith(place)]
        if not below and place not in (f"{WORK}/", "/tmp/"):
            raise FileNotInSandbox(f"{path}: no such directory")
        entries = {
            name.partition("/")[0]: FileEntry(name.partition("/")[0], "directory", 0)
            if "/" in name
            else FileEntry(name, "file", len(files[place + name]))
            for name in below
        }
        return [entries[name] for name in sorted(entries)]

    async def read_file(self, key: SessionKey, path: str) -> tuple[int, AsyncIterator[bytes]]:
        content = self.find(key).files.get(resolve(path))
        if content is None:
            raise FileNotInSandbox(f"{path}: no such file")
        if len(content) > self.most_bytes:
            raise FileTooLarge(path, self.most_bytes)
        return len(content) + self.lie_bytes, self._chunks(content)

    async def _chunks(self, content: bytes) -> AsyncIterator[bytes]:
        self.reading += 1
        try:
            for start in range(0, len(content), CHUNK_BYTES):
                yield content[start : start + CHUNK_BYTES]
        finally:
            self.reading -= 1

    async def write_file(self, key: SessionKey, path: str, chunks: AsyncIterable[bytes], mode: int = 0o644) -> int:
        session, place = self.find(key), resolve(path)
        content = b"".join([chunk async for chunk in chunks])
        session.files[place] = content
        return len(content)

    async def delete_file(self, key: SessionKey, path: str) -> None:
        files, place = self.find(key).files, resolve(path)
        gone = [name for name in files if name == place or name.startswith(f"{place}/")]
        if not gone:
            raise FileNotInSandbox(f"{path}: no such file")
        for name in gone:
            del files[name]

    async def open_terminal(self, key: SessionKey, spec: TerminalSpec, name: str | None = None) -> TerminalState:
        session = self.find(key)
        self._terminals += 1
        name = name or f"terminal-{self._terminals}"
        if name in session.terminals:
            raise InvalidRequest("name", f"there is a terminal {name}")
        session.terminals[name] = StubTerminal(name, key.name, spec, self._now())
        return session.terminals[name].state

    def terminals(self, key: SessionKey) -> Sequence[TerminalState]:
        return [terminal.state for terminal in self.find(key).terminals.values()]

    def terminal(self, key: SessionKey, name: str) -> TerminalState:
        return self.find_terminal(key, name).state

    def find_terminal(self, key: SessionKey, name: str) -> StubTerminal:
        """Return a terminal for a test to play its command. *Raises* SessionNotFound."""
        terminal = self.find(key).terminals.get(name)
        if terminal is None:
            raise SessionNotFound(f"no terminal {name}")
        return terminal

    def connect(self, key: SessionKey, name: str) -> StubConnection:
        return self.find_terminal(key, name).connect()

    def resize_terminal(self, key: SessionKey, name: str, cols: int, rows: int) -> None:
        if not (0 < cols < 1000 and 0 < rows < 1000):
            raise InvalidRequest("cols", "is no size of a terminal")
        terminal = self.find_terminal(key, name)
        terminal.state = replace(terminal.state, cols=cols, rows=rows)

    async def close_terminal(self, key: SessionKey, name: str) -> None:
        self.find_terminal(key, name).end(129)
        del self.find(key).terminals[name]

    def close(self) -> None:
        """End all sessions."""
        for session in list(self._sessions.values()):
            self._end(session)


def resolve(path: str) -> str:
    """Return a path of a sandbox as an absolute one. *Raises* FileNotInSandbox when it leads out."""
    place = "/" + posixpath.normpath(posixpath.join(WORK, path)).lstrip("/")
    if "\0" in path or not any(place == top or place.startswith(f"{top}/") for top in (WORK, "/tmp")):
        raise FileNotInSandbox(f"{path}: is not below the work directory or /tmp")
    return place


class StubTasks:
    """Executions that nobody waits for."""

    def __init__(
        self, execute: Callable[[ExecRequest, Caller], Awaitable[ExecResult]], now: Callable[[], float]
    ) -> None:
        self._execute = execute
        self._now = now
        self._states: dict[tuple[str, str], TaskState] = {}
        self._running: set[asyncio.Task[None]] = set()

    def start(self, request: ExecRequest, caller: Caller) -> TaskState:
        task_id = f"task-{len(self._states) + 1}"
        place = caller.key_id, task_id
        self._states[place] = TaskState(task_id, self._now(), None)
        running = asyncio.create_task(self._run(place, request, caller))
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return self._states[place]

    async def _run(self, place: tuple[str, str], request: ExecRequest, caller: Caller) -> None:
        try:
            ended: ExecResult | SandforkError = await self._execute(request, caller)
        except SandforkError as error:
            ended = error
        self._states[place] = replace(self._states[place], ended=ended)

    def read(self, task_id: str, caller: Caller) -> TaskState:
        try:
            return self._states[caller.key_id, task_id]
        except KeyError:
            raise SessionNotFound(f"no task {task_id}") from None

    async def close(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
