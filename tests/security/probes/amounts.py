"""Take as much as there is of one thing, argv[1], up to a bound that a host easily gives; print how much that was.

A probe that is killed has taken too much: that, too, is an answer.
"""

import mmap
import socket
import struct
import tempfile
import threading

MIB = 1 << 20


def processes(bound):
    """Fork; the children wait for the end of a pipe."""
    read_end, write_end = os.pipe()
    for made in range(bound):
        try:
            pid = os.fork()
        except BlockingIOError:
            return made
        if pid == 0:
            os.close(write_end)
            os.read(read_end, 1)
            os._exit(0)
    return bound


def threads(bound):
    stop = threading.Event()
    for made in range(bound):
        try:
            threading.Thread(target=stop.wait, daemon=True).start()
        except RuntimeError:
            return made
    return bound


def zombies(bound):
    """Fork children that end at once, and never wait for them."""
    for made in range(bound):
        try:
            pid = os.fork()
        except BlockingIOError:
            return made
        if pid == 0:
            os._exit(0)
    return bound


def tree(bound):
    """The fork bomb: every process forks until none can. Counts the lines that all of them write."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    me = os.getpid()
    while True:
        try:
            if os.fork() == 0:
                os.write(write_end, b".")
            elif os.getpid() == me and len(os.read(read_end, 1 << 16) or b"") > bound:
                return bound
        except BlockingIOError:
            if os.getpid() != me:
                signal.pause()
            return 0


def descriptors(bound):
    for made in range(bound):
        try:
            os.dup(0)
        except OSError:
            return made
    return bound


def memory(bound):
    taken = []
    while len(taken) < bound:
        taken.append(bytearray(b"x") * MIB)
    return bound


def mapped(bound):
    """Anonymous shared memory."""
    area = mmap.mmap(-1, bound * MIB)
    for at in range(0, bound * MIB, 4096):
        area[at] = 1
    return bound


def memory_file(bound):
    """Files in memory that have no name; each is kept below the limit of one file's size."""
    for number in range(bound):
        if number % 8 == 0:
            descriptor = os.memfd_create("large")
        os.write(descriptor, bytes(MIB))
    return bound


def shared_memory(bound):
    """System V."""
    LIBC.shmat.restype = ctypes.c_void_p
    segment = checked(LIBC.shmget(0, ctypes.c_size_t(bound * MIB), 0o600))
    at = LIBC.shmat(segment, None, 0)
    checked(LIBC.shmctl(segment, 0, None))
    for offset in range(0, bound * MIB, 4096):
        ctypes.memset(at + offset, 1, 1)
    return bound


def pipes(bound):
    """Bytes that lie in pipes, in KiB."""
    taken = 0
    keep = []
    while taken < bound * 1024:
        read_end, write_end = os.pipe()
        keep.append(read_end)
        os.set_blocking(write_end, False)
        taken += os.write(write_end, bytes(1 << 16)) >> 10
    return taken >> 10


def unix_sockets(bound):
    taken = 0
    keep = []
    while taken < bound * MIB:
        pair = socket.socketpair()
        keep.append(pair)
        pair[0].setblocking(False)
        try:
            while True:
                taken += pair[0].send(bytes(1 << 16))
        except BlockingIOError:
            pass
    return taken // MIB


def raise_loopback():
    """The control's network namespace is new; a sandbox's loopback is up."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh22x", b"lo", 0x41))
        except OSError:
            pass


def tcp(bound):
    """Bytes that wait in the buffers of connections over the loopback."""
    raise_loopback()
    server = socket.create_server(("127.0.0.1", 0), backlog=200)
    taken = 0
    keep = []
    try:
        while taken < bound * MIB:
            client = socket.create_connection(server.getsockname())
            peer, _ = server.accept()
            keep += [client, peer]
            client.settimeout(0.05)
            try:
                while True:
                    taken += client.send(bytes(1 << 20))
            except (BlockingIOError, TimeoutError):
                pass
    except OSError:
        pass
    return taken // MIB


def message_queues(bound):
    """System V queues hold kernel memory."""
    text = ctypes.create_string_buffer(struct.pack("l", 1) + bytes(8192))
    taken = 0
    while taken < bound * MIB:
        queue = LIBC.msgget(0, 0o600)
        if queue < 0:
            break
        while LIBC.msgsnd(queue, text, ctypes.c_size_t(8192), 0o4000) == 0:
            taken += 8192
    return taken // MIB


def epoll_items(bound):
    """Kernel objects: a registration each of every descriptor with every epoll instance; `bound` thousands of them."""
    polls = [select.epoll() for _ in range(200)]
    ends = [end for _ in range(250) for end in os.pipe()]
    made = 0
    for poll in polls:
        for end in ends:
            poll.register(end)
            made += 1
            if made == bound * 1000:
                return bound
    return made // 1000


def disk(bound):
    with open("fill", "wb") as out:
        for _ in range(bound):
            out.write(bytes(MIB))
    return bound


def disk_in_many_files(bound):
    for number in range(bound):
        with open(f"fill{number}", "wb") as out:
            out.write(bytes(MIB))
    return bound


def disk_in_tmp(bound):
    """All writable places share one cap."""
    for number in range(bound):
        with tempfile.NamedTemporaryFile(delete=False, dir="/tmp" if number % 2 else "/dev/shm") as out:
            out.write(bytes(MIB))
    return bound


def names(bound):
    os.makedirs("many")
    for number in range(bound):
        os.close(os.open(f"many/{number:0200}", os.O_CREAT | os.O_WRONLY))
    return bound


def sparse(bound):
    """One file of a terabyte that holds nothing."""
    with open("sparse", "wb") as out:
        out.truncate(bound << 40)
    return bound


def allocated(bound):
    with open("allocated", "wb") as out:
        os.posix_fallocate(out.fileno(), 0, bound * MIB)
    return bound


def depth(bound):
    for _ in range(bound):
        os.mkdir("d")
        os.chdir("d")
    return bound


def message(what, bound):
    try:
        return f"took {globals()[what](bound)}"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    except MemoryError:
        return "ENOMEM"


print(message(sys.argv[1], int(sys.argv[2])), flush=True)
os._exit(0)
