"""Families, types and protocols of sockets beyond TCP, UDP and Unix, and options that reach beyond the program."""

STREAM, DGRAM, RAW = 1, 2, 3
SOCKETS = {
    "alg": (38, 5, 0),
    "vsock": (40, STREAM, 0),
    "netlink_route": (16, RAW, 0),
    "netlink_audit": (16, RAW, 9),
    "netlink_netfilter": (16, RAW, 12),
    "packet": (17, RAW, 0x0300),
    "raw_ipv4": (2, RAW, 255),
    "raw_ipv6": (10, RAW, 255),
    "icmp": (2, RAW, 1),
    "bluetooth": (31, RAW, 1),
    "key": (15, RAW, 2),
    "xdp": (44, RAW, 0),
    "tipc": (30, STREAM, 0),
    "rds": (21, 5, 0),
    "can": (29, RAW, 1),
    "qipcrtr": (42, DGRAM, 0),
    "smc": (43, STREAM, 0),
    "mptcp": (2, STREAM, 262),
    "sctp": (2, STREAM, 132),
    "dccp": (2, 6, 33),
    "udplite": (2, DGRAM, 136),
    "l2tp": (2, DGRAM, 115),
}


def open_socket(family, kind, protocol):
    os.close(checked(LIBC.socket(family, kind, protocol)))


def flow_label():
    """A label of IPv6 that stays in the network namespace after the program."""
    descriptor = checked(LIBC.socket(10, DGRAM, 0))
    request = bytes(15) + b"\1" + b"\0\x0a\xbc\xde" + b"\0\xff\1\0\x3c\0\x3c\0" + bytes(4)
    checked(LIBC.setsockopt(descriptor, 41, 32, request, len(request)))


def urgent_byte():
    """MSG_OOB on a Unix socket: rarely used code, wrong more than once."""
    pair = (ctypes.c_int * 2)()
    checked(LIBC.socketpair(1, STREAM, 0, pair))
    checked(LIBC.send(pair[0], b"x", 1, 1))


for name, words in SOCKETS.items():
    attempt(name, lambda words=words: open_socket(*words))
attempt("flow_label", flow_label)
attempt("urgent_byte", urgent_byte)
report()
