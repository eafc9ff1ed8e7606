"""What every test has: steady random examples, interrupts, and an end that names what did not run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest

from tests.support.process import Workbench, open_workbench
from tests.support.service import Service, running_service

hypothesis.settings.register_profile("sandfork", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "sandfork")

# A shell has what it starts in the background ignore these, and so would every process of a test.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take how large the storm of tests/e2e/test_chaos.py is."""
    parser.addoption("--chaos-executions", default=10_000, type=int, help="executions of the chaos test")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count and name every test that did not run here, with the reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    terminalreporter.section(f"not run on this host: {len(skipped)}")
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        terminalreporter.write_line(f"{report.nodeid}: {reason.removeprefix('Skipped: ')}")


@pytest.fixture(scope="session")
def as_root() -> None:
    """Skip, by name, where the test run is not root."""
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture(scope="session")
def service(as_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service with real sandboxes for the whole run; tests share it and must not end it."""
    # All tests come from one address: together they ask for more than a client of this dialect may in a minute.
    with running_service(
        tmp_path_factory.mktemp("service"), config="[access]\nper_minute = { faber = 100000 }"
    ) as started:
        yield started


@pytest.fixture(scope="session")
def workbench(as_root: None) -> Iterator[Workbench]:
    """One process tier for the whole run, driven directly; tests share it and must not end it."""
    with open_workbench() as opened:
        yield opened
