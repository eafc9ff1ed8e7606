"""One boot of the guest for the whole run, and the marker of everything here."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vm.machine import GuestRun, Machine, missing
from tests.vm.rootfs import make_disk

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    """Make `-m vm` and `-m "not vm"` work."""
    config.addinivalue_line("markers", "vm: boots a guest under QEMU's emulator, which takes two minutes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this directory."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("vm")


@dataclass(frozen=True)
class Beside:
    """The guest of this run, on its disk, in a directory of its own."""

    directory: Path
    disk: Path
    machine: Machine


BESIDE = pytest.StashKey[Beside]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Boot the guest ahead of the first test: it is a machine of its own, and its minutes pass beside."""
    wanted = any("guest" in getattr(item, "fixturenames", ()) for item in session.items)
    if not wanted or session.config.option.collectonly or missing():
        return
    directory = Path(tempfile.mkdtemp(prefix="sandfork-guest-"))
    disk = make_disk(directory)
    session.config.stash[BESIDE] = Beside(directory, disk, Machine(disk, directory))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave neither guest nor disk, however the run ended."""
    beside = config.stash.get(BESIDE, None)
    if beside is not None:
        beside.machine.kill()
        shutil.rmtree(beside.directory)


@pytest.fixture(scope="session")
def disk(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guest's disk; skips, with the reason, where no guest can be booted."""
    if reason := missing():
        pytest.skip(reason)
    beside = pytestconfig.stash.get(BESIDE, None)
    return make_disk(tmp_path_factory.mktemp("disk")) if beside is None else beside.disk


@pytest.fixture(scope="session")
def guest(disk: Path, pytestconfig: pytest.Config) -> GuestRun:
    """The guest after all tests inside have run."""
    return pytestconfig.stash[BESIDE].machine.wait()
