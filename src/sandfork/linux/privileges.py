"""Give up root for good: an unprivileged uid and gid, no groups, no capabilities, no way back.

Order: no groups -> gids -> uids (with them go the capabilities) -> no_new_privs, so that no set-uid program gives any
back -> not dumpable, so that others of the same uid can neither trace the process nor read its memory -> proof.

Kernel 3.5 (no_new_privs). The proof reads what the kernel says now and tries to become root again.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38


class PrivilegesKept(RuntimeError):
    """Root could not be given up entirely; the message says what is left."""


def drop_privileges(uid: int, gid: int) -> None:
    """Become `uid` and `gid` for good. *Raises* PrivilegesKept, OSError."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_DUMPABLE, 0)
    _prove_dropped(uid, gid)


def prctl(option: int, argument: int) -> None:
    """Set an attribute of this process, see prctl(2). *Raises* OSError."""
    # SAFETY: five integers of the width prctl takes; none is a pointer for the options used here.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(argument), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def _prove_dropped(uid: int, gid: int) -> None:
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid) or os.getgroups():
        raise PrivilegesKept(f"ids are {os.getresuid()} {os.getresgid()} {os.getgroups()}")
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        if int(status[name], 16):
            raise PrivilegesKept(f"{name} is {status[name]}")
    if status["NoNewPrivs"] != "1":
        raise PrivilegesKept("no_new_privs is not set")
    try:
        os.setresuid(0, 0, 0)
    except PermissionError:
        return
    raise PrivilegesKept("became root again")
