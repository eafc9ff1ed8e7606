/*
 * RUN, taken on behalf of the interpreter that loaded zygote.so: the frame is read, its limits are put in force and its
 * file is written. Done by the interpreter, the same would touch forty more pages of every parked sandbox.
 */
#ifndef SANDFORK_RECEIVE_H
#define SANDFORK_RECEIVE_H

#include "end.h"
#include "run.h"

#define RUN_SHORT 16384

/* Where RUN's body lies in memory, and what of it where in it; zygote.py reads these. */
struct received {
    uint64_t address, length; /* of the body; `address` 0: in short_run */
    uint64_t code, code_end;
    uint64_t name, name_end; /* of the file, without its NUL; both 0: none */
    uint64_t more;           /* not 0: there are fields that only the interpreter can take */
    uint64_t error;          /* why its file could not be written */
};

static char short_run[RUN_SHORT];

static char *large_run; /* the memory of a RUN that is longer than most */
static size_t large_size;

static void release_run(void)
{
    if (large_run)
        SYS(munmap, large_run, large_size);
    large_run = NULL;
}

/* One read brings it whole unless it is large. -EINTR only where nothing was read yet. */
static long read_run(int fd, char **body, size_t *len)
{
    struct frame head;
    long n = SYS(read, fd, short_run, sizeof short_run), r = 0;
    if (n <= 0)
        return n < 0 ? n : -EPIPE;
    if ((size_t)n < sizeof head) {
        r = read_all(fd, short_run + n, sizeof head - (size_t)n);
        n = sizeof head;
    }
    memcpy(&head, short_run, sizeof head);
    size_t have = (size_t)n - sizeof head;
    if (r < 0 || head.type != FRAME_RUN || head.len > RUN_MAX || have > head.len)
        return r < 0 ? r : -EPROTO;
    *body = short_run + sizeof head;
    *len = head.len;
    if (*len > sizeof short_run - sizeof head) {
        r = SYS(mmap, NULL, *len, 3 /* READ|WRITE */, 0x22 /* PRIVATE|ANONYMOUS */, -1, 0);
        if (r < 0)
            return r;
        large_run = memcpy((char *)r, *body, have);
        large_size = *len;
        *body = large_run;
    }
    return read_all(fd, *body + have, *len - have);
}

static long write_run_file(const char *file, const char *code, size_t len)
{
    long fd = SYS(openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    long r = fd < 0 ? fd : write_all((int)fd, code, len);
    if (fd >= 0)
        SYS(close, fd);
    return r;
}

static long take_run(int fd, struct received *out)
{
    char *body, *value, *file = NULL;
    size_t len, words = 0;
    uint64_t cpu_s = 0; /* not put on a process that lasts: the kernel would count all its steps together */
    uint8_t tag;
    bool lasting = false;
    release_run();
    long r = read_run(fd, &body, &len);
    if (r < 0)
        return r;
    runner = identity_of(fd);
    *out = (struct received){.address = large_run ? (uint64_t)body : 0, .length = len};
    struct field_reader reader = {body, len};
    while (next_field(&reader, &tag, &value, &len)) {
        uint64_t at = (uint64_t)(value - body);
        if (tag == FIELD_CPU)
            cpu_s = field_u64(value, len);
        if (tag == FIELD_CPU || run_limit(tag, field_u64(value, len)))
            continue;
        if (tag == FIELD_FILE && is_text(value, len))
            file = value, out->name = at, out->name_end = at + len - 1;
        else if (tag == FIELD_CODE)
            out->code = at, out->code_end = at + len;
        else if (tag != FIELD_ARGV || words++)
            out->more = 1; /* the first word is the file's name */
        lasting |= tag == FIELD_LASTING && field_u64(value, len);
    }
    if (reader.left)
        return -EPROTO;
    if (cpu_s && !lasting)
        run_limit(FIELD_CPU, cpu_s);
    if (file && out->code && !lasting)
        out->error = (uint64_t)-write_run_file(file, body + out->code, out->code_end - out->code);
    return 0;
}

#endif
