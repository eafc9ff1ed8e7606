/* The limits that RUN puts on the process that takes it. */
#ifndef SANDFORK_RUN_H
#define SANDFORK_RUN_H

#include "fields.h"

#define RUN_MAX (64u << 20)

static void lower_rlimit(int resource, uint64_t soft, uint64_t hard)
{
    struct rlimit64 now, want;
    if (SYS(prlimit64, 0, resource, NULL, &now) < 0)
        return;
    want.rlim_max = hard < now.rlim_max ? hard : now.rlim_max;
    want.rlim_cur = soft < want.rlim_max ? soft : want.rlim_max;
    SYS(prlimit64, 0, resource, &want, NULL);
}

/* Put the limit that a field of RUN names in force; false when it names none. */
static bool run_limit(uint8_t tag, uint64_t n)
{
    if (tag == FIELD_OPEN_FILES)
        lower_rlimit(RLIMIT_NOFILE, n, n);
    else if (tag == FIELD_CPU)
        lower_rlimit(RLIMIT_CPU, n, n + 1);
    else if (tag == FIELD_FSIZE)
        lower_rlimit(RLIMIT_FSIZE, n, n);
    else if (tag == FIELD_PIDS)
        lower_rlimit(RLIMIT_NPROC, n, n);
    else if (tag == FIELD_MEMORY)
        lower_rlimit(RLIMIT_DATA, n, n);
    else
        return false;
    return true;
}

#endif
