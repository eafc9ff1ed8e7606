"""Why sandboxes cannot be made on this host, told so that whoever runs it can change it.

The native side tries every call that a sandbox takes in children of its own (native/probe.h); what was refused is
named, with the options that give it to a container, or the setting of the host.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from sandfork.linux import ids

_ANSWER_S = 10.0
_CGROUPS = Path("/sys/fs/cgroup")
_APPARMOR = Path("/proc/self/attr/current")
_SETTINGS = Path("/proc/sys")
_CAP_SYS_ADMIN = 21

#: Settings of the host that keep user namespaces from who asks, the value that does so, and the one that helps. All but
#: the first hold only for who lacks CAP_SYS_ADMIN: plain users and root of a container. The last is in force on Ubuntu
#: from 24.04 on: a user namespace can be made then, but gives no power.
_USER_NAMESPACES = (
    ("user.max_user_namespaces", "0", "15000"),
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
)


def refused_calls(warden: Path) -> dict[str, int]:
    """Return what the host refuses, each with its errno; empty when it grants all that a sandbox takes."""
    done = subprocess.run([warden, "--probe"], stdin=subprocess.DEVNULL, capture_output=True, text=True, env={},
                          timeout=_ANSWER_S, check=False)  # fmt: skip
    refusals: dict[str, int] = {}
    for line in done.stdout.splitlines():
        number, _, what = line.partition(" ")
        refusals.setdefault(what, int(number))
    return refusals


def explain(refusals: dict[str, int], *, cgroups: str = "") -> str:
    """Return what is missing and what would give it. `cgroups` says what is wrong with them, "" when nothing is."""
    missing = [f"{what} ({os.strerror(number)})" for what, number in refusals.items()]
    if cgroups:
        missing.append(f"cgroups ({cgroups})")
    parts = ["sandboxes cannot be made here. Refused: " + ", ".join(missing) + "."]
    if settings := _host_settings():
        parts.append(f"As root of the host: {settings}.")
    options = " ".join(container_options(refusals, cgroups=bool(cgroups)))
    parts.append(f"In a container, start it with: {options}.")
    if os.geteuid() == 0:
        parts.append("Or serve with what is left, which is weaker: --reduced ([process] reduced = true).")
    return " ".join(parts)


def container_options(refusals: Iterable[str], *, cgroups: bool) -> list[str]:
    """Return the options of `docker run` and `podman run` that give what is refused.

    No capability is among them: whoever may make a user namespace has all of them inside it.
    """
    what = set(refusals)
    options: list[str] = []
    if what - {"mounting /proc"}:
        options.append("--security-opt seccomp=unconfined")
    if what and _is_confined_by_apparmor():
        options.append("--security-opt apparmor=unconfined")
    if "mounting /proc" in what or _proc_is_masked():
        options.append("--security-opt systempaths=unconfined")
    if cgroups or (os.geteuid() == 0 and not os.access(_CGROUPS, os.W_OK)):
        options.append("--cgroupns host -v /sys/fs/cgroup:/sys/fs/cgroup:rw")
    return options


def _is_confined_by_apparmor() -> bool:
    """Say so when a profile is on us; its refusals hide behind those of seccomp."""
    try:
        return _APPARMOR.read_text().strip() not in ("", "unconfined")
    except OSError:
        return False  # no AppArmor on this kernel


def _proc_is_masked() -> bool:
    """Say whether something is mounted below /proc: the kernel then refuses a fresh one, which would show it."""
    mounts = (line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return any(mount.startswith("/proc/") and mount != "/proc/sys/fs/binfmt_misc" for mount in mounts)


def _host_settings() -> str:
    """Return the settings of the host that forbid us user namespaces, as they should be."""
    held = ids.effective_capabilities() & 1 << _CAP_SYS_ADMIN
    wrong = []
    for name, bad, good in _USER_NAMESPACES[: 1 if held else None]:
        path = _SETTINGS / name.replace(".", "/")
        if path.exists() and path.read_text().strip() == bad:
            wrong.append(f"sysctl -w {name}={good}")
    return " and ".join(wrong)
