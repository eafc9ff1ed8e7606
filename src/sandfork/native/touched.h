/*
 * The pages that every child of a zygote uses, learned from a first child that is no sandbox: the scout.
 *
 * A fork copies nothing of a file's mapping, and what a zygote has is such mappings, its frozen memory among them. So a
 * child takes a fault for what it reads, which maps sixteen pages of which most are never looked at and all are taken apart
 * at its end; and one for each page it writes to, often the second of that page. Where it is known ahead which pages these are,
 * the zygote has those that are read in its own page tables and no others, in mappings that a fork copies; and a child
 * writes to each of the others first.
 *
 * The scout is a fork of the zygote, made before any sandbox, and does what the zygote's children do until they have said
 * END of a small program. For it the mappings are cut into single pages, so that a fault tells of one. The zygote then looks in its page
 * tables, and kills it. Where anything fails less is known: this saves time and changes no behaviour.
 */
#ifndef SANDFORK_TOUCHED_H
#define SANDFORK_TOUCHED_H

#include "maps.h"
#include "messages.h"

#define TOUCHED_MAX 512
#define PAGES_CUT_MAX 40000 /* the kernel grants a process 65530 mappings */
#define LOOKED_AT 64        /* pages at a time */
#define SCOUT_MOST_S 5

struct span {
    uint64_t start, end;
};

static struct span touched[TOUCHED_MAX]; /* written to */
static int touched_count;
static bool is_scout;

/* What the kernel tells of a page: bit 63 that it is there, 62 that it is swapped, 61 that it is a file's or shared. */
static bool is_own_page(uint64_t page)
{
    return page >> 62 && !(page >> 61 & 1);
}

/* Bit 56: no other process has it. */
static bool is_written(uint64_t page)
{
    return page >> 63 && is_own_page(page) && page >> 56 & 1;
}

static bool is_read(uint64_t page)
{
    return page >> 63 && page >> 61 & 1;
}

static bool is_file_mapping(const struct mapping *m)
{
    return m->inode && !m->shared && m->protection & MAPPED_READ;
}

static void note_touched(uint64_t page)
{
    struct span *last = touched_count ? &touched[touched_count - 1] : NULL;
    if (last && last->end == page)
        last->end += PAGE;
    else if (touched_count < TOUCHED_MAX)
        touched[touched_count++] = (struct span){page, page + PAGE};
}

/* One page of ours, there and changed in nothing. */
static void write_to(uint64_t page)
{
    __atomic_fetch_or((char *)page, 0, __ATOMIC_RELAXED);
}

/* What is said of `count` pages from `at`; false when nothing is. */
static bool look(long pagemap, uint64_t at, uint64_t *pages, uint64_t count)
{
    long size = (long)(count * sizeof *pages);
    return SYS(pread64, pagemap, pages, size, at / PAGE * sizeof *pages) == size;
}

/* --- the scout --- */

#define SCOUT_FILE "main.py"
#define SCOUT_PROGRAM "def greet(name):\n    return f'{name} {1 + 1}'\nprint(greet('a'))\n"

/* RUN, as the server sends it. */
static const struct {
    struct frame head;
    struct field file;
    char name[sizeof SCOUT_FILE];
    struct field word;
    char first[sizeof SCOUT_FILE];
    struct field code;
    char text[sizeof SCOUT_PROGRAM - 1];
} __attribute__((packed)) scout_run = {
    {FRAME_RUN, {0}, sizeof scout_run - sizeof scout_run.head},
    {FIELD_FILE, {0}, sizeof scout_run.name},
    SCOUT_FILE,
    {FIELD_ARGV, {0}, sizeof scout_run.first},
    SCOUT_FILE,
    {FIELD_CODE, {0}, sizeof scout_run.text},
    SCOUT_PROGRAM,
};

/* It prints, and finds ctl where a program does. */
static void be_scout(int ctl)
{
    is_scout = true;
    long nowhere = SYS(openat, AT_FDCWD, "/dev/null", O_WRONLY | O_CLOEXEC, 0);
    SYS(dup3, ctl, CTL_FD, O_CLOEXEC);
    SYS(dup3, nowhere, 1, 0);
    SYS(dup3, nowhere, 2, 0);
}

/* A scout that has said END, and not of its rehearsal, stays to be looked at. */
static void stay_if_scout(int ctl)
{
    while (is_scout && ctl == CTL_FD)
        SYS(ppoll, NULL, 0, NULL, NULL, 0);
}

/* What the kernel is advised of differs from page to page, so that each is a mapping of its own. */
static void cut_mappings(const char *maps)
{
    struct mapping m;
    int left = PAGES_CUT_MAX;
    while (maps && *maps) {
        maps = read_mapping(maps, &m);
        if (!is_file_mapping(&m))
            continue;
        for (uint64_t at = m.start + PAGE; at < m.end && left > 0; at += 2 * PAGE, left -= 2)
            SYS(madvise, at, PAGE, 1 /* RANDOM */);
    }
}

/* --- the zygote --- */

/* A fork copies the page tables of a mapping that has a page of its own. What may not be written to is, from outside. */
static void own_a_page(const struct mapping *m, uint64_t page)
{
    if (m->protection & MAPPED_WRITE)
        return write_to(page);
    long memory = SYS(openat, AT_FDCWD, "/proc/self/mem", O_RDWR | O_CLOEXEC, 0);
    if (memory >= 0) {
        SYS(pwrite64, memory, page, 1, page);
        SYS(close, memory);
    }
}

/* Have what the scout read of a mapping, and note what it wrote to. */
static void follow(const struct mapping *m, long scout)
{
    uint64_t pages[LOOKED_AT], count, read = 0, written = 0;
    for (uint64_t at = m->start; at < m->end; at += count * PAGE) {
        count = (m->end - at) / PAGE < LOOKED_AT ? (m->end - at) / PAGE : LOOKED_AT;
        if (!look(scout, at, pages, count))
            return;
        for (uint64_t i = 0; i < count; i++) {
            uint64_t page = at + i * PAGE;
            if (is_written(pages[i]) && m->protection & MAPPED_WRITE) {
                written = page;
                note_touched(page);
            } else if (is_read(pages[i]) && is_file_mapping(m)) {
                read = page;
                (void)*(volatile char *)page;
            }
        }
    }
    if (read)
        own_a_page(m, written ? written : read);
}

/*
 * Have nothing else of a file's mapping in our page tables, as what a fault brought besides. What is our own stays, and
 * nothing that could become so meanwhile is in such a mapping: all that is written to here is on the stack.
 */
static void forget_the_rest(const struct mapping *m, long scout, long ours)
{
    uint64_t pages[LOOKED_AT], own[LOOKED_AT], count;
    for (uint64_t at = m->start; at < m->end; at += count * PAGE) {
        count = (m->end - at) / PAGE < LOOKED_AT ? (m->end - at) / PAGE : LOOKED_AT;
        if (!look(scout, at, pages, count) || !look(ours, at, own, count))
            return;
        for (uint64_t i = 0, from = 0; i <= count; i++)
            if (i == count || is_read(pages[i]) || is_own_page(own[i])) {
                if (i > from)
                    SYS(madvise, at + from * PAGE, (i - from) * PAGE, 4 /* DONTNEED */);
                from = i + 1;
            }
    }
}

static long open_pagemap(long pid)
{
    struct text path = {0};
    text_add(&path, "/proc/");
    text_num(&path, pid);
    text_add(&path, "/pagemap");
    return SYS(openat, AT_FDCWD, path.buf, O_RDONLY | O_CLOEXEC, 0);
}

static void learn_from(long pid, const char *maps)
{
    long scout = open_pagemap(pid), ours = open_pagemap(SYS(getpid));
    bool seeing = scout >= 0 && ours >= 0;
    struct mapping m;
    for (const char *line = maps; seeing && line && *line;) {
        line = read_mapping(line, &m);
        if (is_file_mapping(&m) || (!m.shared && m.protection & MAPPED_WRITE))
            follow(&m, scout);
    }
    for (const char *line = maps; seeing && line && *line;) {
        line = read_mapping(line, &m);
        if (is_file_mapping(&m))
            forget_the_rest(&m, scout, ours);
    }
    if (scout >= 0)
        SYS(close, scout);
    if (ours >= 0)
        SYS(close, ours);
}

/* Have it run its program; 0 once it has said END, or -errno, as when that takes too long. */
static long run_scout(int ctl)
{
    struct frame ready, end;
    const int64_t most[2] = {SCOUT_MOST_S, 0};
    long r = SYS(setsockopt, ctl, SF_SOL_SOCKET, 20 /* SO_RCVTIMEO */, most, sizeof most);
    if (r >= 0)
        r = read_all(ctl, &ready, sizeof ready);
    if (r >= 0)
        r = write_all(ctl, &scout_run, sizeof scout_run);
    return r < 0 ? r : read_all(ctl, &end, sizeof end);
}

/* Send a scout ahead and learn from it. True in the scout, which finds ctl where a program does and shall do as one. */
static bool send_scout(void *tid_address)
{
    int pair[2];
    const char *maps = read_maps();
    if (page_size() != PAGE || SYS(socketpair, SF_AF_UNIX, SF_SOCK_STREAM | SF_SOCK_CLOEXEC, 0, pair) < 0)
        return false;
    /* The child's tid is the fourth argument or the fifth, see clone_child; no signal tells of its end. */
    long pid = SYS(clone, CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID, 0, NULL, tid_address, tid_address);
    if (pid == 0) {
        be_scout(pair[1]);
        SYS(close, pair[0]);
        SYS(close, pair[1]);
        cut_mappings(maps);
        return true;
    }
    SYS(close, pair[1]);
    if (pid > 0 && run_scout(pair[0]) >= 0)
        learn_from(pid, maps);
    SYS(unlinkat, AT_FDCWD, SCOUT_FILE, 0);
    SYS(close, pair[0]);
    if (pid > 0) {
        SYS(kill, pid, SF_SIGKILL);
        SYS(wait4, pid, NULL, SF_WALL, NULL);
    }
    return false;
}

/* --- a child --- */

/* Write to what will be written to; once we are in our cgroup, which is charged for it. */
static void touch_pages(void)
{
    for (int i = 0; i < touched_count; i++)
        for (uint64_t at = touched[i].start; at < touched[i].end; at += PAGE)
            write_to(at);
}

#endif
