/*
 * Limits that are each process' own: open files, file size and processor time everywhere, and memory and processes
 * where there is no cgroup. They are set at the child's birth to the most that may be asked for and lowered before the
 * program begins: by the interpreter or the launcher itself (RUN), or, for a process that cannot, from outside by the
 * warden (REQ_LIMITS).
 */
#ifndef SANDFORK_RLIMITS_H
#define SANDFORK_RLIMITS_H

#include "slot.h"

static void limit_by_rlimits(struct fork_order *order, const struct limits *most)
{
    /* With one uid for all, the cell's init counts as one of the program's processes. */
    order->pids = most->pids + (host.single_uid ? 1 : 0);
    order->memory_bytes = most->memory_bytes;
}

static long lower_rlimit_of(int32_t pid, int resource, uint64_t soft, uint64_t hard)
{
    struct rlimit64 now, want;
    long r = SYS(prlimit64, pid, resource, NULL, &now);
    if (r < 0)
        return r;
    want.rlim_max = hard < now.rlim_max ? hard : now.rlim_max;
    want.rlim_cur = soft < want.rlim_max ? soft : want.rlim_max;
    return SYS(prlimit64, pid, resource, &want, NULL);
}

static long lower_rlimits_of(int32_t pid, const struct limits *want)
{
    uint64_t pids = want->pids + (host.single_uid ? 1u : 0u);
    long r = lower_rlimit_of(pid, RLIMIT_NOFILE, want->open_files, want->open_files);
    if (r >= 0 && !host.hierarchy_count)
        r = lower_rlimit_of(pid, RLIMIT_NPROC, pids, pids);
    if (r >= 0 && !host.hierarchy_count)
        r = lower_rlimit_of(pid, RLIMIT_DATA, want->memory_bytes, want->memory_bytes);
    if (r >= 0)
        r = lower_rlimit_of(pid, RLIMIT_FSIZE, want->disk_bytes, want->disk_bytes);
    if (r >= 0 && want->cpu_s)
        r = lower_rlimit_of(pid, RLIMIT_CPU, want->cpu_s, want->cpu_s + 1u);
    return r;
}

#endif
