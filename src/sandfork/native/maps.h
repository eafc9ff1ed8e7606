/*
 * What this process has mapped, as the kernel tells it in /proc/self/maps.
 */
#ifndef SANDFORK_MAPS_H
#define SANDFORK_MAPS_H

#include "sys.h"

#define MAPS_BYTES 131072
#define PAGE 4096ul

enum { MAPPED_READ = 1, MAPPED_WRITE = 2, MAPPED_EXEC = 4 }; /* as mmap takes them */

struct mapping {
    uint64_t start, end;
    uint64_t inode; /* 0: of no file */
    int protection;
    bool shared;
    const char *name; /* a path, a word in brackets, or the end of the line */
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

/* The kernel's size of a page, from what it gave the process; 0 when it does not say. What is not PAGE is left alone. */
static inline uint64_t page_size(void)
{
    uint64_t pair[2], size = 0;
    long fd = SYS(openat, AT_FDCWD, "/proc/self/auxv", O_RDONLY | O_CLOEXEC, 0);
    while (fd >= 0 && SYS(read, fd, pair, sizeof pair) == sizeof pair && pair[0])
        if (pair[0] == 6 /* AT_PAGESZ */)
            size = pair[1];
    if (fd >= 0)
        SYS(close, fd);
    return size;
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

/* Take one line of /proc/self/maps: START-END PERM OFFSET MAJOR:MINOR INODE NAME; the next line, or NULL at the end. */
static const char *read_mapping(const char *at, struct mapping *m)
{
    *m = (struct mapping){0};
    m->start = read_digits(&at, 16);
    at++;
    m->end = read_digits(&at, 16);
    if (*at != ' ')
        return NULL;
    m->protection =
        (at[1] == 'r' ? MAPPED_READ : 0) | (at[2] == 'w' ? MAPPED_WRITE : 0) | (at[3] == 'x' ? MAPPED_EXEC : 0);
    m->shared = at[4] != 'p';
    for (int field = 0; field < 3; field++)
        for (at++; *at && *at != ' ';)
            at++;
    at++;
    m->inode = read_digits(&at, 10);
    while (*at == ' ')
        at++;
    m->name = at;
    while (*at && *at != '\n')
        at++;
    return *at ? at + 1 : NULL;
}

#endif
