"""One boot of the guest for the whole run, and the marker of everything here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.machine import GuestRun, boot, missing
from tests.vm.rootfs import make_disk

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    """Make `-m vm` and `-m "not vm"` work."""
    config.addinivalue_line("markers", "vm: boots a guest under QEMU's emulator, which takes half a minute")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this directory."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("vm")


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's disk; skips, with the reason, where no guest can be booted."""
    if reason := missing():
        pytest.skip(reason)
    return make_disk(tmp_path_factory.mktemp("disk"))


@pytest.fixture(scope="session")
def guest(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> GuestRun:
    """The guest after all tests inside have run."""
    return boot(disk, tmp_path_factory.mktemp("guest"))
