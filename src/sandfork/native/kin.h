/*
 * Ending one program among several in a sandbox: its process, what is in the session that this leads, and what descends
 * from either. Of what has left both, its session and its ancestors, nothing tells any more whose it was.
 *
 * All are stopped first, until nothing further is found: what is stopped neither forks nor dies, so that the way from
 * a process to its ancestors stays whole. Then all are killed.
 */
#ifndef SANDFORK_KIN_H
#define SANDFORK_KIN_H

#include "slot.h"

#define CROWD_MAX 1024
#define KIN_ROUNDS 64

struct kin {
    int32_t pid;
    int32_t parent;
    int32_t session;
    bool ours;
};

static struct kin crowd[CROWD_MAX];

/* The decimal number at `*at`, which is moved behind it. */
static int32_t take_number(const char **at, const char *end)
{
    int32_t n = 0;
    while (*at < end && (**at < '0' || **at > '9'))
        (*at)++;
    for (; *at < end && **at >= '0' && **at <= '9'; (*at)++)
        n = n * 10 + (**at - '0');
    return n;
}

/* Note a process; one that is dead by now, or a zombie, is nobody any more. */
static bool meet(struct kin *k, int32_t pid)
{
    char stat[512];
    struct text path = {0};
    text_add(&path, "/proc/");
    text_num(&path, pid);
    text_add(&path, "/stat");
    long fd = SYS(openat, AT_FDCWD, path.buf, O_RDONLY | O_CLOEXEC, 0);
    long n = fd < 0 ? fd : SYS(read, fd, stat, sizeof stat);
    if (fd >= 0)
        SYS(close, fd);
    const char *end = stat + (n > 0 ? n : 0), *at = end;
    while (at > stat && at[-1] != ')') /* a program chooses what stands before */
        at--;
    if (at == stat || at + 1 >= end || at[1] == 'Z' || at[1] == 'X')
        return false;
    int32_t parent = take_number(&at, end);
    take_number(&at, end); /* its group */
    *k = (struct kin){pid, parent, take_number(&at, end), false};
    return true;
}

/* Meet all that are in the cgroup of a slot; how many, or -errno. */
static long meet_all(uint32_t slot)
{
    char list[4096];
    struct text path = {0};
    slot_path(&path, slot, "cgroup.procs");
    long fd = SYS(openat, host.hierarchies[0].dir, path.buf, O_RDONLY | O_CLOEXEC, 0), n = fd;
    long count = 0;
    int32_t pid = 0;
    while (fd >= 0 && (n = SYS(read, fd, list, sizeof list)) > 0)
        for (long i = 0; i < n; i++) {
            if (list[i] != '\n') {
                pid = pid * 10 + (list[i] - '0');
                continue;
            }
            if (count == CROWD_MAX) {
                SYS(close, fd);
                return -E2BIG;
            }
            count += pid && meet(&crowd[count], pid);
            pid = 0;
        }
    if (fd >= 0)
        SYS(close, fd);
    return n < 0 ? n : count;
}

static bool is_ours(const struct kin *k, int32_t leader, long count)
{
    if (k->pid == leader || k->session == leader)
        return true;
    for (long i = 0; i < count; i++)
        if (crowd[i].ours && crowd[i].pid == k->parent)
            return true;
    return false;
}

/* Find those that belong to `leader`; how many, and the sum of their pids, by which two rounds are compared. */
static long find_kin(int32_t leader, long count, int64_t *sum)
{
    long ours = 0;
    *sum = 0;
    for (bool more = true; more;) {
        more = false;
        for (long i = 0; i < count; i++)
            if (!crowd[i].ours && is_ours(&crowd[i], leader, count)) {
                crowd[i].ours = more = true;
                *sum += crowd[i].pid;
                ours++;
            }
    }
    return ours;
}

static void signal_kin(long count, int number)
{
    for (long i = 0; i < count; i++)
        if (crowd[i].ours)
            SYS(kill, crowd[i].pid, number);
}

/*
 * Kill the program `leader` of the sandbox in `slot`: how many there were, or -errno. A fork that was under way when its
 * process was stopped may still come to be, so that none are left only when none were found.
 */
static long kill_kin(uint32_t slot, int32_t leader)
{
    if (!host.hierarchy_count)
        return -ENOSYS;
    int64_t before = -1;
    for (int round = 0; round < KIN_ROUNDS; round++) {
        long count = meet_all(slot);
        if (count < 0)
            return count;
        int64_t sum;
        long ours = find_kin(leader, count, &sum);
        signal_kin(count, sum == before ? SF_SIGKILL : SF_SIGSTOP);
        if (!ours || sum == before)
            return ours;
        before = sum;
    }
    return -EAGAIN;
}

#endif
