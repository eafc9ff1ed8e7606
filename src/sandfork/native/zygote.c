/*
 * zygote.so: the fork path of a zygote whose interpreter loads it with ctypes. See zygote.h.
 *
 * No libc, no Python API: one binary serves every interpreter of every image.
 */
#include "frozen.h"
#include "hugetext.h"
#include "receive.h"
#include "touched.h"
#include "traced.h"
#include "zygote.h"

static struct confinement confinement;

/* Take the profile the warden wrote into `fd` (a memory file); 0 or -errno. */
__attribute__((visibility("default"))) long sandfork_configure(int fd)
{
    long r = read_all(fd, &confinement.profile, sizeof confinement.profile);
    if (r < 0)
        return r;
    if (!profile_fits(&confinement.profile))
        return -EINVAL;
    r = read_all(fd, confinement.bpf, confinement.profile.bpf_len * sizeof *confinement.bpf);
    if (r >= 0)
        r = read_all(fd, confinement.seal, confinement.profile.seal_len * sizeof *confinement.seal);
    return r < 0 ? r : read_all(fd, confinement.paths, confinement.profile.paths_len);
}

/*
 * Load the allow list, tell the warden that warm-up is over, then serve. Returns as zygote_fork does. `text` is any
 * function of the interpreter's.
 */
__attribute__((visibility("default"))) long sandfork_zygote(int orders, int reports, const void *text)
{
    void *tid_address = NULL;
    huge_text((uint64_t)text);
    freeze_memory();
    /* Where libc caches the thread id, so that the child's copy is right without libc's fork. */
    SYS(prctl, PR_GET_TID_ADDRESS, &tid_address, 0, 0, 0);
    if (send_scout(tid_address))
        return confinement.profile.paths_len ? ORDER_REDUCED : 0;
    long r = load_filter(confinement.bpf, confinement.profile.bpf_len);
    if (r < 0)
        return r;
    report_ready(reports);
    r = zygote_fork(&confinement, orders, reports, tid_address);
    if (r > 0 && r & ORDER_URGENT) {
        /* It may be sent its program while the interpreter is still coming to itself. */
        const struct frame ready = {FRAME_READY, {0}, 0};
        write_all(CTL_FD, &ready, sizeof ready);
    }
    if (r >= 0)
        touch_pages();
    return r;
}

/* Wait for RUN on `fd`, put its limits in force and write its file; 0, or -errno (-EINTR: nothing has come yet). */
__attribute__((visibility("default"))) long sandfork_receive(int fd, struct received *out)
{
    return take_run(fd, out);
}

/* Where a RUN lies that is short enough. */
__attribute__((visibility("default"))) void *sandfork_short_run(void)
{
    return short_run + sizeof(struct frame);
}

/* Give back the memory of a RUN that was not. */
__attribute__((visibility("default"))) void sandfork_release(void)
{
    release_run();
}

/* See call_traced. */
__attribute__((visibility("default"))) void *sandfork_call_traced(const struct interpreter *api, void *callable,
                                                                   void *args, int *raised)
{
    return call_traced(api, callable, args, raised);
}

/* Say END on `fd`; `times` are when the program was ready and done, in ns. */
__attribute__((visibility("default"))) void sandfork_end(int fd, int status, const uint64_t *times)
{
    end_run(fd, status, times);
    stay_if_scout(fd);
}
