"""Build an image with mmdebstrap from the machine's own apt sources: the essential packages and those asked for.

The archives are those of the machine's distribution that apt has lists of; keys and proxies are apt's own. The same
packages give the same bytes: what a build itself writes gets one time for all, caches, logs and the machine's id are
removed, nothing has random addresses or hashes while packages are installed, and `timeless` sees to the rest.

Everything the build starts lives in a pid namespace that dies with it, and everything it writes is in the store's work
directory: an interrupt, a kill or a full disk leaves nothing.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

from sandfork.errors import BuildFailed
from sandfork.images.archive import Bounds
from sandfork.images.growth import Growth, too_large
from sandfork.images.installed import npm_packages, pypi_packages
from sandfork.images.progress import Tell
from sandfork.images.pypi import files, wheels, without_the_builder
from sandfork.images.rooted import Rooted
from sandfork.images.timeless import without_times_and_chance

EPOCH = 946_684_800  # the first second of 2000: when everything happened that happened during a build
_LEFT_OUT = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/info/*")
_OF_THE_BUILD = (
    "etc/.pwd.lock", "etc/hostname", "etc/machine-id", "etc/resolv.conf", "etc/apt", "var/cache", "var/lib/apt",
    "var/log", "var/lib/systemd", "var/tmp", "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-",
)  # fmt: skip
#: What mmdebstrap says as it gets on, and how far a build usually is then, in percent.
_MILESTONES = (
    ("running apt-get update", 2.0), ("downloading packages", 10.0), ("extracting archives", 35.0),
    ("installing essential", 45.0), ("installing remaining", 60.0), ("cleaning package lists", 88.0),
    ("success in", 90.0),
)  # fmt: skip
_NPM = ("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund")
_PYPI = "usr/lib/sandfork/pypi"
#: By the image's own Python, for compiled modules are of a version. What is of no version of it stays as it is.
_COMPILE = "import compileall, sys; compileall.compile_dir(sys.argv[1], quiet=2)"
#: Addresses are the same each time, and with them the order of what compilers have in tables by address.
_CONFINED = (
    "setarch", "--addr-no-randomize", "setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork",
    "--kill-child=KILL", "--mount-proc",
)  # fmt: skip
#: Also for what packages run while they are installed. PyPy would size its nursery by the processor's cache, and what
#: it compiles tells which strings were collected.
_ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive",
    "SOURCE_DATE_EPOCH": str(EPOCH), "PYTHONHASHSEED": "0", "PYPY_GC_NURSERY": "4MB",
}  # fmt: skip
_BUILD_S = 3600.0
_LAST_WORDS = 1500
_NO_ROOM = os.strerror(errno.ENOSPC)
_COMPLAINTS = ("E: ", "npm error ", "npm ERR! ", "ERROR: ")
_OF_NO_MATTER = "Can not write log"  # apt says so wherever there is no /dev/pts


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a build installs: packages of Debian's kind, and by language those of npm and PyPI."""

    debian: tuple[str, ...] = ()
    npm: tuple[tuple[str, tuple[str, ...]], ...] = ()
    pypi: tuple[tuple[str, tuple[str, ...]], ...] = ()
    pypi_files: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class AptSources:
    """The machine's archives: its release's name, and a line of sources.list for each part."""

    suite: str
    lines: tuple[str, ...]


def what_a_build_lacks(*, root: bool) -> str:
    """Return what this machine lacks for a build by root, or by somebody else; "" when that is nothing."""
    if not root:
        return "building an image needs root; `sandfork rootfs from-oci` and `from-dir` do not"
    for program, package in (
        ("mmdebstrap", "mmdebstrap"),
        ("setarch", "util-linux"),
        ("setpriv", "util-linux"),
        ("unshare", "util-linux"),
    ):
        if shutil.which(program) is None:
            return f"there is no {program}, which builds images: apt-get install -y {package}"
    return ""


def apt_sources() -> AptSources:
    """Return the archives of the machine's own distribution that apt knows. *Raises* BuildFailed."""
    release = _release(Path("/"))
    distribution, suite = release.get("ID", ""), release.get("VERSION_CODENAME", "")
    asked = ("apt-get", "indextargets", "--format", "$(ORIGIN)|$(ARCHITECTURE)|$(REPO_URI)|$(CODENAME)|$(COMPONENT)")
    try:
        told = subprocess.run([*asked, "Identifier: Packages"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildFailed(f"apt does not tell its sources: {error}") from None
    keyrings = (f"/usr/share/keyrings/{distribution}-archive-keyring.{kind}" for kind in ("pgp", "gpg"))
    keyring = next((path for path in keyrings if os.path.exists(path)), "")
    lines = []
    for row in sorted(set(told.splitlines())):
        origin, architecture, uri, codename, component = row.split("|")
        if origin.lower() == distribution and (codename == suite or codename.startswith(f"{suite}-")):
            options = f"arch={architecture}" + (f" signed-by={keyring}" if keyring else "")
            lines.append(f"deb [{options}] {uri} {codename} {component}")
    if not lines:
        raise BuildFailed(f"apt has no lists of packages of {distribution} {suite}: run apt-get update first")
    return AptSources(suite, tuple(lines))


def distribution_of(tree: Path) -> str:
    """Return what a tree's os-release says it is, such as debian."""
    return _release(tree).get("ID", "linux")


def _release(tree: Path) -> dict[str, str]:
    lines = Rooted(str(tree)).read("/etc/os-release").decode(errors="replace").splitlines()
    return dict(line.replace('"', "").split("=", 1) for line in lines if "=" in line)


def build_tree(wanted: Wanted, sources: AptSources, tree: Path, since: float, bounds: Bounds, tell: Tell) -> None:
    """Make the root file system at `tree`, which must not be there; `since` is now, in seconds since 1970.

    *Raises* BuildFailed, ArchiveRefused as soon as its files hold more than allowed, OSError on a full disk, and what
    `tell` raises.
    """
    _bootstrap(wanted, sources, tree, _Runner(tree, bounds.max_bytes, tell))
    for name in _OF_THE_BUILD:
        _empty(tree / name)
    install_beside(wanted, tree, bounds, tell)
    without_times_and_chance(tree, EPOCH, since)


def install_beside(wanted: Wanted, tree: Path, bounds: Bounds, tell: Tell) -> None:
    """Install what is wanted of npm and PyPI below usr/lib/sandfork of a tree; nothing of it is run.

    What is of Python is compiled by the tree's own, if it has one.

    *Raises* BuildFailed, ArchiveRefused, what `tell` raises.
    """
    run = _Runner(tree, bounds.max_bytes, tell)
    for language, names in wanted.npm:
        where = tree / f"usr/lib/sandfork/npm/{language}"
        where.mkdir(parents=True)
        tell(91.0, f"npm install {' '.join(names)}")
        run((*_NPM, "--globalconfig", _npm_settings(), "--prefix", where, "--", *names), 91.0)
    for kind, command in ((wanted.pypi, wheels), (wanted.pypi_files, files)):
        for language, names in kind:
            tell(94.0, f"pip install {' '.join(names)}")
            pip = command(names, tree / _PYPI / language, "--no-compile", *_for_python_of(tree))
            run(pip.argv, 94.0, pip.fed)
    for target in sorted((tree / _PYPI).glob("*")):
        without_the_builder(target)
    if os.path.lexists(tree / "usr/bin/python3") and (tree / _PYPI).is_dir():
        tell(96.0, "compiling modules of Python")
        run(("chroot", tree, "/usr/bin/python3", "-c", _COMPILE, f"/{_PYPI}"), 96.0)


def installed_packages(tree: Path, wanted: Wanted) -> Sequence[tuple[str, str, str]]:
    """Return (name, version, architecture) of all that is installed; npm and PyPI stand for an architecture."""
    query = ("dpkg-query", f"--admindir={tree}/var/lib/dpkg", "-W", "-f", "${Package}|${Version}|${Architecture}\n")
    told = subprocess.run(query, capture_output=True, text=True, check=False)
    if told.returncode:
        raise BuildFailed(f"the image's list of packages cannot be read: {told.stderr.strip()}")
    debian = [tuple(line.split("|")) for line in sorted(told.stdout.splitlines())]
    npm = [found for language, _ in wanted.npm for found in npm_packages(tree / f"usr/lib/sandfork/npm/{language}")]
    beside = sorted({language for language, _ in (*wanted.pypi, *wanted.pypi_files)})
    pypi = [found for language in beside for found in pypi_packages(tree / _PYPI / language)]
    return [(name, version, arch) for name, version, arch in (*debian, *npm, *pypi)]


def _bootstrap(wanted: Wanted, sources: AptSources, tree: Path, run: _Runner) -> None:
    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
    # What Java's packages link to must be there, empty or not.
    options += ["--dpkgopt=path-include=/usr/share/man/man1", '--essential-hook=mkdir -p "$1/usr/share/man/man1"']
    if wanted.debian:
        options.append(f"--include={','.join(wanted.debian)}")
    mmdebstrap = (
        "mmdebstrap", "--mode=root", "--variant=essential", '--aptopt=Apt::Install-Recommends "false"', *options,
        "", str(tree), "-",
    )  # fmt: skip
    run(mmdebstrap, 0.0, "\n".join(sources.lines) + "\n")


class _Runner:
    """Runs commands that make a tree, each in a pid namespace of its own to its end, and tells how far they are."""

    def __init__(self, tree: Path, max_bytes: int, tell: Tell) -> None:
        self._tree, self._max_bytes, self._tell = tree, max_bytes, tell

    def __call__(self, argv: Sequence[str | Path], percent: float, fed: str = "") -> None:
        """Run one. *Raises* BuildFailed with its last words, ArchiveRefused when the tree is too large."""
        with subprocess.Popen(
            (*_CONFINED, *argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", env=_ENVIRONMENT, umask=0o022, start_new_session=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            too_long = Timer(_BUILD_S, process.send_signal, (signal.SIGKILL,))
            too_long.start()
            try:
                with Growth(self._tree, self._max_bytes, _OF_THE_BUILD, process.kill) as growth:
                    said, complaint = self._follow(process, percent, fed)
                    status = process.wait()
            finally:
                too_long.cancel()
                process.kill()
                process.stdout.read()  # it ends when all that was started is gone
        if growth.exceeded:
            raise too_large(self._max_bytes)
        if status and _NO_ROOM in said:
            raise OSError(errno.ENOSPC, _NO_ROOM)
        if status:
            raise BuildFailed(f"{argv[0]} failed with status {status}: {complaint}\n{said.strip()}")

    def _follow(self, process: subprocess.Popen[str], percent: float, fed: str) -> tuple[str, str]:
        """Tell what a command says until it has said all; return its last words, and its first complaint."""
        assert process.stdin is not None
        assert process.stdout is not None
        said = complaint = ""
        process.stdin.write(fed)
        process.stdin.close()
        for line in process.stdout:
            said = (said + line)[-_LAST_WORDS:]
            complaint = complaint or _complaint(line)
            percent = max([percent, *(at for words, at in _MILESTONES if words in line)])
            self._tell(percent, line.strip().removeprefix("I: ")[:60])
        return said, complaint


def _complaint(line: str) -> str:
    """Return what a line says that begins as apt's, npm's and pip's errors do, "" for others."""
    found = next((line.removeprefix(begin) for begin in _COMPLAINTS if line.startswith(begin)), "")
    return "" if _OF_NO_MATTER in found else " ".join(found.split())


def _npm_settings() -> str:
    """Return where this machine has npm's settings, such as a registry and certificates of its own.

    With a prefix npm would look for them there. *Raises* BuildFailed.
    """
    asked = ("npm", "config", "get", "globalconfig")
    try:
        return subprocess.run(asked, env=_ENVIRONMENT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildFailed(f"packages of npm are asked for, and npm cannot be run: {error}") from None


def _for_python_of(tree: Path) -> tuple[str, ...]:
    """Return what has pip choose packages for the tree's interpreter; where there is none they are only programs."""
    names = sorted((path.name.removeprefix("python") for path in (tree / "usr/lib").glob("python3.*")), key=_minor)
    return ("--python-version", names[-1]) if names else ()


def _minor(version: str) -> int:
    return int(version.partition(".")[2])


def _empty(path: Path) -> None:
    """Remove a file, or what is in a directory."""
    if path.is_dir() and not path.is_symlink():
        for each in path.iterdir():
            shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
    else:
        path.unlink(missing_ok=True)
