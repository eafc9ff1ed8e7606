"""Turn the root policy (policy/root.toml) into a mount plan for the warden: pure but for looking what the host has."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files as resource_files
from pathlib import Path
from typing import Any

from sandfork.images.rooted import Rooted
from sandfork.tiers.process.messages import field as packed_field

_COPIED_MAX_BYTES = 512 << 10  # a larger file in /etc is no setting of a program
WARM_INSIDE = "/run/sandfork/warm"
"""Where sandboxes see the warm caches, each in a directory of its digest."""
_SCRATCH = "/sys"  # where native/root.h builds the tree; a source below it is inside the new root


@dataclass(frozen=True, slots=True)
class RootPolicy:
    """What a sandbox sees as `/`, and the environment every program starts with."""

    plan: bytes
    entries: tuple[str, ...]  # the path of each entry of the plan, for messages
    environment: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class _Plan:
    source: Rooted
    fields: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def add(self, tag: bytes, path: str, *texts: str | bytes) -> None:
        self.paths.append(path)
        raw = b"".join((t.encode() if isinstance(t, str) else t) + b"\0" for t in (path, *texts))
        self.fields.append(packed_field(tag, raw))


def python_of(source: Rooted) -> str:
    """Return what the distribution's interpreter is called, such as python3.11; "" where there is none."""
    return os.path.basename(source.real("/usr/bin/python3")) if source.exists("/usr/bin/python3") else ""


def plan_root(
    guest_packages: Path | None, extra: Mapping[str, bytes], source: Rooted | None = None, warm: Path | None = None
) -> RootPolicy:
    """Plan a root over the host's own files, or over those of an image.

    `guest_packages` is a directory of Python packages for the host's interpreter that appears where the distribution's
    interpreter looks for local packages, if that is of the same version; `extra` are further files, path to content;
    `warm` is the host's directory of warm caches.
    """
    source = source or Rooted()
    python_tag = python_of(source)
    if not python_tag or python_tag != python_of(Rooted()) or not source.isdir("/usr/local"):
        guest_packages = None
    policy = tomllib.loads(resource_files("sandfork.policy").joinpath("root.toml").read_text())
    plan = _Plan(source)
    for directory in policy["directories"]:
        plan.add(b"D", directory)
    if guest_packages is not None:
        plan.add(b"D", f"/run/local/lib/{python_tag}")
        plan.add(b"D", f"/run/local/lib/{python_tag}/dist-packages")
    for name in policy["follow"]:
        _follow(plan, name)
    for path, target in policy["links"].items():
        plan.add(b"L", path, target)
    for path, content in policy["files"].items():
        plan.add(b"F", path, content)
    for path, raw in extra.items():
        plan.add(b"F", path, raw)
    for path in policy["copy"]:
        _copy(plan, path)
    for pattern in policy["copy_trees"]:
        for path in source.matching(pattern):
            _copy_tree(plan, path)
    for bind in policy["bind"]:
        _bind(plan, bind)
    if guest_packages is not None:
        plan.add(b"B", f"/usr/local/lib/{python_tag}/dist-packages", str(guest_packages))
    if warm is not None:
        plan.add(b"B", WARM_INSIDE, str(warm))
    for device in policy["devices"]["names"]:
        plan.add(b"V", f"/dev/{device}", f"/dev/{device}")
    plan.add(b"P", "/proc")
    return RootPolicy(b"".join(plan.fields), tuple(plan.paths), tuple(policy["environment"].items()))


def shared_root(guest_packages: Path | None) -> RootPolicy:
    """Return what programs start with that see the container's own `/`: no plan, and packages by PYTHONPATH."""
    policy = tomllib.loads(resource_files("sandfork.policy").joinpath("root.toml").read_text())
    environment = dict(policy["environment"])
    if guest_packages is not None:
        environment["PYTHONPATH"] = str(guest_packages)
    return RootPolicy(b"", (), tuple(environment.items()))


def _follow(plan: _Plan, name: str) -> None:
    target = plan.source.link(name)
    if target is not None:
        plan.add(b"L", name, target)
    elif plan.source.isdir(name):
        plan.add(b"B", name, plan.source.real(name))


def _copy(plan: _Plan, path: str) -> None:
    """Copy a file, or the links of a directory."""
    source = plan.source
    if source.isdir(path):
        for name in source.names(path):
            target = source.link(f"{path}/{name}")
            if target is not None:
                plan.add(b"L", f"{path}/{name}", target)
    elif source.isfile(path):
        plan.add(b"F", path, source.read(path))


def _copy_tree(plan: _Plan, path: str) -> None:
    """Copy a file, a link, or a directory with all below it; what not everybody may read is left out."""
    source = plan.source
    status = source.status(path)
    if stat.S_ISLNK(status.st_mode):
        _make_parents(plan, path)
        plan.add(b"L", path, source.link(path) or "")
    elif stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH and status.st_size <= _COPIED_MAX_BYTES:
        _make_parents(plan, path)
        plan.add(b"F", path, source.read(path))
    elif stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_IXOTH and status.st_mode & stat.S_IROTH:
        for name in source.names(path):
            _copy_tree(plan, os.path.join(path, name))


def _make_parents(plan: _Plan, path: str) -> None:
    """Make the directories above a path that the plan does not have yet."""
    for parent in reversed(Path(path).parents):
        if str(parent) != "/" and str(parent) not in plan.paths:
            plan.add(b"D", str(parent))


def _bind(plan: _Plan, bind: Mapping[str, Any]) -> None:
    path: str = bind["path"]
    if bind.get("optional") and not plan.source.exists(path):
        return
    source = _SCRATCH + bind["inside"] if "inside" in bind else plan.source.real(path)
    plan.add(b"B", path, source)
