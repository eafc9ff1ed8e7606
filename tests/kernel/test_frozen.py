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
static char *heap, *block, *bare;

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
    bare = (char *)SYS(mmap, NULL, 64 * PAGE, 3, 0x22, -1, 0);
    memset(heap, 'h', SMALL), memset(block, 'b', BLOCK), memset(bare, 'm', 8 * PAGE);
    zeroed[PAGE] = 'z', initialised[PAGE] = 'i';
    freeze_memory();
    printf("heap %s, data %s, mapped %s, untouched %s, block %s, stack %s\n", place(heap + PAGE),
           place(&initialised[PAGE]), place(bare), place(bare + 32 * PAGE), place(block + PAGE), place(&local));
    printf("same %d\n", all(heap, SMALL, 'h') && all(block, BLOCK, 'b') && all(bare, 8 * PAGE, 'm') &&
                            !bare[63 * PAGE] && zeroed[PAGE] == 'z' && !zeroed[0] && initialised[0] == 'i' &&
                            initialised[PAGE] == 'i');
    int child = fork();
    if (!child) {
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


def test_what_lay_in_memory_lies_in_the_file_and_behaves_as_it_did(tmp_path: Path) -> None:
    source, program = tmp_path / "frozen.c", tmp_path / "frozen"
    source.write_text(PROGRAM)
    flags = ("-std=gnu11", "-O1", "-fno-builtin", "-Wall", "-Werror")
    subprocess.run(["gcc", *flags, "-I", str(NATIVE), "-o", str(program), str(source)], check=True)
    told = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == [
        "heap file, data file, mapped file, untouched own, block own, stack own",
        "same 1",
        "child 0, same 1",
        "grown 1",
        "freed",
    ]


@pytest.mark.usefixtures("as_root")
def test_most_of_a_sandboxs_memory_is_the_files_which_it_cannot_get_at(workbench: Workbench) -> None:
    sizes = [line.split() for line in workbench.run(LOOK).stdout.decode().splitlines()]
    assert sum(int(size) for protection, size in sizes if protection == "rw-p") > 4 << 20
    assert {protection for protection, _ in sizes} <= {"rw-p", "r--p"}
    assert workbench.run(GET_AT_IT).stdout.decode().strip() in ("Operation not permitted", "Permission denied")
