"""pid 1 of the guest: mount what a machine has, run the tests in a child, power off.

The kernel starts it as `python3 -I -S /app/tests/vm/inside/init.py`. What it prints goes to the first serial line; the
verdicts of the tests go to the second.
"""

import ctypes
import fcntl
import os
import socket
import struct
import traceback

MOUNTS = (
    ("devtmpfs", "/dev"),
    ("devpts", "/dev/pts"),
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("tracefs", "/sys/kernel/tracing"),
    ("cgroup2", "/sys/fs/cgroup"),
)
HERE = "/app/tests/vm/inside"
TESTS = (
    f"{HERE}/process_tier.py",
    *(f"/app/tests/kernel/{name}.py" for name in ("test_limits", "test_cpus", "test_joining")),
)
ARGV = ["/usr/bin/python3", "-P", "-m", "pytest", "-c", f"{HERE}/pytest.ini", "--rootdir=/", *TESTS]
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PYTHONPATH": "/app:/site",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
}
LIBC = ctypes.CDLL(None, use_errno=True)
POWER_OFF = 0x4321FEDC
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def mount(kind: str, target: str) -> None:
    """Mount a file system that has no device."""
    os.makedirs(target, exist_ok=True)
    if LIBC.mount(kind.encode(), target.encode(), kind.encode(), 0, None) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)


def raise_loopback() -> None:
    """Give the guest 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))


def run_tests() -> None:
    """Run pytest outside the root cgroup, as a service would be; reap whatever is orphaned meanwhile."""
    os.mkdir("/sys/fs/cgroup/tests.service")
    child = os.fork()
    if child == 0:
        os.setsid()
        with open("/sys/fs/cgroup/tests.service/cgroup.procs", "w") as procs:
            procs.write("0")
        os.execve(ARGV[0], ARGV, ENVIRONMENT)
    while os.wait()[0] != child:
        pass


def main() -> None:
    """Whatever happens, power off: a guest that stays on would only be found at its deadline."""
    try:
        for kind, target in MOUNTS:
            mount(kind, target)
        raise_loopback()
        run_tests()
    except BaseException:
        traceback.print_exc()
    finally:
        LIBC.sync()
        LIBC.reboot(POWER_OFF)


main()
