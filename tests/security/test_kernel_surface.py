"""System calls and sockets that open the kernel to a program: every one is refused, and works on the host."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.security.attempts import (
    DENIED,
    Results,
    confined,
    judge,
    numbers_of,
    run_unconfined,
    source_of,
    unconfined,
)
from tests.support.service import Service

#: The names of the probes' attempts are the keys of their tables.
CALLS = tuple(re.findall(r'^    "(\w+)": lambda|^    "(\w+)": \w+,$', source_of("syscalls"), re.MULTILINE))
SPACES = ("user", "pid", "net", "mnt", "uts", "ipc", "cgroup", "time")
NAMES = (
    *("".join(pair) for pair in CALLS),
    *(
        f"{call}_{space}"
        for call in ("unshare", "clone", "clone3")
        for space in SPACES
        if f"{call}_{space}" != "clone_time"
    ),
)
SOCKETS = tuple(re.findall(r'^    "(\w+)": \(', source_of("sockets"), re.MULTILINE))

#: Through the kernel's 32-bit and x32 doors a call has another number: a filter of numbers alone would let it in.
OTHER_DOORS = r"""
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    long result;
    if (!strcmp(argv[1], "int80")) {
        unsigned number = 20; /* getpid of i386 */
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(number) : "memory");
    } else {
        __asm__ volatile("syscall" : "=a"(result) : "a"(0x40000000L + 39) : "rcx", "r11", "memory");
    }
    printf("%ld\n", result);
    return 0;
}
"""

RESTRICT = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
with open("result.txt", "w") as out:
    out.write("kept")
handled = (ctypes.c_uint64 * 1)(0x1FFF)
ruleset = libc.syscall(444, handled, ctypes.c_size_t(8), 0)
assert ruleset >= 0 and libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.syscall(446, ruleset, 0) == 0, ctypes.get_errno()
try:
    open("result.txt")
except PermissionError:
    print("restricted")
"""


@pytest.fixture(scope="module")
def calls_inside(service: Service) -> Results:
    return confined(service, "syscalls", call_numbers())


@pytest.fixture(scope="module")
def calls_outside(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return unconfined(tmp_path_factory.mktemp("calls"), "syscalls", call_numbers())


@pytest.fixture(scope="module")
def sockets_inside(service: Service) -> Results:
    return confined(service, "sockets")


@pytest.fixture(scope="module")
def sockets_outside(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return unconfined(tmp_path_factory.mktemp("sockets"), "sockets")


def call_numbers() -> str:
    named = re.findall(r'(?:call|transfer)\("(\w+)"', source_of("syscalls"))
    return numbers_of(tuple(sorted(set(named))))


@pytest.mark.parametrize("name", NAMES)
def test_a_call_that_opens_the_kernel_is_refused(name: str, calls_inside: Results, calls_outside: Results) -> None:
    judge(name, calls_inside[name], calls_outside[name])


@pytest.mark.parametrize("space", SPACES)
def test_clone3_does_not_exist_so_that_callers_fall_back_to_clone(space: str, calls_inside: Results) -> None:
    assert calls_inside[f"clone3_{space}"] == "ENOSYS"


def test_every_attempt_of_the_probe_is_judged(calls_inside: Results, sockets_inside: Results) -> None:
    assert set(calls_inside) == set(NAMES)
    assert set(sockets_inside) == {*SOCKETS, "flow_label", "urgent_byte"}


def test_threads_and_processes_work_without_clone3(service: Service) -> None:
    code = (
        "import subprocess, threading\n"
        "thread = threading.Thread(target=print, args=('thread',)); thread.start(); thread.join()\n"
        "print(subprocess.run(['/bin/echo', 'process'], capture_output=True, text=True).stdout)"
    )
    assert service.exec(code)["stdout"].split() == ["thread", "process"]


@pytest.mark.parametrize("name", [*SOCKETS, "flow_label", "urgent_byte"])
def test_a_socket_beyond_tcp_udp_and_unix_is_refused(
    name: str, sockets_inside: Results, sockets_outside: Results
) -> None:
    # A protocol that this kernel lacks is looked for all the same, module and all: that it was is the control.
    judge(name, sockets_inside[name], sockets_outside[name])


@pytest.mark.parametrize("door", ["int80", "x32"])
def test_a_call_through_another_door_of_the_kernel_ends_the_program(
    door: str, service: Service, tmp_path: Path
) -> None:
    if subprocess.run(["uname", "-m"], capture_output=True, check=True).stdout != b"x86_64\n":
        pytest.skip("only x86-64 has other doors")
    source, program = tmp_path / "door.c", tmp_path / "door"
    source.write_text(OTHER_DOORS)
    subprocess.run(["gcc", "-static", "-o", program, source], check=True)
    files = {"door": {"base64": base64.b64encode(program.read_bytes()).decode()}}
    inside = service.exec("chmod +x door; ./door $1", "bash", args=[door], files=files)
    outside = run_unconfined(tmp_path, [str(program), door])
    assert inside["exit_code"] == 128 + 31, inside
    assert outside.returncode == 0, outside
    if int(outside.stdout) < 0:
        pytest.skip(f"{door} was refused, but has no control: this kernel was built without it")


def test_a_program_has_no_capability_and_can_gain_none(service: Service, tmp_path: Path) -> None:
    code = "print(*(line for line in open('/proc/self/status') if line.startswith(('Cap', 'NoNew', 'Seccomp:'))))"
    inside = dict(line.split(":\t") for line in service.exec(code)["stdout"].split("\n") if ":" in line)
    values = {name.strip(): value.strip() for name, value in inside.items()}
    assert values == {
        **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), "0" * 16),
        "NoNewPrivs": "1",
        "Seccomp": "2",
    }
    outside = run_unconfined(tmp_path, ["/usr/bin/python3", "-c", code]).stdout.decode()
    assert "NoNewPrivs:\t0" in outside
    assert f"CapEff:\t{'0' * 16}" not in outside


def test_no_program_can_have_the_hosts_core_handler_run(service: Service, tmp_path: Path) -> None:
    """A limit of one byte is the only one for which the kernel starts no handler; it must not be changed either."""
    code = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE))"
    )
    assert service.exec(code)["stdout"] == "(1, 1)\n"
    for language, program in (("bash", "grep core /proc/self/limits"), ("node", LIMITS_IN_NODE)):
        assert service.exec(program, language)["stdout"].split()[4:6] == ["1", "1"], language
    assert run_unconfined(tmp_path, ["/usr/bin/python3", "-c", code]).stdout == b"(0, 0)\n"


LIMITS_IN_NODE = (
    "console.log(require('fs').readFileSync('/proc/self/limits', 'utf8').split('\\n').find((l) => l.includes('core')))"
)


def test_a_program_that_restricts_itself_does_not_hinder_collecting_its_files(service: Service, tmp_path: Path) -> None:
    reply = service.exec(RESTRICT, collect=["*.txt"])
    assert reply["stdout"] == "restricted\n", reply
    assert base64.b64decode(reply["files"]["result.txt"]["base64"]) == b"kept"
    assert run_unconfined(tmp_path, ["/usr/bin/python3", "-c", RESTRICT]).stdout == b"restricted\n"


def test_code_run_from_memory_is_as_confined_as_any(service: Service) -> None:
    code = (
        "import os\n"
        "descriptor = os.memfd_create('own')\n"
        "os.write(descriptor, open('/bin/grep', 'rb').read())\n"
        "os.execve(descriptor, ['grep', '-E', 'NoNewPrivs|CapEff|Seccomp:', '/proc/self/status'], {})"
    )
    words = service.exec(code)["stdout"].split()
    assert dict(zip(words[::2], words[1::2], strict=True)) == {
        "CapEff:": "0" * 16,
        "NoNewPrivs:": "1",
        "Seccomp:": "2",
    }


def test_the_judge_refuses_a_probe_that_proves_nothing() -> None:
    judge("held", "EPERM", "done")
    with pytest.raises(AssertionError):
        judge("succeeded inside", "done", "done")
    with pytest.raises(AssertionError):
        judge("refused everywhere", "EPERM", "EPERM")
    assert json.loads(numbers_of(("getpid", "no_such_call"))).keys() == {"getpid"}
    assert "EACCES" not in DENIED
