"""What the HTTP side needs of the rest: an engine to run programs, and somewhere to count refusals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sandfork.model import Caller, ExecRequest, ExecResult, TemplateHealth


class ExecutionEngine(Protocol):
    """Runs programs."""

    async def execute(self, request: ExecRequest, caller: Caller) -> ExecResult:
        """Run one program. Cancelling the awaiting task kills it. *Raises* SandforkError."""
        ...

    def health(self) -> Sequence[TemplateHealth]:
        """Return the state of every template."""
        ...


class RequestMetrics(Protocol):
    """Counts what never reached the engine, and shows all that was counted."""

    def rejected(self, reason: str) -> None:
        """Count a request refused before it reached the engine."""
        ...

    def exposition(self) -> bytes:
        """Return every metric in Prometheus' text format."""
        ...
