"""Executions that nobody waits for: what is begun, and what is refused before it is."""

from __future__ import annotations

import pytest

from sandfork.errors import UnknownLanguage
from sandfork.model import ExecRequest, ExecResult, Snippet
from tests.support.clock import in_virtual_time
from tests.support.engine import CALLER, rig, script
from tests.support.stub_engine import elapse


@in_virtual_time
async def test_what_can_never_run_is_refused_at_once_and_what_can_is_begun() -> None:
    async with rig() as made:
        tasks = made.engine.tasks
        with pytest.raises(UnknownLanguage):
            tasks.start(ExecRequest(Snippet("cobol", "")), CALLER)
        assert made.observed == []
        state = tasks.start(script("out hi"), CALLER)
        assert state.ended is None
        await elapse(1.0)
        ended = tasks.read(state.task_id, CALLER).ended
        assert isinstance(ended, ExecResult)
        assert ended.stdout == b"hi\n"
        assert len(made.observed) == 1
