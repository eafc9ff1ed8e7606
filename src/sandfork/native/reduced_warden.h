/*
 * Slots where the host forbids namespaces (`--reduced`). The warden stays root of the container, with five capabilities;
 * a slot is
 *
 *   two uids, one for the program and one, the guard, for whatever of ours works in the slot: a guard's effective uid is
 *     the program's, so that it may touch its files and signal it, and its real and saved uid are not, so that the program
 *     cannot signal it
 *   a work directory of the program's own in the instance's directory
 *
 * A slot is freed by its killer: a guard that signals everything it can reach (nothing but what is the slot's) until the
 * kernel knows no process of the program's uid, then empties the work directory. The warden is the subreaper of all and reaps them meanwhile.
 *
 * When the warden dies, the janitor, the next subreaper, kills and removes in the same way; when the janitor dies, the
 * warden does, and ends. What both leave behind, being killed at once, the next start removes.
 */
#ifndef SANDFORK_REDUCED_WARDEN_H
#define SANDFORK_REDUCED_WARDEN_H

#include "agent.h"
#include "cell.h"
#include "reduced.h"
#include "rlimits.h"

#define KILL_ROUNDS 2000 /* of about 1 ms */
#define SWEEP_PASSES 500 /* of 10 ms, or of the death of a child */
#define KILLERS_AT_ONCE 16

static struct {
    const char *path; /* the instance's directory */
    int work;
    uint32_t uid_base;
    uint32_t uid_count;
} reduced;

static uint32_t reduced_uid(uint32_t slot)
{
    return reduced.uid_base + 2 + 2 * slot;
}

static void nap_us(long us)
{
    struct timespec nap = {0, us * 1000};
    SYS(ppoll, NULL, 0, &nap, NULL, 0);
}

/* Become the guard of the slot whose program runs as `uid`. With no id left that is root's, all capabilities go. */
static long become_guard(uint32_t uid)
{
    if (uid < 2)
        return -EINVAL;
    long r = SYS(setgroups, 0, NULL);
    if (r >= 0)
        r = SYS(setresgid, uid, uid, uid);
    if (r >= 0)
        r = SYS(setresuid, uid - 1, uid, uid - 1);
    if (r >= 0)
        r = SYS(prctl, PR_SET_PDEATHSIG, SF_SIGKILL, 0, 0, 0);
    return r;
}

/* --- emptying a work directory: depth and width are the program's choice, so nothing here grows with them --- */

#define LEVELS_MAX 32

/* The directories from the top to where we are. `name` is the entry that the next level is. */
static struct {
    int fd;
    bool seen; /* an entry, in this pass: removing some may have hidden others, so there must be another */
    char name[256];
} levels[LEVELS_MAX];

static bool is_dots(const char *name)
{
    return str_eq(name, ".") || str_eq(name, "..");
}

static long remove_entry(int dir, const char *name)
{
    long r = SYS(unlinkat, dir, name, 0);
    return r == -EISDIR ? SYS(unlinkat, dir, name, AT_REMOVEDIR) : r;
}

/* Remove what can be: 0 at the end of the directory, 1 at a directory that is not empty, or -errno. */
static long clear_level(int at)
{
    static char entries[8192];
    int dir = levels[at].fd;
    for (long n; (n = SYS(getdents64, dir, entries, sizeof entries)) != 0;) {
        if (n < 0)
            return n;
        for (long offset = 0; offset < n;) {
            const struct sf_dirent *d = (struct sf_dirent *)(entries + offset);
            offset += d->reclen;
            if (is_dots(d->name))
                continue;
            levels[at].seen = true;
            long r = remove_entry(dir, d->name);
            if (r == -EACCES && (r = SYS(fchmod, dir, 0700)) >= 0)
                r = remove_entry(dir, d->name);
            if (r == -ENOTEMPTY) {
                memcpy(levels[at].name, d->name, str_len(d->name) + 1);
                r = SYS(lseek, dir, d->off, 0);
                return r < 0 ? r : 1;
            }
            if (r < 0)
                return r;
        }
    }
    return 0;
}

static long enter(int dir, const char *name)
{
    int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    long r = SYS(openat, dir, name, flags, 0);
    if (r == -EACCES && (r = SYS(fchmodat, dir, name, 0700)) >= 0)
        r = SYS(openat, dir, name, flags, 0);
    return r;
}

/* Move a directory up to the top, whose turn it is later: so no depth takes more levels than there are. */
static long lift(int dir, const char *name)
{
    static unsigned serial;
    for (;;) {
        struct text fresh = {0};
        text_add(&fresh, ".lifted");
        text_num(&fresh, serial++);
        long r = SYS(renameat2, dir, name, levels[0].fd, fresh.buf, 0);
        /* A move rewrites its "..", which takes permission to write. */
        if (r == -EACCES && (r = SYS(fchmodat, dir, name, 0700)) >= 0)
            r = SYS(renameat2, dir, name, levels[0].fd, fresh.buf, 0);
        /* The program may have taken that name; in the place of an empty directory it is as good. */
        if (r != -EEXIST && r != -ENOTEMPTY && r != -ENOTDIR)
            return r;
    }
}

static long empty_directory(int top)
{
    int at = 0;
    levels[0].fd = top;
    levels[0].seen = false;
    for (;;) {
        long r = clear_level(at);
        if (r == 1 && at + 1 == LEVELS_MAX) {
            r = lift(levels[at].fd, levels[at].name);
        } else if (r == 1 && (r = enter(levels[at].fd, levels[at].name)) >= 0) {
            levels[++at].fd = (int)r;
            levels[at].seen = false;
        } else if (r == 0 && levels[at].seen) {
            levels[at].seen = false;
            r = SYS(lseek, levels[at].fd, 0, 0);
        } else if (r == 0 && at == 0) {
            return 0;
        } else if (r == 0) {
            SYS(close, levels[at--].fd);
            r = SYS(unlinkat, levels[at].fd, levels[at].name, AT_REMOVEDIR);
        }
        if (r < 0)
            return r;
    }
}

/* --- killing --- */

/*
 * Kill whatever runs as `uid`, until nothing does: 0, or -EBUSY after so many rounds. The kernel signals all of them before
 * any can fork again, so the rounds only wait for the dead to be reaped.
 */
static long kill_all_of(uint32_t uid, int rounds)
{
    /* SAFETY: kill(-1) reaches whoever the ids allow. become_guard has failed unless they are one slot's, and no capability is
     * left. It succeeds whether or not there was anybody, unlike getpriority, which finds the dead, too. */
    for (int round = 0; round < rounds; round++) {
        SYS(kill, -1, SF_SIGKILL);
        if (SYS(getpriority, 2 /* PRIO_USER */, uid) == -ESRCH)
            return 0;
        nap_us(round < 10 ? 100 : 1000);
    }
    return -EBUSY;
}

/*
 * The killer of the slot whose program runs as `uid`: exit status 0, or an errno. `strangers`: its processes are no
 * children of ours, so dead ones may stay unreaped by whoever adopted them, and cannot be told from living ones.
 */
static __attribute__((noreturn)) void killer_main(const char *name, uint32_t uid, bool strangers)
{
    long r = become_guard(uid);
    if (r >= 0)
        r = kill_all_of(uid, strangers ? KILL_ROUNDS / 10 : KILL_ROUNDS);
    if (r >= 0 || strangers) {
        SYS(fchmodat, reduced.work, name, 0700); /* the program may have shut us out */
        long dir = SYS(openat, reduced.work, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
        r = dir < 0 ? dir : empty_directory((int)dir);
    }
    for (;;)
        SYS(exit_group, r < 0 ? -r : 0);
}

static long start_killer(const char *name, uint32_t uid, bool strangers)
{
    long pid = fork_with(0, SF_SIGCHLD, NULL);
    if (pid == 0)
        killer_main(name, uid, strangers);
    return pid;
}

/* Reap until at most `most` of the killers are at work; whatever else ends is reaped, too. */
static void await_killers(int32_t *killers, int *at_work, int most)
{
    while (*at_work > most) {
        long pid = SYS(wait4, -1, NULL, 0, NULL);
        if (pid == -EINTR)
            continue;
        if (pid < 0)
            *at_work = 0;
        for (int i = 0; i < *at_work; i++)
            if (killers[i] == pid)
                killers[i] = killers[--*at_work];
    }
}

/* One pass over the work directories: a killer for each. -ECHILD when no child is left after it. */
static long sweep_pass(bool strangers)
{
    static char entries[8192];
    int32_t killers[KILLERS_AT_ONCE];
    int at_work = 0;
    SYS(lseek, reduced.work, 0, 0);
    for (long n; (n = SYS(getdents64, reduced.work, entries, sizeof entries)) > 0;)
        for (long at = 0; at < n;) {
            struct sf_dirent *d = (struct sf_dirent *)(entries + at);
            struct statx st;
            at += d->reclen;
            if (is_dots(d->name) || SYS(statx, reduced.work, d->name, AT_SYMLINK_NOFOLLOW, STATX_UID | STATX_TYPE, &st) < 0)
                continue;
            /* Owned by root: made, and not yet given to a slot. */
            if ((st.stx_mode & 0170000) != 0040000 || st.stx_uid == 0)
                remove_entry(reduced.work, d->name);
            else if ((killers[at_work] = (int32_t)start_killer(d->name, st.stx_uid, strangers)) > 0)
                at_work++;
            await_killers(killers, &at_work, KILLERS_AT_ONCE - 1);
        }
    await_killers(killers, &at_work, 0);
    long r;
    do
        r = SYS(wait4, -1, NULL, 1 /* WNOHANG */, NULL);
    while (r > 0);
    return r;
}

/* Kill everything of the slots, wait until no child is left, remove the directories. 0, or -errno when something stays. */
static long reduced_sweep(bool strangers)
{
    static char entries[8192];
    long r = 0;
    for (int pass = 0; pass < SWEEP_PASSES && (r = sweep_pass(strangers)) != -ECHILD; pass++)
        nap_us(10000);
    SYS(lseek, reduced.work, 0, 0);
    for (long n; (n = SYS(getdents64, reduced.work, entries, sizeof entries)) > 0;)
        for (long at = 0; at < n;) {
            struct sf_dirent *d = (struct sf_dirent *)(entries + at);
            at += d->reclen;
            if (!is_dots(d->name))
                remove_entry(reduced.work, d->name);
        }
    long gone = SYS(unlinkat, AT_FDCWD, reduced.path, AT_REMOVEDIR);
    if (r != -ECHILD)
        return -EBUSY;
    return gone == -ENOENT ? 0 : gone; /* the warden may have been here before the janitor */
}

/* --- slots --- */

static int32_t slot_killer[SLOTS_MAX];
static uint8_t slot_killed[SLOTS_MAX]; /* the killer is done */
static uint8_t slot_fault[SLOTS_MAX];  /* what it failed with */

/* The slot's agent: what the cell's init is elsewhere. */
static __attribute__((noreturn)) void reduced_cell_main(const struct cell_birth *b)
{
    struct text name = {0};
    struct fork_order order = {
        .slot = b->slot,
        .serial = b->serial,
        .open_files = b->open_files,
        .flags = b->order_flags | ORDER_REDUCED,
        .uid = reduced_uid(b->slot),
    };
    limit_by_rlimits(&order, &host.slots[b->slot].limits);
    slot_path(&name, b->slot, NULL);
    uint32_t step = STEP_UID;
    long work = -1, r = become_guard(order.uid);
    if (r >= 0) {
        step = STEP_WORK_DIR;
        r = work = SYS(openat, reduced.work, name.buf, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
    }
    if (r >= 0)
        r = SYS(mkdirat, work, ".tmp", 0700);
    if (r >= 0) {
        int fds[FDS_MAX] = {(int)work, b->fds[0], b->fds[1], b->fds[2], b->fds[3]};
        r = send_fds(b->orders, &order, sizeof order, fds, ORDER_CGROUPS);
        step = order_step(r);
    }
    if (r < 0) {
        struct fork_report failure = {b->slot, b->serial, (int32_t)r, step};
        send_fds(b->reports, &failure, sizeof failure, NULL, 0);
        SYS(exit_group, 1);
    }
    signal_disposition(SF_SIGCHLD, true);
    SYS(dup3, b->fds[4], 0, O_CLOEXEC);
    SYS(dup3, work, 1, O_CLOEXEC);
    SYS(close_range, 2, ~0u, 0);
    agent_serve(0, 1);
}

/* Make the slot's directory and its agent; the agent's pid, or -errno and `*step`. */
static long reduced_spawn(const struct cell_birth *b, const struct limits *most, uint32_t *step)
{
    struct text name = {0};
    *step = STEP_WORK_DIR;
    if (2 + 2 * (uint64_t)b->slot >= reduced.uid_count)
        return -ERANGE;
    slot_path(&name, b->slot, NULL);
    long r = SYS(mkdirat, reduced.work, name.buf, 0700);
    if (r >= 0)
        r = SYS(fchownat, reduced.work, name.buf, reduced_uid(b->slot), reduced_uid(b->slot), AT_SYMLINK_NOFOLLOW);
    if (r < 0)
        return r;
    host.slots[b->slot].limits = *most;
    *step = STEP_CLONE;
    r = fork_with(0, SF_SIGCHLD, NULL);
    if (r == 0)
        reduced_cell_main(b);
    return r;
}

/* True once nothing is left in a slot that is being closed; starts its killer on the first call. */
static bool reduced_is_empty(uint32_t id, long *fault)
{
    struct slot *s = &host.slots[id];
    struct text name = {0};
    slot_path(&name, id, NULL);
    if (slot_killer[id])
        return false;
    if (!slot_killed[id]) {
        /* They may not have their uids yet, and would be out of the killer's reach. */
        if (s->user)
            SYS(kill, s->user, SF_SIGKILL);
        if (s->cell)
            SYS(kill, s->cell, SF_SIGKILL);
        long pid = start_killer(name.buf, reduced_uid(id), false);
        slot_killed[id] = pid < 0;
        slot_fault[id] = pid < 0 ? EAGAIN : 0;
        slot_killer[id] = pid < 0 ? 0 : (int32_t)pid;
        if (pid >= 0)
            return false;
    }
    if (s->user || s->cell)
        return false;
    slot_killed[id] = 0;
    *fault = -(long)slot_fault[id];
    if (!*fault)
        *fault = SYS(unlinkat, reduced.work, name.buf, AT_REMOVEDIR);
    return true;
}

/* Take note when `pid` was the killer of a slot, whose number is returned; SLOTS_MAX otherwise. */
static uint32_t reduced_killer_ended(int32_t pid, int status, uint32_t used)
{
    for (uint32_t id = 0; id < used; id++)
        if (slot_killer[id] == pid) {
            slot_killer[id] = 0;
            slot_killed[id] = 1;
            slot_fault[id] = status & 0x7f ? EINTR : (uint8_t)(status >> 8);
            return id;
        }
    return SLOTS_MAX;
}

/* Lower the limits of a parked process that cannot do so itself; as its own uid, for root here lacks the capability. */
static long reduced_limit(uint32_t id, int32_t user, const struct limits *want)
{
    long pid = fork_with(0, SF_SIGCHLD, NULL);
    if (pid == 0) {
        uint32_t uid = reduced_uid(id);
        long r = SYS(setgroups, 0, NULL);
        if (r >= 0)
            r = SYS(setresgid, uid, uid, uid);
        if (r >= 0)
            r = SYS(setresuid, uid, uid, uid);
        if (r >= 0)
            r = lower_rlimits_of(user, want);
        SYS(exit_group, r < 0 ? -r : 0);
    }
    int status = 0;
    long r = pid < 0 ? pid : SYS(wait4, pid, &status, 0, NULL);
    return r < 0 ? r : -(long)((status >> 8) & 0xff);
}

/* --- start --- */

/* Keep what making and ending slots takes; the interpreters that become zygotes inherit no more. */
static long keep_few_capabilities(bool zygote)
{
    uint32_t keep = 1u << CAP_SETUID | 1u << CAP_SETGID | 1u << CAP_SETPCAP;
    if (!zygote)
        keep |= 1u << CAP_CHOWN | 1u << CAP_KILL;
    for (uint32_t cap = 0; cap < 64; cap++)
        if (!(cap < 32 && keep & 1u << cap)) {
            long r = SYS(prctl, PR_CAPBSET_DROP, cap, 0, 0, 0);
            if (r == -EINVAL)
                break; /* the last one */
            if (r < 0)
                return r;
        }
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct few[2] = {{keep, keep, 0}, {0}};
    return SYS(capset, &head, few);
}

/* What a process that becomes a zygote does in place of entering a sandbox root. Its rehearsal may write where it stands. */
static long enter_reduced_zygote(void)
{
    /* Without a cgroup nothing but the whole container's memory ends a program's: then the kernel shall take it first. */
    write_file_at(AT_FDCWD, "/proc/self/oom_score_adj", "1000");
    long r = SYS(fchdir, reduced.work);
    if (r >= 0)
        r = keep_few_capabilities(true);
    /* Loading the allow list takes this or CAP_SYS_ADMIN. */
    if (r >= 0)
        r = SYS(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return r < 0 ? r : SYS(prctl, PR_SET_PDEATHSIG, SF_SIGKILL, 0, 0, 0);
}

#endif
