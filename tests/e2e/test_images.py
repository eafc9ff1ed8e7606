"""Images end to end: built from this machine's apt sources by the command line, then run on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HELLO = "import os, numpy; print(os.path.exists('/usr/bin/apt-get'), numpy.arange(3).sum())"


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    home = Path("/var/tmp") / f"sandfork-test-rootfs-{os.getpid()}"
    home.mkdir(0o755)
    yield home
    shutil.rmtree(home)


@pytest.fixture(scope="module", autouse=True)
def what_a_build_needs() -> None:
    if os.geteuid() != 0 or shutil.which("mmdebstrap") is None:
        pytest.skip("building images needs root and mmdebstrap")


def sandfork(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), env=environment(directory), capture_output=True, text=True, check=False)


def command(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "sandfork", *words]


def environment(directory: Path) -> dict[str, str]:
    return {**os.environ, "SANDFORK_IMAGES_DIRECTORY": str(directory / "store")}


def what_is_left(directory: Path) -> list[Path]:
    parts = ("manifests", "blobs", "trees", "work")
    return [path for part in parts for path in (directory / "store" / part).glob("*")]


def test_an_interrupted_build_leaves_nothing(directory: Path) -> None:
    argv, group = command("rootfs", "build", "python"), {"start_new_session": True}
    with subprocess.Popen(argv, env=environment(directory), stderr=subprocess.PIPE, **group) as build:
        work = directory / "store/work"
        while not list(work.glob("*/tree/var/lib/dpkg")):
            assert build.poll() is None
        os.killpg(build.pid, signal.SIGINT)
        assert build.stderr is not None
        told = build.stderr.read()
    assert (build.returncode, b"Traceback" in told) == (130, False)
    assert what_is_left(directory) == []
    assert str(work) not in Path("/proc/mounts").read_text()


def test_a_language_runs_on_an_image_that_was_built_for_it(directory: Path) -> None:
    built = sandfork(directory, "rootfs", "build", "python", "--language", "python", "--language", "bash")
    assert built.returncode == 0, built.stderr
    manifest = json.loads(sandfork(directory, "rootfs", "show", "python").stdout)
    assert manifest["digest"] == built.stdout.strip()
    bill = json.loads(sandfork(directory, "rootfs", "show", "python", "--sbom").stdout)
    names = {package["name"]: package.get("versionInfo") for package in bill["packages"]}
    assert {each["name"]: each["version"] for each in manifest["packages"]}.items() <= names.items()
    ran = sandfork(directory, "run", "-e", HELLO)
    assert (ran.stdout, ran.returncode) == ("False 3\n", 0), ran.stderr
    removed = sandfork(directory, "rootfs", "remove", "python")
    assert removed.returncode == 0, removed.stderr
    assert what_is_left(directory) == []
    assert sandfork(directory, "run", "-e", HELLO).stdout == "True 3\n", "the control: the host's own files"


def test_an_image_that_is_larger_than_allowed_is_refused(directory: Path) -> None:
    tree = directory / "tree"
    tree.mkdir()
    (tree / "large").write_bytes(bytes(2 << 20))
    refused = sandfork(directory, "rootfs", "from-dir", str(tree), "--name", "large", "--size-mb", "1")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "more than 1 MB" in refused.stderr
    assert what_is_left(directory) == []
