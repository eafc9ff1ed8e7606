"""Where the host forbids namespaces: a start says what would give them, and `--reduced` serves with what is left.

The service runs in a plain container as tests/support/container.py makes it. The tier's own tests start it with the
switch on this host, which could do better: it does as it is told.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sandfork.model import InputFile, Outcome
from sandfork.tiers.process import Launched
from tests.support import container
from tests.support.process import Workbench, guest_packages, open_workbench, start_native
from tests.support.remains import is_alive, settles
from tests.support.service import Service, run_command, running_service

PLAIN_CONTAINER = (sys.executable, container.__file__)
WITHOUT = ("pid", "mount", "network", "ipc", "uts", "cgroup", "user")
OPTIONS = (
    "--security-opt seccomp=unconfined",
    "--security-opt systempaths=unconfined",
    "--cgroupns host -v /sys/fs/cgroup:/sys/fs/cgroup:rw",
)


@pytest.fixture(scope="module", autouse=True)
def _root(as_root: None) -> None:
    """Every test here starts processes as root."""


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("reduced"), "--reduced", prefix=PLAIN_CONTAINER) as service:
        yield service


@pytest.fixture(scope="module")
def bench() -> Iterator[Workbench]:
    with open_workbench(start_native(reduced=True)) as opened:
        yield opened


def fails_to_start(tmp_path: Path, *options: str) -> str:
    done = run_command("serve", "--port", "0", *options, cwd=tmp_path, prefix=PLAIN_CONTAINER)
    assert done.returncode == 1
    text = done.stderr.decode()
    assert "Traceback" not in text
    return text


# --- start ---


def test_a_plain_container_is_refused_with_what_is_missing_and_what_would_give_it(tmp_path: Path) -> None:
    told = fails_to_start(tmp_path)
    for name in WITHOUT:
        assert f"{name} namespace (Operation not permitted)" in told
    assert "cgroups (" in told
    for option in OPTIONS:
        assert option in told
    assert "--reduced" in told


def test_the_doctor_says_the_same_of_a_plain_container(tmp_path: Path) -> None:
    done = run_command("doctor", "--json", cwd=tmp_path, prefix=PLAIN_CONTAINER)
    assert done.returncode == 1
    (tier,) = [check for check in json.loads(done.stdout) if check["area"] == "tier"]
    assert all(option in tier["told"] for option in OPTIONS)


def test_a_service_that_could_have_namespaces_has_none_when_told_so(bench: Workbench) -> None:
    assert bench.tier.isolation == "reduced"
    assert os.path.exists("/proc/self/ns/pid")
    ran = bench.run("import os; print(os.readlink('/proc/self/ns/pid'), os.getpid())")
    space, pid = ran.stdout.split()
    assert space.decode() == os.readlink("/proc/self/ns/pid")
    assert int(pid) > 2


def test_a_plain_user_is_refused_the_switch_and_told_why(tmp_path: Path) -> None:
    user = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    done = run_command("serve", "--reduced", "--port", "0", cwd=Path("/tmp"), prefix=user)
    assert done.returncode == 1
    assert b"--reduced needs root" in done.stderr


def test_a_container_without_the_capabilities_for_uids_is_told_which_to_add(tmp_path: Path) -> None:
    drop = ("setpriv", "--bounding-set", "-setuid,-kill")
    done = run_command("serve", "--reduced", "--port", "0", cwd=tmp_path, prefix=drop)
    assert done.returncode == 1
    assert b"--cap-add KILL --cap-add SETUID" in done.stderr


def test_one_program_runs_and_the_doctor_is_content_when_told_so(tmp_path: Path) -> None:
    ran = run_command("run", "--reduced", "-e", "print(1+1)", cwd=tmp_path, prefix=PLAIN_CONTAINER)
    assert (ran.returncode, ran.stdout) == (0, b"2\n"), ran.stderr
    done = run_command("doctor", "--reduced", "--json", cwd=tmp_path, prefix=PLAIN_CONTAINER)
    checks = json.loads(done.stdout)
    assert done.returncode == 0
    assert {check["state"] for check in checks if check["area"] == "primitive"} == {"ok"}
    (tier,) = [check for check in checks if check["area"] == "tier"]
    assert tier["state"] == "accepted"
    assert "pid namespace" in tier["told"]


# --- the service ---


def test_health_and_every_reply_say_reduced_and_what_is_not_enforced(reduced: Service) -> None:
    with reduced.client as client:
        health = client.get("/v1/health").json()
    assert health["isolation"] == "reduced"
    assert "isolation: reduced" in reduced.banner
    for name in WITHOUT:
        assert f"{name} namespace" in health["unenforced_limits"]
    for limit in ("memory limit", "cpu limit", "disk limit"):
        assert any(each.startswith(f"{limit}: of each ") for each in health["unenforced_limits"])
    assert "memory limit: of each process only" in reduced.log.read_text()
    assert reduced.exec("print(1)")["isolation"] == "reduced"
    assert reduced.exec("echo 1", "bash")["isolation"] == "reduced"


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "print(1+1)"),
        ("python", "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(2)'], check=True)"),
        ("python", "import threading; t = threading.Thread(target=print, args=(2,)); t.start(); t.join()"),
        ("python", "import tempfile; f = tempfile.TemporaryFile('w+'); f.write('2'); f.seek(0); print(f.read())"),
        ("python", "import asyncio; print(asyncio.run(asyncio.sleep(0, 2)))"),
        ("python", "import os; open('x', 'w').write('2'); print(open(os.getcwd() + '/x').read())"),
        ("python", "print(open(__file__).read().count('read'))"),
        ("node", "console.log(1+1)"),
        ("node", "f = require('fs'); f.writeFileSync('x', '2'); console.log('' + f.readFileSync(__dirname + '/x'))"),
        ("node", "process.stdout.write(require('child_process').execSync('echo 2'))"),
        ("perl", "open my $f, '<', $0; print 1 + 1, \"\\n\" if <$f> =~ /open/"),
        ("bash", "echo $((1+1))"),
        ("bash", "cat <(echo 2)"),
        ("bash", "cat > x <<< 2; cat $HOME/x"),
    ],
)  # fmt: skip
def test_ordinary_programs_run_as_they_do_anywhere(reduced: Service, language: str, code: str) -> None:
    reply = reduced.exec(code, language)
    assert (reply["outcome"], reply["exit_code"], reply["stdout"], reply["stderr"]) == ("exited", 0, "2\n", "")


@pytest.mark.skipif(guest_packages() is None, reason="no packages are installed beside the service")
def test_numpy_is_there_in_the_program_and_in_the_processes_it_starts(reduced: Service) -> None:
    code = "import numpy, subprocess, sys; print(numpy.arange(3).sum(), flush=True)\n"
    code += "subprocess.run([sys.executable, '-c', 'import numpy; print(3)'], check=True)"
    assert reduced.exec(code)["stdout"] == "3\n3\n"


def test_files_go_in_and_come_out(reduced: Service) -> None:
    code = "import os; t = open('in/a.txt').read(); os.mkdir('out'); open('out/b.txt', 'w').write(t.upper())"
    reply = reduced.exec(code, files={"in/a.txt": "text"}, collect=["out/*.txt", "/sandbox/in/a.txt"])
    assert reply["exit_code"] == 0, reply["stderr"]
    came = {name: base64.b64decode(file["base64"]) for name, file in reply["files"].items()}
    assert came == {"out/b.txt": b"TEXT", "in/a.txt": b"text"}


MEMORY = "b = bytearray(300 << 20); b[::4096] = bytes(len(b) // 4096); print('had it')"
FORKS = """
import os, time
made = 0
try:
    while made < 40:
        if os.fork() == 0: time.sleep(60)
        made += 1
except OSError as error:
    print(error.strerror, made)
"""
FILE = "import os; os.ftruncate(os.open('x', os.O_RDWR | os.O_CREAT), 8 << 20)"


def test_limits_hold_for_each_process(reduced: Service) -> None:
    small = reduced.exec(MEMORY, limits={"memory_bytes": 128 << 20})
    assert small["exit_code"] == 1
    assert "MemoryError" in small["stderr"]
    assert reduced.exec(MEMORY, limits={"memory_bytes": 600 << 20})["stdout"] == "had it\n"
    assert reduced.exec(FORKS, limits={"pids": 10})["stdout"] == "Resource temporarily unavailable 9\n"
    assert "File too large" in reduced.exec(FILE, limits={"disk_bytes": 4 << 20})["stderr"]
    assert reduced.exec(FILE, limits={"disk_bytes": 16 << 20})["exit_code"] == 0


def test_processor_and_wall_time_stop_a_program(reduced: Service) -> None:
    assert reduced.exec("while True: pass", limits={"cpu_s": 0.2})["outcome"] == "cpu_limit"
    stopped = reduced.exec("import time; print(1, flush=True); time.sleep(60)", limits={"wall_s": 0.3})
    assert (stopped["outcome"], stopped["stdout"]) == ("timed_out", "1\n")


def test_processors_at_a_time_are_processor_time_and_the_reply_says_so(reduced: Service) -> None:
    reply = reduced.exec("while True: pass", limits={"cpus": 0.1, "wall_s": 5})
    assert (reply["outcome"], reply["limits"]["cpus"], reply["limits"]["cpu_s"]) == ("cpu_limit", None, 0.5)
    with reduced.client as client:
        told = client.get("/v1/health").json()["unenforced_limits"]
    assert "cpus limit: as processor time within the wall time, not as a rate" in told


def test_a_process_that_cannot_limit_itself_is_limited_from_outside(reduced: Service) -> None:
    ask = "ulimit -d; ulimit -p; ulimit -n; ulimit -f; ulimit -t"
    code = f"process.stdout.write(require('child_process').execSync('{ask}'))"
    limits = {"memory_bytes": 333 << 20, "pids": 33, "open_files": 99, "disk_bytes": 5 << 20, "cpu_s": 7}
    told = reduced.exec(code, "node", limits=limits)
    assert told["stdout"].split() == [str(333 << 10), "33", "99", str(5 << 11), "7"], told


def test_usage_is_what_the_kernel_counted(reduced: Service) -> None:
    usage = reduced.exec("b = bytearray(100 << 20); x = sum(range(3_000_000)); print(1)")["usage"]
    assert usage["memory_peak_bytes"] > 100 << 20
    assert usage["cpu_user_s"] + usage["cpu_system_s"] > 0.01


# --- what programs must not reach; the control runs the same text as root, unconfined ---

ATTEMPTS = """
import errno, json, os, socket, sys
canary, directory, pid, abstract = sys.argv[1:]
results = {}
def attempt(name, action):
    try: action(); results[name] = "done"
    except OSError as error: results[name] = errno.errorcode[error.errno]
def datagram():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.sendto(b"x", "\\0" + abstract)
def connect():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock: sock.connect("\\0" + abstract)
attempt("read a file", lambda: open(canary).read())
attempt("write a file", lambda: open(canary, "a").close())
attempt("truncate a file", lambda: os.truncate(canary, 1))
attempt("list a directory", lambda: os.listdir(directory))
attempt("make a file", lambda: open(directory + "/made", "w").close())
attempt("link a file in", lambda: os.link(canary, "linked"))
attempt("list processes", lambda: os.listdir("/proc"))
attempt("read a process", lambda: open(f"/proc/{pid}/status").read())
attempt("signal a process", lambda: os.kill(int(pid), 0))
attempt("internet socket", lambda: socket.socket(socket.AF_INET).close())
attempt("datagram to a name", datagram)
attempt("connect to a name", connect)
attempt("shared memory", lambda: open("/dev/shm/sandfork-test", "w").close())
print(json.dumps(results))
"""


def test_files_processes_and_sockets_of_others_are_out_of_reach(reduced: Service) -> None:
    directory = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    directory.chmod(0o777)
    canary = directory / "canary"
    canary.write_text("canary")
    canary.chmod(0o666)
    name = f"sandfork-{os.getpid()}"
    shared = Path("/dev/shm/sandfork-test")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        args = [str(canary), str(directory), str(os.getpid()), name]
        reply = reduced.exec(ATTEMPTS, args=args)
        assert canary.read_text() == "canary"
        control = subprocess.check_output(["/usr/bin/python3", "-I", "-c", ATTEMPTS, *args], cwd=directory)
    subprocess.run(["rm", "-rf", str(directory), str(shared)], check=True)
    tried: dict[str, str] = json.loads(reply["stdout"])
    assert set(json.loads(control).values()) == {"done"}
    assert set(tried) == set(json.loads(control))
    assert set(tried.values()) <= {"EACCES", "EPERM", "EXDEV"}, tried


def test_a_sandbox_cannot_read_or_signal_another(bench: Workbench) -> None:
    async def meet() -> tuple[str, str]:
        first, tape, running = await bench.begin(
            "import os, time; open('secret', 'w').write('x'); os.chmod('secret', 0o666); os.chmod('.', 0o777)\n"
            "print(os.getpid(), os.getcwd(), flush=True); time.sleep(600)"
        )
        pid, directory = tape.stdout.decode().split()
        code = f"""
import os
for action in (lambda: os.kill({pid}, 0), lambda: open("{directory}/secret").read(), lambda: os.listdir("{directory}")):
    try: action(); print("done")
    except PermissionError: print("refused")
"""
        second = await bench.exec(code)
        first.kill(Outcome.SIGNALLED)
        await running
        await first.close()
        return second.stdout.decode(), directory

    told, directory = bench.wait(meet())
    assert told == "refused\n" * 3
    assert not Path(directory).exists()


def test_a_program_cannot_end_what_serves_its_files(bench: Workbench) -> None:
    code = "import os\nopen('kept', 'w').write('x')\ntry: os.kill(-1, 9)\nexcept OSError: pass"
    ran = bench.run(code, collect=["kept"])
    assert [file.content for file in ran.collected.files] == [b"x"]


# --- nothing is left ---

STAY = """
import os, signal, sys, time
for number in range(1, 32):
    if number not in (9, 19): signal.signal(number, signal.SIG_IGN)
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        stopped = os.fork()
        if stopped == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        os.write(write, f"{os.getpid()} {stopped}".encode())
        time.sleep(3600)
    os._exit(0)
pids = os.read(read, 100).decode()
print(os.getpid(), pids, os.getcwd(), flush=True)
"""

HARD_TO_REMOVE = {
    "deep": "for i in range(1200): os.mkdir('d'); os.chdir('d')",
    "wide": "[os.makedirs(f'{i}/{i}') or open(f'{i}/{i}/f', 'w').close() for i in range(300)]",
    "closed": "os.makedirs('a/b/c'); open('a/b/c/f', 'w'); [os.chmod(p, 0) for p in ('a/b/c', 'a/b', 'a', '.')]",
    "odd": "os.mkfifo('p'); os.symlink('/etc', 'l'); os.makedirs('.lifted0/x/y'); os.link('main.py', 'h')",
}


def all_dead(pids: list[int]) -> bool:
    return not any(map(is_alive, pids))


def test_daemons_and_stopped_processes_die_with_their_program(reduced: Service) -> None:
    *pids, directory = reduced.exec(STAY)["stdout"].split()
    assert len(pids) == 3
    assert settles(lambda: all_dead([int(pid) for pid in pids]))
    assert settles(lambda: not Path(directory).exists())


@pytest.mark.parametrize("how", HARD_TO_REMOVE)
def test_a_work_directory_goes_whatever_was_made_in_it(bench: Workbench, how: str) -> None:
    ran = bench.run(f"import os\nprint(os.getcwd(), flush=True)\n{HARD_TO_REMOVE[how]}\nprint('made')")
    directory, made = ran.stdout.decode().split()
    assert made == "made", ran.stderr
    assert not Path(directory).exists()


def test_a_fork_bomb_ends_with_its_sandbox(bench: Workbench) -> None:
    code = "import os\nprint(os.getuid(), flush=True)\nwhile True:\n    try: os.fork()\n    except OSError: pass"

    async def explode() -> int:
        sandbox, tape, running = await bench.begin(code)
        sandbox.kill(Outcome.TIMED_OUT)
        await running
        await sandbox.close()
        return int(tape.stdout.split()[0])

    assert processes_of_uid(bench.wait(explode())) == []


def processes_of_uid(uid: int) -> list[int]:
    """Return the processes, dead ones included, whose real uid it is."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended as we looked
            if f"\nUid:\t{uid}\t" in status.read_text():
                found.append(int(status.parent.name))
    return found


def warden_of(launched: Launched) -> int:
    janitor = launched.janitor.pid
    (pid,) = Path(f"/proc/{janitor}/task/{janitor}/children").read_text().split()
    return int(pid)


@pytest.mark.parametrize("victims", [("janitor",), ("warden",), ("janitor", "warden")])
def test_nothing_outlives_the_death_of_those_who_made_it(victims: tuple[str, ...]) -> None:
    launched = start_native(reduced=True)
    pids: list[int] = []

    async def strike(bench: Workbench) -> None:
        _, tape, running = await bench.begin(STAY + "time.sleep(3600)")
        pids.extend(int(word) for word in tape.stdout.split()[:3])
        targets = {"janitor": launched.janitor.pid, "warden": warden_of(launched)}
        for victim in victims:
            os.kill(targets[victim], signal.SIGKILL)
        await bench.tier.lost()
        running.cancel()

    with open_workbench(launched) as bench:
        bench.wait(strike(bench))
    assert launched.work_root is not None
    if len(victims) == 2:
        # Nobody is left to clean up, but whoever starts next.
        assert launched.work_root.exists()
        with open_workbench(start_native(reduced=True)):
            pass
    assert settles(lambda: all_dead(pids))
    assert settles(lambda: not launched.work_root.exists() if launched.work_root else False)


def test_nothing_outlives_a_service_that_is_killed(tmp_path: Path) -> None:
    with running_service(tmp_path, "--reduced", prefix=PLAIN_CONTAINER) as service:
        *pids, directory = service.exec(STAY)["stdout"].split()
        service.stop(signal.SIGKILL)
    assert settles(lambda: all_dead([int(pid) for pid in pids]))
    assert settles(lambda: not Path(directory).parent.exists())


def test_a_sandbox_that_ran_before_leaves_nothing_to_the_next_one(bench: Workbench) -> None:
    first = bench.run("open('left', 'w').write('x'); import os; print(os.getcwd(), os.getuid())")
    for _ in range(50):
        ran = bench.run("import os; print(os.getcwd(), os.getuid(), os.listdir())")
        assert b"left" not in ran.stdout
        if ran.stdout.split()[:2] == first.stdout.split():
            return
    raise AssertionError("the slot was not used again")


def test_files_of_a_sandbox_are_put_as_its_own_user(bench: Workbench) -> None:
    code = "import os; print(os.stat('d/x').st_uid == os.getuid(), oct(os.stat('d/x').st_mode & 0o777))"
    ran = bench.run(code, files=[InputFile("d/x", b"x", 0o640)])
    assert ran.stdout == b"True 0o640\n"
