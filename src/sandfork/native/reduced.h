/*
 * Lock-down of a freshly forked child where the host forbids namespaces (`--reduced`), in order:
 *
 *   work directory, session, descriptors -> rlimits, among them how many processes and how much memory each -> bounding
 *   set -> a uid and gid of this slot's own, no groups -> no capabilities -> no_new_privs -> killed with the warden ->
 *   Landlock: the profile's list of paths, and all of the work directory -> the seal of the seccomp policy
 *
 * What this leaves open (the process table, the host's clock and name, memory of all processes together, ...) start-up
 * tells by name. Kernel 5.13 (Landlock), without which this mode is refused.
 */
#ifndef SANDFORK_REDUCED_H
#define SANDFORK_REDUCED_H

#include "confine.h"

/* Rights on a file; the rest are a directory's, and a rule on a file that names one is refused. */
#define SF_LANDLOCK_FILE                                                                                               \
    (LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_READ_FILE |                       \
     (1u << 14) /* TRUNCATE */ | (1u << 15) /* IOCTL_DEV */)

/* Allow `access` below `path`, as far as it fits what is there. What is absent or beyond our reach needs no rule. */
static long reduced_allow(long ruleset, const char *path, uint64_t access)
{
    struct landlock_path_beneath_attr rule = {.allowed_access = access};
    struct statx st;
    rule.parent_fd = (int)SYS(openat, AT_FDCWD, path, O_PATH | O_CLOEXEC, 0);
    if (rule.parent_fd == -ENOENT || rule.parent_fd == -EACCES)
        return 0;
    if (rule.parent_fd < 0)
        return rule.parent_fd;
    long r = SYS(statx, rule.parent_fd, "", AT_EMPTY_PATH, STATX_TYPE, &st);
    if (r >= 0 && (st.stx_mode & 0170000) != 0040000)
        rule.allowed_access &= SF_LANDLOCK_FILE;
    if (r >= 0)
        r = SYS(landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
    SYS(close, rule.parent_fd);
    return r;
}

/* Runs in the work directory, so that "." is it. Paths below /proc/self are this process' own. */
static long reduced_landlock(const struct confinement *c)
{
    const struct profile *p = &c->profile;
    struct sf_landlock_ruleset attr = {p->landlock_fs, p->landlock_net, p->landlock_scoped};
    size_t size = p->landlock_scoped ? sizeof attr : p->landlock_net ? 16 : 8;
    long ruleset = SYS(landlock_create_ruleset, &attr, size, 0);
    if (ruleset < 0)
        return ruleset;
    long r = reduced_allow(ruleset, ".", p->landlock_fs);
    for (size_t at = 0; r >= 0 && at < p->paths_len; at += str_len(c->paths + at) + 1) {
        uint64_t access = c->paths[at] == PATH_DEVICE ? SF_LANDLOCK_DEVICE : SF_LANDLOCK_READ;
        r = reduced_allow(ruleset, c->paths + at + 1, access & p->landlock_fs);
    }
    if (r >= 0)
        r = SYS(landlock_restrict_self, ruleset, 0);
    SYS(close, ruleset);
    return r;
}

/* The child of a zygote, from clone to parked. `fds` are the order's, all numbered above CTL_FD. */
static void confine_reduced(const struct confinement *c, const struct fork_order *order, const int *fds)
{
    int ctl = fds[ORDER_CTL];
    /* The work directory is the slot's alone; the zygote's root has no capability to pass by that. */
    SYS(setfsuid, order->uid);
    long r = SYS(fchdir, fds[ORDER_CELL]);
    if (r < 0)
        child_fail(ctl, STEP_CHDIR, r);
    SYS(setsid);
    SYS(umask, 022);
    keep_stdio_and_ctl(fds, ctl);
    confine_privileges(c, CTL_FD, order, order->uid);
    become_dumpable(); /* now, for rules of Landlock are made of paths below /proc/self; no other has this uid */
    /* After the change of ids, which clears it. Only the program itself can die so; the slot's killer finds the others. */
    SYS(prctl, PR_SET_PDEATHSIG, SF_SIGKILL, 0, 0, 0);
    if (!order->uid || !c->profile.landlock_fs)
        child_fail(CTL_FD, STEP_LANDLOCK, -ENOSYS);
    if ((r = reduced_landlock(c)) < 0)
        child_fail(CTL_FD, STEP_LANDLOCK, r);
    confine_seal(c, CTL_FD);
}

#endif
