"""Files of PyPI that are put in place as they are: real pip, sources made here, and nothing of them run."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from sandfork.images.installed import pypi_packages
from sandfork.images.pypi import files, without_the_builder
from sandfork.images.unbuilt.sitecustomize import refused

METADATA = "Metadata-Version: 2.1\nName: Some-Lang\nVersion: 1.0\nRequires-Dist: not-to-be-had\n\nWords.\n"
SOURCES = {
    "PKG-INFO": METADATA,
    "setup.py": "open({mark!r}, 'w')\nfrom setuptools import setup\nsetup(name='some-lang', version='1.0')\n",
    "Some_Lang.egg-info/top_level.txt": "some\nother\n",
    "some/__init__.py": "value = 1\n",
    "some/deep/text.lang": "(print)\n",
    "some/__pycache__/__init__.cpython-311.pyc": "stale",
    "other.py": "value = 2\n",
    "tests/test_some.py": "",
}
OWN_BACKEND = '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n'
OURS_ELSEWHERE = '[build-system]\nrequires = []\nbuild-backend = "setuptools.build_meta"\nbackend-path = ["."]\n'
NOT_HERE = '[build-system]\nrequires = []\nbuild-backend = "json"\n'
BACKEND = "open({mark!r}, 'w')\n"


def sdist(directory: Path, members: Mapping[str, str]) -> str:
    """Write sources to a directory that pip is told of; return what pins them. {mark!r} is a file that a run writes."""
    path = directory / "some_lang-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            content = text.format(mark=str(directory / "was-run")).encode()
            info = tarfile.TarInfo(f"some_lang-1.0/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return f"some-lang==1.0 sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def install(directory: Path, pinned: str) -> subprocess.CompletedProcess[str]:
    pip = files([pinned], directory / "target", "--no-compile")
    own = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(directory), "PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(
        pip.argv, input=pip.fed, env={**os.environ, **own}, capture_output=True, text=True, check=False
    )


def test_sources_are_put_in_place_as_they_are_alone_and_nothing_of_them_is_run(tmp_path: Path) -> None:
    done = install(tmp_path, sdist(tmp_path, SOURCES))
    assert done.returncode == 0, done.stderr
    target = tmp_path / "target"
    found = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert {each for each in found if ".dist-info/" not in each} == {
        "some/__init__.py", "some/deep/text.lang", "other.py",
    }  # fmt: skip
    assert (target / "other.py").read_text() == "value = 2\n"
    assert list(pypi_packages(target)) == [("Some-Lang", "1.0", "pypi")]
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("pyproject", "reason"),
    [
        (OWN_BACKEND, "own"),
        (OURS_ELSEWHERE, "its own backend in /"),
        (NOT_HERE, "json"),
    ],
)
def test_sources_that_bring_a_build_of_their_own_are_refused_before_it_is_run(
    tmp_path: Path, pyproject: str, reason: str
) -> None:
    brought = {"pyproject.toml": pyproject, "own.py": BACKEND, "setuptools/build_meta.py": BACKEND}
    pinned = sdist(tmp_path, {**SOURCES, **brought, "setuptools/__init__.py": ""})
    done = install(tmp_path, pinned)
    assert done.returncode != 0
    assert f"this package has to be built, which is not done here: by {reason}" in done.stderr + done.stdout
    assert not (tmp_path / "was-run").exists()


def test_a_build_of_its_own_is_run_where_nothing_refuses_it(tmp_path: Path) -> None:
    sdist(tmp_path, {**SOURCES, "pyproject.toml": OWN_BACKEND, "own.py": BACKEND})
    argv = (sys.executable, "-m", "pip", "install", "--no-index", "--no-build-isolation", "--target", tmp_path / "x")
    subprocess.run((*argv, tmp_path / "some_lang-1.0.tar.gz"), capture_output=True, check=False)
    assert (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    "left_out",
    ["Some_Lang.egg-info/top_level.txt", "other.py"],
    ids=["unsaid packages", "a package that is to be made"],
)
def test_sources_that_are_not_all_there_are_refused(tmp_path: Path, left_out: str) -> None:
    done = install(tmp_path, sdist(tmp_path, {name: text for name, text in SOURCES.items() if name != left_out}))
    assert done.returncode != 0
    assert "this package has to be built, which is not done here" in done.stderr + done.stdout


def test_a_file_of_another_hash_is_refused(tmp_path: Path) -> None:
    pinned = sdist(tmp_path, SOURCES)
    sdist(tmp_path, {**SOURCES, "other.py": "value = 3\n"})
    done = install(tmp_path, pinned)
    assert done.returncode != 0
    assert not (tmp_path / "target/other.py").exists()
    assert install(tmp_path, sdist(tmp_path, SOURCES)).returncode == 0, "the hash is what was wrong with it"


def test_processes_of_pip_that_build_nothing_are_let_be() -> None:
    assert refused({"HOME": "/root"}) == ""
    assert refused({"X_BUILD_BACKEND": "setuptools.build_meta:__legacy__", "X_BACKEND_PATH": ""}) == ""


def test_commands_are_of_the_images_interpreter_whatever_pip_was_run_by(tmp_path: Path) -> None:
    name = "tool-1.0-py3-none-any.whl"
    with zipfile.ZipFile(tmp_path / name, "w") as wheel:
        info = "tool-1.0.dist-info"
        wheel.writestr("tool.py", "main = print\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tool\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/entry_points.txt", "[console_scripts]\ntool = tool:main\n")
        wheel.writestr(f"{info}/RECORD", "tool.py,sha256=x,14\n")
    digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    done = install(tmp_path, f"tool==1.0 sha256:{digest}")
    assert done.returncode == 0, done.stderr
    script, record = tmp_path / "target/bin/tool", tmp_path / "target/tool-1.0.dist-info/RECORD"
    other = tmp_path / "target/bin/other"
    other.write_text("#!/bin/sh\n")
    assert sys.executable in script.read_text()
    without_the_builder(tmp_path / "target")
    assert sys.executable not in script.read_text()
    assert script.read_text().startswith("#!/usr/bin/python3\n")
    assert os.access(script, os.X_OK)
    assert "../../bin/tool,,\n" in record.read_text()
    assert "tool.py,sha256=x,14\n" in record.read_text()
    assert other.read_text() == "#!/bin/sh\n"
