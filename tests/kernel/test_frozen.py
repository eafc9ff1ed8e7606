"""A zygote's memory becomes a sealed file's before the first fork: same contents, and everything still works."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import sandfork.native
from tests.support.process import Workbench

NATIVE = Path(next(iter(sandfork.native.__path__)))

# What the C library does with memory that lies in the file's mapping or was left out of it. Its headers and the
# kernel's, which the core includes, do not go together.
PROGRAM = r"""
#include "frozen.h"

extern void *malloc(size_t), *realloc(void *, size_t), free(void *);
extern int printf(const char *, ...), fork(void), waitpid(int, int *, int);
extern void _exit(int);
#define SMALL 100000
#define BLOCK (1 << 20)
static char initialised[3 * PAGE] = "initialised", zeroed[3 * PAGE];
static char *heap, *block, *bare, *wiped, *withheld;

static const char *place(const void *of)
{
    struct mapping m;
    for (const char *line = read_maps(); *line;) {
        line = read_mapping(line, &m);
        if (m.start <= (uint64_t)of && (uint64_t)of < m.end)
            return m.inode && bytes_eq(m.name, "/memfd:interpreter", 18) ? "file" : "own";
    }
    return "nowhere";
}

/* A page that a fork is to treat as `advice` says. */
static char *advised(int advice)
{
    char *page = (char *)SYS(mmap, NULL, PAGE, 3, 0x22, -1, 0);
    SYS(madvise, page, PAGE, advice);
    memset(page, 'a', PAGE);
    return page;
}

static bool all(const char *from, size_t size, char value)
{
    for (size_t i = 0; i < size; i++)
        if (from[i] != value)
            return false;
    return true;
}

int main(void)
{
    int local = 1, status;
    heap = malloc(SMALL), block = malloc(BLOCK);
    bare = (char *)SYS(mmap, NULL, 256 * PAGE, 3, 0x22, -1, 0);
    memset(heap, 'h', SMALL), memset(block, 'b', BLOCK), memset(bare, 'm', 8 * PAGE);
    zeroed[PAGE] = 'z', initialised[PAGE] = 'i';
    wiped = advised(18 /* WIPEONFORK */), withheld = advised(10 /* DONTFORK */);
    freeze_memory();
    printf("wiped %s, withheld %s, same %d\n", place(wiped), place(withheld),
           all(wiped, PAGE, 'a') && all(withheld, PAGE, 'a'));
    printf("heap %s, data %s, mapped %s, untouched %s, block %s, stack %s\n", place(heap + PAGE),
           place(&initialised[PAGE]), place(bare), place(bare + 200 * PAGE), place(block + PAGE), place(&local));
    printf("same %d\n", all(heap, SMALL, 'h') && all(block, BLOCK, 'b') && all(bare, 8 * PAGE, 'm') &&
                            !bare[63 * PAGE] && zeroed[PAGE] == 'z' && !zeroed[0] && initialised[0] == 'i' &&
                            initialised[PAGE] == 'i');
    int child = fork();
    if (!child) {
        if (!all(wiped, PAGE, 0) || bytes_eq(place(withheld), "file", 4) || bytes_eq(place(withheld), "own", 3))
            _exit(2);
        memset(heap, 'c', SMALL), memset(bare, 'c', 64 * PAGE), zeroed[PAGE] = 'c';
        _exit(!(all(heap, SMALL, 'c') && all(bare, 64 * PAGE, 'c') && zeroed[PAGE] == 'c'));
    }
    waitpid(child, &status, 0);
    printf("child %d, same %d\n", status, all(heap, SMALL, 'h') && all(bare, 8 * PAGE, 'm') && zeroed[PAGE] == 'z');
    block = realloc(block, 64 * BLOCK), heap = realloc(heap, 64 * BLOCK);
    bool kept = all(block, BLOCK, 'b') && all(heap, SMALL, 'h');
    memset(block, 'B', 64 * BLOCK), memset(heap, 'H', 64 * BLOCK);
    printf("grown %d\n", kept && all(block, 64 * BLOCK, 'B') && all(heap, 64 * BLOCK, 'H'));
    free(block), free(heap);
    printf("freed\n");
    return 0;
}
"""

LOOK = """
import os
with open('/proc/self/maps') as file:
    lines = [line.split() for line in file if 'memfd:interpreter' in line]
for line in lines:
    start, end = (int(number, 16) for number in line[0].split('-'))
    print(line[1], end - start)
fds = (f'/proc/self/fd/{fd}' for fd in os.listdir('/proc/self/fd'))
opened = [os.readlink(fd) for fd in fds if os.path.lexists(fd)]
assert not [path for path in opened if 'memfd' in path], opened
"""

GET_AT_IT = """
import os
with open('/proc/self/maps') as file:
    span = next(line.split()[0] for line in file if 'memfd:interpreter' in line)
start, end = (int(number, 16) for number in span.split('-'))
try:
    os.open(f'/proc/self/map_files/{start:x}-{end:x}', os.O_RDWR)
except OSError as error:
    print(error.strerror)
"""


def built(where: Path, text: str) -> list[str]:
    """Return the lines that a C program prints."""
    source, program = where / "frozen.c", where / "frozen"
    source.write_text(text)
    flags = ("-std=gnu11", "-O1", "-fno-builtin", "-Wall", "-Werror", "-Wno-unused-function")
    subprocess.run(["gcc", *flags, "-I", str(NATIVE), "-o", str(program), str(source)], check=True)
    return subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.splitlines()


def test_what_lay_in_memory_lies_in_the_file_and_behaves_as_it_did(tmp_path: Path) -> None:
    assert built(tmp_path, PROGRAM) == [
        "wiped own, withheld own, same 1",
        "heap file, data file, mapped file, untouched own, block own, stack own",
        "same 1",
        "child 0, same 1",
        "grown 1",
        "freed",
    ]


def test_a_fork_wipes_or_withholds_such_memory_where_nothing_is_frozen(tmp_path: Path) -> None:
    """The control of what the program above tells of it."""
    assert PROGRAM.count("freeze_memory();") == 1
    told = built(tmp_path, PROGRAM.replace("freeze_memory();", ""))
    assert told[0] == "wiped own, withheld own, same 1"
    assert told[3] == "child 0, same 1"


@pytest.mark.usefixtures("as_root")
def test_most_of_a_sandboxs_memory_is_the_files_which_it_cannot_get_at(workbench: Workbench) -> None:
    sizes = [line.split() for line in workbench.run(LOOK).stdout.decode().splitlines()]
    assert sum(int(size) for protection, size in sizes if protection == "rw-p") > 4 << 20
    assert {protection for protection, _ in sizes} <= {"rw-p", "r--p"}
    assert workbench.run(GET_AT_IT).stdout.decode().strip() in ("Operation not permitted", "Permission denied")
