"""A pytest plugin: what the tests inside share, instead of tests/conftest.py, which needs more than the guest has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.process import Workbench, open_workbench


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what asks the whole service, for the guest runs the tier alone."""
    items[:] = [item for item in items if "service" not in getattr(item, "fixturenames", ())]


@pytest.fixture
def as_root() -> None:
    """The guest has no other user."""


@pytest.fixture(scope="session")
def workbench() -> Iterator[Workbench]:
    """One process tier for the whole run."""
    with open_workbench() as opened:
        yield opened
