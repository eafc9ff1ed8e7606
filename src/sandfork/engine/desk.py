"""What can be done with a session beside running programs: its files and its terminals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import replace
from functools import partial

from sandfork.engine.session import Session
from sandfork.engine.sessions import FULL_RETRY_S, Sessions, unguessable_name
from sandfork.engine.terminals import Connection, Terminal
from sandfork.errors import InvalidRequest, Overloaded, SessionNotFound
from sandfork.languages.catalogue import COMMAND
from sandfork.model import FileEntry, SessionKey, TerminalSpec, TerminalState

_SIZE_MAX = 1000


class SessionDesk(Sessions):
    """See `http.ports.Sessions`, whose words the methods here keep."""

    # --- files ---

    async def list_files(self, key: SessionKey, path: str) -> Sequence[FileEntry]:
        """Return a directory's entries."""
        session = self.find(key)
        with session.unless_over():
            return await session.sandbox.files.list(path)

    async def read_file(self, key: SessionKey, path: str) -> tuple[int, AsyncIterator[bytes]]:
        """Return a file's size and its content in chunks."""
        session = self.find(key)
        with session.unless_over():
            return await session.sandbox.files.read(path, self.settings.file_bytes)

    async def write_file(self, key: SessionKey, path: str, chunks: AsyncIterable[bytes], mode: int = 0o644) -> int:
        """Write a file as its content arrives."""
        session = self.find(key)
        try:
            with session.unless_over():
                return await session.sandbox.files.write(path, chunks, mode)
        finally:
            self._rest(session)

    async def delete_file(self, key: SessionKey, path: str) -> None:
        """Remove a file or a directory."""
        session = self.find(key)
        with session.unless_over():
            await session.sandbox.files.delete(path)

    # --- terminals ---

    async def open_terminal(self, key: SessionKey, spec: TerminalSpec, name: str | None = None) -> TerminalState:
        """Start a command in a terminal."""
        session = self.find(key)
        _check_size(spec.cols, spec.rows)
        if not spec.argv or not spec.argv[0] or any("\0" in word for word in spec.argv):
            raise InvalidRequest("argv", "must name a program")
        spec = replace(spec, env=(*session.spec.env, *self._planner.check_env(spec.env)))
        name = name or unguessable_name()
        self._reserve(session, name)
        try:
            with session.unless_over():
                await session.sandbox.cleared()
                process = await self._pool.join(COMMAND.key, session.sandbox, (spec.cols, spec.rows))
        finally:
            session.reserved.discard(name)
        terminal = Terminal(name, key.name, spec, process, now_s=self._now(), left=partial(self._rest, session))
        session.terminals[name] = terminal
        self.spawn(asyncio.get_running_loop().create_task(self._run_terminal(session, terminal)))
        return terminal.state()

    def _reserve(self, session: Session, name: str) -> None:
        """Keep a place for one more terminal, if need be that of one that is over.

        *Raises* InvalidRequest, Overloaded.
        """
        if name in session.terminals or name in session.reserved:
            raise InvalidRequest("id", f"there is a terminal {name[:200]!r} already")
        if len(session.terminals) + len(session.reserved) >= self.settings.terminals:
            over = next((each for each, terminal in session.terminals.items() if terminal.over), None)
            if over is None:
                text = f"the session has {self.settings.terminals} terminals, the most there may be"
                raise Overloaded(text, retry_after_s=FULL_RETRY_S)
            del session.terminals[over]
        session.reserved.add(name)

    async def _run_terminal(self, session: Session, terminal: Terminal) -> None:
        try:
            await terminal.run(replace(session.limits, cpu_s=self._planner.most_cpu_s))
        finally:
            self._rest(session)

    def terminals(self, key: SessionKey) -> Sequence[TerminalState]:
        """Return the session's terminals."""
        return [terminal.state() for terminal in self.find(key).terminals.values()]

    def terminal(self, key: SessionKey, name: str) -> TerminalState:
        """Return one terminal."""
        return self._terminal(key, name).state()

    def _terminal(self, key: SessionKey, name: str) -> Terminal:
        terminal = self.find(key).terminals.get(name)
        if terminal is None:
            raise SessionNotFound(f"there is no terminal {name[:200]!r} in this session")
        return terminal

    def connect(self, key: SessionKey, name: str) -> Connection:
        """Follow a terminal."""
        return self._terminal(key, name).connect()

    def resize_terminal(self, key: SessionKey, name: str, cols: int, rows: int) -> None:
        """Tell a terminal its size."""
        _check_size(cols, rows)
        self._terminal(key, name).resize(cols, rows)

    async def close_terminal(self, key: SessionKey, name: str) -> None:
        """End a terminal and what runs in it."""
        terminal = self._terminal(key, name)
        del self.find(key).terminals[name]
        await terminal.close()


def _check_size(cols: int, rows: int) -> None:
    """*Raises* InvalidRequest for a size no terminal has."""
    for name, value in (("cols", cols), ("rows", rows)):
        if not 1 <= value <= _SIZE_MAX:
            raise InvalidRequest(name, f"must be from 1 to {_SIZE_MAX}")
