"""What differs where the host forbids namespaces: which paths may be opened, and what cannot be enforced.

The native side of it is native/reduced.h (a program's confinement) and native/reduced_warden.h (its slot).
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from glob import glob
from importlib.resources import files as resource_files
from pathlib import Path

from sandfork.errors import TierUnavailable

_READ, _DEVICE = b"R", b"W"
_OWN = "/proc/self/"  # of the program that will run, not of this process
_PATHS_MAX = 4096  # PATHS_MAX of native/messages.h

BY_RLIMITS = (
    "memory limit: of each process only, its shared memory not counted",
    "cpu limit: of each process only",
)
"""What a service without cgroups cannot enforce for a program as a whole."""

WITHOUT_QUOTA = ("cpus limit: as processor time within the wall time, not as a rate",)
"""What is left of that limit where no cgroup takes a quota of processors."""

WITHOUT_NAMESPACES = (
    "pid namespace",
    "mount namespace",
    "network namespace",
    "ipc namespace",
    "uts namespace",
    "cgroup namespace",
    "user namespace",
    "disk limit: of each file only",
)
"""What a reduced service cannot enforce, besides."""


def readable_paths(extra: Iterable[Path]) -> bytes:
    """Pack the list of policy/reduced.toml, and `extra` to read, for a confinement profile; what is absent is left out.

    *Raises* TierUnavailable when it is too long.
    """
    policy = tomllib.loads(resource_files("sandfork.policy").joinpath("reduced.toml").read_text())
    reads = [path for path in policy["read"] if path.startswith(_OWN) or os.path.exists(path)]
    reads += [path for pattern in policy["read_matching"] for path in sorted(glob(pattern))]
    reads += [str(path) for path in extra]
    devices = [path for path in policy["devices"] if os.path.exists(path)]
    packed = b"".join(
        [*(_READ + os.fsencode(path) + b"\0" for path in reads), *(_DEVICE + os.fsencode(p) + b"\0" for p in devices)]
    )
    if len(packed) > _PATHS_MAX:
        raise TierUnavailable(f"the paths that programs may read take {len(packed)} bytes, more than {_PATHS_MAX}")
    return packed
