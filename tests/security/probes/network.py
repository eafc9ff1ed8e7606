"""Reach for anything beyond the sandbox's own loopback.

argv[1]: JSON with `port` (a listener on the host's loopback), `api` (the service's own port), `lan` (an address of the
host), `abstract` and `path` (Unix sockets on the host), and for the control `prepare`: then all of these are first made
here, in a network namespace of its own, and are reached.
"""

import socket
import struct

FACTS = json.loads(sys.argv[1])
METADATA, METADATA6, WORLD, RESOLVER = "169.254.169.254", "fd00:ec2::254", "192.0.2.1", "192.0.2.53"


def add_address(address):
    """RTM_NEWADDR on the loopback (rtnetlink(7))."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    raw = socket.inet_pton(family, address)
    attributes = b"".join(struct.pack("=HH", 4 + len(raw), kind) + raw for kind in (1, 2))
    # For IPv6 without duplicate address detection (IFA_F_NODAD), which would take a second.
    body = struct.pack("=BBBBI", family, len(raw) * 8, 2 if ":" in address else 0, 0, 1) + attributes
    message = struct.pack("=IHHII", 16 + len(body), 20, 0x605, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as link:
        link.bind((0, 0))
        link.send(message)
        answer = link.recv(4096)
        error = struct.unpack_from("=i", answer, 16)[0]
        if error not in (0, -errno.EEXIST):
            raise OSError(-error, address)


def raise_loopback():
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh22x", b"lo", 0x41))


def prepare():
    """Make what the attempts look for; the listeners only ever queue connections."""
    raise_loopback()
    for address in (METADATA, METADATA6, WORLD, RESOLVER, FACTS["lan"]):
        add_address(address)
    made = [socket.create_server((FACTS["lan"], 80))]
    for port in (FACTS["port"], FACTS["api"]):
        made.append(socket.create_server(("127.0.0.1", port)))
        made.append(socket.create_server(("::1", port), family=socket.AF_INET6))
    made += [socket.create_server((address, 80)) for address in (METADATA, WORLD)]
    made.append(socket.create_server((METADATA6, 80), family=socket.AF_INET6))
    made.append(socket.create_server((RESOLVER, 53)))
    for name in ("\0" + FACTS["abstract"], FACTS["path"]):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(name)
        listener.listen()
        made.append(listener)
    return made


def connect(address, port, family=socket.AF_INET):
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(3)
        sock.connect((address, port))


def connect_unix(name):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(name)


def send_datagram(address, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"\0" * 16, (address, port))


def ping():
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.sendto(b"\x08\0\xf7\xff\0\0\0\0", (WORLD, 0))


def bind_everywhere():
    """An address of the host's, which only its network has."""
    with socket.socket() as sock:
        sock.bind((FACTS["lan"], 0))


LISTENERS = prepare() if FACTS.get("prepare") else []
ATTEMPTS = {
    "host_loopback": lambda: connect("127.0.0.1", FACTS["port"]),
    "host_loopback_ipv6": lambda: connect("::1", FACTS["port"], socket.AF_INET6),
    "host_loopback_mapped": lambda: connect("::ffff:127.0.0.1", FACTS["port"], socket.AF_INET6),
    "host_loopback_zero": lambda: connect("0.0.0.0", FACTS["port"]),
    "own_api": lambda: connect("127.0.0.1", FACTS["api"]),
    "host_address": lambda: connect(FACTS["lan"], 80),
    "host_address_bind": bind_everywhere,
    "metadata": lambda: connect(METADATA, 80),
    "metadata_ipv6": lambda: connect(METADATA6, 80, socket.AF_INET6),
    "metadata_decimal": lambda: connect("2852039166", 80),
    "metadata_octal": lambda: connect("0251.0376.0251.0376", 80),
    "metadata_mapped": lambda: connect("::ffff:169.254.169.254", 80, socket.AF_INET6),
    "world_tcp": lambda: connect(WORLD, 80),
    "world_udp": lambda: send_datagram(WORLD, 9),
    "world_icmp": ping,
    "resolver_udp": lambda: send_datagram(RESOLVER, 53),
    "resolver_tcp": lambda: connect(RESOLVER, 53),
    "abstract_unix_socket": lambda: connect_unix("\0" + FACTS["abstract"]),
    "path_unix_socket": lambda: connect_unix(FACTS["path"]),
}
for name, action in ATTEMPTS.items():
    attempt(name, action)
report()
