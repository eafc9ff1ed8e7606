"""The engine's only door: `Engine.execute`.

plan → a slot → (compile) → a sandbox → run → (collect) → result. The answer leaves as soon as the result is there;
destroying the sandbox and forking its successor come after. Cancelling the task that executes (a client that is gone, a
shutdown) is the one way to stop an execution from outside: its sandbox is destroyed at once and its slot freed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from sandfork.engine.admission import Admission, AdmissionSettings, AdmissionStatistics
from sandfork.engine.artefacts import ArtefactStatistics
from sandfork.engine.collected import presentable
from sandfork.engine.compiler import Compiler, CompilerSettings
from sandfork.engine.desk import SessionDesk
from sandfork.engine.disposal import Disposal
from sandfork.engine.execution import Execution, never_began
from sandfork.engine.ids import mint_exec_id
from sandfork.engine.images import ImageDesk
from sandfork.engine.plan import Planner
from sandfork.engine.policy import LimitPolicy
from sandfork.engine.pool import Pool, PoolSettings, PoolStatistics
from sandfork.engine.recall import Recall
from sandfork.engine.session import Session
from sandfork.engine.sessions import SessionSettings
from sandfork.engine.tasks import Tasks, TaskSettings
from sandfork.errors import (
    Draining,
    FileNotInSandbox,
    NotSupported,
    SandforkError,
    TemplateFailed,
    TemplateGone,
    TierError,
)
from sandfork.languages.catalogue import Catalogue
from sandfork.model import Caller, ExecPlan, ExecRequest, ExecResult, TemplateHealth
from sandfork.tiers.base import Collected, OutputSink, Sandbox, Tier

log = logging.getLogger(__name__)

NOTHING_COLLECTED = Collected()

OnStart = Callable[[Execution], None]
Observe = Callable[[Caller, ExecPlan | None, ExecResult | BaseException], None]
"""Told of every execution once, when it is over: its plan (None when there was none) and what came of it."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings of the engine and its parts.

    `kill_grace_s`: how long a killed sandbox may take to say so. `interrupt_grace_s`: how long the interpreter of a
    session may take to end a step whose time is over, before it is killed. `collect_s`: how long collecting files may
    take. `dispose_delay_s`: how long after the result a sandbox is destroyed; `close_s`: how long that may take.
    """

    policy: LimitPolicy = field(default_factory=LimitPolicy)
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    sessions: SessionSettings = field(default_factory=SessionSettings)
    tasks: TaskSettings = field(default_factory=TaskSettings)
    compiler: CompilerSettings = field(default_factory=CompilerSettings)
    kill_grace_s: float = 5.0
    interrupt_grace_s: float = 2.0
    collect_s: float = 10.0
    dispose_delay_s: float = 0.001
    close_s: float = 30.0


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """The counts of this moment; `lost` is the number of sandboxes that could not be destroyed."""

    admission: AdmissionStatistics
    pool: tuple[PoolStatistics, ...]
    lost: int
    sessions: int = 0
    artefacts: ArtefactStatistics = field(default_factory=ArtefactStatistics)


def observe_nothing(caller: Caller, plan: ExecPlan | None, outcome: ExecResult | BaseException) -> None:
    """Be the observer when nobody observes."""


class Engine:
    """Runs programs. Made, started, drained and closed by the composition root."""

    def __init__(
        self,
        tier: Tier,
        catalogue: Catalogue,
        targets: Mapping[str, int],
        settings: EngineSettings | None = None,
        *,
        observe: Observe = observe_nothing,
        on_demand: Collection[str] = (),
        clock_ns: Callable[[], int] = time.monotonic_ns,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`tier` is started and stays its maker's to close; `targets` says for each template how many to park.
        Those in `on_demand` are made when they are first used.

        `clock_ns` is CLOCK_MONOTONIC in nanoseconds, the clock of `StepEnd`; `now` is Unix time in seconds.
        """
        self._settings = settings or EngineSettings()
        self._observe = observe
        self._clock_ns = clock_ns
        self._now = now
        self._catalogue = catalogue
        policy = replace(self._settings.policy, rates_cpus=tier.rates_cpus)
        self._planner = Planner(catalogue, policy, tier.isolation)
        self._admission = Admission(self._settings.admission)
        self._disposal = Disposal(
            delay_s=self._settings.dispose_delay_s,
            close_s=self._settings.close_s,
            begin=self._admission.begin_dying,
            end=self._admission.end_dying,
        )
        self._pool = Pool(tier, targets, self._settings.pool, self._disposal.add_now, on_demand)
        self._compiler = Compiler(self._pool, self._disposal, self._settings.compiler)
        self._executions: set[Execution] = set()
        self.sessions = SessionDesk(self._pool, self._planner, self._disposal, self._settings.sessions, now)
        self.images: ImageDesk | None = None
        self._recall: Recall | None = None
        self.tasks = Tasks(self.execute, self._plan, self._settings.tasks, now)

    async def start(self) -> None:
        """Make the templates and park a first sandbox of each; see `health` for those that could not be made."""
        await self._pool.start()

    async def execute(
        self,
        request: ExecRequest,
        caller: Caller,
        sink: OutputSink | None = None,
        on_start: OnStart | None = None,
    ) -> ExecResult:
        """Run one program and return what came of it.

        With a `sink` the output goes there as it arrives, at most `limits.output_bytes` of each stream, and the
        result has none. `on_start` is given the handle of the execution before it queues: its id, and how to resume
        reading after the sink refused more. *Raises* CallerError, CapacityError, TierError.
        """
        received_ns = self._clock_ns()
        plan: ExecPlan | None = None
        try:
            plan = self._plan(request, caller)
            if plan.session is not None:
                result = await self._execute_in_session(plan, sink, on_start, received_ns)
            else:
                execution = self._begin(plan, sink, on_start, received_ns)
                result = await self._perform(execution, partial(self._attempt_planned, execution, request))
                plan = execution.plan
        except BaseException as error:
            self._observe(caller, plan, error)
            raise
        self._observe(caller, plan, result)
        return result

    async def adopt(self, catalogue: Catalogue, targets: Mapping[str, int], on_demand: Collection[str]) -> None:
        """Run programs as this catalogue says from now on, which the tier has adopted; what runs ends as it began.

        *Raises* nothing: a template that cannot be made is told by `health`.
        """
        before = {spec.key: spec for spec in self._catalogue.templates()}
        changed = {spec.key for spec in catalogue.templates() if before.get(spec.key) != spec}
        self._catalogue = catalogue
        self._planner.adopt(catalogue)
        if self.images is not None:
            self.images.adopt(catalogue)
        if self._recall is not None:
            self._recall.adopt(catalogue)
        await self._pool.adopt(targets, on_demand, changed)

    def keep_images(self, images: ImageDesk, recall: Recall) -> None:
        """Have images and snapshots from now on; both are made over this engine."""
        self.images, self._recall = images, recall

    def _plan(self, request: ExecRequest, caller: Caller) -> ExecPlan:
        if request.snapshot is not None:
            if self._recall is None:
                raise NotSupported("snapshot: this server keeps no snapshots")
            request = self._recall.apply(request)
        spoken = None if request.session is None else self.sessions.language(request.session, caller)
        return self._planner.plan(mint_exec_id(), request, caller, self._pool.unavailable, spoken)

    async def batch(self, requests: Sequence[ExecRequest], caller: Caller) -> list[ExecResult | SandforkError]:
        """Execute all, each waiting for a slot of its own; return results or errors in the order of `requests`."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._execute_item(request, caller)) for request in requests]
        return [task.result() for task in tasks]

    def forget_artefacts(self) -> None:
        """Have every program compiled anew."""
        self._compiler.artefacts.clear()

    def resize(self, key: str, target: int) -> None:
        """Keep `target` sandboxes of that template parked from now on. *Raises* TemplateFailed for an unknown key."""
        self._pool.resize(key, target)

    def health(self) -> tuple[TemplateHealth, ...]:
        """Return the state of every template."""
        return self._pool.health()

    def statistics(self) -> EngineStatistics:
        """Return the counts of this moment."""
        return EngineStatistics(
            self._admission.statistics(),
            self._pool.statistics(),
            self._disposal.lost,
            len(self.sessions),
            self._compiler.artefacts.statistics(),
        )

    async def drain(self, grace_s: float) -> None:
        """Take nothing new; give what runs or waits `grace_s` to end, then fail it with Draining."""
        self._admission.drain()
        self.sessions.drain()
        try:
            async with asyncio.timeout(grace_s):
                await self._admission.wait_idle()
        except TimeoutError:
            self._admission.refuse_waiting()
            for execution in tuple(self._executions):
                execution.stop(Draining("the server is shutting down"))

    async def close(self) -> None:
        """Stop what still runs and destroy every sandbox."""
        await self.drain(0)
        if self.images is not None:
            await self.images.close()
        await self.tasks.close()
        await self.sessions.close()
        await self._pool.close()
        await self._admission.wait_idle()
        await self._disposal.close()

    async def _execute_item(self, request: ExecRequest, caller: Caller) -> ExecResult | SandforkError:
        try:
            return await self.execute(request, caller)
        except SandforkError as error:
            return error

    def _begin(self, plan: ExecPlan, sink: OutputSink | None, on_start: OnStart | None, received_ns: int) -> Execution:
        settings = self._settings
        execution = Execution(
            plan,
            sink,
            received_ns=received_ns,
            started_s=self._now(),
            clock_ns=self._clock_ns,
            grace_s=settings.kill_grace_s,
            interrupt_grace_s=settings.interrupt_grace_s,
        )
        if on_start is not None:
            on_start(execution)
        return execution

    async def _perform(self, execution: Execution, attempt: Callable[[], Awaitable[ExecResult]]) -> ExecResult:
        """Wait for a slot and run."""
        caller = execution.plan.caller
        try:
            if not self._admission.try_enter():
                await self._admission.wait(caller.key_id or caller.address)
            execution.admit()
            self._executions.add(execution)
            try:
                return await attempt()
            finally:
                self._executions.discard(execution)
                self._admission.leave()
        finally:
            execution.over()

    async def _execute_in_session(
        self, plan: ExecPlan, sink: OutputSink | None, on_start: OnStart | None, received_ns: int
    ) -> ExecResult:
        """Run when it is this one's turn in its session.

        A session outlives a client that goes away: its interpreter is then interrupted, and nobody else has a turn
        before it has ended its step. So the turn is a task of its own.
        """
        executions: list[Execution] = []

        async def take_turn() -> ExecResult:
            async with self.sessions.turn(plan) as session:
                execution = self._begin(session.adapt(plan), sink, on_start, received_ns)
                executions.append(execution)
                return await self._perform(execution, partial(self._attempt_in, session, execution))

        turn = asyncio.get_running_loop().create_task(take_turn())
        self.sessions.spawn(turn)
        try:
            return await asyncio.shield(turn)
        except asyncio.CancelledError:
            if executions and executions[0] in self._executions:
                executions[0].withdraw()
            else:
                turn.cancel()
            raise
        finally:
            del turn  # it may hold the error that is about to hold this frame

    async def _attempt_in(self, session: Session, execution: Execution) -> ExecResult:
        execution.image = session.sandbox.image
        end, state_lost = await session.run(execution)
        plan = execution.plan
        wanted = plan.collect and not execution.failed_step
        collected = await self._collect(plan, session.sandbox) if wanted else NOTHING_COLLECTED
        return execution.result(end, collected, state_lost=state_lost)

    async def _attempt_planned(self, execution: Execution, request: ExecRequest) -> ExecResult:
        """Run as planned; where that plan's template went since, as is planned now."""
        with suppress(TemplateGone):
            return await self._attempt_twice(execution)
        execution.plan_anew(self._plan(request, execution.plan.caller))
        return await self._attempt_twice(execution)

    async def _attempt_twice(self, execution: Execution) -> ExecResult:
        """Run; a sandbox that was dead before it began is replaced once."""
        if execution.plan.compilation is not None:
            failed = await self._compiler.prepare(execution)
            if failed is not None:
                return execution.result(failed, NOTHING_COLLECTED)
        result = await self._attempt(execution, last=False)
        if result is None:
            result = await self._attempt(execution, last=True)
        assert result is not None
        return result

    async def _attempt(self, execution: Execution, *, last: bool) -> ExecResult | None:
        """Run in one sandbox; None when the program did not start there and this is not the `last` attempt."""
        plan = execution.plan
        sandbox = self._pool.take(plan.template_key)
        if sandbox is None:
            sandbox = await self._fork(plan)
        execution.image = sandbox.image
        try:
            end = await execution.run(sandbox)
            collected = await self._collect(plan, sandbox) if plan.collect else NOTHING_COLLECTED
        except BaseException as error:
            self._disposal.add_now(sandbox)
            if last or execution.wrote or not never_began(error):
                raise
            log.warning("a parked sandbox of %s was dead: %s", plan.template_key, error)
            return None
        self._disposal.add(sandbox)
        return execution.result(end, collected)

    async def _fork(self, plan: ExecPlan) -> Sandbox:
        """Fork a sandbox; where the template of what can be executed as well cannot be made, that is done."""
        try:
            return await self._pool.fork(plan.template_key)
        except TemplateFailed as error:
            if not any(spec.replaceable for spec in self._catalogue.templates() if spec.key == plan.template_key):
                raise
            # The pool has said so once, and health says it as long as it is so.
            log.debug("execution %s: executed, for its template cannot be made: %s", plan.exec_id, error)
        return await self._pool.fork(plan.command_key)

    async def _collect(self, plan: ExecPlan, sandbox: Sandbox) -> Collected:
        """Collect files; what cannot be had, for whatever the sandbox did, is named as skipped."""
        try:
            async with asyncio.timeout(self._settings.collect_s):
                collected = await sandbox.collect(plan.collect, self._settings.policy.max_collect_bytes)
        except (TierError, FileNotInSandbox, TimeoutError) as error:
            log.debug("execution %s: files could not be collected: %r", plan.exec_id, error)
            return Collected(skipped=plan.collect)
        return presentable(collected)
