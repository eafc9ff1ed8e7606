"""Compiling: a sandbox of its own for the compiler, its artefacts taken out of it, and kept for the next time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from sandfork.engine.artefacts import Artefacts
from sandfork.engine.disposal import Disposal
from sandfork.engine.execution import Execution, never_began
from sandfork.engine.pool import Pool
from sandfork.errors import FileNotInSandbox, TierError
from sandfork.languages.language import BUILD_DIR
from sandfork.model import Compilation, InputFile, Outcome
from sandfork.tiers.base import Collected, Sandbox, StepEnd

_EXECUTABLE = 0o755


@dataclass(frozen=True, slots=True)
class CompilerSettings:
    """`cache_bytes`: the memory for artefacts that are kept.

    `stamped`: files that change whenever packages of the host do. `artefacts_bytes`: the most that one compiler may
    make; `collect_s`: how long taking it out may take.
    """

    cache_bytes: int = 256 << 20
    stamped: tuple[str, ...] = ()
    artefacts_bytes: int = 64 << 20
    collect_s: float = 10.0


class Compiler:
    """Gives executions what their programs are made of."""

    def __init__(self, pool: Pool, disposal: Disposal, settings: CompilerSettings) -> None:
        self._pool = pool
        self._disposal = disposal
        self._settings = settings
        self.artefacts = Artefacts(settings.cache_bytes, settings.stamped)

    async def prepare(self, execution: Execution) -> StepEnd | None:
        """Have the execution's program compiled, or take it from an earlier time.

        Return the end of a compiler that failed, else None. *Raises* what `Execution.compile` raises.
        """
        since_ns = execution.now_ns()
        key = self.artefacts.key_of(execution.plan)
        files = None if key is None else self.artefacts.get(key)
        if files is None or not _fit(files, execution):
            end, files = await self._compile(execution)
            if execution.failed_step:
                return end
            if key is not None:
                self.artefacts.put(key, files)
        execution.take_files(files)
        execution.compiled_ns = execution.now_ns() - since_ns
        return None

    async def _compile(self, execution: Execution) -> tuple[StepEnd, tuple[InputFile, ...]]:
        """Compile; a sandbox that was dead before it began is replaced once."""
        try:
            return await self._compile_in(await self._fork(execution.plan.command_key), execution)
        except TierError as error:
            if not never_began(error):
                raise
        return await self._compile_in(await self._fork(execution.plan.command_key), execution)

    async def _fork(self, key: str) -> Sandbox:
        return self._pool.take(key) or await self._pool.fork(key)

    async def _compile_in(self, sandbox: Sandbox, execution: Execution) -> tuple[StepEnd, tuple[InputFile, ...]]:
        compilation = execution.plan.compilation
        assert compilation is not None
        execution.image = sandbox.image
        try:
            end = await execution.compile(sandbox)
            if execution.failed_step:
                return end, ()
            collected = await self._collect(compilation, sandbox)
            files = tuple(InputFile(file.path, file.content, _EXECUTABLE) for file in collected.files)
            if files and _fit(files, execution) and not collected.skipped:
                return end, files
            large = not _fit(files, execution) or await self._is_large(sandbox)
        finally:
            self._disposal.add(sandbox)
        execution.fail_compiling(end)
        return replace(end, outcome=Outcome.DISK_LIMIT if large else end.outcome, exit_code=1), ()

    async def _collect(self, compilation: Compilation, sandbox: Sandbox) -> Collected:
        """Take the artefacts out; what cannot be had, or not in time, is skipped."""
        try:
            async with asyncio.timeout(self._settings.collect_s):
                return await sandbox.collect(compilation.artefacts, self._settings.artefacts_bytes)
        except (TierError, FileNotInSandbox, TimeoutError):
            return Collected(skipped=compilation.artefacts)

    async def _is_large(self, sandbox: Sandbox) -> bool:
        """Tell whether what the compiler made was skipped for its size; the other reason is that it made nothing."""
        try:
            entries = await sandbox.files.list(BUILD_DIR)
        except (TierError, FileNotInSandbox):
            return False
        return sum(entry.size_bytes for entry in entries) > self._settings.artefacts_bytes


def _fit(files: tuple[InputFile, ...], execution: Execution) -> bool:
    """Tell whether the program's own sandbox has room for the files."""
    return sum(len(file.content) for file in files) <= execution.plan.limits.disk_bytes
