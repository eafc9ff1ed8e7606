/*
 * The pages that every child of a zygote writes to, learned from a first child that is no sandbox: the scout.
 *
 * A child starts with its parent's pages and takes a fault for each that it writes to, and another before where it
 * reads first: that maps sixteen pages, of which most are never looked at. Written to at once, by number, they take one each.
 *
 * The scout is a fork of the zygote, made before any sandbox, and does what the zygote's children do until they wait for
 * a program. The zygote then looks in its page tables which pages are its alone, and kills it. Where anything fails there is
 * no list, or a shorter one: this saves time and changes no behaviour.
 */
#ifndef SANDFORK_TOUCHED_H
#define SANDFORK_TOUCHED_H

#include "maps.h"
#include "messages.h"

#define TOUCHED_MAX 512
#define PAGE_BYTES 4096ul

struct span {
    uint64_t start, end;
};

static struct span touched[TOUCHED_MAX];
static int touched_count;

/* What the kernel tells of a page: bit 63 that it is there, bit 61 that it is a file's or shared, bit 56 that no other has it. */
static bool is_written(uint64_t page)
{
    return page >> 63 && !(page >> 61 & 1) && page >> 56 & 1;
}

static void note_touched(uint64_t page)
{
    struct span *last = touched_count ? &touched[touched_count - 1] : NULL;
    if (last && last->end == page)
        last->end += PAGE_BYTES;
    else if (touched_count < TOUCHED_MAX)
        touched[touched_count++] = (struct span){page, page + PAGE_BYTES};
}

/* The buffer is on the stack, for what the zygote writes to now is a page of its own that the scout seems to have, too. */
static void look_at(const struct mapping *m, long pagemap)
{
    uint64_t pages[64];
    for (uint64_t at = m->start; at < m->end; at += PAGE_BYTES) {
        uint64_t index = (at - m->start) / PAGE_BYTES % 64;
        if (!index && SYS(pread64, pagemap, pages, sizeof pages, at / PAGE_BYTES * sizeof *pages) <= 0)
            return;
        if (is_written(pages[index]))
            note_touched(at);
    }
}

static void look_at_scout(long pid, const char *maps)
{
    struct text path = {0};
    struct mapping m;
    text_add(&path, "/proc/");
    text_num(&path, pid);
    text_add(&path, "/pagemap");
    long pagemap = SYS(openat, AT_FDCWD, path.buf, O_RDONLY | O_CLOEXEC, 0);
    while (pagemap >= 0 && maps && *maps) {
        maps = read_mapping(maps, &m);
        if (!m.shared && m.protection & MAPPED_WRITE)
            look_at(&m, pagemap);
    }
    if (pagemap >= 0)
        SYS(close, pagemap);
}

/* Send a scout ahead and learn from it. True in the scout, which finds ctl where a program does and shall do as one. */
static bool send_scout(void *tid_address)
{
    struct frame ready;
    int pair[2];
    const char *maps = read_maps();
    if (SYS(socketpair, SF_AF_UNIX, SF_SOCK_STREAM | SF_SOCK_CLOEXEC, 0, pair) < 0)
        return false;
    /* The child's tid is the fourth argument or the fifth, see clone_child; no signal tells of its end. */
    long pid = SYS(clone, CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID, 0, NULL, tid_address, tid_address);
    if (pid == 0) {
        SYS(dup3, pair[1], CTL_FD, O_CLOEXEC);
        SYS(close, pair[0]);
        SYS(close, pair[1]);
        return true;
    }
    SYS(close, pair[1]);
    if (pid > 0 && read_all(pair[0], &ready, sizeof ready) >= 0)
        look_at_scout(pid, maps);
    SYS(close, pair[0]);
    if (pid > 0) {
        SYS(kill, pid, SF_SIGKILL);
        SYS(wait4, pid, NULL, SF_WALL, NULL);
    }
    return false;
}

/* Write to each, changing nothing. In a child, once it is in its cgroup, which is charged for them. */
static void touch_pages(void)
{
    for (int i = 0; i < touched_count; i++)
        for (uint64_t at = touched[i].start; at < touched[i].end; at += PAGE_BYTES)
            __atomic_fetch_or((char *)at, 0, __ATOMIC_RELAXED);
}

#endif
