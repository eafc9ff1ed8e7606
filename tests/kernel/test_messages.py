"""tiers/process/messages.py says the same as native/messages.h: the compiler is asked, not the reader."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from sandfork.tiers.process import messages as m
from tests.support.process import PACKAGE

HEADER = PACKAGE / "native/messages.h"

#: C struct, its fields in order, and the struct.Struct of the Python side.
STRUCTS = {
    "request": (m.REQUEST, ("op", "id", "root", "zygote", "profile", "kind", "limits.memory_bytes", "limits.disk_bytes",
                            "limits.inodes", "limits.pids", "limits.open_files", "limits.cpu_s", "limits.cpu_quota_us",
                            "payload_len", "flags")),
    "event": (m.EVENT, ("op", "id", "status", "step", "err", "flags", "utime_us", "stime_us", "maxrss_kb", "inblock",
                        "oublock")),
    "profile": (m.PROFILE, ("landlock_fs", "landlock_net", "landlock_scoped", "bpf_len", "drop_bounding", "flags",
                            "seal_len", "paths_len", "pad")),
    "frame": (m.FRAME, ("type", "len")),
    "field": (m.FRAME, ("tag", "len")),
    "end_frame": (m.END, ("exit_code", "pad", "ready_ns", "done_ns")),
    "fail_frame": (m.FAIL, ("step", "err")),
}  # fmt: skip

#: Python's names of the C constants that are called otherwise there.
CONSTANTS = {
    "SLOTS_MAX": m.SLOTS_MAX,
    "ROOTS_MAX": m.ROOTS_MAX,
    "ZYGOTES_MAX": m.ZYGOTES_MAX,
    "MESSAGE_MAX": m.MESSAGE_MAX,
    "CPU_PERIOD_US": m.CPU_PERIOD_US,
    "REQUEST_SHARED_NETNS": m.SHARED_NETNS,
    "REQUEST_URGENT": m.URGENT,
    "REQUEST_JOIN": m.JOIN,
    "REQUEST_TERMINAL": m.TERMINAL,
    "CLOSED_NEW_NETNS": m.CLOSED_NEW_NETNS,
    "PROFILE_KEEP_GROUPS": m.PROFILE_KEEP_GROUPS,
    "FRAME_READY": m.READY,
    "FRAME_RUN": m.RUN,
    "FRAME_STARTED": m.STARTED,
    "FRAME_END": m.ENDED,
    "FRAME_FAIL": m.FAILED,
    "FRAME_DISPLAY": m.DISPLAY,
    "FRAME_PUT": m.PUT,
    "FRAME_GET": m.GET,
    "FRAME_LIST": m.LIST,
    "FRAME_STAT": m.STAT,
    "FRAME_DELETE": m.DELETE,
    "FRAME_SIZE": m.SIZE,
    "FRAME_READ": m.READ,
    "FRAME_WRITE": m.WRITE,
    "FRAME_KILL": m.KILL,
    "FRAME_OK": m.OK,
    "FRAME_ERR": m.ERR,
    "FRAME_DATA": m.DATA,
    **{f"REQ_{each.name}": each.value for each in m.Request},
    **{f"EV_{each.name}": each.value for each in m.Event},
    **{f"KIND_{each.name}": each.value for each in m.Kind},
}

#: Steps whose name for people is not their name in C.
STEP_NAMES = {"NNP": "no_new_privs", "PIVOT": "pivot_root"}


def packed_offsets(packed: str) -> list[int]:
    """Return the offset of every value of a struct format."""
    offsets, at = [], 0
    sizes = {"B": 1, "i": 4, "I": 4, "Q": 8}
    for count, kind in re.findall(r"(\d*)([a-zA-Z])", packed):
        for _ in range(int(count or 1) if kind != "x" else 1):
            if kind != "x":
                offsets.append(at)
            at += int(count or 1) if kind == "x" else sizes[kind]
    return offsets


def test_offsets_of_a_format_are_counted_as_struct_packs_them() -> None:
    assert packed_offsets("=B3xI") == [0, 4]
    assert packed_offsets("=iI2Q") == [0, 4, 8, 16]


def ask_compiler(directory: Path) -> dict[str, int]:
    """Return sizes, offsets and constants of the header as the compiler has them."""
    steps = re.findall(r"^    STEP_(\w+)", HEADER.read_text(), re.MULTILINE)
    lines = [f'printf("{name} %lld\\n", (long long){name});' for name in (*CONSTANTS, *(f"STEP_{s}" for s in steps))]
    for name, (_, fields) in STRUCTS.items():
        lines.append(f'printf("struct {name} %zu\\n", sizeof(struct {name}));')
        lines += [f'printf("{name}.{f} %zu\\n", offsetof(struct {name}, {f}));' for f in fields]
    source = directory / "ask.c"
    includes = "".join(f"#include <{name}>\n" for name in ("stdio.h", "stddef.h"))
    source.write_text(f'{includes}#include "messages.h"\nint main(void) {{\n' + "\n".join(lines) + "\nreturn 0;\n}\n")
    program = directory / "ask"
    subprocess.run(["gcc", "-I", str(HEADER.parent), "-o", str(program), str(source)], check=True)
    answer = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in (line.rsplit(" ", 1) for line in answer.splitlines())}


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    return ask_compiler(tmp_path_factory.mktemp("header"))


@pytest.mark.parametrize("name", STRUCTS)
def test_a_struct_has_the_size_and_offsets_that_python_packs(header: dict[str, int], name: str) -> None:
    packed, fields = STRUCTS[name]
    assert header[f"struct {name}"] == packed.size
    assert [header[f"{name}.{f}"] for f in fields] == packed_offsets(packed.format)


def test_every_constant_has_the_same_value_on_both_sides(header: dict[str, int]) -> None:
    assert {name: header[name] for name in CONSTANTS} == CONSTANTS


def test_every_set_up_step_has_its_name_at_its_number(header: dict[str, int]) -> None:
    steps = {value: name.removeprefix("STEP_") for name, value in header.items() if name.startswith("STEP_")}
    named = [STEP_NAMES.get(steps[number], steps[number].lower()) for number in range(len(steps))]
    assert named == m.STEPS
    assert m.step_name(len(steps)) == f"step {len(steps)}"


def test_every_constant_of_the_header_that_python_could_need_is_compared() -> None:
    defined = set(re.findall(r"^(?:#define|   ) ((?:FRAME|REQ|EV|KIND)_\w+)", HEADER.read_text(), re.MULTILINE))
    assert defined
    assert defined <= set(CONSTANTS)


def test_what_runs_in_the_guest_knows_the_same_descriptors(header: dict[str, int]) -> None:
    numbers = dict(re.findall(r"^#define (\w*CTL_FD) (\d+)", HEADER.read_text(), re.MULTILINE))
    guest = PACKAGE / "guest"
    assert f"\nCTL = {numbers['CTL_FD']}\n" in (guest / "zygote.py").read_text()
    assert f"\nconst CTL = {numbers['PARK_CTL_FD']};" in (guest / "park_node.js").read_text()
