"""Calls that open the kernel to a program. argv[1]: JSON of call name to its number here (absent: not on this machine).

Each is made so that it changes nothing even where it is allowed: what the kernel checks first is the permission, so an
errno about the arguments says that the call got past it.
"""

NUMBERS = {
    "statmount": 457,
    "listmount": 458,
    **json.loads(sys.argv[1]),
}  # the same everywhere, and newer than libseccomp
CLONE_NEW = {
    "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000, "mnt": 0x00020000,
    "uts": 0x04000000, "ipc": 0x08000000, "cgroup": 0x02000000, "time": 0x00000080,
}  # fmt: skip
AT_FDCWD = -100
BUFFER = ctypes.create_string_buffer(4096)


def call(name, *args):
    if name not in NUMBERS:
        raise NotHere(name)
    return raw_call(NUMBERS[name], *args)


def clone_into(flags):
    """clone() with namespace flags, as fork() would make it."""
    pid = call("clone", flags | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def clone3_into(flags):
    """clone3() with namespace flags, which no filter can see."""
    words = (ctypes.c_uint64 * 11)(flags, 0, 0, 0, signal.SIGCHLD)
    pid = call("clone3", ctypes.byref(words), 88)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def nested_user_namespaces():
    for _ in range(3):
        ids = {"setgroups": "deny", "uid_map": f"0 {os.getuid()} 1", "gid_map": f"0 {os.getgid()} 1"}
        call("unshare", CLONE_NEW["user"])
        for name, text in ids.items():
            with open(f"/proc/self/{name}", "w") as own:
                own.write(text)


def own_child(then):
    """Do something to a child of ours, which even a plain program may trace or read."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    try:
        then(pid)
    finally:
        os.close(write_end)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def transfer(name, pid):
    """process_vm_readv or _writev of eight bytes of another process."""
    local = (ctypes.c_size_t * 2)(ctypes.addressof(BUFFER), 8)
    remote = (ctypes.c_size_t * 2)(ctypes.addressof(BUFFER), 8)
    call(name, pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)


def take_descriptor(pid):
    descriptor = call("pidfd_open", pid, 0)
    call("pidfd_getfd", descriptor, 0, 0)


def open_by_handle():
    """The shocker: a handle of the root directory is guessed or asked for, and opened."""
    handle = ctypes.create_string_buffer(b"\x80\0\0\0", 256)
    mount = ctypes.c_int()
    call("name_to_handle_at", AT_FDCWD, b"/", handle, ctypes.byref(mount), 0)
    call("open_by_handle_at", AT_FDCWD, handle, os.O_RDONLY)


def perf_event():
    attr = ctypes.create_string_buffer(128)
    attr[0:8] = (1).to_bytes(4, "little") + (128).to_bytes(4, "little")  # a software counter
    call("perf_event_open", attr, 0, -1, -1, 0)


def ambient_capability():
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)(1 << 21, 1 << 21, 1 << 21, 0, 0, 0)  # CAP_SYS_ADMIN, inheritable too
    call("capset", ctypes.byref(head), ctypes.byref(sets))
    checked(LIBC.prctl(47, 2, 21, 0, 0))  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE


def descend(path, then):
    os.makedirs(path, exist_ok=True)
    then(path)


ATTEMPTS = {
    "unshare_nested_user": nested_user_namespaces,
    "mount": lambda: descend("m", lambda at: call("mount", b"none", at.encode(), b"tmpfs", 0, 0)),
    "umount2": lambda: call("umount2", b".", 0),
    "move_mount": lambda: call("move_mount", AT_FDCWD, b".", AT_FDCWD, b".", 0),
    "fsopen": lambda: call("fsopen", b"tmpfs", 0),
    "fsconfig": lambda: call("fsconfig", -1, 0, 0, 0, 0),
    "fsmount": lambda: call("fsmount", -1, 0, 0),
    "fspick": lambda: call("fspick", AT_FDCWD, b"/", 0),
    "open_tree": lambda: call("open_tree", AT_FDCWD, b"/", 1),
    "mount_setattr": lambda: call("mount_setattr", AT_FDCWD, b"/", 0, ctypes.create_string_buffer(32), 32),
    "pivot_root": lambda: call("pivot_root", b".", b"."),
    "chroot": lambda: call("chroot", b"."),
    "ptrace_attach": lambda: own_child(lambda pid: call("ptrace", 16, pid, 0, 0)),
    "ptrace_seize_init": lambda: call("ptrace", 0x4206, 1, 0, 0),
    "ptrace_traceme": lambda: call("ptrace", 0, 0, 0, 0),
    "process_vm_readv": lambda: own_child(lambda pid: transfer("process_vm_readv", pid)),
    "process_vm_writev": lambda: own_child(lambda pid: transfer("process_vm_writev", pid)),
    "pidfd_getfd": lambda: take_descriptor(1),
    "io_uring_setup": lambda: call("io_uring_setup", 1, ctypes.create_string_buffer(120)),
    "io_uring_enter": lambda: call("io_uring_enter", -1, 0, 0, 0, 0, 0),
    "io_uring_register": lambda: call("io_uring_register", -1, 0, 0, 0),
    "bpf": lambda: call("bpf", 0, ctypes.create_string_buffer(b"\2\0\0\0\4\0\0\0\4\0\0\0\1\0\0\0", 72), 72),
    "userfaultfd": lambda: call("userfaultfd", 0),
    "perf_event_open": perf_event,
    "add_key": lambda: call("add_key", b"user", b"sandfork", b"x", 1, -2),
    "request_key": lambda: call("request_key", b"user", b"sandfork-none", 0, 0),
    "keyctl": lambda: call("keyctl", 1, 0, 0, 0, 0),
    "kexec_load": lambda: call("kexec_load", 0, 0, 0, 0x7FFF),
    "kexec_file_load": lambda: call("kexec_file_load", -1, -1, 0, 0, 0x7FFF),
    "init_module": lambda: call("init_module", 0, 0, b""),
    "finit_module": lambda: call("finit_module", -1, b"", 0),
    "delete_module": lambda: call("delete_module", 0, 0),
    "reboot": lambda: call("reboot", 0, 0, 0, 0),
    "swapon": lambda: call("swapon", 0, 0),
    "swapoff": lambda: call("swapoff", 0),
    "open_by_handle_at": open_by_handle,
    "personality_no_randomize": lambda: call("personality", 0x0040000),
    "personality_read_implies_exec": lambda: call("personality", 0x0400000),
    "ambient_capability": ambient_capability,
    "syslog_read_all": lambda: call("syslog", 3, BUFFER, 4096),
    "setns_user": lambda: call("setns", os.open("/proc/self/ns/user", os.O_RDONLY), CLONE_NEW["user"]),
    "setns_net": lambda: call("setns", os.open("/proc/self/ns/net", os.O_RDONLY), CLONE_NEW["net"]),
    "setns_init": lambda: call("setns", call("pidfd_open", 1, 0), CLONE_NEW["mnt"]),
    "process_madvise": lambda: call("process_madvise", -1, 0, 0, 0, 0),
    "kcmp": lambda: call("kcmp", os.getpid(), os.getpid(), 2, 0, 0),
    "move_pages": lambda: call("move_pages", 1, 0, 0, 0, 0, 0),
    "migrate_pages": lambda: call("migrate_pages", 1, 0, 0, 0),
    "quotactl": lambda: call("quotactl", 0x800001 << 8, 0, 0, 0),
    "fanotify_init": lambda: call("fanotify_init", 0, 0),
    "acct": lambda: call("acct", 1),
    "sethostname": lambda: call("sethostname", b"sandfork-probe", 14),
    "setdomainname": lambda: call("setdomainname", b"sandfork-probe", 14),
    "settimeofday": lambda: call("settimeofday", 0, 0),
    "clock_settime": lambda: call("clock_settime", 0, 0),
    "vhangup": lambda: call("vhangup"),
    "ioperm": lambda: call("ioperm", 0, 1, 1),
    "iopl": lambda: call("iopl", 3),
    "modify_ldt": lambda: call("modify_ldt", 0, BUFFER, 16),
    "sched_setscheduler_fifo": lambda: call("sched_setscheduler", 0, 1, ctypes.byref(ctypes.c_int(1))),
    "sched_setattr": lambda: call("sched_setattr", 0, ctypes.create_string_buffer(b"\x30", 48), 0),
    "ioprio_set": lambda: call("ioprio_set", 1, 0, 1 << 13),
    "tiocsti": lambda: call("ioctl", 0, 0x5412, b"x"),
    "tiocsti_high_bits": lambda: call("ioctl", 0, (1 << 32) | 0x5412, b"x"),
    "tioclinux": lambda: call("ioctl", 0, 0x541C, b"\x02"),
    "memfd_secret": lambda: call("memfd_secret", 0),
    "statmount": lambda: call("statmount", 0, 0, 0, 0),
    "listmount": lambda: call("listmount", 0, 0, 0, 0),
    "inotify_init1": lambda: call("inotify_init1", 0),
    "fcntl_notify": lambda: call("fcntl", os.open("/usr", os.O_RDONLY), 1026, 1),
    "fcntl_notify_high_bits": lambda: call("fcntl", os.open("/usr", os.O_RDONLY), (1 << 32) | 1026, 1),
    "mmap_hugetlb": lambda: call("mmap", 0, 1 << 21, 3, 0x40022, -1, 0),
    "memfd_hugetlb": lambda: call("memfd_create", b"huge", 4),
    "shmget_hugetlb": lambda: call("shmget", 0, 1 << 21, 0o4600 | 0o1000),
}
for space, flag in CLONE_NEW.items():
    ATTEMPTS[f"unshare_{space}"] = lambda flag=flag: call("unshare", flag)
    if space != "time":
        ATTEMPTS[f"clone_{space}"] = lambda flag=flag: clone_into(flag)
    ATTEMPTS[f"clone3_{space}"] = lambda flag=flag: clone3_into(flag)

for name, action in ATTEMPTS.items():
    attempt(name, action)
report()
