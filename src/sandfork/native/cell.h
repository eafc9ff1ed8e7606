/*
 * A cell: the tiny init (pid 1) of one sandbox. In order:
 *
 *   make a /proc -> join the template's mount namespace and copy it -> join the slot's network namespace -> size-capped
 *   tmpfs on /sandbox (which holds /tmp and /dev/shm too) -> mount the /proc -> join the slot's user namespace, become its
 *   root -> ask the zygote for the program's process -> close everything -> serve files until the server goes
 *
 * Orphans of the program become its children and are reaped by the kernel (SIGCHLD ignored). Its death ends the whole
 * pid namespace.
 */
#ifndef SANDFORK_CELL_H
#define SANDFORK_CELL_H

#include "agent.h"
#include "confine.h"
#include "rlimits.h"
#include "root.h"
#include "slot.h"

struct cell_birth {
    uint32_t slot;
    uint32_t serial;
    uint32_t open_files;
    uint32_t order_flags;
    int root_mnt;
    int orders;  /* to the zygote */
    int reports; /* to the warden, for a failure before the zygote is asked */
    int cgroup_fds[HIERARCHIES_MAX];
    int fds[5]; /* ctl, stdin, stdout, stderr, agent */
};

static long cell_mounts(const struct cell_birth *b, int proc, uint32_t *step)
{
    const struct slot *s = &host.slots[b->slot];
    struct text options = {0};
    text_add(&options, "mode=755,size=");
    text_num(&options, (int64_t)s->limits.disk_bytes);
    text_add(&options, ",nr_inodes=");
    text_num(&options, (int64_t)s->limits.inodes);
    int64_t owner = host.single_uid ? 0 : 2 + 2 * (int64_t)b->slot;
    text_add(&options, ",uid=");
    text_num(&options, owner);
    text_add(&options, ",gid=");
    text_num(&options, owner);
    *step = STEP_TMPFS;
    long r = SYS(mount, "sandbox", "/sandbox", "tmpfs", SF_MS_NOSUID | SF_MS_NODEV, options.buf);
    if (r < 0)
        return r;
    SYS(umask, 0);
    if ((r = SYS(mkdirat, AT_FDCWD, "/sandbox/.tmp", 01777)) < 0 || (r = SYS(mkdirat, AT_FDCWD, "/sandbox/.shm", 01777)) < 0)
        return r;
    *step = STEP_PROC;
    return mount_proc(proc);
}

static long cell_identity(const struct cell_birth *b, uint32_t *step)
{
    const struct slot *s = &host.slots[b->slot];
    *step = STEP_SETNS_USER;
    long r = SYS(setns, s->user_ns, CLONE_NEWUSER);
    if (r < 0)
        return r;
    *step = STEP_UID;
    uint32_t uid = host.single_uid ? SANDBOX_UID : 0;
    if ((r = SYS(setresgid, uid, uid, uid)) < 0 || (r = SYS(setresuid, uid, uid, uid)) < 0)
        return r;
    /* So that the zygote, which has power over this user namespace, may join our namespaces by pidfd. */
    return SYS(prctl, PR_SET_DUMPABLE, 1, 0, 0, 0);
}

/* What is asked of a zygote for a process in a sandbox that has `limits`. */
static struct fork_order cell_fork_order(const struct cell_birth *b, const struct limits *limits)
{
    struct fork_order order = {
        .slot = b->slot,
        .serial = b->serial,
        .open_files = b->open_files,
        .cgroup_fds = (uint32_t)host.hierarchy_count,
        .flags = b->order_flags | (host.unified ? ORDER_INTO_CGROUP : 0),
    };
    if (!host.hierarchy_count)
        limit_by_rlimits(&order, limits);
    return order;
}

/* What failed where sending an order returned `r`: the zygote may be dead, and its end not seen yet. */
static uint32_t order_step(long r)
{
    return r == -EPIPE || r == -ECONNRESET ? STEP_ZYGOTE : STEP_ORDER;
}

static long cell_order(const struct cell_birth *b, uint32_t *step)
{
    *step = STEP_ORDER;
    long self = SYS(pidfd_open, SYS(getpid), 0);
    if (self < 0)
        return self;
    int fds[FDS_MAX] = {(int)self, b->fds[0], b->fds[1], b->fds[2], b->fds[3]};
    struct fork_order order = cell_fork_order(b, &host.slots[b->slot].limits);
    for (int i = 0; i < host.hierarchy_count; i++)
        fds[ORDER_CGROUPS + i] = b->cgroup_fds[i];
    long r = send_fds(b->orders, &order, sizeof order, fds, ORDER_CGROUPS + host.hierarchy_count);
    *step = order_step(r);
    return r < 0 ? r : 0;
}

static __attribute__((noreturn)) void cell_main(const struct cell_birth *b)
{
    const struct slot *s = &host.slots[b->slot];
    uint32_t step = STEP_PROC;
    long r = make_proc("2"), proc = r;
    if (r >= 0) {
        step = STEP_SETNS_ROOT;
        r = SYS(setns, b->root_mnt, CLONE_NEWNS);
    }
    if (r >= 0) {
        step = STEP_UNSHARE;
        r = SYS(unshare, CLONE_NEWNS);
    }
    if (r >= 0) {
        step = STEP_SETNS_NET;
        r = SYS(setns, s->shared_net ? host.shared_net_ns : s->net_ns, CLONE_NEWNET);
    }
    if (r >= 0)
        r = cell_mounts(b, (int)proc, &step);
    if (r >= 0)
        r = cell_identity(b, &step);
    if (r >= 0)
        r = cell_order(b, &step);
    long work = r < 0 ? r : SYS(openat, AT_FDCWD, "/sandbox", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (work < 0) {
        struct fork_report failure = {b->slot, b->serial, (int32_t)(r < 0 ? r : work), step};
        send_fds(b->reports, &failure, sizeof failure, NULL, 0);
        SYS(exit_group, 1);
    }
    signal_disposition(SF_SIGCHLD, true);
    SYS(dup3, b->fds[4], 0, O_CLOEXEC);
    SYS(dup3, work, 1, O_CLOEXEC);
    SYS(close_range, 2, ~0u, 0);
    agent_serve(0, 1);
}

#endif
