/*
 * An interpreter's text in huge pages, before the first fork.
 *
 * A fork copies no page tables of a file's mappings: each child faults its way through the interpreter again, sixteen
 * pages at a time, and its end takes them all apart. Where the same bytes lie in anonymous huge pages, the child gets
 * them with one entry for two megabytes and never faults there.
 *
 * The range is what of the interpreter's read-only mappings (headers, text, constants) covers whole huge pages. One mapping
 * holds it, so its constants become executable too, which gives a program that may map memory as it likes nothing.
 * Where the kernel has no huge pages to give, all stays as it was: this saves time and changes no behaviour.
 */
#ifndef SANDFORK_HUGETEXT_H
#define SANDFORK_HUGETEXT_H

#include "maps.h"

#define HUGE_PAGE (2ul << 20)

/* Put a copy of [start, end) in its place, in huge pages; or leave it. Both ends are multiples of a huge page. */
static void move_to_huge_pages(uint64_t start, uint64_t end)
{
    uint64_t size = end - start;
    long at = SYS(mmap, NULL, size + HUGE_PAGE, 3 /* READ|WRITE */, 0x22 /* PRIVATE|ANONYMOUS */, -1, 0);
    if (at < 0)
        return;
    uint64_t copy = ((uint64_t)at + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
    memcpy((void *)copy, (const void *)start, size);
    if (SYS(madvise, copy, size, 25 /* MADV_COLLAPSE, Linux 6.1 */) == 0 &&
        SYS(mprotect, copy, size, 5 /* READ|EXEC */) == 0)
        SYS(mremap, copy, size, size, 3 /* MAYMOVE|FIXED */, start);
    SYS(munmap, at, size + HUGE_PAGE); /* what was moved away is not there any more */
}

/* Find the adjacent read-only mappings of one file around `text`, the address of a function of the interpreter's. */
static void huge_text(uint64_t text)
{
    struct mapping m = {0}, run = {0};
    for (const char *line = read_maps(); line && *line;) {
        line = read_mapping(line, &m);
        bool constant = m.protection & MAPPED_READ && !(m.protection & MAPPED_WRITE) && !m.shared;
        if (constant && m.inode && m.inode == run.inode && m.start == run.end)
            run.end = m.end;
        else if (run.start <= text && text < run.end)
            break;
        else
            run = constant ? m : (struct mapping){0};
    }
    uint64_t start = (run.start + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1), end = run.end & ~(HUGE_PAGE - 1);
    if (run.start <= text && text < run.end && start < end)
        move_to_huge_pages(start, end);
}

#endif
