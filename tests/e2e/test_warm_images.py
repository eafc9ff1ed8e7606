"""A warm cache on an image, as a user has one: filled, used, told when it fits no more, and filled again."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.images import shell_tree
from tests.support.service import Service, command, running_service
from tests.support.warm import TEXT

#: "Compiled" to a program that tells what is in the cache, if it has one.
CODE = """printf '#!/bin/sh\\n[ -z "$CACHE" ] && echo cold || cat "$CACHE/kept"\\n' > "$1" """


@dataclass(frozen=True)
class Home:
    """A store of images, and a language of its own."""

    path: Path

    @property
    def environment(self) -> dict[str, str]:
        own = {"IMAGES_DIRECTORY": "images", "LANGUAGES_DIRECTORY": "languages"}
        return {**os.environ, **{f"SANDFORK_{name}": str(self.path / part) for name, part in own.items()}}

    def sandfork(self, *words: str) -> str:
        """Run a command to its end and return what it says, in one line, the words of stdout last."""
        done = subprocess.run(command(*words), env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return " ".join((done.stderr + done.stdout).split())

    def build(self, mark: str) -> str:
        """Make the image of the language, which has a mark in it; return its digest."""
        tree = self.path / "tree"
        (tree / "usr/mark").write_text(mark)
        return self.sandfork("rootfs", "from-dir", str(tree), "--name", "made").split()[-1]


@pytest.fixture
def home(as_root: None) -> Iterator[Home]:
    path = Path("/var/tmp") / f"sandfork-test-warm-images-{os.getpid()}"
    path.mkdir(0o755)
    try:
        shell_tree(path / "tree", ("mkdir", "tar"))
        (path / "tree/usr/bin/sh").symlink_to("bash")
        (path / "languages").mkdir()
        (path / "languages/made.toml").write_text(TEXT.replace("FILL", ":").replace("TOOL", "/usr/mark"))
        yield Home(path)
    finally:
        shutil.rmtree(path)


def until(service: Service, said: str, digest: str) -> None:
    """Return once the program says so on that image; what it says on the way must be one or the other."""
    while True:
        reply = service.exec(CODE, "made")
        assert (reply["exit_code"], reply["stderr"]) == (0, "")
        assert reply["stdout"] in ("cold\n", "a program")
        if (reply["stdout"], reply["image"]) == (said, f"made@{digest}"):
            return


def test_a_cache_serves_the_image_that_it_was_filled_on_and_a_running_service_takes_the_next(
    home: Home, tmp_path: Path
) -> None:
    first = home.build("first")
    assert "image made@" in home.sandfork("lang", "info", "made")
    assert "installed yes" in home.sandfork("lang", "info", "made"), "of its image, for the host has none"
    with running_service(tmp_path, env=home.environment) as service:
        assert "no warm cache fits" in service.log.read_text()
        until(service, "cold\n", first)
        home.sandfork("lang", "warm", "made")
        until(service, "a program", first)
        second = home.build("second")
        until(service, "cold\n", second)
        told = service.log.read_text()
        assert told.rindex("no warm cache fits made") > told.rindex(f"programs run on made@{second}")
        assert "made by another toolchain" in home.sandfork("lang", "info", "made")
        home.sandfork("lang", "warm", "made")
        until(service, "a program", second)
    assert "There is nothing to fill" in home.sandfork("lang", "warm", "made")


def test_a_language_is_proven_on_its_image(home: Home) -> None:
    home.build("first")
    done = subprocess.run(command("lang", "test", "made"), env=home.environment, capture_output=True, text=True)
    assert "made sha256:" in done.stdout, done.stderr
    assert "made: hello: " in done.stderr, "its checks are no programs"
    refused = subprocess.run(
        command("lang", "test", "--host", "made"), env=home.environment, capture_output=True, text=True
    )
    assert "made: there is no /usr/mark" in refused.stderr
