"""The host's files, other processes, the kernel's switches and devices are out of reach; only plain files come out."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.security.attempts import CLOSED, Results, confined, judge, run_unconfined, source_of, unconfined
from tests.security.conftest import Canary
from tests.support.service import Service, running_service

NAMES = tuple(re.findall(r'^    "(\w+)": ', source_of("files"), re.MULTILINE))
#: The control of most attempts shares the processes of the host; of those on pid 1 it has its own, as a sandbox has.
SPACES = ("--mount", "--uts", "--ipc", "--net")
NOBODY = {"user": 65534, "group": 65534, "extra_groups": []}

SHOW_ID = r"""
#include <stdio.h>
#include <unistd.h>
int main(void) { printf("%d\n", geteuid()); return 0; }
"""

REWRITE = """
import mmap, os, sys
path = sys.argv[1]
def try_it(name, action):
    try:
        action()
        print(name, "done")
    except OSError as error:
        print(name, "refused")
def shared_mapping():
    descriptor = os.open(path, os.O_RDONLY)
    mmap.mmap(descriptor, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
def executable_then_writable():
    import ctypes
    descriptor = os.open(path, os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    at = libc.mmap(None, ctypes.c_size_t(4096), 1, 1, descriptor, ctypes.c_long(0))
    if libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(4096), 3):
        raise OSError(ctypes.get_errno(), "mprotect")
def reopen():
    descriptor = os.open(path, os.O_RDONLY)
    os.close(os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY))
try_it("open", lambda: os.close(os.open(path, os.O_WRONLY)))
try_it("reopen", reopen)
try_it("mode", lambda: os.chmod(path, 0o666))
try_it("rename", lambda: os.rename(path, path + ".moved") or os.rename(path + ".moved", path))
try_it("link", lambda: os.link(path, os.path.join(sys.argv[2], "linked")) or os.unlink(sys.argv[2] + "/linked"))
def dirty_pipe():
    # CVE-2022-0847: a pipe whose buffers were all marked as mergeable takes a page of the file, then more bytes.
    read_end, write_end = os.pipe()
    for _ in range(16):
        os.write(write_end, bytes(4096))
    for _ in range(16):
        os.read(read_end, 4096)
    descriptor = os.open(path, os.O_RDONLY)
    os.splice(descriptor, write_end, 1, 0)
    os.write(write_end, b"SPOILT")
try_it("shared_mapping", shared_mapping)
try_it("executable_then_writable", executable_then_writable)
dirty_pipe()
"""


@dataclass(frozen=True)
class Layer:
    """A service whose sandboxes share a read-only directory of the host: its Python packages."""

    service: Service
    host: Path
    inside: str

    def run(self, code: str, *args: str, **fields: Any) -> dict[str, Any]:
        return self.service.exec(code, args=list(args), **fields)


@pytest.fixture(scope="module")
def layer(as_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layer]:
    shared = Path(tempfile.mkdtemp(prefix="sandfork-layer-", dir="/var/tmp"))
    shared.chmod(0o777)
    (shared / "anyone.txt").write_bytes(b"shared by all\n" * 300)
    (shared / "anyone.txt").chmod(0o666)
    source = tmp_path_factory.mktemp("setuid") / "id.c"
    source.write_text(SHOW_ID)
    subprocess.run(["gcc", "-static", "-o", shared / "setuid", source], check=True)
    (shared / "setuid").chmod(0o4755)
    settings = f"""
        [languages]
        enable = ["python"]
        guest_packages = "{shared}"
        [pool]
        size = 2
        sizes = {{ "python-numpy" = 0 }}
    """
    version = os.path.basename(os.path.realpath("/usr/bin/python3"))
    try:
        with running_service(tmp_path_factory.mktemp("layer"), config=settings) as service:
            yield Layer(service, shared, f"/usr/local/lib/{version}/dist-packages")
    finally:
        shutil.rmtree(shared)


@pytest.fixture(scope="module")
def facts(service: Service, canary: Canary, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    keys = tmp_path_factory.mktemp("keys") / "api_keys.json"
    keys.write_text('["a-key"]')
    settings = service.log.parent / "settings.toml"
    return {"canary": str(canary.path), "settings": str(settings), "keys": str(keys), "pid": service.process.pid}


@pytest.fixture(scope="module")
def inside(service: Service, facts: dict[str, Any]) -> Results:
    return confined(service, "files", json.dumps(facts))


@pytest.fixture(scope="module")
def outside(facts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Results:
    leaked = os.open("/", os.O_RDONLY)
    try:
        told, scratch = json.dumps({**facts, "jailed": True}), tmp_path_factory.mktemp("files")
        apart = unconfined(scratch, "files", told)
        shared = unconfined(scratch, "files", told, spaces=SPACES, pass_fds=(leaked,))
        return {name: (apart if name.startswith("init_") else shared)[name] for name in shared}
    finally:
        os.close(leaked)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_the_sandboxs_is_out_of_reach(name: str, inside: Results, outside: Results) -> None:
    judge(name, inside[name], outside[name], CLOSED, frozenset({"ENOENT", "ENODEV"}))


def test_only_standard_streams_and_the_control_socket_are_open(service: Service, tmp_path: Path) -> None:
    code = "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd')))"
    with (tmp_path / "leaked").open("wb") as leaked:
        outside = run_unconfined(tmp_path, ["/usr/bin/python3", "-c", code], pass_fds=(leaked.fileno(),)).stdout
        assert str(leaked.fileno()) in outside.decode()
    # The listing itself is the one at 3.
    assert service.exec(code)["stdout"] == "[0, 1, 2, 3, 63]\n"
    assert service.exec("ls /proc/self/fd", "bash")["stdout"].split() == ["0", "1", "2", "3"]


def test_the_devices_are_the_harmless_five(service: Service, tmp_path: Path) -> None:
    code = "import os, stat; print(sorted(n for n in os.listdir('/dev') if not os.path.islink('/dev/' + n)))"
    assert service.exec(code)["stdout"] == "['full', 'null', 'random', 'urandom', 'zero']\n"
    assert len(run_unconfined(tmp_path, ["ls", "/dev"]).stdout.split()) > 9


def test_a_program_sees_no_process_of_another_sandbox(service: Service) -> None:
    """Seven sandboxes at a time, each listing whom it sees: itself."""
    code = "import os; print(sorted(n for n in os.listdir('/proc') if n.isdigit()) == [str(os.getpid())], os.getpid())"
    items = [{"code": code}] * 7
    with service.client as client:
        replies = client.post("/v1/exec/batch", json={"executions": items}).json()["results"]
    assert [reply["stdout"] for reply in replies] == ["True 2\n"] * 7


def test_no_process_list_but_the_own_lies_anywhere_in_the_tree_of_mounts(service: Service, tmp_path: Path) -> None:
    """A mount hidden below another is a way to what it shows, should ever a mount be removed."""
    code = "print([line.split()[4] for line in open('/proc/self/mountinfo') if ' - proc ' in line])"
    assert service.exec(code)["stdout"] == "['/proc']\n"
    control = run_unconfined(tmp_path, ["/usr/bin/python3", "-c", code]).stdout.decode()
    assert control.count("'/proc'") >= 2, "the control: unshare --mount-proc leaves the host's below"


def test_a_program_can_open_its_own_streams_anew(service: Service) -> None:
    code = "cat /dev/stdin; echo out >/dev/stdout; echo err >/dev/stderr"
    reply = service.exec(code, "bash", stdin="in\n")
    assert (reply["stdout"], reply["stderr"]) == ("in\nout\n", "err\n")


def test_no_two_sandboxes_share_a_host_uid_and_none_is_root(service: Service) -> None:
    """The uid a sandbox has on the host shows in the options of its own tmpfs."""
    code = (
        "print(next(line for line in open('/proc/self/mounts') if ' /sandbox ' in line).split('uid=')[1].split(',')[0])"
    )
    items = [{"code": f"{code}\nimport select; select.select([], [], [], 0.3)"}] * 6
    with service.client as client:
        replies = client.post("/v1/exec/batch", json={"executions": items}).json()["results"]
    uids = {int(reply["stdout"]) for reply in replies}
    assert len(uids) == 6
    assert all(uid > 1_000_000 for uid in uids)


def test_the_work_directory_is_where_a_program_starts_whatever_the_request_says(service: Service) -> None:
    reply = service.exec("import os; print(os.getcwd())", cwd="/proc/self/fd/3", workdir="/proc")
    assert reply["stdout"] == "/sandbox\n"


@pytest.mark.parametrize(
    "how", ["open", "reopen", "mode", "rename", "link", "shared_mapping", "executable_then_writable"]
)
def test_a_file_of_a_shared_layer_cannot_be_changed(how: str, layer: Layer, tmp_path: Path) -> None:
    content = (layer.host / "anyone.txt").read_bytes()
    reply = layer.run(REWRITE, f"{layer.inside}/anyone.txt", "/sandbox")
    results = dict(line.split() for line in reply["stdout"].splitlines())
    assert results[how] == "refused", reply
    assert (layer.host / "anyone.txt").read_bytes() == content
    own = tmp_path / "own.txt"
    shutil.copyfile(layer.host / "anyone.txt", own)
    done = run_unconfined(tmp_path, ["/usr/bin/python3", "-c", REWRITE.replace("dirty_pipe()\n", ""), own, tmp_path])
    controls = dict(line.split() for line in done.stdout.decode().splitlines())
    if how == "executable_then_writable":
        assert (
            controls["open"] == "done"
        )  # a read-only descriptor refuses it everywhere; that the file opens is the control
    elif how == "shared_mapping":
        assert os.access(own, os.W_OK)
    else:
        assert controls[how] == "done", controls


def test_a_spliced_page_of_a_shared_file_stays_as_it_was(layer: Layer) -> None:
    content = (layer.host / "anyone.txt").read_bytes()
    layer.run(REWRITE, f"{layer.inside}/anyone.txt", "/sandbox")
    assert layer.run("import sys; print(open(sys.argv[1]).read(), end='')", f"{layer.inside}/anyone.txt")["stdout"] == (
        content.decode()
    )
    assert (layer.host / "anyone.txt").read_bytes() == content


def test_a_setuid_program_gives_no_privilege(layer: Layer, tmp_path: Path) -> None:
    code = "import subprocess, sys; print(subprocess.run([sys.argv[1]], capture_output=True, text=True).stdout, end='')"
    assert layer.run(code, f"{layer.inside}/setuid")["stdout"] == "1000\n"
    control = subprocess.run([str(layer.host / "setuid")], capture_output=True, text=True, check=True, **NOBODY)
    assert control.stdout == "0\n"


def test_a_setuid_bit_of_its_own_gives_no_privilege(service: Service) -> None:
    code = "cp /usr/bin/id own; chmod 6755 own; ./own -u; stat -c %a own"
    assert service.exec(code, "bash")["stdout"].split() == ["1000", "6755"]


def test_a_lock_on_a_shared_file_shows_in_other_sandboxes(service: Service) -> None:
    """A known leak: flock on what all sandboxes read lets two that agree on it speak. SECURITY.md says so."""
    common = (
        "import fcntl, select\n"
        "mine, yours = (open(path) for path in PATHS)\n"
        "def is_locked(file):\n"
        "    try: fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB); fcntl.flock(file, fcntl.LOCK_UN)\n"
        "    except BlockingIOError: return True\n"
        "def wait_until(locked):\n"
        "    for _ in range(400):\n"
        "        if bool(is_locked(yours)) == locked: return True\n"
        "        select.select([], [], [], 0.05)\n"
    )
    # Each holds its own lock until it saw the other's, so that neither can come too late.
    speaker = "PATHS = '/usr/bin/env', '/usr/bin/id'\n" + common + "fcntl.flock(mine, fcntl.LOCK_EX)\nwait_until(True)"
    listener = (
        "PATHS = '/usr/bin/id', '/usr/bin/env'\n"
        + common
        + ("if wait_until(True): print('locked elsewhere')\nfcntl.flock(mine, fcntl.LOCK_EX)\nwait_until(False)")
    )
    with service.client as client:
        answer = client.post("/v1/exec/batch", json={"executions": [{"code": speaker}, {"code": listener}]})
    told = answer.json()["results"][1]["stdout"]
    assert told == "locked elsewhere\n", "the leak is gone: SECURITY.md must no longer name it"


# --- what comes out ---

ODD_FILES = r"""
import os, socket
os.mkfifo("fifo.out")
socket.socket(socket.AF_UNIX).bind("socket.out")
os.symlink("/etc/passwd", "absolute.out")
os.symlink("../../../../../../etc/passwd", "upwards.out")
os.symlink("loop.out", "loop.out")
os.symlink("/proc/self/environ", "proc.out")
os.symlink("/", "root")
os.mkdir("directory.out")
os.mkdir("closed"); open("closed/in.out", "w").write("in closed"); os.chmod("closed", 0)
open("unreadable.out", "w").write("mode 000"); os.chmod("unreadable.out", 0)
open("setuid.out", "w").write("mode 6755"); os.chmod("setuid.out", 0o6755)
open("line\nbreak.out", "w").write("newline")
open("header\r\nX-Injected: yes.out", "w").write("crlf")
open(b"not-utf8-\xff.out", "w").write("bytes")
open("-rf.out", "w").write("dash")
open("hard", "w").write("hard"); os.link("hard", "hard.out")
open("hole.out", "w").truncate(1 << 20)
"""


def content_of(reply: dict[str, Any], path: str) -> bytes:
    return base64.b64decode(reply["files"][path]["base64"])


def test_only_regular_files_come_out_and_the_rest_is_named(service: Service) -> None:
    collect = ["*.out", "closed/*", "root/etc/passwd", "proc.out", "absolute.out"]
    reply = service.exec(ODD_FILES, collect=collect)
    assert reply["exit_code"] == 0, reply["stderr"]
    assert {path: content_of(reply, path)[:9] for path in reply["files"]} == {
        "unreadable.out": b"mode 000",
        "setuid.out": b"mode 6755",
        "line\nbreak.out": b"newline",
        "header\r\nX-Injected: yes.out": b"crlf",
        "-rf.out": b"dash",
        "hard.out": b"hard",
        "hole.out": bytes(9),
        "closed/in.out": b"in closed",
    }
    specials = {"fifo.out", "socket.out", "absolute.out", "upwards.out", "loop.out", "proc.out", "root/etc/passwd"}
    assert specials < set(reply["files_skipped"])
    assert "not-utf8-\ufffd.out" in reply["files_skipped"]


def test_the_same_names_lead_out_for_whoever_follows_links(tmp_path: Path) -> None:
    """The control: what the collector must not do."""
    subprocess.run(["/usr/bin/python3", "-c", ODD_FILES], cwd=tmp_path, check=True)
    assert (tmp_path / "absolute.out").read_bytes() == Path("/etc/passwd").read_bytes()
    assert (tmp_path / "root/etc/passwd").read_bytes() == Path("/etc/passwd").read_bytes()
    (tmp_path / "closed").chmod(0o755)


@pytest.mark.parametrize(
    "path", ["..", "../x", "a/../../x", "/etc/passwd", "/proc/self/environ", "", "a\0b", "/", "x/"]
)
def test_a_path_that_leaves_the_sandbox_is_refused_before_anything_runs(path: str, service: Service) -> None:
    with service.client as client:
        for body in ({"collect": [path]}, {"files": {path: "x"}}):
            answer = client.post("/v1/exec", json={"code": "print(1)", **body})
            assert answer.status_code == 400, (path, body)
            assert answer.json()["code"] == "invalid_request"


RACE = """
import os, threading
open("real", "w").write("mine")
os.mkdir("there"); open("there/secret.txt", "w").write("mine")
os.symlink(os.path.dirname(CANARY), "out")
if os.fork() == 0:
    os.setsid()
    while True:
        try:
            os.rename("there", "aside"); os.rename("out", "there")
            os.rename("there", "out"); os.rename("aside", "there")
            os.unlink("real") if os.path.lexists("real") else None
            os.symlink(CANARY, "real"); os.unlink("real"); open("real", "w").write("mine")
        except OSError:
            pass
"""


def test_links_swapped_while_files_are_collected_never_lead_out(service: Service, canary: Canary) -> None:
    """A daemon swaps a directory for a link to the host while the files are read, again and again."""
    code = f"CANARY = {str(canary.path)!r}\n{RACE}"
    for _ in range(25):
        reply = service.exec(code, collect=["real", "there/*", "there/canary.txt", "**/*.txt", "real"] * 8)
        assert all(content_of(reply, path) in (b"mine", b"") for path in reply["files"]), reply["files"]


def test_a_huge_sparse_file_is_left_where_it_is(service: Service) -> None:
    code = "for i in range(200): open(f'{i}.bin', 'w').truncate(60 << 20)"
    reply = service.exec(code, collect=["*.bin"])
    assert reply["files"] == {}
    assert len(reply["files_skipped"]) == 200


def test_a_pattern_cannot_keep_the_server_looking(service: Service) -> None:
    deep = "import os\nfor _ in range(30): os.mkdir('d'); os.chdir('d')\nopen('x', 'w')"
    reply = service.exec(deep, collect=["**/" * 12 + "x"])
    assert list(reply["files"]) == ["d/" * 30 + "x"]
    wide = "import os\nfor i in range(12000): os.mkdir(f'd{i}')"
    assert service.exec(wide, collect=["**/**/x"])["files_skipped"] == ["**/**/x"]
