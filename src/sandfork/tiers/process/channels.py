"""The descriptors between the server and one process in a sandbox: a stream for ctl, and pipes or a terminal."""

from __future__ import annotations

import _socket
import os
import socket
from typing import cast

from sandfork.tiers.process.streams import Streams
from sandfork.tiers.process.terminal import TerminalStreams, open_terminal

Ends = tuple[int, int, int]
"""The process' own ends of stdin, stdout and stderr."""


def open_channels() -> tuple[socket.socket, socket.socket, socket.socket, socket.socket, Streams, Ends]:
    """Open ctl and agent, each with the child's end, and the pipes. *Raises* OSError."""
    sockets: list[socket.socket] = []
    try:
        for _ in range(2):
            sockets += open_stream()
        streams, ends = open_pipes()
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    ctl, ctl_child, agent, agent_child = sockets
    return ctl, ctl_child, agent, agent_child, streams, ends


def open_stream() -> tuple[socket.socket, socket.socket]:
    """Open a stream: our end, which does not block, and theirs. *Raises* OSError."""
    # The bare constructor: socket.socketpair wraps every end in enums and costs several times as much.
    ours, theirs = cast(tuple[socket.socket, socket.socket], _socket.socketpair())
    ours.setblocking(False)
    return ours, theirs


def open_pipes() -> tuple[Streams, Ends]:
    """Open stdin, stdout and stderr: our ends, and the process' ones. *Raises* OSError."""
    pipes: list[int] = []
    try:
        for _ in range(3):
            pipes += os.pipe2(os.O_CLOEXEC)
    except OSError:
        for fd in pipes:
            os.close(fd)
        raise
    for fd in (pipes[1], pipes[2], pipes[4]):
        os.set_blocking(fd, False)
        os.fchmod(fd, 0o666)  # a pipe is its maker's, and /dev/stdout opens it anew; only its own sandbox can see it
    return Streams(pipes[1], pipes[2], pipes[4]), (pipes[0], pipes[3], pipes[5])


def open_terminal_streams(cols: int, rows: int) -> tuple[TerminalStreams, Ends]:
    """Open a terminal: our end of it, and the one that is the process' stdin, stdout and stderr. *Raises* OSError."""
    master, slave = open_terminal(cols, rows)
    return TerminalStreams(master), (slave, slave, slave)
