"""Reach for what is not the sandbox's: the host's files, other processes, the kernel's switches, devices, cgroups.

argv[1]: JSON with `canary` (a host file anybody may write), `settings` and `keys` (files of the service), `pid` (of the
service). Nothing is written that would change anything even where it may be.
"""

FACTS = json.loads(sys.argv[1])


def read(path):
    with open(path, "rb") as file:
        file.read(1)


def open_to_write(path):
    """Only open: whether it may be written shows, and nothing changes."""
    os.close(os.open(path, os.O_WRONLY))


def lower_oom_score():
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")


def make_device(kind, major, minor):
    os.mknod("device", kind | 0o600, os.makedev(major, minor))
    os.unlink("device")


def overwrite_canary(path):
    with open(path, "r+b") as file:
        file.write(b"the")  # what is there already


def escape_chroot():
    """chroot twice with a directory held open outside the second: the oldest way out."""
    os.makedirs("jail", exist_ok=True)
    if FACTS.get("jailed"):
        os.chroot("jail")
        os.chdir("/")
        os.makedirs("jail", exist_ok=True)
    held = os.open(".", os.O_RDONLY)
    os.chroot("jail")
    os.fchdir(held)
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    read(FACTS["canary"])


def leaked_descriptors():
    """Use every open descriptor as a way to the canary, as in CVE-2024-21626."""
    for name in os.listdir("/proc/self/fd"):
        try:
            base = os.open("../" * 64 + FACTS["canary"].lstrip("/"), os.O_RDONLY, dir_fd=int(name))
        except OSError:
            continue
        os.close(base)
        return f"reached through descriptor {name}"
    raise FileNotFoundError(errno.ENOENT, "no descriptor leads out")


def other_processes():
    """Whether anything but this process and its ancestors can be seen."""
    own = {os.getpid(), os.getppid()}
    seen = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in own]
    if not seen:
        raise FileNotFoundError(errno.ENOENT, "nobody else")
    return f"sees {len(seen)} others"


def raise_own_limit():
    for path in ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/cgroup.procs"):
        try:
            return open_to_write(path)
        except FileNotFoundError:
            continue
    raise FileNotFoundError(errno.ENOENT, "no cgroup file")


def mount_cgroup():
    os.makedirs("cg", exist_ok=True)
    kind = b"cgroup2" if FACTS.get("cgroup2") else b"cgroup"
    checked(LIBC.mount(b"none", b"cg", kind, 0, b"" if kind == b"cgroup2" else b"none,name=sandfork-probe"))


def open_device(name):
    os.close(os.open(f"/dev/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY))


def unnamed_file(directory):
    """Make a file that has no name and is gone when it is closed."""
    os.close(os.open(directory, os.O_TMPFILE | os.O_WRONLY, 0o600))


def service_memory(name):
    return lambda: read(f"/proc/{FACTS['pid']}/{name}")


S_IFBLK, S_IFCHR = 0o060000, 0o020000
ATTEMPTS = {
    "canary_read": lambda: read(FACTS["canary"]),
    "canary_write": lambda: overwrite_canary(FACTS["canary"]),
    "settings": lambda: read(FACTS["settings"]),
    "keys": lambda: read(FACTS["keys"]),
    "shadow": lambda: read("/etc/shadow"),
    "host_logs": lambda: os.listdir("/var/log") and None,
    "init_environ": lambda: read("/proc/1/environ"),
    "init_root": lambda: os.listdir("/proc/1/root") and None,
    "init_cwd": lambda: os.listdir("/proc/1/cwd") and None,
    "init_maps": lambda: read("/proc/1/maps"),
    "init_mem": lambda: open_to_write("/proc/1/mem"),
    "init_fd": lambda: os.listdir("/proc/1/fd") and None,
    "init_cgroup": lambda: read("/proc/1/cgroup"),
    "service_environ": service_memory("environ"),
    "service_mem": service_memory("mem"),
    "service_maps": service_memory("maps"),
    "core_pattern": lambda: open_to_write("/proc/sys/kernel/core_pattern"),
    "modprobe_path": lambda: open_to_write("/proc/sys/kernel/modprobe"),
    "sysrq_trigger": lambda: open_to_write("/proc/sysrq-trigger"),
    "drop_caches": lambda: open_to_write("/proc/sys/vm/drop_caches"),
    "ns_last_pid": lambda: open_to_write("/proc/sys/kernel/ns_last_pid"),
    "shmmax": lambda: open_to_write("/proc/sys/kernel/shmmax"),
    "max_user_namespaces": lambda: open_to_write("/proc/sys/user/max_user_namespaces"),
    "oom_score_adj": lower_oom_score,
    "uid_map": lambda: open_to_write("/proc/self/uid_map"),
    "own_comm": lambda: open_to_write("/proc/self/comm"),
    "own_memory_file": lambda: open_to_write("/proc/self/mem"),
    "chroot_twice": escape_chroot,
    "leaked_descriptors": leaked_descriptors,
    "other_processes": other_processes,
    "cgroup_files": raise_own_limit,
    "cgroup_mount": mount_cgroup,
    "block_device_node": lambda: make_device(S_IFBLK, 254, 0),
    "character_device_node": lambda: make_device(S_IFCHR, 1, 3),
    "kmsg": lambda: open_device("kmsg"),
    "mem_device": lambda: open_device("mem"),
    "kvm": lambda: open_device("kvm"),
    "fuse": lambda: open_device("fuse"),
    "terminal": lambda: open_device("tty"),
    "pseudo_terminals": lambda: open_device("ptmx"),
    "kernel_memory": lambda: os.close(os.open("/proc/kcore", os.O_RDONLY)),
    "kernel_pages": lambda: os.close(os.open("/proc/kpagecount", os.O_RDONLY)),
    "system_tree": lambda: os.listdir("/sys/kernel") and None,
    "lock_files": lambda: os.close(os.open("/run/sandfork/0.lock", os.O_RDONLY)),
    "write_usr": lambda: unnamed_file("/usr"),
    "write_etc": lambda: unnamed_file("/etc"),
    "write_root": lambda: unnamed_file("/"),
}
for name, action in ATTEMPTS.items():
    attempt(name, action)
report()
