/*
 * The fork loop of a zygote: shared by zygote.so (inside an interpreter) and the warden's own zygotes.
 *
 * Blocks for orders, each from the cell that wants the child; joins the cell's pid namespace for children; clones.
 * In the parent nothing but this runs after warm-up, so its pages stay clean and shared. In the child zygote_fork
 * returns after confinement; the caller then becomes the program.
 */
#ifndef SANDFORK_ZYGOTE_H
#define SANDFORK_ZYGOTE_H

#include "reduced.h"

#define ZYGOTE_SOCK_LOW 64

static void report(int sock, const struct fork_order *order, long pid, uint32_t step)
{
    struct fork_report message = {order->slot, order->serial, (int32_t)pid, step};
    send_fds(sock, &message, sizeof message, NULL, 0);
}

/*
 * What came of the last orders, for markers: far more than are ever under way at once. On the stack of zygote_fork, whose
 * page each fork makes a copy of anyway.
 */
#define OUTCOMES 64

struct outcome {
    uint32_t serial; /* 0: nothing yet */
    int32_t pid;     /* the child's, or -errno */
};

static int32_t outcome_of(const struct outcome *outcomes, const struct fork_order *marker)
{
    for (int i = 0; i < OUTCOMES; i++)
        if (outcomes[i].serial == marker->serial)
            return outcomes[i].pid;
    return 0;
}

/* Resident memory of this process in KB, for the ready report. */
static uint32_t resident_kb(void)
{
    char line[128] = {0};
    long fd = SYS(openat, AT_FDCWD, "/proc/self/statm", O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return 0;
    SYS(read, fd, line, sizeof line - 1);
    SYS(close, fd);
    const char *c = line;
    while (*c && *c != ' ')
        c++;
    uint32_t pages = 0;
    for (c += *c == ' '; *c >= '0' && *c <= '9'; c++)
        pages = pages * 10 + (uint32_t)(*c - '0');
    return pages * 4;
}

static void report_ready(int reports)
{
    const struct fork_order none = {.slot = REPORT_READY};
    report(reports, &none, SYS(getpid), resident_kb());
}

/* CLONE_PARENT makes the warden the parent, so that it alone reaps; it demands exit_signal 0 and inherits ours. */
static long clone_child(const struct fork_order *order, const int *fds, void *tid_address)
{
    uint64_t flags = CLONE_PARENT | (tid_address ? CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID : 0);
    if (!(order->flags & ORDER_INTO_CGROUP))
        /* The child's tid is the fourth argument or the fifth; the other, unused one is that of CLONE_SETTLS. */
        return SYS(clone, flags, 0, NULL, tid_address, tid_address);
    struct clone_args args = {.flags = flags | CLONE_INTO_CGROUP,
                              .child_tid = (uintptr_t)tid_address,
                              .cgroup = (uint64_t)fds[ORDER_CGROUPS]};
    return SYS(clone3, &args, sizeof args);
}

/* Move a descriptor to at least `low`, so that it cannot collide with the numbers a child fills. */
static long raise_fd(int fd, int low)
{
    if (fd >= low)
        return fd;
    long high = SYS(fcntl, fd, 1030 /* F_DUPFD_CLOEXEC */, low);
    SYS(close, fd);
    return high;
}

/*
 * Serve orders on `orders` until the warden closes it (returns -EPIPE); returns in each child, with ORDER_URGENT and
 * ORDER_REDUCED of its order.
 * `reports` is the socket to the warden. `tid_address` is libc's cached thread id, or NULL.
 */
static long zygote_fork(const struct confinement *c, int orders, int reports, void *tid_address)
{
    struct outcome outcomes[OUTCOMES] = {0};
    for (uint32_t served = 0;;) {
        struct fork_order order;
        int fds[FDS_MAX], nfds;
        long n = recv_fds(orders, &order, sizeof order, fds, &nfds, 0);
        if (n == 0 || n == -ECONNRESET)
            return -EPIPE;
        if (n != sizeof order) {
            order.slot = REPORT_GARBLED;
            report(reports, &order, n < 0 ? n : -EPROTO, STEP_ORDER);
        } else if (order.flags & ORDER_MARKER) {
            report(reports, &order, outcome_of(outcomes, &order), STEP_MARKER);
        } else if (nfds < ORDER_CGROUPS || nfds != ORDER_CGROUPS + (int)order.cgroup_fds) {
            report(reports, &order, -EPROTO, STEP_ORDER);
        } else {
            long r = 0;
            for (int i = 0; i < nfds && r >= 0; i++)
                if ((r = raise_fd(fds[i], ZYGOTE_SOCK_LOW)) >= 0)
                    fds[i] = (int)r;
            uint32_t step = STEP_FDS;
            if (r >= 0 && !(order.flags & ORDER_REDUCED)) {
                step = STEP_SETNS_PID;
                r = SYS(setns, fds[ORDER_CELL], CLONE_NEWPID);
            }
            if (r >= 0) {
                step = STEP_CLONE;
                r = clone_child(&order, fds, tid_address);
            }
            if (r == 0) {
                /* The child itself: a zygote can die, or wait for a processor, while its child is long at work. */
                report(reports, &order, 0, STEP_NONE);
                if (order.flags & ORDER_REDUCED)
                    confine_reduced(c, &order, fds);
                else
                    confine_child(c, &order, fds);
                return order.flags & (ORDER_URGENT | ORDER_REDUCED);
            }
            outcomes[served++ % OUTCOMES] = (struct outcome){order.serial, (int32_t)r};
            if (r < 0)
                report(reports, &order, r, step);
        }
        for (int i = 0; i < nfds; i++)
            SYS(close, fds[i]);
    }
}

#endif
