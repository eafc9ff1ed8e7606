"""What every attempt is made against: a service that knows secrets, and a host that must stay as it is."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.service import Service, running_service

#: In the environment and in the settings file of the service; no program may ever see it. In two pieces here, so that
#: a test can send one of them without sending the secret.
SECRET = "sandfork-" + "secret-5f1c77e0"
ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "SSH_AUTH_SOCK": f"/run/{SECRET}",
    "PYTHONPATH": f"/{SECRET}",
    "PYTHONSTARTUP": f"/{SECRET}",
    "NODE_OPTIONS": "--no-warnings",
}
SETTINGS = f"""
# {SECRET}
[pool]
size = 8
[sessions]
max_per_caller = 40
"""


@dataclass(frozen=True)
class Canary:
    """A file that anybody may write, in a directory that anybody may write: only a sandbox's walls protect it."""

    path: Path
    content: bytes

    def state(self) -> tuple[object, ...]:
        """Return everything that must not change."""
        status = self.path.stat()
        kernel = (Path("/proc/sys/kernel/core_pattern").read_text(), socket.gethostname(), os.uname().release)
        files = sorted(path.name for path in self.path.parent.iterdir())
        return self.path.read_bytes(), status.st_mode, status.st_uid, status.st_nlink, status.st_mtime_ns, files, kernel


@pytest.fixture(scope="session")
def canary(as_root: None) -> Iterator[Canary]:
    """A file on the host."""
    directory = Path(tempfile.mkdtemp(prefix="sandfork-canary-", dir="/var/tmp"))
    directory.chmod(0o777)
    path = directory / "canary.txt"
    content = b"the canary sings\n" * 256
    path.write_bytes(content)
    path.chmod(0o666)
    yield Canary(path, content)
    shutil.rmtree(directory)


@pytest.fixture(autouse=True)
def the_host_stays_as_it_is(canary: Canary) -> Iterator[None]:
    """Compare the canary before and after every test."""
    before = canary.state()
    yield
    assert canary.state() == before


@pytest.fixture(scope="session")
def service(as_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for the whole directory; its environment and its settings hold a secret."""
    with running_service(tmp_path_factory.mktemp("attacked"), config=SETTINGS, env=ENVIRONMENT) as started:
        yield started
