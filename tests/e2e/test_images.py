"""Images end to end: built from this machine's apt sources, by the service and by the command line, then run on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandfork.errors import BuildFailed
from sandfork.images.archive import Bounds
from sandfork.images.building import Wanted, install_beside
from sandfork.images.installed import npm_packages, pypi_packages
from sandfork.images.progress import tell_nobody
from tests.support.images import shell_tree
from tests.support.service import running_service, until_made

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


def until_work(directory: Path, alive: Callable[[], bool]) -> None:
    """Return when a build has begun to install packages."""
    while not list((directory / "store/work").glob("*/tree/var/lib/dpkg")):
        assert alive()


def what_is_left(directory: Path) -> list[Path]:
    parts = ("manifests", "blobs", "trees", "work")
    return [path for part in parts for path in (directory / "store" / part).glob("*")]


def until_nothing_is_left(directory: Path) -> None:
    """Return when a running service has had removed what it let go of."""
    while what_is_left(directory):
        pass


def test_a_running_service_takes_the_images_that_others_make_and_remove(directory: Path, tmp_path: Path) -> None:
    tree = shell_tree(directory / "shell")
    code = "test -e /usr/bin/env && echo host || echo image"

    with running_service(tmp_path, env=environment(directory)) as service, service.client as client:

        def until_on(place: str) -> None:
            while service.exec(code, "bash")["stdout"] != f"{place}\n":
                pass

        client.post("/v1/sessions", json={"id": "before", "language": "bash"})
        imported = sandfork(directory, "rootfs", "from-dir", str(tree), "--name", "bash")
        assert imported.returncode == 0, imported.stderr
        until_on("image")
        fresh = {"code": code, "language": "bash", "session": "before", "fresh": True}
        assert client.post("/v1/exec", json=fresh).json()["stdout"] == "host\n", "it goes on where it began"
        client.post("/v1/sessions", json={"id": "on it", "language": "bash"})
        assert sandfork(directory, "rootfs", "remove", "bash").returncode == 0
        until_on("host")
        assert client.post("/v1/exec", json={**fresh, "session": "on it"}).json()["stdout"] == "image\n"
        assert list((directory / "store/trees").iterdir()), "a session is on it"
        client.delete("/v1/sessions/on it")
        until_nothing_is_left(directory)


#: A language whose "compiler" notes in what it makes where it was run.
NOTED = """
name = "noted"
extension = ".noted"
file_name = "main.noted"
argv = ["{out}"]
[compile]
argv = [
  "/usr/bin/bash", "-c",
  '{ echo "#!/usr/bin/bash"; echo "echo compiled on $(%s)"; cat {name}; } >.build/main',
]
[checks]
hello = "1"
stdin = "2"
argv = "3"
error = "4"
compile_error = "5"
wall = "6"
memory = "7"
output = "8"
"""
WHERE = "test -e /usr/bin/env && echo host || echo image"


def test_forked_and_compiled_languages_run_on_an_image(directory: Path, tmp_path: Path) -> None:
    languages = directory / "languages"
    languages.mkdir()
    (languages / "noted.toml").write_text(NOTED % WHERE)
    tree = shell_tree(directory / "perl", ["perl"])
    config = f'[languages]\ndirectory = "{languages}"'
    perl = 'print -e "/usr/bin/env" ? "host" : "image";'
    with running_service(tmp_path, config=config, env=environment(directory)) as service, service.client as client:
        assert service.exec(perl, "perl")["stdout"] == "host"
        assert service.exec(WHERE, "noted")["stdout"] == "compiled on host\nhost\n"
        words = ("--name", "both", "--language", "perl", "--language", "noted")
        own = {**environment(directory), "SANDFORK_LANGUAGES_DIRECTORY": str(languages)}
        argv = command("rootfs", "from-dir", str(tree), *words)
        imported = subprocess.run(argv, env=own, capture_output=True, text=True, check=False)
        assert imported.returncode == 0, imported.stderr
        image = f"both@{imported.stdout.strip()}"
        while service.exec(perl, "perl")["image"] != image:
            pass
        for _ in range(2):  # what was compiled on the host is not run here, and what is compiled here is kept
            reply = service.exec(WHERE, "noted")
            assert (reply["stdout"], reply["image"]) == ("compiled on image\nimage\n", image)
            reply = service.exec(perl, "perl")
            assert (reply["stdout"], reply["image"]) == ("image", image)
        perl_state = client.get("/v1/health").json()["templates"]["perl"]
        assert (perl_state["ready"], perl_state["memory_mb"] > 0) == (True, True), "forked, not executed"
        assert client.delete("/api/v1/rootfs/both").status_code == 200
        assert service.exec(WHERE, "noted")["stdout"] == "compiled on host\nhost\n"
        until_nothing_is_left(directory)


def test_an_interrupted_build_leaves_nothing(directory: Path) -> None:
    argv, group = command("rootfs", "build", "python"), {"start_new_session": True}
    with subprocess.Popen(argv, env=environment(directory), stderr=subprocess.PIPE, **group) as build:
        until_work(directory, lambda: build.poll() is None)
        os.killpg(build.pid, signal.SIGINT)
        assert build.stderr is not None
        told = build.stderr.read()
    assert (build.returncode, b"Traceback" in told) == (130, False)
    assert what_is_left(directory) == []
    assert str(directory) not in Path("/proc/mounts").read_text()


def test_a_build_that_is_given_up_or_whose_service_stops_leaves_nothing(directory: Path, tmp_path: Path) -> None:
    with running_service(tmp_path, env=environment(directory)) as service, service.client as client:

        def building() -> bool:
            return bool(client.get("/api/v1/rootfs/lua").json()["status"] == "building")

        client.post("/api/v1/rootfs", json={"language": "lua", "size_mb": 1024})
        until_work(directory, building)
        second = sandfork(directory, "rootfs", "build", "lua")
        assert (second.returncode, "being made already" in second.stderr) == (1, True)
        assert client.delete("/api/v1/rootfs/lua").status_code == 200
        assert what_is_left(directory) == []
        client.post("/api/v1/rootfs", json={"language": "lua", "size_mb": 1024})
        until_work(directory, building)
        assert service.stop() == 0
    assert what_is_left(directory) == []


def test_a_language_runs_on_an_image_that_the_service_built_for_it(directory: Path, tmp_path: Path) -> None:
    with running_service(tmp_path, env=environment(directory)) as service, service.client as client:
        started = client.post("/api/v1/rootfs", json={"language": "python", "size_mb": 1024})
        assert (started.status_code, started.json()) == (
            202,
            {"message": "rootfs creation started", "language": "python"},
        )
        entry = until_made(client, "rootfs", "python")
        assert (entry["status"], entry["error"], entry["languages"]) == ("ready", None, ["python"])
        assert entry["size"] == Path(entry["path"]).stat().st_size
        check_manifest(directory, entry["digest"])
        reply = service.exec(HELLO)
        assert (reply["stdout"], reply["image"]) == ("False 3\n", f"python@{entry['digest']}"), "as soon as it is ready"
        language = client.get("/api/v1/languages/python").json()
        assert (language["image"], language["image_size"]) == (reply["image"], entry["size"])
        assert "python sha256:" in sandfork(directory, "lang", "list").stdout
        ran = sandfork(directory, "run", "-e", HELLO)
        assert (ran.stdout, ran.returncode) == ("False 3\n", 0), ran.stderr
        assert client.delete("/api/v1/rootfs/python").status_code == 200
        reply = service.exec(HELLO)
        assert (reply["stdout"], reply["image"]) == ("True 3\n", None), "as soon as it is gone"
        until_nothing_is_left(directory)
    assert sandfork(directory, "run", "-e", HELLO).stdout == "True 3\n", "the control: the host's own files"


def check_manifest(directory: Path, digest: str) -> None:
    """Look whether what the command line tells of the image is all of one piece."""
    manifest = json.loads(sandfork(directory, "rootfs", "show", "python").stdout)
    assert manifest["digest"] == digest
    bill = json.loads(sandfork(directory, "rootfs", "show", "python", "--sbom").stdout)
    names = {package["name"]: package.get("versionInfo") for package in bill["packages"]}
    assert {each["name"]: each["version"] for each in manifest["packages"]}.items() <= names.items()


def test_the_same_packages_installed_again_give_the_same_image(directory: Path) -> None:
    digests = []
    for name in ("one", "two"):
        languages = [word for each in ("hy", "pike") for word in ("--language", each)]
        built = sandfork(directory, "rootfs", "build", name, *languages)
        assert built.returncode == 0, built.stderr
        digests.append(built.stdout)
        proven = sandfork(directory, "lang", "test", "--image", "hy")
        assert proven.returncode == 0, proven.stdout
        assert list((directory / "store/trees").glob("*/usr/lib/sandfork/pypi/hy/hy/__pycache__/models.*.pyc"))
        assert sandfork(directory, "rootfs", "remove", name).returncode == 0
    assert digests[0] == digests[1] != ""


def test_a_build_that_gets_larger_than_allowed_ends_before_it_is_done(directory: Path) -> None:
    argv = command("rootfs", "build", "lua", "--size-mb", "16")
    with subprocess.Popen(argv, env=environment(directory), stderr=subprocess.PIPE, text=True) as build:
        told = build.stderr.read() if build.stderr else ""
    assert (build.returncode, "more than 16 MB" in told) == (1, True), told
    assert what_is_left(directory) == []


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_packages_of_npm_and_pypi_are_installed_for_the_image_and_told(directory: Path) -> None:
    tree, told = directory / "beside", list[str]()
    (tree / "usr/lib/python3.11").mkdir(parents=True)
    wanted = Wanted(
        npm=(("some", ("is-number@7.0.0",)),),
        pypi=(("other", ("six==1.16.0", "markupsafe==2.1.5")), ("hy", ("funcparserlib==1.0.1",))),
        pypi_files=(("hy", ("hy==1.3.1 sha256:cf7b85fc59079b5da794c7ecaafc6a6e9140f73305af03836c3d52cf978b6645",)),),
    )
    install_beside(wanted, tree, Bounds(), lambda percent, now: told.append(now))
    unbuilt = [("funcparserlib", "1.0.1", "pypi"), ("hy", "1.3.1", "pypi")]
    assert list(pypi_packages(tree / "usr/lib/sandfork/pypi/hy")) == unbuilt
    assert (tree / "usr/lib/sandfork/pypi/hy/hy/core/macros.hy").exists()
    assert list(npm_packages(tree / "usr/lib/sandfork/npm/some")) == [("is-number", "7.0.0", "npm")]
    found = list(pypi_packages(tree / "usr/lib/sandfork/pypi/other"))
    assert found == [("MarkupSafe", "2.1.5", "pypi"), ("six", "1.16.0", "pypi")]
    assert list(tree.glob("usr/lib/sandfork/pypi/other/markupsafe/_speedups.cpython-311-*.so")), "for its interpreter"
    assert {"npm install is-number@7.0.0", "pip install six==1.16.0 markupsafe==2.1.5"} <= set(told)
    (tree / "usr/lib/python3.11").rmdir()
    install_beside(Wanted(pypi=(("no-python", ("six==1.16.0",)),)), tree, Bounds(), tell_nobody)
    assert (tree / "usr/lib/sandfork/pypi/no-python/six.py").exists()
    with pytest.raises(BuildFailed, match="npm failed"):
        install_beside(Wanted(npm=(("x", ("file:///nowhere",)),)), tree, Bounds(), tell_nobody)


def test_an_image_that_is_larger_than_allowed_is_refused(directory: Path) -> None:
    tree = directory / "tree"
    (tree / "usr").mkdir(parents=True)
    (tree / "usr/large").write_bytes(bytes(2 << 20))
    refused = sandfork(directory, "rootfs", "from-dir", str(tree), "--name", "large", "--size-mb", "1")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "more than 1 MB" in refused.stderr
    assert what_is_left(directory) == []
