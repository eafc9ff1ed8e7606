"""Every limit is enforced while the program runs, has an outcome of its own, and lets what stays below it be."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from sandfork.model import Limits, Outcome
from tests.support.process import Workbench
from tests.support.service import Service

LIMITS = Limits()
MIB = 1 << 20


def limited(**change: float) -> Limits:
    return replace(LIMITS, **change)  # type: ignore[arg-type]


# --- wall time and output: decided by the engine, so asked of the whole service ---


def test_a_program_that_outlives_its_wall_time_is_timed_out_with_the_output_so_far(service: Service) -> None:
    reply = service.exec("import time\nprint('begun', flush=True)\ntime.sleep(3600)", limits={"wall_s": 0.3})
    assert (reply["outcome"], reply["stdout"]) == ("timed_out", "begun\n")
    assert reply["limits"]["wall_s"] == 0.3


def test_a_program_stopped_by_its_own_signal_is_timed_out_too(service: Service) -> None:
    reply = service.exec("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", limits={"wall_s": 0.3})
    assert reply["outcome"] == "timed_out"


def test_output_is_cut_at_exactly_its_limit_and_the_program_stopped(service: Service) -> None:
    reply = service.exec("while True: print('x' * 99)", limits={"output_bytes": 12_345})
    assert (reply["outcome"], reply["truncated"]) == ("output_limit", True)
    assert reply["stdout"] == (("x" * 99 + "\n") * 124)[:12_345]


def test_output_of_exactly_the_limit_is_no_offence(service: Service) -> None:
    reply = service.exec("print('x' * 9999)", limits={"output_bytes": 10_000})
    assert (reply["outcome"], reply["truncated"], len(reply["stdout"])) == ("exited", False, 10_000)


# --- processor time ---


def test_a_busy_loop_ends_at_its_processor_time(workbench: Workbench) -> None:
    ran = workbench.run("while True: pass", limits=limited(cpu_s=0.3))
    assert ran.end.outcome is Outcome.CPU_LIMIT
    assert ran.end.usage.cpu_user_s + ran.end.usage.cpu_system_s >= 0.3


BURN_IN_CHILDREN = """
import os, time
while True:
    pid = os.fork()
    if pid == 0:
        end = time.process_time() + 0.02
        while time.process_time() < end: pass
        os._exit(0)
    os.waitpid(pid, 0)
"""


def test_processor_time_of_many_short_children_counts_together(workbench: Workbench) -> None:
    ran = workbench.run(BURN_IN_CHILDREN, limits=limited(cpu_s=0.4))
    assert ran.end.outcome is Outcome.CPU_LIMIT


def test_processor_time_of_threads_counts_together(workbench: Workbench) -> None:
    burn = "import hashlib, threading\nblock = b'x' * (1 << 20)\ndef burn():\n    while True: hashlib.sha256(block)\n"
    start = "for _ in range(4): threading.Thread(target=burn).start()"
    ran = workbench.run(burn + start, limits=limited(cpu_s=0.4))
    assert ran.end.outcome is Outcome.CPU_LIMIT


def test_a_program_that_sleeps_uses_no_processor_time(workbench: Workbench) -> None:
    ran = workbench.run("import time\ntime.sleep(0.4)\nprint('awake')", limits=limited(cpu_s=0.2))
    assert (ran.end.outcome, ran.stdout) == (Outcome.EXITED, b"awake\n")


# --- memory ---


@pytest.mark.parametrize("template", ["python", "command"])
def test_memory_over_the_limit_is_out_of_memory(workbench: Workbench, template: str) -> None:
    eat = "b = []\nwhile True: b.append(b'x' * (1 << 20))"
    if template == "command":
        eat = f"exec /usr/bin/python3 -c '{eat.replace(chr(39), chr(34))}'"
    ran = workbench.run(eat, template, limits=limited(memory_bytes=64 * MIB))
    assert ran.end.outcome is Outcome.OUT_OF_MEMORY
    assert ran.end.usage.memory_peak_bytes <= 64 * MIB


def test_memory_within_the_limit_is_no_offence(workbench: Workbench) -> None:
    ran = workbench.run("b = b'x' * (40 << 20)\nprint(len(b))", limits=limited(memory_bytes=64 * MIB))
    assert (ran.end.outcome, ran.stdout) == (Outcome.EXITED, b"41943040\n")


def test_a_child_that_eats_the_memory_is_told_as_such_when_its_parent_fails(workbench: Workbench) -> None:
    eat = (
        "import subprocess, sys\nsys.exit(subprocess.run([sys.executable, '-c', 'b = b\"x\" * (1 << 30)']).returncode)"
    )
    ran = workbench.run(eat, limits=limited(memory_bytes=64 * MIB))
    assert ran.end.outcome is Outcome.OUT_OF_MEMORY


def test_files_in_the_work_directory_count_as_memory(workbench: Workbench) -> None:
    fill = "with open('big', 'wb') as f:\n    for _ in range(200): f.write(b'x' * (1 << 20))"
    ran = workbench.run(fill, limits=limited(memory_bytes=64 * MIB, disk_bytes=512 * MIB))
    assert ran.end.outcome is Outcome.OUT_OF_MEMORY


# --- processes ---


FORK_BOMB = "import os\nwhile True: os.fork()"


def test_a_fork_bomb_meets_the_limit_of_processes(workbench: Workbench) -> None:
    ran = workbench.run(FORK_BOMB, limits=limited(pids=20))
    assert ran.end.outcome is Outcome.PIDS_LIMIT
    assert ran.end.usage.processes <= 20


def test_threads_count_as_processes(workbench: Workbench) -> None:
    start = "import threading\nfor _ in range(40): threading.Thread(target=threading.Event().wait, daemon=True).start()"
    ran = workbench.run(start, limits=limited(pids=20))
    assert ran.end.outcome is Outcome.PIDS_LIMIT


def test_a_program_that_copes_with_refused_processes_has_not_failed(workbench: Workbench) -> None:
    cope = (
        "import os, time\ntry:\n    while True:\n        if os.fork() == 0: time.sleep(60)\n"
        "except OSError as e: print(e.errno, flush=True)\nos._exit(0)"
    )
    ran = workbench.run(cope, limits=limited(pids=20))
    assert (ran.end.outcome, ran.stdout) == (Outcome.EXITED, b"11\n")


# --- descriptors ---


def test_open_files_end_at_their_limit(workbench: Workbench) -> None:
    use = (
        "import os, resource\nfds = []\ntry:\n    while True: fds.append(os.dup(0))\nexcept OSError as e:\n"
        "    print(e.errno, max(fds) + 1, *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    ran = workbench.run(use, limits=limited(open_files=100))
    assert ran.stdout == b"24 100 100 100\n"


# --- disk ---


FILL = """
import os, sys
directory = sys.argv[1]
try:
    with open(directory + "/big", "wb", buffering=0) as f:
        for _ in range(64): f.write(b"x" * (1 << 20))
except OSError as e:
    print(e.errno, f"{os.stat(directory + '/big').st_size >> 20}")
    sys.exit(1)
"""


@pytest.mark.parametrize("directory", ["/sandbox", "/tmp", "/dev/shm", "/var/tmp"])
def test_every_writable_directory_shares_one_limit_of_bytes(workbench: Workbench, directory: str) -> None:
    ran = workbench.run(FILL, args=(directory,), limits=limited(disk_bytes=8 * MIB))
    number, size = ran.stdout.split()
    assert ran.end.outcome is Outcome.DISK_LIMIT
    assert int(number) in (27, 28)  # EFBIG or ENOSPC: one file of all the room, less what is there already
    assert int(size) in (7, 8)


def test_many_small_files_meet_the_limit_of_inodes(workbench: Workbench) -> None:
    make = "import itertools\nfor i in itertools.count(): open(f'f{i}', 'w').close()"
    ran = workbench.run(make, limits=limited(disk_bytes=1 * MIB))
    assert ran.end.outcome is Outcome.DISK_LIMIT
    assert b"No space left on device" in ran.stderr


def test_a_file_over_the_limit_kills_with_the_outcome_of_the_disk(workbench: Workbench) -> None:
    grow = "head -c 20M /dev/zero > big; echo $?"
    ran = workbench.run(grow, "command", limits=limited(disk_bytes=8 * MIB))
    assert re.fullmatch(rb"(153|1)\n", ran.stdout)
    end = workbench.run("exec head -c 20M /dev/zero > big", "command", limits=limited(disk_bytes=8 * MIB)).end
    assert end.outcome is Outcome.DISK_LIMIT


def test_writing_below_the_limit_is_no_offence(workbench: Workbench) -> None:
    ran = workbench.run(FILL, args=("/tmp",), limits=limited(disk_bytes=80 * MIB, memory_bytes=256 * MIB))
    assert (ran.end.outcome, ran.stdout) == (Outcome.EXITED, b"")


# --- policy ---


def test_a_signal_of_the_filter_is_a_violation_of_policy(workbench: Workbench) -> None:
    ran = workbench.run("import os, signal\nos.kill(os.getpid(), signal.SIGSYS)")
    assert ran.end.outcome is Outcome.POLICY_VIOLATION


def test_the_limits_of_one_program_are_not_those_of_the_next_in_its_place(workbench: Workbench) -> None:
    for disk, memory in ((8, 64), (80, 256), (8, 64)):
        limits = limited(disk_bytes=disk * MIB, memory_bytes=memory * MIB)
        ran = workbench.run(FILL, args=("/sandbox",), limits=limits)
        assert ran.end.outcome is (Outcome.DISK_LIMIT if disk == 8 else Outcome.EXITED)


# --- usage ---


MEASURED = """
import os, time
first = os.times()
while sum(os.times()[:2]) - sum(first[:2]) < 0.3: {work}
print(sum(os.times()[:4]) - sum(first[:4]))
"""


def test_processor_time_is_what_the_program_itself_counts_and_a_little(workbench: Workbench) -> None:
    ran = workbench.run(MEASURED.format(work="pass"))
    used, counted = ran.end.usage.cpu_user_s + ran.end.usage.cpu_system_s, float(ran.stdout)
    assert counted - 0.02 <= used <= counted * 1.5 + 0.05


def test_time_in_the_kernel_is_told_apart(workbench: Workbench) -> None:
    # Not os.urandom, which newer C libraries make without the kernel.
    ran = workbench.run(MEASURED.format(work="open('/dev/urandom', 'rb', 0).read(1 << 20)"))
    assert ran.end.usage.cpu_system_s > ran.end.usage.cpu_user_s


def test_peak_memory_follows_what_the_program_takes(workbench: Workbench) -> None:
    idle = workbench.run("pass").end.usage.memory_peak_bytes
    busy = workbench.run("b = b'x' * (100 << 20)\ndel b").end.usage.memory_peak_bytes
    assert idle < 32 * MIB
    assert 95 * MIB < busy - idle < 120 * MIB


def test_the_peak_of_a_program_is_not_the_next_ones(workbench: Workbench) -> None:
    workbench.run("b = b'x' * (100 << 20)")
    assert workbench.run("pass").end.usage.memory_peak_bytes < 32 * MIB


def test_processes_are_counted_at_their_most(workbench: Workbench) -> None:
    ran = workbench.run(
        "import subprocess\nps = [subprocess.Popen(['sleep', '9']) for _ in range(5)]\nfor p in ps: p.kill()"
    )
    has_peak = any(Path("/sys/fs/cgroup").rglob("pids.peak"))
    assert ran.end.usage.processes == (6 if has_peak else 0)


def test_the_wall_time_of_a_program_that_sleeps_is_at_least_its_sleep(workbench: Workbench) -> None:
    ran = workbench.run("import time\ntime.sleep(0.2)")
    assert ran.end.usage.wall_s >= 0.2
    assert ran.end.done_ns - ran.end.ready_ns == pytest.approx(ran.end.usage.wall_s * 1e9)
