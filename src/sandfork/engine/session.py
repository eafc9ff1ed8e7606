"""One session: a sandbox that outlives its executions, the interpreters in it, and whose turn it is.

Executions of a session run one after another. A lasting interpreter is kept for each language that was used; what
asks for a fresh process gets one that joins the sandbox and leaves it. The sandbox's own first process is used once as
either. Whatever ends an interpreter (the program itself, a limit, a crash) ends its state and not the session: the next
execution gets a new one. A limit's kill takes every process of the session, and the files stay.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace

from sandfork.engine.execution import Execution, never_began
from sandfork.engine.policy import in_processor_time
from sandfork.engine.terminals import Terminal
from sandfork.errors import (
    CallerError,
    FileNotInSandbox,
    ForkFailed,
    GuestLost,
    SessionConflict,
    SessionNotFound,
    TemplateFailed,
    TierError,
    WrongLanguage,
)
from sandfork.languages.catalogue import COMMAND
from sandfork.languages.language import BUILD_DIR
from sandfork.model import ExecPlan, Limits, SessionKey, SessionSpec, SessionState, Usage
from sandfork.tiers.base import Process, Sandbox, StepEnd

log = logging.getLogger(__name__)

Join = Callable[[str, Sandbox], Awaitable[Process]]
"""Have a process of the template of that key join the sandbox."""
Discard = Callable[[Process], None]
"""Close a process in the background."""

_PASSING = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT})
"""What keeps a process from joining for a while, and says nothing about the sandbox: too much is going on."""
_PAUSE_S = 1.0
_OF_THE_SESSION = ("memory_bytes", "pids", "open_files", "disk_bytes", "cpus")


class Session:
    """See the module. Made, expired and closed by `Sessions`."""

    def __init__(
        self,
        key: SessionKey,
        spec: SessionSpec,
        language: str,
        limits: Limits,
        *,
        join: Join,
        discard: Discard,
        now_s: float,
    ) -> None:
        """`now_s` is Unix time."""
        self.key = key
        self.spec = spec
        self.language = language
        self.limits = limits
        self.lock = asyncio.Lock()
        self.created_s = self.last_used_s = now_s
        self.expires_s = 0.0
        self.executions = 0
        self.waiting = 0
        self.usage = Usage()
        self.running: Execution | None = None
        self.ended = ""
        self.opening: asyncio.Task[None] | None = None
        self._join = join
        self._discard = discard
        self._sandbox: Sandbox | None = None
        self._spare = ""
        self._interpreters: dict[str, Process] = {}
        self.terminals: dict[str, Terminal] = {}
        self.reserved: set[str] = set()

    def open(self, sandbox: Sandbox, template_key: str) -> None:
        """Give the session its sandbox, parked in which is a process of that template."""
        self._sandbox = sandbox
        self._spare = template_key

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox. *Raises* SessionNotFound once the session is over."""
        if self.ended or self._sandbox is None:
            raise self.gone()
        return self._sandbox

    def gone(self) -> SessionNotFound:
        """Return why there is no such session: an error of its own for each who asks."""
        return SessionNotFound(self.ended or "the session is not there yet")

    @contextmanager
    def unless_over(self) -> Iterator[None]:
        """Have what fails because the session ended meanwhile say so. *Raises* SessionNotFound."""
        try:
            yield
        except TierError as error:
            if self.ended:
                raise self.gone() from error
            raise

    @asynccontextmanager
    async def in_turn(self) -> AsyncIterator[None]:
        """Wait until nobody else has the turn, and have it."""
        self.waiting += 1
        try:
            await self.lock.acquire()
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self.lock.release()

    def check_open(self) -> None:
        """*Raises* SessionNotFound once the session is over."""
        _ = self.sandbox

    def give_up(self) -> Sandbox | None:
        """Let go of the sandbox, which is the caller's to destroy."""
        sandbox, self._sandbox = self._sandbox, None
        self._interpreters.clear()
        return sandbox

    @property
    def connected(self) -> bool:
        """Whether a client is connected to one of its terminals."""
        return any(terminal.connected for terminal in self.terminals.values())

    def state(self, now_s: float) -> SessionState:
        """Return what there is to tell of it at `now_s`, Unix time."""
        return SessionState(
            name=self.key.name,
            language=self.language,
            limits=self.limits,
            created_s=self.created_s,
            last_used_s=self.last_used_s,
            expires_s=self.expires_s,
            busy=self.lock.locked(),
            executions=self.executions,
            usage=self.usage,
            metadata=self.spec.metadata,
            now_s=now_s,
        )

    def adapt(self, plan: ExecPlan) -> ExecPlan:
        """Return `plan` under what holds for the session as a whole. *Raises* SessionConflict."""
        if self.spec.one_language and plan.language not in (self.language, COMMAND.key):
            raise WrongLanguage(plan.language, self.language)
        for name in _OF_THE_SESSION:
            if name in plan.named_limits and getattr(plan.limits, name) != getattr(self.limits, name):
                raise SessionConflict(f"limits.{name}: belongs to the session, which was made with another")
        limits = self._shared(plan.limits)
        names = {name for name, _ in plan.step.env}
        env = (*((n, v) for n, v in self.spec.env if n not in names), *plan.step.env)
        compilation = plan.compilation and replace(plan.compilation, limits=self._shared(plan.compilation.limits))
        return replace(plan, limits=limits, step=replace(plan.step, env=env), compilation=compilation)

    def _shared(self, limits: Limits) -> Limits:
        """Return `limits` with what the session as a whole has."""
        limits = replace(limits, **{name: getattr(self.limits, name) for name in _OF_THE_SESSION})
        named = self.spec.limits.cpus
        return limits if named is None or self.limits.cpus == named else in_processor_time(limits, named)

    async def run(self, execution: Execution) -> tuple[StepEnd, bool]:
        """Run one execution; return its end, and whether its interpreter's state was lost with it or before.

        *Raises* what the tier raises, and SessionNotFound when the session ends meanwhile.
        """
        plan = execution.plan
        with self.unless_over():
            if plan.compilation is not None:
                end = await self._compile(execution)
                if execution.failed_step:
                    return end, False
            had_state = plan.step.lasting and plan.language in self._interpreters
            try:
                end, lost = await self._attempt(execution), False
            except GuestLost as error:
                if self.ended or execution.wrote or not never_began(error):
                    raise
                end, lost = await self._attempt(execution), had_state  # it died since its last step
        self._count(end)
        return end, plan.step.lasting and (lost or not end.alive)

    async def _attempt(self, execution: Execution) -> StepEnd:
        """Run in one process, which is let go of unless it can take another step."""
        plan = execution.plan
        process = await self._process_for(plan)
        self.running = execution
        waits = False
        try:
            end = await execution.run(process)
            waits = end.alive
            return end
        except CallerError:
            waits = plan.step.lasting
            raise
        finally:
            self.running = None
            if not waits and (execution.sent or not plan.step.lasting):
                self._forget(plan, process)

    async def _compile(self, execution: Execution) -> StepEnd:
        """Compile where the files are: in the session's own sandbox, every time, by a process of its own."""
        sandbox = self.sandbox
        await sandbox.cleared()
        with suppress(FileNotInSandbox):
            await sandbox.files.delete(BUILD_DIR)
        process = await self._new_process(sandbox, COMMAND.key)
        self.running = execution
        since_ns = execution.now_ns()
        try:
            end = await execution.compile(process)
        finally:
            self.running = None
            self._forget(execution.plan, process)
        execution.compiled_ns = execution.now_ns() - since_ns
        return end

    async def _process_for(self, plan: ExecPlan) -> Process:
        sandbox = self.sandbox
        await sandbox.cleared()
        process = self._interpreters.get(plan.language) if plan.step.lasting else None
        if process is None:
            process = await self._new_process(sandbox, plan.template_key)
            if plan.step.lasting:
                self._interpreters[plan.language] = process
        return process

    async def _new_process(self, sandbox: Sandbox, template_key: str) -> Process:
        if self._spare == template_key:
            self._spare = ""
            return sandbox
        try:
            return await self._join(template_key, sandbox)
        except (ForkFailed, TemplateFailed) as error:
            log.warning("a process could not join a session: %s", error)  # the template may just have died
        try:
            return await self._join(template_key, sandbox)
        except ForkFailed as error:
            if error.retry_after_s is None and error.errno not in _PASSING:
                raise GuestLost(f"nothing can join the session's sandbox: {error.message}") from error
            pause_s = error.retry_after_s or _PAUSE_S
            raise ForkFailed(error.message, step=error.step, errno=error.errno, retry_after_s=pause_s) from error

    def _forget(self, plan: ExecPlan, process: Process) -> None:
        """Let go of a process that is over or of no more use; the sandbox's own goes with the sandbox."""
        if self._interpreters.get(plan.language) is process:
            del self._interpreters[plan.language]
        if process is not self._sandbox:
            self._discard(process)

    def _count(self, end: StepEnd) -> None:
        """Add to what the session has used: peaks are the sandbox's, so the largest counts."""
        used, more = self.usage, end.usage
        self.executions += 1
        self.usage = Usage(
            used.cpu_user_s + more.cpu_user_s,
            used.cpu_system_s + more.cpu_system_s,
            used.wall_s + more.wall_s,
            max(used.memory_peak_bytes, more.memory_peak_bytes),
            more.memory_current_bytes,
            max(used.processes, more.processes),
        )
