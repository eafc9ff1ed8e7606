"""What RUN carries: the program, its environment, and the limits it puts on itself before it begins."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from sandfork.model import Limits, Step
from sandfork.tiers.process import messages as m

_WORK_DIR = "/sandbox"
STDIN_FILE = ".stdin"
"""Where a lasting interpreter finds the stdin of one step: it opens the file and removes it."""


@dataclass(frozen=True, slots=True)
class Means:
    """By what means limits are kept and where programs work, where that is not by cgroups and in /sandbox.

    `rlimits`: there is no cgroup, so memory and processes are limited by rlimits, and usage is what wait4 tells.
    `extra_pids`: processes of ours that the kernel counts with the program's. `work_root`: directory of the work
    directories, without namespaces; "" with them.
    """

    rlimits: bool = False
    extra_pids: int = 0
    work_root: str = ""

    def work_dir(self, slot: int) -> str:
        """Return the work directory of a slot as its program sees it."""
        return f"{self.work_root}/s{slot}" if self.work_root else _WORK_DIR


def cpu_seconds(limits: Limits, means: Means) -> int:
    """Return the processor time in whole seconds, as a process' own limit takes it; behind a cgroup a second line."""
    return math.ceil(limits.cpu_s) if means.rlimits else int(limits.cpu_s + 1.999)


def run_frame(step: Step, limits: Limits, base_env: bytes, means: Means, work_dir: str) -> bytes:
    """Pack RUN. A program that does not work in /sandbox is told where it does, in its words and its environment."""
    parts = [base_env]
    argv = step.argv
    if work_dir != _WORK_DIR:
        parts.append(m.program_fields((), (f"HOME={work_dir}", f"TMPDIR={work_dir}/.tmp")))
        argv = tuple(_moved(word, work_dir) for word in argv)
    parts += [m.text(b"a", word) for word in argv]
    parts += [m.text(b"e", f"{name}={value}") for name, value in step.env]
    if step.file_name is not None:
        parts.append(m.text(b"f", step.file_name))
    if step.code is not None:
        parts.append(m.field(b"c", step.code))
    if step.lasting:
        parts.append(m.number(b"l", 1))
        parts += [m.text(b"i", f"{work_dir}/{STDIN_FILE}")] if step.stdin else []
    else:
        parts.append(m.number(b"p", cpu_seconds(limits, means)))
    if step.warm:
        parts.append(m.number(b"w", 1))
    if step.rich:
        parts.append(m.number(b"r", 1))
    parts.append(m.number(b"n", limits.open_files))
    parts.append(m.number(b"s", limits.disk_bytes))
    parts += _rlimits(limits, means)
    return m.frame(m.RUN, b"".join(parts))


def step_text(step: Step) -> bytes:
    """Return a step for an interpreter that reads text up to a NUL; its environment is set on its first line."""
    exports = "".join(f"export {name}={shlex.quote(value)}; " for name, value in step.env)
    return exports.encode("utf-8", "surrogateescape") + (step.code or b"") + b"\0"


def _moved(word: str, work_dir: str) -> str:
    if word == _WORK_DIR or word.startswith(_WORK_DIR + "/"):
        return work_dir + word[len(_WORK_DIR) :]
    return word


def _rlimits(limits: Limits, means: Means) -> Iterator[bytes]:
    if means.rlimits:
        yield m.number(b"k", limits.pids + means.extra_pids)
        yield m.number(b"m", limits.memory_bytes)
