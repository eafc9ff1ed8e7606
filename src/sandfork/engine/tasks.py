"""Executions that nobody waits for: they go on when their client is gone, and what came of them is kept for a while."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from sandfork.engine.ids import mint_exec_id
from sandfork.errors import Overloaded, SandforkError, SessionNotFound
from sandfork.model import Caller, ExecRequest, ExecResult, TaskState

log = logging.getLogger(__name__)

Execute = Callable[[ExecRequest, Caller], Awaitable[ExecResult]]
Check = Callable[[ExecRequest, Caller], object]
"""*Raises* CallerError for what can never run."""


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """Bounds of tasks: counts, seconds a result is kept once it is there, and bytes of all results together."""

    most_running: int = 256
    most_kept: int = 1024
    keep_s: float = 3600.0
    keep_bytes: int = 128 << 20


@dataclass(frozen=True, slots=True)
class _Kept:
    """A task, whose it is, and since when it is as it is."""

    owner: str
    state: TaskState
    since_s: float


class Tasks:
    """Owns the tasks until they are done, and their results until they are forgotten."""

    def __init__(self, execute: Execute, check: Check, settings: TaskSettings, now: Callable[[], float]) -> None:
        """`now` is Unix time in seconds."""
        self._execute = execute
        self._check = check
        self._settings = settings
        self._now = now
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._kept_bytes = 0

    def start(self, request: ExecRequest, caller: Caller) -> TaskState:
        """Begin one. *Raises* CallerError for what can never run, Overloaded."""
        self._check(request, caller)
        self._forget_old()
        if len(self._running) >= self._settings.most_running:
            raise Overloaded("too many executions are under way that nobody waits for", retry_after_s=5.0)
        state = TaskState(mint_exec_id(), self._now(), None)
        self._kept[state.task_id] = _Kept(caller.key_id, state, state.created_s)
        task = asyncio.get_running_loop().create_task(self._run(state.task_id, request, caller))
        self._running[state.task_id] = task
        task.add_done_callback(lambda _: self._running.pop(state.task_id, None))
        return state

    async def _run(self, task_id: str, request: ExecRequest, caller: Caller) -> None:
        ended: ExecResult | Exception
        try:
            ended = await self._execute(request, caller)
        except SandforkError as error:
            ended = error.with_traceback(None)
        except Exception as error:
            log.exception("an execution that nobody waits for failed")
            ended = error.with_traceback(None)
        kept = self._kept.pop(task_id)
        self._kept[task_id] = replace(kept, state=replace(kept.state, ended=ended), since_s=self._now())
        self._kept_bytes += _size_bytes(ended)
        self._forget_old()

    def read(self, task_id: str, caller: Caller) -> TaskState:
        """Return what came of one so far. *Raises* SessionNotFound for one that is not the caller's."""
        self._forget_old()
        kept = self._kept.get(task_id)
        if kept is None or kept.owner != caller.key_id:
            raise SessionNotFound(f"there is no task {task_id[:200]!r}")
        return kept.state

    def _forget_old(self) -> None:
        """Forget results that are too old, and the oldest when they are too many or too large."""
        settings = self._settings
        before_s = self._now() - settings.keep_s
        for task_id, kept in tuple(self._kept.items()):
            fits = len(self._kept) <= settings.most_kept and self._kept_bytes <= settings.keep_bytes
            if fits and kept.since_s > before_s:
                break
            if kept.state.ended is not None:
                del self._kept[task_id]
                self._kept_bytes -= _size_bytes(kept.state.ended)

    async def close(self) -> None:
        """Stop what is under way and forget everything."""
        for task in tuple(self._running.values()):
            task.cancel()
        if self._running:
            await asyncio.wait(tuple(self._running.values()))
        self._kept.clear()


def _size_bytes(ended: ExecResult | Exception) -> int:
    """Return what a result takes, near enough."""
    if not isinstance(ended, ExecResult):
        return 0
    shown = sum(len(text) for display in ended.displays for text in display.data.values())
    return len(ended.stdout) + len(ended.stderr) + shown + sum(len(file.content) for file in ended.files)
