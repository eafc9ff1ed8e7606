"""The bar of long work: one line of a terminal, whatever its width, and nothing anywhere else."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator

import pytest
from rich.console import Console

from sandfork.cli_bar import SPARE, progress_bar

HIDE, SHOW, WIPE = "\x1b[?25l", "\x1b[?25h", "\r\x1b[1A\x1b[2K"
NOW = "a step with a name that is long " * 9


class Terminal:
    """A terminal of some width, and all that was written to it."""

    def __init__(self, width: int, term: str) -> None:
        self._ours, theirs = os.openpty()
        self.file = os.fdopen(theirs, "w")
        self.console = Console(file=self.file, width=width, height=24, soft_wrap=True, _environ={"TERM": term})

    def written(self) -> str:
        """Return all; nothing more can be written then."""
        self.file.close()
        found = b""
        while chunk := self._read():
            found += chunk
        os.close(self._ours)
        return found.decode()

    def _read(self) -> bytes:
        try:
            return os.read(self._ours, 65536)
        except OSError:  # the other end is closed, and all was read
            return b""


def lines_of(written: str) -> Iterator[str]:
    """Yield what stood on the line at any time."""
    for frame in re.split(r"\r|\n|\x1b\[2K", written):
        yield re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", frame)


@pytest.mark.parametrize("width", [200, 80, 60, 59, 40, 20])
@pytest.mark.parametrize("name", ["py", "n" * 64])
def test_it_stays_on_one_line_and_leaves_room_for_what_ctrl_c_writes(width: int, name: str) -> None:
    terminal = Terminal(width, "xterm")
    with progress_bar(f"building {name}", terminal.console) as tell:
        for percent in (0.0, 41.6, 100.0):
            tell(percent, NOW)
    written = terminal.written()
    lines = [line for line in lines_of(written) if line.strip()]
    assert max(map(len, lines)) == width - SPARE
    assert any("build" in line for line in lines)
    assert (written.count("\n"), written.count(HIDE), written.count(SHOW)) == (1, 1, 1)


@pytest.mark.parametrize(
    ("width", "last"),
    [
        (80, "building py ━━━━━━━━━━━━━━━━━━━━ 100% 0:00:00 a name with ?[31m[bold]"),
        (40, "building py ━━━━ 100% a name with ?[…"),
    ],
)
def test_it_says_what_how_far_and_what_now_and_orders_nothing(width: int, last: str) -> None:
    terminal = Terminal(width, "xterm")
    with progress_bar("building py", terminal.console) as tell:
        tell(100.0, "a name with \x1b[31m[bold]")
    assert last in [line.rstrip() for line in lines_of(terminal.written())]


def test_it_is_wiped_and_the_cursor_is_back_when_the_work_ends_early() -> None:
    terminal = Terminal(80, "xterm")

    def be_interrupted() -> None:
        with progress_bar("building py", terminal.console) as tell:
            tell(50.0, "half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        be_interrupted()
    assert terminal.written().endswith(f"\r\n{SHOW}{WIPE}")


@pytest.mark.parametrize("colours", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}])
def test_nothing_is_written_where_nobody_watches(colours: dict[str, str]) -> None:
    pipe, terminal = io.StringIO(), Terminal(80, "dumb")
    for console in (Console(file=pipe, _environ={"TERM": "xterm", **colours}), terminal.console):
        with progress_bar("building py", console) as tell:
            tell(50.0, "half")
    assert pipe.getvalue() == terminal.written() == ""
