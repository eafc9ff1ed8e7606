"""What Landlock can do on this kernel. Kernel 5.13 for file rules, 6.7 for TCP, 6.12 for `scoped`.

The rules themselves are made by the native core in every child, after its mounts.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_SYS_LANDLOCK_CREATE_RULESET = 444  # the same number on every architecture
_CREATE_RULESET_VERSION = 1

# Bits of LANDLOCK_ACCESS_FS_* per ABI: 13 rights at first, then REFER, TRUNCATE and IOCTL_DEV.
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_SCOPED_ABSTRACT_UNIX_AND_SIGNAL = 0b11


@dataclass(frozen=True, slots=True)
class LandlockAbi:
    """The version the kernel speaks (0: none) and the rights a ruleset can handle under it."""

    version: int
    fs_rights: int
    net_rights: int
    scoped: int


def landlock_abi() -> LandlockAbi:
    """Ask the kernel.

    SAFETY: landlock_create_ruleset(NULL, 0, VERSION) reads no memory of ours and changes nothing.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(
        _SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_CREATE_RULESET_VERSION)
    )
    if version < 1:
        return LandlockAbi(0, 0, 0, 0)
    bits = _FS_RIGHTS[min(version, 5)]
    return LandlockAbi(
        version=version,
        fs_rights=(1 << bits) - 1,
        net_rights=0b11 if version >= 4 else 0,
        scoped=_SCOPED_ABSTRACT_UNIX_AND_SIGNAL if version >= 6 else 0,
    )
