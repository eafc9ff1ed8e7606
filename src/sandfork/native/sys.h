/*
 * Raw system calls and the few string functions that freestanding code needs.
 *
 * Everything in this directory is compiled with -ffreestanding -nostdlib, for two reasons: the zygote's shared
 * object is loaded into the interpreter of whatever image the sandbox uses (glibc or musl, any version), and the
 * warden, which is forked for every sandbox, stays a handful of pages.
 *
 * All calls return the kernel's value: -errno on failure.
 */
#ifndef SANDFORK_SYS_H
#define SANDFORK_SYS_H

#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/limits.h>
#include <linux/sched.h>
#include <linux/signal.h>
#include <linux/stat.h>
#include <linux/time.h>
#include <linux/resource.h>
#include <linux/types.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
static inline long sys6(long n, long a, long b, long c, long d, long e, long f)
{
    long ret;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(ret)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return ret;
}
#elif defined(__aarch64__)
static inline long sys6(long n, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}
#else
#error "sandfork's native code knows x86_64 and aarch64"
#endif

#define SYS_PICK(_0, _1, _2, _3, _4, _5, _6, NAME, ...) NAME
#define SYS_0(n) sys6(n, 0, 0, 0, 0, 0, 0)
#define SYS_1(n, a) sys6(n, (long)(a), 0, 0, 0, 0, 0)
#define SYS_2(n, a, b) sys6(n, (long)(a), (long)(b), 0, 0, 0, 0)
#define SYS_3(n, a, b, c) sys6(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define SYS_4(n, a, b, c, d) sys6(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define SYS_5(n, a, b, c, d, e) sys6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define SYS_6(n, a, b, c, d, e, f) sys6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
/* SYS(openat, dirfd, path, flags): the call by its kernel name, with up to six arguments. */
#define SYS(name, ...)                                                                                                 \
    SYS_PICK(_ __VA_OPT__(, ) __VA_ARGS__, SYS_6, SYS_5, SYS_4, SYS_3, SYS_2, SYS_1, SYS_0)                            \
    (__NR_##name __VA_OPT__(, ) __VA_ARGS__)

#ifndef AT_FDCWD
#define AT_FDCWD -100
#endif
#ifndef AT_EMPTY_PATH
#define AT_EMPTY_PATH 0x1000
#endif
#ifndef AT_REMOVEDIR
#define AT_REMOVEDIR 0x200
#endif
#ifndef AT_SYMLINK_NOFOLLOW
#define AT_SYMLINK_NOFOLLOW 0x100
#endif

static inline size_t str_len(const char *s)
{
    size_t n = 0;
    while (s[n])
        n++;
    return n;
}

static inline bool str_eq(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

static inline bool bytes_eq(const char *a, const char *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (a[i] != b[i])
            return false;
    return true;
}

/* The compiler may emit calls to these even in freestanding code; every object is of one source and has its own, unexported. */
__attribute__((visibility("hidden"), used)) void *memcpy(void *to, const void *from, size_t n)
{
    char *t = to;
    const char *f = from;
    while (n--)
        *t++ = *f++;
    return to;
}

__attribute__((visibility("hidden"), used)) void *memset(void *to, int value, size_t n)
{
    char *t = to;
    while (n--)
        *t++ = (char)value;
    return to;
}

/* A growing line of text in a fixed buffer, always terminated; what does not fit is cut. */
struct text {
    char buf[512];
    size_t len;
};

static inline void text_add(struct text *t, const char *s)
{
    while (*s && t->len + 1 < sizeof t->buf)
        t->buf[t->len++] = *s++;
    t->buf[t->len] = 0;
}

static inline void text_num(struct text *t, int64_t value)
{
    char digits[24];
    size_t n = 0;
    uint64_t v = value < 0 ? -(uint64_t)value : (uint64_t)value;
    do
        digits[n++] = (char)('0' + v % 10);
    while (v /= 10);
    if (value < 0 && t->len + 1 < sizeof t->buf)
        t->buf[t->len++] = '-';
    while (n && t->len + 1 < sizeof t->buf)
        t->buf[t->len++] = digits[--n];
    t->buf[t->len] = 0;
}

struct sf_pollfd {
    int fd;
    short events, revents;
};

static inline uint64_t clock_ns(long clock)
{
    struct timespec now;
    SYS(clock_gettime, clock, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static inline uint64_t monotonic_ns(void)
{
    return clock_ns(1 /* CLOCK_MONOTONIC */);
}

/* Write all of `n` bytes to a blocking descriptor; 0 or -errno. */
static inline long write_all(int fd, const void *from, size_t n)
{
    const char *p = from;
    while (n) {
        long w = SYS(write, fd, p, n);
        if (w == -EINTR)
            continue;
        if (w < 0)
            return w;
        p += w;
        n -= (size_t)w;
    }
    return 0;
}

/* Read exactly `n` bytes from a blocking descriptor; 0, -errno, or -EPIPE at an early end. */
static inline long read_all(int fd, void *to, size_t n)
{
    char *p = to;
    while (n) {
        long r = SYS(read, fd, p, n);
        if (r == -EINTR)
            continue;
        if (r < 0)
            return r;
        if (r == 0)
            return -EPIPE;
        p += r;
        n -= (size_t)r;
    }
    return 0;
}

/* Write a short string to a file below `dirfd` in one call, as cgroup and /proc files want it. */
static inline long write_file_at(int dirfd, const char *path, const char *value)
{
    long fd = SYS(openat, dirfd, path, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return fd;
    long w = SYS(write, fd, value, str_len(value));
    SYS(close, fd);
    return w < 0 ? w : 0;
}

/* Read the number a file below `dirfd` begins with; -errno when it cannot be read. */
static inline int64_t read_number_at(int dirfd, const char *path)
{
    char digits[24];
    long fd = SYS(openat, dirfd, path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return fd;
    long n = SYS(read, fd, digits, sizeof digits);
    SYS(close, fd);
    int64_t value = 0;
    for (long i = 0; i < n && digits[i] >= '0' && digits[i] <= '9'; i++)
        value = value * 10 + (digits[i] - '0');
    return n < 0 ? n : value;
}

/* --- sockets: the kernel's structures, spelt out because libc's headers are not used --- */

#define SF_AF_UNIX 1
#define SF_SOCK_STREAM 1
#define SF_SOCK_SEQPACKET 5
#define SF_SOCK_CLOEXEC 02000000
#define SF_SOCK_NONBLOCK 04000
#define SF_SOL_SOCKET 1
#define SF_SCM_RIGHTS 1
#define SF_MSG_NOSIGNAL 0x4000
#define SF_MSG_DONTWAIT 0x40
#define SF_MSG_CMSG_CLOEXEC 0x40000000
#define SF_MSG_CTRUNC 8
#define SF_MSG_TRUNC 0x20

struct sf_iovec {
    void *base;
    size_t len;
};

struct sf_msghdr {
    void *name;
    int namelen;
    struct sf_iovec *iov;
    size_t iovlen;
    void *control;
    size_t controllen;
    unsigned flags;
};

struct sf_cmsghdr {
    size_t len;
    int level;
    int type;
};

#define FDS_MAX 16

/* Send one message with descriptors on a SEQPACKET socket; bytes sent or -errno. */
static inline long send_fds_with(int sock, const void *data, size_t len, const int *fds, int nfds, int flags)
{
    struct {
        struct sf_cmsghdr head;
        int fds[FDS_MAX];
    } control;
    struct sf_iovec iov = {(void *)(uintptr_t)data, len};
    struct sf_msghdr msg = {.iov = &iov, .iovlen = 1};
    if (nfds) {
        control.head.len = sizeof control.head + (size_t)nfds * sizeof(int);
        control.head.level = SF_SOL_SOCKET;
        control.head.type = SF_SCM_RIGHTS;
        for (int i = 0; i < nfds; i++)
            control.fds[i] = fds[i];
        msg.control = &control;
        msg.controllen = (control.head.len + 7) & ~(size_t)7;
    }
    long r;
    do
        r = SYS(sendmsg, sock, &msg, SF_MSG_NOSIGNAL | flags);
    while (r == -EINTR);
    return r;
}

static inline long send_fds(int sock, const void *data, size_t len, const int *fds, int nfds)
{
    return send_fds_with(sock, data, len, fds, nfds, 0);
}

/* The same without waiting for room: -EAGAIN. */
static inline long send_fds_now(int sock, const void *data, size_t len, const int *fds, int nfds)
{
    return send_fds_with(sock, data, len, fds, nfds, SF_MSG_DONTWAIT);
}

/*
 * Receive one message and its descriptors (close-on-exec). Returns the length, 0 at the peer's end, or -errno.
 * `*nfds` is how many descriptors came; a truncated message or descriptor list is -EMSGSIZE, with all closed.
 */
static inline long recv_fds(int sock, void *data, size_t len, int *fds, int *nfds, int flags)
{
    struct {
        struct sf_cmsghdr head;
        int fds[FDS_MAX];
    } control;
    struct sf_iovec iov = {data, len};
    struct sf_msghdr msg = {.iov = &iov, .iovlen = 1, .control = &control, .controllen = sizeof control};
    *nfds = 0;
    long r;
    do
        r = SYS(recvmsg, sock, &msg, flags | SF_MSG_CMSG_CLOEXEC);
    while (r == -EINTR);
    if (r < 0)
        return r;
    if (msg.controllen >= sizeof control.head && control.head.level == SF_SOL_SOCKET &&
        control.head.type == SF_SCM_RIGHTS) {
        *nfds = (int)((control.head.len - sizeof control.head) / sizeof(int));
        for (int i = 0; i < *nfds; i++)
            fds[i] = control.fds[i];
    }
    if (msg.flags & (SF_MSG_CTRUNC | SF_MSG_TRUNC)) {
        for (int i = 0; i < *nfds; i++)
            SYS(close, fds[i]);
        *nfds = 0;
        return -EMSGSIZE;
    }
    return r;
}

#define SF_SIGKILL 9
#define SF_SIGSTOP 19
#define SF_SIGCHLD 17
#define SF_SIGTERM 15
#define SF_SIGINT 2
#define SF_SIGHUP 1
#define SF_SIGPIPE 13
#define SF_SIG_BLOCK 0
#define SF_SIG_SETMASK 2
#define SF_WALL 0x40000000 /* of wait4: also for children whose end no SIGCHLD tells */

/* The kernel's struct sigaction, which differs from libc's. */
struct sf_sigaction {
    void *handler;
    unsigned long flags;
#if defined(__x86_64__)
    void *restorer;
#endif
    uint64_t mask;
};

static inline long signal_disposition(int signal, bool ignore)
{
    struct sf_sigaction act = {.handler = (void *)(uintptr_t)(ignore ? 1 : 0)};
    return SYS(rt_sigaction, signal, &act, NULL, 8);
}

/* fork() by clone with namespace flags: returns 0 in the child. SIGCHLD is sent to the parent at its end. */
static inline long fork_with(uint64_t flags, uint64_t exit_signal, int *pidfd)
{
    if (pidfd)
        flags |= CLONE_PIDFD;
    /* Not clone3, which containers refuse: what is asked for here fits the older call, on which all architectures agree. */
    return SYS(clone, flags | exit_signal, 0, pidfd, 0, 0);
}

/*
 * A child that sleeps until it is killed, for what the kernel makes only with a process. It has our memory and descriptors
 * instead of copies, and no stack, for it does nothing but one call for ever. No signal tells of its end: wait4 with SF_WALL.
 */
static inline long clone_sleeper(uint64_t flags)
{
    flags |= CLONE_VM | CLONE_FILES;
#if defined(__x86_64__)
    register long tid __asm__("r10") = 0, tls __asm__("r8") = 0;
    long r = __NR_clone;
    __asm__ volatile("syscall\n\ttest %%rax, %%rax\n\tjnz 1f\n0:\tmov %[pause], %%eax\n\tsyscall\n\tjmp 0b\n1:"
                     : "+a"(r)
                     : "D"(flags), "S"(0L), "d"(0L), "r"(tid), "r"(tls), [pause] "i"(__NR_pause)
                     : "rcx", "r11", "memory");
    return r;
#elif defined(__aarch64__)
    register long r __asm__("x0") = (long)flags;
    register long stack __asm__("x1") = 0, parent __asm__("x2") = 0, tls __asm__("x3") = 0, tid __asm__("x4") = 0;
    register long number __asm__("x8") = __NR_clone;
    /* In the child all of ppoll's arguments are 0 as they are. */
    __asm__ volatile("svc 0\n\tcbnz x0, 1f\n0:\tmov x0, 0\n\tmov x8, %[ppoll]\n\tsvc 0\n\tb 0b\n1:"
                     : "+r"(r), "+r"(number)
                     : "r"(stack), "r"(parent), "r"(tls), "r"(tid), [ppoll] "i"(__NR_ppoll)
                     : "memory");
    return r;
#endif
}

#endif
