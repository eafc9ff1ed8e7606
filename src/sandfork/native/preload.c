/*
 * preload.so: the fork path of an interpreter that has none of ours in it. The dynamic linker loads this in front of the C
 * library, so it sees the interpreter's calls to that; once it is up and asks for its program, it becomes a zygote, and
 * each child goes on from there. Nothing of ours is on its stack but this call, and its end is its own.
 *
 * Found open: 3 orders, 4 reports, 5 the confinement profile, 6 this file, and 7, where there is one, a driver. The variable
 * SANDFORK_FORK holds four words: when to fork, the program's file, the interpreter, and the path of the driver or nothing.
 *
 *   open  as it opens the program's file
 *   read  as it first reads that file through stdio, having opened it much earlier
 *   mark  as it opens MARK, as its command line has it do
 *   fork  as it calls fork, as its command line has it do: for interpreters that want to know
 *
 * A program's file that was opened before the fork is opened anew in the child under the same number. So that there is
 * one, the zygote has an empty work directory of its own, and a file of one byte in it.
 *
 * The C library's functions that are used here are few and weak, for images with others: what is not there is not needed.
 */
#include "preload.h"

#define PUBLIC __attribute__((visibility("default")))
#define TMPFILE 020200000 /* O_TMPFILE */

typedef struct stdio FILE;

extern void *dlsym(void *handle, const char *name) __attribute__((weak));
extern int fileno(FILE *file) __attribute__((weak));

static void *next_symbol(const char *name)
{
    void *found = dlsym ? dlsym((void *)-1l /* RTLD_NEXT */, name) : NULL;
    if (!found)
        give_up(name, 0);
    return found;
}

#define NEXT(result, name, ...)                                                                                        \
    static result (*next)(__VA_ARGS__);                                                                                \
    if (!next)                                                                                                         \
    next = next_symbol(#name)

static void before_open(const char *path, const void *caller)
{
    if ((fork_at == AT_OPEN && str_eq(path, program_path)) || (fork_at == AT_MARK && str_eq(path, MARK)))
        become_zygote(caller);
}

static void after_open(const char *path, int fd, bool cloexec)
{
    if (fork_at && fd >= 0 && str_eq(path, program_path)) {
        opened.fd = fd;
        opened.cloexec = cloexec;
    }
}

#define OPEN(name)                                                                                                     \
    PUBLIC int name(const char *path, int flags, ...)                                                                  \
    {                                                                                                                  \
        NEXT(int, name, const char *, int, ...);                                                                       \
        __builtin_va_list list;                                                                                        \
        __builtin_va_start(list, flags);                                                                               \
        unsigned mode = flags & O_CREAT || (flags & TMPFILE) == TMPFILE ? __builtin_va_arg(list, unsigned) : 0;        \
        __builtin_va_end(list);                                                                                        \
        before_open(path, __builtin_return_address(0));                                                                \
        int fd = next(path, flags, mode);                                                                              \
        after_open(path, fd, flags & O_CLOEXEC);                                                                       \
        return fd;                                                                                                     \
    }

#define FOPEN(name)                                                                                                    \
    PUBLIC FILE *name(const char *path, const char *mode)                                                              \
    {                                                                                                                  \
        NEXT(FILE *, name, const char *, const char *);                                                                \
        before_open(path, __builtin_return_address(0));                                                                \
        FILE *file = next(path, mode);                                                                                 \
        if (fork_at && file)                                                                                           \
            after_open(path, fileno(file), false);                                                                     \
        return file;                                                                                                   \
    }

OPEN(open)
OPEN(open64)
FOPEN(fopen)
FOPEN(fopen64)

/* Of the file that stands for the program's no more is given than can be put right later. */
PUBLIC long read(int fd, void *buffer, size_t size)
{
    NEXT(long, read, int, void *, size_t);
    if (fork_at && fd == opened.fd && size && fd) {
        if (opened.first)
            give_up("the program's file was read before the fork", 0);
        opened.first = buffer;
        size = 1;
    }
    return next(fd, buffer, size);
}

static void before_stdio(FILE *file, const void *caller)
{
    if (fork_at == AT_READ && opened.fd && fileno(file) == opened.fd)
        become_zygote(caller);
}

#define GETC(name)                                                                                                     \
    PUBLIC int name(FILE *file)                                                                                        \
    {                                                                                                                  \
        NEXT(int, name, FILE *);                                                                                       \
        before_stdio(file, __builtin_return_address(0));                                                               \
        return next(file);                                                                                             \
    }

GETC(fgetc)
GETC(getc)

PUBLIC char *fgets(char *line, int size, FILE *file)
{
    NEXT(char *, fgets, char *, int, FILE *);
    before_stdio(file, __builtin_return_address(0));
    return next(line, size, file);
}

PUBLIC int fork(void)
{
    NEXT(int, fork, void);
    if (fork_at != AT_FORK)
        return next();
    become_zygote(__builtin_return_address(0));
    return 0;
}

PUBLIC long time(long *place)
{
    NEXT(long, time, long *);
    long now = next(place);
    if (place && fork_at && clock_count < CLOCKS_MAX)
        clocks[clock_count++] = (struct clock){place, now};
    return now;
}

PUBLIC void srand(unsigned seed)
{
    NEXT(void, srand, unsigned);
    seeded |= fork_at != NEVER;
    next(seed);
}

PUBLIC char *mkdtemp(char *template)
{
    NEXT(char *, mkdtemp, char *);
    char *path = next(template);
    size_t size = path ? str_len(path) + 1 : 0;
    if (fork_at && size && size <= PATH_MAX && directory_count < DIRECTORIES_MAX)
        memcpy(directories[directory_count++], path, size);
    return path;
}

/* Before the fork an interpreter is who its children will be. */
#define IDENTITY(name)                                                                                                 \
    PUBLIC unsigned name(void)                                                                                         \
    {                                                                                                                  \
        return fork_at ? SANDBOX_UID : (unsigned)SYS(name);                                                            \
    }

IDENTITY(getuid)
IDENTITY(geteuid)
IDENTITY(getgid)
IDENTITY(getegid)
