"""Trees, archives and stores of images for tests."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

from sandfork.images.archive import Bounds
from sandfork.images.manifest import Manifest, Source
from sandfork.images.packing import pack
from sandfork.images.progress import tell_nobody
from sandfork.images.store import Store


def member(name: str, content: bytes = b"", **attributes: object) -> tuple[tarfile.TarInfo, bytes]:
    """Return a member of an archive; `attributes` are those of its header."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def tar_of(members: Iterable[tuple[tarfile.TarInfo, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002
    """Return an archive of members, whatever they say."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=format) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return raw.getvalue()


def adopt_tree(store: Store, tree: Path, name: str, languages: tuple[str, ...] = ()) -> Manifest:
    """Have a store adopt a directory as an image."""
    with store.work() as work:
        blob = work / "made"
        packed = pack(tree, blob, Bounds(), tell_nobody)
        manifest = Manifest(
            name, languages, packed.digest, packed.size, packed.tree_bytes, "2026-01-01T00:00:00Z", Source("directory")
        )
        return store.adopt(manifest, blob)


def small_tree(path: Path, text: str = "hello") -> Path:
    """Make a directory that has a file, a link, a hard link and a directory in it."""
    (path / "usr/bin").mkdir(parents=True)
    (path / "usr/bin/tool").write_text(text)
    (path / "usr/bin/tool").chmod(0o4775)
    (path / "bin").symlink_to("usr/bin")
    (path / "usr/bin/same").hardlink_to(path / "usr/bin/tool")
    (path / "dev").mkdir()
    (path / "dev/left-out").write_text("x")
    return path


def shell_tree(tree: Path, more: Iterable[str] = ()) -> Path:
    """Make a root file system of the host's own shell and a few programs, with all the libraries that these need.

    `more` are further programs.
    """
    for program in ("bash", "cat", "ls", "id", "touch", *more):
        _copy(Path("/usr/bin") / program, tree)
    for name in ("bin", "lib", "lib64"):
        (tree / "usr" / name).mkdir(parents=True, exist_ok=True)
        if not (tree / name).exists():
            (tree / name).symlink_to(f"usr/{name}")
    return tree


def _copy(program: Path, tree: Path) -> None:
    """Copy a program and its libraries to where a tree with merged /usr has them."""
    told = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    libraries = [word for word in told.split() if word.startswith("/")]
    for path in (str(program), *libraries):
        inside = path if path.startswith("/usr/") else f"/usr{path}"
        place = tree / inside.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
