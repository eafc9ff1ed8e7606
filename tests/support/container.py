"""Run a command as a plain container would have it: `python container.py COMMAND...`, as root.

Container engines give a container, unless told otherwise, fourteen capabilities, a seccomp policy that refuses every
way to a namespace, cgroups that cannot be written, and a /proc with parts of it covered. So does this; the command
takes this process' place, and nothing of it outlives that.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

import pyseccomp

#: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD,
#: AUDIT_WRITE, SETFCAP
CAPABILITIES = {0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31}
REFUSED = (
    "unshare", "setns", "mount", "umount2", "pivot_root", "mount_setattr", "move_mount", "open_tree", "fsopen",
    "fsmount", "sethostname", "setdomainname", "bpf", "keyctl", "add_key", "request_key", "swapon", "reboot",
)  # fmt: skip
NAMESPACES = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
COVERED = b"/proc/fs"

MOUNT_SETATTR = 442  # the same number on every architecture
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
CLONE_NEWNS, MS_REC, MS_PRIVATE, MS_RDONLY = 0x00020000, 0x4000, 1 << 18, 1
RDONLY = struct.pack("=4Q", 1, 0, 0, 0)  # struct mount_attr with MOUNT_ATTR_RDONLY set
PR_CAPBSET_DROP = 24

LIBC = ctypes.CDLL(None, use_errno=True)


def done(result: int, what: str) -> None:
    """*Raises* OSError when a call of libc failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def cover() -> None:
    """Have a mount namespace with cgroups that cannot be written and a covered part of /proc."""
    done(LIBC.unshare(CLONE_NEWNS), "unshare")
    done(LIBC.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "making mounts private")
    attributes = ctypes.create_string_buffer(RDONLY, len(RDONLY))
    done(
        LIBC.syscall(MOUNT_SETATTR, AT_FDCWD, b"/sys/fs/cgroup", AT_RECURSIVE, attributes, len(RDONLY)),
        "making cgroups read-only",
    )
    done(LIBC.mount(b"tmpfs", COVERED, b"tmpfs", MS_RDONLY, None), "covering a part of /proc")


def refuse() -> None:
    """Load the policy, while that takes no no_new_privs, which a container has not."""
    policy = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    policy.set_attr(pyseccomp.Attr.CTL_NNP, 0)
    policy.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    for call in REFUSED:
        policy.add_rule(pyseccomp.ERRNO(errno.EPERM), call)
    for flag in NAMESPACES:
        policy.add_rule(pyseccomp.ERRNO(errno.EPERM), "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, flag, flag))
    policy.load()


def drop() -> None:
    """Take every other capability from the bounding set: the command, root or not, starts with no more."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    for number in set(range(last + 1)) - CAPABILITIES:
        done(LIBC.prctl(PR_CAPBSET_DROP, number, 0, 0, 0), "prctl")


def main() -> None:
    """Confine this process and become the command."""
    cover()
    refuse()
    drop()
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
