"""Files of a session over HTTP: no path, no link and no race leads out, nothing blocks, and nothing grows for ever."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from tests.security.conftest import Canary
from tests.security.test_files_and_proc import ODD_FILES
from tests.support.remains import opened_by
from tests.support.service import STUCK_S, Service
from tests.support.sessions import RemoteSession, session_of

MIB = 1 << 20


@pytest.fixture
def session(service: Service) -> Iterator[RemoteSession]:
    """A session whose files can be read and written afterwards, whatever was tried."""
    with session_of(service) as made:
        yield made
        assert made.ask("PUT", "/files/after.txt", content=b"after").status_code == 200
        assert made.ask("GET", "/files/after.txt").content == b"after"


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def files_held(service: Service) -> list[str]:
    """Return the files that a service has open, those without a name, too: what it keeps of an upload is one."""
    return sorted(path for path in opened_by(service.process.pid) if path.startswith("/"))


def raw(session: RemoteSession, method: str, target: str, content: bytes = b"") -> tuple[int, bytes]:
    """Send a target as it stands, which a client of ours would have tidied up."""
    host, port = session.service.url.removeprefix("http://").split(":")
    head = (
        f"{method} {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    received = b""
    with socket.create_connection((host, int(port)), timeout=STUCK_S) as sock:
        sock.sendall(head.encode() + content)
        while chunk := sock.recv(65536):
            received += chunk
    return int(received.split(b" ", 2)[1]), received.partition(b"\r\n\r\n")[2]


LEADING_OUT = [
    "../etc/passwd", "..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "%2e%2e%2f%2e%2e%2fetc/passwd",
    "a/../../etc/passwd", "/etc/passwd", "//etc/passwd", "%2fetc%2fpasswd", "/proc/self/environ", "%2fproc/1/environ",
    "/run/sandfork/x",
    "/tmp/../etc/passwd", "/sandbox/../etc/passwd", "/dev/shm/../../etc/passwd", "/dev/null", "a%00b", "%00", "..",
    "%2e%2e", ".", "./", "x" * 5000, "a/" * 2500 + "b", "%f0%9f%98%80" * 1500,
]  # fmt: skip


@pytest.mark.parametrize("path", LEADING_OUT, ids=lambda path: path[:24])
def test_a_path_that_leads_out_of_a_session_is_refused(path: str, session: RemoteSession) -> None:
    for method, content in (("GET", b""), ("PUT", b"x"), ("DELETE", b"")):
        status, told = raw(session, method, f"{session.path}/files/{path}", content)
        assert status in (400, 404, 405, 414), (method, status, told)
        assert b"root:" not in told
    status, told = raw(session, "GET", f"{session.path}/files?path={path}")
    # What names the work directory itself is listed; a path is not decoded twice.
    assert status in (400, 404, 414) or (status, told) == (200, told.replace(b"passwd", b"")), (status, told)


@pytest.mark.parametrize(
    "path",
    ["..\\..\\etc\\passwd", "%2e%2e%2fetc", "....//....//x", "\uff0e\uff0e/x", "a\r\nX-Injected: 1", "-rf", "~root/x"],
)
def test_a_path_that_only_looks_as_if_is_a_name_like_any(path: str, session: RemoteSession) -> None:
    where = f"{session.path}/files/{quote(path)}"
    assert raw(session, "PUT", where, b"mine") == (200, raw(session, "PUT", where, b"mine")[1])
    assert raw(session, "GET", where)[1] == b"mine"
    with session.service.client as client:
        assert "x-injected" not in client.get(where).headers
    assert session.said("import os, sys; print(os.path.isfile(sys.argv[1]))", args=[path.lstrip("/")]) == "True\n"
    assert raw(session, "DELETE", where)[0] == 200


def test_only_regular_files_are_read_and_nothing_blocks(session: RemoteSession) -> None:
    session.run(ODD_FILES)
    for name in ("fifo.out", "socket.out", "absolute.out", "upwards.out", "loop.out", "proc.out", "directory.out"):
        for answer in (
            session.ask("GET", f"/files/{name}"),
            session.ask("PUT", f"/files/{name}", content=b"x" * 70_000),
        ):
            assert answer.status_code == 404, (name, answer.text[:200])
    for path in ("root/etc/passwd", "root/tmp/x", "fifo.out/x"):
        assert session.ask("GET", f"/files/{path}").status_code == 404
        assert session.ask("PUT", f"/files/{path}", content=b"x").status_code == 404
    assert session.ask("GET", "/files?path=root").status_code == 404
    assert session.ask("GET", "/files/unreadable.out").content == b"mode 000"
    kinds = {entry["name"]: entry["kind"] for entry in session.ask("GET", "/files").json()["entries"]}
    assert (kinds["fifo.out"], kinds["absolute.out"], kinds["closed"]) == ("other", "link", "directory")
    # A link is removed, not what it leads to.
    for name in ("root", "absolute.out", "fifo.out", "loop.out"):
        assert session.ask("DELETE", f"/files/{name}").status_code == 200


LINKS = "import os\nos.symlink(OUT, 'out'); os.symlink(OUT + '/canary.txt', 'file'); os.symlink('/', 'root')"


def test_a_link_that_an_earlier_step_made_is_not_written_through(
    session: RemoteSession, canary: Canary, tmp_path: Path
) -> None:
    session.run(f"OUT = {str(canary.path.parent)!r}\n{LINKS}")
    for path in ("file", "out/canary.txt", "out/new", f"root{canary.path}"):
        assert session.ask("PUT", f"/files/{path}", content=b"overwritten").status_code == 404
        assert session.post("print('ran')", files={path: "overwritten"}).status_code == 404
    reply = session.run("print('ran')", collect=["file", "out/*", "out/canary.txt"])
    assert reply["files"] == {}
    # The control: whoever follows the links writes what they lead to.
    (tmp_path / "there").mkdir()
    there = (tmp_path / "there/canary.txt").absolute()
    there.write_text("theirs")
    subprocess.run(
        ["/usr/bin/python3", "-c", f"OUT = {str(there.parent)!r}\n{LINKS}\nopen('file', 'w').write('mine')"],
        cwd=tmp_path,
        check=True,
    )
    assert there.read_text() == "mine"


SWAPPING = """
import os
open("real", "w").write("mine"); os.mkdir("there"); open("there/canary.txt", "w").write("mine")
os.symlink(OUT, "out"); os.mkfifo("fifo"); os.mkdir("directory")
def swap(one, other):
    os.rename(one, "aside"); os.rename(other, one); os.rename("aside", other)
def swap_for_ever():
    os.setsid()
    while True:
        for one, other in (("there", "out"), ("real", "fifo"), ("real", "directory")):
            try:
                swap(one, other); swap(one, other)
            except OSError:
                pass
        try:
            os.symlink(OUT + "/canary.txt", "link"); os.rename("link", "real")
            open("new", "w").write("mine"); os.rename("new", "real")
            if not os.path.lexists("there"): os.mkdir("there")
        except OSError:
            pass
if os.fork() == 0:
    swap_for_ever()
"""


def test_links_fifos_and_directories_swapped_during_transfers_never_lead_out(
    session: RemoteSession, canary: Canary
) -> None:
    """The canary is anybody's to write and to remove: whatever got there would have changed it, which is looked at."""
    session.run(f"OUT = {str(canary.path.parent)!r}\n{SWAPPING}")
    ours = b"ours" * 20_000
    statuses = set()
    for _ in range(40):
        for path in ("real", "there/canary.txt"):
            written = session.ask("PUT", f"/files/{path}", content=ours)
            try:
                read = session.ask("GET", f"/files/{path}")
            except httpx.RemoteProtocolError:
                continue  # it changed while it was read, and so does not look whole
            assert read.status_code == 404 or canary.content[:32] not in read.content
            statuses |= {written.status_code, read.status_code}
        session.ask("GET", "/files?path=there")
        assert "canary" not in session.ask("GET", "/files?path=out").text or canary.path.exists()
        statuses.add(session.ask("DELETE", "/files/there/canary.txt").status_code)
    assert statuses == {200, 404}
    assert canary.path.read_bytes() == canary.content
    assert canary.path.parent.joinpath("canary.txt").exists()


def test_a_file_that_grows_shrinks_or_has_holes_is_read_as_it_was_announced(session: RemoteSession) -> None:
    session.run("open('hole', 'wb').truncate(60 << 20)")
    before = resident_bytes(session.service.process.pid)
    assert session.ask("GET", "/files/hole").content == bytes(60 << 20)
    assert resident_bytes(session.service.process.pid) - before < 32 * MIB
    growing = "import os\nf = open('growing', 'wb', 0)\nf.write(bytes(4 << 20))\nif os.fork() == 0:\n"
    session.run(f"{growing}    while os.fstat(f.fileno()).st_size < 40 << 20: f.write(bytes(4096))\n    os._exit(0)")
    for _ in range(5):
        answer = session.ask("GET", "/files/growing")
        assert len(answer.content) == int(answer.headers["content-length"]) >= 4 << 20
    shrinking = "import os\nf = open('shrinking', 'wb', 0)\nif os.fork() == 0:\n"
    session.run(f"{shrinking}    while True: f.truncate(8 << 20); f.truncate(0)")
    for _ in range(10):
        try:
            answer = session.ask("GET", "/files/shrinking")
        except httpx.RemoteProtocolError:
            continue
        assert answer.content == bytes(int(answer.headers["content-length"]))


def test_a_file_that_is_larger_than_the_disk_leaves_nothing(service: Service) -> None:
    with session_of(service, limits={"disk_bytes": 4 * MIB}) as session:
        held = files_held(service)
        for _ in range(3):
            answer = session.ask("PUT", "/files/big", content=bytes(20 * MIB))
            assert (answer.status_code, answer.json()["code"]) == (413, "disk_full"), answer.text
            assert session.ask("GET", "/files/big").status_code == 404
        assert session.ask("PUT", "/files/big", content=bytes(3 * MIB)).status_code == 200
        names = [session.ask("PUT", f"/files/d/{number}", content=b"").status_code for number in range(1100)]
        assert names[0] == 200
        assert names[-1] == 413, "names run out, too"
        assert session.ask("DELETE", "/files/d").status_code == 200
        assert session.said("print(1)") == "1\n"
        assert files_held(service) == held


@pytest.mark.parametrize("kind", ["fcntl.F_WRLCK", "fcntl.F_RDLCK"])
def test_a_lease_on_a_file_makes_nobody_wait(kind: str, session: RemoteSession) -> None:
    """The kernel would have whoever opens a leased file wait up to 45 seconds; the agent does not."""
    take = "import fcntl, signal\nsignal.signal(signal.SIGIO, signal.SIG_IGN)\nf = open('leased', 'w')\n"
    session.run(f"{take}f.write('x'); f.close()\nf = open('leased')\nfcntl.fcntl(f, fcntl.F_SETLEASE, {kind})")
    answers = [session.ask("PUT", "/files/leased", content=b"y"), session.ask("DELETE", "/files/leased")]
    assert [answer.status_code for answer in answers] in ([404, 200], [200, 200])


def test_a_tree_that_is_too_deep_or_too_wide_is_answered_and_bounded(session: RemoteSession) -> None:
    session.run("import os\nfor _ in range(900): os.mkdir('d' * 200); os.chdir('d' * 200)\nos.chdir('/sandbox')")
    answer = session.ask("DELETE", "/files/" + "d" * 200)
    assert answer.status_code == 404, answer.text
    session.run("import os\nos.mkdir('wide')\nfor n in range(12000): open(f'wide/{n}', 'w').close()")
    assert len(session.ask("GET", "/files?path=wide").json()["entries"]) == 10_000
    assert session.ask("DELETE", "/files/wide").status_code == 200
    assert session.ask("GET", "/files?path=wide").status_code == 404


def test_files_of_one_session_are_not_in_another(session: RemoteSession, service: Service) -> None:
    session.ask("PUT", "/files/own.txt", content=b"own")
    session.ask("PUT", "/files//tmp/own.txt", content=b"own")
    with session_of(service) as other:
        for path in ("own.txt", "/tmp/own.txt", f"../{session.name}/own.txt"):
            assert other.ask("GET", f"/files/{path}").status_code == 404
    assert session.ask("GET", "/files//tmp/own.txt").content == b"own"
