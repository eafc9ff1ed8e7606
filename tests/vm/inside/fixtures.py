"""A pytest plugin: what the tests inside share, instead of tests/conftest.py, which needs more than the guest has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.process import Workbench, open_workbench


@pytest.fixture(scope="session")
def as_root() -> None:
    """In the guest everyone is root."""


@pytest.fixture(scope="session")
def workbench() -> Iterator[Workbench]:
    """One process tier for the whole run."""
    with open_workbench() as opened:
        yield opened
