"""Files go in and come out by the kernel's word: whatever a program leaves behind, nothing outside it is touched."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from sandfork.errors import FileNotInSandbox, GuestLost
from sandfork.model import InputFile, Limits
from sandfork.tiers.base import Collected
from tests.support.process import Tape, Workbench, make_step


def collect(workbench: Workbench, code: str, *patterns: str, max_bytes: int = 1 << 20) -> Collected:
    """Run a program and collect what it left."""

    async def run() -> Collected:
        sandbox = await workbench.fork()
        try:
            end = await sandbox.exec(make_step(code), Limits(), Tape())
            assert end.exit_code == 0
            return await sandbox.collect(patterns, max_bytes)
        finally:
            await sandbox.close()

    return workbench.wait(run())


def names(collected: Collected) -> list[str]:
    return [file.path for file in collected.files]


TREE = """
import os
os.makedirs('a/b/c')
for path in ('top.txt', 'top.log', 'a/one.txt', 'a/b/two.txt', 'a/b/c/three.txt', '.hidden', 'a/.hidden.txt'):
    open(path, 'w').write(path)
open('/tmp/t.txt', 'w').write('tmp')
open('/dev/shm/s.txt', 'w').write('shm')
"""


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.txt", ["top.txt"]),
        ("top.*", ["top.log", "top.txt"]),
        ("a/*.txt", ["a/one.txt"]),
        ("*/*/two.txt", ["a/b/two.txt"]),
        ("**/*.txt", ["a/b/c/three.txt", "a/b/two.txt", "a/one.txt", "top.txt"]),
        ("a/**/three.txt", ["a/b/c/three.txt"]),
        ("t?p.[a-l]*", ["top.log"]),
        (".h*", [".hidden"]),
        ("a/.h*", ["a/.hidden.txt"]),
        ("nothing*", []),
        ("a/b/two.txt", ["a/b/two.txt"]),
        ("/sandbox/top.txt", ["/sandbox/top.txt"]),
        ("/tmp/t.txt", ["/tmp/t.txt"]),
        ("/dev/shm/s.txt", ["/dev/shm/s.txt"]),
    ],
)
def test_a_pattern_finds_what_a_shell_would(workbench: Workbench, pattern: str, found: list[str]) -> None:
    assert sorted(names(collect(workbench, TREE, pattern))) == found


def test_a_glob_below_tmp_names_what_it_found_as_the_program_does(workbench: Workbench) -> None:
    assert names(collect(workbench, TREE, "/tmp/*.txt")) == ["/tmp/t.txt"]
    assert names(collect(workbench, TREE, "/sandbox/*.log")) == ["/sandbox/top.log"]


def test_a_file_matched_twice_comes_once(workbench: Workbench) -> None:
    assert names(collect(workbench, TREE, "top.txt", "*.txt", "top.txt")) == ["top.txt"]


def test_a_path_that_is_not_there_is_skipped_by_name(workbench: Workbench) -> None:
    assert collect(workbench, TREE, "gone.txt", "top.txt").skipped == ("gone.txt",)


def test_a_path_out_of_the_sandbox_is_never_read(workbench: Workbench) -> None:
    collected = collect(workbench, TREE, "../etc/passwd", "/etc/passwd", "a/../../etc/passwd", "/proc/self/environ")
    assert collected.files == ()
    assert len(collected.skipped) == 4


@pytest.mark.parametrize(
    "make",
    [
        "os.mkfifo('thing')",
        "socket.socket(socket.AF_UNIX).bind('thing')",
        "os.symlink('/etc/hostname', 'thing')",
        "os.symlink('main.py', 'thing')",
        "os.mkdir('thing')",
    ],
)
def test_what_is_no_regular_file_is_skipped_and_never_waited_for(workbench: Workbench, make: str) -> None:
    collected = collect(workbench, f"import os, socket\n{make}", "thing")
    assert (collected.files, collected.skipped) == ((), ("thing",))


def test_no_link_leads_out_of_a_directory_either(workbench: Workbench) -> None:
    collected = collect(workbench, "import os\nos.symlink('/etc', 'd')\nos.symlink('.', 'e')", "d/passwd", "e/main.py")
    assert (collected.files, collected.skipped) == ((), ("d/passwd", "e/main.py"))


def test_devices_cannot_be_made_nor_collected(workbench: Workbench) -> None:
    code = (
        "import os, stat\ntry:\n    os.mknod('zero', 0o600 | stat.S_IFCHR, os.makedev(1, 5))\n"
        "except PermissionError: pass"
    )
    assert collect(workbench, code, "zero", "/dev/zero").files == ()


def test_a_file_nobody_may_read_is_collected_all_the_same(workbench: Workbench) -> None:
    code = (
        "import os\nopen('f', 'w').write('x')\nos.mkdir('d')\nopen('d/g', 'w').write('y')\n"
        "os.chmod('f', 0)\nos.chmod('d', 0)"
    )
    assert [f.content for f in collect(workbench, code, "f", "d/g").files] == [b"x", b"y"]


@pytest.mark.parametrize(
    "name", ["with space", "new\nline", "-rf", "quote'\"", "ünïcødé ☃", "x" * 255, "a\\b", "$(id)", "tab\t"]
)
def test_a_weird_name_is_a_name(workbench: Workbench, name: str) -> None:
    code = f"open({name!r}, 'w').write('content')"
    assert [(f.path, f.content) for f in collect(workbench, code, name).files] == [(name, b"content")]


def test_a_weird_name_is_found_by_a_glob(workbench: Workbench) -> None:
    code = "for n in ('new\\nline', 'sp ace', '☃'): open(n, 'w').write(n)"
    assert set(names(collect(workbench, code, "*"))) == {"main.py", "new\nline", "sp ace", "☃"}


def test_a_sparse_file_larger_than_wanted_is_skipped(workbench: Workbench) -> None:
    code = "import os\nf = open('sparse', 'w')\nos.ftruncate(f.fileno(), 60 << 20)"
    assert collect(workbench, code, "sparse").skipped == ("sparse",)


def test_a_sparse_file_within_the_limit_comes_as_zeros(workbench: Workbench) -> None:
    code = "import os\nf = open('sparse', 'w')\nos.ftruncate(f.fileno(), 100_000)"
    assert [f.content for f in collect(workbench, code, "sparse").files] == [b"\0" * 100_000]


def test_the_limit_of_bytes_is_for_all_files_together(workbench: Workbench) -> None:
    code = "for n in 'abc': open(n, 'w').write(n * 600)"
    collected = collect(workbench, code, "a", "b", "c", max_bytes=1200)
    assert (names(collected), collected.skipped) == (["a", "b"], ("c",))


GROW = """
import os, time
print('begun', flush=True)
if os.fork() == 0:
    while True: open('grows', 'a').write('x' * 4096)
"""


def test_a_file_that_grows_while_it_is_read_is_bounded(workbench: Workbench) -> None:
    async def run() -> Collected:
        sandbox = await workbench.fork()
        try:
            await sandbox.exec(make_step(GROW), Limits(), Tape())
            return await sandbox.collect(["grows"], 1 << 16)
        finally:
            await sandbox.close()

    collected = workbench.wait(run())
    assert sum(len(f.content) for f in collected.files) <= 1 << 16


def test_many_files_are_bounded_in_number(workbench: Workbench) -> None:
    code = "for i in range(1500): open(f'f{i}', 'w').close()"
    assert len(collect(workbench, code, "f*").files) == 1000


def test_a_deep_tree_is_walked_to_a_depth_and_no_further(workbench: Workbench) -> None:
    code = "import os\nfor _ in range(60):\n    os.mkdir('d')\n    os.chdir('d')\n    open('leaf', 'w').close()"
    assert 0 < len(collect(workbench, code, "**/leaf").files) < 60


def put_and_list(workbench: Workbench, *files: InputFile) -> bytes:
    show = (
        "import os, stat\nfor path in os.environ['PATHS'].split(':'):\n"
        "    s = os.stat(path)\n    print(oct(stat.S_IMODE(s.st_mode)), s.st_uid, open(path, 'rb').read())"
    )
    paths = ":".join(file.path for file in files)
    return workbench.run(show, files=files, env=(("PATHS", paths),)).stdout


def test_a_file_put_belongs_to_the_program_and_has_its_mode(workbench: Workbench) -> None:
    assert put_and_list(workbench, InputFile("in.sh", b"#!", 0o750)) == b"0o750 1000 b'#!'\n"


def test_directories_on_the_way_are_made_for_the_program(workbench: Workbench) -> None:
    files = (InputFile("a/b/c.txt", b"1"), InputFile("/tmp/d/e.txt", b"2"))
    assert put_and_list(workbench, *files) == b"0o644 1000 b'1'\n0o644 1000 b'2'\n"
    ran = workbench.run("open('a/b/new', 'w').close()\nprint('made')", files=files)
    assert ran.stdout == b"made\n"


def test_a_large_file_arrives_whole(workbench: Workbench) -> None:
    content = bytes(range(256)) * (1 << 14)
    code = "import hashlib\nprint(hashlib.sha256(open('big', 'rb').read()).hexdigest())"
    ran = workbench.run(code, files=[InputFile("big", content)])
    assert ran.stdout.decode().strip() == hashlib.sha256(content).hexdigest()


def test_a_file_that_does_not_fit_is_refused_and_the_next_sandbox_is_well(workbench: Workbench) -> None:
    with pytest.raises(FileNotInSandbox, match="No space left"):
        workbench.run("pass", files=[InputFile("big", b"x" * (80 << 20))])
    assert workbench.run("print(1)").stdout == b"1\n"


LINKS = """
import os, time
os.symlink('/etc', 'etc')
os.symlink('/sandbox/main.py', 'file')
os.mkfifo('pipe')
print('made', flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("path", ["etc/new", "file", "pipe", ".", "main.py/below"])
def test_a_running_program_cannot_lead_a_put_elsewhere(workbench: Workbench, path: str) -> None:
    async def run() -> None:
        sandbox, _, task = await workbench.begin(LINKS)
        try:
            with pytest.raises(FileNotInSandbox):
                await sandbox.put([InputFile(path, b"planted")])
        finally:
            await sandbox.close()
            await asyncio.gather(task, return_exceptions=True)

    workbench.wait(run())
    assert not Path("/etc/new").exists()


def test_put_writes_over_what_is_there(workbench: Workbench) -> None:
    files = (InputFile("f", b"a longer text"), InputFile("f", b"short", 0o600))
    assert workbench.run("print(open('f').read())", files=files).stdout == b"short\n"


def test_a_transfer_cut_short_ends_with_a_lost_guest(workbench: Workbench) -> None:
    async def run() -> None:
        sandbox = await workbench.fork()

        async def put_on() -> None:
            while True:  # the end of the sandbox can take longer than one transfer
                await sandbox.put([InputFile("big", b"x" * (60 << 20))])

        putting = asyncio.get_running_loop().create_task(put_on())
        await asyncio.sleep(0)
        await sandbox.close()
        with pytest.raises(GuestLost):
            await putting
        with pytest.raises(GuestLost):
            await sandbox.put([InputFile("late", b"")])

    workbench.wait(run())


def test_a_cancelled_transfer_is_not_answered_to_the_next(workbench: Workbench) -> None:
    async def run() -> None:
        sandbox = await workbench.fork()
        putting = asyncio.get_running_loop().create_task(sandbox.put([InputFile("big", b"x" * (60 << 20))]))
        await asyncio.sleep(0)
        putting.cancel()
        await asyncio.gather(putting, return_exceptions=True)
        with pytest.raises(GuestLost):
            await sandbox.collect(["big"], 1000)
        await sandbox.close()

    workbench.wait(run())
