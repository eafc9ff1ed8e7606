"""Sandboxes on an image: its files are all they see, read-only, and no less confined than on the host's."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandfork.errors import NotSupported, TemplateFailed
from sandfork.images.archive import Bounds
from sandfork.images.making import import_directory, import_stream
from sandfork.images.progress import tell_nobody
from sandfork.images.store import Store
from sandfork.languages.catalogue import Catalogue
from sandfork.model import Limits
from tests.support.images import member, shell_tree, tar_of
from tests.support.process import Tape, Workbench, make_step, open_workbench

IMAGE = "small"
ON_IMAGE = f"command@{IMAGE}"


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """A store with an image of the host's own shell and a few programs, with all the libraries that these need."""
    home = Path("/var/tmp") / f"sandfork-test-images-{os.getpid()}"
    tree = home / "tree"
    try:
        shell_tree(tree)
        (tree / "usr/mark").write_text("of the image")
        (tree / "usr/local").mkdir()
        home.chmod(0o755)
        made = Store(home / "store")
        import_directory(made, IMAGE, ("bash",), tree, Bounds(), tell_nobody)
        yield made
    finally:
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def bench(store: Store) -> Iterator[Workbench]:
    catalogue = Catalogue.load().on_images({"bash": IMAGE})
    with open_workbench(catalogue=catalogue, images={IMAGE: store.lease(IMAGE)}) as bench:
        yield bench


def test_a_program_sees_the_image_and_nothing_of_the_host(bench: Workbench) -> None:
    ran = bench.run("cat /usr/mark; ls /usr /usr/bin; ls /usr/share; id -u", ON_IMAGE)
    lines = ran.stdout.decode().split()
    assert lines[:3] == ["of", "the", "image"] or lines[0] == "of"
    assert {"bash", "cat", "ls"} <= set(lines)
    assert not {"python3", "gcc", "apt", "share"} & set(lines)
    assert b"/usr/share" in ran.stderr
    control = bench.run("cat /usr/mark; ls /usr/bin/apt", "command")
    assert (control.stdout, b"/usr/mark" in control.stderr) == (b"/usr/bin/apt\n", True)


def test_an_image_cannot_be_written_and_its_mounts_give_no_power(bench: Workbench, store: Store) -> None:
    ran = bench.run(
        'echo x >/usr/mark; echo x >/usr/bin/new; touch /usr/bin/bash; while read -r line; do echo "$line"; done'
        " </proc/self/mounts",
        ON_IMAGE,
    )
    tree = store.tree(store.get(IMAGE))
    assert (tree / "usr/mark").read_text() == "of the image"
    assert not (tree / "usr/bin/new").exists()
    assert ran.stderr.count(b"Read-only file system") == 2
    assert ran.stderr.count(b"Permission denied") == 1, "not even its times"
    (mount,) = [line.split() for line in ran.stdout.decode().splitlines() if line.split()[1] == "/usr"]
    assert {"ro", "nosuid", "nodev"} <= set(mount[3].split(","))
    control = bench.run("echo x >here && cat here", ON_IMAGE)
    assert control.stdout == b"x\n"


def test_languages_without_an_image_and_raw_commands_stay_on_the_host(bench: Workbench) -> None:
    assert bench.run("import os; print(os.path.exists('/usr/mark'))").stdout == b"False\n"


def test_an_interpreter_joins_no_session_of_other_files(bench: Workbench) -> None:
    async def join() -> None:
        sandbox = await bench.fork(ON_IMAGE)
        try:
            await sandbox.keep(Limits())
            with pytest.raises(NotSupported, match="session of its own"):
                await (await bench.tier.template("python")).join(sandbox)
        finally:
            await sandbox.close()

    bench.wait(join())


def test_an_image_that_is_replaced_serves_who_is_on_it_to_the_end_and_goes_then(store: Store, tmp_path: Path) -> None:
    def made(text: str) -> str:
        tree = tmp_path / text
        shutil.copytree(store.tree(store.get(IMAGE)), tree, symlinks=True)
        (tree / "usr/mark").chmod(0o644)
        (tree / "usr/mark").write_text(text)
        return import_directory(store, "marked", ("bash",), tree, Bounds(), tell_nobody).digest

    def on(image: str) -> Catalogue:
        return Catalogue.load().on_images({"bash": image})

    key, old = "command@marked", made("old")
    first = f"marked@{old}"
    with open_workbench(catalogue=on(first), images={first: store.lease("marked")}) as bench:

        async def outlive() -> None:
            sandbox, tape, running = await bench.begin("echo begun; read -r line; cat /usr/mark", key, keep_stdin=True)
            kept = await bench.fork(key)
            await kept.keep(Limits())
            second = f"marked@{made('new')}"
            bench.tier.adopt(on(second), {second: store.lease("marked")})
            assert store.collect().digests == (), "held by those on it"
            assert (await bench.exec("cat /usr/mark", key)).stdout == b"new"
            assert (kept.image, (await bench.fork(key)).image) == (first, second)
            await sandbox.feed(b"go on\n")
            await running
            assert bytes(tape.stdout) == b"begun\nold"
            await sandbox.close()
            joined, said = await (await bench.tier.template(key)).join(kept), Tape()
            await joined.exec(make_step("cat /usr/mark", key), Limits(), said)
            assert bytes(said.stdout) == b"old"
            assert store.collect().digests == (), "held by the kept one"
            await kept.close()
            assert store.collect().digests == (old,)
            for text in ("third", "fourth"):
                image = f"marked@{made(text)}"
                bench.tier.adopt(on(image), {image: store.lease("marked")})
                assert (await bench.exec("cat /usr/mark", key)).stdout == text.encode()

        bench.wait(outlive())


def test_an_image_that_is_not_there_or_no_root_fails_its_templates_only(store: Store) -> None:
    no_root = io.BytesIO(tar_of([member("etc", type=tarfile.DIRTYPE)]))
    import_stream(store, "empty", no_root, lambda: None, "", Bounds())
    catalogue = Catalogue.load().on_images({"bash": "empty", "c": "absent"})
    with open_workbench(catalogue=catalogue, images={"empty": store.lease("empty")}) as bench:
        for key, reason in (("command@empty", "cannot be used"), ("command@absent", "no image")):
            with pytest.raises(TemplateFailed, match=reason):
                bench.run("true", key)
        assert bench.run("echo well", "command").stdout == b"well\n"
