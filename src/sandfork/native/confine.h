/*
 * Lock-down of a freshly forked child, in order:
 *
 *   attach to the sandbox's cgroups -> own cgroup namespace -> join the cell's user, mount, network, ipc and uts
 *   namespaces in one setns -> work directory, session, descriptors -> rlimits -> empty bounding set -> uid 1000,
 *   no groups -> no capabilities -> no_new_privs -> Landlock -> the seal of the seccomp policy (see messages.h) ->
 *   dumpable, so that /proc/self is its own
 *
 * Kernel: 5.12 (mount_setattr) for the sandbox's root, 5.13 for Landlock, 6.12 for its `scoped` bits. What the host
 * lacks is known before: the profile then carries zeros, and start-up has refused unless that was configured.
 *
 * The child still has every capability of the template's user namespace when this starts and none when it ends. Any
 * step that fails ends the child: nothing of the caller's runs in a half-confined process.
 */
#ifndef SANDFORK_CONFINE_H
#define SANDFORK_CONFINE_H

#include "fail.h"

#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <linux/capability.h>
#include <linux/securebits.h>

struct confinement {
    struct profile profile;
    struct sock_filter bpf[BPF_MAX];
    struct sock_filter seal[SEAL_MAX];
    char paths[PATHS_MAX];
};

static bool profile_fits(const struct profile *p)
{
    return p->bpf_len <= BPF_MAX && p->seal_len <= SEAL_MAX && p->paths_len <= PATHS_MAX;
}

static long load_filter(const struct sock_filter *code, uint32_t len)
{
    struct sock_fprog program = {(unsigned short)len, (struct sock_filter *)(uintptr_t)code};
    return len ? SYS(seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) : 0;
}

static long landlock_allow(long ruleset, const char *path, uint64_t access)
{
    struct landlock_path_beneath_attr rule = {.allowed_access = access};
    rule.parent_fd = (int)SYS(openat, AT_FDCWD, path, O_PATH | O_CLOEXEC, 0);
    if (rule.parent_fd < 0)
        return rule.parent_fd;
    long r = SYS(landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
    SYS(close, rule.parent_fd);
    return r;
}

/* The kernel's own struct, spelt out: distributions' headers are older than the kernels we meet. */
struct sf_landlock_ruleset {
    uint64_t handled_access_fs;
    uint64_t handled_access_net;
    uint64_t scoped;
};

#define SF_LANDLOCK_READ (LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
#define SF_LANDLOCK_DEVICE (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE | (1u << 15) /* IOCTL_DEV */)

/* Read everywhere, write in the work directory and to devices. The rules are made here, after the mounts: a rule on
 * a directory that a later mount hides would never be met. */
static long confine_landlock(const struct profile *profile, const char *work_dir)
{
    if (!profile->landlock_fs)
        return 0;
    struct sf_landlock_ruleset attr = {profile->landlock_fs, profile->landlock_net, profile->landlock_scoped};
    size_t size = profile->landlock_scoped ? sizeof attr : profile->landlock_net ? 16 : 8;
    long ruleset = SYS(landlock_create_ruleset, &attr, size, 0);
    if (ruleset < 0)
        return ruleset;
    long r = landlock_allow(ruleset, "/", SF_LANDLOCK_READ & profile->landlock_fs);
    if (r >= 0)
        r = landlock_allow(ruleset, work_dir, profile->landlock_fs);
    if (r >= 0)
        r = landlock_allow(ruleset, "/dev", (SF_LANDLOCK_DEVICE | SF_LANDLOCK_READ) & profile->landlock_fs);
    if (r >= 0)
        r = SYS(landlock_restrict_self, ruleset, 0);
    SYS(close, ruleset);
    return r;
}

/* Never above what the host gave us: raising a hard limit needs CAP_SYS_RESOURCE. */
static long set_rlimit(int resource, uint64_t value)
{
    struct rlimit64 old, new;
    long r = SYS(prlimit64, 0, resource, NULL, &old);
    if (r < 0)
        return r;
    new.rlim_cur = new.rlim_max = value < old.rlim_max ? value : old.rlim_max;
    return SYS(prlimit64, 0, resource, &new, NULL);
}

static long confine_rlimits(const struct fork_order *order)
{
    const struct {
        int resource;
        uint64_t value;
    } table[] = {
        {RLIMIT_CORE, 1}, /* see the janitor: 0 would not keep the host's core handler from being started */
        {RLIMIT_NOFILE, order->open_files},
        {RLIMIT_MEMLOCK, 64 << 10},
        {RLIMIT_MSGQUEUE, 64 << 10}, /* message queues are kernel memory */
        {RLIMIT_SIGPENDING, 256},
        {RLIMIT_NICE, 0},
        {RLIMIT_RTPRIO, 0},
        {RLIMIT_STACK, 8 << 20},
    };
    long r = 0;
    for (size_t i = 0; i < sizeof table / sizeof *table && r >= 0; i++)
        r = set_rlimit(table[i].resource, table[i].value);
    /* Where there is no cgroup. The kernel counts processes per uid and user namespace (Linux 5.14): per sandbox. */
    if (r >= 0 && order->pids)
        r = set_rlimit(RLIMIT_NPROC, order->pids);
    if (r >= 0 && order->memory_bytes)
        r = set_rlimit(RLIMIT_DATA, order->memory_bytes);
    return r;
}

static long confine_uid(uint32_t uid, bool keep_groups)
{
    long r = keep_groups ? 0 : SYS(setgroups, 0, NULL);
    if (r >= 0)
        r = SYS(setresgid, uid, uid, uid);
    if (r >= 0)
        r = SYS(setresuid, uid, uid, uid);
    return r;
}

static long drop_capabilities(void)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {{0}};
    return SYS(capset, &head, none);
}

static long drop_bounding_set(uint32_t count)
{
    for (uint32_t cap = 0; cap < count; cap++) {
        long r = SYS(prctl, PR_CAPBSET_DROP, cap, 0, 0, 0);
        if (r < 0)
            return r;
    }
    return 0;
}

/* From rlimits to no_new_privs: what does not depend on how the child got where it is. */
static void confine_privileges(const struct confinement *c, int ctl, const struct fork_order *order, uint32_t uid)
{
    long r = confine_rlimits(order);
    if (r < 0)
        child_fail(ctl, STEP_RLIMIT, r);
    if ((r = drop_bounding_set(c->profile.drop_bounding)) < 0)
        child_fail(ctl, STEP_CAPBSET, r);
    if ((r = confine_uid(uid, c->profile.flags & PROFILE_KEEP_GROUPS)) < 0)
        child_fail(ctl, STEP_UID, r);
    if ((r = drop_capabilities()) < 0)
        child_fail(ctl, STEP_CAPSET, r);
    if ((r = SYS(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) < 0)
        child_fail(ctl, STEP_NNP, r);
}

/*
 * A changed uid makes the process undumpable and its /proc/self unreadable to itself. But as long as it is, no process of the
 * sandbox that it joins can open its memory through /proc: so this comes after the last wall.
 */
static void become_dumpable(void)
{
    SYS(prctl, PR_SET_DUMPABLE, 1, 0, 0, 0);
}

static void confine_seal(const struct confinement *c, int ctl)
{
    long r = load_filter(c->seal, c->profile.seal_len);
    if (r < 0)
        child_fail(ctl, STEP_SECCOMP, r);
}

/* Descriptors 0, 1, 2 and ctl stay; everything else the zygote or the order brought is closed. */
static void keep_stdio_and_ctl(const int *fds, int ctl)
{
    for (int i = 0; i < 3; i++) {
        long r = SYS(dup3, fds[ORDER_STDIN + i], i, 0);
        if (r < 0)
            child_fail(ctl, STEP_FDS, r);
    }
    long r = SYS(dup3, fds[ORDER_CTL], CTL_FD, O_CLOEXEC);
    if (r < 0)
        child_fail(ctl, STEP_FDS, r);
    SYS(close_range, 3, CTL_FD - 1, 0);
    SYS(close_range, CTL_FD + 1, ~0u, 0);
}

/* The child of a zygote, from clone3 to parked. `fds` are the order's, all numbered above CTL_FD. */
static void confine_child(const struct confinement *c, const struct fork_order *order, const int *fds)
{
    int ctl = fds[ORDER_CTL];
    long r;
    if (!(order->flags & ORDER_INTO_CGROUP))
        for (uint32_t i = 0; i < order->cgroup_fds; i++)
            /* "tasks", not cgroup.procs: moving one thread skips the kernel's global lock and its grace period. */
            if ((r = SYS(write, fds[ORDER_CGROUPS + i], "0", 1)) < 0)
                child_fail(ctl, STEP_CGROUP, r);
    if ((r = SYS(unshare, CLONE_NEWCGROUP)) < 0)
        child_fail(ctl, STEP_CGROUP_NS, r);
    /* One call: in two, the second is refused, for our memory still belongs to the outer user namespace. */
    if ((r = SYS(setns, fds[ORDER_CELL], CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)) < 0)
        child_fail(ctl, STEP_SETNS_CELL, r);
    if ((r = SYS(chdir, "/sandbox")) < 0)
        child_fail(ctl, STEP_CHDIR, r);
    SYS(setsid);
    SYS(umask, 022);
    keep_stdio_and_ctl(fds, ctl);
    if ((order->flags & ORDER_TERMINAL) && (r = SYS(ioctl, 0, 0x540e /* TIOCSCTTY */, 0)) < 0)
        child_fail(CTL_FD, STEP_FDS, r);
    confine_privileges(c, CTL_FD, order, SANDBOX_UID);
    if ((r = confine_landlock(&c->profile, "/sandbox")) < 0)
        child_fail(CTL_FD, STEP_LANDLOCK, r);
    confine_seal(c, CTL_FD);
    become_dumpable();
}

#endif
