"""The sessions of this server: who has which, when they end, and that there are not too many.

A session is made under its key at once, so that two requests for the same make one; whoever comes while it opens waits
for it. It ends when it was not used for `idle_s`, when its lifetime is over, when it is deleted, and with the server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from math import inf

from sandfork.engine.admission import DRAIN_RETRY_S
from sandfork.engine.disposal import Disposal
from sandfork.engine.ids import mint_exec_id
from sandfork.engine.plan import Planner
from sandfork.engine.pool import Pool
from sandfork.engine.session import Session
from sandfork.errors import (
    Draining,
    GuestLost,
    InvalidRequest,
    Overloaded,
    SandforkError,
    SessionConflict,
    SessionNotFound,
    TierError,
)
from sandfork.languages.catalogue import COMMAND
from sandfork.model import Caller, ExecPlan, SessionKey, SessionSpec, SessionState, SessionUse
from sandfork.tiers.base import Process

log = logging.getLogger(__name__)

_NAME_MAX = 200
FULL_RETRY_S = 30.0
"""When to try again what there is no place for: nobody can tell when a session ends."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Bounds of sessions: counts, and seconds. `file_bytes` is the largest file that is moved in or out.

    `most_waiting` is how many executions may wait for their turn in one session.
    """

    most: int = 512
    most_of_one: int = 256
    most_waiting: int = 64
    idle_s: float = 3600.0
    lifetime_s: float = 86400.0
    terminals: int = 8
    file_bytes: int = 256 << 20


class Sessions:
    """The registry. Its parts that move files and open terminals are in `SessionDesk`."""

    def __init__(
        self, pool: Pool, planner: Planner, disposal: Disposal, settings: SessionSettings, now: Callable[[], float]
    ) -> None:
        """`now` is Unix time in seconds."""
        self.settings = settings
        self._pool = pool
        self._planner = planner
        self._disposal = disposal
        self._now = now
        self._sessions: dict[SessionKey, Session] = {}
        self._idle: dict[Session, asyncio.TimerHandle] = {}
        self._deaths: dict[Session, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._draining = False

    def __len__(self) -> int:
        return len(self._sessions)

    # --- making and ending ---

    async def create(self, key: SessionKey, caller: Caller, spec: SessionSpec) -> SessionState:
        """Make a session; see `http.ports.Sessions`."""
        if key in self._sessions:
            raise SessionConflict(f"there is a session {key.name!r} already")
        language, template_key = self._planner.language_of(spec.language)
        session = await self._open(key, caller, spec, language, template_key)
        self._rest(session)
        return session.state(self._now())

    async def _open(
        self, key: SessionKey, caller: Caller, spec: SessionSpec, language: str, template_key: str
    ) -> Session:
        self._check_room(key)
        _check_times(spec)
        spec = replace(spec, env=self._planner.check_env(spec.env))
        limits = self._planner.session_limits(spec, caller)
        session = Session(key, spec, language, limits, join=self._pool.join, discard=self._discard, now_s=self._now())
        self._sessions[key] = session
        async with session.lock:
            await self._fill(session, template_key)
        lifetime_s = min(spec.lifetime_s or self.settings.lifetime_s, self.settings.lifetime_s)
        session.expires_s = session.created_s + lifetime_s
        loop = asyncio.get_running_loop()
        self._deaths[session] = loop.call_later(lifetime_s, self._end, session, "the session's lifetime is over")
        return session

    async def _fill(self, session: Session, template_key: str) -> None:
        """Give a new session its sandbox, unless it ends before that. *Raises* SessionNotFound then."""
        opening = session.opening = asyncio.get_running_loop().create_task(self._furnish(session, template_key))
        self.spawn(opening)
        try:
            await asyncio.wait([opening])
            if session.ended:
                raise session.gone()
            opening.result()
        except BaseException:
            self._end(session, "the session could not be made")
            raise
        finally:
            session.opening = None
            del opening  # it may hold the error that is about to hold this frame

    async def _furnish(self, session: Session, template_key: str) -> None:
        """Find it a sandbox; one that was dead is replaced once."""
        for last in (False, True):
            sandbox = self._pool.take(template_key) or await self._pool.fork(template_key)
            try:
                await sandbox.keep(session.limits)
            except BaseException as error:
                self._disposal.add_now(sandbox)
                if last or not isinstance(error, TierError):
                    raise
                log.warning("a sandbox could not be kept: %s", error)
            else:
                session.open(sandbox, template_key)
                return

    def _check_room(self, key: SessionKey) -> None:
        if self._draining:
            raise Draining("the server is shutting down", retry_after_s=DRAIN_RETRY_S)
        if not key.name or len(key.name) > _NAME_MAX or not key.name.isprintable():
            raise InvalidRequest("session", f"a name is 1 to {_NAME_MAX} printable characters")
        if len(self._sessions) >= self.settings.most:
            text = f"all {self.settings.most} sessions of this server are taken"
            raise Overloaded(text, retry_after_s=FULL_RETRY_S)
        if sum(1 for other in self._sessions if other.owner == key.owner) >= self.settings.most_of_one:
            text = f"you have {self.settings.most_of_one} sessions, the most there may be"
            raise Overloaded(text, retry_after_s=FULL_RETRY_S)

    def _end(self, session: Session, why: str) -> None:
        """End a session now: what runs in it fails with `why`, and the sandbox is destroyed."""
        if session.ended:
            return
        session.ended = why
        if self._sessions.get(session.key) is session:
            del self._sessions[session.key]
        for timers in (self._idle, self._deaths):
            if (timer := timers.pop(session, None)) is not None:
                timer.cancel()
        if session.opening is not None:
            session.opening.cancel()
        if session.running is not None:
            session.running.stop(session.gone())
        sandbox = session.give_up()
        if sandbox is not None:
            self._disposal.add_now(sandbox)

    def _rest(self, session: Session) -> None:
        """Count the time of not being used from now."""
        session.last_used_s = self._now()
        if (timer := self._idle.pop(session, None)) is not None:
            timer.cancel()
        if not session.ended:
            idle_s = min(session.spec.idle_s or self.settings.idle_s, self.settings.lifetime_s)
            self._idle[session] = asyncio.get_running_loop().call_later(idle_s, self._idled, session)

    def _idled(self, session: Session) -> None:
        if session.lock.locked() or session.connected:
            self._rest(session)
        else:
            self._end(session, "the session was not used for too long")

    # --- using ---

    @asynccontextmanager
    async def turn(self, plan: ExecPlan) -> AsyncIterator[Session]:
        """Wait for one's turn in the session of a plan, which is made if the plan says so.

        *Raises* SessionNotFound, SessionConflict, CapacityError, CallerError, TierError.
        """
        use, caller = plan.session, plan.caller
        assert use is not None
        key = SessionKey(use.space, caller.key_id, use.name)
        while True:
            session = self._sessions.get(key)
            if session is None and use.make is None:
                raise SessionNotFound(f"there is no session {use.name!r}")
            if session is None:
                assert use.make is not None
                named = use.make.language
                language = plan.language if named is None else self._planner.language_of(named)[0]
                session = await self._open(key, caller, use.make, language, plan.template_key)
            if session.waiting >= self.settings.most_waiting:
                raise Overloaded(f"{session.waiting} executions wait for their turn in the session", retry_after_s=1.0)
            async with session.in_turn():
                if session.ended and use.make is not None:
                    continue  # it ended while we waited for it
                try:
                    session.check_open()
                    yield session
                except GuestLost:
                    self._end(session, "the session's sandbox was lost")
                    raise
                finally:
                    self._rest(session)
                return

    def language(self, use: SessionUse, caller: Caller) -> str | None:
        """Return the language a session was made, or would be made, for; None if for no language."""
        session = self._sessions.get(SessionKey(use.space, caller.key_id, use.name))
        if session is None:
            return None if use.make is None else use.make.language
        return None if session.language == COMMAND.key else session.language

    def find(self, key: SessionKey) -> Session:
        """Return a session and note that it is used. *Raises* SessionNotFound."""
        session = self._sessions.get(key)
        if session is None:
            raise SessionNotFound(f"there is no session {key.name[:_NAME_MAX]!r}")
        self._rest(session)
        return session

    def state(self, key: SessionKey) -> SessionState:
        """Return the session as it is now; looking is no use of it."""
        session = self._sessions.get(key)
        if session is None:
            raise SessionNotFound(f"there is no session {key.name[:_NAME_MAX]!r}")
        return session.state(self._now())

    def list(self, space: str, owner: str) -> list[SessionState]:
        """Return the owner's sessions, the oldest first."""
        now_s = self._now()
        return [s.state(now_s) for key, s in self._sessions.items() if (key.space, key.owner) == (space, owner)]

    async def delete(self, key: SessionKey) -> None:
        """End a session and everything in it."""
        self._end(self.find(key), "the session was deleted")

    def interrupt(self, key: SessionKey) -> None:
        """Interrupt what runs in the session."""
        session = self.find(key)
        if session.running is not None:
            session.running.signal(2)

    # --- background ---

    def spawn(self, work: asyncio.Task[object]) -> None:
        """Own a task until it is done."""
        self._tasks.add(work)
        work.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, SandforkError):
            log.error("work for a session failed", exc_info=error)

    def _discard(self, process: Process) -> None:
        self.spawn(asyncio.get_running_loop().create_task(_close(process)))

    def drain(self) -> None:
        """Make no more sessions from now on."""
        self._draining = True

    async def close(self) -> None:
        """End every session, and wait for what is under way in them."""
        self.drain()
        for session in tuple(self._sessions.values()):
            self._end(session, "the server is shutting down")
        while self._tasks:
            await asyncio.wait(self._tasks)


async def _close(process: Process) -> None:
    await process.close()


def _check_times(spec: SessionSpec) -> None:
    """*Raises* InvalidRequest for a time that is none."""
    for name in ("lifetime_s", "idle_s"):
        value = getattr(spec, name)
        if value is not None and not 0 < value < inf:
            raise InvalidRequest(name, "must be finite and above zero")


def unguessable_name() -> str:
    """Return a name for a session that nobody can guess."""
    return mint_exec_id()
