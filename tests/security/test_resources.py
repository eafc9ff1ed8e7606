"""What a program may use is bounded, every bound has its own outcome, and the host has everything back afterwards."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.security.attempts import CLOSED, INTERPRETER, judge, run_unconfined, source_of
from tests.support.service import Service

MIB = 1 << 20
LIMITS = {"memory_bytes": 64 * MIB, "pids": 32, "disk_bytes": 16 * MIB, "open_files": 64, "wall_s": 20, "cpu_s": 10}

#: What to take, how much of it a host gives, and the most that may be taken in a sandbox under LIMITS.
COUNTED = [
    ("processes", 200, 32),
    ("threads", 200, 32),
    ("zombies", 200, 32),
    ("descriptors", 400, 64),
    ("pipes", 24, 4),
    ("unix_sockets", 60, 60),
    ("tcp", 120, 60),
    ("message_queues", 100, 64),
]
#: Taking more memory than the limit ends the program, whatever the memory is for.
MEMORY = ["memory", "mapped", "memory_file", "shared_memory"]
DISK = ["disk", "disk_in_many_files", "allocated", "sparse"]


def take(service: Service, what: str, bound: int, **fields: Any) -> dict[str, Any]:
    """Run the probe in a sandbox."""
    limits = {**LIMITS, **fields.pop("limits", {})}
    return service.exec(source_of("amounts"), args=[what, str(bound)], limits=limits, **fields)


def taken_outside(scratch: Path, what: str, bound: int) -> str:
    """Run it as the control; namespaces of its own bound nothing."""
    files = ["prlimit", "--nofile=20000:20000", INTERPRETER, "-I", "-", what, str(bound)]
    done = run_unconfined(scratch, files, source_of("amounts").encode())
    assert done.returncode == 0, done
    return done.stdout.decode().strip()


@pytest.mark.parametrize(("what", "bound", "most"), COUNTED, ids=[row[0] for row in COUNTED])
def test_no_more_can_be_taken_than_the_limit(
    what: str, bound: int, most: int, service: Service, tmp_path: Path
) -> None:
    reply = take(service, what, bound)
    told = re.match(r"took (\d+)", reply["stdout"])
    if told is None:
        refused = reply["stdout"].strip() in ("EMFILE", "ENOMEM", "EAGAIN", "ENOBUFS")
        assert refused or reply["outcome"] == "out_of_memory", reply
    else:
        assert int(told[1]) <= most, reply
    assert reply["usage"]["memory_peak_bytes"] <= LIMITS["memory_bytes"]
    assert int(taken_outside(tmp_path, what, bound).split()[1]) >= bound * 9 // 10


@pytest.mark.parametrize("what", MEMORY)
def test_taking_more_memory_than_the_limit_ends_the_program(what: str, service: Service, tmp_path: Path) -> None:
    reply = take(service, what, 200)
    assert (reply["outcome"], reply["exit_code"], reply["stdout"]) == ("out_of_memory", 137, ""), reply
    assert reply["usage"]["memory_peak_bytes"] <= LIMITS["memory_bytes"]
    assert taken_outside(tmp_path, what, 200) == "took 200"


def test_kernel_objects_count_as_memory(service: Service, tmp_path: Path) -> None:
    reply = take(service, "epoll_items", 90, limits={"memory_bytes": 16 * MIB, "open_files": 1000})
    assert reply["outcome"] == "out_of_memory" or reply["stdout"].strip() == "ENOMEM", reply
    assert taken_outside(tmp_path, "epoll_items", 90) == "took 90"


@pytest.mark.parametrize("what", DISK)
def test_a_disk_has_an_end(what: str, service: Service, tmp_path: Path) -> None:
    bound = 1 if what == "sparse" else 40
    reply = take(service, what, bound)
    assert reply["outcome"] == "disk_limit" or reply["stdout"].strip() in ("ENOSPC", "EFBIG"), reply
    assert taken_outside(tmp_path, what, bound) == f"took {bound}"


def test_every_writable_place_counts_against_one_disk(service: Service, tmp_path: Path) -> None:
    reply = take(service, "disk_in_tmp", 40)
    assert reply["outcome"] == "disk_limit" or reply["stdout"].strip() == "ENOSPC", reply
    assert taken_outside(tmp_path, "disk_in_tmp", 40) == "took 40"
    assert run_unconfined(tmp_path, ["sh", "-c", "find /tmp /dev/shm -maxdepth 1 -name 'tmp*' -size 1M -delete"])


def test_names_run_out_before_the_memory_of_the_host_does(service: Service, tmp_path: Path) -> None:
    reply = take(service, "names", 20_000)
    assert reply["outcome"] in ("disk_limit", "out_of_memory") or reply["stdout"].strip() == "ENOSPC", reply
    assert taken_outside(tmp_path, "names", 20_000) == "took 20000"


def test_a_tree_of_directories_a_thousand_deep_is_gone_with_its_sandbox(service: Service) -> None:
    for _ in range(12):
        assert take(service, "depth", 900)["stdout"] == "took 900\n"
        assert service.exec("import os; print(sorted(os.listdir('.')))")["stdout"] == "['.shm', '.tmp', 'main.py']\n"


BOMBS = {
    "python": ("python", "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"),
    "bash": ("bash", "bomb() { bomb | bomb & }; bomb; wait; sleep 30"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_fork_bomb_is_held_and_the_service_answers_meanwhile(name: str, service: Service) -> None:
    language, code = BOMBS[name]
    with service.client as client:
        executions = [{"code": code, "language": language, "limits": {"wall_s": 2, "cpu_s": 1.5, "pids": 48}}]
        executions += [{"code": "print('alive')"}] * 5
        replies = client.post("/v1/exec/batch", json={"executions": executions}).json()["results"]
    assert replies[0]["outcome"] in ("timed_out", "cpu_limit", "pids_limit"), replies[0]
    assert replies[0]["usage"]["processes"] <= 48
    assert [reply["stdout"] for reply in replies[1:]] == ["alive\n"] * 5


# --- time ---

SPIN = "while True: pass"
CHILDREN = """
import os, resource
while True:
    if os.fork() == 0:
        for _ in range(300_000): pass
        os._exit(0)
    os.wait()
"""
THREADS = """
import threading
def spin():
    while True: pass
for _ in range(4): threading.Thread(target=spin, daemon=True).start()
spin()
"""


@pytest.mark.parametrize("code", [SPIN, CHILDREN, THREADS], ids=["one process", "many short children", "threads"])
def test_processor_time_is_counted_over_all_processes(code: str, service: Service, tmp_path: Path) -> None:
    reply = service.exec(code, limits={"cpu_s": 0.4, "wall_s": 30})
    assert (reply["outcome"], reply["exit_code"]) == ("cpu_limit", 137), reply
    used = reply["usage"]["cpu_user_s"] + reply["usage"]["cpu_system_s"]
    assert 0.4 <= used < 3, used
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([INTERPRETER, "-c", code], cwd=tmp_path, timeout=1.0, check=False)


def test_waiting_is_not_computing(service: Service) -> None:
    reply = service.exec("import select; select.select([], [], [], 60)", limits={"cpu_s": 0.4, "wall_s": 1})
    assert reply["outcome"] == "timed_out"
    assert reply["usage"]["cpu_user_s"] + reply["usage"]["cpu_system_s"] < 0.4


PRIORITIES = {
    "nice": "os.setpriority(os.PRIO_PROCESS, 0, -20)",
    "real time": "os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))",
}


@pytest.mark.parametrize("how", PRIORITIES)
def test_priorities_cannot_be_raised(how: str, service: Service, tmp_path: Path) -> None:
    code = (
        f"import errno, os\ntry: {PRIORITIES[how]}\n"
        "except OSError as refused: print(errno.errorcode[refused.errno])\n"
        "else: print('raised')"
    )
    inside = service.exec(code)["stdout"].strip()
    outside = run_unconfined(tmp_path, [INTERPRETER, "-c", code]).stdout.decode().strip()
    if how == "real time" and inside == outside == "EPERM" and not may_have_real_time():
        pytest.skip(f"{how} was refused ({inside}), but has no control here: this run's own cgroup has no real time")
    judge(how, inside, outside, CLOSED)


def may_have_real_time() -> bool:
    """Whether the cgroup of this run has real time to give: on v1 one has none until it is told how much."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        budget = Path(f"/sys/fs/cgroup/cpu{path}/cpu.rt_runtime_us")
        if "cpu" in controllers.split(",") and budget.exists():
            return int(budget.read_text()) != 0
    return True


# --- output ---

FLOODS = {
    "stdout": "import os\nwhile True: os.write(1, b'x' * 65536)",
    "stderr": "import os\nwhile True: os.write(2, b'x' * 65536)",
    "both in turn": "import os\nwhile True: os.write(1, b'x' * 100); os.write(2, b'y' * 100)",
    "lines": "while True: print('line')",
    "NUL": "import os\nwhile True: os.write(1, bytes(65536))",
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_output_is_cut_at_exactly_the_cap(name: str, service: Service, tmp_path: Path) -> None:
    cap = 300_000
    before = resident_bytes(service.process.pid)
    reply = service.exec(FLOODS[name], limits={"output_bytes": cap, "wall_s": 20})
    assert (reply["outcome"], reply["truncated"]) == ("output_limit", True), reply["outcome"]
    assert max(len(reply["stdout"]), len(reply["stderr"])) == cap
    assert resident_bytes(service.process.pid) - before < 32 * MIB
    with subprocess.Popen([INTERPRETER, "-c", FLOODS[name]], stdout=-1, stderr=subprocess.STDOUT) as free:
        assert free.stdout is not None
        assert len(free.stdout.read(4 * cap)) == 4 * cap
        free.kill()


def test_output_of_any_bytes_is_carried_as_text_that_json_can_hold(service: Service) -> None:
    reply = service.exec("import os; os.write(1, bytes(range(256)) + b'\\x1b[2J\\r\\nX-Header: 1\\r\\n\\r\\n')")
    assert reply["stdout"].startswith("".join(map(chr, range(128))) + "\ufffd")
    assert reply["stdout"].endswith("\x1b[2J\r\nX-Header: 1\r\n\r\n")


def test_a_line_without_end_is_kept_to_the_cap(service: Service) -> None:
    reply = service.exec("print('x' * 2_000_000, end='')", limits={"output_bytes": 1_000_000})
    assert (len(reply["stdout"]), reply["truncated"]) == (1_000_000, True)


# --- the server ---


def resident_bytes(pid: int) -> int:
    words = Path(f"/proc/{pid}/statm").read_text().split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE")


def test_descriptors_run_out_in_the_program_and_not_in_the_server(service: Service) -> None:
    """Also those it sends into the control socket, where they are the server's to count."""
    code = """
import array, os, socket
ends = [os.pipe() for _ in range(60)]
control = socket.socket(fileno=os.dup(63))
sent = 0
try:
    while True:
        control.sendmsg([bytes(8)], [(1, 1, array.array("i", [end for pair in ends[:50] for end in pair]))], 0x40)
        sent += 1
except OSError as error:
    print(sent)
while True:
    os.dup(0)
"""
    held = len(os.listdir(f"/proc/{service.process.pid}/fd"))
    with service.client as client:
        replies = client.post("/v1/exec/batch", json={"executions": [{"code": code}] * 12}).json()["results"]
    assert all(reply["outcome"] in ("exited", "policy_violation") for reply in replies), replies
    assert service.exec("print('alive')")["stdout"] == "alive\n"
    # What the twelve held is closed; the pool may have grown back to its size meanwhile.
    assert len(os.listdir(f"/proc/{service.process.pid}/fd")) <= held + 64


def test_the_host_has_its_memory_back(service: Service) -> None:
    """Memory of every kind at once, in eight sandboxes, again and again; what is gone for good would add up."""
    items = [{"code": source_of("amounts"), "args": [what, "48"], "limits": LIMITS} for what in MEMORY * 2]
    before = 0
    for _ in range(5):
        with service.client as client:
            assert client.post("/v1/exec/batch", json={"executions": items}).status_code == 200
        before = before or available_bytes()
    taken = 4 * len(items) * 48 * MIB
    assert before - available_bytes() < taken // 4, "memory of ended sandboxes is still in use"


def available_bytes() -> int:
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


# --- compilers ---

SOURCES = {
    "huge array": "int main[0x10000000] = {1};",
    "endless include": '#include "/dev/zero"\n',
    "random include": '#include "/dev/random"\n',
    "include of the settings": '#include "SETTINGS"\n',
    "endless recursion of macros": "#define A B B\n#define B C C\n#define C D D\n#define D E E\n#define E F F\n"
    "#define F G G\n#define G H H\n#define H I I\n#define I J J\n#define J K K\n#define K L L\n#define L x x\n"
    + "int x[] = {A A A A A A A A};\n"
    * 400,
    "flood of errors": "@\n" * 40_000,
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_bomb_for_the_compiler_goes_off_inside_the_sandbox(name: str, service: Service) -> None:
    if not Path("/usr/bin/gcc").exists():
        pytest.skip("the host has no C compiler")
    text = SOURCES[name].replace("SETTINGS", str(service.log.parent / "settings.toml"))
    limits = {"wall_s": 4, "cpu_s": 3, "memory_bytes": 96 * MIB, "disk_bytes": 8 * MIB, "output_bytes": 100_000}
    with service.client as client:
        argv = ["gcc", "-fmax-errors=0", "-o", "out", "bomb.c"]
        body = {"argv": argv, "files": {"bomb.c": text}, "limits": limits}
        reply = client.post("/v1/exec", json=body).json()
    assert reply["exit_code"] != 0, reply
    assert "sandfork-secret" not in json.dumps(reply)
    assert reply["usage"]["memory_peak_bytes"] <= limits["memory_bytes"]


def test_the_compiler_is_there_and_works_for_an_honest_program(service: Service) -> None:
    """The control of the bombs: what fails above is the bomb, not the compiler."""
    if not Path("/usr/bin/gcc").exists():
        pytest.skip("the host has no C compiler")
    code = "gcc -o out main.c && ./out"
    files = {"main.c": '#include <stdio.h>\nint main(void) { puts("built"); }\n'}
    assert service.exec(code, "bash", files=files)["stdout"] == "built\n"
