"""Where the service listens: the socket, opened before root is given up, and who may reach it without a key."""

from __future__ import annotations

import errno
import ipaddress
import socket

from sandfork.serve_refusal import Refused

BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket. *Raises* Refused with what to do about it."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise Refused(f"server.host: {host!r} is no address of this machine: {error.strerror}") from None
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise Refused(_explain(error, host, port)) from None
    sock.setblocking(False)
    return sock


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches `host`; a name counts by every address it stands for."""
    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except socket.gaierror:
        return False
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in addresses)


def _explain(error: OSError, host: str, port: int) -> str:
    where = f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use by another program: stop it, or choose another with --port"
    if error.errno == errno.EACCES:
        return f"{where} may only be used by root: choose a port above 1023 with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"server.host: {host!r} is no address of this machine"
    return f"cannot listen on {where}: {error.strerror}"
