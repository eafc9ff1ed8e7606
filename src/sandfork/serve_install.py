"""Installing what languages need with the clients of three registries: apt-get, npm, pip.

Debian's packages go where they belong. Those of npm and PyPI go below /usr/lib/sandfork, a directory a language:
sandboxes see /usr, but nothing of the host's /usr/local. npm runs no script of a package, here or for an image.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO

from sandfork.images.progress import Tell
from sandfork.images.pypi import files
from sandfork.languages.catalogue import Language
from sandfork.serve_refusal import Refused

PREFIX = "/usr/lib/sandfork"
_APT = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300")
_LAST_WORDS = 600


@dataclass(frozen=True, slots=True)
class InstallCommand:
    """One command to run as root. `told` says that it tells how far it is on a descriptor, as apt-get can; `fed` is
    what it reads on stdin.
    """

    what: str
    argv: tuple[str, ...]
    told: bool = False
    fed: str = ""


def commands_for(languages: Sequence[Language]) -> list[InstallCommand]:
    """Return what installs the packages of these languages. *Raises* Refused when a client is not there."""
    commands: list[InstallCommand] = []
    debian = sorted({name for each in languages for name in each.packages.debian})
    if debian:
        commands.append(InstallCommand("apt-get update", (*_APT, "update")))
        install: tuple[str, ...] = (*_APT, "install", "-y", "--no-install-recommends", "--", *debian)
        commands.append(InstallCommand(f"apt-get install {' '.join(debian)}", install, told=True))
    for each in languages:
        if names := each.packages.npm:
            prefix = ("--prefix", f"{PREFIX}/npm/{each.name}")
            npm = ("npm", "install", *prefix, "--ignore-scripts", "--no-audit", "--no-fund", "--", *names)
            commands.append(InstallCommand(f"npm install {' '.join(names)}", npm))
        target = Path(PREFIX, "pypi", each.name)
        if names := each.packages.pypi:
            pip = (sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--upgrade", "--target")
            commands.append(InstallCommand(f"pip install {' '.join(names)}", (*pip, str(target), *names)))
        if names := each.packages.pypi_files:
            unpack = files(names, target)
            commands.append(InstallCommand(f"pip install {' '.join(names)}", unpack.argv, fed=unpack.fed))
    for client in ("apt-get", "npm"):
        if any(client in command.argv for command in commands) and shutil.which(client) is None:
            raise Refused(f"there is no {client} on this host, which is needed for {commands[-1].what}")
    return commands


def tell_services() -> None:
    """Have running services look at what languages there are: a list of packages tells them of Debian's alone."""
    if os.path.isdir(PREFIX):
        os.utime(PREFIX)


def run_command(command: InstallCommand, tell: Tell) -> None:
    """Run a command to its end. *Raises* Refused with its last words when it fails."""
    reading, writing = os.pipe()
    argv = command.argv
    if command.told:
        at = argv.index("install")
        argv = (*argv[:at], "-o", f"APT::Status-Fd={writing}", *argv[at:])
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        pass_fds=(writing,) if command.told else (), umask=0o022,
    ) as process:  # fmt: skip
        os.close(writing)
        assert process.stdin is not None
        process.stdin.write(command.fed)
        process.stdin.close()
        follower = Thread(target=_follow_status, args=(reading, tell))
        follower.start()
        assert process.stdout is not None
        said = _read_lines(process.stdout, None if command.told else tell)
        status = process.wait()
        follower.join()
    if status:
        raise Refused(f"{command.what} failed with status {status}:\n{said[-_LAST_WORDS:].strip()}")


def _read_lines(stream: IO[str], tell: Tell | None) -> str:
    said = ""
    for line in stream:
        said = (said + line)[-4 * _LAST_WORDS :]
        if tell is not None:
            tell(0.0, line.strip()[:60])
    return said


def _follow_status(descriptor: int, tell: Tell) -> None:
    """Pass on what apt-get tells: `dlstatus:1:20.5:Retrieving…` for the first half, `pmstatus:…` for the second."""
    with os.fdopen(descriptor, errors="replace") as lines:
        for line in lines:
            kind, _, rest = line.partition(":")
            parts = rest.strip().split(":", 2)
            if kind not in ("dlstatus", "pmstatus") or len(parts) != 3:
                continue
            try:
                percent = float(parts[1]) / 2
            except ValueError:
                continue
            tell(percent if kind == "dlstatus" else 50 + percent, parts[2][:60])
