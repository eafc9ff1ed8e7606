"""Executions that nobody waits for: they go on when their client is gone, and what came of them is kept for a while."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sandfork.engine.ids import mint_exec_id
from sandfork.errors import Overloaded, SandforkError, SessionNotFound
from sandfork.model import Caller, ExecRequest, ExecResult, TaskState

Execute = Callable[[ExecRequest, Caller], Awaitable[ExecResult]]


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """Bounds of tasks: counts, and seconds a result is kept."""

    most_running: int = 256
    most_kept: int = 1024
    keep_s: float = 3600.0


class Tasks:
    """Owns the tasks until they are done, and their results until they are forgotten."""

    def __init__(self, execute: Execute, settings: TaskSettings, now: Callable[[], float]) -> None:
        """`now` is Unix time in seconds."""
        self._execute = execute
        self._settings = settings
        self._now = now
        self._kept: OrderedDict[str, tuple[str, TaskState]] = OrderedDict()
        self._running: dict[str, asyncio.Task[None]] = {}

    def start(self, request: ExecRequest, caller: Caller) -> TaskState:
        """Begin one. *Raises* Overloaded."""
        self._forget_old()
        if len(self._running) >= self._settings.most_running:
            raise Overloaded("too many executions are under way that nobody waits for", retry_after_s=5.0)
        state = TaskState(mint_exec_id(), self._now(), None)
        self._kept[state.task_id] = caller.key_id, state
        task = asyncio.get_running_loop().create_task(self._run(state.task_id, request, caller))
        self._running[state.task_id] = task
        task.add_done_callback(lambda _: self._running.pop(state.task_id, None))
        return state

    async def _run(self, task_id: str, request: ExecRequest, caller: Caller) -> None:
        ended: ExecResult | SandforkError
        try:
            ended = await self._execute(request, caller)
        except SandforkError as error:
            ended = error.with_traceback(None)
        owner, state = self._kept.pop(task_id)
        self._kept[task_id] = owner, TaskState(task_id, state.created_s, ended)
        self._forget_old()

    def read(self, task_id: str, caller: Caller) -> TaskState:
        """Return what came of one so far. *Raises* SessionNotFound for one that is not the caller's."""
        self._forget_old()
        owner, state = self._kept.get(task_id, ("", None))
        if state is None or owner != caller.key_id:
            raise SessionNotFound(f"there is no task {task_id[:200]!r}")
        return state

    def _forget_old(self) -> None:
        """Forget results that are too old, and the oldest when there are too many."""
        before_s = self._now() - self._settings.keep_s
        for task_id, (_, state) in tuple(self._kept.items()):
            if len(self._kept) <= self._settings.most_kept and state.created_s > before_s:
                break
            if task_id not in self._running:
                del self._kept[task_id]

    async def close(self) -> None:
        """Stop what is under way and forget everything."""
        for task in tuple(self._running.values()):
            task.cancel()
        if self._running:
            await asyncio.wait(tuple(self._running.values()))
        self._kept.clear()
