"""How far long work is: one line on a terminal, which is gone at the end. Elsewhere nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from sandfork.cli_terms import err
from sandfork.images.progress import Tell, tell_nobody

SPARE = 3
#: Characters of a line that also has the time.
WIDE_ENOUGH = 60


@contextmanager
def progress_bar(what: str, console: Console = err) -> Iterator[Tell]:
    """Show how far `what` is for as long as the block takes, where a person watches.

    That is a terminal that can move its cursor, whatever variables say of colours for those who read a pipe.
    """
    if not console.file.isatty() or console.is_dumb_terminal:
        yield tell_nobody
        return
    with _Line(console) as bar:
        task = bar.add_task(escape(what), total=100.0, now="")
        yield lambda percent, now: bar.update(task, completed=percent, now=escape(printable(now)))


class _Line(Progress):
    """Leaves the end of the line free: the ^C that a terminal writes there is wiped with the line."""

    def __init__(self, terminal: Console) -> None:
        self._terminal = terminal
        super().__init__(*_columns(terminal.width), console=terminal, transient=True)

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        """Return what is shown."""
        table = super().make_tasks_table(tasks)
        table.width = max(1, self._terminal.width - SPARE)
        return table


def _columns(width: int) -> tuple[ProgressColumn, ...]:
    """Return what fits one line of so many characters: what is done now has the room that the rest leaves."""
    wide = width >= WIDE_ENOUGH
    what = TextColumn("{task.description}", table_column=_one_line(max_width=max(8, width * 2 // 5)))
    return (
        what,
        BarColumn(bar_width=20 if wide else 4),
        TextColumn("{task.percentage:>3.0f}%", table_column=_one_line()),
        *((TimeElapsedColumn(table_column=_one_line()),) if wide else ()),
        TextColumn("{task.fields[now]}", table_column=_one_line(ratio=1)),
    )


def _one_line(*, max_width: int | None = None, ratio: int | None = None) -> Column:
    return Column(no_wrap=True, overflow="ellipsis", max_width=max_width, ratio=ratio)


def printable(text: str) -> str:
    """Return text without what orders a terminal about: it may be the name of a file of an archive."""
    return "".join(each if each.isprintable() else "?" for each in text)
