/*
 * The agent: what the init of a cell does all its life. It moves files for the server, and empties a session's sandbox
 * of processes when it is asked to.
 *
 * It is trusted code with no power outside the sandbox: root of the sandbox's own user namespace, in its mount
 * namespace, unable to be signalled or traced by the program. Paths are relative to /sandbox and resolved by the kernel
 * with RESOLVE_BENEATH and without any link, so nothing the program makes can lead elsewhere; only regular files are
 * opened for content, without blocking.
 */
#ifndef SANDFORK_AGENT_H
#define SANDFORK_AGENT_H

#include "messages.h"
#include "sys.h"

#include <linux/openat2.h>

#define AGENT_CHUNK 65536
#define AGENT_FRAME_MAX (257u << 20)

struct sf_statfs {
    long type, bsize, blocks, bfree, bavail, files, ffree, fsid, namelen, frsize, flags, spare[4];
};

struct sf_dirent {
    uint64_t ino;
    int64_t off;
    unsigned short reclen;
    unsigned char type;
    char name[];
};

static char agent_buffer[AGENT_CHUNK];

static void agent_reply(int sock, uint8_t type, uint64_t value)
{
    struct {
        struct frame head;
        uint64_t value;
    } reply = {{type, {0}, 8}, value};
    write_all(sock, &reply, sizeof reply);
}

static long open_beneath(int dirfd, const char *path, uint64_t flags, uint64_t mode)
{
    struct open_how how = {
        .flags = flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK,
        .mode = mode,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV,
    };
    return SYS(openat2, dirfd, path, &how, sizeof how);
}

/* Open the directory that holds `path`, making missing ones; `*name` becomes the last component. */
static long open_parent(int work, char *path, char **name, bool make)
{
    long dir = SYS(fcntl, work, 1030 /* F_DUPFD_CLOEXEC */, 3);
    for (char *slash; dir >= 0; path = slash + 1) {
        for (slash = path; *slash && *slash != '/'; slash++)
            ;
        if (!*slash)
            break;
        *slash = 0;
        long next = open_beneath((int)dir, path, O_DIRECTORY | O_RDONLY, 0);
        if (next == -ENOENT && make) {
            SYS(mkdirat, dir, path, 0755);
            next = open_beneath((int)dir, path, O_DIRECTORY | O_RDONLY, 0);
            if (next >= 0)
                SYS(fchown, next, SANDBOX_UID, SANDBOX_UID);
        }
        *slash = '/';
        SYS(close, dir);
        dir = next;
    }
    *name = path;
    return dir;
}

/* The size of a regular file, -errno for anything else. */
static int64_t regular_size(int fd)
{
    struct statx st;
    long r = SYS(statx, fd, "", AT_EMPTY_PATH, STATX_TYPE | STATX_SIZE, &st);
    return r < 0 ? r : (st.stx_mode & 0170000) == 0100000 ? (int64_t)st.stx_size : -EINVAL;
}

/* Read `left` bytes of the request and, while `fd` is good, write them; the stream stays in step either way. */
static long agent_store(int sock, long fd, size_t left)
{
    long result = fd < 0 ? fd : 0;
    while (left) {
        size_t n = left < AGENT_CHUNK ? left : AGENT_CHUNK;
        if (read_all(sock, agent_buffer, n) < 0)
            SYS(exit_group, 0);
        if (result >= 0)
            result = write_all((int)fd, agent_buffer, n);
        left -= n;
    }
    return result;
}

static void agent_put(int sock, int work, char *path, uint32_t mode, size_t content)
{
    char *name;
    long dir = open_parent(work, path, &name, true);
    long fd = dir;
    if (dir >= 0) {
        fd = open_beneath((int)dir, name, O_WRONLY | O_CREAT, mode & 0777);
        SYS(close, dir);
    }
    if (fd >= 0 && regular_size((int)fd) < 0) {
        SYS(close, fd);
        fd = -EISDIR;
    }
    if (fd >= 0) {
        SYS(ftruncate, fd, 0);
        SYS(fchown, fd, SANDBOX_UID, SANDBOX_UID);
        SYS(fchmod, fd, mode & 0777);
    }
    long r = agent_store(sock, fd, content);
    if (fd >= 0)
        SYS(close, fd);
    agent_reply(sock, r < 0 ? FRAME_ERR : FRAME_OK, (uint64_t)(r < 0 ? -r : 0));
}

static void agent_data(int sock, const void *from, size_t n)
{
    struct frame head = {FRAME_DATA, {0}, (uint32_t)n};
    if (write_all(sock, &head, sizeof head) < 0 || write_all(sock, from, n) < 0)
        SYS(exit_group, 0);
}

static void agent_get(int sock, int work, const char *path, uint64_t max)
{
    long fd = open_beneath(work, path, O_RDONLY, 0);
    uint64_t sent = 0;
    int64_t size = fd >= 0 ? regular_size((int)fd) : 0;
    if (size < 0 || (uint64_t)size > max) {
        SYS(close, fd);
        fd = size < 0 ? size : -EFBIG;
    }
    /* A file may grow while it is read: what is sent is bounded by `max`, not by its size. */
    while (fd >= 0 && sent < max) {
        uint64_t want = max - sent < AGENT_CHUNK ? max - sent : AGENT_CHUNK;
        long n = SYS(read, fd, agent_buffer, want);
        if (n <= 0)
            break;
        agent_data(sock, agent_buffer, (size_t)n);
        sent += (uint64_t)n;
    }
    char more;
    bool longer = fd >= 0 && sent == max && SYS(read, fd, &more, 1) == 1;
    if (fd >= 0)
        SYS(close, fd);
    if (fd < 0 || longer)
        agent_reply(sock, FRAME_ERR, (uint64_t)(fd < 0 ? -fd : EFBIG));
    else
        agent_reply(sock, FRAME_OK, sent);
}

/* One DATA per entry: u8 type as in getdents64, u64 size, name. */
static void agent_list(int sock, int work, const char *path, uint32_t max)
{
    long dir = open_beneath(work, path, O_RDONLY | O_DIRECTORY, 0);
    uint32_t sent = 0;
    long n = dir;
    while (dir >= 0 && sent < max && (n = SYS(getdents64, dir, agent_buffer, AGENT_CHUNK)) > 0) {
        for (long at = 0; at < n && sent < max;) {
            struct sf_dirent *d = (struct sf_dirent *)(agent_buffer + at);
            at += d->reclen;
            if (str_eq(d->name, ".") || str_eq(d->name, ".."))
                continue;
            struct statx st = {0};
            SYS(statx, dir, d->name, AT_SYMLINK_NOFOLLOW, STATX_SIZE, &st);
            struct {
                uint64_t size;
                uint8_t type;
                char name[256];
            } entry = {st.stx_size, d->type, {0}};
            size_t len = str_len(d->name);
            memcpy(entry.name, d->name, len);
            agent_data(sock, &entry, 9 + len);
            sent++;
        }
    }
    if (dir >= 0)
        SYS(close, dir);
    agent_reply(sock, n < 0 ? FRAME_ERR : FRAME_OK, (uint64_t)(n < 0 ? -n : sent));
}

/* Open a regular file beneath the work directory; -errno for anything else. */
static long open_regular(int work, const char *path, uint64_t flags, struct statx *st)
{
    long fd = open_beneath(work, path, flags, 0);
    if (fd < 0)
        return fd;
    long r = SYS(statx, fd, "", AT_EMPTY_PATH, STATX_TYPE | STATX_SIZE | STATX_INO, st);
    if (r >= 0 && (st->stx_mode & 0170000) == 0100000)
        return fd;
    SYS(close, fd);
    return r < 0 ? r : -EINVAL;
}

static void agent_size(int sock, int work, const char *path)
{
    struct statx st = {0};
    long fd = open_regular(work, path, O_RDONLY, &st);
    if (fd >= 0) {
        uint64_t answer[2] = {st.stx_size, st.stx_ino};
        SYS(close, fd);
        agent_data(sock, answer, sizeof answer);
    }
    agent_reply(sock, fd < 0 ? FRAME_ERR : FRAME_OK, (uint64_t)(fd < 0 ? -fd : 0));
}

/* One piece of a file. Each piece opens it anew, so that no transfer keeps others waiting; the inode tells if it is the same. */
static void agent_read(int sock, int work, const char *path, uint64_t offset, uint64_t max)
{
    struct statx st = {0};
    long n = 0, fd = open_regular(work, path, O_RDONLY, &st);
    for (uint64_t sent = 0; fd >= 0 && sent < max; sent += (uint64_t)n) {
        uint64_t want = max - sent < AGENT_CHUNK ? max - sent : AGENT_CHUNK;
        n = SYS(pread64, fd, agent_buffer, want, offset + sent);
        if (n <= 0)
            break;
        agent_data(sock, agent_buffer, (size_t)n);
    }
    if (fd >= 0)
        SYS(close, fd);
    long r = fd < 0 ? fd : n;
    agent_reply(sock, r < 0 ? FRAME_ERR : FRAME_OK, r < 0 ? (uint64_t)-r : st.stx_ino);
}

static void agent_write(int sock, int work, const char *path, uint64_t offset, size_t content)
{
    struct statx st = {0};
    long fd = open_regular(work, path, O_WRONLY, &st);
    long r = fd < 0 ? fd : SYS(lseek, fd, offset, 0 /* SEEK_SET */);
    r = agent_store(sock, r < 0 ? r : fd, content);
    if (fd >= 0)
        SYS(close, fd);
    agent_reply(sock, r < 0 ? FRAME_ERR : FRAME_OK, r < 0 ? (uint64_t)-r : st.stx_ino);
}

/* SAFETY: kill(-1) reaches every process of the pid namespace but its init: pid 1, which is us, or we do not do it. */
static void agent_kill(int sock)
{
    long r = SYS(getpid) == 1 ? SYS(kill, -1, SF_SIGKILL) : -ENOSYS;
    if (r == -ESRCH)
        r = 0;
    agent_reply(sock, r < 0 ? FRAME_ERR : FRAME_OK, (uint64_t)(r < 0 ? -r : 0));
}

static void agent_delete(int sock, int work, char *path)
{
    char *name;
    long r = open_parent(work, path, &name, false);
    if (r >= 0) {
        int dir = (int)r;
        r = SYS(unlinkat, dir, name, 0);
        if (r == -EISDIR)
            r = SYS(unlinkat, dir, name, AT_REMOVEDIR);
        SYS(close, dir);
    }
    agent_reply(sock, r < 0 ? FRAME_ERR : FRAME_OK, (uint64_t)(r < 0 ? -r : 0));
}

static void agent_stat(int sock, int work)
{
    struct sf_statfs fs = {0};
    long r = SYS(fstatfs, work, &fs);
    uint64_t free_bytes = (uint64_t)fs.bfree * (uint64_t)fs.bsize;
    agent_reply(sock, r < 0 ? FRAME_ERR : FRAME_OK, fs.ffree == 0 ? 0 : free_bytes);
}

/* Serve until the server closes its end, which ends the cell and with it everything in the sandbox. */
static __attribute__((noreturn)) void agent_serve(int sock, int work)
{
    static char path[PATH_MAX + 1];
    for (;;) {
        struct frame head;
        uint64_t number = 0;
        if (read_all(sock, &head, sizeof head) < 0 || head.len < 8 || head.len > AGENT_FRAME_MAX)
            SYS(exit_group, 0);
        if (read_all(sock, &number, 8) < 0)
            SYS(exit_group, 0);
        uint32_t path_len = (uint32_t)(number >> 48);
        number &= 0xffffffffffffull;
        if (path_len > PATH_MAX || path_len > head.len - 8 || read_all(sock, path, path_len) < 0)
            SYS(exit_group, 0);
        path[path_len] = 0;
        size_t content = head.len - 8 - path_len;
        if (head.type == FRAME_PUT) {
            agent_put(sock, work, path, (uint32_t)number, content);
            continue;
        }
        if (head.type == FRAME_WRITE) {
            agent_write(sock, work, path, number, content);
            continue;
        }
        uint64_t most = 0;
        if (head.type == FRAME_READ && content == sizeof most) {
            if (read_all(sock, &most, sizeof most) < 0)
                SYS(exit_group, 0);
            agent_read(sock, work, path, number, most);
            continue;
        }
        if (agent_store(sock, -EINVAL, content) < 0 && content)
            SYS(exit_group, 0);
        if (head.type == FRAME_GET)
            agent_get(sock, work, path, number);
        else if (head.type == FRAME_LIST)
            agent_list(sock, work, path, (uint32_t)number);
        else if (head.type == FRAME_DELETE)
            agent_delete(sock, work, path);
        else if (head.type == FRAME_STAT)
            agent_stat(sock, work);
        else if (head.type == FRAME_SIZE)
            agent_size(sock, work, path);
        else if (head.type == FRAME_KILL)
            agent_kill(sock);
        else
            agent_reply(sock, FRAME_ERR, EINVAL);
    }
}

#endif
