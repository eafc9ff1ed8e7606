/*
 * zygote.so: the fork path of a zygote whose interpreter loads it with ctypes. See zygote.h.
 *
 * No libc, no Python API: one binary serves every interpreter of every image.
 */
#include "hugetext.h"
#include "zygote.h"

void *memcpy(void *to, const void *from, size_t n)
{
    char *t = to;
    const char *f = from;
    while (n--)
        *t++ = *f++;
    return to;
}

void *memset(void *to, int value, size_t n)
{
    char *t = to;
    while (n--)
        *t++ = (char)value;
    return to;
}

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
    /* Where libc caches the thread id, so that the child's copy is right without libc's fork. */
    SYS(prctl, PR_GET_TID_ADDRESS, &tid_address, 0, 0, 0);
    long r = load_filter(confinement.bpf, confinement.profile.bpf_len);
    if (r < 0)
        return r;
    report_ready(reports);
    r = zygote_fork(&confinement, orders, reports, tid_address);
    if (r == 1) {
        /* It may be sent its program while the interpreter is still coming to itself. */
        const struct frame ready = {FRAME_READY, {0}, 0};
        write_all(CTL_FD, &ready, sizeof ready);
    }
    return r;
}
