"""A zygote learns from a scout which pages its children use, and each child has those at once."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import sandfork.native

NATIVE = Path(next(iter(sandfork.native.__path__)))

# A zygote, a scout that does as it is told, and a child. Of 24 pages every third is written to, the next one is read.
PROGRAM = r"""
#include "touched.h"

extern int dprintf(int, const char *, ...), fork(void), waitpid(int, int *, int);
extern void _exit(int);
#define PAGES 24
static char *own, *file;

static uint64_t entry_of(const char *memory, int page)
{
    uint64_t entry = 0;
    long pagemap = open_pagemap(SYS(getpid));
    look(pagemap, (uint64_t)memory + (uint64_t)page * PAGE, &entry, 1);
    SYS(close, pagemap);
    return entry;
}

static bool is_listed(const char *memory, int page)
{
    uint64_t at = (uint64_t)memory + (uint64_t)page * PAGE;
    for (int i = 0; i < touched_count; i++)
        if (touched[i].start <= at && at < touched[i].end)
            return true;
    return false;
}

/* w: written to by us alone; r: there, as the file has it; -: not there, or another's, too. */
static void show(const char *what, const char *memory, bool listed)
{
    char line[PAGES + 1] = {0};
    for (int page = 0; page < PAGES; page++) {
        uint64_t entry = entry_of(memory, page);
        bool written = listed ? is_listed(memory, page) : is_written(entry);
        line[page] = written ? 'w' : is_read(entry) && !listed ? 'r' : '-';
    }
    dprintf(1, "%s %s\n", what, line);
}

static bool all_are(const char *memory, char value)
{
    for (int page = 0; page < PAGES; page++)
        if (memory[page * PAGE] != value)
            return false;
    return true;
}

static void scout(bool dies)
{
    struct frame ready = {FRAME_READY, {0}, 0}, end = {FRAME_END, {0}, 0};
    char run[sizeof scout_run];
    if (!dies) {
        write_all(CTL_FD, &ready, sizeof ready);
        read_all(CTL_FD, run, sizeof run);
    }
    for (int page = 0; page < PAGES; page++) {
        if (page % 3 == 0)
            own[page * PAGE] = 's', file[page * PAGE] = 's';
        if (page % 3 == 1)
            (void)(*(volatile char *)(own + page * PAGE) + *(volatile char *)(file + page * PAGE));
    }
    if (dies)
        _exit(0);
    write_all(CTL_FD, &end, sizeof end);
    stay_if_scout(CTL_FD);
}

static char *map_file(void)
{
    char page[PAGE];
    long fd = SYS(memfd_create, "file", 0);
    memset(page, 'f', sizeof page);
    for (int i = 0; i < PAGES; i++)
        write_all((int)fd, page, sizeof page);
    return (char *)SYS(mmap, NULL, PAGES * PAGE, 3, 2 /* PRIVATE */, fd, 0);
}

int main(int argc, char **argv)
{
    int status, tid;
    own = (char *)SYS(mmap, NULL, PAGES * PAGE, 3, 0x22, -1, 0), file = map_file();
    memset(own, 'o', PAGES * PAGE);
    file[23 * PAGE] = 'z'; /* the zygote's own, which it keeps */
    if (send_scout(&tid))
        scout(argc > 1 && str_eq(argv[1], "dies"));
    dprintf(1, "left %ld\n", SYS(wait4, -1, &status, SF_WALL | 1, NULL));
    show("list of own: ", own, true);
    show("list of file:", file, true);
    int child = fork();
    if (!child) {
        show("child's file:", file, false);
        touch_pages();
        show("then its own:", own, false);
        show("then its file:", file, false);
        bool kept = file[23 * PAGE] == 'z';
        file[23 * PAGE] = 'f';
        _exit(!(kept && all_are(own, 'o') && all_are(file, 'f')));
    }
    waitpid(child, &status, 0);
    dprintf(1, "same %d\n", !status);
    return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C core's own code, in a program that stands for the zygote."""
    directory = tmp_path_factory.mktemp("touched")
    source, built = directory / "touched.c", directory / "touched"
    source.write_text(PROGRAM)
    flags = ("-std=gnu11", "-O1", "-fno-builtin", "-Wall", "-Werror")
    subprocess.run(["gcc", *flags, "-I", str(NATIVE), "-o", str(built), str(source)], check=True)
    return built


@pytest.mark.parametrize("does", ["comes back", "dies"])
def test_a_child_has_at_once_what_a_scout_used_and_nothing_is_changed(program: Path, does: str) -> None:
    """`left` is what wait4 says when there is no child: ECHILD."""
    told = subprocess.run([str(program), does], capture_output=True, text=True, check=True).stdout
    learned = does == "comes back"
    written, there, all_of_it = ("w--" * 8, "-r-" * 8, "wr-" * 8) if learned else ("-" * 24,) * 3
    assert told.splitlines() == [
        "left -10",
        f"list of own:  {written}",
        f"list of file: {written}",
        f"child's file: {there}",
        f"then its own: {written}",
        f"then its file: {all_of_it}",
        "same 1",
    ]
