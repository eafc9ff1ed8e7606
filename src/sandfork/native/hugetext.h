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

#include "sys.h"

#define HUGE_PAGE (2ul << 20)
#define MAPS_BYTES 65536

struct mapping {
    uint64_t start, end;
    uint64_t inode;
    bool constant; /* read-only and private */
};

static uint64_t read_digits(const char **at, unsigned base)
{
    uint64_t n = 0;
    for (;; ++*at) {
        unsigned c = (unsigned char)**at, digit = c - '0';
        if (c >= 'a' && c <= 'f')
            digit = c - 'a' + 10;
        if (digit >= base)
            return n;
        n = n * base + digit;
    }
}

/* /proc/self/maps as text, or as much of it as fits, in whole lines; "" when it cannot be read. */
static const char *read_maps(void)
{
    static char maps[MAPS_BYTES];
    size_t len = 0;
    long fd = SYS(openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC, 0);
    for (long n; fd >= 0 && (n = SYS(read, fd, maps + len, sizeof maps - 1 - len)) > 0;)
        len += (size_t)n;
    if (fd >= 0)
        SYS(close, fd);
    while (len && maps[len - 1] != '\n')
        len--;
    maps[len] = 0;
    return maps;
}

/* Take one line of /proc/self/maps: START-END PERM OFFSET MAJOR:MINOR INODE PATH; the next line, or NULL at the end. */
static const char *read_mapping(const char *at, struct mapping *m)
{
    *m = (struct mapping){0};
    m->start = read_digits(&at, 16);
    at++;
    m->end = read_digits(&at, 16);
    if (*at != ' ')
        return NULL;
    m->constant = at[1] == 'r' && at[2] == '-' && at[4] == 'p';
    for (int field = 0; field < 3; field++)
        for (at++; *at && *at != ' ';)
            at++;
    at++;
    m->inode = read_digits(&at, 10);
    while (*at && *at != '\n')
        at++;
    return *at ? at + 1 : NULL;
}

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
        if (m.constant && m.inode && m.inode == run.inode && m.start == run.end)
            run.end = m.end;
        else if (run.start <= text && text < run.end)
            break;
        else
            run = m.constant ? m : (struct mapping){0};
    }
    uint64_t start = (run.start + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1), end = run.end & ~(HUGE_PAGE - 1);
    if (run.start <= text && text < run.end && start < end)
        move_to_huge_pages(start, end);
}

#endif
