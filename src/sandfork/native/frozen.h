/*
 * A zygote's memory as the private mapping of a sealed file in memory, before the first fork.
 *
 * A fork copies an entry of the page tables for every page of anonymous memory there is, and its end takes each apart, though
 * a program touches one page in five. Of a file's mapping that nobody wrote to it copies none: the child finds what it
 * reads sixteen pages at a time, and gets a page of its own where it writes, as it does from anonymous memory.
 *
 * The file is sealed against every write and nobody has it open. Every page of the ranges is in it, so that none is left
 * for a program to fill in, which those after it would see and which would stay.
 *
 * Not for every interpreter: one whose children look through all of their memory, as a collector of garbage that marks
 * objects does, is better off with a copy of the page tables.
 *
 * Left as it is: the stack; what of a mapping was never touched, where that is much; blocks that the C library mapped one by
 * one, for it may grow them in place, past the end of the file; and what a fork is to treat in another way. The state of a
 * random number generator is wiped in a child, so that it has one of its own (getrandom in the vDSO, which glibc 2.41 calls):
 * of a file's mapping the kernel would not do that. Where anything fails all the rest stays as it was: this saves time and
 * memory and changes no behaviour.
 */
#ifndef SANDFORK_FROZEN_H
#define SANDFORK_FROZEN_H

#include "maps.h"

#define RUNS_MAX 1024
#define GAP_MOST 128 /* pages that were never touched, before, between and after those that were; they become zeros */
#define PAGES_AT_ONCE 512
#define SPARED_MOST 64
#define LINE_MOST 256

struct run {
    uint64_t start, end;
    int protection;
};

/* What the kernel tells of a page: bit 63 that it is there, bit 61 that it is a file's or shared. */
static bool is_own(uint64_t page)
{
    return page >> 63 && !(page >> 61 & 1);
}

/* The size of a block that malloc mapped by itself and that begins here, or 0: no size before it, its own with bit 1 set. */
static uint64_t malloc_block(uint64_t at, uint64_t end)
{
    const uint64_t *head = (const uint64_t *)at;
    uint64_t size = head[1] - 2;
    return !head[0] && size && !(size % PAGE) && size <= end - at ? size : 0;
}

static bool has_name(const struct mapping *m)
{
    return *m->name && *m->name != '\n';
}

/*
 * Append the runs of pages of a mapping that are there and its own; how many runs there are then. Of a file's mapping that
 * has any, all: what it still shares with the file is the same bytes.
 */
static int find_runs(const struct mapping *m, long pagemap, struct run *runs, int count)
{
    static uint64_t pages[PAGES_AT_ONCE];
    const int before = count;
    uint64_t block_end = m->start;
    struct run *last = NULL;
    for (uint64_t at = m->start; at < m->end && count < RUNS_MAX; at += PAGE) {
        uint64_t index = (at - m->start) / PAGE % PAGES_AT_ONCE;
        if (!index && SYS(pread64, pagemap, pages, sizeof pages, at / PAGE * sizeof *pages) < (long)sizeof *pages)
            return count;
        if (at < block_end || !is_own(pages[index]))
            continue;
        if (m->inode) {
            runs[count++] = (struct run){m->start, m->end, m->protection};
            return count;
        }
        uint64_t size = has_name(m) ? 0 : malloc_block(at, m->end);
        if (size) {
            block_end = at + size;
            last = NULL;
        } else if (last && at - last->end <= GAP_MOST * PAGE) {
            last->end = at + PAGE;
        } else {
            bool is_first = count == before && block_end == m->start;
            uint64_t start = is_first && at - m->start <= GAP_MOST * PAGE ? m->start : at;
            last = &runs[count++];
            *last = (struct run){start, at + PAGE, m->protection};
        }
    }
    if (last && m->end - last->end <= GAP_MOST * PAGE)
        last->end = m->end;
    return count;
}

/* Whether a fork wipes a mapping in the child, or does not give it to it: VM_WIPEONFORK, VM_DONTCOPY. */
static bool is_spared(const char *flags)
{
    for (; *flags; flags++)
        if (bytes_eq(flags, " wf", 3) || bytes_eq(flags, " dc", 3))
            return true;
    return false;
}

/* Where the mappings begin that are spared. */
struct spared {
    uint64_t starts[SPARED_MOST], at;
    int count;
    bool told; /* what the flags of the mapping at `at` are */
};

/* Take a line of /proc/self/smaps: that of a mapping, as in maps, or one that tells something of it; false when lost. */
static bool take_line(struct spared *spared, const char *line)
{
    if (bytes_eq(line, "VmFlags:", 8)) {
        spared->told = true;
        if (!is_spared(line + 8))
            return true;
        if (spared->count == SPARED_MOST)
            return false;
        spared->starts[spared->count++] = spared->at;
    } else if (*line < 'A' || *line > 'Z') {
        if (!spared->told)
            return false;
        spared->told = false;
        spared->at = read_digits(&line, 16);
    }
    return true;
}

/* Find all of them; false when the kernel does not tell. */
static bool find_spared(struct spared *spared)
{
    static char text[PAGE], line[LINE_MOST + 8];
    *spared = (struct spared){.told = true};
    long fd = SYS(openat, AT_FDCWD, "/proc/self/smaps", O_RDONLY | O_CLOEXEC, 0), n = -1;
    bool whole = fd >= 0;
    size_t len = 0;
    while (whole && (n = SYS(read, fd, text, sizeof text)) > 0)
        for (long i = 0; whole && i < n; i++) {
            if (text[i] != '\n') {
                if (len < LINE_MOST) /* of a longer one, a path, the beginning is enough */
                    line[len++] = text[i];
                continue;
            }
            line[len] = 0;
            len = 0;
            whole = take_line(spared, line);
        }
    if (fd >= 0)
        SYS(close, fd);
    return whole && n == 0 && spared->told && spared->at;
}

static bool is_frozen(const struct mapping *m, const struct spared *spared)
{
    for (int i = 0; i < spared->count; i++)
        if (spared->starts[i] == m->start)
            return false;
    if (m->shared || !(m->protection & MAPPED_READ) || m->protection & MAPPED_EXEC)
        return false;
    return m->inode || !has_name(m) || bytes_eq(m->name, "[heap]", 6);
}

/* Fill a file with the runs, one after the other; 0 or what went wrong. */
static long fill(int fd, const struct run *runs, int count)
{
    for (int i = 0; i < count; i++) {
        long r = write_all(fd, (const void *)runs[i].start, runs[i].end - runs[i].start);
        if (r < 0)
            return r;
    }
    return SYS(fcntl, fd, 1033 /* F_ADD_SEALS */, 1 | 2 | 4 | 8 /* SEAL|SHRINK|GROW|WRITE */);
}

/* A file that nobody can start as a program, where the kernel knows of such (Linux 6.3). */
static long make_file(void)
{
    const unsigned flags = 1 | 2; /* CLOEXEC|ALLOW_SEALING */
    long fd = SYS(memfd_create, "interpreter", flags | 8 /* NOEXEC_SEAL */);
    return fd == -EINVAL ? SYS(memfd_create, "interpreter", flags) : fd;
}

/* Nothing that lies in a run may change from here on until it has been put in its place: all that does is on the stack. */
static void freeze_memory(void)
{
    static struct run runs[RUNS_MAX];
    static struct spared spared;
    int count = 0;
    if (!find_spared(&spared))
        return;
    long pagemap = page_size() == PAGE ? SYS(openat, AT_FDCWD, "/proc/self/pagemap", O_RDONLY | O_CLOEXEC, 0) : -1;
    if (pagemap < 0)
        return;
    struct mapping m;
    for (const char *line = read_maps(); line && *line;) {
        line = read_mapping(line, &m);
        if (is_frozen(&m, &spared))
            count = find_runs(&m, pagemap, runs, count);
    }
    SYS(close, pagemap);
    long fd = make_file();
    if (fd < 0)
        return;
    if (fill((int)fd, runs, count) >= 0) {
        uint64_t offset = 0;
        for (int i = 0; i < count; i++) {
            uint64_t size = runs[i].end - runs[i].start;
            SYS(mmap, runs[i].start, size, runs[i].protection, 0x12 /* PRIVATE|FIXED */, fd, offset);
            offset += size;
        }
    }
    SYS(close, fd);
}

#endif
