"""What every probe begins with. A probe makes attempts, each in a child of its own, and prints their results as JSON.

An attempt's result is "done", the name of the errno that refused it, the name of the signal that ended it, or what the
attempt itself returned. The same text runs in a sandbox and, as the control, on the host.
"""

import ctypes
import errno
import json
import os
import select
import signal
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
RESULTS = {}


class NotHere(Exception):
    """What an attempt needs is not on this machine."""


def checked(result):
    """Turn -1 of a libc call into OSError."""
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def raw_call(number, *args):
    """Make a system call by number; integers and pointers only. *Raises* OSError."""
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return checked(LIBC.syscall(ctypes.c_long(number), *words))


def outcome_of(action):
    """Run one attempt here and name what came of it."""
    try:
        told = action()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error)) if error.errno else str(error)
    except NotHere:
        return "absent"
    except MemoryError:
        return "ENOMEM"
    return told if isinstance(told, str) else "done"


def attempt(name, action, wait_s=10.0):
    """Run one attempt in a child and record what came of it."""
    sys.stdout.flush()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        try:
            told = outcome_of(action)
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(write_end, told.encode()[:4000])
        os._exit(0)
    os.close(write_end)
    ready, _, _ = select.select([read_end], [], [], wait_s)
    told = os.read(read_end, 4096).decode() if ready else "hung"
    os.close(read_end)
    if not ready:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and ready:
        told = signal.Signals(os.WTERMSIG(status)).name
    RESULTS[name] = told


def report():
    """Print what came of all attempts."""
    print(json.dumps(RESULTS))
