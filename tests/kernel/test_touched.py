"""A zygote learns from a scout which pages its children write to, and each child has those at once."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import sandfork.native

NATIVE = Path(next(iter(sandfork.native.__path__)))

# A zygote, a scout that does as it is told, and a child. 24 pages: every third is written to.
PROGRAM = r"""
#include "touched.h"

extern int dprintf(int, const char *, ...), fork(void), waitpid(int, int *, int);
extern void _exit(int);
#define PAGES 24
static char *memory;

static bool is_own(int page)
{
    uint64_t entry = 0;
    long pagemap = SYS(openat, AT_FDCWD, "/proc/self/pagemap", O_RDONLY, 0);
    SYS(pread64, pagemap, &entry, sizeof entry, ((uint64_t)memory / PAGE_BYTES + (uint64_t)page) * sizeof entry);
    SYS(close, pagemap);
    return is_written(entry);
}

static bool is_listed(int page)
{
    uint64_t at = (uint64_t)memory + (uint64_t)page * PAGE_BYTES;
    for (int i = 0; i < touched_count; i++)
        if (touched[i].start <= at && at < touched[i].end)
            return true;
    return false;
}

static void show(const char *what, bool (*is)(int))
{
    dprintf(1, "%s", what);
    for (int page = 0; page < PAGES; page++)
        dprintf(1, "%s", is(page) ? "+" : "-");
    dprintf(1, "\n");
}

static void scout(bool dies)
{
    struct frame ready = {FRAME_READY, {0}, 0};
    char byte;
    for (int page = 0; page < PAGES; page++)
        if (*(volatile char *)(memory + page * PAGE_BYTES) && page % 3 == 0)
            memory[page * PAGE_BYTES] = 's';
    if (!dies)
        write_all(CTL_FD, &ready, sizeof ready);
    while (!dies && read_all(CTL_FD, &byte, 1) == -EINTR)
        ;
    _exit(0);
}

int main(int argc, char **argv)
{
    int status, tid;
    bool same = true;
    memory = (char *)SYS(mmap, NULL, PAGES * PAGE_BYTES, 3, 0x22, -1, 0);
    for (int page = 0; page < PAGES; page++)
        memory[page * PAGE_BYTES] = 'z';
    if (send_scout(&tid))
        scout(argc > 1 && str_eq(argv[1], "dies"));
    show("listed ", is_listed);
    dprintf(1, "left %ld\n", SYS(wait4, -1, &status, 0x40000000 | 1, NULL));
    int child = fork();
    if (!child) {
        touch_pages();
        show("own    ", is_own);
        for (int page = 0; page < PAGES; page++)
            same &= memory[page * PAGE_BYTES] == 'z';
        _exit(!same);
    }
    waitpid(child, &status, 0);
    dprintf(1, "same %d\n", !status);
    return 0;
}
"""

WRITTEN = "+--" * 8
NOTHING = "-" * 24


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C core's own code, in a program that stands for the zygote."""
    directory = tmp_path_factory.mktemp("touched")
    source, built = directory / "touched.c", directory / "touched"
    source.write_text(PROGRAM)
    flags = ("-std=gnu11", "-O1", "-fno-builtin", "-Wall", "-Werror")
    subprocess.run(["gcc", *flags, "-I", str(NATIVE), "-o", str(built), str(source)], check=True)
    return built


@pytest.mark.parametrize(("does", "listed"), [("comes back", WRITTEN), ("dies", NOTHING)])
def test_a_child_has_at_once_what_a_scout_wrote_to_and_nothing_is_changed(
    program: Path, does: str, listed: str
) -> None:
    """`left` is what wait4 says when there is no child: ECHILD."""
    told = subprocess.run([str(program), does], capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == [f"listed {listed}", "left -10", f"own    {listed}", "same 1"]
